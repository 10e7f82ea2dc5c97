//! Journals made up as runs write them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::super::{checkpoints, consistency};
use crate::event::{Body, CheckpointFacts, Scope, TrialEnd, Vitals};
use crate::{
    Accel, Arm, Event, Finding, ImageFacts, Mode, ObservedKind, Patch, Phase, Pipeline, Plan, Resolved,
    Source, Start, TierRule, Turn,
};

/// What a plan of these tests is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    One,
    Stacked,
    Booted,
    Round,
}

pub(super) fn plan(kind: Kind) -> Plan {
    let rotation = if kind == Kind::Round { "rotation: {duration: 8h, images: [a, b]}\n" } else { "" };
    let text = format!("name: gate\nimage: a\nworkloads: [w]\n{rotation}");
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text).unwrap();
    let image = |name: &str| ImageFacts {
        name: name.into(),
        hash: name.into(),
        release: Some(if kind == Kind::Round { format!("6.1-{name}") } else { "6.1".into() }),
    };
    let patch = |name: &str, release: &str| Patch {
        name: name.into(),
        vermagic: format!("{release} SMP"),
        ..Patch::default()
    };
    let turn = |name: &str| Turn {
        image: image(name),
        load: "all".into(),
        workloads: Vec::new(),
        patches: Vec::new(),
        checkpoint: None,
    };
    let rule = TierRule::new(0.5, 0.6, Duration::from_secs(30), vec![Arm::Loaded, Arm::Control]);
    let with = Resolved {
        patches: match kind {
            Kind::One | Kind::Booted => vec![patch("x", "6.1")],
            Kind::Stacked => vec![patch("x", "6.1"), patch("y", "6.1")],
            Kind::Round => vec![patch("x", "6.1-a"), patch("y", "6.1-b")],
        },
        mode: if kind == Kind::Round { Mode::Rotation(vec![turn("a"), turn("b")]) } else { Mode::Single },
        start: if kind == Kind::Booted { Start::Boot } else { Start::Fork },
        ..Resolved::new(image("a"), rule)
    };
    let mut plan = Plan::new(&pipeline, with).unwrap();
    if plan.start == Start::Fork {
        plan.checkpoint = Some("a-1".into());
    }
    plan.mode
        .turns_mut()
        .iter_mut()
        .zip(["a-1", "b-1"])
        .for_each(|(turn, id)| turn.checkpoint = Some(id.into()));
    plan
}

/// A run as it is written down.
#[derive(Debug, Clone)]
pub(super) struct Story {
    pub(super) plan: Plan,
    pub(super) events: Vec<Event>,
}

impl Story {
    pub(super) fn new(kind: Kind) -> Self {
        let plan = plan(kind);
        let hash = plan.hash();
        let ids: BTreeSet<String> = checkpoints(&plan).map(str::to_owned).collect();
        let mut story = Self { plan, events: Vec::new() };
        story.add(
            None,
            Body::RunStarted { time: String::new(), plan: hash, accel: Accel::Tcg, qemu: String::new() },
        );
        for id in ids {
            let vitals = Vitals::default;
            let facts = CheckpointFacts {
                id,
                size: 1,
                made_ms: None,
                fresh: vitals(),
                reached: vitals(),
                blind: BTreeMap::new(),
                unavailable: BTreeMap::new(),
            };
            story.add(None, Body::Checkpoint(Box::new(facts)));
        }
        story
    }

    pub(super) fn add(&mut self, scope: Option<Scope>, body: Body) {
        let seq = self.events.len() as u64 + 1;
        self.events.push(Event { seq, at_ms: seq * 10, scope, body });
    }

    /// A trial's whole life, up to `steps` events before the machine ends.
    pub(super) fn trial(&mut self, number: u32, steps: usize, end: &TrialEnd) {
        let life = life(&self.plan, number);
        for (scope, body) in life.into_iter().take(steps.max(1)) {
            self.add(Some(scope), body);
        }
        self.close(number, end);
    }

    pub(super) fn close(&mut self, number: u32, end: &TrialEnd) {
        let arm = self.plan.trial(number).unwrap().arm;
        let scope = Some(Scope { trial: number, arm, phase: Phase::End });
        self.add(scope, Body::PhaseStarted);
        self.add(scope, Body::Note { text: "slow".into() });
        self.add(scope, Body::CpuShare { share: 0.9 });
        self.add(scope, Body::TrialEnded { end: end.clone() });
    }

    pub(super) fn ended(mut self) -> Self {
        self.add(None, Body::RunEnded { interrupted: false });
        self
    }

    pub(super) fn complaints(&self) -> Vec<String> {
        consistency(&self.plan, &self.events)
    }

    /// The first event that fits, to be changed.
    pub(super) fn edit(&mut self, which: impl Fn(&Event) -> bool) -> &mut Event {
        self.events.iter_mut().find(|e| which(e)).unwrap()
    }

    pub(super) fn number(&self, arm: Arm) -> u32 {
        self.plan.trials.iter().find(|t| t.arm == arm).unwrap().number
    }
}

pub(super) fn finding(source: Source, after_apply_ms: Option<u64>) -> Body {
    Body::Finding(Box::new(Finding {
        kind: ObservedKind::WrongErrno.into(),
        title: "wrong".into(),
        source,
        function: None,
        workload: None,
        after_apply_ms,
        line: None,
        in_patch: false,
        corrupted: false,
        evidence: String::new(),
    }))
}

/// What a trial's machine does until it ends.
pub(super) fn life(plan: &Plan, number: u32) -> Vec<(Scope, Body)> {
    let trial = plan.trial(number).unwrap();
    let mut all = Vec::new();
    let at = |phase: Phase| Scope { trial: number, arm: trial.arm, phase };
    let ready = Body::MachineReady { release: "6.1".into(), ssh_ms: None, fork_ms: Some(1), taint: 0 };
    all.extend([(at(Phase::Boot), Body::TrialStarted), (at(Phase::Boot), ready)]);
    for phase in [Phase::Settle, Phase::Baseline] {
        all.extend([(at(phase), Body::PhaseStarted), (at(phase), Body::Note { text: "as usual".into() })]);
    }
    for _ in 0..if trial.arm == Arm::Reapply { 2 } else { 1 } {
        for name in plan.names(&trial).map(str::to_owned) {
            let took_ms = 1;
            let applied =
                Body::Applied { patch: name, took_ms, functions: Vec::new(), inside: BTreeMap::new() };
            all.extend([(at(Phase::Apply), Body::PhaseStarted), (at(Phase::Transition), Body::PhaseStarted)]);
            all.extend([
                (at(Phase::Transition), applied),
                (at(Phase::Transition), Body::TransitionDone { took_ms, per_task: true }),
            ]);
        }
        let progress = Body::Progress { rates: BTreeMap::new(), ssh_ms: None };
        all.extend([(at(Phase::Soak), Body::PhaseStarted), (at(Phase::Soak), progress)]);
        let reach = Body::Reach { function: "f".into(), calls: 1, window_ms: 1, new_code: None };
        all.extend([(at(Phase::Reach), Body::PhaseStarted), (at(Phase::Reach), reach)]);
        if trial.arm.patched() {
            all.push((at(Phase::Revert), Body::PhaseStarted));
        }
        for name in plan.names(&trial).map(str::to_owned) {
            all.push((at(Phase::Revert), Body::Reverted { patch: name, unloaded: true }));
        }
    }
    all
}
