//! `klpfarm age`.

use std::time::Duration;

use klpfarm_engine::aging::{self, Request};
use klpfarm_engine::disk::Limits;
use klpfarm_model::{Accel, size};

use crate::console::Console;
use crate::failure::{Failure, print, print_json};
use crate::interrupt;

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
    #[arg(long, value_name = "512M", default_value = "512M", value_parser = size::parse)]
    disk_reserve: u64,
    /// Print the checkpoint as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    if args.more < Duration::from_secs(1) {
        return Err(Failure::input("--for must be at least one second"));
    }
    let request = Request {
        from: args.from,
        time: args.more,
        pipeline: args.pipeline,
        accel: args.accel,
        limits: Limits { reserve: args.disk_reserve, run: None },
    };
    let (checkpoint, made) = aging::age(&request, &interrupt::listen(), &mut Console::default()).await?;
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
