//! `klpfarm plan`: what a run would do. Also makes the plan for `klpfarm run`.

use std::path::PathBuf;

use klpfarm_image::Image;
use klpfarm_model::{Accel, ImageFacts, Plan, Resolved, Tier};

use crate::failure::{Failure, print, print_json};
use crate::{catalog, host, image};

/// Show what a run would do.
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
    /// Pipeline: a YAML file, or a shipped one's name (gate).
    pipeline: String,
    /// The candidate: a livepatch module.
    #[arg(long, value_name = "X.ko")]
    patch: PathBuf,
    /// Tier in question; overrides the pipeline's.
    #[arg(long)]
    tier: Option<Tier>,
    /// Seed of all variation; the same seed gives the same plan.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Machines at once; by default what fits.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// kvm or tcg; by default KVM if it really runs a guest.
    #[arg(long)]
    accel: Option<Accel>,
}

/// A plan and what it needs beside itself.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) image: Image,
    pub(crate) patch: Vec<u8>,
    pub(crate) accel_because: String,
}

/// Resolve everything; nothing is booted but the tiny guest that tries KVM.
pub(crate) async fn plan(choice: &Choice) -> Result<Planned, Failure> {
    let loaded = catalog::load(&choice.pipeline);
    let candidate = catalog::patch(&choice.patch);
    // Both are looked at before either is complained of.
    let (loaded, (patch, data)) = match (loaded, candidate) {
        (Ok(loaded), Ok(candidate)) => (loaded, candidate),
        (Err(Failure::Input(a)), Err(Failure::Input(b))) => return Err(Failure::Input(format!("{a}\n{b}"))),
        (Err(failure), _) | (_, Err(failure)) => return Err(failure),
    };
    let image = image::built(&image::store()?, &loaded.recipe)?;
    has_packages(&loaded, &image)?;
    if let Some(release) = image.release() {
        patch
            .check_release(&image.manifest.name, release)
            .map_err(|e| Failure::input(format!("patch {e}")))?;
    }
    let pipeline = &loaded.pipeline;
    let trials = pipeline.arms.loaded + pipeline.arms.quiescent + pipeline.arms.control;
    let jobs = host::jobs(choice.jobs, trials, pipeline.machine.cpus, pipeline.machine.memory_mib)?;
    let (accel, accel_because) = host::accel(choice.accel).await?;
    let facts = ImageFacts {
        name: image.manifest.name.clone(),
        hash: image.manifest.recipe_hash.clone(),
        release: image.release().map(str::to_owned),
    };
    let with = Resolved {
        image: facts,
        workloads: loaded.workloads,
        patch,
        accel,
        jobs,
        tier: choice.tier,
        seed: choice.seed,
    };
    let plan = Plan::new(pipeline, with).map_err(Failure::input)?;
    Ok(Planned { plan, image, patch: data, accel_because })
}

/// Images made here know their packages; a user's own is asked when the workload starts.
fn has_packages(loaded: &catalog::Loaded, image: &Image) -> Result<(), Failure> {
    let there = &image.manifest.packages;
    let mut problems = Vec::new();
    for workload in &loaded.workloads {
        for package in
            workload.packages.iter().filter(|p| !there.is_empty() && !there.iter().any(|t| t.name == **p))
        {
            problems.push(format!(
                "workload {} needs package {package}, which image {} does not have: add it to `packages` of the recipe",
                workload.name, image.manifest.name
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::inputs(&problems)) }
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let planned = plan(&args.choice).await?;
    let plan = &planned.plan;
    if args.json {
        print_json(plan);
        return Ok(0);
    }
    let p = &plan.pipeline;
    let workloads: Vec<&str> = plan.workloads.iter().map(|w| w.name.as_str()).collect();
    let mut text = format!(
        "patch     {} ({}), for {}\nimage     {} ({})\naccel     {}\ntier      {}\nmachine   {} CPUs, {} MiB, {} at once\nworkloads {}\nphases    age {} s, baseline {} s, soak {} s, revert {} s\n",
        plan.patch.name,
        &plan.patch.sha256[..12],
        plan.patch.release(),
        plan.image.name,
        plan.image.release.as_deref().unwrap_or("kernel unknown"),
        planned.accel_because,
        plan.tier,
        p.machine.cpus,
        p.machine.memory_mib,
        plan.jobs,
        workloads.join(", "),
        p.phases.age.as_secs(),
        p.phases.baseline.as_secs(),
        plan.soak().as_secs(),
        p.phases.revert.as_secs(),
    );
    for trial in &plan.trials {
        text.push_str(&format!(
            "trial {:<3} {:<10} applies {:.1} s into the baseline, seed {}\n",
            trial.number,
            trial.arm,
            (p.phases.baseline + trial.jitter).as_secs_f64(),
            trial.seed
        ));
    }
    text.push_str(&format!("plan      {}\n", plan.hash()));
    print(&text);
    Ok(0)
}
