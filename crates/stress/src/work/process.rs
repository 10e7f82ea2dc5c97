//! Processes of a stressor: the supervisor, and the workers it forks.

use super::{Context, Job, SLOTS_VARIABLE, context::STOP};
use crate::slots::{self, Area, ENDED, RUNNING, SeenCounts, Slot};
use crate::sys;
use klpfarm_stress::wire::FaultKind;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

/// Runs a job until it is told to end (SIGTERM or SIGINT), until `seconds` are over, or until all workers have died.
/// Without a probe the slots are its own, and what was found is printed.
pub(super) fn supervise(job: &Job, seconds: Option<u64>) -> Result<ExitCode, String> {
    let Ours { area, slots, alone } = our_slots()?;
    (job.stressor.prepare)(&job.params)?;
    let signals = block_signals();
    sys::set_name(job.stressor.name);
    let seed = match job.params.number("seed") {
        0 => sys::clock_ns(libc::CLOCK_REALTIME),
        seed => seed,
    };
    let mut workers = Workers { pids: Vec::new(), stopping: false, slot: &slots[0] };
    let (processes, threads) = (job.params.number("processes"), job.params.number("threads"));
    // As many slots a process as it has threads: first the ordinary ones, then the singles.
    let (many, singles) = slots[1..=job.threads() as usize].split_at((processes * threads) as usize);
    for (process, slots) in many.chunks(threads as usize).chain(singles.chunks(1)).enumerate() {
        // SAFETY: this process has one thread, so the child may do whatever we may.
        match unsafe { libc::fork() } {
            -1 => {
                workers.slot.fault(FaultKind::CannotRun, "start", &io::Error::last_os_error().to_string());
                break;
            }
            0 => worker(job, process as u32, (slots, &area.stir), seed, &signals),
            pid => workers.pids.push(pid),
        }
    }
    workers.wait_for_all(&signals, seconds);
    (job.stressor.clean)(&job.params);
    Ok(if alone { summary(job, slots) } else { ExitCode::SUCCESS })
}

/// Where this workload reports to.
struct Ours {
    area: &'static Area,
    /// The first is the supervisor's.
    slots: &'static [Slot],
    /// Made by us: there is no probe.
    alone: bool,
}

/// The probe's slots that were given to us, or new ones.
fn our_slots() -> Result<Ours, String> {
    let Ok(given) = std::env::var(SLOTS_VARIABLE) else {
        let fd = slots::create().map_err(|e| format!("cannot make shared memory: {e}"))?;
        let area = slots::map(fd.as_fd()).map_err(|e| format!("cannot map shared memory: {e}"))?;
        return Ok(Ours { area, slots: &area.slots, alone: true });
    };
    let numbers: Vec<usize> = given.split(',').filter_map(|n| n.parse().ok()).collect();
    let &[fd, base, count] = &numbers[..] else {
        return Err(format!("{SLOTS_VARIABLE}={given}: not DESCRIPTOR,FIRST,COUNT"));
    };
    // SAFETY: the probe passed us this descriptor for that purpose, and it stays open until it was mapped.
    let fd = unsafe { BorrowedFd::borrow_raw(fd as i32) };
    let area = slots::map(fd).map_err(|e| format!("cannot map the probe's slots: {e}"))?;
    let slots = area.slots.get(base..base + count);
    let slots = slots.ok_or_else(|| format!("{SLOTS_VARIABLE}={given}: out of range"))?;
    Ok(Ours { area, slots, alone: false })
}

/// Blocks the signals that the supervisor and the workers' first threads wait for, so that nothing a stressor does is
/// ever interrupted by them (a stray EINTR would look like a defect).
fn block_signals() -> libc::sigset_t {
    // SAFETY: an all-zero set is valid and then initialised.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    }
}

/// Waits for one of `set`, at most `ms`; 0 if none came.
fn wait_signal(set: &libc::sigset_t, ms: u64) -> i32 {
    let limit = libc::timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000 * 1_000_000) as i64 };
    // SAFETY: valid set and time; no siginfo wanted.
    unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &raw const limit) }.max(0)
}

struct Workers<'a> {
    pids: Vec<i32>,
    stopping: bool,
    slot: &'a Slot,
}

impl Workers<'_> {
    fn wait_for_all(&mut self, signals: &libc::sigset_t, seconds: Option<u64>) {
        let start = sys::now_ns();
        let mut stop_at = None;
        while !self.pids.is_empty() {
            match wait_signal(signals, 250) {
                libc::SIGTERM | libc::SIGINT | libc::SIGHUP => self.stop(libc::SIGTERM),
                _ => {}
            }
            let now = sys::now_ns();
            if seconds.is_some_and(|s| now - start > s * 1_000_000_000) && stop_at.is_none() {
                self.stop(libc::SIGTERM);
                stop_at = Some(now);
            }
            if stop_at.is_some_and(|t| now - t > 10_000_000_000) {
                self.stop(libc::SIGKILL);
            }
            self.reap();
        }
    }

    fn stop(&mut self, signal: i32) {
        self.stopping = true;
        self.pids.iter().for_each(|&pid| sys::kill(pid, signal));
    }

    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the answer.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let known = self.pids.len();
            self.pids.retain(|&p| p != pid);
            if known != self.pids.len() && !self.stopping {
                let detail = format!("worker process {pid} {}", how_it_ended(status));
                self.slot.fault(FaultKind::Died, "worker", &detail);
            }
        }
    }
}

/// A wait status in words.
pub(crate) fn how_it_ended(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        match libc::WTERMSIG(status) {
            libc::SIGKILL => "was killed by signal 9 (short of memory, or by hand)".to_owned(),
            signal => format!("was killed by signal {signal}"),
        }
    } else {
        format!("ended by itself with exit status {}", libc::WEXITSTATUS(status))
    }
}

/// Priority of what must end soon; as an ordinary user none is to be had.
pub(super) const URGENT: i32 = -15;

/// A worker process: one slot a thread, and a first thread that only waits to be told to end.
fn worker(
    job: &Job,
    process: u32,
    (slots, stir): (&'static [Slot], &'static AtomicU64),
    seed: u64,
    signals: &libc::sigset_t,
) -> ! {
    // SAFETY: plain values and a valid limit. Without a supervisor a worker has nobody to report its death; and children
    // that abort on purpose must not fill the disk with core files.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
    }
    let (pid, nice) = (std::process::id(), job.params.number("nice") as i32);
    std::thread::scope(|scope| {
        for (thread, slot) in slots.iter().enumerate() {
            scope.spawn(move || {
                let mut context = Context::new(job, (slot, stir), seed, process, thread as u32);
                sys::set_name(job.stressor.name);
                // This thread alone, and what it forks: those that wait to be told to end must hear it in time.
                sys::set_priority(0, nice);
                slot.pid.store(pid, Relaxed);
                slot.tid.store(sys::tid(), Relaxed);
                slot.finished_ns.store(sys::now_ns(), Relaxed);
                slot.state.store(RUNNING, Release);
                (job.stressor.run)(&mut context);
                slot.state.store(ENDED, Release);
            });
        }
        loop {
            let signal = wait_signal(signals, 3_600_000);
            if matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP) {
                STOP.store(true, Relaxed);
                // Whoever gave way to others until now would only make the farm wait.
                if nice > 0 {
                    slots.iter().for_each(|s| sys::set_priority(s.tid.load(Relaxed), URGENT));
                }
                break;
            }
        }
    });
    std::process::exit(0);
}

fn summary(job: &Job, slots: &[Slot]) -> ExitCode {
    let (mut ops, mut faults) = (0, 0);
    for slot in slots {
        ops += slot.ops.load(Relaxed);
        slot.new_faults(&mut SeenCounts::default(), |f| {
            faults += f.count;
            println!("{:?} {} x{}: {}", f.kind, f.op, f.count, f.detail);
        });
    }
    for (i, name) in job.stressor.kinds.iter().enumerate() {
        let mut counts = slots::Counts::ZERO;
        slots.iter().for_each(|s| s.add_kind(i, &mut counts));
        let q = |q| crate::hist::quantile(&counts.buckets, q);
        let n: u64 = counts.buckets.iter().sum();
        println!("{name:<24} {n:>10} p10 {:>9} p50 {:>9} p99 {:>9} ns", q(0.1), q(0.5), q(0.99));
    }
    println!("{}: {ops} operations, {faults} faults", job.stressor.name);
    ExitCode::from(u8::from(faults > 0))
}
