//! `fork-exec-churn`: processes come and go in every way there is, and each end is checked.

use super::child::{self, Program};
use super::{Context, Stressor, context::mix};
use crate::sys;
use klpfarm_stress::wire::FaultKind;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

pub(super) static STRESSOR: Stressor = Stressor {
    name: "fork-exec-churn",
    about: "fork, vfork, clone, exec, signals, groups and waits, every end checked",
    params: &[],
    processes: "2",
    threads: "1",
    nice: "0",
    singles: super::no_singles,
    kinds: &[
        "fork",
        "exec",
        "vfork-exec",
        "clone",
        "signal",
        "stop-continue",
        "pipe",
        "nested",
        "group",
        "wait",
        "yardstick",
    ],
    run,
    prepare: super::nothing_to_prepare,
    clean: super::nothing_to_clean,
};

const FORK: usize = 0;
const EXEC: usize = 1;
const VFORK: usize = 2;
const CLONE: usize = 3;
const SIGNAL: usize = 4;
const STOP: usize = 5;
const PIPE: usize = 6;
const NESTED: usize = 7;
const GROUP: usize = 8;
const WAIT: usize = 9;

fn run(context: &mut Context<'_>) {
    while context.go_on() {
        let turn = context.rng.below(100);
        let result = match turn {
            0..=29 => fork_exit(context),
            30..=44 => exec_echo(context),
            45..=54 => vfork_exec(context),
            55..=64 => clone_exit(context),
            65..=74 => signal(context),
            75..=77 => stop_and_continue(context),
            78..=87 => pipe(context),
            88..=92 => nested(context),
            93..=96 => group(context),
            _ => wait_errors(context),
        };
        if let Err(errno) = result {
            context.failed(errno);
        }
    }
}

/// Forks; `body` runs in the child, must allocate nothing, and its value is the exit status. A failed fork is legitimate
/// for want of memory or process ids only.
fn fork(context: &Context<'_>, body: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child runs `body`, which keeps to system calls, and leaves with _exit.
    match unsafe { libc::fork() } {
        -1 => {
            let errno = sys::errno();
            if !matches!(errno, libc::EAGAIN | libc::ENOMEM) {
                context.expect("fork", "making a process", 0, errno);
            }
            Err(errno)
        }
        // SAFETY: plain value.
        0 => unsafe { libc::_exit(body()) },
        pid => Ok(pid),
    }
}

/// Waits for `pid` and demands that it ended with exit status `code`.
fn must_exit(context: &Context<'_>, op: &str, pid: i32, code: i32) -> Result<(), i32> {
    let status = child::wait(pid).inspect_err(|&e| {
        context.expect(op, "waiting for a child", 0, e);
    })?;
    if !libc::WIFEXITED(status) {
        child::died(context, op, status);
    } else if libc::WEXITSTATUS(status) != code {
        let detail = format!("a child's exit status: expected {code}, got {}", libc::WEXITSTATUS(status));
        context.fault(FaultKind::WrongContent, op, &detail);
    }
    Ok(())
}

fn fork_exit(context: &mut Context<'_>) -> Result<(), i32> {
    let code = context.rng.below(126) as i32;
    let started = sys::now_ns();
    let pid = fork(context, || code)?;
    let result = must_exit(context, "fork", pid, code);
    let took = sys::now_ns() - started;
    context.took(FORK, took);
    result
}

/// The child has a copy of what was there at the fork, its own ids, and its own name.
fn clone_exit(context: &mut Context<'_>) -> Result<(), i32> {
    let value = context.rng.next();
    // SAFETY: no arguments.
    let parent = unsafe { libc::getpid() };
    let started = sys::now_ns();
    // SAFETY: a fork by another name: no new stack, no shared memory; the child keeps to system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
    if pid < 0 {
        return Err(sys::errno());
    }
    if pid == 0 {
        // SAFETY: system calls with valid buffers. The raw number is asked for: a cached one would be the parent's.
        unsafe {
            let mut name = *b"0123456789abcdef";
            libc::prctl(libc::PR_SET_NAME, c"klpfarm-clone".as_ptr());
            libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
            let named = &name[..14] == b"klpfarm-clone\0";
            let own = libc::syscall(libc::SYS_getpid) as i32 != parent && libc::getppid() == parent;
            libc::_exit(if !own {
                1
            } else if !named {
                2
            } else {
                3 + (value % 100) as i32
            });
        }
    }
    let result = must_exit(context, "clone", pid, 3 + (value % 100) as i32);
    let took = sys::now_ns() - started;
    context.took(CLONE, took);
    result
}

/// Reads a pipe to its end.
fn read_all(from: &OwnedFd) -> Result<Vec<u8>, i32> {
    let (mut all, mut part) = (Vec::new(), [0u8; 4096]);
    loop {
        match sys::read_some(from, &mut part) {
            Ok(0) => return Ok(all),
            Ok(n) => all.extend_from_slice(&part[..n]),
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) => return Err(e.raw_os_error().unwrap_or(0)),
        }
    }
}

/// A pipe whose both ends block.
fn blocking_pipe() -> Result<(OwnedFd, OwnedFd), i32> {
    let (read, write) = sys::pipe().map_err(|e| e.raw_os_error().unwrap_or(0))?;
    // SAFETY: plain values.
    unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, 0) };
    Ok((read, write))
}

/// Executes ourselves; arguments and environment must arrive as they were given.
fn exec_echo(context: &mut Context<'_>) -> Result<(), i32> {
    let text = |context: &mut Context<'_>| {
        let len = context.rng.index(200);
        let bytes: Vec<u8> = (0..len).map(|_| b'a' + (context.rng.below(26) as u8)).collect();
        CString::new(bytes).expect("letters only")
    };
    let args = [text(context), text(context), text(context)];
    let value = text(context).into_string().expect("letters only");
    let env = CString::new(format!("KLPFARM_CHILD={value}")).expect("letters only");
    let (read, write) = blocking_pipe()?;
    let (a, out) = ([c"echo", &args[0], &args[1], &args[2]], write.as_raw_fd());
    let program = Program::new(&a, &[&env]);
    let pid = fork(context, || {
        // SAFETY: plain values; then the new program.
        unsafe { libc::dup2(out, 1) };
        program.exec()
    })?;
    drop(write);
    let got = context.op(EXEC, || read_all(&read))?;
    must_exit(context, "exec", pid, 0)?;
    let args: Vec<&str> = args.iter().filter_map(|a| a.to_str().ok()).collect();
    let want = format!("{}\0KLPFARM_CHILD={value}", args.join("\n"));
    if got != want.as_bytes() {
        let detail = format!("arguments or environment: sent {} bytes, {} arrived", want.len(), got.len());
        context.fault(FaultKind::WrongContent, "exec", &detail);
    }
    Ok(())
}

/// What the vfork child needs, on its parent's stack.
struct VforkPlan<'a> {
    program: Program<'a>,
}

extern "C" fn vfork_child(plan: *mut libc::c_void) -> i32 {
    // SAFETY: points to the plan of the parent, which waits in the kernel until we exec or exit.
    unsafe { (*plan.cast::<VforkPlan<'_>>()).program.exec() }
}

/// A child in our own memory and on a stack of its own; we sleep until it executes something.
fn vfork_exec(context: &mut Context<'_>) -> Result<(), i32> {
    let code = context.rng.below(120) as i32;
    let number = CString::new(code.to_string()).expect("digits");
    let args = [c"exit", &number];
    let mut plan = VforkPlan { program: Program::new(&args, &[]) };
    let mut stack = vec![0u128; 2048];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let pid = context.call(VFORK, || {
        // SAFETY: the stack is aligned and outlives the child's use of it (CLONE_VFORK); so does the plan.
        unsafe {
            let top = stack.as_mut_ptr().add(stack.len()).cast();
            i64::from(libc::clone(vfork_child, top, flags, (&raw mut plan).cast()))
        }
    })?;
    must_exit(context, "vfork-exec", pid as i32, code)
}

/// A child that sleeps until its pipe closes, killed by a signal before that.
fn signal(context: &mut Context<'_>) -> Result<(), i32> {
    let signals = [libc::SIGKILL, libc::SIGUSR1, libc::SIGALRM, libc::SIGABRT];
    let signal = signals[context.rng.index(signals.len())];
    let (read, _write) = blocking_pipe()?;
    let pid = fork(context, || sleep_on(read.as_raw_fd()))?;
    let status = context.op(SIGNAL, || {
        sys::kill(pid, signal);
        child::wait(pid)
    })?;
    if !libc::WIFSIGNALED(status) || libc::WTERMSIG(status) != signal {
        let detail = format!("a child sent signal {signal} has wait status {status:#x}");
        context.fault(FaultKind::WrongContent, "signal", &detail);
    }
    Ok(())
}

/// In a child: sleeps until the parent closes its end of the pipe or dies. Returns 3.
fn sleep_on(read: i32) -> i32 {
    // SAFETY: system calls with a valid buffer.
    unsafe {
        // Ends of other pipes, its own writing end too, that came along would keep others (and itself) waiting.
        for fd in (3..128).filter(|&fd| fd != read) {
            libc::close(fd);
        }
        let mut byte = 0u8;
        libc::read(read, (&raw mut byte).cast(), 1);
    }
    3
}

fn stop_and_continue(context: &mut Context<'_>) -> Result<(), i32> {
    let (read, write) = blocking_pipe()?;
    let pid = fork(context, || sleep_on(read.as_raw_fd()))?;
    let wait = |flags| {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        let got = unsafe { libc::waitpid(pid, &raw mut status, flags) };
        if got == pid { Ok(status) } else { Err(sys::errno()) }
    };
    sys::kill(pid, libc::SIGSTOP);
    let stopped = context.op(STOP, || wait(libc::WUNTRACED));
    sys::kill(pid, libc::SIGCONT);
    let continued = context.op(STOP, || wait(libc::WCONTINUED));
    drop(write);
    if !stopped.is_ok_and(|s| libc::WIFSTOPPED(s) && libc::WSTOPSIG(s) == libc::SIGSTOP) {
        context.fault(
            FaultKind::WrongContent,
            "stop-continue",
            &format!("wait status of a stop: {stopped:?}"),
        );
    }
    if !continued.is_ok_and(|s| libc::WIFCONTINUED(s)) {
        context.fault(
            FaultKind::WrongContent,
            "stop-continue",
            &format!("wait status of a continue: {continued:?}"),
        );
    }
    must_exit(context, "stop-continue", pid, 3)
}

/// A child writes a pattern longer than a pipe holds.
fn pipe(context: &mut Context<'_>) -> Result<(), i32> {
    let (words, tag) = (1 + context.rng.index(16_000), context.rng.next());
    let (read, write) = blocking_pipe()?;
    let out = write.as_raw_fd();
    let pid = fork(context, || {
        let mut block = [0u8; 512];
        let mut done = 0;
        while done < words {
            let n = (words - done).min(64);
            for (i, word) in block.chunks_exact_mut(8).take(n).enumerate() {
                word.copy_from_slice(&mix(tag ^ (done + i) as u64).to_ne_bytes());
            }
            // SAFETY: at most the block's length.
            if unsafe { libc::write(out, block.as_ptr().cast(), n * 8) } != (n * 8) as isize {
                return 5;
            }
            done += n;
        }
        0
    })?;
    drop(write);
    let got = context.op(PIPE, || read_all(&read))?;
    let same = |(i, word): (usize, &[u8])| word == mix(tag ^ i as u64).to_ne_bytes();
    if got.len() != words * 8 || !got.chunks_exact(8).enumerate().all(same) {
        let detail = format!("{} bytes sent, {} arrived, content compared", words * 8, got.len());
        context.fault(FaultKind::WrongContent, "pipe", &detail);
    }
    must_exit(context, "pipe", pid, 0)
}

/// Three generations; the exit status of the youngest comes up through all of them.
fn nested(context: &mut Context<'_>) -> Result<(), i32> {
    fn generation(left: u32, code: i32) -> i32 {
        if left == 0 {
            return code;
        }
        // SAFETY: system calls only; the child leaves with _exit.
        unsafe {
            match libc::fork() {
                -1 => 125,
                0 => libc::_exit(generation(left - 1, code)),
                pid => child::wait(pid)
                    .map_or(124, |s| if libc::WIFEXITED(s) { libc::WEXITSTATUS(s) } else { 123 }),
            }
        }
    }
    let code = context.rng.below(100) as i32;
    let pid = fork(context, || generation(2, code))?;
    let status = context.op(NESTED, || child::wait(pid))?;
    let got = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 };
    // 125: a fork in the child failed for want of memory.
    if got != code && got != 125 {
        let detail = format!("exit status through three generations: expected {code}, got {got}");
        context.fault(FaultKind::WrongContent, "nested", &detail);
    }
    Ok(())
}

/// A child in a process group of its own, ended through the group.
fn group(context: &mut Context<'_>) -> Result<(), i32> {
    let (read, _write) = blocking_pipe()?;
    let pid = fork(context, || sleep_on(read.as_raw_fd()))?;
    // SAFETY: plain values.
    let (moved, now) = context.op(GROUP, || unsafe { (libc::setpgid(pid, pid), libc::getpgid(pid)) });
    context.expect("group", "setpgid of a child", 0, if moved == 0 { 0 } else { sys::errno() });
    if moved == 0 && now != pid {
        context.fault(FaultKind::WrongContent, "group", &format!("group of child {pid} is {now}"));
    }
    sys::kill(if moved == 0 { -pid } else { pid }, libc::SIGKILL);
    let status = child::wait(pid)?;
    if !libc::WIFSIGNALED(status) {
        context.fault(
            FaultKind::WrongContent,
            "group",
            &format!("killed group's child has status {status:#x}"),
        );
    }
    Ok(())
}

/// What waiting must answer when there is nothing to wait for, or not yet.
fn wait_errors(context: &mut Context<'_>) -> Result<(), i32> {
    // SAFETY: plain values and null pointers, which the calls accept.
    let none = context.op(WAIT, || unsafe { libc::waitpid(1, std::ptr::null_mut(), libc::WNOHANG) });
    let errno = sys::errno();
    context.expect(
        "wait",
        "waiting for a process that is no child",
        libc::ECHILD,
        if none == -1 { errno } else { 0 },
    );
    // SAFETY: signal 0 only asks.
    let alive = unsafe { libc::kill(libc::getpid(), 0) };
    context.expect("signal", "signal 0 to ourselves", 0, if alive == 0 { 0 } else { sys::errno() });
    let (read, write) = blocking_pipe()?;
    let pid = fork(context, || sleep_on(read.as_raw_fd()))?;
    // SAFETY: as above.
    let early = context.op(WAIT, || unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) });
    if early != 0 {
        context.fault(FaultKind::WrongContent, "wait", &format!("a running child was waited for: {early}"));
        return Ok(());
    }
    drop((read, write));
    must_exit(context, "wait", pid, 3)
}
