//! The journal by trial, as far as the judge needs it, event by event.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::new_code::NewCodeRecord;
use crate::compare::change::{Change, Names, is_compared};
use crate::event::{Body, CheckpointFacts, Event, Scope, TrialEnd, Vitals, function_name};
use crate::verdict::WaitGroup;
use crate::wait::Waits;
use crate::{Arm, Detector, Finding, Phase, Plan, cause};

/// What one trial left in the journal.
#[derive(Debug, Default)]
pub(crate) struct TrialRecord {
    pub(crate) end: Option<TrialEnd>,
    pub(crate) findings: Vec<Seen>,
    /// What changed from its baseline to its soak, and the journal number of the soak's measurement.
    pub(crate) change: Option<(u64, Arc<Change>)>,
    /// Share of its planned CPU time that the machine got.
    pub(crate) cpu_share: Option<f64>,
    /// Tasks that waited when evidence was gathered; none any more once it has ended.
    waits: Vec<Waits>,
    /// Where they waited, once it has ended.
    pub(super) groups: Vec<WaitGroup>,
    /// The patch was being applied, or had been; in the control arm, the part of the trial that is compared with that had begun.
    pub(super) exposed: bool,
    /// Names of patches that the journal says were applied.
    pub(super) applied: Vec<Arc<str>>,
    /// How often all tasks had switched to a patch.
    pub(super) transitions: usize,
    /// Titles of stalls after which the tasks made progress again.
    pub(super) stalls_ended: BTreeSet<String>,
    /// Milliseconds of the run when the patch came into force, and when that ended.
    pub(super) in_force: (Option<u64>, Option<u64>),
    /// Calls of functions, with the patch in force or, in the control arm, without it.
    pub(super) calls: Vec<Calls>,
    pub(super) files: Vec<PathBuf>,
    /// It had found something, or had ended by itself: whatever happens to the run, it is not done again.
    kept: bool,
    /// What it says of the run, as long as it may still be done again.
    facts: Option<Box<Facts>>,
}

impl TrialRecord {
    fn take(&mut self, event: &Event, scope: Scope, names: &mut Names) {
        self.exposed |= exposes(scope.arm, scope.phase);
        match &event.body {
            Body::Applied { patch, .. } => {
                self.exposed = true;
                let patch = names.of(patch);
                if !self.applied.contains(&patch) {
                    self.applied.push(patch);
                }
            }
            Body::TransitionDone { .. } if scope.phase != Phase::Revert => {
                self.transitions += 1;
                self.in_force = (Some(event.at_ms), None);
            }
            Body::PhaseStarted if matches!(scope.phase, Phase::Revert | Phase::End) => {
                self.in_force.1.get_or_insert(event.at_ms);
            }
            Body::Finding(finding) => self.findings.push(Seen::new(event.seq, scope, (**finding).clone())),
            Body::Waits(waits) if self.end.is_none() => self.waits.push((**waits).clone()),
            Body::CpuShare { share } => self.cpu_share = Some(*share),
            Body::Evidence { file, .. } => self.files.push(Plan::trial_dir(scope.trial).join(file)),
            Body::StallEnded { title, .. } => {
                self.stalls_ended.insert(title.clone());
            }
            // Of two ends the first one counts.
            Body::TrialEnded { end } => {
                self.in_force.1.get_or_insert(event.at_ms);
                self.end.get_or_insert_with(|| end.clone());
            }
            _ => {}
        }
    }
}

/// Whether a trial of which this is said is not done again.
fn keeps(body: &Body) -> bool {
    match body {
        Body::Finding(_) => true,
        Body::TrialEnded { end } => !matches!(end, TrialEnd::Interrupted | TrialEnd::OutOfBudget),
        _ => false,
    }
}

/// Calls of one function in one trial.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) function: Arc<str>,
    pub(super) calls: u64,
    /// In how many milliseconds.
    pub(super) window_ms: u64,
    /// Of the new code, counted beside them.
    pub(super) new_code: Option<NewCalls>,
}

/// Calls of the function in a patch that takes the place of another, in one trial.
#[derive(Debug)]
pub(super) struct NewCalls {
    pub(super) patch: Arc<str>,
    pub(super) calls: u64,
    pub(super) window_ms: u64,
}

impl Calls {
    /// More of the same function, counted once more. Of two patches the first one counts: a trial has one that is in force.
    fn more(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.window_ms = self.window_ms.saturating_add(other.window_ms);
        match (&mut self.new_code, other.new_code) {
            (Some(own), Some(new)) if own.patch == new.patch => {
                own.calls = own.calls.saturating_add(new.calls);
                own.window_ms = own.window_ms.saturating_add(new.window_ms);
            }
            (own, new) => *own = own.take().or(new),
        }
    }
}

/// A finding with its place in the journal. Of its evidence the beginning is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) seq: u64,
    pub(crate) scope: Scope,
    pub(crate) finding: Finding,
}

impl Seen {
    pub(crate) fn new(seq: u64, scope: Scope, finding: Finding) -> Self {
        let evidence = excerpt(&finding.evidence);
        Self { seq, scope, finding: Finding { evidence, ..finding } }
    }
}

fn excerpt(text: &str) -> String {
    const LINES: usize = 30;
    let mut out: String = text.lines().take(LINES).collect::<Vec<_>>().join("\n");
    let rest = text.lines().count().saturating_sub(LINES);
    if rest > 0 {
        out.push_str(&format!("\n[{rest} more lines in the journal]"));
    }
    out
}

/// What trials say of the whole run.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Functions that the patches replace, and tasks on whose stack each stood at the moment of applying.
    pub(super) functions: BTreeMap<String, u32>,
    /// Patches that were applied and replace no function.
    pub(super) without_functions: BTreeSet<String>,
    /// Functions whose calls patched trials could not count, by what they said.
    pub(super) uncounted: BTreeSet<String>,
    /// Reason by detector, and which event said so; the last one stands for all trials.
    blind: BTreeMap<Detector, (u64, String)>,
    /// Workloads that can't run on this guest, and why.
    pub(super) unavailable: BTreeMap<String, String>,
    /// The first of all.
    fresh: Option<(u64, Vitals)>,
    reached: Option<(u64, Vitals)>,
}

impl Facts {
    fn absorb(&mut self, other: Self) {
        for (path, seen) in other.functions {
            let place = self.functions.entry(path).or_default();
            *place = (*place).max(seen);
        }
        self.without_functions.extend(other.without_functions);
        self.uncounted.extend(other.uncounted);
        for (detector, (nth, reason)) in other.blind {
            self.blind(detector, nth, reason);
        }
        self.unavailable.extend(other.unavailable);
        for (place, new) in [(&mut self.fresh, other.fresh), (&mut self.reached, other.reached)] {
            if let Some(new) = new.filter(|new| place.as_ref().is_none_or(|old| new.0 < old.0)) {
                *place = Some(new);
            }
        }
    }

    /// What an event of a trial, the `nth` of all, says of the run.
    fn take(&mut self, event: &Event, scope: Scope, nth: u64) {
        match &event.body {
            Body::Applied { patch, functions, inside, .. } => {
                if functions.is_empty() {
                    self.without_functions.insert(patch.clone());
                }
                for path in functions {
                    let seen = inside.get(path).or_else(|| inside.get(function_name(path)));
                    let seen = seen.copied().unwrap_or(0);
                    match self.functions.get_mut(path) {
                        Some(place) => *place = (*place).max(seen),
                        None => drop(self.functions.insert(path.clone(), seen)),
                    }
                }
            }
            Body::Blind { detector, reason } => {
                if *detector == Detector::Reach && scope.arm.patched() {
                    self.uncounted.insert(reason.clone());
                }
                self.blind(*detector, nth, reason.clone());
            }
            Body::WorkloadUnavailable { workload, reason } => {
                self.unavailable.insert(workload.clone(), reason.clone());
            }
            Body::Vitals(vitals) => {
                let place = if scope.phase == Phase::Boot { &mut self.fresh } else { &mut self.reached };
                place.get_or_insert_with(|| (nth, vitals.clone()));
            }
            _ => {}
        }
    }

    fn blind(&mut self, detector: Detector, nth: u64, reason: String) {
        let place = self.blind.entry(detector).or_default();
        if nth >= place.0 {
            *place = (nth, reason);
        }
    }

    pub(super) fn blind_detectors(&self) -> impl Iterator<Item = (Detector, &String)> {
        self.blind.iter().map(|(detector, (_, reason))| (*detector, reason))
    }

    pub(super) fn wear(&self) -> Option<(&Vitals, &Vitals)> {
        Some((&self.fresh.as_ref()?.1, &self.reached.as_ref()?.1))
    }
}

/// Everything the journal says, by trial.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Trials of the plan of which it says anything.
    pub(crate) trials: BTreeMap<u32, TrialRecord>,
    /// What trials that are not done again say of the run.
    facts: Facts,
    pub(super) checkpoint: Option<CheckpointFacts>,
    /// Why the run ended before it was over, as far as it says so.
    pub(super) cut_short: Option<String>,
    /// Numbers of trials that the journal has and the plan does not, and whether they are not done again.
    unknown: BTreeMap<u32, bool>,
    /// Trials that a resumed run did again.
    pub(super) repeated: BTreeSet<u32>,
    pub(super) took_ms: u64,
    /// Only calls of functions that a trial replaced count: several patches share the control trials.
    pub(super) own_functions_only: bool,
    /// Trials in which calls of a function were counted, and those in which there were any: of the control arm and of the others.
    pub(super) called: BTreeMap<Arc<str>, [[u32; 2]; 2]>,
    /// Calls of functions and of the new code beside them.
    pub(super) new_code: NewCodeRecord,
    /// Trials that may still be done again.
    open: BTreeSet<u32>,
    names: Names,
    /// Events taken.
    taken: u64,
}

/// The trials of a plan.
pub(super) trait Roster {
    /// The arm of a trial; none if the plan does not have it.
    fn arm(&self, trial: u32) -> Option<Arm>;

    /// Names of the patches that a trial applies.
    fn names(&self, trial: u32) -> Vec<&str>;
}

/// Whom an event concerns.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Touched {
    Nobody,
    Trial(u32),
    /// What the journal said of these no longer counts.
    Dropped(Vec<u32>),
}

impl Record {
    /// Take an event. `roster` knows the trials of the plan; `change` is what the trial's measurements come to, if the event is that of its
    /// soak. Two ends of one trial, an arm that is not the plan's, and trials that it does not have change nothing of what was found.
    pub(super) fn take(
        &mut self,
        event: &Event,
        change: Option<&Arc<Change>>,
        roster: &impl Roster,
    ) -> Touched {
        self.taken += 1;
        self.took_ms = self.took_ms.max(event.at_ms);
        match &event.body {
            Body::RunEnded { interrupted: true } => {
                self.cut_short = Some("the run was interrupted".to_owned());
            }
            // What is said of the run is said when something ends it.
            Body::Note { text } if event.scope.is_none() => self.cut_short = Some(text.clone()),
            Body::RunResumed { void, .. } => {
                self.cut_short = None;
                self.repeated.extend(void);
                return Touched::Dropped(self.forget(void, roster));
            }
            Body::Checkpoint(facts) => {
                for (detector, reason) in &facts.blind {
                    self.facts.blind(*detector, self.taken, reason.clone());
                }
                self.facts.unavailable.extend(facts.unavailable.clone());
                self.checkpoint = Some((**facts).clone());
            }
            _ => {}
        }
        let Some(scope) = event.scope else { return Touched::Nobody };
        // Progress is half of a journal, and says nothing here but that the trial has begun.
        if matches!(event.body, Body::Progress { .. }) && self.trials.contains_key(&scope.trial) {
            return Touched::Nobody;
        }
        match roster.arm(scope.trial) {
            // The plan says which arm a trial is of, whatever an event does.
            Some(arm) => self.take_of_trial(event, Scope { arm, ..scope }, change, roster),
            None if !scope.is_aging() => {
                *self.unknown.entry(scope.trial).or_default() |= keeps(&event.body);
                Touched::Nobody
            }
            None => Touched::Nobody,
        }
    }

    fn take_of_trial(
        &mut self,
        event: &Event,
        scope: Scope,
        change: Option<&Arc<Change>>,
        roster: &impl Roster,
    ) -> Touched {
        let new = !self.trials.contains_key(&scope.trial);
        let trial = self.trials.entry(scope.trial).or_default();
        if new {
            self.open.insert(scope.trial);
        }
        let of_run = if trial.kept { &mut self.facts } else { trial.facts.get_or_insert_default() };
        of_run.take(event, scope, self.taken);
        trial.take(event, scope, &mut self.names);
        let ends = matches!(event.body, Body::TrialEnded { .. });
        match &event.body {
            Body::Measured(_) => {
                let change = change.filter(|_| is_compared(scope.arm) && trial.end.is_none());
                trial.change = change.map(|c| (event.seq, c.clone())).or_else(|| trial.change.take());
            }
            Body::TrialEnded { .. } => {
                let waits = std::mem::take(&mut trial.waits);
                if !waits.is_empty() {
                    trial.groups = cause::groups(&waits, &roster.names(scope.trial));
                }
            }
            Body::Reach { function, calls, window_ms, new_code } => {
                let arm = usize::from(scope.arm.patched());
                let function = self.names.of(function);
                let of = &mut self.called.entry(function.clone()).or_default()[arm];
                let new_code = new_code.as_ref().filter(|_| scope.arm.patched()).map(|new| NewCalls {
                    patch: self.names.of(&new.patch),
                    calls: new.calls,
                    window_ms: new.window_ms,
                });
                let counted = Calls { function, calls: *calls, window_ms: *window_ms, new_code };
                let at = match trial.calls.binary_search_by(|c| c.function.cmp(&counted.function)) {
                    Ok(at) => {
                        let known = &mut trial.calls[at];
                        of[1] += u32::from(known.calls == 0 && *calls > 0);
                        self.new_code.remove(scope.arm, known);
                        known.more(counted);
                        at
                    }
                    Err(at) => {
                        of[0] += 1;
                        of[1] += u32::from(*calls > 0);
                        trial.calls.insert(at, counted);
                        at
                    }
                };
                self.new_code.add(scope.arm, &trial.calls[at]);
            }
            _ => {}
        }
        if keeps(&event.body) && !std::mem::replace(&mut trial.kept, true) {
            self.open.remove(&scope.trial);
            self.facts.absorb(trial.facts.take().map(|f| *f).unwrap_or_default());
        }
        // What is said of a trial that goes on changes nothing before its end, but that it found something, or that a patch was applied.
        let tells = matches!(event.body, Body::Finding(_) | Body::Applied { .. });
        let matters = new || ends || trial.end.is_some() || tells;
        if matters { Touched::Trial(scope.trial) } else { Touched::Nobody }
    }

    /// Forget trials that are done again. A trial that had found something, or that had ended by itself, cannot be, whatever a journal says
    /// ([`crate::event::live`]).
    fn forget(&mut self, void: &[u32], roster: &impl Roster) -> Vec<u32> {
        let mut gone = Vec::new();
        for number in void {
            if self.unknown.get(number) == Some(&false) {
                self.unknown.remove(number);
            }
            let Some(own) = self.trials.get(number).filter(|own| !own.kept) else { continue };
            let of = roster.arm(*number);
            let arm = usize::from(of.is_some_and(Arm::patched));
            for calls in &own.calls {
                of.iter().for_each(|arm| self.new_code.remove(*arm, calls));
                if let Some(of) = self.called.get_mut(&calls.function) {
                    of[arm][0] -= 1;
                    of[arm][1] -= u32::from(calls.calls > 0);
                }
            }
            self.trials.remove(number);
            self.open.remove(number);
            gone.push(*number);
        }
        gone
    }

    /// What trials say of the whole run.
    pub(super) fn facts(&self) -> Cow<'_, Facts> {
        let mut all = Cow::Borrowed(&self.facts);
        let open = self.open.iter().filter_map(|n| self.trials.get(n)?.facts.as_ref());
        for facts in open {
            all.to_mut().absorb((**facts).clone());
        }
        all
    }

    pub(super) fn unknown_trials(&self) -> impl Iterator<Item = u32> {
        self.unknown.keys().copied()
    }

    /// Whether calls of this function count; `facts` are what the journal says of the run.
    pub(super) fn is_relevant(&self, facts: &Facts, function: &str) -> bool {
        let is = |path: &String| path == function || function_name(path) == function;
        !self.own_functions_only || facts.functions.keys().any(is)
    }
}

pub(crate) fn before_apply(phase: Phase) -> bool {
    matches!(phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline)
}

/// Whether a trial in this phase runs with its patch, or, of the control arm, in the part that is compared with that.
pub(crate) fn exposes(arm: Arm, phase: Phase) -> bool {
    match phase {
        Phase::Apply | Phase::Transition => arm.patched(),
        Phase::Soak | Phase::Reach | Phase::Revert => true,
        Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline | Phase::End => false,
    }
}

/// Trials whose phases can be compared: what a finding stopped is slow for a reason that is known already. What was found only when the
/// patch was taken back left the soak whole: a leak of descriptors shows there, and keeps the patch from being unloaded.
pub(crate) fn comparable(trial: &TrialRecord) -> bool {
    match trial.end {
        Some(TrialEnd::Completed) => true,
        Some(TrialEnd::Stopped) => {
            trial.findings.iter().all(|f| matches!(f.scope.phase, Phase::Revert | Phase::End))
        }
        _ => false,
    }
}
