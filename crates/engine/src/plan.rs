//! From names to a plan, and what it needs beside itself.

use std::path::PathBuf;

use klpfarm_image::{Checkpoint, CheckpointStore, Image};
use klpfarm_model::{
    Accel, Mode, Patch, Plan, Resolved, Start, Tier, Turn, Workload, check_prior, check_severity,
    needed_modules,
};

use crate::checkpoint::{self, Wanted};
use crate::signing::Prior;
use crate::{Error, Kind, Note, Result, catalog, home, host, image, reach};

/// What decides a plan.
#[derive(Debug, Clone)]
pub struct Choice {
    /// A pipeline's file, or the name of a shipped one.
    pub pipeline: String,
    /// Livepatch modules. Of several, each is tested alone and all are stacked in this order.
    pub patches: Vec<PathBuf>,
    /// The tier, instead of the pipeline's.
    pub tier: Option<Tier>,
    /// The verdict for the tier below, if the tier requires one.
    pub prior: Option<PathBuf>,
    /// Public keys, each of which must have signed that verdict.
    pub prior_keys: Vec<PathBuf>,
    /// At most so many loaded trials, even if the tier needs more.
    pub trials: Option<u32>,
    /// The id of a checkpoint to fork trials from, instead of the one that the pipeline describes.
    pub checkpoint: Option<String>,
    /// Each trial boots and ages a machine of its own.
    pub cold: bool,
    /// The same seed gives the same plan.
    pub seed: u64,
    /// Machines at once; as many as fit if not given.
    pub jobs: Option<u32>,
    /// The accelerator; KVM where it works if not given.
    pub accel: Option<Accel>,
    /// The patches have nothing to do with each other: each is judged by itself.
    pub independent: bool,
}

/// A plan and what it needs beside itself.
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// One for each turn; without a rotation, one.
    pub places: Vec<Place>,
    /// The bytes of the patches, in the plan's order.
    pub patches: Vec<Vec<u8>>,
    /// Why the plan has its accelerator, in words.
    pub accel_because: String,
    /// First line of QEMU's version.
    pub qemu: String,
    /// Why trials boot although nobody asked for it.
    pub cold_because: Option<String>,
    /// What the reach map says of the patched functions, and what was chosen by it.
    pub reach: Vec<Note>,
}

/// Where the machines of a turn come from.
pub struct Place {
    /// The image that they boot, or that their checkpoint is of.
    pub image: Image,
    /// The checkpoint that is forked; without it, each trial boots.
    pub checkpoint: Option<Wanted>,
}

/// Resolve everything; nothing is booted but the tiny guest that tries KVM.
///
/// # Errors
/// All that is wrong with what was given, as far as it can be said at once.
pub async fn plan(choice: &Choice) -> Result<Planned> {
    resolve(catalog::load(&choice.pipeline), choice).await
}

/// Resolve everything besides the pipeline.
///
/// # Errors
/// All that is wrong with what was given, as far as it can be said at once.
pub async fn resolve(loaded: Result<catalog::Loaded>, choice: &Choice) -> Result<Planned> {
    // Everything is looked at before anything is complained of.
    let (mut loaded, candidates) = match (loaded, candidates(&choice.patches)) {
        (Ok(loaded), Ok(candidates)) => (loaded, candidates),
        (Err(a), Err(b)) if (a.kind(), b.kind()) == (Kind::Input, Kind::Input) => {
            return Err(Error::inputs(&[a, b]));
        }
        (Err(failure), _) | (_, Err(failure)) => return Err(failure),
    };
    let (patches, data): (Vec<Patch>, Vec<Vec<u8>>) = candidates.into_iter().unzip();
    let (images, turns) = images(&loaded)?;
    let missing: Vec<String> = images.iter().flat_map(|image| missing_modules(&patches, image)).collect();
    if !missing.is_empty() {
        return Err(Error::inputs(&missing));
    }
    let reach = if turns.is_empty() {
        let reached = reach::reached(&reach::Request {
            image: &images[0],
            machine: loaded.pipeline.machine,
            named: &loaded.workloads,
            auto: loaded.pipeline.is_auto(),
            patches: patches.iter().zip(data.iter().map(Vec::as_slice)).collect(),
        })?;
        loaded.workloads.extend(reached.added);
        reached.lines
    } else {
        Vec::new()
    };
    let facts = turns.first().map_or_else(|| image::facts(&images[0]), |t| t.image.clone());
    let pipeline = &loaded.pipeline;
    let tier = choice.tier.unwrap_or(pipeline.tier);
    let rule = loaded.tiers.rule(tier).map_err(Error::input)?.clone();
    check_severity(&rule, tier, &patches).map_err(Error::input)?;
    let prior = choice.prior.as_deref().map(Prior::read).transpose()?;
    check_prior(&loaded.tiers, tier, prior.as_ref().map(|p| &p.verdict), &patches, &facts)
        .map_err(Error::input)?;
    prior.map_or(Ok(()), |prior| prior.check_signed(&choice.prior_keys, &loaded.tiers, tier))?;
    let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Error::farm)?;
    let can_fork = klpfarm_vm::can_fork(version);
    let mode = match turns.is_empty() {
        false => Mode::Rotation(turns),
        true if choice.independent => Mode::Independent,
        true => Mode::Single,
    };
    let with = Resolved {
        image: facts,
        workloads: loaded.workloads,
        patches,
        accel: Accel::Tcg,
        jobs: 1,
        tier,
        rule,
        trials: choice.trials,
        start: if choice.cold || can_fork.is_err() { Start::Boot } else { Start::Fork },
        seed: choice.seed,
        mode,
    };
    let shape = pipeline.machine;
    let in_step = images.iter().filter_map(Image::release).any(klpfarm_model::rewrites_itself);
    let jobs = host::jobs(choice.jobs, shape.cpus, shape.memory_mib, in_step)?;
    // What is wrong with the plan is said before a guest is booted to try KVM.
    Plan::new(pipeline, Resolved { jobs, ..with.clone() }).map_err(Error::input)?;
    let (accel, accel_because) = host::accel(choice.accel).await?;
    let mut plan = Plan::new(pipeline, Resolved { accel, jobs, ..with }).map_err(Error::input)?;
    let mut places = Vec::new();
    for (turn, image) in images.into_iter().enumerate() {
        let own = plan.of_turn(turn);
        let checkpoint = match &choice.checkpoint {
            _ if plan.start == Start::Boot => None,
            Some(id) => Some(Wanted::There(Box::new(named(id, &own, &image, &qemu)?))),
            None => Some(checkpoint::wanted(&own, plan.rotation(), &image, &qemu)?),
        };
        places.push(Place { image, checkpoint });
    }
    let id = |place: &Place| place.checkpoint.as_ref().map(Wanted::id);
    for (turn, place) in plan.mode.turns_mut().iter_mut().zip(&places) {
        turn.checkpoint = id(place);
    }
    plan.checkpoint = places.first().and_then(id);
    Ok(Planned {
        plan,
        places,
        patches: data,
        accel_because,
        qemu,
        cold_because: can_fork.err().filter(|_| !choice.cold),
        reach,
    })
}

/// The built images, one for each turn or, without a rotation, one and no turn.
fn images(loaded: &catalog::Loaded) -> Result<(Vec<Image>, Vec<Turn>)> {
    let store = image::store()?;
    if loaded.turns.is_empty() {
        let image = image::built(&store, &loaded.recipe)?;
        has_packages(&loaded.workloads, &image)?;
        return Ok((vec![image], Vec::new()));
    }
    let (mut images, mut turns) = (Vec::new(), Vec::new());
    for turn in &loaded.turns {
        let image = image::built(&store, &turn.recipe)?;
        has_packages(&turn.workloads, &image)?;
        turns.push(Turn {
            image: image::facts(&image),
            load: turn.load.clone(),
            workloads: turn.workloads.clone(),
            patches: Vec::new(),
            checkpoint: None,
        });
        images.push(image);
    }
    Ok((images, turns))
}

/// The checkpoint that the user names, if trials of this plan may be forks of it.
fn named(id: &str, plan: &Plan, image: &Image, qemu: &str) -> Result<Checkpoint> {
    let store = CheckpointStore::open(&home()?).map_err(Error::farm)?;
    let checkpoint = store.find(id).map_err(Error::input)?;
    checkpoint::suits(&checkpoint, plan, image, qemu)?;
    Ok(checkpoint)
}

/// Read all candidates; what is wrong with any of them is said at once.
fn candidates(files: &[PathBuf]) -> Result<Vec<(Patch, Vec<u8>)>> {
    let (mut good, mut bad): (Vec<(Patch, Vec<u8>)>, Vec<String>) = (Vec::new(), Vec::new());
    for file in files {
        match catalog::patch(file) {
            Ok((patch, _)) if good.iter().any(|(other, _)| is_twin(other, &patch)) => {
                bad.push(format!("patch {}: another patch has the name {} too", file.display(), patch.name));
            }
            Ok(candidate) => good.push(candidate),
            Err(error) if error.kind() == Kind::Input => bad.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(Error::inputs(&bad)) }
}

/// Whether one machine could not take both; one for another kernel goes to another image.
fn is_twin(a: &Patch, b: &Patch) -> bool {
    a.name == b.name && a.release() == b.release()
}

/// Images made here know their packages; a user's own is asked when the workload starts.
fn has_packages(workloads: &[Workload], image: &Image) -> Result<()> {
    let mut problems = Vec::new();
    for workload in workloads {
        for package in image::missing_packages(workload, image) {
            problems.push(format!(
                "workload {} needs package {package}, which image {} does not have: add it to `packages` of the recipe",
                workload.name, image.manifest.name
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::inputs(&problems)) }
}

/// Modules that the patches for this image's kernel need and that it does not have. Images made here know their modules; a user's own is
/// asked in each trial.
fn missing_modules(patches: &[Patch], image: &Image) -> Vec<String> {
    let needed = image.release().map(|release| needed_modules(patches, release)).unwrap_or_default();
    let missing = needed.into_iter().filter(|(module, _)| image.has_module(module) == Some(false));
    missing
        .map(|(module, patch)| {
            format!(
                "patch {} needs module {module}, which image {} does not have: add the package that has it to `packages` of the recipe",
                patch.file.display(),
                image.manifest.name
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use klpfarm_image::{DiskFormat, FileEntry, Manifest, Ssh};

    use super::*;

    /// An image in `dir` whose kernel 6.1 has ext4 as a file and nothing built in.
    fn image(dir: &std::path::Path, rootfs: bool) -> Image {
        let modules = dir.join("rootfs/lib/modules/6.1");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("modules.dep"), "kernel/fs/ext4/ext4.ko.xz:\n").unwrap();
        std::fs::write(modules.join("modules.builtin"), "").unwrap();
        let manifest = Manifest {
            schema: klpfarm_image::SCHEMA,
            name: "debian-12".into(),
            id: "debian-12-1".into(),
            description: String::new(),
            recipe_hash: String::new(),
            release: Some("6.1".into()),
            disk: FileEntry { path: "disk.img".into(), sha256: None, stamp: None },
            disk_format: DiskFormat::Raw,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            seed: None,
            headers: None,
            rootfs: rootfs.then(|| "rootfs".into()),
            ssh: Ssh { user: "root".into(), key: "ssh_key".into(), host_key: None },
            sources: Vec::new(),
            packages: Vec::new(),
            created: String::new(),
            tools: Vec::new(),
        };
        Image { dir: dir.to_owned(), manifest }
    }

    #[test]
    fn a_module_that_the_image_lacks_is_said_before_anything_boots() {
        let dir = tempfile::tempdir().unwrap();
        let patch = |release: &str, depends: &[&str]| Patch {
            file: "fix.ko".into(),
            name: "fix".into(),
            vermagic: format!("{release} SMP"),
            depends: depends.iter().map(|s| (*s).to_owned()).collect(),
            ..Patch::default()
        };
        let made_here = image(dir.path(), true);
        let missing = missing_modules(&[patch("6.1", &["ext4", "nf_tables"])], &made_here);
        assert_eq!(
            missing,
            [
                "patch fix.ko needs module nf_tables, which image debian-12 does not have: add the package that has it to `packages` of the recipe"
            ]
        );
        // A patch for another image, and an image that can't be looked into.
        assert!(missing_modules(&[patch("6.12", &["nf_tables"])], &made_here).is_empty());
        assert!(missing_modules(&[patch("6.1", &["nf_tables"])], &image(dir.path(), false)).is_empty());
    }
}
