//! Modules that the patches need.

use super::*;

/// End, commands and phases of a trial of patches that need modules, by what loading those says.
fn told(arm: Arm, modules: &'static str) -> (TrialEnd, Vec<String>, Vec<Phase>) {
    let mut plan = (*plan()).clone();
    plan.patches[0].depends = vec!["nf-tables".into(), "y".into()];
    plan.patches[1].objects = vec!["ext4".into()];
    let trial = plan.trials.iter().find(|t| t.arm == arm).unwrap().clone();
    let told = tell_of(Arc::new(plan), trial, Faults { forked: true, modules, ..Faults::default() });
    let phases = told.bodies.iter().filter(|(_, b)| matches!(b, Body::PhaseStarted)).map(|(p, _)| *p);
    (told.end, told.commands, phases.collect())
}

#[test]
fn they_are_loaded_in_all_arms_alike_before_the_load_settles() {
    for arm in [Arm::Control, Arm::Loaded, Arm::Quiescent, Arm::Reapply, Arm::Stack] {
        let (end, commands, _) = told(arm, "");
        assert_eq!(end, TrialEnd::Completed, "{arm}");
        let of_modules: Vec<&String> = commands.iter().filter(|c| c.contains("modprobe")).collect();
        assert!(of_modules[0].starts_with("for m in ext4 nf_tables; do"), "{arm}: {of_modules:?}");
        assert_eq!(of_modules.len(), 1, "{arm}");
        assert!(commands[0].contains("modprobe"), "{arm}: first of all: {commands:?}");
    }
}

#[test]
fn one_that_the_guest_lacks_is_the_farms_error_and_says_what_to_do() {
    for (said, message) in [
        (
            "missing ext4 modprobe: FATAL: Module ext4 not found in directory /lib/modules/6.1\n",
            "the image has no module ext4, which patch y depends on: add the package that has it to the recipe",
        ),
        (
            "missing nf_tables modprobe: ERROR: could not insert: Operation not permitted\n",
            "module nf_tables, which patch x depends on, can't be loaded in the guest: modprobe: ERROR: could not insert: Operation not permitted",
        ),
    ] {
        for arm in [Arm::Control, Arm::Loaded] {
            let (end, _, phases) = told(arm, said);
            assert_eq!(end, TrialEnd::FarmError { message: message.into() });
            assert_eq!(phases, [Phase::Boot, Phase::End], "the patch was never applied");
        }
    }
}

#[test]
fn without_modules_nothing_is_run() {
    let plan = plan();
    let trial = plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    let told = tell_of(plan, trial, Faults { forked: true, ..Faults::default() });
    assert!(!told.commands.iter().any(|c| c.contains("modprobe")));
}
