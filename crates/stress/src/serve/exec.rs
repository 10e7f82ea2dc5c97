//! Commands run for the farm, beside everything else.

use super::outbox::Outbox;
use super::spawner::{Request, Spawner};
use crate::sys;
use klpfarm_stress::wire::{FromGuest, MAX_LINE};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Commands at a time.
pub(super) const MOST: usize = 32;
/// Priority of commands: the farm waits for them (loading a patch, say) while the workload takes all CPU time it can get.
const NICE: i32 = -10;
const MAX_OUT: usize = MAX_LINE / 4;

pub(super) struct Exec {
    id: u64,
    token: u64,
    pid: Option<i32>,
    output: Option<OwnedFd>,
    out: Vec<u8>,
    deadline: u64,
    /// The answer, once there is one.
    code: Option<i32>,
    answered: bool,
    ended: bool,
}

impl Exec {
    pub(super) fn start(
        id: u64,
        argv: Vec<String>,
        limit_ms: u64,
        spawner: &mut Spawner,
    ) -> io::Result<Self> {
        if argv.is_empty() {
            return Err(io::Error::other("no program given"));
        }
        let (read, write) = sys::pipe()?;
        let request = Request { token: 0, argv, env: Vec::new(), nice: NICE, oom: Some(0) };
        let token = spawner.spawn(request, &[&write])?;
        let deadline = sys::now_ns().saturating_add(limit_ms.saturating_mul(1_000_000));
        Ok(Self {
            id,
            token,
            pid: None,
            output: Some(read),
            out: Vec::new(),
            deadline,
            code: None,
            answered: false,
            ended: false,
        })
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn output_fd(&self) -> Option<i32> {
        self.output.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// When it must be looked at again, if it has a time limit still to come.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.code.is_none().then_some(self.deadline)
    }

    pub(super) fn spawned(&mut self, pid: i32) {
        self.pid = Some(pid);
        // Late already.
        if self.code.is_some() {
            sys::kill(-pid, libc::SIGKILL);
        }
    }

    /// Takes what it wrote; beyond the limit it is thrown away, so that the command never waits for us.
    pub(super) fn read(&mut self) {
        let mut part = [0u8; 4096];
        for _ in 0..64 {
            let Some(output) = &self.output else { return };
            match sys::read_some(output, &mut part) {
                Ok(0) => self.output = None,
                Ok(n) => {
                    let room = MAX_OUT.saturating_sub(self.out.len());
                    self.out.extend_from_slice(&part[..n.min(room)]);
                }
                Err(_) => return,
            }
        }
    }

    /// Kills it, with everything in its group, if its time is over. The answer does not wait for its end: a task that
    /// hangs in the kernel has none.
    pub(super) fn check_time(&mut self, now: u64) {
        if self.code.is_some() || now < self.deadline {
            return;
        }
        self.read();
        self.code = Some(124);
        match self.pid {
            Some(pid) => {
                sys::kill(-pid, libc::SIGKILL);
                sys::kill(pid, libc::SIGKILL);
            }
            None => self.out.extend_from_slice(b"(the command was never started: making processes hangs)\n"),
        }
    }

    /// Ended with this wait status.
    pub(super) fn exited(&mut self, status: i32) {
        self.read();
        let code =
            if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        self.code.get_or_insert(code);
        self.ended = true;
    }

    /// It could not be forked.
    pub(super) fn failed(&mut self, errno: i32) {
        self.out.extend_from_slice(format!("cannot fork: {}", sys::errno_name(errno)).as_bytes());
        self.code.get_or_insert(126);
        self.ended = true;
    }

    /// Answers when it has an answer and there is room for it. True once nothing is left to do.
    pub(super) fn finish(&mut self, outbox: &mut Outbox) -> bool {
        if let Some(code) = self.code
            && !self.answered
            && outbox.room()
        {
            let out = clip(&String::from_utf8_lossy(&self.out));
            outbox.push(&FromGuest::Reply { id: self.id, code, out });
            self.out = Vec::new();
            self.answered = true;
        }
        self.answered && self.ended
    }
}

/// At most what a reply may carry. Control characters go: each would take six bytes in JSON, and means nothing to a reader.
pub(super) fn clip(text: &str) -> String {
    let text = sys::cut(text, MAX_OUT);
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}
