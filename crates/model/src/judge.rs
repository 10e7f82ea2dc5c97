//! Judging: a pure fold of plan and journal into a verdict. Every rule of the verdict stands below this module and in
//! [`crate::compare`] and [`crate::sequential`].
//!
//! The same function judges a run that is still going on: as soon as it does not say `inconclusive`, the run is decided.

mod attribute;
mod decide;
mod outcome;
mod reach;
mod record;
mod sets;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use attribute::Item;
pub(crate) use attribute::comparable;
use outcome::{Mark, Outcomes};
use record::{Record, read};
pub(crate) use record::{Seen, TrialRecord};
use sets::{Set, Unended, sets};
pub(crate) use sets::{against_innocence, has_prospect, is_rejected};

use crate::compare::Compared;
use crate::event::{Body, Event, TrialEnd};
use crate::plan::Trial;
use crate::sequential;
use crate::verdict::{
    ArmCount, Attribution, Bound, Evidence, Hits, Observation, Outcome, Remark, TrialRemark, Verdict,
    WaitGroup, Wear,
};
use crate::{Arm, Plan, cause, plan, rotation};

/// Judge a run. The same plan and events give the same verdict, whoever asks and whenever.
pub fn judge(plan: &Plan, events: &[Event]) -> Verdict {
    let mut verdict =
        if plan.turns.is_empty() { judge_one(plan, events) } else { rotation::judge_turns(plan, events) };
    let of_another = events.iter().find_map(|e| match &e.body {
        Body::RunStarted { plan: hash, .. } if *hash != verdict.plan => Some((e.seq, hash)),
        _ => None,
    });
    if let Some((seq, hash)) = of_another.filter(|_| verdict.verdict == Outcome::Qualified) {
        verdict.verdict = Outcome::Inconclusive;
        verdict.causes.insert(
            0,
            format!("the journal (event {seq}) is of a run with another plan: {hash}, not {}", verdict.plan),
        );
    }
    verdict
}

/// What the trials of a run say, one by one and set by set.
struct View<'a> {
    plan: &'a Plan,
    record: Record,
    compared: Compared,
    outcomes: Outcomes,
    sets: Vec<Set<'a>>,
}

impl<'a> View<'a> {
    fn new(plan: &'a Plan, events: &[Event]) -> Self {
        let record = read(plan, events);
        let compared = crate::compare::compare(plan, &record.trials);
        let outcomes = Outcomes::of(plan, &record, &compared.seen);
        Self { plan, record, compared, outcomes, sets: sets(plan) }
    }

    fn begun(&self) -> impl Fn(u32) -> bool {
        |number| self.outcomes.has_begun(number)
    }

    /// Whether nothing can have been decided yet: some set lacks clean trials, and nothing is held against the patch.
    fn is_open(&self) -> bool {
        let lacks = |set: &Set<'_>| {
            let tally = set.tally(&self.outcomes, &self.begun(), Unended::Ignored);
            matches!(set.arm, Arm::Loaded | Arm::Stack)
                && !sequential::shows(&tally, self.plan.rule.max_failure_rate, self.plan.rule.confidence)
        };
        let proof = self.sets.iter().any(|set| {
            set.trials.iter().any(|t| self.outcomes.mark(t.number) == Mark::Failed)
                || set.rejects(&self.outcomes, self.sets.len())
        });
        !proof && self.sets.iter().any(lacks)
    }
}

/// Judge a run whose machines are all of one kind.
pub(crate) fn judge_one(plan: &Plan, events: &[Event]) -> Verdict {
    verdict_of(&View::new(plan, events))
}

/// The verdict that trials seen so come to.
fn verdict_of(view: &View<'_>) -> Verdict {
    let View { plan, record, outcomes, .. } = view;
    let rejecting: Vec<&Set<'_>> =
        view.sets.iter().filter(|s| s.rejects(outcomes, view.sets.len())).collect();
    let items = attribute::items(plan, record, outcomes, &view.compared.seen, &rejecting);
    let arms = count(plan, outcomes, &items);
    let bounds = bounds(view);
    let farm_errors = farm_errors(record);
    let reach = reach::reach(plan, record, outcomes);
    let open = open_findings(record);
    let facts = decide::Facts {
        plan,
        outcomes,
        sets: &view.sets,
        rejecting: &rejecting,
        items: &items,
        bounds: &bounds,
        reach: &reach,
        record,
        open: &open,
    };
    let (verdict, causes) = facts.decide(record.cut_short.as_deref(), &farm_errors);
    let evidence = items.into_iter().map(|item| evidence(plan, record, item)).collect();
    let mut blind: Vec<String> =
        record.blind.iter().map(|(detector, reason)| format!("{detector}: {reason}")).collect();
    // Of each function that could not be counted, and not only of the last one.
    let last = record.blind.get("reach");
    let others = record.uncounted.iter().filter(|reason| Some(*reason) != last);
    blind.extend(others.map(|reason| format!("reach: {reason}")));
    blind.extend(view.compared.blind(plan, &record.trials));
    let wear = match (&record.checkpoint, &record.fresh, &record.reached) {
        (Some(c), _, _) => Some(Wear { fresh: c.fresh.clone(), reached: c.reached.clone() }),
        (None, Some(fresh), Some(reached)) => Some(Wear { fresh: fresh.clone(), reached: reached.clone() }),
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
        checkpoint: record.checkpoint.as_ref().map(|c| c.id.clone()),
        wear,
        accel: plan.accel,
        arms,
        bounds,
        evidence,
        reach,
        blind,
        farm_errors,
        remarks: remarks(plan, record, outcomes),
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
    let view = View::new(plan, events);
    if view.is_open() {
        return false;
    }
    let verdict = verdict_of(&view);
    let ended =
        |arm: Arm| verdict.arms.get(&arm).is_some_and(|n| n.clean + n.failed + n.unexplained + n.void > 0);
    let planned = |arm: Arm| plan.trials.iter().any(|t| t.arm == arm);
    match verdict.verdict {
        Outcome::Inconclusive => false,
        Outcome::Qualified => true,
        Outcome::Rejected => !planned(Arm::Quiescent) || ended(Arm::Quiescent),
    }
}

/// The next trial worth starting, if the run is not decided: in the plan's order, no patched one more than the tier still needs, and control
/// trials that are due or that run next to a patched trial. Invalid trials are made up for. `started` are the numbers of those that have
/// been.
pub fn next_trial(plan: &Plan, events: &[Event], started: &BTreeSet<u32>) -> Option<Trial> {
    if plan.apart {
        return crate::apart::next(plan, events, started).cloned();
    }
    if !plan.turns.is_empty() {
        return rotation::next(plan, started);
    }
    let view = View::new(plan, events);
    let outcomes = &view.outcomes;
    let begun = |number: u32| started.contains(&number);
    let controls = plan
        .trials
        .iter()
        .filter(|t| t.arm == Arm::Control && t.partner.is_none() && begun(t.number))
        .filter(|t| outcomes.mark(t.number) != Mark::Void)
        .count();
    // Of each set: whether it needs a trial, whether in pairs, and whether some of its trials that have a partner are left.
    let wants: BTreeMap<(Arm, &[usize]), (bool, bool)> = view
        .sets
        .iter()
        .map(|set| {
            let wants = set.wants_more(plan, outcomes, &begun);
            let paired = set.trials.iter().any(|t| t.partner.is_some() && !begun(t.number));
            ((set.arm, set.patches), (wants, paired && set.is_noisy(outcomes)))
        })
        .collect();
    let numbers: BTreeMap<u32, &Trial> = plan.trials.iter().map(|t| (t.number, t)).collect();
    let wanted = |t: &Trial| wants.get(&(t.arm, t.patches.as_slice())).copied().unwrap_or_default();
    let mut left = plan.trials.iter().filter(|t| !begun(t.number));
    let next = left.find(|trial| match (trial.arm, trial.partner) {
        (Arm::Control, None) => controls < plan.due(Arm::Control) as usize,
        // The control trial of a pair: before its patched trial, and only if that is still to come.
        (Arm::Control, Some(patched)) => {
            !begun(patched) && numbers.get(&patched).is_some_and(|t| wanted(t) == (true, true))
        }
        (_, partner) => {
            let (wants, in_pairs) = wanted(trial);
            wants && (!in_pairs || partner.is_some())
        }
    });
    next.cloned()
}

fn count(plan: &Plan, outcomes: &Outcomes, items: &[Item]) -> BTreeMap<Arm, ArmCount> {
    // What a single trial cannot prove, all of them together may.
    let proven = items.iter().filter(|i| i.attribution == Attribution::Patch).flat_map(|i| &i.seen);
    let proven: BTreeSet<u32> = proven.map(|s| s.scope.trial).collect();
    let mut arms: BTreeMap<Arm, ArmCount> = BTreeMap::new();
    for trial in &plan.trials {
        let arm = arms.entry(trial.arm).or_default();
        arm.planned += 1;
        let place = match outcomes.mark(trial.number) {
            Mark::Open => continue,
            Mark::Void | Mark::Cut => &mut arm.void,
            Mark::Clean => &mut arm.clean,
            Mark::Failed => &mut arm.failed,
            Mark::Unexplained if proven.contains(&trial.number) => &mut arm.failed,
            Mark::Unexplained => &mut arm.unexplained,
        };
        *place += 1;
    }
    arms
}

/// What each patch alone, and all together, can add to the failures of a trial by what the trials show.
fn bounds(view: &View<'_>) -> Vec<Bound> {
    let confidence = view.plan.rule.confidence;
    let under_load = view.sets.iter().filter(|set| matches!(set.arm, Arm::Loaded | Arm::Stack));
    under_load
        .map(|set| {
            let tally = set.tally(&view.outcomes, &view.begun(), Unended::Ignored);
            Bound {
                turn: None,
                arm: set.arm,
                patches: names(view.plan, set.patches),
                failed: tally.failed(),
                clean: tally.clean(),
                failure_rate: sequential::bound(&tally, confidence),
                confidence,
            }
        })
        .collect()
}

fn names(plan: &Plan, patches: &[usize]) -> Vec<String> {
    patches.iter().filter_map(|i| plan.patches.get(*i)).map(|p| p.name.clone()).collect()
}

/// Every trial that was invalidated, lost or repeated.
fn remarks(plan: &Plan, record: &Record, outcomes: &Outcomes) -> Vec<TrialRemark> {
    let mut remarks = Vec::new();
    for trial in &plan.trials {
        let number = trial.number;
        let mut say = |what: Remark, reason: &str| {
            remarks.push(TrialRemark { trial: number, arm: trial.arm, what, reason: reason.to_owned() });
        };
        if record.repeated.contains(&number) {
            say(Remark::Repeated, "it had not ended when the run was cut off");
        }
        let Some(own) = record.trials.get(&number) else { continue };
        let mark = outcomes.mark(number);
        match &own.end {
            Some(TrialEnd::FarmError { message } | TrialEnd::Void { reason: message }) => {
                say(if mark == Mark::Void { Remark::Invalid } else { Remark::Lost }, message);
            }
            Some(_) if mark == Mark::Void => say(Remark::Invalid, "it ended before the patch was applied"),
            Some(TrialEnd::Stopped) if mark.is_failure() && own.findings.is_empty() => {
                say(Remark::Lost, "it was stopped without a finding");
            }
            Some(TrialEnd::Completed)
                if mark == Mark::Unexplained && !own.was_in_force(plan.names(trial)) =>
            {
                say(Remark::Lost, "the journal does not say that the patch was applied and came into force");
            }
            _ => {}
        }
    }
    remarks
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
            files: record.trials.get(&s.scope.trial).map(|t| t.files.clone()).unwrap_or_default(),
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
    let Some(own) = record.trials.get(&trial) else { return Vec::new() };
    cause::groups(&own.waits, &plan.names(of).collect::<Vec<_>>())
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

/// Findings of trials that have not ended: they count for nothing yet, but nothing is let through over them.
fn open_findings(record: &Record) -> Vec<String> {
    let open = record.trials.iter().filter(|(_, t)| t.end.is_none());
    open.flat_map(|(number, t)| {
        t.exposed_findings().map(move |s| format!("trial {number}: {}", s.finding.title))
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
    outcomes: &Outcomes,
    hit: &BTreeSet<u32>,
    key: impl Fn(&Trial) -> Option<K>,
) -> BTreeMap<K, Hits> {
    let mut all: BTreeMap<K, Hits> = BTreeMap::new();
    for trial in plan.trials.iter().filter(|t| outcomes.mark(t.number).counts()) {
        let Some(key) = key(trial) else { continue };
        let hits = all.entry(key).or_default();
        hits.of += 1;
        hits.hit += u32::from(hit.contains(&trial.number));
    }
    all
}

#[cfg(test)]
mod tests;
