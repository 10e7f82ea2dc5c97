//! Short-lived child processes of stressors: `klpfarm-stress child MODE ...`, and how to start and wait for them.

use super::Context;
use super::context::mix;
use crate::sys;
use klpfarm_stress::wire::FaultKind;
use std::ffi::CStr;
use std::io::Write;
use std::process::ExitCode;

/// Exit status that says "what I saw was wrong".
pub(super) const SAW_WRONG: u8 = 9;

/// `child stack | exit N | echo ARG...`.
pub(crate) fn main(args: &[String]) -> ExitCode {
    match args.first().map(String::as_str) {
        Some("stack") => ExitCode::from(if grow_stack(256, 0x5eed) { 0 } else { SAW_WRONG }),
        Some("exit") => ExitCode::from(args.get(1).and_then(|n| n.parse().ok()).unwrap_or(1)),
        // What a process was started with, for its parent to compare.
        Some("echo") => {
            let mut out = args[1..].join("\n");
            let mut environment: Vec<_> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
            environment.sort();
            out.push('\0');
            out.push_str(&environment.join("\n"));
            ExitCode::from(u8::from(std::io::stdout().write_all(out.as_bytes()).is_err()))
        }
        _ => ExitCode::from(2),
    }
}

/// Uses `frames` pages of stack below this one, and checks on the way back that each kept its content.
#[inline(never)]
fn grow_stack(frames: u64, tag: u64) -> bool {
    let mut frame = [0u64; 512];
    for (i, word) in frame.iter_mut().enumerate() {
        *word = mix(tag ^ i as u64);
    }
    let frame = std::hint::black_box(frame);
    let below = frames == 0 || grow_stack(frames - 1, mix(tag));
    below && frame.iter().enumerate().all(|(i, &word)| word == mix(tag ^ i as u64))
}

/// Arguments and environment as `execve` wants them, ready before a fork.
pub(super) struct Program<'a> {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    lives: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Program<'a> {
    /// This binary's `child` mode with these arguments and exactly this environment.
    pub(super) fn new(args: &[&'a CStr], env: &[&'a CStr]) -> Self {
        let ends = |list: &mut dyn Iterator<Item = &'a CStr>| -> Vec<_> {
            list.map(CStr::as_ptr).chain(std::iter::once(std::ptr::null())).collect()
        };
        let argv = ends(&mut [c"klpfarm-child", c"child"].into_iter().chain(args.iter().copied()));
        Self { argv, envp: ends(&mut env.iter().copied()), lives: std::marker::PhantomData }
    }

    /// Becomes the program, or leaves with status 126. Allocates nothing: for a forked child, even one that shares its
    /// parent's memory.
    pub(super) fn exec(&self) -> ! {
        // SAFETY: both lists end with a null pointer and their strings live as long as `self`.
        unsafe {
            libc::execve(c"/proc/self/exe".as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
            libc::_exit(126)
        }
    }
}

/// Forks and executes; the process id, or the errno of a fork that failed.
pub(super) fn spawn(args: &[&CStr], env: &[&CStr]) -> Result<i32, i32> {
    let program = Program::new(args, env);
    // SAFETY: the child does nothing but exec or exit.
    match unsafe { libc::fork() } {
        -1 => Err(sys::errno()),
        0 => program.exec(),
        pid => Ok(pid),
    }
}

/// Waits for one child to end; its wait status or an errno.
pub(super) fn wait(pid: i32) -> Result<i32, i32> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        match sys::errno() {
            _ if got == pid => return Ok(status),
            libc::EINTR => {}
            errno => return Err(errno),
        }
    }
}

/// Tells that a child ended in a way it was not meant to.
pub(super) fn died(context: &Context<'_>, op: &str, status: i32) {
    let detail = format!("a child process {}", super::process::how_it_ended(status));
    context.fault(FaultKind::Died, op, &detail);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_stack_keeps_what_is_written() {
        assert!(super::grow_stack(16, 1));
    }
}
