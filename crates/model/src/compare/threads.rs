//! Starvation: a thread that falls behind all others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::{Change, Names};
use super::near::Near;
use super::{LEAST, differs};
use crate::event::Measured;
use crate::pipeline::{AGING, Limits};
use crate::{Finding, ObservedKind};

/// A thread with fewer siblings than this, itself counted, is held against all threads of the machine.
const SIBLINGS: usize = 3;

/// A thread that starves falls behind by so much more than is usual in control trials.
const BEYOND: f64 = 1.5;

/// The thread that fell behind most, if by the limit, and far more than the worst thread of a control trial usually does.
///
/// One finding for all workloads: which thread it is that starves is chance, and so differs from trial to trial.
pub(super) fn starved(own: &Change, near: &Near<'_>, limits: &Limits) -> Option<Finding> {
    let what = || "how single threads fall behind".to_owned();
    let Some(own) = &own.fallen else {
        near.misses(what, "too few threads did enough before the patch");
        return None;
    };
    let usual = near.usual(what, |c| c.fallen.as_ref().map(|f| f.fall))?;
    (own.fall >= limits.starved && own.fall >= usual.times() * BEYOND).then(|| {
        let evidence = format!(
            "{:.1} times fewer operations than before, when {} do as many as before; usually {:.1} times at most in the control arm\nbefore: {} operations in {:.1} s\nafter: {} operations in {:.1} s",
            own.fall,
            if own.siblings { "its siblings" } else { "the other threads" },
            usual.left(),
            own.before.0,
            own.before.1 as f64 / 1000.0,
            own.after.0,
            own.after.1 as f64 / 1000.0
        );
        let title = format!("{}: one thread starves beside the others with the patch", own.workload);
        differs(ObservedKind::ThreadStarved, title, None, evidence)
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

/// The thread of a trial that fell behind most.
#[derive(Debug)]
pub(super) struct Fallen {
    workload: Arc<str>,
    /// How many times less the thread kept of its rate than the others.
    pub(super) fall: f64,
    siblings: bool,
    before: (u64, u64),
    after: (u64, u64),
}

/// The thread that fell behind most.
pub(super) fn worst(before: &Measured, after: &Measured, names: &mut Names) -> Option<Fallen> {
    let threads = threads(before, after);
    if threads.len() < SIBLINGS {
        return None;
    }
    let mut kept: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    threads.iter().for_each(|t| kept.entry(t.workload).or_default().push(t.kept));
    let all = median(threads.iter().map(|t| t.kept).collect());
    // None for a workload with too few threads.
    let usual: BTreeMap<&str, Option<f64>> =
        kept.into_iter().map(|(w, kept)| (w, (kept.len() >= SIBLINGS).then(|| median(kept)))).collect();
    let of = |t: &Thread<'_>| usual.get(t.workload).copied().flatten();
    let fall = |t: &Thread<'_>| of(t).unwrap_or(all) / t.kept;
    let worst = threads.iter().max_by(|a, b| fall(a).total_cmp(&fall(b)))?;
    Some(Fallen {
        workload: names.of(worst.workload),
        fall: fall(worst),
        siblings: of(worst).is_some(),
        before: worst.before,
        after: worst.after,
    })
}

/// All threads that did enough before to be compared. Those of `aging` do now this and now that.
fn threads<'a>(before: &'a Measured, after: &Measured) -> Vec<Thread<'a>> {
    let mut all = Vec::new();
    for (workload, own) in before.workloads.iter().filter(|(w, _)| *w != AGING) {
        let Some(later) = after.workloads.get(workload) else { continue };
        for &(id, ops) in own.by_thread.iter().filter(|(_, ops)| *ops >= LEAST) {
            let Some(&(_, now)) = later.by_thread.iter().find(|(other, _)| *other == id) else { continue };
            let (before, after) = ((ops, before.window_ms), (now, after.window_ms));
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
