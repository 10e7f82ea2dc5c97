//! Pipeline files: their shape, their defaults, and the checks that find every problem at once.

mod rotation;

use std::path::Path;
use std::time::Duration;

pub use rotation::Rotation;
use schemars::JsonSchema;
use serde::de::{SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::workload::{Run, Scalar, Workload, is_name};
use crate::yaml::{self, YamlError};
use crate::{Arm, Tier};

/// What to run and how to judge it, as written in `pipelines/*.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Workload descriptors: names or paths relative to this file. All run together, where no `rotation.loads` say otherwise. [`AUTO`], alone
    /// or among them, stands for those that call the patched functions, by the image's reach map.
    #[serde(default, deserialize_with = "names_or_auto")]
    pub workloads: Vec<String>,
    /// What makes a machine old before it is checkpointed.
    #[serde(default)]
    pub aging: Aging,
    /// Trials an arm.
    #[serde(default)]
    pub arms: Arms,
    /// How long each phase takes.
    #[serde(default)]
    pub phases: Phases,
    /// When a signal becomes a finding.
    #[serde(default)]
    pub limits: Limits,
    /// What is gathered from a machine with a finding before it goes.
    #[serde(default)]
    pub evidence: Gathering,
    /// The run ends after this, decided or not; absent: when all trials are done.
    #[serde(default, with = "crate::duration::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub budget: Option<Duration>,
    /// What goes round, in a run that lasts for a time instead of a number of trials; `arms` are then those of one round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// File of tier rules, relative to this file; absent: the shipped ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiers: Option<String>,
}

/// What makes a machine old. All of it happens under the pipeline's load; what was reached is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Aging {
    /// Uptime at which the machine is old enough.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub uptime: Duration,
    /// Page cache filled, in MiB.
    pub cache_mib: u32,
    /// Small files made, renamed and removed: dentries, inodes and the file system grow.
    pub files: u32,
    /// Memory whose every other page is given back, in MiB: large free blocks become rare.
    pub fragment_mib: u32,
    /// Long-lived processes that hold what such processes hold.
    pub residents: u32,
    /// Processes started and ended a second, all the time.
    pub churn: u32,
}

impl Default for Aging {
    fn default() -> Self {
        Self {
            uptime: Duration::from_secs(120),
            cache_mib: 96,
            files: 5000,
            fragment_mib: 48,
            residents: 6,
            churn: 5,
        }
    }
}

/// In place of a workload's name: whatever the patched functions need.
pub const AUTO: &str = "auto";

/// A list of names, or the one word.
fn names_or_auto<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of workloads, or `auto`")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                AUTO => Ok(vec![AUTO.to_owned()]),
                other => Err(E::invalid_value(Unexpected::Str(other), &self)),
            }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = seq.next_element()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    deserializer.deserialize_any(Names)
}

/// Name of the workload that makes a machine old.
pub const AGING: &str = "aging";

impl Aging {
    /// The workload that does it.
    pub fn workload(&self) -> Workload {
        let number = |n: u32| Scalar::Int(i64::from(n));
        let size = |mib: u32| Scalar::Text(format!("{mib}M"));
        let args = [
            ("cache", size(self.cache_mib)),
            ("files", number(self.files)),
            ("fragment", size(self.fragment_mib)),
            ("residents", number(self.residents)),
            ("churn", number(self.churn)),
        ];
        let args = args.map(|(name, value)| (name.to_owned(), value)).into();
        Workload {
            name: AGING.to_owned(),
            description: "Makes the machine old, and keeps it so".to_owned(),
            run: Run { builtin: Some(AGING.to_owned()), args, command: None, script: None },
            covers: Vec::new(),
            packages: Vec::new(),
        }
    }
}

/// CPUs and memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Arms {
    /// Patch applied mid-load: at most so many; absent: as many as the tier needs, and some to spare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<u32>,
    /// Applied mid-load and long in force: at most so many; absent: as many as the tier needs, and some to spare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak: Option<u32>,
    /// Patch applied while idle, load afterwards.
    pub quiescent: u32,
    /// The same load, no patch.
    pub control: u32,
    /// Applied, reverted, applied again.
    pub reapply: u32,
    /// Several patches on top of each other: at most so many; absent: as for `loaded`. Without a second patch there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}

impl Default for Arms {
    fn default() -> Self {
        Self { loaded: None, soak: None, quiescent: 3, control: 4, reapply: 2, stack: None }
    }
}

impl Arms {
    /// Trials of one arm; `None` where the tier says.
    pub fn of(&self, arm: Arm) -> Option<u32> {
        match arm {
            Arm::Loaded => self.loaded,
            Arm::Soak => self.soak,
            Arm::Quiescent => Some(self.quiescent),
            Arm::Control => Some(self.control),
            Arm::Reapply => Some(self.reapply),
            Arm::Stack => self.stack,
        }
    }
}

/// How long each phase takes. Wall-clock time: a longer soak finds more, whatever the host's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Phases {
    /// What a boot or a fork stirred up gets so long to settle; the control arm waits as well.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub settle: Duration,
    /// Load is measured this long before the patch is applied.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub baseline: Duration,
    /// Load goes on this long with the patch in force.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub soak: Duration,
    /// A short trial, which ends as soon as everything is seen to make progress, goes on at least this long after applying began.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub observe: Duration,
    /// Load goes on this long after the patch was taken back, and between the steps of the arms `reapply` and `stack`; zero leaves
    /// the patch in place.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub revert: Duration,
    /// How often a trial of the arm `reapply` applies the patch.
    pub cycles: u32,
}

impl Default for Phases {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { settle: s(2), baseline: s(6), soak: s(30), observe: s(5), revert: s(4), cycles: 3 }
    }
}

/// When a signal becomes a finding. All durations are for KVM and are multiplied by the plan's `scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Power-on to a working SSH login and probe.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub boot: Duration,
    /// Until `insmod` returns.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub apply: Duration,
    /// Until every task has switched (the kernel signals stragglers after 15 s).
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub transition: Duration,
    /// A workload thread finishes no operation while the probe goes on.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub stall: Duration,
    /// A task stays uninterruptible without running.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub blocked: Duration,
    /// No SSH login succeeds while the machine runs.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub ssh: Duration,
    /// The probe says nothing while the machine runs.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub probe: Duration,
    /// A CPU keeps its interrupts off in the kernel.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub cpu: Duration,
    /// A line written to the kernel's log does not come out on the console while the probe goes on.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub console: Duration,
    /// Text on the console that counts as a flood, in bytes a second, on average over ten seconds.
    pub console_flood: u64,
    /// The kernel's own hung-task timeout, set in the guest.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub hung_task: Duration,
    /// Slow-down of a workload against the control arm that counts as a collapse: 4 means four times fewer operations.
    pub slowdown: f64,
    /// Growth of an operation's latency against the control arm that counts as a finding.
    pub latency: f64,
    /// Growth of the share of a workload's operations that sleep for long, against the control arm, that counts as a finding. In the
    /// workload that is made for it, 9 of 498,000 operations of a sound kernel slept.
    pub tail: f64,
    /// Fall of one thread's rate against its siblings', more than of any thread in the control arm, that counts as starvation. The worst
    /// thread of each of 36 sound trials under emulation fell by 1.3 to 7, more the busier the host.
    pub starved: f64,
    /// Growth of the kernel's memory beyond the control arm's that counts as a leak, in KiB a second. Sound trials under emulation rose by 3
    /// at most in soaks of 30 s, one page lost in each tick made 25 to 117.
    pub leak: f64,
    /// Growth of open files, descriptors, tasks or zombies beyond the control arm's that counts as a leak, a second. In 24 sound trials under
    /// emulation none of them rose; a thread left behind by each hundredth call made 0.2 to 0.8 on a host that was far too busy.
    pub growth: f64,
}

impl Default for Limits {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            boot: s(60),
            apply: s(60),
            transition: s(45),
            stall: s(10),
            blocked: s(10),
            ssh: s(30),
            probe: s(10),
            cpu: s(10),
            console: s(15),
            console_flood: 8192,
            hung_task: s(10),
            slowdown: 4.0,
            latency: 4.0,
            tail: 4.0,
            starved: 8.0,
            leak: 8.0,
            growth: 0.15,
        }
    }
}

/// What is gathered from a machine with a finding before it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gathering {
    /// When the guest's memory is dumped.
    pub dump: Dump,
    /// Size of a dump at most, in MiB.
    pub dump_mib: u32,
    /// Time for all of it, in seconds of KVM; multiplied by the plan's `scale`.
    pub seconds: u32,
}

/// When the guest's memory is dumped. A dump is large and holds whatever the guest knew, and one is mostly enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dump {
    /// Never.
    Never,
    /// Of the first trial of the run that applies a patch and has a finding.
    First,
    /// Of each trial that has a finding.
    Always,
}

impl Default for Gathering {
    fn default() -> Self {
        Self { dump: Dump::First, dump_mib: 512, seconds: 30 }
    }
}

/// A dump is expected to take this share of the guest's memory at most. Measured: 70 of 1024 MiB; a guest with its memory full of random
/// data takes more, which is why a dump's size is watched as well.
const DUMPED_SHARE: u32 = 4;

impl Gathering {
    /// Whether a dump of a machine of so much memory can be expected to stay within the limit.
    pub fn dump_fits(&self, memory_mib: u32) -> bool {
        memory_mib / DUMPED_SHARE <= self.dump_mib
    }
}

impl Pipeline {
    /// Read a pipeline from `text`, the content of `file`.
    ///
    /// # Errors
    /// The first syntax or type error, or else every wrong value, each with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<YamlError>> {
        let pipeline: Self = yaml::parse(file, text).map_err(|e| vec![e])?;
        let problems = yaml::place(file, text, pipeline.problems());
        if problems.is_empty() { Ok(pipeline) } else { Err(problems) }
    }

    /// Whether workloads are to be chosen by what the patches replace.
    pub fn is_auto(&self) -> bool {
        self.workloads.iter().any(|name| name == AUTO)
    }

    /// Workloads that run whatever the patches replace.
    pub fn named_workloads(&self) -> Vec<String> {
        self.workloads.iter().filter(|name| *name != AUTO).cloned().collect()
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
            format!("`{}` is not a valid name: use lower-case letters, digits and dashes", self.name),
        );
        check(
            !self.image.is_empty(),
            "image",
            "is empty; name an image recipe, for example debian-12".into(),
        );
        check(
            !self.workloads.is_empty() || self.rotation.as_ref().is_some_and(|r| !r.loads.is_empty()),
            "workloads",
            "is empty; a patch is never qualified without load".into(),
        );
        for (i, name) in self.workloads.iter().enumerate() {
            check(!self.workloads[..i].contains(name), "workloads", format!("names `{name}` twice"));
        }
        check(
            !self.is_auto() || self.rotation.is_none(),
            "workloads",
            "says `auto`, which a rotation does not have: name the workloads".into(),
        );
        let MachineShape { cpus, memory_mib } = self.machine;
        check((1..=255).contains(&cpus), "machine.cpus", format!("is {cpus}; must be 1 to 255"));
        check(
            (256..=1 << 20).contains(&memory_mib),
            "machine.memory_mib",
            format!("is {memory_mib}; must be 256 or more"),
        );
        for &arm in Arm::ALL {
            let n = self.arms.of(arm).unwrap_or(1);
            check(n <= 10_000, &format!("arms.{arm}"), format!("is {n}; must be at most 10000"));
        }
        check(
            self.arms.loaded != Some(0),
            "arms.loaded",
            "is 0; at least one loaded trial is needed to judge the patch".into(),
        );
        check(
            self.arms.control > 0,
            "arms.control",
            "is 0; at least one control trial is needed to attribute findings".into(),
        );
        let Gathering { dump_mib, seconds, .. } = self.evidence;
        check(
            (16..=1 << 20).contains(&dump_mib),
            "evidence.dump_mib",
            format!("is {dump_mib}; must be 16 to {}; write `dump: never` for no dump", 1 << 20),
        );
        check((5..=3600).contains(&seconds), "evidence.seconds", format!("is {seconds}; must be 5 to 3600"));
        let zero = Duration::ZERO;
        let p = &self.phases;
        check(
            p.baseline >= Duration::from_secs(5),
            "phases.baseline",
            "is too short to measure a rate; 5s or more".into(),
        );
        check(
            p.settle >= Duration::from_secs(1),
            "phases.settle",
            "is too short; 1s or more is needed, because the first report after forking covers earlier work"
                .into(),
        );
        check(p.soak > zero, "phases.soak", "is zero; 30s or more show what a patch does under load".into());
        check((1..=100).contains(&p.cycles), "phases.cycles", format!("is {}; must be 1 to 100", p.cycles));
        check(
            self.arms.reapply == 0 || !p.revert.is_zero(),
            "phases.revert",
            "is zero, but `arms.reapply` reverts the patch".into(),
        );
        let a = &self.aging;
        let wear = u64::from(a.cache_mib) + u64::from(a.fragment_mib);
        check(
            wear < u64::from(memory_mib),
            "aging",
            format!("needs {wear} MiB, but the machine has {memory_mib} MiB"),
        );
        check(self.budget != Some(zero), "budget", "is zero".into());
        check(
            self.budget.is_none() || self.rotation.is_none(),
            "budget",
            "duplicates `rotation.duration`; remove it".into(),
        );
        for (field, message) in self.rotation.iter().flat_map(Rotation::problems) {
            check(false, &field, message);
        }
        let l = &self.limits;
        for (field, value) in [
            ("boot", l.boot),
            ("apply", l.apply),
            ("transition", l.transition),
            ("stall", l.stall),
            ("blocked", l.blocked),
            ("ssh", l.ssh),
            ("probe", l.probe),
            ("cpu", l.cpu),
            ("console", l.console),
            ("hung_task", l.hung_task),
        ] {
            check(
                value >= Duration::from_secs(1),
                &format!("limits.{field}"),
                "is shorter than one second".into(),
            );
        }
        check(
            l.console_flood > 0,
            "limits.console_flood",
            "is zero: every console line would be reported as a flood".into(),
        );
        for (field, value) in
            [("slowdown", l.slowdown), ("latency", l.latency), ("tail", l.tail), ("starved", l.starved)]
        {
            check(
                value > 1.0 && value.is_finite(),
                &format!("limits.{field}"),
                format!("is {value}; must be greater than 1"),
            );
        }
        for (field, value) in [("leak", l.leak), ("growth", l.growth)] {
            check(
                value > 0.0 && value.is_finite(),
                &format!("limits.{field}"),
                format!("is {value}; must be greater than 0"),
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
        let text = "name: Gate\nimage: debian-12\nworkloads: [a, a]\narms:\n  loaded: 1\n  control: 0\nmachine: {cpus: 0}\nphases: {cycles: 0}\naging: {cache_mib: 2000}\nbudget: 0s\n";
        let error = parse(text).unwrap_err();
        for expected in [
            "gate.yaml:1:1: name",
            "gate.yaml:3:1: workloads: names `a` twice",
            "gate.yaml:6:1: arms.control",
            "machine.cpus",
            "phases.cycles",
            "aging: needs 2048 MiB, but the machine has 1024 MiB",
            "gate.yaml:10:1: budget: is zero",
        ] {
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
    }

    #[test]
    fn workloads_can_be_left_to_the_map() {
        let of = |workloads: &str| parse(&format!("name: gate\nimage: debian-12\nworkloads: {workloads}\n"));
        let alone = of("auto").unwrap();
        assert!(alone.is_auto() && alone.named_workloads().is_empty());
        let mixed = of("[a, auto]").unwrap();
        assert!(mixed.is_auto() && mixed.named_workloads() == ["a"]);
        assert!(!of("[a]").unwrap().is_auto());
        let error = of("a").unwrap_err();
        assert!(error.contains("a list of workloads, or `auto`"), "{error}");
        let error = of("[auto, auto]").unwrap_err();
        assert!(error.contains("twice"), "{error}");
        let error = of("auto\nrotation: {duration: 1h}").unwrap_err();
        assert!(error.contains("a rotation does not have"), "{error}");
    }

    #[test]
    fn what_is_gathered_is_bounded() {
        let base = "name: gate\nimage: debian-12\nworkloads: [a]\n";
        let plain = parse(base).unwrap().evidence;
        assert_eq!(plain, Gathering { dump: Dump::First, dump_mib: 512, seconds: 30 });
        assert!(plain.dump_fits(2048) && !plain.dump_fits(4096));
        let own = parse(&format!("{base}evidence: {{dump: always, dump_mib: 2048, seconds: 60}}\n")).unwrap();
        assert!(own.evidence.dump == Dump::Always && own.evidence.dump_fits(8192));
        let error = parse(&format!("{base}evidence:\n  dump: second\n")).unwrap_err();
        assert!(error.starts_with("gate.yaml:5:") && error.contains("evidence.dump"), "{error}");
        let error = parse(&format!("{base}evidence: {{dump_mib: 1, seconds: 0}}\n")).unwrap_err();
        assert!(error.contains("evidence.dump_mib") && error.contains("evidence.seconds"), "{error}");
    }

    #[test]
    fn limits_that_make_no_sense() {
        let base = "name: gate\nimage: debian-12\nworkloads: [a]\n";
        let error =
            parse(&format!("{base}limits: {{tail: 1, starved: .inf, leak: 0, growth: -1}}\n")).unwrap_err();
        for expected in [
            "limits.tail: is 1; must be greater than 1",
            "limits.starved: is inf",
            "limits.leak: is 0; must be greater than 0",
            "limits.growth",
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
                && error.contains("not a valid duration"),
            "{error}"
        );
        let error = parse(&format!("{base}phases:\n  sook: 3s\n")).unwrap_err();
        assert!(error.contains("phases.sook: unknown field"), "{error}");
        let error = parse(&format!("{base}tier: gold\n")).unwrap_err();
        assert!(error.contains("tier") && error.contains("proposed"), "{error}");
    }

    #[test]
    fn limits_that_find_everything_are_refused() {
        let base = "name: gate\nimage: debian-12\nworkloads: [a]\nlimits: ";
        for (limits, expected) in [
            ("{cpu: 100ms}", "limits.cpu: is shorter than one second"),
            ("{console: 0s}", "limits.console: is shorter than one second"),
            ("{console_flood: 0}", "limits.console_flood: is zero"),
        ] {
            let error = parse(&format!("{base}{limits}\n")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse(&format!("{base}{{cpu: 3s, console: 1m, console_flood: 100000}}\n")).is_ok());
    }
}
