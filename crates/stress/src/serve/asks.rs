//! Requests of the farm.

use super::exec::{self, Exec};
use super::outbox::Outbox;
use super::reader::{self, Purpose};
use super::workload::{Phase, Workload};
use super::{Probe, look, resume, shared, write};
use crate::slots::SLOTS;
use crate::sys;
use crate::work::Job;
use klpfarm_stress::wire::{Ask, FromGuest, Run, ToGuest};
use std::ops::Range;

/// Files of a task that wait for its memory lock; whoever reads them hangs with it.
const NEVER: &[&str] = &[
    "cmdline",
    "maps",
    "environ",
    "status",
    "smaps",
    "smaps_rollup",
    "exe",
    "fd",
    "numa_maps",
    "map_files",
    "mem",
    "pagemap",
    "clear_refs",
    "auxv",
];

/// True for a path like `/proc/12/maps` or `/proc/self/task/3/status`.
fn takes_a_memory_lock(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    let own = |p: &str| p == "self" || p == "thread-self" || p.bytes().all(|b| b.is_ascii_digit());
    parts.first() == Some(&"proc")
        && parts.get(1).is_some_and(|p| own(p))
        && parts.iter().any(|p| NEVER.contains(p))
        || parts.contains(&"..")
}

/// The answer to a request to read a file.
pub(super) fn read_answer(id: u64, result: Result<String, i32>, outbox: &mut Outbox) {
    let (code, out) = match result {
        Ok(text) => (0, text),
        Err(libc::ETIMEDOUT) => (124, "reading the file did not come back".to_owned()),
        Err(errno) => (errno, format!("cannot read: {}", std::io::Error::from_raw_os_error(errno))),
    };
    outbox.push(&FromGuest::Reply { id, code, out: exec::clip(&out) });
}

impl Probe {
    /// One line from the host. What is no request is counted; half of one is answered if it at least has an id.
    pub(super) fn asked(&mut self, line: &str) {
        if line.is_empty() {
            return;
        }
        match serde_json::from_str::<ToGuest>(line) {
            Ok(request) => self.carry_out(request),
            Err(error) => {
                self.unread += 1;
                let value = serde_json::from_str::<serde_json::Value>(line).ok();
                if let Some(id) = value.and_then(|v| v.get("id")?.as_u64()) {
                    self.reply(id, 2, format!("not understood: {error}"));
                }
            }
        }
    }

    fn reply(&mut self, id: u64, code: i32, out: String) {
        self.outbox.push(&FromGuest::Reply { id, code, out: exec::clip(&out) });
    }

    fn carry_out(&mut self, ToGuest { id, ask }: ToGuest) {
        if matches!(ask, Ask::Read { .. } | Ask::Load { .. }) {
            // What the workloads saw before this is reported before the answer.
            let mut shared = shared!(self, sys::now_ns());
            self.workloads.iter_mut().for_each(|w| w.collect_faults(&mut shared));
        }
        match ask {
            Ask::Hello => {
                let hello = self.hello();
                self.outbox.push(&hello);
                self.workloads.iter().for_each(|w| w.say_threads(&mut self.outbox));
                self.reply(id, 0, String::new());
            }
            Ask::Start { workload, run } => {
                if let Err(error) = self.start(id, workload, run) {
                    self.reply(id, 1, error);
                }
            }
            Ask::Stop { workload } => self.stop(id, &workload),
            Ask::Exec { argv, limit_ms } => self.exec(id, argv, limit_ms),
            Ask::Read { path } => {
                if takes_a_memory_lock(&path) || path.len() > 4000 {
                    let error = format!("{path}: not read, because it may wait for a task's memory lock");
                    self.reply(id, 1, error);
                } else {
                    self.look_up(id, reader::Task::File(path));
                }
            }
            Ask::Resume { entropy, unix_ms } => {
                let done = resume::resume(self.area, &entropy, unix_ms);
                self.reply_result(id, done);
            }
            Ask::Write { name, data, append } => {
                let done = write::write(&self.folder, &name, &data, append);
                self.reply_result(id, done);
            }
            Ask::Load { name, limit_ms } => match write::place(&self.folder, &name) {
                Ok(path) => {
                    let path = path.to_string_lossy().into_owned();
                    self.exec(id, vec![super::OURSELVES.into(), "load".into(), path], limit_ms);
                }
                Err((code, text)) => self.reply(id, code, text),
            },
            Ask::Livepatch { name } if !look::is_module_name(&name) => {
                self.reply(id, libc::EINVAL, format!("name {name:?}: not a module's name"));
            }
            Ask::Livepatch { name } => self.look_up(id, reader::Task::Livepatch(name)),
            Ask::Kmsg { line } => self.look_up(id, reader::Task::Kmsg(line)),
            Ask::Vitals => self.look_up(id, reader::Task::Vitals),
        }
    }

    fn reply_result(&mut self, id: u64, result: Result<(), (i32, String)>) {
        let (code, text) = result.err().unwrap_or_default();
        self.reply(id, code, text);
    }

    fn exec(&mut self, id: u64, argv: Vec<String>, limit_ms: u64) {
        if self.execs.len() >= exec::MOST {
            return self.reply(id, 1, format!("{} commands run already", exec::MOST));
        }
        match Exec::start(id, argv, limit_ms, &mut self.spawner) {
            Ok(exec) => self.execs.push(exec),
            Err(error) => self.reply(id, 126, format!("cannot start the command: {error}")),
        }
    }

    /// Leaves a question to the helpers.
    fn look_up(&mut self, id: u64, task: reader::Task) {
        if !self.readers.ask(task, Purpose::Answer { id }) {
            self.reply(id, 1, "too many files are waiting to be read".into());
        }
    }

    fn start(&mut self, id: u64, name: String, run: Run) -> Result<(), String> {
        if self.workloads.iter().any(|w| w.name == name) {
            return Err(format!("a workload `{name}` runs already"));
        }
        let started = match run {
            Run::Builtin { name: stressor, args } => {
                let job = Job::parse(&stressor, &args)?;
                let range = self.free_slots(job.threads() as usize + 1)?;
                let place = (&self.slots_fd, &self.area.slots[..], range.clone());
                let started = Workload::builtin(name, id, &job, &args, place, &mut self.spawner);
                self.used[range].fill(started.is_ok());
                started
            }
            Run::Command { argv } if argv.is_empty() => return Err("no program given".into()),
            Run::Command { argv } => Workload::command(name, id, argv, &mut self.spawner),
            Run::Script { text } => Workload::script(name, id, text, &mut self.spawner),
        };
        let workload = started.map_err(|e| format!("cannot start: {e}"))?;
        self.workloads.push(workload);
        Ok(())
    }

    fn free_slots(&self, count: usize) -> Result<Range<usize>, String> {
        (0..=SLOTS - count.min(SLOTS))
            .map(|from| from..from + count)
            .find(|range| self.used.get(range.clone()).is_some_and(|used| !used.contains(&true)))
            .ok_or_else(|| format!("no room for {count} more threads, the probe watches at most {SLOTS}"))
    }

    fn stop(&mut self, id: u64, name: &str) {
        let now = sys::now_ns();
        let Some(workload) = self.workloads.iter_mut().find(|w| w.name == name) else {
            if self.unavailable.contains(name) {
                return self.reply(id, 0, "can't run on this guest".into());
            }
            return self.reply(id, 1, format!("no workload `{name}` runs"));
        };
        let before = workload.phase;
        workload.collect_faults(&mut shared!(self, now));
        workload.stop(id, now);
        match before {
            Phase::Starting { id, .. } => self.reply(id, 1, "stopped before it ran".into()),
            Phase::Stopping { id: Some(id), .. } => self.reply(id, 1, "asked to stop again".into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_take_a_memory_lock_are_never_read() {
        for path in [
            "/proc/1/maps",
            "//proc/./12/cmdline",
            "/proc/self/task/7/status",
            "/proc/1/fd/3",
            "/x/../proc/1/maps",
        ] {
            assert!(takes_a_memory_lock(path), "{path}");
        }
        for path in [
            "/proc/1/stat",
            "/proc/meminfo",
            "/proc/cmdline",
            "/sys/kernel/livepatch/x/transition",
            "/proc/1/stack",
        ] {
            assert!(!takes_a_memory_lock(path), "{path}");
        }
    }
}
