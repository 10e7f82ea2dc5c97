//! The rules of health: which signal is a finding. Pure; time is handed in. Hangs have a file of their own, `hangs.rs`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use klpfarm_kmsg::{Report, Severity, Signal};
use klpfarm_model::event::Measured;
use klpfarm_model::{Body, Finding, FindingKind, ObservedKind, Phase, Plan, Source, Trial};
use klpfarm_stress::wire::{Fault, FaultKind, FromGuest};
use klpfarm_vm::QmpEvent;

use super::Origin;
use super::cpus::{Circle, Stuck};
use super::measure::{Measure, millis};
use super::stalls::Stalls;
use super::waiting::Waiting;
use super::{blame, oom};

/// Soft findings of one trial beyond this are only counted: a machine that makes no progress finds new words for the same thing for ever.
/// Hard ones are always reported.
const MOST_SOFT: usize = 40;

/// Operations in the baseline from which on a program is expected to finish more of them.
const REGULAR: u64 = 3;

/// Taint bits that loading a livepatch sets by itself: out-of-tree (12), unsigned (13), livepatch (15). Source: kernel
/// `Documentation/admin-guide/tainted-kernels.rst`.
const LIVEPATCH_TAINTS: u64 = 1 << 12 | 1 << 13 | 1 << 15;

/// Names of the other taint bits, from bit 0, same source.
const TAINTS: [&str; 19] = [
    "P proprietary module",
    "F module force-loaded",
    "S out-of-specification system",
    "R module force-unloaded",
    "M machine check",
    "B bad page",
    "U user request",
    "D kernel died",
    "A ACPI table overridden",
    "W kernel warned",
    "C staging driver",
    "I firmware workaround",
    "O out-of-tree module",
    "E unsigned module",
    "L soft lockup",
    "K livepatched",
    "X auxiliary",
    "T randomised structures",
    "N test",
];

/// Watches one machine.
#[derive(Debug)]
pub(crate) struct Health {
    pub(super) stall: Duration,
    pub(super) blocked: Duration,
    pub(super) ssh: Duration,
    pub(super) probe: Duration,
    pub(super) cpu: Duration,
    pub(super) console: Duration,
    /// How much later than a task list lack of progress alone is a finding.
    pub(super) grace: Duration,
    /// Names of the patches that this machine gets.
    pub(super) patches: Vec<String>,
    /// Names of the workloads.
    workloads: Vec<String>,
    /// Those of them that are stressors of the farm's own.
    pub(super) builtins: BTreeSet<String>,
    /// Those that finished operations often enough in the baseline for its longest pause to say something.
    pub(super) regular: BTreeSet<String>,
    applied_at: Option<Duration>,
    pub(super) phase: Phase,
    /// Set while the probe is expected to speak.
    probe_at: Option<Duration>,
    ssh_at: Option<Duration>,
    /// When the login began that has not ended yet.
    pub(super) login_since: Option<Duration>,
    pub(super) ssh_error: String,
    taint: Option<u64>,
    boots: u32,
    /// Names of tasks that were blocked for long when the baseline ended.
    pub(super) always_blocked: BTreeSet<String>,
    /// Longest idle time of each workload in the baseline, in milliseconds.
    pub(super) usual_idle: BTreeMap<String, u64>,
    pub(super) seen: HashSet<(FindingKind, String)>,
    /// Soft findings that were reported.
    soft: usize,
    /// Soft findings that were not.
    dropped: usize,
    /// A hard one was reported.
    hard: bool,
    stopped: bool,
    /// The latest tasks that do not get on, described.
    pub(super) last_blocked: String,
    /// Who has not gone on lately.
    pub(super) waiting: Waiting,
    /// What becomes of stalls that were found.
    pub(super) stalls: Stalls,
    /// When figures of memory last came.
    memory_at: Option<Duration>,
}

impl Health {
    pub(crate) fn new(plan: &Plan, trial: &Trial, origin: Origin) -> Self {
        let limits = &plan.pipeline.limits;
        let builtins = plan.workloads.iter().filter(|w| w.run.builtin.is_some());
        Self {
            stall: plan.scaled(limits.stall),
            blocked: plan.scaled(limits.blocked),
            ssh: plan.scaled(limits.ssh),
            probe: plan.scaled(limits.probe),
            cpu: plan.scaled(limits.cpu),
            console: plan.scaled(limits.console),
            grace: plan.scaled(Duration::from_secs(3)),
            patches: plan.names(trial).map(str::to_owned).collect(),
            workloads: plan.workloads.iter().map(|w| w.name.clone()).collect(),
            builtins: builtins.map(|w| w.name.clone()).collect(),
            regular: BTreeSet::new(),
            applied_at: None,
            phase: Phase::Boot,
            probe_at: None,
            ssh_at: None,
            login_since: None,
            ssh_error: String::new(),
            taint: None,
            // A fork has booted: another boot is one too many.
            boots: u32::from(origin != Origin::Boot),
            always_blocked: BTreeSet::new(),
            usual_idle: BTreeMap::new(),
            seen: HashSet::new(),
            soft: 0,
            dropped: 0,
            hard: false,
            stopped: false,
            last_blocked: String::new(),
            waiting: Waiting::default(),
            stalls: Stalls::default(),
            memory_at: None,
        }
    }

    /// The latest tasks that do not get on.
    pub(crate) fn last_blocked(&self) -> &str {
        &self.last_blocked
    }

    pub(crate) fn phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// The baseline is over: what threads did in it is usual here.
    pub(crate) fn baseline(&mut self, usual_idle: BTreeMap<String, u64>, measured: &Measured) {
        let often = measured.workloads.iter().filter(|(_, w)| w.ops >= REGULAR);
        self.regular = often.map(|(name, _)| name.clone()).collect();
        self.usual_idle = usual_idle;
    }

    /// The patch is about to be loaded: from now on findings are after it.
    pub(crate) fn applying(&mut self, now: Duration) {
        self.applied_at = Some(now);
    }

    /// The host did not run us for `gap`: nothing that seems late in the guest is the guest's fault.
    pub(crate) fn forgive(&mut self, gap: Duration) {
        for at in [&mut self.probe_at, &mut self.ssh_at, &mut self.memory_at] {
            *at = at.map(|at| at + gap);
        }
        self.waiting.forgive(gap);
        self.stalls.forgive(gap);
    }

    /// Whether the probe has been heard lately.
    pub(crate) fn probe_alive(&self, now: Duration) -> bool {
        self.probe_at.is_some_and(|at| now.saturating_sub(at) < self.probe / 2) && !self.stopped
    }

    /// Milliseconds since the patch was applied.
    pub(super) fn after_apply(&self, now: Duration) -> Option<u64> {
        self.applied_at.map(|at| millis(now.saturating_sub(at)))
    }

    /// Make a finding of it, once.
    pub(crate) fn find(
        &mut self,
        now: Duration,
        kind: ObservedKind,
        source: Source,
        title: String,
        evidence: String,
    ) -> Vec<Body> {
        let finding = Finding {
            kind: kind.into(),
            title,
            source,
            function: None,
            workload: None,
            after_apply_ms: self.after_apply(now),
            line: None,
            in_patch: false,
            corrupted: false,
            evidence,
        };
        self.once(finding)
    }

    pub(super) fn once(&mut self, finding: Finding) -> Vec<Body> {
        if !self.seen.insert((finding.kind, finding.title.clone())) {
            return Vec::new();
        }
        if !finding.kind.is_soft() {
            self.hard = true;
        } else if self.soft >= MOST_SOFT {
            self.dropped += 1;
            return Vec::new();
        } else {
            self.soft += 1;
        }
        vec![Body::Finding(Box::new(finding))]
    }

    /// A finding that is not soft was reported.
    pub(super) fn found_hard(&self) -> bool {
        self.hard
    }

    /// What to say of findings that were left out.
    pub(crate) fn dropped(&self) -> Option<String> {
        (self.dropped > 0).then(|| {
            format!(
                "{} more findings of soft kinds are left out: {MOST_SOFT} of them are kept of each trial, and all others",
                self.dropped
            )
        })
    }

    /// `circle`: where the CPU that a report is about goes round, where its registers say more than the report.
    pub(crate) fn console(&mut self, now: Duration, signal: Signal, circle: Option<&Circle>) -> Vec<Body> {
        match signal {
            Signal::Report(report) => self.report(now, report, circle),
            Signal::Boot { line, release } => {
                self.boots += 1;
                if self.boots < 2 {
                    return Vec::new();
                }
                let evidence = format!("console line {line}: Linux version {release}");
                self.find(
                    now,
                    ObservedKind::Rebooted,
                    Source::Console,
                    "the machine restarted unexpectedly".into(),
                    evidence,
                )
            }
            Signal::Lost { line, count } => {
                let count = count.map_or_else(|| "some".to_owned(), |n| n.to_string());
                vec![Body::Note { text: format!("console line {line}: {count} kernel messages were lost") }]
            }
            Signal::Blind { kind, reason, .. } => {
                vec![Body::Blind { detector: FindingKind::Kernel(kind).rules().detector, reason }]
            }
            Signal::Livepatch { .. } => Vec::new(),
        }
    }

    fn report(&mut self, now: Duration, mut report: Report, circle: Option<&Circle>) -> Vec<Body> {
        // Complaints of a kernel that is still booting are its owner's business; what kills it is not.
        if self.phase == Phase::Boot && report.kind.severity() == Severity::Warning {
            return vec![Body::Note {
                text: format!("while booting, console line {}: {}", report.line, report.title),
            }];
        }
        let in_patch = circle.is_some() || blame::in_report(&report.text, &self.patches);
        if let Some(Circle { patch, function, looks: (own, all) }) = circle {
            report.title = format!("INFO: rcu detected stall in {function}");
            report.function = Some(function.clone());
            report.text.push_str(&format!(
                "\n[the farm: the CPU that stalls was in {function} of the patch {patch} at {own} of {all} looks at its registers]"
            ));
        }
        oom::tell_apart(&mut report, &self.workloads);
        self.follow_report(now, &report, in_patch);
        self.once(Finding {
            kind: FindingKind::Kernel(report.kind),
            title: report.title,
            source: Source::Console,
            function: report.function,
            workload: None,
            after_apply_ms: self.after_apply(now),
            line: Some(report.line),
            in_patch,
            corrupted: report.corrupted,
            evidence: report.text,
        })
    }

    pub(crate) fn qmp(&mut self, now: Duration, event: &QmpEvent) -> Vec<Body> {
        let (kind, title) = match event {
            QmpEvent::Panicked => (ObservedKind::Panicked, "the guest kernel panicked"),
            QmpEvent::Reset => (ObservedKind::Rebooted, "the machine restarted unexpectedly"),
            QmpEvent::Shutdown { guest: true, reason } if reason == "guest-reset" => {
                (ObservedKind::Rebooted, "the machine restarted unexpectedly")
            }
            QmpEvent::Shutdown { guest: true, reason } if reason == "guest-panic" => {
                (ObservedKind::Panicked, "the guest kernel panicked")
            }
            QmpEvent::Shutdown { guest: true, .. } => {
                (ObservedKind::PoweredOff, "the guest powered itself off")
            }
            QmpEvent::Watchdog => (ObservedKind::WatchdogFired, "the watchdog device fired"),
            QmpEvent::Stopped => {
                self.stopped = true;
                return Vec::new();
            }
            QmpEvent::Resumed => {
                self.runs();
                return Vec::new();
            }
            // An I/O error is the host's: the dispatcher ends the trial.
            QmpEvent::Shutdown { guest: false, .. } | QmpEvent::IoError { .. } | QmpEvent::Other(_) => {
                return Vec::new();
            }
        };
        self.find(now, kind, Source::Qmp, title.into(), format!("QMP event: {event:?}"))
    }

    /// A CPU does not take interrupts any more.
    pub(crate) fn cpu_stuck(&mut self, now: Duration, stuck: &Stuck) -> Vec<Body> {
        let in_patch = stuck.module.as_ref().is_some_and(|m| self.patches.contains(m));
        self.once(Finding {
            kind: ObservedKind::CpuStuck.into(),
            title: stuck.title(in_patch),
            source: Source::Qmp,
            function: stuck.function.clone(),
            workload: None,
            after_apply_ms: self.after_apply(now).map(|ms| ms.saturating_sub(millis(stuck.lasts))),
            line: None,
            in_patch,
            corrupted: false,
            evidence: stuck.evidence(),
        })
    }

    /// The virtual CPUs run, as QEMU says.
    pub(crate) fn runs(&mut self) {
        self.stopped = false;
    }

    /// The virtual CPUs do not run.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// A fresh login has been begun.
    pub(crate) fn login_begins(&mut self, now: Duration) {
        self.login_since = Some(now);
    }

    /// A fresh login succeeded or failed.
    pub(crate) fn login(&mut self, now: Duration, result: &Result<u64, String>) {
        self.login_since = None;
        match result {
            Ok(_) => {
                self.ssh_at = Some(now);
                self.ssh_error.clear();
                self.stalls.login(now);
            }
            Err(error) => self.ssh_error.clone_from(error),
        }
    }

    pub(crate) fn probe(&mut self, now: Duration, message: &FromGuest, measure: &Measure) -> Vec<Body> {
        self.probe_at = Some(now);
        self.waiting.take(now, message, &self.always_blocked);
        let mut bodies = self.message(now, message, measure);
        bodies.extend(self.follow_up(now, message, measure));
        bodies
    }

    fn message(&mut self, now: Duration, message: &FromGuest, measure: &Measure) -> Vec<Body> {
        match message {
            FromGuest::Fault(fault) => self.fault(now, fault),
            FromGuest::Blocked { tasks, total, .. } => self.blocked(now, tasks, *total, measure),
            FromGuest::Memory { .. } => {
                self.memory_at = Some(now);
                Vec::new()
            }
            FromGuest::Unable { what, detail, .. } => self.unable(now, what, detail.clone()),
            FromGuest::Hello { taint, .. } => {
                self.taint.get_or_insert(*taint);
                Vec::new()
            }
            FromGuest::Taint { value, .. } => self.tainted(now, *value),
            _ => Vec::new(),
        }
    }

    fn fault(&mut self, now: Duration, fault: &Fault) -> Vec<Body> {
        let (kind, what) = match fault.kind {
            FaultKind::WrongErrno => (ObservedKind::WrongErrno, "wrong result of"),
            FaultKind::WrongContent => (ObservedKind::WrongContent, "wrong content after"),
            FaultKind::Died => (ObservedKind::WorkloadDied, "a process died in"),
            // It ran until now: what keeps it from going on may well be the patch, and the control arm tells.
            FaultKind::CannotRun => (ObservedKind::WorkloadDied, "can't run on:"),
        };
        let finding = Finding {
            kind: kind.into(),
            title: format!("{}: {what} {}", fault.workload, fault.op),
            source: Source::Workload,
            function: None,
            workload: Some(fault.workload.clone()),
            after_apply_ms: self.after_apply(now),
            line: None,
            in_patch: false,
            corrupted: false,
            evidence: fault.detail.clone(),
        };
        self.once(finding)
    }

    /// The guest no longer reports something that it reported before, so that what shows by it is no longer seen.
    pub(super) fn unable(&mut self, now: Duration, what: &str, evidence: String) -> Vec<Body> {
        let title = format!("the guest no longer reports {what}");
        self.find(now, ObservedKind::ProbeSilent, Source::Probe, title, evidence)
    }

    pub(super) fn tainted(&mut self, now: Duration, value: u64) -> Vec<Body> {
        let before = *self.taint.get_or_insert(value);
        let allowed = before | if self.patches.is_empty() { 0 } else { LIVEPATCH_TAINTS };
        let new = value & !allowed;
        if new == 0 {
            return Vec::new();
        }
        self.taint = Some(before | new);
        let names: Vec<String> = (0..64)
            .filter(|bit| new >> bit & 1 == 1)
            .map(|bit| TAINTS.get(bit).map_or_else(|| format!("bit {bit}"), |t| (*t).to_owned()))
            .collect();
        let title = format!("the kernel became tainted: {}", names.join(", "));
        self.find(
            now,
            ObservedKind::Tainted,
            Source::Probe,
            title,
            format!("/proc/sys/kernel/tainted: {before} before, {value} now"),
        )
    }

    /// What silence tells. `measure` knows threads the probe reports as idle.
    pub(crate) fn tick(&mut self, now: Duration, measure: &Measure) -> Vec<Body> {
        if self.stopped {
            return Vec::new();
        }
        let mut bodies = self.idle(now, measure);
        let silent =
            |at: Option<Duration>, limit: Duration| at.is_some_and(|at| now.saturating_sub(at) >= limit);
        if silent(self.probe_at, self.probe) {
            let evidence =
                format!("no line from the probe for {:.0} s while QEMU runs", self.probe.as_secs_f64());
            bodies.extend(self.find(
                now,
                ObservedKind::ProbeSilent,
                Source::Probe,
                "the guest went silent".into(),
                evidence,
            ));
        }
        // It comes every second while the guest can read it.
        else if silent(self.memory_at, self.probe * 3) {
            self.memory_at = None;
            bodies.extend(self.unable(
                now,
                "how much memory is in use",
                "other lines of the probe still come".to_owned(),
            ));
        }
        if silent(self.ssh_at, self.ssh) {
            let evidence =
                format!("no login for {:.0} s; the last attempt: {}", self.ssh.as_secs_f64(), self.ssh_error);
            bodies.extend(self.find(
                now,
                ObservedKind::SshDead,
                Source::Ssh,
                "no SSH login succeeds".into(),
                evidence,
            ));
        }
        bodies
    }
}
