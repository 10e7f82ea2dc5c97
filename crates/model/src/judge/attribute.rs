//! Whose fault a finding is: findings become items, one a cause, and each item gets a word on whether it counts against the patch.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::fold::Fold;
use super::outcome::{Defect, Mark, Outcomes};
use super::record::{Record, Seen, before_apply};
use super::sets::Set;
use crate::compare::change;
use crate::verdict::{Attribution, Hits, WaitFor, WaitGroup};
use crate::{Arm, Finding, Plan, Rank, Trial, cause, stats};

/// Findings that share a cause.
pub(super) struct Item {
    pub(super) attribution: Attribution,
    /// The finding that names the cause best.
    pub(super) lead: Finding,
    pub(super) seen: Vec<Seen>,
    pub(super) arms: BTreeMap<Arm, Hits>,
    /// Hits by names of the patches applied.
    pub(super) patches: BTreeMap<String, Hits>,
    /// Fisher's exact test of the patched arm that shows it more often than the control arm and differs most; of the arm with most
    /// trials, if none shows it more often. For people: nothing is decided by it.
    pub(super) p_value: Option<f64>,
    /// Where tasks wait in the trial that tells most of the patch, and that trial.
    pub(super) waits: Option<(u32, Vec<WaitGroup>)>,
}

impl Item {
    /// Milliseconds after applying when it was first seen.
    pub(super) fn first_after_apply_ms(&self) -> Option<u64> {
        self.seen.iter().filter_map(|s| s.finding.after_apply_ms).min()
    }
}

/// What the words on items are taken from.
struct Case<'a> {
    plan: &'a Plan,
    record: &'a Record,
    outcomes: &'a Outcomes,
    /// Sets whose failures are too many to be chance.
    rejecting: &'a [&'a Set],
}

/// All items, those that count against the patch first.
pub(super) fn items(fold: &Fold, rejecting: &[&Set]) -> Vec<Item> {
    let Fold { plan, record, outcomes, .. } = fold;
    let case = Case { plan, record, outcomes, rejecting };
    let mut items = case.observed();
    items.extend(case.compared(fold.compared.seen()));
    items.sort_by_key(|item| (item.attribution, item.lead.kind.rules().rank));
    items
}

impl Case<'_> {
    /// What the trials saw themselves.
    fn observed(&self) -> Vec<Item> {
        // The findings of one trial share its best one; trials that share that one's title (or, for hangs, the place where tasks wait)
        // share an item.
        let mut by_trial: BTreeMap<(Attribution, u32), Vec<Seen>> = BTreeMap::new();
        // What a trial found counts once it has ended: more may come, and with it the name of the cause.
        for (number, own) in self.record.trials.iter().filter(|(_, t)| t.end.is_some()) {
            for seen in &own.findings {
                let place = if self.outcomes.mark(*number) == Mark::Void && !before_apply(seen.scope.phase) {
                    continue;
                } else if seen.scope.arm == Arm::Control {
                    Attribution::ControlOnly
                } else if before_apply(seen.scope.phase) {
                    Attribution::BeforeApply
                } else if (!seen.finding.in_patch || seen.finding.kind.is_soft())
                    && self.outcomes.control_has(&seen.finding)
                {
                    Attribution::ControlToo
                } else {
                    Attribution::Unconfirmed
                };
                by_trial.entry((place, *number)).or_default().push(seen.clone());
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        for ((place, trial), mut seen) in by_trial {
            seen.sort_by_key(|s| s.seq);
            let Some(lead) = seen.iter().map(|s| &s.finding).min_by_key(|f| names_cause(f)).cloned() else {
                continue;
            };
            let marks = marks(&seen, self.waits_of(trial));
            let group = Group { place, lead, marks, seen };
            match groups.iter_mut().find(|g| g.shares_cause(&group)) {
                Some(of_cause) => of_cause.join(group),
                None => groups.push(group),
            }
        }
        groups.into_iter().map(|group| self.item_of(group)).collect()
    }

    fn item_of(&self, group: Group) -> Item {
        let Group { place, lead, mut seen, .. } = group;
        if place == Attribution::ControlToo {
            let controls = self.record.trials.values().flat_map(|t| &t.findings);
            let defects: HashSet<Defect> = seen.iter().map(|s| Defect::of(&s.finding)).collect();
            let same = |c: &&Seen| {
                c.scope.arm == Arm::Control
                    && !before_apply(c.scope.phase)
                    && defects.contains(&Defect::of(&c.finding))
            };
            let too: Vec<Seen> = controls.filter(same).cloned().collect();
            seen.extend(too);
        }
        self.item(place, lead, seen)
    }

    /// What only the comparison of arms shows.
    fn compared<'s>(&self, differences: impl Iterator<Item = &'s Seen>) -> Vec<Item> {
        let mut groups: Vec<Vec<Seen>> = Vec::new();
        let mut places: HashMap<Defect, usize> = HashMap::new();
        for seen in differences.filter(|s| self.outcomes.mark(s.scope.trial).counts()) {
            let at = *places.entry(Defect::of(&seen.finding)).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[at].push(seen.clone());
        }
        groups
            .into_iter()
            .map(|seen| {
                // The title most trials agree on.
                let mut often: HashMap<&str, usize> = HashMap::new();
                seen.iter().for_each(|s| *often.entry(&s.finding.title).or_default() += 1);
                let of = |s: &&Seen| often.get(s.finding.title.as_str()).copied();
                let lead = seen
                    .iter()
                    .max_by_key(|s| (of(s), std::cmp::Reverse(s.seq)))
                    .map_or_else(|| seen[0].finding.clone(), |s| s.finding.clone());
                let control = seen.iter().any(|s| s.scope.arm == Arm::Control);
                let patched = seen.iter().any(|s| s.scope.arm.patched());
                let place = match (control, patched) {
                    (true, true) => Attribution::ControlToo,
                    (true, false) => Attribution::ControlOnly,
                    (false, _) => Attribution::Unconfirmed,
                };
                self.item(place, lead, seen)
            })
            .collect()
    }

    fn item(&self, place: Attribution, lead: Finding, seen: Vec<Seen>) -> Item {
        let hit: BTreeSet<u32> = seen.iter().map(|s| s.scope.trial).collect();
        let arms = hits(self.plan, self.outcomes, &hit, |t| Some(t.arm));
        // What only a comparison shows is looked for in some arms only.
        let compared: &[Arm] = match lead.kind.rules().rank {
            Rank::Compared => &change::PATCHED,
            _ => &[Arm::Loaded, Arm::Soak, Arm::Quiescent, Arm::Reapply, Arm::Stack],
        };
        let patches = hits(self.plan, self.outcomes, &hit, |t| {
            t.arm.patched().then(|| self.plan.names(t).collect::<Vec<_>>().join(" + "))
        });
        let control = arms.get(&Arm::Control).filter(|c| c.of > 0);
        let p_value = control.and_then(|control| against_control(&arms, *control, compared));
        // A crash or a wrong result explains itself: what waits for the dead is a symptom.
        let rank = lead.kind.rules().rank;
        let explained = rank == Rank::Transition || rank.is_hang();
        let told = hit.iter().filter(|_| explained).map(|trial| (*trial, self.waits_of(*trial)));
        // Of several trials the first one that shows the patch's own code.
        let names_patch = |(_, groups): &(u32, &[WaitGroup])| {
            (!groups.iter().any(|g| g.waits_for == WaitFor::Patch), !groups.iter().any(|g| g.patch.is_some()))
        };
        let waits = told.filter(|(_, groups)| !groups.is_empty()).min_by_key(names_patch);
        let waits = waits.map(|(trial, groups)| (trial, groups.to_vec()));
        let attribution = self.attribution(place, &seen);
        Item { attribution, lead, seen, arms, patches, p_value, waits }
    }

    /// Where tasks of a trial wait.
    fn waits_of(&self, trial: u32) -> &[WaitGroup] {
        self.record.trials.get(&trial).map(|own| &own.groups[..]).unwrap_or_default()
    }

    fn attribution(&self, place: Attribution, seen: &[Seen]) -> Attribution {
        if !matches!(place, Attribution::Unconfirmed | Attribution::ControlToo) {
            return place;
        }
        let proof = seen.iter().filter(|s| s.scope.arm.patched()).any(|s| {
            let own = self.record.trials.get(&s.scope.trial);
            own.is_some_and(|own| self.outcomes.proves(own, &s.finding))
        });
        if proof || self.rejecting.iter().any(|set| self.is_more_frequent_in(set, seen)) {
            Attribution::Patch
        } else if self.outcomes.has_control() {
            place
        } else {
            Attribution::NoControl
        }
    }

    /// Whether a larger share of the trials of a set than of the control trials shows it.
    fn is_more_frequent_in(&self, set: &Set, seen: &[Seen]) -> bool {
        let hit: BTreeSet<u32> = seen.iter().map(|s| s.scope.trial).collect();
        let in_set = |t: &Trial| t.arm == set.arm && t.patches == set.patches;
        let by_side = hits(self.plan, self.outcomes, &hit, |t| match t.arm {
            Arm::Control => Some(false),
            _ => in_set(t).then_some(true),
        });
        let rate = |side: bool| by_side.get(&side).map_or(0.0, |h| f64::from(h.hit) / f64::from(h.of.max(1)));
        rate(true) > rate(false)
    }
}

/// Trials with one cause.
struct Group {
    place: Attribution,
    lead: Finding,
    /// What their hangs have in common: see [`marks`].
    marks: BTreeSet<String>,
    seen: Vec<Seen>,
}

impl Group {
    fn shares_cause(&self, other: &Self) -> bool {
        let hang = |f: &Finding| f.kind.rules().rank.is_hang();
        self.place == other.place
            && (same_cause(&self.lead, &other.lead)
                || (hang(&self.lead) && hang(&other.lead) && !self.marks.is_disjoint(&other.marks)))
    }

    fn join(&mut self, other: Self) {
        if names_cause(&other.lead) < names_cause(&self.lead) {
            self.lead = other.lead;
        }
        self.marks.extend(other.marks);
        self.seen.extend(other.seen);
    }
}

/// The functions of the patch in which tasks of a trial hang, by all that was seen, or else the lock they wait for. Which workload is
/// hit first, and who notices, differs from trial to trial; this does not.
fn marks(seen: &[Seen], waits: &[WaitGroup]) -> BTreeSet<String> {
    let own = |s: &&Seen| s.finding.in_patch && s.finding.kind.rules().rank.is_hang();
    let mut marks: BTreeSet<String> =
        seen.iter().filter(own).filter_map(|s| s.finding.function.clone()).collect();
    marks.extend(cause::marks(waits));
    marks
}

/// Findings by how well they name the cause, the best first: of several hangs the one in the patch's own code.
fn names_cause(finding: &Finding) -> (Rank, bool, Rank) {
    let rank = finding.kind.rules().rank;
    (if rank.may_be_slow() { Rank::Stall } else { rank }, !finding.in_patch, rank)
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

/// Fisher's test of the arm that differs most among those that show it more often than the control arm, or of the arm with most trials.
fn against_control(arms: &BTreeMap<Arm, Hits>, control: Hits, compared: &[Arm]) -> Option<f64> {
    let rate = |h: Hits| f64::from(h.hit) / f64::from(h.of.max(1));
    let patched = || arms.iter().filter(|(arm, h)| compared.contains(arm) && h.of > 0).map(|(_, h)| *h);
    let more = patched().filter(|h| rate(*h) > rate(control));
    let most = more.map(|h| stats::fisher(h, control)).min_by(f64::total_cmp);
    most.or_else(|| patched().max_by_key(|h| h.of).map(|h| stats::fisher(h, control)))
}

fn same_cause(a: &Finding, b: &Finding) -> bool {
    // A hang is seen by the load's progress, by the state of tasks or by the kernel, whichever is first.
    let (rank_a, rank_b) = (a.kind.rules().rank, b.kind.rules().rank);
    let alike = rank_a == rank_b || (rank_a.stands_still() && rank_b.stands_still());
    a.title == b.title || (alike && a.function.is_some() && a.function == b.function)
}
