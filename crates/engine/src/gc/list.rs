//! What is there: leftovers of dead farms, runs, checkpoints.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use klpfarm_image::{CheckpointStore, Store};
use klpfarm_report::RunLock;
use klpfarm_vm::{Claimed, Group, Owner, SOCKETS};

use super::policy::{Checkpoint, Run, Thing, What};
use crate::machine::SCRATCH;
use crate::{Error, Result, disk};

/// A run without a lock file and a verdict, of an older klpfarm, may still go on if its journal is younger than this.
const MAY_GO_ON: Duration = Duration::from_secs(24 * 3600);

/// What dead farms have left outside the stores.
pub(crate) fn left_over(home: &Path) -> Vec<Thing> {
    let mut things = processes();
    let sockets = Claimed::left_over(&std::env::temp_dir(), SOCKETS);
    let scratch = Claimed::left_over(home, SCRATCH);
    let removed = hidden(&home.join("runs"), ".old-");
    things.extend(sockets.into_iter().chain(scratch).chain(removed).map(|path| on_disk(What::Folder, path)));
    things.extend(Group::left_over().into_iter().map(|path| Thing {
        what: What::Group,
        path,
        bytes: 0,
        at: SystemTime::UNIX_EPOCH,
    }));
    things
}

/// All that `gc` looks at; checkpoints only if asked for, for their locks must be tried.
pub(crate) fn all(home: &Path, with_checkpoints: bool) -> Result<Vec<Thing>> {
    let mut things = left_over(home);
    let images = Store::open(home).map_err(Error::farm)?;
    let half = images.left_over().map_err(Error::farm)?;
    things.extend(half.into_iter().map(|path| on_disk(What::HalfImage, path)));
    let checkpoints = CheckpointStore::open(home).map_err(Error::farm)?;
    let half = checkpoints.left_over().map_err(Error::farm)?;
    things.extend(half.into_iter().map(|path| on_disk(What::Folder, path)));
    things.extend(runs(&home.join("runs")));
    if !with_checkpoints {
        return Ok(things);
    }
    let there = images.list().map_err(Error::farm)?;
    for checkpoint in checkpoints.list().map_err(Error::farm)? {
        let key = &checkpoint.manifest.key;
        let has_image = there.iter().any(|i| i.id() == key.image && i.identity() == key.image_hash);
        let of = Checkpoint {
            id: checkpoint.id().to_owned(),
            parent: key.parent.clone(),
            useless: (!has_image).then_some("its image no longer exists"),
            busy: checkpoints.is_busy(checkpoint.id()).map_err(Error::farm)?,
        };
        let what = What::Checkpoint(of);
        things.push(Thing {
            what,
            bytes: checkpoint.disk_bytes(),
            at: modified(&checkpoint.dir.join("manifest.json")),
            path: checkpoint.dir,
        });
    }
    for id in checkpoints.of_other_schema().map_err(Error::farm)? {
        let path = checkpoints.dir().join(&id);
        let busy = checkpoints.is_busy(&id).map_err(Error::farm)?;
        let useless = Some("made by another version of klpfarm");
        let of = Checkpoint { id, parent: None, useless, busy };
        let at = modified(&path.join("manifest.json"));
        things.push(Thing { what: What::Checkpoint(of), bytes: disk::used(&path), at, path });
    }
    Ok(things)
}

/// Machines whose farm is gone, by the mark in their environment.
fn processes() -> Vec<Thing> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let orphans = pids.filter_map(|pid| {
        let farm = Owner::marked_on(pid).filter(Owner::is_gone)?;
        // What is killed later must be this very process.
        Some((Owner::of(pid)?, farm))
    });
    orphans
        .map(|(process, _)| {
            let path = PathBuf::from(format!("/proc/{}", process.pid));
            Thing { bytes: resident(&path), path, what: What::Process(process), at: SystemTime::UNIX_EPOCH }
        })
        .collect()
}

/// Memory of a process, in bytes.
fn resident(proc: &Path) -> u64 {
    let text = fs::read_to_string(proc.join("status")).unwrap_or_default();
    let kib =
        text.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn runs(dir: &Path) -> Vec<Thing> {
    let mut things = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_file() && name.ends_with("-aging.log") {
            things.push(on_disk(What::Log, path));
        } else if kind.is_dir() && !name.starts_with('.') && path.join("plan.json").is_file() {
            let at = modified(&path.join("journal.jsonl"));
            things.push(Thing { what: What::Run(state(&path, at)), bytes: disk::used(&path), path, at });
        }
    }
    things
}

fn state(run: &Path, journal_at: SystemTime) -> Run {
    let verdict = fs::read_to_string(run.join("verdict.json")).ok();
    let word = |text: &str, field: &str| -> Option<String> {
        serde_json::from_str::<serde_json::Value>(text).ok()?[field].as_str().map(str::to_owned)
    };
    let verdict = verdict.and_then(|text| word(&text, "verdict"));
    let locked = match File::open(run.join(RunLock::FILE)) {
        Ok(lock) => lock.try_lock_shared().is_err(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let age = SystemTime::now().duration_since(journal_at).unwrap_or_default();
            verdict.is_none() && age < MAY_GO_ON
        }
        Err(_) => true,
    };
    match verdict {
        _ if locked => Run::InUse,
        Some(verdict) => Run::Ended(verdict),
        None => {
            let plan = fs::read_to_string(run.join("plan.json")).unwrap_or_default();
            Run::Unfinished(word(&plan, "checkpoint"))
        }
    }
}

fn hidden(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect()
}

fn on_disk(what: What, path: PathBuf) -> Thing {
    Thing { what, bytes: disk::used(&path), at: modified(&path), path }
}

/// What cannot be told counts as new: nothing is removed for want of a date.
fn modified(path: &Path) -> SystemTime {
    fs::symlink_metadata(path).and_then(|m| m.modified()).unwrap_or_else(|_| SystemTime::now())
}
