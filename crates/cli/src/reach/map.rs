//! `klpfarm reach map`.

use std::sync::Arc;

use klpfarm_farm::{Bench, Look, Method};
use klpfarm_image::{CheckpointStore, Image};
use klpfarm_model::{Accel, MachineShape, Workload};
use klpfarm_reach::{BACKGROUND, Kernel, Outcome, Record};
use klpfarm_vm::{COUNT_LEAST, Claimed, Files, Origin};
use serde_json::json;

use super::store::Store;
use super::{MapArgs, MethodArg};
use crate::aging::{self, Maker};
use crate::failure::{Failure, print, print_json};
use crate::interrupt::Interrupts;
use crate::{catalog, disk, gc, home, host, image};

/// Free disk that is left to others.
const RESERVE: u64 = 512 << 20;

pub(super) async fn run(args: MapArgs) -> Result<u8, Failure> {
    let workloads = match args.workloads.as_slice() {
        [] => catalog::shipped_workloads()?,
        names => catalog::named_workloads(names)?,
    };
    let image = image::find(&args.image)?;
    let store = Store::of(&image);
    let (accel, because) = host::accel(args.accel).await?;
    let method = match (args.method, accel) {
        (None, Accel::Tcg) | (Some(MethodArg::Plugin), Accel::Tcg) => Method::Plugin,
        (None, Accel::Kvm) | (Some(MethodArg::Tracer), _) => Method::Tracer,
        (Some(MethodArg::Plugin), Accel::Kvm) => {
            return Err(Failure::input(
                "--method plugin needs emulation: give `--accel tcg`, or `--method tracer`",
            ));
        }
    };
    tell!("klpfarm: accelerator: {because}; calls are counted by: {}", method.as_str());
    let mut records = Vec::new();
    let mut missing = Vec::new();
    for workload in std::iter::once(None).chain(workloads.iter().map(Some)) {
        match store.record(workload, method.as_str(), None).filter(|_| !args.again) {
            Some(record) => records.push(record),
            None => missing.push(workload),
        }
    }
    if !missing.is_empty() || store.kernel(Some(&[])).is_none() {
        records.extend(measure(&args, accel, &image, &store, method, &missing).await?);
    }
    show(&image, &records, args.json);
    Ok(0)
}

/// Measure what is missing, each in a fork of one idle machine, and keep it as it comes.
async fn measure(
    args: &MapArgs,
    accel: Accel,
    image: &Image,
    store: &Store,
    method: Method,
    missing: &[Option<&Workload>],
) -> Result<Vec<Record>, Failure> {
    let site = Site::prepare(accel, method, image).await?;
    let look = site.until(klpfarm_farm::look(&site.bench)).await?;
    store.keep_kernel(&Kernel::of(&look.release, &look.symbols))?;
    let mut records = Vec::new();
    for workload in missing {
        let record = one(args, image, &site, &look, method, *workload).await?;
        tell!("klpfarm: {}", line(&record));
        store.keep(*workload, &record)?;
        records.push(record);
    }
    Ok(records)
}

async fn one(
    args: &MapArgs,
    image: &Image,
    site: &Site,
    look: &Look,
    method: Method,
    workload: Option<&Workload>,
) -> Result<Record, Failure> {
    if let Some(workload) = workload
        && let [package, ..] = image::missing_packages(workload, image).as_slice()
    {
        return Ok(Record {
            workload: workload.name.clone(),
            method: method.as_str().to_owned(),
            machine_cpus: site.bench.spec.cpus,
            outcome: Outcome::Unavailable(format!("the image does not have package {package}")),
            functions: Default::default(),
            modules: Default::default(),
        });
    }
    site.until(klpfarm_farm::measure(&site.bench, look, workload, args.window, method)).await
}

/// The idle machine that is forked, and all that must stay while its forks run.
struct Site {
    bench: Bench,
    interrupts: Interrupts,
    _scratch: Claimed,
    _held: (klpfarm_image::Hold, klpfarm_image::Hold),
}

impl Site {
    async fn prepare(accel: Accel, method: Method, image: &Image) -> Result<Self, Failure> {
        let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Failure::farm)?;
        klpfarm_vm::can_fork(version).map_err(Failure::farm)?;
        if method == Method::Plugin && version.is_none_or(|version| version < COUNT_LEAST) {
            let (major, minor) = COUNT_LEAST;
            return Err(Failure::farm(format!(
                "counting calls needs QEMU {major}.{minor} or newer, this is {qemu}"
            )));
        }
        let interrupts = Interrupts::listen();
        let home = home::home()?;
        gc::sweep(&home).await;
        let plan = Arc::new(aging::idle(image, MachineShape::default(), accel)?);
        let key = aging::key(&plan, image, &qemu);
        let limits = disk::Limits { disk_reserve: RESERVE, disk_limit: None };
        limits.allow(&home, &home)?;
        let checkpoints = CheckpointStore::open(&home).map_err(Failure::farm)?;
        let maker =
            Maker { plan: Arc::clone(&plan), image: image.clone(), home: home.clone(), parent: None, limits };
        let (checkpoint, _) = maker.ensure(&checkpoints, &key, &interrupts).await?;
        let held = (image.hold().map_err(Failure::farm)?, checkpoint.hold().map_err(Failure::farm)?);
        aging::verified(&checkpoint).await?;
        let scratch = aging::scratch(&home)?;
        let origin = Origin::Fork(Files::in_dir(&checkpoint.dir));
        let bench =
            aging::bench(&plan, image, Some(&checkpoint), &[], origin, scratch.path(), scratch.path())?;
        Ok(Self { bench, interrupts, _scratch: scratch, _held: held })
    }

    /// Dropping what is measured ends its machine.
    async fn until<T>(
        &self,
        work: impl Future<Output = Result<T, klpfarm_farm::ReachError>>,
    ) -> Result<T, Failure> {
        let done = self.interrupts.until_first(work).await;
        done.ok_or_else(|| Failure::Interrupted("interrupted; what was measured so far is kept".into()))?
            .map_err(Failure::farm)
    }
}

fn called(record: &Record) -> usize {
    record.functions.values().filter(|(_, calls)| calls.window + calls.setup > 0).count()
}

fn line(record: &Record) -> String {
    match &record.outcome {
        Outcome::Measured { window_ms, cpus, memory_mib, .. } => format!(
            "{}: {} functions called in {:.0} s, {cpus:.1} CPUs, {memory_mib} MiB",
            record.workload,
            called(record),
            *window_ms as f64 / 1000.0,
        ),
        Outcome::Unavailable(why) => {
            format!("{}: unavailable: {}", record.workload, klpfarm_report::one_line(why, 300))
        }
    }
}

fn show(image: &Image, records: &[Record], as_json: bool) {
    if !as_json {
        let mut text = format!("{:<28}{}\n", "image", image.id());
        for record in records {
            text.push_str(&line(record));
            text.push('\n');
        }
        print(&text);
        return;
    }
    let one = |r: &Record| json!({ "workload": r.workload, "method": r.method, "outcome": r.outcome, "called": called(r) });
    let (background, workloads): (Vec<_>, Vec<_>) = records.iter().partition(|r| r.workload == BACKGROUND);
    print_json(&json!({
        "image": image.id(),
        "background": background.into_iter().map(one).next(),
        "workloads": workloads.into_iter().map(one).collect::<Vec<_>>(),
    }));
}
