//! A running workload: its processes, threads and what it reports.

mod report;

use super::faults::Faults;
use super::outbox::Outbox;
use super::spawner::{Request, Spawner};
use crate::procfs::{Scanner, Task};
use crate::slots::{self, Counts, ENDED, FREE, KINDS, SeenCounts, Slot};
use crate::sys;
use crate::work::{Job, SLOTS_VARIABLE, Stressor};
use klpfarm_stress::wire::{Fault, FaultKind, FromGuest, Thread, ThreadProgress, UNAVAILABLE};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// A builtin's threads must all run within this, in nanoseconds; a loaded emulated guest is slow.
const START_LIMIT_NS: u64 = 60_000_000_000;
/// A script must have said within this that it is ready, in nanoseconds: it may make a file system or start a server.
const READY_LIMIT_NS: u64 = 180_000_000_000;
/// From SIGTERM to SIGKILL, and from there to giving up, in nanoseconds.
const TERM_NS: u64 = 5_000_000_000;
const KILL_NS: u64 = 5_000_000_000;
/// A counted thread without operations for this long is told as blocked, in nanoseconds.
const IDLE_NS: u64 = 2_000_000_000;

/// Where a workload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The farm waits for answer `id`.
    Starting {
        id: u64,
        since: u64,
    },
    Running,
    /// The farm waits for answer `id`, unless it was given already.
    Stopping {
        id: Option<u64>,
        since: u64,
        killed: bool,
    },
    /// No process is left.
    Ended,
}

/// What it runs.
pub(super) enum What {
    Builtin {
        stressor: &'static Stressor,
        /// The supervisor's slot and one a thread.
        slots: &'static [Slot],
        /// Where they are among all.
        range: Range<usize>,
        told: Vec<Counts>,
        seen: Vec<SeenCounts>,
    },
    Command {
        argv: Vec<String>,
        /// It says itself when it is ready ([`klpfarm_stress::wire::Run::Script`]); until then it is not started.
        announces: bool,
        line: Vec<u8>,
        /// Operations it reported or finished by exiting with status 0.
        ops: u64,
        /// When that last grew.
        finished: u64,
    },
}

/// A thread the farm knows of.
pub(super) struct Live {
    thread: Thread,
    /// Slot within the workload's, or none for what is only watched from outside.
    slot: Option<usize>,
    slices: u64,
    changed: u64,
    /// When its times were last read, and what they were: on a CPU, waiting for one; all in nanoseconds.
    times: Option<(u64, u64, u64)>,
}

/// What all workloads share.
pub(super) struct Shared<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) faults: &'a mut Faults,
    pub(super) next_thread: &'a mut u32,
    pub(super) now: u64,
}

pub(super) struct Workload {
    pub(super) name: String,
    pub(super) phase: Phase,
    pub(super) what: What,
    token: u64,
    /// Process, group and session id of the leader; none before it was forked.
    pid: Option<i32>,
    leader_gone: bool,
    /// Standard output and error of the leader.
    output: Option<OwnedFd>,
    /// The last line it wrote that was not for us: why it failed, often.
    last_line: String,
    /// It reported itself that one of its processes died.
    died: bool,
    /// It said that it can't run on this guest.
    pub(super) unavailable: bool,
    pub(super) threads: Vec<Live>,
}

impl Workload {
    /// Starts a builtin in the slots of `range` (one more than threads).
    pub(super) fn builtin(
        name: String,
        id: u64,
        job: &Job,
        args: &[String],
        (fd, all, range): (&OwnedFd, &'static [Slot], Range<usize>),
        spawner: &mut Spawner,
    ) -> io::Result<Self> {
        let slots = &all[range.clone()];
        slots.iter().for_each(Slot::reset);
        let mut argv = vec![super::OURSELVES.to_owned(), "work".into(), job.stressor.name.into()];
        argv.extend_from_slice(args);
        let env = vec![format!("{SLOTS_VARIABLE}=3,{},{}", range.start, range.len())];
        let what = What::Builtin {
            stressor: job.stressor,
            slots,
            told: vec![Counts::ZERO; KINDS],
            seen: vec![SeenCounts::default(); range.len()],
            range,
        };
        Self::spawn(name, id, what, argv, env, &[fd], spawner)
    }

    /// Starts a program of the guest.
    pub(super) fn command(
        name: String,
        id: u64,
        argv: Vec<String>,
        spawner: &mut Spawner,
    ) -> io::Result<Self> {
        Self::program(name, id, argv, Vec::new(), false, spawner)
    }

    /// Starts a script in the guest's shell.
    pub(super) fn script(name: String, id: u64, text: String, spawner: &mut Spawner) -> io::Result<Self> {
        let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), text, name.clone()];
        let env = vec![format!("KLPFARM_STRESS={}", std::env::current_exe()?.display())];
        Self::program(name, id, argv, env, true, spawner)
    }

    fn program(
        name: String,
        id: u64,
        argv: Vec<String>,
        env: Vec<String>,
        announces: bool,
        spawner: &mut Spawner,
    ) -> io::Result<Self> {
        let (line, finished) = (Vec::new(), sys::now_ns());
        let what = What::Command { argv: argv.clone(), announces, line, ops: 0, finished };
        Self::spawn(name, id, what, argv, env, &[], spawner)
    }

    fn spawn(
        name: String,
        id: u64,
        what: What,
        argv: Vec<String>,
        env: Vec<String>,
        more: &[&OwnedFd],
        spawner: &mut Spawner,
    ) -> io::Result<Self> {
        let (token, output) = launch(argv, env, more, spawner)?;
        Ok(Self {
            name,
            phase: Phase::Starting { id, since: sys::now_ns() },
            what,
            token,
            pid: None,
            leader_gone: false,
            output: Some(output),
            last_line: String::new(),
            died: false,
            unavailable: false,
            threads: Vec::new(),
        })
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn output_fd(&self) -> Option<i32> {
        self.output.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The leader was forked.
    pub(super) fn spawned(&mut self, pid: i32) {
        self.pid = Some(pid);
        // A stop that was asked for meanwhile.
        if matches!(self.phase, Phase::Stopping { .. }) {
            sys::kill(-pid, libc::SIGTERM);
        }
    }

    /// True if a task belongs to it: all its processes share the leader's session.
    pub(super) fn owns(&self, task: &Task) -> bool {
        // Zombies are gone in all but name.
        self.pid.is_some_and(|pid| task.stat.session == pid as u32) && !matches!(task.stat.state, 'Z' | 'X')
    }

    fn fault(&self, shared: &mut Shared<'_>, kind: FaultKind, op: &str, detail: String) {
        let fault = Fault {
            at_ms: sys::boot_ms(),
            workload: self.name.clone(),
            thread: None,
            kind,
            op: op.into(),
            detail,
            count: 1,
        };
        shared.faults.add(fault, shared.outbox);
    }

    fn reply(shared: &mut Shared<'_>, id: u64, code: i32, out: String) {
        shared.outbox.push(&FromGuest::Reply { id, code, out });
    }

    /// Looks whether all threads run, and says so.
    pub(super) fn start(&mut self, shared: &mut Shared<'_>) {
        let Phase::Starting { id, since } = self.phase else { return };
        match &self.what {
            What::Builtin { slots, .. } => {
                let wanted = slots.len() - 1;
                let running = slots[1..].iter().filter(|s| s.state.load(Acquire) != FREE).count();
                if running == wanted {
                    self.phase = Phase::Running;
                    self.announce_slots(shared);
                    Self::reply(shared, id, 0, format!("{wanted} threads"));
                } else if shared.now - since > START_LIMIT_NS {
                    let detail = format!("only {running} of {wanted} threads run after 60 s");
                    self.fault(shared, FaultKind::CannotRun, "start", detail.clone());
                    self.phase = Phase::Running;
                    self.announce_slots(shared);
                    Self::reply(shared, id, 1, detail);
                }
            }
            What::Command { announces: true, .. } => {
                if shared.now - since > READY_LIMIT_NS {
                    let detail =
                        format!("did not print `klpfarm: ready` within {} s", READY_LIMIT_NS / 1_000_000_000);
                    self.fault(shared, FaultKind::CannotRun, "start", detail.clone());
                    self.phase = Phase::Running;
                    Self::reply(shared, id, 1, detail);
                }
            }
            What::Command { .. } => {
                // Forked and not ended at once: its tasks are found by scanning. A program that cannot be run has
                // ended with status 127 by the time this second is over.
                if self.pid.is_some() && shared.now - since > 1_000_000_000 {
                    self.phase = Phase::Running;
                    Self::reply(shared, id, 0, "started".into());
                }
            }
        }
    }

    fn announce_slots(&mut self, shared: &mut Shared<'_>) {
        let What::Builtin { slots, .. } = &self.what else { return };
        let mut processes: Vec<u32> = Vec::new();
        for (i, slot) in slots.iter().enumerate().skip(1).filter(|(_, s)| s.state.load(Acquire) != FREE) {
            let pid = slot.pid.load(Relaxed);
            let process = processes.iter().position(|&p| p == pid).unwrap_or_else(|| {
                processes.push(pid);
                processes.len() - 1
            }) as u32;
            let thread = self.threads.iter().filter(|t| t.thread.pid == pid).count() as u32;
            let thread = Thread {
                id: *shared.next_thread,
                workload: self.name.clone(),
                process,
                thread,
                pid,
                tid: slot.tid.load(Relaxed),
                counted: true,
            };
            *shared.next_thread += 1;
            shared.outbox.push(&FromGuest::Thread(thread.clone()));
            self.threads.push(Live { thread, slot: Some(i), slices: 0, changed: shared.now, times: None });
        }
    }

    /// Says all live threads again.
    pub(super) fn say_threads(&self, outbox: &mut Outbox) {
        self.threads.iter().for_each(|t| outbox.push(&FromGuest::Thread(t.thread.clone())));
    }

    /// Asked to stop: SIGTERM now, SIGKILL later.
    pub(super) fn stop(&mut self, id: u64, now: u64) {
        self.phase = Phase::Stopping { id: Some(id), since: now, killed: false };
        if let Some(pid) = self.pid {
            sys::kill(-pid, libc::SIGTERM);
        }
    }

    /// While stopping: kills what is late, and answers when nothing is left or nothing can be done.
    pub(super) fn stopping(&mut self, tasks: &[Task], scanner: &mut Scanner, shared: &mut Shared<'_>) {
        let Phase::Stopping { id, since, killed } = self.phase else { return };
        let left: Vec<&Task> = tasks.iter().filter(|t| self.owns(t)).collect();
        if left.is_empty() && (self.leader_gone || self.pid.is_none()) {
            self.end(shared);
            if let Some(id) = id {
                let how = if killed { "killed after 5 s" } else { "stopped" };
                Self::reply(shared, id, 0, how.into());
            }
            return;
        }
        if shared.now - since > TERM_NS {
            // Some may have left the group, none the session.
            self.pid.iter().for_each(|&pid| sys::kill(-pid, libc::SIGKILL));
            left.iter().for_each(|t| sys::kill(t.pid as i32, libc::SIGKILL));
            self.phase = Phase::Stopping { id, since, killed: true };
        }
        if let Some(id) = id
            && shared.now - since > TERM_NS + KILL_NS
        {
            let names: Vec<String> = left
                .iter()
                .take(20)
                .map(|t| {
                    let wchan = scanner.wchan(t.pid, t.tid);
                    format!("{} ({}, state {}, in {wchan})", t.tid, t.stat.comm, t.stat.state)
                })
                .collect();
            Self::reply(
                shared,
                id,
                1,
                format!("{} tasks cannot be killed: {}", left.len(), names.join("; ")),
            );
            self.phase = Phase::Stopping { id: None, since, killed: true };
        }
    }

    /// The leader ended with this wait status, or was never forked (`Err`: errno).
    pub(super) fn exited(
        &mut self,
        status: Result<i32, i32>,
        spawner: &mut Spawner,
        shared: &mut Shared<'_>,
    ) {
        self.read_output(shared);
        self.leader_gone = true;
        if let What::Builtin { .. } = self.what {
            self.collect_faults(shared);
        }
        let how = match status {
            Ok(status) => crate::work::how_it_ended(status),
            Err(errno) => format!("could not be forked: {}", sys::errno_name(errno)),
        };
        let detail =
            if self.last_line.is_empty() { how } else { format!("{how}; it said: {}", self.last_line) };
        match self.phase {
            Phase::Starting { id, .. } if self.is_unavailable(status) => {
                let why = std::mem::take(&mut self.last_line);
                self.unavailable = true;
                self.end(shared);
                Self::reply(
                    shared,
                    id,
                    UNAVAILABLE,
                    if why.is_empty() { "it does not say why".into() } else { why },
                );
            }
            Phase::Starting { id, .. }
                if status == Ok(0) && matches!(self.what, What::Command { announces: false, .. }) =>
            {
                self.phase = Phase::Running;
                Self::reply(shared, id, 0, "started".into());
                self.again(spawner, shared);
            }
            Phase::Starting { id, .. } => {
                self.fault(shared, FaultKind::CannotRun, "start", detail.clone());
                self.end(shared);
                Self::reply(shared, id, 1, detail);
            }
            Phase::Running
                if status == Ok(0) && matches!(self.what, What::Command { announces: false, .. }) =>
            {
                self.again(spawner, shared);
            }
            Phase::Running => {
                // It was not asked to end. A supervisor that ends in order because its workers died has reported them already.
                if status != Ok(0) || !self.died {
                    self.fault(shared, FaultKind::Died, "workload", detail);
                }
                // What else is in its session has no purpose any more; no answer is due.
                self.phase = Phase::Stopping { id: None, since: shared.now, killed: false };
                self.pid.iter().for_each(|&pid| sys::kill(-pid, libc::SIGTERM));
            }
            Phase::Stopping { .. } | Phase::Ended => {}
        }
    }

    /// Whether this is how a script says that the guest has not got what it needs.
    fn is_unavailable(&self, status: Result<i32, i32>) -> bool {
        let script = matches!(self.what, What::Command { announces: true, .. });
        script && status.is_ok_and(|s| libc::WIFEXITED(s) && libc::WEXITSTATUS(s) == UNAVAILABLE)
    }

    /// A script says that its preparations are done.
    fn ready(&mut self, shared: &mut Shared<'_>) {
        let Phase::Starting { id, .. } = self.phase else { return };
        if let What::Command { announces: true, finished, .. } = &mut self.what {
            *finished = shared.now;
            self.phase = Phase::Running;
            Self::reply(shared, id, 0, "ready".into());
        }
    }

    /// A command ended well: one operation, and once more.
    fn again(&mut self, spawner: &mut Spawner, shared: &mut Shared<'_>) {
        self.count(1, shared);
        let What::Command { argv, .. } = &self.what else { return };
        match launch(argv.clone(), Vec::new(), &[], spawner) {
            Ok((token, output)) => {
                (self.token, self.output, self.leader_gone) = (token, Some(output), false);
            }
            Err(error) => {
                self.fault(shared, FaultKind::CannotRun, "start", format!("cannot start it again: {error}"));
                self.phase = Phase::Stopping { id: None, since: shared.now, killed: false };
            }
        }
    }

    /// Counts operations of a command; the first ones make a counted thread of its own.
    fn count(&mut self, n: u64, shared: &mut Shared<'_>) {
        let What::Command { ops, finished, .. } = &mut self.what else { return };
        *ops += n;
        *finished = shared.now;
        let pid = self.pid.unwrap_or(0) as u32;
        match self.threads.iter_mut().find(|t| t.thread.counted) {
            Some(live) if live.thread.pid != pid => {
                (live.thread.pid, live.thread.tid) = (pid, pid);
                shared.outbox.push(&FromGuest::Thread(live.thread.clone()));
            }
            Some(_) => {}
            None => self.add_thread(0, 0, pid, pid, true, shared),
        }
    }

    fn add_thread(
        &mut self,
        process: u32,
        thread: u32,
        pid: u32,
        tid: u32,
        counted: bool,
        shared: &mut Shared<'_>,
    ) {
        let workload = self.name.clone();
        let thread = Thread { id: *shared.next_thread, workload, process, thread, pid, tid, counted };
        *shared.next_thread += 1;
        shared.outbox.push(&FromGuest::Thread(thread.clone()));
        self.threads.push(Live { thread, slot: None, slices: 0, changed: shared.now, times: None });
    }

    /// All its processes are gone.
    fn end(&mut self, shared: &mut Shared<'_>) {
        self.phase = Phase::Ended;
        self.output = None;
        for live in self.threads.drain(..) {
            shared.outbox.push(&FromGuest::Gone { id: live.thread.id });
        }
    }

    /// Reads what the leader wrote: counts and faults of a command, and the last words of either.
    pub(super) fn read_output(&mut self, shared: &mut Shared<'_>) {
        let mut part = [0u8; 4096];
        // Bounded, so that a chatterbox cannot keep the probe busy.
        for _ in 0..16 {
            let Some(output) = &self.output else { return };
            match sys::read_some(output, &mut part) {
                Ok(0) => self.output = None,
                Ok(n) => self.take_output(&part[..n], shared),
                Err(_) => return,
            }
        }
    }

    fn take_output(&mut self, bytes: &[u8], shared: &mut Shared<'_>) {
        let mut line = match &mut self.what {
            What::Command { line, .. } => std::mem::take(line),
            What::Builtin { .. } => Vec::new(),
        };
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            line.extend_from_slice(&piece[..piece.len().min(4096 - line.len().min(4096))]);
            if piece.last() == Some(&b'\n') {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                self.said(&text, shared);
            }
        }
        if let What::Command { line: rest, .. } = &mut self.what {
            *rest = line;
        } else if !line.is_empty() {
            self.last_line = String::from_utf8_lossy(&line).into_owned();
        }
    }

    fn said(&mut self, text: &str, shared: &mut Shared<'_>) {
        let Some(news) = text.strip_prefix("klpfarm: ") else {
            if !text.is_empty() {
                self.last_line = text.chars().take(200).collect();
            }
            return;
        };
        let mut words = news.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("ready"), None, None, None) => self.ready(shared),
            (Some("ops"), Some(n), None, None) => self.count(n.parse().unwrap_or(0), shared),
            (Some("fault"), Some(kind), Some(op), detail) => {
                let kind = serde_json::from_value(kind.into()).unwrap_or(FaultKind::WrongContent);
                self.fault(shared, kind, op, detail.unwrap_or("").to_owned());
            }
            _ => self.last_line = text.chars().take(200).collect(),
        }
    }
}

fn launch(
    argv: Vec<String>,
    env: Vec<String>,
    more: &[&OwnedFd],
    spawner: &mut Spawner,
) -> io::Result<(u64, OwnedFd)> {
    let (read, write) = sys::pipe()?;
    let mut fds = vec![&write];
    fds.extend_from_slice(more);
    // First in line when memory runs out, before anything that belongs to the guest.
    let request = Request { token: 0, argv, env, nice: 0, oom: Some(800) };
    let token = spawner.spawn(request, &fds)?;
    Ok((token, read))
}
