//! Judging: a pure fold of plan and journal into a verdict. Every rule of the verdict stands in this module and in
//! [`crate::compare`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::compare::slower_than_control;
use crate::event::{Body, Event, Measured, Scope, TrialEnd};
use crate::verdict::{ArmCount, Attribution, Evidence, Hits, Observation, Outcome, Reach, Verdict};
use crate::{Arm, FarmKind, Finding, FindingKind, Phase, Plan, plan};

/// What one trial left in the journal.
#[derive(Debug, Default)]
pub(crate) struct TrialRecord {
    pub(crate) end: Option<TrialEnd>,
    pub(crate) findings: Vec<Seen>,
    pub(crate) measured: BTreeMap<Phase, (u64, Measured)>,
    files: Vec<PathBuf>,
}

/// A finding with its place in the journal.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) seq: u64,
    pub(crate) scope: Scope,
    pub(crate) finding: Finding,
}

impl TrialRecord {
    /// Whether the trial says anything of the patch: it ended in order, or a finding ended it.
    pub(crate) fn valid(&self) -> bool {
        matches!(self.end, Some(TrialEnd::Completed | TrialEnd::Stopped))
    }
}

/// Everything the journal says, by trial.
struct Record {
    trials: BTreeMap<u32, TrialRecord>,
    reach: BTreeMap<String, f64>,
    /// Reason by detector; the last one stands for all trials.
    blind: BTreeMap<String, String>,
    /// Functions the patch replaces, without their objects.
    functions: BTreeSet<String>,
    interrupted: bool,
    took_ms: u64,
}

/// Judge a run. The same plan and events give the same verdict, whoever asks and whenever.
pub fn judge(plan: &Plan, events: &[Event]) -> Verdict {
    let record = read(plan, events);
    let findings = attributed(plan, &record);
    let arms = count(plan, &record, &findings);
    let evidence = group(plan, &record, findings);
    let farm_errors = farm_errors(&record);
    let reach: Vec<Reach> =
        record.reach.iter().map(|(f, c)| Reach { function: f.clone(), calls_per_s: *c }).collect();
    let (verdict, causes) = decide(plan, &record, &evidence, &arms, &farm_errors, &reach);
    Verdict {
        schema: plan::SCHEMA,
        verdict,
        tier: plan.tier,
        causes,
        patch: plan.patch.clone(),
        image: plan.image.clone(),
        accel: plan.accel,
        arms,
        evidence,
        reach,
        blind: record.blind.into_iter().map(|(detector, reason)| format!("{detector}: {reason}")).collect(),
        farm_errors,
        plan: plan.hash(),
        took_ms: record.took_ms,
        farm: plan.farm.clone(),
    }
}

fn read(plan: &Plan, events: &[Event]) -> Record {
    let mut record = Record {
        trials: plan.trials.iter().map(|t| (t.number, TrialRecord::default())).collect(),
        reach: BTreeMap::new(),
        blind: BTreeMap::new(),
        functions: BTreeSet::new(),
        interrupted: false,
        took_ms: 0,
    };
    for event in events {
        record.took_ms = record.took_ms.max(event.at_ms);
        if let Body::RunEnded { interrupted } = event.body {
            record.interrupted = interrupted;
        }
        let Some(scope) = event.scope else { continue };
        let Some(trial) = record.trials.get_mut(&scope.trial) else { continue };
        match &event.body {
            Body::Applied { functions, .. } => {
                let name = |f: &String| f.rsplit('/').next().unwrap_or_default().to_owned();
                record.functions.extend(functions.iter().map(name));
            }
            Body::Measured(m) => {
                trial.measured.insert(scope.phase, (event.seq, m.clone()));
            }
            Body::Finding(finding) => {
                trial.findings.push(Seen { seq: event.seq, scope, finding: (**finding).clone() });
            }
            Body::Evidence { file, .. } => trial.files.push(plan::Plan::trial_dir(scope.trial).join(file)),
            Body::TrialEnded { end } => trial.end = Some(end.clone()),
            Body::Blind { detector, reason } => {
                record.blind.insert(detector.clone(), reason.clone());
            }
            Body::Reach { function, calls, window_ms } => {
                let rate = *calls as f64 * 1000.0 / (*window_ms).max(1) as f64;
                let best = record.reach.entry(function.clone()).or_insert(0.0);
                *best = best.max(rate);
            }
            Body::RunStarted { .. }
            | Body::TrialStarted
            | Body::PhaseStarted
            | Body::MachineReady { .. }
            | Body::TransitionDone { .. }
            | Body::Reverted { .. }
            | Body::Progress { .. }
            | Body::Note { .. }
            | Body::RunEnded { .. } => {}
        }
    }
    record
}

/// Each finding with the word on whether it counts against the patch.
fn attributed(plan: &Plan, record: &Record) -> Vec<(Attribution, Seen)> {
    let controls: Vec<&TrialRecord> = plan
        .trials
        .iter()
        .filter(|t| t.arm == Arm::Control)
        .map(|t| &record.trials[&t.number])
        .filter(|t| t.valid())
        .collect();
    let in_control: Vec<&Finding> = controls.iter().flat_map(|t| &t.findings).map(|s| &s.finding).collect();
    let mut all = Vec::new();
    for place in &plan.trials {
        let trial = &record.trials[&place.number];
        // What a finding stopped is slow for a reason that is known already.
        let compared = match trial.end {
            Some(TrialEnd::Completed) => slower_than_control(plan, place, trial, &controls),
            _ => Vec::new(),
        };
        for seen in trial.findings.iter().cloned().chain(compared) {
            let attribution = if seen.scope.arm == Arm::Control {
                Attribution::ControlToo
            } else if before_apply(seen.scope.phase) {
                Attribution::BeforeApply
            } else if only_a_patch_can(seen.finding.kind) {
                Attribution::Patch
            } else if in_control.iter().any(|c| same_defect(c, &seen.finding)) {
                Attribution::ControlToo
            } else if controls.is_empty() {
                Attribution::NoControl
            } else {
                Attribution::Patch
            };
            all.push((attribution, seen));
        }
    }
    all
}

fn before_apply(phase: Phase) -> bool {
    matches!(phase, Phase::Boot | Phase::Age | Phase::Baseline)
}

/// Trouble that no unpatched machine can have: no control is needed to attribute it.
fn only_a_patch_can(kind: FindingKind) -> bool {
    match kind {
        FindingKind::Farm(kind) => matches!(
            kind,
            FarmKind::LoadRefused
                | FarmKind::LoadStuck
                | FarmKind::NotInForce
                | FarmKind::TransitionStalled
                | FarmKind::RevertStalled
                | FarmKind::RevertRefused
        ),
        FindingKind::Kernel(kind) => kind == klpfarm_kmsg::Kind::LivepatchFailure,
    }
}

fn same_defect(a: &Finding, b: &Finding) -> bool {
    if a.kind.is_soft() && b.kind.is_soft() {
        a.kind == b.kind && a.workload == b.workload
    } else {
        a.kind == b.kind && a.title == b.title
    }
}

/// Which finding of a trial names the cause best: the lower the better. A crash explains the hang that follows it, a hang
/// explains the silence.
fn rank(kind: FindingKind) -> u8 {
    use FarmKind as F;
    match kind {
        FindingKind::Farm(F::LoadRefused | F::LoadStuck) => 0,
        FindingKind::Kernel(k) if !kind.is_soft() && k.severity() == klpfarm_kmsg::Severity::Fatal => 1,
        FindingKind::Farm(F::WrongContent | F::WrongErrno) => 2,
        FindingKind::Kernel(_) if !kind.is_soft() => 3,
        FindingKind::Farm(F::TransitionStalled | F::RevertStalled | F::RevertRefused | F::NotInForce) => 4,
        FindingKind::Farm(F::ThreadStalled | F::TaskBlocked) => 5,
        FindingKind::Kernel(_) => 6,
        FindingKind::Farm(F::RateCollapsed | F::LatencyGrown | F::ResourcesLeaked) => 9,
        FindingKind::Farm(F::SshDead | F::ProbeSilent) => 8,
        FindingKind::Farm(_) => 7,
    }
}

/// One item a cause: the findings of one trial share its best finding, trials that share that title (or, for hangs, its
/// kind) share an item.
fn group(plan: &Plan, record: &Record, findings: Vec<(Attribution, Seen)>) -> Vec<Evidence> {
    let mut by_trial: BTreeMap<(Attribution, u32), Vec<Seen>> = BTreeMap::new();
    for (attribution, seen) in findings {
        by_trial.entry((attribution, seen.scope.trial)).or_default().push(seen);
    }
    let mut items: Vec<(Attribution, Finding, Vec<Seen>)> = Vec::new();
    for ((attribution, _), mut seen) in by_trial {
        seen.sort_by_key(|s| s.seq);
        let Some(lead) = seen.iter().min_by_key(|s| (rank(s.finding.kind), s.seq)).map(|s| s.finding.clone())
        else {
            continue;
        };
        match items.iter_mut().find(|(a, l, _)| *a == attribution && same_cause(l, &lead)) {
            Some((_, _, all)) => all.extend(seen),
            None => items.push((attribution, lead, seen)),
        }
    }
    items.sort_by_key(|(attribution, lead, _)| (*attribution, rank(lead.kind)));
    items.into_iter().map(|(a, lead, seen)| evidence(plan, record, a, lead, &seen)).collect()
}

fn same_cause(a: &Finding, b: &Finding) -> bool {
    a.title == b.title || (rank(a.kind) == rank(b.kind) && a.function.is_some() && a.function == b.function)
}

fn evidence(
    plan: &Plan,
    record: &Record,
    attribution: Attribution,
    lead: Finding,
    seen: &[Seen],
) -> Evidence {
    let hit: BTreeSet<u32> = seen.iter().map(|s| s.scope.trial).collect();
    let mut arms: BTreeMap<Arm, Hits> = BTreeMap::new();
    for trial in plan.trials.iter().filter(|t| record.trials[&t.number].valid()) {
        let hits = arms.entry(trial.arm).or_default();
        hits.of += 1;
        hits.hit += u32::from(hit.contains(&trial.number));
    }
    let observations = seen
        .iter()
        .take(50)
        .map(|s| Observation {
            seq: s.seq,
            trial: s.scope.trial,
            arm: s.scope.arm,
            phase: s.scope.phase,
            kind: s.finding.kind,
            title: s.finding.title.clone(),
            source: s.finding.source,
            after_apply_ms: s.finding.after_apply_ms,
            excerpt: excerpt(&s.finding.evidence),
            files: record.trials[&s.scope.trial].files.clone(),
        })
        .collect();
    Evidence {
        first_after_apply_ms: seen.iter().filter_map(|s| s.finding.after_apply_ms).min(),
        title: lead.title,
        kind: lead.kind,
        attribution,
        arms,
        function: lead.function,
        observations,
        count: seen.len(),
    }
}

fn excerpt(text: &str) -> String {
    const LINES: usize = 30;
    let mut out: String = text.lines().take(LINES).collect::<Vec<_>>().join("\n");
    let rest = text.lines().count().saturating_sub(LINES);
    if rest > 0 {
        out.push_str(&format!("\n[{rest} more lines in the journal]"));
    }
    out
}

fn count(plan: &Plan, record: &Record, findings: &[(Attribution, Seen)]) -> BTreeMap<Arm, ArmCount> {
    let mut arms: BTreeMap<Arm, ArmCount> = BTreeMap::new();
    for trial in &plan.trials {
        let seen = &record.trials[&trial.number];
        let arm = arms.entry(trial.arm).or_default();
        arm.planned += 1;
        match (seen.valid(), !findings.iter().any(|(_, s)| s.scope.trial == trial.number)) {
            (false, _) => arm.void += 1,
            (true, true) => arm.clean += 1,
            (true, false) => arm.failed += 1,
        }
    }
    arms
}

fn farm_errors(record: &Record) -> Vec<String> {
    let error = |(number, trial): (&u32, &TrialRecord)| match &trial.end {
        Some(TrialEnd::FarmError { message }) => Some(format!("trial {number}: {message}")),
        _ => None,
    };
    record.trials.iter().filter_map(error).collect()
}

fn decide(
    plan: &Plan,
    record: &Record,
    evidence: &[Evidence],
    arms: &BTreeMap<Arm, ArmCount>,
    farm_errors: &[String],
    reach: &[Reach],
) -> (Outcome, Vec<String>) {
    let against: Vec<String> =
        evidence.iter().filter(|e| e.attribution == Attribution::Patch).map(in_words).collect();
    if !against.is_empty() {
        return (Outcome::Rejected, against);
    }
    let mut causes = Vec::new();
    if record.interrupted {
        causes.push("the run was interrupted".to_owned());
    }
    causes.extend(farm_errors.iter().map(|e| format!("the farm failed, not the patch: {e}")));
    for item in evidence {
        causes.push(match item.attribution {
            Attribution::ControlToo => format!(
                "{}: seen without the patch as well ({}), so it says nothing of the patch",
                item.title,
                hits(item)
            ),
            Attribution::BeforeApply => format!("{}: seen before the patch was applied", item.title),
            Attribution::NoControl => {
                format!("{}: no control trial went through, so it can't be attributed", item.title)
            }
            Attribution::Patch => continue,
        });
    }
    for (arm, n) in arms {
        if n.void > 0 && !record.interrupted && farm_errors.is_empty() {
            causes.push(format!("{} of {} {arm} trials did not take place", n.void, n.planned));
        }
    }
    for r in reach.iter().filter(|r| r.calls_per_s == 0.0) {
        causes.push(format!(
            "the workloads never call {}: add a workload to the pipeline that does",
            r.function
        ));
    }
    for function in record.functions.iter().filter(|f| !reach.iter().any(|r| r.function == **f)) {
        causes.push(format!(
            "it can't be told whether the workloads call {function}: its calls could not be counted"
        ));
    }
    if !causes.is_empty() {
        return (Outcome::Inconclusive, causes);
    }
    (Outcome::Qualified, vec![praise(plan, arms, reach)])
}

fn praise(plan: &Plan, arms: &BTreeMap<Arm, ArmCount>, reach: &[Reach]) -> String {
    let trials: Vec<String> = arms.iter().map(|(arm, n)| format!("{} {arm}", n.clean)).collect();
    let mut text = format!(
        "no finding in {} trial(s) with a soak of {} s each",
        trials.join(", "),
        plan.soak().as_secs()
    );
    if !reach.is_empty() {
        let calls: Vec<String> =
            reach.iter().map(|r| format!("{} ({} calls/s)", r.function, short(r.calls_per_s))).collect();
        text.push_str(&format!("; the load reached {}", calls.join(", ")));
    }
    text
}

/// A rate with as many digits as say something.
fn short(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn hits(item: &Evidence) -> String {
    let parts: Vec<String> = item.arms.iter().map(|(arm, h)| format!("{arm} {}/{}", h.hit, h.of)).collect();
    parts.join(", ")
}

/// What an engineer needs to hear of a finding that counts: what, how soon, under which condition, how often.
fn in_words(item: &Evidence) -> String {
    let of = |arm: Arm| item.arms.get(&arm).copied().unwrap_or_default();
    let (loaded, quiescent, control) = (of(Arm::Loaded), of(Arm::Quiescent), of(Arm::Control));
    let mut text = item.title.clone();
    if let Some(ms) = item.first_after_apply_ms {
        text.push_str(&format!(", first seen {:.1} s after applying", ms as f64 / 1000.0));
    }
    text.push_str(": ");
    let condition = match (loaded.hit, quiescent.hit) {
        (0, _) => format!(
            "only when applied idle, {}/{}; not when applied under load, 0/{}",
            quiescent.hit, quiescent.of, loaded.of
        ),
        (_, 0) if quiescent.of > 0 => format!(
            "only when the load was running at the moment of applying, {}/{}; not when applied idle, 0/{}",
            loaded.hit, loaded.of, quiescent.of
        ),
        (_, 0) => format!(
            "with the load running at the moment of applying, {}/{}; no idle trial to compare",
            loaded.hit, loaded.of
        ),
        _ => format!(
            "whether the load was running at the moment of applying, {}/{}, or started afterwards, {}/{}",
            loaded.hit, loaded.of, quiescent.hit, quiescent.of
        ),
    };
    text.push_str(&condition);
    if control.of > 0 {
        text.push_str(&format!("; never without the patch, 0/{}", control.of));
    }
    text
}

#[cfg(test)]
mod tests;
