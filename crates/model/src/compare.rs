//! Slow-downs, starvation and leaks, by comparing a patched trial with the control trials that ran nearest to it.
//!
//! A shared host's speed drifts threefold within minutes, so no absolute number counts. Each trial is compared with its own
//! baseline first, and that change with the change the control trials next to it went through in the same phases. Control trials are
//! compared with the others in the same way, which shows how much chance does.

mod blind;
pub(crate) mod change;
mod latency;
mod near;
mod rates;
pub(crate) mod resources;
mod threads;
mod trend;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use change::{Change, is_compared};
use near::{Gap, NEAREST, Near};

use crate::event::Scope;
use crate::judge::record::{Seen, TrialRecord, comparable};
use crate::pipeline::AGING;
use crate::{Arm, Finding, ObservedKind, Phase, Plan, Source};

/// Fewer observations than this in a phase say nothing.
const LEAST: u64 = 30;

/// With fewer control trials than this nothing is compared: each is compared with the others as well.
const CONTROLS: usize = 3;

/// Loaded trials of one patch that must agree before four of four against none of three controls is no chance (Fisher: p = 0.029).
const LOADED: usize = 4;

/// Share of its planned CPU time below which a machine is too starved by the host to be compared with others.
pub const ENOUGH_CPU: f64 = 0.7;

/// The comparisons of a run, trial by trial as they end: of loaded and stack trials with control trials, and of each control trial with the
/// others, which tells how much chance does.
///
/// A trial's comparison is done again whenever the control trials nearest to it change: those that are nearest may end after it. Once
/// [`NEAREST`] of them are nearer than any that is still to end, it stays as it is.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Trials that can be compared, by number.
    trials: BTreeMap<u32, One>,
    /// The control trials among them, in the order of their numbers.
    controls: Vec<(u32, Arc<Change>)>,
    /// Trials whose comparison has to be done, or done again.
    stale: BTreeSet<u32>,
}

/// A trial that can be compared.
#[derive(Debug)]
struct One {
    arm: Arm,
    /// Journal number of the soak's measurement.
    seq: u64,
    change: Arc<Change>,
    cpu_share: Option<f64>,
    found: Vec<Seen>,
}

impl One {
    fn is(&self, usable: &Usable<'_>) -> bool {
        self.seq == usable.seq
            && Arc::ptr_eq(&self.change, usable.change)
            && self.cpu_share == usable.cpu_share
    }
}

impl Comparison {
    /// Take what is known of a trial, or that it is gone.
    pub(crate) fn put(&mut self, number: u32, arm: Arm, record: Option<&TrialRecord>) {
        let usable = record.and_then(|r| usable(arm, r).ok());
        let known = self.trials.get(&number);
        if known.is_none() && usable.is_none() || known.zip(usable.as_ref()).is_some_and(|(k, u)| k.is(u)) {
            return;
        }
        if let Some(gone) = self.trials.remove(&number)
            && gone.arm == Arm::Control
            && let Ok(at) = self.controls.binary_search_by_key(&number, |c| c.0)
        {
            self.mark_stale(at);
            self.controls.remove(at);
        }
        self.stale.remove(&number);
        let Some(usable) = usable else { return };
        self.stale.insert(number);
        if arm == Arm::Control {
            let at = self.controls.partition_point(|c| c.0 < number);
            self.controls.insert(at, (number, usable.change.clone()));
            self.mark_stale(at);
        }
        let Usable { seq, change, cpu_share } = usable;
        self.trials.insert(number, One { arm, seq, change: change.clone(), cpu_share, found: Vec::new() });
    }

    /// How many each trial is compared with: as many for a patched trial as for a control trial, which is not compared with itself, so that
    /// chance does as much in both.
    fn each(&self) -> usize {
        NEAREST.min(self.controls.len().saturating_sub(1))
    }

    /// Mark the trials that are compared with the control trial in this place.
    fn mark_stale(&mut self, at: usize) {
        // With so few, each is compared with all, and their number changes.
        if self.controls.len() <= NEAREST + 1 {
            self.stale.extend(self.trials.keys());
            return;
        }
        let (controls, each) = (&self.controls, self.each());
        let control = controls[at].0;
        let before = |number: u32| controls.partition_point(|c| c.0 < number);
        // How many control trials a trial prefers to this one: nearer ones, and of two equally near ones the earlier.
        let preferred = |number: u32| {
            let itself = usize::from(controls.binary_search_by_key(&number, |c| c.0).is_ok());
            let all = if number < control {
                at - before(number.saturating_sub(control - number))
            } else {
                before(number.saturating_add(number - control)) - at - 1
            };
            all - itself
        };
        let from = controls[at.saturating_sub(NEAREST)].0;
        let to = controls.get(at + NEAREST).map_or(u32::MAX, |c| c.0);
        let from = if at < NEAREST { 0 } else { from };
        let near = self.trials.range(from..=to).map(|(number, _)| *number);
        self.stale.extend(near.filter(|n| *n != control && preferred(*n) < each));
    }

    /// Compare what has to be; the trials whose differences are others now.
    pub(crate) fn settle(&mut self, plan: &Plan) -> Vec<u32> {
        let mut changed = Vec::new();
        for number in std::mem::take(&mut self.stale) {
            let Some(own) = self.trials.get(&number) else { continue };
            let found = self.compare(plan, number, own, false).0;
            if found != own.found {
                changed.push(number);
                self.trials.entry(number).and_modify(|own| own.found = found);
            }
        }
        changed
    }

    /// The differences of a trial, and what could not be compared if that is asked for.
    fn compare(&self, plan: &Plan, number: u32, own: &One, note_gaps: bool) -> (Vec<Seen>, BTreeSet<Gap>) {
        if self.controls.len() < CONTROLS {
            return (Vec::new(), BTreeSet::new());
        }
        let near = self.nearest(number).into_iter().map(|(_, change)| &**change);
        let near = Near::of(near.collect(), note_gaps);
        let found = differs_from(plan, (&own.change, own.cpu_share), &near);
        let scope = Scope { trial: number, arm: own.arm, phase: Phase::Soak };
        let seen = found.into_iter().map(|finding| Seen { seq: own.seq, scope, finding });
        (seen.collect(), near.gaps())
    }

    /// The control trials nearest to the trial of this number, itself left out.
    fn nearest(&self, number: u32) -> Vec<&(u32, Arc<Change>)> {
        let each = self.each();
        let at = self.controls.partition_point(|(n, _)| *n < number);
        let (earlier, later) = self.controls.split_at(at);
        let mut earlier = earlier.iter().rev().peekable();
        let mut later = later.iter().skip_while(|(n, _)| *n == number).peekable();
        let mut controls = Vec::with_capacity(each);
        while controls.len() < each {
            let next = match (earlier.peek(), later.peek()) {
                (Some((e, _)), Some((l, _))) if number - e <= l - number => earlier.next(),
                (Some(_), None) => earlier.next(),
                _ => later.next(),
            };
            let Some(control) = next else { break };
            controls.push(control);
        }
        controls
    }

    /// The differences of a trial, as they were when all was last compared.
    pub(crate) fn of(&self, number: u32) -> &[Seen] {
        self.trials.get(&number).map_or(&[], |own| &own.found)
    }

    /// All differences, in the order of the trials' numbers.
    pub(crate) fn seen(&self) -> impl Iterator<Item = &Seen> {
        self.trials.values().flat_map(|own| &own.found)
    }

    /// What the comparison could not tell, one sentence each: too few trials that can be compared, of
    /// which patch and why, and figures that are missing. It counts the trials that are compared.
    pub(crate) fn blind(&self, plan: &Plan, records: &BTreeMap<u32, TrialRecord>) -> Vec<String> {
        let mut gaps: BTreeMap<Gap, BTreeSet<u32>> = BTreeMap::new();
        for (number, own) in self.trials.iter().filter(|(_, own)| own.arm != Arm::Control) {
            for gap in self.compare(plan, *number, own, true).1 {
                gaps.entry(gap).or_default().insert(*number);
            }
        }
        blind::sentences(plan, records, &gaps)
    }
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

/// What a trial is compared by.
struct Usable<'a> {
    seq: u64,
    change: &'a Arc<Change>,
    cpu_share: Option<f64>,
}

/// The trial's phases, if they can be compared. Patched and control trials are held to the same.
fn usable(arm: Arm, record: &TrialRecord) -> Result<Usable<'_>, LeftOut> {
    if record.end.is_none() || !is_compared(arm) {
        return Err(LeftOut::Absent);
    }
    if !comparable(record) {
        return Err(LeftOut::Unfinished);
    }
    let (seq, change) = record.change.as_ref().ok_or(LeftOut::Unmeasured)?;
    match record.cpu_share {
        Some(share) if share < ENOUGH_CPU => Err(LeftOut::Starved),
        cpu_share => Ok(Usable { seq: *seq, change, cpu_share }),
    }
}

/// How one trial, of which a share of its planned CPU time is known, differs from the control trials next to it.
fn differs_from(plan: &Plan, own: (&Change, Option<f64>), near: &Near<'_>) -> Vec<Finding> {
    let limits = &plan.pipeline.limits;
    let (change, _) = own;
    if near.notes_gaps() {
        for workload in plan.workloads.iter().map(|w| w.name.as_str()).filter(|w| *w != AGING) {
            if !change.has_before(workload) {
                near.misses(|| format!("the rate of {workload}"), "it was not measured before the patch");
            }
        }
    }
    let slow = rates::slow(change, near);
    let mut found = Vec::new();
    let mut grown = Vec::new();
    for (place, work) in change.workloads() {
        // A rate that fell is explained by operations that grew less than would be a finding by itself.
        let fell = rates::of(&slow, &work.name).is_some_and(|s| s >= limits.slowdown);
        let least = if fell { rates::TWICE.min(limits.latency) } else { limits.latency };
        let ops = latency::grown((place, work), near, least);
        grown.push((&work.name, ops.iter().map(latency::Grown::factor).fold(1.0, f64::max)));
        found.extend(latency::longer(work, &ops, limits));
        found.extend(latency::fell_asleep((place, work), near));
        found.extend(latency::tail((place, work), near, limits));
    }
    found.extend(rates::collapsed(own, near, &slow, &grown, limits));
    found.extend(threads::starved(change, near, limits));
    found.extend(resources::leaks(change, near, limits));
    found
}

fn differs(kind: ObservedKind, title: String, workload: Option<&str>, evidence: String) -> Finding {
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
