//! The probe on this host, with a Unix socket as its port.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use klpfarm_stress::wire::{Ask, FromGuest, Run, ToGuest, VERSION};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for the busiest machine; what is awaited comes within a second or two.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Probe {
    pub child: Child,
    pub lines: BufReader<UnixStream>,
    pub next: u64,
    pub seen: Vec<FromGuest>,
    /// Its socket's folder, for files of tests too.
    pub dir: tempfile::TempDir,
    /// The program's folder: what the farm writes goes there.
    pub home: tempfile::TempDir,
    pub listener: UnixListener,
}

impl Probe {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let listener = UnixListener::bind(&path).unwrap();
        // A folder of its own for the program, by a link: a copy that another test's fork holds open could not be executed.
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let program = home.path().join("klpfarm-stress");
        std::fs::hard_link(env!("CARGO_BIN_EXE_klpfarm-stress"), &program).unwrap();
        let child =
            Command::new(&program).args(["serve", "--port"]).arg(&path).stdin(Stdio::null()).spawn().unwrap();
        let lines = accept(&listener);
        let mut probe = Self { child, lines, next: 1, seen: Vec::new(), dir, home, listener };
        match probe.line() {
            FromGuest::Hello { version, cpus, .. } => assert!(version == VERSION && cpus > 0),
            other => panic!("the first line is no greeting: {other:?}"),
        }
        probe
    }

    pub fn line(&mut self) -> FromGuest {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "the probe hung up");
        let line = serde_json::from_str::<FromGuest>(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.seen.push(line.clone());
        line
    }

    pub fn until(&mut self, what: &str, mut is_it: impl FnMut(&FromGuest) -> bool) -> FromGuest {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let line = self.line();
            if is_it(&line) {
                return line;
            }
        }
        panic!("{what} did not come; last lines: {:?}", &self.seen[self.seen.len().saturating_sub(5)..]);
    }

    pub fn send(&mut self, ask: Ask) -> u64 {
        self.next += 1;
        let line = serde_json::to_string(&ToGuest { id: self.next, ask }).unwrap();
        self.lines.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        self.next
    }

    pub fn ask(&mut self, ask: Ask) -> (i32, String) {
        let id = self.send(ask);
        self.reply(id)
    }

    pub fn reply(&mut self, wanted: u64) -> (i32, String) {
        match self.until("a reply", |l| matches!(l, FromGuest::Reply { id, .. } if *id == wanted)) {
            FromGuest::Reply { code, out, .. } => (code, out),
            _ => unreachable!(),
        }
    }

    pub fn start_builtin(&mut self, name: &str, args: &[&str]) {
        let run = Run::Builtin { name: name.into(), args: args.iter().map(|&a| a.to_owned()).collect() };
        let (code, out) = self.ask(Ask::Start { workload: name.into(), run });
        assert_eq!(code, 0, "{name}: {out}");
    }

    pub fn start_shell(&mut self, name: &str, script: &str) -> (i32, String) {
        let run = Run::Command { argv: vec!["sh".into(), "-c".into(), script.into()] };
        self.ask(Ask::Start { workload: name.into(), run })
    }

    pub fn stop(&mut self, name: &str) {
        let (code, out) = self.ask(Ask::Stop { workload: name.into() });
        assert_eq!(code, 0, "{name}: {out}");
    }

    pub fn exec(&mut self, script: &str, limit_ms: u64) -> (i32, String) {
        self.ask(Ask::Exec { argv: vec!["sh".into(), "-c".into(), script.into()], limit_ms })
    }

    pub fn faults(&self) -> Vec<&FromGuest> {
        self.seen.iter().filter(|l| matches!(l, FromGuest::Fault(_))).collect()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Its helpers end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn accept(listener: &UnixListener) -> BufReader<UnixStream> {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}
