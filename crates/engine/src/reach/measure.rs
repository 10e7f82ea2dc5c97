//! Making the reach map of an image: each workload alone, in a fork of one idle machine.

use std::sync::Arc;
use std::time::Duration;

use klpfarm_farm::{Bench, Look, Method};
use klpfarm_image::{CheckpointStore, Image};
use klpfarm_model::{Accel, MachineShape, Workload};
use klpfarm_reach::{Kernel, Outcome, Record};
use klpfarm_vm::{COUNT_LEAST, Claimed, Files, Origin};

use super::store::Store;
use crate::maker::Maker;
use crate::{Error, Interrupts, Result, Watcher, aging, checkpoint, disk, gc, home, image, machine};

/// Free disk that is left to others.
const RESERVE: u64 = 512 << 20;

/// What is measured, and how.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The image whose map it is.
    pub image: Image,
    /// Each is measured alone; the machine without any is measured as well.
    pub workloads: Vec<Workload>,
    /// How long calls are counted, after the workload's first progress.
    pub window: Duration,
    /// How they are counted.
    pub method: Method,
    /// The accelerator of the machines.
    pub accel: Accel,
    /// Measure again what has been measured before.
    pub again: bool,
}

/// How calls are counted where nobody says: QEMU's plugin needs emulation, and disturbs the guest less.
pub fn default_method(accel: Accel) -> Method {
    match accel {
        Accel::Tcg => Method::Plugin,
        Accel::Kvm => Method::Tracer,
    }
}

/// Measure what has not been measured before, and keep it; all records that were asked for. `seen` is told of each as it is measured.
///
/// # Errors
/// If no machine can be forked, or it is interrupted; what was measured so far is kept.
pub async fn measure(
    what: &Measurement,
    interrupts: &Interrupts,
    watcher: &mut dyn Watcher,
    mut seen: impl FnMut(&Record),
) -> Result<Vec<Record>> {
    let store = Store::of(&what.image);
    let mut records = Vec::new();
    let mut missing = Vec::new();
    for workload in std::iter::once(None).chain(what.workloads.iter().map(Some)) {
        match store.record(workload, what.method.as_str(), None).filter(|_| !what.again) {
            Some(record) => records.push(record),
            None => missing.push(workload),
        }
    }
    if missing.is_empty() && store.kernel(Some(&[])).is_some() {
        return Ok(records);
    }
    let site = Site::prepare(what, interrupts, watcher).await?;
    let look = site.until(klpfarm_farm::look(&site.bench)).await?;
    store.keep_kernel(&Kernel::of(&look.release, &look.symbols))?;
    for workload in missing {
        let record = one(what, &site, &look, workload).await?;
        seen(&record);
        store.keep(workload, &record)?;
        records.push(record);
    }
    Ok(records)
}

async fn one(
    what: &Measurement,
    site: &Site<'_>,
    look: &Look,
    workload: Option<&Workload>,
) -> Result<Record> {
    if let Some(workload) = workload
        && let [package, ..] = image::missing_packages(workload, &what.image).as_slice()
    {
        return Ok(Record {
            workload: workload.name.clone(),
            method: what.method.as_str().to_owned(),
            machine_cpus: site.bench.spec.cpus,
            outcome: Outcome::Unavailable(format!("the image does not have package {package}")),
            functions: Default::default(),
            modules: Default::default(),
        });
    }
    site.until(klpfarm_farm::measure(&site.bench, look, workload, what.window, what.method)).await
}

/// The idle machine that is forked, and all that must stay while its forks run.
struct Site<'a> {
    bench: Bench,
    interrupts: &'a Interrupts,
    _scratch: Claimed,
    _held: (klpfarm_image::Hold, klpfarm_image::Hold),
}

impl<'a> Site<'a> {
    async fn prepare(
        what: &Measurement,
        interrupts: &'a Interrupts,
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        let image = &what.image;
        let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Error::farm)?;
        klpfarm_vm::can_fork(version).map_err(Error::farm)?;
        if what.method == Method::Plugin && version.is_none_or(|version| version < COUNT_LEAST) {
            let (major, minor) = COUNT_LEAST;
            return Err(Error::farm(format!(
                "counting calls needs QEMU {major}.{minor} or newer, this is {qemu}"
            )));
        }
        let home = home()?;
        gc::sweep(&home, watcher).await;
        let plan = Arc::new(aging::idle(image, MachineShape::default(), what.accel)?);
        let key = checkpoint::key(&plan, image, &qemu);
        let limits = disk::Limits { reserve: RESERVE, run: None };
        limits.allow(&home, &home)?;
        let checkpoints = CheckpointStore::open(&home).map_err(Error::farm)?;
        let maker =
            Maker { plan: Arc::clone(&plan), image: image.clone(), home: home.clone(), parent: None, limits };
        let (idle, _) = maker.ensure(&checkpoints, &key, interrupts, watcher).await?;
        let held = (image.hold().map_err(Error::farm)?, idle.hold().map_err(Error::farm)?);
        checkpoint::verified(&idle).await?;
        let scratch = machine::scratch(&home)?;
        let origin = Origin::Fork(Files::in_dir(&idle.dir));
        let bench = machine::bench(&plan, image, Some(&idle), &[], origin, scratch.path(), scratch.path())?;
        Ok(Self { bench, interrupts, _scratch: scratch, _held: held })
    }

    /// Dropping what is measured ends its machine.
    async fn until<T>(&self, work: impl Future<Output = Result<T, klpfarm_farm::ReachError>>) -> Result<T> {
        let done = self.interrupts.until_first(work).await;
        done.ok_or_else(|| Error::interrupted("interrupted; what was measured so far is kept"))?
            .map_err(Error::farm)
    }
}
