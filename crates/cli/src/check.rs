//! `klpfarm check`: is a pipeline, with all it names, sound?

use crate::catalog;
use crate::failure::{Failure, print};

/// Check pipelines without running anything.
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
                print(&format!(
                    "{name}: ok ({} workload(s), image {})\n",
                    loaded.workloads.len(),
                    loaded.recipe.name
                ));
            }
            Err(Failure::Input(text) | Failure::Farm(text) | Failure::Interrupted(text)) => {
                problems.push(text);
            }
        }
    }
    if problems.is_empty() { Ok(0) } else { Err(Failure::Input(problems.join("\n"))) }
}
