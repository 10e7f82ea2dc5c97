//! From outcomes, sets and items to the verdict and its causes.

use super::attribute::Item;
use super::causes;
use super::fold::Fold;
use super::reach::plain_function;
use super::record;
use super::sets::{Counts, Set};
use crate::verdict::{Attribution, Bound, FarmError, Outcome, PerHour, Reach, Why};
use crate::{Arm, Plan};

/// What the outcome is decided from.
pub(super) struct Facts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) fold: &'a Fold,
    pub(super) sets: &'a [&'a Set],
    /// Sets whose failures are too many, beside those of the control trials next to them, to be chance.
    pub(super) rejecting: &'a [&'a Set],
    pub(super) items: &'a [Item],
    pub(super) bounds: &'a [Bound],
    pub(super) reach: &'a [Reach],
    /// What trials say of the run.
    pub(super) of_run: &'a record::Facts,
    /// Findings of trials that have not ended.
    pub(super) open: &'a [(u32, String)],
}

impl Fold {
    /// What the verdict would be. It comes from counts that are kept as events come, so that it takes as long after ten thousand trials as
    /// after ten.
    pub(crate) fn outcome(&mut self) -> Outcome {
        self.settle();
        let sets = self.sets();
        if self.totals.proof > 0 || sets.iter().any(|set| set.rejects(sets.len())) {
            return Outcome::Rejected;
        }
        let unattributed = self.totals.item > 0 && !self.outcomes.has_control();
        let short = |set: &&Set| set.arm.is_bounded() && set.bound() > self.plan.rate_of(set.arm);
        let short_of_arm = |arm: Arm| self.missing(&sets, arm).is_some();
        let missing = unattributed
            || self.totals.found_open > 0
            || self.record.unknown_trials().next().is_some()
            || ARMS.into_iter().any(short_of_arm)
            || sets.iter().any(|set| failed_too_often(set))
            || sets.iter().any(short)
            || self.is_unreached();
        if missing { Outcome::Inconclusive } else { Outcome::Qualified }
    }

    /// Whether the run is decided: its verdict is reached, and enough is known to say under which condition the patch fails.
    pub(crate) fn is_decided(&mut self) -> bool {
        self.settle();
        let sets = self.sets();
        // As long as some set lacks clean trials and nothing is held against the patch, nothing can have been decided.
        let proof = sets.iter().any(|set| set.counts().failed > 0 || set.rejects(sets.len()));
        if !proof && sets.iter().any(|set| set.arm.is_bounded() && !set.shows_rate()) {
            return false;
        }
        let idle_has_ended = |sets: &[&Set]| {
            let mut idle = sets.iter().filter(|s| s.arm == Arm::Quiescent).peekable();
            idle.peek().is_none() || idle.any(|s| s.counts().ended > 0)
        };
        let idle_has_ended = idle_has_ended(&sets);
        match self.outcome() {
            Outcome::Inconclusive => false,
            Outcome::Qualified => true,
            Outcome::Rejected => idle_has_ended,
        }
    }

    fn is_unreached(&self) -> bool {
        let of_run = self.record.facts();
        let reach = self.reached(&of_run);
        Unreached { applied: self.totals.applied > 0, of_run: &of_run, reach: &reach }
            .causes()
            .chain(self.record.new_code.bypassed())
            .next()
            .is_some()
    }

    /// What an arm lacks.
    fn missing<'a>(&'a self, sets: &[&'a Set], arm: Arm) -> Option<Missing<'a>> {
        let mut sets: Vec<&Set> = match arm {
            Arm::Control if self.controls.numbers().len() > 0 => vec![&self.controls],
            _ => sets.iter().copied().filter(|s| s.arm == arm).collect(),
        };
        sets.sort_by(|a, b| a.patches.cmp(&b.patches));
        let due = self.plan.due(arm) as usize;
        let missing: usize = sets.iter().map(|s| due.saturating_sub(s.counts().counted)).sum();
        if missing > 0 {
            return Some(Missing::Trials { missing, of: due * sets.len() });
        }
        let asked_for = self.plan.rule.arms.contains(&arm);
        let unclean = sets.into_iter().find(|s| asked_for && s.counts().clean == 0);
        unclean.map(|set| Missing::Clean { counts: set.counts(), patches: &set.patches })
    }
}

/// Arms whose trials are counted one by one. What the others lack, their bounds say.
const ARMS: [Arm; 3] = [Arm::Quiescent, Arm::Control, Arm::Reapply];

/// What an arm lacks.
enum Missing<'a> {
    /// So many trials were not completed, of all that are due.
    Trials { missing: usize, of: usize },
    /// None of the trials with these patches ended cleanly.
    Clean { counts: Counts, patches: &'a [usize] },
}

/// Whether too many trials failed for the few that such an arm has.
fn failed_too_often(set: &Set) -> bool {
    matches!(set.arm, Arm::Quiescent | Arm::Reapply) && set.tally().failed() > 0 && !set.shows_rate()
}

impl Facts<'_> {
    pub(super) fn decide(&self, cut_short: Option<&str>, farm_errors: &[FarmError]) -> (Outcome, Vec<Why>) {
        let against = self.against();
        if !against.is_empty() {
            return (Outcome::Rejected, against);
        }
        let mut missing: Vec<Why> = self.without_control();
        let open = self.open.iter().cloned();
        missing.extend(open.map(|(trial, title)| Why::TrialNotEnded { trial, title }));
        missing.extend(self.bounds.iter().filter_map(|b| self.short_of(b)));
        missing.extend(self.arms_missing());
        missing.extend(self.unreached());
        missing.extend(self.unknown_trials());
        if missing.is_empty() {
            let praise = causes::nothing_found(self.plan, &self.fold.outcomes, self.bounds, self.reach);
            let tolerated = self.unproven().map(|i| Why::WithinTheRate(causes::of_finding(self.plan, i)));
            return (Outcome::Qualified, std::iter::once(praise).chain(tolerated).collect());
        }
        let mut causes = Vec::new();
        causes.extend(cut_short.map(|reason| Why::CutShort { reason: reason.to_owned() }));
        causes.extend(farm_errors.iter().cloned().map(Why::FarmFailed));
        causes.append(&mut missing);
        causes.extend(self.explaining());
        (Outcome::Inconclusive, causes)
    }

    /// Why the patch is rejected; empty if it is not.
    fn against(&self) -> Vec<Why> {
        let items = self.items.iter().filter(|i| i.attribution == Attribution::Patch);
        let mut against: Vec<Why> =
            items.map(|i| Why::AgainstThePatch(causes::of_finding(self.plan, i))).collect();
        against.extend(self.rejecting.iter().map(|set| {
            let pairs = set.tally().pairs;
            Why::FailsMoreOften {
                arm: set.arm,
                patches: causes::names(self.plan, &set.patches),
                pairs: pairs.iter().flatten().sum(),
                failed: pairs[1][0] + pairs[1][1],
                control_failed: pairs[0][1] + pairs[1][1],
            }
        }));
        against
    }

    /// Failures that need a control trial to be attributed, where there is none.
    fn without_control(&self) -> Vec<Why> {
        let items = self.items.iter().filter(|i| i.attribution == Attribution::NoControl);
        items.map(|i| Why::NotProven(causes::of_finding(self.plan, i))).collect()
    }

    /// Failures without proof.
    fn unproven(&self) -> impl Iterator<Item = &Item> {
        let unproven = |a: Attribution| matches!(a, Attribution::Unconfirmed | Attribution::ControlToo);
        self.items.iter().filter(move |i| unproven(i.attribution))
    }

    /// What was found and keeps trials from being clean, or from counting.
    fn explaining(&self) -> Vec<Why> {
        let told = |a: Attribution| matches!(a, Attribution::Patch | Attribution::NoControl);
        let others = self.items.iter().filter(|i| !told(i.attribution));
        others.map(|i| Why::NotProven(causes::of_finding(self.plan, i))).collect()
    }

    /// What a bound lacks.
    fn short_of(&self, bound: &Bound) -> Option<Why> {
        let (plan, arm) = (self.plan, bound.arm);
        let allowed = plan.rate_of(arm);
        let per_hour = bound.exposure.zip(plan.rule.exposure.max_failures_per_hour);
        (bound.failure_rate > allowed).then(|| Why::TooFewClean {
            arm: bound.arm,
            patches: bound.patches.clone(),
            clean: bound.clean,
            failed: bound.failed,
            needed: plan.due(arm),
            tier: plan.tier,
            failure_rate: bound.failure_rate,
            allowed,
            confidence: bound.confidence,
            per_hour: per_hour.map(|(shown, allowed)| PerHour { possible: shown.failures_per_hour, allowed }),
        })
    }

    /// Arms that are not done, of which nothing clean came though the tier asks for it, or that failed too often for the few trials they
    /// have.
    fn arms_missing(&self) -> Vec<Why> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut causes = Vec::new();
        for arm in ARMS {
            causes.extend(self.fold.missing(self.sets, arm).map(|missing| match missing {
                Missing::Trials { missing, of } => {
                    Why::TrialsMissing { arm, missing: count(missing), of: count(of) }
                }
                Missing::Clean { counts, patches } => Why::NoneClean {
                    arm,
                    patches: causes::names(self.plan, patches),
                    trials: count(counts.counted),
                    tier: self.plan.tier,
                },
            }));
        }
        causes.extend(self.sets.iter().filter(|set| failed_too_often(set)).map(|set| {
            let tally = set.tally();
            Why::FailedTooOften {
                arm: set.arm,
                patches: causes::names(self.plan, &set.patches),
                failed: tally.failed(),
                of: tally.failed() + tally.clean(),
                failure_rate: set.bound(),
                allowed: self.plan.rate_of(set.arm),
            }
        }));
        causes
    }

    fn unknown_trials(&self) -> Option<Why> {
        let trials: Vec<u32> = self.fold.record.unknown_trials().take(5).collect();
        (!trials.is_empty()).then_some(Why::TrialsOfAnotherPlan { trials })
    }

    fn unreached(&self) -> Vec<Why> {
        let applied = self.fold.totals.applied > 0;
        let unreached = Unreached { applied, of_run: self.of_run, reach: self.reach };
        unreached.causes().chain(self.fold.record.new_code.bypassed()).collect()
    }
}

/// Whether the load runs the code of the patches.
struct Unreached<'a> {
    /// Some patch was applied.
    applied: bool,
    of_run: &'a record::Facts,
    reach: &'a [Reach],
}

impl Unreached<'_> {
    /// What it does not run, or nobody knows of.
    fn causes(&self) -> impl Iterator<Item = Why> {
        let none = (self.applied && self.reach.is_empty()).then_some(Why::ReplacesNothing { patch: None });
        let without = self.of_run.without_functions.iter().filter(|_| !self.reach.is_empty());
        let without = without.map(|patch| Why::ReplacesNothing { patch: Some(patch.clone()) });
        none.into_iter().chain(without).chain(self.reach.iter().filter_map(|r| self.function(r)))
    }

    fn function(&self, r: &Reach) -> Option<Why> {
        let function = plain_function(&r.function);
        let of_it = |reason: &String| reason.contains(function) || !reason.starts_with("calls of ");
        let uncounted = || self.of_run.uncounted.iter().any(of_it);
        let workload = || causes::workload_for(function).map(str::to_owned);
        let never = || Some(Why::NeverCalled { function: function.to_owned(), workload: workload() });
        let never_ran = || {
            let (before_per_s, inside) = (r.before_per_s, r.inside);
            Some(Why::NewCodeNeverRan { function: function.to_owned(), before_per_s, inside })
        };
        match (r.before_per_s, r.after_per_s) {
            (_, Some(after)) if after > 0.0 => None,
            (Some(before), Some(_)) if before > 0.0 => never_ran(),
            // Before 4.12 a patch is in force at once, and who is inside stays in the old code: that it is reached says nothing of the new.
            (_, Some(_)) if r.inside > 0 => never_ran(),
            (Some(before), None) if before == 0.0 && !uncounted() => never(),
            (_, Some(_)) => never(),
            _ => Some(Why::CallsUnknown { function: function.to_owned() }),
        }
    }
}
