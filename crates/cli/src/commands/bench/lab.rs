//! What every measurement needs: image, candidate, a plan to vary, and a place that is removed in the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use klpfarm_engine::{Interrupts, catalog, gc, home, host, image, machine};
use klpfarm_farm::{Aged, Beginning};
use klpfarm_image::{Hold, Image};
use klpfarm_model::{Event, Patch, Plan, Resolved};
use klpfarm_report::Run;
use klpfarm_vm::{Claimed, Files, Origin};
use tokio_util::sync::CancellationToken;

use super::{Args, QUICK_AGING, proc};
use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt;

/// The sources of the candidate: path below its folder, and text.
const CANDIDATE: &[(&str, &str)] = &[
    ("Kbuild", include_str!("../../../../../examples/madvise-fixed/Kbuild")),
    ("madvise-fixed.c", include_str!("../../../../../examples/madvise-fixed/madvise-fixed.c")),
    ("common/klp.h", include_str!("../../../../../examples/common/klp.h")),
];

pub(super) struct Lab {
    /// The pipeline's own plan, with one trial that may apply the candidate.
    pub(super) plan: Plan,
    pub(super) interrupts: Interrupts,
    image: Image,
    patches: Vec<Vec<u8>>,
    qemu: String,
    accel_because: String,
    scratch: Claimed,
    _held: Hold,
}

impl Lab {
    pub(super) async fn prepare(args: &Args) -> Result<Self, Failure> {
        let loaded = catalog::load(&args.pipeline)?;
        let mut pipeline = loaded.pipeline;
        if args.quick {
            pipeline.aging.uptime = pipeline.aging.uptime.min(QUICK_AGING);
        }
        if let Some(uptime) = args.aging {
            pipeline.aging.uptime = uptime;
        }
        // Nothing here ends because a run's time is over.
        pipeline.budget = None;
        let image = image::built(&image::store()?, &loaded.recipe)?;
        let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Failure::farm)?;
        klpfarm_vm::can_fork(version).map_err(Failure::farm)?;
        let (accel, accel_because) = host::accel(args.accel).await?;
        let held = image.hold().map_err(Failure::farm)?;
        let interrupts = interrupt::listen();
        let home = home()?;
        gc::sweep(&home, &mut Console::default()).await;
        let scratch = machine::scratch(&home)?;
        let (patch, data) = match &args.patch {
            Some(file) => catalog::patch(file)?,
            None => interrupts
                .until_first(candidate(&image, scratch.path()))
                .await
                .ok_or_else(|| Failure::interrupted("interrupted"))??,
        };
        let rule = loaded.tiers.rule(pipeline.tier).map_err(Failure::input)?.clone();
        let with = Resolved {
            workloads: loaded.workloads,
            patches: vec![patch],
            accel,
            tier: pipeline.tier,
            trials: Some(1),
            ..Resolved::new(image::facts(&image), rule)
        };
        let plan = Plan::new(&pipeline, with).map_err(Failure::input)?;
        Ok(Self { plan, interrupts, image, patches: vec![data], qemu, accel_because, scratch, _held: held })
    }

    /// Host, versions and what was asked for: label and value.
    pub(super) fn about(&self, args: &Args) -> Vec<(&'static str, String)> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = read("/proc/meminfo");
        let memory: Option<u64> = memory
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        let load = read("/proc/loadavg");
        let p = &self.plan.pipeline;
        vec![
            (
                "host",
                format!(
                    "{}, {cores} cores, {} MiB; load average before: {}",
                    proc::cpu_model(&info).unwrap_or("unknown CPU"),
                    memory.unwrap_or(0) >> 10,
                    load.split(' ').next().unwrap_or("unknown"),
                ),
            ),
            ("accel", self.accel_because.clone()),
            ("qemu", self.qemu.clone()),
            (
                "klpfarm",
                format!(
                    "{}{}",
                    env!("CARGO_PKG_VERSION"),
                    if cfg!(debug_assertions) {
                        ", not optimised: its own CPU and memory are too large"
                    } else {
                        ""
                    }
                ),
            ),
            (
                "pipeline",
                format!(
                    "{}: {} CPUs, {} MiB, image {}, {} workloads, aged to an uptime of {} s{}",
                    p.name,
                    p.machine.cpus,
                    p.machine.memory_mib,
                    self.image.id(),
                    // All but the one that ages the machine.
                    self.plan.workloads.len().saturating_sub(1),
                    p.aging.uptime.as_secs(),
                    match (args.quick, args.aging) {
                        (true, _) => " (--quick)",
                        (false, Some(_)) => " (--aging)",
                        (false, None) => "",
                    }
                ),
            ),
            ("date", jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string()),
        ]
    }

    /// Where QEMU's temporary files and all that is made here go.
    pub(super) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    pub(super) fn bench(
        &self,
        plan: Plan,
        origin: Origin,
        name: &str,
    ) -> Result<klpfarm_farm::Bench, Failure> {
        let dir = self.dir().join(name);
        machine::bench(&Arc::new(plan), &self.image, None, &self.patches, origin, &dir, self.dir())
    }

    /// Age a machine by the plan; its files lie in a folder of this name.
    pub(super) async fn age(&self, plan: Plan, name: &str) -> Result<(Files, Aged), Failure> {
        let dir = self.dir().join(name);
        std::fs::create_dir_all(&dir).map_err(|e| Failure::farm(e).about(dir.display()))?;
        let files = Files::in_dir(&dir);
        let bench = self.bench(plan, Origin::Template(files.clone()), name)?;
        let mut sink = |_: &Event| Ok(());
        let aging = klpfarm_farm::age(&bench, None, &mut sink, self.interrupts.first.clone());
        let aged = self.interrupts.until_second(aging).await;
        self.not_interrupted()?;
        match aged {
            Some(Ok(aged)) => Ok((files, aged)),
            Some(Err(error)) => Err(Failure::farm(error).about("aging a machine for the benchmark")),
            None => Err(Failure::interrupted("interrupted")),
        }
    }

    /// Run the plan with a journal, as `klpfarm run` does; `seen` sees each event. Cancelling `cancel` ends it; so does Ctrl-C, as an
    /// error.
    pub(super) async fn run(
        &self,
        plan: Plan,
        origin: Origin,
        name: &str,
        cancel: &CancellationToken,
        mut seen: impl FnMut(&Event),
    ) -> Result<Vec<Event>, Failure> {
        let bench = self.bench(plan, origin, name)?;
        let mut journal = Run::create(&bench.run_dir, &bench.plan, &bench.patches).map_err(Failure::farm)?;
        let mut sink = |event: &Event| {
            journal.append(event)?;
            seen(event);
            Ok(())
        };
        let beginning = Beginning {
            time: jiff::Timestamp::now().to_string(),
            qemu: self.qemu.clone(),
            checkpoints: Vec::new(),
            past: Vec::new(),
        };
        let benches = [bench.clone()];
        let running = klpfarm_farm::run(&bench.plan, &benches, beginning, &mut sink, cancel.clone());
        let events = self.interrupts.until_second(running).await;
        self.not_interrupted()?;
        events
            .ok_or_else(|| Failure::interrupted("interrupted"))?
            .map_err(|e| Failure::farm(e).about(bench.run_dir.display()))
    }

    /// # Errors
    /// If the user ended it.
    pub(super) fn not_interrupted(&self) -> Result<(), Failure> {
        if self.interrupts.first.is_cancelled() {
            return Err(Failure::interrupted("interrupted; nothing is left behind"));
        }
        Ok(())
    }
}

/// Build the candidate for the image, in `scratch`.
async fn candidate(image: &Image, scratch: &Path) -> Result<(Patch, Vec<u8>), Failure> {
    say("building the candidate madvise-fixed");
    let source = scratch.join("madvise-fixed");
    for (name, text) in CANDIDATE {
        let file: PathBuf = source.join(name);
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        written
            .and_then(|()| std::fs::write(&file, text))
            .map_err(|e| Failure::farm(e).about(file.display()))?;
    }
    let module = image.build_module(&source, scratch).await.map_err(Failure::farm)?;
    catalog::patch(&module)
}

/// Where the benchmark is, on standard error.
pub(super) fn say(text: &str) {
    tell!("klpfarm: bench: {text}");
}
