//! The journal by trial, as far as the judge needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::outcome::{Applied, exposes};
use crate::event::{Body, CheckpointFacts, Event, Measured, Scope, TrialEnd, Vitals, function_name, live};
use crate::wait::Waits;
use crate::{Arm, Finding, Phase, Plan};

/// What one trial left in the journal.
#[derive(Debug, Default)]
pub(crate) struct TrialRecord {
    pub(crate) end: Option<TrialEnd>,
    pub(crate) findings: Vec<Seen>,
    pub(crate) measured: BTreeMap<Phase, (u64, Measured)>,
    /// Share of its planned CPU time that the machine got.
    pub(crate) cpu_share: Option<f64>,
    /// Tasks that waited when evidence was gathered.
    pub(crate) waits: Vec<Waits>,
    /// The patch was being applied, or had been; in the control arm, the part of the trial that is compared with that had begun.
    pub(super) exposed: bool,
    pub(super) applied: Applied,
    /// How often all tasks had switched to a patch.
    pub(super) transitions: usize,
    /// Titles of stalls after which the tasks made progress again.
    pub(super) stalls_ended: BTreeSet<String>,
    /// Milliseconds of the run when the patch came into force, and when that ended.
    pub(super) in_force: (Option<u64>, Option<u64>),
    /// Calls of each function, with the patch in force or, in the control arm, without it, and in how many milliseconds.
    pub(super) calls: BTreeMap<String, (u64, u64)>,
    pub(super) files: Vec<PathBuf>,
}

/// A finding with its place in the journal.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) seq: u64,
    pub(crate) scope: Scope,
    pub(crate) finding: Finding,
}

/// Everything the journal says, by trial.
pub(crate) struct Record {
    /// Trials of the plan of which it says anything.
    pub(crate) trials: BTreeMap<u32, TrialRecord>,
    /// Functions that the patches replace, and tasks on whose stack each stood at the moment of applying.
    pub(super) functions: BTreeMap<String, u32>,
    /// Some patch was applied that replaces no function.
    pub(super) without_functions: BTreeSet<String>,
    /// Functions whose calls patched trials could not count, by what they said.
    pub(super) uncounted: BTreeSet<String>,
    /// Reason by detector; the last one stands for all trials.
    pub(super) blind: BTreeMap<String, String>,
    pub(super) checkpoint: Option<CheckpointFacts>,
    pub(super) fresh: Option<Vitals>,
    pub(super) reached: Option<Vitals>,
    /// Why the run ended before it was over, as far as it says so.
    pub(super) cut_short: Option<String>,
    /// Numbers of trials that the journal has and the plan does not.
    pub(super) unknown_trials: BTreeSet<u32>,
    /// Trials that a resumed run did again.
    pub(super) repeated: BTreeSet<u32>,
    pub(super) took_ms: u64,
}

/// Read a journal. Two ends of one trial, an arm that is not the plan's, and trials that it does not have change nothing of what was found.
pub(super) fn read(plan: &Plan, events: &[Event]) -> Record {
    let mut record = Record {
        trials: BTreeMap::new(),
        functions: BTreeMap::new(),
        without_functions: BTreeSet::new(),
        uncounted: BTreeSet::new(),
        blind: BTreeMap::new(),
        checkpoint: None,
        fresh: None,
        reached: None,
        cut_short: None,
        unknown_trials: BTreeSet::new(),
        repeated: BTreeSet::new(),
        took_ms: 0,
    };
    let arms: BTreeMap<u32, Arm> = plan.trials.iter().map(|t| (t.number, t.arm)).collect();
    for event in live(events) {
        record.took_ms = record.took_ms.max(event.at_ms);
        match &event.body {
            Body::RunEnded { interrupted: true } => {
                record.cut_short = Some("the run was interrupted".to_owned());
            }
            // What is said of the run is said when something ends it.
            Body::Note { text } if event.scope.is_none() => record.cut_short = Some(text.clone()),
            Body::RunResumed { void, .. } => {
                record.cut_short = None;
                record.repeated.extend(void.iter().filter(|n| arms.contains_key(n)));
            }
            Body::Checkpoint(facts) => {
                record.blind.extend(facts.blind.clone());
                record.checkpoint = Some((**facts).clone());
            }
            _ => {}
        }
        let Some(scope) = event.scope else { continue };
        match arms.get(&scope.trial) {
            // The plan says which arm a trial is of, whatever an event does.
            Some(arm) => read_trial(&mut record, event, Scope { arm: *arm, ..scope }),
            // Number 0 is the machine that was aged.
            None if scope.trial > 0 => {
                record.unknown_trials.insert(scope.trial);
            }
            None => {}
        }
    }
    record
}

fn read_trial(record: &mut Record, event: &Event, scope: Scope) {
    let trial = record.trials.entry(scope.trial).or_default();
    trial.exposed |= exposes(scope.arm, scope.phase);
    match &event.body {
        Body::Applied { patch, functions, inside, .. } => {
            trial.exposed = true;
            trial.applied.insert(patch.clone());
            if functions.is_empty() {
                record.without_functions.insert(patch.clone());
            }
            for path in functions {
                let seen = inside.get(path).or_else(|| inside.get(function_name(path)));
                let place = record.functions.entry(path.clone()).or_default();
                *place = (*place).max(seen.copied().unwrap_or(0));
            }
        }
        Body::TransitionDone { .. } if scope.phase != Phase::Revert => {
            trial.transitions += 1;
            trial.in_force = (Some(event.at_ms), None);
        }
        Body::PhaseStarted if matches!(scope.phase, Phase::Revert | Phase::End) => {
            trial.in_force.1.get_or_insert(event.at_ms);
        }
        Body::Measured(m) => {
            trial.measured.insert(scope.phase, (event.seq, m.clone()));
        }
        Body::Finding(finding) => {
            trial.findings.push(Seen { seq: event.seq, scope, finding: (**finding).clone() });
        }
        Body::Waits(waits) => trial.waits.push((**waits).clone()),
        Body::CpuShare { share } => trial.cpu_share = Some(*share),
        Body::Evidence { file, .. } => trial.files.push(Plan::trial_dir(scope.trial).join(file)),
        Body::StallEnded { title, .. } => {
            trial.stalls_ended.insert(title.clone());
        }
        // Of two ends the first one counts.
        Body::TrialEnded { end } => {
            trial.in_force.1.get_or_insert(event.at_ms);
            trial.end.get_or_insert_with(|| end.clone());
        }
        Body::Blind { detector, reason } => {
            if detector == "reach" && scope.arm.patched() {
                record.uncounted.insert(reason.clone());
            }
            record.blind.insert(detector.clone(), reason.clone());
        }
        Body::Reach { function, calls, window_ms } => {
            let of = trial.calls.entry(function.clone()).or_default();
            *of = (of.0.saturating_add(*calls), of.1.saturating_add(*window_ms));
        }
        Body::Vitals(vitals) => {
            let place = if scope.phase == Phase::Boot { &mut record.fresh } else { &mut record.reached };
            place.get_or_insert_with(|| vitals.clone());
        }
        Body::RunStarted { .. }
        | Body::RunResumed { .. }
        | Body::Checkpoint(_)
        | Body::TrialStarted
        | Body::PhaseStarted
        | Body::MachineReady { .. }
        | Body::TransitionDone { .. }
        | Body::Reverted { .. }
        | Body::Progress { .. }
        | Body::Note { .. }
        | Body::RunEnded { .. } => {}
    }
}
