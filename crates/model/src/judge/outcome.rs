//! What each trial says: clean, failed, unexplained, or nothing.
//!
//! Every trial in which a patch was applied counts. Only what the patch can have had no part in takes a trial out: it was never applied, or
//! the host disturbed the machine.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Record, Seen, TrialRecord};
use crate::event::TrialEnd;
use crate::plan::Trial;
use crate::{Arm, FarmKind, Finding, FindingKind, Phase, Plan, compare};

/// What a trial says in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It has not ended.
    Open,
    /// It was ended before it could say anything, because of what others had shown, or the time was over: nothing after it is counted as
    /// clean, or slow failures would be left out.
    Cut,
    /// It says nothing about the patch; another one takes its place.
    Void,
    /// It was observed to its end, without a finding.
    Clean,
    /// It had a finding that is the patch's; in the control arm, it failed in any way.
    Failed,
    /// It failed or was not observed to its end, without proof that it was the patch: a failure in the bounds.
    Unexplained,
}

impl Mark {
    /// Whether it says something.
    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::Clean | Self::Failed | Self::Unexplained)
    }

    /// Whether it is a failure in the bounds.
    pub(crate) fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Unexplained)
    }
}

/// One way to fail, for telling whether patched trials fail in it more often than control trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class(u16);

impl Class {
    /// Tasks, logins or the probe stand still.
    const HANG: Self = Self(1);
    /// Operations are slower or rarer than in control trials.
    const SLOW: Self = Self(1 << 1);
    /// Memory runs out.
    const MEMORY: Self = Self(1 << 2);
    /// Everything else that is found.
    const OTHER: Self = Self(1 << 3);
    /// The trial was lost after the patch had been applied.
    const LOST: Self = Self(1 << 4);
    /// The first kind of resource that is not given back; the others follow.
    const LEAK: u32 = 5;

    /// All ways to fail.
    pub(crate) fn all() -> impl ExactSizeIterator<Item = Self> {
        let count = Self::LEAK as usize + compare::RESOURCE_NAMES.len();
        (0..count).map(|bit| Self(1 << bit))
    }

    fn of(finding: &Finding) -> Self {
        use FarmKind as F;
        use klpfarm_kmsg::Kind as K;
        match finding.kind {
            FindingKind::Farm(
                F::ThreadStalled
                | F::HangConfirmed
                | F::TaskBlocked
                | F::SshDead
                | F::ProbeSilent
                | F::ConsoleSilent,
            )
            | FindingKind::Kernel(K::HungTask | K::SoftLockup | K::RcuStall | K::WorkqueueLockup) => {
                Self::HANG
            }
            FindingKind::Farm(F::RateCollapsed | F::LatencyGrown | F::TailGrown | F::ThreadStarved) => {
                Self::SLOW
            }
            FindingKind::Farm(F::ResourcesLeaked) => {
                let which = compare::RESOURCE_NAMES.iter().position(|name| finding.title.starts_with(name));
                Self(1 << (Self::LEAK + which.unwrap_or(0) as u32))
            }
            FindingKind::Kernel(K::Oom | K::PageAllocation) => Self::MEMORY,
            FindingKind::Farm(_) | FindingKind::Kernel(_) => Self::OTHER,
        }
    }
}

/// Invalid patched trials with a finding, beyond the control arm's share, that are taken for chance.
const BY_CHANCE: usize = 3;

/// The outcomes of all trials that have begun.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    /// Mark and ways to fail, by number; absent of those that have not begun.
    trials: Vec<Option<(Mark, u16)>>,
    /// Defects that control trials have.
    control: Defects,
    /// Control trials that say something.
    controls: u32,
}

impl Outcomes {
    /// Outcomes of the trials of a plan. `differences` are findings that only the comparison of trials shows.
    pub(crate) fn of(plan: &Plan, record: &Record, differences: &[Seen]) -> Self {
        let mut all = Self::default();
        let mut differ: BTreeMap<u32, Vec<&Finding>> = BTreeMap::new();
        for seen in differences {
            differ.entry(seen.scope.trial).or_default().push(&seen.finding);
        }
        let none = Vec::new();
        let begun = |patched: bool| {
            let of_arm = move |t: &&Trial| t.arm.patched() == patched;
            plan.trials.iter().filter(of_arm).filter_map(|t| Some((t, record.trials.get(&t.number)?)))
        };
        for (trial, own) in begun(false) {
            let differ = differ.get(&trial.number).unwrap_or(&none);
            let mark = own.control_mark(!differ.is_empty());
            if mark.counts() {
                all.controls += 1;
            }
            if mark == Mark::Failed {
                own.exposed_findings().for_each(|s| all.control.add(&s.finding));
                differ.iter().for_each(|f| all.control.add(f));
            }
            all.put(trial, mark, own, differ);
        }
        for (trial, own) in begun(true) {
            let differ = differ.get(&trial.number).unwrap_or(&none);
            let mark = all.patched_mark(plan, trial, own, !differ.is_empty());
            all.put(trial, mark, own, differ);
        }
        all.count_invalid_ones_that_outnumber(plan, record);
        all
    }

    /// The outcome of a trial; one that has not begun is open.
    pub(crate) fn mark(&self, trial: u32) -> Mark {
        self.of_trial(trial).map_or(Mark::Open, |(mark, _)| mark)
    }

    /// Whether anything is known of a trial.
    pub(crate) fn has_begun(&self, trial: u32) -> bool {
        self.of_trial(trial).is_some()
    }

    /// Whether a trial failed in this way.
    pub(crate) fn failed_by(&self, trial: u32, class: Class) -> bool {
        self.of_trial(trial).is_some_and(|(mark, classes)| mark.is_failure() && classes & class.0 != 0)
    }

    fn of_trial(&self, trial: u32) -> Option<(Mark, u16)> {
        self.trials.get(trial as usize).copied().flatten()
    }

    /// Whether there is a control trial to compare with.
    pub(crate) fn has_control(&self) -> bool {
        self.controls > 0
    }

    /// Whether a control trial has the same defect.
    pub(crate) fn control_has(&self, finding: &Finding) -> bool {
        self.control.has(finding)
    }

    fn put(&mut self, trial: &Trial, mark: Mark, own: &TrialRecord, differ: &[&Finding]) {
        let found = own.exposed_findings().map(|s| &s.finding).chain(differ.iter().copied());
        let mut classes = found.fold(0, |all, f| all | Class::of(f).0);
        if mark.is_failure() && classes == 0 {
            classes = Class::LOST.0;
        }
        let at = trial.number as usize;
        if self.trials.len() <= at {
            self.trials.resize(at + 1, None);
        }
        self.trials[at] = Some((mark, classes));
    }

    fn patched_mark(&self, plan: &Plan, trial: &Trial, own: &TrialRecord, differs: bool) -> Mark {
        let failed = || {
            let proof = own.exposed_findings().any(|s| self.proves(own, &s.finding));
            if proof { Mark::Failed } else { Mark::Unexplained }
        };
        let found = own.exposed_findings().next().is_some();
        match &own.end {
            None => Mark::Open,
            // The host can have done nothing that explains what stands in the patch's own code, or what the kernel calls broken.
            Some(TrialEnd::Void { .. }) if own.has_more_than_slowness() => failed(),
            Some(TrialEnd::Void { .. }) => Mark::Void,
            _ if !own.exposed => match own.end {
                Some(TrialEnd::Unneeded | TrialEnd::OutOfBudget | TrialEnd::Interrupted) => Mark::Cut,
                // It went through all phases, or so it says, and applied nothing.
                Some(TrialEnd::Completed) => Mark::Unexplained,
                _ => Mark::Void,
            },
            _ if found => failed(),
            Some(TrialEnd::Unneeded | TrialEnd::OutOfBudget | TrialEnd::Interrupted) => Mark::Cut,
            // What stopped it was there before the patch, and was noticed later.
            Some(TrialEnd::Stopped) if !own.findings.is_empty() => Mark::Void,
            Some(TrialEnd::FarmError { .. } | TrialEnd::Stopped) => Mark::Unexplained,
            Some(TrialEnd::Completed) if differs || !own.was_in_force(plan.names(trial)) => Mark::Unexplained,
            Some(TrialEnd::Completed) => Mark::Clean,
        }
    }

    /// Whether a finding of a patched trial proves that it is the patch: without the patch it cannot happen, or the kernel or the load is sure
    /// of it and no control trial has it.
    pub(crate) fn proves(&self, own: &TrialRecord, finding: &Finding) -> bool {
        if only_a_patch_can(finding.kind) {
            return true;
        }
        let sure = !finding.kind.is_soft() && !own.excuses(finding);
        sure && self.has_control() && (finding.in_patch || !self.control_has(finding))
    }

    /// Invalid trials that had found something: if patched ones are more frequent than control ones, it was not the host alone. Some beyond
    /// the control arm's share are taken for chance: an overloaded host spoils the first trials, until fewer machines run at once.
    fn count_invalid_ones_that_outnumber(&mut self, plan: &Plan, record: &Record) {
        let found = |t: &Trial| {
            let own = record.trials.get(&t.number);
            self.mark(t.number) == Mark::Void && own.is_some_and(|o| o.exposed_findings().next().is_some())
        };
        let begun = |patched: bool| {
            plan.trials
                .iter()
                .filter(move |t| t.arm.patched() == patched)
                .filter(|t| self.has_begun(t.number))
        };
        let invalid: Vec<u32> = begun(true).filter(|t| found(t)).map(|t| t.number).collect();
        let controls = begun(false).count();
        let expected = begun(false).filter(|t| found(t)).count() * begun(true).count() / controls.max(1);
        if invalid.len() > expected + BY_CHANCE {
            for number in invalid {
                if let Some((mark, _)) = &mut self.trials[number as usize] {
                    *mark = Mark::Unexplained;
                }
            }
        }
    }
}

impl TrialRecord {
    /// Findings made with the patch applied; in the control arm, in the same part of the trial.
    pub(crate) fn exposed_findings(&self) -> impl Iterator<Item = &Seen> {
        self.findings.iter().filter(|s| !before_apply(s.scope.phase))
    }

    fn control_mark(&self, differs: bool) -> Mark {
        let found = self.exposed_findings().next().is_some();
        let sure = self.exposed_findings().any(|s| !s.finding.kind.is_soft());
        match &self.end {
            None => Mark::Open,
            Some(TrialEnd::Void { .. }) if !sure => Mark::Void,
            _ if found => Mark::Failed,
            Some(TrialEnd::Unneeded | TrialEnd::OutOfBudget | TrialEnd::Interrupted) => Mark::Cut,
            // Something was found before the part that is compared.
            Some(_) if !self.findings.is_empty() => Mark::Void,
            Some(TrialEnd::Completed) if differs => Mark::Failed,
            Some(TrialEnd::Completed) => Mark::Clean,
            Some(_) if self.exposed => Mark::Failed,
            Some(_) => Mark::Void,
        }
    }

    /// Whether anything was found that no lack of time explains: all but soft findings, and those in the patch's own code whose tasks did not
    /// make progress again.
    fn has_more_than_slowness(&self) -> bool {
        self.exposed_findings().map(|s| &s.finding).any(|f| {
            !f.kind.is_soft() && !self.excuses(f) || f.in_patch && !self.stalls_ended.contains(&f.title)
        })
    }

    /// Whether another finding of the trial explains this one: a process that was killed because memory had run out.
    fn excuses(&self, finding: &Finding) -> bool {
        finding.kind == FarmKind::WorkloadDied.into()
            && self.exposed_findings().any(|s| Class::of(&s.finding) == Class::MEMORY)
    }

    /// Whether the journal says of each patch that it was applied and that all tasks switched to it.
    pub(crate) fn was_in_force<'a>(&self, mut patches: impl Iterator<Item = &'a str>) -> bool {
        let mut count = 0;
        let applied = patches.all(|name| {
            count += 1;
            self.applied.contains(name)
        });
        applied && self.transitions >= count
    }
}

pub(crate) fn before_apply(phase: Phase) -> bool {
    matches!(phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline)
}

/// Whether a trial in this phase runs with its patch, or, of the control arm, in the part that is compared with that.
pub(crate) fn exposes(arm: Arm, phase: Phase) -> bool {
    match phase {
        Phase::Apply | Phase::Transition => arm.patched(),
        Phase::Soak | Phase::Reach | Phase::Revert => true,
        Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline | Phase::End => false,
    }
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
                | FarmKind::HangConfirmed
        ),
        FindingKind::Kernel(kind) => kind == klpfarm_kmsg::Kind::LivepatchFailure,
    }
}

/// What makes two findings the same defect: kind and title, or of soft kinds, whose titles say where a starved machine happened to wait,
/// kind and workload. What leaks is in the title: a control machine whose page cache grew must not excuse one whose slab does.
fn defect(finding: &Finding) -> (FindingKind, &str) {
    let leak = finding.kind == FarmKind::ResourcesLeaked.into();
    if finding.kind.is_soft() && !leak {
        (finding.kind, finding.workload.as_deref().unwrap_or_default())
    } else {
        (finding.kind, &finding.title)
    }
}

/// Whether two findings are the same defect.
pub(crate) fn same_defect(a: &Finding, b: &Finding) -> bool {
    defect(a) == defect(b)
}

/// A set of defects.
#[derive(Debug, Default)]
struct Defects(HashSet<(FindingKind, String)>);

impl Defects {
    fn add(&mut self, finding: &Finding) {
        let (kind, what) = defect(finding);
        self.0.insert((kind, what.to_owned()));
    }

    fn has(&self, finding: &Finding) -> bool {
        let (kind, what) = defect(finding);
        self.0.contains(&(kind, what.to_owned()))
    }
}

/// Names of patches that a journal says were applied, by trial.
pub(crate) type Applied = BTreeSet<String>;
