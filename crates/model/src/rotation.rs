//! A run that lasts for a time instead of a number of trials: turns of images and loads come round again and again, each with a
//! machine of its own kind, and each is judged by its own trials.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Body, Event, live};
use crate::judge::judge_one;
use crate::verdict::{ArmCount, Outcome, Verdict};
use crate::workload::is_name;
use crate::{Arm, ImageFacts, Pipeline, Plan, PlanError, Trial, Workload, stats};

/// What goes round, as written in a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// How long the run goes on.
    #[serde(with = "crate::duration")]
    pub duration: Duration,
    /// Images; none: the pipeline's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Workloads that run together, by a name for them; none: the pipeline's, all together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loads: BTreeMap<String, Vec<String>>,
    /// A run begins with the machines that the run before it left, grown so much older; zero: with those that the pipeline's `aging`
    /// describes.
    #[serde(default, with = "crate::duration", skip_serializing_if = "Duration::is_zero")]
    pub older: Duration,
    /// Disk that the run folder may take, in MiB: the run ends in order when it takes more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
}

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

impl Rotation {
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut check = |ok: bool, field: &str, message: String| {
            if !ok {
                found.push((field.to_owned(), message));
            }
        };
        check(
            !self.duration.is_zero(),
            "rotation.duration",
            "is zero; write for example 8h for a night".into(),
        );
        for (i, image) in self.images.iter().enumerate() {
            check(!self.images[..i].contains(image), "rotation.images", format!("names `{image}` twice"));
        }
        for (load, names) in &self.loads {
            let field = "rotation.loads";
            let name = "is not a valid name: use lower-case letters, digits and dashes";
            check(is_name(load), field, format!("`{load}` {name}"));
            let empty = "is empty; a patch is never qualified without load";
            check(!names.is_empty(), field, format!("`{load}` {empty}"));
            for (i, name) in names.iter().enumerate() {
                check(!names[..i].contains(name), field, format!("`{load}` names `{name}` twice"));
            }
        }
        found
    }
}

/// One kind of machine that comes round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The image.
    pub image: ImageFacts,
    /// Name of the load.
    pub load: String,
    /// The workloads, that which ages the machine last.
    pub workloads: Vec<Workload>,
    /// Candidates that are for this image, as positions in [`Plan::patches`].
    pub patches: Vec<usize>,
    /// Id of the checkpoint that its machines are forks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

impl Turn {
    /// For people: image and load.
    pub fn name(&self) -> String {
        format!("{}/{}", self.image.name, self.load)
    }

    /// Find the candidates that are for this turn's kernel.
    pub(crate) fn takes(mut self, patches: &[crate::Patch]) -> Result<Self, PlanError> {
        let fits = |p: &crate::Patch| {
            self.image.release.as_ref().is_none_or(|r| p.check_release(&self.image.name, r).is_ok())
        };
        self.patches = (0..patches.len()).filter(|i| fits(&patches[*i])).collect();
        if self.patches.is_empty() && !patches.is_empty() {
            return Err(PlanError::OutOfReach(format!(
                "rotation.images: no candidate was built for {} (kernel {}): add one, or remove the image",
                self.image.name,
                self.image.release.as_deref().unwrap_or("unknown")
            )));
        }
        Ok(self)
    }
}

impl Plan {
    /// What goes round, if the run lasts for a time.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.pipeline.rotation.as_ref()
    }

    /// Kinds of machines in the run; a run without a rotation has one.
    pub fn turns(&self) -> usize {
        self.turns.len().max(1)
    }

    /// The trial with this number. A rotation's rounds are all alike but for their seeds.
    pub fn trial(&self, number: u32) -> Option<Cow<'_, Trial>> {
        if self.turns.is_empty() {
            return self.trials.iter().find(|t| t.number == number).map(Cow::Borrowed);
        }
        let first = self.in_round(number)?;
        let trial = Trial::new(number, first.arm, first.patches.clone(), self.seed);
        // Its partner is of the same round.
        let partner = first.partner.map(|partner| partner + (number - first.number));
        Some(Cow::Owned(Trial { turn: first.turn, partner, ..trial }))
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
        let Some(of) = self.turns.get(turn) else { return self.clone() };
        let mut own = self.clone();
        own.image = of.image.clone();
        own.workloads = of.workloads.clone();
        own.checkpoint = of.checkpoint.clone();
        own.pipeline.rotation = None;
        own.turns = Vec::new();
        own.trials.retain(|t| t.turn == turn);
        own.trials.iter_mut().for_each(|t| t.turn = 0);
        own
    }

    /// The plan with the trials that were started, as many rounds as that may be.
    pub fn unrolled(&self, events: &[Event]) -> Cow<'_, Self> {
        if self.turns.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut own = self.clone();
        let numbers: BTreeSet<u32> =
            live(events).filter_map(|e| e.scope).map(|s| s.trial).filter(|n| *n > 0).collect();
        own.trials = numbers.into_iter().filter_map(|n| self.trial(n).map(Cow::into_owned)).collect();
        Cow::Owned(own)
    }
}

/// The next trial: rounds follow each other, and what a resumed run does again comes first.
pub(crate) fn next(plan: &Plan, started: &BTreeSet<u32>) -> Option<Trial> {
    let last = started.last().copied().unwrap_or(0);
    let gaps = started.len() < last as usize;
    let number = if gaps { (1..last).find(|n| !started.contains(n))? } else { last + 1 };
    plan.trial(number).map(Cow::into_owned)
}

/// The ordinary run that one turn is: its plan, with the trials that were started, and the events that concern it.
fn run_of(plan: &Plan, events: &[Event], turn: usize) -> (Plan, Vec<Event>) {
    let mut own = plan.of_turn(turn);
    let patches = &plan.turns[turn].patches;
    own.patches = patches.iter().filter_map(|i| plan.patches.get(*i)).cloned().collect();
    own.trials = plan.unrolled(events).into_owned().trials;
    own.trials.retain(|t| t.turn == turn);
    for trial in &mut own.trials {
        trial.turn = 0;
        trial.patches.iter_mut().for_each(|p| *p = patches.iter().position(|of| of == p).unwrap_or(0));
    }
    let mine = |e: &&Event| match (&e.body, e.scope) {
        (Body::Checkpoint(facts), _) => Some(&facts.id) == own.checkpoint.as_ref(),
        (_, Some(scope)) => plan.turn_of(scope.trial) == turn,
        (_, None) => true,
    };
    let events = events.iter().filter(mine).cloned().collect();
    (own, events)
}

/// Judge each turn by itself, and say all of it. A patch qualifies if it does so in every turn.
pub(crate) fn judge_turns(plan: &Plan, events: &[Event]) -> Verdict {
    let mut turns = plan.turns.iter().enumerate().map(|(k, turn)| {
        let (own, events) = run_of(plan, events, k);
        (turn.name(), judge_one(&own, &events))
    });
    let Some((name, first)) = turns.next() else { return judge_one(plan, events) };
    let mut all = marked(&name, first);
    for (name, verdict) in turns {
        add(&mut all, marked(&name, verdict));
    }
    all.patches.clone_from(&plan.patches);
    all.plan = plan.hash();
    if plan.turns.len() > 1 {
        all.checkpoint = None;
        all.wear = None;
    }
    all
}

/// A turn's verdict, with its name wherever it is needed beside others'.
fn marked(name: &str, mut verdict: Verdict) -> Verdict {
    verdict.causes.iter_mut().for_each(|c| *c = format!("{name}: {c}"));
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
    let new: Vec<String> = other.blind.into_iter().filter(|b| !all.blind.contains(b)).collect();
    all.blind.extend(new);
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
    /// Loaded ones without a finding.
    pub clean: u32,
    /// Loaded ones with a finding, whatever its cause.
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
                let says = end.is_valid(found);
                match (says, scope.arm) {
                    (false, _) => self.void += 1,
                    (true, Arm::Loaded | Arm::Stack) if found => self.failed += 1,
                    (true, Arm::Loaded | Arm::Stack) => self.clean += 1,
                    (true, Arm::Quiescent | Arm::Control | Arm::Reapply) => {}
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
