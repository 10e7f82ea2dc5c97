//! Operations that take longer: the usual ones, those few that take longest, and calls that begin to sleep.

use super::change::Change;
use super::near::Near;
use super::{LEAST, differs};
use crate::event::{LatencyMeasure, Measured, WorkloadMeasure};
use crate::pipeline::{AGING, Limits};
use crate::{FarmKind, Finding};

/// A workload that sleeps less than this share of its time, in the baseline and usually in control trials, is one whose calls do not
/// sleep: only then its falling asleep says something.
const AWAKE: f64 = 0.06;

/// Falling asleep for this share of the time more than is usual is a finding. One call in 200 that takes 300 ms makes a third.
///
/// Of 162 measurements of workloads in control trials, 3 were 0.10 above all others of their run, which a standard deviation of 0.075
/// explains; five such workloads are then above this in 0.4 % of trials at most, however few control trials there are
/// (`compare/tests/null.rs`).
const ASLEEP: f64 = 0.20;

/// The operation that measures the processor and not the kernel.
pub(super) const YARDSTICK: &str = "yardstick";

/// Fewer operations of a kind in a phase tell no percentile: of 48 huge pages in a baseline on an overloaded host the 10th percentile was 17 us,
/// and of 232 in the soak 557 us, without any fault.
const SAMPLED: u64 = 100;

/// This many slow operations are the least that say something: fewer can be one bad moment.
const TAIL: u64 = 10;

/// Octaves of which operations may be slower than usual: the time asleep ends when the machine comes to it, and another
/// trial's machine may be four times slower as a whole.
const ALLOWED: usize = 2;

/// Octaves that the guest tells apart, and the shortest duration in them, in milliseconds.
const OCTAVES: usize = 16;
const SLOW_MS: f64 = 1.048_576;

/// Growth of an operation's latency, relative to what is usual in control trials.
pub(super) struct Grown {
    pub(super) op: String,
    p10: f64,
    median: f64,
}

impl Grown {
    /// A lasting slow-down moves the whole distribution; what moves one of its points only is noise.
    pub(super) fn factor(&self) -> f64 {
        self.p10.min(self.median * 2.0)
    }
}

/// The operations of a workload that grew by `least` or more.
pub(super) fn grown(own: &Change<'_>, near: &Near<'_, '_>, workload: &str, least: f64) -> Vec<Grown> {
    let Some((before, _)) = own.both(workload) else { return Vec::new() };
    let of = |op: &String| {
        let (p10, median) = growth(own, workload, op)?;
        let alone = Grown { op: op.clone(), p10, median };
        // Whatever the control trials do, it can't come out as more.
        if alone.factor() < least {
            return None;
        }
        // A control that happened to become faster accuses nobody.
        let usual = |point: fn((f64, f64)) -> f64| {
            let what = || format!("the latency of {workload}: {op}");
            near.usual(what, |c| growth(c, workload, op).map(|g| point(g).max(1.0)))
        };
        let (usual_p10, usual_median) = (usual(|g| g.0)?, usual(|g| g.1)?);
        let grown =
            Grown { op: op.clone(), p10: p10 / usual_p10.times(), median: median / usual_median.times() };
        (grown.factor() >= least).then_some(grown)
    };
    before.latency.keys().filter(|op| *op != YARDSTICK).filter_map(of).collect()
}

/// The operations that grew by the limit.
pub(super) fn longer(own: &Change<'_>, ops: &[Grown], workload: &str, limits: &Limits) -> Vec<Finding> {
    let finding = |g: &Grown| {
        let title = format!("{workload}: {} takes far longer with the patch", g.op);
        let evidence = format!(
            "p10 x{:.1}, median x{:.1} against the control arm\n{}",
            g.p10,
            g.median,
            table(own, workload, &g.op)
        );
        differs(FarmKind::LatencyGrown, title, Some(workload), evidence)
    };
    ops.iter().filter(|g| g.factor() >= limits.latency).map(finding).collect()
}

/// Growth of `op`'s latency from baseline to soak: (10th percentile, median).
///
/// Not the mean: under a load that fills all CPUs it is the time spent waiting for a CPU.
fn growth(change: &Change<'_>, workload: &str, op: &str) -> Option<(f64, f64)> {
    let (before, after) = change.both(workload)?;
    let (b, a) = (before.latency.get(op)?, after.latency.get(op)?);
    let share = |a: u64, b: u64| a.max(1) as f64 / b.max(1) as f64;
    (b.count >= SAMPLED && a.count >= SAMPLED).then(|| (share(a.p10_ns, b.p10_ns), share(a.p50_ns, b.p50_ns)))
}

fn table(change: &Change<'_>, workload: &str, op: &str) -> String {
    let line = |name: &str, m: &Measured| match m.workloads.get(workload).and_then(|w| w.latency.get(op)) {
        Some(l) => format!(
            "{name}: {} operations, p10 {:.0} us, median {:.0} us, p99 {:.0} us, p99.9 {:.0} us, mean {:.0} us",
            l.count,
            l.p10_ns as f64 / 1e3,
            l.p50_ns as f64 / 1e3,
            l.p99_ns as f64 / 1e3,
            l.p999_ns as f64 / 1e3,
            l.mean_ns as f64 / 1e3
        ),
        None => format!("{name}: none"),
    };
    format!("{}\n{}", line("before", change.before), line("after", change.after))
}

/// A workload that sleeps now, if it hardly slept before nor does without the patch; or one that sleeps far more than control trials do.
///
/// Of one that sleeps anyway the baseline is not looked at: so short a phase says little of it.
pub(super) fn fell_asleep(own: &Change<'_>, near: &Near<'_, '_>, workload: &str) -> Option<Finding> {
    let asleep = |m: &Measured| m.workloads.get(workload).and_then(|w| w.asleep);
    let what = || format!("how long {workload} sleeps");
    let Some(share) = asleep(own.after) else {
        near.misses(what(), "it was not measured");
        return None;
    };
    if !near.know(what, |c| asleep(c.after).is_some()) || share < ASLEEP {
        return None;
    }
    let soaks = near.usual(what, |c| asleep(c.after))?;
    let whole = near.usual(what, |c| Some(asleep(c.before)?.max(asleep(c.after)?)));
    let awake = asleep(own.before).is_some_and(|s| s < AWAKE) && whole.is_some_and(|u| u.left() < AWAKE);
    let what = if awake {
        "calls sleep that do not sleep without the patch"
    } else if workload == AGING {
        // What it does now differs from what it does next: so does how much it sleeps.
        return None;
    } else {
        "calls sleep longer than without the patch"
    };
    // Workloads that do not sleep vary too little to need a margin for few control trials.
    let most = if awake { soaks.left() + ASLEEP } else { soaks.plus(ASLEEP) };
    (share >= most).then(|| {
        let evidence = format!(
            "its threads spent {:.0} % of their time asleep, usually {:.0} % at most without the patch",
            share * 100.0,
            soaks.left() * 100.0
        );
        differs(FarmKind::LatencyGrown, format!("{workload}: {what}"), Some(workload), evidence)
    })
}

/// Operations of a workload in one phase, all of them and those that slept for so long or longer, by octave.
struct SleptIn {
    ops: u64,
    slept: [u64; OCTAVES],
}

impl SleptIn {
    fn of(workload: &WorkloadMeasure) -> Self {
        let mut slept = [0; OCTAVES];
        for (octave, n) in workload.latency.values().flat_map(|l| &l.slept) {
            slept[usize::from(*octave).min(OCTAVES - 1)] += n;
        }
        for octave in (1..OCTAVES).rev() {
            slept[octave - 1] += slept[octave];
        }
        Self { ops: workload.ops, slept }
    }

    /// The share that slept for so long, a single one left out: in a short phase it tells no share. None where the phase has too few.
    fn share(&self, octave: usize) -> Option<f64> {
        (self.ops >= LEAST).then(|| self.slept[octave].saturating_sub(1) as f64 / self.ops as f64)
    }
}

/// Operations that slept, in both phases of a trial.
pub(super) struct Slept {
    before: SleptIn,
    after: SleptIn,
}

impl Slept {
    pub(super) fn of(before: &WorkloadMeasure, after: &WorkloadMeasure) -> Self {
        Self { before: SleptIn::of(before), after: SleptIn::of(after) }
    }

    fn phases(&self) -> impl Iterator<Item = &SleptIn> {
        [&self.before, &self.after].into_iter().filter(|p| p.ops >= LEAST)
    }

    /// The larger share of both phases.
    fn share(&self, octave: usize) -> Option<f64> {
        self.phases().filter_map(|p| p.share(octave)).reduce(f64::max)
    }
}

/// A workload of whose operations a larger share sleeps for long than before the patch and than is usual in control trials.
///
/// Only operations that slept are counted: under a load that fills all CPUs the others have a long tail as well, from waiting for one.
pub(super) fn tail(
    own: &Change<'_>,
    near: &Near<'_, '_>,
    workload: &str,
    limits: &Limits,
) -> Option<Finding> {
    let (_, after) = own.both(workload)?;
    let slept = own.slept(workload)?;
    let SleptIn { ops, slept: now } = &slept.after;
    let what = || format!("the longest calls of {workload}");
    let stands_out = |&octave: &usize| {
        let n = now[octave + ALLOWED];
        let share = n as f64 / *ops as f64;
        let before = slept.before.share(octave).unwrap_or(0.0);
        if *ops < LEAST || n < TAIL || share < limits.tail * before {
            return false;
        }
        let Some(usual) = near.usual(what, |c| c.slept(workload)?.share(octave)) else { return false };
        share >= limits.tail * usual.times().max(pooled(slept, near, workload, octave, usual.left()))
    };
    // The longest that stand out.
    let octave = (0..OCTAVES - ALLOWED).rev().find(stands_out)? + ALLOWED;
    let usual = near.usual(what, |c| c.slept(workload)?.share(octave))?;
    let ms = SLOW_MS * f64::from(1_u32 << octave);
    let op = worst(after, octave);
    let title = format!("{workload}: a few operations take very long with the patch");
    let evidence = format!(
        "{} of {ops} operations slept for {ms:.0} ms or more (most often {op}), {} of {} before the patch; in the control arm usually {:.4} % at most\n{}",
        now[octave],
        slept.before.slept[octave],
        slept.before.ops,
        usual.left() * 100.0,
        table(own, workload, op)
    );
    Some(differs(FarmKind::TailGrown, title, Some(workload), evidence))
}

/// The share that slept for so long in all phases without the patch together, of the control trials those whose own is not above `most`.
/// What was not seen in all these phases may only be rare, so one more is taken for seen.
fn pooled(own: &Slept, near: &Near<'_, '_>, workload: &str, octave: usize, most: f64) -> f64 {
    let usual = near.controls().filter_map(|c| c.slept(workload));
    let usual = usual.filter(|s| s.share(octave).is_some_and(|share| share <= most));
    let before = Some(&own.before).filter(|p| p.ops >= LEAST);
    let phases = usual.flat_map(Slept::phases).chain(before);
    let (slept, ops) = phases.fold((1, 0), |(n, ops), p| (n + p.slept[octave], ops + p.ops));
    slept as f64 / ops.max(1) as f64
}

fn slept_of(latency: &LatencyMeasure, octave: usize) -> u64 {
    latency.slept.iter().filter(|(o, _)| usize::from(*o) >= octave).map(|(_, n)| n).sum()
}

/// The operation that was slow most often.
fn worst(workload: &WorkloadMeasure, octave: usize) -> &str {
    let most = workload.latency.iter().max_by_key(|(_, l)| slept_of(l, octave));
    most.map_or("", |(op, _)| op)
}
