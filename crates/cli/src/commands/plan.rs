//! `klpfarm plan`: what a run would do.

use std::path::PathBuf;
use std::time::Duration;

use klpfarm_engine::checkpoint::Wanted;
use klpfarm_engine::plan::{Choice, Place, Planned, plan};
use klpfarm_model::{Accel, Arm, Length, Plan, Tier, Workload};

use crate::failure::{Failure, print, print_json};
use crate::hints;

/// Show what a run would do, without doing it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// What decides a plan.
#[derive(Debug, clap::Args)]
pub(crate) struct ChoiceArgs {
    /// Pipeline: a YAML file, or the name of a shipped one (gate, soak, qualify).
    pipeline: String,
    /// Livepatch module to test. Given several times, each is tested alone and all are stacked in this order.
    #[arg(long = "patch", value_name = "X.ko", required = true)]
    patches: Vec<PathBuf>,
    /// Tier to qualify for, instead of the pipeline's [possible values: proposed, updates, stable].
    #[arg(long)]
    tier: Option<Tier>,
    /// Verdict for the tier below, if the tier requires one.
    #[arg(long, value_name = "verdict.json")]
    prior: Option<PathBuf>,
    /// Public key that must have signed the verdict given by --prior; if repeated, all of them must have.
    #[arg(long = "prior-key", value_name = "PUB", requires = "prior")]
    prior_keys: Vec<PathBuf>,
    /// Run at most this many loaded trials, even if the tier needs more: to look for findings.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    trials: Option<u32>,
    /// Fork trials from this checkpoint (see `klpfarm checkpoint list`) instead of the one the pipeline describes.
    #[arg(long, value_name = "ID", conflicts_with = "cold")]
    checkpoint: Option<String>,
    /// Boot and age a new machine for each trial instead of forking a checkpoint.
    #[arg(long)]
    cold: bool,
    /// Random seed; the same seed gives the same plan.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of machines to run at once; by default as many as cores and memory allow.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Accelerator: kvm or tcg; by default KVM if a test guest runs, otherwise emulation (tcg).
    #[arg(long)]
    accel: Option<Accel>,
}

impl From<ChoiceArgs> for Choice {
    fn from(args: ChoiceArgs) -> Self {
        Self {
            pipeline: args.pipeline,
            patches: args.patches,
            tier: args.tier,
            prior: args.prior,
            prior_keys: args.prior_keys,
            trials: args.trials,
            checkpoint: args.checkpoint,
            cold: args.cold,
            seed: args.seed,
            jobs: args.jobs,
            accel: args.accel,
            independent: false,
        }
    }
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let planned = plan(&args.choice.into()).await?;
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
        line("reach", klpfarm_report::one_line(&hints::of_note(reach), 300));
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
