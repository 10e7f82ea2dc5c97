use std::path::Path;
use std::time::Duration;

use super::*;
use crate::event::{Body, Event, Scope, TrialEnd};
use crate::judge::Judge;
use crate::{Finding, ImageFacts, ObservedKind, Patch, Phase, Pipeline, Resolved, Source, TierRule};

/// With so many failures per hour at most, if soaks are trials of their own.
fn plan_with_soaks(rate: f64, per_hour: Option<f64>) -> Plan {
    let pipeline = Pipeline::parse(Path::new("g.yaml"), "name: g\nimage: i\nworkloads: [w]\n").unwrap();
    let mut arms = vec![Arm::Loaded, Arm::Quiescent, Arm::Control, Arm::Reapply];
    arms.extend(per_hour.map(|_| Arm::Soak));
    let mut rule = TierRule::new(rate, 0.95, Duration::from_secs(1), arms);
    rule.exposure.max_failures_per_hour = per_hour;
    let patch = Patch { name: "x".into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
    let facts = ImageFacts { name: "i".into(), hash: String::new(), release: None };
    Plan::new(&pipeline, Resolved { patches: vec![patch], ..Resolved::new(facts, rule) }).unwrap()
}

fn plan(rate: f64) -> Plan {
    plan_with_soaks(rate, None)
}

/// The same run by journals: each trial's events are written, and the judge is asked after each.
fn by_journal(plan: &Plan, fate: &mut Fate) -> Ended {
    const KINDS: [ObservedKind; 4] = [
        ObservedKind::ThreadStalled,
        ObservedKind::LatencyGrown,
        ObservedKind::ResourcesLeaked,
        ObservedKind::ProbeSilent,
    ];
    let mut events: Vec<Event> = Vec::new();
    let mut judge = Judge::new(plan);
    let mut started = 0;
    while !judge.is_decided() {
        let Some(trial) = judge.next_trial() else { break };
        judge.start(trial.number);
        started += 1;
        let before = events.len();
        let mut add = |phase, body| {
            let scope = Some(Scope { trial: trial.number, arm: trial.arm, phase });
            let seq = events.len() as u64 + 1;
            events.push(Event { seq, at_ms: seq, scope, body });
        };
        if trial.arm.patched() {
            let functions = vec!["vmlinux/f,1".to_owned()];
            add(
                Phase::Transition,
                Body::Applied { patch: "x".into(), took_ms: 1, functions, inside: BTreeMap::new() },
            );
            add(Phase::Transition, Body::TransitionDone { took_ms: 1, per_task: true });
        }
        let reach = Body::Reach { function: "vmlinux/f,1".into(), calls: 9, window_ms: 1000, new_code: None };
        let end = match fate.next(trial.arm) {
            None => {
                add(Phase::Reach, reach);
                TrialEnd::Completed
            }
            // A dead host's trial is lost; the other kinds are findings, some of them with the patch's function on the stack.
            Some(3) => {
                add(Phase::Soak, Body::PhaseStarted);
                TrialEnd::FarmError { message: "QEMU ended by itself".into() }
            }
            Some(way) => {
                let finding = Finding {
                    kind: KINDS[usize::from(way)].into(),
                    title: "unreclaimable slab: t".into(),
                    source: Source::Probe,
                    function: None,
                    workload: Some("w".into()),
                    after_apply_ms: None,
                    line: None,
                    in_patch: trial.arm.patched() && trial.number % 3 == 0,
                    corrupted: false,
                    evidence: String::new(),
                };
                add(Phase::Soak, Body::Finding(Box::new(finding)));
                TrialEnd::Stopped
            }
        };
        add(Phase::End, Body::TrialEnded { end });
        events[before..].iter().for_each(|event| judge.push(event));
    }
    // Whoever reads it all at once comes to the same.
    assert_eq!(crate::judge(plan, &events), judge.verdict());
    Ended { outcome: judge.verdict().verdict, trials: started }
}

/// What the tables in the documents say is what the judge does.
#[test]
fn counts_decide_as_journals_do() {
    for per_hour in [None, Some(50.0)] {
        decides_alike(&plan_with_soaks(0.2, per_hour));
    }
}

fn decides_alike(plan: &Plan) {
    let layout = Layout::new(plan);
    for seed in 0..36_u32 {
        let shape = Noise::ALL[seed as usize % 4];
        let world = World {
            noise: [0.0, 0.02, 0.1, 0.4][seed as usize / 4 % 4],
            shape,
            fault: [0.0, 0.2, 0.9][seed as usize % 3],
            only: [None, None, None, Some(Arm::Soak), Some(Arm::Reapply)][seed as usize % 5],
        };
        let counted = layout.run(&mut Fate::new(world, seed.into()));
        let judged = by_journal(plan, &mut Fate::new(world, seed.into()));
        assert_eq!(counted, judged, "seed {seed}: {world:?}");
    }
}

/// Shares of runs that end qualified and rejected, of 1.
fn shares(plan: &Plan, world: World, runs: u32) -> (f64, f64) {
    let layout = Layout::new(plan);
    let ends: Vec<Outcome> =
        (0..runs).map(|seed| layout.run(&mut Fate::new(world, seed.into())).outcome).collect();
    let share = |outcome: Outcome| ends.iter().filter(|e| **e == outcome).count() as f64 / f64::from(runs);
    (share(Outcome::Qualified), share(Outcome::Rejected))
}

/// A small edition of the table in docs/verdict.md; `cargo run --release -p klpfarm-model --example error_rates` prints the large one.
#[test]
fn verdicts_are_as_rarely_wrong_as_they_say() {
    for (rate, runs) in [(0.2, 200), (0.05, 40)] {
        let plan = plan(rate);
        for shape in Noise::ALL {
            let good = World { noise: 0.01, shape, fault: 0.0, only: None };
            let (qualified, rejected) = shares(&plan, good, runs);
            assert!(qualified >= 0.9 && rejected == 0.0, "{rate} {shape:?}: {qualified} {rejected}");
            for noise in [0.0, 0.1] {
                let faulty = World { noise, fault: rate, ..good };
                let (qualified, _) = shares(&plan, faulty, runs);
                // So far above 5 % is one case in some hundreds, and the seeds are fixed.
                assert!(
                    qualified <= 0.05 + 2.8 * (0.05 / f64::from(runs)).sqrt(),
                    "{rate} {shape:?} {noise}: {qualified}"
                );
            }
        }
    }
}

/// Two bounds are two chances to be wrong, but a patch is faulty by one of them or the other: whichever it is at the limit of, it is let through in
/// no more than one of twenty runs.
#[test]
fn each_of_two_bounds_holds_by_itself() {
    let runs = 200;
    let plan = plan_with_soaks(0.2, Some(100.0));
    assert_eq!((plan.needed, plan.soaks), (14, 4));
    let soak = plan.rate_of(Arm::Soak);
    for shape in Noise::ALL {
        let good = World { noise: 0.01, shape, fault: 0.0, only: None };
        let (qualified, rejected) = shares(&plan, good, runs);
        assert!(qualified >= 0.9 && rejected == 0.0, "{shape:?}: {qualified} {rejected}");
        for (arm, fault) in [(Arm::Loaded, 0.2), (Arm::Soak, soak)] {
            for noise in [0.0, 0.1] {
                let faulty = World { noise, shape, fault, only: Some(arm) };
                let (qualified, _) = shares(&plan, faulty, runs);
                assert!(
                    qualified <= 0.05 + 2.8 * (0.05 / f64::from(runs)).sqrt(),
                    "{arm} {shape:?} {noise}: {qualified}"
                );
            }
        }
    }
}
