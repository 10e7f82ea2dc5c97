use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::judge::whole::next_trial;
use crate::{
    Corpus, Example, Finding, FindingKind, ImageFacts, ObservedKind, Outcome, Patch, Phase, Pipeline,
    Resolved, Row, Scope, Score, Source, TierRule, TrialEnd, needed_kinds, score,
};

const CORPUS: &str = "examples:
- {patch: faulty/oops, class: crash, caught_by: [null-deref]}
- {patch: faulty/stall, class: hang, caught_by: [thread-stalled]}
- {patch: faulty/escapes, class: hang, caught_by: [thread-stalled]}
- {patch: good/fine, class: good}
- {patch: good/suspect, class: good}
- {patch: faulty/idle, class: coverage, outcome: inconclusive}
";

fn examples() -> Vec<Example> {
    Corpus::parse(Path::new("corpus.yaml"), CORPUS).unwrap().examples
}

fn plan() -> Plan {
    let text = "name: q\nimage: i\nworkloads: [w]\narms: {quiescent: 0, control: 8, reapply: 1}\n";
    let pipeline = Pipeline::parse(Path::new("q.yaml"), text).unwrap();
    let patch = |e: &Example| Patch { name: e.name().into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
    let rule =
        TierRule::new(0.26, 0.95, Duration::from_secs(1), vec![Arm::Loaded, Arm::Control, Arm::Reapply]);
    let with = Resolved {
        patches: examples().iter().map(patch).collect(),
        mode: Mode::Independent,
        ..Resolved::new(
            ImageFacts { name: "i".into(), hash: String::new(), release: Some("6.1".into()) },
            rule,
        )
    };
    Plan::new(&pipeline, with).unwrap()
}

fn finding(kind: impl Into<FindingKind>, in_patch: bool) -> Finding {
    Finding {
        kind: kind.into(),
        title: "t".into(),
        source: Source::Probe,
        function: None,
        workload: None,
        after_apply_ms: Some(2500),
        line: None,
        in_patch,
        corrupted: false,
        evidence: String::new(),
    }
}

/// What a trial of this patch sees.
fn findings(patch: &str) -> Vec<Finding> {
    match patch {
        "oops" => vec![
            finding(FindingKind::Kernel(klpfarm_kmsg::Kind::NullDeref), false),
            finding(ObservedKind::ThreadStalled, false),
        ],
        "stall" => vec![finding(ObservedKind::ThreadStalled, true)],
        "suspect" => vec![finding(ObservedKind::WrongErrno, false)],
        _ => Vec::new(),
    }
}

/// Runs the plan, one trial at a time; the events, and how many trials of each patch there were.
fn run(plan: &Plan) -> (Vec<Event>, BTreeMap<String, u32>) {
    let (mut events, mut started, mut trials) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
    while let Some(trial) = next_trial(plan, &events, &started) {
        started.insert(trial.number);
        let name = plan.names(&trial).next().unwrap_or("control").to_owned();
        let mut bodies = Vec::new();
        let call = |name: &str| Body::Reach {
            function: format!("f_{name}"),
            calls: u64::from(name != "idle"),
            window_ms: 1000,
            new_code: None,
        };
        if trial.arm == Arm::Control {
            bodies.extend(plan.patches.iter().map(|p| call(&p.name)));
        } else {
            bodies.push(Body::Applied {
                patch: name.clone(),
                took_ms: 1,
                functions: vec![format!("vmlinux/f_{name}")],
                inside: BTreeMap::new(),
            });
            bodies.push(Body::TransitionDone { took_ms: 2, per_task: true });
            bodies.push(call(&name));
        }
        let found = findings(&name);
        let end = if found.is_empty() { TrialEnd::Completed } else { TrialEnd::Stopped };
        bodies.extend(found.into_iter().map(|f| Body::Finding(Box::new(f))));
        bodies.push(Body::TrialEnded { end });
        for body in bodies {
            let scope = Some(Scope { trial: trial.number, arm: trial.arm, phase: Phase::Soak });
            let seq = events.len() as u64 + 1;
            events.push(Event { seq, at_ms: seq, scope, body });
        }
        *trials.entry(name).or_default() += 1;
    }
    (events, trials)
}

#[test]
fn each_patch_gets_the_trials_it_needs_and_its_own_verdict() {
    let plan = plan();
    let (events, trials) = run(&plan);
    // The kernel is sure of an oops; a stall takes several trials next to sound control trials.
    assert_eq!((trials["oops"], trials["stall"], trials["suspect"]), (1, 8, 1), "{trials:?}");
    assert_eq!((trials["fine"], trials["control"]), (12, 8), "{trials:?}");
    let rows = score(&plan, &events, &examples());
    let scores: Vec<Score> = rows.iter().map(|r| r.score).collect();
    use Score::{Caught, FalseAlarm, Held, Missed, Passed};
    assert_eq!(scores, [Caught, Caught, Missed, Passed, FalseAlarm, Held], "{rows:#?}");
    assert!(format!("{:?}", rows[5].cause).contains("f_idle"), "{:?}", rows[5].cause);
    assert_eq!(rows[0].found.len(), 2);
    assert!(rows[0].found.iter().all(|f| f.after_apply_ms == Some(2500)));
}

#[test]
fn a_detector_is_needed_where_no_other_is_enough() {
    let plan = plan();
    let (events, _) = run(&plan);
    let rows: Vec<Row> = score(&plan, &events, &examples());
    let needed = needed_kinds(&rows);
    assert!(needed["thread-stalled"].contains("faulty/stall"), "{needed:?}");
    // One stall that does not name the patch is not enough by itself.
    assert!(needed["null-deref"].contains("faulty/oops"), "{needed:?}");
    assert!(rows[0].outcome == Outcome::Rejected);
}

#[test]
fn a_control_that_fails_accuses_nobody() {
    let plan = plan();
    let (mut events, _) = run(&plan);
    let control = plan.trials.iter().find(|t| t.arm == Arm::Control).unwrap().number;
    let scope = Some(Scope { trial: control, arm: Arm::Control, phase: Phase::Soak });
    let body = Body::Finding(Box::new(finding(ObservedKind::WrongErrno, false)));
    let place = events.iter().position(|e| e.scope.is_some_and(|s| s.trial == control)).unwrap();
    events.insert(place, Event { seq: 0, at_ms: 0, scope, body });
    let rows = score(&plan, &events, &examples());
    assert_eq!(rows[4].score, Score::Undecided, "{:?}", rows[4]);
    assert_eq!(judge_independent(&plan, &events, 0).verdict, Outcome::Rejected);
}
