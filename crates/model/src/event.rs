//! Events: what happened in a run, in order. The journal is one event a line; all sinks see the same stream.

mod measured;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use measured::{LatencyMeasure, Measured, NewCodeCalls, Resources, WorkloadMeasure};

use crate::wait::Waits;
use crate::{Accel, Arm, Detector, Finding, Phase};

/// One event, as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// What stands for a trial's number in events of a machine that is aged and checkpointed: it is no trial, and no journal has them.
pub const AGED: u32 = 0;

/// Trial, arm and phase of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scope {
    /// Trial number, from 1; [`AGED`] for a machine that is aged.
    pub trial: u32,
    /// Its arm.
    pub arm: Arm,
    /// The phase it was in.
    pub phase: Phase,
}

impl Scope {
    /// Whether the event is of a machine that is aged, and of no trial.
    pub fn is_aging(self) -> bool {
        self.trial == AGED
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// The run goes on after it had been cut off: by a signal, a crash, a power failure.
    RunResumed {
        /// RFC 3339 time of the host.
        time: String,
        /// `qemu-system-x86_64 --version`, first line.
        qemu: String,
        /// Trials that had not ended. They are done again, and what the journal says of them up to here no longer counts.
        void: Vec<u32>,
    },
    /// A trial's machine is being started.
    TrialStarted,
    /// The trial entered the phase in its scope.
    PhaseStarted,
    /// The checkpoint of an aged machine, of which trials are forks.
    Checkpoint(Box<CheckpointFacts>),
    /// How old and worn the machine is: in phase boot a fresh one, in phase age an aged one.
    Vitals(Vitals),
    /// The machine answered: its probe, and after a boot also SSH.
    MachineReady {
        /// Kernel release as the guest tells it.
        release: String,
        /// Milliseconds from power-on to the first SSH login; absent for a fork.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ssh_ms: Option<u64>,
        /// Milliseconds from the start of QEMU until the fork's guest ran; absent after a boot.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fork_ms: Option<u64>,
        /// `/proc/sys/kernel/tainted` before anything was done.
        taint: u64,
    },
    /// A detector cannot fire on this guest or host.
    Blind {
        /// Which.
        detector: Detector,
        /// Why.
        reason: String,
    },
    /// A workload can't run on this guest, for want of a kernel module, a device or a program: it is left out, which is nobody's fault.
    WorkloadUnavailable {
        /// Its name.
        workload: String,
        /// What is missing, in the workload's own words.
        reason: String,
    },
    /// The patch is loaded.
    Applied {
        /// Which, by name.
        patch: String,
        /// Milliseconds loading it took.
        took_ms: u64,
        /// Functions it patches, from sysfs: `object/function,sympos`; without sympos on vanilla 4.4.
        functions: Vec<String>,
        /// Tasks on whose stack each of these functions stood just before loading, by the same words. A stack tells names only, so that
        /// functions of one name count alike.
        inside: BTreeMap<String, u32>,
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
        /// Which, by name.
        patch: String,
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
    /// How often a patched function was called: in the control arm without the patch, elsewhere with the patch in force.
    Reach {
        /// Function, as in [`Body::Applied`].
        function: String,
        /// Calls counted.
        calls: u64,
        /// In how many milliseconds.
        window_ms: u64,
        /// Calls of the new code, counted beside them; absent in the control arm, and where they can't be counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new_code: Option<NewCodeCalls>,
    },
    /// Something is wrong.
    Finding(Box<Finding>),
    /// Tasks that make no progress, or that the patch concerns, when evidence was gathered.
    Waits(Box<Waits>),
    /// Threads or tasks of an earlier finding made progress again while the trial still listened: the stall was not a hang.
    StallEnded {
        /// Title of the finding that reported the stall.
        title: String,
        /// Milliseconds from the start of the stall to the next progress.
        lasted_ms: u64,
    },
    /// Share of its planned CPU time that the host gave the machine during this trial, 0 to 1.
    CpuShare {
        /// 1 if the machine got all that the plan counts on.
        share: f64,
    },
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

/// The events that count: those of trials that a resumed run does again are left out. A trial that had found something, or that had ended
/// by itself, cannot be done again, whatever a journal says.
pub fn live(events: &[Event]) -> impl Iterator<Item = &Event> {
    let mut kept: BTreeSet<u32> = BTreeSet::new();
    let mut void: BTreeMap<u32, u64> = BTreeMap::new();
    for event in events {
        match (&event.body, event.scope) {
            (Body::RunResumed { void: trials, .. }, _) => {
                void.extend(trials.iter().filter(|t| !kept.contains(t)).map(|t| (*t, event.seq)));
            }
            (Body::Finding(_), Some(scope)) => {
                kept.insert(scope.trial);
            }
            (Body::TrialEnded { end }, Some(scope))
                if !matches!(end, TrialEnd::Interrupted | TrialEnd::OutOfBudget) =>
            {
                kept.insert(scope.trial);
            }
            _ => {}
        }
    }
    events.iter().filter(move |e| {
        let since = e.scope.and_then(|s| void.get(&s.trial));
        since.is_none_or(|resumed| e.seq > *resumed)
    })
}

/// The name of the function in `object/function,sympos`, as [`Body::Applied`] has it.
pub fn function_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split_once(',').map_or(name, |(name, _)| name)
}

/// How a trial ended. Whose fault a failure is, is a type: only findings count against a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The verdict was reached meanwhile.
    Unneeded,
    /// The budget of the run, or the host's disk, ended first.
    OutOfBudget,
    /// The host did something to the machine, or had so little time for it, that what was seen of it says nothing about the patch.
    Void {
        /// What.
        reason: String,
    },
}

impl TrialEnd {
    /// Whether a trial that ended so says anything of the patch: it ended in order, or it had `found` something before it was
    /// ended.
    pub fn is_valid(&self, found: bool) -> bool {
        match self {
            Self::Completed | Self::Stopped => true,
            Self::Unneeded | Self::OutOfBudget | Self::Interrupted => found,
            Self::FarmError { .. } | Self::Void { .. } => false,
        }
    }
}

/// The checkpoint that a run's trials are forks of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckpointFacts {
    /// Its id: name of the image and content hash.
    pub id: String,
    /// Bytes on disk, without holes.
    pub size: u64,
    /// Milliseconds that making it took, aging included; absent if it was there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_ms: Option<u64>,
    /// The machine soon after booting.
    pub fresh: Vitals,
    /// The machine when it was checkpointed.
    pub reached: Vitals,
    /// Detectors that can't fire on it, and why.
    pub blind: BTreeMap<Detector, String>,
    /// Workloads that can't run on it, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unavailable: BTreeMap<String, String>,
}

/// How old and worn a machine is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vitals {
    /// Seconds since boot.
    pub uptime_s: f64,
    /// Processes started since boot.
    pub forks: u64,
    /// Context switches since boot.
    pub context_switches: u64,
    /// Tasks.
    pub tasks: u64,
    /// Free memory, in KiB.
    pub free_kib: u64,
    /// Memory that can be had, in KiB.
    pub available_kib: u64,
    /// Page cache, in KiB.
    pub page_cache_kib: u64,
    /// Slab, in KiB.
    pub slab_kib: u64,
    /// Share of the free memory that lies in blocks too small for an allocation of 64 KiB, 0 to 1, from `/proc/buddyinfo`: the
    /// kernel's "unusable free space index" of order 4 (Gorman, Whitcroft 2006).
    pub fragmentation: f64,
    /// The system journal, in KiB.
    pub journal_kib: u64,
    /// Directory entries that the kernel keeps.
    pub dentries: u64,
    /// Open files.
    pub open_files: u64,
}

impl Vitals {
    /// Share of free memory in blocks of less than 2^4 pages, from the number of free blocks of 2^n pages, by n.
    pub fn fragmentation_of(buddy: &[u64]) -> f64 {
        const ORDER: usize = 4;
        let pages = |(n, blocks): (usize, &u64)| *blocks as f64 * (1_u64 << n.min(30)) as f64;
        let all: f64 = buddy.iter().enumerate().map(pages).sum();
        let small: f64 = buddy.iter().enumerate().take(ORDER).map(pages).sum();
        if all > 0.0 { small / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{Noted, Wait};
    use crate::{ObservedKind, Source};

    /// Every kind of event reads back from its line: fields of a body stand beside those of the event.
    #[test]
    fn events_read_back() {
        let text = || String::from("t");
        let finding = Finding {
            kind: ObservedKind::Tainted.into(),
            title: text(),
            source: Source::Probe,
            function: Some(text()),
            workload: Some(text()),
            after_apply_ms: Some(1),
            line: Some(2),
            in_patch: true,
            corrupted: true,
            evidence: text(),
        };
        let wait = Wait {
            task: text(),
            pid: 1,
            tid: 2,
            state: 'D',
            workload: Some(text()),
            threads: Some(4),
            since_apply_ms: Some(-5),
            stack: vec![text()],
        };
        let vitals = Vitals { uptime_s: 0.1 + 0.2, ..Vitals::default() };
        let facts = CheckpointFacts {
            id: text(),
            size: 1,
            made_ms: Some(2),
            fresh: Vitals::default(),
            reached: vitals.clone(),
            blind: BTreeMap::from([(Detector::Slabs, text())]),
            unavailable: BTreeMap::from([(text(), text())]),
        };
        let bodies = vec![
            Body::RunStarted { time: text(), plan: text(), accel: Accel::Kvm, qemu: text() },
            Body::Checkpoint(Box::new(facts)),
            Body::Vitals(vitals),
            Body::RunResumed { time: text(), qemu: text(), void: vec![1, 2] },
            Body::TrialStarted,
            Body::PhaseStarted,
            Body::MachineReady { release: text(), ssh_ms: Some(1), fork_ms: None, taint: 0 },
            Body::Blind { detector: Detector::Reach, reason: text() },
            Body::WorkloadUnavailable { workload: text(), reason: text() },
            Body::Applied {
                patch: text(),
                took_ms: 1,
                functions: vec![text()],
                inside: BTreeMap::from([(text(), 3)]),
            },
            Body::TransitionDone { took_ms: 1, per_task: true },
            Body::Reverted { patch: text(), unloaded: true },
            Body::Progress { rates: BTreeMap::from([(text(), 0.5)]), ssh_ms: Some(1) },
            Body::Measured(Measured {
                window_ms: 1,
                workloads: BTreeMap::new(),
                resources: vec![Resources::default()],
            }),
            Body::Reach { function: text(), calls: 1, window_ms: 2, new_code: None },
            Body::Reach {
                function: text(),
                calls: 1,
                window_ms: 2,
                new_code: Some(NewCodeCalls { patch: text(), calls: 3, window_ms: 4 }),
            },
            Body::Finding(Box::new(finding)),
            Body::Waits(Box::new(Waits { noted: Noted::Straggler, total: 2, tasks: vec![wait] })),
            Body::StallEnded { title: text(), lasted_ms: 3 },
            Body::CpuShare { share: 0.45 },
            Body::Evidence { file: text(), what: text() },
            Body::Note { text: text() },
            Body::TrialEnded { end: TrialEnd::FarmError { message: text() } },
            Body::TrialEnded { end: TrialEnd::OutOfBudget },
            Body::TrialEnded { end: TrialEnd::Void { reason: text() } },
            Body::RunEnded { interrupted: false },
        ];
        for body in bodies {
            let scope = Some(Scope { trial: 1, arm: Arm::Reapply, phase: Phase::Settle });
            for scope in [scope, None] {
                let event = Event { seq: 1, at_ms: 2, scope, body: body.clone() };
                let line = serde_json::to_string(&event).unwrap();
                let back: Event = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                assert_eq!(back, event);
            }
        }
    }
}
