//! What a run is of: one candidate or several, on one kind of machine or on several that take turns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ImageFacts, Workload};

/// Whose trials are judged together, and how many kinds of machines there are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One patch, or several that go on top of each other: one verdict.
    #[default]
    Single,
    /// Patches that have nothing to do with each other: each is judged by its own trials and the control trials, which all share
    /// ([`crate::judge_independent`]).
    Independent,
    /// Kinds of machines take turns until the time is over, and each turn is judged by itself.
    Rotation(Vec<Turn>),
}

impl Mode {
    /// The kinds of machines that take turns; none without a rotation.
    pub fn turns(&self) -> &[Turn] {
        match self {
            Self::Rotation(turns) => turns,
            Self::Single | Self::Independent => &[],
        }
    }

    /// The same, to be changed.
    pub fn turns_mut(&mut self) -> &mut [Turn] {
        match self {
            Self::Rotation(turns) => turns,
            Self::Single | Self::Independent => &mut [],
        }
    }

    /// Whether each patch is judged by itself.
    pub fn is_independent(&self) -> bool {
        *self == Self::Independent
    }

    /// Whether kinds of machines take turns.
    pub fn is_rotation(&self) -> bool {
        matches!(self, Self::Rotation(_))
    }
}

/// One kind of machine that comes round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Turn {
    /// The image.
    pub image: ImageFacts,
    /// Name of the load.
    pub load: String,
    /// The workloads, that which ages the machine last.
    pub workloads: Vec<Workload>,
    /// Candidates that are for this image, as positions in [`Plan::patches`].
    pub patches: Vec<usize>,
    /// Id of the checkpoint that its machines are forks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

impl Turn {
    /// For people: image and load.
    pub fn name(&self) -> String {
        format!("{}/{}", self.image.name, self.load)
    }
}
