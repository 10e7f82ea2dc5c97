//! How many trials of each arm a plan has, in which order they start, and which run next to which.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Length, Trial};
use crate::{Arm, Pipeline, TierRule};

/// Trials of the arms that only the host can spoil, beyond those that are due: each takes the place of an invalid one.
const SPARE: u32 = 2;

/// Trials of one arm, for each patch that it takes alone.
pub(super) struct Count {
    pub(super) arm: Arm,
    /// Those that a run takes if nothing goes wrong.
    pub(super) due: u32,
    /// And those without a partner that take the place of invalid ones.
    pub(super) all: u32,
    /// And those that run next to a control trial of their own, once a patched trial has failed.
    pub(super) pairs: u32,
}

/// Pairs of a patched and a control trial that a run may take to tell a patch that adds `rate` to the failures of a trial from the noise of
/// the host: with these, at least nine of ten good patches are qualified at 1 % noise (`docs/verdict.md`, table of error rates). The first
/// term is for a failure or two on a quiet host, the second for telling two rates apart that differ by `rate`.
fn most_pairs(rate: f64) -> u32 {
    // Far below any number that overflows, and a plan holds them all.
    (16.0 / rate + 0.25 / (rate * rate)).min(9000.0) as u32
}

/// Control trials that are due: as the pipeline says, and one for each ten trials with a soak that the tier needs, so that each of these has
/// control trials near in time to be compared with.
pub(super) fn controls_due(pipeline: &Pipeline, needed: u32, soaks: u32) -> u32 {
    match pipeline.arms.control {
        0 => 0,
        most => most.max(with_soak(needed, soaks) / 10),
    }
}

/// Trials with a soak that a tier needs: where soaks are no trials of their own, the loaded ones.
fn with_soak(needed: u32, soaks: u32) -> u32 {
    if soaks > 0 { soaks } else { needed }
}

/// What a tier needs.
pub(super) struct Need {
    /// Clean loaded trials.
    pub(super) loaded: u32,
    /// Clean soaks; 0 if loaded trials soak.
    pub(super) soaks: u32,
    /// Length of a soak.
    pub(super) soak: Duration,
    /// Patches are judged by themselves and share control trials.
    pub(super) independent: bool,
}

/// How many trials of each arm are planned; `stacked` patches go on top of each other.
pub(super) fn counts(
    pipeline: &Pipeline,
    rule: &TierRule,
    stacked: usize,
    trials: Option<u32>,
    need: &Need,
) -> Vec<Count> {
    let independent = need.independent;
    let pairs = |rate: f64| if independent { 0 } else { most_pairs(rate) };
    [Arm::Loaded, Arm::Soak, Arm::Control, Arm::Quiescent, Arm::Reapply, Arm::Stack]
        .into_iter()
        .map(|arm| match arm {
            Arm::Stack if stacked < 2 => Count { arm, due: 0, all: 0, pairs: 0 },
            Arm::Soak if need.soaks == 0 => Count { arm, due: 0, all: 0, pairs: 0 },
            Arm::Loaded | Arm::Soak | Arm::Stack => {
                let needed = if arm == Arm::Soak { need.soaks } else { need.loaded };
                let spare = (needed / 10).max(2);
                let most = trials.or(pipeline.arms.of(arm));
                // Patches that share control trials have no pairs of their own to spare.
                let spare = if independent { 2 * spare + needed } else { spare };
                let all = most.unwrap_or(u32::MAX).min(needed + spare);
                let pairs = most.map_or(u32::MAX, |most| most - all).min(pairs(rule.rate_of(arm, need.soak)));
                Count { arm, due: needed.min(all), all, pairs }
            }
            Arm::Control => {
                let due = match independent {
                    true => pipeline.arms.control,
                    false => controls_due(pipeline, need.loaded, need.soaks),
                };
                let spare = (with_soak(need.loaded, need.soaks) / 10).max(2);
                Count { arm, due, all: if due == 0 { 0 } else { due + spare }, pairs: 0 }
            }
            Arm::Quiescent | Arm::Reapply => {
                let due = pipeline.arms.of(arm).unwrap_or(0);
                match due {
                    0 => Count { arm, due, all: 0, pairs: 0 },
                    _ => Count { arm, due, all: due + SPARE, pairs: pairs(rule.rate_of(arm, need.soak)) },
                }
            }
        })
        .collect()
}

/// A trial that is to be planned.
pub(super) struct Place {
    pub(super) arm: Arm,
    pub(super) patches: Vec<usize>,
    /// Its partner is the trial in this place.
    partner: Option<usize>,
    length: Length,
}

impl Place {
    /// The trial with this number, where the first place has number `before` + 1.
    pub(super) fn trial(&self, number: u32, seed: u64, before: u32) -> Trial {
        let at = |place: usize| u32::try_from(place).unwrap_or(u32::MAX).saturating_add(before + 1);
        let trial = Trial::new(number, self.arm, self.patches.clone(), seed);
        Trial { partner: self.partner.map(at), length: self.length, ..trial }
    }
}

/// All arms spread evenly over the run, one of each first: neighbours in time are compared, because a shared host's speed drifts.
/// Arms that take one patch alone take turns with the patches. Trials to take the place of invalid ones follow, and pairs come last.
pub(super) fn order(counts: &[Count], patches: usize) -> Vec<Place> {
    let sets = |arm: Arm| -> Vec<Vec<usize>> {
        match arm {
            Arm::Control => vec![Vec::new()],
            Arm::Stack => vec![(0..patches).collect()],
            Arm::Loaded | Arm::Soak | Arm::Quiescent | Arm::Reapply => {
                (0..patches).map(|i| vec![i]).collect()
            }
        }
    };
    // Where soaks are trials of their own, what only shows that applying works needs none.
    let soaks = counts.iter().any(|c| c.arm == Arm::Soak && c.all > 0);
    let length = |arm: Arm| match arm {
        Arm::Loaded | Arm::Stack | Arm::Reapply if soaks => Length::Short,
        _ => Length::Long,
    };
    let mut keyed: Vec<(u64, usize, Arm, Vec<usize>)> = Vec::new();
    for (turn, Count { arm, due, all, .. }) in counts.iter().enumerate() {
        for k in 0..*all {
            for set in sets(*arm) {
                keyed.push((u64::from(k) * 1_000_000 / u64::from((*due).max(1)), turn, *arm, set));
            }
        }
    }
    keyed.sort();
    let place = |(_, _, arm, patches)| Place { arm, patches, partner: None, length: length(arm) };
    let mut places: Vec<Place> = keyed.into_iter().map(place).collect();
    join(&mut places, counts);
    for Count { arm, pairs, .. } in counts {
        for _ in 0..*pairs {
            for patches in sets(*arm) {
                // The control trial first: whether there is one must not depend on how the patched trial ends.
                let (control, length) = (places.len(), length(*arm));
                let (without, patched) = (Some(control + 1), Some(control));
                places.push(Place { arm: Arm::Control, patches: Vec::new(), partner: without, length });
                places.push(Place { arm: *arm, patches, partner: patched, length });
            }
        }
    }
    places
}

/// Make each control trial that is due the partner of one trial of each set: the nearest in order that comes before it or, at the beginning,
/// after it. What is short is not compared with what is long, in which more can happen.
fn join(places: &mut [Place], counts: &[Count]) {
    let due = counts.iter().find(|c| c.arm == Arm::Control).map_or(0, |c| c.due as usize);
    let controls: Vec<usize> =
        (0..places.len()).filter(|i| places[*i].arm == Arm::Control).take(due).collect();
    let mut sets: BTreeMap<(Arm, Vec<usize>), Vec<usize>> = BTreeMap::new();
    for (i, place) in
        places.iter().enumerate().filter(|(_, p)| p.arm != Arm::Control && p.length == Length::Long)
    {
        sets.entry((place.arm, place.patches.clone())).or_default().push(i);
    }
    for of_set in sets.into_values() {
        let mut free = of_set.into_iter().peekable();
        for &control in &controls {
            let mut nearest = free.next();
            while let Some(next) = free.next_if(|next| *next < control) {
                nearest = Some(next);
            }
            let Some(i) = nearest else { break };
            places[i].partner = Some(control);
        }
    }
}
