//! The stressor `aging` under the real probe on this host.

mod harness;

use harness::Probe;
use klpfarm_stress::wire::{Ask, FromGuest};
use std::collections::BTreeSet;
use std::path::Path;

const SMALL: &[&str] = &["cache=4M", "files=300", "fragment=4M", "residents=2", "churn=10"];

fn start(probe: &mut Probe, more: &[&str]) -> std::path::PathBuf {
    let dir = probe.dir.path().join("aging");
    let own = format!("dir={}", dir.display());
    let args: Vec<&str> =
        [own.as_str()].into_iter().chain(SMALL.iter().copied()).chain(more.iter().copied()).collect();
    probe.start_builtin("aging", &args);
    dir
}

/// Names in a folder; none if there is no such folder.
fn names_of(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn it_wears_and_holds_and_leaves_nothing() {
    let mut probe = Probe::start();
    let dir = start(&mut probe, &[]);
    let threads: Vec<_> = probe
        .seen
        .iter()
        .filter_map(|l| if let FromGuest::Thread(t) = l { Some(t.clone()) } else { None })
        .collect();
    // Two keepers and two residents, each a process of one thread.
    let pids: BTreeSet<u32> = threads.iter().map(|t| t.pid).collect();
    assert_eq!((threads.len(), pids.len()), (4, 4), "{threads:?}");
    // All kinds of wear, the going on after it ("memory" comes only then), and each thread again and again.
    let mut missing: BTreeSet<&str> = [
        "cache-write",
        "cache-read",
        "create",
        "rename",
        "remove",
        "verify",
        "lookup",
        "touch",
        "free",
        "memory",
        "objects",
        "fork",
        "exec",
        "wait",
        "hold",
    ]
    .into();
    // Wearing is done once: on a quick host some of it was reported while the threads were awaited.
    for line in &probe.seen {
        if let FromGuest::Latency { op, .. } = line {
            missing.remove(op.as_str());
        }
    }
    let mut enough = false;
    probe.until("all kinds of wear", |l| {
        match l {
            FromGuest::Latency { op, .. } => {
                missing.remove(op.as_str());
            }
            FromGuest::Progress { threads, .. } => enough = threads.iter().all(|t| t.ops > 24),
            _ => {}
        }
        missing.is_empty() && enough
    });
    let run = dir.join(names_of(&dir).pop().expect("a folder of this run"));
    assert_eq!(names_of(&run).len(), 4, "a folder for each thread in {}", run.display());
    let started = std::time::Instant::now();
    let (code, out) = probe.ask(Ask::Stop { workload: "aging".into() });
    assert_eq!((code, out.as_str()), (0, "stopped"), "after {:?}", started.elapsed());
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
    assert!(!dir.exists(), "left: {:?}", names_of(&dir));
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}/stat")).exists(), "process {pid} is left");
    }
}

#[test]
fn it_runs_with_any_part_left_out() {
    let mut probe = Probe::start();
    let dir = probe.dir.path().join("aging");
    let own = format!("dir={}", dir.display());
    let args = [own.as_str(), "cache=0", "files=0", "fragment=0", "residents=0", "churn=0", "processes=1"];
    probe.start_builtin("aging", &args);
    probe.until("progress", |l| matches!(l, FromGuest::Progress { .. }));
    probe.stop("aging");
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
    assert!(!dir.exists());
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let mut probe = Probe::start();
    let old = probe.dir.path().join("aging/run-4194999/0-0/files/d1");
    std::fs::create_dir_all(&old).unwrap();
    std::fs::write(old.join("file-2"), "x").unwrap();
    let dir = start(&mut probe, &["processes=1"]);
    assert!(!old.exists());
    probe.stop("aging");
    assert!(!dir.exists(), "left: {:?}", names_of(&dir));
}
