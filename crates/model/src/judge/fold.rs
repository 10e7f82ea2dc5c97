//! The state of judging one run whose machines are all of one kind: events go in one by one, and each changes only what it concerns.
//!
//! An event is taken into the [`Record`] of its trial at once. What follows from it (the trial's comparison, its mark, the tally of its set)
//! is worked out when somebody asks: a trial that ended changes the comparisons of the trials next to it, those may change marks, and marks
//! of control trials may change those of patched ones; nothing else is looked at again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::outcome::{Mark, Outcomes};
use super::pick::{Pick, Picks};
use super::record::{Record, Roster, Touched};
use super::sets::{Beside, Member, Set};
use crate::compare::Comparison;
use crate::compare::change::Change;
use crate::event::Event;
use crate::plan::Trial;
use crate::{Arm, Plan};

/// The state of judging.
#[derive(Debug)]
pub(crate) struct Fold {
    pub(super) plan: Plan,
    trials: Trials,
    pub(super) record: Record,
    pub(super) compared: Comparison,
    pub(super) outcomes: Outcomes,
    /// In order of their first trials.
    sets: Vec<Set>,
    /// The control arm, counted like a set.
    pub(super) controls: Set,
    /// Trials that have been started, as the journal says or whoever runs them.
    started: BTreeSet<u32>,
    pub(super) picks: Picks,
    standings: HashMap<u32, Standing>,
    pub(super) totals: Totals,
    /// Trials are added as they come, so that sets are as well.
    grows: bool,
    /// Trials of which something new is known, that has not been worked out yet.
    touched: BTreeSet<u32>,
}

/// The trials of a plan by number.
#[derive(Debug, Default)]
struct Trials {
    all: HashMap<u32, Place>,
    /// Names of patches, by their position in the plan.
    patches: Vec<String>,
    /// Patched trials next to a control trial, by its number.
    beside: HashMap<u32, Vec<u32>>,
}

/// A trial of a plan.
#[derive(Debug, Clone)]
struct Place {
    arm: Arm,
    patches: Vec<usize>,
    partner: Option<u32>,
    /// Its set; none in the control arm.
    set: Option<usize>,
}

impl Roster for Trials {
    fn arm(&self, trial: u32) -> Option<Arm> {
        self.all.get(&trial).map(|place| place.arm)
    }

    fn names(&self, trial: u32) -> Vec<&str> {
        let patches = self.all.get(&trial).map(|place| &place.patches[..]).unwrap_or_default();
        patches.iter().filter_map(|i| self.patches.get(*i)).map(String::as_str).collect()
    }
}

/// What one trial adds to what a decision is made from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// It has a finding and has not ended.
    found_open: bool,
    /// A finding of it proves that it is the patch.
    proof: bool,
    /// It has a finding that may be the patch's.
    item: bool,
    applied: bool,
    /// It is a control trial that has been started, would be due anyway, and is not invalid.
    control: bool,
}

/// How many trials there are of each [`Standing`].
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Totals {
    pub(super) found_open: usize,
    pub(super) proof: usize,
    pub(super) item: usize,
    pub(super) applied: usize,
    pub(super) control: usize,
}

impl Totals {
    fn count(&mut self, of: Standing, n: isize) {
        let all = [
            (&mut self.found_open, of.found_open),
            (&mut self.proof, of.proof),
            (&mut self.item, of.item),
            (&mut self.applied, of.applied),
            (&mut self.control, of.control),
        ];
        for (count, _) in all.into_iter().filter(|(_, holds)| *holds) {
            *count = count.saturating_add_signed(n);
        }
    }
}

impl Fold {
    /// Of a run with this plan, nothing of which has happened yet.
    pub(crate) fn new(plan: Plan) -> Self {
        let order: Vec<usize> = (0..plan.trials.len()).collect();
        Self::with_order(plan, order)
    }

    /// The same, where trials start in another order than the plan's: by their places in it. Those that it leaves out are not for this judge
    /// to start.
    pub(crate) fn with_order(mut plan: Plan, order: impl IntoIterator<Item = usize>) -> Self {
        let trials = std::mem::take(&mut plan.trials);
        let names = plan.patches.iter().map(|p| p.name.clone()).collect();
        let mut fold = Self {
            trials: Trials { patches: names, ..Trials::default() },
            record: Record::default(),
            compared: Comparison::default(),
            outcomes: Outcomes::default(),
            sets: Vec::new(),
            controls: Set::new(Arm::Control, &[], &plan),
            started: BTreeSet::new(),
            picks: Picks::default(),
            standings: HashMap::new(),
            totals: Totals::default(),
            grows: false,
            touched: BTreeSet::new(),
            plan,
        };
        trials.iter().for_each(|trial| fold.add_place(trial));
        for (rank, trial) in order.into_iter().filter_map(|place| trials.get(place)).enumerate() {
            let pick = fold.pick(trial);
            fold.picks.add(rank, trial, pick);
        }
        fold.plan.trials = trials;
        fold
    }

    /// Only calls of functions that a trial of this plan replaced count, whatever other trials counted.
    pub(crate) fn only_own_functions(&mut self) {
        self.record.own_functions_only = true;
    }

    /// A trial that the plan did not have: the rounds of a rotation have no end.
    pub(crate) fn add_trial(&mut self, trial: Trial) {
        self.grows = true;
        self.add_place(&trial);
        let at = self.plan.trials.partition_point(|t| t.number < trial.number);
        self.plan.trials.insert(at, trial);
    }

    /// The arm of a trial.
    pub(crate) fn arm(&self, number: u32) -> Option<Arm> {
        self.trials.arm(number)
    }

    /// Whether the journal says anything of a trial that still counts.
    pub(crate) fn has_begun(&self, number: u32) -> bool {
        self.record.trials.contains_key(&number)
    }

    /// Patched trials that have been started, and all trials that have been and have not ended. Of what has been worked out.
    pub(crate) fn under_way(&self) -> (usize, usize) {
        let counts = || self.sets.iter().map(Set::counts);
        let patched = counts().map(|c| c.started).sum();
        let ended: usize = counts().map(|c| c.ended).sum::<usize>() + self.controls.counts().ended;
        (patched, self.started.len().saturating_sub(ended))
    }

    /// Whether the plan has this trial.
    pub(crate) fn has_trial(&self, number: u32) -> bool {
        self.trials.all.contains_key(&number)
    }

    /// Forget a trial that was added.
    pub(crate) fn remove_trial(&mut self, number: u32) {
        let Some(place) = self.trials.all.remove(&number) else { return };
        self.plan.trials.retain(|t| t.number != number);
        match place.set {
            Some(set) => self.sets[set].remove(number),
            None => self.controls.remove(number),
        }
        if let Some(beside) = place.partner.and_then(|p| self.trials.beside.get_mut(&p)) {
            beside.retain(|n| *n != number);
        }
        self.touched.insert(number);
    }

    fn add_place(&mut self, trial: &Trial) {
        let set = trial.arm.patched().then(|| {
            let same = |s: &Set| s.arm == trial.arm && s.patches == trial.patches;
            self.sets.iter().position(same).unwrap_or_else(|| {
                self.sets.push(Set::new(trial.arm, &trial.patches, &self.plan));
                self.sets.len() - 1
            })
        });
        match set {
            Some(set) => self.sets[set].put(trial.number, Member::default()),
            None => self.controls.put(trial.number, Member::default()),
        }
        if let Some(partner) = trial.partner.filter(|_| set.is_some()) {
            self.trials.beside.entry(partner).or_default().push(trial.number);
        }
        let Trial { arm, partner, .. } = *trial;
        self.trials.all.insert(trial.number, Place { arm, patches: trial.patches.clone(), partner, set });
    }

    /// For what a trial may be started.
    fn pick(&self, trial: &Trial) -> Pick {
        let place = self.trials.all.get(&trial.number);
        match (place.and_then(|p| p.set), trial.partner) {
            (Some(set), partner) => Pick::Patched { set, paired: partner.is_some() },
            (None, None) => Pick::Control,
            (None, Some(patched)) => {
                let set = self.trials.all.get(&patched).and_then(|p| p.set);
                set.map_or(Pick::Nothing, |set| Pick::Beside { set, patched })
            }
        }
    }

    /// Take an event; `change` is what the trial's measurements come to, if it is that of a soak.
    pub(crate) fn push(&mut self, event: &Event, change: Option<&Arc<Change>>) {
        match self.record.take(event, change, &self.trials) {
            Touched::Nobody => {}
            Touched::Trial(number) => {
                self.start(number);
                self.touched.insert(number);
            }
            Touched::Dropped(numbers) => {
                self.touched.extend(numbers);
                // A run that goes on has started no trial but those of which its journal has something.
                for number in std::mem::take(&mut self.started) {
                    if self.has_begun(number) {
                        self.started.insert(number);
                    } else {
                        self.picks.put_back(number);
                        self.touched.insert(number);
                    }
                }
            }
        }
    }

    /// A trial was started, even if the journal says nothing of it yet.
    pub(crate) fn start(&mut self, number: u32) {
        if self.has_trial(number) && self.started.insert(number) {
            self.picks.take(number);
            self.touched.insert(number);
        }
    }

    #[cfg(test)]
    pub(super) fn start_over(&mut self) {
        for number in std::mem::take(&mut self.started) {
            self.picks.put_back(number);
            self.touched.insert(number);
        }
    }

    pub(crate) fn has_started(&self, number: u32) -> bool {
        self.started.contains(&number)
    }

    /// Work out what follows from the events taken.
    pub(crate) fn settle(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let mut look_at = std::mem::take(&mut self.touched);
        for number in &look_at {
            // Of a trial that the plan no longer has, nothing is known either.
            let arm = self.trials.arm(*number).unwrap_or(Arm::Control);
            self.compared.put(*number, arm, self.record.trials.get(number));
        }
        look_at.extend(self.compared.settle(&self.plan));
        let mut changed = look_at.clone();
        // Control trials first: marks of patched ones depend on them, and on nothing else.
        let (controls, patched): (Vec<u32>, Vec<u32>) =
            look_at.into_iter().partition(|n| !self.trials.arm(*n).is_some_and(Arm::patched));
        let mut again = false;
        for number in controls {
            again |= self.mark(number);
        }
        let mut patched: BTreeSet<u32> = patched.into_iter().collect();
        if again {
            patched.extend(self.outcomes.suspects());
        }
        for number in &patched {
            self.mark(*number);
        }
        changed.extend(patched);
        changed.extend(self.outcomes.settle());
        for number in changed {
            self.follow(number);
        }
    }

    fn mark(&mut self, number: u32) -> bool {
        let arm = self.trials.arm(number).unwrap_or(Arm::Control);
        let (own, differences) = (self.record.trials.get(&number), self.compared.of(number));
        self.outcomes.put(number, arm, &self.trials.names(number), own, differences)
    }

    /// Take what is new of a trial into all that is counted.
    fn follow(&mut self, number: u32) {
        let standing = self.standing(number);
        let before = self.standings.insert(number, standing).unwrap_or_default();
        self.totals.count(before, -1);
        self.totals.count(standing, 1);
        self.put_member(number);
        for patched in self.trials.beside.get(&number).cloned().unwrap_or_default() {
            self.put_member(patched);
        }
    }

    fn put_member(&mut self, number: u32) {
        let Some(place) = self.trials.all.get(&number) else { return };
        let is_started = |number: u32| self.started.contains(&number);
        let beside = place.partner.map(|p| Beside { started: is_started(p), said: self.outcomes.said(p) });
        let member = Member {
            started: is_started(number),
            own: self.outcomes.said(number),
            beside: beside.filter(|_| place.set.is_some()).unwrap_or_default(),
        };
        match place.set {
            Some(set) => self.sets[set].put(number, member),
            None => self.controls.put(number, member),
        }
    }

    fn standing(&self, number: u32) -> Standing {
        let Some(place) = self.trials.all.get(&number) else { return Standing::default() };
        let patched = place.arm.patched();
        let mark = self.outcomes.mark(number);
        let control = !patched && place.partner.is_none() && self.has_started(number) && mark != Mark::Void;
        let Some(own) = self.record.trials.get(&number) else {
            return Standing { control, ..Standing::default() };
        };
        let found = !own.findings.is_empty() && own.exposed_findings().next().is_some();
        let tells = found && patched && own.end.is_some() && mark != Mark::Void;
        let differs = patched && mark.counts() && !self.compared.of(number).is_empty();
        Standing {
            found_open: found && own.end.is_none(),
            proof: tells && own.exposed_findings().any(|s| self.outcomes.proves(own, &s.finding)),
            item: tells || differs,
            applied: !own.applied.is_empty(),
            control,
        }
    }

    /// Sets that have trials, in order of their first ones in the plan.
    pub(super) fn sets(&self) -> Vec<&Set> {
        let mut sets: Vec<&Set> = self.sets.iter().filter(|s| s.numbers().len() > 0).collect();
        if self.grows {
            sets.sort_by_key(|s| s.numbers().next());
        }
        sets
    }

    pub(super) fn set(&self, set: usize) -> &Set {
        &self.sets[set]
    }

    /// The trial with this number.
    pub(crate) fn trial(&self, number: u32) -> Option<&Trial> {
        let guess = usize::try_from(number).ok()?.checked_sub(1)?;
        let at = self.plan.trials.get(guess).filter(|t| t.number == number);
        at.or_else(|| self.plan.trials.iter().find(|t| t.number == number))
    }
}
