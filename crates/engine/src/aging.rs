//! Aging a machine because somebody asks for it, and the plans of machines that no patch is applied to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use klpfarm_image::{Checkpoint, CheckpointStore, Image};
use klpfarm_model::{Accel, Aging, Arm, MachineShape, Pipeline, Plan, Resolved, TierRule, Workload};

use crate::checkpoint::{key, older};
use crate::maker::Maker;
use crate::{Error, Interrupts, Note, Remedy, Result, Watcher, catalog, disk, home, host, image};

/// What is aged, how long, and on what.
#[derive(Debug, Clone)]
pub struct Request {
    /// An image's name or id, its recipe (a name or a file), or a checkpoint's id.
    pub from: String,
    /// From an image up to this uptime, from a checkpoint this much longer; at least a second.
    pub time: Duration,
    /// The pipeline that says load, wear and size of a machine that starts from an image.
    pub pipeline: String,
    /// The accelerator; KVM where it works if not given.
    pub accel: Option<Accel>,
    /// The disk it may not use up.
    pub limits: disk::Limits,
}

/// Age a machine as asked; its checkpoint, and how many milliseconds it took if it had to be made.
///
/// # Errors
/// If what it should start from is unknown or does not fit this host, if the machine does not stay sound, or if it is interrupted.
pub async fn age(
    request: &Request,
    interrupts: &Interrupts,
    watcher: &mut dyn Watcher,
) -> Result<(Checkpoint, Option<u64>)> {
    let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Error::farm)?;
    klpfarm_vm::can_fork(version).map_err(Error::farm)?;
    let (accel, because) = host::accel(request.accel).await?;
    watcher.note(Note::new(format!("accelerator: {because}")));
    let home = home()?;
    let images = image::store()?;
    let store = CheckpointStore::open(&home).map_err(Error::farm)?;
    let (plan, image, parent) = match image::named(&images, &request.from)? {
        Some(image) => {
            let loaded = catalog::load(&request.pipeline)?;
            let mut pipeline = loaded.pipeline;
            pipeline.aging.uptime = request.time;
            (plan(&pipeline, loaded.workloads, &image, accel)?, image, None)
        }
        None => {
            let unknown = format!("`{}` is neither an image, nor a recipe, nor a checkpoint", request.from);
            let parent = store.find(&request.from).map_err(|e| Error::input(e).about(unknown))?;
            parent.fits(&qemu, &host::processor(accel)).map_err(Error::input)?;
            let image = image_of(&parent, &images.list().map_err(Error::farm)?)?;
            (plan_of(&parent, &image, accel)?, image, Some(parent))
        }
    };
    let key = match &parent {
        None => key(&plan, &image, &qemu),
        Some(parent) => older(parent, request.time),
    };
    request.limits.allow(&home, &home)?;
    let parent = parent.map(|p| (p, request.time));
    let maker = Maker { plan: Arc::new(plan), image, home, parent, limits: request.limits };
    maker.ensure(&store, &key, interrupts, watcher).await
}

/// A plan that has machines and load, but nothing to judge.
fn plan(pipeline: &Pipeline, workloads: Vec<Workload>, image: &Image, accel: Accel) -> Result<Plan> {
    let rule = TierRule::new(0.5, 0.5, Duration::from_secs(1), vec![Arm::Control]);
    let with = Resolved { workloads, accel, seed: 0, ..Resolved::new(image::facts(image), rule) };
    Plan::new(pipeline, with).map_err(Error::input)
}

/// The image a checkpoint was made of.
fn image_of(checkpoint: &Checkpoint, images: &[Image]) -> Result<Image> {
    let key = &checkpoint.manifest.key;
    images.iter().find(|i| i.id() == key.image).cloned().ok_or_else(|| {
        let id = checkpoint.id();
        Error::input(format!("checkpoint {id} was made from image {}, which is not on this host", key.image))
            .with(Remedy::RebuildImage)
    })
}

/// The plan by which a checkpoint goes on growing old.
fn plan_of(checkpoint: &Checkpoint, image: &Image, accel: Accel) -> Result<Plan> {
    let key = &checkpoint.manifest.key;
    let workloads: Vec<Workload> = serde_json::from_value(key.workloads.clone()).map_err(|e| {
        Error::input(e).about(format!("checkpoint {}: cannot read its workloads", checkpoint.id()))
    })?;
    let text = format!(
        "name: age\nimage: {}\nworkloads: [aging]\nmachine: {{cpus: {}, memory_mib: {}}}\n",
        image.manifest.name, key.cpus, key.memory_mib
    );
    let pipeline = Pipeline::parse(Path::new("age"), &text).map_err(|e| Error::inputs(&e))?;
    let mut plan = plan(&pipeline, Vec::new(), image, accel)?;
    plan.workloads = workloads;
    Ok(plan)
}

/// The plan of a machine that is booted and does nothing: no load, and wear of no size.
pub(crate) fn idle(image: &Image, machine: MachineShape, accel: Accel) -> Result<Plan> {
    let text = format!(
        "name: idle\nimage: {}\nworkloads: [aging]\nmachine: {{cpus: {}, memory_mib: {}}}\n",
        image.manifest.name, machine.cpus, machine.memory_mib
    );
    let mut pipeline = Pipeline::parse(Path::new("idle"), &text).map_err(|e| Error::inputs(&e))?;
    // What a booting system still has to do is over by then.
    let uptime = Duration::from_secs(60);
    pipeline.aging = Aging { uptime, cache_mib: 0, files: 0, fragment_mib: 0, residents: 0, churn: 0 };
    plan(&pipeline, Vec::new(), image, accel)
}
