//! Operations that take longer: the usual ones, those few that take longest, and calls that begin to sleep.

use std::sync::Arc;

use super::change::{Basis, Change, Names, Work};
use super::near::Near;
use super::{LEAST, differs};
use crate::event::{LatencyMeasure, WorkloadMeasure};
use crate::pipeline::{AGING, Limits};
use crate::{Finding, ObservedKind};

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

/// One kind of operation in both phases.
#[derive(Debug)]
pub(super) struct Op {
    name: Arc<str>,
    /// How many times longer it takes in the soak: 10th percentile and median.
    ///
    /// Not the mean: under a load that fills all CPUs it is the time spent waiting for a CPU.
    growth: (f64, f64),
}

/// The operations of which both phases have enough. The yardstick tells of the processor.
pub(super) fn ops(before: &WorkloadMeasure, after: &WorkloadMeasure, names: &mut Names) -> Vec<Op> {
    let share = |a: u64, b: u64| a.max(1) as f64 / b.max(1) as f64;
    let both = before.latency.iter().filter_map(|(op, b)| Some((op, b, after.latency.get(op)?)));
    both.filter(|(op, b, a)| *op != YARDSTICK && b.count >= SAMPLED && a.count >= SAMPLED)
        .map(|(op, b, a)| Op {
            name: names.of(op),
            growth: (share(a.p10_ns, b.p10_ns), share(a.p50_ns, b.p50_ns)),
        })
        .collect()
}

/// Growth of an operation's latency, relative to what is usual in control trials.
pub(super) struct Grown {
    op: Arc<str>,
    p10: f64,
    median: f64,
}

impl Grown {
    /// A lasting slow-down moves the whole distribution; what moves one of its points only is noise.
    pub(super) fn factor(&self) -> f64 {
        factor((self.p10, self.median))
    }
}

fn factor((p10, median): (f64, f64)) -> f64 {
    p10.min(median * 2.0)
}

/// The operations of the workload in this place that grew by `least` or more.
pub(super) fn grown(own: (usize, &Work), near: &Near<'_>, least: f64) -> Vec<Grown> {
    let (place, work) = own;
    let of = |op: &Op| {
        // Whatever the control trials do, it can't come out as more.
        if factor(op.growth) < least {
            return None;
        }
        let (p10, median) = op.growth;
        // A control that happened to become faster accuses nobody.
        let usual = |point: fn((f64, f64)) -> f64| {
            let what = || format!("the latency of {}: {}", work.name, op.name);
            let growth = |c: &Change| c.work(place, &work.name)?.growth(&op.name);
            near.usual(what, |c| growth(c).map(|g| point(g).max(1.0)))
        };
        let (usual_p10, usual_median) = (usual(|g| g.0)?, usual(|g| g.1)?);
        let grown = Grown {
            op: op.name.clone(),
            p10: p10 / usual_p10.times(),
            median: median / usual_median.times(),
        };
        (grown.factor() >= least).then_some(grown)
    };
    work.ops.iter().filter_map(of).collect()
}

/// The operations that grew by the limit.
pub(super) fn longer(own: &Work, ops: &[Grown], limits: &Limits) -> Vec<Finding> {
    let finding = |g: &Grown| {
        let title = format!("{}: {} takes far longer with the patch", own.name, g.op);
        let evidence = format!(
            "p10 x{:.1}, median x{:.1} against the control arm\n{}",
            g.p10,
            g.median,
            own.table(&g.op)
        );
        differs(ObservedKind::LatencyGrown, title, Some(&own.name), evidence)
    };
    ops.iter().filter(|g| g.factor() >= limits.latency).map(finding).collect()
}

impl Work {
    fn growth(&self, op: &str) -> Option<(f64, f64)> {
        let at = self.ops.binary_search_by(|o| (*o.name).cmp(op)).ok()?;
        Some(self.ops[at].growth)
    }

    fn table(&self, op: &str) -> String {
        self.tables.iter().find(|t| &*t.op == op).map(Table::text).unwrap_or_default()
    }
}

/// An operation's figures in the baseline and in the soak.
#[derive(Debug)]
pub(super) struct Table {
    op: Arc<str>,
    phases: [Option<LatencyMeasure>; 2],
}

impl Table {
    fn text(&self) -> String {
        let line = |name: &str, measure: &Option<LatencyMeasure>| match measure {
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
        format!("{}\n{}", line("before", &self.phases[0]), line("after", &self.phases[1]))
    }
}

/// The figures of the operations that may be part of a finding, whatever the control trials do.
pub(super) fn tables(
    (before, after): (&WorkloadMeasure, &WorkloadMeasure),
    ops: &[Op],
    slept: &Slept,
    limits: &Limits,
) -> Vec<Table> {
    let longer = ops.iter().filter(|op| factor(op.growth) >= limits.latency).map(|op| op.name.clone());
    let mut shown: Vec<Arc<str>> = longer.collect();
    shown.extend(slept.may.iter().map(|(_, op)| op.clone()));
    shown.sort();
    shown.dedup();
    let of = |workload: &WorkloadMeasure, op: &str| {
        workload.latency.get(op).map(|l| LatencyMeasure { slept: Vec::new(), ..l.clone() })
    };
    let table = |op: Arc<str>| Table { phases: [of(before, &op), of(after, &op)], op };
    shown.into_iter().map(table).collect()
}

/// A workload that sleeps now, if it hardly slept before nor does without the patch; or one that sleeps far more than control trials do.
///
/// Of one that sleeps anyway the baseline is not looked at: so short a phase says little of it.
pub(super) fn fell_asleep(own: (usize, &Work), near: &Near<'_>) -> Option<Finding> {
    let (place, work) = own;
    let workload = &work.name;
    let before = |c: &Change| c.work(place, workload)?.before?.asleep;
    let after = |c: &Change| c.work(place, workload)?.after?.asleep;
    let what = || format!("how long {workload} sleeps");
    let Some(share) = work.after.and_then(|a| a.asleep) else {
        near.misses(what, "it was not measured");
        return None;
    };
    if !near.know(what, |c| after(c).is_some()) || share < ASLEEP {
        return None;
    }
    let soaks = near.usual(what, after)?;
    let whole = near.usual(what, |c| Some(before(c)?.max(after(c)?)));
    let slept_before = work.before.and_then(|b| b.asleep);
    let awake = slept_before.is_some_and(|s| s < AWAKE) && whole.is_some_and(|u| u.left() < AWAKE);
    let what = if awake {
        "calls sleep that do not sleep without the patch"
    } else if &**workload == AGING {
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
        differs(ObservedKind::LatencyGrown, format!("{workload}: {what}"), Some(workload), evidence)
    })
}

/// Operations of a workload in one phase, all of them and those that slept for so long or longer, by octave.
#[derive(Debug)]
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
#[derive(Debug)]
pub(super) struct Slept {
    before: SleptIn,
    after: SleptIn,
    /// Octaves in which the soak may stand out, whatever the control trials do; and the operation that slept for so long most often.
    may: Vec<(usize, Arc<str>)>,
}

impl Slept {
    pub(super) fn of(before: &WorkloadMeasure, after: &WorkloadMeasure, basis: &mut Basis<'_>) -> Self {
        let Basis { limits, names, .. } = basis;
        let mut worst = |octave: usize| (octave, names.of(worst(after, octave + ALLOWED)));
        let [before, soak] = [before, after].map(SleptIn::of);
        let may = |octave: &usize| {
            let n = soak.slept[octave + ALLOWED];
            let before = before.share(*octave).unwrap_or(0.0);
            soak.ops >= LEAST && n >= TAIL && n as f64 / soak.ops as f64 >= limits.tail * before
        };
        let may = (0..OCTAVES - ALLOWED).filter(may).map(&mut worst).collect();
        Self { before, after: soak, may }
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
pub(super) fn tail(own: (usize, &Work), near: &Near<'_>, limits: &Limits) -> Option<Finding> {
    let (place, work) = own;
    let slept = work.slept.as_ref()?;
    let SleptIn { ops, slept: now } = &slept.after;
    let what = || format!("the longest calls of {}", work.name);
    let of = |c: &Change, octave: usize| c.work(place, &work.name)?.slept.as_ref()?.share(octave);
    let stands_out = |(octave, _): &&(usize, Arc<str>)| {
        let share = now[octave + ALLOWED] as f64 / *ops as f64;
        let Some(usual) = near.usual(what, |c| of(c, *octave)) else { return false };
        share >= limits.tail * usual.times().max(pooled(own, near, *octave, usual.left()))
    };
    // The longest that stand out.
    let (octave, op) = slept.may.iter().rev().find(stands_out)?;
    let octave = octave + ALLOWED;
    let usual = near.usual(what, |c| of(c, octave))?;
    let ms = SLOW_MS * f64::from(1_u32 << octave);
    let title = format!("{}: a few operations take very long with the patch", work.name);
    let evidence = format!(
        "{} of {ops} operations slept for {ms:.0} ms or more (most often {op}), {} of {} before the patch; in the control arm usually {:.4} % at most\n{}",
        now[octave],
        slept.before.slept[octave],
        slept.before.ops,
        usual.left() * 100.0,
        work.table(op)
    );
    Some(differs(ObservedKind::TailGrown, title, Some(&work.name), evidence))
}

/// The share that slept for so long in all phases without the patch together, of the control trials those whose own is not above `most`.
/// What was not seen in all these phases may only be rare, so one more is taken for seen.
fn pooled((place, work): (usize, &Work), near: &Near<'_>, octave: usize, most: f64) -> f64 {
    let usual = near.controls().filter_map(|c| c.work(place, &work.name)?.slept.as_ref());
    let usual = usual.filter(|s| s.share(octave).is_some_and(|share| share <= most));
    let before = work.slept.as_ref().map(|own| &own.before).filter(|p| p.ops >= LEAST);
    let phases = usual.flat_map(|s| s.phases()).chain(before);
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
