//! `serve`: the probe. One thread, one loop, and nothing in it that waits for anything but its descriptors.
//!
//! It watches a kernel whose functions are being replaced under it, so it makes no processes itself (`spawner`), reads no
//! file that could make it wait (`reader`), keeps all its memory locked, and never waits for the host (`outbox`).

mod asks;
mod blocked;
pub(crate) mod console;
mod exec;
mod faults;
mod look;
mod outbox;
mod port;
pub(crate) mod reader;
mod resume;
mod spawner;
mod workload;
mod write;

use crate::procfs::{self, Scanner, Task};
use crate::slots::{self, Area, SLOTS};
use crate::sys;
use klpfarm_stress::wire::{FromGuest, VERSION};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

/// First word of a command line that means this binary itself.
const OURSELVES: &str = "klpfarm-stress";

/// Time between two rounds of news, in nanoseconds.
const TICK_NS: u64 = 250_000_000;
/// The same while a workload starts, or while the host is away.
const SOON_NS: u64 = 50_000_000;
/// Processes whose descriptors are counted, at most: it happens every second.
const MOST_PROCESSES: usize = 64;

/// `serve [--daemon] [--port PATH]...`.
pub(crate) fn main(args: &[String]) -> ExitCode {
    let (mut daemon, mut paths) = (false, Vec::new());
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match (arg.as_str(), arg.as_str() == "--port") {
            ("--daemon", _) => daemon = true,
            (_, true) => match rest.next() {
                Some(path) => paths.push(path.clone()),
                None => return usage("--port wants a path"),
            },
            _ => return usage(&format!("unknown argument `{arg}`")),
        }
    }
    // One probe a guest: a second one would steal lines from the first.
    let lock = if paths.is_empty() { only_one() } else { Ok(None) };
    let Ok(_lock) = lock else {
        eprintln!("klpfarm-stress serve: a probe runs already");
        return ExitCode::SUCCESS;
    };
    if daemon && let Some(code) = leave_session() {
        return code;
    }
    match Probe::new(paths) {
        Ok(mut probe) => probe.run(),
        Err(error) => {
            eprintln!("klpfarm-stress serve: cannot start: {error}");
            ExitCode::from(3)
        }
    }
}

fn usage(error: &str) -> ExitCode {
    eprintln!("klpfarm-stress serve: {error}; usage: serve [--daemon] [--port PATH]...");
    ExitCode::from(2)
}

/// A name only one process can have; it goes with the process.
fn only_one() -> io::Result<Option<std::os::unix::net::UnixListener>> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name("klpfarm.probe")?;
    std::os::unix::net::UnixListener::bind_addr(&address).map(Some)
}

/// Goes to the background: a session of its own and nothing of the old one held open, so that the SSH session that
/// started it can end. The parent gets its exit code, the child goes on.
fn leave_session() -> Option<ExitCode> {
    // SAFETY: this process has one thread; plain values and C strings.
    unsafe {
        match libc::fork() {
            -1 => {
                eprintln!("klpfarm-stress serve: cannot fork: {}", io::Error::last_os_error());
                Some(ExitCode::from(3))
            }
            0 => {
                libc::setsid();
                libc::chdir(c"/".as_ptr());
                let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                for fd in 0..3 {
                    libc::dup2(null, fd);
                }
                libc::close(null);
                None
            }
            _ => Some(ExitCode::SUCCESS),
        }
    }
}

/// Takes precedence over everything ordinary, is the last to be killed when memory is short, and stays in memory. What is
/// not allowed is left out: as an ordinary user the probe works, only less surely.
fn raise(real_time: bool) {
    let _ = sys::write_file("/proc/self/oom_score_adj", "-1000");
    // SAFETY: plain values and a valid parameter block.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, -15);
        if real_time {
            let lowest = libc::sched_param { sched_priority: 1 };
            libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const lowest);
        }
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE);
    }
}

/// Makes the allocator keep what it once got: giving memory back and taking it again are the very calls that may be broken
/// while we watch.
fn keep_memory() {
    // SAFETY: plain values, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TOP_PAD, 4 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

struct Probe {
    paths: Vec<String>,
    port: Option<port::Port>,
    /// When to try the port again.
    reopen: u64,
    outbox: outbox::Outbox,
    spawner: spawner::Spawner,
    readers: reader::Readers,
    slots_fd: OwnedFd,
    area: &'static Area,
    /// Where [`klpfarm_stress::wire::Ask::Write`] writes.
    folder: PathBuf,
    used: [bool; SLOTS],
    workloads: Vec<workload::Workload>,
    /// Names of those that can't run on this guest: stopping one is no mistake.
    unavailable: BTreeSet<String>,
    execs: Vec<exec::Exec>,
    faults: faults::Faults,
    blocked: blocked::Blocked,
    scanner: Scanner,
    tasks: Vec<Task>,
    taint: Option<u64>,
    ticks: u64,
    next_thread: u32,
    /// Lines that were no request.
    unread: u64,
    /// The list of tasks has had the probe itself in it.
    listed: bool,
    /// What can no longer be read, and has been told.
    lost: Vec<&'static str>,
}

/// The parts that a workload needs, borrowed beside it.
macro_rules! shared {
    ($probe:ident, $now:expr) => {
        $crate::serve::workload::Shared {
            outbox: &mut $probe.outbox,
            faults: &mut $probe.faults,
            next_thread: &mut $probe.next_thread,
            now: $now,
        }
    };
}
use shared;

impl Probe {
    fn new(paths: Vec<String>) -> io::Result<Self> {
        keep_memory();
        let mut spawner = spawner::Spawner::start()?;
        // A probe that is told its port is not the one of a guest, and leaves the machine's console alone.
        if paths.is_empty() {
            spawner.spawn(console::request(), &[])?;
        }
        raise(true);
        let slots_fd = slots::create()?;
        let area = slots::map(slots_fd.as_fd())?;
        Ok(Self {
            paths,
            port: None,
            reopen: 0,
            outbox: outbox::Outbox::new(),
            spawner,
            readers: reader::Readers::default(),
            slots_fd,
            area,
            folder: write::own_folder()?,
            used: [false; SLOTS],
            workloads: Vec::new(),
            unavailable: BTreeSet::new(),
            execs: Vec::new(),
            faults: faults::Faults::default(),
            blocked: blocked::Blocked::default(),
            scanner: Scanner::default(),
            tasks: Vec::new(),
            taint: taint(),
            ticks: 0,
            next_thread: 1,
            unread: 0,
            listed: false,
            lost: Vec::new(),
        })
    }

    fn run(&mut self) -> ExitCode {
        let mut next_tick = sys::now_ns();
        let mut fds = Vec::new();
        loop {
            let now = sys::now_ns();
            self.keep_port(now);
            self.look_for_host();
            self.serve_helpers(now);
            self.serve_commands(now);
            if now >= next_tick {
                self.tick(now);
                // After a pause of the whole machine, missed rounds are not made up for.
                next_tick = now + TICK_NS;
            }
            self.write();
            let wake = self.wake_at(next_tick, now);
            self.wait(&mut fds, wake.saturating_sub(sys::now_ns()));
            self.read();
        }
    }

    fn wake_at(&self, next_tick: u64, now: u64) -> u64 {
        let starting = self.workloads.iter().any(|w| matches!(w.phase, workload::Phase::Starting { .. }));
        let deadlines = self.execs.iter().filter_map(exec::Exec::deadline);
        // A host that comes back, to a fork above all, wants to be greeted without delay; a hung-up port cannot be awaited.
        let alone = self.port.as_ref().is_some_and(|p| p.hung_up);
        let soon = if starting || alone { now + SOON_NS } else { u64::MAX };
        deadlines.min().unwrap_or(u64::MAX).min(next_tick).min(soon)
    }

    /// Sleeps until something can be read or written, or the time is over.
    fn wait(&mut self, fds: &mut Vec<libc::pollfd>, ns: u64) {
        fds.clear();
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        // A port that is hung up is ready all the time: it is looked at once a tick instead.
        if let Some(port) = &self.port {
            let reads = if self.outbox.room() { libc::POLLIN } else { 0 };
            let writes = if self.outbox.waiting().is_empty() { 0 } else { libc::POLLOUT };
            fds.push(entry(if port.hung_up { -1 } else { port.fd() }, reads | writes));
        }
        fds.push(entry(self.spawner.fd(), libc::POLLIN));
        fds.extend(self.readers.fds().map(|fd| entry(fd, libc::POLLIN)));
        fds.extend(self.execs.iter().filter_map(exec::Exec::output_fd).map(|fd| entry(fd, libc::POLLIN)));
        let outputs = self.workloads.iter().filter_map(workload::Workload::output_fd);
        fds.extend(outputs.map(|fd| entry(fd, libc::POLLIN)));
        let ms = ns.div_ceil(1_000_000).min(60_000) as i32;
        // SAFETY: as many valid entries as said.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, ms) };
        if let Some(port) = &mut self.port
            && fds[0].revents & libc::POLLHUP != 0
        {
            port.saw_hang_up();
        }
    }

    /// Opens the port if there is none; greets a host that has come (back).
    fn keep_port(&mut self, now: u64) {
        if self.port.is_none() && now >= self.reopen {
            self.reopen = now + 1_000_000_000;
            self.port = port::Port::open(&self.paths);
            if self.port.is_some() {
                self.greet();
            }
        }
    }

    /// Looks whether the host is there, for a port that was hung up when last seen.
    fn look_for_host(&mut self) {
        let Some(port) = self.port.as_mut().filter(|p| p.hung_up) else { return };
        let mut entry = libc::pollfd { fd: port.fd(), events: 0, revents: 0 };
        // SAFETY: one valid entry.
        unsafe { libc::poll(&raw mut entry, 1, 0) };
        if entry.revents & libc::POLLHUP == 0 {
            port.hung_up = false;
            self.greet();
        }
    }

    fn hello(&self) -> FromGuest {
        // SAFETY: plain value.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        FromGuest::Hello {
            version: VERSION,
            release: sys::release(),
            cpus: cpus.max(1) as u32,
            at_ms: sys::boot_ms(),
            taint: self.taint.unwrap_or(0),
        }
    }

    /// To a host that has come (back): the greeting before anything else, and all threads.
    fn greet(&mut self) {
        let hello = self.hello();
        self.outbox.restart(&hello);
        self.workloads.iter().for_each(|w| w.say_threads(&mut self.outbox));
    }

    fn read(&mut self) {
        let Some(mut port) = self.port.take() else { return };
        if !self.outbox.room() {
            self.port = Some(port);
            return;
        }
        let mut lines = Vec::new();
        let state = port.read(|line| lines.push(line.to_owned()));
        if state == port::State::Open {
            self.port = Some(port);
        }
        for line in lines {
            self.asked(&line);
        }
    }

    fn write(&mut self) {
        while let Some(port) = &mut self.port
            && !self.outbox.waiting().is_empty()
        {
            match port.write(self.outbox.waiting()) {
                Ok(0) => return,
                Ok(n) => self.outbox.wrote(n),
                Err(_) => self.port = None,
            }
        }
    }

    /// What the spawner and the readers have to say.
    fn serve_helpers(&mut self, now: u64) {
        while let Some(event) = self.spawner.event() {
            if !self.readers.note(event) {
                self.process_event(event, now);
            }
        }
        if !self.outbox.room() {
            return;
        }
        let (blocked, outbox) = (&mut self.blocked, &mut self.outbox);
        self.readers.turn(now, &mut self.spawner, |(purpose, result)| match purpose {
            reader::Purpose::Stack { tid, start } => blocked.stack(tid, start, now, result),
            reader::Purpose::Answer { id } => asks::read_answer(id, result, outbox),
        });
    }

    fn process_event(&mut self, event: spawner::Event, now: u64) {
        use spawner::Event::{Exited, Failed, Spawned};
        let (Spawned { token, .. } | Failed { token, .. } | Exited { token, .. }) = event;
        if let Some(i) = self.execs.iter().position(|e| e.token() == token) {
            match event {
                Spawned { pid, .. } => self.execs[i].spawned(pid),
                Failed { errno, .. } => self.execs[i].failed(errno),
                Exited { status, .. } => self.execs[i].exited(status),
            }
        } else if let Some(workload) = self.workloads.iter_mut().find(|w| w.token() == token) {
            let mut shared = shared!(self, now);
            match event {
                Spawned { pid, .. } => workload.spawned(pid),
                Failed { errno, .. } => workload.exited(Err(errno), &mut self.spawner, &mut shared),
                Exited { status, .. } => workload.exited(Ok(status), &mut self.spawner, &mut shared),
            }
        }
    }

    fn serve_commands(&mut self, now: u64) {
        for exec in &mut self.execs {
            exec.read();
            exec.check_time(now);
        }
        let outbox = &mut self.outbox;
        self.execs.retain_mut(|exec| !exec.finish(outbox));
        let mut shared = shared!(self, now);
        for workload in &mut self.workloads {
            workload.read_output(&mut shared);
            workload.start(&mut shared);
        }
    }

    fn tick(&mut self, now: u64) {
        self.ticks += 1;
        if let Some(wait) = self.blocked_line_due() {
            self.outbox.push(&wait);
        }
        let whole_second = self.ticks % 4 == 1;
        let stopping = |w: &workload::Workload| matches!(w.phase, workload::Phase::Stopping { .. });
        if whole_second || self.workloads.iter().any(stopping) {
            self.scan(now, whole_second);
        }
        self.news(now);
        if whole_second {
            for workload in &mut self.workloads {
                workload.latencies(&mut self.outbox);
                // Read anew, not the tick's time: the scan before this took its own.
                workload.usage(&mut self.scanner, crate::sys::now_ns(), &mut self.outbox);
            }
            self.faults.flush(&mut self.outbox);
        }
        if self.ticks.is_multiple_of(2) {
            self.look_at_taint();
        }
        if self.ticks % 4 == 3 {
            self.memory();
        }
    }

    /// A tick after the scan, when the stacks have arrived.
    fn blocked_line_due(&mut self) -> Option<FromGuest> {
        if self.ticks % 4 != 2 {
            return None;
        }
        let (tasks, total) = self.blocked.tell(&mut self.scanner)?;
        Some(FromGuest::Blocked { at_ms: sys::boot_ms(), tasks, total })
    }

    fn scan(&mut self, now: u64, whole_second: bool) {
        let mut tasks = std::mem::take(&mut self.tasks);
        tasks.clear();
        self.scanner.scan(|task| tasks.push(task));
        let mut shared = shared!(self, now);
        for workload in &mut self.workloads {
            workload.collect_faults(&mut shared);
            workload.scanned(&tasks, &mut self.scanner, &mut shared);
            workload.stopping(&tasks, &mut self.scanner, &mut shared);
        }
        self.forget_ended();
        if whole_second {
            let workloads = &self.workloads;
            let idle = |tid| workloads.iter().find_map(|w| w.idle(tid, now));
            self.blocked.scanned(&tasks, now, &mut self.scanner, &mut self.readers, idle);
        }
        self.tasks = tasks;
        if whole_second {
            self.check_scan();
        }
    }

    fn forget_ended(&mut self) {
        let used = &mut self.used;
        self.workloads.retain(|w| {
            let ended = w.phase == workload::Phase::Ended;
            if ended && let workload::What::Builtin { range, .. } = &w.what {
                used[range.clone()].fill(false);
            }
            if ended && w.unavailable {
                self.unavailable.insert(w.name.clone());
            }
            !ended
        });
    }

    fn news(&mut self, now: u64) {
        let mut shared = shared!(self, now);
        let mut threads = Vec::new();
        for workload in &mut self.workloads {
            workload.collect_faults(&mut shared);
            workload.progress(now, &mut threads);
        }
        if !threads.is_empty() {
            self.outbox.push(&FromGuest::Progress { at_ms: sys::boot_ms(), threads });
        }
    }

    fn look_at_taint(&mut self) {
        match taint() {
            Some(value) if self.taint != Some(value) => {
                self.taint = Some(value);
                self.outbox.push(&FromGuest::Taint { at_ms: sys::boot_ms(), value });
            }
            None if self.taint.is_some() => {
                self.unable("its taint", "/proc/sys/kernel/tainted cannot be read");
            }
            _ => {}
        }
    }

    /// Descriptors of the workloads' processes. Their folders are read under RCU, whatever the processes wait for.
    fn descriptors(&self) -> u64 {
        let leaders = self.tasks.iter().filter(|t| t.tid == t.pid);
        let ours = leaders.filter(|t| self.workloads.iter().any(|w| w.owns(t)));
        ours.take(MOST_PROCESSES).map(|t| procfs::descriptors(t.pid)).sum()
    }

    fn memory(&mut self) {
        // A sample that lacks a figure is left out: zero would look like a leak, or hide one.
        if let Some(line) = self.memory_line() {
            self.outbox.push(&line);
        }
    }

    fn memory_line(&self) -> Option<FromGuest> {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let text = read("/proc/meminfo")?;
        let kib = |name| procfs::meminfo(&text, name);
        Some(FromGuest::Memory {
            at_ms: sys::boot_ms(),
            available_kib: kib("MemAvailable")?,
            slab_kib: kib("Slab")?,
            slab_unreclaimable_kib: kib("SUnreclaim")?,
            unaccounted_kib: procfs::unaccounted(&text, &read("/proc/zoneinfo")?)?,
            open_files: procfs::first(&read("/proc/sys/fs/file-nr")?)?,
            descriptors: self.descriptors(),
            tasks: procfs::tasks_in_loadavg(&read("/proc/loadavg")?)?,
            zombies: self.tasks.iter().filter(|t| t.stat.state == 'Z').count() as u64,
        })
    }

    /// Tells, once, that something can no longer be read that was read before.
    fn unable(&mut self, what: &'static str, detail: &str) {
        if !self.lost.contains(&what) {
            self.lost.push(what);
            let (what, detail) = (what.to_owned(), detail.to_owned());
            self.outbox.push(&FromGuest::Unable { at_ms: sys::boot_ms(), what, detail });
        }
    }

    /// The probe itself must be in the list of all tasks.
    fn check_scan(&mut self) {
        let own = std::process::id();
        let listed = self.tasks.iter().any(|t| t.pid == own);
        if !listed && self.listed {
            self.unable("its list of tasks", "/proc does not list the probe itself");
        }
        self.listed |= listed;
    }
}

fn taint() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/kernel/tainted").ok()?.trim().parse().ok()
}
