//! Why a verdict is what it is, as data; `klpfarm-report` says it in sentences.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attribution, ExposureBound, Hits, Reach, WaitGroup};
use crate::{Arm, Detector, FindingKind, Tier};

/// One reason of a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// Image and load, where several go round.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turn: Option<String>,
    /// What it is.
    #[serde(flatten)]
    pub what: Why,
}

impl From<Why> for Cause {
    fn from(what: Why) -> Self {
        Self { turn: None, what }
    }
}

/// What speaks for or against a patch, or keeps a verdict from being reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Why {
    /// A finding counts against the patch.
    AgainstThePatch(FindingCause),
    /// Trials of an arm fail more often than the control trials next to them, which chance would explain in fewer than one of a thousand
    /// runs.
    FailsMoreOften {
        /// The arm.
        arm: Arm,
        /// Names of the patches applied.
        patches: Vec<String>,
        /// Pairs of a trial and the control trial next to it.
        pairs: u32,
        /// Patched trials of them that failed.
        failed: u32,
        /// Control trials of them that failed.
        control_failed: u32,
    },
    /// A finding that is not proven to be the patch, or is not the patch: its attribution says why.
    NotProven(FindingCause),
    /// A finding that is not proven to be the patch, and whose trials the tier's rate covers.
    WithinTheRate(FindingCause),
    /// A finding of a trial that has not ended.
    TrialNotEnded {
        /// The trial.
        trial: u32,
        /// The finding's title.
        title: String,
    },
    /// Too few trials under load went without a failure.
    TooFewClean {
        /// The arm.
        arm: Arm,
        /// Names of the patches applied.
        patches: Vec<String>,
        /// Trials without a failure.
        clean: u32,
        /// Trials that failed.
        failed: u32,
        /// Trials that the tier needs without a failure.
        needed: u32,
        /// The tier.
        tier: Tier,
        /// Highest failure rate that these trials leave possible.
        failure_rate: f64,
        /// Highest failure rate that the tier allows.
        allowed: f64,
        /// With this confidence.
        confidence: f64,
        /// Of soaks: failures an hour that these leave possible, and that the tier allows.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        per_hour: Option<PerHour>,
    },
    /// Trials of an arm were not completed.
    TrialsMissing {
        /// The arm.
        arm: Arm,
        /// So many.
        missing: u32,
        /// Of so many that are due.
        of: u32,
    },
    /// None of an arm's trials ended cleanly, and the tier asks for that arm.
    NoneClean {
        /// The arm.
        arm: Arm,
        /// Names of the patches applied.
        patches: Vec<String>,
        /// Trials that ended and count.
        trials: u32,
        /// The tier.
        tier: Tier,
    },
    /// Too many of the few trials that an arm has failed.
    FailedTooOften {
        /// The arm.
        arm: Arm,
        /// Names of the patches applied.
        patches: Vec<String>,
        /// Trials that failed.
        failed: u32,
        /// Trials that count.
        of: u32,
        /// Highest failure rate that these trials leave possible.
        failure_rate: f64,
        /// Highest failure rate that the tier allows for such an arm.
        allowed: f64,
    },
    /// A patch replaces no function, so that nothing shows that the load runs its code.
    ReplacesNothing {
        /// The patch; absent if no patch replaces any.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        patch: Option<String>,
    },
    /// The workloads never call a patched function.
    NeverCalled {
        /// The function.
        function: String,
        /// A shipped workload that might.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        workload: Option<String>,
    },
    /// A function is called, but not once while the patch was in force and calls were counted.
    NewCodeNeverRan {
        /// The function.
        function: String,
        /// Calls a second without the patch; absent if they were not counted.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        before_per_s: Option<f64>,
        /// Tasks inside it when the patch was applied.
        inside: u32,
    },
    /// A function is called while the kernel says that the patch is in force, and the calls do not arrive at its new code.
    NewCodeBypassed {
        /// The function.
        function: String,
        /// The patch whose new code does not run: the last one in force that replaces the function.
        patch: String,
        /// Trials in which it did not run once, of those that counted it, by arm.
        arms: BTreeMap<Arm, Hits>,
        /// Calls of the function that these trials counted.
        calls: u64,
    },
    /// Calls of a function were not counted with the patch in force.
    CallsUnknown {
        /// The function.
        function: String,
    },
    /// The journal has events of trials that are not in the plan: they belong to different runs.
    TrialsOfAnotherPlan {
        /// The first five of them.
        trials: Vec<u32>,
    },
    /// The journal is of a run with another plan.
    JournalOfAnotherPlan {
        /// The event that says so.
        event: u64,
        /// [`crate::Plan::hash`] as the journal has it.
        journal: String,
        /// [`crate::Plan::hash`] of the plan judged.
        plan: String,
    },
    /// The run ended before it was decided.
    CutShort {
        /// Why, in the words of whoever ended it.
        reason: String,
    },
    /// The farm or the host failed, not the patch.
    FarmFailed(FarmError),
    /// Nothing speaks against the patch, and enough for it.
    NothingFound {
        /// Trials without a finding.
        trials: BTreeMap<Arm, u32>,
        /// Length of the soak in seconds.
        soak_s: u64,
        /// Highest share of applications under load that they leave possible to fail, of the worst patch, and with which confidence.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        bound: Option<PossibleRate>,
        /// What the soaks leave possible, of the worst patch, and with which confidence.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        exposure: Option<PossibleExposure>,
        /// Calls of the patched functions.
        reach: Vec<Reach>,
    },
}

/// A failure rate that trials leave possible.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PossibleRate {
    /// Highest failure rate.
    pub failure_rate: f64,
    /// With this confidence.
    pub confidence: f64,
}

/// Failures an hour of one machine with the patch in force.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PerHour {
    /// As many as the soaks leave possible.
    pub possible: f64,
    /// As many as the tier allows.
    pub allowed: f64,
}

/// What soaks leave possible.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PossibleExposure {
    /// As a rate, of all soaks together.
    pub bound: ExposureBound,
    /// With this confidence.
    pub confidence: f64,
}

/// A finding as a cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindingCause {
    /// Title of the finding that names the cause best.
    pub title: String,
    /// Its kind.
    pub kind: FindingKind,
    /// Whether and why it counts against the patch.
    pub attribution: Attribution,
    /// Under which condition it shows; absent if it is not seen with the patch applied.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub condition: Option<Condition>,
    /// Trials that showed it, by arm: hits of how many valid trials.
    pub arms: BTreeMap<Arm, Hits>,
    /// The same by names of the patches applied, where there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub patches: BTreeMap<String, Hits>,
    /// Fisher's exact test of a patched arm against the control arm, as in [`super::Evidence::p_value`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p_value: Option<f64>,
    /// Kernel function concerned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub function: Option<String>,
    /// Milliseconds after applying when it was first seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_after_apply_ms: Option<u64>,
    /// Where tasks wait, for what, since when, and who may hold it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub waits: Vec<WaitGroup>,
}

/// Under which condition a finding shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Only when the patch is taken back.
    Reverting,
    /// Only when it is applied again after it was taken back.
    Reapplied,
    /// Only with the patches on top of each other.
    Stacked,
    /// Only when it is applied idle.
    AppliedIdle,
    /// Only when the load was running at the moment of applying.
    AppliedUnderLoad,
    /// When the load was running at the moment of applying; no idle trial to compare with.
    AppliedUnderLoadOnlyTried,
    /// Always while it is being applied, even on an idle machine.
    Applying,
    /// Whenever there is load, whether it was running at the moment of applying or started afterwards.
    Load,
}

/// A failure of the farm itself, or of the host, that made a trial worthless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FarmError {
    /// The trial.
    pub trial: u32,
    /// What happened.
    pub message: String,
}

/// A detector that could not work in this run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnavailableDetector {
    /// Which.
    pub detector: Detector,
    /// Why, and what is not seen because of it.
    pub reason: String,
}
