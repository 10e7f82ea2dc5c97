//! JUnit: one test case a trial, and one for the verdict itself.

use std::collections::{BTreeMap, BTreeSet};

use junit_report::{Duration, OffsetDateTime, ReportBuilder, TestCase, TestCaseBuilder, TestSuiteBuilder};
use klpfarm_model::event::live;
use klpfarm_model::verdict::{Attribution, Evidence, Remark, TrialRemark};
use klpfarm_model::{Arm, Body, Event, Finding, Outcome, Plan, Source, Trial, TrialEnd, Verdict};

use crate::clean::cdata;
use crate::summary::remark_in_words;
use crate::{cause_in_words, one_line, waits};

/// One trial as its test case needs it.
#[derive(Default)]
struct Case<'a> {
    started_ms: Option<u64>,
    ended_ms: u64,
    end: Option<TrialEnd>,
    /// What it found: the verdict lists only the first observations of each cause.
    found: Vec<(u64, &'a Finding)>,
}

/// The report as XML. A rejected patch is a failure, an inconclusive run an error.
pub fn junit(plan: &Plan, events: &[Event], verdict: &Verdict) -> Vec<u8> {
    let plan = &*plan.unrolled(events);
    let mut cases: BTreeMap<u32, Case<'_>> =
        plan.trials.iter().map(|t| (t.number, Case::default())).collect();
    for event in live(events) {
        let Some(case) = event.scope.and_then(|s| cases.get_mut(&s.trial)) else { continue };
        case.ended_ms = event.at_ms;
        // Every variant is named, so that a new one has to be thought of here.
        match &event.body {
            Body::TrialStarted => case.started_ms = Some(event.at_ms),
            Body::TrialEnded { end } => case.end = Some(end.clone()),
            Body::Finding(finding) => case.found.push((event.seq, finding)),
            Body::RunStarted { .. }
            | Body::RunResumed { .. }
            | Body::Checkpoint(_)
            | Body::Vitals(_)
            | Body::PhaseStarted
            | Body::MachineReady { .. }
            | Body::Blind { .. }
            | Body::WorkloadUnavailable { .. }
            | Body::Applied { .. }
            | Body::TransitionDone { .. }
            | Body::Reverted { .. }
            | Body::Progress { .. }
            | Body::Measured(_)
            | Body::Reach { .. }
            | Body::Waits(_)
            | Body::StallEnded { .. }
            | Body::CpuShare { .. }
            | Body::Evidence { .. }
            | Body::Note { .. }
            | Body::RunEnded { .. } => {}
        }
    }
    let mut suite = TestSuiteBuilder::new(&format!("klpfarm {} {}", plan.pipeline.name, patches(plan)));
    if let Some(time) = started(events) {
        suite.set_timestamp(time);
    }
    let mut counted: BTreeMap<(Arm, &[usize]), u32> = BTreeMap::new();
    for trial in &plan.trials {
        let case = &cases[&trial.number];
        let alike = counted.entry((trial.arm, &trial.patches)).or_default();
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

/// When the run began. Without it the suite would carry the time at which the report was written, another one at each `klpfarm judge`.
fn started(events: &[Event]) -> Option<OffsetDateTime> {
    let time = events.iter().find_map(|event| match &event.body {
        Body::RunStarted { time, .. } => time.parse::<jiff::Timestamp>().ok(),
        _ => None,
    })?;
    OffsetDateTime::from_unix_timestamp(time.as_second()).ok()
}

fn patches(plan: &Plan) -> String {
    plan.patches.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join("+")
}

/// What a trial showed: titles and texts of what counts against the patch, and of what does not.
#[derive(Default)]
struct Shown {
    against: Vec<(String, String)>,
    other: Vec<(String, String)>,
}

fn shown(trial: &Trial, case: &Case<'_>, verdict: &Verdict) -> Shown {
    let mut all = Shown::default();
    // A cause is told once, however many observations it has.
    let mut causes: Vec<&str> = Vec::new();
    let mut listed: Vec<u64> = Vec::new();
    for item in &verdict.evidence {
        for seen in item.observations.iter().filter(|o| o.trial == trial.number) {
            let mut text = format!("{} (event {})\n{}\n", seen.title, seen.seq, seen.excerpt);
            let cause = Some(&item.waits).filter(|_| !causes.contains(&item.title.as_str()));
            if let Some(cause) = cause.and_then(|groups| waits::sentence(groups)) {
                text.insert_str(0, &format!("cause: {cause}\n"));
                causes.push(&item.title);
            }
            listed.push(seen.seq);
            let list = if item.attribution == Attribution::Patch { &mut all.against } else { &mut all.other };
            list.push((item.title.clone(), text));
        }
    }
    // Of a cause with very many observations the verdict lists the first: the rest stand in the journal,
    for (seq, finding) in case.found.iter().filter(|(seq, _)| !listed.contains(seq)) {
        let same = |e: &&Evidence| e.kind == finding.kind && e.title == finding.title;
        let against = verdict.evidence.iter().filter(same).any(|e| e.attribution == Attribution::Patch);
        let list = if against { &mut all.against } else { &mut all.other };
        list.push((finding.title.clone(), format!("{} (event {seq})\n", finding.title)));
    }
    // or, where only the comparison of trials shows it, nowhere.
    if all.against.is_empty() && all.other.is_empty() {
        for item in verdict.evidence.iter().filter(|item| may_hide(item, trial)) {
            let title = format!("more {} trials show than are listed: {}", trial.arm, item.title);
            all.other.push((title.clone(), format!("{title}; this may be one of them\n")));
        }
    }
    all
}

/// Whether an item that is of no event has more trials of this arm than it lists observations of.
fn may_hide(item: &Evidence, trial: &Trial) -> bool {
    let compared = item.observations.iter().all(|o| o.source == Source::Comparison);
    let listed: BTreeSet<u32> =
        item.observations.iter().filter(|o| o.arm == trial.arm).map(|o| o.trial).collect();
    let hit = item.arms.get(&trial.arm).map_or(0, |hits| hits.hit as usize);
    compared && item.count > item.observations.len() && hit > listed.len()
}

fn test_case(plan: &Plan, trial: &Trial, case: &Case<'_>, verdict: &Verdict) -> TestCase {
    let name = format!("trial {} ({})", trial.number, trial.arm);
    let ms = case.ended_ms.saturating_sub(case.started_ms.unwrap_or(case.ended_ms));
    let time = Duration::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX));
    let Shown { against, other } = shown(trial, case, verdict);
    let remarks: Vec<&TrialRemark> = verdict.remarks.iter().filter(|r| r.trial == trial.number).collect();
    let remark = |what: Remark| remarks.iter().find(|r| r.what == what);
    let failure =
        |kind, text: &str| TestCaseBuilder::failure(&name, time, kind, &cdata(&one_line(text, 300)));
    let error = |kind, text: &str| TestCaseBuilder::error(&name, time, kind, &cdata(&one_line(text, 300)));
    let mut builder = if let Some((title, _)) = against.first() {
        failure("finding", title)
    } else if let Some(lost) = remark(Remark::Lost) {
        failure("lost", &remark_in_words(lost))
    } else {
        let invalid = remark(Remark::Invalid).map(|r| remark_in_words(r));
        match (&case.end, other.first()) {
            (Some(TrialEnd::FarmError { message }), _) => {
                error("farm-error", invalid.as_ref().unwrap_or(message))
            }
            (Some(TrialEnd::Void { reason }), _) => error("void", invalid.as_ref().unwrap_or(reason)),
            (Some(TrialEnd::Completed | TrialEnd::Stopped), _) if invalid.is_some() => {
                error("invalid", &invalid.unwrap_or_default())
            }
            (Some(TrialEnd::Completed | TrialEnd::Stopped), Some((title, _))) => {
                error("not-attributed", title)
            }
            (Some(TrialEnd::Completed), None) => TestCaseBuilder::success(&name, time),
            (Some(TrialEnd::Stopped), None) => {
                error("not-attributed", "stopped, and the journal has no finding")
            }
            (Some(TrialEnd::Unneeded), _) => TestCaseBuilder::skipped(&name),
            // A run that lasts for a time always ends in the middle of trials.
            (Some(TrialEnd::OutOfBudget), None) if !verdict.turns.is_empty() => {
                TestCaseBuilder::skipped(&name)
            }
            (Some(TrialEnd::Interrupted | TrialEnd::OutOfBudget) | None, _) => {
                error("not-done", "the run ended before this trial did")
            }
        }
    };
    builder.set_classname(&format!("klpfarm.{}.{}", plan.pipeline.name, patches(plan)));
    let remarks = remarks.into_iter().map(|r| remark_in_words(r) + "\n");
    let text: String = against.into_iter().chain(other).map(|(_, text)| text).chain(remarks).collect();
    if !text.is_empty() {
        builder.set_system_out(&cdata(&text));
    }
    builder.build()
}

fn overall(plan: &Plan, verdict: &Verdict) -> TestCase {
    let name = format!("verdict for tier {}", verdict.tier);
    let time = Duration::milliseconds(i64::try_from(verdict.took_ms).unwrap_or(i64::MAX));
    let sentences: Vec<String> = verdict.causes.iter().map(cause_in_words).collect();
    let causes = cdata(&sentences.join("\n"));
    let mut builder = match verdict.verdict {
        Outcome::Qualified => TestCaseBuilder::success(&name, time),
        Outcome::Rejected => TestCaseBuilder::failure(&name, time, "rejected", &causes),
        Outcome::Inconclusive => TestCaseBuilder::error(&name, time, "inconclusive", &causes),
    };
    builder.set_classname(&format!("klpfarm.{}.{}", plan.pipeline.name, patches(plan)));
    let remarks = verdict.remarks.iter().map(remark_in_words);
    let lines: Vec<String> = sentences.into_iter().chain(remarks).collect();
    builder.set_system_out(&cdata(&lines.join("\n")));
    builder.build()
}

#[cfg(test)]
mod tests;
