//! What can happen to a farm is done to it, on real machines: it, its machines, its journal and its disk are hit, and nothing may be
//! lost or left behind. `KLPFARM_FAULTS=all` hits each phase, and does what takes longer; docs/operations.md has the table.

mod farm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use farm::*;
use serde_json::Value;

fn all() -> bool {
    std::env::var("KLPFARM_FAULTS").is_ok_and(|v| v == "all")
}

/// What each fault came to, for the table.
fn tell(text: &str) {
    eprintln!("fault: {text}");
}

/// A loaded trial and a control trial, one after the other; with loaded ones to spare.
fn start(dir: &Path, out: &Path) -> Running {
    let patch = module("debian-12", "madvise-fixed");
    aged();
    let mut command = run(&pipeline(dir, "debian-12", "{quiescent: 0, control: 1, reapply: 0}"), &patch, out);
    command.args(["--jobs", "1", "--trials", "8"]);
    Running::start(command, out)
}

fn resume(out: &Path) -> Command {
    let mut command = klpfarm();
    command.arg("resume").arg(out);
    command
}

fn events(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("journal.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How the trials of a run ended, in order: those that a resumed run did again only by their last end.
fn ends(out: &Path) -> Vec<(u64, String, String)> {
    let events = events(out);
    let ended = events.iter().filter(|e| e["event"] == "trial-ended");
    let end = |e: &Value| {
        let word = |v: &Value| v.as_str().unwrap().to_owned();
        (e["trial"].as_u64().unwrap(), word(&e["arm"]), word(&e["end"]["how"]))
    };
    ended.map(end).collect()
}

fn assert_qualified(output: &std::process::Output, out: &Path) {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    assert_eq!(json(&out.join("verdict.json"))["verdict"], "qualified");
    let ends = ends(out);
    let completed: Vec<u64> = ends.iter().filter(|(_, _, how)| how == "completed").map(|e| e.0).collect();
    let mut once = completed.clone();
    once.dedup();
    assert_eq!(completed, once, "a trial counts once: {ends:?}");
    assert_nothing_left();
}

/// Wait until none of these processes is there.
fn wait_gone(machines: &[String]) {
    let gone = |pid: &String| !Path::new("/proc").join(pid).join("exe").exists();
    let until = Instant::now() + Duration::from_secs(60);
    while !machines.iter().all(gone) {
        assert!(Instant::now() < until, "QEMU survived its farm");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The farm is killed again and again, once with half a line in its journal; what it was doing is done again, and nothing else is.
#[test]
fn a_killed_farm_goes_on_where_it_was() {
    let _alone = alone();
    let dir = temporary();
    let out = dir.path().join("run");
    let mut running = start(dir.path(), &out);
    let phases: &[&str] = if all() {
        &["boot", "settle", "baseline", "apply", "transition", "soak", "reach", "revert"]
    } else {
        &["baseline", "soak"]
    };
    for (n, phase) in phases.iter().enumerate() {
        // The boot of a fork has no event of its own but the trial's first.
        let text = match *phase {
            "boot" => "\"event\":\"trial-started\"".to_owned(),
            phase => format!("\"phase\":\"{phase}\",\"event\":\"phase-started\""),
        };
        running.wait_for_new(&text);
        let machines = running.machines();
        assert!(!machines.is_empty(), "{phase}");
        kill("-KILL", &running.child.id().to_string());
        assert_eq!(running.code(), None);
        wait_gone(&machines);
        if n == 0 {
            let mut torn = fs::read(out.join("journal.jsonl")).unwrap();
            torn.extend(b"{\"seq\":");
            fs::write(out.join("journal.jsonl"), torn).unwrap();
        }
        tell(&format!("kill -9 of the farm in phase {phase}"));
        running = Running::start(resume(&out), &out);
    }
    assert_eq!(running.code(), Some(0));
    let output = resume(&out).output().unwrap();
    assert!(text(&output).contains("has already ended"), "{}", text(&output));
    assert_qualified(&output, &out);
    let resumed = events(&out).iter().filter(|e| e["event"] == "run-resumed").count();
    assert_eq!(resumed, phases.len());
    assert!(fs::read_dir(out.join("trials")).unwrap().flatten().any(|e| {
        let name = e.file_name();
        name.to_string_lossy().contains("cut-off")
    }));
}

/// QEMU is killed, another one is stopped for a while, and channels to others are cut. Before applying, another trial takes the place of each;
/// with the patch in force, a trial that is lost counts as a failure that cannot be explained. Neither rejects the patch.
#[test]
fn what_happens_to_a_machine_is_not_blamed_on_the_patch() {
    let _alone = alone();
    let phases: &[&str] = if all() { &["settle", "baseline", "apply", "soak", "revert"] } else { &["soak"] };
    for phase in phases {
        let dir = temporary();
        let out = dir.path().join("run");
        let mut running = start(dir.path(), &out);
        let loaded = format!("\"arm\":\"loaded\",\"phase\":\"{phase}\",\"event\":\"phase-started\"");
        running.wait_for_new(&loaded);
        for pid in running.machines() {
            kill("-KILL", &pid);
        }
        running.wait_for_new("\"how\":\"farm-error\"");
        tell(&format!("kill -9 of QEMU in phase {phase}"));
        if *phase != "soak" {
            let lost = !matches!(*phase, "settle" | "baseline");
            assert_eq!(running.code(), Some(0), "{:?}", ends(&out));
            let verdict = json(&out.join("verdict.json"));
            assert!(
                verdict["farm_errors"][0]["message"].as_str().unwrap().contains("QEMU ended by itself"),
                "{verdict:#}"
            );
            assert_eq!(remarks(&verdict), [if lost { "lost" } else { "invalid" }], "{verdict:#}");
            continue;
        }
        running.wait_for_new(&loaded);
        let machines = running.machines();
        machines.iter().for_each(|pid| kill("-STOP", pid));
        // Time is what this fault is about.
        std::thread::sleep(Duration::from_secs(15));
        machines.iter().for_each(|pid| kill("-CONT", pid));
        running.wait_for_new("\"how\":\"void\"");
        tell("QEMU stopped for 15 s in phase soak");
        let mut expected = vec!["lost", "invalid"];
        let channels: &[(&str, &str)] =
            if all() { &[("qmp", "QMP"), ("console", "the serial console")] } else { &[("qmp", "QMP")] };
        for (socket, name) in channels {
            running.wait_for_new(&loaded);
            cut(running.child.id(), &sockets_at(&format!("/{socket}")));
            running.wait_for_new(&format!("the connection to {name} was lost in phase soak"));
            tell(&format!("the connection to {name} cut in phase soak"));
            expected.push("lost");
        }
        if all() {
            running.wait_for_new(&loaded);
            let qemu = running.machines()[0].parse().unwrap();
            cut(qemu, &listeners());
            running.wait_for_new("the connection to the machine's SSH port was lost in phase soak");
            tell("the port that leads to the guest's SSH closed in phase soak");
            expected.push("lost");
        }
        // How many further trials it takes to show that so many failures are rare is not what this is about.
        kill("-INT", &running.child.id().to_string());
        assert_eq!(running.code(), Some(130), "{:?}", ends(&out));
        let verdict = json(&out.join("verdict.json"));
        assert_eq!(verdict["verdict"], "inconclusive", "{verdict:#}");
        assert_eq!(remarks(&verdict), expected, "{verdict:#}");
        assert_eq!(verdict["bounds"][0]["failed"], expected.iter().filter(|w| **w == "lost").count());
        assert_nothing_left();
    }
}

/// What became of each trial that did not simply go through.
fn remarks(verdict: &Value) -> Vec<&str> {
    verdict["remarks"].as_array().unwrap().iter().map(|r| r["what"].as_str().unwrap()).collect()
}

/// All Unix sockets of this host whose path ends so.
fn sockets_at(end: &str) -> Vec<String> {
    inodes("unix", 6, |fields| fields.last().is_some_and(|path| path.ends_with(end)))
}

/// All TCP sockets of this host that listen.
fn listeners() -> Vec<String> {
    // State 0A, in Linux' include/net/tcp_states.h: TCP_LISTEN.
    inodes("tcp", 9, |fields| fields[3] == "0A")
}

/// Sockets in a table of `/proc/net`, as links in `/proc/PID/fd` name them.
fn inodes(table: &str, column: usize, wanted: impl Fn(&[&str]) -> bool) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap();
    let lines = text.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    lines.filter(|fields| wanted(fields)).map(|fields| format!("socket:[{}]", fields[column])).collect()
}

/// Shut the only one of these sockets that a process has down, for both ends.
fn cut(process: u32, sockets: &[String]) {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let ours = |fd: &fs::DirEntry| {
        fs::read_link(fd.path()).is_ok_and(|to| sockets.iter().any(|s| to.as_os_str() == s.as_str()))
    };
    let fds: Vec<i32> =
        open.filter(ours).map(|fd| fd.file_name().to_str().unwrap().parse().unwrap()).collect();
    assert_eq!(fds.len(), 1, "{fds:?}");
    let pid = Pid::from_raw(process.try_into().unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let fd = pidfd_getfd(pidfd, fds[0], PidfdGetfdFlags::empty()).unwrap();
    rustix::net::shutdown(fd, rustix::net::Shutdown::Both).unwrap();
}

/// All machines of a run are killed: the farm failed, and says so.
#[test]
fn a_farm_without_machines_is_a_farm_error() {
    let _alone = alone();
    let dir = temporary();
    let out = dir.path().join("run");
    let patch = module("debian-12", "madvise-fixed");
    aged();
    let mut command = run(&pipeline(dir.path(), "debian-12", TWO_ARMS), &patch, &out);
    // None to spare: each of them is killed.
    command.args(["--trials", "1"]);
    let mut running = Running::start(command, &out);
    running.wait_for("\"phase\":\"baseline\"");
    while running.child.try_wait().unwrap().is_none() {
        for pid in running.machines() {
            let _ = Command::new("kill").args(["-KILL", &pid]).output();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(running.code(), Some(4));
    let verdict = json(&out.join("verdict.json"));
    assert_eq!(verdict["verdict"], "inconclusive");
    assert_nothing_left();
    tell(&format!("every QEMU killed: {} trials", ends(&out).len()));
}

/// A disk that fills up ends the run in order, and it goes on when there is room again.
#[test]
fn a_run_survives_a_full_disk() {
    let _alone = alone();
    if !all() {
        return;
    }
    let dir = temporary();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=700m", "tmpfs"]).arg(&disk).status();
    if !mounted.is_ok_and(|s| s.success()) {
        eprintln!("skipped: a small file system takes the right to mount one");
        return;
    }
    let _mounted = Mounted(disk.clone());
    let out = disk.join("run");
    let mut running = start(dir.path(), &out);
    running.wait_for_new("\"phase\":\"soak\"");
    let filler = disk.join("filler");
    // Not to the last byte at once: a neighbour's file grows.
    fs::write(&filler, vec![1; 300 << 20]).unwrap();
    assert_eq!(running.code(), Some(3));
    let verdict = json(&out.join("verdict.json"));
    assert_eq!(verdict["verdict"], "inconclusive");
    let cause = verdict["causes"][0]["reason"].as_str().unwrap();
    assert!(cause.starts_with("the run ends here: ") && cause.contains("MiB are free"), "{cause}");
    assert_nothing_left();
    fs::remove_file(&filler).unwrap();
    assert_qualified(&resume(&out).output().unwrap(), &out);
    tell("disk full in phase soak");
}

/// Unmounts, however the test ends.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Two farms in one home do not harm each other; two in one run folder are not let.
#[test]
fn two_runs_at_once_do_not_harm_each_other() {
    let _alone = alone();
    if !all() {
        return;
    }
    let dir = temporary();
    let outs = [dir.path().join("one"), dir.path().join("two")];
    let mut both = outs.each_ref().map(|out| start(dir.path(), out));
    both[0].wait_for("\"trial-started\"");
    let output = resume(&outs[0]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("another klpfarm works in it"), "{}", text(&output));
    // What nobody uses may go, and nothing of theirs is that.
    succeed(klpfarm().args(["gc", "--keep-age", "1s"]));
    let codes = both.each_mut().map(Running::code);
    assert_eq!(codes, [Some(0), Some(0)]);
    for out in &outs {
        assert_qualified(&resume(out).output().unwrap(), out);
    }
    tell("two runs at once, and a gc");
}

/// A guest that never boots is the farm's failure, and does not take for ever.
#[test]
fn a_guest_that_never_boots_ends_the_run() {
    let _alone = alone();
    if !all() {
        return;
    }
    let patch = module("debian-12", "madvise-fixed");
    let dir = temporary();
    fs::write(dir.path().join("empty.raw"), vec![0; 1 << 20]).unwrap();
    let recipe = "name: never-boots\ndescription: Nothing is on it\nprebuilt:\n  disk: {path: empty.raw, format: raw}\n  seed: nocloud\n";
    fs::write(dir.path().join("never-boots.yaml"), recipe).unwrap();
    succeed(klpfarm().args(["image", "build"]).arg(dir.path().join("never-boots.yaml")));
    let file = pipeline(dir.path(), "never-boots.yaml", TWO_ARMS);
    let mut longer = fs::read_to_string(&file).unwrap();
    longer.push_str("limits: {boot: 5s}\n");
    fs::write(&file, longer).unwrap();
    let out = dir.path().join("run");
    let output = run(&file, &patch, &out).arg("--cold").output().unwrap();
    succeed(klpfarm().args(["image", "rm", "never-boots"]));
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(ends(&out).iter().all(|(_, _, how)| how == "farm-error"), "{:?}", ends(&out));
    assert_nothing_left();
    tell(&format!("a guest that never boots: {} trials", ends(&out).len()));
}
