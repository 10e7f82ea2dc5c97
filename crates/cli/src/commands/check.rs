//! `klpfarm check`: is a pipeline, with all it names, sound?

use klpfarm_engine::catalog;
use klpfarm_model::counted;

use crate::failure::{Failure, print};

/// Check pipeline files without running anything.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pipeline files.
    #[arg(required = true)]
    pipelines: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let mut problems = Vec::new();
    for name in &args.pipelines {
        match catalog::load(name) {
            Ok(loaded) => {
                let what = match loaded.turns.len() {
                    0 => format!(
                        "{}, image {}",
                        counted(loaded.workloads.len(), "workload"),
                        loaded.recipe.name
                    ),
                    turns => format!("{} of images and loads", counted(turns, "combination")),
                };
                print(&format!("{name}: ok ({what})\n"));
            }
            Err(error) => problems.push(error),
        }
    }
    if problems.is_empty() { Ok(0) } else { Err(Failure::inputs(&problems)) }
}
