//! Run folders as a farm leaves them, made up. Also used by the tests of the command line.
// Not every test needs all of it, and a module of tests has no users outside.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use klpfarm_model::event::{Measured, WorkloadMeasure};
use klpfarm_model::{
    Accel, Arm, Body, Event, Finding, FindingKind, ImageFacts, Mode, ObservedKind, Patch, Phase, Pipeline,
    Plan, Resolved, Scope, Source, TierRule, TrialEnd, Turn,
};
use klpfarm_report::Run;

/// A run as it is told.
#[derive(Clone)]
pub struct Story {
    pub plan: Plan,
    pub events: Vec<Event>,
}

/// A trial by its arm and its place among the trials of that arm, from 0.
pub type Place = (Arm, usize);

pub fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("klpfarm-test-").tempdir().unwrap()
}

impl Story {
    /// A run of one patch on an image that began at `time`.
    pub fn new(patch: &str, image: &str, time: &str) -> Self {
        Self::planned(patch, &[image], time, "")
    }

    /// A run of eight hours that goes round several images.
    pub fn soak(patch: &str, images: &[&str], time: &str) -> Self {
        Self::planned(patch, images, time, &format!("rotation: {{duration: 8h, images: {images:?}}}\n"))
    }

    fn planned(patch: &str, images: &[&str], time: &str, more: &str) -> Self {
        let text = format!("name: gate\nimage: {}\nworkloads: [w]\n{more}", images[0]);
        let facts =
            |image: &str| ImageFacts { name: image.into(), hash: "0".into(), release: Some("6.1".into()) };
        let turn = |image: &&str| Turn {
            image: facts(image),
            load: "all".into(),
            workloads: Vec::new(),
            patches: vec![0],
            checkpoint: None,
        };
        let mode =
            if more.is_empty() { Mode::Single } else { Mode::Rotation(images.iter().map(turn).collect()) };
        let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text).unwrap();
        let rule = TierRule::new(0.5, 0.6, Duration::from_secs(30), vec![Arm::Loaded, Arm::Control]);
        let resolved = Resolved {
            patches: vec![Patch { name: patch.into(), vermagic: "6.1 SMP".into(), ..Patch::default() }],
            jobs: 2,
            mode,
            ..Resolved::new(facts(images[0]), rule)
        };
        let plan = Plan::new(&pipeline, resolved).unwrap();
        let body = Body::RunStarted {
            time: time.into(),
            plan: plan.hash(),
            accel: Accel::Tcg,
            qemu: "QEMU emulator version 10.0.2".into(),
        };
        Self { plan, events: Vec::new() }.run(body)
    }

    fn run(mut self, body: Body) -> Self {
        self.push(None, body, 1000);
        self
    }

    /// An event so many milliseconds after the one before it.
    fn push(&mut self, scope: Option<Scope>, body: Body, later_ms: u64) {
        let at_ms = self.events.last().map_or(0, |e| e.at_ms) + later_ms;
        self.events.push(Event { seq: self.events.len() as u64 + 1, at_ms, scope, body });
    }

    pub fn add(mut self, (arm, nth): Place, phase: Phase, body: Body) -> Self {
        // A rotation's rounds have no end.
        let ours = |n: &u32| self.plan.trial(*n).is_some_and(|t| t.arm == arm);
        let trial = (1..1000).filter(ours).nth(nth).unwrap();
        self.push(Some(Scope { trial, arm, phase }), body, 1000);
        self
    }

    /// In a patched trial, its patches are applied and come into force at once.
    fn in_force(mut self, (arm, nth): Place) -> Self {
        let ours = |n: &u32| self.plan.trial(*n).is_some_and(|t| t.arm == arm);
        let trial = (1..1000).filter(ours).nth(nth).and_then(|n| self.plan.trial(n)).unwrap().into_owned();
        let names: Vec<String> = self.plan.names(&trial).map(str::to_owned).collect();
        let scope = |phase| Some(Scope { trial: trial.number, arm, phase });
        for patch in names {
            let (functions, inside) = (Vec::new(), BTreeMap::new());
            self.push(scope(Phase::Apply), Body::Applied { patch, took_ms: 1, functions, inside }, 0);
            let done = Body::TransitionDone { took_ms: 1, per_task: true };
            self.push(scope(Phase::Transition), done, 0);
        }
        self
    }

    pub fn begin(self, place: Place) -> Self {
        self.add(place, Phase::Boot, Body::TrialStarted)
    }

    pub fn end(self, place: Place) -> Self {
        self.add(place, Phase::End, Body::TrialEnded { end: TrialEnd::Completed })
    }

    pub fn clean(self, place: Place) -> Self {
        self.begin(place).in_force(place).end(place)
    }

    pub fn finds(self, place: Place, kind: impl Into<FindingKind>, title: &str) -> Self {
        let finding = Finding {
            kind: kind.into(),
            title: title.into(),
            source: Source::Probe,
            function: None,
            workload: None,
            after_apply_ms: (place.0 != Arm::Control).then_some(1200),
            line: None,
            in_patch: false,
            corrupted: false,
            evidence: "as seen".into(),
        };
        self.add(place, Phase::Soak, Body::Finding(Box::new(finding)))
    }

    /// A trial that does nothing but find something.
    pub fn failed(self, place: Place, title: &str) -> Self {
        self.begin(place).in_force(place).finds(place, ObservedKind::WrongContent, title).end(place)
    }

    /// A control trial's soak of ten seconds, in which the workload `w` does so many operations.
    pub fn measured(self, place: Place, ops: u64) -> Self {
        let workloads =
            BTreeMap::from([("w".to_owned(), WorkloadMeasure { ops, ..WorkloadMeasure::default() })]);
        let measured = Measured { window_ms: 10_000, workloads, resources: Vec::new() };
        self.begin(place).add(place, Phase::Soak, Body::Measured(measured)).end(place)
    }

    /// The run was cut off, and goes on at `time` without what the first loaded trial left.
    pub fn resumed(self, time: &str) -> Self {
        let void = vec![self.plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().number];
        self.run(Body::RunResumed { time: time.into(), qemu: String::new(), void })
    }

    pub fn ended(self) -> Self {
        self.run(Body::RunEnded { interrupted: false })
    }

    /// As many events as there are now, and what follows them.
    pub fn journal(&self) -> String {
        self.events.iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect()
    }

    /// Write the run's folder, or write its journal again.
    pub fn write(&self, dir: &Path) -> PathBuf {
        if !dir.join("plan.json").exists() {
            drop(Run::create(dir, &self.plan, &[]).unwrap());
        }
        std::fs::write(dir.join("journal.jsonl"), self.journal()).unwrap();
        dir.to_owned()
    }
}

pub const L0: Place = (Arm::Loaded, 0);
pub const L1: Place = (Arm::Loaded, 1);
pub const C0: Place = (Arm::Control, 0);
pub const C1: Place = (Arm::Control, 1);

/// A run that rejects its patch: one loaded trial holds something wrong, the others are clean.
pub fn faulty(patch: &str, time: &str, title: &str) -> Story {
    Story::new(patch, "debian-12", time).clean(C0).failed(L0, title).clean(C1).clean(L1).ended()
}

/// A run without a finding; too short to qualify.
pub fn quiet(patch: &str, time: &str) -> Story {
    Story::new(patch, "debian-12", time).measured(C0, 1000).clean(L0).measured(C1, 3000).ended()
}
