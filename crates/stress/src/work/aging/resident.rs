//! A process that stays, holds things, and wakes now and then to see that it still has them.

use super::held::{self, Held};
use super::*;
use crate::work::units::{NOT_HERE, Trouble};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Between two wakes, in nanoseconds: a thread must finish an operation every second.
const PERIOD_NS: i64 = 400_000_000;

pub(super) fn run(context: &mut Context<'_>, dir: &Path) {
    let mut all = Things::new();
    for &(name, take) in held::KINDS {
        let mut rng = crate::work::Rng::new(context.rng.next());
        let taken = context.op(HOLD, || take(dir, &mut rng));
        match taken {
            Ok(thing) => all.push((name, thing)),
            Err(trouble) => tell(context, trouble),
        }
    }
    let alarm = match alarm() {
        Ok(alarm) => alarm,
        Err(error) => return judge(context, "hold", "a timer of our own", &error),
    };
    // Each once at first, so that a call that never did what it should is not found by chance only.
    (0..all.len()).rev().for_each(|i| check(context, &mut all, i));
    while context.go_on() {
        // Sleeps in a read, as many a daemon does.
        if let Err(error) = sys::read_some(&alarm, &mut [0u8; 8]) {
            judge(context, "hold", "reading a timer", &error);
        }
        if !all.is_empty() {
            let i = context.rng.index(all.len());
            check(context, &mut all, i);
        }
    }
}

type Things = Vec<(&'static str, Box<dyn Held>)>;

/// What is lost is not looked at again: one loss is one fault.
fn check(context: &mut Context<'_>, all: &mut Things, i: usize) {
    let mut rng = crate::work::Rng::new(context.rng.next());
    let (name, thing) = &mut all[i];
    match context.op(HOLD, || thing.check(&mut rng)) {
        Ok(()) => {}
        Err(Trouble::Errno(_, errno)) if short_of_resources(errno) || errno == libc::EINTR => {
            context.failed(errno)
        }
        Err(trouble) => {
            lost(context, name, trouble);
            all.swap_remove(i);
        }
    }
}

/// What could not be had in the first place: a kernel or a container may not have it, or not for us.
fn tell(context: &Context<'_>, trouble: Trouble) {
    match trouble {
        Trouble::Errno(_, errno) if excused(errno) => context.failed(errno),
        trouble => lost(context, "something new", trouble),
    }
}

/// What was held and is not as it was.
fn lost(context: &Context<'_>, name: &str, trouble: Trouble) {
    match trouble {
        Trouble::Errno(call, errno) => {
            context.failed(errno);
            let detail = format!("{call} on {name}: failed with {}", sys::errno_name(errno));
            context.fault(FaultKind::WrongErrno, call, &detail);
        }
        Trouble::Wrong(call, detail) => {
            context.wrong_content(call, &format!("{name}: {detail}"));
        }
    }
}

fn excused(errno: i32) -> bool {
    NOT_HERE.contains(&errno) || short_of_resources(errno) || errno == libc::EMFILE
}

fn alarm() -> io::Result<OwnedFd> {
    let period = libc::timespec { tv_sec: 0, tv_nsec: PERIOD_NS };
    let times = libc::itimerspec { it_interval: period, it_value: period };
    // SAFETY: the new descriptor is ours alone; a valid time.
    unsafe {
        let fd = sys::checked(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC))?;
        let fd = OwnedFd::from_raw_fd(fd);
        sys::checked(libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const times, std::ptr::null_mut()))?;
        Ok(fd)
    }
}
