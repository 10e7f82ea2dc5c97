use klpfarm_model::verdict::{ExposureBound, PerHour};
use klpfarm_model::{Detector, ObservedKind, Tier};

use super::*;

fn finding(condition: Condition, arms: &[(Arm, u32, u32)]) -> FindingCause {
    FindingCause {
        title: "threads hang".into(),
        kind: ObservedKind::HangConfirmed.into(),
        attribution: Attribution::Patch,
        condition: Some(condition),
        arms: arms.iter().map(|(arm, hit, of)| (*arm, Hits { hit: *hit, of: *of })).collect(),
        patches: BTreeMap::new(),
        p_value: None,
        function: None,
        first_after_apply_ms: None,
        waits: Vec::new(),
    }
}

fn words(what: Why) -> String {
    cause_in_words(&what.into())
}

#[test]
fn a_finding_says_what_where_how_soon_under_which_condition_and_how_often() {
    let arms = [(Arm::Loaded, 1, 1), (Arm::Quiescent, 0, 1), (Arm::Control, 0, 4)];
    let mut found = finding(Condition::AppliedUnderLoad, &arms);
    found.function = Some("vfs_write".into());
    found.first_after_apply_ms = Some(1540);
    found.patches = BTreeMap::from([("a".into(), Hits { hit: 1, of: 1 })]);
    let cause = Cause { turn: Some("new/memory".into()), what: Why::AgainstThePatch(found) };
    assert_eq!(
        cause_in_words(&cause),
        "new/memory: threads hang, in vfs_write, first seen 1.5 s after applying: only when the load was running at the moment of \
         applying, 1/1; not when applied idle, 0/1; never without the patch, 0/4; by patch: a 1/1"
    );
}

#[test]
fn conditions_have_their_words() {
    let of = |condition, arms: &[(Arm, u32, u32)]| words(Why::AgainstThePatch(finding(condition, arms)));
    let (loaded, idle) = ((Arm::Loaded, 0, 14), (Arm::Quiescent, 1, 3));
    for (condition, arms, expected) in [
        (
            Condition::Reapplied,
            vec![loaded, (Arm::Reapply, 1, 2)],
            "only when applied again after taking it back, 1/2; not when applied once, 0/14",
        ),
        (
            Condition::Reverting,
            vec![(Arm::Loaded, 1, 14), (Arm::Quiescent, 0, 3), (Arm::Reapply, 0, 2)],
            "only when the patch is taken back, 1/19",
        ),
        (
            Condition::AppliedIdle,
            vec![loaded, idle],
            "only when applied idle, 1/3; not when applied under load, 0/14",
        ),
        (Condition::Load, vec![(Arm::Loaded, 2, 2), idle], "whenever there is load, whether"),
        (
            Condition::Applying,
            vec![(Arm::Loaded, 2, 2), idle],
            "always, even on an idle machine: under load 2/2, idle 1/3",
        ),
        (
            Condition::AppliedUnderLoadOnlyTried,
            vec![(Arm::Loaded, 2, 2), (Arm::Reapply, 0, 2)],
            "no idle trial to compare; applied again after taking it back: never, 0/2",
        ),
        (
            Condition::Stacked,
            vec![loaded, (Arm::Stack, 1, 2)],
            "only with the patches on top of each other, 1/2; not with",
        ),
    ] {
        let text = of(condition, &arms);
        assert!(text.contains(expected), "{text}");
    }
}

/// One of each but those that hold a finding.
fn others() -> Vec<Why> {
    let (arm, patches) = (Arm::Loaded, vec!["a".to_owned(), "b".to_owned()]);
    let function = || "do_it".to_owned();
    vec![
        Why::FailsMoreOften { arm, patches: patches.clone(), pairs: 14, failed: 9, control_failed: 0 },
        Why::TrialNotEnded { trial: 3, title: "oops".into() },
        Why::TooFewClean {
            arm,
            patches: patches.clone(),
            clean: 13,
            failed: 1,
            needed: 14,
            tier: Tier::Proposed,
            failure_rate: 0.21,
            allowed: 0.2,
            confidence: 0.95,
            per_hour: None,
        },
        Why::TooFewClean {
            arm: Arm::Soak,
            patches: patches.clone(),
            clean: 3,
            failed: 0,
            needed: 4,
            tier: Tier::Proposed,
            failure_rate: 0.65,
            allowed: 0.56,
            confidence: 0.95,
            per_hour: Some(PerHour { possible: 126.23, allowed: 100.0 }),
        },
        Why::TrialsMissing { arm, missing: 1, of: 2 },
        Why::NoneClean { arm, patches: Vec::new(), trials: 4, tier: Tier::Stable },
        Why::FailedTooOften { arm, patches, failed: 1, of: 3, failure_rate: 0.8, allowed: 0.7 },
        Why::ReplacesNothing { patch: None },
        Why::NeverCalled { function: function(), workload: None },
        Why::NeverCalled { function: function(), workload: Some("syscall-mix".into()) },
        Why::NewCodeNeverRan { function: function(), before_per_s: Some(2.0), inside: 3 },
        Why::NewCodeNeverRan { function: function(), before_per_s: None, inside: 1 },
        Why::NewCodeBypassed {
            function: function(),
            patch: "x".into(),
            arms: BTreeMap::from([
                (Arm::Loaded, Hits { hit: 13, of: 14 }),
                (Arm::Reapply, Hits { hit: 0, of: 2 }),
            ]),
            calls: 70_000,
        },
        Why::CallsUnknown { function: function() },
        Why::TrialsOfAnotherPlan { trials: vec![98, 99] },
        Why::JournalOfAnotherPlan { event: 0, journal: "x".into(), plan: "y".into() },
        Why::CutShort { reason: "the run was interrupted".into() },
        Why::FarmFailed(FarmError { trial: 2, message: "QEMU died".into() }),
        Why::NothingFound {
            trials: BTreeMap::from([(Arm::Loaded, 14), (Arm::Control, 4)]),
            soak_s: 30,
            bound: Some(PossibleRate { failure_rate: 0.1926, confidence: 0.95 }),
            exposure: None,
            reach: Vec::new(),
        },
        Why::NothingFound {
            trials: BTreeMap::from([(Arm::Loaded, 14), (Arm::Soak, 4), (Arm::Control, 4)]),
            soak_s: 30,
            bound: Some(PossibleRate { failure_rate: 0.1926, confidence: 0.95 }),
            exposure: Some(PossibleExposure {
                bound: ExposureBound { failures_per_hour: 94.72, soak_s: 30, clean_s: 120 },
                confidence: 0.95,
            }),
            reach: Vec::new(),
        },
    ]
}

#[test]
fn every_cause_has_its_sentence() {
    let text: Vec<String> = others().into_iter().map(words).collect();
    assert_eq!(
        text,
        [
            "loaded trials of a + b fail more often than the control trials next to them: 9 of 14 and 0 of 14, which chance would explain in fewer than one of a thousand runs",
            "trial 3: oops: the trial has not ended",
            "13 clean loaded trials of a + b, 1 failed: tier proposed needs 14 without a failure (these leave a failure rate of 21 % possible, the tier allows 20 % at 95 % confidence)",
            "3 clean soak trials of a + b: tier proposed needs 4 without a failure (these leave 127 failures per machine-hour possible, the tier allows 100 at 95 % confidence)",
            "1 of 2 loaded trials were not completed",
            "none of 4 loaded trials ended cleanly, and tier stable asks for that arm",
            "1 of 3 loaded trials of a + b failed, which leaves a failure rate of 80 % possible: 70 % at most must be shown",
            "the patch replaces no function, so nothing shows that the load runs its code",
            "the workloads never call do_it: add a workload to the pipeline that does",
            "the workloads never call do_it: syscall-mix might; add it to the pipeline",
            "do_it is called 2.0 times a second without the patch, and not once while the patch was in force and calls were counted: its new code never ran",
            "1 task was inside do_it when the patch was applied, and it was not called once while the patch was in force and calls were counted: its new code never ran",
            "calls of do_it do not reach the new code of x, which the kernel says is in force: 70000 calls were counted, and trials in which not one got there are loaded 13/14, reapply 0/2; look for a tracer, probe or other module that redirects do_it as well, and for a later patch of the same function: /sys/kernel/tracing/enabled_functions lists who sits on it",
            "unknown whether the new code of do_it ever ran: its calls were not counted with the patch in force",
            "the journal has events of trials that are not in the plan: 98, 99: plan and journal belong to different runs",
            "the journal (event 0) is of a run with another plan: x, not y",
            "the run was interrupted",
            "klpfarm or the host failed, not the patch: trial 2: QEMU died",
            "no finding in 14 loaded, 4 control trials with a soak of 30 s each: at most 19.3 % of loaded machines can fail, with 95 % confidence",
            "no finding in 14 loaded, 4 soak, 4 control trials: applying it fails on at most 19.3 % of loaded machines, with 95 % confidence, and running with it at most 95 times per machine-hour, with 95 % confidence (2 min in force, soaks of 30 s)",
        ]
    );
    for cause in others() {
        let cause = Cause { turn: Some("t".into()), what: cause };
        let written = serde_json::to_string(&cause).unwrap();
        assert_eq!(serde_json::from_str::<Cause>(&written).unwrap(), cause, "{written}");
    }
}

#[test]
fn what_is_not_proven_says_why() {
    for (attribution, expected) in [
        (Attribution::Unconfirmed, "threads hang: seen only with the patch (loaded 1/2), too rarely"),
        (Attribution::NoControl, "threads hang: no control trial was completed"),
        (Attribution::ControlToo, "threads hang: seen without the patch as well (loaded 1/2)"),
        (Attribution::BeforeApply, "threads hang: seen before the patch was applied"),
        (Attribution::ControlOnly, "threads hang: seen without the patch (loaded 1/2)"),
    ] {
        let found = FindingCause { attribution, ..finding(Condition::Load, &[(Arm::Loaded, 1, 2)]) };
        let text = words(Why::NotProven(found));
        assert!(text.starts_with(expected), "{text}");
    }
    let text = words(Why::WithinTheRate(finding(Condition::Load, &[(Arm::Loaded, 1, 2)])));
    assert_eq!(
        text,
        "threads hang: not proven to be the patch (loaded 1/2), and counted as a failure within the tier's rate"
    );
}

#[test]
fn calls_are_told_with_the_digits_that_matter() {
    let reach = Reach {
        turn: None,
        function: "vmlinux/do_it,1".into(),
        before_per_s: Some(500.4),
        after_per_s: Some(2.25),
        inside: 0,
        calls: Some(70),
        counted_trials: 14,
        new_code: Vec::new(),
    };
    let expected =
        "do_it (500 calls/s without the patch, 2.2 calls/s with it; about 70 calls in 14 clean trials)";
    assert_eq!(calls(&reach), expected);
    let new = |patch: &str, share| NewCode { patch: patch.into(), per_s: 2.0, share, trials: 14 };
    let one = Reach { new_code: vec![new("x", Some(0.994))], ..reach.clone() };
    let expected = "2.2 calls/s with it, 2.0/s (99 % of them) to the new code; about";
    assert!(calls(&one).contains(expected), "{}", calls(&one));
    let two = Reach { new_code: vec![new("x", Some(1.0)), new("y", Some(0.5)), new("z", None)], ..reach };
    let expected = "with it, 2.0/s (100 % of them) to the new code of x, 2.0/s (50 % of them) to the new code of y, 2.0/s to the new code of z; about";
    assert!(calls(&two).contains(expected), "{}", calls(&two));
    let unavailable = UnavailableDetector { detector: Detector::Slabs, reason: "no /proc/slabinfo".into() };
    assert_eq!(unavailable_in_words(&unavailable), "slabs: no /proc/slabinfo");
}
