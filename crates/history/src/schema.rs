//! The file: its tables, its version, who may touch it when.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use crate::HistoryError;
use crate::error::{io, sqlite};

/// `user_version` of the file: raised with each change of the tables; there are no migrations, the journals are read again.
pub(crate) const SCHEMA: i64 = 2;

/// How long a writer waits for another one: indexing the largest run takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Documented in docs/history.md.
const TABLES: &str = "
CREATE TABLE folders (
    id       INTEGER PRIMARY KEY,
    path     TEXT NOT NULL UNIQUE,
    size     INTEGER,
    mtime_ns INTEGER,
    farm     TEXT,
    gone     INTEGER NOT NULL DEFAULT 0,
    problem  TEXT,
    copy_of  INTEGER REFERENCES folders (id) ON DELETE SET NULL
) STRICT;
CREATE TABLE runs (
    id          INTEGER PRIMARY KEY,
    folder      INTEGER NOT NULL UNIQUE REFERENCES folders (id) ON DELETE CASCADE,
    identity    TEXT NOT NULL UNIQUE,
    started_ms  INTEGER NOT NULL,
    took_ms     INTEGER NOT NULL,
    tier        TEXT NOT NULL,
    image       TEXT NOT NULL,
    release     TEXT,
    accel       TEXT NOT NULL,
    pipeline    TEXT NOT NULL,
    farm        TEXT NOT NULL,
    apart       INTEGER NOT NULL,
    ended       INTEGER NOT NULL,
    interrupted INTEGER NOT NULL,
    clean       INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    unexplained     INTEGER NOT NULL,
    void        INTEGER NOT NULL
) STRICT;
CREATE INDEX runs_started ON runs (started_ms);
CREATE TABLE patches (
    run          INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    position     INTEGER NOT NULL,
    name         TEXT NOT NULL,
    sha256       TEXT NOT NULL,
    outcome      TEXT,
    failed       INTEGER NOT NULL,
    clean        INTEGER NOT NULL,
    failure_rate REAL,
    confidence   REAL,
    PRIMARY KEY (run, position)
) STRICT;
CREATE TABLE trials (
    run        INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    arm        TEXT NOT NULL,
    image      TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    took_ms    INTEGER NOT NULL,
    night      TEXT NOT NULL,
    ended      TEXT,
    valid      INTEGER NOT NULL,
    PRIMARY KEY (run, number)
) STRICT;
CREATE INDEX trials_night ON trials (night);
CREATE TABLE applied (
    run    INTEGER NOT NULL,
    trial  INTEGER NOT NULL,
    patch  TEXT NOT NULL,
    PRIMARY KEY (run, trial, patch),
    FOREIGN KEY (run, trial) REFERENCES trials (run, number) ON DELETE CASCADE
) STRICT;
CREATE TABLE findings (
    run            INTEGER NOT NULL,
    trial          INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    phase          TEXT NOT NULL,
    kind           TEXT NOT NULL,
    title          TEXT NOT NULL,
    after_apply_ms INTEGER,
    in_patch       INTEGER NOT NULL,
    attribution    TEXT,
    FOREIGN KEY (run, trial) REFERENCES trials (run, number) ON DELETE CASCADE
) STRICT;
CREATE INDEX findings_trial ON findings (run, trial);
CREATE INDEX findings_title ON findings (title);
CREATE TABLE rates (
    run       INTEGER NOT NULL,
    trial     INTEGER NOT NULL,
    phase     TEXT NOT NULL,
    workload  TEXT NOT NULL,
    ops       INTEGER NOT NULL,
    window_ms INTEGER NOT NULL,
    PRIMARY KEY (run, trial, phase, workload),
    FOREIGN KEY (run, trial) REFERENCES trials (run, number) ON DELETE CASCADE
) STRICT;
CREATE TABLE checkpoints (
    run      INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    id       TEXT NOT NULL,
    bytes    INTEGER NOT NULL,
    made_ms  INTEGER,
    uptime_s REAL NOT NULL,
    PRIMARY KEY (run, id)
) STRICT;
";

/// The index of all runs of a home. Keep it open for a moment only: a rebuild waits for everybody to close it.
#[derive(Debug)]
pub struct History {
    // Fields are dropped in their order: the file is closed before the lock is.
    pub(crate) db: Connection,
    pub(crate) home: PathBuf,
    /// Shared by all who have the file open; a rebuild, which exchanges the file, takes it alone.
    _lock: File,
}

impl History {
    /// Open the index in `home`; it is made if there is none.
    ///
    /// # Errors
    /// If the file is of another version, damaged or can't be written.
    pub fn open(home: &Path) -> Result<Self, HistoryError> {
        let lock = lock_file(home)?;
        lock.lock_shared().map_err(io(home))?;
        let file = file(home);
        if is_empty(&file) {
            // Whoever is first makes the tables; a file that another process only just began is not looked at.
            lock.unlock().map_err(io(home))?;
            lock.lock().map_err(io(home))?;
            if is_empty(&file) {
                create(&file)?;
            }
            lock.unlock().map_err(io(home))?;
            lock.lock_shared().map_err(io(home))?;
        }
        let db = connect(&file)?;
        let found = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite(&file))?;
        if found != SCHEMA {
            return Err(HistoryError::Version { path: file, found, expected: SCHEMA });
        }
        Ok(Self { db, home: home.to_owned(), _lock: lock })
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        file(&self.home)
    }

    /// Exchange the file for one that knows but folders, and open it: `folders` names them, given those that the old one knew, if it
    /// can be read. Waits until nobody has the old one open.
    pub(crate) fn exchange(
        home: &Path,
        folders: impl FnOnce(Result<Vec<String>, HistoryError>) -> Vec<String>,
    ) -> Result<Self, HistoryError> {
        let lock = lock_file(home)?;
        lock.lock().map_err(io(home))?;
        let (old, new) = (file(home), home.join(".history-new.sqlite"));
        // Whatever its version: each schema has had this table with this column, and each must.
        let known = || {
            let db = connect(&old)?;
            let paths = || {
                let mut query = db.prepare("SELECT path FROM folders ORDER BY id")?;
                query.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()
            };
            paths().map_err(sqlite(&old))
        };
        let folders = folders(if is_empty(&old) { Ok(Vec::new()) } else { known() });
        remove(&new)?;
        create(&new)?;
        let mut db = connect(&new)?;
        let insert = |db: &mut Connection| {
            let change = db.transaction()?;
            for path in &folders {
                change.execute("INSERT OR IGNORE INTO folders (path) VALUES (?1)", [path])?;
            }
            change.commit()
        };
        insert(&mut db).map_err(sqlite(&new))?;
        db.close().map_err(|(_, error)| sqlite(&new)(error))?;
        // The write-ahead log of the old file would be taken for that of the new one.
        for end in ["-wal", "-shm"] {
            remove_one(&with_end(&old, end))?;
        }
        fs::rename(&new, &old).map_err(io(&old))?;
        lock.unlock().map_err(io(home))?;
        drop(lock);
        Self::open(home)
    }
}

/// `history.sqlite` in the home.
pub(crate) fn file(home: &Path) -> PathBuf {
    home.join("history.sqlite")
}

fn with_end(file: &Path, end: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn lock_file(home: &Path) -> Result<File, HistoryError> {
    fs::create_dir_all(home).map_err(io(home))?;
    let path = home.join("history.lock");
    File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))
}

fn is_empty(file: &Path) -> bool {
    fs::metadata(file).map_or(true, |m| m.len() == 0)
}

fn connect(file: &Path) -> Result<Connection, HistoryError> {
    let open = || {
        let db = Connection::open(file)?;
        db.busy_timeout(PATIENCE)?;
        db.pragma_update(None, "foreign_keys", true)?;
        // The journals are synced; an index that lost its last change is brought up to date again.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(db)
    };
    open().map_err(sqlite(file))
}

/// Make the tables in a new file.
fn create(file: &Path) -> Result<(), HistoryError> {
    let db = connect(file)?;
    let make = || {
        // Readers and one writer do not wait for each other.
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"))
    };
    make().map_err(sqlite(file))
}

fn remove(file: &Path) -> Result<(), HistoryError> {
    for end in ["", "-wal", "-shm"] {
        remove_one(&with_end(file, end))?;
    }
    Ok(())
}

fn remove_one(file: &Path) -> Result<(), HistoryError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(file)(error)),
        _ => Ok(()),
    }
}

/// SQLite's integers are signed.
pub(crate) fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
