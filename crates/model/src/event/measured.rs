//! What was measured in a phase, and how it stands in the journal, of which it is the largest part.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Summary of a phase under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// Length in milliseconds.
    pub window_ms: u64,
    /// Per workload.
    pub workloads: BTreeMap<String, WorkloadMeasure>,
    /// What the kernel had given out, in the course of the phase: every second, of a long phase [`Self::MOST`] samples at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "columns")]
    #[schemars(with = "columns::Columns")]
    pub resources: Vec<Resources>,
}

impl Measured {
    /// Most samples of [`Self::resources`].
    pub const MOST: usize = 120;
}

/// Calls of the function in a patch that takes the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewCodeCalls {
    /// The patch: the last of those in force that replaces the function.
    pub patch: String,
    /// Calls counted.
    pub calls: u64,
    /// In how many milliseconds.
    pub window_ms: u64,
}

/// What a kernel has given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Milliseconds since boot.
    pub at_ms: u64,
    /// `MemAvailable`, in KiB.
    pub available_kib: u64,
    /// `SUnreclaim`, in KiB.
    pub slab_unreclaimable_kib: u64,
    /// Pages that the kernel took for itself: neither free nor in any counter, in KiB.
    pub unaccounted_kib: u64,
    /// Open files, right within some 32 a CPU.
    pub open_files: u64,
    /// File descriptors of the workloads' processes.
    pub descriptors: u64,
    /// Tasks.
    pub tasks: u64,
    /// Zombies.
    pub zombies: u64,
}

/// One workload in one phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadMeasure {
    /// Operations finished.
    pub ops: u64,
    /// Threads seen.
    pub threads: u32,
    /// Longest time any thread went without finishing an operation, in milliseconds.
    pub longest_idle_ms: u64,
    /// Share of the threads' time spent asleep in calls, 0 to 1; absent where the guest can't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asleep: Option<f64>,
    /// Operations of each thread that counts its own: pairs of its number and how many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_thread: Vec<(u32, u64)>,
    /// Per operation kind; only of the baseline and the soak, which are compared.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latency: BTreeMap<String, LatencyMeasure>,
}

/// One kind of operation in one phase. In the journal a list of its figures, in the order of the fields: their names would be half of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Row", into = "Row")]
pub struct LatencyMeasure {
    /// Operations counted.
    pub count: u64,
    /// Median over the seconds of each second's 10th percentile, in nanoseconds: what the operation costs when nothing gets
    /// in its way.
    pub p10_ns: u64,
    /// Median over the seconds of each second's median, in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile over the whole phase, in nanoseconds.
    pub p99_ns: u64,
    /// 99.9th percentile over the whole phase, in nanoseconds.
    pub p999_ns: u64,
    /// Mean, in nanoseconds.
    pub mean_ns: u64,
    /// Operations of a millisecond or more in which the thread slept, and did not merely wait for a CPU, by octave: 0 for one to two
    /// milliseconds, 1 for two to four, and so on.
    pub slept: Vec<(u8, u64)>,
}

/// A [`LatencyMeasure`] in the journal.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Row(
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")] Vec<(u8, u64)>,
);

impl From<Row> for LatencyMeasure {
    fn from(Row(count, p10_ns, p50_ns, p99_ns, p999_ns, mean_ns, slept): Row) -> Self {
        Self { count, p10_ns, p50_ns, p99_ns, p999_ns, mean_ns, slept }
    }
}

impl From<LatencyMeasure> for Row {
    fn from(l: LatencyMeasure) -> Self {
        Self(l.count, l.p10_ns, l.p50_ns, l.p99_ns, l.p999_ns, l.mean_ns, l.slept)
    }
}

impl WorkloadMeasure {
    /// Operations a second.
    pub fn rate(&self, window_ms: u64) -> f64 {
        if window_ms == 0 { 0.0 } else { self.ops as f64 * 1000.0 / window_ms as f64 }
    }
}

/// Samples in the journal: one list a resource.
mod columns {
    use schemars::JsonSchema;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Resources;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Columns {
        at_ms: Vec<u64>,
        available_kib: Vec<u64>,
        slab_unreclaimable_kib: Vec<u64>,
        unaccounted_kib: Vec<u64>,
        open_files: Vec<u64>,
        descriptors: Vec<u64>,
        tasks: Vec<u64>,
        zombies: Vec<u64>,
    }

    pub(super) fn serialize<S: Serializer>(samples: &[Resources], to: S) -> Result<S::Ok, S::Error> {
        let column = |of: fn(&Resources) -> u64| samples.iter().map(of).collect();
        let columns = Columns {
            at_ms: column(|r| r.at_ms),
            available_kib: column(|r| r.available_kib),
            slab_unreclaimable_kib: column(|r| r.slab_unreclaimable_kib),
            unaccounted_kib: column(|r| r.unaccounted_kib),
            open_files: column(|r| r.open_files),
            descriptors: column(|r| r.descriptors),
            tasks: column(|r| r.tasks),
            zombies: column(|r| r.zombies),
        };
        columns.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Resources>, D::Error> {
        let c = Columns::deserialize(from)?;
        let all = [
            ("available_kib", &c.available_kib),
            ("slab_unreclaimable_kib", &c.slab_unreclaimable_kib),
            ("unaccounted_kib", &c.unaccounted_kib),
            ("open_files", &c.open_files),
            ("descriptors", &c.descriptors),
            ("tasks", &c.tasks),
            ("zombies", &c.zombies),
        ];
        let samples = c.at_ms.len();
        if let Some((name, column)) = all.iter().find(|(_, column)| column.len() != samples) {
            return Err(D::Error::custom(format!(
                "resources: `{name}` has {} samples, and `at_ms` has {samples}",
                column.len()
            )));
        }
        let sample = |(i, at_ms): (usize, u64)| Resources {
            at_ms,
            available_kib: c.available_kib[i],
            slab_unreclaimable_kib: c.slab_unreclaimable_kib[i],
            unaccounted_kib: c.unaccounted_kib[i],
            open_files: c.open_files[i],
            descriptors: c.descriptors[i],
            tasks: c.tasks[i],
            zombies: c.zombies[i],
        };
        Ok(c.at_ms.iter().copied().enumerate().map(sample).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        let latency = |slept: &[(u8, u64)]| LatencyMeasure {
            count: 6,
            p10_ns: 5,
            p50_ns: 4,
            p99_ns: 3,
            p999_ns: 2,
            mean_ns: 1,
            slept: slept.to_vec(),
        };
        let latency = [("fork".to_owned(), latency(&[])), ("wait".to_owned(), latency(&[(2, 7)]))];
        let workload = WorkloadMeasure { ops: 9, latency: latency.into(), ..WorkloadMeasure::default() };
        let sample = |n: u64| Resources { at_ms: n, tasks: 10 * n, zombies: 1, ..Resources::default() };
        Measured {
            window_ms: 8,
            workloads: BTreeMap::from([("w".to_owned(), workload)]),
            resources: vec![sample(1), sample(2)],
        }
    }

    /// The form is API: docs/verdict.md describes it.
    #[test]
    fn figures_stand_in_lists() {
        let text = serde_json::to_string(&measured()).unwrap();
        let parts = [
            r#""latency":{"fork":[6,5,4,3,2,1],"wait":[6,5,4,3,2,1,[[2,7]]]}"#,
            r#""resources":{"at_ms":[1,2],"available_kib":[0,0],"slab_unreclaimable_kib":[0,0],"#,
            r#""tasks":[10,20],"zombies":[1,1]}"#,
        ];
        for part in parts {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        assert_eq!(serde_json::from_str::<Measured>(&text).unwrap(), measured());
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let bare = Measured { window_ms: 1, workloads: BTreeMap::new(), resources: Vec::new() };
        let text = serde_json::to_string(&bare).unwrap();
        assert_eq!(text, r#"{"window_ms":1,"workloads":{}}"#);
        assert_eq!(serde_json::from_str::<Measured>(&text).unwrap(), bare);
    }

    #[test]
    fn a_list_that_lacks_a_sample_is_named() {
        let text =
            serde_json::to_string(&measured()).unwrap().replace(r#""tasks":[10,20]"#, r#""tasks":[10]"#);
        let error = serde_json::from_str::<Measured>(&text).unwrap_err().to_string();
        assert!(error.contains("`tasks` has 1 samples, and `at_ms` has 2"), "{error}");
        let short = text.replace("[6,5,4,3,2,1]", "[6,5,4]");
        assert!(serde_json::from_str::<Measured>(&short).is_err());
    }
}
