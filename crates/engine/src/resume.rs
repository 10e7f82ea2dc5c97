//! What a run that was cut off needs to go on, which must be what it was.

use std::path::Path;

use klpfarm_image::{CheckpointStore, Image};
use klpfarm_model::{Accel, Event, ImageFacts, Plan, Rotation};
use klpfarm_report::Run;
use klpfarm_vm::KvmProbe;

use crate::checkpoint::{self, Wanted};
use crate::plan::{Place, Planned};
use crate::{Error, Remedy, Result, image};

/// The plan of a run as it was made, with what it takes beside itself.
///
/// # Errors
/// If any of that is no longer what it was.
pub async fn planned(plan: Plan, past: &[Event], dir: &Path, home: &Path) -> Result<Planned> {
    if plan.farm != env!("CARGO_PKG_VERSION") {
        return Err(Error::input(format!(
            "{}: this run was started by klpfarm {}, and this is {}: a run cannot be resumed by another version; start a new run",
            dir.display(),
            plan.farm,
            env!("CARGO_PKG_VERSION")
        )));
    }
    let (qemu, _) = klpfarm_vm::qemu_version().await.map_err(Error::farm)?;
    if plan.accel == Accel::Kvm
        && let KvmProbe::Fails(why) = klpfarm_vm::probe_kvm().await.map_err(Error::farm)?
    {
        return Err(Error::farm(format!("the run was started with KVM, which does not work now: {why}")));
    }
    let images = image::store()?.list().map_err(Error::farm)?;
    let patches: Result<Vec<Vec<u8>>, _> =
        (0..plan.patches.len()).map(|i| Run::patch(dir, &plan, i)).collect();
    let mut places = Vec::new();
    for turn in 0..plan.turns() {
        let own = plan.of_turn(turn);
        let image = image_of(&own.image, &images)?;
        let checkpoint = match &own.checkpoint {
            Some(id) => Some(its_checkpoint(id, &own, plan.rotation(), past, (&image, &qemu), home)?),
            None => None,
        };
        places.push(Place { image, checkpoint });
    }
    Ok(Planned {
        accel_because: format!("{}, as when the run was started", plan.accel),
        patches: patches.map_err(Error::input)?,
        plan,
        places,
        qemu,
        cold_because: None,
        reach: Vec::new(),
    })
}

fn image_of(facts: &ImageFacts, images: &[Image]) -> Result<Image> {
    let same = |i: &&Image| i.manifest.name == facts.name && i.manifest.recipe_hash == facts.hash;
    images.iter().find(same).cloned().ok_or_else(|| {
        Error::input(format!("image {} (recipe {}) of this run no longer exists", facts.name, facts.hash))
            .with(Remedy::RebuildImage)
    })
}

/// The checkpoint that the run's trials are forks of. It is made only if no trial has begun: another would be another machine.
fn its_checkpoint(
    id: &str,
    plan: &Plan,
    rotation: Option<&Rotation>,
    past: &[Event],
    (image, qemu): (&Image, &str),
    home: &Path,
) -> Result<Wanted> {
    let store = CheckpointStore::open(home).map_err(Error::farm)?;
    if let Some(checkpoint) = store.list().map_err(Error::farm)?.into_iter().find(|c| c.id() == id) {
        checkpoint::suits(&checkpoint, plan, image, qemu)?;
        return Ok(Wanted::There(Box::new(checkpoint)));
    }
    let begun = past.iter().any(|e| e.scope.is_some_and(|s| s.trial > 0));
    let wanted = checkpoint::wanted(plan, rotation, image, qemu)?;
    if begun || wanted.id() != id {
        return Err(Error::input(format!(
            "checkpoint {id} of this run no longer exists: import it again, or start a new run"
        )));
    }
    Ok(wanted)
}
