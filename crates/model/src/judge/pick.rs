//! Which trial comes next: those that have not been started wait in queues by what they are for, each in the order of the plan, so that
//! the choice does not grow with the plan.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::fold::Fold;
use crate::Arm;
use crate::plan::Trial;

/// What a trial may be started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pick {
    /// A control trial that is due, or takes the place of an invalid one.
    Control,
    /// A control trial that comes before the patched trial of its pair, if that is still to come.
    Beside {
        /// The set of the patched trial.
        set: usize,
        patched: u32,
    },
    /// A patched trial.
    Patched {
        set: usize,
        /// It has a control trial next to it.
        paired: bool,
    },
    /// Nothing ever asks for it.
    Nothing,
}

/// A queue: all that may be started for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Queue {
    Control,
    Beside(usize),
    Patched(usize, bool),
}

impl Pick {
    fn queue(self) -> Option<Queue> {
        match self {
            Self::Control => Some(Queue::Control),
            Self::Beside { set, .. } => Some(Queue::Beside(set)),
            Self::Patched { set, paired } => Some(Queue::Patched(set, paired)),
            Self::Nothing => None,
        }
    }
}

/// Trials that have not been started.
#[derive(Debug, Default)]
pub(super) struct Picks {
    /// By queue: ranks in the order of starting.
    queues: BTreeMap<Queue, BTreeSet<usize>>,
    /// By rank.
    numbers: Vec<u32>,
    trials: HashMap<u32, (usize, Pick)>,
    /// Control trials by the patched trials that they come before.
    before: HashMap<u32, Vec<u32>>,
    started: BTreeSet<u32>,
}

impl Picks {
    /// Add the trial of the next rank.
    pub(super) fn add(&mut self, rank: usize, trial: &Trial, pick: Pick) {
        self.numbers.push(trial.number);
        self.trials.insert(trial.number, (rank, pick));
        if let Pick::Beside { patched, .. } = pick {
            self.before.entry(patched).or_default().push(trial.number);
        }
        self.set(trial.number);
    }

    /// A trial was started.
    pub(super) fn take(&mut self, number: u32) {
        self.started.insert(number);
        self.set_with_those_before(number);
    }

    /// A trial is done again.
    pub(super) fn put_back(&mut self, number: u32) {
        self.started.remove(&number);
        self.set_with_those_before(number);
    }

    fn set_with_those_before(&mut self, number: u32) {
        self.set(number);
        for control in self.before.get(&number).cloned().unwrap_or_default() {
            self.set(control);
        }
    }

    fn set(&mut self, number: u32) {
        let Some(&(rank, pick)) = self.trials.get(&number) else { return };
        let Some(queue) = pick.queue() else { return };
        let late = matches!(pick, Pick::Beside { patched, .. } if self.started.contains(&patched));
        let queue = self.queues.entry(queue).or_default();
        if late || self.started.contains(&number) {
            queue.remove(&rank);
        } else {
            queue.insert(rank);
        }
    }

    fn has(&self, queue: Queue) -> bool {
        self.queues.get(&queue).is_some_and(|ranks| !ranks.is_empty())
    }
}

impl Fold {
    /// The number of the next trial worth starting, if the run is not decided: in order, no patched one more than the tier still needs, and
    /// control trials that are due or that run next to a patched trial. Invalid trials are made up for.
    pub(crate) fn next(&mut self) -> Option<u32> {
        self.settle();
        let picks = &self.picks;
        // Of each set: whether it needs a trial, and whether in pairs, as long as some of its trials that have a partner are left.
        let mut wants: BTreeMap<usize, (bool, bool)> = BTreeMap::new();
        let mut wanted = |set: usize| {
            *wants.entry(set).or_insert_with(|| {
                let of = self.set(set);
                (of.wants_more(&self.plan), of.is_noisy() && picks.has(Queue::Patched(set, true)))
            })
        };
        let first = |(queue, ranks): (&Queue, &BTreeSet<usize>)| {
            let rank = *ranks.first()?;
            let wanted = match *queue {
                Queue::Control => self.totals.control < self.plan.due(Arm::Control) as usize,
                Queue::Beside(set) => wanted(set) == (true, true),
                Queue::Patched(set, paired) => {
                    let (wants, in_pairs) = wanted(set);
                    wants && (!in_pairs || paired)
                }
            };
            wanted.then_some(rank)
        };
        let rank = picks.queues.iter().filter_map(first).min()?;
        picks.numbers.get(rank).copied()
    }
}
