//! Operations that take longer: the usual ones, those few that take longest, and calls that begin to sleep.

use super::{Change, LEAST, differs};
use crate::event::{LatencyMeasure, Measured, WorkloadMeasure};
use crate::pipeline::{AGING, Limits};
use crate::{FarmKind, Finding};

/// A workload that sleeps less than this share of its time, in the baseline and in all control trials, is one whose calls do not
/// sleep: only then its falling asleep says something.
const AWAKE: f64 = 0.06;

/// Falling asleep for this share of the time more than any control trial (and one that does not sleep: than before) is a finding. One call
/// in 200 that takes 300 ms makes a third. Of 162 measurements of workloads in control trials, 3 were so far above all others
/// of their run.
const ASLEEP: f64 = 0.10;

/// The operation that measures the processor and not the kernel.
const YARDSTICK: &str = "yardstick";

/// So many slow operations are the least that say something: fewer can be one bad moment.
const TAIL: u64 = 5;

/// Octaves of which operations may be slower than usual: the time asleep ends when the machine comes to it, and another
/// trial's machine may be four times slower as a whole.
const ALLOWED: u8 = 2;

/// Octaves that the guest tells apart, and the shortest duration in them, in milliseconds.
const OCTAVES: u8 = 16;
const SLOW_MS: f64 = 1.048_576;

/// Growth of an operation's latency, relative to the control that grew most.
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

/// Growth of all operations of a workload.
pub(super) fn grown(own: &Change<'_>, controls: &[Change<'_>], workload: &str) -> Vec<Grown> {
    let Some((before, _)) = own.both(workload) else { return Vec::new() };
    let of = |op: &String| {
        let (p10, median) = growth(own, workload, op)?;
        let (most_p10, most_median) = controls
            .iter()
            .filter_map(|c| growth(c, workload, op))
            .reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))?;
        // A control that happened to become faster accuses nobody.
        Some(Grown { op: op.clone(), p10: p10 / most_p10.max(1.0), median: median / most_median.max(1.0) })
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
    (b.count >= LEAST && a.count >= LEAST).then(|| (share(a.p10_ns, b.p10_ns), share(a.p50_ns, b.p50_ns)))
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

/// A workload that sleeps now, if it hardly slept before nor does without the patch; or one that sleeps more than in any control trial.
///
/// Of one that sleeps anyway the baseline is not looked at: so short a phase says little of it.
pub(super) fn fell_asleep(own: &Change<'_>, controls: &[Change<'_>], workload: &str) -> Option<Finding> {
    let asleep = |m: &Measured| m.workloads.get(workload).and_then(|w| w.asleep);
    let most = |phases: &[&Measured]| {
        phases.iter().map(|m| asleep(m)).try_fold(0.0, |most: f64, share| share.map(|s| most.max(s)))
    };
    let soaks: Vec<&Measured> = controls.iter().map(|c| c.after).collect();
    let all: Vec<&Measured> = controls.iter().flat_map(|c| [c.before, c.after]).chain([own.before]).collect();
    let share = asleep(own.after)?;
    let (what, usual) = match (most(&all)?, most(&soaks)?) {
        (all, _) if all < AWAKE => ("calls sleep that do not sleep without the patch", all),
        // What it does now differs from what it does next: so does how much it sleeps.
        _ if workload == AGING => return None,
        (_, soaks) => ("calls sleep longer than without the patch", soaks),
    };
    (share - usual >= ASLEEP).then(|| {
        let evidence = format!(
            "its threads spent {:.0} % of their time asleep, {:.0} % at most without the patch",
            share * 100.0,
            usual * 100.0
        );
        differs(FarmKind::LatencyGrown, format!("{workload}: {what}"), Some(workload), evidence)
    })
}

/// A workload of whose operations a larger share sleeps for long than before the patch and in any control trial.
///
/// Only operations that slept are counted: under a load that fills all CPUs the others have a long tail as well, from waiting for one.
pub(super) fn tail(
    own: &Change<'_>,
    controls: &[Change<'_>],
    workload: &str,
    limits: &Limits,
) -> Option<Finding> {
    let (before, after) = own.both(workload)?;
    let controls =
        controls.iter().filter_map(|c| c.both(workload)).flat_map(|(before, after)| [before, after]);
    let usual: Vec<&WorkloadMeasure> = controls.chain([before]).filter(|w| w.ops >= LEAST).collect();
    if after.ops < LEAST || usual.is_empty() {
        return None;
    }
    let share = |n: u64, w: &WorkloadMeasure| n as f64 / w.ops as f64;
    let all: u64 = usual.iter().map(|w| w.ops).sum();
    // What was not seen in all these phases may only be rare, so one more is taken for seen; and a single one in a short phase
    // tells no share.
    let most = |octave: u8| {
        let pooled = (usual.iter().map(|w| slept(w, octave)).sum::<u64>() + 1) as f64 / all as f64;
        usual.iter().map(|w| share(slept(w, octave).saturating_sub(1), w)).fold(pooled, f64::max)
    };
    let stands_out = |&octave: &u8| {
        let n = slept(after, octave + ALLOWED);
        n >= TAIL && share(n, after) >= limits.tail * most(octave)
    };
    // The longest that stand out.
    let octave = (0..OCTAVES - ALLOWED).rev().find(stands_out)? + ALLOWED;
    let ms = SLOW_MS * f64::from(1_u32 << octave);
    let op = worst(after, octave);
    let title = format!("{workload}: a few operations take very long with the patch");
    let evidence = format!(
        "{} of {} operations slept for {ms:.0} ms or more (most often {op}), {} of {} before the patch; in the control arm at most {:.4} %\n{}",
        slept(after, octave),
        after.ops,
        slept(before, octave),
        before.ops,
        usual.iter().map(|w| share(slept(w, octave), w)).fold(0.0, f64::max) * 100.0,
        table(own, workload, op)
    );
    Some(differs(FarmKind::TailGrown, title, Some(workload), evidence))
}

/// Operations that slept and took as long as `octave` or longer.
fn slept(workload: &WorkloadMeasure, octave: u8) -> u64 {
    workload.latency.values().map(|l| slept_of(l, octave)).sum()
}

fn slept_of(latency: &LatencyMeasure, octave: u8) -> u64 {
    latency.slept.iter().filter(|(o, _)| *o >= octave).map(|(_, n)| n).sum()
}

/// The operation that was slow most often.
fn worst(workload: &WorkloadMeasure, octave: u8) -> &str {
    let most = workload.latency.iter().max_by_key(|(_, l)| slept_of(l, octave));
    most.map_or("", |(op, _)| op)
}
