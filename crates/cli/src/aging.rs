//! Aged machines: the checkpoint that a run's trials are forked from, and `klpfarm age`, which makes one or an older one.

mod maker;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use klpfarm_farm::{Bench, Symbols};
use klpfarm_image::{Checkpoint, CheckpointStore, Image, Key};
use klpfarm_model::event::CheckpointFacts;
use klpfarm_model::{
    Accel, Aging, Arm, MachineShape, Pipeline, Plan, Resolved, Rotation, TierRule, Workload,
};
use klpfarm_vm::{Claimed, Group, Login, Origin, Spec};

pub(crate) use maker::Maker;

use crate::failure::{Failure, print, print_json};
use crate::interrupt::Interrupts;
use crate::{catalog, disk, home, host, image};

/// Age a machine under load and save it as a checkpoint; starting from a checkpoint adds to its uptime.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An image's name or id, its recipe (a name or a YAML file), or a checkpoint's id (see `klpfarm checkpoint list`).
    from: String,
    /// How long to age: from an image up to this uptime, from a checkpoint this much longer.
    #[arg(long = "for", value_name = "2h", value_parser = klpfarm_model::duration::parse)]
    more: Duration,
    /// Pipeline that defines workloads, aging and machine size, when starting from an image.
    #[arg(long, default_value = "gate")]
    pipeline: String,
    /// Accelerator: kvm or tcg; by default KVM if a test guest runs, otherwise emulation (tcg).
    #[arg(long)]
    accel: Option<Accel>,
    /// Stop, and save nothing, when free disk space in KLPFARM_HOME or the temporary folder drops below this.
    #[arg(long, value_name = "512M", default_value = "512M", value_parser = crate::sizes::parse)]
    disk_reserve: u64,
    /// Print the checkpoint as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    if args.more < Duration::from_secs(1) {
        return Err(Failure::input("--for must be at least one second"));
    }
    let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Failure::farm)?;
    klpfarm_vm::can_fork(version).map_err(Failure::farm)?;
    let (accel, because) = host::accel(args.accel).await?;
    tell!("klpfarm: accelerator: {because}");
    let home = home::home()?;
    let images = image::store()?;
    let store = CheckpointStore::open(&home).map_err(Failure::farm)?;
    let (plan, image, parent) = match image::named(&images, &args.from)? {
        Some(image) => {
            let loaded = catalog::load(&args.pipeline)?;
            let mut pipeline = loaded.pipeline;
            pipeline.aging.uptime = args.more;
            (plan(&pipeline, loaded.workloads, &image, accel)?, image, None)
        }
        None => {
            let parent = store.find(&args.from).map_err(|e| {
                Failure::input(format!(
                    "`{}` is neither an image, nor a recipe, nor a checkpoint: {e}",
                    args.from
                ))
            })?;
            parent.fits(&qemu, &host::processor(accel)).map_err(Failure::input)?;
            let image = image_of(&parent, &images.list().map_err(Failure::farm)?)?;
            (plan_of(&parent, &image, accel)?, image, Some(parent))
        }
    };
    let key = match &parent {
        None => key(&plan, &image, &qemu),
        Some(parent) => older(parent, args.more),
    };
    let limits = disk::Limits { disk_reserve: args.disk_reserve, disk_limit: None };
    limits.allow(&home, &home)?;
    let parent = parent.map(|p| (p, args.more));
    let maker = Maker { plan: Arc::new(plan), image, home, parent, limits };
    let (checkpoint, made) = maker.ensure(&store, &key, &Interrupts::listen()).await?;
    if args.json {
        print_json(&checkpoint.manifest);
    } else {
        let word = if made.is_some() { "made" } else { "exists already" };
        print(&format!(
            "{}  {word}: up for {:.0} s, {} MiB on disk\n",
            checkpoint.id(),
            checkpoint.manifest.made.uptime_s,
            checkpoint.disk_bytes() >> 20
        ));
    }
    Ok(0)
}

/// A plan that has machines and load, but nothing to judge.
fn plan(pipeline: &Pipeline, workloads: Vec<Workload>, image: &Image, accel: Accel) -> Result<Plan, Failure> {
    let rule = TierRule::new(0.5, 0.5, Duration::from_secs(1), vec![Arm::Control]);
    let with = Resolved { workloads, accel, seed: 0, ..Resolved::new(image::image_facts(image), rule) };
    Plan::new(pipeline, with).map_err(Failure::input)
}

/// The image a checkpoint was made of.
fn image_of(checkpoint: &Checkpoint, images: &[Image]) -> Result<Image, Failure> {
    let key = &checkpoint.manifest.key;
    images.iter().find(|i| i.id() == key.image).cloned().ok_or_else(|| {
        let id = checkpoint.id();
        Failure::input(format!(
            "checkpoint {id} was made from image {}, which is not on this host: build it from its recipe with `klpfarm image build RECIPE`",
            key.image
        ))
    })
}

/// The plan by which a checkpoint goes on growing old.
fn plan_of(checkpoint: &Checkpoint, image: &Image, accel: Accel) -> Result<Plan, Failure> {
    let key = &checkpoint.manifest.key;
    let workloads: Vec<Workload> = serde_json::from_value(key.workloads.clone()).map_err(|e| {
        Failure::input(format!("checkpoint {}: cannot read its workloads: {e}", checkpoint.id()))
    })?;
    let text = format!(
        "name: age\nimage: {}\nworkloads: [aging]\nmachine: {{cpus: {}, memory_mib: {}}}\n",
        image.manifest.name, key.cpus, key.memory_mib
    );
    let pipeline = Pipeline::parse(Path::new("age"), &text).map_err(|e| Failure::inputs(&e))?;
    let mut plan = plan(&pipeline, Vec::new(), image, accel)?;
    plan.workloads = workloads;
    Ok(plan)
}

/// The plan of a machine that is booted and does nothing: no load, and wear of no size.
pub(crate) fn idle(image: &Image, machine: MachineShape, accel: Accel) -> Result<Plan, Failure> {
    let text = format!(
        "name: idle\nimage: {}\nworkloads: [aging]\nmachine: {{cpus: {}, memory_mib: {}}}\n",
        image.manifest.name, machine.cpus, machine.memory_mib
    );
    let mut pipeline = Pipeline::parse(Path::new("idle"), &text).map_err(|e| Failure::inputs(&e))?;
    // What a booting system still has to do is over by then.
    let uptime = Duration::from_secs(60);
    pipeline.aging = Aging { uptime, cache_mib: 0, files: 0, fragment_mib: 0, residents: 0, churn: 0 };
    plan(&pipeline, Vec::new(), image, accel)
}

/// What makes a machine's checkpoint the one it is.
pub(crate) fn key(plan: &Plan, image: &Image, qemu: &str) -> Key {
    let json = |value: Result<serde_json::Value, serde_json::Error>| value.unwrap_or_default();
    Key {
        image: image.id().to_owned(),
        image_hash: image.identity(),
        cpus: plan.pipeline.machine.cpus,
        memory_mib: plan.pipeline.machine.memory_mib,
        accel: host::processor(plan.accel),
        qemu: qemu.to_owned(),
        workloads: json(serde_json::to_value(&plan.workloads)),
        aging: json(serde_json::to_value(plan.pipeline.aging)),
        farm: klpfarm_farm::digest(plan),
        parent: None,
    }
}

/// The checkpoint that machines of a plan are to be forks of.
pub(crate) enum Wanted {
    /// It is kept, and named by the user.
    There(Box<Checkpoint>),
    /// As the pipeline describes it: found by this key, or made.
    New(Key),
    /// The machine of an earlier run, so much older.
    Older { key: Key, parent: Box<Checkpoint>, more: Duration },
}

impl Wanted {
    pub(crate) fn id(&self) -> String {
        match self {
            Self::There(checkpoint) => checkpoint.id().to_owned(),
            Self::New(key) | Self::Older { key, .. } => key.id(),
        }
    }
}

/// The checkpoint for a plan of one turn: a rotation that lets its machines grow older goes on with the oldest one there is.
pub(crate) fn wanted(
    plan: &Plan,
    rotation: Option<&Rotation>,
    image: &Image,
    qemu: &str,
) -> Result<Wanted, Failure> {
    let key = key(plan, image, qemu);
    let Some(more) = rotation.map(|r| r.older).filter(|older| !older.is_zero()) else {
        return Ok(Wanted::New(key));
    };
    let store = CheckpointStore::open(&home::home()?).map_err(Failure::farm)?;
    Ok(match lineage(&store, &key)?.pop() {
        None => Wanted::New(key),
        Some(parent) => Wanted::Older { key: older(&parent, more), parent: Box::new(parent), more },
    })
}

/// The key of what a checkpoint becomes after so much more time.
fn older(parent: &Checkpoint, more: Duration) -> Key {
    Key {
        aging: serde_json::json!({ "parent": parent.manifest.key.aging, "more_s": more.as_secs() }),
        parent: Some(parent.id().to_owned()),
        ..parent.manifest.key.clone()
    }
}

/// The checkpoint with this key and all that were made of it, the oldest machine last.
fn lineage(store: &CheckpointStore, first: &Key) -> Result<Vec<Checkpoint>, Failure> {
    let root = |aging: &serde_json::Value| {
        let mut aging = aging;
        while let Some(parent) = aging.get("parent") {
            aging = parent;
        }
        aging.clone()
    };
    let is_of = |key: &Key| {
        let as_first = Key { aging: root(&key.aging), parent: None, ..key.clone() };
        as_first == *first
    };
    let mut all = store.list().map_err(Failure::farm)?;
    all.retain(|c| is_of(&c.manifest.key));
    all.sort_by(|a, b| a.manifest.made.uptime_s.total_cmp(&b.manifest.made.uptime_s));
    Ok(all)
}

/// Remove the machines of earlier nights but for the latest two: each is a whole machine on disk.
pub(crate) fn thin_out(store: &CheckpointStore, plan: &Plan, more: Duration, image: &Image, qemu: &str) {
    const KEPT: usize = 2;
    let Ok(mut all) = lineage(store, &key(plan, image, qemu)) else { return };
    all.truncate(all.len().saturating_sub(KEPT));
    // The first stays, and so does what was aged by hand.
    for checkpoint in all.iter().filter(|c| c.manifest.key.aging["more_s"] == more.as_secs()) {
        // One in use stays.
        if let Ok(id) = store.remove(checkpoint.id()) {
            tell!("klpfarm: checkpoint {id} of an earlier night removed");
        }
    }
}

/// Whether trials of this plan may be forks of a checkpoint that the user names.
///
/// # Errors
/// What differs.
pub(crate) fn suits(checkpoint: &Checkpoint, plan: &Plan, image: &Image, qemu: &str) -> Result<(), Failure> {
    checkpoint.fits(qemu, &host::processor(plan.accel)).map_err(Failure::input)?;
    let (there, wanted) = (&checkpoint.manifest.key, key(plan, image, qemu));
    let names = |value: &serde_json::Value| -> String {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|w| w["name"].as_str()).collect::<Vec<_>>().join(", ")
    };
    // The wear is what the user chose with the checkpoint: the workload that makes it is not compared.
    let load = |value: &serde_json::Value| -> Vec<serde_json::Value> {
        let list = value.as_array().cloned().unwrap_or_default();
        list.into_iter().filter(|w| w["name"] != klpfarm_model::AGING).collect()
    };
    let shape = |key: &Key| format!("{} CPUs and {} MiB", key.cpus, key.memory_mib);
    let mut differs = Vec::new();
    if there.image != wanted.image {
        differs
            .push(format!("it was made from image {}, but the pipeline uses {}", there.image, wanted.image));
    } else if there.image_hash != wanted.image_hash {
        differs.push(format!("image {} has been rebuilt since", there.image));
    }
    if shape(there) != shape(&wanted) {
        differs.push(format!("it has {}, but the pipeline asks for {}", shape(there), shape(&wanted)));
    }
    if load(&there.workloads) != load(&wanted.workloads) {
        differs.push(format!(
            "its load is {}, but the pipeline's is {} (or their parameters differ)",
            names(&there.workloads),
            names(&wanted.workloads)
        ));
    }
    if there.farm != wanted.farm {
        differs.push("it was made by a klpfarm with another guest binary: age a new one".into());
    }
    if differs.is_empty() {
        return Ok(());
    }
    Err(Failure::input(format!("checkpoint {}: {}", checkpoint.id(), differs.join("; "))))
}

/// Read a checkpoint's files and compare them with its manifest.
pub(crate) async fn verified(checkpoint: &Checkpoint) -> Result<(), Failure> {
    let checkpoint = checkpoint.clone();
    tokio::task::spawn_blocking(move || checkpoint.verify())
        .await
        .map_err(Failure::farm)?
        .map_err(Failure::input)
}

/// What the verdict says of a checkpoint.
pub(crate) fn facts(checkpoint: &Checkpoint, made_ms: Option<u64>) -> CheckpointFacts {
    let made = &checkpoint.manifest.made;
    let vitals = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap_or_default();
    CheckpointFacts {
        id: checkpoint.id().to_owned(),
        size: checkpoint.disk_bytes(),
        made_ms,
        fresh: vitals(&made.fresh),
        reached: vitals(&made.reached),
        blind: made.blind.clone(),
        unavailable: made.unavailable.clone(),
    }
}

/// What trials of this plan run on; `from` is the checkpoint that their machines go on from.
pub(crate) fn bench(
    plan: &Arc<Plan>,
    image: &Image,
    from: Option<&Checkpoint>,
    patches: &[Vec<u8>],
    origin: Origin,
    dir: &Path,
    scratch: &Path,
) -> Result<Bench, Failure> {
    let ssh = from.map_or_else(|| image.ssh(), |checkpoint| checkpoint.ssh(image.ssh()));
    let login = Login::new(&ssh.user, &ssh.key, ssh.host_key.as_deref()).map_err(Failure::farm)?;
    let (disk, format) = image.disk();
    let spec = Spec {
        disk,
        disk_format: format.as_str().to_owned(),
        kernel: image.kernel(),
        initrd: image.initrd(),
        cmdline: image.cmdline().to_owned(),
        seed: image.seed(),
        cpus: plan.pipeline.machine.cpus,
        memory_mib: plan.pipeline.machine.memory_mib,
        accel: plan.accel,
        origin,
        group: Group::Alone,
        counted: false,
    };
    // A machine that is aged is alone.
    let jobs = if matches!(spec.origin, Origin::Template(_) | Origin::Continue(_)) { 1 } else { plan.jobs };
    Ok(Bench {
        share: host::share(jobs, spec.cpus),
        plan: Arc::clone(plan),
        spec,
        login,
        symbols: symbols(image),
        rekey: false,
        patches: Arc::new(patches.to_vec()),
        run_dir: dir.to_owned(),
        scratch: scratch.to_owned(),
    })
}

/// Where the debug symbols of an image's kernel are: an image that was made from packages has its root file system beside it.
fn symbols(image: &Image) -> Symbols {
    match image.headers() {
        _ if image.rootfs().is_some() => Symbols::Package,
        Some(tree) if tree.join("vmlinux").is_file() => Symbols::Tree(tree),
        _ => Symbols::Builder,
    }
}

/// QEMU's temporary files: on the same disk as everything else, not on a small `/tmp`.
pub(crate) fn scratch(home: &Path) -> Result<Claimed, Failure> {
    std::fs::create_dir_all(home)
        .and_then(|()| Claimed::create(home, SCRATCH))
        .map_err(|e| Failure::farm(format!("{}: {e}", home.display())))
}

/// Folders of QEMU's temporary files below the home begin so.
pub(crate) const SCRATCH: &str = ".scratch-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_write_is_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let scratch = scratch(home.path()).unwrap();
        assert_eq!(std::fs::metadata(scratch.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
