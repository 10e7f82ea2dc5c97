//! Plans, and which of their trials are started.

use super::*;

#[test]
fn plans_are_the_same_for_the_same_seed_and_arms_are_spread_evenly() {
    let (a, b) = (plan(), plan());
    assert_eq!(a.hash(), b.hash());
    let arms: Vec<Arm> = a.trials.iter().map(|t| t.arm).collect();
    assert_eq!(arms[..4], [Arm::Loaded, Arm::Control, Arm::Quiescent, Arm::Reapply]);
    assert_eq!((a.needed, a.controls), (14, 4));
    // All that a run without a failure takes comes first: 14 + 3 + 2 + 4 trials, and two of each to take the place of invalid ones.
    let first = &arms[..31];
    assert_eq!(first.iter().filter(|a| **a == Arm::Loaded).count(), 16);
    let last_control = first.iter().rposition(|a| *a == Arm::Control).unwrap();
    assert!(last_control > first.len() / 2, "{first:?}");
    // Then pairs: a control trial, and the patched trial that it is the partner of.
    for pair in a.trials[31..].chunks(2) {
        assert_eq!((pair[0].arm, pair[0].partner), (Arm::Control, Some(pair[1].number)));
        assert!(pair[1].arm.patched() && pair[1].partner == Some(pair[0].number));
    }
    assert!(a.trials.iter().all(|t| t.jitter < Duration::from_secs(2)));
    assert_ne!(a.trials[0].seed, a.trials[1].seed);
}

#[test]
fn several_patches_are_tried_alone_and_together() {
    let plan = try_plan("", resolved(&["a", "b"])).unwrap();
    let of = |arm: Arm| plan.trials.iter().filter(|t| t.arm == arm).collect::<Vec<_>>();
    assert_eq!(
        (of(Arm::Loaded).len(), of(Arm::Stack).len(), of(Arm::Control).len()),
        (204, 102, 6 + 2 * 86 + 86 + 4 * 86)
    );
    assert!(of(Arm::Stack).iter().all(|t| t.patches == [0, 1]));
    assert_eq!(of(Arm::Loaded).iter().filter(|t| t.patches == [1]).count(), 102);
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
    assert!(error.contains("requires this arm"), "{error}");
    let error = try_plan("budget: 60s\n", resolved(&["x"])).unwrap_err();
    assert!(error.contains("the 14 loaded trials required by tier proposed"), "{error}");
}

#[test]
fn trials_are_started_until_the_tier_has_what_it_needs() {
    let plan = plan();
    let mut started = BTreeSet::new();
    while let Some(trial) = next_trial(&plan, &[], &started) {
        started.insert(trial.number);
    }
    // Those to spare are left: those that run may all end cleanly.
    assert_eq!(started.len(), 14 + 3 + 2 + 4);
    let void = Story::default().end(L0, TrialEnd::FarmError { message: "m".into() });
    let next = next_trial(&plan, &void.events, &started).map(|t| t.arm);
    assert_eq!(next, Some(Arm::Loaded));
}
