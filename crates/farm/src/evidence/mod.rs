//! Evidence from a sick machine, before it goes. Every part has its own limit and none needs another: what fails is left out, and the
//! page README says why.
//!
//! The order: what changes by looking at it first, what QEMU knows; then what needs the probe; then what needs an interrupt into
//! the guest; the dump last, because a guest that stands still for it would seem to stall, and because one that has to be broken off
//! leaves QEMU good for nothing else.

mod dump;
mod heard;
mod kept;
mod readme;
mod tasks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use klpfarm_model::{Arm, Gathering, Waits};
use klpfarm_stress::wire::Ask;
use klpfarm_vm::Machine;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::guest;
use crate::trial::{Collect, Collected};
pub(crate) use heard::Heard;
use heard::Listener;
use kept::Kept;

/// The dump's file.
const DUMP: &str = "dump.kdump";

/// QEMU may take so long for one answer.
const QEMU: Duration = Duration::from_secs(5);

/// The guest may take so long for one answer; multiplied by the plan's scale.
const GUEST: Duration = Duration::from_secs(5);

/// A page of a file in the guest: less than what an answer of the probe carries.
const PAGE: usize = 60_000;

/// Pages fetched of one file at most.
const PAGES: usize = 24;

/// Where the debug symbols of a guest's kernel are to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Symbols {
    /// In a package of the distribution that the kernel came from.
    #[default]
    Package,
    /// In a build tree of the user's own, on this host.
    Tree(PathBuf),
    /// With whoever built the kernel.
    Builder,
}

/// What evidence is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) trial: u32,
    pub(crate) arm: Arm,
    /// Version of klpfarm.
    pub(crate) farm: String,
    /// Patches of the trial in words.
    pub(crate) patches: Vec<String>,
    /// Names of their modules.
    pub(crate) modules: Vec<String>,
    pub(crate) image: String,
    /// Kernel release; empty if the guest has not told it.
    pub(crate) release: String,
    /// Where the debug symbols of its kernel are.
    pub(crate) symbols: Symbols,
    /// The virtual hardware in words.
    pub(crate) machine: String,
    /// Findings so far.
    pub(crate) findings: Vec<String>,
}

#[cfg(test)]
impl Default for About {
    fn default() -> Self {
        let text = String::new;
        Self {
            trial: 1,
            arm: Arm::Loaded,
            farm: text(),
            patches: Vec::new(),
            modules: Vec::new(),
            image: text(),
            release: text(),
            symbols: Symbols::default(),
            machine: text(),
            findings: Vec::new(),
        }
    }
}

/// How evidence is gathered.
pub(crate) struct Policy {
    pub(crate) gathering: Gathering,
    pub(crate) memory_mib: u32,
    /// The plan's factor on durations.
    pub(crate) scale: f64,
    pub(crate) run_dir: PathBuf,
}

/// Gather evidence into `dir/evidence`.
pub(crate) async fn collect(
    machine: &Machine,
    dir: &Path,
    about: &About,
    policy: &Policy,
    what: &Collect,
    heard: mpsc::UnboundedReceiver<Heard>,
) -> Collected {
    let begun = Instant::now();
    let until = begun + what.limit;
    let Ok(kept) = Kept::begin(dir, about).await else { return Collected::default() };
    // The dump gets the last third for certain, and whatever the others leave.
    let guest_until = begun + what.limit * 2 / 3;
    let answer = GUEST.mul_f64(policy.scale);
    let mut gatherer = Gatherer {
        machine,
        about,
        what,
        kept,
        listener: Listener::new(heard),
        answer,
        until: guest_until,
        waits: Vec::new(),
    };
    let (status, runs) = gatherer.qemu().await;
    gatherer.known().await;
    let silent = match (runs, what.probe) {
        (false, _) => Some(format!("the virtual CPUs stand still ({status})")),
        (true, false) => Some("the probe in the guest does not answer".to_owned()),
        (true, true) => None,
    };
    gatherer.probe(silent.as_deref()).await;
    gatherer.interrupt(runs, &status).await;
    let dumped = dump::dump(machine, &gatherer.kept.path(DUMP), about, policy, until).await;
    gatherer.kept.note(DUMP, "the guest's memory", dumped);
    Collected { files: gatherer.kept.end().await, waits: gatherer.waits }
}

struct Gatherer<'a> {
    machine: &'a Machine,
    about: &'a About,
    what: &'a Collect,
    kept: Kept<'a>,
    listener: Listener,
    /// One answer of the guest takes so long at most.
    answer: Duration,
    /// All that the guest is asked ends then.
    until: Instant,
    waits: Vec<Waits>,
}

impl Gatherer<'_> {
    /// What QEMU knows; returns its word for the state of the virtual CPUs and whether they run.
    async fn qemu(&mut self) -> (String, bool) {
        let status = self.machine.status().await;
        for (file, what) in [
            ("registers.txt", "registers of all virtual CPUs"),
            // A second look tells a CPU that goes round in a circle from one that works.
            ("registers-2.txt", "registers of all virtual CPUs, a moment later"),
        ] {
            let got = self.machine.qmp().monitor("info registers -a", QEMU).await;
            self.kept.text(file, what, got.map_err(|e| e.to_string())).await;
        }
        let words = status.as_ref().map(|(word, _)| format!("{word}\n")).map_err(ToString::to_string);
        self.kept.text("qemu-status.txt", "QEMU's word for the state of the virtual CPUs", words).await;
        // Who can't be asked is asked all the same below: each question has its limit.
        status.unwrap_or_else(|_| ("unknown".to_owned(), true))
    }

    /// What the farm knows already.
    async fn known(&mut self) {
        for (file, what, text) in [
            (
                "blocked.txt",
                "tasks that are making no progress, with their stacks, as the probe last saw them",
                &self.what.blocked,
            ),
            (
                "counters.txt",
                "what each thread of the workloads has done, and when it finished an operation last",
                &self.what.counters,
            ),
        ] {
            self.kept.text(file, what, Ok(text.clone())).await;
        }
    }

    /// What takes the probe; `silent` says why it can't be asked.
    async fn probe(&mut self, silent: Option<&str>) {
        let livepatch = "livepatch state, modules, taint";
        let stacks = "stacks of all tasks: first those with code of the patch, then blocked ones, then their processes";
        let memory = "memory: meminfo, vmstat, buddyinfo, slabinfo";
        let dmesg = "end of the kernel's log";
        if let Some(why) = silent {
            for (file, what) in [
                ("livepatch.txt", livepatch),
                ("stacks.txt", stacks),
                ("memory.txt", memory),
                ("dmesg.txt", dmesg),
            ] {
                self.kept.note(file, what, Err(why.to_owned()));
            }
            return;
        }
        let got = self.livepatch().await;
        self.kept.text("livepatch.txt", livepatch, got).await;
        match self.tasks().await {
            Ok(tasks) => {
                let patches = &self.about.modules;
                let text = tasks::stacks(&tasks, patches, &self.what.concerned);
                self.kept.text("stacks.txt", stacks, Ok(text)).await;
                if let Some(wanted) = self.what.stragglers {
                    let text = tasks::stragglers(&tasks, wanted);
                    self.kept.text("stragglers.txt", "tasks that hold up the transition", Ok(text)).await;
                }
                self.waits = tasks::noted(&tasks, patches, self.what.stragglers);
            }
            Err(why) => self.kept.note("stacks.txt", stacks, Err(why)),
        }
        let got = self
            .files(&["/proc/meminfo", "/proc/buddyinfo", "/proc/loadavg", "/proc/vmstat", "/proc/slabinfo"])
            .await;
        self.kept.text("memory.txt", memory, got).await;
        let got = self.exec(&format!("dmesg | tail -c {PAGE}")).await;
        self.kept.text("dmesg.txt", dmesg, got).await;
    }

    async fn livepatch(&mut self) -> Result<String, String> {
        let mut text = String::new();
        for name in &self.about.modules {
            let (_, state) = self.ask(Ask::Livepatch { name: name.clone() }).await?;
            text.push_str(&format!("==== {name} in /sys/kernel/livepatch\n"));
            text.push_str(if state.is_empty() { "not listed\n" } else { &state });
        }
        text.push_str(&self.files(&["/proc/sys/kernel/tainted", "/proc/modules"]).await?);
        Ok(text)
    }

    async fn tasks(&mut self) -> Result<Vec<tasks::Task>, String> {
        // One that hangs all the same costs the rest, not what was read before it: that lies in the guest's file.
        let first = self.exec(&tasks::collect_line(&self.what.unreadable)).await;
        let mut text = String::new();
        for page in 0..PAGES {
            let piece = self.exec(&tasks::fetch_line(page * PAGE, PAGE)).await?;
            text.push_str(&piece);
            if piece.len() < PAGE {
                break;
            }
        }
        let tasks = tasks::read(&text);
        if tasks.is_empty() {
            Err(first.err().unwrap_or_else(|| "no task could be read".to_owned()))
        } else {
            Ok(tasks)
        }
    }

    /// Files of the guest, one after the other, read by helpers that the probe has at hand: no process need be made.
    async fn files(&mut self, paths: &[&str]) -> Result<String, String> {
        let mut text = String::new();
        for path in paths {
            let (_, content) = self.ask(Ask::Read { path: (*path).to_owned() }).await?;
            text.push_str(&format!("==== {path}\n{content}\n"));
        }
        Ok(text)
    }

    async fn exec(&mut self, line: &str) -> Result<String, String> {
        let limit = self.answer.as_millis().try_into().unwrap_or(u64::MAX);
        match self.ask(Ask::Exec { argv: guest::shell(line), limit_ms: limit }).await? {
            (124, out) if out.is_empty() => Err("the guest did not carry it out in time".to_owned()),
            (_, out) => Ok(out),
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<(i32, String), String> {
        // The probe's own limit runs out first, so that what was found until then still comes.
        let until = self.until.min(Instant::now() + self.answer + GUEST);
        self.listener.ask(self.machine, ask, until).await
    }

    /// What takes an interrupt into the guest and comes out of its console.
    async fn interrupt(&mut self, runs: bool, status: &str) {
        const FILE: &str = "sysrq.txt";
        let what = "the kernel's own list of blocked tasks and backtrace of all CPUs (magic sysrq over the serial line)";
        if !runs {
            self.kept.note(FILE, what, Err(format!("the virtual CPUs stand still ({status})")));
            return;
        }
        self.listener.forget_console();
        let mut answered = self.press("w").await;
        if answered {
            self.press("l").await;
            if !self.what.probe {
                // Nobody else tells the stacks of all tasks.
                self.press("t").await;
            }
        } else {
            let until = Instant::now() + self.answer;
            if self.machine.inject_nmi().await.is_ok() {
                answered = self.listener.console_says("NMI", until).await;
            }
        }
        let console = self.listener.console();
        let got = if answered || !console.trim().is_empty() {
            Ok(console)
        } else {
            Err("the guest answered neither sysrq nor a non-maskable interrupt: no CPU of it takes interrupts".to_owned())
        };
        self.kept.text(FILE, what, got).await;
    }

    /// Press a sysrq key and hear the answer out; the kernel says `sysrq: ` what it does (4.4: `SysRq : `).
    async fn press(&mut self, key: &str) -> bool {
        let until = Instant::now() + self.answer;
        self.listener.next_answer();
        self.machine.sysrq(key).await;
        self.listener.console_says("sysrq", until).await
    }
}
