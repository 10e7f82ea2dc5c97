//! The history from the command line's side: the index is brought up to date before it is asked, and trouble with it never fails
//! a run.

use std::path::Path;
use std::time::Duration;

use klpfarm_history::{History, HistoryError, Refreshed};
use klpfarm_report::one_line;

use crate::failure::Failure;

/// How long a run waits for the index: a rebuild takes seconds, and one that was stopped must hold up nobody.
const PATIENCE: Duration = Duration::from_secs(60);

/// Remember the folder of a run that begins.
pub(crate) fn begun(home: &Path, dir: &Path) {
    warn(dir, within(PATIENCE, home, dir, |history, dir| history.register(dir).map(|()| None)));
}

/// Index a run that has ended.
pub(crate) fn ended(home: &Path, dir: &Path) {
    warn(dir, within(PATIENCE, home, dir, |history, dir| history.index(dir)));
}

/// Do something with the index in a thread of its own. Whatever becomes of it, the run goes on: a thread that never gets its turn
/// ends with the process.
fn within(
    patience: Duration,
    home: &Path,
    dir: &Path,
    work: impl FnOnce(&mut History, &Path) -> Result<Option<String>, HistoryError> + Send + 'static,
) -> Option<String> {
    let (home, dir) = (home.to_owned(), dir.to_owned());
    let (told, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let done = History::open(&home).and_then(|mut history| work(&mut history, &dir));
        let _ = told.send(done.unwrap_or_else(|error| Some(error.to_string())));
    });
    // A thread that panicked told nothing either.
    result
        .recv_timeout(patience)
        .unwrap_or_else(|_| Some("the index is unavailable (locked or damaged)".to_owned()))
}

fn warn(dir: &Path, problem: Option<String>) {
    if let Some(problem) = problem {
        tell!(
            "klpfarm: warning: this run was not added to the index of runs: {}; its verdict is not affected; to add it, run `klpfarm db rebuild --runs {}`",
            one_line(&problem, 400),
            one_line(&dir.display().to_string(), 400)
        );
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
            tell!("klpfarm: warning: skipped: {told}");
        } else {
            tell!("klpfarm: warning: skipped: {}: {told}", one_line(&dir.display().to_string(), 400));
        }
    }
    let more = refreshed.problems.len().saturating_sub(MOST);
    if more > 0 {
        tell!("klpfarm: warning: skipped {more} more that cannot be read");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_not_to_be_had_holds_up_nobody() {
        let home = tempfile::tempdir().unwrap();
        let work = |_: &mut History, _: &Path| Ok(None);
        assert_eq!(within(PATIENCE, home.path(), home.path(), work), None);
        let lock = std::fs::File::options().write(true).open(home.path().join("history.lock")).unwrap();
        lock.lock().unwrap();
        let busy = within(Duration::from_millis(50), home.path(), home.path(), work).unwrap();
        assert!(busy.contains("the index is unavailable"), "{busy}");
        // A home of its own: the thread that waited for the first one may have its turn now.
        drop(lock);
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("history.sqlite"), "damaged ".repeat(100)).unwrap();
        let damaged = within(PATIENCE, home.path(), home.path(), work).unwrap();
        assert!(damaged.contains("is damaged"), "{damaged}");
        let panicked = within(PATIENCE, &home.path().join("new"), home.path(), |_, _| panic!("as told"));
        assert!(panicked.is_some());
        begun(home.path(), home.path());
        ended(home.path(), home.path());
    }
}
