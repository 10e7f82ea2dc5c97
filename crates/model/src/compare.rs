//! Slow-downs, by comparing a patched trial with the control trials.
//!
//! A shared host's speed drifts threefold within minutes, so no absolute number counts. Each trial is compared with its own
//! baseline first, and that change with the change the control trials went through in the same phases.

use std::collections::BTreeMap;

use crate::event::{LatencyMeasure, Measured, Scope, WorkloadMeasure};
use crate::judge::{Seen, TrialRecord, comparable};
use crate::plan::Trial;
use crate::verdict::ArmCount;
use crate::{Arm, FarmKind, Finding, Phase, Plan, Source};

/// Fewer observations than this in a phase say nothing.
const LEAST: u64 = 30;

/// A workload that sleeps less than this share of its time, in the baseline and in all control trials, is one whose calls do not
/// sleep: only then its falling asleep says something.
const AWAKE: f64 = 0.06;

/// Falling asleep for this share of the time more than before and than any control trial is a finding. One call in 200 that takes
/// 300 ms makes a third.
const ASLEEP: f64 = 0.10;

/// Growth during the soak, beyond what the control trials grew by, that counts as a leak: unreclaimable slab and memory that is no
/// longer available in KiB, tasks. Measured on sound machines: 0.2 MiB, 20 MiB and 5 in half a minute.
const SLAB_KIB: i64 = 4 << 10;
const AVAILABLE_KIB: i64 = 96 << 10;
const TASKS: i64 = 150;

/// The operation that measures the processor and not the kernel.
const YARDSTICK: &str = "yardstick";

/// Fewer control trials than this say nothing of what is usual: each is compared with the others as well.
const CONTROLS: usize = 3;

/// Loaded trials that must agree before four of four against none of three controls is no chance (Fisher: p = 0.029).
const LOADED: u32 = 4;

/// Patched arms whose soak is that of the control arm in all but the patch.
pub(crate) const PATCHED: [Arm; 2] = [Arm::Loaded, Arm::Stack];

/// What the comparison can't show with so few trials.
pub(crate) fn blind(arms: &BTreeMap<Arm, ArmCount>) -> Option<String> {
    let of = |arm: Arm| arms.get(&arm).map_or(0, |n| n.clean + n.failed + n.unclear);
    let (loaded, control) = (of(Arm::Loaded), of(Arm::Control));
    (loaded < LOADED || (control as usize) < CONTROLS).then(|| {
        format!("comparison: slow-downs and leaks can't be told from chance with {loaded} loaded and {control} control trials; {LOADED} and {CONTROLS} are needed")
    })
}

/// All differences that only a comparison shows: of loaded trials with the control trials, and of each control trial with the
/// others, which tells how much chance does.
pub(crate) fn differences(plan: &Plan, records: &BTreeMap<u32, TrialRecord>) -> Vec<Seen> {
    let done = |t: &&Trial| comparable(&records[&t.number]);
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
        let ops: Vec<(&str, Grown)> =
            own.ops(workload).filter_map(|op| Some((op, grown(&own, &controls, workload, op)?))).collect();
        let worst = ops.iter().map(|(_, g)| g.factor()).fold(1.0, f64::max);
        for (op, g) in ops.iter().filter(|(_, g)| g.factor() >= limits.latency) {
            found.push(finding(
                FarmKind::LatencyGrown,
                format!("{workload}: {op} takes far longer with the patch"),
                workload,
                format!(
                    "p10 x{:.1}, median x{:.1} against the control arm\n{}",
                    g.p10,
                    g.median,
                    own.table(workload, op)
                ),
            ));
        }
        if let Some(share) = fell_asleep(&own, &controls, workload) {
            found.push(finding(
                FarmKind::LatencyGrown,
                format!("{workload}: calls sleep that do not sleep without the patch"),
                workload,
                format!("its threads spent {:.0} % of their time asleep, and hardly any before the patch and without it", share * 100.0),
            ));
        }
        if slowdown >= limits.slowdown && (slowdown >= 2.0 * common || worst >= 2.0) {
            found.push(finding(
                FarmKind::RateCollapsed,
                format!("{workload} does far fewer operations with the patch"),
                workload,
                format!(
                    "{slowdown:.1} times fewer than the control arm, each against its own baseline\n{}",
                    own.rates(workload)
                ),
            ));
        }
    }
    if let Some(evidence) = leaked(&own, &controls) {
        found.push(Finding {
            workload: None,
            ..finding(
                FarmKind::ResourcesLeaked,
                "the kernel gives out what it does not get back".into(),
                "",
                evidence,
            )
        });
    }
    let scope = Scope { trial: place.number, arm: place.arm, phase: Phase::Soak };
    found.into_iter().map(|finding| Seen { seq: *seq, scope, finding }).collect()
}

fn finding(kind: FarmKind, title: String, workload: &str, evidence: String) -> Finding {
    Finding {
        kind: kind.into(),
        title,
        source: Source::Comparison,
        function: None,
        workload: Some(workload.to_owned()),
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

    fn workloads(&self) -> impl Iterator<Item = &'a str> {
        self.before.workloads.keys().map(String::as_str)
    }

    fn both(&self, workload: &str) -> Option<(&'a WorkloadMeasure, &'a WorkloadMeasure)> {
        Some((self.before.workloads.get(workload)?, self.after.workloads.get(workload)?))
    }

    fn ops(&self, workload: &str) -> impl Iterator<Item = &'a str> {
        let before = self.before.workloads.get(workload);
        before.into_iter().flat_map(|w| w.latency.keys()).map(String::as_str).filter(|op| *op != YARDSTICK)
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

    /// Growth of `op`'s latency from baseline to soak: (10th percentile, median).
    ///
    /// Not the mean: under a load that fills all CPUs it is the time spent waiting for a CPU.
    fn latency(&self, workload: &str, op: &str) -> Option<(f64, f64)> {
        let (before, after) = self.both(workload)?;
        let (b, a) = (before.latency.get(op)?, after.latency.get(op)?);
        (b.count >= LEAST && a.count >= LEAST).then(|| (share(a.p10_ns, b.p10_ns), share(a.p50_ns, b.p50_ns)))
    }

    fn table(&self, workload: &str, op: &str) -> String {
        let line = |name: &str, l: Option<&LatencyMeasure>| match l {
            Some(l) => format!(
                "{name}: {} operations, p10 {:.0} us, median {:.0} us, p99 {:.0} us, mean {:.0} us",
                l.count,
                l.p10_ns as f64 / 1e3,
                l.p50_ns as f64 / 1e3,
                l.p99_ns as f64 / 1e3,
                l.mean_ns as f64 / 1e3
            ),
            None => format!("{name}: none"),
        };
        let of = |m: &'a Measured| m.workloads.get(workload).and_then(|w| w.latency.get(op));
        format!("{}\n{}", line("before", of(self.before)), line("after", of(self.after)))
    }

    fn rates(&self, workload: &str) -> String {
        let of = |m: &Measured| m.workloads.get(workload).map_or(0.0, |w| w.rate(m.window_ms));
        format!("before: {:.1} operations/s\nafter: {:.1} operations/s", of(self.before), of(self.after))
    }
}

fn share(a: u64, b: u64) -> f64 {
    a.max(1) as f64 / b.max(1) as f64
}

/// How many times less `own` is than the least of the controls: the control that looks most like the patched trial decides,
/// so that one lucky control accuses nobody.
fn against<'a>(controls: &[Change<'a>], of: impl Fn(&Change<'a>) -> Option<f64>, own: f64) -> Option<f64> {
    let least = controls.iter().filter_map(of).fold(f64::INFINITY, f64::min);
    least.is_finite().then(|| least / own)
}

/// What grew in the soak beyond all control trials, in words.
fn leaked(own: &Change<'_>, controls: &[Change<'_>]) -> Option<String> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let growth = |m: &Measured| {
        let (first, last) = m.resources?;
        let slab = number(last.slab_unreclaimable_kib) - number(first.slab_unreclaimable_kib);
        let used = number(first.available_kib) - number(last.available_kib);
        Some([slab, used, number(last.tasks) - number(first.tasks)])
    };
    let own = growth(own.after)?;
    let usual = controls
        .iter()
        .filter_map(|c| growth(c.after))
        .reduce(|a, b| std::array::from_fn(|i| a[i].max(b[i])))?;
    let names = [
        ("unreclaimable slab", "KiB", SLAB_KIB),
        ("memory in use", "KiB", AVAILABLE_KIB),
        ("tasks", "", TASKS),
    ];
    let parts: Vec<String> = (0..3)
        .filter(|&i| own[i] - usual[i].max(0) >= names[i].2)
        .map(|i| {
            format!(
                "{}: grew by {} {} during the soak, by {} in the control arm",
                names[i].0, own[i], names[i].1, usual[i]
            )
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// The share of time a workload sleeps now, if it hardly slept before nor does without the patch.
fn fell_asleep(own: &Change<'_>, controls: &[Change<'_>], workload: &str) -> Option<f64> {
    let asleep = |m: &Measured| m.workloads.get(workload).and_then(|w| w.asleep);
    let usual = controls.iter().flat_map(|c| [c.before, c.after]).chain([own.before]);
    let most = usual.map(asleep).try_fold(0.0, |most: f64, share| share.map(|s| most.max(s)))?;
    let share = asleep(own.after)?;
    (most < AWAKE && share - most >= ASLEEP).then_some(share)
}

/// Growth of an operation's latency, relative to the control that grew most.
struct Grown {
    p10: f64,
    median: f64,
}

impl Grown {
    /// A lasting slow-down moves the whole distribution; what moves one of its points only is noise.
    fn factor(&self) -> f64 {
        self.p10.min(self.median * 2.0)
    }
}

fn grown(own: &Change<'_>, controls: &[Change<'_>], workload: &str, op: &str) -> Option<Grown> {
    let (p10, median) = own.latency(workload, op)?;
    let (most_p10, most_median) = controls
        .iter()
        .filter_map(|c| c.latency(workload, op))
        .reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))?;
    // A control that happened to become faster accuses nobody.
    Some(Grown { p10: p10 / most_p10.max(1.0), median: median / most_median.max(1.0) })
}
