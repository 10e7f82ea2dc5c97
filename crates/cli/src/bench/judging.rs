//! What judging costs: runs that are made up, as long as a night and as a month.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use klpfarm_model::event::{LatencyMeasure, Measured, Resources, WorkloadMeasure};
use klpfarm_model::simulation::Chance;
use klpfarm_model::{
    Arm, Body, Event, FarmKind, Finding, ImageFacts, Judge, Patch, Phase, Pipeline, Plan, Resolved, Scope,
    Source, Tier, TierRule, Trial, TrialEnd,
};
use nix::time::{ClockId, clock_gettime};

use super::figure::{Expected, Figure, Table, Unit};
use super::proc;
use crate::failure::Failure;

/// Trials of the runs that are judged.
const SIZES: [u32; 4] = [300, 1000, 3000, 10_000];

/// Decisions at the end of a run that are looked at.
const LAST: usize = 100;

/// Share of the trials that stall, whatever is done.
const NOISE: f64 = 0.01;

/// Workloads of the pipeline `gate`, and operations of each.
const WORKLOADS: [&str; 7] = [
    "aging",
    "file-io-fsync",
    "fork-exec-churn",
    "madvise-allocator",
    "madvise-solo",
    "page-fault-storm",
    "syscall-mix",
];
const OPERATIONS: u32 = 14;

pub(super) fn measure() -> Result<Table, Failure> {
    let mut figures = Vec::new();
    let mut each = Vec::new();
    for trials in SIZES {
        super::lab::say(&format!("judging {trials} trials"));
        let (order, decisions) = follow(trials)?;
        let Cost { cpu, memory } = at_once(&order)?;
        let seconds = cpu.as_secs_f64();
        each.push(seconds / f64::from(trials));
        let most = trials == SIZES[SIZES.len() - 1];
        let expecting = |figure: Figure, expected| if most { figure.expecting(expected) } else { figure };
        let name = |what: &str| format!("{trials} trials, {what}");
        figures.push(expecting(
            Figure::new(name("CPU time"), Unit::Seconds, vec![seconds]),
            Expected::AtMost(2.0),
        ));
        let memory = memory.map(|bytes| bytes as f64 / 1e6).into_iter().collect();
        figures
            .push(expecting(Figure::new(name("memory"), Unit::Megabytes, memory), Expected::AtMost(300.0)));
        figures.push(
            Figure::new(name("a decision"), Unit::Milliseconds, decisions).expecting(Expected::AtMost(1.0)),
        );
    }
    let ratio = each.last().zip(each.first()).map(|(last, first)| last / first);
    let name = format!("CPU time a trial, {} trials to {}", SIZES[SIZES.len() - 1], SIZES[0]);
    figures.push(Figure::new(name, Unit::Times, ratio.into_iter().collect()));
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let about = vec![
        ("host", proc::cpu_model(&cpu).unwrap_or("unknown").to_owned()),
        ("klpfarm", env!("CARGO_PKG_VERSION").to_owned()),
        ("trials", format!("made up, with {} workloads; {:.0} % stall", WORKLOADS.len(), NOISE * 100.0)),
    ];
    Ok(Table { about, figures })
}

/// CPU time of this thread.
fn cpu_time() -> Result<Duration, Failure> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_err(|e| Failure::farm(format!("the CPU time can't be read: {e}")))?;
    Ok(Duration::from(time))
}

/// A plan that asks for more trials than any of [`SIZES`].
fn plan() -> Plan {
    let text = format!("name: gate\nimage: debian-12\nworkloads: [{}]\n", WORKLOADS[1..].join(", "));
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text);
    let arms = vec![Arm::Loaded, Arm::Control, Arm::Quiescent, Arm::Reapply];
    let rule = TierRule::new(0.0002, 0.95, Duration::from_secs(30), arms);
    let patch = Patch { name: "x".to_owned(), ..Patch::default() };
    let image = ImageFacts { name: "debian-12".to_owned(), hash: String::new(), release: None };
    let with = Resolved { patches: vec![patch], tier: Tier::Stable, ..Resolved::new(image, rule) };
    let plan = pipeline.ok().and_then(|pipeline| Plan::new(&pipeline, with).ok());
    plan.unwrap_or_else(|| unreachable!("the plan is a fixed one"))
}

/// Follow a run as whoever runs it does; its trials, in the order in which they ran, and milliseconds of the last decisions.
fn follow(trials: u32) -> Result<(Vec<Trial>, Vec<f64>), Failure> {
    let plan = plan();
    let mut judge = Judge::new(&plan);
    let (mut order, mut decisions, mut seq) = (Vec::new(), Vec::new(), 0);
    for _ in 0..trials {
        let before = cpu_time()?;
        let decided = judge.is_decided();
        let next = judge.next_trial();
        decisions.push((cpu_time()?.saturating_sub(before)).as_secs_f64() * 1000.0);
        let Some(trial) = next.filter(|_| !decided) else { break };
        judge.start(trial.number);
        events(&trial, &mut seq).iter().for_each(|event| judge.push(event));
        order.push(trial);
    }
    Ok((order, decisions.split_off(decisions.len().saturating_sub(LAST))))
}

struct Cost {
    cpu: Duration,
    memory: Option<u64>,
}

/// Judge a run that is over.
fn at_once(order: &[Trial]) -> Result<Cost, Failure> {
    let plan = plan();
    proc::reset_peak();
    let before = proc::resident().map(|(now, _)| now);
    let mut begun = cpu_time()?;
    let mut judge = Judge::new(&plan);
    let mut cpu = cpu_time()?.saturating_sub(begun);
    let mut seq = 0;
    for trial in order {
        let events = events(trial, &mut seq);
        begun = cpu_time()?;
        events.iter().for_each(|event| judge.push(event));
        cpu += cpu_time()?.saturating_sub(begun);
    }
    begun = cpu_time()?;
    let verdict = judge.verdict();
    cpu += cpu_time()?.saturating_sub(begun);
    drop(verdict);
    let memory = before.zip(proc::resident()).map(|(before, (_, peak))| peak.saturating_sub(before));
    Ok(Cost { cpu, memory })
}

/// What a trial leaves in the journal; the same each time.
fn events(trial: &Trial, seq: &mut u64) -> Vec<Event> {
    let chance = &mut Chance::new(trial.seed);
    let mut bodies = vec![(Phase::Boot, Body::TrialStarted)];
    let stalls = chance.share() < NOISE;
    for (phase, samples) in
        [(Phase::Settle, 2), (Phase::Baseline, 7), (Phase::Apply, 0), (Phase::Soak, 40), (Phase::Revert, 5)]
    {
        if !trial.arm.patched() && matches!(phase, Phase::Apply | Phase::Revert) {
            continue;
        }
        bodies.push((phase, Body::PhaseStarted));
        if phase == Phase::Apply {
            let functions = vec!["vmlinux/do_madvise,1".to_owned()];
            let patch = "x".to_owned();
            bodies.push((phase, Body::Applied { patch, took_ms: 90, functions, inside: BTreeMap::new() }));
            bodies.push((Phase::Transition, Body::TransitionDone { took_ms: 900, per_task: true }));
            continue;
        }
        let rates = WORKLOADS.iter().map(|w| ((*w).to_owned(), 1000.0 * chance.share())).collect();
        bodies.extend(
            (0..samples / 3)
                .map(|_| (phase, Body::Progress { rates: BTreeMap::clone(&rates), ssh_ms: None })),
        );
        if phase == Phase::Soak && stalls {
            bodies.push((phase, Body::Finding(Box::new(stall(trial)))));
            break;
        }
        bodies.push((phase, Body::Measured(measured(chance, samples))));
    }
    let reach = Body::Reach { function: "vmlinux/do_madvise,1".to_owned(), calls: 5000, window_ms: 5000 };
    if !stalls {
        bodies.push((Phase::Reach, reach));
    }
    bodies.push((Phase::End, Body::CpuShare { share: 0.9 + 0.1 * chance.share() }));
    let end = if stalls { TrialEnd::Stopped } else { TrialEnd::Completed };
    bodies.push((Phase::End, Body::TrialEnded { end }));
    let event = |(phase, body): (Phase, Body)| {
        *seq += 1;
        let scope = Some(Scope { trial: trial.number, arm: trial.arm, phase });
        Event { seq: *seq, at_ms: *seq * 1000, scope, body }
    };
    bodies.into_iter().map(event).collect()
}

fn stall(trial: &Trial) -> Finding {
    Finding {
        kind: FarmKind::ThreadStalled.into(),
        title: "madvise-allocator: threads make no progress".to_owned(),
        source: Source::Workload,
        function: None,
        workload: Some("madvise-allocator".to_owned()),
        after_apply_ms: trial.arm.patched().then_some(9000),
        line: None,
        in_patch: false,
        corrupted: false,
        evidence: "state D, do_madvise+0x10/0x400\n".repeat(60),
    }
}

/// A phase whose figures vary by a third either way, and with samples of what the kernel has given out.
fn measured(chance: &mut Chance, samples: u32) -> Measured {
    let mut vary = |n: f64| (n * (0.75 + 0.5 * chance.share())) as u64;
    let seconds = f64::from(samples);
    let mut operation = |n: u32| {
        let usual = 2000.0 * f64::from(n + 1);
        let latency = LatencyMeasure {
            count: vary(30.0 * seconds),
            p10_ns: vary(usual),
            p50_ns: vary(3.0 * usual),
            p99_ns: vary(50.0 * usual),
            p999_ns: vary(200.0 * usual),
            mean_ns: vary(5.0 * usual),
            slept: if n.is_multiple_of(4) {
                vec![(0, vary(9.0)), (2, vary(5.0)), (5, vary(2.0))]
            } else {
                Vec::new()
            },
        };
        (format!("operation-{n}"), latency)
    };
    let mut workloads = BTreeMap::new();
    for name in WORKLOADS {
        let latency: BTreeMap<String, LatencyMeasure> = (0..OPERATIONS).map(&mut operation).collect();
        let ops = latency.values().map(|l| l.count).sum();
        let by_thread = (1..=4).map(|thread| (thread, ops / 4)).collect();
        let measure =
            WorkloadMeasure { ops, threads: 4, longest_idle_ms: 300, asleep: Some(0.1), by_thread, latency };
        workloads.insert(name.to_owned(), measure);
    }
    let sample = |s: u32| Resources {
        at_ms: u64::from(s) * 1000,
        available_kib: 500_000 + u64::from(s % 7) * 900,
        slab_unreclaimable_kib: 30_000 + u64::from(s % 5) * 20 + u64::from(s / 8),
        unaccounted_kib: 40_000 + u64::from(s % 3) * 2048,
        open_files: 900 + u64::from(s % 3),
        descriptors: 300,
        tasks: 120 + u64::from(s % 4),
        zombies: 0,
    };
    Measured {
        window_ms: u64::from(samples) * 1000,
        workloads,
        resources: (0..samples).map(sample).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The run goes on for as many trials as are asked for, and pairs follow its first stalls.
    #[test]
    fn a_made_up_run_is_long_enough_to_be_measured() {
        let (order, decisions) = follow(300).unwrap();
        assert_eq!((order.len(), decisions.len()), (300, LAST));
        assert!(order.iter().filter(|t| t.arm == Arm::Control).count() > 30);
        assert_eq!(events(&order[7], &mut 0), events(&order[7], &mut 0));
    }
}
