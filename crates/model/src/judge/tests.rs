mod causes;
mod compared;
mod plans;
mod story;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::event::{LatencyMeasure, WorkloadMeasure};
use crate::plan::Resolved;
use crate::verdict::Outcome;
use crate::{FarmKind, FindingKind};
use story::*;

#[test]
fn a_clean_run_qualifies_and_says_what_it_is_worth() {
    let verdict = Story::default().reach(500).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Qualified, 0), "{:?}", verdict.causes);
    for part in ["14 loaded", "at most 19.3 %", "do_it (500 calls/s before"] {
        assert!(verdict.causes[0].contains(part), "{:?} lacks {part}", verdict.causes);
    }
    assert_eq!((verdict.bounds[0].clean, verdict.bounds[0].failed), (14, 0));
}

#[test]
fn one_trial_fewer_is_not_enough() {
    let story = Story::default().reach(500).end(L0, TrialEnd::FarmError { message: "QEMU died".into() });
    let verdict = story.rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 4));
    assert!(
        verdict.causes[1].contains("13 clean loaded trials of x: tier proposed needs 14"),
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
    assert_eq!(verdict.farm_errors, ["trial 1: the host slept for 60 s"]);
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
        assert_eq!(story.judge().causes, [format!("1 of 1 {arm} trials did not take place")]);
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
        assert_eq!((lost.judge().verdict, next(&lost)), (Outcome::Inconclusive, None));
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
    for part in [
        "hangs in f",
        "1.5 s after applying",
        "only when the load was running",
        "1/1",
        "not when applied idle, 0/1",
        "never without the patch, 0/1",
        "p = 1.000",
    ] {
        assert!(cause.contains(part), "{cause} lacks {part}");
    }
    assert_eq!(verdict.evidence[0].observations[0].seq, 1);
    assert_eq!(verdict.arms[&Arm::Loaded].failed, 1);
}

#[test]
fn a_noisy_control_excuses_no_hang_in_the_patch_itself() {
    let story = Story::default().finds(C0, Phase::Soak, HANG, "hangs in g").end(C0, TrialEnd::Stopped);
    let story = story.finding(L0, Phase::Soak, own("hangs in f")).end(L0, TrialEnd::Stopped);
    assert_eq!(story.rest_clean().judge().verdict, Outcome::Rejected);
}

#[test]
fn a_hang_elsewhere_needs_a_second_witness() {
    let once = Story::default().reach(5).finds(L0, Phase::Soak, HANG, "hangs").end(L0, TrialEnd::Stopped);
    let verdict = once.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(verdict.causes[0].contains("too rarely"), "{:?}", verdict.causes);
    let twice = Story::default().finds(L0, Phase::Soak, HANG, "hangs").end(L0, TrialEnd::Stopped);
    let twice = twice.finds(L1, Phase::Soak, HANG, "hangs").end(L1, TrialEnd::Stopped);
    let twice = twice.end(C0, TrialEnd::Completed).end((Arm::Control, 1), TrialEnd::Completed);
    assert_eq!(twice.judge().verdict, Outcome::Rejected);
}

#[test]
fn conditions_are_told_apart() {
    let cause = |story: Story| story.rest_clean().judge().causes.remove(0);
    let reapply = (Arm::Reapply, 0);
    let again = Story::default().finding(reapply, Phase::Soak, own("hangs")).end(reapply, TrialEnd::Stopped);
    assert!(
        cause(again)
            .contains("only when applied again after taking it back, 1/2; not when applied once, 0/14")
    );
    let back = Story::default()
        .finds(L0, Phase::Revert, FarmKind::RevertStalled, "stuck")
        .end(L0, TrialEnd::Stopped);
    assert!(cause(back).contains("only when the patch is taken back, 1/19"));
    let idle = Story::default().finding(Q0, Phase::Soak, own("hangs")).end(Q0, TrialEnd::Stopped);
    assert!(cause(idle).contains("only when applied idle, 1/3; not when applied under load, 0/14"));
    let both = Story::default().finding(Q0, Phase::Soak, own("hangs")).finding(L0, Phase::Soak, own("hangs"));
    assert!(cause(both).contains("whenever there is load"));
    let always = Story::default().finds(Q0, Phase::Apply, OOPS, "oops").finds(L0, Phase::Apply, OOPS, "oops");
    assert!(cause(always).contains("always, even on an idle machine"));
}

#[test]
fn a_finding_of_the_control_arm_too_says_nothing_of_the_patch() {
    let story =
        Story::default().reach(5).finds(L0, Phase::Soak, OOPS, "same").finds(C0, Phase::Soak, OOPS, "same");
    let verdict = story.end(L0, TrialEnd::Stopped).end(C0, TrialEnd::Stopped).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 3));
    assert!(verdict.causes[0].contains("seen without the patch as well"), "{:?}", verdict.causes);
    assert_eq!(verdict.arms[&Arm::Loaded].unexplained, 1);
}

#[test]
fn a_finding_far_more_frequent_with_the_patch_is_the_patchs() {
    let story = Story::default().finds(C0, Phase::Soak, HANG, "hangs in g");
    let story = (0..14).fold(story, |s, k| s.finds((Arm::Loaded, k), Phase::Soak, HANG, "hangs in f"));
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
    assert!(verdict.causes[0].contains("without the patch, 1/4 (p = 0.005)"), "{:?}", verdict.causes);
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
    assert!(verdict.causes[0].contains("too rarely"), "{:?}", verdict.causes);
}

/// What nobody can explain counts as a failure: with trials enough, the tier's rate covers it.
#[test]
fn one_unexplained_stall_costs_more_trials_and_holds_nobody_up() {
    let reapply = (Arm::Reapply, 0);
    let story = Story::default()
        .reach(5)
        .finds(reapply, Phase::Revert, HANG, "hangs")
        .end(reapply, TrialEnd::Stopped);
    let story = story.rest_clean();
    assert_eq!(story.judge().verdict, Outcome::Inconclusive);
    let started: BTreeSet<u32> = story.events.iter().filter_map(|e| Some(e.scope?.trial)).collect();
    assert_eq!(next_trial(&story.plan, &story.events, &started).map(|t| t.arm), Some(Arm::Loaded));
    // One failure of 22 leaves no more than 20 % possible.
    let story = (14..17).fold(story, |s, k| s.end((Arm::Loaded, k), TrialEnd::Completed));
    let verdict = story.judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    assert!(verdict.causes[1].contains("counted as a failure"), "{:?}", verdict.causes);
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
        assert!(verdict.causes[0].contains("before the patch was applied"), "{:?}", verdict.causes);
    }
}

#[test]
fn without_a_control_trial_only_a_patchs_own_trouble_counts() {
    let error = || TrialEnd::FarmError { message: "QEMU died".into() };
    let no_control = || (0..4).fold(Story::default(), |s, k| s.end((Arm::Control, k), error()));
    let hang = no_control().finding(L0, Phase::Soak, own("hangs")).rest_clean().judge();
    assert_eq!((hang.verdict, hang.exit_code()), (Outcome::Inconclusive, 4));
    assert!(hang.causes.iter().any(|c| c.contains("no control trial went through")), "{:?}", hang.causes);
    let refused = no_control().finds(L0, Phase::Apply, FarmKind::LoadRefused, "refused").rest_clean().judge();
    assert_eq!(refused.verdict, Outcome::Rejected);
}

#[test]
fn an_unreached_function_is_never_qualified() {
    let verdict = Story::default().reach(0).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 3));
    assert!(verdict.causes[0].contains("never call do_it"), "{:?}", verdict.causes);
}

#[test]
fn a_function_whose_calls_could_not_be_counted_is_never_qualified() {
    let applied = |inside: u32| Body::Applied {
        patch: "x".into(),
        took_ms: 1,
        functions: vec!["vmlinux/do_madvise".into()],
        inside: BTreeMap::from([("do_madvise".to_owned(), inside)]),
    };
    let verdict = Story::default().add(L0, Phase::Transition, applied(0)).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(verdict.causes[0].contains("do_madvise"), "{:?}", verdict.causes);
    // A task inside it was seen: the load does reach it.
    let verdict = Story::default().add(L0, Phase::Transition, applied(3)).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.reach[0].inside), (Outcome::Qualified, 3));
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
        .finds(L0, Phase::Soak, FarmKind::SshDead, "no SSH")
        .finds(Q0, Phase::Soak, OOPS, "oops in f");
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.evidence.len(), 1);
    let item = &verdict.evidence[0];
    assert_eq!((item.title.as_str(), item.count), ("oops in f", 4));
    assert_eq!((item.arms[&Arm::Loaded].hit, item.arms[&Arm::Quiescent].hit), (1, 1));
}

fn body() -> impl Strategy<Value = Body> {
    let kind = prop_oneof![Just(HANG), Just(FarmKind::Tainted), Just(FarmKind::WrongContent)];
    prop_oneof![
        1 => kind.prop_map(|kind| Body::Finding(Box::new(finding(kind, "t")))),
        1 => (0_u64..3).prop_map(|calls| Body::Reach { function: "f".into(), calls, window_ms: 1 }),
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
