//! A running machine.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use klpfarm_stress::wire::{FromGuest, ToGuest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::channel::Recorded;
use crate::counts::{Counter, Counting, Counts};
use crate::spec::Sockets;
use crate::{
    Claimed, Files, Login, OWNER_VARIABLE, Origin, Owner, QEMU, Qmp, QmpEvent, Spec, Ssh, VmError, channel,
    checkpoint, origin,
};

/// Folders of sockets in the temporary folder begin so; see [`Claimed`].
pub const SOCKETS: &str = "klpfarm-";

/// Most of QEMU's standard error that is kept in its log, in bytes.
const QEMU_LOG: usize = 1 << 20;

/// Most of it that is handed on, in bytes.
const STDERR: usize = 16 << 10;

pub use crate::channel::LeftOut;

/// All that comes out of a machine, in one stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Bytes of the serial console.
    Console(Vec<u8>),
    /// A line of the probe.
    Probe(FromGuest),
    /// An event of QEMU.
    Qmp(QmpEvent),
    /// QEMU closed its end of this channel: it is ending, or the channel is lost.
    Closed(&'static str),
    /// QEMU ended; nothing more will come but what is on its way.
    Exited {
        /// Exit status in words.
        status: String,
        /// What it wrote to standard error, at most 16 KiB.
        stderr: String,
    },
}

/// One QEMU process with its sockets. [`Machine::close`] ends it in order; dropping it kills.
#[derive(Debug)]
pub struct Machine {
    qmp: Qmp,
    to_console: mpsc::Sender<Vec<u8>>,
    /// Told when the whole console is in its file.
    recorded: oneshot::Receiver<Recorded>,
    to_probe: Vec<mpsc::Sender<Vec<u8>>>,
    ssh_port: u16,
    pid: u32,
    counter: Option<Mutex<Counter>>,
    /// Where a checkpoint can be left.
    pub(crate) kept: Option<Files>,
    kill: mpsc::Sender<()>,
    gone: watch::Receiver<bool>,
    tasks: JoinSet<()>,
    // Last: the folder goes after the tasks that use its sockets.
    _sockets: Claimed,
}

impl Machine {
    /// Start QEMU, let it connect to us, and let the guest run, from power-on or from a checkpoint. The console is recorded in
    /// `console_log`, and what QEMU says on standard error in `qemu.log` beside it, if it says anything; QEMU's temporary files go to
    /// `scratch`.
    ///
    /// # Errors
    /// If QEMU can't be started or ends at once, or the checkpoint does not fit; QEMU's own words are in the error.
    pub async fn start(
        spec: &Spec,
        scratch: &Path,
        console_log: PathBuf,
    ) -> Result<(Self, mpsc::Receiver<Output>), VmError> {
        origin::prepare(spec)?;
        // Short, because a socket's path holds 107 bytes at most, and private: whoever could connect before QEMU does would be taken
        // for the machine.
        let parent = std::env::temp_dir();
        let dir = Claimed::create(&parent, SOCKETS).map_err(|source| VmError::Io { path: parent, source })?;
        let sockets = Sockets::new(dir.path());
        let ways = Ways::listen(&sockets)?;
        let counting = spec.counted.then(|| Counting::listen(&sockets.counts, scratch)).transpose()?;
        let mut child = spawn(spec, &sockets, scratch, counting.as_ref())?;
        let pid = child.id().unwrap_or(0);
        let qemu_log = console_log.with_file_name("qemu.log");
        let (output, mut outputs) = mpsc::channel(256);
        let mut tasks = JoinSet::new();

        let [qmp, console, virtio, uart] = ways.accept(&mut child, &qemu_log).await?;
        // QEMU loads its plugins before it does anything else.
        let counter = match counting {
            Some(counting) => Some(Mutex::new(counting.accept(LIMIT).await?)),
            None => None,
        };
        let (to_console, recorded) =
            channel::console(console, console_log, &mut tasks, output.clone()).await?;
        let to_probe = [virtio, uart].map(|s| channel::probe(s, &mut tasks, output.clone())).into();

        let (kill, killed) = mpsc::channel(1);
        let (set_gone, gone) = watch::channel(false);
        tasks.spawn(reap(child, qemu_log, killed, set_gone, output.clone()));
        let begun = begin(qmp, spec, &mut tasks, output).await;
        let (qmp, ssh_port) = match begun {
            Ok(begun) => begun,
            Err(error) => return Err(last_words(error, &spec.origin, &kill, &mut outputs).await),
        };
        let kept = spec.origin.kept().cloned();
        let machine = Self {
            qmp,
            to_console,
            recorded,
            to_probe,
            ssh_port,
            pid,
            counter,
            kept,
            kill,
            gone,
            tasks,
            _sockets: dir,
        };
        Ok((machine, outputs))
    }

    /// QMP, for evidence and control.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The loopback port that leads to the guest's SSH.
    pub fn ssh_port(&self) -> u16 {
        self.ssh_port
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A fresh SSH login, at most `limit`.
    ///
    /// # Errors
    /// As for [`Ssh::connect`].
    pub async fn ssh(&self, login: &Login, limit: Duration) -> Result<Ssh, VmError> {
        Ssh::connect(self.ssh_port, login, limit).await
    }

    /// How often each block of the guest's kernel has been entered since the machine was started; of a machine that is
    /// [`Spec::counted`]. The guest goes on meanwhile.
    ///
    /// # Errors
    /// If the machine is not counted, or its plugin does not answer within `limit`.
    pub async fn counts(&self, limit: Duration) -> Result<Counts, VmError> {
        match &self.counter {
            Some(counter) => counter.lock().await.read(limit).await,
            None => Err(VmError::Counts("this machine was started without it".into())),
        }
    }

    /// Say something to the probe, on both ways: it listens on one of them. Never waits: a probe that does not read loses it.
    pub fn tell_probe(&self, message: &ToGuest) {
        // An empty line first: a fork's probe may hold half a line that its checkpoint's host was writing.
        let mut line = vec![b'\n'];
        if serde_json::to_writer(&mut line, message).is_err() {
            return;
        }
        line.push(b'\n');
        for way in &self.to_probe {
            let _ = way.try_send(line.clone());
        }
    }

    /// Press a magic-sysrq key on the serial console: a break, then the key. It works in a guest that no longer answers otherwise,
    /// as long as it takes interrupts.
    pub async fn sysrq(&self, key: &str) {
        let limit = Duration::from_secs(5);
        let command = qapi::qmp::chardev_send_break { id: "console".into() };
        if self.qmp.execute(command, limit).await.is_ok() {
            let _ = self.to_console.try_send(key.as_bytes().to_vec());
        }
    }

    /// End QEMU: ask first, kill after `limit`, wait until it is gone and all its files are removed. Returns what of the console was
    /// too much to keep.
    pub async fn close(mut self, limit: Duration) -> Option<LeftOut> {
        let _ = self.qmp.execute(qapi::qmp::quit {}, limit).await;
        let gone = self.gone.wait_for(|gone| *gone);
        if tokio::time::timeout(limit, gone).await.is_err() {
            let _ = self.kill.send(()).await;
            let _ = self.gone.wait_for(|gone| *gone).await;
        }
        let recorded = tokio::time::timeout(limit, self.recorded).await;
        self.tasks.shutdown().await;
        recorded.ok()?.ok()?.left_out
    }
}

fn spawn(
    spec: &Spec,
    sockets: &Sockets,
    scratch: &Path,
    counting: Option<&Counting>,
) -> Result<Child, VmError> {
    // setpriv (util-linux) makes the kernel end QEMU when the farm dies in whatever way; a process group of its own
    // keeps a terminal's Ctrl-C from it, so that the farm can end it in order.
    let mut words = spec.group.prefix(spec);
    words.extend(["setpriv", "--pdeathsig", "KILL", "--", QEMU].map(Into::into));
    let child = Command::new(&words[0])
        .args(&words[1..])
        .args(spec.qemu_args(sockets, counting.map(Counting::plugin)))
        .env("TMPDIR", scratch)
        .env(OWNER_VARIABLE, Owner::me().map(|me| me.to_string()).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| VmError::NoQemu { program: "setpriv", source })?;
    if let Some(pid) = child.id() {
        spec.group.join(pid);
    }
    Ok(child)
}

/// QEMU connects to all our sockets within this.
const LIMIT: Duration = Duration::from_secs(30);

/// Our ends of the sockets: they listen before QEMU starts, so that nothing has to be tried again and again.
struct Ways([UnixListener; 4]);

impl Ways {
    fn listen(sockets: &Sockets) -> Result<Self, VmError> {
        let listen = |path: &Path| {
            UnixListener::bind(path).map_err(|source| VmError::Io { path: path.to_owned(), source })
        };
        let [qmp, console, probe, uart] = [&sockets.qmp, &sockets.console, &sockets.probe, &sockets.uart];
        Ok(Self([listen(qmp)?, listen(console)?, listen(probe)?, listen(uart)?]))
    }

    /// Take QEMU's connections, or its death. Each listener takes one and is closed.
    async fn accept(self, child: &mut Child, log: &Path) -> Result<[UnixStream; 4], VmError> {
        let attempt = async {
            let mut streams = Vec::with_capacity(self.0.len());
            for listener in &self.0 {
                streams.push(listener.accept().await?.0);
            }
            streams.try_into().map_err(|_| std::io::Error::other("a connection for each socket"))
        };
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "QEMU did not connect");
        let io = |source| VmError::Io { path: QEMU.into(), source };
        tokio::select! {
            streams = attempt => streams.map_err(io),
            status = child.wait() => {
                let mut words_of_qemu = Words::new(log.to_owned());
                if let Some(pipe) = child.stderr.as_mut() {
                    words_of_qemu.read(pipe).await;
                }
                Err(VmError::EndedEarly { status: words(status), stderr: words_of_qemu.first() })
            }
            () = tokio::time::sleep(LIMIT) => Err(io(late())),
        }
    }
}

/// Negotiate, read the checkpoint if there is one, and let the guest run.
async fn begin(
    qmp: UnixStream,
    spec: &Spec,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> Result<(Qmp, u16), VmError> {
    let qmp = Qmp::connect(qmp, tasks, output).await?;
    let ssh_port = ssh_port(&qmp).await?;
    if let (true, Some(files)) = (spec.origin.is_resumed(), spec.origin.files()) {
        checkpoint::resume(&qmp, &files.state).await?;
    }
    qmp.execute(qapi::qmp::cont {}, Duration::from_secs(30)).await?;
    Ok((qmp, ssh_port))
}

/// QEMU's own words say more than what became of a command: wait for its end, which is near when the connection is closed,
/// and bring it about otherwise.
async fn last_words(
    error: VmError,
    origin: &Origin,
    kill: &mpsc::Sender<()>,
    outputs: &mut mpsc::Receiver<Output>,
) -> VmError {
    const DYING: Duration = Duration::from_secs(5);
    let mut ended = std::pin::pin!(async {
        loop {
            match outputs.recv().await {
                Some(Output::Exited { status, stderr }) => return (status, stderr),
                Some(_) => {}
                None => return ("ended".to_owned(), String::new()),
            }
        }
    });
    let (status, stderr) = match tokio::time::timeout(DYING, &mut ended).await {
        Ok(words) => words,
        Err(_) => {
            let _ = kill.send(()).await;
            ended.await
        }
    };
    match origin.files().filter(|_| origin.is_resumed()) {
        Some(files) => {
            let words = stderr.lines().collect::<Vec<_>>().join("; ");
            let reason = if words.is_empty() { format!("{error} ({status})") } else { words };
            VmError::Unfit { path: files.state.clone(), reason }
        }
        None if stderr.is_empty() => error,
        None => VmError::EndedEarly { status, stderr },
    }
}

/// Wait for QEMU's end, or bring it about.
async fn reap(
    mut child: Child,
    log: PathBuf,
    mut killed: mpsc::Receiver<()>,
    gone: watch::Sender<bool>,
    output: mpsc::Sender<Output>,
) {
    let mut said = Words::new(log);
    let mut pipe = child.stderr.take();
    let read = async {
        if let Some(pipe) = pipe.as_mut() {
            said.read(pipe).await;
        }
        std::future::pending::<()>().await;
    };
    let status = tokio::select! {
        status = child.wait() => status,
        () = read => unreachable!("never ends"),
        _ = killed.recv() => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    // Its last words are often still on their way; whoever else has the pipe must not be waited for.
    if let Some(pipe) = pipe.as_mut() {
        let _ = tokio::time::timeout(Duration::from_secs(1), said.read(pipe)).await;
    }
    let _ = gone.send(true);
    let _ = output.send(Output::Exited { status: words(status), stderr: said.first() }).await;
}

/// What QEMU writes to standard error: its beginning is handed on, and a bounded part goes to a log as it comes, so that it is
/// there even if the farm is not.
struct Words {
    log: PathBuf,
    file: Option<tokio::fs::File>,
    /// Bytes that may still be written to the log.
    room: usize,
    first: Vec<u8>,
}

impl Words {
    fn new(log: PathBuf) -> Self {
        Self { log, file: None, room: QEMU_LOG, first: Vec::new() }
    }

    /// Read to the end. Cancel-safe: a piece that has been read is kept, but for the log's last one.
    async fn read(&mut self, pipe: &mut (impl tokio::io::AsyncRead + Unpin)) {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
            let piece = &buffer[..n];
            self.first.extend_from_slice(&piece[..n.min(STDERR - self.first.len())]);
            self.keep(piece).await;
        }
    }

    /// Best effort: a full disk is noticed elsewhere.
    async fn keep(&mut self, piece: &[u8]) {
        let kept = &piece[..piece.len().min(self.room)];
        if kept.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.file = tokio::fs::File::create(&self.log).await.ok();
        }
        let Some(file) = &mut self.file else { return };
        self.room -= kept.len();
        let _ = file.write_all(kept).await;
        if self.room == 0 {
            let _ = file.write_all(b"\n[klpfarm: what comes after this is left out]\n").await;
        }
        let _ = file.flush().await;
    }

    fn first(&self) -> String {
        String::from_utf8_lossy(&self.first).trim().to_owned()
    }
}

fn words(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|e| e.to_string(), |s| s.to_string())
}

/// QEMU chose the forwarded port; its human monitor tells which.
async fn ssh_port(qmp: &Qmp) -> Result<u16, VmError> {
    let text = qmp.monitor("info usernet", Duration::from_secs(30)).await?;
    forwarded_port(&text).ok_or_else(|| VmError::Qmp {
        command: "info usernet",
        reason: format!("no forwarded port in:\n{text}"),
    })
}

fn forwarded_port(text: &str) -> Option<u16> {
    let line = text.lines().find(|l| l.contains("HOST_FORWARD"))?;
    line.split_whitespace().skip_while(|w| *w != "127.0.0.1").nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_qemu_says_is_kept_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("qemu.log");
        let mut quiet = Words::new(log.clone());
        quiet.read(&mut &b""[..]).await;
        assert!(!log.exists(), "a log only where there is something to say");
        let text = b"no such device\n".repeat(200_000);
        let mut said = Words::new(log.clone());
        said.read(&mut &text[..]).await;
        assert_eq!(said.first().len(), String::from_utf8_lossy(&text[..STDERR]).trim().len());
        let kept = std::fs::read(&log).unwrap();
        assert_eq!(kept[..QEMU_LOG], text[..QEMU_LOG]);
        assert!(kept.len() < QEMU_LOG + 100 && kept.ends_with(b"left out]\n"));
    }

    #[test]
    fn sockets_are_in_a_private_folder() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Claimed::create(&std::env::temp_dir(), SOCKETS).unwrap();
        assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_port_is_read_from_the_monitor() {
        let text = "Hub -1 (n0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                    TCP[HOST_FORWARD]   3       127.0.0.1 33435       10.0.2.15    22     0     0\n";
        assert_eq!(forwarded_port(text), Some(33435));
        assert_eq!(forwarded_port("none"), None);
    }
}
