//! The XML of made-up runs.

use std::path::Path;

use klpfarm_model::{
    Arm, Finding, ImageFacts, ObservedKind, Patch, Phase, Pipeline, Resolved, Scope, Source, TierRule, judge,
};
use quick_xml::Reader;
use quick_xml::events::Event as Xml;

use super::*;

fn plan() -> Plan {
    let text = "name: gate\nimage: debian-12\nworkloads: [w]\narms: {quiescent: 1, control: 1, reapply: 0}\n";
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), text).unwrap();
    let patch = Patch { name: "x".into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
    let rule = TierRule::new(0.8, 0.7, std::time::Duration::from_secs(1), vec![Arm::Loaded, Arm::Control]);
    let with = Resolved {
        patches: vec![patch],
        trials: Some(1),
        ..Resolved::new(ImageFacts { name: "debian-12".into(), hash: String::new(), release: None }, rule)
    };
    Plan::new(&pipeline, with).unwrap()
}

/// A run in which the loaded trial (1) found something with this text, and the others ended as `end` says.
fn report(text: &str, end: TrialEnd) -> String {
    let plan = plan();
    let mut events = Vec::new();
    let mut add = |trial: u32, arm, body| {
        let scope = Some(Scope { trial, arm, phase: Phase::Soak });
        events.push(Event { seq: events.len() as u64 + 1, at_ms: 1000, scope, body });
    };
    let finding = Finding {
        kind: ObservedKind::WrongContent.into(),
        title: text.to_owned(),
        source: Source::Workload,
        function: None,
        workload: None,
        after_apply_ms: Some(1),
        line: None,
        in_patch: false,
        corrupted: false,
        evidence: text.to_owned(),
    };
    for (trial, arm) in [(1, Arm::Loaded), (2, Arm::Control), (3, Arm::Quiescent)] {
        add(trial, arm, Body::TrialStarted);
        if arm.patched() {
            let (functions, inside) = (Vec::new(), BTreeMap::new());
            add(trial, arm, Body::Applied { patch: "x".into(), took_ms: 1, functions, inside });
            add(trial, arm, Body::TransitionDone { took_ms: 1, per_task: true });
        }
    }
    add(1, Arm::Loaded, Body::Finding(Box::new(finding)));
    add(1, Arm::Loaded, Body::TrialEnded { end: TrialEnd::Stopped });
    add(2, Arm::Control, Body::TrialEnded { end: end.clone() });
    add(3, Arm::Quiescent, Body::TrialEnded { end });
    let verdict = judge(&plan, &events);
    String::from_utf8(junit(&plan, &events, &verdict)).unwrap()
}

/// Counts of `<testcase>`, `<failure>`, `<error>`; panics if it is no XML.
fn counts(xml: &str) -> [usize; 3] {
    let mut reader = Reader::from_str(xml);
    let mut counts = [0; 3];
    loop {
        match reader.read_event().unwrap_or_else(|e| panic!("{e}: {xml}")) {
            Xml::Start(tag) | Xml::Empty(tag) => {
                let names: [&[u8]; 3] = [b"testcase", b"failure", b"error"];
                for (count, name) in counts.iter_mut().zip(names) {
                    *count += usize::from(tag.name().as_ref() == name);
                }
            }
            Xml::Eof => return counts,
            _ => {}
        }
    }
}

#[test]
fn whatever_a_guest_prints_the_report_is_xml() {
    for text in
        ["plain", "a ]]> b", "\u{1b}[31m<x attr=\"&\">\0\u{7}\u{fffe}", "'\"<&>]]>]]>", "é\u{202e}\r\n"]
    {
        let xml = report(text, TrialEnd::Completed);
        // Three trials and the verdict; the loaded trial and the verdict failed.
        assert_eq!(counts(&xml), [4, 2, 0], "{xml}");
        assert!(xml.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{xml:?}");
    }
}

#[test]
fn the_farms_errors_are_no_successes() {
    let xml = report("plain", TrialEnd::FarmError { message: "QEMU died".into() });
    // None of them is a success.
    let [cases, failures, errors] = counts(&xml);
    assert_eq!((cases, failures + errors), (4, 4), "{xml}");
    assert!(case_of(&xml, 2).contains("QEMU died") && case_of(&xml, 3).contains("QEMU died"), "{xml}");
}

/// What is cut off when a rotation's time is over is no error, unless the run says nothing at all.
#[test]
fn the_end_of_a_rotation_is_no_error() {
    let plan = plan();
    let mut events = Vec::new();
    for (trial, arm) in [(1, Arm::Loaded), (2, Arm::Control)] {
        for body in [Body::TrialStarted, Body::TrialEnded { end: TrialEnd::OutOfBudget }] {
            let scope = Some(Scope { trial, arm, phase: Phase::Soak });
            events.push(Event { seq: events.len() as u64 + 1, at_ms: 1000, scope, body });
        }
    }
    let mut verdict = judge(&plan, &events);
    verdict.verdict = Outcome::Qualified;
    let xml = |verdict: &Verdict| String::from_utf8(junit(&plan, &events, verdict)).unwrap();
    assert_eq!(counts(&xml(&verdict)), [3, 0, 2]);
    verdict.turns = [("a/all".to_owned(), Outcome::Qualified)].into();
    assert_eq!(counts(&xml(&verdict)), [3, 0, 0]);
}

/// A cause stands once in the trial's text, whatever the number of findings, and in the summary for people as well.
#[test]
fn the_cause_of_a_hang_is_told_once() {
    let plan = plan();
    let mut events = Vec::new();
    let mut add = |trial: u32, arm, body| {
        let scope = Some(Scope { trial, arm, phase: Phase::Soak });
        events.push(Event { seq: events.len() as u64 + 1, at_ms: 1000, scope, body });
    };
    let task = klpfarm_model::Wait {
        task: "w\u{1b}[2J".into(),
        pid: 7,
        tid: 8,
        state: 'D',
        workload: None,
        threads: None,
        since_apply_ms: Some(-100),
        stack: vec!["klp_new+0x1/0x2 [x]".into()],
    };
    let waits = klpfarm_model::Waits { noted: klpfarm_model::Noted::Blocked, total: 1, tasks: vec![task] };
    add(1, Arm::Loaded, Body::TrialStarted);
    for title in ["a: threads hang in klp_new", "no SSH login succeeds"] {
        let finding = Finding {
            kind: ObservedKind::ThreadStalled.into(),
            title: title.into(),
            source: Source::Workload,
            function: Some("klp_new".into()),
            workload: None,
            after_apply_ms: Some(1),
            line: None,
            in_patch: true,
            corrupted: false,
            evidence: String::new(),
        };
        add(1, Arm::Loaded, Body::Finding(Box::new(finding)));
    }
    add(1, Arm::Loaded, Body::Waits(Box::new(waits)));
    add(1, Arm::Loaded, Body::TrialEnded { end: TrialEnd::Stopped });
    add(2, Arm::Control, Body::TrialEnded { end: TrialEnd::Completed });
    add(3, Arm::Quiescent, Body::TrialEnded { end: TrialEnd::Completed });
    let verdict = judge(&plan, &events);
    let xml = String::from_utf8(junit(&plan, &events, &verdict)).unwrap();
    assert_eq!(xml.matches("cause: w").count(), 1, "{xml}");
    let text = crate::summary(&verdict, Path::new("run"), false);
    assert!(text.contains("waits in klp_new (x's own code, state D) since 0.1 s before applying"), "{text}");
    assert!(text.contains("-0.1 s  1 task of 1 process, state D, in klp_new [x] (w)"), "{text}");
    assert!(text.contains("2 observations in 1 trial") && !text.contains('\u{1b}'), "{text}");
}

/// The test case of one trial, from its name to its end.
fn case_of(xml: &str, trial: u32) -> &str {
    let from =
        xml.find(&format!("name=\"trial {trial} (")).unwrap_or_else(|| panic!("no trial {trial}: {xml}"));
    let rest = &xml[from..];
    let end = rest.find("<testcase").unwrap_or(rest.len());
    &rest[..end]
}

fn remark(trial: u32, arm: Arm, what: Remark, reason: &str) -> TrialRemark {
    TrialRemark { trial, arm, what, reason: reason.into() }
}

/// Trials that went through all phases, with these remarks of the judge.
fn remarked(remarks: Vec<TrialRemark>, end: &TrialEnd) -> String {
    let plan = plan();
    let mut events = Vec::new();
    for (trial, arm) in [(1, Arm::Loaded), (2, Arm::Control), (3, Arm::Quiescent)] {
        for body in [Body::TrialStarted, Body::TrialEnded { end: end.clone() }] {
            let scope = Some(Scope { trial, arm, phase: Phase::Soak });
            events.push(Event { seq: events.len() as u64 + 1, at_ms: 1000, scope, body });
        }
    }
    let verdict = Verdict { remarks, ..judge(&plan, &events) };
    String::from_utf8(junit(&plan, &events, &verdict)).unwrap()
}

#[test]
fn lost_and_invalid_trials_are_no_success() {
    let remarks = vec![
        remark(1, Arm::Loaded, Remark::Lost, "its patch was no longer in force when the soak ended"),
        remark(2, Arm::Control, Remark::Invalid, "the host slept for 60 s"),
        remark(3, Arm::Quiescent, Remark::Repeated, "the run was cut off"),
    ];
    let xml = remarked(remarks, &TrialEnd::Completed);
    let lost = "trial 1 (loaded) was lost and counted as a failure: its patch was no longer in force when the soak ended";
    let invalid = "trial 2 (control) was invalid and not counted: the host slept for 60 s";
    let repeated = "trial 3 (quiescent) was repeated: the run was cut off";
    for (trial, parts) in [
        (1, ["<failure type=\"lost\"", lost].as_slice()),
        (2, ["<error type=\"invalid\"", invalid].as_slice()),
        (3, [repeated].as_slice()),
    ] {
        let case = case_of(&xml, trial);
        assert!(parts.iter().all(|part| case.contains(part)), "{case}");
    }
    assert!(!case_of(&xml, 3).contains("<error") && !case_of(&xml, 3).contains("<failure"));
    // The whole lists them all.
    let whole = &xml[xml.find("name=\"verdict for tier").unwrap()..];
    assert!([lost, invalid, repeated].iter().all(|line| whole.contains(line)), "{whole}");
}

/// The kinds of errors stay what they were, and say what the trial is worth.
#[test]
fn a_farm_error_says_what_the_trial_is_worth() {
    let died = || TrialEnd::FarmError { message: "QEMU died".into() };
    let before = remarked(vec![remark(1, Arm::Loaded, Remark::Invalid, "QEMU died")], &died());
    let case = case_of(&before, 1);
    assert!(case.contains("<error type=\"farm-error\""), "{case}");
    assert!(case.contains("trial 1 (loaded) was invalid and not counted: QEMU died"), "{case}");
    let after = remarked(vec![remark(1, Arm::Loaded, Remark::Lost, "QEMU died")], &died());
    assert!(case_of(&after, 1).contains("<failure type=\"lost\""), "{after}");
}

/// The verdict lists 50 observations of a cause: a trial whose own is not among them failed all the same.
#[test]
fn a_trial_whose_finding_is_not_listed_is_no_success() {
    let plan = plan();
    let mut events = Vec::new();
    let mut add = |trial: u32, arm, body| {
        let scope = Some(Scope { trial, arm, phase: Phase::Soak });
        events.push(Event { seq: events.len() as u64 + 1, at_ms: 1000, scope, body });
    };
    let finding = |title: &str| {
        Body::Finding(Box::new(Finding {
            kind: ObservedKind::WrongContent.into(),
            title: title.into(),
            source: Source::Workload,
            function: None,
            workload: None,
            after_apply_ms: Some(1),
            line: None,
            in_patch: false,
            corrupted: false,
            evidence: String::new(),
        }))
    };
    add(1, Arm::Loaded, Body::TrialStarted);
    add(1, Arm::Loaded, finding("bad data"));
    add(3, Arm::Quiescent, Body::TrialStarted);
    add(3, Arm::Quiescent, finding("bad data"));
    for (trial, arm) in [(1, Arm::Loaded), (2, Arm::Control), (3, Arm::Quiescent)] {
        add(trial, arm, Body::TrialEnded { end: TrialEnd::Completed });
    }
    let mut verdict = judge(&plan, &events);
    let item = verdict.evidence.iter_mut().find(|e| e.title == "bad data").unwrap();
    assert_eq!(item.count, 2);
    item.observations.truncate(1);
    let shown = |verdict: &Verdict| String::from_utf8(junit(&plan, &events, verdict)).unwrap();
    let xml = shown(&verdict);
    assert!(case_of(&xml, 3).contains("<failure type=\"finding\" message=\"bad data\""), "{xml}");
    // What only a comparison shows is in no event: which trials it is of, beyond those listed, is not known.
    for event in &mut events {
        if matches!(event.body, Body::Finding(_)) {
            event.body = Body::Note { text: "nothing".into() };
        }
    }
    let item = verdict.evidence.iter_mut().find(|e| e.title == "bad data").unwrap();
    item.observations[0].source = Source::Comparison;
    let xml = String::from_utf8(junit(&plan, &events, &verdict)).unwrap();
    let case = case_of(&xml, 3);
    assert!(
        case.contains(
            "<error type=\"not-attributed\" message=\"more quiescent trials show than are listed: bad data\""
        ),
        "{case}"
    );
}
