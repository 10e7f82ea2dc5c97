//! How the tasks of a guest were doing when the probe was last heard: what evidence begins with, and all there is once the probe is dead. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use klpfarm_model::{Noted, Wait, Waits};
use klpfarm_stress::wire::{BlockedTask, FromGuest, Thread, ThreadProgress};

use crate::measure::millis;

/// Frames of a stack that are kept: where a task waits stands at the top.
const FRAMES: usize = 16;

/// What the probe says of a stack that could not be read because reading it hangs.
const UNREADABLE: &str = "(reading the stack did not come back)";

/// The latest lines of the probe.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    threads: BTreeMap<u32, (Thread, Option<ThreadProgress>)>,
    blocked: Vec<BlockedTask>,
    total: u32,
    blocked_at: Duration,
    heard_at: Duration,
    /// A finding was made: tasks that get on now are no reason to forget where they were.
    held: bool,
}

impl Snapshot {
    pub(crate) fn take(&mut self, now: Duration, message: &FromGuest) {
        self.heard_at = now;
        match message {
            FromGuest::Thread(thread) => {
                self.threads.entry(thread.id).or_insert((thread.clone(), None));
            }
            FromGuest::Gone { id } => {
                self.threads.remove(id);
            }
            FromGuest::Progress { threads, .. } => {
                for progress in threads {
                    if let Some((_, latest)) = self.threads.get_mut(&progress.id) {
                        *latest = Some(*progress);
                    }
                }
            }
            FromGuest::Blocked { tasks, total, .. } if !(self.held && tasks.is_empty()) => {
                self.blocked.clone_from(tasks);
                self.total = *total;
                self.blocked_at = now;
            }
            _ => {}
        }
    }

    /// A finding was made.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// Tasks that have not got on for `least` or longer, of a machine whose patch was applied at `applied`.
    pub(crate) fn waits(&self, least: Duration, applied: Option<Duration>) -> Option<Waits> {
        let since = |for_ms: u64| {
            let at = i64::try_from(millis(self.blocked_at)).ok()? - i64::try_from(millis(applied?)).ok()?;
            Some(at - i64::try_from(for_ms).ok()?)
        };
        let thread =
            |t: &BlockedTask| t.thread.and_then(|id| self.threads.get(&id)).map(|(thread, _)| thread);
        let of_process = |pid: u32| self.threads.values().filter(|(t, _)| t.pid == pid).count();
        let wait = |t: &BlockedTask| Wait {
            task: t.comm.clone(),
            pid: t.pid,
            tid: t.tid,
            state: t.state,
            workload: thread(t).map(|t| t.workload.clone()),
            threads: thread(t).and_then(|t| u32::try_from(of_process(t.pid)).ok()),
            since_apply_ms: since(t.for_ms),
            stack: stack(t),
        };
        let long = |t: &&BlockedTask| t.for_ms >= millis(least);
        let tasks: Vec<Wait> = self.blocked.iter().filter(long).map(wait).collect();
        let total = match u32::try_from(tasks.len()) {
            // What the probe had no room for has waited less long.
            Ok(n) if tasks.len() == self.blocked.len() => n.max(self.total),
            Ok(n) => n,
            Err(_) => self.total,
        };
        (!tasks.is_empty()).then_some(Waits { noted: Noted::Blocked, total, tasks })
    }

    /// Processes that tasks which make no progress belong to.
    pub(crate) fn concerned(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.blocked.iter().map(|t| t.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Threads whose stack is not to be read again.
    pub(crate) fn unreadable(&self) -> Vec<u32> {
        self.blocked.iter().filter(|t| t.stack == UNREADABLE).map(|t| t.tid).collect()
    }

    /// What each thread of the workloads had done, a line a thread.
    pub(crate) fn counters(&self, now: Duration) -> String {
        if self.threads.is_empty() {
            return String::new();
        }
        let ago = now.saturating_sub(self.heard_at).as_secs_f64();
        let mut text = format!(
            "As the probe last told, {ago:.1} s before this was written. idle: since an operation was last finished. latest: how long it took.\n\
             {:<20} {:>7} {:>6} {:>7} {:>7} {:>12} {:>9} {:>10} {:>8} {:>6}\n",
            "workload", "process", "thread", "pid", "tid", "ops", "idle s", "latest ms", "errors", "errno"
        );
        for (thread, progress) in self.threads.values() {
            let Thread { workload, process, thread, pid, tid, counted, .. } = thread;
            let unit = if *counted { "" } else { " (time slices)" };
            text.push_str(&format!("{workload:<20} {process:>7} {thread:>6} {pid:>7} {tid:>7} "));
            text.push_str(&progress.map_or_else(
                || "nothing told yet\n".to_owned(),
                |p| {
                    let (idle, latest) = (p.idle_ms as f64 / 1000.0, p.latency_us as f64 / 1000.0);
                    format!("{:>12} {idle:>9.1} {latest:>10.1} {:>8} {:>6}{unit}\n", p.ops, p.errors, p.errno)
                },
            ));
        }
        text
    }
}

fn stack(task: &BlockedTask) -> Vec<String> {
    if task.stack.is_empty() || task.stack == UNREADABLE {
        // The function in which it sleeps is better than nothing.
        return if task.wchan.is_empty() || task.wchan == "0" {
            Vec::new()
        } else {
            vec![task.wchan.clone()]
        };
    }
    task.stack.lines().map(|l| l.trim().to_owned()).take(FRAMES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(50);

    fn task(tid: u32, for_ms: u64, stack: &str) -> BlockedTask {
        BlockedTask {
            pid: 7,
            tid,
            comm: "w".into(),
            state: 'D',
            for_ms,
            wchan: "futex_wait".into(),
            stack: stack.into(),
            thread: Some(tid),
        }
    }

    fn heard(tasks: Vec<BlockedTask>) -> FromGuest {
        FromGuest::Blocked { at_ms: 0, total: tasks.len() as u32, tasks }
    }

    fn snapshot() -> Snapshot {
        let mut s = Snapshot::default();
        for id in [1, 2] {
            let thread = Thread {
                id,
                workload: "madvise".into(),
                process: 0,
                thread: id,
                pid: 7,
                tid: id,
                counted: true,
            };
            s.take(AT, &FromGuest::Thread(thread));
        }
        s.take(AT, &heard(vec![task(1, 20_000, "f+0x1/0x2 [x]\ng+0x1/0x2"), task(2, 2_500, UNREADABLE)]));
        s
    }

    #[test]
    fn waits_are_placed_relative_to_applying_and_short_ones_left_out() {
        let s = snapshot();
        let waits = s.waits(Duration::from_secs(5), Some(Duration::from_secs(29))).unwrap();
        assert_eq!((waits.total, waits.tasks.len()), (1, 1));
        let wait = &waits.tasks[0];
        assert_eq!((wait.since_apply_ms, wait.threads, wait.stack.len()), (Some(1000), Some(2), 2));
        assert_eq!(wait.workload.as_deref(), Some("madvise"));
        let both = s.waits(Duration::ZERO, Some(Duration::from_secs(49))).unwrap();
        assert_eq!(
            (both.tasks[1].since_apply_ms, both.tasks[1].stack.join(" ")),
            (Some(-1500), "futex_wait".into())
        );
        assert_eq!(s.waits(Duration::ZERO, None).unwrap().tasks[0].since_apply_ms, None);
        assert_eq!((s.concerned(), s.unreadable()), (vec![7], vec![2]));
    }

    /// Tasks that went on before anything was found say nothing; those that went on after it were its victims.
    #[test]
    fn tasks_that_go_on_are_forgotten_until_something_is_found() {
        let mut s = snapshot();
        s.hold();
        s.take(AT, &heard(Vec::new()));
        assert!(s.waits(Duration::ZERO, None).is_some());
        let mut s = snapshot();
        s.take(AT, &heard(Vec::new()));
        assert!(s.waits(Duration::ZERO, None).is_none());
    }

    #[test]
    fn counters_tell_every_thread() {
        let mut s = snapshot();
        let p = ThreadProgress { id: 2, ops: 4711, latency_us: 1500, idle_ms: 20_100, errors: 3, errno: 22 };
        s.take(AT, &FromGuest::Progress { at_ms: 0, threads: vec![p] });
        let text = s.counters(AT + Duration::from_secs(2));
        assert!(text.contains("2.0 s before") && text.contains("4711") && text.contains("20.1"), "{text}");
        assert!(text.contains("nothing told yet"), "{text}");
    }
}
