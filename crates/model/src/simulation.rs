//! Runs that are made up, to see how often a verdict is wrong: trials fail by a patch's fault, by the noise of the host, or not at all, and
//! the rules of the judge decide.
//!
//! What the judge does with a journal is repeated here with counts alone, so that thousands of runs with thousands of trials each take
//! seconds; a test holds both against each other, trial by trial.

use std::collections::{BTreeMap, VecDeque};

use crate::judge::{against_innocence, has_prospect, is_rejected};
use crate::sequential::{Tally, Wager, enough};
use crate::{Arm, Outcome, Plan};

/// How the host makes trials fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// Each trial by itself.
    Independent,
    /// Nine tenths of it in a tenth of the time.
    Bursts,
    /// The rate of each trial is between a third and three times the mean, and drifts.
    Drift,
    /// In four ways, of which the patch's fault is one.
    FourKinds,
}

impl Noise {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Independent, Self::Bursts, Self::Drift, Self::FourKinds];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Bursts => "bursts",
            Self::Drift => "threefold drift",
            Self::FourKinds => "four kinds",
        }
    }
}

/// A host and a patch.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// Share of trials that fail without the patch, on average.
    pub noise: f64,
    /// In which way.
    pub shape: Noise,
    /// Probability that the patch makes a trial fail; in which arms.
    pub fault: f64,
    /// Arms that the fault shows in; none stands for all patched ones.
    pub only: Option<Arm>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its verdict.
    pub outcome: Outcome,
    /// Trials that it took.
    pub trials: u32,
}

/// A source of chance that is the same everywhere: splitmix64.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The same seed gives the same chance.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Between 0 and 1, 1 excluded.
    pub fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (crate::plan::mix(self.0) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What happens to trials, one after the other.
#[derive(Debug)]
pub struct Fate {
    world: World,
    chance: Chance,
    in_burst: bool,
    /// Logarithm of the noise against its mean.
    drift: f64,
}

/// In which of four ways a trial failed; `None` if it did not.
pub type Failure = Option<u8>;

/// Trials that a burst lasts on average; between two of them are nine times as many.
const BURST: f64 = 20.0;

impl Fate {
    /// Of runs in this world.
    pub fn new(world: World, seed: u64) -> Self {
        Self { world, chance: Chance::new(seed), in_burst: false, drift: 0.0 }
    }

    /// What happens to the next trial.
    pub fn next(&mut self, arm: Arm) -> Failure {
        let World { noise, shape, fault, only } = self.world;
        let leave = if self.in_burst { 1.0 / BURST } else { 1.0 / (9.0 * BURST) };
        if self.chance.share() < leave {
            self.in_burst = !self.in_burst;
        }
        let third = 3.0_f64.ln();
        self.drift = (self.drift + (self.chance.share() - 0.5) * 0.4).clamp(-third, third);
        let rate = match shape {
            Noise::Independent | Noise::FourKinds => noise,
            Noise::Bursts => (noise * if self.in_burst { 9.0 } else { 1.0 / 9.0 }).min(0.95),
            // The mean of what is spread evenly between a third and three on this scale is 1.21.
            Noise::Drift => noise * self.drift.exp() / 1.21,
        };
        let (by_noise, by_fault, kind) = (self.chance.share(), self.chance.share(), self.chance.share());
        let struck = arm.patched() && only.is_none_or(|only| only == arm) && by_fault < fault;
        match (struck, by_noise < rate) {
            (true, _) => Some(0),
            (false, true) if shape == Noise::FourKinds => Some((kind * 4.0) as u8),
            (false, true) => Some(0),
            (false, false) => None,
        }
    }
}

/// One trial of a plan with one patch.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// A control trial that is due, or to spare.
    Control,
    /// A patched trial of this set, and the place among control trials of the one next to it.
    Alone { set: usize, control: Option<usize> },
    /// A patched trial of this set, with a control trial that is there for it.
    Pair { set: usize },
}

/// What all runs of a plan with one patch have in common.
#[derive(Debug)]
pub struct Layout<'a> {
    plan: &'a Plan,
    arms: Vec<Arm>,
    places: Vec<Place>,
    rates: Vec<Wager>,
}

impl<'a> Layout<'a> {
    /// Of a plan with one patch.
    pub fn new(plan: &'a Plan) -> Self {
        let arms: Vec<Arm> = [Arm::Loaded, Arm::Soak, Arm::Quiescent, Arm::Reapply]
            .into_iter()
            .filter(|arm| plan.trials.iter().any(|t| t.arm == *arm))
            .collect();
        let controls = plan.trials.iter().filter(|t| t.arm == Arm::Control && t.partner.is_none());
        let controls: BTreeMap<u32, usize> = controls.enumerate().map(|(i, t)| (t.number, i)).collect();
        let place = |trial: &crate::Trial| {
            let set = arms.iter().position(|a| *a == trial.arm);
            let control = trial.partner.and_then(|p| controls.get(&p).copied());
            match (set, trial.partner) {
                // The control trial of a pair comes with its patched trial.
                (None, Some(_)) => None,
                (None, None) => Some(Place::Control),
                (Some(set), Some(_)) if control.is_none() => Some(Place::Pair { set }),
                (Some(set), _) => Some(Place::Alone { set, control }),
            }
        };
        let rates = arms.iter().map(|a| Wager::against_failure_rate(plan.rate_of(*a))).collect();
        Self { plan, places: plan.trials.iter().filter_map(place).collect(), arms, rates }
    }

    /// A run, from its beginning to its end.
    pub fn run(&self, fate: &mut Fate) -> Ended {
        let sets = self.arms.iter().enumerate().map(|(i, arm)| Set {
            arm: *arm,
            left: self.places.iter().filter(|p| p.set() == Some(i)).count() as u32,
            partnered: self.places.iter().filter(|p| p.set() == Some(i) && p.has_partner()).count() as u32,
            ended: 0,
            tallies: [Tally::default(); WAYS + 1],
            waiting: Vec::new(),
        });
        let run =
            Run { layout: self, sets: sets.collect(), controls: Vec::new(), clean_control: false, trials: 0 };
        run.finish(fate)
    }
}

impl Place {
    fn set(self) -> Option<usize> {
        match self {
            Self::Control => None,
            Self::Alone { set, .. } | Self::Pair { set } => Some(set),
        }
    }

    fn has_partner(self) -> bool {
        matches!(self, Self::Pair { .. } | Self::Alone { control: Some(_), .. })
    }
}

/// Ways to fail; failures of any kind are counted behind them.
const WAYS: usize = 4;

fn failed(failure: Failure, way: usize) -> bool {
    failure.is_some_and(|f| way == WAYS || usize::from(f) == way)
}

/// One set of patches in one arm, by counts.
struct Set {
    arm: Arm,
    /// Trials that have not begun, and those of them that have a control trial next to them.
    left: u32,
    partnered: u32,
    ended: u32,
    tallies: [Tally; WAYS + 1],
    /// Trials whose control trial has not run yet.
    waiting: Vec<(usize, Failure)>,
}

impl Set {
    fn add(&mut self, failure: Failure, control: Option<Failure>) {
        for (way, tally) in self.tallies.iter_mut().enumerate() {
            tally.add(failed(failure, way), control.map(|c| failed(c, way)));
        }
    }

    /// A control trial has ended: what ran next to it is one of a pair now.
    fn control_ended(&mut self, number: usize, failure: Failure) {
        let (now, later): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|w| w.0 == number);
        self.waiting = later;
        for (_, own) in now {
            for (way, tally) in self.tallies.iter_mut().enumerate() {
                tally.alone[usize::from(failed(own, way))] -= 1;
                tally.add(failed(own, way), Some(failed(failure, way)));
            }
        }
    }

    fn any(&self) -> &Tally {
        &self.tallies[WAYS]
    }
}

/// A run of one patch, one trial after the other.
struct Run<'a> {
    layout: &'a Layout<'a>,
    sets: Vec<Set>,
    /// Control trials that are due, as they ended.
    controls: Vec<Failure>,
    /// Whether any control trial was clean.
    clean_control: bool,
    trials: u32,
}

impl Run<'_> {
    fn finish(mut self, fate: &mut Fate) -> Ended {
        let mut left: VecDeque<Place> = self.layout.places.iter().copied().collect();
        loop {
            let outcome = self.decided();
            let next = if outcome.is_none() { self.next(&left) } else { None };
            let Some(next) = next else {
                return Ended { outcome: outcome.unwrap_or(Outcome::Inconclusive), trials: self.trials };
            };
            if let Some(place) = left.remove(next) {
                self.step(place, fate);
            }
        }
    }

    /// The first trial in the plan's order that is worth starting.
    fn next(&self, left: &VecDeque<Place>) -> Option<usize> {
        let wants: Vec<bool> = (0..self.sets.len()).map(|i| self.wants(i)).collect();
        let in_pairs = |s: &Set| s.any().failed() > 0 && s.partnered > 0;
        let in_pairs: Vec<bool> = self.sets.iter().map(in_pairs).collect();
        let due = self.layout.plan.due(Arm::Control) as usize;
        left.iter().position(|place| match place.set() {
            None => self.controls.len() < due,
            Some(i) => wants[i] && (place.has_partner() || !in_pairs[i]),
        })
    }

    fn step(&mut self, place: Place, fate: &mut Fate) {
        let Some(i) = place.set() else {
            let failure = self.tell(fate, Arm::Control);
            self.sets.iter_mut().for_each(|s| s.control_ended(self.controls.len(), failure));
            self.controls.push(failure);
            return;
        };
        let noisy = self.sets[i].any().failed() > 0;
        let pair = matches!(place, Place::Pair { .. });
        let control = (pair && noisy).then(|| self.tell(fate, Arm::Control));
        if control.is_some() && self.decided().is_some() {
            // The control trial alone has decided the run.
            return;
        }
        let failure = self.tell(fate, self.sets[i].arm);
        let set = &mut self.sets[i];
        set.ended += 1;
        set.left -= 1;
        set.partnered -= u32::from(place.has_partner());
        let beside = match place {
            Place::Alone { control: Some(n), .. } => {
                let ended = self.controls.get(n).copied();
                if ended.is_none() {
                    set.waiting.push((n, failure));
                }
                ended
            }
            _ => control,
        };
        set.add(failure, beside);
    }

    fn tell(&mut self, fate: &mut Fate, arm: Arm) -> Failure {
        self.trials += 1;
        let failure = fate.next(arm);
        self.clean_control |= arm == Arm::Control && failure.is_none();
        failure
    }

    fn wants(&self, i: usize) -> bool {
        let (set, plan) = (&self.sets[i], self.layout.plan);
        if !set.arm.is_bounded() {
            if set.ended < plan.due(set.arm) {
                return true;
            }
            if set.any().failed() == 0 {
                return false;
            }
        }
        let wager = &self.layout.rates[i];
        wager.capital(set.any()) < enough(plan.rule.confidence_of(set.arm))
            && has_prospect(plan, set.arm, wager, set.any(), set.left)
    }

    fn decided(&self) -> Option<Outcome> {
        let rejects = |set: &Set| {
            let by_way = |way: usize| against_innocence(&set.tallies[way]);
            is_rejected(by_way(WAYS), (0..WAYS).map(by_way).sum(), self.sets.len())
        };
        let ended = |arm: Arm| self.sets.iter().find(|s| s.arm == arm).is_none_or(|s| s.ended > 0);
        if self.sets.iter().any(rejects) {
            return ended(Arm::Quiescent).then_some(Outcome::Rejected);
        }
        let plan = self.layout.plan;
        let passes = |(set, wager): (&Set, &Wager)| {
            let shown = || wager.capital(set.any()) >= enough(plan.rule.confidence_of(set.arm));
            if set.arm.is_bounded() {
                return shown();
            }
            set.ended >= plan.due(set.arm) && set.any().clean() > 0 && (set.any().failed() == 0 || shown())
        };
        let controls = self.controls.len() >= plan.due(Arm::Control) as usize && self.clean_control;
        (controls && self.sets.iter().zip(&self.layout.rates).all(passes)).then_some(Outcome::Qualified)
    }
}

#[cfg(test)]
mod tests;
