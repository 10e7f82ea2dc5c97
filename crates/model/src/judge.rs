//! Judging: a pure fold of plan and journal into a verdict. Every rule of the verdict stands below this module and in
//! [`crate::compare`] and [`crate::sequential`].
//!
//! The same [`Judge`] follows a run that is still going on, event by event, and says when it is decided and which trial comes next.

mod attribute;
mod causes;
mod decide;
mod document;
pub(crate) mod fold;
pub(crate) mod measures;
mod new_code;
mod outcome;
mod pick;
mod reach;
pub(crate) mod record;
mod sets;

pub use reach::plain_function;
pub(crate) use sets::{against_innocence, has_prospect, is_rejected};

use fold::Fold;
use measures::Measures;

use crate::event::{Body, Event};
use crate::independent::Independent;
use crate::plan::Trial;
use crate::rotation::Rounds;
use crate::verdict::{Outcome, Verdict, Why};
use crate::{Arm, Mode, Plan};

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
    run: Run,
    measures: Measures,
    /// Events that began the run, and the hash of its plan as each has it.
    begun: Vec<(u64, String)>,
}

/// What is judged, by [`Mode`].
#[derive(Debug)]
enum Run {
    Single(Box<Fold>),
    Independent(Box<Independent>),
    Rotation(Box<Rounds>),
}

impl Judge {
    /// Of a run with this plan, nothing of which has happened yet.
    pub fn new(plan: &Plan) -> Self {
        let run = match plan.mode {
            Mode::Single => Run::Single(Box::new(Fold::new(plan.clone()))),
            Mode::Independent => Run::Independent(Box::new(Independent::new(plan))),
            Mode::Rotation(_) => Run::Rotation(Box::new(Rounds::new(plan))),
        };
        Self { run, measures: Measures::new(&plan.pipeline.limits), begun: Vec::new() }
    }

    /// Take the next event of the journal.
    pub fn push(&mut self, event: &Event) {
        if let Body::RunStarted { plan, .. } = &event.body {
            self.begun.push((event.seq, plan.clone()));
        }
        let change = self.measures.take(event, |trial| self.run.arm(trial));
        let change = change.as_ref();
        match &mut self.run {
            Run::Single(fold) => fold.push(event, change),
            Run::Independent(patches) => patches.push(event, change),
            Run::Rotation(rounds) => rounds.push(event, change),
        }
    }

    /// A trial was started: [`Self::next_trial`] no longer has it, though no event may say so yet.
    pub fn start(&mut self, trial: u32) {
        match &mut self.run {
            Run::Single(fold) => fold.start(trial),
            Run::Independent(patches) => patches.start(trial),
            Run::Rotation(rounds) => rounds.start(trial),
        }
    }

    /// Whether the run is decided: its verdict is reached, and enough is known to say under which condition the patch fails. A run of
    /// independent patches ends when none of them needs a trial any more, and one with a rotation when its time is over: they never are.
    pub fn is_decided(&mut self) -> bool {
        match &mut self.run {
            Run::Single(fold) => fold.is_decided(),
            Run::Independent(_) | Run::Rotation(_) => false,
        }
    }

    /// The next trial worth starting, if the run is not decided.
    pub fn next_trial(&mut self) -> Option<Trial> {
        match &mut self.run {
            Run::Single(fold) => fold.next().and_then(|number| fold.trial(number).cloned()),
            Run::Independent(patches) => patches.next(),
            Run::Rotation(rounds) => rounds.next(),
        }
    }

    /// The verdict on what has happened so far.
    pub fn verdict(&mut self) -> Verdict {
        let mut verdict = match &mut self.run {
            Run::Single(fold) => fold.verdict(),
            Run::Independent(patches) => patches.verdict(),
            Run::Rotation(rounds) => rounds.verdict(),
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

impl Run {
    fn arm(&self, trial: u32) -> Option<Arm> {
        match self {
            Self::Single(fold) => fold.arm(trial),
            Self::Independent(patches) => patches.arm(trial),
            Self::Rotation(rounds) => rounds.arm(trial),
        }
    }
}

#[cfg(test)]
pub(crate) mod whole;

#[cfg(test)]
mod tests;
