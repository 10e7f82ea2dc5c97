//! Short-lived processes, in bursts.

use super::*;
use crate::work::child;

/// Between two bursts, in nanoseconds, on average.
const BURST_NS: u64 = 1_000_000_000;
/// Processes at a time.
const AT_ONCE: usize = 5;

pub(super) struct Churn {
    /// Processes a second.
    rate: f64,
    /// When the next burst is due, and when the last one was.
    due: u64,
    last: u64,
}

impl Churn {
    pub(super) fn new(rate: f64) -> Self {
        let now = sys::now_ns();
        Self { rate, due: now, last: now }
    }

    /// Makes as many processes as are due. What a slow machine missed is not made up for.
    pub(super) fn turn(&mut self, context: &mut Context<'_>) {
        let now = sys::now_ns();
        if now < self.due {
            return;
        }
        let owed = self.rate * (now - self.last).min(2 * BURST_NS) as f64 / 1e9;
        // The odd part of a process by chance, so that slow rates are kept, too.
        let odd = context.rng.below(1000) as f64 / 1000.0;
        let mut left = (owed + odd) as usize;
        while left > 0 && context.go_on() {
            let born: Vec<(i32, i32)> = (0..left.min(AT_ONCE)).filter_map(|_| spawn(context)).collect();
            left -= left.min(AT_ONCE);
            for (pid, code) in born {
                reap(context, pid, code);
            }
        }
        self.last = now;
        // Where processes take long, most of the time is left to the other kinds of wear.
        let took = sys::now_ns() - now;
        self.due = now + (BURST_NS / 2 + context.rng.below(BURST_NS)).max(4 * took);
    }
}

/// Starts a process; its id and the exit status it will have.
fn spawn(context: &mut Context<'_>) -> Option<(i32, i32)> {
    let code = context.rng.below(100) as i32;
    let born = if context.rng.one_in(4) {
        let text = std::ffi::CString::new(code.to_string()).expect("digits");
        context.op(EXEC, || child::spawn(&[c"exit", &text], &[]))
    } else {
        // SAFETY: the child makes one system call and is gone.
        context.op(FORK, || match unsafe { libc::fork() } {
            -1 => Err(sys::errno()),
            // SAFETY: plain value.
            0 => unsafe { libc::_exit(code) },
            pid => Ok(pid),
        })
    };
    born.inspect_err(|&errno| {
        judge(context, "fork", "making a process", &io::Error::from_raw_os_error(errno))
    })
    .ok()
    .map(|pid| (pid, code))
}

fn reap(context: &mut Context<'_>, pid: i32, code: i32) {
    if !context.go_on() {
        sys::set_priority(pid as u32, URGENT);
    }
    match context.op(WAIT, || child::wait(pid)) {
        Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code => {}
        // Short of memory, the kernel may take a child instead of us; and it could not be executed for want of it (126).
        Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 126 && !memory_to_spare() => {}
        Ok(status) => child::died(context, "fork", status),
        Err(errno) => {
            context.expect("wait", "a child of our own", 0, errno);
        }
    }
}
