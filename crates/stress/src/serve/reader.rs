//! Helper processes that read files for the probe, or look up what takes several files (`look`). `/proc/PID/stack` waits for a lock that a task stuck in `execve` holds;
//! a helper that waits too long is killed, told of, and replaced.

use super::look;
use super::spawner::{Event, Request, Spawner};
use crate::sys;
use klpfarm_stress::wire::MAX_LINE;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

/// Most bytes of a file that are read.
const MAX_READ: usize = MAX_LINE / 4;
/// Bytes of an answer before its text: the errno.
const HEADER: usize = 4;
/// Helpers at a time: spares, in case new ones cannot be made any more.
const HELPERS: usize = 3;
/// A helper that has not answered for this long is taken for stuck, in nanoseconds.
const PATIENCE_NS: u64 = 3_000_000_000;
/// Requests that may wait.
const MAX_WAITING: usize = 256;

/// What a file is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The stack of a task that started at this time.
    Stack { tid: u32, start: u64 },
    /// An answer to the farm.
    Answer { id: u64 },
}

/// What a helper can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// Read a file.
    File(String),
    /// See [`look::livepatch`].
    Livepatch(String),
    /// See [`look::vitals`], in JSON.
    Vitals,
    /// Write to the kernel's log: whoever does may have to print for all others, and so to wait.
    Kmsg(String),
}

impl Task {
    /// As sent to a helper: one letter, then the path or name.
    fn message(&self) -> Vec<u8> {
        let (letter, text) = match self {
            Self::File(path) => ('f', path.as_str()),
            Self::Livepatch(name) => ('l', name.as_str()),
            Self::Vitals => ('v', ""),
            Self::Kmsg(line) => ('k', line.as_str()),
        };
        format!("{letter}{text}").into_bytes()
    }

    fn read(message: &str) -> Option<Self> {
        let mut letters = message.chars();
        let letter = letters.next()?;
        let text = letters.as_str().to_owned();
        match letter {
            'f' => Some(Self::File(text)),
            'l' => Some(Self::Livepatch(text)),
            'v' => Some(Self::Vitals),
            'k' => Some(Self::Kmsg(text)),
            _ => None,
        }
    }

    /// In the helper: appends what was found.
    fn carry_out(self, to: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::File(path) => {
                std::fs::File::open(path)?.take(MAX_READ as u64).read_to_end(to)?;
            }
            Self::Livepatch(name) => to.extend_from_slice(look::livepatch(&name)?.as_bytes()),
            Self::Kmsg(line) => {
                std::fs::OpenOptions::new().write(true).open("/dev/kmsg")?.write_all(line.as_bytes())?;
            }
            Self::Vitals => serde_json::to_writer(&mut *to, &look::vitals()?)?,
        }
        to.truncate(MAX_READ + HEADER);
        Ok(())
    }
}

/// A file read, or the errno; ETIMEDOUT if the helper got stuck.
pub(super) type Answer = (Purpose, Result<String, i32>);

struct Helper {
    socket: OwnedFd,
    token: u64,
    pid: Option<i32>,
    busy: Option<(Purpose, u64)>,
}

#[derive(Default)]
pub(super) struct Readers {
    helpers: Vec<Helper>,
    waiting: VecDeque<(Task, Purpose)>,
    buffer: Vec<u8>,
}

impl Readers {
    /// Asks for something; false if too much waits already.
    pub(super) fn ask(&mut self, task: Task, purpose: Purpose) -> bool {
        if self.waiting.len() >= MAX_WAITING || self.waiting.iter().any(|(_, p)| *p == purpose) {
            return false;
        }
        self.waiting.push_back((task, purpose));
        true
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = i32> + '_ {
        self.helpers.iter().filter(|h| h.busy.is_some()).map(|h| h.socket.as_raw_fd())
    }

    /// True if the event was about a helper.
    pub(super) fn note(&mut self, event: Event) -> bool {
        match event {
            Event::Spawned { token, pid } => match self.helpers.iter_mut().find(|h| h.token == token) {
                Some(helper) => helper.pid = Some(pid),
                None => return false,
            },
            Event::Failed { token, .. } | Event::Exited { token, .. } => {
                let known = self.helpers.len();
                self.helpers.retain(|h| h.token != token || h.busy.is_some());
                return known != self.helpers.len();
            }
        }
        true
    }

    /// Takes answers, gives out requests, replaces what got stuck.
    pub(super) fn turn(&mut self, now: u64, spawner: &mut Spawner, mut each: impl FnMut(Answer)) {
        self.buffer.resize(MAX_READ + HEADER, 0);
        let buffer = &mut self.buffer;
        self.helpers.retain_mut(|helper| {
            let Some((purpose, since)) = helper.busy else { return true };
            match sys::read_some(&helper.socket, buffer) {
                Ok(n) if n >= HEADER => {
                    let errno = i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                    let text = String::from_utf8_lossy(&buffer[HEADER..n]).into_owned();
                    each((purpose, if errno == 0 { Ok(text) } else { Err(errno) }));
                    helper.busy = None;
                    true
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && now < since + PATIENCE_NS => true,
                _ => {
                    each((purpose, Err(libc::ETIMEDOUT)));
                    if let Some(pid) = helper.pid {
                        sys::kill(pid, libc::SIGKILL);
                    }
                    false
                }
            }
        });
        while self.helpers.len() < HELPERS {
            match new_helper(spawner) {
                Ok(helper) => self.helpers.push(helper),
                Err(_) => break,
            }
        }
        for helper in self.helpers.iter_mut().filter(|h| h.busy.is_none()) {
            let Some((task, purpose)) = self.waiting.pop_front() else { break };
            // A helper that died without a word answers at the next turn: reading from it fails.
            let _ = sys::write_some(&helper.socket, &task.message());
            helper.busy = Some((purpose, now));
        }
    }
}

fn new_helper(spawner: &mut Spawner) -> io::Result<Helper> {
    let (ours, theirs) = sys::message_pair()?;
    sys::set_nonblocking(&ours)?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?.into();
    let request = Request {
        token: 0,
        argv: vec![super::OURSELVES.into(), "reader".into()],
        env: Vec::new(),
        nice: -15,
        oom: None,
    };
    let token = spawner.spawn(request, &[&null, &theirs])?;
    Ok(Helper { socket: ours, token, pid: None, busy: None })
}

/// The helper: does what it is told on descriptor 3 until that closes.
pub(crate) fn main() -> ExitCode {
    // SAFETY: the probe gave us this descriptor; without it reading fails and we end.
    let socket = unsafe { BorrowedFd::borrow_raw(3) };
    sys::set_name("klpfarm-reader");
    let mut name = vec![0u8; 4096];
    let mut answer = Vec::with_capacity(MAX_READ + HEADER);
    loop {
        let n = match sys::read_some(&socket, &mut name) {
            Ok(0) | Err(_) => return ExitCode::SUCCESS,
            Ok(n) => n,
        };
        let task = Task::read(&String::from_utf8_lossy(&name[..n]));
        answer.clear();
        answer.extend_from_slice(&[0; HEADER]);
        let none = || io::Error::from_raw_os_error(libc::EINVAL);
        if let Err(error) = task.ok_or_else(none).and_then(|t| t.carry_out(&mut answer)) {
            answer.truncate(HEADER);
            answer.copy_from_slice(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        }
        if sys::write_some(&socket, &answer).is_err() {
            return ExitCode::SUCCESS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_reach_a_helper_as_they_were() {
        let name = || "x".to_owned();
        for task in
            [Task::File(name()), Task::Livepatch(name()), Task::Vitals, Task::Kmsg("<6>a: b\n".into())]
        {
            let message = String::from_utf8(task.message()).unwrap();
            assert_eq!(Task::read(&message), Some(task));
        }
        assert_eq!(Task::read("?x"), None);
    }
}
