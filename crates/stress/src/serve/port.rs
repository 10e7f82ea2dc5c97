//! The line to the host: a virtio-serial port, a serial line, or for tests a Unix socket. Never waits.

use crate::sys;
use klpfarm_stress::wire::{MAX_LINE, PORT_NAME};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

/// An open port and the half line read from it so far.
pub(super) struct Port {
    fd: OwnedFd,
    input: Vec<u8>,
    /// Inside a line that is longer than allowed: skip to its end.
    skipping: bool,
    /// A virtio port: it outlives the host's connection. All others end with it.
    lasting: bool,
    /// The host's end of a lasting port is closed.
    pub(super) hung_up: bool,
}

/// What reading brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// To be opened again.
    Closed,
}

impl Port {
    /// The first usable one of `paths`, or of the usual places if there are none.
    pub(super) fn open(paths: &[String]) -> Option<Self> {
        let places =
            if paths.is_empty() { usual_places() } else { paths.iter().map(PathBuf::from).collect() };
        places.iter().find_map(|path| {
            let lasting = path.components().any(|p| p.as_os_str() == "virtio-ports")
                || path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vport"));
            Some(Self::over(open(path).ok()?, lasting))
        })
    }

    fn over(fd: OwnedFd, lasting: bool) -> Self {
        Self { fd, input: Vec::with_capacity(64 * 1024), skipping: false, lasting, hung_up: false }
    }

    pub(super) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Reads what is there and calls `each` with every whole line.
    pub(super) fn read(&mut self, mut each: impl FnMut(&str)) -> State {
        let mut part = [0u8; 4096];
        loop {
            match sys::read_some(&self.fd, &mut part) {
                // A virtio port without a host reads as empty; anything else has ended for good.
                Ok(0) => {
                    self.saw_hang_up();
                    return if self.lasting { State::Open } else { State::Closed };
                }
                Ok(n) => self.take(&part[..n], &mut each),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return State::Open,
                Err(_) => return State::Closed,
            }
        }
    }

    fn take(&mut self, bytes: &[u8], each: &mut impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let whole = piece.last() == Some(&b'\n');
            if !self.skipping {
                self.input.extend_from_slice(piece);
            }
            if self.input.len() > MAX_LINE {
                self.skipping = true;
                self.input.clear();
            }
            if whole {
                if !self.skipping {
                    each(String::from_utf8_lossy(&self.input).trim());
                }
                self.skipping = false;
                self.input.clear();
            }
        }
    }

    /// What `poll` said: nobody at the other end. Half a line of a host that went is no beginning of the next one's.
    pub(super) fn saw_hang_up(&mut self) {
        self.hung_up = self.lasting;
        self.input.clear();
        self.skipping = false;
    }

    /// Writes as much as goes at once; how much that was.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, State> {
        match sys::write_some(&self.fd, &bytes[..bytes.len().min(16 * 1024)]) {
            Ok(n) => Ok(n),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            // The host is not there just now; the port is.
            Err(e) if self.lasting && e.raw_os_error() != Some(libc::ENODEV) => Ok(0),
            Err(_) => Err(State::Closed),
        }
    }
}

fn usual_places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(format!("/dev/virtio-ports/{PORT_NAME}"))];
    // Without udev there is no such link, but the device node bears the name that sysfs has.
    for entry in std::fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME) {
            places.push(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    places.push(PathBuf::from("/dev/ttyS1"));
    places
}

fn open(path: &PathBuf) -> io::Result<OwnedFd> {
    if std::fs::metadata(path)?.file_type().is_socket() {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        return Ok(stream.into());
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let fd = OwnedFd::from(file);
    if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("tty")) || is_terminal(&fd) {
        make_raw(&fd)?;
    }
    Ok(fd)
}

fn is_terminal(fd: &OwnedFd) -> bool {
    // SAFETY: plain value.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}

/// No echo, no translation, no hang-up, 115200. Fails on a serial line without hardware.
fn make_raw(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: an all-zero termios is valid, and then filled in.
    unsafe {
        let mut line: libc::termios = std::mem::zeroed();
        sys::checked(libc::tcgetattr(fd.as_raw_fd(), &raw mut line))?;
        libc::cfmakeraw(&raw mut line);
        line.c_cflag |= libc::CLOCAL | libc::CREAD;
        line.c_cflag &= !(libc::HUPCL | libc::CRTSCTS);
        // The `libc` crate binds `cfsetspeed` to a symbol version that a static link does not have.
        line.c_cflag = (line.c_cflag & !libc::CBAUD) | libc::B115200;
        (line.c_ispeed, line.c_ospeed) = (libc::B115200, libc::B115200);
        sys::checked(libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const line)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut port = Port::over(ours.into(), false);
        let mut got = Vec::new();
        for chunk in chunks {
            theirs.write_all(chunk).unwrap();
            assert_eq!(port.read(|l| got.push(l.to_owned())), State::Open);
        }
        drop(theirs);
        assert_eq!(port.read(|l| got.push(l.to_owned())), State::Closed);
        got
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        assert_eq!(lines(&[b"a", b"b\nc\r\n", b"", b"half"]), ["ab", "c"]);
    }

    #[test]
    fn garbage_and_endless_lines_are_survived() {
        let long = vec![b'x'; 50_000];
        let mut chunks: Vec<&[u8]> = vec![&long; 8];
        chunks.push(b"tail\n\xff\xfe\nnext\n");
        let got = lines(&chunks);
        assert_eq!(got.len(), 2);
        assert_eq!(got[1], "next");
    }
}
