//! Runs made up of the measurements of their trials.

use std::path::Path;
use std::time::Duration;

use crate::ImageFacts;
use crate::compare::change::{Basis, Names};
use crate::compare::*;
use crate::event::{LatencyMeasure, Measured, TrialEnd, WorkloadMeasure};
use crate::plan::Resolved;
use crate::{FindingKind, Patch, Pipeline, TierRule, Trial, Workload};

/// What one workload does in a phase.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// Operations a second.
    pub(super) rate: f64,
    /// 10th percentile and median of each of its operations, in microseconds.
    pub(super) latency: Vec<(f64, f64)>,
    pub(super) asleep: Option<f64>,
    /// 10th percentile of the yardstick, in microseconds, if it is measured.
    pub(super) yardstick: Option<f64>,
}

impl Default for Work {
    fn default() -> Self {
        Self { rate: 200.0, latency: vec![(20.0, 50.0)], asleep: Some(0.02), yardstick: None }
    }
}

impl Work {
    pub(super) fn slower(&self, times: f64) -> Self {
        Self { rate: self.rate / times, ..self.clone() }
    }

    fn measure(&self, seconds: f64) -> WorkloadMeasure {
        let ops = (self.rate * seconds).round() as u64;
        let ns = |us: f64| (us * 1000.0).round() as u64;
        let of = |(p10, p50): (f64, f64), count| LatencyMeasure {
            count,
            p10_ns: ns(p10),
            p50_ns: ns(p50),
            ..LatencyMeasure::default()
        };
        let mut latency: BTreeMap<String, LatencyMeasure> =
            self.latency.iter().zip(0..).map(|(l, k)| (format!("call{k}"), of(*l, ops))).collect();
        latency.extend(self.yardstick.map(|us| ("yardstick".to_owned(), of((us, us), ops.div_ceil(32)))));
        let by_thread = (1..=4).map(|thread| (thread, ops / 4)).collect();
        WorkloadMeasure {
            ops,
            threads: 4,
            asleep: self.asleep,
            by_thread,
            latency,
            ..WorkloadMeasure::default()
        }
    }
}

/// A phase with these workloads, `w0`, `w1` and so on.
pub(super) fn phase(seconds: f64, works: &[Work]) -> Measured {
    let workloads = works.iter().zip(0..).map(|(w, k)| (format!("w{k}"), w.measure(seconds))).collect();
    Measured { window_ms: (seconds * 1000.0) as u64, workloads, resources: Vec::new() }
}

/// What became of a trial.
#[derive(Default)]
pub(super) struct Made {
    pub(super) end: Option<TrialEnd>,
    pub(super) findings: Vec<Seen>,
    pub(super) cpu_share: Option<f64>,
    pub(super) measured: BTreeMap<Phase, Measured>,
}

/// A run with `control` control trials and `loaded` loaded ones of each patch, spread evenly; every trial does as usual.
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) trials: BTreeMap<u32, Made>,
}

impl Run {
    pub(super) fn new(control: u32, loaded: u32, patches: &[&str]) -> Self {
        let patch = |n: &&str| Patch { name: (*n).into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
        let image = ImageFacts { name: "debian-12".into(), hash: String::new(), release: Some("6.1".into()) };
        let rule = TierRule::new(0.2, 0.95, Duration::from_secs(30), vec![Arm::Loaded, Arm::Control]);
        let workload = Workload::parse(Path::new("w0.yaml"), "name: w0\nrun: {builtin: w0}\n").unwrap();
        let with = Resolved {
            workloads: vec![workload],
            patches: patches.iter().map(patch).collect(),
            ..Resolved::new(image, rule)
        };
        let text = "name: gate\nimage: debian-12\nworkloads: [w0]\n";
        let pipeline = Pipeline::parse(Path::new("gate.yaml"), text).unwrap();
        let mut plan = Plan::new(&pipeline, with).unwrap();
        let of = |n: u32, arm: Arm, set: Vec<usize>| {
            (0..n).map(move |k| (f64::from(k) / f64::from(n), arm, set.clone()))
        };
        let mut places: Vec<(f64, Arm, Vec<usize>)> = of(control, Arm::Control, Vec::new()).collect();
        (0..patches.len()).for_each(|p| places.extend(of(loaded, Arm::Loaded, vec![p])));
        places.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let numbered = places.into_iter().zip(1..);
        plan.trials = numbered.map(|((_, arm, set), number)| Trial::new(number, arm, set, 1)).collect();
        let trials = plan.trials.iter().map(|t| (t.number, Made::default())).collect();
        let run = Self { plan, trials };
        run.all(|_, _| (phase(6.0, &[Work::default()]), phase(30.0, &[Work::default()])))
    }

    /// Measurements of each trial, by the trial and its place among those of its arm.
    pub(super) fn all(mut self, mut of: impl FnMut(&Trial, usize) -> (Measured, Measured)) -> Self {
        let mut places: BTreeMap<Arm, usize> = BTreeMap::new();
        for trial in &self.plan.trials {
            let place = places.entry(trial.arm).or_default();
            let (before, after) = of(trial, *place);
            *place += 1;
            let record = self.trials.get_mut(&trial.number).unwrap();
            record.end = Some(TrialEnd::Completed);
            record.measured = BTreeMap::from([(Phase::Baseline, before), (Phase::Soak, after)]);
        }
        self
    }

    /// Change trials of an arm.
    pub(super) fn change(mut self, arm: Arm, mut to: impl FnMut(usize, &mut Made)) -> Self {
        for (k, number) in self.numbers(arm).into_iter().enumerate() {
            to(k, self.trials.get_mut(&number).unwrap());
        }
        self
    }

    pub(super) fn numbers(&self, arm: Arm) -> Vec<u32> {
        self.plan.trials.iter().filter(|t| t.arm == arm).map(|t| t.number).collect()
    }

    fn record(&self, trial: &Trial, names: &mut Names) -> TrialRecord {
        let made = &self.trials[&trial.number];
        let basis =
            &mut Basis { limits: &self.plan.pipeline.limits, names, control: trial.arm == Arm::Control };
        let phases = made.measured.get(&Phase::Baseline).zip(made.measured.get(&Phase::Soak));
        let mut record = TrialRecord::default();
        record.end.clone_from(&made.end);
        record.findings.clone_from(&made.findings);
        record.cpu_share = made.cpu_share;
        record.change = phases.map(|(before, after)| (2, Arc::new(Change::new(before, after, basis))));
        record
    }

    fn compared(&self) -> (Comparison, BTreeMap<u32, TrialRecord>) {
        let mut names = Names::default();
        let records: BTreeMap<u32, TrialRecord> =
            self.plan.trials.iter().map(|t| (t.number, self.record(t, &mut names))).collect();
        let mut all = Comparison::default();
        for trial in &self.plan.trials {
            all.put(trial.number, trial.arm, Some(&records[&trial.number]));
        }
        all.settle(&self.plan);
        (all, records)
    }

    pub(super) fn found(&self) -> Vec<Seen> {
        self.compared().0.seen().cloned().collect()
    }

    pub(super) fn blind(&self) -> Vec<String> {
        let (all, records) = self.compared();
        all.blind(&self.plan, &records)
    }

    /// How many trials of an arm have a finding of this kind.
    pub(super) fn hits(&self, arm: Arm, kind: impl Into<FindingKind>) -> usize {
        let kind = kind.into();
        let seen = self.found();
        let hit = seen.iter().filter(|s| s.scope.arm == arm && s.finding.kind == kind);
        hit.map(|s| s.scope.trial).collect::<BTreeSet<u32>>().len()
    }
}

pub(super) fn soak(record: &mut Made) -> &mut Measured {
    record.measured.get_mut(&Phase::Soak).unwrap()
}
