//! A run's folder: `plan.json`, `patches/NAME.ko`, `journal.jsonl`, `verdict.json`, `junit.xml`, `trials/N/`; and `run.lock` while a farm
//! works in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use klpfarm_model::plan::SCHEMA;
use klpfarm_model::{Event, Plan, Verdict};

use crate::{Journal, RunLock, journal, junit};

/// A run on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The plan.
    pub plan: Plan,
    /// What happened.
    pub events: Vec<Event>,
    /// The journal's last line was incomplete and is left out.
    pub torn: bool,
}

/// What is wrong with a run folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file can't be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder has something in it.
    #[error("{} is not empty: a run needs a folder of its own", .0.display())]
    NotEmpty(PathBuf),
    /// No run was ever begun in it.
    #[error("{}: not a run folder: it has no plan.json", .0.display())]
    NoRun(PathBuf),
    /// Another farm works in it.
    #[error("{}: another klpfarm works in it ({owner}); wait for it to end", .dir.display())]
    Busy {
        /// The run folder.
        dir: PathBuf,
        /// What the other wrote about itself.
        owner: String,
    },
    /// A file's content is not what it should be.
    #[error("{}{}: {reason}", .path.display(), .line.map(|l| format!(":{l}")).unwrap_or_default())]
    Content {
        /// File.
        path: PathBuf,
        /// Line, from 1, where it can be told.
        line: Option<usize>,
        /// What is wrong and what to do.
        reason: String,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    |source| FolderError::Io { path, source }
}

impl Run {
    /// Whether a run can begin in `dir`.
    ///
    /// # Errors
    /// If it has something in it or can't be read.
    pub fn is_free(dir: &Path) -> Result<(), FolderError> {
        match fs::read_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io(dir)(error)),
            Ok(mut entries) => match entries.next() {
                Some(_) => Err(FolderError::NotEmpty(dir.to_owned())),
                None => Ok(()),
            },
        }
    }

    /// Begin a run in `dir`, which must not exist or be empty: keeps the candidates and the plan, and opens the journal.
    ///
    /// # Errors
    /// If the folder has something in it, or can't be written.
    pub fn create(dir: &Path, plan: &Plan, patches: &[Vec<u8>]) -> Result<Journal, FolderError> {
        Self::is_free(dir)?;
        let kept = dir.join("patches");
        fs::create_dir_all(&kept).map_err(io(&kept))?;
        let lock = RunLock::take(dir)?;
        for (i, data) in patches.iter().enumerate() {
            write_atomically(&dir.join(plan.patch_file(i)), data)?;
        }
        let text = serde_json::to_string_pretty(plan).unwrap_or_default() + "\n";
        let path = dir.join("journal.jsonl");
        let journal = Journal::create(&path, lock).map_err(io(&path))?;
        // The plan comes last: a folder that has one can be resumed.
        write_atomically(&dir.join("plan.json"), text.as_bytes())?;
        let all = [dir, kept.as_path()];
        all.iter().try_for_each(|d| fs::File::open(d).and_then(|d| d.sync_all()).map_err(io(d)))?;
        Ok(journal)
    }

    /// Go on with the run in `dir`: the journal's torn end, if any, is cut off, and the next event goes behind what is left.
    ///
    /// # Errors
    /// As for [`Self::open`], and if another farm works in the folder.
    pub fn resume(dir: &Path) -> Result<(Self, Journal), FolderError> {
        // Not to leave a lock in a folder that is none of ours.
        if !dir.join("plan.json").is_file() {
            return Err(FolderError::NoRun(dir.to_owned()));
        }
        let lock = RunLock::take(dir)?;
        let run = Self::open(dir)?;
        let path = dir.join("journal.jsonl");
        let journal = Journal::resume(&path, lock).map_err(io(&path))?;
        Ok((run, journal))
    }

    /// A candidate as the run folder keeps it, by its position in the plan.
    ///
    /// # Errors
    /// If it is not there, or not what the plan was made for.
    pub fn patch(dir: &Path, plan: &Plan, patch: usize) -> Result<Vec<u8>, FolderError> {
        let path = dir.join(plan.patch_file(patch));
        let data = fs::read(&path).map_err(io(&path))?;
        if klpfarm_model::Patch::sha256_of(&data) == plan.patches[patch].sha256 {
            return Ok(data);
        }
        let reason = "is not the file that the plan was made for: its SHA-256 differs".to_owned();
        Err(FolderError::Content { path, line: None, reason })
    }

    /// Read the run in `dir`.
    ///
    /// # Errors
    /// If it is no run folder or its files are damaged; names the file and line.
    pub fn open(dir: &Path) -> Result<Self, FolderError> {
        let path = dir.join("plan.json");
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let content =
            |line: Option<usize>, reason: String| FolderError::Content { path: path.clone(), line, reason };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| content(Some(e.line()), e.to_string()))?;
        if value["schema"] != SCHEMA {
            let reason = format!(
                "has schema {}; this klpfarm reads {SCHEMA}: judge it with the klpfarm that made it, or run again",
                value["schema"]
            );
            return Err(content(None, reason));
        }
        let plan = serde_json::from_value(value).map_err(|e| content(None, e.to_string()))?;
        let path = dir.join("journal.jsonl");
        let text = fs::read(&path).map_err(io(&path))?;
        let (events, torn) = journal::read(&text).map_err(|(line, reason)| FolderError::Content {
            path,
            line: Some(line),
            reason,
        })?;
        Ok(Self { plan, events, torn })
    }

    /// Write `verdict.json` and `junit.xml` into `dir`.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn conclude(dir: &Path, plan: &Plan, events: &[Event], verdict: &Verdict) -> Result<(), FolderError> {
        let text = serde_json::to_string_pretty(verdict).unwrap_or_default() + "\n";
        write_atomically(&dir.join("verdict.json"), text.as_bytes())?;
        write_atomically(&dir.join("junit.xml"), &junit(plan, events, verdict))
    }
}

/// Write a file so that it is there whole or not at all.
///
/// # Errors
/// As the file system says, with the path.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), FolderError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".klpfarm-").tempfile_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        // A temporary file is private; a report is for everybody who may read the folder.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(file.path(), mode)?;
        file.persist(path).map_err(|e| e.error)
    };
    write().map(|_| ()).map_err(io(path))
}
