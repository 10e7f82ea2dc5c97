//! `load PATH`: loads a kernel module for the probe, in a process of its own, and notes before where all tasks are.
//!
//! The time from being asked to `finit_module` counts, so no shell, and a snapshot with a deadline. Only `stack` files are read: they
//! take no memory lock, but can wait for a task that hangs in `execve`, and so the reading is a thread's, which may be left behind.

use crate::sys;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// How long the snapshot may hold up the loading.
const SNAPSHOT_LIMIT: Duration = Duration::from_millis(300);
/// Most bytes of `inside` lines: the answer has room for them and the last line.
const MOST_TEXT: usize = 48 * 1024;
/// Longest stack read: the kernel itself keeps 64 frames.
const MOST_STACK: u64 = 16 * 1024;

/// Tasks by function.
#[derive(Default)]
struct Census {
    /// Tasks inside the function, and the last one counted: each counts once a function, however often it is on its stack.
    functions: HashMap<String, (u32, u32)>,
}

impl Census {
    fn add(&mut self, tid: u32, stack: &str) {
        for function in stack.lines().filter_map(function_of) {
            match self.functions.get_mut(function) {
                Some((_, last)) if *last == tid => {}
                Some((count, last)) => (*count, *last) = (*count + 1, tid),
                None => {
                    self.functions.insert(function.to_owned(), (1, tid));
                }
            }
        }
    }

    /// `inside FUNCTION N`, the commonest first; those that do not fit are left out.
    fn lines(&self) -> String {
        let mut sorted: Vec<(&str, u32)> = self.functions.iter().map(|(f, n)| (f.as_str(), n.0)).collect();
        sorted.sort_unstable_by_key(|&(f, n)| (std::cmp::Reverse(n), f));
        let mut text = String::new();
        for (function, count) in sorted {
            if text.len() + function.len() + 20 > MOST_TEXT {
                break;
            }
            let _ = writeln!(text, "inside {function} {count}");
        }
        text
    }
}

/// The function in `[<0>] do_madvise+0x1/0x2 [module]`; none in the end mark of old kernels.
fn function_of(line: &str) -> Option<&str> {
    let rest = line.trim_start();
    let rest = if rest.starts_with("[<") { rest.split_once("] ")?.1 } else { rest };
    let (name, _) = rest.split_once('+')?;
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

/// Reads the stacks of all tasks into `census`.
fn look_around(census: &Mutex<Census>) {
    let (own, mut path, mut stack) = (std::process::id(), String::new(), String::new());
    let mut tids = Vec::new();
    // The newest first: should the time not do for all, kernel threads that sleep since boot are what is left out.
    for pid in numbers_in("/proc").into_iter().rev().filter(|&pid| pid != own) {
        path.clear();
        let _ = write!(path, "/proc/{pid}/task");
        tids.clear();
        tids.extend(numbers_in(&path));
        for &tid in &tids {
            path.clear();
            let _ = write!(path, "/proc/{pid}/task/{tid}/stack");
            stack.clear();
            let read = File::open(&path).and_then(|f| f.take(MOST_STACK).read_to_string(&mut stack));
            if read.is_ok() {
                census.lock().expect("no thread panics with it").add(tid, &stack);
            }
        }
    }
}

fn numbers_in(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// What stands on the tasks' stacks, as far as it could be read in time.
fn snapshot() -> String {
    let census = Arc::new(Mutex::new(Census::default()));
    let (done, finished) = mpsc::channel();
    let shared = Arc::clone(&census);
    let reader = std::thread::Builder::new().spawn(move || {
        look_around(&shared);
        let _ = done.send(());
    });
    if reader.is_ok() {
        // In time or not: what has been read is told. The reader ends with the process.
        let _ = finished.recv_timeout(SNAPSHOT_LIMIT);
    }
    census.lock().expect("no thread panics with it").lines()
}

/// The hidden subcommand. Exit status 0 or an errno.
pub(crate) fn main(args: &[String]) -> ExitCode {
    let [path] = args else {
        eprintln!("klpfarm-stress load: which module?");
        return ExitCode::from(libc::EINVAL as u8);
    };
    sys::set_name("klpfarm-load");
    match load(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err((what, error)) => {
            println!("{what} {path}: {error}");
            ExitCode::from(error.raw_os_error().and_then(|e| u8::try_from(e).ok()).unwrap_or(libc::EIO as u8))
        }
    }
}

fn load(path: &str) -> Result<(), (&'static str, io::Error)> {
    let module = File::open(path).map_err(|e| ("cannot open", e))?;
    // Written before the loading, which may never come back.
    let _ = io::stdout().write_all(snapshot().as_bytes()).and_then(|()| io::stdout().flush());
    // SAFETY: an open file, an empty parameter string, no flags.
    let loaded = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    sys::checked(loaded as i32).map(drop).map_err(|e| ("the kernel does not take module", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_in_stacks_of_all_kernels() {
        for (line, function) in [
            ("[<0>] do_madvise+0x1/0x2", Some("do_madvise")),
            ("[<ffffffff81066000>] klp_f.isra.3+0x1/0x2 [klp_m]", Some("klp_f.isra.3")),
            ("[<ffffffffffffffff>] 0xffffffffffffffff", None),
            ("[<0>] 0xffffffffc0140000", None),
            ("do_exit+0x1/0x2", Some("do_exit")),
            ("", None),
            ("+", None),
        ] {
            assert_eq!(function_of(line), function, "{line}");
        }
    }

    #[test]
    fn a_task_counts_once_a_function() {
        let mut census = Census::default();
        census.add(1, "[<0>] b+0x1/0x2\n[<0>] a+0x1/0x2\n[<0>] b+0x1/0x2\n");
        census.add(2, "[<0>] a+0x1/0x2\n");
        assert_eq!(census.lines(), "inside a 2\ninside b 1\n");
    }

    #[test]
    fn an_endless_census_leaves_room_for_the_answer() {
        let mut census = Census::default();
        (0..5000).for_each(|i| census.add(1, &format!("[<0>] some_long_function_name_{i}+0x1/0x2")));
        assert!(census.lines().len() <= MOST_TEXT && census.lines().lines().count() > 1000);
    }
}
