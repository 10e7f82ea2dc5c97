//! What tests on real machines have in common: images and modules made once, short pipelines, runs in the background.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

pub(crate) fn home() -> PathBuf {
    std::env::var_os("KLPFARM_TEST_HOME")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("home"), PathBuf::from)
}

pub(crate) fn klpfarm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_klpfarm"));
    command.env("KLPFARM_HOME", home()).current_dir(repository()).stdin(Stdio::null());
    command
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Build the image once, and the module for it.
pub(crate) fn module(image: &str, example: &str) -> PathBuf {
    let out = home().join("modules").join(image);
    std::fs::create_dir_all(&out).unwrap();
    succeed(klpfarm().args(["image", "build", image]));
    let source = repository().join("examples").join(example);
    PathBuf::from(succeed(
        klpfarm().args(["module", "build", "--image", image, "--out"]).arg(out).arg(source),
    ))
}

/// A pipeline with short phases, and tiers that a single clean trial satisfies. All tests share one aged machine.
pub(crate) fn pipeline(dir: &Path, image: &str, arms: &str) -> PathBuf {
    let tiers = "proposed: {applications: {max_failure_rate: 0.7, confidence: 0.6}, exposure: {soak: 20s}, arms: [loaded, control]}\n";
    std::fs::write(dir.join("tiers.yaml"), tiers).unwrap();
    let file = dir.join("short.yaml");
    let text = format!(
        "name: short\nimage: {image}\nworkloads: [madvise-allocator, fork-exec-churn]\narms: {arms}\n\
         aging: {{uptime: 30s, cache_mib: 32, files: 500, fragment_mib: 16, residents: 3, churn: 3}}\n\
         phases: {{settle: 1s, baseline: 5s, soak: 20s, revert: 3s, cycles: 2}}\ntiers: tiers.yaml\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

pub(crate) const THREE_ARMS: &str = "{quiescent: 1, control: 1, reapply: 0}";
pub(crate) const TWO_ARMS: &str = "{quiescent: 0, control: 1, reapply: 0}";

pub(crate) fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("klpfarm-test-").tempdir().unwrap()
}

pub(crate) fn run(pipeline: &Path, patch: &Path, out: &Path) -> Command {
    let mut command = klpfarm();
    command.arg("run").arg(pipeline).arg("--patch").arg(patch).arg("--out").arg(out);
    command
}

pub(crate) fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Nothing of the run may be left: no QEMU with our home in its arguments or environment, no scratch folder.
pub(crate) fn assert_nothing_left() {
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

/// A run in the background.
pub(crate) struct Running {
    pub(crate) child: Child,
    journal: PathBuf,
    /// So much of the journal has been waited for.
    seen: usize,
}

impl Running {
    pub(crate) fn start(mut command: Command, out: &Path) -> Self {
        Self::of(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), out)
    }

    /// The same, with nobody who reads what it says: each line that it writes fails.
    pub(crate) fn start_unheard(mut command: Command, out: &Path) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        Self::of(child, out)
    }

    fn of(child: Child, out: &Path) -> Self {
        let journal = out.join("journal.jsonl");
        let seen = std::fs::metadata(&journal).map_or(0, |m| m.len() as usize);
        Self { child, journal, seen }
    }

    /// Wait until `text` comes that was not there when this was last called, nor when the run was started.
    pub(crate) fn wait_for_new(&mut self, text: &str) {
        let until = Instant::now() + Duration::from_secs(300);
        loop {
            let journal = std::fs::read_to_string(&self.journal).unwrap_or_default();
            if let Some(at) = journal.get(self.seen..).and_then(|new| new.find(text)) {
                self.seen += at + text.len();
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the run ended before {text}");
            assert!(Instant::now() < until, "no {text} in the journal");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Wait until the journal has `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + Duration::from_secs(300);
        while !std::fs::read_to_string(&self.journal).unwrap_or_default().contains(text) {
            assert!(self.child.try_wait().unwrap().is_none(), "the run ended before {text}");
            assert!(Instant::now() < until, "no {text} in the journal");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Process ids of the run's machines.
    pub(crate) fn machines(&self) -> Vec<String> {
        let children = format!("/proc/{0}/task", self.child.id());
        let mut pids = Vec::new();
        for task in std::fs::read_dir(children).unwrap().flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(list.split_whitespace().map(str::to_owned));
        }
        pids
    }

    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

pub(crate) fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// The checkpoint of the tests' debian-12, made if it is not there yet.
pub(crate) fn aged() -> Value {
    succeed(klpfarm().args(["image", "build", "debian-12"]));
    let dir = temporary();
    let pipeline = pipeline(dir.path(), "debian-12", TWO_ARMS);
    let made =
        succeed(klpfarm().args(["age", "debian-12", "--for", "30s", "--json", "--pipeline"]).arg(pipeline));
    serde_json::from_str(&made).unwrap()
}
