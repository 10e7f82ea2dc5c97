//! Starvation: a thread that falls behind all others.

use super::{Change, LEAST, differs};
use crate::pipeline::{AGING, Limits};
use crate::{FarmKind, Finding};

/// A thread with fewer siblings than this, itself counted, is held against all threads of the machine.
const SIBLINGS: usize = 3;

/// A thread that starves falls behind by so much more than any in the control trials.
const BEYOND: f64 = 1.5;

/// The thread that fell behind most, if by the limit more than any thread did in the control trials.
///
/// One finding for all workloads: which thread it is that starves is chance, and so differs from trial to trial.
pub(super) fn starved(own: &Change<'_>, controls: &[Change<'_>], limits: &Limits) -> Option<Finding> {
    let own = worst(own)?;
    let usual = controls.iter().filter_map(worst).map(|w| w.fall).reduce(f64::max)?;
    (own.fall >= limits.starved && own.fall >= usual * BEYOND).then(|| {
        let evidence = format!(
            "{:.1} times fewer operations than before, when {} do as many as before; {usual:.1} times at most in the control arm\nbefore: {} operations in {:.1} s\nafter: {} operations in {:.1} s",
            own.fall,
            if own.siblings { "its siblings" } else { "the other threads" },
            own.before.0,
            own.before.1 as f64 / 1000.0,
            own.after.0,
            own.after.1 as f64 / 1000.0
        );
        let title = format!("{}: one thread starves beside the others with the patch", own.workload);
        differs(FarmKind::ThreadStarved, title, None, evidence)
    })
}

struct Thread<'a> {
    workload: &'a str,
    /// Rate in the soak as a share of the baseline's.
    kept: f64,
    /// Operations, and milliseconds in which they were done.
    before: (u64, u64),
    after: (u64, u64),
}

struct Fallen<'a> {
    workload: &'a str,
    /// How many times less the thread kept of its rate than the others.
    fall: f64,
    siblings: bool,
    before: (u64, u64),
    after: (u64, u64),
}

/// The thread that fell behind most.
fn worst<'a>(change: &Change<'a>) -> Option<Fallen<'a>> {
    let threads = threads(change);
    let fallen = |t: &Thread<'a>| {
        let siblings: Vec<f64> =
            threads.iter().filter(|s| s.workload == t.workload).map(|s| s.kept).collect();
        let alone = siblings.len() < SIBLINGS;
        let usual = median(if alone { threads.iter().map(|s| s.kept).collect() } else { siblings });
        Fallen {
            workload: t.workload,
            fall: usual / t.kept,
            siblings: !alone,
            before: t.before,
            after: t.after,
        }
    };
    (threads.len() >= SIBLINGS)
        .then(|| threads.iter().map(fallen).max_by(|a, b| a.fall.total_cmp(&b.fall)))
        .flatten()
}

/// All threads that did enough before to be compared. Those of `aging` do now this and now that.
fn threads<'a>(change: &Change<'a>) -> Vec<Thread<'a>> {
    let mut all = Vec::new();
    for workload in change.workloads().filter(|w| *w != AGING) {
        let Some((before, after)) = change.both(workload) else { continue };
        for &(id, ops) in before.by_thread.iter().filter(|(_, ops)| *ops >= LEAST) {
            let Some(&(_, now)) = after.by_thread.iter().find(|(other, _)| *other == id) else { continue };
            let (before, after) = ((ops, change.before.window_ms), (now, change.after.window_ms));
            // One that did nothing at all still has to compare: half an operation stands for none.
            let rate = |(ops, ms): (u64, u64)| (ops as f64).max(0.5) / ms.max(1) as f64;
            all.push(Thread { workload, kept: rate(after) / rate(before), before, after });
        }
    }
    all
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(1.0)
}
