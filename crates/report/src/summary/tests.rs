use std::collections::BTreeMap;

use klpfarm_model::plan::SCHEMA;
use klpfarm_model::verdict::{ArmCount, Why};
use klpfarm_model::{Accel, Arm, ImageFacts, Tier};

use super::*;

fn verdict(remarks: Vec<TrialRemark>) -> Verdict {
    Verdict {
        schema: SCHEMA,
        verdict: Outcome::Inconclusive,
        tier: Tier::Proposed,
        turns: BTreeMap::new(),
        causes: vec![Why::CutShort { reason: "something is missing".into() }.into()],
        patches: Vec::new(),
        image: ImageFacts { name: "debian-12".into(), hash: String::new(), release: None },
        checkpoint: None,
        wear: None,
        accel: Accel::Tcg,
        arms: BTreeMap::from([
            (Arm::Loaded, ArmCount { planned: 24, clean: 12, failed: 0, unexplained: 2, void: 1 }),
            (Arm::Control, ArmCount { planned: 6, clean: 4, ..ArmCount::default() }),
        ]),
        bounds: Vec::new(),
        evidence: Vec::new(),
        reach: Vec::new(),
        blind: Vec::new(),
        unavailable: BTreeMap::new(),
        farm_errors: Vec::new(),
        remarks,
        plan: String::new(),
        took_ms: 61_000,
        farm: String::new(),
    }
}

fn remark(trial: u32, what: Remark, reason: &str) -> TrialRemark {
    TrialRemark { trial, arm: Arm::Loaded, what, reason: reason.into() }
}

#[test]
fn every_trial_that_was_not_simply_done_is_listed() {
    let remarks = vec![
        remark(3, Remark::Invalid, "the host slept for 60 s"),
        remark(7, Remark::Lost, "QEMU died\nsignal 9"),
        remark(8, Remark::Repeated, "the run was interrupted"),
        remark(8, Remark::Lost, "QEMU died"),
    ];
    let expected =
        "  trials:  loaded 12 clean, 0 failed, 2 unexplained, 1 not counted; control 4 clean, 0 failed
  of these: 1 invalid, 2 lost, 1 repeated
    trial 3 (loaded) was invalid and not counted: the host slept for 60 s
    trial 7 (loaded) was lost and counted as a failure: QEMU died signal 9
    trial 8 (loaded) was repeated: the run was interrupted
    trial 8 (loaded) was lost and counted as a failure: QEMU died

  verdict: run/verdict.json
";
    let text = summary(&verdict(remarks), Path::new("run"), false);
    assert!(text.contains(expected), "{text}");
    let none = summary(&verdict(Vec::new()), Path::new("run"), false);
    assert!(!none.contains("of these"), "{none}");
}

#[test]
fn of_many_the_first_are_listed_and_the_rest_are_counted() {
    let lost = |n: u32| (1..=n).map(|trial| remark(trial, Remark::Lost, "QEMU died")).collect();
    let text = summary(&verdict(lost(15)), Path::new("run"), false);
    assert_eq!(text.matches("was lost and counted as a failure").count(), 12, "{text}");
    assert!(
        text.contains("  of these: 15 lost\n") && text.contains("    and 3 more, see verdict.json\n"),
        "{text}"
    );
    let text = summary(&verdict(lost(12)), Path::new("run"), false);
    assert!(!text.contains("more, see"), "{text}");
}
