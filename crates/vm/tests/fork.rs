//! Checkpoint and fork, on real machines: what only they can show.
//!
//! The image is kept below the target folder between runs, or in `KLPFARM_TEST_HOME`. `--nocapture` prints the figures.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use klpfarm_image::{
    Begun, BuildOptions, CHECKPOINT_KEY, Checkpoint, CheckpointStore, Draft, Image, Key, Made, Store,
};
use klpfarm_model::Accel;
use klpfarm_stress::wire::{Ask, FromGuest, Run, ToGuest};
use klpfarm_vm::{
    Checkpointed, Files, GUEST_BINARY, Group, KvmProbe, Login, Machine, Origin, Output, Spec, Ssh, VmError,
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
    images: Store,
    image: Image,
    accel: Accel,
    login: Login,
    checkpoints: CheckpointStore,
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
        let checkpoints = CheckpointStore::open(dir.path()).unwrap();
        Self { images: store, image, accel, login, checkpoints, dir }
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
            group: Group::Alone,
            counted: false,
        }
    }

    async fn start(&self, console: &Path, origin: Origin) -> Result<Running, VmError> {
        let console = console.to_owned();
        let (machine, outputs) = Machine::start(&self.spec(origin), self.dir.path(), console.clone()).await?;
        Ok(Running { machine, outputs, console })
    }

    async fn fork(&self, name: &str, checkpoint: &Checkpoint) -> Result<Running, VmError> {
        let console = self.dir.path().join(format!("{name}.console"));
        self.start(&console, Origin::Fork(Files::in_dir(&checkpoint.dir))).await
    }

    async fn draft(&self, parent: Option<&Checkpoint>) -> Draft {
        let key = Key {
            image: self.image.id().to_owned(),
            image_hash: self.image.identity(),
            cpus: 2,
            memory_mib: 1024,
            accel: self.accel.to_string(),
            qemu: klpfarm_vm::qemu_version().await.unwrap().0,
            workloads: serde_json::json!(["madvise-allocator"]),
            aging: serde_json::Value::Null,
            farm: "test".into(),
            parent: parent.map(|p| p.id().to_owned()),
        };
        match self.checkpoints.begin(&key, &mut |_| {}).await.unwrap() {
            Begun::Draft(draft) => *draft,
            Begun::There(there) => panic!("{} is there", there.id()),
        }
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

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    println!("{what}: {} ms", begun.elapsed().as_millis());
    result
}

async fn template(bench: &Bench) -> Checkpoint {
    let draft = bench.draft(None).await;
    let origin = Origin::Template(Files::in_dir(draft.dir()));
    let mut machine = bench.start(&draft.dir().join("console.log"), origin).await.unwrap();
    machine.run(bench, SETUP, GUEST_BINARY).await;
    let run = Run::Builtin { name: "madvise-allocator".into(), args: vec!["processes=1".into()] };
    machine.ask(Ask::Start { workload: "w".into(), run }).await;
    let done = machine.checkpoint().await;
    assert!(done.ram_bytes > 50 << 20 && done.state_bytes > 50 << 10 && done.disk_bytes > 0, "{done:?}");
    timed("hash and publish", || draft.publish(Made::default()).unwrap())
}

/// Four at once: each is heard by probe, console and SSH, and writes what no other sees; the checkpoint stays as it is.
async fn four_forks(bench: &Bench, checkpoint: &Checkpoint) {
    let begun = Instant::now();
    let start = async |n: usize| {
        let fork = bench.fork(&format!("fork-{n}"), checkpoint).await.unwrap();
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
    // No fork wrote to it.
    timed("verify", || checkpoint.verify().unwrap());
}

/// Nothing of the guest gets out: not to the host's loopback, not to the host's own address, by neither TCP nor UDP. Both could be
/// reached through QEMU's user network if it were not restricted, as 10.0.2.2 and as what they are.
async fn closed_in(bench: &Bench, checkpoint: &Checkpoint) {
    let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
    // No packet is sent: this asks for the address that one to the outside would bear.
    let route = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut hosts = vec!["10.0.2.2".to_owned()];
    match route.connect("192.0.2.1:9").and_then(|()| route.local_addr()) {
        Ok(own) => hosts.push(own.ip().to_string()),
        Err(error) => println!("SKIPPED: the host has no address of its own: {error}"),
    }
    // The guest's own sshd first: the way of trying works, so that a failure of the others says something.
    let mut script = String::from(
        "try() { timeout 5 bash -c \"exec 3<>/dev/tcp/$1/$2\" 2>/dev/null && echo \"reached $1\" || echo \"closed $1\"; }\ntry 10.0.2.15 22\n",
    );
    for host in &hosts {
        script += &format!("try {host} {tcp_port}\n");
        script += &format!("timeout 5 bash -c 'echo out > /dev/udp/{host}/{udp_port}' 2>/dev/null\n");
    }
    // A question to the name server that QEMU offers: it would be asked of the host's.
    script += "timeout 5 bash -c 'exec 3<>/dev/udp/10.0.2.3/53; printf \"\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\x01\" >&3; \
               head -c1 <&3 | wc -c | sed s/^/answer/' 2>/dev/null\ntrue\n";
    let mut fork = bench.fork("closed", checkpoint).await.unwrap();
    let said = fork.run(bench, &script, b"").await;
    let wanted: String = hosts.iter().map(|host| format!("closed {host}\n")).collect();
    assert_eq!(said, format!("reached 10.0.2.15\n{wanted}"));
    assert_eq!(
        tcp.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "a guest connected to the host"
    );
    let heard = udp.recv_from(&mut [0; 16]).map_err(|e| e.kind());
    assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock), "a guest sent a packet to the host");
    distrusted(bench, &mut fork).await;
    fork.close().await;
}

/// Neither another process that answers on the guest's port nor a guest that writes without end gets far.
async fn distrusted(bench: &Bench, fork: &mut Running) {
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBm/RAlphM3+hUG6wWfcO5bIUIaqMLa2ywxcOK1wMWbh";
    let ssh = bench.image.ssh();
    let login = Login::new(&ssh.user, &ssh.key, Some(OTHER)).unwrap();
    let error =
        drained(&mut fork.outputs, fork.machine.ssh(&login, LIMIT)).await.err().expect("a wrong host key");
    assert!(error.to_string().to_lowercase().contains("key"), "{error}");
    let ssh = drained(&mut fork.outputs, fork.machine.ssh(&bench.login, LIMIT)).await.unwrap();
    let error =
        drained(&mut fork.outputs, ssh.run("cat /dev/zero", b"", LIMIT)).await.unwrap_err().to_string();
    assert!(error.contains("it wrote more than 32 MiB"), "{error}");
}

/// A fork's memory, most of which lies in the checkpoint's file, can be dumped from within QEMU's sandbox; the guest goes on, and a dump
/// that would become too large leaves nothing behind.
async fn dumped(bench: &Bench, checkpoint: &Checkpoint) {
    let mut fork = bench.fork("dumped", checkpoint).await.unwrap();
    fork.ask(Ask::Hello).await;
    let file = bench.dir.path().join("dump.kdump");
    let begun = Instant::now();
    let dump = fork.machine.dump(&file, 1 << 30, LIMIT);
    let size = drained(&mut fork.outputs, dump).await.unwrap();
    println!("dump: {} MiB after {} ms", size >> 20, begun.elapsed().as_millis());
    let head = std::fs::read(&file).unwrap();
    assert!(head.starts_with(b"KDUMP   ") || head.starts_with(b"makedumpfile"), "{:?}", &head[..16]);
    // A guest's memory holds keys.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    assert_eq!(fork.machine.status().await.unwrap(), ("running".to_owned(), true));
    fork.ask(Ask::Hello).await;

    std::fs::remove_file(&file).unwrap();
    let dump = fork.machine.dump(&file, 1 << 20, LIMIT);
    let error = drained(&mut fork.outputs, dump).await.unwrap_err().to_string();
    assert!(error.contains("larger than 1 MiB"), "{error}");
    assert!(!file.exists());
    fork.close().await;
}

/// The outcome of `work`, while the machine's stream is read: a full one holds up QEMU's answers.
async fn drained<T>(outputs: &mut Receiver<Output>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            Some(output) = outputs.recv() => drop(output),
        }
    }
}

/// An older checkpoint, from copies; a fork of it goes on from there.
async fn older(bench: &Bench, checkpoint: &Checkpoint) {
    let draft = bench.draft(Some(checkpoint)).await;
    timed("copy", || checkpoint.copy_into(&draft).unwrap());
    let origin = Origin::Continue(Files::in_dir(draft.dir()));
    let mut machine = bench.start(&draft.dir().join("console.log"), origin).await.unwrap();
    machine.ticks().await;
    machine.run(bench, "echo older > /root/mark && sync", b"").await;
    let begun = Instant::now();
    let own = drained(&mut machine.outputs, machine.machine.rekey(&bench.login, LIMIT)).await.unwrap();
    println!("SSH keys of its own after {} ms", begun.elapsed().as_millis());
    machine.checkpoint().await;
    own.save(&draft.dir().join(CHECKPOINT_KEY)).unwrap();
    let older = draft.publish(Made { host_key: own.host_key(), ..Made::default() }).unwrap();
    checkpoint.verify().unwrap();
    let begun = Instant::now();
    let mut fork = bench.fork("fork-of-older", &older).await.unwrap();
    println!("fork of the older one: running after {} ms", begun.elapsed().as_millis());
    fork.ticks().await;
    own_keys_only(bench, &older, &mut fork).await;
    fork.close().await;
}

/// The key that opens the image does not open this machine, nor does the machine show the image's host key.
async fn own_keys_only(bench: &Bench, checkpoint: &Checkpoint, fork: &mut Running) {
    let (image, own) = (bench.image.ssh(), checkpoint.ssh(bench.image.ssh()));
    assert!(image.key != own.key && image.host_key != own.host_key);
    let login = |key: &Path, host_key: &Option<String>| Login::new("root", key, host_key.as_deref()).unwrap();
    for (login, why) in [
        (login(&image.key, &image.host_key), "key"),
        (login(&own.key, &image.host_key), "key"),
        (login(&image.key, &own.host_key), "authent"),
    ] {
        let refused = drained(&mut fork.outputs, fork.machine.ssh(&login, LIMIT)).await.err();
        let error = refused.expect("a key of the image's").to_string().to_lowercase();
        assert!(error.contains(why), "{error}");
    }
    let own = login(&own.key, &own.host_key);
    let ssh = drained(&mut fork.outputs, fork.machine.ssh(&own, LIMIT)).await.unwrap();
    let said = drained(&mut fork.outputs, ssh.run("cat /root/mark && ls /etc/ssh /root/.ssh", b"", LIMIT))
        .await
        .unwrap();
    assert!(said.text.starts_with("older\n") && !said.text.contains(".new"), "{said:?}");
    ssh.close().await;
}

/// A checkpoint that was elsewhere is one to fork from.
async fn carried(bench: &Bench, checkpoint: &Checkpoint) {
    let tar = bench.dir.path().join("c.tar");
    timed("export", || bench.checkpoints.export(checkpoint.id(), &tar).unwrap());
    println!("archive: {} MiB", std::fs::metadata(&tar).unwrap().len() >> 20);
    bench.checkpoints.remove(checkpoint.id()).unwrap();
    let imported = timed("import", || bench.checkpoints.import(&tar, &bench.images).unwrap());
    assert_eq!(imported, *checkpoint);
    println!("imported: {} MiB on disk", imported.disk_bytes() >> 20);
    let mut fork = bench.fork("imported", &imported).await.unwrap();
    fork.ticks().await;
    fork.ask(Ask::Hello).await;
    fork.close().await;
}

/// What does not fit is refused in QEMU's words, and by name.
async fn misfits(bench: &Bench, checkpoint: &Checkpoint) {
    let path = Files::in_dir(&checkpoint.dir).state;
    let state = std::fs::read(&path).unwrap();
    let refused = async |name: &str| match bench.fork(name, checkpoint).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{name}: a machine runs"),
    };
    std::fs::write(&path, &state[..state.len() / 2]).unwrap();
    let cut = refused("cut").await;
    println!("cut short: {cut}");
    assert!(cut.contains("state: a machine can't go on from this") && cut.contains("checkpoint rm"), "{cut}");
    std::fs::write(&path, b"no state at all, but some bytes").unwrap();
    let other = refused("other").await;
    println!("no state: {other}");
    assert!(other.contains("can't go on from this") && other.contains("migration stream"), "{other}");
    std::fs::write(&path, &state).unwrap();
    let Running { machine, mut outputs, .. } = bench.fork("whole", checkpoint).await.unwrap();
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
    let checkpoint = template(&bench).await;
    four_forks(&bench, &checkpoint).await;
    closed_in(&bench, &checkpoint).await;
    dumped(&bench, &checkpoint).await;
    older(&bench, &checkpoint).await;
    carried(&bench, &checkpoint).await;
    misfits(&bench, &checkpoint).await;
}
