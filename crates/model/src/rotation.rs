//! A run that lasts for a time instead of a number of trials: turns of images and loads come round again and again, each with a
//! machine of its own kind, and each is judged by its own trials.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::compare::change::Change;
use crate::event::{Body, Event, live};
use crate::judge::fold::Fold;
use crate::verdict::{ArmCount, Outcome, Verdict};
use crate::{Arm, ImageFacts, Mode, Pipeline, Plan, Rotation, Trial, Turn, stats};

/// Name of the load that is all of a pipeline's workloads.
const ALL: &str = "all";

impl Rotation {
    /// Images and loads of all turns, in order: each image with each load.
    pub fn turns(&self, pipeline: &Pipeline) -> Vec<(String, String, Vec<String>)> {
        let one = [pipeline.image.clone()];
        let images = if self.images.is_empty() { &one[..] } else { &self.images };
        let all = BTreeMap::from([(ALL.to_owned(), pipeline.workloads.clone())]);
        let loads = if self.loads.is_empty() { &all } else { &self.loads };
        let pairs = loads.iter().flat_map(|load| images.iter().map(move |image| (image, load)));
        pairs.map(|(image, (load, names))| (image.clone(), load.clone(), names.clone())).collect()
    }
}

impl Plan {
    /// What goes round, if the run lasts for a time.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.pipeline.rotation.as_ref()
    }

    /// Kinds of machines in the run; a run without a rotation has one.
    pub fn turns(&self) -> usize {
        self.mode.turns().len().max(1)
    }

    /// The trial with this number. A rotation's rounds are all alike but for their seeds.
    pub fn trial(&self, number: u32) -> Option<Cow<'_, Trial>> {
        if !self.mode.is_rotation() {
            return self.in_place(number).map(Cow::Borrowed);
        }
        let first = self.in_round(number)?;
        let trial = Trial::new(number, first.arm, first.patches.clone(), self.seed);
        // Its partner is of the same round.
        let partner = first.partner.map(|partner| partner + (number - first.number));
        Some(Cow::Owned(Trial { turn: first.turn, partner, ..trial }))
    }

    /// The trial of the plan's own with this number: in its place, unless somebody has changed the plan.
    fn in_place(&self, number: u32) -> Option<&Trial> {
        let place = usize::try_from(number.checked_sub(1)?).ok()?;
        let there = self.trials.get(place).filter(|t| t.number == number);
        there.or_else(|| self.trials.iter().find(|t| t.number == number))
    }

    /// The turn that a trial is of.
    pub fn turn_of(&self, number: u32) -> usize {
        self.in_round(number).map_or(0, |t| t.turn)
    }

    /// The trial of the first round that stands in the same place.
    fn in_round(&self, number: u32) -> Option<&Trial> {
        let place = usize::try_from(number.checked_sub(1)?).ok()? % self.trials.len().max(1);
        self.trials.get(place)
    }

    /// The plan of one turn: an ordinary one. Its trials are those of one round; candidates keep their positions.
    pub fn of_turn(&self, turn: usize) -> Self {
        let Some(of) = self.mode.turns().get(turn) else { return self.clone() };
        let mut own = self.clone();
        own.image = of.image.clone();
        own.workloads = of.workloads.clone();
        own.checkpoint = of.checkpoint.clone();
        own.pipeline.rotation = None;
        own.mode = Mode::Single;
        own.trials.retain(|t| t.turn == turn);
        own.trials.iter_mut().for_each(|t| t.turn = 0);
        own
    }

    /// The plan with the trials that were started, as many rounds as that may be.
    pub fn unrolled(&self, events: &[Event]) -> Cow<'_, Self> {
        if !self.mode.is_rotation() {
            return Cow::Borrowed(self);
        }
        let mut own = self.clone();
        let numbers: BTreeSet<u32> =
            live(events).filter_map(|e| e.scope).map(|s| s.trial).filter(|n| *n > 0).collect();
        own.trials = numbers.into_iter().filter_map(|n| self.trial(n).map(Cow::into_owned)).collect();
        Cow::Owned(own)
    }
}

/// Follows a run with a rotation: each turn is an ordinary run, of those of its trials that were started.
#[derive(Debug)]
pub(crate) struct Rounds {
    plan: Plan,
    /// By turn.
    folds: Vec<Fold>,
    started: BTreeSet<u32>,
}

impl Rounds {
    pub(crate) fn new(plan: &Plan) -> Self {
        let fold = |(k, turn): (usize, &Turn)| {
            let mut own = plan.of_turn(k);
            own.patches = turn.patches.iter().filter_map(|i| plan.patches.get(*i)).cloned().collect();
            own.trials.clear();
            Fold::new(own)
        };
        let folds = plan.mode.turns().iter().enumerate().map(fold).collect();
        Self { plan: plan.clone(), folds, started: BTreeSet::new() }
    }

    pub(crate) fn push(&mut self, event: &Event, change: Option<&Arc<Change>>) {
        match (&event.body, event.scope) {
            (Body::Checkpoint(facts), _) => {
                let own = self.plan.mode.turns().iter().zip(&mut self.folds);
                let own = own.filter(|(turn, _)| turn.checkpoint.as_ref() == Some(&facts.id));
                own.for_each(|(_, fold)| fold.push(event, change));
            }
            (_, Some(scope)) => {
                self.add(scope.trial);
                let turn = self.plan.turn_of(scope.trial);
                self.folds[turn].push(event, change);
            }
            (_, None) => self.folds.iter_mut().for_each(|fold| fold.push(event, change)),
        }
        if let Body::RunResumed { void, .. } = &event.body {
            for trial in void {
                let fold = &mut self.folds[self.plan.turn_of(*trial)];
                if !fold.has_begun(*trial) {
                    fold.remove_trial(*trial);
                }
            }
            self.started.retain(|trial| self.folds[self.plan.turn_of(*trial)].has_begun(*trial));
        }
    }

    /// A trial that comes round for the first time.
    fn add(&mut self, number: u32) {
        let turn = self.plan.turn_of(number);
        if self.folds[turn].has_trial(number) {
            return;
        }
        let Some(mut trial) = self.plan.trial(number).map(Cow::into_owned) else { return };
        let patches = &self.plan.mode.turns()[turn].patches;
        trial.turn = 0;
        trial.patches.iter_mut().for_each(|p| *p = patches.iter().position(|of| of == p).unwrap_or(0));
        self.folds[turn].add_trial(trial);
        self.started.insert(number);
    }

    pub(crate) fn start(&mut self, trial: u32) {
        self.started.insert(trial);
    }

    pub(crate) fn arm(&self, trial: u32) -> Option<Arm> {
        self.plan.in_round(trial).map(|t| t.arm)
    }

    /// The next trial: rounds follow each other, and what a resumed run does again comes first.
    pub(crate) fn next(&self) -> Option<Trial> {
        let last = self.started.last().copied().unwrap_or(0);
        let gaps = self.started.len() < last as usize;
        let number = if gaps { (1..last).find(|n| !self.started.contains(n))? } else { last + 1 };
        self.plan.trial(number).map(Cow::into_owned)
    }

    /// Judge each turn by itself, and say all of it. A patch qualifies if it does so in every turn.
    pub(crate) fn verdict(&mut self) -> Verdict {
        let mut turns = self.plan.mode.turns().iter().zip(&mut self.folds).map(|(turn, fold)| {
            let name = turn.name();
            marked(&name, fold.verdict())
        });
        // There is no rotation without a turn.
        let Some(mut all) = turns.next() else { return Fold::new(self.plan.clone()).verdict() };
        turns.for_each(|verdict| add(&mut all, verdict));
        all.patches.clone_from(&self.plan.patches);
        all.plan = self.plan.hash();
        if self.plan.mode.turns().len() > 1 {
            all.checkpoint = None;
            all.wear = None;
        }
        all
    }
}

/// A turn's verdict, with its name wherever it is needed beside others'.
fn marked(name: &str, mut verdict: Verdict) -> Verdict {
    verdict.causes.iter_mut().for_each(|c| c.turn = Some(name.to_owned()));
    verdict.turns = BTreeMap::from([(name.to_owned(), verdict.verdict)]);
    verdict.bounds.iter_mut().for_each(|b| b.turn = Some(name.to_owned()));
    verdict.evidence.iter_mut().for_each(|e| e.turn = Some(name.to_owned()));
    verdict.reach.iter_mut().for_each(|r| r.turn = Some(name.to_owned()));
    verdict
}

fn add(all: &mut Verdict, other: Verdict) {
    all.verdict = match (all.verdict, other.verdict) {
        (Outcome::Rejected, _) | (_, Outcome::Rejected) => Outcome::Rejected,
        (Outcome::Inconclusive, _) | (_, Outcome::Inconclusive) => Outcome::Inconclusive,
        (Outcome::Qualified, Outcome::Qualified) => Outcome::Qualified,
    };
    // What rejects comes first.
    if other.verdict == Outcome::Rejected {
        all.causes.splice(0..0, other.causes);
        all.evidence.splice(0..0, other.evidence);
    } else {
        all.causes.extend(other.causes);
        all.evidence.extend(other.evidence);
    }
    all.turns.extend(other.turns);
    if all.image.hash != other.image.hash && !all.image.name.split(" + ").any(|n| n == other.image.name) {
        all.image.name = format!("{} + {}", all.image.name, other.image.name);
        all.image.hash = format!("{}+{}", all.image.hash, other.image.hash);
        let of = |i: &ImageFacts| i.release.clone().unwrap_or_else(|| "kernel unknown".to_owned());
        all.image.release = Some(format!("{} + {}", of(&all.image), of(&other.image)));
    }
    for (arm, n) in other.arms {
        let sum: &mut ArmCount = all.arms.entry(arm).or_default();
        sum.planned += n.planned;
        sum.clean += n.clean;
        sum.failed += n.failed;
        sum.unexplained += n.unexplained;
        sum.void += n.void;
    }
    all.bounds.extend(other.bounds);
    all.reach.extend(other.reach);
    let new: Vec<_> = other.blind.into_iter().filter(|b| !all.blind.contains(b)).collect();
    all.blind.extend(new);
    all.unavailable.extend(other.unavailable);
    all.farm_errors.extend(other.farm_errors);
    all.remarks.extend(other.remarks);
    all.remarks.sort_by_key(|r| r.trial);
    all.took_ms = all.took_ms.max(other.took_ms);
}

/// What a long run has come to so far, counted as it goes: nobody has to judge it for that.
#[derive(Debug, Clone, Default)]
pub struct SoFar {
    /// Trials that have ended.
    pub ended: u32,
    /// Those that apply under load without a finding.
    pub clean: u32,
    /// Those that apply under load with a finding, whatever its cause.
    pub failed: u32,
    /// Trials that say nothing.
    pub void: u32,
    found: BTreeSet<u32>,
    highest: u32,
}

impl SoFar {
    /// Take an event.
    pub fn add(&mut self, event: &Event) {
        let Some(scope) = event.scope.filter(|s| s.trial > 0) else { return };
        self.highest = self.highest.max(scope.trial);
        match &event.body {
            Body::Finding(_) => {
                self.found.insert(scope.trial);
            }
            Body::TrialEnded { end } => {
                self.ended += 1;
                let found = self.found.remove(&scope.trial);
                let bounded = end.is_valid(found).then(|| scope.arm.is_bounded());
                match bounded {
                    None => self.void += 1,
                    Some(true) if found => self.failed += 1,
                    Some(true) => self.clean += 1,
                    Some(false) => {}
                }
            }
            _ => {}
        }
    }

    /// Highest failure rate of loaded trials, of 1, that is still possible with this confidence.
    pub fn bound(&self, confidence: f64) -> f64 {
        stats::upper_bound(self.failed, self.failed + self.clean, confidence)
    }

    /// The highest number of a trial that was started.
    pub fn highest(&self) -> u32 {
        self.highest
    }
}

#[cfg(test)]
mod tests;
