//! What the workloads did in a phase, summed up from the probe's lines. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use klpfarm_model::event::{LatencyMeasure, Measured, Resources, WorkloadMeasure};
use klpfarm_stress::hist;
use klpfarm_stress::wire::{FromGuest, Thread, ThreadProgress};

/// Sums up one phase; threads are remembered over phases.
#[derive(Debug, Default)]
pub(crate) struct Measure {
    threads: BTreeMap<u32, Tracked>,
    window: Window,
    since: Duration,
    rates_since: Duration,
    rates: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Tracked {
    thread: Thread,
    ops: u64,
}

#[derive(Debug, Default)]
struct Window {
    resources: Series,
    workloads: BTreeMap<String, Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    ops: u64,
    threads: std::collections::BTreeSet<u32>,
    by_thread: BTreeMap<u32, u64>,
    longest_idle_ms: u64,
    wall_us: u64,
    awake_us: u64,
    latency: BTreeMap<String, Latencies>,
}

#[derive(Debug)]
struct Latencies {
    sum_ns: u64,
    p10_ns: Vec<u64>,
    p50_ns: Vec<u64>,
    all: hist::Counts,
    slept: [u64; hist::OCTAVES],
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            sum_ns: 0,
            p10_ns: Vec::new(),
            p50_ns: Vec::new(),
            all: [0; hist::BUCKETS],
            slept: [0; hist::OCTAVES],
        }
    }
}

/// A series of bounded length: when it gets too long, every other sample is left out, and of those to come as well.
#[derive(Debug, Default)]
struct Series {
    samples: Vec<Resources>,
    /// One of `1 << halved` samples is kept.
    halved: u32,
    seen: u64,
}

impl Series {
    fn push(&mut self, sample: Resources) {
        if self.seen.is_multiple_of(1 << self.halved) {
            self.samples.push(sample);
        }
        self.seen += 1;
        if self.samples.len() > Measured::MOST {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.halved += 1;
        }
    }
}

impl Measure {
    /// Begin a phase.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.window = Window::default();
        self.since = now;
        self.rates_since = now;
        self.rates.clear();
    }

    /// The phase's summary.
    pub(crate) fn summary(&self, now: Duration) -> Measured {
        let workloads =
            self.window.workloads.iter().map(|(name, sums)| (name.clone(), sums.summary())).collect();
        Measured {
            window_ms: millis(now.saturating_sub(self.since)),
            workloads,
            resources: self.window.resources.samples.clone(),
        }
    }

    /// Longest idle time of a workload in this phase so far.
    pub(crate) fn longest_idle_ms(&self) -> BTreeMap<String, u64> {
        self.window.workloads.iter().map(|(name, s)| (name.clone(), s.longest_idle_ms)).collect()
    }

    /// Operations a second by workload since the last call.
    pub(crate) fn rates(&mut self, now: Duration) -> BTreeMap<String, f64> {
        let seconds = now.saturating_sub(self.rates_since).as_secs_f64().max(0.001);
        self.rates_since = now;
        let rates = std::mem::take(&mut self.rates);
        // A workload that did nothing still stands there, with a zero.
        self.rates = rates.keys().map(|name| (name.clone(), 0)).collect();
        rates.into_iter().map(|(name, ops)| (name, ops as f64 / seconds)).collect()
    }

    /// The thread with this id.
    pub(crate) fn thread(&self, id: u32) -> Option<&Thread> {
        self.threads.get(&id).map(|t| &t.thread)
    }

    pub(crate) fn take(&mut self, message: &FromGuest) {
        match message {
            FromGuest::Thread(thread) => {
                self.rates.entry(thread.workload.clone()).or_default();
                self.threads.entry(thread.id).or_insert(Tracked { thread: thread.clone(), ops: 0 });
            }
            FromGuest::Gone { id } => {
                self.threads.remove(id);
            }
            FromGuest::Progress { threads, .. } => threads.iter().for_each(|p| self.progress(p)),
            FromGuest::Latency { workload, op, sum_ns, buckets, slept, .. } => {
                let sums = self.window.workloads.entry(workload.clone()).or_default();
                let l = sums.latency.entry(op.clone()).or_default();
                l.take(*sum_ns, buckets, slept);
            }
            &FromGuest::Memory {
                at_ms,
                available_kib,
                slab_kib: _,
                slab_unreclaimable_kib,
                unaccounted_kib,
                open_files,
                descriptors,
                tasks,
                zombies,
            } => self.window.resources.push(Resources {
                at_ms,
                available_kib,
                slab_unreclaimable_kib,
                unaccounted_kib,
                open_files,
                descriptors,
                tasks,
                zombies,
            }),
            FromGuest::Usage { workload, wall_us, cpu_us, wait_us, .. } => {
                let sums = self.window.workloads.entry(workload.clone()).or_default();
                sums.wall_us += wall_us;
                sums.awake_us += cpu_us + wait_us;
            }
            _ => {}
        }
    }

    fn progress(&mut self, p: &ThreadProgress) {
        // A program that counts its own operations is not measured by its time slices as well.
        let counts = |t: &Tracked, name: &str| t.thread.counted && t.thread.workload == name;
        let Some(tracked) = self.threads.get(&p.id) else { return };
        let name = tracked.thread.workload.clone();
        let superseded = !tracked.thread.counted && self.threads.values().any(|t| counts(t, &name));
        let Some(tracked) = self.threads.get_mut(&p.id).filter(|_| !superseded) else { return };
        let ops = p.ops.saturating_sub(tracked.ops);
        tracked.ops = p.ops;
        *self.rates.entry(name.clone()).or_default() += ops;
        let sums = self.window.workloads.entry(name).or_default();
        sums.ops += ops;
        sums.threads.insert(p.id);
        if tracked.thread.counted {
            sums.longest_idle_ms = sums.longest_idle_ms.max(p.idle_ms);
            *sums.by_thread.entry(p.id).or_default() += ops;
        }
    }
}

impl Sums {
    fn summary(&self) -> WorkloadMeasure {
        WorkloadMeasure {
            ops: self.ops,
            threads: u32::try_from(self.threads.len()).unwrap_or(u32::MAX),
            longest_idle_ms: self.longest_idle_ms,
            asleep: (self.wall_us > 0).then(|| (1.0 - self.awake_us as f64 / self.wall_us as f64).max(0.0)),
            by_thread: self.by_thread.iter().map(|(id, ops)| (*id, *ops)).collect(),
            latency: self.latency.iter().map(|(op, l)| (op.clone(), l.summary())).collect(),
        }
    }
}

impl Latencies {
    /// Adds the counts of one second.
    fn take(&mut self, sum_ns: u64, buckets: &[(u8, u64)], slept: &[(u8, u64)]) {
        let mut second = [0; hist::BUCKETS];
        hist::add(&mut second, buckets);
        hist::add(&mut self.all, buckets);
        hist::add(&mut self.slept, slept);
        self.sum_ns = self.sum_ns.saturating_add(sum_ns);
        self.p10_ns.push(hist::quantile(&second, 0.1));
        self.p50_ns.push(hist::quantile(&second, 0.5));
    }

    fn summary(&self) -> LatencyMeasure {
        let count = self.all.iter().fold(0, |n: u64, more| n.saturating_add(*more));
        LatencyMeasure {
            count,
            p10_ns: median(&self.p10_ns),
            p50_ns: median(&self.p50_ns),
            p99_ns: hist::quantile(&self.all, 0.99),
            p999_ns: hist::quantile(&self.all, 0.999),
            mean_ns: self.sum_ns / count.max(1),
            slept: hist::sparse(&self.slept),
        }
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(id: u32) -> FromGuest {
        FromGuest::Thread(Thread {
            id,
            workload: "w".into(),
            process: 0,
            thread: id,
            pid: 1,
            tid: id,
            counted: true,
        })
    }

    fn progress(ops: &[(u32, u64)]) -> FromGuest {
        let entry = |(id, ops): &(u32, u64)| ThreadProgress {
            id: *id,
            ops: *ops,
            latency_us: 1,
            idle_ms: 5,
            errors: 0,
            errno: 0,
        };
        FromGuest::Progress { at_ms: 0, threads: ops.iter().map(entry).collect() }
    }

    #[test]
    fn operations_are_counted_within_the_phase_and_over_restarts() {
        let mut m = Measure::default();
        m.take(&thread(1));
        m.take(&progress(&[(1, 100)]));
        m.begin(Duration::from_secs(1));
        m.take(&progress(&[(1, 150)]));
        m.take(&FromGuest::Gone { id: 1 });
        m.take(&thread(2));
        m.take(&progress(&[(2, 7)]));
        let s = m.summary(Duration::from_secs(2));
        assert_eq!((s.window_ms, s.workloads["w"].ops, s.workloads["w"].threads), (1000, 57, 2));
        assert_eq!(m.rates(Duration::from_secs(2))["w"], 57.0);
        assert_eq!(m.rates(Duration::from_secs(3))["w"], 0.0);
    }

    fn latency(buckets: &[(u8, u64)], slept: &[(u8, u64)]) -> FromGuest {
        FromGuest::Latency {
            at_ms: 0,
            workload: "w".into(),
            op: "call".into(),
            sum_ns: 1000,
            buckets: buckets.to_vec(),
            slept: slept.to_vec(),
        }
    }

    /// High quantiles are those of the whole phase: a second in which everything is slow is one of many.
    #[test]
    fn latencies_add_up_over_the_phase() {
        let (quick, slow) = (hist::bucket(1000) as u8, hist::bucket(500_000_000) as u8);
        let mut m = Measure::default();
        m.begin(Duration::ZERO);
        (0..3).for_each(|_| m.take(&latency(&[(quick, 995)], &[])));
        m.take(&latency(&[(slow, 15)], &[(8, 10), (9, 1), (200, 7)]));
        let call = &m.summary(Duration::from_secs(4)).workloads["w"].latency["call"];
        assert_eq!((call.count, call.mean_ns), (3000, 1));
        assert!(call.p50_ns < 2000 && call.p99_ns < 2000, "{call:?}");
        assert!(call.p999_ns > 400_000_000, "{call:?}");
        assert_eq!(call.slept, [(8, 10), (9, 1)]);
    }

    #[test]
    fn a_long_series_is_thinned_evenly() {
        let memory = |at_ms: u64| FromGuest::Memory {
            at_ms,
            available_kib: 1,
            slab_kib: 1,
            slab_unreclaimable_kib: 1,
            unaccounted_kib: 1,
            open_files: 1,
            descriptors: 1,
            tasks: 1,
            zombies: 1,
        };
        for samples in [1, 100, 121, 1000, 5000] {
            let mut m = Measure::default();
            m.begin(Duration::ZERO);
            (0..samples).for_each(|s| m.take(&memory(1000 * s)));
            let series = m.summary(Duration::from_secs(1)).resources;
            assert!(
                series.len() <= Measured::MOST && series.len() as u64 >= samples.min(60),
                "{}",
                series.len()
            );
            let steps: Vec<u64> = series.windows(2).map(|w| w[1].at_ms - w[0].at_ms).collect();
            assert!(steps.iter().all(|s| *s == steps[0]), "{steps:?}");
            assert!(
                series.last().is_some_and(|last| last.at_ms >= 1000 * (samples - 1) * 9 / 10),
                "{samples}"
            );
        }
    }

    #[test]
    fn each_thread_counts_its_own() {
        let mut m = Measure::default();
        [1, 2].iter().for_each(|id| m.take(&thread(*id)));
        m.take(&progress(&[(1, 100), (2, 5)]));
        m.begin(Duration::ZERO);
        m.take(&progress(&[(1, 130), (2, 5)]));
        assert_eq!(m.summary(Duration::from_secs(1)).workloads["w"].by_thread, [(1, 30), (2, 0)]);
    }
}
