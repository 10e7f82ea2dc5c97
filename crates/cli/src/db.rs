//! `klpfarm db`.

use std::path::PathBuf;

use klpfarm_history::History;
use klpfarm_report::one_line;

use crate::failure::{Failure, print};
use crate::{history, home};

/// The history's index, `history.sqlite` in KLPFARM_HOME.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make the index anew from the run folders: those below KLPFARM_HOME/runs, those known so far, and those named.
    Rebuild {
        /// A run folder, or a folder of run folders; may be repeated.
        #[arg(long, value_name = "DIR")]
        runs: Vec<PathBuf>,
    },
}

pub(crate) fn run(command: Command) -> Result<u8, Failure> {
    let Command::Rebuild { runs } = command;
    if let Some(dir) = runs.iter().find(|dir| !dir.is_dir()) {
        return Err(Failure::input(format!(
            "--runs {}: is no folder; name a run folder or a folder of them",
            dir.display()
        )));
    }
    let rebuilt = History::rebuild(&home::home()?, &runs).map_err(history::failure)?;
    history::say_problems(&rebuilt.refreshed);
    if rebuilt.forgot {
        tell!(
            "klpfarm: warning: the old index could not be read: run folders outside KLPFARM_HOME/runs that were not named with --runs are forgotten"
        );
    }
    for dir in &rebuilt.dropped {
        let dir = one_line(&dir.display().to_string(), 400);
        tell!("klpfarm: {dir} is gone: what the index knew of it is dropped");
    }
    print(&format!(
        "{} run(s) indexed, {} left out, {} dropped\n",
        rebuilt.refreshed.read,
        rebuilt.refreshed.problems.len(),
        rebuilt.dropped.len()
    ));
    Ok(0)
}
