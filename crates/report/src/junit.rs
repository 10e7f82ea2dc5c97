//! JUnit: one test case a trial, and one for the verdict itself.

use std::collections::BTreeMap;

use junit_report::{Duration, ReportBuilder, TestCase, TestCaseBuilder, TestSuiteBuilder};
use klpfarm_model::verdict::Attribution;
use klpfarm_model::{Body, Event, Outcome, Plan, TrialEnd, Verdict};

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
    let mut cases: BTreeMap<u32, Case> = plan.trials.iter().map(|t| (t.number, Case::default())).collect();
    for event in events {
        let Some(case) = event.scope.and_then(|s| cases.get_mut(&s.trial)) else { continue };
        case.ended_ms = event.at_ms;
        // Every variant is named, so that a new one has to be thought of here.
        match &event.body {
            Body::TrialStarted => case.started_ms = Some(event.at_ms),
            Body::TrialEnded { end } => case.end = Some(end.clone()),
            Body::RunStarted { .. }
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
            | Body::Evidence { .. }
            | Body::Note { .. }
            | Body::RunEnded { .. } => {}
        }
    }
    let mut suite = TestSuiteBuilder::new(&format!("klpfarm {} {}", plan.pipeline.name, plan.patch.name));
    for trial in &plan.trials {
        suite.add_testcase(test_case(plan, trial, &cases[&trial.number], verdict));
    }
    suite.add_testcase(overall(plan, verdict));
    let report = ReportBuilder::new().add_testsuite(suite.build()).build();
    let mut xml = Vec::new();
    // Writing to memory does not fail, and all text was cleaned.
    let _ = report.write_xml(&mut xml);
    xml
}

fn test_case(plan: &Plan, trial: &klpfarm_model::Trial, case: &Case, verdict: &Verdict) -> TestCase {
    let name = format!("trial {} ({})", trial.number, trial.arm);
    let ms = case.ended_ms.saturating_sub(case.started_ms.unwrap_or(case.ended_ms));
    let time = Duration::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX));
    let mut against = Vec::new();
    let mut other = Vec::new();
    for item in &verdict.evidence {
        for seen in item.observations.iter().filter(|o| o.trial == trial.number) {
            let text = format!("{} (event {})\n{}\n", seen.title, seen.seq, seen.excerpt);
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
        (Some(TrialEnd::Completed | TrialEnd::Stopped), None, Some((title, _))) => {
            TestCaseBuilder::error(&name, time, "not-attributed", &cdata(&one_line(title, 300)))
        }
        (Some(TrialEnd::Completed | TrialEnd::Stopped), None, None) => TestCaseBuilder::success(&name, time),
        (Some(TrialEnd::Interrupted) | None, _, _) => {
            TestCaseBuilder::error(&name, time, "not-done", "the run ended before this trial did")
        }
    };
    builder.set_classname(&format!("klpfarm.{}.{}", plan.pipeline.name, plan.patch.name));
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
    builder.set_classname(&format!("klpfarm.{}.{}", plan.pipeline.name, plan.patch.name));
    builder.set_system_out(&causes);
    builder.build()
}
