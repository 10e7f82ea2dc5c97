//! Slow-downs, starvation and leaks, by comparing a patched trial with the control trials that ran nearest to it.
//!
//! A shared host's speed drifts threefold within minutes, so no absolute number counts. Each trial is compared with its own
//! baseline first, and that change with the change the control trials next to it went through in the same phases. Control trials are
//! compared with the others in the same way, which shows how much chance does.

mod blind;
mod change;
mod latency;
mod near;
mod rates;
mod resources;
mod threads;
mod trend;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use blind::Gap;
use change::Change;
use near::{Near, Nearest};

use crate::event::Scope;
use crate::judge::{Seen, TrialRecord, comparable};
use crate::pipeline::AGING;
use crate::plan::Trial;
use crate::{Arm, FarmKind, Finding, Phase, Plan, Source};

/// Names of the resources that leaks are looked for in, as the titles of such findings begin.
pub(crate) const RESOURCE_NAMES: [&str; 7] = resources::NAMES;

/// Fewer observations than this in a phase say nothing.
const LEAST: u64 = 30;

/// With fewer control trials than this nothing is compared: each is compared with the others as well.
const CONTROLS: usize = 3;

/// Loaded trials of one patch that must agree before four of four against none of three controls is no chance (Fisher: p = 0.029).
const LOADED: usize = 4;

/// Share of its planned CPU time below which a machine is too starved by the host to be compared with others.
pub const ENOUGH_CPU: f64 = 0.7;

/// Patched arms whose soak is that of the control arm in all but the patch.
pub(crate) const PATCHED: [Arm; 2] = [Arm::Loaded, Arm::Stack];

/// What all comparisons of a run came to.
#[derive(Default)]
pub(crate) struct Compared {
    /// All differences that only a comparison shows: of loaded and stack trials with control trials, and of each control trial with the
    /// others, which tells how much chance does.
    pub(crate) seen: Vec<Seen>,
    /// Patched trials by what could not be compared in them.
    gaps: BTreeMap<Gap, BTreeSet<u32>>,
}

impl Compared {
    /// What the comparison could not tell, one sentence each, all beginning with `comparison: `: too few trials that can be compared, of
    /// which patch and why, and figures that are missing. It counts the trials that are compared.
    pub(crate) fn blind(&self, plan: &Plan, records: &BTreeMap<u32, TrialRecord>) -> Vec<String> {
        blind::sentences(plan, records, &self.gaps)
    }
}

/// Compare all trials that can be. The time taken grows with the number of trials, not with its square.
pub(crate) fn compare(plan: &Plan, records: &BTreeMap<u32, TrialRecord>) -> Compared {
    let usable = |t: &'_ Trial| records.get(&t.number).and_then(|r| usable(t, r).ok());
    let mut trials: Vec<(&Trial, Change<'_>)> =
        plan.trials.iter().filter_map(|t| Some((t, usable(t)?))).collect();
    trials.sort_by_key(|(t, _)| t.number);
    let controls: Vec<(u32, &Change<'_>)> =
        trials.iter().filter(|(t, _)| t.arm == Arm::Control).map(|(t, c)| (t.number, c)).collect();
    let mut all = Compared::default();
    if controls.len() < CONTROLS {
        return all;
    }
    let nearest = Nearest::new(controls);
    for (trial, own) in &trials {
        let near = nearest.to(trial.number);
        let found = differs_from(plan, own, &near);
        let scope = Scope { trial: trial.number, arm: trial.arm, phase: Phase::Soak };
        all.seen.extend(found.into_iter().map(|finding| Seen { seq: own.seq, scope, finding }));
        if trial.arm != Arm::Control {
            for gap in near.gaps() {
                all.gaps.entry(gap).or_default().insert(trial.number);
            }
        }
    }
    all
}

/// Why a trial is compared with nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LeftOut {
    /// Of an arm that has no counterpart in the control arm, or not ended yet.
    Absent,
    /// Ended in any other way than by going through its soak.
    Unfinished,
    /// A phase was not measured.
    Unmeasured,
    /// The host gave it too little CPU time.
    Starved,
}

/// The trial's phases, if they can be compared. Patched and control trials are held to the same.
fn usable<'a>(trial: &Trial, record: &'a TrialRecord) -> Result<Change<'a>, LeftOut> {
    if record.end.is_none() || !(trial.arm == Arm::Control || PATCHED.contains(&trial.arm)) {
        return Err(LeftOut::Absent);
    }
    if !comparable(record) {
        return Err(LeftOut::Unfinished);
    }
    let change = Change::of(record).ok_or(LeftOut::Unmeasured)?;
    match record.cpu_share {
        Some(share) if share < ENOUGH_CPU => Err(LeftOut::Starved),
        _ => Ok(change),
    }
}

/// How one trial differs from the control trials next to it.
fn differs_from<'a>(plan: &'a Plan, own: &Change<'a>, near: &Near<'_, 'a>) -> Vec<Finding> {
    let limits = &plan.pipeline.limits;
    for workload in plan.workloads.iter().map(|w| w.name.as_str()).filter(|w| *w != AGING) {
        if own.before_of(workload).is_none() {
            near.misses(format!("the rate of {workload}"), "it was not measured before the patch");
        }
    }
    let slow = rates::slow(own, near);
    let mut found = Vec::new();
    let mut grown: BTreeMap<&str, f64> = BTreeMap::new();
    for workload in own.workloads() {
        // A rate that fell is explained by operations that grew less than would be a finding by itself.
        let fell = slow.get(workload).is_some_and(|s| *s >= limits.slowdown);
        let least = if fell { rates::TWICE.min(limits.latency) } else { limits.latency };
        let ops = latency::grown(own, near, workload, least);
        grown.insert(workload, ops.iter().map(latency::Grown::factor).fold(1.0, f64::max));
        found.extend(latency::longer(own, &ops, workload, limits));
        found.extend(latency::fell_asleep(own, near, workload));
        found.extend(latency::tail(own, near, workload, limits));
    }
    found.extend(rates::collapsed(own, near, &slow, &grown, limits));
    found.extend(threads::starved(own, near, limits));
    found.extend(resources::leaks(own, near, limits));
    found
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
