//! The trials of one set of patches in one arm, and what they show together. Every set is judged by itself.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::outcome::{Class, Mark, Said};
use crate::sequential::{self, Tally, Wager, against_chance, enough};
use crate::{Arm, Plan};

/// How improbable it is that a harmless patch is rejected by its failures, over all looks, ways to fail and sets of a run.
const HARMLESS_REJECTED: f64 = 0.001;

/// Share of the capital that bets on failures of any kind; the rest is spread over the ways to fail.
const ANY: f64 = 0.5;

/// Pairs after which it is asked whether a run has any prospect of showing what the tier asks for.
const PROSPECT_AFTER: u32 = 100;

/// A run is given up if it would need so many times the trials that are left.
const HOPELESS: f64 = 3.0;

/// Ways to fail, and one more place for failures of any kind.
const WAYS: usize = Class::COUNT + 1;

/// The trials of one set of patches in one arm, and what they come to so far.
///
/// What ends first must not decide: no clean trial counts behind one that has begun and not ended. So the trials are in order of their
/// numbers, and those from the first open one on are counted by their failures only.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) arm: Arm,
    pub(crate) patches: Vec<usize>,
    /// By number.
    trials: BTreeMap<u32, Member>,
    /// Trials that are open, or whose control trial is.
    open: BTreeSet<u32>,
    /// The first of them.
    first_open: u32,
    /// By the way to fail.
    tallies: [Tally; WAYS],
    /// As if all that have begun were to end cleanly.
    if_clean: Tally,
    counts: Counts,
    /// Against the failure rate that the tier allows in this arm.
    wager: Wager,
    confidence: f64,
    bound: Cell<Option<(Tally, f64)>>,
}

/// Trials of a set of which something holds.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) started: usize,
    pub(crate) clean: usize,
    pub(crate) failed: usize,
    pub(crate) failures: usize,
    /// They say something.
    pub(crate) counted: usize,
    pub(crate) ended: usize,
}

/// One trial of a set, and the control trial next to it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) started: bool,
    /// None if the journal says nothing of it.
    pub(crate) own: Option<Said>,
    /// The control trial next to it.
    pub(crate) beside: Beside,
}

/// A control trial next to a patched one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beside {
    pub(crate) started: bool,
    pub(crate) said: Option<Said>,
}

impl Beside {
    /// What it says, unless it is invalid.
    fn valid(self) -> Option<Said> {
        self.said.filter(|said| said.mark != Mark::Void)
    }
}

impl Member {
    /// Whether no clean trial counts behind it.
    fn is_open(self) -> bool {
        let open = |said: Said| matches!(said.mark, Mark::Open | Mark::Cut);
        self.own.is_some_and(|own| open(own) || self.beside.valid().is_some_and(open))
    }

    /// Its failures, and those of the control trial next to it, whatever came of either; none if it is invalid.
    fn outcome(self) -> Option<(u16, Option<u16>)> {
        let own = self.own.filter(|own| own.mark != Mark::Void)?;
        Some((own.failures(), self.beside.valid().map(Said::failures)))
    }

    /// Its failures, behind an open trial: they count at once, and as if it had no control trial that might explain them.
    fn failures(self) -> Option<u16> {
        self.own.filter(|own| own.mark.counts()).map(Said::failures)
    }

    /// Whether it fails, and whether the control trial next to it does, if all that have been started end cleanly.
    fn if_clean(self) -> Option<(bool, Option<bool>)> {
        let mark = |said: Option<Said>| said.map_or(Mark::Open, |said| said.mark);
        if !self.started || matches!(mark(self.own), Mark::Void | Mark::Cut) {
            return None;
        }
        let beside = mark(self.beside.said);
        let control = (self.beside.started && beside != Mark::Void).then(|| beside.is_failure());
        Some((mark(self.own).is_failure(), control))
    }
}

impl Set {
    pub(crate) fn new(arm: Arm, patches: &[usize], plan: &Plan) -> Self {
        Self {
            arm,
            patches: patches.to_vec(),
            trials: BTreeMap::new(),
            open: BTreeSet::new(),
            first_open: u32::MAX,
            tallies: [Tally::default(); WAYS],
            if_clean: Tally::default(),
            counts: Counts::default(),
            wager: Wager::against_failure_rate(plan.rate_of(arm)),
            confidence: plan.rule.confidence_of(arm),
            bound: Cell::new(None),
        }
    }

    /// Take what is known of a trial.
    pub(crate) fn put(&mut self, number: u32, member: Member) {
        let before = self.trials.insert(number, member);
        if before == Some(member) {
            return;
        }
        if let Some(before) = before {
            self.count(number, before, -1);
        }
        self.count(number, member, 1);
        if member.is_open() {
            self.open.insert(number);
        } else {
            self.open.remove(&number);
        }
        self.move_on();
    }

    /// Forget a trial that the plan no longer has.
    pub(crate) fn remove(&mut self, number: u32) {
        if let Some(before) = self.trials.remove(&number) {
            self.count(number, before, -1);
            self.open.remove(&number);
            self.move_on();
        }
    }

    fn count(&mut self, number: u32, member: Member, n: i32) {
        self.count_outcome(member, number < self.first_open, n);
        if let Some((failed, control)) = member.if_clean() {
            self.if_clean.count(failed, control, n);
        }
        let mark = member.own.map_or(Mark::Open, |own| own.mark);
        let counts = &mut self.counts;
        let all = [
            (&mut counts.started, member.started),
            (&mut counts.clean, mark == Mark::Clean),
            (&mut counts.failed, mark == Mark::Failed),
            (&mut counts.failures, mark.is_failure()),
            (&mut counts.counted, mark.counts()),
            (&mut counts.ended, mark != Mark::Open),
        ];
        for (count, _) in all.into_iter().filter(|(_, holds)| *holds) {
            *count = count.saturating_add_signed(n as isize);
        }
    }

    fn count_outcome(&mut self, member: Member, before_open: bool, n: i32) {
        let fails = |failures: u16, way: usize| failures & 1 << way != 0;
        if before_open {
            let Some((own, control)) = member.outcome() else { return };
            for (way, tally) in self.tallies.iter_mut().enumerate() {
                tally.count(fails(own, way), control.map(|c| fails(c, way)), n);
            }
        } else if let Some(own) = member.failures().filter(|failures| *failures != 0) {
            for (_, tally) in self.tallies.iter_mut().enumerate().filter(|(way, _)| fails(own, *way)) {
                tally.count(true, None, n);
            }
        }
    }

    /// Count the trials between the open one that was the first and the one that is now as what they have become.
    fn move_on(&mut self) {
        let first = self.open.first().copied().unwrap_or(u32::MAX);
        let (from, to) = (self.first_open.min(first), self.first_open.max(first));
        let before_open = first > self.first_open;
        let between: Vec<Member> = self.trials.range(from..to).map(|(_, member)| *member).collect();
        for member in between {
            self.count_outcome(member, !before_open, -1);
            self.count_outcome(member, before_open, 1);
        }
        self.first_open = first;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Numbers of its trials, in order.
    pub(crate) fn numbers(&self) -> impl ExactSizeIterator<Item = u32> {
        self.trials.keys().copied()
    }

    /// Outcomes of trials that have begun, and of the control trials next to them. A trial counts as one of a pair if its control trial was
    /// started, whatever came of either.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tallies[Class::COUNT]
    }

    #[cfg(test)]
    pub(super) fn tally_of(&self, way: usize) -> &Tally {
        &self.tallies[way]
    }

    /// Whether this set's failures are too many, compared with those of the control trials, to be chance.
    pub(crate) fn rejects(&self, sets: usize) -> bool {
        let (any, by_class) = (self.tally(), &self.tallies[..Class::COUNT]);
        any.failed() > 0
            && is_rejected(against_innocence(any), by_class.iter().map(against_innocence).sum(), sets)
    }

    /// Whether its outcomes show that the patch adds less to the failures than the tier allows in this arm.
    pub(crate) fn shows_rate(&self) -> bool {
        self.wager.capital(self.tally()) >= enough(self.confidence)
    }

    /// Upper bound of what the patch adds to the failure rate of a trial.
    pub(crate) fn bound(&self) -> f64 {
        let tally = *self.tally();
        if let Some((_, bound)) = self.bound.get().filter(|(of, _)| *of == tally) {
            return bound;
        }
        let bound = sequential::bound(&tally, self.confidence);
        self.bound.set(Some((tally, bound)));
        bound
    }

    /// Whether this set needs another trial, if all that run end cleanly, and can get what it needs.
    pub(crate) fn wants_more(&self, plan: &Plan) -> bool {
        let tally = &self.if_clean;
        let few = match self.arm {
            Arm::Loaded | Arm::Soak | Arm::Stack => false,
            Arm::Quiescent | Arm::Reapply | Arm::Control => {
                if tally.clean() + tally.failed() < plan.due(self.arm) {
                    return true;
                }
                // Few trials of these arms are planned, so that nothing is asked of them as long as none fails.
                tally.failed() == 0
            }
        };
        let (wager, enough) = (&self.wager, enough(self.confidence));
        if few || wager.capital(tally) >= enough {
            return false;
        }
        let left = self.trials.len() - self.counts.started;
        // A plan that was cut short from the start (`--trials`) looks for findings: it proves nothing, and goes through with what it has.
        let all = u32::try_from(self.trials.len()).unwrap_or(u32::MAX);
        if self.arm.is_bounded() && wager.reachable(&Tally::default(), all) < enough {
            return left > 0;
        }
        has_prospect(plan, self.arm, wager, tally, u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// Whether a trial of this set has failed: from then on its trials run in pairs.
    pub(crate) fn is_noisy(&self) -> bool {
        self.counts.failures > 0
    }
}

/// The capital against a harmless patch after these outcomes: half of it is bet on pairs and half on all trials of the set and the control trials
/// next to them. Control trials that ran at other times say nothing: what noise there is comes in bursts.
pub(crate) fn against_innocence(tally: &Tally) -> f64 {
    if tally.failed() == 0 {
        return 0.0;
    }
    let pairs = Wager::against_innocence().capital(tally);
    let control = [0, 1].map(|failed| tally.pairs[0][failed] + tally.pairs[1][failed]);
    f64::midpoint(pairs, against_chance([tally.clean(), tally.failed()], control))
}

/// Whether the capital against a harmless patch is enough to give up that it is: by failures of any kind, and summed over all ways to fail. The
/// risk of a run is shared by its sets.
pub(crate) fn is_rejected(any: f64, by_way: f64, sets: usize) -> bool {
    let each = (1.0 - ANY) / Class::COUNT as f64;
    ANY * any + each * by_way >= sets.max(1) as f64 / HARMLESS_REJECTED
}

/// Whether what is asked for can still be reached. Giving up never lets a patch through.
pub(crate) fn has_prospect(plan: &Plan, arm: Arm, wager: &Wager, tally: &Tally, left: u32) -> bool {
    let enough = enough(plan.rule.confidence_of(arm));
    if wager.reachable(tally, left) < enough {
        return false;
    }
    let pairs: u32 = tally.pairs.iter().flatten().sum();
    let [[_, control], [patched, both]] = tally.pairs.map(|p| p.map(f64::from));
    let excess = (patched - control) / f64::from(pairs.max(1));
    // While the patch looks faulty, a reason to reject it may turn up.
    if pairs < PROSPECT_AFTER || excess >= plan.rate_of(arm) / 2.0 {
        return true;
    }
    let noise = (patched + control + 2.0 * both) / (2.0 * f64::from(pairs));
    let grown = wager.capital(tally).max(f64::MIN_POSITIVE).ln();
    grown + f64::from(left) * HOPELESS * wager.growth_per_pair(noise) >= enough.ln()
}
