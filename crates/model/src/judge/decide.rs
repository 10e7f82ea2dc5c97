//! From outcomes, sets and items to the verdict and its causes.

use super::attribute::Item;
use super::fold::Fold;
use super::reach::for_people;
use super::record;
use super::sets::{Counts, Set};
use super::words;
use crate::verdict::{Attribution, Bound, Outcome, Reach};
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
    pub(super) open: &'a [String],
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
        let rule = &self.plan.rule;
        let unattributed = self.totals.item > 0 && !self.outcomes.has_control();
        let short = |set: &&Set| under_load(set) && set.bound() > rule.max_failure_rate;
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
        if !proof && sets.iter().any(|set| under_load(set) && !set.shows_rate()) {
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

/// Arms whose trials are counted one by one. What loaded arms lack, their bounds say.
const ARMS: [Arm; 3] = [Arm::Quiescent, Arm::Control, Arm::Reapply];

/// What an arm lacks.
enum Missing<'a> {
    /// So many trials were not completed, of all that are due.
    Trials { missing: usize, of: usize },
    /// None of the trials with these patches ended cleanly.
    Clean { counts: Counts, patches: &'a [usize] },
}

fn under_load(set: &Set) -> bool {
    matches!(set.arm, Arm::Loaded | Arm::Stack)
}

/// Whether too many trials failed for the few that such an arm has.
fn failed_too_often(set: &Set) -> bool {
    matches!(set.arm, Arm::Quiescent | Arm::Reapply) && set.tally().failed() > 0 && !set.shows_rate_of_arm()
}

impl Facts<'_> {
    pub(super) fn decide(&self, cut_short: Option<&str>, farm_errors: &[String]) -> (Outcome, Vec<String>) {
        let against = self.against();
        if !against.is_empty() {
            return (Outcome::Rejected, against);
        }
        let mut missing: Vec<String> = self.without_control();
        missing.extend(self.open.iter().map(|f| format!("{f}: the trial has not ended")));
        missing.extend(self.bounds.iter().filter_map(|b| self.short_of(b)));
        missing.extend(self.arms_missing());
        missing.extend(self.unreached());
        missing.extend(self.unknown_trials());
        if missing.is_empty() {
            let mut causes = vec![words::praise(self.plan, &self.fold.outcomes, self.bounds, self.reach)];
            causes.extend(self.tolerated());
            return (Outcome::Qualified, causes);
        }
        let mut causes = Vec::new();
        causes.extend(cut_short.map(str::to_owned));
        causes.extend(farm_errors.iter().map(|e| format!("klpfarm or the host failed, not the patch: {e}")));
        causes.append(&mut missing);
        causes.extend(self.explaining());
        (Outcome::Inconclusive, causes)
    }

    /// Why the patch is rejected; empty if it is not.
    fn against(&self) -> Vec<String> {
        let items = self.items.iter().filter(|i| i.attribution == Attribution::Patch);
        let mut against: Vec<String> = items.map(|i| words::of_finding(self.plan, i)).collect();
        for set in self.rejecting {
            let tally = set.tally();
            let pairs: u32 = tally.pairs.iter().flatten().sum();
            against.push(format!(
                "{} trials of {} fail more often than the control trials next to them: {} of {pairs} and {} of {pairs}, which chance would explain in fewer than one of a thousand runs",
                set.arm,
                super::names(self.plan, &set.patches).join(" + "),
                tally.pairs[1][0] + tally.pairs[1][1],
                tally.pairs[0][1] + tally.pairs[1][1],
            ));
        }
        against
    }

    /// Failures that need a control trial to be attributed, where there is none.
    fn without_control(&self) -> Vec<String> {
        let items = self.items.iter().filter(|i| i.attribution == Attribution::NoControl);
        items
            .map(|i| format!("{}: no control trial was completed, so it cannot be attributed", i.lead.title))
            .collect()
    }

    /// Failures without proof, which the tier's rate covers.
    fn tolerated(&self) -> Vec<String> {
        self.unproven()
            .map(|i| {
                format!(
                    "{}: not proven to be the patch ({}), and counted as a failure within the tier's rate",
                    i.lead.title,
                    words::hits(i)
                )
            })
            .collect()
    }

    fn unproven(&self) -> impl Iterator<Item = &Item> {
        let unproven = |a: Attribution| matches!(a, Attribution::Unconfirmed | Attribution::ControlToo);
        self.items.iter().filter(move |i| unproven(i.attribution))
    }

    /// What was found and keeps trials from being clean, or from counting.
    fn explaining(&self) -> Vec<String> {
        let cause = |item: &Item| {
            let hits = words::hits(item);
            let title = &item.lead.title;
            Some(match item.attribution {
                Attribution::Unconfirmed => format!(
                    "{title}: seen only with the patch ({hits}), too rarely to attribute it to the patch, which cannot qualify either: run more trials{}",
                    words::cause(item)
                ),
                Attribution::ControlToo => format!(
                    "{title}: seen without the patch as well ({hits}), so it is not proven to be the patch; its trials count as failures all the same"
                ),
                Attribution::BeforeApply => format!("{title}: seen before the patch was applied"),
                Attribution::ControlOnly => format!("{title}: seen without the patch ({hits})"),
                Attribution::Patch | Attribution::NoControl => return None,
            })
        };
        self.items.iter().filter_map(cause).collect()
    }

    /// What a bound lacks.
    fn short_of(&self, bound: &Bound) -> Option<String> {
        let rule = &self.plan.rule;
        (bound.failure_rate > rule.max_failure_rate).then(|| {
            let failed = if bound.failed > 0 { format!(", {} failed", bound.failed) } else { String::new() };
            format!(
                "{} clean {} trials of {}{failed}: tier {} needs {} without a failure (these leave a failure rate of {:.0} % possible, the tier allows {:.0} % at {:.0} % confidence)",
                bound.clean,
                bound.arm,
                bound.patches.join(" + "),
                self.plan.tier,
                self.plan.needed,
                bound.failure_rate * 100.0,
                rule.max_failure_rate * 100.0,
                rule.confidence * 100.0
            )
        })
    }

    /// Arms that are not done, of which nothing clean came though the tier asks for it, or that failed too often for the few trials they
    /// have.
    fn arms_missing(&self) -> Vec<String> {
        let mut causes = Vec::new();
        for arm in ARMS {
            causes.extend(self.fold.missing(self.sets, arm).map(|missing| match missing {
                Missing::Trials { missing, of } => {
                    format!("{missing} of {of} {arm} trials were not completed")
                }
                Missing::Clean { counts, patches } => {
                    let of = match super::names(self.plan, patches).join(" + ") {
                        names if names.is_empty() => String::new(),
                        names => format!(" of {names}"),
                    };
                    format!(
                        "none of {} {arm} trials{of} ended cleanly, and tier {} asks for that arm",
                        counts.counted, self.plan.tier
                    )
                }
            }));
        }
        causes.extend(self.sets.iter().filter_map(|set| self.failed_too_often(set)));
        causes
    }

    /// An arm of few trials, of which some failed.
    fn failed_too_often(&self, set: &Set) -> Option<String> {
        let tally = set.tally();
        failed_too_often(set).then(|| {
            format!(
                "{} of {} {} trials of {} failed, which leaves a failure rate of {:.0} % possible: {:.0} % at most must be shown",
                tally.failed(),
                tally.failed() + tally.clean(),
                set.arm,
                super::names(self.plan, &set.patches).join(" + "),
                set.bound() * 100.0,
                self.plan.rule.rate_of(set.arm) * 100.0
            )
        })
    }

    fn unknown_trials(&self) -> Option<String> {
        let numbers: Vec<String> = self.fold.record.unknown_trials().take(5).map(|n| n.to_string()).collect();
        (!numbers.is_empty()).then(|| {
            format!(
                "the journal has events of trials that are not in the plan: {}: plan and journal belong to different runs",
                numbers.join(", ")
            )
        })
    }

    fn unreached(&self) -> Vec<String> {
        let applied = self.fold.totals.applied > 0;
        Unreached { applied, of_run: self.of_run, reach: self.reach }.causes().collect()
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
    fn causes(&self) -> impl Iterator<Item = String> {
        let none = (self.applied && self.reach.is_empty()).then(|| {
            "the patch replaces no function, so nothing shows that the load runs its code".to_owned()
        });
        let without = self.of_run.without_functions.iter().filter(|_| !self.reach.is_empty());
        let without = without.map(|patch| {
            format!("{patch} replaces no function, so nothing shows that the load runs its code")
        });
        none.into_iter().chain(without).chain(self.reach.iter().filter_map(|r| self.function(r)))
    }

    fn function(&self, r: &Reach) -> Option<String> {
        let function = for_people(&r.function);
        let of_it = |reason: &String| reason.contains(function) || !reason.starts_with("calls of ");
        let uncounted = || self.of_run.uncounted.iter().any(of_it);
        let never = || {
            Some(match words::workload_for(function) {
                Some(workload) => {
                    format!("the workloads never call {function}: {workload} might; add it to the pipeline")
                }
                None => {
                    format!("the workloads never call {function}: add a workload to the pipeline that does")
                }
            })
        };
        match (r.before_per_s, r.after_per_s) {
            (_, Some(after)) if after > 0.0 => None,
            (Some(before), Some(_)) if before > 0.0 => Some(format!(
                "{function} is called {before:.1} times a second without the patch, and not once while the patch was in force and calls were counted: its new code never ran"
            )),
            // Before 4.12 a patch is in force at once, and who is inside stays in the old code: that it is reached says nothing of the new.
            (_, Some(_)) if r.inside > 0 => Some(format!(
                "{} inside {function} when the patch was applied, and it was not called once while the patch was in force and calls were counted: its new code never ran",
                match r.inside {
                    1 => "1 task was".to_owned(),
                    n => format!("{n} tasks were"),
                }
            )),
            (Some(before), None) if before == 0.0 && !uncounted() => never(),
            (_, Some(_)) => never(),
            _ => Some(format!(
                "unknown whether the new code of {function} ever ran: its calls were not counted with the patch in force"
            )),
        }
    }
}
