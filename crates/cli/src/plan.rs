//! `klpfarm plan`: what a run would do. Also makes the plan for `klpfarm run`.

use std::path::PathBuf;
use std::time::Duration;

use klpfarm_image::{Checkpoint, CheckpointStore, Image};
use klpfarm_model::{
    Accel, Arm, Length, Mode, Patch, Plan, Resolved, Start, Tier, Turn, Workload, check_prior,
    check_severity, needed_modules,
};

use crate::aging::Wanted;
use crate::failure::{Failure, print, print_json};
use crate::home::home;
use crate::signing::Prior;
use crate::{aging, catalog, host, image, reach};

/// Show what a run would do, without doing it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// What decides a plan.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// Pipeline: a YAML file, or the name of a shipped one (gate, soak, qualify).
    pub(crate) pipeline: String,
    /// Livepatch module to test. Given several times, each is tested alone and all are stacked in this order.
    #[arg(long = "patch", value_name = "X.ko", required = true)]
    pub(crate) patches: Vec<PathBuf>,
    /// Tier to qualify for, instead of the pipeline's [possible values: proposed, updates, stable].
    #[arg(long)]
    pub(crate) tier: Option<Tier>,
    /// Verdict for the tier below, if the tier requires one.
    #[arg(long, value_name = "verdict.json")]
    pub(crate) prior: Option<PathBuf>,
    /// Public key that must have signed the verdict given by --prior; if repeated, all of them must have.
    #[arg(long = "prior-key", value_name = "PUB", requires = "prior")]
    pub(crate) prior_keys: Vec<PathBuf>,
    /// Run at most this many loaded trials, even if the tier needs more: to look for findings.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) trials: Option<u32>,
    /// Fork trials from this checkpoint (see `klpfarm checkpoint list`) instead of the one the pipeline describes.
    #[arg(long, value_name = "ID", conflicts_with = "cold")]
    pub(crate) checkpoint: Option<String>,
    /// Boot and age a new machine for each trial instead of forking a checkpoint.
    #[arg(long)]
    pub(crate) cold: bool,
    /// Random seed; the same seed gives the same plan.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Number of machines to run at once; by default as many as cores and memory allow.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) jobs: Option<u32>,
    /// Accelerator: kvm or tcg; by default KVM if a test guest runs, otherwise emulation (tcg).
    #[arg(long)]
    pub(crate) accel: Option<Accel>,
    /// The patches have nothing to do with each other.
    #[arg(skip)]
    pub(crate) independent: bool,
}

/// A plan and what it needs beside itself.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    /// One for each turn; without a rotation, one.
    pub(crate) places: Vec<Place>,
    pub(crate) patches: Vec<Vec<u8>>,
    pub(crate) accel_because: String,
    /// First line of QEMU's version.
    pub(crate) qemu: String,
    /// Why trials boot although nobody asked for it.
    pub(crate) cold_because: Option<String>,
    /// What the reach map says of the patched functions, and what was chosen by it; a line each.
    pub(crate) reach: Vec<String>,
}

/// Where the machines of a turn come from.
pub(crate) struct Place {
    pub(crate) image: Image,
    /// The checkpoint that is forked; without it, each trial boots.
    pub(crate) checkpoint: Option<Wanted>,
}

/// Resolve everything; nothing is booted but the tiny guest that tries KVM.
pub(crate) async fn plan(choice: &Choice) -> Result<Planned, Failure> {
    resolve(catalog::load(&choice.pipeline), choice).await
}

/// Resolve everything besides the pipeline.
pub(crate) async fn resolve(
    loaded: Result<catalog::Loaded, Failure>,
    choice: &Choice,
) -> Result<Planned, Failure> {
    // Everything is looked at before anything is complained of.
    let (mut loaded, candidates) = match (loaded, candidates(&choice.patches)) {
        (Ok(loaded), Ok(candidates)) => (loaded, candidates),
        (Err(Failure::Input(a)), Err(Failure::Input(b))) => return Err(Failure::Input(format!("{a}\n{b}"))),
        (Err(failure), _) | (_, Err(failure)) => return Err(failure),
    };
    let (patches, data): (Vec<Patch>, Vec<Vec<u8>>) = candidates.into_iter().unzip();
    let (images, turns) = images(&loaded)?;
    let missing: Vec<String> = images.iter().flat_map(|image| missing_modules(&patches, image)).collect();
    if !missing.is_empty() {
        return Err(Failure::inputs(&missing));
    }
    let reach = if turns.is_empty() {
        let reached = reach::reached(&reach::Wanted {
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
    let facts = turns.first().map_or_else(|| image::image_facts(&images[0]), |t| t.image.clone());
    let pipeline = &loaded.pipeline;
    let tier = choice.tier.unwrap_or(pipeline.tier);
    let rule = loaded.tiers.rule(tier).map_err(Failure::input)?.clone();
    check_severity(&rule, tier, &patches).map_err(Failure::input)?;
    let prior = choice.prior.as_deref().map(Prior::read).transpose()?;
    check_prior(&loaded.tiers, tier, prior.as_ref().map(|p| &p.verdict), &patches, &facts)
        .map_err(Failure::input)?;
    prior.map_or(Ok(()), |prior| prior.check_signed(&choice.prior_keys, &loaded.tiers, tier))?;
    let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Failure::farm)?;
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
    Plan::new(pipeline, Resolved { jobs, ..with.clone() }).map_err(Failure::input)?;
    let (accel, accel_because) = host::accel(choice.accel).await?;
    let mut plan = Plan::new(pipeline, Resolved { accel, jobs, ..with }).map_err(Failure::input)?;
    let mut places = Vec::new();
    for (turn, image) in images.into_iter().enumerate() {
        let own = plan.of_turn(turn);
        let checkpoint = match &choice.checkpoint {
            _ if plan.start == Start::Boot => None,
            Some(id) => Some(Wanted::There(Box::new(named(id, &own, &image, &qemu)?))),
            None => Some(aging::wanted(&own, plan.rotation(), &image, &qemu)?),
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
fn images(loaded: &catalog::Loaded) -> Result<(Vec<Image>, Vec<Turn>), Failure> {
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
            image: image::image_facts(&image),
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
fn named(id: &str, plan: &Plan, image: &Image, qemu: &str) -> Result<Checkpoint, Failure> {
    let store = CheckpointStore::open(&home()?).map_err(Failure::farm)?;
    let checkpoint = store.find(id).map_err(Failure::input)?;
    aging::suits(&checkpoint, plan, image, qemu)?;
    Ok(checkpoint)
}

/// Read all candidates; what is wrong with any of them is said at once.
fn candidates(files: &[PathBuf]) -> Result<Vec<(Patch, Vec<u8>)>, Failure> {
    let (mut good, mut bad): (Vec<(Patch, Vec<u8>)>, Vec<String>) = (Vec::new(), Vec::new());
    for file in files {
        match catalog::patch(file) {
            Ok((patch, _)) if good.iter().any(|(other, _)| is_twin(other, &patch)) => {
                bad.push(format!("patch {}: another patch has the name {} too", file.display(), patch.name));
            }
            Ok(candidate) => good.push(candidate),
            Err(Failure::Input(text)) => bad.push(text),
            Err(failure) => return Err(failure),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(Failure::inputs(&bad)) }
}

/// Whether one machine could not take both; one for another kernel goes to another image.
fn is_twin(a: &Patch, b: &Patch) -> bool {
    a.name == b.name && a.release() == b.release()
}

/// Images made here know their packages; a user's own is asked when the workload starts.
fn has_packages(workloads: &[Workload], image: &Image) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for workload in workloads {
        for package in image::missing_packages(workload, image) {
            problems.push(format!(
                "workload {} needs package {package}, which image {} does not have: add it to `packages` of the recipe",
                workload.name, image.manifest.name
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::inputs(&problems)) }
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

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let planned = plan(&args.choice).await?;
    if args.json {
        print_json(&planned.plan);
        return Ok(0);
    }
    print(&text(&planned));
    Ok(0)
}

fn text(planned: &Planned) -> String {
    let plan = &planned.plan;
    let p = &plan.pipeline;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10}{value}\n"));
    for patch in &plan.patches {
        line("patch", format!("{} ({}), for {}", patch.name, &patch.sha256[..12], patch.release()));
    }
    if !plan.mode.is_rotation() {
        let release = plan.image.release.as_deref().unwrap_or("kernel unknown");
        line("image", format!("{} ({release})", plan.image.name));
    }
    line("accel", planned.accel_because.clone());
    line(
        "tier",
        format!(
            "{}: at most {:.1} % of applications fail, at {:.0} % confidence: {} clean loaded trials",
            plan.tier,
            plan.rule.applications.max_failure_rate * 100.0,
            plan.rule.applications.confidence * 100.0,
            plan.needed
        ),
    );
    if let Some(most) = plan.rule.exposure.max_failures_per_hour {
        line(
            "",
            format!(
                "{}: at most {most} failures per machine-hour in force, at {:.0} % confidence: {} clean soaks",
                plan.tier,
                plan.rule.confidence_of(Arm::Soak) * 100.0,
                plan.soaks
            ),
        );
    }
    line("machine", format!("{} CPUs, {} MiB, {} at once", p.machine.cpus, p.machine.memory_mib, plan.jobs));
    let names = |all: &[Workload]| all.iter().map(|w| w.name.as_str()).collect::<Vec<_>>().join(", ");
    if !plan.mode.is_rotation() {
        line("workloads", names(&plan.workloads));
    }
    for reach in &planned.reach {
        line("reach", klpfarm_report::one_line(reach, 300));
    }
    for (i, place) in planned.places.iter().enumerate() {
        if let Some(turn) = plan.mode.turns().get(i) {
            let kernel = turn.image.release.as_deref().unwrap_or("kernel unknown");
            line("turn", format!("{} ({kernel}): {}", turn.name(), names(&turn.workloads)));
        }
        line("trials", start(plan, place));
    }
    if let Some(rotation) = plan.rotation() {
        let hours = rotation.duration.as_secs_f64() / 3600.0;
        line("duration", format!("{hours:.1} h, repeating this round"));
    }
    line(
        "phases",
        format!(
            "settle {} s, baseline {} s and up to 2 s, soak {} s, revert {} s",
            p.phases.settle.as_secs(),
            p.phases.baseline.as_secs(),
            plan.soak().as_secs(),
            p.phases.revert.as_secs()
        ),
    );
    if plan.soaks > 0 {
        line(
            "",
            format!(
                "short trials: settle {} s and up to 2 s, then until everything makes progress with the patch, {} s or more",
                p.phases.settle.as_secs(),
                p.phases.observe.as_secs()
            ),
        );
    }
    let first_pair = plan.trials.iter().position(|t| t.arm == Arm::Control && t.partner.is_some());
    let (planned, pairs) = plan.trials.split_at(first_pair.unwrap_or(plan.trials.len()));
    for trial in planned {
        let names: Vec<&str> = plan.names(trial).collect();
        let baseline = match trial.length {
            Length::Long => p.phases.baseline,
            Length::Short => Duration::ZERO,
        };
        let applies = (p.phases.settle + baseline + trial.jitter).as_secs_f64();
        let what = if names.is_empty() {
            "no patch".to_owned()
        } else {
            format!("{} {applies:.1} s after starting", names.join(", then "))
        };
        let turn = plan.mode.turns().get(trial.turn).map(|t| format!("{}: ", t.name())).unwrap_or_default();
        line("trial", format!("{:<4}{:<10} {turn}{what}, seed {}", trial.number, trial.arm, trial.seed));
    }
    if !pairs.is_empty() {
        line(
            "pairs",
            format!(
                "up to {} of a control and a patched trial, after the first failure of a patched trial",
                pairs.len() / 2
            ),
        );
    }
    let estimate = plan.estimate().as_secs();
    if plan.rotation().is_none() {
        line("estimate", format!("{} min {:02} s if nothing is found", estimate / 60, estimate % 60));
    }
    line("plan", plan.hash());
    text
}

/// How the machines of a turn come to be.
fn start(plan: &Plan, place: &Place) -> String {
    let uptime = plan.pipeline.aging.uptime.as_secs();
    match &place.checkpoint {
        None => format!("boot, each machine aged to an uptime of {uptime} s"),
        Some(Wanted::There(c)) => {
            format!("forks of checkpoint {}, up for {:.0} s", c.id(), c.manifest.made.uptime_s)
        }
        Some(Wanted::New(key)) => {
            format!(
                "forks of a machine that will be aged to an uptime of {uptime} s, checkpoint {}",
                key.id()
            )
        }
        Some(Wanted::Older { key, parent, more }) => format!(
            "forks of checkpoint {}, up for {:.0} s, aged for {} s more: {}",
            parent.id(),
            parent.manifest.made.uptime_s,
            more.as_secs(),
            key.id()
        ),
    }
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
