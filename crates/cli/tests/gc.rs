//! `klpfarm gc` on a home and a temporary folder of its own, with real processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use klpfarm_vm::{OWNER_VARIABLE, Owner};

/// Orphans are the whole host's: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

struct Place {
    home: tempfile::TempDir,
    tmp: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

/// A process that is not left behind by a test that fails.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    fn new() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { home: tempfile::tempdir().unwrap(), tmp: tempfile::tempdir().unwrap(), _one: one }
    }

    fn gc(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_klpfarm"))
            .arg("gc")
            .args(args)
            .env("KLPFARM_HOME", self.home.path())
            .env("TMPDIR", self.tmp.path())
            .output()
            .unwrap()
    }

    fn run(&self, name: &str, days: u64, verdict: Option<&str>) -> PathBuf {
        let dir = self.home.path().join("runs").join(name);
        fs::create_dir_all(dir.join("trials/1")).unwrap();
        fs::write(dir.join("plan.json"), "{}").unwrap();
        fs::write(dir.join("trials/1/console.log"), vec![b'x'; 100_000]).unwrap();
        let journal = File::create(dir.join("journal.jsonl")).unwrap();
        journal.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
        if let Some(verdict) = verdict {
            fs::write(dir.join("verdict.json"), format!("{{\"verdict\": \"{verdict}\"}}")).unwrap();
        }
        dir
    }

    fn dir(path: &Path) -> PathBuf {
        fs::create_dir(path).unwrap();
        path.to_owned()
    }
}

/// A process that seems to be a machine of this farm.
fn machine(farm: &Owner) -> Machine {
    let child = Command::new("sleep")
        .arg("600")
        .env(OWNER_VARIABLE, farm.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while Owner::marked_on(child.id()).is_none() {
        std::thread::yield_now();
    }
    Machine(child)
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn what_dead_farms_left_goes_and_what_living_ones_use_stays() {
    let place = Place::new();
    let me = Owner::me().unwrap();
    // Our own number, and another start: the number was given out again.
    let mut orphan = machine(&Owner { started: me.started - 1, ..me.clone() });
    let mut used = machine(&me);
    // Process ids end at 4194304 (kernel: PID_MAX_LIMIT).
    let sockets = Place::dir(&place.tmp.path().join("klpfarm-4194305-a"));
    let scratch = Place::dir(&place.home.path().join(".scratch-4194305-b"));
    let mine = Place::dir(&place.tmp.path().join(format!("klpfarm-{}-c", std::process::id())));
    let half = place.home.path().join("checkpoints");
    fs::create_dir(&half).unwrap();
    let half = Place::dir(&half.join(".tmp-debian-12-0123456789ab"));

    let said = text(&place.gc(&["--dry-run"]));
    for part in [
        "would remove  process",
        &format!("/proc/{}", orphan.0.id()),
        "klpfarm-4194305-a",
        ".scratch-4194305-b",
        ".tmp-debian",
    ] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    assert!(!said.contains(&format!("/proc/{} ", used.0.id())), "{said}");
    assert!(orphan.0.try_wait().unwrap().is_none() && sockets.exists() && half.exists());

    let said = text(&place.gc(&[]));
    assert!(said.contains("removed       process"), "{said}");
    assert!(!orphan.0.wait().unwrap().success());
    assert!(!sockets.exists() && !scratch.exists() && !half.exists());
    assert!(mine.exists() && used.0.try_wait().unwrap().is_none(), "{said}");
}

#[test]
fn old_runs_go_by_policy_and_never_while_they_are_worked_on() {
    let place = Place::new();
    let old = place.run("old", 40, Some("qualified"));
    let rejected = place.run("rejected", 40, Some("rejected"));
    let resumable = place.run("unfinished", 40, None);
    let young = place.run("young", 3, Some("inconclusive"));
    let busy = place.run("busy", 40, None);
    let lock = File::create(busy.join("run.lock")).unwrap();
    lock.try_lock().unwrap();
    let other = Place::dir(&place.home.path().join("runs/notes"));

    let json: serde_json::Value = serde_json::from_str(&text(&place.gc(&["--json"]))).unwrap();
    let things = json["things"].as_array().unwrap().iter().filter(|t| t["what"] == "run").collect::<Vec<_>>();
    assert_eq!(things.len(), 2, "{json}");
    assert!(things.iter().all(|t| t["bytes"].as_u64().unwrap() >= 100_000), "{json}");
    assert!(!old.exists() && !resumable.exists());
    assert!(rejected.exists() && young.exists() && busy.exists() && other.exists());

    // The lock counts whatever is asked for.
    text(&place.gc(&["--keep-size", "0", "--also-rejected"]));
    assert!(!rejected.exists() && !young.exists() && busy.exists());
    drop(lock);
    text(&place.gc(&["--keep-size", "0"]));
    assert!(!busy.exists() && other.exists());
}
