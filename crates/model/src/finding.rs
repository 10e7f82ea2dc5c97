//! Findings: signals judged bad. What holds for each kind of finding stands in one table, `finding/kinds.rs`.

mod kinds;

use std::borrow::Cow;

pub use kinds::{Failure, ObservedKind, Rank, Rules, WhileGathering};
use klpfarm_kmsg::Kind as KernelKind;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Where a finding was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The serial console.
    Console,
    /// A QMP event.
    Qmp,
    /// A fresh SSH login.
    Ssh,
    /// The probe in the guest: blocked tasks, taints, livepatch files.
    Probe,
    /// The workload's own progress and checks.
    Workload,
    /// The comparison of arms.
    Comparison,
}

/// What kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FindingKind {
    /// The farm observed it without the kernel's help.
    Observed(ObservedKind),
    /// The kernel said so.
    Kernel(KernelKind),
}

impl FindingKind {
    /// All kinds of finding.
    pub fn all() -> impl Iterator<Item = Self> {
        let observed = ObservedKind::ALL.iter().copied().map(Self::Observed);
        observed.chain(KernelKind::ALL.iter().copied().map(Self::Kernel))
    }

    /// What holds for findings of this kind.
    pub fn rules(self) -> Rules {
        match self {
            Self::Observed(kind) => kinds::observed(kind),
            Self::Kernel(kind) => kinds::kernel(kind),
        }
    }

    /// Whether it is soft: [`Rules::soft`].
    pub fn is_soft(self) -> bool {
        self.rules().soft
    }

    /// The word in files and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observed(kind) => kind.as_str(),
            Self::Kernel(kind) => kind.name(),
        }
    }
}

impl JsonSchema for FindingKind {
    fn schema_name() -> Cow<'static, str> {
        "FindingKind".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = Self::all().map(Self::as_str).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<ObservedKind> for FindingKind {
    fn from(kind: ObservedKind) -> Self {
        Self::Observed(kind)
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What kind of trouble.
    pub kind: FindingKind,
    /// The same for the same defect: no addresses, process ids or times.
    pub title: String,
    /// Where it was seen.
    pub source: Source,
    /// Kernel function in which tasks wait or the kernel broke, where it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Workload concerned, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Milliseconds since the patch was applied; `None` before that and in the control arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_apply_ms: Option<u64>,
    /// Line in the trial's `console.log`, for findings from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Code of the patch itself stands on the stack that was seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_patch: bool,
    /// The text around it is incomplete (lost or mixed lines).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub corrupted: bool,
    /// The raw observation.
    pub evidence: String,
}

#[cfg(test)]
mod tests;
