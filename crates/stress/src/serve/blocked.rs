//! Who does not get on: tasks in uninterruptible sleep without a time slice, and workload threads without operations.

use super::reader::{self, Purpose, Readers};
use crate::procfs::{Scanner, Task};
use klpfarm_stress::wire::BlockedTask;
use std::collections::HashMap;

/// Uninterruptible for this long counts.
const ASLEEP_NS: u64 = 1_000_000_000;
/// Most tasks told in one line.
const MOST: usize = 64;
/// A stack this old is read again: the task may sleep somewhere else by now.
const STACK_AGE_NS: u64 = 10_000_000_000;

/// A task that may be blocked.
struct Suspect {
    start: u64,
    slices: u64,
    since: u64,
    /// Seen in the latest scan.
    fresh: bool,
}

struct Stack {
    start: u64,
    read: u64,
    text: String,
}

/// A task to be told of, as far as the scan knows it.
struct Found {
    task: Task,
    for_ns: u64,
    thread: Option<u32>,
}

#[derive(Default)]
pub(super) struct Blocked {
    suspects: HashMap<u32, Suspect>,
    stacks: HashMap<u32, Stack>,
    found: Vec<Found>,
    total: u32,
    told: bool,
}

impl Blocked {
    /// Takes a scan of all tasks. `idle` tells of a workload thread: its id, and for how long it has finished nothing,
    /// in nanoseconds, if that is long enough to be told.
    pub(super) fn scanned(
        &mut self,
        tasks: &[Task],
        now: u64,
        scanner: &mut Scanner,
        readers: &mut Readers,
        idle: impl Fn(u32) -> Option<(u32, Option<u64>)>,
    ) {
        self.suspects.values_mut().for_each(|s| s.fresh = false);
        self.found.clear();
        for task in tasks {
            let asleep = if task.stat.state == 'D' { self.asleep_for(task, now, scanner) } else { None };
            let (thread, idle) = idle(task.tid).map_or((None, None), |(id, idle)| (Some(id), idle));
            if let Some(for_ns) = asleep.max(idle) {
                self.found.push(Found { task: task.clone(), for_ns, thread });
            }
        }
        self.suspects.retain(|_, s| s.fresh);
        self.found.sort_by_key(|f| std::cmp::Reverse(f.for_ns));
        self.total = self.found.len() as u32;
        self.found.truncate(MOST);
        let found = &self.found;
        self.stacks.retain(|tid, _| found.iter().any(|f| f.task.tid == *tid));
        for found in &self.found {
            let Task { pid, tid, stat } = &found.task;
            let known = self.stacks.get(tid);
            if known.is_none_or(|s| s.start != stat.start || now > s.read + STACK_AGE_NS) {
                let stack = reader::Task::File(format!("/proc/{pid}/task/{tid}/stack"));
                readers.ask(stack, Purpose::Stack { tid: *tid, start: stat.start });
            }
        }
    }

    /// For how long a task in state D has not run, if that is long enough.
    fn asleep_for(&mut self, task: &Task, now: u64, scanner: &mut Scanner) -> Option<u64> {
        let slices = scanner.slices(task.pid, task.tid, &task.stat);
        let suspect = self.suspects.entry(task.tid).or_insert(Suspect {
            start: task.stat.start,
            slices,
            since: now,
            fresh: true,
        });
        if suspect.start != task.stat.start || suspect.slices != slices {
            *suspect = Suspect { start: task.stat.start, slices, since: now, fresh: true };
        }
        suspect.fresh = true;
        // Scans are a second apart, give or take: a little tolerance, so that the second one tells.
        (now - suspect.since >= ASLEEP_NS / 10 * 9).then_some(now - suspect.since)
    }

    /// A stack arrived.
    pub(super) fn stack(&mut self, tid: u32, start: u64, now: u64, text: Result<String, i32>) {
        let text = match text {
            Ok(text) => text.lines().map(without_address).collect::<Vec<_>>().join("\n"),
            Err(libc::ETIMEDOUT) => "(reading the stack did not come back)".to_owned(),
            Err(_) => String::new(),
        };
        self.stacks.insert(tid, Stack { start, read: now, text });
    }

    /// The line to send, if there is anything to tell: tasks, or (once) that there are none any more.
    pub(super) fn tell(&mut self, scanner: &mut Scanner) -> Option<(Vec<BlockedTask>, u32)> {
        if self.found.is_empty() && !self.told {
            return None;
        }
        self.told = !self.found.is_empty();
        let tasks = self
            .found
            .drain(..)
            .map(|f| BlockedTask {
                pid: f.task.pid,
                tid: f.task.tid,
                state: f.task.stat.state,
                for_ms: f.for_ns / 1_000_000,
                wchan: scanner.wchan(f.task.pid, f.task.tid),
                stack: self
                    .stacks
                    .get(&f.task.tid)
                    .filter(|s| s.start == f.task.stat.start)
                    .map_or_else(String::new, |s| s.text.clone()),
                thread: f.thread,
                comm: f.task.stat.comm,
            })
            .collect();
        Some((tasks, std::mem::take(&mut self.total)))
    }
}

/// `[<0>] do_madvise+0x1/0x2` without the address.
fn without_address(line: &str) -> &str {
    match line.split_once("] ") {
        Some((address, rest)) if address.trim_start().starts_with("[<") => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::parse_stat;

    fn task(state: char, start: u64) -> Task {
        let line = format!("999999 (x) {state} 1 42 41 0 -1 0 9 0 0 0 7 5 0 0 20 0 1 0 {start} 0 0");
        Task { pid: 999_999, tid: 999_999, stat: parse_stat(&line).unwrap() }
    }

    #[test]
    fn a_task_is_told_after_a_second_and_its_going_on_once() {
        let (mut b, mut s, mut r) = (Blocked::default(), Scanner::default(), Readers::default());
        let mut scan = |b: &mut Blocked, tasks: &[Task], now| {
            b.scanned(tasks, now, &mut s, &mut r, |_| None);
            b.tell(&mut s)
        };
        assert_eq!(scan(&mut b, &[task('D', 5)], 0), None);
        let (tasks, total) = scan(&mut b, &[task('D', 5)], ASLEEP_NS).unwrap();
        assert_eq!((tasks.len(), total, tasks[0].for_ms), (1, 1, 1000));
        // The id is used again by another task: counted anew.
        assert_eq!(scan(&mut b, &[task('D', 6)], 2 * ASLEEP_NS), Some((Vec::new(), 0)));
        assert_eq!(scan(&mut b, &[task('S', 6)], 3 * ASLEEP_NS), None);
        assert_eq!(scan(&mut b, &[task('D', 6)], 4 * ASLEEP_NS), None);
    }

    #[test]
    fn an_idle_thread_is_told_whatever_its_state() {
        let (mut b, mut s, mut r) = (Blocked::default(), Scanner::default(), Readers::default());
        b.scanned(&[task('S', 5)], 9, &mut s, &mut r, |_| Some((3, Some(2_000_000_000))));
        let (tasks, _) = b.tell(&mut s).unwrap();
        assert_eq!((tasks[0].thread, tasks[0].state, tasks[0].for_ms), (Some(3), 'S', 2000));
    }

    #[test]
    fn addresses_go_and_functions_stay() {
        assert_eq!(without_address("[<0>] do_madvise+0x1/0x2"), "do_madvise+0x1/0x2");
        assert_eq!(without_address("[<ffffffff8106>] f+0x1/0x2 [m]"), "f+0x1/0x2 [m]");
        assert_eq!(without_address("odd"), "odd");
    }
}
