//! Units of [`super::syscall_mix`] about a process itself: identity, time, signals, memory, scheduling.

// SAFETY, for every `unsafe` block here: system calls on values, descriptors and buffers that belong to this unit alone,
// with lengths taken from those buffers.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::Rng;
use super::syscall_mix::*;
use super::units::*;
use crate::sys;
use std::mem::zeroed;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

pub(super) static UNITS: &[Unit] = &[
    Unit { kind: IDENTITY, run: identity },
    Unit { kind: IDENTITY, run: machine },
    Unit { kind: CLOCK, run: clocks },
    Unit { kind: SLEEP, run: sleep },
    Unit { kind: SLEEP, run: timer_descriptor },
    Unit { kind: SIGNAL, run: timer_signal },
    Unit { kind: SIGNAL, run: own_signal },
    Unit { kind: SIGNAL, run: signal_descriptor },
    Unit { kind: FUTEX, run: futex },
    Unit { kind: FUTEX, run: futex_errors },
    Unit { kind: MEMORY, run: mapped },
    Unit { kind: MEMORY, run: locked },
    Unit { kind: MEMORY, run: heap },
    Unit { kind: SCHED, run: scheduling },
    Unit { kind: SCHED, run: limits },
    Unit { kind: SCHED, run: names },
];

fn identity(_: &mut Rng) -> Outcome {
    unsafe {
        let pid = libc::syscall(libc::SYS_getpid);
        demand("getpid", pid == i64::from(std::process::id()), || format!("pid {pid}"))?;
        demand("gettid", libc::syscall(libc::SYS_gettid) >= 1, || "no thread id".into())?;
        let (user, effective) = (libc::getuid(), libc::geteuid());
        demand("getuid", user == effective, || format!("uid {user}, effective {effective}"))?;
        let (group, sid) = (call("getpgid", libc::getpgid(0))?, call("getsid", libc::getsid(0))?);
        demand("getpgrp", i64::from(libc::getpgrp()) == group && sid > 0, || {
            format!("group {group}, session {sid}")
        })?;
        demand("getppid", libc::getppid() >= 0, || "negative".into())?;
        call("getgroups", libc::getgroups(0, std::ptr::null_mut()))?;
    }
    Ok(())
}

fn machine(_: &mut Rng) -> Outcome {
    unsafe {
        let mut names: libc::utsname = zeroed();
        call("uname", libc::uname(&raw mut names))?;
        let text =
            |field: &[libc::c_char]| std::ffi::CStr::from_ptr(field.as_ptr()).to_string_lossy().into_owned();
        let (system, machine) = (text(&names.sysname), text(&names.machine));
        demand("uname", system == "Linux" && machine == "x86_64", || format!("{system} {machine}"))?;
        let mut info: libc::sysinfo = zeroed();
        call("sysinfo", libc::sysinfo(&raw mut info))?;
        demand("sysinfo", info.totalram >= info.freeram && info.procs > 0, || {
            format!("{} of {} free, {} processes", info.freeram, info.totalram, info.procs)
        })?;
        let mut times: libc::tms = zeroed();
        call("times", libc::times(&raw mut times))?;
        let mut usage: libc::rusage = zeroed();
        call("getrusage", libc::getrusage(libc::RUSAGE_SELF, &raw mut usage))?;
        let mut cpu = u32::MAX;
        call("getcpu", libc::syscall(libc::SYS_getcpu, &raw mut cpu, 0usize, 0usize))?;
        demand("getcpu", cpu < 8192, || format!("CPU {cpu}"))
    }
}

fn clocks(_: &mut Rng) -> Outcome {
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_THREAD_CPUTIME_ID] {
        let mut ends = [unsafe { zeroed::<libc::timespec>() }; 2];
        for end in &mut ends {
            // The system call, not the vDSO.
            call("clock_gettime", unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut *end) })?;
        }
        let ns = |t: &libc::timespec| t.tv_sec * 1_000_000_000 + t.tv_nsec;
        // Emulated CPUs may disagree by a little.
        demand("clock_gettime", ns(&ends[1]) >= ns(&ends[0]) - 10_000_000, || {
            format!("clock {clock} went back by {} ns", ns(&ends[0]) - ns(&ends[1]))
        })?;
    }
    unsafe {
        let mut time: libc::timeval = zeroed();
        call("gettimeofday", libc::syscall(libc::SYS_gettimeofday, &raw mut time, 0usize))?;
        let mut resolution: libc::timespec = zeroed();
        call("clock_getres", libc::clock_getres(libc::CLOCK_MONOTONIC, &raw mut resolution))?;
        fails("clock_gettime", libc::EINVAL, libc::syscall(libc::SYS_clock_gettime, 99, &raw mut resolution))
    }
}

fn sleep(rng: &mut Rng) -> Outcome {
    let ns = 100_000 + rng.below(2_000_000);
    let wanted = libc::timespec { tv_sec: 0, tv_nsec: ns as i64 };
    let start = sys::now_ns();
    unsafe {
        match rng.below(3) {
            0 => call("nanosleep", libc::nanosleep(&raw const wanted, std::ptr::null_mut()))?,
            1 => call("ppoll", libc::ppoll(std::ptr::null_mut(), 0, &raw const wanted, std::ptr::null()))?,
            _ => {
                let mut limit = libc::timeval { tv_sec: 0, tv_usec: ns as i64 / 1000 };
                // The old call itself: a C library may take another one for it.
                call("select", libc::syscall(libc::SYS_select, 0, 0usize, 0usize, 0usize, &raw mut limit))?
            }
        }
    };
    let took = sys::now_ns() - start;
    demand("nanosleep", took >= ns / 10 * 9, || format!("slept {took} ns instead of {ns}"))?;
    let bad = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000_000 };
    fails("nanosleep", libc::EINVAL, unsafe { libc::nanosleep(&raw const bad, std::ptr::null_mut()) })
}

/// A descriptor that closes itself.
pub(super) struct Fd(pub(super) i32);

impl Fd {
    pub(super) fn new(name: &'static str, value: impl Into<i64>) -> Result<Self, Trouble> {
        Ok(Self(call(name, value)? as i32))
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        unsafe { libc::close(self.0) };
    }
}

fn timer_descriptor(rng: &mut Rng) -> Outcome {
    unsafe {
        let fd = Fd::new("timerfd_create", libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC))?;
        let mut time: libc::itimerspec = zeroed();
        time.it_value.tv_nsec = 200_000 + rng.below(1_000_000) as i64;
        call("timerfd_settime", libc::timerfd_settime(fd.0, 0, &raw const time, std::ptr::null_mut()))?;
        let mut count = 0u64;
        let n = call("timerfd-read", libc::read(fd.0, (&raw mut count).cast(), 8) as i64)?;
        demand("timerfd", n == 8 && count == 1, || format!("{count} expirations of a timer that runs once"))
    }
}

/// Blocks SIGUSR2 for this thread while `body` runs.
fn with_blocked_signal(body: impl FnOnce(&libc::sigset_t) -> Outcome) -> Outcome {
    unsafe {
        let (mut set, mut old): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut old);
        let outcome = body(&set);
        // Nothing may stay pending: unblocked, it would kill us.
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        while libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) > 0 {}
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        outcome
    }
}

fn take_signal(set: &libc::sigset_t) -> Outcome {
    let limit = libc::timespec { tv_sec: 60, tv_nsec: 0 };
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    let got = call("sigtimedwait", unsafe { libc::sigtimedwait(set, &raw mut info, &raw const limit) })?;
    demand("sigtimedwait", got == i64::from(libc::SIGUSR2), || format!("signal {got} instead of SIGUSR2"))
}

fn timer_signal(rng: &mut Rng) -> Outcome {
    let ns = 100_000 + rng.below(1_000_000) as i64;
    with_blocked_signal(|set| unsafe {
        let mut event: libc::sigevent = zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR2;
        event.sigev_notify_thread_id = sys::tid() as i32;
        let mut timer: libc::timer_t = zeroed();
        call("timer_create", libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer))?;
        let mut time: libc::itimerspec = zeroed();
        time.it_value.tv_nsec = ns;
        let set_up =
            call("timer_settime", libc::timer_settime(timer, 0, &raw const time, std::ptr::null_mut()));
        let outcome = set_up.and_then(|_| take_signal(set));
        call("timer_delete", libc::timer_delete(timer))?;
        outcome
    })
}

fn own_signal(_: &mut Rng) -> Outcome {
    with_blocked_signal(|set| unsafe {
        let (pid, tid) = (std::process::id() as i32, sys::tid() as i32);
        call("tgkill", libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR2))?;
        let mut pending: libc::sigset_t = zeroed();
        call("sigpending", libc::sigpending(&raw mut pending))?;
        let there = libc::sigismember(&raw const pending, libc::SIGUSR2) == 1;
        demand("sigpending", there, || "a blocked signal is not pending".into())?;
        take_signal(set)?;
        fails("tgkill", libc::EINVAL, libc::syscall(libc::SYS_tgkill, pid, tid, 1000))
    })
}

fn signal_descriptor(_: &mut Rng) -> Outcome {
    with_blocked_signal(|set| unsafe {
        let fd = Fd::new("signalfd", libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        let mut info: libc::signalfd_siginfo = zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        fails("signalfd-read", libc::EAGAIN, libc::read(fd.0, (&raw mut info).cast(), size) as i64)?;
        call("tgkill", libc::syscall(libc::SYS_tgkill, std::process::id(), sys::tid(), libc::SIGUSR2))?;
        call("signalfd-read", libc::read(fd.0, (&raw mut info).cast(), size) as i64)?;
        demand("signalfd", info.ssi_signo == libc::SIGUSR2 as u32, || format!("signal {}", info.ssi_signo))
    })
}

fn wait_on(word: &AtomicU32, value: u32, limit: Option<libc::timespec>) -> i64 {
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, limit) }
}

/// Two threads hand a number to and fro.
fn futex(_: &mut Rng) -> Outcome {
    static ROUNDS: u32 = 8;
    let word = AtomicU32::new(0);
    let wake = || unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
    let side = |first: u32| {
        for turn in (first..2 * ROUNDS).step_by(2) {
            loop {
                let now = word.load(SeqCst);
                if now == turn {
                    break;
                }
                if wait_on(&word, now, None) == -1 && !matches!(sys::errno(), libc::EAGAIN | libc::EINTR) {
                    return Err(Trouble::Errno("futex-wait", sys::errno()));
                }
            }
            word.store(turn + 1, SeqCst);
            call("futex-wake", wake())?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, || side(1));
        let Ok(other) = other else { return Err(Trouble::Errno("clone", libc::EAGAIN)) };
        side(0)?;
        other.join().unwrap_or(Ok(()))
    })
}

fn futex_errors(_: &mut Rng) -> Outcome {
    let word = AtomicU32::new(5);
    fails("futex-wait", libc::EAGAIN, wait_on(&word, 4, None))?;
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 200_000 };
    fails("futex-wait", libc::ETIMEDOUT, wait_on(&word, 5, Some(limit)))
}

const PAGE: usize = 4096;

fn mapped(rng: &mut Rng) -> Outcome {
    let pages = 1 + rng.index(16);
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let p = libc::mmap(std::ptr::null_mut(), pages * PAGE, rights, flags, -1, 0);
        call("mmap", p as i64)?;
        let at = rng.index(pages);
        p.cast::<u8>().add(at * PAGE).write_volatile(7);
        let mut there = [0u8; 16];
        let got = call("mincore", libc::mincore(p, pages * PAGE, there.as_mut_ptr()));
        // Reclaim cannot take it without swap, but may with: only the call is judged.
        let kept = p.cast::<u8>().add(at * PAGE).read_volatile();
        let synced = call("msync", libc::msync(p, pages * PAGE, libc::MS_ASYNC));
        let odd = fails(
            "mincore",
            libc::EINVAL,
            libc::mincore(p.cast::<u8>().add(1).cast(), PAGE, there.as_mut_ptr()),
        );
        call("munmap", libc::munmap(p, pages * PAGE))?;
        got?;
        synced?;
        odd?;
        demand("memory", kept == 7, || format!("wrote 7, read {kept}"))?;
        fails("munmap", libc::EINVAL, libc::munmap((PAGE + 1) as *mut libc::c_void, PAGE))
    }
}

fn locked(_: &mut Rng) -> Outcome {
    let word = Box::new([0u8; PAGE]);
    unsafe {
        call("mlock", libc::mlock(word.as_ptr().cast(), PAGE))?;
        call("munlock", libc::munlock(word.as_ptr().cast(), PAGE))?;
        // A process that never issued it would be refused; what counts is that the call is made.
        libc::syscall(libc::SYS_membarrier, 0, 0, 0);
    }
    Ok(())
}

fn heap(_: &mut Rng) -> Outcome {
    unsafe {
        let now = libc::syscall(libc::SYS_brk, 0);
        let again = libc::syscall(libc::SYS_brk, now);
        demand("brk", again == now, || format!("break {now:#x} set again is {again:#x}"))
    }
}

fn scheduling(_: &mut Rng) -> Outcome {
    unsafe {
        call("sched_yield", libc::sched_yield())?;
        let mut set: libc::cpu_set_t = zeroed();
        let size = size_of::<libc::cpu_set_t>();
        call("sched_getaffinity", libc::sched_getaffinity(0, size, &raw mut set))?;
        demand("sched_getaffinity", libc::CPU_COUNT(&set) > 0, || "no CPU".into())?;
        call("sched_setaffinity", libc::sched_setaffinity(0, size, &raw const set))?;
        let mut none: libc::cpu_set_t = zeroed();
        fails("sched_setaffinity", libc::EINVAL, libc::sched_setaffinity(0, size, &raw mut none))?;
        call("sched_getscheduler", libc::sched_getscheduler(0))?;
        let mut param: libc::sched_param = zeroed();
        call("sched_getparam", libc::sched_getparam(0, &raw mut param))?;
        let mut slice: libc::timespec = zeroed();
        call("sched_rr_get_interval", libc::sched_rr_get_interval(0, &raw mut slice))?;
        call(
            "setpriority",
            libc::setpriority(libc::PRIO_PROCESS, 0, libc::getpriority(libc::PRIO_PROCESS, 0)),
        )?;
    }
    Ok(())
}

fn limits(_: &mut Rng) -> Outcome {
    unsafe {
        let (mut before, mut after): (libc::rlimit, libc::rlimit) = (zeroed(), zeroed());
        call("getrlimit", libc::getrlimit(libc::RLIMIT_CORE, &raw mut before))?;
        call("setrlimit", libc::setrlimit(libc::RLIMIT_CORE, &raw const before))?;
        call("prlimit", libc::prlimit(0, libc::RLIMIT_CORE, std::ptr::null(), &raw mut after))?;
        let same = before.rlim_cur == after.rlim_cur && before.rlim_max == after.rlim_max;
        demand("prlimit", same, || "a limit read twice differs".into())?;
        let bad = libc::rlimit { rlim_cur: 2, rlim_max: 1 };
        fails("setrlimit", libc::EINVAL, libc::setrlimit(libc::RLIMIT_CORE, &raw const bad))
    }
}

fn names(rng: &mut Rng) -> Outcome {
    let name = format!("klpfarm-{:04}\0", rng.below(10_000));
    let (mut usual, mut got) = ([0u8; 16], [0u8; 16]);
    unsafe {
        call("prctl", libc::prctl(libc::PR_GET_NAME, usual.as_mut_ptr()))?;
        call("prctl", libc::prctl(libc::PR_SET_NAME, name.as_ptr()))?;
        let read = call("prctl", libc::prctl(libc::PR_GET_NAME, got.as_mut_ptr()));
        libc::prctl(libc::PR_SET_NAME, usual.as_ptr());
        read?;
        demand("prctl", got.starts_with(name.as_bytes()), || "the name read is not the name set".into())?;
        call("prctl", libc::prctl(libc::PR_GET_DUMPABLE))?;
        call("personality", libc::personality(0xffff_ffff))?;
        let mut header = [0x2008_0522u32, 0];
        let mut data = [0u32; 6];
        call("capget", libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()))?;
        let mut bytes = [0u8; 32];
        let n = call(
            "getrandom",
            libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), 32, libc::GRND_NONBLOCK),
        )?;
        demand("getrandom", n == 32 && bytes != [0; 32], || format!("{n} bytes, or all of them zero"))
    }
}
