//! What the comparison could not tell, and why.

use std::collections::{BTreeMap, BTreeSet};

use super::change::PATCHED;
use super::near::{FEWEST, Gap, Margin, NEAREST};
use super::{CONTROLS, ENOUGH_CPU, LOADED, LeftOut, usable};
use crate::judge::record::TrialRecord;
use crate::{Arm, Length, Plan, counted};

/// Trials of one kind.
#[derive(Default)]
struct Count {
    compared: usize,
    left_out: BTreeMap<LeftOut, usize>,
}

/// Trials of one arm with the same patches.
struct Set<'a> {
    arm: Arm,
    patches: &'a [usize],
    names: String,
    count: Count,
}

impl Count {
    /// Those that ended and were not compared although nothing was found in them.
    fn unseen(&self) -> usize {
        let of = |why: LeftOut| self.left_out.get(&why).copied().unwrap_or(0);
        of(LeftOut::Unmeasured) + of(LeftOut::Starved)
    }

    /// Why those that ended were not compared, in brackets.
    fn why(&self) -> String {
        let of = |(why, n): (&LeftOut, &usize)| match why {
            LeftOut::Absent => None,
            LeftOut::Unfinished => Some(format!("{n} did not complete the soak")),
            LeftOut::Unmeasured => Some(format!("{n} without measurements")),
            LeftOut::Starved => {
                Some(format!("{n} got less than {:.0} % of the planned CPU time", ENOUGH_CPU * 100.0))
            }
        };
        let all: Vec<String> = self.left_out.iter().filter_map(of).collect();
        if all.is_empty() { String::new() } else { format!(" (left out: {})", all.join(", ")) }
    }
}

pub(super) fn sentences(
    plan: &Plan,
    records: &BTreeMap<u32, TrialRecord>,
    gaps: &BTreeMap<Gap, BTreeSet<u32>>,
) -> Vec<String> {
    let (control, patched) = counts(plan, records);
    let mut said = Vec::new();
    if control.compared < CONTROLS {
        said.push(format!(
            "no slow-down or leak can be detected with {}: {CONTROLS} are needed{}",
            counted(control.compared, "control trial"),
            control.why()
        ));
    } else {
        said.extend(few(control.compared));
    }
    for Set { arm, names, count, .. } in &patched {
        if count.compared < LOADED {
            said.push(format!(
                "no slow-down or leak of {names} can be detected with {}: {LOADED} are needed{}",
                counted(count.compared, &format!("{arm} trial")),
                count.why()
            ));
        } else if count.unseen() > 0 {
            said.push(format!(
                "only {} of {names} could be compared for slow-downs and leaks{}",
                counted(count.compared, &format!("{arm} trial")),
                count.why()
            ));
        }
    }
    let all: usize = patched.iter().map(|s| s.count.compared).sum();
    let gap = |(Gap { what, why }, trials): (&Gap, &BTreeSet<u32>)| {
        format!("{what} was not compared in {} of {all} patched trials: {why}", trials.len())
    };
    said.extend(gaps.iter().map(gap));
    said
}

/// The control trials, and the patched ones by arm and patches.
fn counts<'a>(plan: &'a Plan, records: &BTreeMap<u32, TrialRecord>) -> (Count, Vec<Set<'a>>) {
    let mut control = Count::default();
    let mut patched: Vec<Set<'_>> = Vec::new();
    // What is short was never meant to be compared.
    let long = plan.trials.iter().filter(|t| t.length == Length::Long);
    for trial in long.filter(|t| t.arm == Arm::Control || PATCHED.contains(&t.arm)) {
        let count = if trial.arm == Arm::Control {
            &mut control
        } else {
            let same = |s: &Set<'_>| s.arm == trial.arm && s.patches == trial.patches.as_slice();
            let at = patched.iter().position(same).unwrap_or_else(|| {
                let names = plan.names(trial).collect::<Vec<_>>().join(" + ");
                let count = Count::default();
                patched.push(Set { arm: trial.arm, patches: &trial.patches, names, count });
                patched.len() - 1
            });
            &mut patched[at].count
        };
        // One that has not begun says nothing yet.
        let usable = records.get(&trial.number).map_or(Err(LeftOut::Absent), |own| usable(trial.arm, own));
        match usable {
            Ok(_) => count.compared += 1,
            Err(why) => *count.left_out.entry(why).or_default() += 1,
        }
    }
    (control, patched)
}

/// Few control trials take wider margins: that is said, because smaller slow-downs then go unseen.
fn few(controls: usize) -> Option<String> {
    let each = NEAREST.min(controls.saturating_sub(1));
    let left = Margin::of(each.max(FEWEST)).left;
    let enough = (each..=NEAREST).find(|n| Margin::of(*n).left <= 1.0)? + 1;
    (left > 1.0).then(|| {
        format!(
            "with {controls} control trials, only differences of {left} times the limit are sure to be detected; with {enough}, the limit itself"
        )
    })
}
