//! Several patches that have nothing to do with each other in one run: each is judged by its own trials, and all share the
//! control trials.

use std::collections::BTreeSet;

use crate::event::{Body, Event, function_name};
use crate::judge::{is_decided, judge_one, next_trial};
use crate::{Arm, Plan, Trial, Verdict};

/// Control trials that run before anything else: the first findings can be attributed at once.
const FIRST_CONTROLS: usize = 2;

/// And so many with each round of patches: all share them, and beside six of them two loaded trials that agree are no chance any more
/// (Fisher: p = 0.036), so that they spare many loaded ones.
const CONTROLS_A_ROUND: usize = 4;

/// A patch is applied again and again after so many loaded trials: most are decided by then.
const LOADED_BEFORE_REAPPLY: usize = 2;

/// The part of a plan that is about one patch, and the part of the journal.
fn of(plan: &Plan, events: &[Event], patch: usize) -> (Plan, Vec<Event>) {
    let mut own = plan.clone();
    own.apart = false;
    own.patches = plan.patches.get(patch).cloned().into_iter().collect();
    own.trials.retain(|t| t.arm == Arm::Control || t.patches == [patch]);
    let numbers: BTreeSet<u32> = own.trials.iter().map(|t| t.number).collect();
    for trial in own.trials.iter_mut().filter(|t| t.arm != Arm::Control) {
        trial.patches = vec![0];
    }
    let mine = |e: &&Event| e.scope.is_none_or(|s| numbers.contains(&s.trial));
    let functions: BTreeSet<&str> = events
        .iter()
        .filter(mine)
        .filter_map(|e| match &e.body {
            Body::Applied { functions, .. } => Some(functions),
            _ => None,
        })
        .flatten()
        .map(String::as_str)
        .collect();
    // The control trials count calls of everybody's functions.
    let relevant = |e: &&Event| match &e.body {
        Body::Reach { function, .. } => {
            functions.contains(function.as_str()) || functions.iter().any(|f| function_name(f) == function)
        }
        _ => true,
    };
    (own, events.iter().filter(mine).filter(relevant).cloned().collect())
}

/// What the run says of one patch, by its position in the plan.
pub fn judge_apart(plan: &Plan, events: &[Event], patch: usize) -> Verdict {
    let (own, events) = of(plan, events, patch);
    judge_one(&own, &events)
}

/// What the run would have said of one patch, had only findings that `keep` accepts been seen.
pub(crate) fn judge_with(
    plan: &Plan,
    events: &[Event],
    patch: usize,
    keep: impl Fn(&crate::Finding) -> bool,
) -> Verdict {
    let (own, mut events) = of(plan, events, patch);
    events.retain(|e| match &e.body {
        Body::Finding(finding) => keep(finding),
        _ => true,
    });
    judge_one(&own, &events)
}

/// The next trial worth starting. Patches take turns, so that what is learnt of one's first trial spares it a second; control trials
/// keep pace, so that each trial has one near in time.
pub(crate) fn next<'a>(plan: &'a Plan, events: &[Event], started: &BTreeSet<u32>) -> Option<&'a Trial> {
    let spoilt = |e: &&Event| match (&e.body, e.scope) {
        (Body::TrialEnded { end }, Some(scope)) => scope.arm == Arm::Control && !end.is_valid(true),
        _ => false,
    };
    let due = plan.due(Arm::Control) as usize + events.iter().filter(spoilt).count();
    let controls = || plan.trials.iter().filter(|t| t.arm == Arm::Control).take(due);
    let controls_started = controls().filter(|t| started.contains(&t.number)).count();
    let mut wanted: Option<(usize, u32)> = None;
    let mut undecided = false;
    for patch in 0..plan.patches.len() {
        let trials =
            plan.trials.iter().filter(|t| t.patches == [patch] && started.contains(&t.number)).count();
        if wanted.is_some_and(|(least, _)| least <= trials) {
            continue;
        }
        let (mut own, own_events) = of(plan, events, patch);
        if is_decided(&own, &own_events) {
            continue;
        }
        undecided = true;
        // Whether more control trials are due is not for one patch to say.
        own.trials.retain(|t| t.arm != Arm::Control || started.contains(&t.number));
        let (mut first, mut rest): (Vec<Trial>, Vec<Trial>) =
            own.trials.drain(..).partition(|t| t.arm == Arm::Loaded);
        rest.extend(first.split_off(LOADED_BEFORE_REAPPLY.min(first.len())));
        own.trials = [first, rest].concat();
        if let Some(trial) = next_trial(&own, &own_events, started) {
            wanted = Some((trials, trial.number));
        }
    }
    let control = || controls().find(|t| !started.contains(&t.number));
    let Some((round, number)) = wanted else {
        // What is left undecided once all have ended may lack nothing but control trials to compare with.
        let ended = |e: &Event| matches!(e.body, Body::TrialEnded { .. });
        let open = events.iter().filter(|e| ended(e)).count() < started.len();
        return control().filter(|_| !open && undecided);
    };
    control()
        .filter(|_| controls_started < FIRST_CONTROLS + round * CONTROLS_A_ROUND)
        .or_else(|| plan.trials.iter().find(|t| t.number == number))
}

#[cfg(test)]
mod tests;
