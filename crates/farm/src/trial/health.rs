//! The rules of health: which signal is a finding. Pure; time is handed in.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use klpfarm_kmsg::{Report, Severity, Signal};
use klpfarm_model::{AGING, Body, FarmKind, Finding, FindingKind, Phase, Plan, Source, Trial};
use klpfarm_stress::wire::{BlockedTask, Fault, FaultKind, FromGuest};
use klpfarm_vm::QmpEvent;

use super::Origin;
use super::cpus::Stuck;
use super::measure::{Measure, millis};
use super::oom;
use super::tasks::{describe, general, waits_in};
use super::waiting::Waiting;

/// Findings of one trial beyond this are only counted: a broken machine finds new words for the same thing for ever.
const MOST_FINDINGS: usize = 40;

/// A task that is blocked for so long before the patch is applied is taken for one that always is.
const USUAL_MS: u64 = 5000;

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
    stall: Duration,
    blocked: Duration,
    ssh: Duration,
    probe: Duration,
    cpu: Duration,
    console: Duration,
    /// Names of the patches that this machine gets.
    patches: Vec<String>,
    /// Names of the workloads.
    workloads: Vec<String>,
    applied_at: Option<Duration>,
    phase: Phase,
    /// Set while the probe is expected to speak.
    probe_at: Option<Duration>,
    ssh_at: Option<Duration>,
    /// When the login began that has not ended yet.
    login_since: Option<Duration>,
    ssh_error: String,
    taint: Option<u64>,
    boots: u32,
    /// Names of tasks that were blocked for long when the baseline ended.
    always_blocked: BTreeSet<String>,
    /// Longest idle time of each workload in the baseline, in milliseconds.
    usual_idle: BTreeMap<String, u64>,
    seen: HashSet<(FindingKind, String)>,
    stopped: bool,
    /// The latest tasks that do not get on, described.
    last_blocked: String,
    /// Who has not gone on lately.
    waiting: Waiting,
}

impl Health {
    pub(crate) fn new(plan: &Plan, trial: &Trial, origin: Origin) -> Self {
        let limits = &plan.pipeline.limits;
        Self {
            stall: plan.scaled(limits.stall),
            blocked: plan.scaled(limits.blocked),
            ssh: plan.scaled(limits.ssh),
            probe: plan.scaled(limits.probe),
            cpu: plan.scaled(limits.cpu),
            console: plan.scaled(limits.console),
            patches: plan.names(trial).map(str::to_owned).collect(),
            workloads: plan.workloads.iter().map(|w| w.name.clone()).collect(),
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
            stopped: false,
            last_blocked: String::new(),
            waiting: Waiting::default(),
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
    pub(crate) fn baseline(&mut self, usual_idle: BTreeMap<String, u64>) {
        self.usual_idle = usual_idle;
    }

    /// The patch is about to be loaded: from now on findings are after it.
    pub(crate) fn applying(&mut self, now: Duration) {
        self.applied_at = Some(now);
    }

    /// The host did not run us for `gap`: nothing that seems late in the guest is the guest's fault.
    pub(crate) fn forgive(&mut self, gap: Duration) {
        for at in [&mut self.probe_at, &mut self.ssh_at] {
            *at = at.map(|at| at + gap);
        }
    }

    /// Whether the probe has been heard lately.
    pub(crate) fn probe_alive(&self, now: Duration) -> bool {
        self.probe_at.is_some_and(|at| now.saturating_sub(at) < self.probe / 2) && !self.stopped
    }

    /// Milliseconds since the patch was applied.
    fn after_apply(&self, now: Duration) -> Option<u64> {
        self.applied_at.map(|at| millis(now.saturating_sub(at)))
    }

    /// Make a finding of it, once.
    pub(crate) fn find(
        &mut self,
        now: Duration,
        kind: FarmKind,
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

    fn once(&mut self, finding: Finding) -> Vec<Body> {
        if self.seen.len() >= MOST_FINDINGS || !self.seen.insert((finding.kind, finding.title.clone())) {
            return Vec::new();
        }
        vec![Body::Finding(Box::new(finding))]
    }

    pub(crate) fn console(&mut self, now: Duration, signal: Signal) -> Vec<Body> {
        match signal {
            Signal::Report(report) => self.report(now, report),
            Signal::Boot { line, release } => {
                self.boots += 1;
                if self.boots < 2 {
                    return Vec::new();
                }
                let evidence = format!("console line {line}: Linux version {release}");
                self.find(
                    now,
                    FarmKind::Rebooted,
                    Source::Console,
                    "the machine restarted unexpectedly".into(),
                    evidence,
                )
            }
            Signal::Lost { line, count } => {
                let count = count.map_or_else(|| "some".to_owned(), |n| n.to_string());
                vec![Body::Note { text: format!("console line {line}: {count} kernel messages were lost") }]
            }
            Signal::Blind { detector, reason, .. } => {
                let detector =
                    serde_json::to_value(detector).ok().and_then(|v| v.as_str().map(str::to_owned));
                vec![Body::Blind { detector: detector.unwrap_or_default(), reason }]
            }
            Signal::Livepatch { .. } => Vec::new(),
        }
    }

    /// Whether code of a patch stands in a stack: the kernel writes the module's name behind each function of it.
    fn in_patch(&self, stack: &str) -> bool {
        self.patches.iter().any(|patch| stack.contains(&format!("[{patch}]")))
    }

    fn report(&mut self, now: Duration, mut report: Report) -> Vec<Body> {
        // Complaints of a kernel that is still booting are its owner's business; what kills it is not.
        if self.phase == Phase::Boot && report.kind.severity() == Severity::Warning {
            return vec![Body::Note {
                text: format!("while booting, console line {}: {}", report.line, report.title),
            }];
        }
        let in_patch = self.in_patch(&report.text);
        oom::tell_apart(&mut report, &self.workloads);
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
            QmpEvent::Panicked => (FarmKind::Panicked, "the guest kernel panicked"),
            QmpEvent::Reset => (FarmKind::Rebooted, "the machine restarted unexpectedly"),
            QmpEvent::Shutdown { guest: true, reason } if reason == "guest-reset" => {
                (FarmKind::Rebooted, "the machine restarted unexpectedly")
            }
            QmpEvent::Shutdown { guest: true, reason } if reason == "guest-panic" => {
                (FarmKind::Panicked, "the guest kernel panicked")
            }
            QmpEvent::Shutdown { guest: true, .. } => (FarmKind::PoweredOff, "the guest powered itself off"),
            QmpEvent::Watchdog => (FarmKind::WatchdogFired, "the watchdog device fired"),
            QmpEvent::Stopped => {
                self.stopped = true;
                return Vec::new();
            }
            QmpEvent::Resumed => {
                self.stopped = false;
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
            kind: FarmKind::CpuStuck.into(),
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

    /// The virtual CPUs do not run.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The longest that it takes to find whoever hangs.
    pub(crate) fn patience(&self) -> Duration {
        let usual = self.usual_idle.values().max().map_or(Duration::ZERO, |ms| Duration::from_millis(ms * 3));
        let limits = [self.stall, usual, self.blocked, self.cpu, self.console, self.probe, self.ssh];
        limits.into_iter().max().unwrap_or_default() + Duration::from_secs(5)
    }

    /// Whoever was waiting at that time has gone on since, as far as is known.
    pub(crate) fn all_went_on(&self, then: Duration, measure: &Measure) -> bool {
        let counts = |id| measure.thread(id).is_some_and(|t| t.counted && t.workload != AGING);
        // One that nobody answers ends long after a soak, and until then it is no failure.
        let in_time = self.login_since.is_none_or(|since| since >= then);
        self.ssh_error.is_empty() && in_time && self.waiting.all_went_on(then, counts)
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
            }
            Err(error) => self.ssh_error.clone_from(error),
        }
    }

    pub(crate) fn probe(&mut self, now: Duration, message: &FromGuest, measure: &Measure) -> Vec<Body> {
        self.probe_at = Some(now);
        self.waiting.take(now, message, &self.always_blocked);
        match message {
            FromGuest::Fault(fault) => self.fault(now, fault),
            FromGuest::Blocked { tasks, total, .. } => self.blocked(now, tasks, *total, measure),
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
            FaultKind::WrongErrno => (FarmKind::WrongErrno, "wrong result of"),
            FaultKind::WrongContent => (FarmKind::WrongContent, "wrong content after"),
            FaultKind::Died => (FarmKind::WorkloadDied, "a process died in"),
            // It ran until now: what keeps it from going on may well be the patch, and the control arm tells.
            FaultKind::CannotRun => (FarmKind::WorkloadDied, "can't run on:"),
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

    fn tainted(&mut self, now: Duration, value: u64) -> Vec<Body> {
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
            FarmKind::Tainted,
            Source::Probe,
            title,
            format!("/proc/sys/kernel/tainted: {before} before, {value} now"),
        )
    }

    fn blocked(&mut self, now: Duration, tasks: &[BlockedTask], total: u32, measure: &Measure) -> Vec<Body> {
        let mut bodies = Vec::new();
        self.last_blocked = describe(tasks, total, tasks.len());
        if matches!(self.phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline) {
            // A task that waits for long before anything was done is how this guest is.
            let long = |t: &&BlockedTask| t.state == 'D' && t.thread.is_none() && t.for_ms >= USUAL_MS;
            self.always_blocked = tasks.iter().filter(long).map(|t| general(&t.comm)).collect();
        }
        for task in tasks {
            let thread = task.thread.and_then(|id| measure.thread(id)).filter(|t| t.counted);
            let ages = thread.is_some_and(|t| t.workload == AGING);
            // What makes the machine old gives way to all others, so that it may starve: it is watched as system services are.
            if ages && task.state != 'D' {
                continue;
            }
            // Ending a count waits until every task of the guest has been scheduled: that is the farm's own doing.
            if self.phase == Phase::Reach
                && (task.stack.contains("ftrace_") || task.stack.contains("tracing_"))
            {
                continue;
            }
            let workload = thread.filter(|_| !ages).map(|t| t.workload.clone());
            let limit = millis(match &workload {
                Some(name) => {
                    let usual = self.usual_idle.get(name).copied().unwrap_or(0);
                    self.stall.max(Duration::from_millis(usual * 3))
                }
                None => self.blocked,
            });
            if task.for_ms < limit
                || (workload.is_none() && self.always_blocked.contains(&general(&task.comm)))
            {
                continue;
            }
            let function = waits_in(&task.stack, &task.wchan, &self.patches);
            let place = match (&function, task.state) {
                (_, 'R') => "run without getting anywhere".to_owned(),
                (Some(f), _) => format!("hang in {f}"),
                (None, state) => format!("hang (state {state})"),
            };
            let (kind, title) = match &workload {
                Some(name) => (FarmKind::ThreadStalled, format!("{name}: threads {place}")),
                None => (FarmKind::TaskBlocked, format!("{}: tasks {place}", general(&task.comm))),
            };
            bodies.extend(self.once(Finding {
                kind: kind.into(),
                title,
                source: if workload.is_some() { Source::Workload } else { Source::Probe },
                function,
                workload,
                after_apply_ms: self.after_apply(now).map(|ms| ms.saturating_sub(task.for_ms)),
                line: None,
                in_patch: self.in_patch(&task.stack),
                corrupted: false,
                evidence: describe(tasks, total, 12),
            }));
        }
        bodies
    }

    /// What silence tells. `measure` knows threads the probe reports as idle.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Body> {
        if self.stopped {
            return Vec::new();
        }
        let mut bodies = Vec::new();
        let silent =
            |at: Option<Duration>, limit: Duration| at.is_some_and(|at| now.saturating_sub(at) >= limit);
        if silent(self.probe_at, self.probe) {
            let evidence =
                format!("no line from the probe for {:.0} s while QEMU runs", self.probe.as_secs_f64());
            bodies.extend(self.find(
                now,
                FarmKind::ProbeSilent,
                Source::Probe,
                "the guest went silent".into(),
                evidence,
            ));
        }
        if silent(self.ssh_at, self.ssh) {
            let evidence =
                format!("no login for {:.0} s; the last attempt: {}", self.ssh.as_secs_f64(), self.ssh_error);
            bodies.extend(self.find(
                now,
                FarmKind::SshDead,
                Source::Ssh,
                "no SSH login succeeds".into(),
                evidence,
            ));
        }
        bodies
    }
}
