use std::path::Path;
use std::time::Duration;

use super::*;
use crate::{Patch, Phase, Resolved, Scope, TierRule, TrialEnd};

const TWO: &str = "rotation:\n  duration: 8h\n  images: [old, new]\n  loads: {memory: [w], files: [v, w]}\narms: {loaded: 2, control: 1, quiescent: 0, reapply: 0}\n";

fn pipeline(more: &str) -> Result<Pipeline, String> {
    let text = format!("name: soak\nimage: old\n{more}");
    Pipeline::parse(Path::new("soak.yaml"), &text)
        .map_err(|es| es.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn plan(more: &str, patches: &[(&str, &str)]) -> Result<Plan, String> {
    let pipeline = pipeline(more)?;
    let image = |name: &str| ImageFacts {
        name: name.to_owned(),
        hash: format!("hash of {name}"),
        release: Some(if name == "old" { "5.10" } else { "6.12" }.to_owned()),
    };
    let turn = |(name, load, _): (String, String, Vec<String>)| Turn {
        image: image(&name),
        checkpoint: Some(format!("{name}-{load}")),
        load,
        workloads: Vec::new(),
        patches: Vec::new(),
    };
    let turns = pipeline.rotation.as_ref().unwrap().turns(&pipeline).into_iter().map(turn);
    let patch = |(name, release): &(&str, &str)| Patch {
        name: (*name).into(),
        file: format!("{name}.ko").into(),
        vermagic: format!("{release} SMP"),
        ..Patch::default()
    };
    let with = Resolved {
        patches: patches.iter().map(patch).collect(),
        jobs: 2,
        seed: 7,
        mode: Mode::Rotation(turns.collect()),
        ..Resolved::new(
            image("old"),
            TierRule::new(0.7, 0.6, Duration::from_secs(30), vec![Arm::Loaded, Arm::Control]),
        )
    };
    Plan::new(&pipeline, with).map_err(|e| e.to_string())
}

#[test]
fn a_candidate_goes_to_the_image_that_has_its_kernel() {
    let plan = plan(TWO, &[("x", "5.10"), ("x", "6.12")]).unwrap();
    let names: Vec<String> = plan.mode.turns().iter().map(Turn::name).collect();
    assert_eq!(names, ["old/files", "new/files", "old/memory", "new/memory"]);
    assert_eq!(plan.mode.turns().iter().map(|t| t.patches.clone()).collect::<Vec<_>>(), [[0], [1], [0], [1]]);
    for trial in &plan.trials {
        let fits = trial.arm == Arm::Control || trial.patches == plan.mode.turns()[trial.turn].patches;
        assert!(fits, "{trial:?}");
    }
    assert_eq!(
        [plan.patch_file(0), plan.patch_file(1)],
        [Path::new("patches/x.ko"), Path::new("patches/x.2.ko")]
    );
}

#[test]
fn rounds_are_alike_but_for_their_seeds() {
    let plan = plan(TWO, &[("x", "5.10"), ("x", "6.12")]).unwrap();
    let round = u32::try_from(plan.trials.len()).unwrap();
    assert_eq!(round, 4 * 3);
    assert_eq!(plan.trial(0), None);
    for number in 1..=round {
        let (first, later) = (plan.trial(number).unwrap(), plan.trial(number + 5 * round).unwrap());
        assert_eq!(*first, plan.trials[number as usize - 1]);
        assert_eq!((first.arm, &first.patches, first.turn), (later.arm, &later.patches, later.turn));
        assert_ne!(first.seed, later.seed);
    }
    // What was cut off is done again first, and then it goes on.
    let started = BTreeSet::from([1, 2, 4, 5]);
    let next = |started: &BTreeSet<u32>| {
        let mut rounds = Rounds::new(&plan);
        started.iter().for_each(|trial| rounds.start(*trial));
        rounds.next()
    };
    assert_eq!(next(&started).unwrap().number, 3);
    assert_eq!(next(&(1..=40).collect()).unwrap().number, 41);
}

#[test]
fn what_can_not_go_round_is_refused() {
    let said = plan(TWO, &[("x", "5.10")]).unwrap_err();
    assert!(said.contains("no candidate was built for new (kernel 6.12)"), "{said}");
    let said = plan(TWO, &[("x", "5.10"), ("x", "6.12"), ("y", "4.4")]).unwrap_err();
    assert!(said.contains("patch y.ko: built for kernel 4.4"), "{said}");
    let said = plan(&TWO.replace("8h", "1m"), &[("x", "5.10"), ("x", "6.12")]).unwrap_err();
    assert!(said.starts_with("rotation.duration: is 60 s, but one round of its 12 trials takes"), "{said}");
    let said = pipeline(
        "rotation:\n  duration: 0s\n  images: [a, a]\n  loads: {Night: [], day: [w, w]}\nbudget: 1h\n",
    );
    let said = said.unwrap_err();
    for part in [
        "soak.yaml:4:1: rotation.duration: is zero",
        "soak.yaml:5:1: rotation.images: names `a` twice",
        "soak.yaml:6:1: rotation.loads: `Night` is not a valid name",
        "soak.yaml:6:1: rotation.loads: `Night` is empty",
        "soak.yaml:6:1: rotation.loads: `day` names `w` twice",
        "budget: duplicates `rotation.duration`",
    ] {
        assert!(said.contains(part), "{part}\nin\n{said}");
    }
    assert!(pipeline("rotation: {duration: 1h}\n").unwrap_err().contains("workloads: is empty"));
    assert!(pipeline("rotation: {duration: 1h, loads: {all: [w]}}\n").is_ok());
}

/// One image's failure is not another's: the run is rejected, and says where.
#[test]
fn each_turn_is_judged_by_its_own_trials() {
    let plan = plan(TWO, &[("x", "5.10"), ("x", "6.12")]).unwrap();
    let mut events = Vec::new();
    let mut add = |scope: Option<Scope>, body: Body| {
        let seq = events.len() as u64 + 1;
        events.push(Event { seq, at_ms: seq, scope, body });
    };
    let mut so_far = SoFar::default();
    for trial in &plan.trials {
        let scope = |phase| Some(Scope { trial: trial.number, arm: trial.arm, phase });
        add(scope(Phase::Boot), Body::TrialStarted);
        let calls = Body::Reach { function: "f".into(), calls: 1, window_ms: 1000, new_code: None };
        let functions = vec!["vmlinux/f".to_owned()];
        if trial.arm != Arm::Control {
            let applied = Body::Applied { patch: "x".into(), took_ms: 1, functions, inside: BTreeMap::new() };
            add(scope(Phase::Apply), applied);
            add(scope(Phase::Transition), Body::TransitionDone { took_ms: 2, per_task: true });
        }
        add(scope(Phase::Reach), calls);
        let bad = trial.arm == Arm::Loaded && plan.mode.turns()[trial.turn].name() == "new/memory";
        if bad {
            let finding = crate::Finding {
                kind: crate::ObservedKind::HangConfirmed.into(),
                title: "threads hang in klp_f".into(),
                source: crate::Source::Probe,
                function: None,
                workload: None,
                after_apply_ms: Some(1),
                line: None,
                in_patch: true,
                corrupted: false,
                evidence: String::new(),
            };
            add(scope(Phase::Soak), Body::Finding(Box::new(finding)));
        }
        let end = if bad { TrialEnd::Stopped } else { TrialEnd::Completed };
        add(scope(Phase::End), Body::TrialEnded { end });
    }
    events.iter().for_each(|e| so_far.add(e));
    let verdict = crate::judge(&plan, &events);
    assert_eq!(verdict.verdict, Outcome::Rejected);
    assert!(verdict.causes[0].turn.as_deref() == Some("new/memory"), "{:?}", verdict.causes);
    let outcomes: Vec<(&str, Outcome)> = verdict.turns.iter().map(|(n, o)| (n.as_str(), *o)).collect();
    assert_eq!(
        outcomes,
        [
            ("new/files", Outcome::Qualified),
            ("new/memory", Outcome::Rejected),
            ("old/files", Outcome::Qualified),
            ("old/memory", Outcome::Qualified)
        ]
    );
    assert_eq!(verdict.evidence[0].turn.as_deref(), Some("new/memory"));
    assert_eq!(verdict.image.name, "old + new");
    assert_eq!((verdict.arms[&Arm::Loaded].clean, verdict.arms[&Arm::Loaded].failed), (6, 2));
    assert_eq!((so_far.ended, so_far.clean, so_far.failed, so_far.void), (12, 6, 2, 0));
}

/// Trials of all turns stand together, in order of their numbers.
#[test]
fn remarks_of_all_turns_are_kept() {
    let plan = plan(TWO, &[("x", "5.10"), ("x", "6.12")]).unwrap();
    let with = |trials: &[u32]| {
        let remark = |trial: &u32| crate::verdict::TrialRemark {
            trial: *trial,
            arm: Arm::Loaded,
            what: crate::verdict::Remark::Lost,
            reason: "QEMU died".into(),
        };
        Verdict { remarks: trials.iter().map(remark).collect(), ..crate::judge(&plan, &[]) }
    };
    let mut all = with(&[2, 9]);
    add(&mut all, with(&[5]));
    assert_eq!(all.remarks.iter().map(|r| r.trial).collect::<Vec<_>>(), [2, 5, 9]);
}
