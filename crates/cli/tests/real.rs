//! The whole, on real machines: images are built, modules compiled, guests booted, patches applied under load.
//!
//! The state (images above all) is kept below the target folder between runs. One test at a time: machines are large, hosts
//! are small.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn home() -> PathBuf {
    std::env::var_os("KLPFARM_TEST_HOME")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("home"), PathBuf::from)
}

fn klpfarm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_klpfarm"));
    command.env("KLPFARM_HOME", home()).current_dir(repository()).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Build the image once, and the module for it.
fn module(image: &str, example: &str) -> PathBuf {
    let out = home().join("modules").join(image);
    std::fs::create_dir_all(&out).unwrap();
    succeed(klpfarm().args(["image", "build", image]));
    let source = repository().join("examples").join(example);
    PathBuf::from(succeed(
        klpfarm().args(["module", "build", "--image", image, "--out"]).arg(out).arg(source),
    ))
}

/// A pipeline with short phases.
fn pipeline(dir: &Path, image: &str, arms: &str) -> PathBuf {
    let file = dir.join("short.yaml");
    let text = format!(
        "name: short\nimage: {image}\nworkloads: [madvise-allocator, fork-exec-churn]\narms: {arms}\n\
         phases: {{age: 2s, baseline: 8s, soak: 20s, revert: 4s}}\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

const ALL_ARMS: &str = "{loaded: 1, quiescent: 1, control: 1}";

fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("klpfarm-test-").tempdir().unwrap()
}

fn run(pipeline: &Path, patch: &Path, out: &Path) -> Command {
    let mut command = klpfarm();
    command.arg("run").arg(pipeline).arg("--patch").arg(patch).arg("--out").arg(out);
    command
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Nothing of the run may be left: no QEMU with our home in its arguments or environment, no scratch folder.
fn assert_nothing_left() {
    let home = home().to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&arguments).contains(&home);
        assert!(!(name.starts_with("qemu-system") && ours), "a QEMU was left behind: {:?}", entry.path());
    }
    for entry in std::fs::read_dir(&home).unwrap().flatten() {
        assert!(
            !entry.file_name().to_string_lossy().starts_with(".scratch"),
            "{:?} was left behind",
            entry.path()
        );
    }
}

#[test]
fn a_faulty_patch_is_rejected_by_the_loaded_arm_alone() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-held-lock");
    let dir = temporary();
    let out = dir.path().join("run");
    let output = run(&pipeline(dir.path(), "debian-12", ALL_ARMS), &patch, &out).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let verdict = json(&out.join("verdict.json"));
    assert_eq!(verdict["verdict"], "rejected");
    for (arm, failed) in [("loaded", 1), ("quiescent", 0), ("control", 0)] {
        assert_eq!(verdict["arms"][arm]["failed"], failed, "{verdict:#}");
    }
    let cause = verdict["causes"][0].as_str().unwrap();
    assert!(cause.contains("only when the load was running at the moment of applying, 1/1"), "{cause}");
    assert!(
        verdict["evidence"][0]["function"].as_str().is_some_and(|f| f.contains("madvise")),
        "{verdict:#}"
    );
    let trial = out.join("trials/1");
    assert!(std::fs::metadata(trial.join("console.log")).unwrap().len() > 1000);
    let registers = std::fs::read_to_string(trial.join("evidence/registers.txt")).unwrap();
    assert!(registers.contains("RIP="), "{registers}");
    assert!(std::fs::read_to_string(trial.join("evidence/blocked.txt")).unwrap().contains("state D"));
    let junit = std::fs::read_to_string(out.join("junit.xml")).unwrap();
    assert!(junit.contains("<failure"), "{junit}");

    // The folder alone gives the same verdict again.
    let again = klpfarm().args(["judge", "--json"]).arg(&out).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap(), verdict);
    // A folder that is in use is refused.
    let refused = run(&pipeline(dir.path(), "debian-12", ALL_ARMS), &patch, &out).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("not empty"), "{}", text(&refused));
    assert_nothing_left();
}

#[test]
fn a_good_patch_is_qualified() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    let dir = temporary();
    let out = dir.path().join("run");
    let output =
        run(&pipeline(dir.path(), "debian-12", ALL_ARMS), &patch, &out).arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["verdict"], "qualified");
    assert!(verdict["reach"][0]["calls_per_s"].as_f64().unwrap() > 1.0, "{verdict:#}");
    let journal = std::fs::read_to_string(out.join("journal.jsonl")).unwrap();
    for part in ["\"transition-done\"", "\"unloaded\":true", "\"phase\":\"soak\""] {
        assert!(journal.contains(part), "the journal lacks {part}");
    }
    assert_nothing_left();
}

/// The same on 5.10.
#[test]
fn debian_11_boots_and_takes_a_patch() {
    let _alone = alone();
    let patch = module("debian-11", "madvise-fixed");
    let dir = temporary();
    let out = dir.path().join("run");
    let arms = "{loaded: 1, quiescent: 0, control: 1}";
    let output = run(&pipeline(dir.path(), "debian-11", arms), &patch, &out).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(json(&out.join("plan.json"))["image"]["release"].as_str().unwrap().starts_with("5.10."));
    assert_nothing_left();
}

#[test]
fn a_patch_for_another_kernel_is_refused_before_anything_boots() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    let mut data = std::fs::read(&patch).unwrap();
    let at = data.windows(9).position(|w| w == b"vermagic=").unwrap() + 9;
    data[at..at + 4].copy_from_slice(b"9.9.");
    let dir = temporary();
    let other = dir.path().join("other.ko");
    std::fs::write(&other, data).unwrap();
    let out = dir.path().join("run");
    let output = run(&pipeline(dir.path(), "debian-12", ALL_ARMS), &other, &out).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("was built for kernel 9.9."), "{}", text(&output));
    assert!(!out.exists());
}

/// A run in the background.
struct Running {
    child: Child,
    journal: PathBuf,
}

impl Running {
    fn start(mut command: Command, out: &Path) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, journal: out.join("journal.jsonl") }
    }

    /// Wait until the journal has `text`.
    fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + Duration::from_secs(300);
        while !std::fs::read_to_string(&self.journal).unwrap_or_default().contains(text) {
            assert!(self.child.try_wait().unwrap().is_none(), "the run ended before {text}");
            assert!(Instant::now() < until, "no {text} in the journal");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Process ids of the run's machines.
    fn machines(&self) -> Vec<String> {
        let children = format!("/proc/{0}/task", self.child.id());
        let mut pids = Vec::new();
        for task in std::fs::read_dir(children).unwrap().flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(list.split_whitespace().map(str::to_owned));
        }
        pids
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[test]
fn a_killed_qemu_is_the_farms_error() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    let dir = temporary();
    let out = dir.path().join("run");
    let pipeline = pipeline(dir.path(), "debian-12", "{loaded: 1, quiescent: 0, control: 1}");
    let mut running = Running::start(run(&pipeline, &patch, &out), &out);
    running.wait_for("\"phase\":\"baseline\"");
    for pid in running.machines() {
        kill("-KILL", &pid);
    }
    assert_eq!(running.code(), Some(4));
    let verdict = json(&out.join("verdict.json"));
    assert_eq!(verdict["verdict"], "inconclusive");
    assert!(verdict["farm_errors"][0].as_str().unwrap().contains("QEMU ended by itself"), "{verdict:#}");
    assert_nothing_left();
}

#[test]
fn an_interrupted_run_ends_its_machines_and_says_what_is_known() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    for signal in ["-INT", "-TERM", "-HUP"] {
        let dir = temporary();
        let out = dir.path().join("run");
        let pipeline = pipeline(dir.path(), "debian-12", "{loaded: 1, quiescent: 0, control: 1}");
        let mut running = Running::start(run(&pipeline, &patch, &out), &out);
        running.wait_for("\"phase-started\"");
        let machines = running.machines();
        assert!(!machines.is_empty());
        kill(signal, &running.child.id().to_string());
        assert_eq!(running.code(), Some(130));
        assert_eq!(json(&out.join("verdict.json"))["verdict"], "inconclusive");
        for pid in machines {
            assert!(!Path::new("/proc").join(&pid).exists(), "QEMU {pid} was left behind");
        }
        assert_nothing_left();
    }
}

/// Even when nobody is left to end them, machines die with the farm.
#[test]
fn machines_die_with_a_killed_farm() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    let dir = temporary();
    let out = dir.path().join("run");
    let pipeline = pipeline(dir.path(), "debian-12", "{loaded: 1, quiescent: 0, control: 1}");
    let mut running = Running::start(run(&pipeline, &patch, &out), &out);
    running.wait_for("\"phase-started\"");
    let machines = running.machines();
    assert!(!machines.is_empty());
    kill("-KILL", &running.child.id().to_string());
    assert_eq!(running.code(), None);
    let gone = |pid: &String| !Path::new("/proc").join(pid).join("exe").exists();
    let until = Instant::now() + Duration::from_secs(60);
    while !machines.iter().all(gone) {
        assert!(Instant::now() < until, "QEMU survived its farm");
        std::thread::sleep(Duration::from_millis(50));
    }
    // What a killed farm can't remove itself, the next run does.
    let left = |dir: &Path, prefix: &str| {
        let prefix = format!("{prefix}{}-", running.child.id());
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count()
    };
    assert!(left(&home(), ".scratch-") > 0, "the test kills too late to show anything");
    let again = dir.path().join("again");
    let mut next = Running::start(run(&pipeline, &patch, &again), &again);
    next.wait_for("\"run-started\"");
    assert_eq!((left(&home(), ".scratch-"), left(&std::env::temp_dir(), "klpfarm-")), (0, 0));
    kill("-TERM", &next.child.id().to_string());
    assert_eq!(next.code(), Some(130));
    assert_nothing_left();
}

#[test]
fn the_images_can_be_listed_and_shown() {
    let _alone = alone();
    succeed(klpfarm().args(["image", "build", "debian-12"]));
    let list = succeed(klpfarm().args(["image", "list", "--json"]));
    let list: Value = serde_json::from_str(&list).unwrap();
    assert!(list.as_array().unwrap().iter().any(|i| i["name"] == "debian-12"), "{list:#}");
    let shown: Value =
        serde_json::from_str(&succeed(klpfarm().args(["image", "show", "debian-12", "--json"]))).unwrap();
    for file in ["disk", "kernel", "initrd", "headers"] {
        assert!(Path::new(shown[file].as_str().unwrap()).exists(), "{file}: {shown:#}");
    }
}
