//! Stressors that are made of units: each makes a few calls and checks what they are documented to do.

use super::{Context, Rng, context::short_of_resources};
use crate::sys;
use klpfarm_stress::wire::FaultKind;

/// Why a unit did not do what it should.
pub(super) enum Trouble {
    /// This call failed with this errno.
    Errno(&'static str, i32),
    /// This call gave something else than documented.
    Wrong(&'static str, String),
}

pub(super) type Outcome = Result<(), Trouble>;

/// One unit.
pub(super) struct Unit {
    pub(super) kind: usize,
    pub(super) run: fn(&mut Rng) -> Outcome,
}

/// A call's value, or its errno as [`Trouble`].
pub(super) fn call(name: &'static str, value: impl Into<i64>) -> Result<i64, Trouble> {
    match value.into() {
        -1 => Err(Trouble::Errno(name, sys::errno())),
        value => Ok(value),
    }
}

/// Demands that a call failed with `errno`.
pub(super) fn fails(name: &'static str, errno: i32, value: impl Into<i64>) -> Outcome {
    let got = if value.into() == -1 { sys::errno() } else { 0 };
    if got == errno {
        return Ok(());
    }
    // A failed demand is about the errno, but "short of memory" excuses it as anything else.
    if short_of_resources(got) || got == libc::EINTR {
        return Err(Trouble::Errno(name, got));
    }
    Err(Trouble::Wrong(name, format!("expected {}, got {}", sys::errno_name(errno), sys::errno_name(got))))
}

/// Demands `ok`; `detail` says what was expected and seen.
pub(super) fn demand(name: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Outcome {
    if ok { Ok(()) } else { Err(Trouble::Wrong(name, detail())) }
}

/// Errnos by which a kernel or a container says that it does not have a thing, or not for us. The first answer is
/// learned; a later change of mind is a fault.
pub(super) const NOT_HERE: &[i32] = &[
    libc::ENOSYS,
    libc::EPERM,
    libc::EACCES,
    libc::EOPNOTSUPP,
    libc::EAFNOSUPPORT,
    libc::EPROTONOSUPPORT,
    libc::ESOCKTNOSUPPORT,
    libc::ENODEV,
    libc::ENETUNREACH,
    libc::EADDRNOTAVAIL,
    libc::EXDEV,
    libc::EROFS,
];

/// True for errnos that want of memory or space explains. EAGAIN does so for a few calls only.
fn excused(op: &str, errno: i32) -> bool {
    match errno {
        libc::EINTR => true,
        libc::EAGAIN => {
            matches!(op, "clone" | "mlock" | "timer_create" | "getrandom" | "udp-send" | "add_key")
        }
        errno => short_of_resources(errno),
    }
}

/// A unit that is short of something this many times in a row is not short of it: the call is broken.
const TOO_OFTEN: u32 = 100;

/// Runs units until the process is asked to end.
pub(super) fn run(context: &mut Context<'_>, units: &[&Unit]) {
    let mut excuses = vec![0; units.len()];
    // Once in order, to learn what this kernel has; then at random.
    for i in 0..units.len() {
        one(context, i, units[i], &mut excuses[i]);
    }
    while context.go_on() {
        let i = context.rng.index(units.len());
        one(context, i, units[i], &mut excuses[i]);
    }
}

fn one(context: &mut Context<'_>, number: usize, unit: &Unit, excuses: &mut u32) {
    let mut rng = Rng::new(context.rng.next());
    let outcome = context.op(unit.kind, || (unit.run)(&mut rng));
    let errno = match outcome {
        Ok(()) => 0,
        Err(Trouble::Wrong(op, detail)) => return context.wrong_content(op, &detail),
        Err(Trouble::Errno(op, errno)) => {
            context.failed(errno);
            if excused(op, errno) && (*excuses < TOO_OFTEN || errno == libc::ENOSPC) {
                *excuses += 1;
                return;
            }
            if !NOT_HERE.contains(&errno) {
                let detail = format!("failed with {}", sys::errno_name(errno));
                return context.fault(FaultKind::WrongErrno, op, &detail);
            }
            errno
        }
    };
    *excuses = 0;
    let op = context.kind_name(unit.kind);
    let allowed: Vec<i32> = std::iter::once(0).chain(NOT_HERE.iter().copied()).collect();
    context.expect_constant(
        op,
        number as u64,
        "a call that this kernel answered otherwise before",
        &allowed,
        errno,
    );
}
