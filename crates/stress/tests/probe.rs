//! The real binary, `serve`, on this host: over a Unix socket as its port, with every stressor. Needs no privilege.

use klpfarm_stress::wire::{Ask, FaultKind, FromGuest, Run, ToGuest};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod harness;

use harness::{PATIENCE, Probe, accept};

/// Runs one stressor until each of its threads has counted operations, and stops it.
fn runs_sound(name: &str, args: &[&str]) {
    let mut probe = Probe::start();
    let dir = probe.dir.path().join("files");
    let own = format!("dir={}", dir.display());
    let args: Vec<&str> = args.iter().map(|&a| if a == "dir" { own.as_str() } else { a }).collect();
    probe.start_builtin(name, &args);
    let ids: Vec<u32> = probe
        .seen
        .iter()
        .filter_map(|l| if let FromGuest::Thread(t) = l { Some((t.id, t.counted)) } else { None })
        .map(|(id, counted)| {
            assert!(counted);
            id
        })
        .collect();
    assert!(!ids.is_empty());
    let mut rounds = 0;
    probe.until("progress of all threads", |l| match l {
        FromGuest::Progress { threads, .. } => {
            rounds += 1;
            assert_eq!(threads.iter().map(|t| t.id).collect::<Vec<_>>(), ids);
            rounds > 8 && threads.iter().all(|t| t.ops > 50)
        }
        _ => false,
    });
    probe.until("the yardstick", |l| {
        matches!(l, FromGuest::Latency { op, workload, sum_ns, buckets, .. }
            if op == "yardstick" && workload == name && *sum_ns > 0
                && buckets.iter().any(|(bucket, n)| *bucket > 0 && *n > 0))
    });
    probe.until("memory", |l| {
        matches!(l, FromGuest::Memory { tasks, open_files, descriptors, .. }
        if *tasks > 0 && *open_files > 0 && *descriptors > 0)
    });
    let pids: Vec<u32> = probe
        .seen
        .iter()
        .filter_map(|l| if let FromGuest::Thread(t) = l { Some(t.pid) } else { None })
        .collect();
    probe.stop(name);
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
    let gone = probe.seen.iter().filter(|l| matches!(l, FromGuest::Gone { .. })).count();
    assert_eq!(gone, ids.len());
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}/stat")).exists(), "process {pid} is left");
    }
    assert!(!dir.exists(), "files are left in {}", dir.display());
}

#[test]
fn madvise_allocator_runs_sound() {
    runs_sound("madvise-allocator", &["processes=2", "threads=2", "map=1M"]);
}

#[test]
fn page_fault_storm_runs_sound() {
    runs_sound("page-fault-storm", &["map=1M"]);
}

#[test]
fn fork_exec_churn_runs_sound() {
    runs_sound("fork-exec-churn", &["threads=2"]);
}

#[test]
fn file_io_fsync_runs_sound() {
    runs_sound("file-io-fsync", &["dir", "size=4M"]);
}

#[test]
fn syscall_mix_runs_sound() {
    runs_sound("syscall-mix", &["processes=1", "threads=2"]);
}

#[test]
fn commands_run_beside_each_other_and_end_in_time() {
    let mut probe = Probe::start();
    let slow = probe.send(Ask::Exec {
        argv: ["sh", "-c", "echo begun; sleep 1000 & sleep 1000"].map(String::from).to_vec(),
        limit_ms: 1500,
    });
    assert_eq!(probe.exec("echo out; echo err >&2; exit 3", 60_000), (3, "out\nerr\n".into()));
    assert_eq!(probe.exec("kill -9 $$", 60_000).0, 137);
    assert_eq!(probe.reply(slow), (124, "begun\n".into()));
    let (code, out) = probe.ask(Ask::Exec { argv: vec!["/no/such/program".into()], limit_ms: 60_000 });
    assert_eq!(code, 127, "{out}");
    assert!(out.contains("/no/such/program") && out.contains("No such file"), "{out}");
    let (code, out) = probe.exec("head -c 1000000 /dev/zero | tr '\\0' x", 60_000);
    assert_eq!((code, out.len()), (0, klpfarm_stress::wire::MAX_LINE / 4));
    assert_eq!(probe.exec("printf 'a\\033[1mb\\377'", 60_000).1, "a?[1mb\u{fffd}");
}

#[test]
fn files_are_read_but_never_those_that_may_hang() {
    let mut probe = Probe::start();
    let (code, out) = probe.ask(Ask::Read { path: "/proc/sys/kernel/osrelease".into() });
    assert!(code == 0 && !out.trim().is_empty(), "{code} {out}");
    assert_eq!(probe.ask(Ask::Read { path: "/no/such/file".into() }).0, 2);
    let (code, out) = probe.ask(Ask::Read { path: "/proc/self/maps".into() });
    assert!(code == 1 && out.contains("memory lock"), "{code} {out}");
    // A file that never ends to be waited for: the helper is given up, and the next read works.
    let fifo = probe.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(probe.ask(Ask::Read { path: fifo.to_string_lossy().into_owned() }).0, 124);
    assert_eq!(probe.ask(Ask::Read { path: "/proc/loadavg".into() }).0, 0);
}

#[test]
fn wrong_requests_are_answered_or_skipped() {
    let mut probe = Probe::start();
    probe
        .lines
        .get_mut()
        .write_all(b"\xff\xfe garbage\n{\"id\":\n\n[1,2]\n{\"id\":77,\"ask\":\"dance\"}\n")
        .unwrap();
    assert_eq!(probe.reply(77).0, 2);
    for (name, args, part) in [
        ("no-such", vec![], "no stressor `no-such`"),
        ("madvise-allocator", vec!["mapp=1"], "unknown parameter `mapp`"),
        ("madvise-allocator", vec!["threads=0"], "threads=0: must be 1 to 64"),
    ] {
        let args = args.into_iter().map(String::from).collect();
        let run = Run::Builtin { name: name.into(), args };
        let (code, out) = probe.ask(Ask::Start { workload: "w".into(), run });
        assert!(code == 1 && out.contains(part), "{code} {out}");
    }
    assert_eq!(probe.ask(Ask::Stop { workload: "w".into() }).0, 1);
    assert_eq!(probe.ask(Ask::Hello).0, 0);
}

#[test]
fn a_packaged_command_counts_and_reports() {
    let mut probe = Probe::start();
    let script = "echo 'klpfarm: ops 5'; echo 'klpfarm: fault wrong-content my-op two words'; while :; do sleep 0.01; done";
    assert_eq!(probe.start_shell("cmd", script).0, 0);
    assert_eq!(probe.start_shell("cmd", "true").0, 1, "the same name twice");
    if !probe.seen.iter().any(|l| matches!(l, FromGuest::Thread(t) if !t.counted)) {
        probe.until("a thread seen from outside", |l| matches!(l, FromGuest::Thread(t) if !t.counted));
    }
    probe.until(
        "five operations",
        |l| matches!(l, FromGuest::Progress { threads, .. } if threads.iter().any(|t| t.ops == 5)),
    );
    let faults = probe.faults();
    assert!(
        matches!(faults[..], [FromGuest::Fault(f)] if f.op == "my-op" && f.detail == "two words"
            && f.kind == FaultKind::WrongContent),
        "{faults:?}"
    );
    probe.stop("cmd");
}

#[test]
fn a_script_says_when_it_is_ready_and_what_it_has_done() {
    let mut probe = Probe::start();
    let run = |text: &str| Run::Script { text: text.into() };
    let text = "test -x \"$KLPFARM_STRESS\" || exit 1\nsleep 1\necho klpfarm: ready\necho klpfarm: ops 3\nsleep 1000\n";
    let asked = probe.send(Ask::Start { workload: "script".into(), run: run(text) });
    assert_eq!(probe.reply(asked), (0, "ready".into()));
    probe.until(
        "three operations",
        |l| matches!(l, FromGuest::Progress { threads, .. } if threads.iter().any(|t| t.ops == 3)),
    );
    probe.stop("script");
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
}

#[test]
fn a_script_that_the_guest_lacks_something_for_is_unavailable_and_no_fault() {
    let mut probe = Probe::start();
    let run = |text: &str| Run::Script { text: text.into() };
    let text = "echo the kernel has no module example\nexit 77\n";
    let (code, out) = probe.ask(Ask::Start { workload: "lacking".into(), run: run(text) });
    assert_eq!((code, out.as_str()), (77, "the kernel has no module example"));
    probe.stop("lacking");
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
    // Any other end before it was ready is one.
    let (code, out) = probe.ask(Ask::Start { workload: "broken".into(), run: run("exit 3") });
    assert!(code == 1 && out.contains("exit status 3") || out.contains("status 3"), "{code} {out}");
    assert_eq!(probe.faults().len(), 1);
}

#[test]
fn a_command_that_ends_well_is_run_again() {
    let mut probe = Probe::start();
    assert_eq!(probe.start_shell("again", "sleep 0.05").0, 0);
    probe.until(
        "three runs",
        |l| matches!(l, FromGuest::Progress { threads, .. } if threads.iter().any(|t| t.ops >= 3)),
    );
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
    probe.stop("again");
}

#[test]
fn deaths_are_faults() {
    let mut probe = Probe::start();
    let (code, out) = probe.start_shell("at-once", "echo why; exit 4");
    assert!(code == 1 && out.contains("exit status 4") && out.contains("why"), "{code} {out}");
    // Dies once it is told that it runs.
    let flag = probe.dir.path().join("die");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 7", flag.display());
    assert_eq!(probe.start_shell("later", &script).0, 0);
    std::fs::write(&flag, "").unwrap();
    probe.until("its death", |l| {
        matches!(l, FromGuest::Fault(f) if f.kind == FaultKind::Died && f.workload == "later"
            && f.detail.contains("exit status 7"))
    });
    probe.start_builtin("madvise-allocator", &["processes=2", "threads=1", "map=64K"]);
    let victim = probe
        .seen
        .iter()
        .rev()
        .find_map(|l| if let FromGuest::Thread(t) = l { Some(t.clone()) } else { None });
    let victim = victim.unwrap();
    probe.exec(&format!("kill -9 {}", victim.pid), 60_000);
    probe.until(
        "the worker's death",
        |l| matches!(l, FromGuest::Fault(f) if f.kind == FaultKind::Died && f.detail.contains("signal 9")),
    );
    if !probe.seen.iter().any(|l| matches!(l, FromGuest::Gone { id } if *id == victim.id)) {
        probe.until("its thread's end", |l| matches!(l, FromGuest::Gone { id } if *id == victim.id));
    }
    probe.stop("madvise-allocator");
}

/// A supervisor that was not asked to stop ends in order all the same when something else tells it to: its load is gone.
#[test]
fn a_workload_that_ends_in_the_middle_is_a_fault() {
    let mut probe = Probe::start();
    probe.start_builtin("madvise-allocator", &["processes=1", "threads=1", "map=64K"]);
    let worker =
        probe.seen.iter().find_map(|l| if let FromGuest::Thread(t) = l { Some(t.pid) } else { None });
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.unwrap())).unwrap();
    let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    probe.exec(&format!("kill -TERM {parent}"), 60_000);
    probe.until("its end", |l| {
        matches!(l, FromGuest::Fault(f) if f.kind == FaultKind::Died && f.op == "workload"
            && f.detail.contains("exit status 0"))
    });
}

#[test]
fn a_stopped_worker_is_told_as_blocked_and_can_still_be_stopped() {
    let mut probe = Probe::start();
    probe.start_builtin("madvise-allocator", &["processes=1", "threads=1", "map=64K"]);
    let thread =
        probe.seen.iter().find_map(|l| if let FromGuest::Thread(t) = l { Some(t.clone()) } else { None });
    let thread = thread.unwrap();
    probe.exec(&format!("kill -STOP {}", thread.pid), 60_000);
    probe.until("the thread in a list of blocked ones", |l| {
        matches!(l, FromGuest::Blocked { tasks, .. }
            if tasks.iter().any(|t| t.tid == thread.tid && t.thread == Some(thread.id) && t.for_ms >= 2000))
    });
    probe.exec(&format!("kill -CONT {}", thread.pid), 60_000);
    probe.until("the end of the block", |l| {
        matches!(l, FromGuest::Blocked { tasks, .. } if tasks.iter().all(|t| t.thread != Some(thread.id)))
    });
    probe.exec(&format!("kill -STOP {}", thread.pid), 60_000);
    // SIGTERM does not reach a stopped process; SIGKILL does.
    let (code, out) = probe.ask(Ask::Stop { workload: "madvise-allocator".into() });
    assert_eq!((code, out.as_str()), (0, "killed after 5 s"));
}

#[test]
fn a_host_that_does_not_read_loses_progress_but_no_answer() {
    let mut probe = Probe::start();
    probe.start_builtin("syscall-mix", &[]);
    let big = Ask::Exec {
        argv: ["sh", "-c", "head -c 60000 /dev/zero | tr '\\0' x"].map(String::from).to_vec(),
        limit_ms: 60_000,
    };
    let ids: Vec<u64> = (0..20).map(|_| probe.send(big.clone())).collect();
    // Not reading meanwhile: 1.2 MB of answers are more than the socket and the probe's queue hold. The commands themselves
    // must all have run before we read on, which /proc tells without the probe's help.
    let mut left: Vec<u64> = ids;
    while !left.is_empty() {
        if let FromGuest::Reply { id, code, .. } = probe.line() {
            assert_eq!(code, 0);
            left.retain(|&l| l != id);
        }
    }
    probe.stop("syscall-mix");
}

#[test]
fn a_new_connection_is_greeted_with_all_threads() {
    let mut probe = Probe::start();
    probe.start_builtin("syscall-mix", &["processes=1"]);
    probe.lines.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    probe.lines = accept(&probe.listener);
    probe.seen.clear();
    probe.until("the greeting", |l| matches!(l, FromGuest::Hello { .. }));
    probe.until("the thread", |l| matches!(l, FromGuest::Thread(t) if t.workload == "syscall-mix"));
    probe.stop("syscall-mix");
}

#[test]
fn when_the_probe_dies_its_workloads_end() {
    let mut probe = Probe::start();
    probe.start_builtin("madvise-allocator", &["processes=1", "threads=1", "map=64K"]);
    let pid = probe
        .seen
        .iter()
        .find_map(|l| if let FromGuest::Thread(t) = l { Some(t.pid) } else { None })
        .unwrap();
    probe.child.kill().unwrap();
    let stat = format!("/proc/{pid}/stat");
    let start = Instant::now();
    let alive = || std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z"));
    while alive() {
        assert!(start.elapsed() < PATIENCE, "worker {pid} outlives the probe");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A pseudo terminal stands in for a serial line: no echo, no translation.
#[test]
fn a_serial_line_is_raw() {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: plain values; the new descriptor is ours alone, the name is copied at once.
    let (master, name) = unsafe {
        let fd = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(fd >= 0 && libc::grantpt(fd) == 0 && libc::unlockpt(fd) == 0);
        let name = std::ffi::CStr::from_ptr(libc::ptsname(fd)).to_str().unwrap().to_owned();
        (std::fs::File::from(OwnedFd::from_raw_fd(fd)), name)
    };
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_klpfarm-stress")).args(["serve", "--port", &name]).spawn().unwrap();
    let mut lines = BufReader::new(master.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(matches!(serde_json::from_str(&line), Ok(FromGuest::Hello { .. })), "{line}");
    let ask = ToGuest { id: 9, ask: Ask::Read { path: "/proc/version".into() } };
    (&master).write_all(format!("{}\n", serde_json::to_string(&ask).unwrap()).as_bytes()).unwrap();
    loop {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
        assert!(line.ends_with('\n') && !line.contains('\r'), "translated: {line:?}");
        match serde_json::from_str::<FromGuest>(&line) {
            Ok(FromGuest::Reply { id, code, .. }) => break assert_eq!((id, code), (9, 0)),
            Ok(_) => {}
            Err(error) => panic!("{error}, echoed? {line}"),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_daemon_lets_its_caller_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_klpfarm-stress"))
        .args(["serve", "--daemon", "--port"])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Ends only when nobody holds the pipes open any more: what an SSH session waits for.
    let mut all = String::new();
    child.stdout.take().unwrap().read_to_string(&mut all).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut all).unwrap();
    assert!(child.wait().unwrap().success() && all.is_empty(), "{all}");
    let mut lines = accept(&listener);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("hello"), "{line}");
    let ask = ToGuest {
        id: 1,
        ask: Ask::Exec {
            argv: vec!["sh".into(), "-c".into(), "ps -o ppid= -p $PPID".into()],
            limit_ms: 60_000,
        },
    };
    lines.get_mut().write_all(format!("{}\n", serde_json::to_string(&ask).unwrap()).as_bytes()).unwrap();
    let probe = loop {
        line.clear();
        lines.read_line(&mut line).unwrap();
        if let Ok(FromGuest::Reply { out, .. }) = serde_json::from_str(&line) {
            break out.trim().to_owned();
        }
    };
    // SAFETY: the probe that we started, which is the parent of the process that starts commands.
    unsafe { libc::kill(probe.parse().unwrap(), libc::SIGKILL) };
}
