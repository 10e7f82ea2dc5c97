//! `aging`: makes a machine old, and then keeps it so lightly for ever.
//!
//! Keepers share the wear evenly: they fill the page cache, litter the file system, hole the memory, and let short-lived processes
//! come and go. Residents are processes that live as long as the workload and hold what such processes hold. Everything that is kept is
//! looked at again and again: old things must still be what they were.

use super::context::short_of_resources;
use super::process::URGENT;
use super::{Context, Stressor};
use crate::params::{Form, Params, Spec};
use crate::{procfs, sys};
use klpfarm_stress::wire::FaultKind;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod cache;
mod churn;
mod held;
mod holes;
mod litter;
mod resident;

pub(super) static STRESSOR: Stressor = Stressor {
    name: "aging",
    about: "wears a machine: page cache, files, memory holes, processes that stay and that go; then keeps it so lightly",
    params: &[
        Spec {
            name: "dir",
            form: Form::Path,
            default: "/var/tmp/klpfarm-aging",
            help: "a folder of its own is made in it, and removed at the end",
        },
        Spec {
            name: "cache",
            form: Form::Size(0, 1 << 40),
            default: "128M",
            help: "files written and read for the page cache, at most; less if memory or disk is short",
        },
        Spec {
            name: "files",
            form: Form::Count(0, 10_000_000),
            default: "20000",
            help: "small files and folders, 4 KiB each at most; less if the disk is short",
        },
        Spec {
            name: "fragment",
            form: Form::Size(0, 1 << 40),
            default: "64M",
            help: "memory touched, of which every other page is given back; less if memory is short",
        },
        Spec {
            name: "residents",
            form: Form::Count(0, 64),
            default: "8",
            help: "long-lived processes that hold files, locks, sockets, maps and waiting threads",
        },
        Spec {
            name: "churn",
            form: Form::Count(0, 1000),
            default: "20",
            help: "short-lived processes a second, in bursts",
        },
    ],
    processes: "2",
    threads: "1",
    nice: "10",
    singles: |params| params.number("residents"),
    kinds: &[
        "cache-write",
        "cache-read",
        "create",
        "rename",
        "remove",
        "verify",
        "lookup",
        "touch",
        "free",
        "memory",
        "objects",
        "fork",
        "exec",
        "wait",
        "hold",
        "yardstick",
    ],
    run,
    prepare,
    clean,
};

const CACHE_WRITE: usize = 0;
const CACHE_READ: usize = 1;
const CREATE: usize = 2;
const RENAME: usize = 3;
const REMOVE: usize = 4;
const VERIFY: usize = 5;
const LOOKUP: usize = 6;
const TOUCH: usize = 7;
const FREE: usize = 8;
const MEMORY: usize = 9;
const OBJECTS: usize = 10;
const FORK: usize = 11;
const EXEC: usize = 12;
const WAIT: usize = 13;
const HOLD: usize = 14;

/// Between two operations once everything is worn.
const PAUSE: Duration = Duration::from_millis(100);
/// The probe kills what has not ended after five seconds: of these a worker takes so many to remove its files, and the supervisor so
/// many to wait for what is left. In nanoseconds.
const REMOVE_NS: u64 = 3_000_000_000;
const LEFT_NS: u64 = 1_000_000_000;
/// An eighth of a disk stays free whatever was asked for; of a large one so much is enough, in bytes.
const DISK_LEFT: u64 = 1 << 30;

/// Memory that stays available whatever was asked for, at least, in bytes.
const MEMORY_LEFT: u64 = 48 << 20;

/// One way to wear a machine.
trait Wear {
    /// True once as much is worn as was asked for, or as the machine allows.
    fn is_done(&self) -> bool;
    /// A step towards that.
    fn wear(&mut self, context: &mut Context<'_>);
    /// A step afterwards.
    fn keep(&mut self, context: &mut Context<'_>);
}

fn run(context: &mut Context<'_>) {
    let parent = std::os::unix::process::parent_id();
    let dir = folder(context.params, parent).join(format!("{}-{}", context.process, context.thread));
    if let Err(error) = fs::create_dir_all(&dir) {
        let detail = format!("cannot make folder {}: {error}", dir.display());
        return context.fault(FaultKind::CannotRun, "start", &detail);
    }
    if u64::from(context.process) < context.params.number("processes") {
        keeper(context, &dir);
    } else {
        // Needs hardly any time, but needs it soon: a thread that is late for seconds looks like one that hangs.
        sys::set_priority(0, 0);
        resident::run(context, &dir);
    }
    let _ = remove_until(&dir, sys::now_ns() + REMOVE_NS);
}

fn keeper(context: &mut Context<'_>, dir: &Path) {
    let keepers = context.params.number("processes") * context.params.number("threads");
    let share = |name| context.params.number(name).div_ceil(keepers);
    let mut wears: [Box<dyn Wear>; 3] = [
        Box::new(cache::Cache::new(dir.join("cache"), share("cache"), keepers)),
        Box::new(litter::Litter::new(dir.join("files"), share("files"))),
        Box::new(holes::Holes::new(share("fragment"), keepers)),
    ];
    let mut churn = churn::Churn::new(context.params.number("churn") as f64 / keepers as f64);
    raise_file_limit();
    let mut worn = false;
    while context.go_on() {
        // In turns, so that what one gets lies between what the others get, on disk and in memory.
        let todo: Vec<usize> = (0..wears.len()).filter(|&i| !wears[i].is_done()).collect();
        if todo.is_empty() {
            // From now on the same holds for keepers. (An ordinary user may not; then they go on giving way.)
            if !std::mem::replace(&mut worn, true) {
                sys::set_priority(0, 0);
            }
            let i = context.rng.index(wears.len());
            wears[i].keep(context);
            std::thread::sleep(PAUSE);
        } else {
            let i = todo[context.rng.index(todo.len())];
            wears[i].wear(context);
        }
        churn.turn(context);
    }
}

/// Counts an error; a fault unless a full disk or short memory explains it.
fn judge(context: &Context<'_>, op: &str, what: &str, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(0);
    context.failed(errno);
    if !short_of_resources(errno) && errno != libc::EINTR {
        context.expect(op, what, 0, errno);
    }
}

/// Memory available and all there is, in bytes; zeroes if unknown, which counts as none.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name| procfs::meminfo(&text, name).unwrap_or(0) * 1024;
    (bytes("MemAvailable"), bytes("MemTotal"))
}

/// False while memory is too short to take more of it.
fn memory_to_spare() -> bool {
    let (available, total) = memory();
    available > MEMORY_LEFT.max(total / 4)
}

/// False while the disk below `dir` is too full to take more of it: an eighth is left to the others.
fn disk_to_spare(dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(dir.as_os_str().as_bytes()) else { return false };
    // SAFETY: an all-zero `statvfs` is valid, and the kernel fills it.
    let (result, disk) = unsafe {
        let mut disk: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut disk), disk)
    };
    result == 0
        && disk.f_bavail > (disk.f_blocks / 8).min(DISK_LEFT / disk.f_frsize.max(1))
        && (disk.f_files == 0 || disk.f_favail > disk.f_files / 8)
}

/// As many open files as we may have: pipes and sockets are what kernel objects are made of here.
fn raise_file_limit() {
    // SAFETY: a valid place, then a valid limit.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max.min(4096);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Removes a folder with all in it, until a time of [`sys::now_ns`]. True if nothing is left.
fn remove_until(dir: &Path, deadline: u64) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        if sys::now_ns() > deadline {
            return Ok(false);
        }
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if !remove_until(&entry.path(), deadline)? {
                return Ok(false);
            }
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(dir).map(|()| true)
}

/// The folder of this run: named by the supervisor's process id, which is our parent's in a worker.
fn folder(params: &Params, pid: u32) -> PathBuf {
    Path::new(params.text("dir")).join(format!("run-{pid}"))
}

fn prepare(params: &Params) -> Result<(), String> {
    super::file_io::prepare_folder(Path::new(params.text("dir")))
}

/// What the workers had no time to remove is left to a process of its own session, which nobody waits for.
fn clean(params: &Params) {
    let (dir, own) = (Path::new(params.text("dir")), folder(params, std::process::id()));
    // The farm waits for this.
    sys::set_priority(0, URGENT);
    // SAFETY: this process has one thread, so the child may do whatever we may.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: plain values. What the probe gave us is closed, so that nothing of it is held open.
        unsafe {
            libc::setsid();
            (0..4).for_each(|fd| {
                libc::close(fd);
            });
        }
        let _ = remove_until(&own, u64::MAX);
        // Only if nobody else uses it.
        let _ = fs::remove_dir(dir);
        // SAFETY: plain value.
        unsafe { libc::_exit(0) }
    }
    if pid > 0 {
        wait_a_little(pid);
    }
}

/// Waits for a child to end, at most [`LEFT_NS`].
fn wait_a_little(pid: i32) {
    let deadline = sys::now_ns() + LEFT_NS;
    // SAFETY: an all-zero set is valid and then initialised.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        set
    };
    loop {
        // SAFETY: no status wanted.
        let ended = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) != 0 };
        let left = deadline.saturating_sub(sys::now_ns()) as i64;
        if ended || left == 0 {
            return;
        }
        let limit = libc::timespec { tv_sec: left / 1_000_000_000, tv_nsec: left % 1_000_000_000 };
        // The supervisor blocks the signal, so that it can be waited for; one of a worker that ended before may still be pending.
        // SAFETY: a valid set and time.
        unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const limit) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_ends_at_its_deadline_and_goes_on_later() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("run");
        fs::create_dir_all(own.join("a/b")).unwrap();
        fs::write(own.join("a/b/c"), "x").unwrap();
        assert!(!remove_until(&own, 0).unwrap());
        assert!(own.join("a/b/c").exists());
        assert!(remove_until(&own, u64::MAX).unwrap());
        assert!(!own.exists());
    }
}
