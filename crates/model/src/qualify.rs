//! The farm's own acceptance test: what a run of the example patches says of the detectors.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::independent::{judge_independent, judge_with};
use crate::verdict::{Attribution, Cause};
use crate::{Event, Example, FindingKind, Outcome, Plan, Verdict};

/// What the farm said of one example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its folder in the corpus.
    pub patch: String,
    /// The way in which it is faulty, or `good`.
    pub class: String,
    /// What the verdict should be.
    pub expected: Outcome,
    /// What it is.
    pub outcome: Outcome,
    /// Whether that is right.
    pub score: Score,
    /// What counts against it, by kind, the earliest first.
    pub found: Vec<Found>,
    /// Trials that applied it and say something.
    pub trials: u32,
    /// The verdict's first cause.
    pub cause: Option<Cause>,
}

/// Findings of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Its kind.
    pub kind: FindingKind,
    /// Milliseconds after applying, the earliest of all trials; absent where only the comparison of trials shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_apply_ms: Option<u64>,
    /// The patch would have been rejected had nothing of any other kind been found.
    pub enough: bool,
}

/// Whether the farm was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// A faulty patch was rejected, for the right reason.
    Caught,
    /// A good patch was qualified.
    Passed,
    /// What should be left undecided was.
    Held,
    /// A faulty patch was qualified.
    Missed,
    /// A good patch was rejected.
    FalseAlarm,
    /// A patch was rejected, but by no finding of the kinds that should.
    Misnamed,
    /// A patch should have been decided and was not.
    Undecided,
}

impl Score {
    /// Whether it is as it should be.
    pub fn is_right(self) -> bool {
        matches!(self, Self::Caught | Self::Passed | Self::Held)
    }

    fn of(example: &Example, outcome: Outcome, found: &[Found]) -> Self {
        let named = found.iter().any(|f| example.caught_by.contains(&f.kind));
        match (example.expected(), outcome) {
            (Outcome::Rejected, Outcome::Rejected) if named => Self::Caught,
            (Outcome::Rejected, Outcome::Rejected) => Self::Misnamed,
            (Outcome::Qualified, Outcome::Qualified) => Self::Passed,
            (Outcome::Inconclusive, Outcome::Inconclusive) => Self::Held,
            (Outcome::Rejected | Outcome::Inconclusive, Outcome::Qualified) => Self::Missed,
            (Outcome::Qualified | Outcome::Inconclusive, Outcome::Rejected) => Self::FalseAlarm,
            (Outcome::Rejected | Outcome::Qualified, Outcome::Inconclusive) => Self::Undecided,
        }
    }
}

/// The rows of `examples`, which are the patches of the plan in its order.
pub fn score(plan: &Plan, events: &[Event], examples: &[Example]) -> Vec<Row> {
    examples.iter().enumerate().map(|(patch, example)| row(plan, events, patch, example)).collect()
}

fn row(plan: &Plan, events: &[Event], patch: usize, example: &Example) -> Row {
    let verdict = judge_independent(plan, events, patch);
    let mut first: BTreeMap<&str, (FindingKind, Option<u64>)> = BTreeMap::new();
    for seen in counting(&verdict).flat_map(|item| &item.observations) {
        let at = first.entry(seen.kind.as_str()).or_insert((seen.kind, seen.after_apply_ms));
        at.1 = [at.1, seen.after_apply_ms].into_iter().flatten().min();
    }
    let mut found: Vec<Found> = first
        .into_values()
        .map(|(kind, after_apply_ms)| {
            let with = judge_with(plan, events, patch, |f| f.kind == kind);
            let enough = counting(&with).any(|item| item.kind == kind);
            Found { kind, after_apply_ms, enough }
        })
        .collect();
    found.sort_by_key(|f| f.after_apply_ms.unwrap_or(u64::MAX));
    let arms = verdict.arms.iter().filter(|(arm, _)| arm.patched());
    Row {
        patch: example.patch.clone(),
        class: example.class.clone(),
        expected: example.expected(),
        outcome: verdict.verdict,
        score: Score::of(example, verdict.verdict, &found),
        found,
        trials: arms.map(|(_, n)| n.clean + n.failed + n.unexplained).sum(),
        cause: verdict.causes.first().cloned(),
    }
}

/// What counts against the patch.
fn counting(verdict: &Verdict) -> impl Iterator<Item = &crate::verdict::Evidence> {
    verdict.evidence.iter().filter(|item| item.attribution == Attribution::Patch)
}

/// Which examples would have escaped without which kind of finding: those that it alone is enough to reject.
pub fn needed_kinds(rows: &[Row]) -> BTreeMap<&'static str, BTreeSet<&str>> {
    let mut needed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for row in rows {
        let enough: Vec<&Found> = row.found.iter().filter(|f| f.enough).collect();
        if let [only] = enough.as_slice() {
            needed.entry(only.kind.as_str()).or_default().insert(&row.patch);
        }
    }
    needed
}
