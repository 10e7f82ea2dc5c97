//! A fork that is measured: one machine, driven step by step.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use klpfarm_model::Workload;
use klpfarm_reach::Symbols;
use klpfarm_stress::wire::{Ask, FaultKind, FromGuest, ToGuest};
use klpfarm_vm::{Counts, Machine, Output, Ssh};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::{ReachError, tracer};
use crate::{Bench, guest};

/// QEMU is asked to end so long before it is killed.
const CLOSE: Duration = Duration::from_secs(5);
/// The plugin answers at once, or a little later on a busy host.
const COUNTS: Duration = Duration::from_secs(30);
/// Limits for a fast host: they are scaled by the accelerator's factor.
const ANSWER: Duration = Duration::from_secs(30);
const LOGIN: Duration = Duration::from_secs(60);
const SYMBOLS: Duration = Duration::from_secs(120);
/// Reading what the tracer saw takes most of it.
const TRACED: Duration = Duration::from_secs(300);
/// A workload makes progress within this, or can't be run.
const FIRST: Duration = Duration::from_secs(60);

/// Why a fork was not measured.
pub(super) enum Trouble {
    Farm(ReachError),
    /// The guest can't run the workload, and why.
    Unavailable(String),
}

impl<E: Into<ReachError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Farm(error.into())
    }
}

/// Time of all CPUs since boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Busy {
    busy: u64,
    all: u64,
}

impl Busy {
    /// Read `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
        let all = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        Some(Self { busy: all - idle, all })
    }

    /// The share of time that was not idle since then, 0 to 1.
    pub(super) fn share_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        (self.busy.saturating_sub(before.busy) as f64 / all as f64).min(1.0)
    }
}

/// A running fork.
pub(super) struct Fork {
    machine: Machine,
    outputs: mpsc::Receiver<Output>,
    ssh: Ssh,
    scale: f64,
    seed: u64,
    id: u64,
    heard: Heard,
}

/// What the probe has said so far.
#[derive(Default)]
struct Heard {
    release: String,
    cpus: u32,
    /// Milliseconds since the guest's boot, as of the latest progress.
    at_ms: u64,
    available_kib: u64,
    least_available_kib: u64,
    /// Threads of the workload that is measured.
    workload: String,
    threads: HashSet<u32>,
    progress: bool,
    /// Why it can't be run.
    failed: Option<String>,
    reply: Option<(u64, i32, String)>,
}

impl Heard {
    fn take(&mut self, message: FromGuest) {
        match message {
            FromGuest::Hello { release, cpus, at_ms, .. } => {
                (self.release, self.cpus, self.at_ms) = (release, cpus, self.at_ms.max(at_ms));
            }
            FromGuest::Thread(t) if t.workload == self.workload => {
                self.threads.insert(t.id);
            }
            FromGuest::Progress { at_ms, threads } => {
                self.at_ms = self.at_ms.max(at_ms);
                self.progress |= threads.iter().any(|t| t.ops > 0 && self.threads.contains(&t.id));
            }
            // The only line that comes from a guest without any load.
            FromGuest::Memory { at_ms, available_kib, .. } => {
                self.at_ms = self.at_ms.max(at_ms);
                self.available_kib = available_kib;
                self.least_available_kib = match self.least_available_kib {
                    0 => available_kib,
                    least => least.min(available_kib),
                };
            }
            FromGuest::Fault(f)
                if f.workload == self.workload
                    && matches!(f.kind, FaultKind::CannotRun | FaultKind::Died)
                    && self.failed.is_none() =>
            {
                self.failed = Some(format!("{}: {}", f.op, f.detail));
            }
            FromGuest::Reply { id, code, out } => self.reply = Some((id, code, out)),
            _ => {}
        }
    }
}

impl Fork {
    /// Start it, `counted` or not, and log in while nothing runs in it.
    pub(super) async fn start(bench: &Bench, counted: bool) -> Result<Self, ReachError> {
        let mut spec = bench.spec.clone();
        spec.counted = counted;
        let console = bench.run_dir.join("console.log");
        let (machine, mut outputs) = Machine::start(&spec, &bench.scratch, console).await?;
        let scale = bench.plan.scale;
        // A stream that nobody reads holds the machine up.
        let login = machine.ssh(&bench.login, LOGIN.mul_f64(scale));
        let mut heard = Heard::default();
        let ssh = {
            let mut login = std::pin::pin!(login);
            loop {
                tokio::select! {
                    done = &mut login => break done,
                    Some(output) = outputs.recv() => hear(&mut heard, output)?,
                }
            }
        };
        let mut fork = Self { machine, outputs, ssh: ssh?, scale, seed: 1, id: 0, heard };
        fork.ask(Ask::Hello).await?;
        fork.until(ANSWER, "answer", |h| h.cpus > 0).await?;
        let mut entropy = [0_u8; 64];
        let mut file = tokio::fs::File::open("/dev/urandom").await.map_err(no_entropy)?;
        file.read_exact(&mut entropy).await.map_err(no_entropy)?;
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(clock.as_millis()).unwrap_or(u64::MAX);
        fork.ask(Ask::Resume { entropy: klpfarm_model::hex(&entropy), unix_ms }).await?;
        fork.ask(Ask::Stop { workload: klpfarm_model::AGING.into() }).await?;
        Ok(fork)
    }

    pub(super) fn release(&self) -> &str {
        &self.heard.release
    }

    pub(super) fn cpus(&self) -> u32 {
        self.heard.cpus
    }

    /// The guest's time, in milliseconds since boot.
    pub(super) fn at_ms(&self) -> u64 {
        self.heard.at_ms
    }

    pub(super) fn available_kib(&self) -> u64 {
        self.heard.available_kib
    }

    pub(super) fn least_available_kib(&self) -> u64 {
        self.heard.least_available_kib
    }

    /// How often each block of the kernel has been entered. What the machine says meanwhile is read later.
    pub(super) async fn counts(&mut self) -> Result<Counts, ReachError> {
        let Self { machine, outputs, heard, .. } = self;
        let mut counts = std::pin::pin!(machine.counts(COUNTS));
        loop {
            tokio::select! {
                done = &mut counts => return Ok(done?),
                Some(output) = outputs.recv() => hear(heard, output)?,
            }
        }
    }

    /// What the CPUs have done so far.
    pub(super) async fn busy(&mut self) -> Result<Busy, ReachError> {
        let (_, stat) = self.ask(Ask::Read { path: "/proc/stat".into() }).await?;
        Busy::parse(&stat).ok_or_else(|| ReachError::Guest(format!("/proc/stat can't be read: {stat}")))
    }

    /// Start a workload and wait until it gets on.
    pub(super) async fn start_workload(&mut self, workload: &Workload) -> Result<(), Trouble> {
        self.heard.workload.clone_from(&workload.name);
        let run = guest::run_of(workload, self.seed);
        let start = Ask::Start { workload: workload.name.clone(), run };
        let limit = Duration::from_secs(guest::start_secs(std::iter::once(workload)));
        let (code, out) = self.ask_within(start, limit).await?;
        if code != 0 {
            return Err(Trouble::Unavailable(out.trim().to_owned()));
        }
        let limit = FIRST.mul_f64(self.scale);
        match tokio::time::timeout(limit, self.hear_until(|h| h.progress || h.failed.is_some())).await {
            Ok(heard) => heard?,
            Err(_) => {
                return Err(Trouble::Unavailable(format!("no progress within {} s", limit.as_secs())));
            }
        }
        self.still_runs()
    }

    /// Let the guest run until its clock shows this.
    pub(super) async fn run_until(&mut self, at_ms: u64) -> Result<(), Trouble> {
        // On a host that has no time for it the guest's time goes slower, but it goes.
        let limit = Duration::from_millis(at_ms.saturating_sub(self.heard.at_ms)) * 20 + ANSWER;
        tokio::time::timeout(limit, self.hear_until(|h| h.at_ms >= at_ms || h.failed.is_some()))
            .await
            .map_err(|_| silent("go on", limit))??;
        self.still_runs()
    }

    fn still_runs(&mut self) -> Result<(), Trouble> {
        self.heard.failed.take().map_or(Ok(()), |why| Err(Trouble::Unavailable(why)))
    }

    /// The functions of the kernel, or of its `modules` only.
    pub(super) async fn symbols(&mut self, modules: bool) -> Result<Symbols, ReachError> {
        let limit = SYMBOLS.mul_f64(self.scale);
        let filter = if modules { "| grep '\\['" } else { "" };
        let kallsyms = format!("grep -i ' [tw] ' /proc/kallsyms {filter}");
        let kallsyms = self.run(&kallsyms, limit).await?;
        let listed = format!(
            "for t in /sys/kernel/tracing /sys/kernel/debug/tracing; do f=$t/available_filter_functions; [ -r $f ] && {{ cat $f {filter}; break; }}; done; true"
        );
        let listed = self.run(&listed, limit).await?;
        Ok(Symbols::parse(&kallsyms, Some(&listed)))
    }

    /// Entries into functions as the guest's tracer sees them, and for how many milliseconds it looked.
    pub(super) async fn traced(&mut self) -> Result<(Counts, u64), Trouble> {
        let text = self.run(tracer::SAMPLE, TRACED.mul_f64(self.scale)).await?;
        self.still_runs()?;
        tracer::read(&text).map_err(|why| Trouble::Farm(ReachError::Guest(why)))
    }

    /// Run a command line. What the machine says meanwhile is heard: a stream that nobody reads holds it up.
    async fn run(&mut self, command: &str, limit: Duration) -> Result<String, ReachError> {
        let Self { ssh, outputs, heard, .. } = self;
        let mut running = std::pin::pin!(ssh.run(command, b"", limit));
        loop {
            tokio::select! {
                done = &mut running => return Ok(done?.text),
                Some(output) = outputs.recv() => hear(heard, output)?,
            }
        }
    }

    pub(super) async fn close(self) {
        let Self { machine, outputs, ssh, .. } = self;
        drop(outputs);
        ssh.close().await;
        machine.close(CLOSE).await;
    }

    /// Ask the probe and wait for its reply; a hello has none.
    async fn ask(&mut self, ask: Ask) -> Result<(i32, String), ReachError> {
        self.ask_within(ask, ANSWER).await
    }

    async fn ask_within(&mut self, ask: Ask, limit: Duration) -> Result<(i32, String), ReachError> {
        self.id += 1;
        let id = self.id;
        let hello = ask == Ask::Hello;
        self.machine.tell_probe(&ToGuest { id, ask });
        if hello {
            return Ok((0, String::new()));
        }
        self.until(limit, "answer", |h| h.reply.as_ref().is_some_and(|(of, ..)| *of == id)).await?;
        let (_, code, out) = self.heard.reply.take().unwrap_or_default();
        Ok((code, out))
    }

    async fn until(
        &mut self,
        limit: Duration,
        what: &str,
        done: impl Fn(&Heard) -> bool,
    ) -> Result<(), ReachError> {
        let limit = limit.mul_f64(self.scale);
        tokio::time::timeout(limit, self.hear_until(done)).await.map_err(|_| silent(what, limit))?
    }

    /// Listen until something is known. Cancel-safe.
    async fn hear_until(&mut self, done: impl Fn(&Heard) -> bool) -> Result<(), ReachError> {
        while !done(&self.heard) {
            match self.outputs.recv().await {
                Some(output) => hear(&mut self.heard, output)?,
                None => return Err(ReachError::Guest("the machine ended".into())),
            }
        }
        Ok(())
    }
}

fn hear(heard: &mut Heard, output: Output) -> Result<(), ReachError> {
    match output {
        Output::Probe(message) => heard.take(message),
        Output::Exited { status, stderr } => {
            return Err(ReachError::Guest(format!("the machine ended ({status}) {stderr}")));
        }
        _ => {}
    }
    Ok(())
}

fn silent(what: &str, limit: Duration) -> ReachError {
    ReachError::Guest(format!("the guest's probe did not {what} within {} s", limit.as_secs()))
}

fn no_entropy(error: std::io::Error) -> ReachError {
    ReachError::Guest(format!("/dev/urandom: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_busy_time() {
        let busy = |text| Busy::parse(text).unwrap();
        let before = busy("cpu  10 0 10 100 20 0 0 0 0 0\ncpu0 1 2 3\n");
        let after = busy("cpu  110 0 60 130 40 0 0 0 0 0\n");
        assert_eq!(after.share_since(before), 0.75);
        assert_eq!(after.share_since(after), 0.0);
        assert_eq!(Busy::parse("cpu0 1 2 3 4\n"), None);
    }

    #[test]
    fn only_the_workload_that_is_measured_makes_progress() {
        use klpfarm_stress::wire::{Thread, ThreadProgress};
        let mut heard = Heard { workload: "w".into(), ..Heard::default() };
        let thread = |id, workload: &str| {
            FromGuest::Thread(Thread {
                id,
                workload: workload.into(),
                process: 0,
                thread: 0,
                pid: 1,
                tid: 1,
                counted: true,
            })
        };
        let progress = |id, ops| FromGuest::Progress {
            at_ms: 5,
            threads: vec![ThreadProgress { id, ops, latency_us: 0, idle_ms: 0, errors: 0, errno: 0 }],
        };
        heard.take(thread(1, "aging"));
        heard.take(thread(2, "w"));
        heard.take(progress(1, 9));
        heard.take(progress(2, 0));
        assert!(!heard.progress && heard.at_ms == 5);
        heard.take(progress(2, 1));
        assert!(heard.progress);
    }
}
