//! From outcomes, sets and items to the verdict and its causes.

use std::collections::BTreeMap;

use super::attribute::Item;
use super::outcome::{Mark, Outcomes};
use super::reach::for_people;
use super::sets::{Set, Unended};
use super::{Record, words};
use crate::verdict::{Attribution, Bound, Outcome, Reach};
use crate::{Arm, Plan, sequential};

/// What the outcome is decided from.
pub(super) struct Facts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) outcomes: &'a Outcomes,
    pub(super) sets: &'a [Set<'a>],
    /// Sets whose failures are too many, beside those of the control trials next to them, to be chance.
    pub(super) rejecting: &'a [&'a Set<'a>],
    pub(super) items: &'a [Item],
    pub(super) bounds: &'a [Bound],
    pub(super) reach: &'a [Reach],
    pub(super) record: &'a Record,
    /// Findings of trials that have not ended.
    pub(super) open: &'a [String],
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
            let mut causes = vec![words::praise(self.plan, self.outcomes, self.bounds, self.reach)];
            causes.extend(self.tolerated());
            return (Outcome::Qualified, causes);
        }
        let mut causes = Vec::new();
        causes.extend(cut_short.map(str::to_owned));
        causes.extend(farm_errors.iter().map(|e| format!("the farm failed, not the patch: {e}")));
        causes.append(&mut missing);
        causes.extend(self.explaining());
        (Outcome::Inconclusive, causes)
    }

    /// Why the patch is rejected; empty if it is not.
    fn against(&self) -> Vec<String> {
        let items = self.items.iter().filter(|i| i.attribution == Attribution::Patch);
        let mut against: Vec<String> = items.map(|i| words::of_finding(self.plan, i)).collect();
        for set in self.rejecting {
            let tally = set.tally(self.outcomes, &|n| self.outcomes.has_begun(n), Unended::Ignored);
            let pairs: u32 = tally.pairs.iter().flatten().sum();
            against.push(format!(
                "{} trials of {} fail more often than the control trials next to them: {} of {pairs} and {} of {pairs}, which chance would explain in fewer than one of a thousand runs",
                set.arm,
                super::names(self.plan, set.patches).join(" + "),
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
            .map(|i| format!("{}: no control trial went through, so it can't be attributed", i.lead.title))
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
                    "{title}: seen with the patch only ({hits}), but too rarely to prove that it is the patch, so that it can't be let through either: run more trials{}",
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
    /// have. What loaded arms lack, their bounds say.
    fn arms_missing(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let marks = |of: &dyn Fn(&crate::Trial) -> bool| -> Vec<Mark> {
            let trials = self.plan.trials.iter().filter(|t| of(t));
            trials.map(|t| self.outcomes.mark(t.number)).collect()
        };
        for arm in [Arm::Quiescent, Arm::Control, Arm::Reapply] {
            let mut sets: BTreeMap<&[usize], Vec<Mark>> = BTreeMap::new();
            for trial in self.plan.trials.iter().filter(|t| t.arm == arm) {
                sets.entry(&trial.patches)
                    .or_insert_with(|| marks(&|t: &crate::Trial| t.arm == arm && t.patches == trial.patches));
            }
            let due = self.plan.due(arm) as usize;
            let ended = |marks: &Vec<Mark>| marks.iter().filter(|m| m.counts()).count();
            let missing: usize = sets.values().map(|m| due.saturating_sub(ended(m))).sum();
            let clean = |marks: &Vec<Mark>| marks.contains(&Mark::Clean);
            if missing > 0 {
                causes.push(format!("{missing} of {} {arm} trials did not take place", due * sets.len()));
            } else if let Some((patches, marks)) =
                sets.iter().find(|(_, m)| self.plan.rule.arms.contains(&arm) && !clean(m))
            {
                let of = match super::names(self.plan, patches).join(" + ") {
                    names if names.is_empty() => String::new(),
                    names => format!(" of {names}"),
                };
                causes.push(format!(
                    "none of {} {arm} trials{of} ended cleanly, and tier {} asks for that arm",
                    ended(marks),
                    self.plan.tier
                ));
            }
        }
        causes.extend(self.sets.iter().filter_map(|set| self.failed_too_often(set)));
        causes
    }

    /// An arm of few trials, of which some failed.
    fn failed_too_often(&self, set: &Set<'_>) -> Option<String> {
        if !matches!(set.arm, Arm::Quiescent | Arm::Reapply) {
            return None;
        }
        let rule = &self.plan.rule;
        let tally = set.tally(self.outcomes, &|n| self.outcomes.has_begun(n), Unended::Ignored);
        let rate = rule.rate_of(set.arm);
        (tally.failed() > 0 && !sequential::shows(&tally, rate, rule.confidence)).then(|| {
            format!(
                "{} of {} {} trials of {} failed, which leaves a failure rate of {:.0} % possible: {:.0} % at most must be shown",
                tally.failed(),
                tally.failed() + tally.clean(),
                set.arm,
                super::names(self.plan, set.patches).join(" + "),
                sequential::bound(&tally, rule.confidence) * 100.0,
                rate * 100.0
            )
        })
    }

    fn unknown_trials(&self) -> Option<String> {
        let unknown = &self.record.unknown_trials;
        (!unknown.is_empty()).then(|| {
            let numbers: Vec<String> = unknown.iter().take(5).map(ToString::to_string).collect();
            format!(
                "the journal has events of trials that the plan does not have: {}: plan and journal are not of one run",
                numbers.join(", ")
            )
        })
    }

    fn unreached(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let applied = self.record.trials.values().any(|t| !t.applied.is_empty());
        if applied && self.reach.is_empty() {
            causes.push(
                "the patch replaces no function, so that nothing shows that the load runs its code"
                    .to_owned(),
            );
        }
        for patch in &self.record.without_functions {
            if !self.reach.is_empty() {
                causes.push(format!(
                    "{patch} replaces no function, so that nothing shows that the load runs its code"
                ));
            }
        }
        causes.extend(self.reach.iter().filter_map(|r| self.unreached_function(r)));
        causes
    }

    fn unreached_function(&self, r: &Reach) -> Option<String> {
        let function = for_people(&r.function);
        let of_it = |reason: &String| reason.contains(function) || !reason.starts_with("calls of ");
        let uncounted = || self.record.uncounted.iter().any(of_it);
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
                "{} task(s) were inside {function} when the patch was applied, and it was not called once while the patch was in force and calls were counted: its new code never ran",
                r.inside
            )),
            (Some(before), None) if before == 0.0 && !uncounted() => never(),
            (_, Some(_)) => never(),
            _ => Some(format!(
                "it can't be told whether the new code of {function} ever ran: its calls were not counted with the patch in force"
            )),
        }
    }
}
