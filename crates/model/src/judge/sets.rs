//! The trials of one set of patches in one arm, and what they show together. Every set is judged by itself.

use std::collections::BTreeMap;

use super::outcome::{Class, Mark, Outcomes};
use crate::plan::Trial;
use crate::sequential::{Tally, Wager, against_chance, enough};
use crate::{Arm, Plan};

/// How improbable it is that a harmless patch is rejected by its failures, over all looks, ways to fail and sets of a run.
const HARMLESS_REJECTED: f64 = 0.001;

/// Share of the capital that bets on failures of any kind; the rest is spread over the ways to fail.
const ANY: f64 = 0.5;

/// Pairs after which it is asked whether a run has any prospect of showing what the tier asks for.
const PROSPECT_AFTER: u32 = 100;

/// A run is given up if it would need so many times the trials that are left.
const HOPELESS: f64 = 3.0;

/// The trials of one set of patches in one arm.
pub(crate) struct Set<'a> {
    pub(crate) arm: Arm,
    pub(crate) patches: &'a [usize],
    /// In order of their numbers.
    pub(crate) trials: Vec<&'a Trial>,
}

/// All sets of a plan but the control arm, in order of their first trials.
pub(crate) fn sets(plan: &Plan) -> Vec<Set<'_>> {
    let mut sets: Vec<Set<'_>> = Vec::new();
    let mut places: BTreeMap<(Arm, &[usize]), usize> = BTreeMap::new();
    for trial in plan.trials.iter().filter(|t| t.arm.patched()) {
        let at = *places.entry((trial.arm, &trial.patches)).or_insert_with(|| {
            sets.push(Set { arm: trial.arm, patches: &trial.patches, trials: Vec::new() });
            sets.len() - 1
        });
        sets[at].trials.push(trial);
    }
    sets.iter_mut().for_each(|s| s.trials.sort_by_key(|t| t.number));
    sets
}

/// How trials that have begun and not ended are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unended {
    /// Not at all, and no clean trial after them either: what ends first must not decide.
    Ignored,
    /// As if they were to end cleanly.
    Clean,
}

impl Set<'_> {
    /// Outcomes of trials that have begun, and of the control trials next to them, in the order of the plan. A trial counts as one of a pair
    /// if its control trial was started, whatever came of either.
    pub(crate) fn tally(&self, outcomes: &Outcomes, begun: &dyn Fn(u32) -> bool, unended: Unended) -> Tally {
        self.tally_of(outcomes, begun, unended, &|trial| outcomes.mark(trial).is_failure())
    }

    /// The same of failures that `failed` chooses.
    fn tally_of(
        &self,
        outcomes: &Outcomes,
        begun: &dyn Fn(u32) -> bool,
        unended: Unended,
        failed: &dyn Fn(u32) -> bool,
    ) -> Tally {
        let mut tally = Tally::default();
        let mut behind_open = false;
        for trial in self.trials.iter().filter(|t| begun(t.number)) {
            let partner = trial.partner.filter(|p| begun(*p) && outcomes.mark(*p) != Mark::Void);
            let is_open = |number: u32| matches!(outcomes.mark(number), Mark::Open | Mark::Cut);
            let open = is_open(trial.number) || partner.is_some_and(is_open);
            if unended == Unended::Ignored && open {
                behind_open = true;
            }
            match outcomes.mark(trial.number) {
                Mark::Void => {}
                Mark::Cut if unended == Unended::Clean => {}
                mark if behind_open => {
                    // A failure counts at once, and as if it had no control trial that might explain it.
                    if mark.counts() && failed(trial.number) {
                        tally.add(true, None);
                    }
                }
                _ => tally.add(failed(trial.number), partner.map(failed)),
            }
        }
        tally
    }

    /// Whether this set's failures are too many, compared with those of the control trials, to be chance.
    pub(crate) fn rejects(&self, outcomes: &Outcomes, sets: usize) -> bool {
        let any = self.against_innocence(outcomes, &|trial| outcomes.mark(trial).is_failure());
        let by_class = Class::all()
            .map(|class| self.against_innocence(outcomes, &|trial| outcomes.failed_by(trial, class)));
        is_rejected(any, by_class.sum(), sets)
    }

    /// The capital against a harmless patch, by failures that `failed` chooses.
    fn against_innocence(&self, outcomes: &Outcomes, failed: &dyn Fn(u32) -> bool) -> f64 {
        let begun = |number: u32| outcomes.has_begun(number);
        against_innocence(&self.tally_of(outcomes, &begun, Unended::Ignored, failed))
    }

    /// Whether this set needs another trial, if all that run end cleanly, and can get what it needs.
    pub(crate) fn wants_more(&self, plan: &Plan, outcomes: &Outcomes, begun: &dyn Fn(u32) -> bool) -> bool {
        let tally = self.tally(outcomes, begun, Unended::Clean);
        let few = match self.arm {
            Arm::Loaded | Arm::Stack => false,
            Arm::Quiescent | Arm::Reapply | Arm::Control => {
                if tally.clean() + tally.failed() < plan.due(self.arm) {
                    return true;
                }
                // Few trials of these arms are planned, so that nothing is asked of them as long as none fails.
                tally.failed() == 0
            }
        };
        let wager = Wager::against_failure_rate(plan.rule.rate_of(self.arm));
        if few || wager.capital(&tally) >= enough(plan.rule.confidence) {
            return false;
        }
        let left = self.trials.iter().filter(|t| !begun(t.number)).count();
        // A plan that was cut short from the start (`--trials`) looks for findings: it proves nothing, and goes through with what it has.
        let all = u32::try_from(self.trials.len()).unwrap_or(u32::MAX);
        let under_load = matches!(self.arm, Arm::Loaded | Arm::Stack);
        if under_load && wager.reachable(&Tally::default(), all) < enough(plan.rule.confidence) {
            return left > 0;
        }
        has_prospect(plan, self.arm, &wager, &tally, u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// Whether a trial of this set has failed: from then on its trials run in pairs.
    pub(crate) fn is_noisy(&self, outcomes: &Outcomes) -> bool {
        self.trials.iter().any(|t| outcomes.mark(t.number).is_failure())
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
    let each = (1.0 - ANY) / Class::all().len() as f64;
    ANY * any + each * by_way >= sets.max(1) as f64 / HARMLESS_REJECTED
}

/// Whether what is asked for can still be reached. Giving up never lets a patch through.
pub(crate) fn has_prospect(plan: &Plan, arm: Arm, wager: &Wager, tally: &Tally, left: u32) -> bool {
    let enough = enough(plan.rule.confidence);
    if wager.reachable(tally, left) < enough {
        return false;
    }
    let pairs: u32 = tally.pairs.iter().flatten().sum();
    let [[_, control], [patched, both]] = tally.pairs.map(|p| p.map(f64::from));
    let excess = (patched - control) / f64::from(pairs.max(1));
    // While the patch looks faulty, a reason to reject it may turn up.
    if pairs < PROSPECT_AFTER || excess >= plan.rule.rate_of(arm) / 2.0 {
        return true;
    }
    let noise = (patched + control + 2.0 * both) / (2.0 * f64::from(pairs));
    let grown = wager.capital(tally).max(f64::MIN_POSITIVE).ln();
    grown + f64::from(left) * HOPELESS * wager.growth_per_pair(noise) >= enough.ln()
}
