//! What changed in one trial from the baseline to the soak, worked out once: the measurements themselves, twenty times as large, are not
//! kept.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, OnceLock};

use super::latency::{self, Op, Slept, Table};
use super::resources::{self, Leak};
use super::threads::{self, Fallen};
use super::{LEAST, rates};
use crate::Arm;
use crate::event::{Measured, Resources, WorkloadMeasure};
use crate::pipeline::Limits;

/// Patched arms whose soak is that of the control arm in all but the patch.
pub(crate) const PATCHED: [Arm; 3] = [Arm::Loaded, Arm::Soak, Arm::Stack];

/// Whether trials of this arm are compared.
pub(crate) fn is_compared(arm: Arm) -> bool {
    arm == Arm::Control || PATCHED.contains(&arm)
}

/// Names of workloads and operations: the same few in every trial, kept once.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<Arc<str>>);

impl Names {
    pub(crate) fn of(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.0.insert(new.clone());
        new
    }
}

/// A trial's two phases under load.
#[derive(Debug)]
pub(crate) struct Change {
    /// Length of the baseline and of the soak, in milliseconds.
    window_ms: [u64; 2],
    /// All workloads of either phase, by name.
    works: Vec<Work>,
    /// How many times longer the yardstick takes in the soak.
    pub(super) yardstick: Option<f64>,
    /// The thread that fell behind most.
    pub(super) fallen: Option<Fallen>,
    /// The soak has enough samples of what the kernel has given out.
    pub(super) watched: bool,
    /// What rises by a limit, so that it may be a leak.
    pub(super) leaks: Vec<Leak>,
    /// Samples of the soak, of trials that others are compared with.
    series: Vec<Resources>,
    rises: [OnceLock<Option<f64>>; resources::RESOURCES.len()],
}

/// One workload in both phases.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) name: Arc<str>,
    pub(super) before: Option<Side>,
    pub(super) after: Option<Side>,
    /// How many times fewer operations a second it did in the soak than in the baseline; none where the baseline has too few. One that
    /// the soak does not list did nothing there.
    pub(super) slowness: Option<f64>,
    /// Operations that were done often enough in both phases, by name.
    pub(super) ops: Vec<Op>,
    /// Operations that slept, if both phases list the workload.
    pub(super) slept: Option<Box<Slept>>,
    /// What people are shown of operations that may be part of a finding.
    pub(super) tables: Vec<Table>,
}

/// One workload in one phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    pub(super) ops: u64,
    pub(super) asleep: Option<f64>,
}

impl Side {
    fn of(measure: &WorkloadMeasure) -> Self {
        Self { ops: measure.ops, asleep: measure.asleep }
    }
}

/// What a trial is compared by, and whether others are compared with it.
pub(crate) struct Basis<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) names: &'a mut Names,
    /// It is a control trial.
    pub(crate) control: bool,
}

impl Change {
    pub(crate) fn new(before: &Measured, after: &Measured, basis: &mut Basis<'_>) -> Self {
        let all: BTreeSet<&String> = before.workloads.keys().chain(after.workloads.keys()).collect();
        let works = all.into_iter().map(|name| Work::of(name, before, after, basis)).collect();
        Self {
            window_ms: [before.window_ms, after.window_ms],
            works,
            yardstick: rates::yardstick(before, after),
            fallen: threads::worst(before, after, basis.names),
            watched: resources::is_watched(after),
            leaks: resources::possible(after, basis.limits),
            series: if basis.control { after.resources.clone() } else { Vec::new() },
            rises: Default::default(),
        }
    }

    /// Workloads of the baseline, with their places.
    pub(super) fn workloads(&self) -> impl Iterator<Item = (usize, &Work)> {
        self.works.iter().enumerate().filter(|(_, w)| w.before.is_some())
    }

    /// A workload of this name; `place` is where it usually is.
    pub(super) fn work(&self, place: usize, name: &Arc<str>) -> Option<&Work> {
        let same = |w: &&Work| Arc::ptr_eq(&w.name, name) || w.name == *name;
        self.works.get(place).filter(same).or_else(|| self.works.iter().find(same))
    }

    /// Whether the baseline lists a workload.
    pub(super) fn has_before(&self, name: &str) -> bool {
        self.works.iter().any(|w| &*w.name == name && w.before.is_some())
    }

    /// What a workload did a second in either phase, in words.
    pub(super) fn rates_of(&self, workload: &str) -> String {
        let work = self.works.iter().find(|w| &*w.name == workload);
        let of = |side: Option<Side>, window_ms: u64| match side {
            Some(side) => {
                let measure = WorkloadMeasure { ops: side.ops, ..WorkloadMeasure::default() };
                format!("{:.1} operations/s", measure.rate(window_ms))
            }
            None => "not running".to_owned(),
        };
        format!(
            "before: {}\nafter: {}",
            of(work.and_then(|w| w.before), self.window_ms[0]),
            of(work.and_then(|w| w.after), self.window_ms[1])
        )
    }

    /// By how much the resource in this place rose a second in the soak of a control trial.
    pub(super) fn rise(&self, resource: usize) -> Option<f64> {
        *self
            .rises
            .get(resource)?
            .get_or_init(|| resources::of_series(&self.series, &resources::RESOURCES[resource]))
    }
}

impl Work {
    fn of(name: &str, before: &Measured, after: &Measured, basis: &mut Basis<'_>) -> Self {
        let phases = (before.workloads.get(name), after.workloads.get(name));
        let slowness = phases.0.filter(|b| b.ops >= LEAST && before.window_ms > 0).map(|b| {
            let ops = phases.1.map_or(0, |w| w.ops);
            // A workload that does nothing at all still has to compare: half an operation stands for none.
            let after_rate = (ops as f64).max(0.5) * 1000.0 / after.window_ms.max(1) as f64;
            b.rate(before.window_ms) / after_rate
        });
        let mut work = Self {
            name: basis.names.of(name),
            before: phases.0.map(Side::of),
            after: phases.1.map(Side::of),
            slowness,
            ops: Vec::new(),
            slept: None,
            tables: Vec::new(),
        };
        if let (Some(before), Some(after)) = phases {
            work.ops = latency::ops(before, after, basis.names);
            let slept = Slept::of(before, after, basis);
            work.tables = latency::tables((before, after), &work.ops, &slept, basis.limits);
            work.slept = Some(Box::new(slept));
        }
        work
    }
}
