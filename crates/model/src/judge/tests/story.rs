//! Journals made up step by step, for runs of a plan of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::ImageFacts;
use crate::event::Scope;
use crate::judge::*;
use crate::plan::Resolved;
use crate::verdict::Cause;
use crate::{Finding, FindingKind, ObservedKind, Patch, Phase, Pipeline, Source, TierRule, TrialEnd};

pub(super) fn rule() -> TierRule {
    TierRule::new(
        0.2,
        0.95,
        Duration::from_secs(30),
        vec![Arm::Loaded, Arm::Quiescent, Arm::Control, Arm::Reapply],
    )
}

pub(super) fn resolved(patches: &[&str]) -> Resolved {
    let patch = |name: &&str| Patch { name: (*name).into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
    Resolved {
        patches: patches.iter().map(patch).collect(),
        jobs: 3,
        ..Resolved::new(
            ImageFacts { name: "debian-12".into(), hash: String::new(), release: Some("6.1".into()) },
            rule(),
        )
    }
}

pub(super) fn try_plan(more: &str, with: Resolved) -> Result<Plan, String> {
    let text = format!("name: gate\nimage: debian-12\nworkloads: [w]\n{more}");
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text).unwrap();
    Plan::new(&pipeline, with).map_err(|e| e.to_string())
}

/// 14 loaded trials are needed without a failure; 4 control, 3 quiescent, 2 reapply; two of each take the place of invalid ones, and after a
/// failure trials run in pairs.
pub(super) fn plan() -> Plan {
    try_plan("", resolved(&["x"])).unwrap()
}

/// A trial by its arm and its place among the trials of that arm, from 0.
pub(super) type Place = (Arm, usize);
pub(super) const L0: Place = (Arm::Loaded, 0);
pub(super) const L1: Place = (Arm::Loaded, 1);
pub(super) const C0: Place = (Arm::Control, 0);
pub(super) const Q0: Place = (Arm::Quiescent, 0);

/// Builds a journal.
pub(super) struct Story {
    pub(super) plan: Plan,
    pub(super) events: Vec<Event>,
}

impl Default for Story {
    fn default() -> Self {
        Self { plan: plan(), events: Vec::new() }
    }
}

impl Story {
    pub(super) fn number(&self, (arm, nth): Place) -> u32 {
        self.plan.trials.iter().filter(|t| t.arm == arm).nth(nth).unwrap().number
    }

    pub(super) fn place(&self, number: u32) -> Place {
        let trial = self.plan.trials.iter().find(|t| t.number == number).unwrap();
        let alike = |t: &&Trial| t.arm == trial.arm && t.number < number;
        (trial.arm, self.plan.trials.iter().filter(alike).count())
    }

    pub(super) fn add(mut self, place: Place, phase: Phase, body: Body) -> Self {
        let seq = self.events.len() as u64 + 1;
        let scope = Scope { trial: self.number(place), arm: place.0, phase };
        self.events.push(Event { seq, at_ms: seq * 10, scope: Some(scope), body });
        self
    }

    pub(super) fn finding(self, place: Place, phase: Phase, finding: Finding) -> Self {
        self.add(place, phase, Body::Finding(Box::new(finding)))
    }

    pub(super) fn finds(self, place: Place, phase: Phase, kind: impl Into<FindingKind>, title: &str) -> Self {
        self.finding(place, phase, finding(kind, title))
    }

    /// A patched trial that completed has applied its patches before.
    pub(super) fn end(self, place: Place, end: TrialEnd) -> Self {
        let number = self.number(place);
        let is_applied =
            |e: &Event| e.scope.is_some_and(|s| s.trial == number) && matches!(e.body, Body::Applied { .. });
        let done = end != TrialEnd::Completed || self.events.iter().any(is_applied);
        let story = if done { self } else { self.applied(place) };
        story.add(place, Phase::End, Body::TrialEnded { end })
    }

    /// All patches of a patched trial are applied and in force.
    pub(super) fn applied(self, place: Place) -> Self {
        let number = self.number(place);
        let trial = self.plan.trials.iter().find(|t| t.number == number).unwrap().clone();
        let names: Vec<String> = self.plan.names(&trial).map(str::to_owned).collect();
        let reached = self.events.iter().rev().find_map(|e| match &e.body {
            Body::Reach { function, .. } if function == "do_it" => Some(e.body.clone()),
            _ => None,
        });
        let story = names.into_iter().fold(self, |story, patch| {
            let functions = vec!["vmlinux/do_it".into()];
            let applied = Body::Applied { patch, took_ms: 1, functions, inside: BTreeMap::new() };
            let done = Body::TransitionDone { took_ms: 2, per_task: true };
            story.add(place, Phase::Transition, applied).add(place, Phase::Transition, done)
        });
        reached.into_iter().fold(story, |story, reach| story.add(place, Phase::Reach, reach))
    }

    /// All that have not ended complete their phases; of the loaded ones, as many as are needed.
    pub(super) fn rest_clean(self) -> Self {
        let counts = [(Arm::Loaded, 14), (Arm::Control, 4), (Arm::Quiescent, 3), (Arm::Reapply, 2)];
        let places = counts.into_iter().flat_map(|(arm, n)| (0..n).map(move |k| (arm, k)));
        places.fold(self, |story, place| {
            let number = story.number(place);
            let ended = story.events.iter().any(|e| {
                e.scope.is_some_and(|s| s.trial == number) && matches!(e.body, Body::TrialEnded { .. })
            });
            if ended { story } else { story.end(place, TrialEnd::Completed) }
        })
    }

    /// So many calls a second without the patch, and with it in force in each trial that applies it after this.
    pub(super) fn reach(self, calls: u64) -> Self {
        self.add(
            C0,
            Phase::Reach,
            Body::Reach { function: "do_it".into(), calls, window_ms: 1000, new_code: None },
        )
    }

    /// So many calls a second in this trial.
    pub(super) fn called(self, place: Place, calls: u64) -> Self {
        self.add(
            place,
            Phase::Reach,
            Body::Reach { function: "vmlinux/do_it".into(), calls, window_ms: 1000, new_code: None },
        )
    }

    pub(super) fn judge(&self) -> Verdict {
        judge(&self.plan, &self.events)
    }
}

pub(super) fn finding(kind: impl Into<FindingKind>, title: &str) -> Finding {
    Finding {
        kind: kind.into(),
        title: title.into(),
        source: Source::Console,
        function: None,
        workload: None,
        after_apply_ms: Some(1500),
        line: None,
        in_patch: false,
        corrupted: false,
        evidence: "raw".into(),
    }
}

pub(super) const HANG: ObservedKind = ObservedKind::ThreadStalled;
pub(super) const OOPS: FindingKind = FindingKind::Kernel(klpfarm_kmsg::Kind::NullDeref);

/// A hang in the patch's own code that no slow machine explains.
pub(super) fn own(title: &str) -> Finding {
    Finding { in_patch: true, ..finding(ObservedKind::HangConfirmed, title) }
}

/// A stall in the patch's own code, which a slow machine may explain.
pub(super) fn stall(title: &str) -> Finding {
    Finding { in_patch: true, ..finding(HANG, title) }
}

/// Whether the cause, as `verdict.json` has it, contains all of these.
pub(super) fn says(cause: &Cause, parts: &[&str]) -> bool {
    let text = serde_json::to_string(cause).unwrap();
    parts.iter().all(|part| text.contains(part))
}

/// Whether one of the verdict's causes does.
pub(super) fn one_says(verdict: &Verdict, parts: &[&str]) -> bool {
    verdict.causes.iter().any(|cause| says(cause, parts))
}
