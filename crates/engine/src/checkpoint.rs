//! Which checkpoint a plan's machines are forks of: its key, the one that is there, and whether one that is named will do.

use std::time::Duration;

use klpfarm_image::{Checkpoint, CheckpointStore, Image, Key};
use klpfarm_model::event::CheckpointFacts;
use klpfarm_model::{Plan, Rotation};

use crate::{Error, Note, Result, Watcher, home, host};

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
#[derive(Debug, Clone)]
pub enum Wanted {
    /// It is kept, and named by the user.
    There(Box<Checkpoint>),
    /// As the pipeline describes it: found by this key, or made.
    New(Key),
    /// The machine of an earlier run, so much older.
    Older {
        /// What it will be a checkpoint of.
        key: Key,
        /// The machine of the earlier run.
        parent: Box<Checkpoint>,
        /// How much older it is to be.
        more: Duration,
    },
}

impl Wanted {
    /// Its id, whether it is there or not.
    pub fn id(&self) -> String {
        match self {
            Self::There(checkpoint) => checkpoint.id().to_owned(),
            Self::New(key) | Self::Older { key, .. } => key.id(),
        }
    }
}

/// The checkpoint for a plan of one turn. With `rotation.older` that is the oldest existing checkpoint, to be aged further.
pub(crate) fn wanted(plan: &Plan, rotation: Option<&Rotation>, image: &Image, qemu: &str) -> Result<Wanted> {
    let key = key(plan, image, qemu);
    let Some(more) = rotation.map(|r| r.older).filter(|older| !older.is_zero()) else {
        return Ok(Wanted::New(key));
    };
    let store = CheckpointStore::open(&home()?).map_err(Error::farm)?;
    Ok(match lineage(&store, &key)?.pop() {
        None => Wanted::New(key),
        Some(parent) => Wanted::Older { key: older(&parent, more), parent: Box::new(parent), more },
    })
}

/// The key of what a checkpoint becomes after so much more time.
pub(crate) fn older(parent: &Checkpoint, more: Duration) -> Key {
    Key {
        aging: serde_json::json!({ "parent": parent.manifest.key.aging, "more_s": more.as_secs() }),
        parent: Some(parent.id().to_owned()),
        ..parent.manifest.key.clone()
    }
}

/// The checkpoint with this key and all that were made of it, the oldest machine last.
fn lineage(store: &CheckpointStore, first: &Key) -> Result<Vec<Checkpoint>> {
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
    let mut all = store.list().map_err(Error::farm)?;
    all.retain(|c| is_of(&c.manifest.key));
    all.sort_by(|a, b| a.manifest.made.uptime_s.total_cmp(&b.manifest.made.uptime_s));
    Ok(all)
}

/// Remove the machines of earlier nights but for the latest two: each is a whole machine on disk.
pub(crate) fn thin_out(
    store: &CheckpointStore,
    plan: &Plan,
    more: Duration,
    (image, qemu): (&Image, &str),
    watcher: &mut dyn Watcher,
) {
    const KEPT: usize = 2;
    let Ok(mut all) = lineage(store, &key(plan, image, qemu)) else { return };
    all.truncate(all.len().saturating_sub(KEPT));
    // The first stays, and so does what was aged by hand.
    for checkpoint in all.iter().filter(|c| c.manifest.key.aging["more_s"] == more.as_secs()) {
        // One in use stays.
        if let Ok(id) = store.remove(checkpoint.id()) {
            watcher.note(Note::new(format!("checkpoint {id} of an earlier night removed")));
        }
    }
}

/// Whether trials of this plan may be forks of a checkpoint that the user names.
///
/// # Errors
/// If it is one of another machine: what differs, with both values.
pub(crate) fn suits(checkpoint: &Checkpoint, plan: &Plan, image: &Image, qemu: &str) -> Result<()> {
    checkpoint.fits(qemu, &host::processor(plan.accel)).map_err(Error::input)?;
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
    Err(Error::input(format!("checkpoint {}: {}", checkpoint.id(), differs.join("; "))))
}

/// Read a checkpoint's files and compare them with its manifest.
pub(crate) async fn verified(checkpoint: &Checkpoint) -> Result<()> {
    let checkpoint = checkpoint.clone();
    tokio::task::spawn_blocking(move || checkpoint.verify()).await.map_err(Error::farm)?.map_err(Error::input)
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
