//! Several patches that have nothing to do with each other in one run: each is judged by its own trials, and all share the
//! control trials.

use std::sync::Arc;

use crate::compare::change::Change;
use crate::event::{Body, Event};
use crate::judge::fold::Fold;
use crate::judge::measures::Measures;
use crate::{Arm, Mode, Plan, Trial, Verdict};

/// Control trials that run before anything else: the first findings can be attributed at once.
const FIRST_CONTROLS: usize = 2;

/// And so many with each round of patches: all share them, and beside six of them two loaded trials that agree are no chance any more
/// (Fisher: p = 0.036), so that they spare many loaded ones.
const CONTROLS_A_ROUND: usize = 4;

/// A patch is applied again and again after so many loaded trials: most are decided by then.
const LOADED_BEFORE_REAPPLY: usize = 2;

/// Judges one patch: by the part of the plan and of the journal that is about it.
fn part(plan: &Plan, patch: usize) -> Fold {
    let mut own = plan.clone();
    own.mode = Mode::Single;
    own.patches = plan.patches.get(patch).cloned().into_iter().collect();
    own.trials.retain(|t| t.arm == Arm::Control || t.patches == [patch]);
    for trial in own.trials.iter_mut().filter(|t| t.arm != Arm::Control) {
        trial.patches = vec![0];
    }
    let places = |of: &dyn Fn(Arm) -> bool| -> Vec<usize> {
        own.trials.iter().enumerate().filter(|(_, t)| of(t.arm)).map(|(place, _)| place).collect()
    };
    let mut loaded = places(&|arm| arm == Arm::Loaded);
    let later = loaded.split_off(LOADED_BEFORE_REAPPLY.min(loaded.len()));
    // Whether more control trials are due is not for one patch to say.
    let others = places(&|arm| !matches!(arm, Arm::Loaded | Arm::Control));
    let mut fold = Fold::with_order(own, [loaded, others, later].concat());
    // The control trials count calls of everybody's functions.
    fold.only_own_functions();
    fold
}

fn is_about(fold: &Fold, event: &Event) -> bool {
    event.scope.is_none_or(|s| fold.has_trial(s.trial))
}

/// What the run says of one patch, by its position in the plan.
pub fn judge_independent(plan: &Plan, events: &[Event], patch: usize) -> Verdict {
    judge_with(plan, events, patch, |_| true)
}

/// What the run would have said of one patch, had only findings that `keep` accepts been seen.
pub(crate) fn judge_with(
    plan: &Plan,
    events: &[Event],
    patch: usize,
    keep: impl Fn(&crate::Finding) -> bool,
) -> Verdict {
    let mut fold = part(plan, patch);
    let mut measures = Measures::new(&plan.pipeline.limits);
    let seen = events.iter().filter(|e| match &e.body {
        Body::Finding(finding) => keep(finding),
        _ => true,
    });
    for event in seen {
        if is_about(&fold, event) {
            let change = measures.take(event, |trial| fold.arm(trial));
            fold.push(event, change.as_ref());
        }
    }
    fold.verdict()
}

/// Follows a run of patches that have nothing to do with each other.
#[derive(Debug)]
pub(crate) struct Independent {
    plan: Plan,
    /// All trials together.
    whole: Fold,
    /// Those of each patch.
    parts: Vec<Fold>,
    /// Control trials that say nothing, for which others are due.
    spoilt: usize,
}

impl Independent {
    pub(crate) fn new(plan: &Plan) -> Self {
        let parts = (0..plan.patches.len()).map(|patch| part(plan, patch)).collect();
        Self { plan: plan.clone(), whole: Fold::new(plan.clone()), parts, spoilt: 0 }
    }

    pub(crate) fn push(&mut self, event: &Event, change: Option<&Arc<Change>>) {
        match (&event.body, event.scope) {
            (Body::TrialEnded { end }, Some(scope)) if scope.arm == Arm::Control && !end.is_valid(true) => {
                self.spoilt += 1;
            }
            _ => {}
        }
        self.whole.push(event, change);
        self.parts.iter_mut().filter(|f| is_about(f, event)).for_each(|fold| fold.push(event, change));
    }

    pub(crate) fn start(&mut self, trial: u32) {
        self.whole.start(trial);
        self.parts.iter_mut().for_each(|fold| fold.start(trial));
    }

    #[cfg(test)]
    pub(crate) fn each(&mut self, to: impl Fn(&mut Fold)) {
        to(&mut self.whole);
        self.parts.iter_mut().for_each(to);
    }

    pub(crate) fn arm(&self, trial: u32) -> Option<Arm> {
        self.whole.arm(trial)
    }

    pub(crate) fn verdict(&mut self) -> Verdict {
        self.whole.verdict()
    }

    /// The next trial worth starting. Patches take turns, so that what is learnt of one's first trial spares it a second; control trials
    /// keep pace, so that each trial has one near in time.
    pub(crate) fn next(&mut self) -> Option<Trial> {
        let mut wanted: Option<(usize, u32)> = None;
        let mut undecided = false;
        for fold in &mut self.parts {
            fold.settle();
            let (trials, _) = fold.under_way();
            if wanted.is_some_and(|(least, _)| least <= trials) || fold.is_decided() {
                continue;
            }
            undecided = true;
            wanted = fold.next().map(|number| (trials, number)).or(wanted);
        }
        self.whole.settle();
        let due = self.plan.due(Arm::Control) as usize + self.spoilt;
        let controls = || self.plan.trials.iter().filter(|t| t.arm == Arm::Control).take(due);
        let control = || controls().find(|t| !self.whole.has_started(t.number)).cloned();
        let Some((round, number)) = wanted else {
            // What is left undecided once all have ended may lack nothing but control trials to compare with.
            let (_, open) = self.whole.under_way();
            return control().filter(|_| open == 0 && undecided);
        };
        let controls_started = controls().filter(|t| self.whole.has_started(t.number)).count();
        control()
            .filter(|_| controls_started < FIRST_CONTROLS + round * CONTROLS_A_ROUND)
            .or_else(|| self.plan.trial(number).map(|t| t.into_owned()))
    }
}

#[cfg(test)]
mod tests;
