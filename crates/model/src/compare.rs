//! Slow-downs, starvation and leaks, by comparing a patched trial with the control trials.
//!
//! A shared host's speed drifts threefold within minutes, so no absolute number counts. Each trial is compared with its own
//! baseline first, and that change with the change the control trials went through in the same phases.

mod latency;
mod resources;
mod threads;
mod trend;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::event::{Measured, Scope, WorkloadMeasure};
use crate::judge::{Seen, TrialRecord, comparable};
use crate::plan::Trial;
use crate::verdict::ArmCount;
use crate::{Arm, FarmKind, Finding, Phase, Plan, Source};

/// Names of the resources that leaks are looked for in, as the titles of such findings begin.
pub(crate) const RESOURCE_NAMES: [&str; 7] = resources::NAMES;

/// Fewer observations than this in a phase say nothing.
const LEAST: u64 = 30;

/// Fewer control trials than this say nothing of what is usual: each is compared with the others as well.
const CONTROLS: usize = 3;

/// Loaded trials that must agree before four of four against none of three controls is no chance (Fisher: p = 0.029).
const LOADED: u32 = 4;

/// Patched arms whose soak is that of the control arm in all but the patch.
pub(crate) const PATCHED: [Arm; 2] = [Arm::Loaded, Arm::Stack];

/// What the comparison can't show with so few trials.
pub(crate) fn blind(arms: &BTreeMap<Arm, ArmCount>) -> Option<String> {
    let of = |arm: Arm| arms.get(&arm).map_or(0, |n| n.clean + n.failed + n.unexplained);
    let (loaded, control) = (of(Arm::Loaded), of(Arm::Control));
    (loaded < LOADED || (control as usize) < CONTROLS).then(|| {
        format!("comparison: slow-downs and leaks can't be told from chance with {loaded} loaded and {control} control trials; {LOADED} and {CONTROLS} are needed")
    })
}

/// All differences that only a comparison shows: of loaded trials with the control trials, and of each control trial with the
/// others, which tells how much chance does.
pub(crate) fn differences(plan: &Plan, records: &BTreeMap<u32, TrialRecord>) -> Vec<Seen> {
    let done = |t: &&Trial| records.get(&t.number).is_some_and(comparable);
    let controls: Vec<&Trial> = plan.trials.iter().filter(|t| t.arm == Arm::Control).filter(done).collect();
    if controls.len() < CONTROLS {
        return Vec::new();
    }
    let compared = |t: &&Trial| t.arm == Arm::Control || PATCHED.contains(&t.arm);
    let mut found = Vec::new();
    for trial in plan.trials.iter().filter(compared).filter(done) {
        let others: Vec<&TrialRecord> =
            controls.iter().filter(|c| c.number != trial.number).map(|c| &records[&c.number]).collect();
        found.extend(slower_than(plan, trial, &records[&trial.number], &others));
    }
    found
}

/// How one trial differs from control trials.
fn slower_than(plan: &Plan, place: &Trial, trial: &TrialRecord, controls: &[&TrialRecord]) -> Vec<Seen> {
    let (Some(own), Some((seq, _))) = (Change::of(trial), trial.measured.get(&Phase::Soak)) else {
        return Vec::new();
    };
    let controls: Vec<Change<'_>> = controls.iter().filter_map(|c| Change::of(c)).collect();
    if controls.is_empty() {
        return Vec::new();
    }
    let limits = &plan.pipeline.limits;
    let slow: Vec<(&str, f64)> =
        own.workloads().filter_map(|w| Some((w, against(&controls, |c| c.rate(w), own.rate(w)?)?))).collect();
    // What slows all workloads alike is the host, unless an operation's own latency says otherwise.
    let common = slow.iter().map(|(_, s)| *s).fold(f64::INFINITY, f64::min).max(1.0);
    let mut found = Vec::new();
    for (workload, slowdown) in slow {
        let ops = latency::grown(&own, &controls, workload);
        let worst = ops.iter().map(latency::Grown::factor).fold(1.0, f64::max);
        found.extend(latency::longer(&own, &ops, workload, limits));
        found.extend(latency::fell_asleep(&own, &controls, workload));
        found.extend(latency::tail(&own, &controls, workload, limits));
        if slowdown >= limits.slowdown && (slowdown >= 2.0 * common || worst >= 2.0) {
            found.push(differs(
                FarmKind::RateCollapsed,
                format!("{workload} does far fewer operations with the patch"),
                Some(workload),
                format!(
                    "{slowdown:.1} times fewer than the control arm, each against its own baseline\n{}",
                    own.rates(workload)
                ),
            ));
        }
    }
    found.extend(threads::starved(&own, &controls, limits));
    found.extend(resources::leaks(&own, &controls, limits));
    let scope = Scope { trial: place.number, arm: place.arm, phase: Phase::Soak };
    found.into_iter().map(|finding| Seen { seq: *seq, scope, finding }).collect()
}

fn differs(kind: FarmKind, title: String, workload: Option<&str>, evidence: String) -> Finding {
    Finding {
        kind: kind.into(),
        title,
        source: Source::Comparison,
        function: None,
        workload: workload.map(str::to_owned),
        after_apply_ms: None,
        line: None,
        in_patch: false,
        corrupted: false,
        evidence,
    }
}

/// A trial's two phases under load.
struct Change<'a> {
    before: &'a Measured,
    after: &'a Measured,
}

impl<'a> Change<'a> {
    fn of(trial: &'a TrialRecord) -> Option<Self> {
        let (_, before) = trial.measured.get(&Phase::Baseline)?;
        let (_, after) = trial.measured.get(&Phase::Soak)?;
        Some(Self { before, after })
    }

    fn workloads(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.before.workloads.keys().map(String::as_str)
    }

    fn both(&self, workload: &str) -> Option<(&'a WorkloadMeasure, &'a WorkloadMeasure)> {
        Some((self.before.workloads.get(workload)?, self.after.workloads.get(workload)?))
    }

    /// Rate in the soak as a share of the baseline's.
    fn rate(&self, workload: &str) -> Option<f64> {
        let (before, after) = self.both(workload)?;
        if before.ops < LEAST {
            return None;
        }
        // A workload that does nothing at all still has to compare: half an operation stands for none.
        let after_rate = (after.ops as f64).max(0.5) * 1000.0 / self.after.window_ms.max(1) as f64;
        Some(after_rate / before.rate(self.before.window_ms))
    }

    fn rates(&self, workload: &str) -> String {
        let of = |m: &Measured| m.workloads.get(workload).map_or(0.0, |w| w.rate(m.window_ms));
        format!("before: {:.1} operations/s\nafter: {:.1} operations/s", of(self.before), of(self.after))
    }
}

/// How many times less `own` is than the least of the controls: the control that looks most like the patched trial decides,
/// so that one lucky control accuses nobody.
fn against<'a>(controls: &[Change<'a>], of: impl Fn(&Change<'a>) -> Option<f64>, own: f64) -> Option<f64> {
    let least = controls.iter().filter_map(of).fold(f64::INFINITY, f64::min);
    least.is_finite().then(|| least / own)
}
