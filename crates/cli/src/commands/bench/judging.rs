//! What judging costs: runs that are made up, as long as a night and as a month.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use klpfarm_model::event::{LatencyMeasure, Measured, Resources, WorkloadMeasure};
use klpfarm_model::simulation::Chance;
use klpfarm_model::{
    Arm, Body, Event, Finding, ImageFacts, Judge, ObservedKind, Patch, Phase, Pipeline, Plan, Resolved,
    Scope, Source, Tier, TierRule, Trial, TrialEnd,
};
use nix::time::{ClockId, clock_gettime};

use super::figure::{Expected, Figure, Table, Unit};
use super::proc;
use crate::failure::Failure;

/// Trials of the runs that are judged.
const SIZES: [u32; 4] = [300, 1000, 3000, 10_000];

/// Decisions at the end of a run that are looked at.
const LAST: usize = 100;

/// Share of the trials that stall, whatever is done: from the first one on they run in pairs, each with a control trial.
const NOISE: f64 = 0.0005;

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
    // Sizes grow, so that what there is before any of them is what does not belong to judging.
    let bare = proc::resident().map(|(now, _)| now);
    let most = SIZES[SIZES.len() - 1];
    for trials in SIZES {
        super::lab::say(&format!("judging {trials} trials"));
        let (order, decisions) = follow(trials, NOISE)?;
        let Cost { cpu, peak } = at_once(&order)?;
        let seconds = cpu.as_secs_f64();
        each.push(seconds / f64::from(trials));
        let largest = trials == most;
        let expecting = |figure: Figure, expected| if largest { figure.expecting(expected) } else { figure };
        let name = |what: &str| format!("{trials} trials, {what}");
        figures.push(expecting(
            Figure::new(name("CPU time"), Unit::Seconds, vec![seconds]).noting(arms(&order)),
            Expected::AtMost(2.0),
        ));
        let memory = bare.zip(peak).map(|(bare, peak)| peak.saturating_sub(bare) as f64 / 1e6);
        let memory = memory.into_iter().collect();
        figures
            .push(expecting(Figure::new(name("memory"), Unit::Megabytes, memory), Expected::AtMost(300.0)));
        figures.push(
            Figure::new(name("a decision"), Unit::Milliseconds, decisions).expecting(Expected::AtMost(1.0)),
        );
    }
    super::lab::say(&format!("judging {most} trials without a stall"));
    let (order, decisions) = follow(most, 0.0)?;
    figures.push(
        Figure::new(format!("{most} trials without a stall, a decision"), Unit::Milliseconds, decisions)
            .expecting(Expected::AtMost(1.0))
            .noting(arms(&order)),
    );
    let ratio = each.last().zip(each.first()).map(|(last, first)| last / first);
    let name = format!("CPU time a trial, {most} trials to {}", SIZES[0]);
    figures.push(Figure::new(name, Unit::Times, ratio.into_iter().collect()));
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let about = vec![
        ("host", proc::cpu_model(&cpu).unwrap_or("unknown").to_owned()),
        ("klpfarm", env!("CARGO_PKG_VERSION").to_owned()),
        ("trials", format!("made up, with {} workloads; {:.2} % stall", WORKLOADS.len(), NOISE * 100.0)),
    ];
    Ok(Table { about, figures })
}

/// Trials by arm.
fn arms(order: &[Trial]) -> String {
    let of = |arm: Arm| order.iter().filter(|t| t.arm == arm).count();
    let arms = Arm::ALL.iter().filter(|arm| of(**arm) > 0);
    arms.map(|arm| format!("{} {arm}", of(*arm))).collect::<Vec<_>>().join(", ")
}

/// CPU time of this thread.
fn cpu_time() -> Result<Duration, Failure> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_err(|e| Failure::farm(format!("the CPU time can't be read: {e}")))?;
    Ok(Duration::from(time))
}

/// A plan that asks for more trials than any of [`SIZES`]: with noise it must not be given up either.
fn plan(noise: f64) -> Plan {
    let (rate, confidence) = if noise > 0.0 { (0.002, 0.999_999) } else { (0.0002, 0.95) };
    let text = format!("name: gate\nimage: debian-12\nworkloads: [{}]\n", WORKLOADS[1..].join(", "));
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text);
    let arms = vec![Arm::Loaded, Arm::Control, Arm::Quiescent, Arm::Reapply];
    let rule = TierRule::new(rate, confidence, Duration::from_secs(30), arms);
    let patch = Patch { name: "x".to_owned(), ..Patch::default() };
    let image = ImageFacts { name: "debian-12".to_owned(), hash: String::new(), release: None };
    let with = Resolved { patches: vec![patch], tier: Tier::Stable, ..Resolved::new(image, rule) };
    let plan = pipeline.ok().and_then(|pipeline| Plan::new(&pipeline, with).ok());
    plan.unwrap_or_else(|| unreachable!("the plan is a fixed one"))
}

/// Follow a run as whoever runs it does; its trials, in the order in which they ran, and milliseconds of the last decisions.
fn follow(trials: u32, noise: f64) -> Result<(Vec<Trial>, Vec<f64>), Failure> {
    let plan = plan(noise);
    let mut judge = Judge::new(&plan);
    let (mut order, mut decisions, mut seq) = (Vec::new(), Vec::new(), 0);
    for _ in 0..trials {
        let before = cpu_time()?;
        let decided = judge.is_decided();
        let next = judge.next_trial();
        decisions.push((cpu_time()?.saturating_sub(before)).as_secs_f64() * 1000.0);
        let Some(trial) = next.filter(|_| !decided) else { break };
        judge.start(trial.number);
        events(&trial, noise, &mut seq).iter().for_each(|event| judge.push(event));
        order.push(trial);
    }
    Ok((order, decisions.split_off(decisions.len().saturating_sub(LAST))))
}

struct Cost {
    cpu: Duration,
    /// Memory of this process at most, in bytes.
    peak: Option<u64>,
}

/// Judge a run that is over.
fn at_once(order: &[Trial]) -> Result<Cost, Failure> {
    let plan = plan(NOISE);
    proc::reset_peak();
    let mut begun = cpu_time()?;
    let mut judge = Judge::new(&plan);
    let mut cpu = cpu_time()?.saturating_sub(begun);
    let mut seq = 0;
    for trial in order {
        let events = events(trial, NOISE, &mut seq);
        begun = cpu_time()?;
        events.iter().for_each(|event| judge.push(event));
        cpu += cpu_time()?.saturating_sub(begun);
    }
    begun = cpu_time()?;
    let verdict = judge.verdict();
    cpu += cpu_time()?.saturating_sub(begun);
    drop(verdict);
    Ok(Cost { cpu, peak: proc::resident().map(|(_, peak)| peak) })
}

/// What a trial leaves in the journal; the same each time.
fn events(trial: &Trial, noise: f64, seq: &mut u64) -> Vec<Event> {
    let chance = &mut Chance::new(trial.seed);
    let mut bodies = vec![(Phase::Boot, Body::TrialStarted)];
    let stalls = chance.share() < noise;
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
        let of_phase = measured(chance, samples);
        let compared = matches!(phase, Phase::Baseline | Phase::Soak);
        bodies.push((phase, Body::Measured(if compared { of_phase } else { rates_only(of_phase) })));
    }
    let reach = Body::Reach {
        function: "vmlinux/do_madvise,1".to_owned(),
        calls: 5000,
        window_ms: 5000,
        new_code: None,
    };
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
        kind: ObservedKind::ThreadStalled.into(),
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

/// What the farm keeps of a phase that is not compared.
fn rates_only(of: Measured) -> Measured {
    let bare =
        |of: WorkloadMeasure| WorkloadMeasure { by_thread: Vec::new(), latency: BTreeMap::new(), ..of };
    let workloads = of.workloads.into_iter().map(|(name, of)| (name, bare(of))).collect();
    Measured { workloads, resources: Vec::new(), ..of }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The run goes on for as many trials as are asked for.
    #[test]
    fn a_made_up_run_is_long_enough_to_be_measured() {
        let (order, decisions) = follow(300, NOISE).unwrap();
        assert_eq!((order.len(), decisions.len()), (300, LAST));
        assert!(order.iter().filter(|t| t.arm == Arm::Control).count() > 10);
        assert_eq!(events(&order[7], NOISE, &mut 0), events(&order[7], NOISE, &mut 0));
    }
}
