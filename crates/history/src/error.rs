//! What can go wrong with the index, and what to do. None of it harms a run.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why the index can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file or its folder can't be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was written by another version of klpfarm.
    #[error(
        "{}: has schema {found}, this klpfarm reads {expected}; `klpfarm db rebuild` makes it anew from the run folders",
        .path.display()
    )]
    Version {
        /// File.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// Ours.
        expected: i64,
    },
    /// The file is no SQLite database, or a damaged one.
    #[error("{}: is damaged ({reason}); `klpfarm db rebuild` makes it anew from the run folders", .path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// SQLite says no: another process writes, the disk is full.
    #[error("{}: {reason}; if it stays so, `klpfarm db rebuild` makes it anew from the run folders", .path.display())]
    Sqlite {
        /// File.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// A folder's name can't be kept.
    #[error("{}: is not UTF-8; the history can't keep its name", .0.display())]
    Name(PathBuf),
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> HistoryError {
    let path = path.to_owned();
    |source| HistoryError::Io { path, source }
}

/// What SQLite said of the file `path`.
pub(crate) fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> HistoryError {
    let path = path.to_owned();
    move |error| {
        let (path, reason) = (path.clone(), error.to_string());
        let damaged = match &error {
            rusqlite::Error::SqliteFailure(failure, text) => {
                matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                    // A table of the schema that is not there is damage as well.
                    || text.as_deref().is_some_and(|t| t.starts_with("no such"))
            }
            // A value of another type than the schema's.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => true,
            _ => false,
        };
        if damaged { HistoryError::Damaged { path, reason } } else { HistoryError::Sqlite { path, reason } }
    }
}
