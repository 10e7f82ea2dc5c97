//! The verdict: `verdict.json`. Its fields are API; `docs/verdict.md` documents them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::event::Vitals;
use crate::plan::ImageFacts;
use crate::{Accel, Arm, FindingKind, Patch, Phase, Source, Tier};

/// The three outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The patch may enter the tier.
    Qualified,
    /// It must not, and the evidence says why.
    Rejected,
    /// Nothing can be said; the causes say why.
    Inconclusive,
}

impl Outcome {
    /// As in `verdict.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qualified => "qualified",
            Self::Rejected => "rejected",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the farm says of one patch and one tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// [`crate::plan::SCHEMA`].
    pub schema: u32,
    /// The outcome.
    pub verdict: Outcome,
    /// The tier in question.
    pub tier: Tier,
    /// Why, in plain words, most important first.
    pub causes: Vec<String>,
    /// The candidates, in the order in which they go on top of each other.
    pub patches: Vec<Patch>,
    /// The image they ran on.
    pub image: ImageFacts,
    /// The checkpoint all trials were forked from; absent when each booted by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint: Option<String>,
    /// How old and worn the machines were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wear: Option<Wear>,
    /// KVM or emulation.
    pub accel: Accel,
    /// Trials by arm.
    pub arms: BTreeMap<Arm, ArmCount>,
    /// Failure rates that the loaded trials leave possible.
    pub bounds: Vec<Bound>,
    /// Findings, those that count against the patch first.
    pub evidence: Vec<Evidence>,
    /// Calls of the patched functions.
    pub reach: Vec<Reach>,
    /// Detectors that could not fire.
    pub blind: Vec<String>,
    /// Failures of the farm itself.
    pub farm_errors: Vec<String>,
    /// [`crate::Plan::hash`] of the plan judged.
    pub plan: String,
    /// Length of the run in milliseconds.
    pub took_ms: u64,
    /// Version of klpfarm.
    pub farm: String,
}

/// Trials of one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmCount {
    /// Planned.
    pub planned: u32,
    /// Went through all phases without a finding.
    pub clean: u32,
    /// Had a finding that may be the patch's; in the control arm, any finding.
    pub failed: u32,
    /// Had findings that are not the patch's and may have hidden others.
    pub unclear: u32,
    /// Say nothing: farm errors, interrupted, not needed any more.
    pub void: u32,
}

/// What loaded trials leave possible.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// `loaded`, or `stack` for all patches together.
    pub arm: Arm,
    /// Names of the patches applied.
    pub patches: Vec<String>,
    /// Trials with a finding that may be the patch's.
    pub failed: u32,
    /// Trials without any.
    pub clean: u32,
    /// Highest failure rate that they leave possible: exact upper bound (Clopper and Pearson, 1934).
    pub failure_rate: f64,
    /// With this confidence.
    pub confidence: f64,
}

/// How old and worn the machines were, beside a fresh one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wear {
    /// Soon after booting.
    pub fresh: Vitals,
    /// When the trials began.
    pub reached: Vitals,
}

/// One cause, with all its symptoms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The leading finding's title.
    pub title: String,
    /// Its kind.
    pub kind: FindingKind,
    /// Whether and why it counts.
    pub attribution: Attribution,
    /// Trials that showed it, by arm: hits of how many valid trials.
    pub arms: BTreeMap<Arm, Hits>,
    /// The same by names of the patches applied, where there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub patches: BTreeMap<String, Hits>,
    /// How probable such a difference between a patched arm and the control arm is by chance: Fisher's exact test, two-sided, of the
    /// arm that differs most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p_value: Option<f64>,
    /// Milliseconds after applying when it was first seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_after_apply_ms: Option<u64>,
    /// Kernel function concerned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub function: Option<String>,
    /// Every observation of this cause, in journal order, at most 50.
    pub observations: Vec<Observation>,
    /// How many there were.
    pub count: usize,
}

/// Hits of an arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// Trials that showed it.
    pub hit: u32,
    /// Trials that could have shown it.
    pub of: u32,
}

/// Whether a finding counts against the patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribution {
    /// The patch's doing.
    Patch,
    /// Seen in too few patched trials, and nothing in it names the patch.
    Unconfirmed,
    /// No valid control trial to compare with.
    NoControl,
    /// Seen without the patch as well.
    ControlToo,
    /// Seen before the patch was applied.
    BeforeApply,
    /// Seen without the patch only.
    ControlOnly,
    /// A difference in speed or growth that chance explains.
    Noise,
}

/// One finding of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Journal sequence number.
    pub seq: u64,
    /// Trial.
    pub trial: u32,
    /// Arm.
    pub arm: Arm,
    /// Phase.
    pub phase: Phase,
    /// Kind.
    pub kind: FindingKind,
    /// Title.
    pub title: String,
    /// Where it was seen.
    pub source: Source,
    /// Milliseconds after applying.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after_apply_ms: Option<u64>,
    /// First lines of the raw evidence.
    pub excerpt: String,
    /// Files below the run folder.
    pub files: Vec<PathBuf>,
}

/// How the load reached one patched function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reach {
    /// Function.
    pub function: String,
    /// Calls a second in the control arm, the highest of all trials; absent if they could not be counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before_per_s: Option<f64>,
    /// Calls a second with the patch in force, the highest of all trials; absent if they could not be counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after_per_s: Option<f64>,
    /// Tasks on whose stack it stood at the moment of applying, the highest of all trials.
    pub inside: u32,
}

impl Verdict {
    /// The process exit code that goes with the verdict (README, "Exit codes").
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            Outcome::Qualified => 0,
            Outcome::Rejected => 1,
            Outcome::Inconclusive if !self.farm_errors.is_empty() => 4,
            Outcome::Inconclusive => 3,
        }
    }
}
