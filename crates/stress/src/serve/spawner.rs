//! The process that makes processes. The probe itself never forks while it watches: should a patch break fork or exec,
//! this helper hangs, and the probe lives to tell.

use crate::sys;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What to start. With it go descriptors: standard output and error, then optionally one that becomes descriptor 3.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Names the process in [`Event`].
    pub(super) token: u64,
    pub(super) argv: Vec<String>,
    /// `NAME=value`, besides PATH and the like.
    pub(super) env: Vec<String>,
    /// Priority, as of `nice`.
    pub(super) nice: i32,
    /// `oom_score_adj`: who dies first when memory is short. None keeps the probe's.
    pub(super) oom: Option<i32>,
}

/// What became of a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Event {
    Spawned {
        token: u64,
        pid: i32,
    },
    /// A fork failed with this errno.
    Failed {
        token: u64,
        errno: i32,
    },
    /// Ended with this wait status.
    Exited {
        token: u64,
        status: i32,
    },
}

/// Longest request: argv of a command. A socket message must fit the default send buffer.
const MAX_REQUEST: usize = 128 * 1024;

/// The probe's end.
pub(super) struct Spawner {
    socket: OwnedFd,
    next: u64,
    buffer: Vec<u8>,
}

impl Spawner {
    /// Forks the helper. Call it early: it keeps whatever is open now.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = sys::message_pair()?;
        // SAFETY: this process has one thread, so the child may do whatever we may.
        match sys::checked(unsafe { libc::fork() })? {
            0 => {
                drop(ours);
                serve(&theirs);
            }
            _ => {
                sys::set_nonblocking(&ours)?;
                Ok(Self { socket: ours, next: 1, buffer: vec![0; 4096] })
            }
        }
    }

    pub(super) fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Asks for a process; its token. Fails at once if the helper does not keep up.
    pub(super) fn spawn(&mut self, mut request: Request, fds: &[&OwnedFd]) -> io::Result<u64> {
        request.token = self.next;
        let message = serde_json::to_vec(&request)?;
        if message.len() > MAX_REQUEST {
            return Err(io::Error::other("the command line is longer than 128 KiB"));
        }
        send(&self.socket, &message, fds)?;
        self.next += 1;
        Ok(request.token)
    }

    /// The next event that waits, if any.
    pub(super) fn event(&mut self) -> Option<Event> {
        let n = sys::read_some(&self.socket, &mut self.buffer).ok()?;
        serde_json::from_slice(&self.buffer[..n]).ok()
    }
}

/// Room for the descriptors that may go with one message.
const FDS: usize = 3;

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) -> io::Result<()> {
    let numbers: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).take(FDS).collect();
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: the message points to `part` and `control`, which outlive the call; `control` has room for FDS
    // descriptors with their header.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !numbers.is_empty() {
            let size = size_of_val(&numbers[..]) as u32;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
            std::ptr::copy_nonoverlapping(
                numbers.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                size as usize,
            );
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut fds = Vec::new();
    // SAFETY: as in `send`; the kernel fills at most the space given, and the descriptors it passes are ours alone.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let n = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let count = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<i32>();
            let numbers = libc::CMSG_DATA(header).cast::<i32>();
            for i in 0..count {
                fds.push(OwnedFd::from_raw_fd(numbers.add(i).read_unaligned()));
            }
        }
        Ok((n as usize, fds))
    }
}

/// The helper's life: starts what it is asked for, tells what ended, and takes all with it when the probe is gone.
fn serve(socket: &OwnedFd) -> ! {
    let signals = child_signals();
    super::raise(false);
    sys::set_name("klpfarm-spawner");
    let mut running: BTreeMap<i32, u64> = BTreeMap::new();
    let mut buffer = vec![0; MAX_REQUEST];
    loop {
        let mut fds = [socket.as_raw_fd(), signals.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two valid entries.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if fds[1].revents != 0 {
            let _ = sys::read_some(&signals, &mut buffer[..1024]);
            reap(socket, &mut running);
        }
        if fds[0].revents != 0 {
            match receive(socket, &mut buffer) {
                Ok((0, _)) | Err(_) => break,
                Ok((n, fds)) => {
                    if let Ok(request) = serde_json::from_slice::<Request>(&buffer[..n]) {
                        tell(socket, start(&request, &fds, &mut running));
                    }
                }
            }
        }
    }
    running.keys().for_each(|&pid| sys::kill(-pid, libc::SIGKILL));
    std::process::exit(0);
}

fn tell(socket: &OwnedFd, event: Event) {
    if let Ok(message) = serde_json::to_vec(&event) {
        let _ = send(socket, &message, &[]);
    }
}

/// SIGCHLD as a descriptor.
fn child_signals() -> OwnedFd {
    // SAFETY: an all-zero set is valid and then initialised; the new descriptor is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        // Blocked besides SIGCHLD: signals meant for the probe's whole group. It ends when the probe has, and not before it has
        // ended what it started.
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        OwnedFd::from_raw_fd(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

fn reap(socket: &OwnedFd, running: &mut BTreeMap<i32, u64>) {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return;
        }
        if let Some(token) = running.remove(&pid) {
            tell(socket, Event::Exited { token, status });
        }
    }
}

fn start(request: &Request, fds: &[OwnedFd], running: &mut BTreeMap<i32, u64>) -> Event {
    let token = request.token;
    let strings = |list: &[String]| -> Vec<CString> {
        list.iter().map(|s| CString::new(s.replace('\0', "")).expect("no zero bytes left")).collect()
    };
    let argv = strings(&request.argv);
    let mut env = strings(&request.env);
    env.push(c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    env.push(c"HOME=/root".into());
    env.push(c"LC_ALL=C".into());
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv_p, env_p) = (pointers(&argv), pointers(&env));
    // SAFETY: this process has one thread, so the child may do whatever we may.
    match unsafe { libc::fork() } {
        -1 => Event::Failed { token, errno: sys::errno() },
        0 => become_program(request, fds, &argv_p, &env_p),
        pid => {
            running.insert(pid, token);
            Event::Spawned { token, pid }
        }
    }
}

/// In the child: a session of its own, the given descriptors, priority and score, then the program. A program that
/// cannot be run says why on its output and leaves with 127, as a shell does.
fn become_program(
    request: &Request,
    fds: &[OwnedFd],
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> ! {
    if let Some(score) = request.oom {
        let _ = sys::write_file("/proc/self/oom_score_adj", &score.to_string());
    }
    // SAFETY: plain values, descriptors of our own, and lists that end with a null pointer.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setpriority(libc::PRIO_PROCESS, 0, request.nice);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // Out of the way of the numbers they are to get.
        let high: Vec<i32> =
            fds.iter().map(|fd| libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 20)).collect();
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        libc::dup2(null, 0);
        libc::dup2(high.first().copied().unwrap_or(null), 1);
        libc::dup2(1, 2);
        if let Some(&third) = high.get(1) {
            libc::dup2(third, 3);
        }
        if request.argv.first().is_some_and(|a| a == super::OURSELVES) {
            libc::execve(c"/proc/self/exe".as_ptr(), argv.as_ptr(), env.as_ptr());
        } else {
            libc::execvpe(argv[0], argv.as_ptr(), env.as_ptr());
        }
        let error = io::Error::last_os_error();
        let program = request.argv.first().map_or("", String::as_str);
        let text = format!("cannot run {program}: {error}\n");
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(127)
    }
}
