//! Units of [`super::syscall_mix`] about files: those of the kernel, files in memory, descriptors, paths, attributes.

// SAFETY, for every `unsafe` block here: system calls on values, descriptors and buffers that belong to this unit alone,
// with lengths taken from those buffers.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::Rng;
use super::syscall_mix::*;
use super::syscall_units::Fd;
use super::units::*;
use crate::sys;
use std::fs;
use std::io::Read;
use std::mem::zeroed;
use std::os::fd::AsRawFd;

pub(super) static UNITS: &[Unit] = &[
    Unit { kind: PROC_READ, run: read_files },
    Unit { kind: PROC_READ, run: list_files },
    Unit { kind: FILE, run: memory_file },
    Unit { kind: FILE, run: descriptors },
    Unit { kind: FILE, run: paths },
    Unit { kind: FILE, run: attributes },
];

/// Files of the kernel's that exist on every kernel, and some that may not; their content is the kernel's business.
const ALWAYS: &[&str] = &[
    "/proc/cmdline",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/mounts",
    "/proc/devices",
    "/proc/self/stat",
    "/proc/self/status",
    "/proc/self/maps",
    "/proc/self/limits",
    "/proc/self/cmdline",
    "/proc/self/statm",
    "/proc/self/mountinfo",
    "/proc/self/comm",
    "/proc/sys/kernel/ostype",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/tainted",
];

const SOMETIMES: &[&str] = &[
    "/proc/vmstat",
    "/proc/diskstats",
    "/proc/partitions",
    "/proc/interrupts",
    "/proc/softirqs",
    "/proc/net/dev",
    "/proc/self/io",
    "/proc/self/cgroup",
    "/proc/self/smaps",
    "/proc/self/wchan",
    "/proc/self/schedstat",
    "/proc/zoneinfo",
    "/proc/buddyinfo",
    "/proc/sys/kernel/random/uuid",
    "/proc/sys/vm/overcommit_memory",
    "/proc/net/tcp",
    "/proc/net/unix",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/cpu/online",
    "/sys/class/net/lo/mtu",
    "/sys/kernel/uevent_seqnum",
    "/proc/net/sockstat",
    "/proc/modules",
];

fn read_file(path: &str) -> Result<usize, Trouble> {
    let mut buffer = [0u8; 8192];
    let mut total = 0;
    let trouble = |e: std::io::Error| Trouble::Errno("proc-read", e.raw_os_error().unwrap_or(0));
    let mut file = fs::File::open(path).map_err(trouble)?;
    loop {
        match file.read(&mut buffer).map_err(trouble)? {
            0 => return Ok(total),
            n => total += n,
        }
    }
}

fn read_files(rng: &mut Rng) -> Outcome {
    for _ in 0..3 {
        let path = ALWAYS[rng.index(ALWAYS.len())];
        let n = read_file(path)?;
        demand("proc-read", n > 0, || format!("{path} is empty"))?;
    }
    // What may be absent or empty is read for the sake of its functions; it has nothing to say to us.
    let path = SOMETIMES[rng.index(SOMETIMES.len())];
    match read_file(path) {
        Err(Trouble::Errno(op, errno)) if !NOT_READABLE.contains(&errno) => Err(Trouble::Errno(op, errno)),
        _ => Ok(()),
    }
}

const NOT_READABLE: &[i32] = &[libc::ENOENT, libc::EACCES, libc::EPERM, libc::EINVAL, libc::EIO, libc::ESRCH];

fn list_files(rng: &mut Rng) -> Outcome {
    let dir = ["/proc/self/fd", "/proc/self/task", "/proc", "/", "/proc/sys/kernel"][rng.index(5)];
    let entries = fs::read_dir(dir).map_err(|e| Trouble::Errno("getdents", e.raw_os_error().unwrap_or(0)))?;
    let n = entries.count();
    demand("getdents", n > 0, || format!("{dir} is empty"))?;
    let link =
        fs::read_link("/proc/self").map_err(|e| Trouble::Errno("readlink", e.raw_os_error().unwrap_or(0)))?;
    let own = std::process::id().to_string();
    demand("readlink", link.as_os_str() == own.as_str(), || format!("/proc/self is {}", link.display()))
}

fn memory_file(rng: &mut Rng) -> Outcome {
    let trouble = |e: std::io::Error| Trouble::Errno("memfd_create", e.raw_os_error().unwrap_or(0));
    let file = sys::memfd(c"klpfarm-mix").map_err(trouble)?;
    let fd = file.as_raw_fd();
    let (a, b) = (rng.next().to_ne_bytes(), rng.next().to_ne_bytes());
    unsafe {
        let parts = [&a, &b].map(|p| libc::iovec { iov_base: p.as_ptr() as *mut _, iov_len: 8 });
        let n = call("writev", libc::writev(fd, parts.as_ptr(), 2) as i64)?;
        demand("writev", n == 16, || format!("{n} of 16 bytes"))?;
        let mut back = [0u8; 16];
        let n = call("pread", libc::pread(fd, back.as_mut_ptr().cast(), 16, 0) as i64)?;
        demand("pread", n == 16 && back[..8] == a && back[8..] == b, || {
            format!("{n} bytes, content compared")
        })?;
        let end = call("lseek", libc::lseek(fd, 0, libc::SEEK_END))?;
        demand("lseek", end == 16, || format!("end at {end}, not 16"))?;
        fails("lseek", libc::EINVAL, libc::lseek(fd, -1, libc::SEEK_SET))?;
        call("ftruncate", libc::ftruncate(fd, 3))?;
        let n = call("pread", libc::pread(fd, back.as_mut_ptr().cast(), 16, 0) as i64)?;
        demand("ftruncate", n == 3, || format!("{n} bytes left of 3"))?;
        let mut about: libc::statfs = zeroed();
        call("fstatfs", libc::fstatfs(fd, &raw mut about))?;
        call("flock", libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB))?;
        call("flock", libc::flock(fd, libc::LOCK_UN))?;
    }
    Ok(())
}

fn descriptors(_: &mut Rng) -> Outcome {
    unsafe {
        let null = Fd::new("openat", libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?;
        let copy = Fd::new("dup", libc::dup(null.0))?;
        let flags = call("fcntl", libc::fcntl(copy.0, libc::F_GETFD))?;
        demand("fcntl", flags == 0, || format!("flags {flags} of a duplicate"))?;
        let third = Fd::new("fcntl", libc::fcntl(null.0, libc::F_DUPFD_CLOEXEC, 100))?;
        demand("fcntl", third.0 >= 100, || format!("descriptor {} below 100", third.0))?;
        let mut byte = 0u8;
        let n = call("read", libc::read(null.0, (&raw mut byte).cast(), 1) as i64)?;
        demand("read", n == 0, || "/dev/null has content".into())?;
        let zero = Fd::new("openat", libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC))?;
        let mut bytes = [1u8; 64];
        let n = call("read", libc::read(zero.0, bytes.as_mut_ptr().cast(), 64) as i64)?;
        demand("read", n == 64 && bytes == [0; 64], || "/dev/zero is not zero".into())?;
        fails("read", libc::EBADF, libc::read(-1, bytes.as_mut_ptr().cast(), 1) as i64)?;
        fails("write", libc::EBADF, libc::write(zero.0, bytes.as_ptr().cast(), 1) as i64)
    }
}

fn paths(_: &mut Rng) -> Outcome {
    unsafe {
        fails("openat", libc::ENOENT, libc::open(c"/proc/klpfarm-none".as_ptr(), libc::O_RDONLY))?;
        fails("openat", libc::ENOTDIR, libc::open(c"/dev/null/x".as_ptr(), libc::O_RDONLY))?;
        fails("openat", libc::EISDIR, libc::open(c"/proc".as_ptr(), libc::O_WRONLY))?;
        call("faccessat", libc::access(c"/proc/self/stat".as_ptr(), libc::R_OK))?;
        let mut about: libc::stat = zeroed();
        call("fstatat", libc::stat(c"/dev/null".as_ptr(), &raw mut about))?;
        let kind = about.st_mode & libc::S_IFMT;
        demand("fstatat", kind == libc::S_IFCHR, || format!("mode {:o} of /dev/null", about.st_mode))?;
        let mut path = [0u8; 4096];
        let p = libc::getcwd(path.as_mut_ptr().cast(), path.len());
        call("getcwd", if p.is_null() { -1 } else { 0 })?;
        let old = libc::umask(0o22);
        let set = libc::umask(old);
        demand("umask", set == 0o22, || format!("mask set to 22, read {set:o}"))
    }
}

fn attributes(rng: &mut Rng) -> Outcome {
    let trouble = |op| move |e: std::io::Error| Trouble::Errno(op, e.raw_os_error().unwrap_or(0));
    let path = format!("/var/tmp/klpfarm-mix-{}-{}", std::process::id(), sys::tid());
    let file = fs::File::create(&path).map_err(trouble("openat"))?;
    fs::remove_file(&path).map_err(trouble("unlinkat"))?;
    let value = rng.next().to_ne_bytes();
    let mut back = [0u8; 8];
    unsafe {
        let (fd, name) = (file.as_raw_fd(), c"user.klpfarm".as_ptr());
        call("fsetxattr", libc::fsetxattr(fd, name, value.as_ptr().cast(), 8, 0))?;
        let n = call("fgetxattr", libc::fgetxattr(fd, name, back.as_mut_ptr().cast(), 8) as i64)?;
        demand("fgetxattr", n == 8 && back == value, || format!("{n} bytes, content compared"))?;
        call("fremovexattr", libc::fremovexattr(fd, name))?;
        fails("fgetxattr", libc::ENODATA, libc::fgetxattr(fd, name, back.as_mut_ptr().cast(), 8) as i64)
    }
}
