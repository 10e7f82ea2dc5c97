//! Judging: a pure fold of plan and journal into a verdict. Every rule of the verdict stands below this module and in
//! [`crate::compare`].
//!
//! The same function judges a run that is still going on: as soon as it does not say `inconclusive`, the run is decided.

mod attribute;
mod decide;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use attribute::Item;
pub(crate) use attribute::comparable;

use crate::event::{Body, CheckpointFacts, Event, Measured, Scope, TrialEnd, Vitals, function_name, live};
use crate::plan::Trial;
use crate::verdict::{
    ArmCount, Attribution, Bound, Evidence, Hits, Observation, Outcome, Reach, Verdict, WaitGroup, Wear,
};
use crate::wait::Waits;
use crate::{Arm, Finding, Phase, Plan, cause, plan, rotation, stats};

/// What one trial left in the journal.
#[derive(Debug, Default)]
pub(crate) struct TrialRecord {
    pub(crate) end: Option<TrialEnd>,
    pub(crate) findings: Vec<Seen>,
    pub(crate) measured: BTreeMap<Phase, (u64, Measured)>,
    /// Tasks that waited when evidence was gathered.
    pub(crate) waits: Vec<Waits>,
    /// Share of its planned CPU time that the machine got, if the farm measured it.
    pub(crate) cpu_share: Option<f64>,
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
    /// Whether the trial says anything of the patch: it ended in order, or it had found something before it was ended.
    pub(crate) fn valid(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.is_valid(!self.findings.is_empty()))
    }
}

/// Everything the journal says, by trial.
pub(crate) struct Record {
    pub(crate) trials: BTreeMap<u32, TrialRecord>,
    reach: BTreeMap<String, Reach>,
    /// Reason by detector; the last one stands for all trials.
    blind: BTreeMap<String, String>,
    checkpoint: Option<CheckpointFacts>,
    fresh: Option<Vitals>,
    reached: Option<Vitals>,
    /// Why the run ended before it was over, as far as it says so.
    cut_short: Option<String>,
    took_ms: u64,
}

/// What a trial says in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Not ended.
    Open,
    /// Says nothing.
    Void,
    /// No finding.
    Clean,
    /// A finding that may be the patch's.
    Failed,
    /// Findings that are not the patch's, and that may have hidden others.
    Unexplained,
}

impl Mark {
    /// Whether the trial takes the place of one that is due. A void one is made up for, if one is left to spare.
    fn counts(self) -> bool {
        self != Self::Void
    }
}

/// Judge a run. The same plan and events give the same verdict, whoever asks and whenever.
pub fn judge(plan: &Plan, events: &[Event]) -> Verdict {
    if plan.turns.is_empty() { judge_one(plan, events) } else { rotation::judge_turns(plan, events) }
}

/// Judge a run whose machines are all of one kind.
pub(crate) fn judge_one(plan: &Plan, events: &[Event]) -> Verdict {
    let record = read(plan, events);
    let items = attribute::items(plan, &record);
    let marks: BTreeMap<u32, Mark> =
        plan.trials.iter().map(|t| (t.number, mark(t, &record.trials[&t.number], &items))).collect();
    let arms = count(plan, &marks);
    let bounds = bounds(plan, &marks);
    let farm_errors = farm_errors(&record);
    let reach: Vec<Reach> = record.reach.values().cloned().collect();
    let open = open_findings(&record);
    let facts =
        decide::Facts { plan, marks: &marks, items: &items, bounds: &bounds, reach: &reach, open: &open };
    let (verdict, causes) = facts.decide(record.cut_short.as_deref(), &farm_errors);
    let evidence = items.into_iter().map(|item| evidence(plan, &record, item)).collect();
    let mut blind: Vec<String> =
        record.blind.iter().map(|(detector, reason)| format!("{detector}: {reason}")).collect();
    blind.extend(crate::compare::blind(plan, &record.trials));
    let wear = match (&record.checkpoint, record.fresh, record.reached) {
        (Some(c), _, _) => Some(Wear { fresh: c.fresh.clone(), reached: c.reached.clone() }),
        (None, Some(fresh), Some(reached)) => Some(Wear { fresh, reached }),
        _ => None,
    };
    Verdict {
        schema: plan::SCHEMA,
        turns: BTreeMap::new(),
        verdict,
        tier: plan.tier,
        causes,
        patches: plan.patches.clone(),
        image: plan.image.clone(),
        checkpoint: record.checkpoint.map(|c| c.id),
        wear,
        accel: plan.accel,
        arms,
        bounds,
        evidence,
        reach,
        blind,
        farm_errors,
        remarks: Vec::new(),
        plan: plan.hash(),
        took_ms: record.took_ms,
        farm: plan.farm.clone(),
    }
}

/// Whether a run with these events is decided: its verdict is reached, and enough is known to say under which condition the patch fails.
/// A run of patches apart ends when none of them needs a trial any more, and one with a rotation when its time is over: they never are.
pub fn is_decided(plan: &Plan, events: &[Event]) -> bool {
    if plan.apart || !plan.turns.is_empty() {
        return false;
    }
    let verdict = judge_one(plan, events);
    let ended =
        |arm: Arm| verdict.arms.get(&arm).is_some_and(|n| n.clean + n.failed + n.unexplained + n.void > 0);
    let planned = |arm: Arm| plan.trials.iter().any(|t| t.arm == arm);
    match verdict.verdict {
        Outcome::Inconclusive => false,
        Outcome::Qualified => true,
        Outcome::Rejected => !planned(Arm::Quiescent) || ended(Arm::Quiescent),
    }
}

/// The next trial worth starting, if the run is not decided: in the plan's order, no loaded one more than the tier still needs, and of the
/// other arms those that are due, void ones made up for. `started` are the numbers of those that have been.
pub fn next_trial(plan: &Plan, events: &[Event], started: &BTreeSet<u32>) -> Option<Trial> {
    if plan.apart {
        return crate::apart::next(plan, events, started).cloned();
    }
    if !plan.turns.is_empty() {
        return rotation::next(plan, started);
    }
    let record = read(plan, events);
    let items = attribute::items(plan, &record);
    let marks = |of: &dyn Fn(&Trial) -> bool| -> Vec<Mark> {
        let begun = plan.trials.iter().filter(|t| started.contains(&t.number) && of(t));
        begun.map(|t| mark(t, &record.trials[&t.number], &items)).collect()
    };
    // As if all that run were to end cleanly.
    let counted = |of: &dyn Fn(&Trial) -> bool| {
        marks(of).into_iter().fold((0, 0), |(failed, clean), mark| match mark {
            Mark::Failed => (failed + 1, clean),
            Mark::Clean | Mark::Open => (failed, clean + 1),
            Mark::Void | Mark::Unexplained => (failed, clean),
        })
    };
    let wanting = |(failed, clean): (u32, u32)| !plan.rule.allows(failed, clean);
    let patched = counted(&|t| t.arm != Arm::Control);
    let mut left = plan.trials.iter().filter(|t| !started.contains(&t.number));
    let next = left.find(|trial| {
        let alike = |t: &Trial| t.arm == trial.arm && t.patches == trial.patches;
        match trial.arm {
            Arm::Loaded | Arm::Stack => wanting(counted(&alike)) || (patched.0 > 0 && wanting(patched)),
            Arm::Quiescent | Arm::Control | Arm::Reapply => {
                let said = marks(&alike).into_iter().filter(|m| m.counts()).count();
                said < plan.due(trial.arm) as usize
            }
        }
    });
    next.cloned()
}

fn read(plan: &Plan, events: &[Event]) -> Record {
    let mut record = Record {
        trials: plan.trials.iter().map(|t| (t.number, TrialRecord::default())).collect(),
        reach: BTreeMap::new(),
        blind: BTreeMap::new(),
        checkpoint: None,
        fresh: None,
        reached: None,
        cut_short: None,
        took_ms: 0,
    };
    for event in live(events) {
        record.took_ms = record.took_ms.max(event.at_ms);
        match &event.body {
            Body::RunEnded { interrupted: true } => {
                record.cut_short = Some("the run was interrupted".to_owned());
            }
            // What is said of the run is said when something ends it.
            Body::Note { text } if event.scope.is_none() => record.cut_short = Some(text.clone()),
            Body::RunResumed { .. } => record.cut_short = None,
            Body::Checkpoint(facts) => {
                record.blind.extend(facts.blind.clone());
                record.checkpoint = Some((**facts).clone());
            }
            _ => {}
        }
        if let Some(scope) = event.scope {
            read_trial(&mut record, event, scope);
        }
    }
    record
}

fn read_trial(record: &mut Record, event: &Event, scope: Scope) {
    let Some(trial) = record.trials.get_mut(&scope.trial) else { return };
    match &event.body {
        Body::Applied { functions, inside, .. } => {
            for path in functions {
                let name = function_name(path);
                let reach = reach(&mut record.reach, name);
                reach.inside = reach.inside.max(inside.get(name).copied().unwrap_or(0));
            }
        }
        Body::Measured(m) => {
            trial.measured.insert(scope.phase, (event.seq, m.clone()));
        }
        Body::Finding(finding) => {
            trial.findings.push(Seen { seq: event.seq, scope, finding: (**finding).clone() });
        }
        Body::Waits(waits) => trial.waits.push((**waits).clone()),
        Body::CpuShare { share } => trial.cpu_share = Some(*share),
        Body::Evidence { file, .. } => trial.files.push(plan::Plan::trial_dir(scope.trial).join(file)),
        Body::TrialEnded { end } => trial.end = Some(end.clone()),
        Body::Blind { detector, reason } => {
            record.blind.insert(detector.clone(), reason.clone());
        }
        Body::Reach { function, calls, window_ms } => {
            let rate = *calls as f64 * 1000.0 / (*window_ms).max(1) as f64;
            let reach = reach(&mut record.reach, function);
            let place = match scope.arm {
                Arm::Control => &mut reach.before_per_s,
                Arm::Loaded | Arm::Quiescent | Arm::Reapply | Arm::Stack => &mut reach.after_per_s,
            };
            *place = Some(place.unwrap_or(0.0).max(rate));
        }
        Body::Vitals(vitals) => {
            let place = if scope.phase == Phase::Boot { &mut record.fresh } else { &mut record.reached };
            place.get_or_insert_with(|| vitals.clone());
        }
        Body::RunStarted { .. }
        | Body::RunResumed { .. }
        | Body::Checkpoint(_)
        | Body::TrialStarted
        | Body::PhaseStarted
        | Body::MachineReady { .. }
        | Body::TransitionDone { .. }
        | Body::Reverted { .. }
        | Body::Progress { .. }
        | Body::StallEnded { .. }
        | Body::Note { .. }
        | Body::RunEnded { .. } => {}
    }
}

fn reach<'a>(all: &'a mut BTreeMap<String, Reach>, function: &str) -> &'a mut Reach {
    all.entry(function.to_owned()).or_insert_with(|| Reach {
        function: function.to_owned(),
        turn: None,
        before_per_s: None,
        after_per_s: None,
        inside: 0,
    })
}

fn mark(trial: &Trial, record: &TrialRecord, items: &[Item]) -> Mark {
    match record.end {
        None => return Mark::Open,
        Some(_) if !record.valid() => return Mark::Void,
        Some(_) => {}
    }
    let of_trial = |item: &&Item| item.seen.iter().any(|s| s.scope.trial == trial.number);
    let mut unexplained = false;
    for item in items.iter().filter(of_trial) {
        match item.attribution {
            Attribution::Patch | Attribution::Unconfirmed | Attribution::NoControl => return Mark::Failed,
            Attribution::ControlOnly => return Mark::Failed,
            Attribution::ControlToo | Attribution::BeforeApply => unexplained = true,
            Attribution::Noise => {}
        }
    }
    if unexplained { Mark::Unexplained } else { Mark::Clean }
}

fn count(plan: &Plan, marks: &BTreeMap<u32, Mark>) -> BTreeMap<Arm, ArmCount> {
    let mut arms: BTreeMap<Arm, ArmCount> = BTreeMap::new();
    for trial in &plan.trials {
        let arm = arms.entry(trial.arm).or_default();
        arm.planned += 1;
        let place = match marks[&trial.number] {
            Mark::Open => continue,
            Mark::Void => &mut arm.void,
            Mark::Clean => &mut arm.clean,
            Mark::Failed => &mut arm.failed,
            Mark::Unexplained => &mut arm.unexplained,
        };
        *place += 1;
    }
    arms
}

/// The failure rate that the trials leave possible, for each patch alone and for all together.
fn bounds(plan: &Plan, marks: &BTreeMap<u32, Mark>) -> Vec<Bound> {
    let mut bounds: Vec<Bound> = Vec::new();
    for trial in plan.trials.iter().filter(|t| matches!(t.arm, Arm::Loaded | Arm::Stack)) {
        let patches: Vec<String> = plan.names(trial).map(str::to_owned).collect();
        let at = bounds.iter().position(|b| b.arm == trial.arm && b.patches == patches);
        let at = at.unwrap_or_else(|| {
            let confidence = plan.rule.confidence;
            bounds.push(Bound {
                turn: None,
                arm: trial.arm,
                patches,
                failed: 0,
                clean: 0,
                failure_rate: 1.0,
                confidence,
            });
            bounds.len() - 1
        });
        match marks[&trial.number] {
            Mark::Clean => bounds[at].clean += 1,
            Mark::Failed => bounds[at].failed += 1,
            Mark::Open | Mark::Void | Mark::Unexplained => {}
        }
    }
    for bound in &mut bounds {
        bound.failure_rate = stats::upper_bound(bound.failed, bound.failed + bound.clean, bound.confidence);
    }
    bounds
}

fn evidence(plan: &Plan, record: &Record, item: Item) -> Evidence {
    let Item { attribution, lead, seen, arms, patches, p_value, waits, .. } = item;
    let (waits_of, waits) = waits.map_or((None, Vec::new()), |(trial, groups)| (Some(trial), groups));
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
        turn: None,
        first_after_apply_ms: seen.iter().filter_map(|s| s.finding.after_apply_ms).min(),
        title: lead.title,
        kind: lead.kind,
        attribution,
        arms,
        cause: cause::sentence(&waits),
        waits,
        waits_of,
        patches: if plan.patches.len() > 1 { patches } else { BTreeMap::new() },
        p_value,
        function: lead.function,
        observations,
        count: seen.len(),
    }
}

/// Where tasks of a trial wait.
pub(crate) fn waits_of(plan: &Plan, record: &Record, trial: u32) -> Vec<WaitGroup> {
    let Some(of) = plan.trials.iter().find(|t| t.number == trial) else { return Vec::new() };
    cause::groups(&record.trials[&trial].waits, &plan.names(of).collect::<Vec<_>>())
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

/// Findings of trials that have not ended in order: they count for nothing, but nothing is let through over them. Those of a void trial
/// are the host's: another trial takes its place.
fn open_findings(record: &Record) -> Vec<String> {
    let void = |t: &TrialRecord| matches!(t.end, Some(TrialEnd::Void { .. }));
    let open = record.trials.iter().filter(|(_, t)| !t.valid() && !void(t));
    open.flat_map(|(number, t)| {
        t.findings.iter().map(move |s| format!("trial {number}: {}", s.finding.title))
    })
    .collect()
}

fn farm_errors(record: &Record) -> Vec<String> {
    let error = |(number, trial): (&u32, &TrialRecord)| match &trial.end {
        Some(TrialEnd::FarmError { message } | TrialEnd::Void { reason: message }) => {
            Some(format!("trial {number}: {message}"))
        }
        _ => None,
    };
    record.trials.iter().filter_map(error).collect()
}

/// Hits of trials that say anything, by a key of theirs.
fn hits<K: Ord>(
    plan: &Plan,
    record: &Record,
    hit: &BTreeSet<u32>,
    key: impl Fn(&Trial) -> Option<K>,
) -> BTreeMap<K, Hits> {
    let mut all: BTreeMap<K, Hits> = BTreeMap::new();
    for trial in plan.trials.iter().filter(|t| record.trials[&t.number].valid()) {
        let Some(key) = key(trial) else { continue };
        let hits = all.entry(key).or_default();
        hits.of += 1;
        hits.hit += u32::from(hit.contains(&trial.number));
    }
    all
}

#[cfg(test)]
mod tests;
