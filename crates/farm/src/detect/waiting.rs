//! Who has not gone on since a given moment: a phase must not end while somebody hangs who has not hung long enough to be found. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use klpfarm_stress::wire::FromGuest;

use super::tasks::general;

/// Threads and tasks of one machine.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// When each workload thread finished an operation last.
    finished: BTreeMap<u32, Duration>,
    /// Operations that each has finished: when they were counted anew, and in all.
    operations: BTreeMap<u32, [u64; 2]>,
    /// When progress was last reported.
    told: Option<Duration>,
    /// Since when the other task has been in state D that is there longest.
    blocked: Option<Duration>,
}

impl Waiting {
    /// Take a line of the probe. `usual`: names of tasks that are always in state D here.
    pub(crate) fn take(&mut self, now: Duration, message: &FromGuest, usual: &BTreeSet<String>) {
        let before = |ms: u64| now.saturating_sub(Duration::from_millis(ms));
        match message {
            // The probe announces all its threads again when it is greeted. Progress of new ones cannot have been reported before.
            FromGuest::Thread(thread) => {
                self.finished.entry(thread.id).or_insert_with(|| {
                    self.told = Some(now);
                    now
                });
            }
            FromGuest::Gone { id } => {
                self.finished.remove(id);
                self.operations.remove(id);
            }
            FromGuest::Progress { threads, .. } => {
                self.told = Some(now);
                self.finished.extend(threads.iter().map(|p| (p.id, before(p.idle_ms))));
                threads.iter().for_each(|p| self.operations.entry(p.id).or_default()[1] = p.ops);
            }
            FromGuest::Blocked { tasks, .. } => {
                let odd = tasks.iter().filter(|t| t.state == 'D' && !usual.contains(&general(&t.comm)));
                self.blocked = odd.map(|t| before(t.for_ms)).min();
            }
            _ => {}
        }
    }

    /// The machine stood still for so long through no fault of its own.
    pub(crate) fn forgive(&mut self, lost: Duration) {
        self.finished.values_mut().for_each(|at| *at += lost);
        self.told = self.told.map(|at| at + lost);
        self.blocked = self.blocked.map(|at| at + lost);
    }

    /// Threads that have not finished an operation since.
    pub(crate) fn behind(&self, then: Duration) -> impl Iterator<Item = u32> + '_ {
        self.finished.iter().filter(move |(_, at)| **at < then).map(|(id, _)| *id)
    }

    /// Count each thread's operations anew.
    pub(crate) fn count_operations(&mut self) {
        self.operations.values_mut().for_each(|[from, all]| *from = *all);
    }

    /// Threads that have finished fewer operations than this since.
    pub(crate) fn short_of(&self, operations: u64) -> impl Iterator<Item = u32> + '_ {
        let done = move |id: &u32| self.operations.get(id).map_or(0, |[from, all]| all.saturating_sub(*from));
        self.finished.keys().copied().filter(move |id| done(id) < operations)
    }

    /// A task has been in state D since before.
    pub(crate) fn blocked_since_before(&self, then: Duration) -> bool {
        self.blocked.is_some_and(|since| since < then)
    }

    /// How long each thread had finished nothing when progress was last reported, and when that was.
    pub(crate) fn idle(&self) -> Option<(Duration, Vec<(u32, Duration)>)> {
        let told = self.told?;
        Some((told, self.finished.iter().map(|(id, at)| (*id, told.saturating_sub(*at))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use klpfarm_stress::wire::{BlockedTask, ThreadProgress};

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    impl Waiting {
        fn all_went_on(&self, then: Duration, counts: impl Fn(u32) -> bool) -> bool {
            !self.behind(then).any(counts) && !self.blocked_since_before(then)
        }
    }

    fn progress(id: u32, idle_ms: u64) -> FromGuest {
        let p = ThreadProgress { id, ops: 1, latency_us: 1, idle_ms, errors: 0, errno: 0 };
        FromGuest::Progress { at_ms: 0, threads: vec![p] }
    }

    #[test]
    fn each_thread_must_finish_something_after_the_moment() {
        let none = BTreeSet::new();
        let mut waiting = Waiting::default();
        waiting.take(s(60), &progress(1, 100), &none);
        waiting.take(s(60), &progress(2, 0), &none);
        assert!(!waiting.all_went_on(s(60), |_| true));
        assert!(waiting.all_went_on(s(60), |id| id == 2));
        waiting.take(s(61), &progress(1, 10), &none);
        assert!(waiting.all_went_on(s(60), |_| true));
        waiting.take(s(75), &progress(2, 15_000), &none);
        assert!(waiting.all_went_on(s(60), |_| true));
        assert!(!waiting.all_went_on(s(61), |_| true));
        waiting.take(s(75), &FromGuest::Gone { id: 2 }, &none);
        assert!(waiting.all_went_on(s(60), |_| true));
    }

    #[test]
    fn operations_are_counted_from_a_moment_on() {
        let none = BTreeSet::new();
        let mut waiting = Waiting::default();
        let done = |id: u32, ops: u64| {
            let p = ThreadProgress { id, ops, latency_us: 1, idle_ms: 0, errors: 0, errno: 0 };
            FromGuest::Progress { at_ms: 0, threads: vec![p] }
        };
        waiting.take(s(1), &done(1, 70), &none);
        waiting.take(s(1), &done(2, 80), &none);
        waiting.count_operations();
        assert_eq!(waiting.short_of(1).collect::<Vec<_>>(), [1, 2]);
        waiting.take(s(2), &done(1, 71), &none);
        waiting.take(s(3), &done(1, 72), &none);
        assert_eq!(waiting.short_of(2).collect::<Vec<_>>(), [2]);
        assert_eq!(waiting.short_of(3).collect::<Vec<_>>(), [1, 2]);
        waiting.take(s(4), &FromGuest::Gone { id: 2 }, &none);
        assert_eq!(waiting.short_of(2).count(), 0);
    }

    #[test]
    fn a_task_in_state_d_must_have_fallen_into_it_later() {
        let none = BTreeSet::new();
        let mut waiting = Waiting::default();
        let blocked = |for_ms, state| FromGuest::Blocked {
            at_ms: 0,
            tasks: vec![BlockedTask {
                pid: 1,
                tid: 1,
                comm: "jbd2/vda".into(),
                state,
                for_ms,
                wchan: String::new(),
                stack: String::new(),
                thread: None,
            }],
            total: 1,
        };
        waiting.take(s(60), &blocked(3000, 'D'), &none);
        assert!(!waiting.all_went_on(s(59), |_| true));
        assert!(waiting.all_went_on(s(57), |_| true));
        waiting.take(s(61), &FromGuest::Blocked { at_ms: 0, tasks: vec![], total: 0 }, &none);
        assert!(waiting.all_went_on(s(61), |_| true));
        waiting.take(s(62), &blocked(9000, 'S'), &none);
        assert!(waiting.all_went_on(s(62), |_| true));
        waiting.take(s(62), &blocked(9000, 'D'), &BTreeSet::from(["jbd2".to_owned()]));
        assert!(waiting.all_went_on(s(62), |_| true));
    }

    /// Threads that are started anew have not been silent since the old ones went.
    #[test]
    fn new_threads_have_just_begun() {
        let none = BTreeSet::new();
        let mut waiting = Waiting::default();
        waiting.take(s(10), &progress(1, 0), &none);
        waiting.take(s(11), &FromGuest::Gone { id: 1 }, &none);
        let thread = klpfarm_stress::wire::Thread {
            id: 2,
            workload: "w".into(),
            process: 0,
            thread: 0,
            pid: 1,
            tid: 2,
            counted: true,
        };
        waiting.take(s(60), &FromGuest::Thread(thread.clone()), &none);
        assert_eq!(waiting.idle(), Some((s(60), vec![(2, s(0))])));
        // One that is announced again has not.
        waiting.take(s(70), &FromGuest::Thread(thread), &none);
        assert_eq!(waiting.idle(), Some((s(60), vec![(2, s(0))])));
        waiting.forgive(s(5));
        assert_eq!(waiting.behind(s(65)).count(), 0);
    }
}
