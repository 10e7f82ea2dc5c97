//! The options that bound the disk of a run.

use klpfarm_engine::disk::Limits;
use klpfarm_model::size;

/// How much disk a run may use.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct LimitArgs {
    /// End the run cleanly when free disk space in its folder, KLPFARM_HOME or the temporary folder drops below this.
    #[arg(long, value_name = "512M", default_value = "512M", value_parser = size::parse)]
    disk_reserve: u64,
    /// End the run cleanly when its folder grows beyond this size.
    #[arg(long, value_name = "10G", value_parser = size::parse)]
    disk_limit: Option<u64>,
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Self {
        Self { reserve: args.disk_reserve, run: args.disk_limit }
    }
}
