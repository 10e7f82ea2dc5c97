//! What goes round in a run that lasts for a time, as a pipeline says it.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::workload::is_name;

/// What goes round, as written in a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// How long the run goes on.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub duration: Duration,
    /// Images; none: the pipeline's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Workloads that run together, by a name for them; none: the pipeline's, all together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loads: BTreeMap<String, Vec<String>>,
    /// A run begins with the machines that the run before it left, grown so much older; zero: with those that the pipeline's `aging`
    /// describes.
    #[serde(default, with = "crate::duration", skip_serializing_if = "Duration::is_zero")]
    #[schemars(with = "String")]
    pub older: Duration,
    /// Disk that the run folder may take, in MiB: the run ends in order when it takes more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
}

impl Rotation {
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut check = |ok: bool, field: &str, message: String| {
            if !ok {
                found.push((field.to_owned(), message));
            }
        };
        check(
            !self.duration.is_zero(),
            "rotation.duration",
            "is zero; write for example 8h for a night".into(),
        );
        for (i, image) in self.images.iter().enumerate() {
            check(!self.images[..i].contains(image), "rotation.images", format!("names `{image}` twice"));
        }
        for (load, names) in &self.loads {
            let field = "rotation.loads";
            let name = "is not a valid name: use lower-case letters, digits and dashes";
            check(is_name(load), field, format!("`{load}` {name}"));
            let empty = "is empty; a patch is never qualified without load";
            check(!names.is_empty(), field, format!("`{load}` {empty}"));
            for (i, name) in names.iter().enumerate() {
                check(!names[..i].contains(name), field, format!("`{load}` names `{name}` twice"));
            }
        }
        found
    }
}
