//! Pipeline files: their shape, their defaults, and the checks that find every problem at once.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::workload::is_name;
use crate::yaml::{self, YamlError};
use crate::{Arm, Tier};

/// What to run and how to judge it, as written in `pipelines/*.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Its name in output and reports.
    pub name: String,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// Image recipe: a name or a path relative to this file.
    pub image: String,
    /// The tier a qualified patch may enter; `--tier` overrides it.
    #[serde(default)]
    pub tier: Tier,
    /// The virtual hardware.
    #[serde(default)]
    pub machine: MachineShape,
    /// Workload descriptors: names or paths relative to this file. All run together.
    pub workloads: Vec<String>,
    /// Trials an arm.
    #[serde(default)]
    pub arms: Arms,
    /// How long each phase takes.
    #[serde(default)]
    pub phases: Phases,
    /// When a signal becomes a finding.
    #[serde(default)]
    pub limits: Limits,
}

/// CPUs and memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineShape {
    /// Virtual CPUs. Races want at least two.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl Default for MachineShape {
    fn default() -> Self {
        Self { cpus: 2, memory_mib: 1024 }
    }
}

/// Trials an arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arms {
    /// Patch applied mid-load.
    pub loaded: u32,
    /// Patch applied while idle, load afterwards.
    pub quiescent: u32,
    /// The same load, no patch.
    pub control: u32,
}

impl Default for Arms {
    fn default() -> Self {
        Self { loaded: 1, quiescent: 1, control: 1 }
    }
}

impl Arms {
    /// Trials of one arm.
    pub fn of(&self, arm: Arm) -> u32 {
        match arm {
            Arm::Loaded => self.loaded,
            Arm::Quiescent => self.quiescent,
            Arm::Control => self.control,
            Arm::Reapply | Arm::Stack => 0,
        }
    }
}

/// How long each phase takes. Wall-clock time: a longer soak finds more, whatever the host's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Phases {
    /// Load runs this long before anything is measured.
    #[serde(with = "crate::duration")]
    pub age: Duration,
    /// Load is measured this long before the patch is applied.
    #[serde(with = "crate::duration")]
    pub baseline: Duration,
    /// Load goes on this long with the patch in force.
    #[serde(with = "crate::duration")]
    pub soak: Duration,
    /// Load goes on this long after the patch was taken back; zero leaves the patch in place.
    #[serde(with = "crate::duration")]
    pub revert: Duration,
}

impl Default for Phases {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { age: s(5), baseline: s(15), soak: s(60), revert: s(10) }
    }
}

/// When a signal becomes a finding. All durations are for KVM and are multiplied by the plan's `scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Power-on to a working SSH login and probe.
    #[serde(with = "crate::duration")]
    pub boot: Duration,
    /// Until `insmod` returns.
    #[serde(with = "crate::duration")]
    pub apply: Duration,
    /// Until every task has switched (the kernel signals stragglers after 15 s).
    #[serde(with = "crate::duration")]
    pub transition: Duration,
    /// A workload thread finishes no operation while the probe goes on.
    #[serde(with = "crate::duration")]
    pub stall: Duration,
    /// A task stays uninterruptible without running.
    #[serde(with = "crate::duration")]
    pub blocked: Duration,
    /// No SSH login succeeds while the machine runs.
    #[serde(with = "crate::duration")]
    pub ssh: Duration,
    /// The probe says nothing while the machine runs.
    #[serde(with = "crate::duration")]
    pub probe: Duration,
    /// The kernel's own hung-task timeout, set in the guest.
    #[serde(with = "crate::duration")]
    pub hung_task: Duration,
    /// Slow-down of a workload against the control arm that counts as a collapse: 4 means four times fewer operations.
    pub slowdown: f64,
    /// Growth of an operation's latency against the control arm that counts as a finding.
    pub latency: f64,
}

impl Default for Limits {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            boot: s(60),
            apply: s(30),
            transition: s(45),
            stall: s(10),
            blocked: s(10),
            ssh: s(30),
            probe: s(10),
            hung_task: s(10),
            slowdown: 4.0,
            latency: 4.0,
        }
    }
}

impl Pipeline {
    /// Read a pipeline from `text`, the content of `file`.
    ///
    /// # Errors
    /// The first syntax or type error, or else every wrong value, each with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<YamlError>> {
        let pipeline: Self = yaml::parse(file, text).map_err(|e| vec![e])?;
        let problems: Vec<YamlError> = pipeline
            .problems()
            .into_iter()
            .map(|(field, message)| {
                let keys: Vec<&str> = field.split('.').collect();
                let at = yaml::line_of(text, &keys).map(|line| (line, 1));
                YamlError { file: file.to_owned(), at, field, message }
            })
            .collect();
        if problems.is_empty() { Ok(pipeline) } else { Err(problems) }
    }

    fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut check = |ok: bool, field: &str, message: String| {
            if !ok {
                found.push((field.to_owned(), message));
            }
        };
        check(
            is_name(&self.name),
            "name",
            format!("`{}` is no name: use lower-case letters, digits and dashes", self.name),
        );
        check(
            !self.image.is_empty(),
            "image",
            "is empty; name an image recipe, for example debian-12".into(),
        );
        check(
            !self.workloads.is_empty(),
            "workloads",
            "is empty; a patch is never qualified without load".into(),
        );
        for (i, name) in self.workloads.iter().enumerate() {
            check(!self.workloads[..i].contains(name), "workloads", format!("names `{name}` twice"));
        }
        let MachineShape { cpus, memory_mib } = self.machine;
        check((1..=255).contains(&cpus), "machine.cpus", format!("is {cpus}; 1 to 255 are possible"));
        check(
            (256..=1 << 20).contains(&memory_mib),
            "machine.memory_mib",
            format!("is {memory_mib}; 256 or more is needed"),
        );
        for &arm in Arm::ALL {
            let n = self.arms.of(arm);
            check(n <= 10_000, &format!("arms.{arm}"), format!("is {n}; at most 10000 trials"));
        }
        check(
            self.arms.loaded > 0,
            "arms.loaded",
            "is 0; without a loaded trial nothing can be said of the patch".into(),
        );
        check(
            self.arms.control > 0,
            "arms.control",
            "is 0; without a control trial no finding can be attributed".into(),
        );
        let zero = Duration::ZERO;
        let p = &self.phases;
        check(
            p.baseline >= Duration::from_secs(5),
            "phases.baseline",
            "is too short to measure a rate; 5s or more".into(),
        );
        check(p.soak > zero, "phases.soak", "is zero; 30s or more show what a patch does under load".into());
        let l = &self.limits;
        for (field, value) in [
            ("boot", l.boot),
            ("apply", l.apply),
            ("transition", l.transition),
            ("stall", l.stall),
            ("blocked", l.blocked),
            ("ssh", l.ssh),
            ("probe", l.probe),
            ("hung_task", l.hung_task),
        ] {
            check(value >= Duration::from_secs(1), &format!("limits.{field}"), "is below one second".into());
        }
        for (field, value) in [("slowdown", l.slowdown), ("latency", l.latency)] {
            check(
                value > 1.0 && value.is_finite(),
                &format!("limits.{field}"),
                format!("is {value}; a factor above 1 is needed"),
            );
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Pipeline, String> {
        Pipeline::parse(Path::new("gate.yaml"), text)
            .map_err(|es| es.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn defaults_fill_in() {
        let p =
            parse("name: gate\nimage: debian-12\nworkloads: [madvise-allocator]\nphases: {soak: 1m 30s}\n")
                .unwrap();
        assert_eq!(p.phases.soak, Duration::from_secs(90));
        assert_eq!(p.phases.baseline, Phases::default().baseline);
        assert_eq!((p.tier, p.arms), (Tier::Proposed, Arms::default()));
    }

    #[test]
    fn every_problem_at_once_with_its_line() {
        let text = "name: Gate\nimage: debian-12\nworkloads: [a, a]\narms:\n  loaded: 1\n  control: 0\nmachine: {cpus: 0}\n";
        let error = parse(text).unwrap_err();
        for expected in [
            "gate.yaml:1:1: name",
            "gate.yaml:3:1: workloads: names `a` twice",
            "gate.yaml:6:1: arms.control",
            "machine.cpus",
        ] {
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
    }

    #[test]
    fn wrong_types_and_unknown_fields() {
        let base = "name: gate\nimage: debian-12\nworkloads: [a]\n";
        let error = parse(&format!("{base}phases:\n  soak: soon\n")).unwrap_err();
        assert!(
            error.starts_with("gate.yaml:5:")
                && error.contains("phases.soak")
                && error.contains("no duration"),
            "{error}"
        );
        let error = parse(&format!("{base}phases:\n  sook: 3s\n")).unwrap_err();
        assert!(error.contains("phases.sook: unknown field"), "{error}");
        let error = parse(&format!("{base}tier: gold\n")).unwrap_err();
        assert!(error.contains("tier") && error.contains("proposed"), "{error}");
    }
}
