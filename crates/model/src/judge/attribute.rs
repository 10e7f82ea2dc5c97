//! Whose fault a finding is: findings become items, one a cause, and each item gets a word on whether it counts against the patch.

use std::collections::{BTreeMap, BTreeSet};

use super::{Record, Seen, TrialRecord, hits, waits_of};
use crate::event::TrialEnd;
use crate::verdict::{Attribution, Hits, WaitFor, WaitGroup};
use crate::{Arm, FarmKind, Finding, FindingKind, Phase, Plan, cause, compare, stats};

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
    /// trials, if none shows it more often.
    pub(super) p_value: Option<f64>,
    /// Where tasks wait in the trial that tells most of the patch, and that trial.
    pub(super) waits: Option<(u32, Vec<WaitGroup>)>,
    /// The test is of an arm that shows it more often than the control arm.
    more: bool,
}

/// A difference between arms that chance explains more rarely than this is taken for a difference.
const SIGNIFICANT: f64 = 0.05;

/// So many trials must show a hang that does not name the patch, and so many controls must not: a single one can be the host's mood.
const CONFIRMED: u32 = 2;

/// And that must be one of so many trials of an arm at least: what is rarer needs more trials than a run has.
const ONE_OF: u32 = 4;

/// All items, those that count against the patch first.
pub(super) fn items(plan: &Plan, record: &Record) -> Vec<Item> {
    let mut items = observed(plan, record);
    items.extend(compared(plan, record));
    items.sort_by_key(|item| (item.attribution, rank(item.lead.kind)));
    items
}

/// What the trials saw themselves.
fn observed(plan: &Plan, record: &Record) -> Vec<Item> {
    let controls: Vec<&Seen> = plan
        .trials
        .iter()
        .filter(|t| t.arm == Arm::Control)
        .map(|t| &record.trials[&t.number])
        .filter(|t| t.valid())
        .flat_map(|t| &t.findings)
        .collect();
    // The findings of one trial share its best one; trials that share that one's title (or, for hangs, the place where tasks wait)
    // share an item.
    let mut by_trial: BTreeMap<(Attribution, u32), Vec<Seen>> = BTreeMap::new();
    // What a trial found counts once it has ended: more may come, and with it the name of the cause.
    let valid = |t: &&TrialRecord| t.valid();
    for trial in plan.trials.iter().map(|t| &record.trials[&t.number]).filter(valid) {
        for seen in &trial.findings {
            let place = if seen.scope.arm == Arm::Control {
                Attribution::ControlOnly
            } else if before_apply(seen.scope.phase) {
                Attribution::BeforeApply
            } else if !seen.finding.in_patch
                && controls.iter().any(|c| same_defect(&c.finding, &seen.finding))
            {
                // What stands in the patch's own code, no control trial can have.
                Attribution::ControlToo
            } else {
                Attribution::Patch
            };
            by_trial.entry((place, seen.scope.trial)).or_default().push(seen.clone());
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for ((place, trial), mut seen) in by_trial {
        seen.sort_by_key(|s| s.seq);
        let Some(lead) = seen.iter().map(|s| &s.finding).min_by_key(|f| names_cause(f)).cloned() else {
            continue;
        };
        let marks = marks(&seen, &waits_of(plan, record, trial));
        let group = Group { place, lead, marks, seen };
        match groups.iter_mut().find(|g| g.shares_cause(&group)) {
            Some(of_cause) => of_cause.join(group),
            None => groups.push(group),
        }
    }
    groups
        .into_iter()
        .map(|Group { place, lead, mut seen, .. }| {
            if place == Attribution::ControlToo {
                let same = |c: &&&Seen| seen.iter().any(|s| same_defect(&c.finding, &s.finding));
                let too: Vec<Seen> = controls.iter().filter(same).map(|c| (*c).clone()).collect();
                seen.extend(too);
            }
            let mut item = item(plan, record, place, lead, seen);
            item.attribution = attribution(&item, place);
            item
        })
        .collect()
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
        let hang = |f: &Finding| is_hang(f.kind);
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
    let own = |s: &&Seen| s.finding.in_patch && is_hang(s.finding.kind);
    let mut marks: BTreeSet<String> =
        seen.iter().filter(own).filter_map(|s| s.finding.function.clone()).collect();
    marks.extend(cause::marks(waits));
    marks
}

/// Findings by how well they name the cause, the best first: of several hangs the one in the patch's own code.
fn names_cause(finding: &Finding) -> (u8, bool, u8) {
    let rank = rank(finding.kind);
    (if HANGS.contains(&rank) { *HANGS.start() } else { rank }, !finding.in_patch, rank)
}

/// What only the comparison of arms shows.
fn compared(plan: &Plan, record: &Record) -> Vec<Item> {
    let mut groups: Vec<Vec<Seen>> = Vec::new();
    for seen in compare::differences(plan, &record.trials) {
        let same = |g: &Vec<Seen>| same_defect(&g[0].finding, &seen.finding);
        match groups.iter_mut().find(|g| same(g)) {
            Some(group) => group.push(seen),
            None => groups.push(vec![seen]),
        }
    }
    groups
        .into_iter()
        .map(|seen| {
            // The title most trials agree on.
            let often = |title: &str| seen.iter().filter(|s| s.finding.title == title).count();
            let lead = seen
                .iter()
                .max_by_key(|s| (often(&s.finding.title), std::cmp::Reverse(s.seq)))
                .map_or_else(|| seen[0].finding.clone(), |s| s.finding.clone());
            let mut item = item(plan, record, Attribution::Noise, lead, seen);
            if is_significant(&item) {
                item.attribution = Attribution::Patch;
            }
            item
        })
        .collect()
}

fn item(plan: &Plan, record: &Record, attribution: Attribution, lead: Finding, seen: Vec<Seen>) -> Item {
    let hit: BTreeSet<u32> = seen.iter().map(|s| s.scope.trial).collect();
    let arms = hits(plan, record, &hit, |t| Some(t.arm));
    // What only a comparison shows is looked for in some arms only.
    let compared: &[Arm] = match rank(lead.kind) {
        COMPARED => &compare::PATCHED,
        _ => &[Arm::Loaded, Arm::Quiescent, Arm::Reapply, Arm::Stack],
    };
    let patches = hits(plan, record, &hit, |t| {
        (t.arm != Arm::Control).then(|| plan.names(t).collect::<Vec<_>>().join(" + "))
    });
    let (p_value, more) = match arms.get(&Arm::Control).filter(|c| c.of > 0) {
        Some(control) => against_control(&arms, *control, compared),
        None => (None, false),
    };
    // A crash or a wrong result explains itself: what waits for the dead is a symptom.
    let explained = rank(lead.kind) == STALLED || is_hang(lead.kind);
    let told = hit.iter().filter(|_| explained).map(|trial| (*trial, waits_of(plan, record, *trial)));
    // Of several trials the first one that shows the patch's own code.
    let names_patch = |(_, groups): &(u32, Vec<WaitGroup>)| {
        (!groups.iter().any(|g| g.waits_for == WaitFor::Patch), !groups.iter().any(|g| g.patch.is_some()))
    };
    let waits = told.filter(|(_, groups)| !groups.is_empty()).min_by_key(names_patch);
    Item { attribution, lead, seen, arms, patches, p_value, waits, more }
}

/// Fisher's test of the arm that differs most among those that show it more often than the control arm, and whether there is one.
fn against_control(arms: &BTreeMap<Arm, Hits>, control: Hits, compared: &[Arm]) -> (Option<f64>, bool) {
    let rate = |h: Hits| f64::from(h.hit) / f64::from(h.of.max(1));
    let patched = || arms.iter().filter(|(arm, h)| compared.contains(arm) && h.of > 0).map(|(_, h)| *h);
    let more = patched().filter(|h| rate(*h) > rate(control));
    match more.map(|h| stats::fisher(h, control)).min_by(f64::total_cmp) {
        Some(p) => (Some(p), true),
        None => (patched().max_by_key(|h| h.of).map(|h| stats::fisher(h, control)), false),
    }
}

/// Whether chance explains the difference too rarely to be believed.
fn is_significant(item: &Item) -> bool {
    item.more && item.p_value.is_some_and(|p| p <= SIGNIFICANT)
}

fn attribution(item: &Item, place: Attribution) -> Attribution {
    let control = item.arms.get(&Arm::Control).copied().unwrap_or_default();
    let confirmed = |h: &Hits| h.hit >= CONFIRMED && h.hit * ONE_OF >= h.of;
    let patched = item.arms.iter().filter(|(arm, _)| **arm != Arm::Control).map(|(_, h)| h);
    let (mut patched, all) =
        (patched.clone(), patched.fold(Hits::default(), |a, h| Hits { hit: a.hit + h.hit, of: a.of + h.of }));
    match place {
        Attribution::Patch if only_a_patch_can(item.lead.kind) => Attribution::Patch,
        Attribution::Patch if control.of == 0 => Attribution::NoControl,
        // What the kernel itself calls broken, and what waits in the patch's own code, needs no second witness.
        Attribution::Patch if !item.lead.kind.is_soft() || item.seen.iter().any(|s| s.finding.in_patch) => {
            Attribution::Patch
        }
        Attribution::Patch if control.of >= CONFIRMED && (patched.any(confirmed) || confirmed(&all)) => {
            Attribution::Patch
        }
        Attribution::Patch => Attribution::Unconfirmed,
        Attribution::ControlToo if is_significant(item) => Attribution::Patch,
        other => other,
    }
}

fn before_apply(phase: Phase) -> bool {
    matches!(phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline)
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
    // What leaks is in the title: a control machine whose page cache grew must not excuse one whose slab does.
    let leak = a.kind == FarmKind::ResourcesLeaked.into();
    if a.kind.is_soft() && b.kind.is_soft() && !leak {
        a.kind == b.kind && a.workload == b.workload
    } else {
        a.kind == b.kind && a.title == b.title
    }
}

fn same_cause(a: &Finding, b: &Finding) -> bool {
    // A hang is seen by the load's progress, by the state of tasks or by the kernel, whichever is first.
    let hang = |f: &Finding| HANGS.contains(&rank(f.kind));
    let alike = rank(a.kind) == rank(b.kind) || (hang(a) && hang(b));
    a.title == b.title || (alike && a.function.is_some() && a.function == b.function)
}

/// The ranks of hangs.
const HANGS: std::ops::RangeInclusive<u8> = 5..=7;

/// The rank of transitions that do not end.
const STALLED: u8 = 4;

/// Whether tasks that wait explain it: a hang, or the silence that may follow one.
fn is_hang(kind: FindingKind) -> bool {
    let rank = rank(kind);
    HANGS.contains(&rank) || rank == SILENT
}

/// The rank of silence.
const SILENT: u8 = 9;

/// The rank of what only a comparison shows.
const COMPARED: u8 = 10;

/// Which finding of a trial names the cause best: the lower the better. A crash explains the hang that follows it, a hang
/// explains the silence.
fn rank(kind: FindingKind) -> u8 {
    use FarmKind as F;
    match kind {
        FindingKind::Farm(F::LoadRefused | F::LoadStuck) => 0,
        FindingKind::Kernel(k) if !kind.is_soft() && k.severity() == klpfarm_kmsg::Severity::Fatal => 1,
        FindingKind::Farm(F::WrongContent | F::WrongErrno) => 2,
        FindingKind::Kernel(_) if !kind.is_soft() => 3,
        FindingKind::Farm(F::CpuStuck) => 3,
        FindingKind::Farm(F::TransitionStalled | F::RevertStalled | F::RevertRefused | F::NotInForce) => {
            STALLED
        }
        FindingKind::Farm(F::HangConfirmed | F::ThreadStalled) => 5,
        FindingKind::Farm(F::TaskBlocked) => 6,
        FindingKind::Kernel(_) => 7,
        FindingKind::Farm(F::SshDead | F::ProbeSilent | F::ConsoleSilent) => SILENT,
        FindingKind::Farm(
            F::RateCollapsed | F::LatencyGrown | F::TailGrown | F::ThreadStarved | F::ResourcesLeaked,
        ) => COMPARED,
        FindingKind::Farm(_) => 8,
    }
}

/// Trials whose phases can be compared: what a finding stopped is slow for a reason that is known already. What was found only when the
/// patch was taken back left the soak whole: a leak of descriptors shows there, and keeps the patch from being unloaded.
pub(crate) fn comparable(trial: &TrialRecord) -> bool {
    match trial.end {
        Some(TrialEnd::Completed) => true,
        Some(TrialEnd::Stopped) => {
            trial.findings.iter().all(|f| matches!(f.scope.phase, Phase::Revert | Phase::End))
        }
        _ => false,
    }
}
