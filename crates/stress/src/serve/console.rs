//! The process that keeps the console's serial line open, for magic sysrq to be answered.
//!
//! A 4.4 kernel shuts a serial port down that no process has open, whatever it prints on it: breaks and letters are then dropped. 6.1
//! keeps the port of its console up. A process of its own: opening a terminal takes locks, and the probe must never wait. Nothing is read, so that a getty on the same line gets all its input.

use super::spawner::Request;
use crate::sys;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Names of the terminals that are consoles, the kernel's own first and last: one line, words apart.
const ACTIVE: &str = "/sys/class/tty/console/active";

/// From one look to the next. A process that sleeps so briefly holds up no transition.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How to start it.
pub(super) fn request() -> Request {
    let argv = vec![super::OURSELVES.into(), "console".into()];
    Request { token: 0, argv, env: Vec::new(), nice: 0, oom: None }
}

/// Lives until it is killed, which it is when the process that started it ends.
pub(crate) fn main() -> ExitCode {
    sys::set_name("klpfarm-console");
    let active = std::fs::read_to_string(ACTIVE).unwrap_or_default();
    let mut lines: Vec<Line> =
        serial(&active).map(|name| Line { path: Path::new("/dev").join(name), fd: None }).collect();
    if lines.is_empty() {
        return ExitCode::SUCCESS;
    }
    loop {
        lines.iter_mut().for_each(Line::keep);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Those of the active consoles that are serial lines: a virtual terminal knows sysrq by its keyboard only.
fn serial(active: &str) -> impl Iterator<Item = &str> {
    active.split_whitespace().filter(|name| name.starts_with("ttyS"))
}

struct Line {
    path: PathBuf,
    fd: Option<OwnedFd>,
}

impl Line {
    /// Open it, and open it again if a getty that began or a login that ended has hung it up: a hang-up cuts off whoever has it open.
    fn keep(&mut self) {
        if self.fd.as_ref().is_some_and(hung_up) {
            self.fd = None;
        }
        if self.fd.is_none() {
            self.fd = open(&self.path).ok();
        }
    }
}

/// Neither as our controlling terminal nor waiting for a carrier, and its settings stay as they are.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map(OwnedFd::from)
}

fn hung_up(fd: &OwnedFd) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut entry, 1, 0) };
    entry.revents & libc::POLLHUP != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    #[test]
    fn only_serial_lines_are_held() {
        assert_eq!(serial("tty0 ttyS0\n").collect::<Vec<_>>(), ["ttyS0"]);
        assert_eq!(serial("ttyS0 ttyS1\n").count(), 2);
        assert_eq!(serial("tty0 hvc0\n").count(), 0);
        assert_eq!(serial("").count(), 0);
    }

    /// A pseudo-terminal whose other end closes is hung up like a serial line after `vhangup`.
    #[test]
    fn a_line_that_was_hung_up_is_opened_again() {
        // SAFETY: plain values; the new descriptor is ours alone, and the name lies in our buffer.
        let (other_end, path) = unsafe {
            let fd = sys::checked(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY)).unwrap();
            assert_eq!((libc::grantpt(fd), libc::unlockpt(fd)), (0, 0));
            let mut name = [0u8; 64];
            assert_eq!(libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()), 0);
            let path = std::ffi::CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap().to_owned();
            (OwnedFd::from_raw_fd(fd), path)
        };
        let mut line = Line { path: path.into(), fd: None };
        line.keep();
        let number = |line: &Line| line.fd.as_ref().map(AsRawFd::as_raw_fd);
        let first = number(&line);
        assert!(first.is_some());
        line.keep();
        assert_eq!(number(&line), first, "what is open stays open");
        drop(other_end);
        assert!(hung_up(line.fd.as_ref().unwrap()));
        line.path = "/dev/null".into();
        line.keep();
        assert!(line.fd.as_ref().is_some_and(|fd| !hung_up(fd)));
        line.path = "/nowhere".into();
        line.fd = None;
        line.keep();
        assert!(line.fd.is_none());
    }
}
