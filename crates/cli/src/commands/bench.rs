//! `klpfarm bench`: what the farm itself costs on this host.

mod figure;
mod judging;
mod lab;
mod proc;
mod stages;

use std::path::PathBuf;
use std::time::Duration;

use klpfarm_model::Accel;

use crate::failure::{Failure, print, print_json};
use figure::Table;
use lab::Lab;

/// Measure the farm's own cost on this host: checkpoint, forks, applying, trials per hour, CPU and memory.
///
/// All of it is really run, from one checkpoint made for it: some 15 minutes for the pipeline `gate` under emulation. Whatever else
/// this host does makes the figures worse. A figure that misses what is expected is marked, which does not change the exit code.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    only: Option<Only>,
    /// Pipeline: a YAML file, or the name of a shipped one.
    #[arg(long, default_value = "gate")]
    pipeline: String,
    /// A harmless livepatch [default: the example `madvise-fixed`, built for the pipeline's image].
    #[arg(long, value_name = "X.ko")]
    patch: Option<PathBuf>,
    /// Uptime to age machines to, instead of the pipeline's; the longer, the more forking saves.
    #[arg(long, value_name = "10m", value_parser = klpfarm_model::duration::parse, conflicts_with = "quick")]
    aging: Option<Duration>,
    /// Take fewer samples and age the machine for at most 30 s: a smoke test, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Accelerator: kvm or tcg; by default KVM if a test guest runs, otherwise emulation (tcg).
    #[arg(long)]
    accel: Option<Accel>,
    /// Print as JSON, with every sample.
    #[arg(long)]
    json: bool,
}

/// A part that needs no machines.
#[derive(Debug, clap::Subcommand)]
enum Only {
    /// Measure what judging costs: CPU time and memory for whole runs of 300 to 10,000 made-up trials, and the time that each decision
    /// takes while such a run goes on.
    Judge {
        /// Print as JSON, with every single value.
        #[arg(long)]
        json: bool,
    },
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Forks, one after the other.
    forks: u32,
    /// Forks that are looked at again after [`Extent::load`].
    loaded_forks: u32,
    /// Trials, one after the other, that are watched until the patch is applied.
    applications: u32,
    /// Machines at once, if the host carries them, while the farm's own use is measured...
    machines: u32,
    /// ...for so long.
    window: Duration,
    /// Load on a fork until its memory is looked at again.
    load: Duration,
}

const FULL: Extent = Extent {
    forks: 10,
    loaded_forks: 3,
    applications: 6,
    machines: 8,
    window: Duration::from_secs(30),
    load: Duration::from_secs(10),
};

const QUICK: Extent =
    Extent { forks: 4, loaded_forks: 1, applications: 3, window: Duration::from_secs(10), ..FULL };

/// The quick form ages a machine to this uptime at most.
const QUICK_AGING: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    if let Some(Only::Judge { json }) = args.only {
        let table = tokio::task::block_in_place(judging::measure)?;
        show(&table, json);
        return Ok(0);
    }
    let extent = if args.quick { QUICK } else { FULL };
    let lab = Lab::prepare(&args).await?;
    let about = lab.about(&args);
    let (files, mut figures) = stages::checkpoint(&lab).await?;
    figures.extend(stages::forks(&lab, &files, extent).await?);
    figures.extend(stages::applied(&lab, &files, extent).await?);
    figures.extend(stages::farm(&lab, &files, extent).await?);
    figures.extend(stages::trials(&lab, &files).await?);
    let table = Table { about, figures };
    show(&table, args.json);
    Ok(0)
}

fn show(table: &Table, json: bool) {
    if json {
        print_json(table);
    } else {
        print(&table.text());
    }
}
