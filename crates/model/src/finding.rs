//! Findings: signals judged bad.

use klpfarm_kmsg::Kind as KernelKind;
use serde::{Deserialize, Serialize};

/// Where a finding was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// The farm's own observation.
    Farm(FarmKind),
    /// The kernel said so.
    Kernel(KernelKind),
}

/// Trouble that the farm sees without the kernel's help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FarmKind {
    /// A workload thread finishes no operation.
    ThreadStalled,
    /// Tasks stayed in the patch's own code without any progress, long beyond the limit for a stall, while the rest of the machine made
    /// progress: a hang that no slow host explains.
    HangConfirmed,
    /// A task is uninterruptible and does not run.
    TaskBlocked,
    /// A call failed or succeeded against its contract.
    WrongErrno,
    /// Memory or a file held something else than it should.
    WrongContent,
    /// A process of the workload died.
    WorkloadDied,
    /// A workload does far fewer operations than the control arm.
    RateCollapsed,
    /// An operation takes far longer than in the control arm.
    LatencyGrown,
    /// A few operations take very long, which without the patch none or fewer do.
    TailGrown,
    /// One thread falls far behind its siblings.
    ThreadStarved,
    /// Memory, files or tasks are given out and not given back.
    ResourcesLeaked,
    /// No SSH login succeeds.
    SshDead,
    /// The probe went silent.
    ProbeSilent,
    /// A CPU keeps its interrupts off.
    CpuStuck,
    /// The console prints without end.
    ConsoleFlood,
    /// What is written to the kernel's log no longer comes out on the console.
    ConsoleSilent,
    /// The patch could not be loaded.
    LoadRefused,
    /// `insmod` did not return.
    LoadStuck,
    /// The kernel does not list the patch as enabled after loading it.
    NotInForce,
    /// Tasks do not switch to the patch.
    TransitionStalled,
    /// Tasks do not switch back.
    RevertStalled,
    /// The patch could not be disabled or unloaded.
    RevertRefused,
    /// The kernel became tainted by more than a livepatch explains.
    Tainted,
    /// The guest panicked (QMP).
    Panicked,
    /// The machine restarted.
    Rebooted,
    /// The guest powered itself off.
    PoweredOff,
    /// The watchdog device fired.
    WatchdogFired,
}

impl FindingKind {
    /// Whether the host's mood (load, slow disk) can cause it as well: such findings are attributed by kind and not by
    /// title, because the place where a starved guest waits differs from one moment to the next.
    pub fn is_soft(self) -> bool {
        match self {
            Self::Farm(kind) => matches!(
                kind,
                FarmKind::ThreadStalled
                    | FarmKind::TaskBlocked
                    | FarmKind::RateCollapsed
                    | FarmKind::LatencyGrown
                    | FarmKind::TailGrown
                    | FarmKind::ThreadStarved
                    | FarmKind::ResourcesLeaked
                    | FarmKind::SshDead
                    | FarmKind::ProbeSilent
                    | FarmKind::ConsoleSilent
            ),
            Self::Kernel(kind) => matches!(
                kind,
                KernelKind::HungTask
                    | KernelKind::SoftLockup
                    | KernelKind::RcuStall
                    | KernelKind::WorkqueueLockup
                    | KernelKind::Oom
                    | KernelKind::PageAllocation
            ),
        }
    }

    /// The word in files and output.
    pub fn as_str(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(text)) => text,
            _ => String::from("unknown"),
        }
    }
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.as_str())
    }
}

impl From<FarmKind> for FindingKind {
    fn from(kind: FarmKind) -> Self {
        Self::Farm(kind)
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
