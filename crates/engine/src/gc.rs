//! What is removed from a host: what dead farms left, old runs, old checkpoints. Nothing in use is touched.

mod list;
mod policy;

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use klpfarm_image::{CheckpointStore, Store};
use klpfarm_report::{FolderError, RunLock};
use klpfarm_vm::{Group, Owner};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Note, Result, Watcher};
use policy::what_goes;
pub use policy::{Checkpoint, Policy, Run, Thing, What};

/// What is removed, and what became of it.
#[derive(Debug)]
pub struct Removal {
    /// What it is.
    pub thing: Thing,
    /// The reason for removing it.
    pub why: String,
    /// Why it could not be removed.
    pub error: Option<String>,
}

/// Remove what the policy does not keep, or only say what it is; `seen` is told of each thing when it is done.
///
/// # Errors
/// If a store can't be read. What can't be removed is no error: the thing's own says so.
pub async fn collect(
    home: &Path,
    policy: &Policy,
    dry_run: bool,
    mut seen: impl FnMut(&Removal),
) -> Result<Vec<Removal>> {
    let listing = list::all(home, policy.checkpoints.is_some())?;
    let mut removals = Vec::new();
    for going in what_goes(&listing, policy, SystemTime::now()) {
        let thing = listing[going.thing].clone();
        let error = if dry_run { None } else { remove(home, &thing).await.err() };
        let removal = Removal { thing, why: going.why, error };
        seen(&removal);
        removals.push(removal);
    }
    Ok(removals)
}

/// Remove what dead farms left on this host, as every run does before it begins. What cannot be removed is left to `klpfarm gc`, which
/// says so.
pub async fn sweep(home: &Path, watcher: &mut dyn Watcher) {
    for thing in list::left_over(home) {
        if let Err(error) = remove(home, &thing).await {
            let path = thing.path.display();
            watcher.note(Note::new(format!("note: cannot remove leftover {path}: {error}")));
        } else if let What::Process(process) = &thing.what {
            let pid = process.pid;
            watcher.note(Note::new(format!("ended process {pid}, a machine left behind by a crashed run")));
        }
    }
}

/// How many things dead farms have left, and their size in bytes.
pub fn left_over(home: &Path) -> (usize, u64) {
    let left = list::left_over(home);
    (left.len(), left.iter().map(|t| t.bytes).sum())
}

async fn remove(home: &Path, thing: &Thing) -> Result<(), String> {
    let path = &thing.path;
    let done = match &thing.what {
        What::Process(process) => return end(process),
        What::Group => return Group::clear(path).map_err(|e| e.to_string()),
        What::HalfImage => {
            let store = Store::open(home).map_err(|e| e.to_string())?;
            return store.clear_left_over().await.map_err(|e| e.to_string());
        }
        What::Checkpoint(c) => {
            let store = CheckpointStore::open(home).map_err(|e| e.to_string())?;
            return store.remove(&c.id).map(drop).map_err(|e| e.to_string());
        }
        What::Run(_) => remove_run(path),
        What::Log => fs::remove_file(path),
        What::Folder => fs::remove_dir_all(path),
    };
    match done {
        // Another farm swept it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|e| e.to_string()),
    }
}

/// Kill a process, if it is still the one that was seen.
fn end(process: &Owner) -> Result<(), String> {
    if process.is_gone() {
        return Ok(());
    }
    let pid = i32::try_from(process.pid).map_err(|e| e.to_string())?;
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// First out of sight, in one step and under its lock; then the long work.
fn remove_run(dir: &Path) -> std::io::Result<()> {
    let _lock = RunLock::take(dir).map_err(|error| match error {
        FolderError::Busy { .. } => std::io::Error::other("a run has started to use it"),
        FolderError::Io { source, .. } => source,
        error => std::io::Error::other(error),
    })?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let old = dir.with_file_name(format!(".old-{name}"));
    fs::rename(dir, &old)?;
    fs::remove_dir_all(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_worked_on_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("night");
        fs::create_dir(&run).unwrap();
        let lock = RunLock::take(&run).unwrap();
        assert!(remove_run(&run).unwrap_err().to_string().contains("has started to use it"));
        drop(lock);
        remove_run(&run).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
