//! What all detectors share: what is known of one machine, its limits, and the findings that were made. Pure; time is handed in.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use klpfarm_model::event::Measured;
use klpfarm_model::{Body, Finding, FindingKind, ObservedKind, Phase, Plan, Source, Trial};

use super::stalls::Stalls;
use super::waiting::Waiting;
use crate::measure::millis;

/// Soft findings of one trial beyond this are only counted: a machine that makes no progress finds new words for the same thing for ever.
/// Hard ones are always reported.
const MOST_SOFT: usize = 40;

/// Operations in the baseline from which on a program is expected to finish more of them.
const REGULAR: u64 = 3;

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
    pub(super) workloads: Vec<String>,
    /// Those of them that are stressors of the farm's own.
    pub(super) builtins: BTreeSet<String>,
    /// Those that finished operations often enough in the baseline for its longest pause to say something.
    pub(super) regular: BTreeSet<String>,
    pub(super) applied_at: Option<Duration>,
    pub(super) phase: Phase,
    /// Set while the probe is expected to speak.
    pub(super) probe_at: Option<Duration>,
    pub(super) ssh_at: Option<Duration>,
    /// When the login began that has not ended yet.
    pub(super) login_since: Option<Duration>,
    /// When the login began that succeeded last.
    pub(super) login_good: Option<Duration>,
    pub(super) ssh_error: String,
    pub(super) taint: Option<u64>,
    pub(super) boots: u32,
    /// Names of tasks that were blocked for long when the baseline ended.
    pub(super) always_blocked: BTreeSet<String>,
    /// Longest idle time of each workload in the baseline, in milliseconds.
    pub(super) usual_idle: BTreeMap<String, u64>,
    pub(super) seen: HashSet<(FindingKind, String)>,
    /// Soft findings that were reported.
    pub(super) soft: usize,
    /// Soft findings that were not.
    pub(super) dropped: usize,
    /// A hard one was reported.
    pub(super) hard: bool,
    pub(super) stopped: bool,
    /// The latest tasks that make no progress, described.
    pub(super) last_blocked: String,
    /// Who has not gone on lately.
    pub(super) waiting: Waiting,
    /// What becomes of stalls that were found.
    pub(super) stalls: Stalls,
    /// When figures of memory last came.
    pub(super) memory_at: Option<Duration>,
}

impl Health {
    pub(crate) fn new(plan: &Plan, trial: &Trial, forked: bool) -> Self {
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
            login_good: None,
            ssh_error: String::new(),
            taint: None,
            // A fork has booted: another boot is one too many.
            boots: u32::from(forked),
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

    /// The latest tasks that make no progress.
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

    /// The virtual CPUs run, as QEMU says.
    pub(crate) fn runs(&mut self) {
        self.stopped = false;
    }

    /// The virtual CPUs do not run.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

/// Whether what was heard of last then has not been heard of for so long. What was never heard is not waited for.
pub(super) fn is_silent(now: Duration, last: Option<Duration>, limit: Duration) -> bool {
    last.is_some_and(|at| now.saturating_sub(at) >= limit)
}
