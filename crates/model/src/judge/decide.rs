//! From items and counts to the outcome and its causes.

use std::collections::BTreeMap;

use super::attribute::Item;
use super::{Mark, words};
use crate::verdict::{Attribution, Bound, Outcome, Reach};
use crate::{Arm, Plan};

/// What the outcome is decided from.
pub(super) struct Facts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) marks: &'a BTreeMap<u32, Mark>,
    pub(super) items: &'a [Item],
    pub(super) bounds: &'a [Bound],
    pub(super) reach: &'a [Reach],
    /// Findings of trials that have not ended in order.
    pub(super) open: &'a [String],
}

impl Facts<'_> {
    pub(super) fn decide(&self, cut_short: Option<&str>, farm_errors: &[String]) -> (Outcome, Vec<String>) {
        let against: Vec<String> = self
            .items
            .iter()
            .filter(|i| i.attribution == Attribution::Patch)
            .map(|i| words::of_finding(self.plan, i))
            .collect();
        if !against.is_empty() {
            return (Outcome::Rejected, against);
        }
        let mut missing: Vec<String> = self.unresolved();
        missing.extend(self.open.iter().map(|f| format!("{f}: the trial did not end in order")));
        missing.extend(self.bounds.iter().filter_map(|b| self.short_of(b)));
        missing.extend(self.arms_missing());
        missing.extend(self.unreached());
        if missing.is_empty() {
            let mut causes = vec![words::praise(self.plan, self.marks, self.bounds, self.reach)];
            causes.extend(self.tolerated());
            return (Outcome::Qualified, causes);
        }
        let mut causes = Vec::new();
        causes.extend(cut_short.map(str::to_owned));
        causes.extend(farm_errors.iter().map(|e| format!("the farm failed, not the patch: {e}")));
        causes.extend(self.masked());
        causes.append(&mut missing);
        (Outcome::Inconclusive, causes)
    }

    /// Whether all patched trials together, whatever their arm, leave no higher failure rate possible than the tier allows.
    fn rare_enough(&self) -> bool {
        let patched = self.plan.trials.iter().filter(|t| t.arm != Arm::Control);
        let marks: Vec<Mark> = patched.map(|t| self.marks[&t.number]).collect();
        let count =
            |mark: Mark| u32::try_from(marks.iter().filter(|m| **m == mark).count()).unwrap_or(u32::MAX);
        self.plan.rule.allows(count(Mark::Failed), count(Mark::Clean))
    }

    /// Findings that may be the patch's and may not. One that nobody can explain is what a tier's failure rate is for: it counts as a
    /// failure, and holds nothing up if there are trials enough.
    fn unresolved(&self) -> Vec<String> {
        let rare = self.rare_enough();
        let cause = |item: &Item| match item.attribution {
            Attribution::Unconfirmed if rare => None,
            Attribution::Unconfirmed => Some(format!(
                "{}: not in the patch's own code, and seen too rarely to blame the patch but never without it ({}), so that it can't be let through either: run it again with more trials{}",
                item.lead.title,
                words::hits(item),
                words::cause(item)
            )),
            Attribution::NoControl => {
                Some(format!("{}: no control trial went through, so it can't be attributed", item.lead.title))
            }
            _ => None,
        };
        self.items.iter().filter_map(cause).collect()
    }

    /// Unexplained failures that the tier's rate covers.
    fn tolerated(&self) -> Vec<String> {
        let items = self.items.iter().filter(|i| i.attribution == Attribution::Unconfirmed);
        items
            .map(|i| {
                format!(
                    "{}: seen too rarely to blame the patch ({}), and counted as a failure within the tier's rate",
                    i.lead.title,
                    words::hits(i)
                )
            })
            .collect()
    }

    /// Findings that are not the patch's, where they kept trials from counting.
    fn masked(&self) -> Vec<String> {
        let cause = |item: &Item| match item.attribution {
            Attribution::ControlToo => Some(format!(
                "{}: seen without the patch as well ({}), so it says nothing of the patch",
                item.lead.title,
                words::hits(item)
            )),
            Attribution::BeforeApply => {
                Some(format!("{}: seen before the patch was applied", item.lead.title))
            }
            Attribution::ControlOnly => {
                Some(format!("{}: seen without the patch ({})", item.lead.title, words::hits(item)))
            }
            _ => None,
        };
        self.items.iter().filter_map(cause).collect()
    }

    /// What a bound lacks.
    fn short_of(&self, bound: &Bound) -> Option<String> {
        let rule = &self.plan.rule;
        (!rule.allows(bound.failed, bound.clean)).then(|| {
            let failed = if bound.failed > 0 { format!(", {} failed", bound.failed) } else { String::new() };
            format!(
                "{} clean {} trials of {}{failed}: tier {} needs {} (they leave a failure rate of {:.0} % possible, the tier allows {:.0} % at {:.0} % confidence)",
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

    /// Arms that are not done, or that the tier asks for and nothing clean came of. What loaded arms lack, their bounds say.
    fn arms_missing(&self) -> Vec<String> {
        let mut causes = Vec::new();
        for arm in [Arm::Quiescent, Arm::Control, Arm::Reapply] {
            let mut sets: BTreeMap<&[usize], Vec<Mark>> = BTreeMap::new();
            for trial in self.plan.trials.iter().filter(|t| t.arm == arm) {
                sets.entry(&trial.patches).or_default().push(self.marks[&trial.number]);
            }
            let due = self.plan.due(arm) as usize;
            let count = |marks: &[Mark], mark: Mark| marks.iter().filter(|m| **m == mark).count();
            let open = |marks: &Vec<Mark>| {
                let open = count(marks, Mark::Open);
                let ended = marks.iter().filter(|m| m.counts()).count() - open;
                due.saturating_sub(ended).min(open)
            };
            let missing: usize = sets.values().map(open).sum();
            let clean: usize = sets.values().map(|marks| count(marks, Mark::Clean)).sum();
            if missing > 0 {
                causes.push(format!("{missing} of {} {arm} trials did not take place", due * sets.len()));
            } else if self.plan.rule.arms.contains(&arm) && clean == 0 {
                causes.push(format!(
                    "none of {} {arm} trials ended cleanly, and tier {} asks for that arm",
                    sets.values().map(Vec::len).sum::<usize>(),
                    self.plan.tier
                ));
            }
        }
        causes
    }

    fn unreached(&self) -> Vec<String> {
        let mut causes = Vec::new();
        for r in self.reach {
            let calls = [r.before_per_s, r.after_per_s];
            if calls.iter().flatten().any(|c| *c > 0.0) || r.inside > 0 {
                continue;
            }
            causes.push(if calls.iter().any(Option::is_some) {
                match words::workload_for(&r.function) {
                    Some(workload) => format!(
                        "the workloads never call {}: {workload} might; add it to the pipeline",
                        r.function
                    ),
                    None => format!(
                        "the workloads never call {}: add a workload to the pipeline that does",
                        r.function
                    ),
                }
            } else {
                format!(
                    "it can't be told whether the workloads call {}: its calls could not be counted",
                    r.function
                )
            });
        }
        causes
    }
}
