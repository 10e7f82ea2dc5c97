//! Judging: a pure fold of plan and journal into a verdict. Every rule of the verdict stands below this module and in
//! [`crate::compare`] and [`crate::sequential`].
//!
//! The same [`Judge`] follows a run that is still going on, event by event, and says when it is decided and which trial comes next.

mod attribute;
mod causes;
mod decide;
mod document;
mod fold;
mod measures;
mod outcome;
mod pick;
mod reach;
mod record;
mod sets;

pub(crate) use attribute::comparable;
use document::names;
pub(crate) use fold::Fold;
pub(crate) use measures::Measures;
pub use reach::plain_function;
pub(crate) use record::{Seen, TrialRecord};
pub(crate) use sets::{against_innocence, has_prospect, is_rejected};

use crate::apart::Apart;
use crate::event::{Body, Event};
use crate::plan::Trial;
use crate::rotation::Rounds;
use crate::verdict::{Outcome, Verdict, Why};
use crate::{Arm, Plan};

/// Judge a run. The same plan and events give the same verdict, whoever asks and whenever.
pub fn judge(plan: &Plan, events: &[Event]) -> Verdict {
    let mut judge = Judge::new(plan);
    events.iter().for_each(|event| judge.push(event));
    judge.verdict()
}

/// Follows a run. Each event takes about as long as any other, however many came before, and what is no longer needed of a trial that has
/// ended is not kept.
#[derive(Debug)]
pub struct Judge {
    mode: Mode,
    measures: Measures,
    /// Events that began the run, and the hash of its plan as each has it.
    begun: Vec<(u64, String)>,
}

#[derive(Debug)]
enum Mode {
    Single(Box<Fold>),
    Apart(Box<Apart>),
    Rotation(Box<Rounds>),
}

impl Judge {
    /// Of a run with this plan, nothing of which has happened yet.
    pub fn new(plan: &Plan) -> Self {
        let mode = if !plan.turns.is_empty() {
            Mode::Rotation(Box::new(Rounds::new(plan)))
        } else if plan.apart {
            Mode::Apart(Box::new(Apart::new(plan)))
        } else {
            Mode::Single(Box::new(Fold::new(plan.clone())))
        };
        Self { mode, measures: Measures::new(&plan.pipeline.limits), begun: Vec::new() }
    }

    /// Take the next event of the journal.
    pub fn push(&mut self, event: &Event) {
        if let Body::RunStarted { plan, .. } = &event.body {
            self.begun.push((event.seq, plan.clone()));
        }
        let change = self.measures.take(event, |trial| self.mode.arm(trial));
        let change = change.as_ref();
        match &mut self.mode {
            Mode::Single(fold) => fold.push(event, change),
            Mode::Apart(apart) => apart.push(event, change),
            Mode::Rotation(rounds) => rounds.push(event, change),
        }
    }

    /// A trial was started: [`Self::next_trial`] no longer has it, though no event may say so yet.
    pub fn start(&mut self, trial: u32) {
        match &mut self.mode {
            Mode::Single(fold) => fold.start(trial),
            Mode::Apart(apart) => apart.start(trial),
            Mode::Rotation(rounds) => rounds.start(trial),
        }
    }

    /// Whether the run is decided: its verdict is reached, and enough is known to say under which condition the patch fails. A run of
    /// patches apart ends when none of them needs a trial any more, and one with a rotation when its time is over: they never are.
    pub fn is_decided(&mut self) -> bool {
        match &mut self.mode {
            Mode::Single(fold) => fold.is_decided(),
            Mode::Apart(_) | Mode::Rotation(_) => false,
        }
    }

    /// The next trial worth starting, if the run is not decided.
    pub fn next_trial(&mut self) -> Option<Trial> {
        match &mut self.mode {
            Mode::Single(fold) => fold.next().and_then(|number| fold.trial(number).cloned()),
            Mode::Apart(apart) => apart.next(),
            Mode::Rotation(rounds) => rounds.next(),
        }
    }

    /// The verdict on what has happened so far.
    pub fn verdict(&mut self) -> Verdict {
        let mut verdict = match &mut self.mode {
            Mode::Single(fold) => fold.verdict(),
            Mode::Apart(apart) => apart.verdict(),
            Mode::Rotation(rounds) => rounds.verdict(),
        };
        let of_another = self.begun.iter().find(|(_, hash)| *hash != verdict.plan);
        if let Some((seq, hash)) = of_another.filter(|_| verdict.verdict == Outcome::Qualified) {
            verdict.verdict = Outcome::Inconclusive;
            let (journal, plan) = (hash.clone(), verdict.plan.clone());
            verdict.causes.insert(0, Why::JournalOfAnotherPlan { event: *seq, journal, plan }.into());
        }
        verdict
    }
}

impl Mode {
    fn arm(&self, trial: u32) -> Option<Arm> {
        match self {
            Self::Single(fold) => fold.arm(trial),
            Self::Apart(apart) => apart.arm(trial),
            Self::Rotation(rounds) => rounds.arm(trial),
        }
    }
}

#[cfg(test)]
pub(crate) mod whole;

#[cfg(test)]
mod tests;
