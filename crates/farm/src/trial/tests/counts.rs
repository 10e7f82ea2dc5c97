//! Counting calls of the patched functions.

use super::*;

fn counts(told: &fake::Told) -> Vec<&String> {
    told.commands.iter().filter(|c| c.contains("set_ftrace_filter")).collect()
}

fn reach(told: &fake::Told) -> BTreeMap<String, (u64, u64)> {
    let reach = |(_, body): &(Phase, Body)| match body {
        Body::Reach { function, calls, window_ms, .. } => Some((function.clone(), (*calls, *window_ms))),
        _ => None,
    };
    told.bodies.iter().filter_map(reach).collect()
}

#[test]
fn an_unreached_function_is_counted_again_before_it_is_believed() {
    let told = tell(Arm::Control, Faults { unreached: true, ..Faults::default() });
    assert_eq!(counts(&told).len(), 2);
    assert_eq!(reach(&told), BTreeMap::from([("vmlinux/do_it".to_owned(), (0, 24_000))]));
    // With the patch in force as well, if not so often.
    for arm in [Arm::Loaded, Arm::Quiescent, Arm::Reapply] {
        let told = tell(arm, Faults { unreached: true, ..Faults::default() });
        assert_eq!(counts(&told).len(), 2);
        assert_eq!(reach(&told), BTreeMap::from([("vmlinux/do_it,1".to_owned(), (0, 6000))]));
        let told = tell(arm, Faults { silent_counts: 1, ..Faults::default() });
        assert_eq!(reach(&told), BTreeMap::from([("vmlinux/do_it,1".to_owned(), (90, 6000))]));
    }
}

/// The third loaded trial counts as the first does.
#[test]
fn every_trial_counts_once() {
    let plan = plan();
    let trial = plan.trials.iter().filter(|t| t.arm == Arm::Loaded).nth(2).unwrap().clone();
    let told = tell_of(plan, trial, Faults::default());
    assert_eq!(reach(&told), BTreeMap::from([("vmlinux/do_it,1".to_owned(), (90, 2000))]));
}

fn many(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("vmlinux/f{i:03},1")).collect()
}

#[test]
fn many_functions_are_counted_in_groups() {
    let told = tell(Arm::Loaded, Faults { functions: many(70), ..Faults::default() });
    assert_eq!((counts(&told).len(), reach(&told).len()), (3, 70));
    assert!(counts(&told).iter().all(|line| (1..=32).contains(&line.matches("vmlinux/").count())));
}

/// A tracer that is not gone yet would keep the patch from being taken back: that is not tried, and nothing is found.
#[test]
fn a_count_that_does_not_end_is_not_the_patchs_fault() {
    let told = tell(Arm::Loaded, Faults { count_mute: true, ..Faults::default() });
    let late = |b: &Body| matches!(b, Body::Blind { reason, .. } if reason.contains("did not end in time"));
    assert!(told.bodies.iter().any(|(_, b)| late(b)), "{:?}", told.bodies);
    assert!(!told.commands.iter().any(|c| c.contains("echo 0 > /sys/kernel/livepatch")));
    assert!(!told.bodies.iter().any(|(_, b)| matches!(b, Body::Finding(_))), "{:?}", told.bodies);
    assert!(matches!(told.end, TrialEnd::FarmError { .. }), "{:?}", told.end);
}

/// Patch whose new code was counted, calls of it and milliseconds.
fn new_code(told: &fake::Told) -> Vec<(String, u64, u64)> {
    let new = |(_, body): &(Phase, Body)| match body {
        Body::Reach { new_code: Some(new), .. } => Some((new.patch.clone(), new.calls, new.window_ms)),
        _ => None,
    };
    told.bodies.iter().filter_map(new).collect()
}

#[test]
fn calls_of_the_new_code_are_counted_beside_those_of_the_old() {
    let told = tell(Arm::Loaded, Faults { new_calls: Some([88, 0]), ..Faults::default() });
    assert_eq!(counts(&told).len(), 1);
    assert!(counts(&told)[0].contains("for f in do_it new_do_it:mod:x; do"), "{}", counts(&told)[0]);
    assert_eq!(new_code(&told), [("x".to_owned(), 88, 2000)]);
    // That it does not run is believed only after another count.
    let told = tell(Arm::Loaded, Faults { new_calls: Some([0, 0]), ..Faults::default() });
    assert_eq!(counts(&told).len(), 2);
    assert_eq!(new_code(&told), [("x".to_owned(), 0, 6000)]);
    assert_eq!(reach(&told), BTreeMap::from([("vmlinux/do_it,1".to_owned(), (180, 6000))]));
    // Without the patch there is no new code.
    let told = tell(Arm::Control, Faults { new_calls: Some([88, 0]), ..Faults::default() });
    assert_eq!(new_code(&told), []);
}

/// On top of each other, the last patch in force is the one whose code runs.
#[test]
fn the_new_code_of_the_last_patch_in_force_is_counted() {
    for replaces in [false, true] {
        let told = tell(Arm::Stack, Faults { new_calls: Some([0, 88]), replaces, ..Faults::default() });
        assert_eq!(new_code(&told), [("y".to_owned(), 88, 2000)]);
    }
}

/// Of a patch whose file does not tell, all functions are counted together: none called is a fact, some called is not enough.
#[test]
fn new_code_without_a_name_is_counted_with_all_of_its_patch() {
    let told = tell(Arm::Loaded, Faults { unreached: true, ..Faults::default() });
    assert!(counts(&told)[0].contains("for f in do_it *:mod:x; do"), "{}", counts(&told)[0]);
    assert_eq!(new_code(&told), [("x".to_owned(), 0, 6000)]);
    let told = tell(Arm::Loaded, Faults::default());
    assert_eq!(new_code(&told), []);
    let says = |b: &Body| matches!(b, Body::Blind { reason, .. } if reason.starts_with("calls of the new code of vmlinux/do_it,1 can't be counted: the file of x"));
    assert!(told.bodies.iter().any(|(_, b)| says(b)), "{:?}", told.bodies);
}

/// What a hot function hides is counted again without it.
#[test]
fn hidden_functions_are_counted_again() {
    let told = tell(Arm::Loaded, Faults { functions: many(5), one_is_hot: true, ..Faults::default() });
    assert_eq!((counts(&told).len(), reach(&told).len()), (6, 5));
}

/// Of very many functions each trial counts some, and the next one others.
#[test]
fn no_function_is_left_out_for_ever() {
    let plan = plan();
    let mut all = BTreeSet::new();
    for trial in plan.trials.iter().filter(|t| t.arm == Arm::Loaded && t.patches == [0]).take(4) {
        let told =
            tell_of(Arc::clone(&plan), trial.clone(), Faults { functions: many(300), ..Faults::default() });
        let counted = reach(&told);
        assert!(counted.len() <= 128 && counts(&told).len() <= 4, "{}", counted.len());
        all.extend(counted.into_keys());
    }
    assert_eq!(all.len(), 300);
}

#[test]
fn what_cannot_be_told_apart_or_passed_on_is_said() {
    let functions = ["ext4/get_block,2", "vmlinux/get_block,1", "vmlinux/a$b,1"].map(str::to_owned).to_vec();
    let told = tell(Arm::Loaded, Faults { functions: functions.clone(), ..Faults::default() });
    assert_eq!(reach(&told).into_keys().collect::<Vec<_>>(), ["vmlinux/get_block,1"]);
    let blind: Vec<&String> = told
        .bodies
        .iter()
        .filter_map(|(_, b)| match b {
            Body::Blind { detector, reason } if *detector == Detector::Reach => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(blind.iter().filter(|reason| !reason.contains("new code")).count(), 2, "{blind:?}");
    assert!(
        blind.iter().any(|r| r.contains("ext4/get_block,2") && r.contains("cannot be determined")),
        "{blind:?}"
    );
    let applied = told.bodies.iter().find_map(|(_, b)| match b {
        Body::Applied { functions, .. } => Some(functions.clone()),
        _ => None,
    });
    assert_eq!(applied, Some(functions));
}
