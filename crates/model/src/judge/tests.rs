mod causes;
mod compared;
mod escapes;
mod new_code;
mod plans;
mod prefixes;
mod story;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::whole::{is_decided, next_trial};
use super::*;
use crate::TrialEnd;
use crate::event::{LatencyMeasure, Measured, Scope, WorkloadMeasure};
use crate::plan::Resolved;
use crate::verdict::{Attribution, Condition, FarmError, FindingCause, Outcome, Remark};
use crate::{Finding, FindingKind, ObservedKind, Phase};
use story::*;

#[test]
fn a_clean_run_qualifies_and_says_what_it_is_worth() {
    let verdict = Story::default().reach(500).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Qualified, 0), "{:?}", verdict.causes);
    let parts =
        ["nothing-found", r#""loaded":14"#, r#""failure_rate":0.19"#, "do_it", r#""before_per_s":500"#];
    assert!(says(&verdict.causes[0], &parts), "{:?}", verdict.causes);
    assert_eq!((verdict.bounds[0].clean, verdict.bounds[0].failed), (14, 0));
}

#[test]
fn one_trial_fewer_is_not_enough() {
    let story = Story::default().reach(500).end(L0, TrialEnd::FarmError { message: "QEMU died".into() });
    let verdict = story.rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 4));
    assert!(
        says(&verdict.causes[1], &["too-few-clean", "loaded", r#"["x"],"clean":13"#, r#""needed":14"#]),
        "{:?}",
        verdict.causes
    );
    // One of those planned to spare makes up for it.
    let story = Story::default().reach(500).end(L0, TrialEnd::FarmError { message: "QEMU died".into() });
    let verdict = story.end((Arm::Loaded, 14), TrialEnd::Completed).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}

#[test]
fn a_void_trial_is_made_up_for_whatever_it_found() {
    let void = || TrialEnd::Void { reason: "the host slept for 60 s".into() };
    let story = || Story::default().reach(500).finds(L0, Phase::Soak, HANG, "hangs").end(L0, void());
    let verdict = story().rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 4));
    assert_eq!(verdict.farm_errors, [FarmError { trial: 1, message: "the host slept for 60 s".into() }]);
    assert!(verdict.evidence.is_empty(), "it says nothing of the patch: {:?}", verdict.evidence);
    let verdict = story().end((Arm::Loaded, 14), TrialEnd::Completed).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    assert_eq!((verdict.arms[&Arm::Loaded].void, verdict.bounds[0].clean), (1, 14));
}

/// An arm of one trial, which the host spoils: nobody is held up for it.
#[test]
fn a_void_trial_of_any_arm_is_done_again_and_no_other() {
    let begun = |story: &Story| -> BTreeSet<u32> {
        story.events.iter().filter_map(|e| e.scope).map(|s| s.trial).collect()
    };
    let next = |story: &Story| next_trial(&story.plan, &story.events, &begun(story)).map(|t| t.arm);
    for arm in [Arm::Quiescent, Arm::Control, Arm::Reapply] {
        let plan = try_plan("arms: {quiescent: 1, control: 1, reapply: 1}\n", resolved(&["x"])).unwrap();
        let loaded = (0..14).map(|k| (Arm::Loaded, k));
        let due = loaded.chain([Arm::Quiescent, Arm::Control, Arm::Reapply].map(|arm| (arm, 0)));
        let story = Story { plan, events: Vec::new() }.reach(500);
        let story = due.clone().filter(|p| p.0 != arm).fold(story, |s, p| s.end(p, TrialEnd::Completed));
        assert!(story.judge().causes.contains(&Why::TrialsMissing { arm, missing: 1, of: 1 }.into()));
        let void = |story: Story, nth| story.end((arm, nth), TrialEnd::Void { reason: "it slept".into() });
        let story = void(story, 0);
        assert_eq!((story.judge().verdict, next(&story)), (Outcome::Inconclusive, Some(arm)));
        let again = Story { plan: story.plan.clone(), events: story.events.clone() };
        let again = again.end((arm, 1), TrialEnd::Completed);
        assert_eq!(
            (again.judge().verdict, next(&again)),
            (Outcome::Qualified, None),
            "{:?}",
            again.judge().causes
        );
        let lost = void(void(story, 1), 2);
        assert_eq!(lost.judge().verdict, Outcome::Inconclusive);
        assert_eq!(lost.judge().remarks.len(), 3);
    }
}

#[test]
fn a_hang_in_the_patch_itself_rejects_at_once_and_names_the_condition() {
    let story = Story::default().finding(L0, Phase::Soak, own("hangs in f"));
    let story = story.end(C0, TrialEnd::Completed);
    assert_eq!(story.judge().verdict, Outcome::Inconclusive, "the trial may find more");
    let story = story.end(L0, TrialEnd::Stopped);
    assert_eq!(story.judge().verdict, Outcome::Rejected);
    assert!(!is_decided(&story.plan, &story.events), "the condition is not known yet");
    let story = story.end(Q0, TrialEnd::Completed);
    let verdict = story.judge();
    assert!(is_decided(&story.plan, &story.events));
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Rejected, 1));
    let cause = &verdict.causes[0];
    let Why::AgainstThePatch(found) = &cause.what else { panic!("{cause:?}") };
    assert_eq!((&*found.title, found.first_after_apply_ms), ("hangs in f", Some(1500)));
    assert_eq!(found.condition, Some(Condition::AppliedUnderLoad));
    let hits =
        [Arm::Loaded, Arm::Quiescent, Arm::Control].map(|arm| (found.arms[&arm].hit, found.arms[&arm].of));
    assert_eq!(hits, [(1, 1), (0, 1), (0, 1)]);
    assert_eq!(verdict.evidence[0].observations[0].seq, 1);
    assert_eq!(verdict.arms[&Arm::Loaded].failed, 1);
}

#[test]
fn a_noisy_control_excuses_no_hang_in_the_patch_itself() {
    let story = Story::default().finds(C0, Phase::Soak, HANG, "hangs in g").end(C0, TrialEnd::Stopped);
    let story = story.finding(L0, Phase::Soak, own("hangs in f")).end(L0, TrialEnd::Stopped);
    assert_eq!(story.rest_clean().judge().verdict, Outcome::Rejected);
}

/// A stall can be the slow host's, wherever it stands: one proves nothing, several next to sound control trials do.
#[test]
fn stalls_are_held_against_the_control_trials_next_to_them() {
    for found in [finding(HANG, "hangs"), stall("hangs in klp_f")] {
        let at = |story: Story, k: usize| {
            let place = (Arm::Loaded, k);
            story.finding(place, Phase::Soak, found.clone()).end(place, TrialEnd::Stopped)
        };
        let once = at(Story::default().reach(5), 0).rest_clean();
        let verdict = once.judge();
        assert_eq!(verdict.verdict, Outcome::Inconclusive);
        assert!(one_says(&verdict, &["not-proven", "unconfirmed"]), "{:?}", verdict.causes);
        assert_eq!((verdict.arms[&Arm::Loaded].unexplained, verdict.bounds[0].failed), (1, 1));
        let all = (0..14).fold(Story::default().reach(5), at).rest_clean();
        let verdict = all.judge();
        assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
        assert_eq!(verdict.evidence[0].attribution, Attribution::Patch);
        assert_eq!((verdict.arms[&Arm::Loaded].failed, verdict.arms[&Arm::Loaded].unexplained), (14, 0));
        assert!(one_says(&verdict, &["fails-more-often"]));
        // The same in the control arm: nothing is proven, and nothing let through.
        let noisy = (0..4).fold((0..14).fold(Story::default().reach(5), at), |s, k| {
            let place = (Arm::Control, k);
            s.finds(place, Phase::Soak, HANG, "hangs in f").end(place, TrialEnd::Stopped)
        });
        assert_eq!(noisy.rest_clean().judge().verdict, Outcome::Inconclusive);
    }
}

#[test]
fn conditions_are_told_apart() {
    let cause = |story: Story| match story.rest_clean().judge().causes.remove(0).what {
        Why::AgainstThePatch(found) => found,
        other => panic!("{other:?}"),
    };
    let of = |found: &FindingCause, arm: Arm| (found.arms[&arm].hit, found.arms[&arm].of);
    let reapply = (Arm::Reapply, 0);
    let again = Story::default().finding(reapply, Phase::Soak, own("hangs")).end(reapply, TrialEnd::Stopped);
    let again = cause(again);
    assert_eq!(again.condition, Some(Condition::Reapplied));
    assert_eq!((of(&again, Arm::Reapply), of(&again, Arm::Loaded)), ((1, 2), (0, 14)));
    let back = Story::default()
        .finds(L0, Phase::Revert, ObservedKind::RevertStalled, "stuck")
        .end(L0, TrialEnd::Stopped);
    assert_eq!(cause(back).condition, Some(Condition::Reverting));
    let idle = Story::default().finding(Q0, Phase::Soak, own("hangs")).end(Q0, TrialEnd::Stopped);
    let idle = cause(idle);
    assert_eq!((idle.condition, of(&idle, Arm::Quiescent)), (Some(Condition::AppliedIdle), (1, 3)));
    let both = Story::default().finding(Q0, Phase::Soak, own("hangs")).finding(L0, Phase::Soak, own("hangs"));
    assert_eq!(cause(both).condition, Some(Condition::Load));
    let always = Story::default().finds(Q0, Phase::Apply, OOPS, "oops").finds(L0, Phase::Apply, OOPS, "oops");
    assert_eq!(cause(always).condition, Some(Condition::Applying));
}

#[test]
fn a_finding_of_the_control_arm_too_proves_nothing_and_counts_all_the_same() {
    let story =
        Story::default().reach(5).finds(L0, Phase::Soak, OOPS, "same").finds(C0, Phase::Soak, OOPS, "same");
    let verdict = story.end(L0, TrialEnd::Stopped).end(C0, TrialEnd::Stopped).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 3));
    assert!(one_says(&verdict, &["not-proven", "control-too"]), "{:?}", verdict.causes);
    assert_eq!((verdict.arms[&Arm::Loaded].unexplained, verdict.bounds[0].failed), (1, 1));
}

#[test]
fn a_finding_far_more_frequent_with_the_patch_is_the_patchs() {
    let story = Story::default().finds(C0, Phase::Soak, HANG, "hangs in g");
    let story = (0..14).fold(story, |s, k| s.finds((Arm::Loaded, k), Phase::Soak, HANG, "hangs in f"));
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
    assert!(says(&verdict.causes[0], &[r#""control":{"hit":1,"of":4}"#]), "{:?}", verdict.causes);
}

#[test]
fn an_arm_that_shows_it_more_rarely_accuses_nobody() {
    // Almost all loaded trials and almost all controls: the idle arm's clean trials make no difference.
    let story = (0..3).fold(Story::default(), |s, k| s.finds((Arm::Control, k), Phase::Soak, HANG, "hangs"));
    let story = (0..13).fold(story, |s, k| s.finds((Arm::Loaded, k), Phase::Soak, HANG, "hangs"));
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "{:?}", verdict.causes);
    assert!(verdict.evidence[0].p_value.unwrap() > 0.3, "{:?}", verdict.evidence[0]);
}

#[test]
fn a_rare_hang_is_neither_blamed_nor_let_through() {
    let story = Story::default().reach(5).finds(L0, Phase::Soak, HANG, "hangs").end(L0, TrialEnd::Stopped);
    let late = (Arm::Loaded, 13);
    let verdict =
        story.finds(late, Phase::Soak, HANG, "hangs").end(late, TrialEnd::Stopped).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "{:?}", verdict.causes);
    assert!(one_says(&verdict, &["not-proven", "unconfirmed"]), "{:?}", verdict.causes);
}

/// A run in which the trials for which `fails` holds stall, from its beginning to its end.
fn run_to_end(plan: Plan, fails: impl Fn(&Trial, u32) -> bool) -> (Story, Vec<Arm>) {
    let mut judge = Judge::new(&plan);
    let mut story = Story { plan, events: Vec::new() };
    let mut order = Vec::new();
    while !judge.is_decided() {
        let Some(trial) = judge.next_trial() else { break };
        judge.start(trial.number);
        let before = story.events.len();
        let nth = order.iter().filter(|arm| **arm == trial.arm).count() as u32;
        order.push(trial.arm);
        let place = story.place(trial.number);
        if place == C0 {
            story = story.reach(5);
        }
        story = if fails(&trial, nth) {
            story.finds(place, Phase::Soak, HANG, "hangs").end(place, TrialEnd::Stopped)
        } else {
            story.end(place, TrialEnd::Completed)
        };
        story.events[before..].iter().for_each(|event| judge.push(event));
    }
    (story, order)
}

/// What nobody can explain counts as a failure; trials in pairs then tell whether it is rare enough.
#[test]
fn one_unexplained_stall_costs_more_trials_and_holds_nobody_up() {
    for arm in [Arm::Loaded, Arm::Reapply, Arm::Quiescent] {
        let (story, order) = run_to_end(plan(), |trial, nth| trial.arm == arm && nth == 1);
        let verdict = story.judge();
        assert_eq!(verdict.verdict, Outcome::Qualified, "{arm}: {:?}", verdict.causes);
        assert!(says(&verdict.causes[1], &["within-the-rate"]), "{:?}", verdict.causes);
        let ran = order.iter().filter(|a| **a == arm).count();
        assert!((30..60).contains(&ran), "{arm}: {ran}");
        // Each of the further trials had a control trial of its own, before it.
        assert!(order.iter().filter(|a| **a == Arm::Control).count() > ran / 2, "{order:?}");
    }
    // Without a failure there are none of them.
    let (story, order) = run_to_end(plan(), |_, _| false);
    assert_eq!((story.judge().verdict, order.len()), (Outcome::Qualified, 23), "{order:?}");
}

/// Half of all re-applications hang: no number of clean trials of another arm washes that out.
#[test]
fn each_arm_is_held_to_account_by_itself() {
    for tier_rate in [0.2, 0.01] {
        let mut with = resolved(&["x"]);
        with.rule.applications.max_failure_rate = tier_rate;
        let plan = try_plan("", with).unwrap();
        let (story, order) = run_to_end(plan, |trial, nth| trial.arm == Arm::Reapply && nth % 2 == 0);
        let verdict = story.judge();
        assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
        assert!(order.iter().filter(|a| **a == Arm::Reapply).count() < 60);
    }
}

#[test]
fn a_noisy_control_holds_nobody_up() {
    let story =
        Story::default().reach(5).finds(C0, Phase::Soak, HANG, "hangs in g").end(C0, TrialEnd::Stopped);
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}

#[test]
fn a_hang_that_the_control_has_elsewhere_is_the_hosts_mood_but_an_oops_is_not() {
    let hang = Story::default().finds(L0, Phase::Soak, HANG, "hangs in f").finds(
        C0,
        Phase::Soak,
        HANG,
        "hangs in g",
    );
    assert_eq!(hang.rest_clean().judge().verdict, Outcome::Inconclusive);
    let oops =
        Story::default().finds(L0, Phase::Soak, OOPS, "oops in f").finds(C0, Phase::Soak, HANG, "hangs in g");
    assert_eq!(oops.rest_clean().judge().verdict, Outcome::Rejected);
}

#[test]
fn trouble_before_applying_never_rejects() {
    for phase in [Phase::Boot, Phase::Age, Phase::Settle, Phase::Baseline] {
        let story = Story::default().reach(5).finds(L0, phase, OOPS, "oops").end(L0, TrialEnd::Stopped);
        let verdict = story.rest_clean().judge();
        assert_eq!(verdict.verdict, Outcome::Inconclusive);
        assert!(one_says(&verdict, &["not-proven", "before-apply"]), "{:?}", verdict.causes);
        assert_eq!((verdict.arms[&Arm::Loaded].void, verdict.remarks[0].what), (1, Remark::Invalid));
    }
}

#[test]
fn without_a_control_trial_only_a_patchs_own_trouble_counts() {
    let error = || TrialEnd::FarmError { message: "QEMU died".into() };
    let no_control = || (0..4).fold(Story::default(), |s, k| s.end((Arm::Control, k), error()));
    let hang =
        no_control().finding(L0, Phase::Soak, stall("hangs")).end(L0, TrialEnd::Stopped).rest_clean().judge();
    assert_eq!((hang.verdict, hang.exit_code()), (Outcome::Inconclusive, 4));
    assert!(one_says(&hang, &["not-proven", "no-control"]), "{:?}", hang.causes);
    let refused =
        no_control().finds(L0, Phase::Apply, ObservedKind::LoadRefused, "refused").rest_clean().judge();
    assert_eq!(refused.verdict, Outcome::Rejected);
}

#[test]
fn an_unreached_function_is_never_qualified() {
    let verdict = Story::default().reach(0).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 3));
    assert!(says(&verdict.causes[0], &["never-called", "do_it"]), "{:?}", verdict.causes);
}

#[test]
fn a_function_whose_calls_could_not_be_counted_is_never_qualified() {
    let blind = |story: Story, place: Place| {
        let reason = "calls of vmlinux/do_it can't be counted on this kernel".to_owned();
        story.add(place, Phase::Reach, Body::Blind { detector: crate::Detector::Reach, reason })
    };
    let verdict = blind(Story::default(), L0).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(says(&verdict.causes[0], &["calls-unknown", "do_it"]), "{:?}", verdict.causes);
    // That the kernel's own function is called says nothing of the new one.
    let verdict = blind(Story::default().called(C0, 500), L0).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "{:?}", verdict.causes);
    let verdict = Story::default().called(C0, 500).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "{:?}", verdict.causes);
}

/// On 4.4 a patch of a function in which a task sleeps for ever (`kthreadd`) is in force at once, and the task stays in the old code.
#[test]
fn a_function_with_tasks_inside_is_not_one_whose_new_code_ran() {
    let inside = |story: Story| {
        let functions = vec!["vmlinux/do_it".into()];
        let inside = BTreeMap::from([("vmlinux/do_it".to_owned(), 1)]);
        let applied = Body::Applied { patch: "x".into(), took_ms: 1, functions, inside };
        story.add(L0, Phase::Apply, applied).applied(L0)
    };
    let verdict = inside(Story::default()).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "never counted: {:?}", verdict.causes);
    let verdict = inside(Story::default().reach(0)).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "{:?}", verdict.causes);
    assert!(
        says(&verdict.causes[0], &["new-code-never-ran", "do_it", r#""inside":1"#]),
        "{:?}",
        verdict.causes
    );
    let verdict = inside(Story::default().reach(9)).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}

/// The load calls the function, and with the patch in force nothing arrives at its new code.
#[test]
fn a_function_whose_new_code_never_runs_is_never_qualified() {
    let count =
        |calls| Body::Reach { function: "vmlinux/do_it".into(), calls, window_ms: 1000, new_code: None };
    let verdict = Story::default().called(C0, 500).add(L0, Phase::Reach, count(0)).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(says(&verdict.causes[0], &["new-code-never-ran"]), "{:?}", verdict.causes);
    let verdict =
        Story::default().called(C0, 500).applied(L0).add(L0, Phase::Reach, count(20)).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    let reach = &verdict.reach[0];
    assert_eq!((reach.before_per_s, reach.after_per_s), (Some(500.0), Some(20.0)));
    assert_eq!((reach.calls, reach.counted_trials), (Some(20), 1));
}

/// `--trials 2`: to look for findings, whatever the tier needs.
#[test]
fn a_plan_that_can_prove_nothing_goes_through_with_its_trials() {
    let plan = try_plan("", Resolved { trials: Some(2), ..resolved(&["x"]) }).unwrap();
    let planned = plan.trials.iter().filter(|t| t.arm == Arm::Loaded).count();
    let mut story = Story { plan, events: Vec::new() };
    let mut started = BTreeSet::new();
    while let Some(trial) = next_trial(&story.plan, &story.events, &started) {
        started.insert(trial.number);
        let place = story.place(trial.number);
        story = story.end(place, TrialEnd::Completed);
    }
    let loaded = |t: &&Trial| t.arm == Arm::Loaded && started.contains(&t.number);
    assert_eq!(story.plan.trials.iter().filter(loaded).count(), planned, "{planned} are planned");
    assert!(planned >= 2);
    assert_eq!(story.judge().verdict, Outcome::Inconclusive);
}

/// A function of the same name elsewhere is another function.
#[test]
fn functions_of_one_name_are_told_apart() {
    let applied = Body::Applied {
        patch: "x".into(),
        took_ms: 1,
        functions: vec!["ext4/get_block,2".into(), "vmlinux/get_block,1".into()],
        inside: BTreeMap::new(),
    };
    let count = |function: &str, calls| Body::Reach {
        function: function.into(),
        calls,
        window_ms: 1000,
        new_code: None,
    };
    let story = Story::default()
        .add(L0, Phase::Transition, applied)
        .add(L0, Phase::Transition, Body::TransitionDone { took_ms: 1, per_task: true })
        .add(L0, Phase::Reach, count("vmlinux/get_block,1", 100))
        .add(L0, Phase::Reach, count("ext4/get_block,2", 0));
    let verdict = story.reach(5).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert_eq!(verdict.causes.len(), 1, "{:?}", verdict.causes);
    assert!(says(&verdict.causes[0], &["never-called", "ext4/get_block,2"]), "{:?}", verdict.causes);
}

#[test]
fn a_patch_that_replaces_no_function_is_never_qualified() {
    let applied =
        Body::Applied { patch: "x".into(), took_ms: 1, functions: Vec::new(), inside: BTreeMap::new() };
    let done = Body::TransitionDone { took_ms: 1, per_task: true };
    let places = [(Arm::Loaded, 14), (Arm::Quiescent, 3), (Arm::Reapply, 2)];
    let places = places.into_iter().flat_map(|(arm, n)| (0..n).map(move |k| (arm, k)));
    let story = places.fold(Story::default(), |s, place| {
        let s = s.add(place, Phase::Transition, applied.clone()).add(place, Phase::Transition, done.clone());
        s.add(place, Phase::End, Body::TrialEnded { end: TrialEnd::Completed })
    });
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(says(&verdict.causes[0], &["replaces-nothing"]), "{:?}", verdict.causes);
}

#[test]
fn an_interrupted_or_empty_run_is_inconclusive() {
    assert_eq!(Story::default().judge().verdict, Outcome::Inconclusive);
    let some = Story::default().end(L0, TrialEnd::Completed).end(C0, TrialEnd::Interrupted);
    assert_eq!(some.judge().verdict, Outcome::Inconclusive);
}

#[test]
fn symptoms_of_one_cause_are_one_item_led_by_the_crash() {
    let story = Story::default()
        .finds(L0, Phase::Soak, HANG, "hangs")
        .finds(L0, Phase::Soak, OOPS, "oops in f")
        .finds(L0, Phase::Soak, ObservedKind::SshDead, "no SSH")
        .finds(Q0, Phase::Soak, OOPS, "oops in f");
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.evidence.len(), 1);
    let item = &verdict.evidence[0];
    assert_eq!((item.title.as_str(), item.count), ("oops in f", 4));
    assert_eq!((item.arms[&Arm::Loaded].hit, item.arms[&Arm::Quiescent].hit), (1, 1));
}

fn body() -> impl Strategy<Value = Body> {
    let kind = prop_oneof![Just(HANG), Just(ObservedKind::Tainted), Just(ObservedKind::WrongContent)];
    prop_oneof![
        1 => kind.prop_map(|kind| Body::Finding(Box::new(finding(kind, "t")))),
        1 => (0_u64..3).prop_map(|calls| Body::Reach { function: "f".into(), calls, window_ms: 1, new_code: None }),
        3 => Just(Body::TrialEnded { end: TrialEnd::Completed }),
        1 => Just(Body::TrialEnded { end: TrialEnd::FarmError { message: "m".into() } }),
    ]
}

proptest! {
    /// Whatever happens: a run with a finding in a patched trial that no control trial shares never qualifies, a run whose arms are not
    /// done never does, and judging again gives the same.
    #[test]
    fn nothing_faulty_qualifies(
        events in proptest::collection::vec((1_u32..34, body()), 0..60),
        all in any::<bool>(),
    ) {
        let plan = plan();
        let trial = |n: u32| plan.trials.iter().find(|t| t.number == n).unwrap();
        let place = |n: u32| {
            let arm = trial(n).arm;
            (arm, plan.trials.iter().filter(|t| t.arm == arm && t.number < n).count())
        };
        let story = events.into_iter().fold(Story::default(), |s, (n, body)| s.add(place(n), Phase::Soak, body));
        let story = if all { story.rest_clean() } else { story };
        let verdict = story.judge();
        let found = |control: bool| story.events.iter().any(|e| {
            matches!(e.body, Body::Finding(_)) && (e.scope.unwrap().arm == Arm::Control) == control
        });
        if verdict.verdict == Outcome::Qualified {
            // A soft finding may be rare enough; one that the kernel or the load is sure of never is.
            let sure = story.events.iter().any(|e| match &e.body {
                Body::Finding(f) => !f.kind.is_soft() && e.scope.unwrap().arm != Arm::Control,
                _ => false,
            });
            prop_assert!(found(true) || !sure);
            prop_assert!(verdict.arms[&Arm::Loaded].clean >= 14);
            prop_assert!(verdict.bounds.iter().all(|b| b.failure_rate <= 0.2));
        }
        prop_assert_eq!(&story.judge(), &verdict);
        let json = serde_json::to_string(&verdict).unwrap();
        prop_assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
    }
}
