//! `klpfarm resume`: a run that was cut off goes on.

use std::path::{Path, PathBuf};

use klpfarm_image::{CheckpointStore, Image};
use klpfarm_model::{Accel, Event, ImageFacts, Plan, Rotation};
use klpfarm_report::Run;
use klpfarm_vm::KvmProbe;

use crate::aging::{self, Wanted};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::judge::documents_agree;
use crate::plan::{Place, Planned};
use crate::run::{Common, conclude, go_on};
use crate::{home, image, signing};

/// Resume an interrupted run: trials that ended count, the others are repeated.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder.
    run: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let telling = args.common.telling()?;
    let dir = std::path::absolute(&args.run).map_err(Failure::input)?;
    let (run, journal) = Run::resume(&dir).map_err(Failure::input)?;
    let Run { plan, events, torn } = run;
    if torn {
        tell!("klpfarm: the last line of the journal was incomplete and was removed");
    }
    documents_agree(&dir, &plan, &events)?;
    let interrupts = Interrupts::listen();
    if klpfarm_farm::is_over(&plan, &events) {
        tell!("klpfarm: this run has already ended with this verdict:");
        return conclude(&plan, Some(events), &dir, &telling, &interrupts);
    }
    let home = home::home()?;
    let planned = planned(plan, &events, &dir, &home).await?;
    // What was signed is no longer what the journal will say.
    if std::fs::remove_file(signing::envelope_of(&dir.join("verdict.json"))).is_ok() && telling.key.is_none()
    {
        tell!(
            "klpfarm: the signature of the previous verdict was removed; sign the new one with `klpfarm sign`"
        );
    }
    let events = go_on(&planned, &home, &dir, (journal, events), args.common.limits, &interrupts).await?;
    if planned.plan.mode.is_independent() && !interrupts.first.is_cancelled() {
        tell!("klpfarm: for the results of this run: klpfarm qualify-detectors --again {}", dir.display());
    }
    conclude(&planned.plan, events, &dir, &telling, &interrupts)
}

/// The plan as it was made, with what it takes beside itself, which must be what it was.
async fn planned(plan: Plan, past: &[Event], dir: &Path, home: &Path) -> Result<Planned, Failure> {
    if plan.farm != env!("CARGO_PKG_VERSION") {
        return Err(Failure::input(format!(
            "{}: this run was started by klpfarm {}, and this is {}: a run cannot be resumed by another version; start a new run",
            dir.display(),
            plan.farm,
            env!("CARGO_PKG_VERSION")
        )));
    }
    let (qemu, _) = klpfarm_vm::qemu_version().await.map_err(Failure::farm)?;
    if plan.accel == Accel::Kvm
        && let KvmProbe::Fails(why) = klpfarm_vm::probe_kvm().await.map_err(Failure::farm)?
    {
        return Err(Failure::farm(format!("the run was started with KVM, which does not work now: {why}")));
    }
    let images = image::store()?.list().map_err(Failure::farm)?;
    let patches: Result<Vec<Vec<u8>>, _> =
        (0..plan.patches.len()).map(|i| Run::patch(dir, &plan, i)).collect();
    let mut places = Vec::new();
    for turn in 0..plan.turns() {
        let own = plan.of_turn(turn);
        let image = image_of(&own.image, &images)?;
        let checkpoint = match &own.checkpoint {
            Some(id) => Some(checkpoint(id, &own, plan.rotation(), past, (&image, &qemu), home)?),
            None => None,
        };
        places.push(Place { image, checkpoint });
    }
    Ok(Planned {
        accel_because: format!("{}, as when the run was started", plan.accel),
        patches: patches.map_err(Failure::input)?,
        plan,
        places,
        qemu,
        cold_because: None,
        reach: Vec::new(),
    })
}

fn image_of(facts: &ImageFacts, images: &[Image]) -> Result<Image, Failure> {
    let same = |i: &&Image| i.manifest.name == facts.name && i.manifest.recipe_hash == facts.hash;
    images.iter().find(same).cloned().ok_or_else(|| {
        Failure::input(format!(
            "image {} (recipe {}) of this run no longer exists: run `klpfarm image build` with the recipe that its pipeline named",
            facts.name, facts.hash
        ))
    })
}

/// The checkpoint that the run's trials are forks of. It is made only if no trial has begun: another would be another machine.
fn checkpoint(
    id: &str,
    plan: &Plan,
    rotation: Option<&Rotation>,
    past: &[Event],
    (image, qemu): (&Image, &str),
    home: &Path,
) -> Result<Wanted, Failure> {
    let store = CheckpointStore::open(home).map_err(Failure::farm)?;
    if let Some(checkpoint) = store.list().map_err(Failure::farm)?.into_iter().find(|c| c.id() == id) {
        aging::suits(&checkpoint, plan, image, qemu)?;
        return Ok(Wanted::There(Box::new(checkpoint)));
    }
    let begun = past.iter().any(|e| e.scope.is_some_and(|s| s.trial > 0));
    let wanted = aging::wanted(plan, rotation, image, qemu)?;
    if begun || wanted.id() != id {
        return Err(Failure::input(format!(
            "checkpoint {id} of this run no longer exists: import it again, or start a new run"
        )));
    }
    Ok(wanted)
}
