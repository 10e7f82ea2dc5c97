//! `klpfarm gc`: what dead farms left, old runs, old checkpoints. It prints what goes and why; nothing in use is touched.

mod list;
mod policy;

use klpfarm_model::counted;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use klpfarm_image::{CheckpointStore, Store};
use klpfarm_report::{FolderError, RunLock, one_line, printable};
use klpfarm_vm::{Group, Owner};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::failure::{Failure, code, print, print_json};
use crate::home::home;
use crate::sizes::size;
use policy::{Policy, Thing, What, what_goes};

/// Remove what crashed runs left behind and old runs: orphaned machines, temporary files, runs beyond an age or total size.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print what would be removed; remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove runs in KLPFARM_HOME/runs older than this.
    #[arg(long, value_name = "30d", default_value = "30d", value_parser = days)]
    keep_age: Duration,
    /// Then remove the oldest runs until all of them together take no more disk space than this.
    #[arg(long, value_name = "20G", default_value = "20G", value_parser = crate::sizes::parse)]
    keep_size: u64,
    /// Also remove rejected runs, which are otherwise kept for their evidence.
    #[arg(long)]
    also_rejected: bool,
    /// Also remove checkpoints older than this, except the most recent of each chain; by default checkpoints are kept.
    #[arg(long, value_name = "60d", value_parser = days)]
    checkpoints_age: Option<Duration>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let home = home()?;
    let policy = Policy {
        age: args.keep_age,
        size: args.keep_size,
        also_rejected: args.also_rejected,
        checkpoints: args.checkpoints_age,
    };
    let listing = list::all(&home, policy.checkpoints.is_some())?;
    let mut done = Vec::new();
    let (mut total, mut failed) = (0, false);
    for going in what_goes(&listing, &policy, SystemTime::now()) {
        let thing = &listing[going.thing];
        let error = if args.dry_run { None } else { remove(&home, thing).await.err() };
        failed |= error.is_some();
        total += if error.is_none() { thing.bytes } else { 0 };
        if !args.json {
            print(&line(thing, &going.why, error.as_deref(), args.dry_run));
        }
        done.push(json!({
            "what": thing.what.as_str(), "path": thing.path, "bytes": thing.bytes, "why": going.why, "error": error,
        }));
    }
    if args.json {
        print_json(&json!({ "dry_run": args.dry_run, "bytes": total, "things": done }));
    } else {
        let word = if args.dry_run { "would remove" } else { "removed" };
        print(&format!("{word} {} ({})\n", counted(done.len(), "item"), size(total)));
    }
    Ok(if failed { code::FARM } else { 0 })
}

fn line(thing: &Thing, why: &str, error: Option<&str>, dry_run: bool) -> String {
    let word = match error {
        Some(_) => "FAILED",
        None if dry_run => "would remove",
        None => "removed",
    };
    let place = thing.path.to_string_lossy();
    let error = error.map(|e| format!(": {}", one_line(e, 300))).unwrap_or_default();
    format!(
        "{word:<12}  {:<10} {:>10}  {}  ({}){error}\n",
        thing.what.as_str(),
        size(thing.bytes),
        printable(&place),
        printable(why)
    )
}

/// Remove what dead farms left on this host, as every run does before it begins. What cannot be removed is left to `klpfarm gc`, which
/// says so.
pub(crate) async fn sweep(home: &Path) {
    for thing in list::left_over(home) {
        if let Err(error) = remove(home, &thing).await {
            tell!(
                "klpfarm: note: cannot remove leftover {}: {}",
                thing.path.display(),
                one_line(&error, 200)
            );
        } else if let What::Process(process) = &thing.what {
            tell!("klpfarm: ended process {}, a machine left behind by a crashed run", process.pid);
        }
    }
}

/// How many things dead farms have left, and their size in bytes.
pub(crate) fn left_over(home: &Path) -> (usize, u64) {
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

/// Read an age: days, as in 30d, or any other duration.
fn days(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(Duration::from_secs(u64::from(days) * 24 * 3600)),
        _ => klpfarm_model::duration::parse(text).map_err(|e| format!("{e}, or `30d`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read() {
        assert_eq!(days("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(days("90m"), Ok(Duration::from_secs(5400)));
        assert!(days("1.5d").is_err() && days("d").is_err() && days("soon").is_err());
    }

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
