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
    assert_eq!(verdict.arms[&Arm::Loaded].unclear, 1);
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

fn measured(ops: u64, p10_us: u64, p50_us: u64) -> Measured {
    let latency = |p10_us: u64, p50_us: u64| LatencyMeasure {
        count: 100,
        p10_ns: p10_us * 1000,
        p50_ns: p50_us * 1000,
        ..LatencyMeasure::default()
    };
    let of = |ops, p10, p50| WorkloadMeasure {
        ops,
        threads: 1,
        longest_idle_ms: 0,
        asleep: Some(0.02),
        latency: BTreeMap::from([("madvise".to_owned(), latency(p10, p50))]),
        ..WorkloadMeasure::default()
    };
    let workloads =
        BTreeMap::from([("w".to_owned(), of(ops, p10_us, p50_us)), ("other".to_owned(), of(1000, 10, 20))]);
    Measured { window_ms: 10_000, workloads, resources: Vec::new() }
}

fn usual() -> Measured {
    measured(1000, 20, 50)
}

/// All controls do as `control` says in the soak; loaded trial `k` as `loaded(k)` says.
fn compared(control: impl Fn(usize) -> Measured, loaded: impl Fn(usize) -> Measured) -> Verdict {
    let phases = |s: Story, place: Place, soak: Measured| {
        s.add(place, Phase::Baseline, Body::Measured(usual())).add(place, Phase::Soak, Body::Measured(soak))
    };
    let story = (0..4).fold(Story::default().reach(5), |s, k| phases(s, (Arm::Control, k), control(k)));
    let story = (0..14).fold(story, |s, k| phases(s, (Arm::Loaded, k), loaded(k)));
    story.rest_clean().judge()
}

#[test]
fn a_slow_down_against_the_control_rejects() {
    let rate = compared(|_| usual(), |_| measured(100, 20, 50));
    assert_eq!(rate.verdict, Outcome::Rejected, "{:?}", rate.causes);
    assert!(rate.causes[0].contains("w does far fewer operations"), "{:?}", rate.causes);
    assert_eq!((rate.arms[&Arm::Loaded].failed, rate.arms[&Arm::Loaded].clean), (14, 0));
    let latency = compared(|_| usual(), |_| measured(900, 220, 250));
    assert!(latency.causes[0].contains("madvise takes far longer"), "{:?}", latency.causes);
}

/// What a busy host does to some trials of both arms rejects nothing and holds nothing up.
#[test]
fn chance_rejects_nothing() {
    let slower = || measured(100, 60, 300);
    assert_eq!(compared(|_| slower(), |_| slower()).verdict, Outcome::Qualified);
    let one = compared(|_| usual(), |k| if k == 3 { measured(100, 200, 300) } else { usual() });
    assert_eq!(one.verdict, Outcome::Qualified, "{:?}", one.causes);
    assert_eq!(one.evidence[0].attribution, Attribution::Noise);
    let both =
        compared(|k| if k < 2 { slower() } else { usual() }, |k| if k < 7 { slower() } else { usual() });
    assert_eq!(both.verdict, Outcome::Qualified, "{:?}", both.causes);
    // One point of the distribution alone is noise.
    assert_eq!(compared(|_| usual(), |_| measured(900, 20, 400)).verdict, Outcome::Qualified);
}

/// A single pair of trials can't tell a slow patch from a busy host: nothing is claimed, and that is said.
#[test]
fn few_trials_compare_nothing_and_say_so() {
    let pair = Story::default();
    let phases = |s: Story, place: Place, soak: Measured| {
        s.add(place, Phase::Baseline, Body::Measured(usual())).add(place, Phase::Soak, Body::Measured(soak))
    };
    let pair = phases(phases(pair, L0, measured(100, 200, 300)), C0, usual());
    let verdict = pair.end(L0, TrialEnd::Completed).end(C0, TrialEnd::Completed).judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(verdict.evidence.is_empty());
    assert!(verdict.blind.iter().any(|b| b.starts_with("comparison:")), "{:?}", verdict.blind);
}

#[test]
fn calls_that_begin_to_sleep_reject() {
    let asleep = |share: f64| {
        let mut m = usual();
        m.workloads.get_mut("w").unwrap().asleep = Some(share);
        m
    };
    assert_eq!(compared(|_| asleep(0.02), |_| asleep(0.30)).verdict, Outcome::Rejected);
    assert_eq!(compared(|_| asleep(0.02), |_| asleep(0.05)).verdict, Outcome::Qualified);
    // One that sleeps anyway has to sleep far more than in any control trial.
    assert_eq!(compared(|_| asleep(0.30), |_| asleep(0.45)).verdict, Outcome::Rejected);
    assert_eq!(compared(|_| asleep(0.30), |_| asleep(0.38)).verdict, Outcome::Qualified);
    let one = |k: usize| asleep(if k == 0 { 0.50 } else { 0.30 });
    assert_eq!(compared(one, |_| asleep(0.55)).verdict, Outcome::Qualified);
}

#[test]
fn a_leak_beyond_the_control_rejects() {
    use crate::event::Resources;
    let grows = |kib_a_second: u64| {
        let sample = |s: u64| Resources {
            at_ms: s * 1000,
            slab_unreclaimable_kib: 30_000 + s * kib_a_second,
            ..Resources::default()
        };
        Measured { resources: (0..10).map(sample).collect(), ..usual() }
    };
    let leak = compared(|_| grows(5), |_| grows(500));
    assert_eq!((leak.verdict, leak.evidence[0].kind), (Outcome::Rejected, FarmKind::ResourcesLeaked.into()));
    assert_eq!(compared(|_| grows(490), |_| grows(500)).verdict, Outcome::Qualified);
    // Control machines that use more and more of something else excuse nothing.
    let uses = |what: fn(&mut Resources) -> &mut u64| {
        let sample = |s: u64| {
            let mut r = Resources { at_ms: s * 1000, available_kib: 900_000, ..Resources::default() };
            *what(&mut r) += s * 100;
            r
        };
        Measured { resources: (0..10).map(sample).collect(), ..usual() }
    };
    let control = |k: usize| match k {
        0 => uses(|r| &mut r.open_files),
        1 => uses(|r| &mut r.tasks),
        2 => uses(|r| &mut r.zombies),
        _ => grows(5),
    };
    let leak = compared(control, |_| grows(500));
    assert_eq!((leak.verdict, leak.evidence[0].kind), (Outcome::Rejected, FarmKind::ResourcesLeaked.into()));
}

/// What keeps the patch from being taken back leaves the soak comparable; what happened in the soak does not.
#[test]
fn a_finding_at_reverting_does_not_hide_a_leak() {
    let kinds = |phase: Phase| -> Vec<FindingKind> {
        let sample = |s: u64, kib: u64| crate::event::Resources {
            at_ms: s * 1000,
            unaccounted_kib: s * kib,
            ..Default::default()
        };
        let soak = |kib| Measured { resources: (0..10).map(|s| sample(s, kib)).collect(), ..usual() };
        let phases = |s: Story, place: Place, kib: u64| {
            s.add(place, Phase::Baseline, Body::Measured(usual())).add(
                place,
                Phase::Soak,
                Body::Measured(soak(kib)),
            )
        };
        let story = (0..4).fold(Story::default(), |s, k| phases(s, (Arm::Control, k), 0));
        let story = (0..4).fold(story, |s, k| {
            phases(s, (Arm::Loaded, k), 300)
                .finds((Arm::Loaded, k), phase, FarmKind::RevertRefused, "refused")
                .end((Arm::Loaded, k), TrialEnd::Stopped)
        });
        story.rest_clean().judge().evidence.iter().map(|e| e.kind).collect()
    };
    assert!(kinds(Phase::Revert).contains(&FarmKind::ResourcesLeaked.into()));
    assert!(!kinds(Phase::Soak).contains(&FarmKind::ResourcesLeaked.into()));
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

#[test]
fn plans_are_the_same_for_the_same_seed_and_arms_are_spread_evenly() {
    let (a, b) = (plan(), plan());
    assert_eq!(a.hash(), b.hash());
    let arms: Vec<Arm> = a.trials.iter().map(|t| t.arm).collect();
    assert_eq!(arms[..4], [Arm::Loaded, Arm::Control, Arm::Quiescent, Arm::Reapply]);
    assert_eq!((a.needed, arms.iter().filter(|a| **a == Arm::Loaded).count()), (14, 24));
    let last_control = arms.iter().rposition(|a| *a == Arm::Control).unwrap();
    assert!(last_control > arms.len() / 2, "{arms:?}");
    assert!(a.trials.iter().all(|t| t.jitter < Duration::from_secs(2)));
    assert_ne!(a.trials[0].seed, a.trials[1].seed);
}

#[test]
fn several_patches_are_tried_alone_and_together() {
    let plan = try_plan("", resolved(&["a", "b"])).unwrap();
    let of = |arm: Arm| plan.trials.iter().filter(|t| t.arm == arm).collect::<Vec<_>>();
    assert_eq!((of(Arm::Loaded).len(), of(Arm::Stack).len(), of(Arm::Control).len()), (48, 24, 6));
    assert!(of(Arm::Stack).iter().all(|t| t.patches == [0, 1]));
    assert_eq!(of(Arm::Loaded).iter().filter(|t| t.patches == [1]).count(), 24);
    let verdict = judge(&plan, &[]);
    let bounds: Vec<String> =
        verdict.bounds.iter().map(|b| format!("{} {}", b.arm, b.patches.join("+"))).collect();
    assert_eq!(bounds, ["loaded a", "loaded b", "stack a+b"]);
}

#[test]
fn a_tier_out_of_reach_is_said_with_the_number_needed() {
    let error = try_plan("arms: {loaded: 5}\n", resolved(&["x"])).unwrap_err();
    for part in ["arms.loaded", "needs 14 clean loaded trials", "allows 5", "--trials 5"] {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    let few = Resolved { trials: Some(5), ..resolved(&["x"]) };
    assert_eq!(try_plan("", few).unwrap().trials.iter().filter(|t| t.arm == Arm::Loaded).count(), 5);
    let error = try_plan("arms: {reapply: 0}\n", resolved(&["x"])).unwrap_err();
    assert!(error.contains("asks for this arm"), "{error}");
    let error = try_plan("budget: 60s\n", resolved(&["x"])).unwrap_err();
    assert!(error.contains("the 14 loaded trials that tier proposed needs"), "{error}");
}

#[test]
fn trials_are_started_until_the_tier_has_what_it_needs() {
    let plan = plan();
    let mut started = BTreeSet::new();
    while let Some(trial) = next_trial(&plan, &[], &started) {
        started.insert(trial.number);
    }
    // Those to spare are left, ten loaded ones and two of each other arm: those that run may all end cleanly.
    assert_eq!(started.len(), plan.trials.len() - 16);
    let void = Story::default().end(L0, TrialEnd::FarmError { message: "m".into() });
    let next = next_trial(&plan, &void.events, &started).map(|t| t.arm);
    assert_eq!(next, Some(Arm::Loaded));
}

/// Tasks that were seen waiting when evidence was gathered.
fn waits(stacks: &[&str]) -> Body {
    let task = |(n, stack): (usize, &&str)| crate::Wait {
        task: "w".into(),
        pid: 7,
        tid: 100 + n as u32,
        state: 'D',
        workload: None,
        threads: None,
        since_apply_ms: Some(1500),
        stack: stack.lines().map(str::to_owned).collect(),
    };
    let tasks: Vec<crate::Wait> = stacks.iter().enumerate().map(task).collect();
    let total = tasks.len() as u32;
    Body::Waits(Box::new(crate::Waits { noted: crate::Noted::Blocked, total, tasks }))
}

const IN_PATCH: &str = "klp_new+0x1/0x2 [x]\ndo_syscall_64+0x1/0x2";
const IN_FAULT: &str = "rwsem_down_read_slowpath+0x1/0x2\ndo_user_addr_fault+0x1/0x2";

/// Who notices a hang first differs from trial to trial; the place where tasks wait does not.
#[test]
fn hangs_with_different_names_are_one_item_with_a_count() {
    let elsewhere = |title: &str, function: &str| Finding {
        function: Some(function.into()),
        ..finding(FindingKind::Kernel(klpfarm_kmsg::Kind::HungTask), title)
    };
    let story = Story::default()
        .finding(L0, Phase::Soak, elsewhere("INFO: task hung in do_madvise", "do_madvise"))
        .add(L0, Phase::Soak, waits(&[IN_FAULT, IN_PATCH]))
        .end(L0, TrialEnd::Stopped)
        .finding(
            L1,
            Phase::Soak,
            Finding { function: Some("klp_new".into()), ..own("a: threads hang in klp_new") },
        )
        .finds(L1, Phase::Soak, FarmKind::SshDead, "no SSH login succeeds")
        .end(L1, TrialEnd::Stopped)
        .finds((Arm::Loaded, 2), Phase::Soak, FarmKind::SshDead, "no SSH login succeeds")
        .add((Arm::Loaded, 2), Phase::Soak, waits(&[IN_PATCH]))
        .end((Arm::Loaded, 2), TrialEnd::Stopped)
        .end(C0, TrialEnd::Completed)
        .end(Q0, TrialEnd::Completed);
    let verdict = story.judge();
    assert_eq!(verdict.evidence.len(), 1, "{:#?}", verdict.evidence);
    let item = &verdict.evidence[0];
    assert_eq!((item.count, item.arms[&Arm::Loaded].hit), (4, 3));
    assert_eq!(item.title, "a: threads hang in klp_new", "the one in the patch's own code leads");
    let cause = item.cause.as_deref().unwrap();
    assert!(
        cause.starts_with("w waits in klp_new (x's own code, state D) since 1.5 s after applying"),
        "{cause}"
    );
    assert!(cause.contains("likely held by threads of the same processes that stand in klp_new"), "{cause}");
    assert_eq!((item.waits.len(), item.waits_of), (2, Some(story.number(L0))));
    assert!(verdict.causes[0].contains(cause), "{:?}", verdict.causes);
}

/// Nothing but the lock in common, and nothing of the patch: still one cause. A crash is another.
#[test]
fn hangs_on_one_lock_are_one_item_and_a_crash_is_its_own() {
    let stalled =
        |title: &str, function: &str| Finding { function: Some(function.into()), ..finding(HANG, title) };
    let verdict = Story::default()
        .finding(L0, Phase::Soak, stalled("a: threads hang in vm_mmap_pgoff", "vm_mmap_pgoff"))
        .add(L0, Phase::Soak, waits(&[IN_FAULT]))
        .end(L0, TrialEnd::Stopped)
        .finding(L1, Phase::Soak, stalled("b: threads hang in do_user_addr_fault", "do_user_addr_fault"))
        .add(L1, Phase::Soak, waits(&[IN_FAULT]))
        .end(L1, TrialEnd::Stopped)
        .finds((Arm::Loaded, 2), Phase::Soak, OOPS, "BUG: NULL pointer dereference in klp_new")
        .add((Arm::Loaded, 2), Phase::Soak, waits(&[IN_FAULT]))
        .end((Arm::Loaded, 2), TrialEnd::Stopped)
        .end((Arm::Control, 0), TrialEnd::Completed)
        .end((Arm::Control, 1), TrialEnd::Completed)
        .end(Q0, TrialEnd::Completed)
        .judge();
    let hits: Vec<(u32, bool)> =
        verdict.evidence.iter().map(|e| (e.arms[&Arm::Loaded].hit, e.cause.is_some())).collect();
    assert_eq!(hits, [(1, false), (2, true)], "{:#?}", verdict.evidence);
}

/// Two hangs in two functions of the patch, with nothing in common, stay two.
#[test]
fn hangs_in_different_functions_of_the_patch_are_two_items() {
    let at = |function: &str| Finding {
        function: Some(function.into()),
        ..own(&format!("a: threads hang in {function}"))
    };
    let verdict = Story::default()
        .finding(L0, Phase::Soak, at("klp_one"))
        .end(L0, TrialEnd::Stopped)
        .finding(L1, Phase::Soak, at("klp_two"))
        .end(L1, TrialEnd::Stopped)
        .end(C0, TrialEnd::Completed)
        .judge();
    assert_eq!(verdict.evidence.len(), 2);
}
