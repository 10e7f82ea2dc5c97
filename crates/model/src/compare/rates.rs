//! Workloads that do fewer operations, each by itself or all together.

use std::sync::Arc;

use super::change::{Change, Work};
use super::latency::YARDSTICK;
use super::near::Near;
use super::{LEAST, differs};
use crate::event::Measured;
use crate::pipeline::Limits;
use crate::{Finding, ObservedKind};

/// What makes one workload stand out beside the others, or an operation explain a fallen rate.
pub(super) const TWICE: f64 = 2.0;

/// The yardstick is a fixed piece of arithmetic: a few of them tell how fast the CPU is.
const YARDSTICKS: u64 = 5;

/// How many times fewer operations each workload does than is usual in control trials, each against its own baseline.
pub(super) fn slow<'a>(own: &'a Change, near: &Near<'_>) -> Vec<(&'a Arc<str>, f64)> {
    let of = |(place, work): (usize, &'a Work)| {
        let name = &work.name;
        let what = || format!("the rate of {name}");
        let Some(slowness) = work.slowness else {
            let why = "it did fewer than 30 operations before the patch";
            const { assert!(LEAST == 30) };
            near.misses(what, why);
            return None;
        };
        let usual = near.usual(what, |c| c.work(place, name)?.slowness)?;
        Some((name, slowness / usual.times()))
    };
    own.workloads().filter_map(of).collect()
}

/// Of this workload, among figures of some.
pub(super) fn of(all: &[(&Arc<str>, f64)], workload: &str) -> Option<f64> {
    all.iter().find(|(name, _)| &***name == workload).map(|(_, figure)| *figure)
}

/// The workloads whose rate collapsed. `grown` is by how much the worst operation of each takes longer than usual.
///
/// What slows all of them alike is the host only if the CPU is worth less, as the yardstick tells, or if the machine did not get its CPU
/// time; and a trial that did not is not compared. Otherwise the patch takes the CPU away from everything, which is one finding.
pub(super) fn collapsed(
    (own, cpu_share): (&Change, Option<f64>),
    near: &Near<'_>,
    slow: &[(&Arc<str>, f64)],
    grown: &[(&Arc<str>, f64)],
    limits: &Limits,
) -> Vec<Finding> {
    if slow.iter().all(|(_, s)| *s < limits.slowdown) {
        return Vec::new();
    }
    let common = slow.iter().map(|(_, s)| *s).fold(f64::INFINITY, f64::min).max(1.0);
    let cpu = cpu(own, near);
    // By how much the yardstick does not explain it; without a yardstick, nothing is explained.
    let unexplained = |slowdown: f64| slowdown / cpu.unwrap_or(1.0) >= limits.slowdown;
    let whole = unexplained(common);
    let mut found = Vec::new();
    if whole && slow.len() > 1 {
        found.push(machine((own, cpu_share), slow, common, cpu));
    }
    for (workload, slowdown) in slow.iter().filter(|(_, s)| *s >= limits.slowdown) {
        let operation = of(grown, workload).is_some_and(|g| g >= TWICE);
        // Beside a finding for the whole machine only those that fell further still.
        let alone = if whole { slow.len() == 1 } else { cpu.is_some() && unexplained(*slowdown) };
        if *slowdown >= TWICE * common || operation || alone {
            found.push(differs(
                ObservedKind::RateCollapsed,
                format!("{workload} does far fewer operations with the patch"),
                Some(workload),
                format!(
                    "{slowdown:.1} times fewer than the control arm, each against its own baseline\n{}",
                    own.rates_of(workload)
                ),
            ));
        }
    }
    found
}

fn machine(
    (own, cpu_share): (&Change, Option<f64>),
    slow: &[(&Arc<str>, f64)],
    common: f64,
    cpu: Option<f64>,
) -> Finding {
    let share = match cpu_share {
        Some(share) => format!("the machine got {:.0} % of its CPU time", share * 100.0),
        None => "what CPU time the machine got is not known".to_owned(),
    };
    let cpu = match cpu {
        Some(cpu) => format!("its CPU was {cpu:.1} times slower by the yardstick"),
        None => "no yardstick was measured".to_owned(),
    };
    let lines = slow.iter().map(|(w, s)| {
        format!("{w}: {s:.1} times fewer; {}", own.rates_of(w).replace("\nafter: ", ", after: "))
    });
    let evidence = format!(
        "all workloads do at least {common:.1} times fewer operations than the control arm, each against its own baseline; {share}, and {cpu}\n{}",
        lines.collect::<Vec<_>>().join("\n")
    );
    differs(
        ObservedKind::RateCollapsed,
        "all workloads do far fewer operations with the patch".to_owned(),
        None,
        evidence,
    )
}

/// How many times slower the CPU became than in the control trials, by the yardstick; at least 1, none if it was not measured.
fn cpu(own: &Change, near: &Near<'_>) -> Option<f64> {
    let usual = median(near.controls().filter_map(|c| c.yardstick).collect()).unwrap_or(1.0);
    Some((own.yardstick? / usual).max(1.0))
}

/// How many times longer the yardstick takes in the soak, in the median of the workloads. Its 10th percentile: when nothing gets in its
/// way, it tells what the CPU is worth, and not how many want it.
pub(super) fn yardstick(before: &Measured, after: &Measured) -> Option<f64> {
    let of = |workload: &String| {
        let (before, after) = (before.workloads.get(workload)?, after.workloads.get(workload)?);
        let (b, a) = (before.latency.get(YARDSTICK)?, after.latency.get(YARDSTICK)?);
        let enough = b.count >= YARDSTICKS && a.count >= YARDSTICKS && b.p10_ns > 0;
        enough.then(|| a.p10_ns as f64 / b.p10_ns as f64)
    };
    median(before.workloads.keys().filter_map(of).collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
