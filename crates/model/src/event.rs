//! Events: what happened in a run, in order. The journal is one event a line; all sinks see the same stream.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Accel, Arm, Finding, Phase};

/// One event, as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 1, without gaps: what the verdict cites.
    pub seq: u64,
    /// Milliseconds since the run began.
    pub at_ms: u64,
    /// The trial concerned, with its arm and phase; absent for events of the whole run.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// Trial, arm and phase of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Trial number.
    pub trial: u32,
    /// Its arm.
    pub arm: Arm,
    /// The phase it was in.
    pub phase: Phase,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Body {
    /// The run began.
    RunStarted {
        /// RFC 3339 time of the host.
        time: String,
        /// [`crate::Plan::hash`].
        plan: String,
        /// KVM or emulation.
        accel: Accel,
        /// `qemu-system-x86_64 --version`, first line.
        qemu: String,
    },
    /// A trial's machine is being started.
    TrialStarted,
    /// The trial entered the phase in its scope.
    PhaseStarted,
    /// The machine answered: over SSH and by its probe.
    MachineReady {
        /// Kernel release as the guest tells it.
        release: String,
        /// Milliseconds from power-on to the first SSH login.
        ssh_ms: u64,
        /// `/proc/sys/kernel/tainted` before anything was done.
        taint: u64,
    },
    /// A detector cannot fire on this guest or host.
    Blind {
        /// Which.
        detector: String,
        /// Why.
        reason: String,
    },
    /// The patch is loaded.
    Applied {
        /// Milliseconds `insmod` took.
        took_ms: u64,
        /// Functions it patches, from sysfs: `object/function`.
        functions: Vec<String>,
    },
    /// All tasks run the new code (or, in phase revert, the old code again).
    TransitionDone {
        /// Milliseconds from applying.
        took_ms: u64,
        /// False where the kernel has no consistency model (before 4.12) and switches at once.
        per_task: bool,
    },
    /// The patch was disabled, and unloaded where the kernel can.
    Reverted {
        /// Whether the module was unloaded as well.
        unloaded: bool,
    },
    /// Every few seconds: what the workloads do.
    Progress {
        /// Operations a second since the last such event, by workload.
        rates: BTreeMap<String, f64>,
        /// Latest SSH login in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ssh_ms: Option<u64>,
    },
    /// Summary of a whole phase under load.
    Measured(Measured),
    /// How often a patched function was called.
    Reach {
        /// Function.
        function: String,
        /// Calls counted.
        calls: u64,
        /// In how many milliseconds.
        window_ms: u64,
    },
    /// Something is wrong.
    Finding(Box<Finding>),
    /// Evidence was kept.
    Evidence {
        /// File below the trial's folder.
        file: String,
        /// What it is.
        what: String,
    },
    /// Something worth knowing that is no finding.
    Note {
        /// Text for people.
        text: String,
    },
    /// The trial ended.
    TrialEnded {
        /// How.
        end: TrialEnd,
    },
    /// The run ended.
    RunEnded {
        /// It was ended by the user.
        interrupted: bool,
    },
}

/// How a trial ended. Whose fault a failure is, is a type: only findings count against a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum TrialEnd {
    /// Every phase was gone through.
    Completed,
    /// Ended early: a finding left nothing more to learn.
    Stopped,
    /// The farm failed: QEMU died, no SSH, disk full.
    FarmError {
        /// What and what to do.
        message: String,
    },
    /// The user ended the run.
    Interrupted,
}

/// Summary of a phase under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Length in milliseconds.
    pub window_ms: u64,
    /// Per workload.
    pub workloads: BTreeMap<String, WorkloadMeasure>,
    /// Memory and tasks when the phase began and when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<(Resources, Resources)>,
}

/// What a kernel has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `MemAvailable`, in KiB.
    pub available_kib: u64,
    /// `SUnreclaim`, in KiB.
    pub slab_unreclaimable_kib: u64,
    /// Tasks.
    pub tasks: u64,
}

/// One workload in one phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkloadMeasure {
    /// Operations finished.
    pub ops: u64,
    /// Threads seen.
    pub threads: u32,
    /// Longest time any thread went without finishing an operation, in milliseconds.
    pub longest_idle_ms: u64,
    /// Share of the threads' time spent asleep in calls, 0 to 1; absent where the guest can't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asleep: Option<f64>,
    /// Per operation kind.
    pub latency: BTreeMap<String, LatencyMeasure>,
}

/// One kind of operation in one phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyMeasure {
    /// Operations counted.
    pub count: u64,
    /// Median over the seconds of each second's 10th percentile, in nanoseconds: what the operation costs when nothing gets
    /// in its way.
    pub p10_ns: u64,
    /// Median over the seconds of each second's median, in nanoseconds.
    pub p50_ns: u64,
    /// The same of the 99th percentiles.
    pub p99_ns: u64,
    /// Mean, in nanoseconds.
    pub mean_ns: u64,
}

impl WorkloadMeasure {
    /// Operations a second.
    pub fn rate(&self, window_ms: u64) -> f64 {
        if window_ms == 0 { 0.0 } else { self.ops as f64 * 1000.0 / window_ms as f64 }
    }
}
