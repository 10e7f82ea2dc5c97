//! Bringing the index up to date with the run folders.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use klpfarm_model::{Plan, consistency};
use klpfarm_report::Run;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::error::{io, sqlite};
use crate::extract::{RunRow, extract};
use crate::schema::whole;
use crate::write::insert;
use crate::{History, HistoryError};

/// What a refresh did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Runs whose journal was new or had changed.
    pub read: usize,
    /// Runs that were left as they are in the index.
    pub unchanged: usize,
    /// Run folders that are there no more; their runs are kept.
    pub gone: usize,
    /// Run folders that can't be read, and why.
    pub problems: Vec<(PathBuf, String)>,
}

/// What a rebuild did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// What was read.
    pub refreshed: Refreshed,
    /// Folders that the old index knew and that are there no more.
    pub dropped: Vec<PathBuf>,
    /// The old index could not be read: run folders outside the home that were not named are forgotten.
    pub forgot: bool,
}

/// A journal's size and time of last change: the same for the same content, as far as it can be told without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: i64,
    mtime_ns: i64,
}

/// What another version of the rules would say may differ.
const FARM: &str = env!("CARGO_PKG_VERSION");

impl History {
    /// Remember a run folder, wherever it lies.
    ///
    /// # Errors
    /// If the index can't be written.
    pub fn register(&self, dir: &Path) -> Result<(), HistoryError> {
        let path = canonical(dir)?;
        let insert = "INSERT OR IGNORE INTO folders (path) VALUES (?1)";
        self.db.execute(insert, [path]).map(|_| ()).map_err(sqlite(&self.file()))
    }

    /// Read one run folder if its journal has changed, and remember it. Gives what is wrong with it, if anything.
    ///
    /// # Errors
    /// If the index can't be written.
    pub fn index(&mut self, dir: &Path) -> Result<Option<String>, HistoryError> {
        self.register(dir)?;
        let path = canonical(dir)?;
        let mut done = Refreshed::default();
        self.read_folder(&path, &mut done)?;
        Ok(done.problems.pop().map(|(_, problem)| problem))
    }

    /// Bring the index up to date: runs below `runs/` of the home and all folders registered. A run is read again only if its journal has
    /// changed.
    ///
    /// # Errors
    /// If the index can't be written, or the folder of runs not be read.
    pub fn refresh(&mut self) -> Result<Refreshed, HistoryError> {
        for dir in run_folders(&self.home.join("runs"))? {
            self.register(&dir)?;
        }
        let mut done = Refreshed::default();
        // Those that are gone first: a copy may take the place of one.
        let mut there = Vec::new();
        for (path, gone) in self.folders()? {
            if is_gone(Path::new(&path)) {
                self.mark_gone(&path, gone)?;
                done.gone += 1;
            } else {
                there.push(path);
            }
        }
        for path in there {
            self.read_folder(&path, &mut done)?;
        }
        Ok(done)
    }

    /// Make the index anew: from the runs below `runs/` of the home, the folders that the old index knows, and `more`, each a run folder
    /// or a folder of run folders. Runs whose folders are gone can't be read again and are dropped: the index says nothing that no
    /// journal says.
    ///
    /// # Errors
    /// If one of `more` is no such folder, or the index can't be written.
    pub fn rebuild(home: &Path, more: &[PathBuf]) -> Result<Rebuilt, HistoryError> {
        let mut named = Vec::new();
        for dir in more {
            let found = if is_run(dir) { vec![dir.clone()] } else { run_folders(dir)? };
            if found.is_empty() {
                let nothing = std::io::Error::other("holds no run folder (one with a plan.json)");
                return Err(io(dir)(nothing));
            }
            for dir in found {
                named.push(canonical(&dir)?);
            }
        }
        let mut rebuilt = Rebuilt::default();
        let mut history = Self::exchange(home, |known| {
            rebuilt.forgot = known.is_err();
            let known = known.unwrap_or_default();
            let (there, gone): (Vec<String>, Vec<String>) =
                known.into_iter().partition(|path| !is_gone(Path::new(path)));
            rebuilt.dropped = gone.into_iter().map(PathBuf::from).collect();
            there.into_iter().chain(named).collect()
        })?;
        rebuilt.refreshed = history.refresh()?;
        Ok(rebuilt)
    }

    fn folders(&self) -> Result<Vec<(String, bool)>, HistoryError> {
        let all = || {
            let mut query = self.db.prepare("SELECT path, gone FROM folders ORDER BY id")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()
        };
        all().map_err(sqlite(&self.file()))
    }

    fn mark_gone(&self, path: &str, already: bool) -> Result<(), HistoryError> {
        if already {
            return Ok(());
        }
        let mark = || {
            // A folder that never became a run leaves nothing to keep.
            self.db.execute(
                "DELETE FROM folders WHERE path = ?1 AND NOT EXISTS (SELECT 1 FROM runs WHERE folder = folders.id)",
                [path],
            )?;
            self.db.execute("UPDATE folders SET gone = 1 WHERE path = ?1", [path])?;
            self.db.execute(
                "UPDATE folders SET size = NULL WHERE copy_of = (SELECT id FROM folders WHERE path = ?1)",
                [path],
            )
        };
        mark().map(|_| ()).map_err(sqlite(&self.file()))
    }

    fn read_folder(&mut self, path: &str, done: &mut Refreshed) -> Result<(), HistoryError> {
        let dir = Path::new(path);
        // Before reading: what is written meanwhile is read the next time.
        let stamp = stamp(dir);
        let known = self.known(path).map_err(sqlite(&self.file()))?;
        let problem = match known {
            Some((old, problem)) if old == stamp && stamp.is_some() => {
                done.unchanged += usize::from(problem.is_none());
                problem
            }
            _ => {
                let read = Run::open(dir).map_err(|error| error.to_string()).and_then(agrees);
                let read = read.map(|run| (extract(&run.plan, &run.events), run.plan));
                let problem = self.keep(path, stamp, read).map_err(sqlite(&self.file()))?;
                done.read += usize::from(problem.is_none());
                problem
            }
        };
        done.problems.extend(problem.map(|problem| (dir.to_owned(), problem)));
        Ok(())
    }

    /// Stamp and problem of a folder as it was last read by this version.
    fn known(&self, path: &str) -> rusqlite::Result<Option<(Option<Stamp>, Option<String>)>> {
        let query = "SELECT size, mtime_ns, problem FROM folders WHERE path = ?1 AND farm = ?2 AND gone = 0";
        let row = |row: &rusqlite::Row<'_>| {
            let stamp = match (row.get(0)?, row.get(1)?) {
                (Some(size), Some(mtime_ns)) => Some(Stamp { size, mtime_ns }),
                _ => None,
            };
            Ok((stamp, row.get(2)?))
        };
        self.db.query_row(query, [path, FARM], row).optional()
    }

    /// Keep what was read of a folder, all of it or nothing.
    fn keep(
        &mut self,
        path: &str,
        stamp: Option<Stamp>,
        read: Result<(RunRow, Plan), String>,
    ) -> rusqlite::Result<Option<String>> {
        let change = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let folder: i64 = match folder_id(&change, path)? {
            Some(id) => id,
            // Another process made the index anew, or took the folder for gone, meanwhile.
            None => {
                change.execute("INSERT INTO folders (path) VALUES (?1)", [path])?;
                change.last_insert_rowid()
            }
        };
        let mut copy_of = None;
        let problem = match read {
            Err(problem) => Some(problem),
            Ok((row, plan)) => {
                copy_of = other_folder(&change, folder, &row)?;
                match &copy_of {
                    Some((_, other)) => {
                        change.execute("DELETE FROM runs WHERE folder = ?1", [folder])?;
                        Some(format!("is a copy of {other}, and is not counted twice"))
                    }
                    None => {
                        // Without a beginning in its journal nothing has run: the time of the folder will do.
                        let fallback = stamp.map_or(0, |s| s.mtime_ns / 1_000_000);
                        insert(&change, folder, &plan, &row, row.started_ms.unwrap_or(fallback))?;
                        None
                    }
                }
            }
        };
        change.execute(
            "UPDATE folders SET size = ?2, mtime_ns = ?3, farm = ?4, gone = 0, problem = ?5, copy_of = ?6 WHERE id = ?1",
            params![
                folder,
                stamp.map(|s| s.size),
                stamp.map(|s| s.mtime_ns),
                FARM,
                problem,
                copy_of.map(|(id, _)| id)
            ],
        )?;
        change.commit()?;
        Ok(problem)
    }
}

/// The run, unless its documents contradict each other. Another version of the rules may differ: its runs stay in the trends.
fn agrees(run: Run) -> Result<Run, String> {
    if run.plan.farm != FARM {
        return Ok(run);
    }
    let wrong = consistency(&run.plan, &run.events);
    match wrong.split_first() {
        None => Ok(run),
        Some((first, [])) => Err(format!("its plan and journal do not agree: {first}")),
        Some((first, more)) => Err(format!(
            "its plan and journal do not agree: {first}; `klpfarm judge` says {} more",
            more.len()
        )),
    }
}

fn folder_id(db: &Connection, path: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT id FROM folders WHERE path = ?1", [path], |row| row.get(0)).optional()
}

/// The folder that holds the same run, if it is still there; if not, the run has moved, and the old place is forgotten.
fn other_folder(
    change: &Transaction<'_>,
    folder: i64,
    row: &RunRow,
) -> rusqlite::Result<Option<(i64, String)>> {
    let query = "SELECT f.id, f.path FROM folders f JOIN runs r ON r.folder = f.id WHERE r.identity = ?1 AND f.id <> ?2";
    let other: Option<(i64, String)> = change
        .query_row(query, params![row.identity, folder], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match other {
        Some((id, path)) if is_gone(Path::new(&path)) => {
            change.execute("DELETE FROM folders WHERE id = ?1", [id])?;
            Ok(None)
        }
        other => Ok(other),
    }
}

fn stamp(dir: &Path) -> Option<Stamp> {
    let meta = fs::metadata(dir.join("journal.jsonl")).ok()?;
    let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    Some(Stamp { size: whole(meta.len()), mtime_ns })
}

fn is_run(dir: &Path) -> bool {
    dir.join("plan.json").is_file()
}

/// Only what is not there is gone: a folder that can't be looked into may come back.
fn is_gone(dir: &Path) -> bool {
    matches!(fs::metadata(dir.join("plan.json")), Err(e) if e.kind() == ErrorKind::NotFound)
}

/// The run folders in `dir`, by name; none if it is not there.
fn run_folders(dir: &Path) -> Result<Vec<PathBuf>, HistoryError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io(dir))?,
    };
    let mut dirs = Vec::new();
    for entry in entries {
        dirs.push(entry.map_err(io(dir))?.path());
    }
    dirs.retain(|dir| is_run(dir));
    dirs.sort();
    Ok(dirs)
}

/// One name for one folder.
fn canonical(dir: &Path) -> Result<String, HistoryError> {
    let path = fs::canonicalize(dir).map_err(io(dir))?;
    path.into_os_string().into_string().map_err(|name| HistoryError::Name(name.into()))
}
