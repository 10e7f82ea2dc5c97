//! The history from the command line's side: the index is brought up to date before it is asked, and trouble with it never fails
//! a run.

use std::path::Path;

use klpfarm_history::{History, HistoryError, Refreshed};
use klpfarm_report::one_line;

use crate::failure::Failure;

/// Remember the folder of a run that begins.
pub(crate) fn begun(home: &Path, dir: &Path) {
    warn(History::open(home).and_then(|history| history.register(dir)));
}

/// Index a run that has ended.
pub(crate) fn ended(home: &Path, dir: &Path) {
    warn(History::open(home).and_then(|mut history| history.index(dir)).map(|problem| {
        if let Some(problem) = problem {
            eprintln!("klpfarm: warning: history: {}: {}", dir.display(), one_line(&problem, 300));
        }
    }));
}

fn warn(done: Result<(), HistoryError>) {
    if let Err(error) = done {
        eprintln!("klpfarm: warning: history: {}", one_line(&error.to_string(), 400));
    }
}

/// The index, up to date; what can't be read is said on standard error.
pub(crate) fn up_to_date(home: &Path) -> Result<History, Failure> {
    let mut history = History::open(home).map_err(failure)?;
    let refreshed = history.refresh().map_err(failure)?;
    say_problems(&refreshed);
    Ok(history)
}

/// Run folders that can't be read: the first few by name, the rest by number.
pub(crate) fn say_problems(refreshed: &Refreshed) {
    const MOST: usize = 5;
    for (dir, problem) in refreshed.problems.iter().take(MOST) {
        let told = one_line(problem, 300);
        // Most problems begin with the file that they are about.
        if problem.starts_with(&*dir.to_string_lossy()) {
            eprintln!("klpfarm: warning: left out: {told}");
        } else {
            eprintln!("klpfarm: warning: left out: {}: {told}", dir.display());
        }
    }
    let more = refreshed.problems.len().saturating_sub(MOST);
    if more > 0 {
        eprintln!("klpfarm: warning: left out: {more} more run folder(s) that can't be read");
    }
}

/// What can't be used is for the user to make anew; the rest is the host's.
pub(crate) fn failure(error: HistoryError) -> Failure {
    match error {
        HistoryError::Version { .. } | HistoryError::Damaged { .. } | HistoryError::Name(_) => {
            Failure::input(error)
        }
        HistoryError::Io { .. } | HistoryError::Sqlite { .. } => Failure::farm(error),
    }
}
