//! What changed in one trial from the baseline to the soak. Figures that several comparisons ask for are worked out once.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::threads::Fallen;
use super::{LEAST, latency, resources, threads};
use crate::Phase;
use crate::event::{Measured, WorkloadMeasure};
use crate::judge::TrialRecord;

/// A trial's two phases under load.
pub(super) struct Change<'a> {
    pub(super) before: &'a Measured,
    pub(super) after: &'a Measured,
    /// Journal number of the soak's measurement.
    pub(super) seq: u64,
    /// Share of the planned CPU time that the machine got, if the farm knows.
    pub(super) cpu_share: Option<f64>,
    slowness: OnceCell<BTreeMap<&'a str, f64>>,
    slept: OnceCell<BTreeMap<&'a str, latency::Slept>>,
    fallen: OnceCell<Option<Fallen<'a>>>,
    rises: [OnceCell<Option<f64>>; resources::RESOURCES.len()],
}

impl<'a> Change<'a> {
    pub(super) fn of(trial: &'a TrialRecord) -> Option<Self> {
        let (_, before) = trial.measured.get(&Phase::Baseline)?;
        let (seq, after) = trial.measured.get(&Phase::Soak)?;
        Some(Self { seq: *seq, cpu_share: trial.cpu_share, ..Self::new(before, after) })
    }

    pub(super) fn new(before: &'a Measured, after: &'a Measured) -> Self {
        Self {
            before,
            after,
            seq: 0,
            cpu_share: None,
            slowness: OnceCell::new(),
            slept: OnceCell::new(),
            fallen: OnceCell::new(),
            rises: Default::default(),
        }
    }

    pub(super) fn workloads(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.before.workloads.keys().map(String::as_str)
    }

    pub(super) fn before_of(&self, workload: &str) -> Option<&'a WorkloadMeasure> {
        self.before.workloads.get(workload)
    }

    pub(super) fn both(&self, workload: &str) -> Option<(&'a WorkloadMeasure, &'a WorkloadMeasure)> {
        Some((self.before.workloads.get(workload)?, self.after.workloads.get(workload)?))
    }

    /// How many times fewer operations a second a workload did in the soak than in the baseline; none where the baseline has too few. One
    /// that the soak does not list did nothing there.
    pub(super) fn slowness(&self, workload: &str) -> Option<f64> {
        let of = |(name, before): (&'a String, &WorkloadMeasure)| {
            let ops = self.after.workloads.get(name).map_or(0, |w| w.ops);
            // A workload that does nothing at all still has to compare: half an operation stands for none.
            let after_rate = (ops as f64).max(0.5) * 1000.0 / self.after.window_ms.max(1) as f64;
            (before.ops >= LEAST && self.before.window_ms > 0)
                .then(|| (name.as_str(), before.rate(self.before.window_ms) / after_rate))
        };
        let all = self.slowness.get_or_init(|| self.before.workloads.iter().filter_map(of).collect());
        all.get(workload).copied()
    }

    pub(super) fn rates(&self, workload: &str) -> String {
        let of = |m: &Measured| match m.workloads.get(workload) {
            Some(w) => format!("{:.1} operations/s", w.rate(m.window_ms)),
            None => "not running".to_owned(),
        };
        format!("before: {}\nafter: {}", of(self.before), of(self.after))
    }

    /// Operations that slept, of a workload that both phases list.
    pub(super) fn slept(&self, workload: &str) -> Option<&latency::Slept> {
        let of = |name: &'a String| {
            let (before, after) = self.both(name)?;
            Some((name.as_str(), latency::Slept::of(before, after)))
        };
        self.slept.get_or_init(|| self.before.workloads.keys().filter_map(of).collect()).get(workload)
    }

    /// The thread that fell behind most.
    pub(super) fn fallen(&self) -> Option<&Fallen<'a>> {
        self.fallen.get_or_init(|| threads::worst(self)).as_ref()
    }

    /// By how much the resource in this place rose a second in the soak.
    pub(super) fn rise(&self, resource: usize) -> Option<f64> {
        *self
            .rises
            .get(resource)?
            .get_or_init(|| resources::of_phase(self.after, &resources::RESOURCES[resource]))
    }
}
