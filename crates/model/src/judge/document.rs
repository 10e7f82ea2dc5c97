//! The verdict as a document: all that the trials come to, in full.

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::{self, Item};
use super::causes::names;
use super::decide;
use super::fold::Fold;
use super::outcome::{Mark, Outcomes};
use super::record::{Record, TrialRecord};
use super::sets::Set;
use crate::event::TrialEnd;
use crate::tiers::per_hour;
use crate::verdict::{
    ArmCount, Attribution, Bound, Cause, Evidence, ExposureBound, FarmError, Observation, Remark,
    TrialRemark, UnavailableDetector, Verdict, Wear,
};
use crate::{Arm, Detector, Plan, plan};

impl Fold {
    /// The verdict that the trials come to.
    pub(crate) fn verdict(&mut self) -> Verdict {
        self.settle();
        let fold = &*self;
        let Self { plan, record, outcomes, .. } = fold;
        let sets = fold.sets();
        let rejecting: Vec<&Set> = sets.iter().copied().filter(|s| s.rejects(sets.len())).collect();
        let items = attribute::items(fold, &rejecting);
        let arms = count(plan, outcomes, &items);
        let bounds = bounds(plan, &sets);
        let farm_errors = farm_errors(record);
        let of_run = record.facts();
        let reach = fold.reach(&of_run);
        let open = open_findings(record);
        let facts = decide::Facts {
            plan,
            fold,
            sets: &sets,
            rejecting: &rejecting,
            items: &items,
            bounds: &bounds,
            reach: &reach,
            of_run: &of_run,
            open: &open,
        };
        let (verdict, causes) = facts.decide(record.cut_short.as_deref(), &farm_errors);
        let causes = causes.into_iter().map(Cause::from).collect();
        let evidence = items.into_iter().map(|item| evidence(plan, record, item)).collect();
        let of = |detector: Detector| move |reason: String| UnavailableDetector { detector, reason };
        let mut blind: Vec<UnavailableDetector> =
            of_run.blind_detectors().map(|(detector, reason)| of(detector)(reason.clone())).collect();
        // Of each function that could not be counted, and not only of the last one.
        let last = of_run
            .blind_detectors()
            .find(|(detector, _)| *detector == Detector::Reach)
            .map(|(_, reason)| reason);
        let others = of_run.uncounted.iter().filter(|reason| Some(*reason) != last);
        blind.extend(others.cloned().map(of(Detector::Reach)));
        let not_compared = fold.compared.blind(plan, &record.trials);
        blind.extend(not_compared.into_iter().map(of(Detector::Comparison)));
        let wear = match (&record.checkpoint, of_run.wear()) {
            (Some(c), _) => Some(Wear { fresh: c.fresh.clone(), reached: c.reached.clone() }),
            (None, Some((fresh, reached))) => Some(Wear { fresh: fresh.clone(), reached: reached.clone() }),
            (None, None) => None,
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
            unavailable: of_run.unavailable.clone(),
            farm_errors,
            remarks: remarks(plan, record, outcomes),
            plan: plan.hash(),
            took_ms: record.took_ms,
            farm: plan.farm.clone(),
        }
    }
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
fn bounds(plan: &Plan, sets: &[&Set]) -> Vec<Bound> {
    let soak = plan.soak();
    let bounded = sets.iter().filter(|set| set.arm.is_bounded());
    bounded
        .map(|set| {
            let tally = set.tally();
            let exposure = (set.arm == Arm::Soak).then(|| ExposureBound {
                failures_per_hour: per_hour(set.bound(), soak),
                soak_s: soak.as_secs(),
                clean_s: soak.as_secs() * u64::from(tally.clean()),
            });
            Bound {
                turn: None,
                arm: set.arm,
                patches: names(plan, &set.patches),
                failed: tally.failed(),
                clean: tally.clean(),
                failure_rate: set.bound(),
                confidence: plan.rule.confidence_of(set.arm),
                exposure,
            }
        })
        .collect()
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
                if mark == Mark::Unexplained && !own.was_in_force(&plan.names(trial).collect::<Vec<_>>()) =>
            {
                say(Remark::Lost, "the journal does not say that the patch was applied and came into force");
            }
            _ => {}
        }
    }
    remarks
}

fn evidence(plan: &Plan, record: &Record, item: Item) -> Evidence {
    let first_after_apply_ms = item.first_after_apply_ms();
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
            excerpt: s.finding.evidence.clone(),
            files: record.trials.get(&s.scope.trial).map(|t| t.files.clone()).unwrap_or_default(),
        })
        .collect();
    Evidence {
        turn: None,
        first_after_apply_ms,
        title: lead.title,
        kind: lead.kind,
        attribution,
        arms,
        waits,
        waits_of,
        patches: if plan.patches.len() > 1 { patches } else { BTreeMap::new() },
        p_value,
        function: lead.function,
        observations,
        count: seen.len(),
    }
}

/// Findings of trials that have not ended: they count for nothing yet, but nothing is let through over them.
fn open_findings(record: &Record) -> Vec<(u32, String)> {
    let open = record.trials.iter().filter(|(_, t)| t.end.is_none());
    open.flat_map(|(number, t)| t.exposed_findings().map(|s| (*number, s.finding.title.clone()))).collect()
}

fn farm_errors(record: &Record) -> Vec<FarmError> {
    let error = |(trial, own): (&u32, &TrialRecord)| match &own.end {
        Some(TrialEnd::FarmError { message } | TrialEnd::Void { reason: message }) => {
            Some(FarmError { trial: *trial, message: message.clone() })
        }
        _ => None,
    };
    record.trials.iter().filter_map(error).collect()
}
