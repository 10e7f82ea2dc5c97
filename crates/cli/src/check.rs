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
                let what = match loaded.turns.len() {
                    0 => format!("{} workload(s), image {}", loaded.workloads.len(), loaded.recipe.name),
                    turns => format!("{turns} turn(s) of images and loads"),
                };
                print(&format!("{name}: ok ({what})\n"));
            }
            Err(Failure::Input(text) | Failure::Farm(text) | Failure::Interrupted(text)) => {
                problems.push(text);
            }
        }
    }
    if problems.is_empty() { Ok(0) } else { Err(Failure::Input(problems.join("\n"))) }
}
