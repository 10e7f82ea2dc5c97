//! The few system calls that have no safe form in the standard library.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Milliseconds since boot, time asleep included.
pub(crate) fn boot_ms() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME) / 1_000_000
}

/// How often this thread has given up its CPU by itself, because it waited for something.
pub(crate) fn gave_way() -> u64 {
    // SAFETY: all zeroes are a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    u64::try_from(usage.ru_nvcsw).unwrap_or(0)
}

/// Nanoseconds of any clock.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid place for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The calling thread's `errno`.
pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A system call's return value: negative one is an error.
pub(crate) fn checked(ret: i32) -> io::Result<i32> {
    if ret == -1 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Name of an errno, as in the manual.
pub(crate) fn errno_name(errno: i32) -> String {
    let name = match errno {
        0 => "success",
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::EBADF => "EBADF",
        libc::ECHILD => "ECHILD",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EINVAL => "EINVAL",
        libc::ENOSPC => "ENOSPC",
        libc::EPIPE => "EPIPE",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

/// Names the calling thread, as `/proc/PID/comm` tells it; only the first 15 bytes count.
pub(crate) fn set_name(name: &str) {
    let mut bytes = [0u8; 16];
    let short = cut(name, 15).as_bytes();
    bytes[..short.len()].copy_from_slice(short);
    // SAFETY: sixteen bytes that end with a zero.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// The start of `text`, at most `max` bytes, cut at a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// An anonymous file in memory, closed on exec.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string; the new descriptor belongs to nobody else.
    unsafe {
        let fd = checked(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets a file's length.
pub(crate) fn ftruncate(fd: &impl AsRawFd, len: i64) -> io::Result<()> {
    // SAFETY: plain values.
    checked(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }).map(drop)
}

/// A file's length.
pub(crate) fn file_size(fd: &impl AsRawFd) -> io::Result<u64> {
    // SAFETY: an all-zero `stat` is valid, and the kernel fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        checked(libc::fstat(fd.as_raw_fd(), &raw mut stat))?;
        Ok(stat.st_size as u64)
    }
}

/// A pipe, reading end first, both closed on exec; the reading end does not block.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which then belong to us alone.
    unsafe {
        checked(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        let (read, write) = (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]));
        checked(libc::fcntl(fds[0], libc::F_SETFL, libc::O_NONBLOCK))?;
        Ok((read, write))
    }
}

/// A pair of connected message sockets, closed on exec.
pub(crate) fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which then belong to us alone.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        checked(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Makes reads and writes on `fd` never wait.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: plain values.
    unsafe {
        let flags = checked(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        checked(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// `read(2)` into the spare room of `buffer`, at most `max` bytes.
pub(crate) fn read_some(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into it.
    let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// `write(2)`.
pub(crate) fn write_some(fd: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `bytes.len()` bytes.
    let n = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Sends a signal to a process, or to a process group if `pid` is negative. A vanished target is no error.
pub(crate) fn kill(pid: i32, signal: i32) {
    // Never all processes (-1) or our own group (0), whatever a confused caller says.
    if !(-1..=1).contains(&pid) {
        // SAFETY: plain values.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Sets the priority of a thread, or of the calling one for 0. Not being allowed to is no error.
pub(crate) fn set_priority(tid: u32, nice: i32) {
    // SAFETY: plain values.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, nice) };
}

/// The calling thread's id.
pub(crate) fn tid() -> u32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Writes a small file of the kernel's, such as `/proc/self/oom_score_adj`; failures are the caller's to judge.
pub(crate) fn write_file(path: &str, text: &str) -> io::Result<()> {
    std::fs::write(path, text)
}

/// Version and patch level of a kernel release such as `4.4.0-21-generic`; zeroes if it has none.
pub(crate) fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// `uname -r`.
pub(crate) fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(kernel_version("4.4.0-21-generic"), (4, 4));
        assert_eq!(kernel_version("6.12.74+deb13-cloud-amd64"), (6, 12));
        assert_eq!(kernel_version("7-rc1"), (7, 0));
        assert_eq!(kernel_version("x"), (0, 0));
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!((cut("aé", 2), cut("aé", 3), cut("", 5)), ("a", "aé", ""));
    }
}
