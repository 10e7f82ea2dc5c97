//! Checkpoint and fork, on real machines: what only they can show.
//!
//! The image is kept below the target folder between runs, or in `KLPFARM_TEST_HOME`. `--nocapture` prints the figures.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use klpfarm_image::{BuildOptions, Image, Store};
use klpfarm_model::Accel;
use klpfarm_stress::wire::{Ask, FromGuest, Run, ToGuest};
use klpfarm_vm::{
    Checkpointed, Files, GUEST_BINARY, KvmProbe, Login, Machine, Origin, Output, Spec, Ssh, VmError,
};
use tokio::sync::mpsc::Receiver;

/// Emulation on a busy host is slow; nothing here takes near so long.
const LIMIT: Duration = Duration::from_secs(300);

/// What a template, and so each of its forks, does all the time.
const SETUP: &str = "mkdir -p /run/klpfarm && mount -t tmpfs none /run/klpfarm && cat > /run/klpfarm/probe && \
     chmod +x /run/klpfarm/probe && { /run/klpfarm/probe serve --daemon </dev/null >/dev/null 2>&1; } && \
     echo template > /root/mark && sync && \
     { (while :; do echo tick > /dev/ttyS0; sleep 1; done) </dev/null >/dev/null 2>&1 & }";

struct Bench {
    image: Image,
    accel: Accel,
    login: Login,
    dir: tempfile::TempDir,
}

struct Running {
    machine: Machine,
    outputs: Receiver<Output>,
    console: PathBuf,
}

impl Bench {
    async fn new() -> Self {
        let home = std::env::var_os("KLPFARM_TEST_HOME")
            .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("home"), PathBuf::from);
        let store = Store::open(&home).unwrap();
        let recipe = klpfarm_image::find("debian-12", &[]).unwrap();
        let image = store.build(&recipe, &BuildOptions::default(), &mut |_| {}).await.unwrap();
        let accel = match klpfarm_vm::probe_kvm().await.unwrap() {
            KvmProbe::Works(_) => Accel::Kvm,
            KvmProbe::Fails(_) => Accel::Tcg,
        };
        let ssh = image.ssh();
        let login = Login::new(&ssh.user, &ssh.key, ssh.host_key.as_deref()).unwrap();
        // Below the target folder: RAM files are to lie on a disk.
        let dir = tempfile::Builder::new().prefix("fork-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { image, accel, login, dir }
    }

    fn spec(&self, origin: Origin) -> Spec {
        let (disk, format) = self.image.disk();
        Spec {
            disk,
            disk_format: format.as_str().to_owned(),
            kernel: self.image.kernel(),
            initrd: self.image.initrd(),
            cmdline: self.image.cmdline().to_owned(),
            seed: self.image.seed(),
            cpus: 2,
            memory_mib: 1024,
            accel: self.accel,
            origin,
        }
    }

    async fn start(&self, name: &str, origin: Origin) -> Result<Running, VmError> {
        let console = self.dir.path().join(format!("{name}.console"));
        let (machine, outputs) = Machine::start(&self.spec(origin), self.dir.path(), console.clone()).await?;
        Ok(Running { machine, outputs, console })
    }

    fn files(&self, name: &str) -> Files {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Files::in_dir(&dir)
    }
}

impl Running {
    /// Run a command, logging in for it; sshd may not be there yet.
    async fn run(&mut self, bench: &Bench, command: &str, input: &[u8]) -> String {
        let work = async {
            let ssh: Ssh = loop {
                if let Ok(ssh) = self.machine.ssh(&bench.login, Duration::from_secs(30)).await {
                    break ssh;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            let output = ssh.run(command, input, LIMIT).await.unwrap();
            assert_eq!(output.code, 0, "{command}: {}", output.text);
            ssh.close().await;
            output.text
        };
        let mut work = std::pin::pin!(tokio::time::timeout(LIMIT, work));
        loop {
            tokio::select! {
                text = &mut work => return text.expect("in time"),
                Some(output) = self.outputs.recv() => drop(output),
            }
        }
    }

    /// Ask the probe and wait for the answer; tells how long it took.
    async fn ask(&mut self, ask: Ask) -> Duration {
        let begun = Instant::now();
        self.machine.tell_probe(&ToGuest { id: 77, ask });
        self.until(|o| matches!(o, Output::Probe(FromGuest::Reply { id: 77, code: 0, .. }))).await;
        begun.elapsed()
    }

    async fn until(&mut self, wanted: impl Fn(&Output) -> bool) {
        let found = async {
            while let Some(output) = self.outputs.recv().await {
                if wanted(&output) {
                    return;
                }
            }
            panic!("QEMU ended");
        };
        tokio::time::timeout(LIMIT, found).await.expect("in time");
    }

    async fn ticks(&mut self) {
        let tick = |o: &Output| matches!(o, Output::Console(bytes) if String::from_utf8_lossy(bytes).contains("tick"));
        self.until(tick).await;
        assert!(self.console.exists());
    }

    /// Memory that is this machine's alone, in MiB.
    fn private_mib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.machine.pid())).unwrap();
        let field = |name: &str| -> u64 {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        field("Private_Dirty:") / 1024
    }

    async fn close(self) {
        // First: a stream that is kept but not read holds up QEMU's answers.
        drop(self.outputs);
        self.machine.close(LIMIT).await;
    }

    async fn checkpoint(mut self) -> Checkpointed {
        let done = self.machine.checkpoint(&mut self.outputs).await.unwrap();
        assert!(done.rest.iter().any(|o| matches!(o, Output::Exited { .. })), "{:?}", done.rest.last());
        println!(
            "checkpoint: stop {} ms, save {} ms, quit {} ms, sync {} ms; RAM {} KiB, state {} KiB, disk {} KiB",
            done.stop_ms,
            done.save_ms,
            done.quit_ms,
            done.sync_ms,
            done.ram_bytes >> 10,
            done.state_bytes >> 10,
            done.disk_bytes >> 10
        );
        done
    }
}

fn digest(files: &Files) -> Vec<u64> {
    use std::hash::{DefaultHasher, Hasher};
    let one = |path: &PathBuf| {
        let mut hasher = DefaultHasher::new();
        hasher.write(&std::fs::read(path).unwrap());
        hasher.finish()
    };
    [&files.ram, &files.state, &files.disk].map(one).into()
}

async fn template(bench: &Bench, files: &Files) {
    let mut machine = bench.start("template", Origin::Template(files.clone())).await.unwrap();
    machine.run(bench, SETUP, GUEST_BINARY).await;
    let run = Run::Builtin { name: "madvise-allocator".into(), args: vec!["processes=1".into()] };
    machine.ask(Ask::Start { workload: "w".into(), run }).await;
    let done = machine.checkpoint().await;
    assert!(done.ram_bytes > 50 << 20 && done.state_bytes > 50 << 10 && done.disk_bytes > 0, "{done:?}");
}

/// Four at once: each is heard by probe, console and SSH, and writes what no other sees; the checkpoint stays as it is.
async fn four_forks(bench: &Bench, files: &Files) {
    let before = digest(files);
    let begun = Instant::now();
    let start = async |n: usize| {
        let fork = bench.start(&format!("fork-{n}"), Origin::Fork(files.clone())).await.unwrap();
        (fork, begun.elapsed())
    };
    let (a, b, c, d) = tokio::join!(start(0), start(1), start(2), start(3));
    let mut forks = Vec::new();
    for (n, (fork, running)) in [a, b, c, d].into_iter().enumerate() {
        println!("fork {n}: running after {} ms, private {} MiB", running.as_millis(), fork.private_mib());
        forks.push(fork);
    }
    for (n, fork) in forks.iter_mut().enumerate() {
        let heard = fork.ask(Ask::Hello).await;
        println!("fork {n}: the probe answered after {} ms", heard.as_millis());
        fork.until(
            |o| matches!(o, Output::Probe(FromGuest::Progress { threads, .. }) if !threads.is_empty()),
        )
        .await;
        fork.ticks().await;
    }
    for (n, mut fork) in forks.into_iter().enumerate() {
        let begun = Instant::now();
        // dd with fsync: the disk takes writes, and says when it can't.
        let command = format!(
            "cat /root/mark && dd if=/dev/urandom of=/root/fork-{n} bs=64k count=64 conv=fsync 2>/dev/null && ls /root"
        );
        let text = fork.run(bench, &command, b"").await;
        println!(
            "fork {n}: SSH and fsync in {} ms, private {} MiB",
            begun.elapsed().as_millis(),
            fork.private_mib()
        );
        let words: Vec<_> = text.split_whitespace().filter(|w| w.starts_with("fork-")).collect();
        assert!(text.starts_with("template"), "{text}");
        assert_eq!(words, [format!("fork-{n}")], "another fork's file is seen");
        fork.close().await;
    }
    assert_eq!(digest(files), before, "a fork wrote to its checkpoint");
}

/// An older checkpoint, from copies; a fork of it goes on from there.
async fn older(bench: &Bench, files: &Files) {
    let before = digest(files);
    let copies = bench.files("older");
    for (from, to) in [(&files.ram, &copies.ram), (&files.state, &copies.state), (&files.disk, &copies.disk)]
    {
        std::fs::copy(from, to).unwrap();
    }
    let mut machine = bench.start("older", Origin::Continue(copies.clone())).await.unwrap();
    machine.ticks().await;
    machine.run(bench, "echo older > /root/mark && sync", b"").await;
    machine.checkpoint().await;
    assert_eq!(digest(files), before, "the copies are not apart from their checkpoint");
    let begun = Instant::now();
    let mut fork = bench.start("fork-of-older", Origin::Fork(copies)).await.unwrap();
    println!("fork of the older one: running after {} ms", begun.elapsed().as_millis());
    fork.ticks().await;
    assert_eq!(fork.run(bench, "cat /root/mark", b"").await.trim(), "older");
    fork.close().await;
}

/// What does not fit is refused in QEMU's words, and by name.
async fn misfits(bench: &Bench, files: &Files) {
    let state = std::fs::read(&files.state).unwrap();
    let refused = async |name: &str| match bench.start(name, Origin::Fork(files.clone())).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{name}: a machine runs"),
    };
    std::fs::write(&files.state, &state[..state.len() / 2]).unwrap();
    let cut = refused("cut").await;
    println!("cut short: {cut}");
    assert!(cut.contains("state: a machine can't go on from this") && cut.contains("checkpoint rm"), "{cut}");
    std::fs::write(&files.state, b"no state at all, but some bytes").unwrap();
    let other = refused("other").await;
    println!("no state: {other}");
    assert!(other.contains("can't go on from this") && other.contains("migration stream"), "{other}");
    std::fs::write(&files.state, &state).unwrap();
    let Running { machine, mut outputs, .. } =
        bench.start("whole", Origin::Fork(files.clone())).await.unwrap();
    let error = machine.checkpoint(&mut outputs).await.unwrap_err().to_string();
    assert!(error.contains("keeps no files"), "{error}");
}

/// One test, because machines are large and one template serves all.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_its_forks_and_an_older_checkpoint() {
    let (line, version) = klpfarm_vm::qemu_version().await.unwrap();
    if let Err(reason) = klpfarm_vm::can_fork(version) {
        panic!("{line}: {reason}");
    }
    let bench = Bench::new().await;
    let files = bench.files("first");
    template(&bench, &files).await;
    four_forks(&bench, &files).await;
    older(&bench, &files).await;
    misfits(&bench, &files).await;
}
