//! Journals as runs write them have no complaint; each edit that would change a verdict has one, which names its place.

mod edits;
mod story;

use super::*;
use crate::event::{Body, Scope, TrialEnd};
use crate::{Accel, Phase, Source, Tier};
use story::*;

/// A run of three trials that ended: one of each arm, of which the loaded one found something.
fn three() -> Story {
    let mut story = Story::new(Kind::One);
    let (control, loaded) = (story.number(Arm::Control), story.number(Arm::Loaded));
    assert_eq!((loaded, control), (1, 2));
    story.trial(control, 99, &TrialEnd::Completed);
    for (scope, body) in life(&story.plan, loaded).into_iter().take(11) {
        story.add(Some(scope), body);
    }
    let scope = Some(Scope { trial: loaded, arm: Arm::Loaded, phase: Phase::Soak });
    story.add(scope, finding(Source::Console, Some(9)));
    story.close(loaded, &TrialEnd::Stopped);
    let story = story.ended();
    assert_eq!(story.complaints(), Vec::<String>::new());
    story
}

/// What is said of the three trials after a change.
fn said(change: impl FnOnce(&mut Story)) -> Vec<String> {
    let mut story = three();
    change(&mut story);
    story.complaints()
}

fn is_finding(e: &Event) -> bool {
    matches!(e.body, Body::Finding(_))
}

#[test]
fn another_plan_is_said_with_both_hashes() {
    let mut story = three();
    let before = story.plan.hash();
    // As in the report of case 1.12: a plan that asks for next to nothing, beside the journal of another.
    story.plan.rule.applications.max_failure_rate = 0.95;
    story.plan.needed = 1;
    story.plan.tier = Tier::Stable;
    let after = story.plan.hash();
    assert_eq!(
        story.complaints(),
        [format!(
            "journal event 1: the run began with plan {before}, and plan.json is {after}: it was changed since"
        )]
    );
    story.plan.farm = "0.0.1".into();
    let of_another = story.complaints().remove(0);
    let own = env!("CARGO_PKG_VERSION");
    let end = format!("(or klpfarm {own} reads it differently from 0.0.1, which made it)");
    assert!(of_another.ends_with(&end), "{of_another}");
}

#[test]
fn a_run_begins_once_and_under_the_plans_accelerator() {
    let first = said(|s| drop(s.events.remove(0)));
    assert_eq!(
        first,
        ["journal event 2: the first event is `checkpoint`, and a journal begins with `run-started`"]
    );
    let twice = said(|s| s.events.insert(1, s.events[0].clone()));
    assert_eq!(twice, ["journal event 1: the run begins a second time"]);
    let kvm = said(|s| {
        if let Body::RunStarted { accel, .. } = &mut s.events[0].body {
            *accel = Accel::Kvm;
        }
    });
    assert_eq!(kvm, ["journal event 1: the run began under kvm, and the plan is for tcg"]);
}

#[test]
fn a_finding_is_of_its_trial_arm_and_phase() {
    let arm = said(|s| s.edit(is_finding).scope.as_mut().unwrap().arm = Arm::Control);
    assert_eq!(arm, ["journal event 28: says that trial 1 is control, and in the plan it is loaded"]);
    let all = said(|s| {
        let of_loaded = s.events.iter_mut().filter_map(|e| e.scope.as_mut()).filter(|s| s.trial == 1);
        of_loaded.for_each(|s| s.arm = Arm::Control);
    });
    assert_eq!(
        all,
        [
            "journal event 17: says that trial 1 is control, and in the plan it is loaded; the same in 15 more events"
        ]
    );
    // Out of its own trial, it is missing there.
    let missing = "journal event 32: trial 1 ends as stopped, and found nothing";
    let none = said(|s| s.edit(is_finding).scope = None);
    assert_eq!(none, ["journal event 28: `finding` names no trial", missing]);
    let unknown = said(|s| s.edit(is_finding).scope.as_mut().unwrap().trial = 9999);
    assert_eq!(
        unknown,
        ["journal event 28: `finding` is of trial 9999, which the plan does not have", missing]
    );
    let aging = said(|s| s.edit(is_finding).scope.as_mut().unwrap().trial = 0);
    assert_eq!(
        aging,
        [
            "journal event 28: `finding` is of trial 0, the machine that is aged, of which a journal has no events",
            missing,
        ]
    );
    let early = said(|s| s.edit(is_finding).scope.as_mut().unwrap().phase = Phase::Baseline);
    assert_eq!(early, ["journal event 28: `finding` is of phase baseline, and trial 1 is in phase soak"]);
}

/// What a machine had reported before applying may be understood later: it is no finding of the soak.
#[test]
fn what_began_before_applying_is_of_its_own_phase() {
    let with = |after_apply_ms| {
        said(|s| {
            let event = s.edit(is_finding);
            event.scope.as_mut().unwrap().phase = Phase::Baseline;
            event.body = finding(Source::Console, after_apply_ms);
        })
    };
    assert_eq!(with(None), [""; 0]);
    let refused = ["journal event 28: `finding` is of phase baseline, and trial 1 is in phase soak"];
    assert_eq!(with(Some(9)), refused);
    let note = said(|s| {
        let event = s.edit(is_finding);
        event.scope.as_mut().unwrap().phase = Phase::Baseline;
        event.body = Body::Note { text: "console line 9: 2 kernel messages were lost".into() };
    });
    assert_eq!(note, ["journal event 32: trial 1 ends as stopped, and found nothing"]);
}

#[test]
fn a_trial_ends_once_and_says_nothing_afterwards() {
    let is_end = |e: &Event| matches!(e.body, Body::TrialEnded { end: TrialEnd::Stopped });
    let twice = said(|s| {
        let mut copy = s.edit(is_end).clone();
        copy.body = Body::TrialEnded { end: TrialEnd::Completed };
        let last = s.events.len() - 1;
        s.events.insert(last, Event { seq: 33, ..copy });
    });
    assert_eq!(twice, ["journal event 33: trial 1 ends as completed, and had ended as stopped (event 32)"]);
    let after = said(|s| {
        let mut late = s.edit(is_finding).clone();
        late.seq = 33;
        late.scope.as_mut().unwrap().phase = Phase::End;
        let last = s.events.len() - 1;
        s.events.insert(last, late);
    });
    assert_eq!(after, ["journal event 33: `finding` comes after the end of trial 1 (event 32)"]);
    let again = said(|s| {
        let start = s.edit(|e| matches!(e.body, Body::TrialStarted)).clone();
        s.events.push(start);
    });
    assert_eq!(
        again,
        [
            "journal event 3: `trial-started` comes after the run's end (event 33) and no `run-resumed`",
            "journal event 3: trial 2 starts a second time after its end (event 16)",
        ]
    );
    let unstarted =
        said(|s| s.events.retain(|e| !(matches!(e.body, Body::TrialStarted) && e.scope.unwrap().trial == 1)));
    assert_eq!(
        unstarted,
        ["journal event 18: `machine-ready` comes before the start of trial 1; the same in 14 more events"]
    );
}

/// A trial that was given up, or whose finding was taken out, is not made a clean one by its last line.
#[test]
fn a_trial_ends_only_as_what_it_came_to() {
    let without = said(|s| s.events.retain(|e| !is_finding(e)));
    assert_eq!(without, ["journal event 32: trial 1 ends as stopped, and found nothing"]);
    let ends = |steps: usize| {
        let mut story = Story::new(Kind::Stacked);
        let number = story.number(Arm::Stack);
        story.trial(number, steps, &TrialEnd::Completed);
        story.complaints().join("\n")
    };
    let number = plan(Kind::Stacked).trials.iter().find(|t| t.arm == Arm::Stack).unwrap().number;
    assert_eq!(ends(99), "");
    assert!(ends(9).ends_with(&format!("trial {number} ends as completed, and was never in phase soak")));
    let mut story = Story::new(Kind::Stacked);
    story.trial(number, 99, &TrialEnd::Completed);
    let of_y = |e: &Event| match &e.body {
        Body::Applied { patch, .. } | Body::Reverted { patch, .. } => patch == "y",
        _ => false,
    };
    story.events.retain(|e| !of_y(e));
    let said = story.complaints().join("\n");
    assert!(said.ends_with(&format!("trial {number} ends as completed, and never applied y")), "{said}");
}

#[test]
fn patches_are_those_of_the_trial() {
    let is_applied = |e: &Event| matches!(e.body, Body::Applied { .. });
    let other = said(|s| {
        let Body::Applied { patch, .. } = &mut s.edit(is_applied).body else { panic!("not applied") };
        *patch = "y".into();
    });
    assert_eq!(other, ["journal event 25: trial 1 applies y, and its own are x"]);
    let control = said(|s| {
        let applied = s.edit(is_applied).body.clone();
        s.edit(|e| matches!(e.body, Body::Note { .. })).body = applied;
    });
    assert_eq!(control, ["journal event 6: trial 2 applies x, and a control trial has no patch"]);
    // A trial in which a patch was applied counts: that it was is not to be taken out.
    let never = said(|s| s.events.retain(|e| !is_applied(e)));
    assert_eq!(
        never,
        [
            "journal event 26: trial 1 has changed over to a patch, and none was applied; the same in 1 more event",
        ]
    );
}

#[test]
fn a_resumed_run_does_again_only_what_says_nothing() {
    let resumed = |void: &[u32]| {
        let void = void.to_vec();
        said(|s| s.add(None, Body::RunResumed { time: String::new(), qemu: String::new(), void }))
    };
    assert_eq!(resumed(&[]), Vec::<String>::new());
    assert_eq!(
        resumed(&[1, 2, 3]),
        [
            "journal event 34: `void` names trial 1, which had found something: such a trial is not done again, and what it found counts",
            "journal event 34: `void` names trial 2, which had ended as completed (event 16)",
            "journal event 34: `void` names trial 3, which had not begun",
        ]
    );
    let mut open = Story::new(Kind::One);
    open.trial(2, 99, &TrialEnd::Completed);
    let (scope, body) = life(&open.plan, 1).remove(0);
    open.add(Some(scope), body);
    let goes_on =
        |void: &[u32]| Body::RunResumed { time: String::new(), qemu: String::new(), void: void.to_vec() };
    let mut left = open.clone();
    left.add(None, goes_on(&[]));
    assert_eq!(left.complaints(), ["journal event 18: `void` leaves out trial 1, which had not ended"]);
    open.add(None, goes_on(&[1]));
    open.trial(1, 99, &TrialEnd::Completed);
    assert_eq!(open.complaints(), Vec::<String>::new());
}

/// Without its end a trial would count for nothing, whatever it had come to.
#[test]
fn a_run_ends_when_all_its_trials_have() {
    let open = said(|s| s.events.retain(|e| !matches!(e.body, Body::TrialEnded { end: TrialEnd::Stopped })));
    assert_eq!(open, ["journal event 33: the run ends, and trial 1 has not ended"]);
    let late = said(|s| {
        let scope = Scope { trial: 1, arm: Arm::Loaded, phase: Phase::End };
        s.add(Some(scope), Body::Note { text: "late".into() });
    });
    assert_eq!(
        late,
        [
            "journal event 34: `note` comes after the run's end (event 33) and no `run-resumed`",
            "journal event 34: `note` comes after the end of trial 1 (event 32)",
        ]
    );
}

#[test]
fn forks_are_of_the_plans_checkpoint() {
    let is_checkpoint = |e: &Event| matches!(e.body, Body::Checkpoint(_));
    let other = said(|s| {
        let Body::Checkpoint(facts) = &mut s.edit(is_checkpoint).body else { panic!("no checkpoint") };
        facts.id = "other-2".into();
    });
    assert_eq!(
        other,
        [
            "journal event 2: checkpoint other-2 is none of the plan's: a-1",
            "journal event 3: trial 2 is a fork of checkpoint a-1, which no event before reports",
            "journal event 17: trial 1 is a fork of checkpoint a-1, which no event before reports",
        ]
    );
}

/// What is said of a plan that was changed together with its journal.
fn said_of(kind: Kind, change: impl FnOnce(&mut Plan)) -> Vec<String> {
    let mut plan = plan(kind);
    change(&mut plan);
    of_plan(&plan)
}

#[test]
fn a_plan_that_contradicts_itself() {
    for kind in [Kind::One, Kind::Stacked, Kind::Booted, Kind::Round] {
        assert_eq!(said_of(kind, |_| {}), Vec::<String>::new(), "{kind:?}");
    }
    let takes = plan(Kind::One).rule.trials();
    assert!(takes > 1);
    assert_eq!(
        said_of(Kind::One, |p| p.needed = 1),
        [format!(
            "plan.json: needed: is 1, and its rule (at most 50.0 % failures at 60 % confidence) takes {takes} clean loaded trials"
        )]
    );
    let one = |change: fn(&mut Plan)| {
        said_of(Kind::One, |p| {
            p.trials.iter_mut().for_each(|t| t.partner = None);
            change(p);
        })
    };
    let schema = format!("plan.json: schema: is 1, but this klpfarm reads {}", plan::SCHEMA);
    assert_eq!(one(|p| p.schema = 1), [schema]);
    assert_eq!(one(|p| p.scale = 9.0), ["plan.json: scale: is 9, and under tcg it is 2"]);
    assert_eq!(
        one(|p| p.rule.after = Some(Tier::Stable)),
        ["plan.json: rule.after: is stable, which is not below the plan's tier proposed"]
    );
    assert_eq!(
        one(|p| p.rule.applications.max_failure_rate = 1.0),
        [
            "plan.json: rule.applications.max_failure_rate: is 1; must be between 0 and 1, for example 0.05 for 5 %"
        ]
    );
    assert_eq!(one(|p| p.start = Start::Boot), ["plan.json: checkpoint: is there, and the trials boot"]);
    assert_eq!(one(|p| p.trials[4].number = 4)[0], "plan.json: trials[4].number: is 4, and 5 comes here");
    assert_eq!(
        one(|p| p.trials[0].patches = vec![1]),
        ["plan.json: trials[0].patches: has 1, and the plan has 1 patch"]
    );
    assert_eq!(
        one(|p| p.trials[0].patches.clear()),
        ["plan.json: trials[0].patches: are [], and a loaded trial takes one"]
    );
    assert_eq!(
        one(|p| p.trials[1].patches = vec![0]),
        ["plan.json: trials[1].patches: are [0], and a control trial takes none"]
    );
    assert_eq!(one(|p| p.trials[0].turn = 1), ["plan.json: trials[0].turn: is 1, and the plan has 1"]);
    let no_control = one(|p| p.trials.retain(|t| t.arm != Arm::Control));
    let last = no_control.last().unwrap();
    assert_eq!(last, "plan.json: trials: the rule asks for control trials, and there are none");
    let stack = said_of(Kind::Stacked, |p| {
        p.trials.iter_mut().filter(|t| t.arm == Arm::Stack).take(1).for_each(|t| t.patches = vec![1, 1]);
    });
    assert!(stack[0].ends_with("are [1, 1], and a stack trial takes several, each once"), "{stack:?}");
    let turn = said_of(Kind::Round, |p| p.trials[0].patches = vec![1]);
    assert_eq!(turn, ["plan.json: trials[0].patches: has 1, which is for another turn's kernel"]);
    let image = said_of(Kind::Round, |p| p.image.name = "c".into());
    assert_eq!(image, ["plan.json: image: is c, and the first turn's is a"]);
    assert_eq!(
        said_of(Kind::Round, |p| p.pipeline.rotation = None),
        ["plan.json: mode: is a rotation only where the pipeline has one, and where it has one"]
    );
    assert_eq!(said_of(Kind::Round, |p| p.mode.turns_mut()[1].patches.push(7)).len(), 1);
}

/// A patched trial names a control trial; of a pair that is planned to spare, each names the other.
#[test]
fn partners_are_of_the_other_arm() {
    let with = |patched: Option<u32>, control: Option<u32>| {
        said_of(Kind::One, |p| {
            p.trials.iter_mut().for_each(|t| t.partner = None);
            (p.trials[0].partner, p.trials[1].partner) = (patched, control);
        })
    };
    let none = [""; 0];
    assert_eq!(with(None, None), none);
    assert_eq!(with(Some(2), None), none);
    assert_eq!(with(Some(2), Some(1)), none);
    let no_control =
        |n: u32| format!("plan.json: trials[0].partner: is {n}, which is no control trial of the plan");
    assert_eq!(with(Some(1), None), [no_control(1)]);
    assert_eq!(with(Some(0), None), [no_control(0)]);
    assert_eq!(with(Some(90_000), None), [no_control(90_000)]);
    let text =
        "plan.json: trials[1].partner: is 1, which is no patched trial that has this one for its partner";
    assert_eq!(with(None, Some(1)), [text]);
}

/// The file on disk is pretty, and read again before its hash is taken.
#[test]
fn a_plan_keeps_its_hash_through_its_file() {
    for kind in [Kind::One, Kind::Stacked, Kind::Booted, Kind::Round] {
        let mut plan = plan(kind);
        plan.rule.applications.max_failure_rate = 0.123_456_789_012_345_67;
        let text = serde_json::to_string_pretty(&plan).unwrap();
        let again: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(plan.hash(), again.hash());
    }
}
