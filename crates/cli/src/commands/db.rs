//! `klpfarm db`.

use klpfarm_model::counted;
use std::path::PathBuf;

use klpfarm_engine::home;
use klpfarm_history::History;
use klpfarm_report::one_line;

use crate::failure::{Failure, print};
use crate::runs_index::say_problems;

/// Manage the index of runs, `history.sqlite` in KLPFARM_HOME.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Rebuild the index from the run folders: those in KLPFARM_HOME/runs, those in the index, and those given.
    Rebuild {
        /// Run folder, or a folder that contains run folders; can be repeated.
        #[arg(long, value_name = "DIR")]
        runs: Vec<PathBuf>,
    },
}

pub(crate) fn run(command: Command) -> Result<u8, Failure> {
    let Command::Rebuild { runs } = command;
    if let Some(dir) = runs.iter().find(|dir| !dir.is_dir()) {
        return Err(Failure::input(format!(
            "--runs {}: not a folder; give a run folder, or a folder that contains run folders",
            dir.display()
        )));
    }
    let rebuilt = History::rebuild(&home()?, &runs)?;
    say_problems(&rebuilt.refreshed);
    if rebuilt.forgot {
        tell!(
            "klpfarm: warning: the old index could not be read, so run folders outside KLPFARM_HOME/runs are not in the new one unless given with --runs"
        );
    }
    for dir in &rebuilt.dropped {
        let dir = one_line(&dir.display().to_string(), 400);
        tell!("klpfarm: {dir} no longer exists: removed from the index");
    }
    print(&format!(
        "{} indexed, {} skipped, {} dropped\n",
        counted(rebuilt.refreshed.read, "run"),
        rebuilt.refreshed.problems.len(),
        rebuilt.dropped.len()
    ));
    Ok(0)
}
