//! The index of runs: it is brought up to date before it is asked, and trouble with it never fails a run.

use std::path::Path;
use std::time::Duration;

use klpfarm_history::{History, HistoryError, Refreshed};

use crate::{Error, Note, Remedy, Result};

/// How long a run waits for the index: a rebuild takes seconds, and one that was stopped must hold up nobody.
const PATIENCE: Duration = Duration::from_secs(60);

/// Remember the folder of a run that begins; a note if that was not possible.
pub(crate) fn begun(home: &Path, dir: &Path) -> Option<Note> {
    within(PATIENCE, home, dir, |history, dir| history.register(dir).map(|()| None))
        .map(|why| left_out(dir, &why))
}

/// Index a run that has ended; a note if that was not possible.
pub(crate) fn ended(home: &Path, dir: &Path) -> Option<Note> {
    within(PATIENCE, home, dir, |history, dir| history.index(dir)).map(|why| left_out(dir, &why))
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

fn left_out(dir: &Path, why: &str) -> Note {
    let text =
        format!("warning: this run was not added to the index of runs: {why}; its verdict is not affected");
    Note::new(text).with(Remedy::IndexRun(dir.to_owned()))
}

/// The index, up to date, and the run folders that could not be read.
///
/// # Errors
/// If the index can't be used.
pub fn up_to_date(home: &Path) -> Result<(History, Refreshed)> {
    let mut history = History::open(home)?;
    let refreshed = history.refresh()?;
    Ok((history, refreshed))
}

impl From<HistoryError> for Error {
    /// What can't be used is for the user to make anew; the rest is the host's.
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Version { .. } | HistoryError::Damaged { .. } | HistoryError::Name(_) => {
                Error::input(error)
            }
            HistoryError::Io { .. } | HistoryError::Sqlite { .. } => Error::farm(error),
        }
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
