//! `klpfarm reach`: which workloads call which functions.

mod ask;
mod map;

use std::path::PathBuf;
use std::time::Duration;

use klpfarm_model::Accel;

use crate::failure::Failure;

/// Show which workloads call the functions that a livepatch replaces, from the image's reach map. Boots nothing.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Livepatch module whose functions are asked for; may be repeated.
    #[arg(value_name = "PATCH.ko", required_unless_present = "functions")]
    patches: Vec<PathBuf>,
    /// Function to ask for: FUNCTION or FUNCTION@MODULE, with ,N behind it for the Nth of that name; may be repeated.
    #[arg(long = "function", value_name = "F[@MODULE]")]
    functions: Vec<String>,
    /// Image: a name, an id or a recipe file.
    #[arg(long, default_value = klpfarm_image::DEFAULT)]
    image: String,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Map(MapArgs),
}

/// Make the reach map of an image: run each workload alone in a fork of an idle machine, and count the calls of every function of the
/// kernel and its modules. What has been measured before is not measured again.
#[derive(Debug, clap::Args)]
struct MapArgs {
    /// Image: a name, an id or a recipe file.
    #[arg(long, default_value = klpfarm_image::DEFAULT)]
    image: String,
    /// Workload to measure: a name or a YAML file; may be repeated [default: all shipped ones].
    #[arg(long = "workload", value_name = "W")]
    workloads: Vec<String>,
    /// How long calls are counted, after the workload's first progress.
    #[arg(long = "for", value_name = "20s", default_value = "20s", value_parser = klpfarm_model::duration::parse)]
    window: Duration,
    /// How calls are counted: by a plugin of QEMU's emulator, or by samples of the guest's function tracer [default: plugin under emulation,
    /// tracer under KVM].
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// Measure again what has been measured before.
    #[arg(long)]
    again: bool,
    /// Accelerator: kvm or tcg; by default KVM if a test guest runs, otherwise emulation (tcg).
    #[arg(long)]
    accel: Option<Accel>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// [`klpfarm_farm::Method`] on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum MethodArg {
    Plugin,
    Tracer,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    match args.command {
        Some(Command::Map(args)) => map::run(args).await,
        None => ask::run(&ask::Asked {
            patches: &args.patches,
            functions: &args.functions,
            image: &args.image,
            json: args.json,
        }),
    }
}
