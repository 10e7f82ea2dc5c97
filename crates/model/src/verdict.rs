//! The verdict: `verdict.json`. Its fields are API; `docs/verdict.md` documents them.

use std::collections::BTreeMap;
use std::path::PathBuf;

mod cause;

pub use cause::{
    Cause, Condition, FarmError, FindingCause, PerHour, PossibleExposure, PossibleRate, UnavailableDetector,
    Why,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Vitals;
pub use crate::stats::Hits;
use crate::wait::Noted;
use crate::{Accel, Arm, FindingKind, ImageFacts, Patch, Phase, Source, Tier};

/// The three outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// [`crate::plan::SCHEMA`].
    pub schema: u32,
    /// The outcome.
    pub verdict: Outcome,
    /// The tier in question.
    pub tier: Tier,
    /// Outcome by image and load, where several go round.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub turns: BTreeMap<String, Outcome>,
    /// Why, most important first; never empty.
    pub causes: Vec<Cause>,
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
    /// Detectors that could not work.
    pub blind: Vec<UnavailableDetector>,
    /// Workloads that can't run on this guest, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unavailable: BTreeMap<String, String>,
    /// Failures of the farm itself, and troubles of the host.
    pub farm_errors: Vec<FarmError>,
    /// Every trial that was invalidated, lost or repeated, in order of its number.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub remarks: Vec<TrialRemark>,
    /// [`crate::Plan::hash`] of the plan judged.
    pub plan: String,
    /// Length of the run in milliseconds.
    pub took_ms: u64,
    /// Version of klpfarm.
    pub farm: String,
}

/// A trial that did not simply go through all its phases, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrialRemark {
    /// Its number.
    pub trial: u32,
    /// Its arm.
    pub arm: Arm,
    /// What became of it.
    pub what: Remark,
    /// Why, in words.
    pub reason: String,
}

/// What became of a trial that did not simply go through all its phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Remark {
    /// It says nothing about the patch (the host disturbed it, or the patch was never applied): another trial takes its place.
    Invalid,
    /// It ended after the patch had been applied without being observed to its end, for a reason that nobody can explain: it counts as a
    /// failure.
    Lost,
    /// It had not ended when the run was cut off, and was done again from the beginning.
    Repeated,
}

/// Trials of one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArmCount {
    /// Planned.
    pub planned: u32,
    /// Went through all phases without a finding.
    pub clean: u32,
    /// Had a finding that is attributed to the patch; in the control arm, any failure.
    pub failed: u32,
    /// Failed, or were not observed to their end, without proof that it was the patch. They count as failures in the bounds.
    pub unexplained: u32,
    /// Say nothing about the patch: it was never applied, the host disturbed the machine, interrupted, or not needed any more.
    pub void: u32,
}

/// What loaded trials leave possible.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bound {
    /// Image and load, where several go round.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turn: Option<String>,
    /// `loaded` for applications of one patch, `stack` for those of all together, `soak` for running with them.
    pub arm: Arm,
    /// Names of the patches applied.
    pub patches: Vec<String>,
    /// Trials with a finding that may be the patch's.
    pub failed: u32,
    /// Trials without any.
    pub clean: u32,
    /// Highest failure rate of a trial that they leave possible: an upper bound that holds at every look ([`crate::sequential`]); of trials that
    /// were all clean nearly that of Clopper and Pearson (1934).
    pub failure_rate: f64,
    /// With this confidence.
    pub confidence: f64,
    /// Of soaks: what that comes to in an hour with the patch in force.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exposure: Option<ExposureBound>,
}

/// How often failures with a patch in force can happen by what soaks show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExposureBound {
    /// Highest number of failures an hour of one machine that the soaks leave possible: exact for a constant rate (Poisson).
    pub failures_per_hour: f64,
    /// Length of each soak in seconds.
    pub soak_s: u64,
    /// Time with the patch in force, in seconds, all clean soaks together.
    pub clean_s: u64,
}

/// How old and worn the machines were, beside a fresh one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Wear {
    /// Soon after booting.
    pub fresh: Vitals,
    /// When the trials began.
    pub reached: Vitals,
}

/// Hits of all trials that apply one patch in the middle of the load, those that soak then included.
pub fn applied_under_load(arms: &BTreeMap<Arm, Hits>) -> Hits {
    let under_load = [Arm::Loaded, Arm::Soak].into_iter().filter_map(|arm| arms.get(&arm));
    under_load.fold(Hits::default(), |all, h| Hits { hit: all.hit + h.hit, of: all.of + h.of })
}

/// One cause, with all its symptoms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// Image and load, where several go round.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turn: Option<String>,
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
    /// Where tasks wait, for what, since when, and who may hold it, in the trial that `waits_of` names.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub waits: Vec<WaitGroup>,
    /// The trial whose tasks these are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waits_of: Option<u32>,
    /// Every observation of this cause, in journal order, at most 50.
    pub observations: Vec<Observation>,
    /// How many there were.
    pub count: usize,
}

/// Tasks that wait in one place for one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitGroup {
    /// What they were noted for.
    pub noted: Noted,
    /// Function in which they wait: the innermost one that does more than waiting and locking; empty if unknown.
    pub function: String,
    /// Outermost function of a patch on their stacks, the one that replaces the kernel's: the same, or one that called it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patch_function: Option<String>,
    /// The patch that it is of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patch: Option<String>,
    /// For what.
    pub waits_for: WaitFor,
    /// Their state letters.
    pub states: String,
    /// How many.
    pub tasks: u32,
    /// Of how many processes.
    pub processes: u32,
    /// Their names, at most five.
    pub names: Vec<String>,
    /// Workloads that they are threads of.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub workloads: Vec<String>,
    /// When the first of them got on last, in milliseconds after applying (before it, if negative).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_apply_ms: Option<i64>,
    /// Who may hold what they wait for; absent where the stacks say nothing of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub holder: Option<Holder>,
}

/// Who may hold what tasks wait for. A stack does not show which lock it is: all but the last are guesses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "who", rename_all = "kebab-case")]
pub enum Holder {
    /// Tasks that wait in the patch's own code.
    WaitingInThePatch {
        /// Their function.
        function: String,
    },
    /// Tasks of another function of the patch, which wait as well: locks may be taken in a wrong order.
    OtherOrder {
        /// That function.
        function: String,
    },
    /// Other threads of the same processes.
    SameProcess {
        /// Where they stand; absent if it is unknown.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        function: Option<String>,
        /// Their state letter.
        state: char,
    },
    /// Nobody: all working threads of a process wait for its own lock, which is likely never released.
    NobodyLeft,
}

/// What a task waits for, as far as its stack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WaitFor {
    /// In the patch's own code; whether for a lock, the stack does not always say.
    Patch,
    /// The lock of its process's memory map.
    MmapLock,
    /// The same, for reading.
    MmapLockRead,
    /// The same, for writing.
    MmapLockWrite,
    /// The lock of a file or folder.
    InodeLock,
    /// A read-write semaphore, for reading.
    RwsemRead,
    /// The same, for writing.
    RwsemWrite,
    /// A mutex.
    Mutex,
    /// A page of memory: its lock, or its being read or written.
    Page,
    /// That another task finishes something.
    Completion,
    /// A grace period of RCU.
    Rcu,
    /// Nothing: it runs, or would if it had a CPU.
    Cpu,
    /// Something else.
    Other,
    /// Its stack could not be read.
    Unknown,
}

impl WaitFor {
    /// Whether it is the lock of its process's memory map.
    pub fn is_mmap_lock(self) -> bool {
        matches!(self, Self::MmapLock | Self::MmapLockRead | Self::MmapLockWrite)
    }

    /// Whether it is a lock that another task holds.
    pub fn is_lock(self) -> bool {
        self.is_mmap_lock()
            || matches!(self, Self::InodeLock | Self::RwsemRead | Self::RwsemWrite | Self::Mutex | Self::Page)
    }
}

/// Whether a finding counts against the patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Attribution {
    /// The patch's doing.
    Patch,
    /// Seen with the patch only, but not often enough to prove that it is the patch: its trials count as failures.
    Unconfirmed,
    /// No valid control trial to compare with.
    NoControl,
    /// Seen without the patch as well: not proven to be the patch, but its trials count as failures all the same.
    ControlToo,
    /// Seen before the patch was applied.
    BeforeApply,
    /// Seen without the patch only.
    ControlOnly,
}

/// One finding of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reach {
    /// Image and load, where several go round.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub turn: Option<String>,
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
    /// Calls with the patch in force, over all clean trials that counted them: the rate of each trial's count times the seconds in which
    /// the patch was in force in it. Absent if no clean trial counted them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub calls: Option<u64>,
    /// Clean trials that counted them.
    #[serde(default)]
    pub counted_trials: u32,
    /// How many of the calls went to the new code, by the patch that holds it; empty where that could not be counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub new_code: Vec<NewCode>,
}

/// How many calls of a function went to the new code in one patch, while it was the last one in force that replaces the function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NewCode {
    /// The patch.
    pub patch: String,
    /// Calls of the new code a second, the highest of all trials.
    pub per_s: f64,
    /// Calls of the new code as a share of those of the function, 0 to 1, over all trials that counted both; absent if the function was not
    /// called meanwhile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share: Option<f64>,
    /// Trials that counted both.
    pub trials: u32,
}

impl Verdict {
    /// The process exit code that goes with the verdict (docs/reference.md, "Exit codes").
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            Outcome::Qualified => 0,
            Outcome::Rejected => 1,
            Outcome::Inconclusive if !self.farm_errors.is_empty() => 4,
            Outcome::Inconclusive => 3,
        }
    }
}
