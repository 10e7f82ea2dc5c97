//! What each trial says: clean, failed, unexplained, or nothing.
//!
//! Every trial in which a patch was applied counts. Only what the patch can have had no part in takes a trial out: it was never applied, or
//! the host disturbed the machine.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::record::{Seen, TrialRecord, before_apply};
use crate::compare::resources;
use crate::event::TrialEnd;
use crate::{Arm, Failure, Finding, FindingKind};

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

    /// How many there are.
    pub(crate) const COUNT: usize = Self::LEAK as usize + resources::NAMES.len();

    fn of(finding: &Finding) -> Self {
        match finding.kind.rules().failure {
            Failure::Hang => Self::HANG,
            Failure::Slow => Self::SLOW,
            Failure::Leak => {
                let which = resources::NAMES.iter().position(|name| finding.title.starts_with(name));
                Self(1 << (Self::LEAK + which.unwrap_or(0) as u32))
            }
            Failure::Memory => Self::MEMORY,
            Failure::Other => Self::OTHER,
        }
    }
}

/// Invalid patched trials with a finding, beyond the control arm's share, that are taken for chance.
const BY_CHANCE: usize = 3;

/// What a trial says, and the ways in which it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) mark: Mark,
    /// One bit for each [`Class`].
    classes: u16,
}

impl Said {
    /// Ways in which the trial failed, one bit each, the highest one for a failure of any kind; none if it did not fail.
    pub(crate) fn failures(self) -> u16 {
        if self.mark.is_failure() { self.classes | 1 << Class::COUNT } else { 0 }
    }
}

/// The outcomes of all trials that have begun.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    trials: HashMap<u32, One>,
    /// Defects that control trials have, and in how many.
    control: HashMap<Defect, u32>,
    /// Control trials that say something.
    controls: u32,
    /// Patched trials that had found something of which a control trial may say more.
    suspects: BTreeSet<u32>,
    /// Trials that have begun: control ones and patched ones.
    begun: [usize; 2],
    /// Invalid trials that had found something: control ones and patched ones.
    invalid: [BTreeSet<u32>; 2],
    /// So many patched ones that it was not the host alone.
    outnumber: bool,
}

/// The outcome of one trial.
#[derive(Debug)]
struct One {
    patched: bool,
    /// By itself.
    own: Said,
    /// With what the invalid trials say all together.
    said: Said,
    /// Defects that it has in the control arm.
    defects: Vec<Defect>,
}

impl Outcomes {
    /// Take what is known of a trial; `differences` are findings that only the comparison of trials shows. Whether other trials have to be
    /// looked at again, because control trials have other defects now.
    pub(crate) fn put(
        &mut self,
        number: u32,
        arm: Arm,
        patches: &[&str],
        own: Option<&TrialRecord>,
        differences: &[Seen],
    ) -> bool {
        let before = self.trials.get(&number).map(|one| &one.defects[..]).unwrap_or_default();
        let (had_control, before) = (self.has_control(), sure(before));
        self.forget(number);
        let Some(own) = own else { return had_control != self.has_control() || !before.is_empty() };
        let differ: Vec<&Finding> = differences.iter().map(|s| &s.finding).collect();
        let patched = arm.patched();
        let mark = if patched {
            self.patched_mark(patches, own, !differ.is_empty())
        } else {
            own.control_mark(!differ.is_empty())
        };
        let found = own.exposed_findings().next().is_some();
        let mut defects = Vec::new();
        if !patched {
            self.controls += u32::from(mark.counts());
            if mark == Mark::Failed {
                let all = own.exposed_findings().map(|s| &s.finding).chain(differ.iter().copied());
                defects = all.map(Defect::of).collect();
                defects.iter().for_each(|d| *self.control.entry(d.clone()).or_default() += 1);
            }
        } else if own.exposed_findings().any(|s| !s.finding.kind.is_soft()) {
            self.suspects.insert(number);
        }
        self.begun[usize::from(patched)] += 1;
        if mark == Mark::Void && found {
            self.invalid[usize::from(patched)].insert(number);
        }
        let said = Said { mark, classes: classes(mark, own, &differ) };
        let changed = had_control != self.has_control() || before != sure(&defects);
        self.trials.insert(number, One { patched, own: said, said, defects });
        changed
    }

    fn forget(&mut self, number: u32) {
        let Some(One { patched, own, defects, .. }) = self.trials.remove(&number) else { return };
        self.begun[usize::from(patched)] -= 1;
        self.invalid[usize::from(patched)].remove(&number);
        self.suspects.remove(&number);
        if !patched {
            self.controls -= u32::from(own.mark.counts());
        }
        for defect in defects {
            if let Some(count) = self.control.get_mut(&defect) {
                *count -= 1;
                if *count == 0 {
                    self.control.remove(&defect);
                }
            }
        }
    }

    /// Trials that have to be looked at again when control trials have other defects.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = u32> {
        self.suspects.iter().copied()
    }

    /// Invalid trials that had found something: if patched ones are more frequent than control ones, it was not the host alone. Some beyond
    /// the control arm's share are taken for chance: an overloaded host spoils the first trials, until fewer machines run at once. The
    /// trials of which that says something else now.
    pub(crate) fn settle(&mut self) -> Vec<u32> {
        let [controls, patched] = &self.invalid;
        let expected = controls.len() * self.begun[1] / self.begun[0].max(1);
        let outnumber = patched.len() > expected + BY_CHANCE;
        if !outnumber && !self.outnumber {
            return Vec::new();
        }
        self.outnumber = outnumber;
        let mark = if outnumber { Mark::Unexplained } else { Mark::Void };
        let trials = &mut self.trials;
        let say = |number: &u32| {
            let one = trials.get_mut(number)?;
            (std::mem::replace(&mut one.said.mark, mark) != mark).then_some(*number)
        };
        patched.iter().filter_map(say).collect()
    }

    /// What a trial says; none if it has not begun.
    pub(crate) fn said(&self, trial: u32) -> Option<Said> {
        self.trials.get(&trial).map(|one| one.said)
    }

    /// The outcome of a trial; one that has not begun is open.
    pub(crate) fn mark(&self, trial: u32) -> Mark {
        self.said(trial).map_or(Mark::Open, |said| said.mark)
    }

    /// Whether there is a control trial to compare with.
    pub(crate) fn has_control(&self) -> bool {
        self.controls > 0
    }

    /// Whether a control trial has the same defect.
    pub(crate) fn control_has(&self, finding: &Finding) -> bool {
        !self.control.is_empty() && self.control.contains_key(&Defect::of(finding))
    }

    fn patched_mark(&self, patches: &[&str], own: &TrialRecord, differs: bool) -> Mark {
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
            Some(TrialEnd::Completed) if differs || !own.was_in_force(patches) => Mark::Unexplained,
            Some(TrialEnd::Completed) => Mark::Clean,
        }
    }

    /// Whether a finding of a patched trial proves that it is the patch: without the patch it cannot happen, or the kernel or the load is sure
    /// of it and no control trial has it.
    pub(crate) fn proves(&self, own: &TrialRecord, finding: &Finding) -> bool {
        if finding.kind.rules().only_by_a_patch {
            return true;
        }
        let sure = !finding.kind.is_soft() && !own.excuses(finding);
        sure && self.has_control() && (finding.in_patch || !self.control_has(finding))
    }
}

fn classes(mark: Mark, own: &TrialRecord, differ: &[&Finding]) -> u16 {
    let found = own.exposed_findings().map(|s| &s.finding).chain(differ.iter().copied());
    let classes = found.fold(0, |all, f| all | Class::of(f).0);
    if mark.is_failure() && classes == 0 { Class::LOST.0 } else { classes }
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
        finding.kind.rules().explained_by_oom
            && self.exposed_findings().any(|s| Class::of(&s.finding) == Class::MEMORY)
    }

    /// Whether the journal says of each patch that it was applied and that all tasks switched to it.
    pub(crate) fn was_in_force(&self, patches: &[&str]) -> bool {
        let applied = patches.iter().all(|name| self.applied.iter().any(|a| **a == **name));
        applied && self.transitions >= patches.len()
    }
}

/// What makes two findings the same defect: kind and title, or of soft kinds, whose titles say where a starved machine happened to wait,
/// kind and workload. What leaks is in the title: a control machine whose page cache grew must not excuse one whose slab does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Defect {
    soft: bool,
    kind: FindingKind,
    what: String,
}

impl Defect {
    pub(crate) fn of(finding: &Finding) -> Self {
        let (kind, what) = defect(finding);
        Self { soft: kind.is_soft(), kind, what: what.to_owned() }
    }
}

/// The defects of a trial, each once, that no lack of time explains.
fn sure(defects: &[Defect]) -> HashSet<Defect> {
    defects.iter().filter(|d| !d.soft).cloned().collect()
}

fn defect(finding: &Finding) -> (FindingKind, &str) {
    if finding.kind.rules().told_by_title {
        (finding.kind, &finding.title)
    } else {
        (finding.kind, finding.workload.as_deref().unwrap_or_default())
    }
}
