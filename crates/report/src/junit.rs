//! JUnit: one test case a trial, and one for the verdict itself.

use std::collections::BTreeMap;

use junit_report::{Duration, ReportBuilder, TestCase, TestCaseBuilder, TestSuiteBuilder};
use klpfarm_model::event::live;
use klpfarm_model::verdict::Attribution;
use klpfarm_model::{Arm, Body, Event, Outcome, Plan, TrialEnd, Verdict};

use crate::clean::cdata;
use crate::one_line;

/// One trial as its test case needs it.
#[derive(Default)]
struct Case {
    started_ms: Option<u64>,
    ended_ms: u64,
    end: Option<TrialEnd>,
}

/// The report as XML. A rejected patch is a failure, an inconclusive run an error.
pub fn junit(plan: &Plan, events: &[Event], verdict: &Verdict) -> Vec<u8> {
    let plan = &*plan.unrolled(events);
    let mut cases: BTreeMap<u32, Case> = plan.trials.iter().map(|t| (t.number, Case::default())).collect();
    for event in live(events) {
        let Some(case) = event.scope.and_then(|s| cases.get_mut(&s.trial)) else { continue };
        case.ended_ms = event.at_ms;
        // Every variant is named, so that a new one has to be thought of here.
        match &event.body {
            Body::TrialStarted => case.started_ms = Some(event.at_ms),
            Body::TrialEnded { end } => case.end = Some(end.clone()),
            Body::RunStarted { .. }
            | Body::RunResumed { .. }
            | Body::Checkpoint(_)
            | Body::Vitals(_)
            | Body::PhaseStarted
            | Body::MachineReady { .. }
            | Body::Blind { .. }
            | Body::Applied { .. }
            | Body::TransitionDone { .. }
            | Body::Reverted { .. }
            | Body::Progress { .. }
            | Body::Measured(_)
            | Body::Reach { .. }
            | Body::Finding(_)
            | Body::Waits(_)
            | Body::StallEnded { .. }
            | Body::CpuShare { .. }
            | Body::Evidence { .. }
            | Body::Note { .. }
            | Body::RunEnded { .. } => {}
        }
    }
    let mut suite = TestSuiteBuilder::new(&format!("klpfarm {} {}", plan.pipeline.name, patches(plan)));
    let mut told: BTreeMap<(Arm, &[usize]), u32> = BTreeMap::new();
    for trial in &plan.trials {
        let case = &cases[&trial.number];
        let alike = told.entry((trial.arm, &trial.patches)).or_default();
        // What was planned to spare and not needed is no test; what is due and missing is.
        let missing = verdict.verdict == Outcome::Inconclusive && *alike < plan.due(trial.arm);
        if case.started_ms.is_some() || missing {
            *alike += 1;
            suite.add_testcase(test_case(plan, trial, case, verdict));
        }
    }
    suite.add_testcase(overall(plan, verdict));
    let report = ReportBuilder::new().add_testsuite(suite.build()).build();
    let mut xml = Vec::new();
    // Writing to memory does not fail, and all text was cleaned.
    let _ = report.write_xml(&mut xml);
    xml
}

fn patches(plan: &Plan) -> String {
    plan.patches.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join("+")
}

fn test_case(plan: &Plan, trial: &klpfarm_model::Trial, case: &Case, verdict: &Verdict) -> TestCase {
    let name = format!("trial {} ({})", trial.number, trial.arm);
    let ms = case.ended_ms.saturating_sub(case.started_ms.unwrap_or(case.ended_ms));
    let time = Duration::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX));
    let mut against = Vec::new();
    let mut other = Vec::new();
    // A cause is told once, however many observations it has.
    let mut told: Vec<String> = Vec::new();
    for item in &verdict.evidence {
        for seen in item.observations.iter().filter(|o| o.trial == trial.number) {
            let mut text = format!("{} (event {})\n{}\n", seen.title, seen.seq, seen.excerpt);
            if let Some(cause) = item.cause.as_ref().filter(|_| !told.contains(&item.title)) {
                text.insert_str(0, &format!("cause: {cause}\n"));
                told.push(item.title.clone());
            }
            let list = if item.attribution == Attribution::Patch { &mut against } else { &mut other };
            list.push((item.title.clone(), text));
        }
    }
    let mut builder = match (&case.end, against.first(), other.first()) {
        (_, Some((title, _)), _) => {
            TestCaseBuilder::failure(&name, time, "finding", &cdata(&one_line(title, 300)))
        }
        (Some(TrialEnd::FarmError { message }), _, _) => {
            TestCaseBuilder::error(&name, time, "farm-error", &cdata(&one_line(message, 300)))
        }
        (Some(TrialEnd::Void { reason }), _, _) => {
            TestCaseBuilder::error(&name, time, "void", &cdata(&one_line(reason, 300)))
        }
        (Some(TrialEnd::Completed | TrialEnd::Stopped), None, Some((title, _))) => {
            TestCaseBuilder::error(&name, time, "not-attributed", &cdata(&one_line(title, 300)))
        }
        (Some(TrialEnd::Completed | TrialEnd::Stopped), None, None) => TestCaseBuilder::success(&name, time),
        (Some(TrialEnd::Unneeded), _, _) => TestCaseBuilder::skipped(&name),
        // A run that lasts for a time always ends in the middle of trials.
        (Some(TrialEnd::OutOfBudget), _, None) if !verdict.turns.is_empty() => {
            TestCaseBuilder::skipped(&name)
        }
        (Some(TrialEnd::Interrupted | TrialEnd::OutOfBudget) | None, _, _) => {
            TestCaseBuilder::error(&name, time, "not-done", "the run ended before this trial did")
        }
    };
    builder.set_classname(&format!("klpfarm.{}.{}", plan.pipeline.name, patches(plan)));
    let text: String = against.iter().chain(&other).map(|(_, text)| text.as_str()).collect();
    if !text.is_empty() {
        builder.set_system_out(&cdata(&text));
    }
    builder.build()
}

fn overall(plan: &Plan, verdict: &Verdict) -> TestCase {
    let name = format!("verdict for tier {}", verdict.tier);
    let time = Duration::milliseconds(i64::try_from(verdict.took_ms).unwrap_or(i64::MAX));
    let causes = cdata(&verdict.causes.join("\n"));
    let mut builder = match verdict.verdict {
        Outcome::Qualified => TestCaseBuilder::success(&name, time),
        Outcome::Rejected => TestCaseBuilder::failure(&name, time, "rejected", &causes),
        Outcome::Inconclusive => TestCaseBuilder::error(&name, time, "inconclusive", &causes),
    };
    builder.set_classname(&format!("klpfarm.{}.{}", plan.pipeline.name, patches(plan)));
    builder.set_system_out(&causes);
    builder.build()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use klpfarm_model::{
        Arm, FarmKind, Finding, ImageFacts, Patch, Phase, Pipeline, Resolved, Scope, Source, TierRule, judge,
    };
    use quick_xml::Reader;
    use quick_xml::events::Event as Xml;

    use super::*;

    fn plan() -> Plan {
        let text =
            "name: gate\nimage: debian-12\nworkloads: [w]\narms: {quiescent: 1, control: 1, reapply: 0}\n";
        let pipeline = Pipeline::parse(Path::new("gate.yaml"), text).unwrap();
        let patch = Patch { name: "x".into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
        let rule =
            TierRule::new(0.8, 0.7, std::time::Duration::from_secs(1), vec![Arm::Loaded, Arm::Control]);
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
            kind: FarmKind::WrongContent.into(),
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
    fn the_farms_errors_are_errors() {
        let xml = report("plain", TrialEnd::FarmError { message: "QEMU died".into() });
        // Without a control trial the finding can't be attributed: all are errors.
        assert_eq!(counts(&xml), [4, 0, 4], "{xml}");
        assert!(xml.contains("QEMU died"));
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
        let waits =
            klpfarm_model::Waits { noted: klpfarm_model::Noted::Blocked, total: 1, tasks: vec![task] };
        add(1, Arm::Loaded, Body::TrialStarted);
        for title in ["a: threads hang in klp_new", "no SSH login succeeds"] {
            let finding = Finding {
                kind: FarmKind::ThreadStalled.into(),
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
        assert!(
            text.contains("waits in klp_new (x's own code, state D) since 0.1 s before applying"),
            "{text}"
        );
        assert!(text.contains("-0.1 s  1 task(s) of 1 process(es) wait, state D: klp_new [x] (w)"), "{text}");
        assert!(text.contains("2 observation(s) in 1 trial(s)") && !text.contains('\u{1b}'), "{text}");
    }
}
