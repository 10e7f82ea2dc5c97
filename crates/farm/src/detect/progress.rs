//! `thread-stalled`, `task-blocked`, `hang-confirmed`: threads and tasks that make no progress, whether they hang or go on again, and which of
//! them must have made progress before a phase may end. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use klpfarm_kmsg::Report;
use klpfarm_model::{AGING, Body, Finding, FindingKind, ObservedKind, Phase, Source};
use klpfarm_stress::wire::{BlockedTask, FromGuest, Thread};

use super::blame;
use super::health::Health;
use super::stalls::{Hang, Place, Who};
use super::tasks::{describe, general, waits_in};
use crate::measure::{Measure, millis};

/// A task that is blocked for so long before the patch is applied is taken for one that always is.
const USUAL_MS: u64 = 5000;

/// Somebody who has made no progress, as a finding: kind, where it shows, title, evidence.
pub(crate) type Hanging = (ObservedKind, Source, String, String);

impl Health {
    /// How long a thread of this workload may finish nothing.
    fn stall_limit(&self, workload: &str) -> Duration {
        let usual = self.usual_idle.get(workload).copied().unwrap_or(0);
        self.stall.max(Duration::from_millis(usual * 3))
    }

    /// Whether this thread must finish operations: a stressor's, or that of a program that did so often enough before the patch. Other
    /// programs take as long as they like.
    fn must_work(&self, thread: &Thread) -> bool {
        let name = &thread.workload;
        thread.counted && name != AGING && (self.builtins.contains(name) || self.regular.contains(name))
    }

    fn place(task: &BlockedTask, patches: &[String]) -> Place {
        Place {
            function: waits_in(&task.stack, &task.wchan, patches),
            in_patch: blame::on_stack(&task.stack, patches),
            state: task.state,
        }
    }

    pub(crate) fn blocked(
        &mut self,
        now: Duration,
        tasks: &[BlockedTask],
        total: u32,
        measure: &Measure,
    ) -> Vec<Body> {
        let mut bodies = Vec::new();
        self.last_blocked = describe(tasks, total, tasks.len());
        if matches!(self.phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline) {
            // A task that waits for long before anything was done is how this guest is.
            let long = |t: &&BlockedTask| t.state == 'D' && t.thread.is_none() && t.for_ms >= USUAL_MS;
            self.always_blocked = tasks.iter().filter(long).map(|t| general(&t.comm)).collect();
        }
        for task in tasks {
            let thread = task.thread.and_then(|id| measure.thread(id)).filter(|t| t.counted);
            let ages = thread.is_some_and(|t| t.workload == AGING);
            // What makes the machine old gives way to all others, so that it may starve: it is watched as system services are.
            if ages && task.state != 'D' {
                continue;
            }
            // Ending a count waits until every task of the guest has been scheduled: that is the farm's own doing.
            if self.phase == Phase::Reach
                && (task.stack.contains("ftrace_") || task.stack.contains("tracing_"))
            {
                continue;
            }
            let workload = thread.filter(|_| !ages).map(|t| t.workload.clone());
            let limit = workload.as_ref().map_or(self.blocked, |name| self.stall_limit(name));
            if task.for_ms < millis(limit)
                || (workload.is_none() && self.always_blocked.contains(&general(&task.comm)))
            {
                continue;
            }
            bodies.extend(self.blocked_task(now, task, (workload, limit), describe(tasks, total, 12)));
        }
        bodies
    }

    fn blocked_task(
        &mut self,
        now: Duration,
        task: &BlockedTask,
        (workload, limit): (Option<String>, Duration),
        evidence: String,
    ) -> Vec<Body> {
        let place = Self::place(task, &self.patches);
        let words = match (&place.function, task.state) {
            (_, 'R') => "run without getting anywhere".to_owned(),
            (Some(f), _) => format!("hang in {f}"),
            (None, state) => format!("hang (state {state})"),
        };
        let (kind, title) = match &workload {
            Some(name) => (ObservedKind::ThreadStalled, format!("{name}: threads {words}")),
            None => (ObservedKind::TaskBlocked, format!("{}: tasks {words}", general(&task.comm))),
        };
        let bodies = self.once(Finding {
            kind: kind.into(),
            title: title.clone(),
            source: if workload.is_some() { Source::Workload } else { Source::Probe },
            function: place.function.clone(),
            workload,
            after_apply_ms: self.after_apply(now).map(|ms| ms.saturating_sub(task.for_ms)),
            line: None,
            in_patch: place.in_patch,
            corrupted: false,
            evidence,
        });
        if !bodies.is_empty() || self.stalls.knows(&title) {
            let who = task.thread.map_or(Who::Task(task.tid), Who::Thread);
            let since = now.saturating_sub(Duration::from_millis(task.for_ms));
            self.stalls.follow(&title, limit, (who, since), Some(place));
        }
        bodies
    }

    /// The kernel reports a stall of a task: what becomes of it will be seen in the probe's list.
    pub(crate) fn follow_report(&mut self, now: Duration, report: &Report, in_patch: bool) {
        let stall = FindingKind::Kernel(report.kind).rules().followed_up;
        let tid = report.task.as_deref().and_then(|task| task.rsplit_once(':')?.1.parse().ok());
        if let Some(tid) = tid.filter(|_| stall) {
            self.stalls.follow_task(&report.title, self.stall.max(self.blocked), now, tid, in_patch);
        }
    }

    /// What a line of the probe tells of stalls that were found before.
    pub(crate) fn follow_up(&mut self, now: Duration, message: &FromGuest, measure: &Measure) -> Vec<Body> {
        let patches = &self.patches;
        self.stalls.take(now, message, |task| Self::place(task, patches));
        let mut bodies = self.stalls.ended();
        let counts = |id| measure.thread(id).is_some_and(|t| t.counted && t.workload != AGING);
        if let Some(hang) = self.stalls.hang(now, counts) {
            bodies.extend(self.confirmed(now, hang));
        }
        bodies
    }

    fn confirmed(&mut self, now: Duration, hang: Hang) -> Vec<Body> {
        let Hang { function, lasts, tasks, rest } = hang;
        let evidence = format!(
            "tasks made no progress for {} s of the machine's time with code of the patch on the stack ({tasks} of them); the probe answers, and {rest}\n{}",
            lasts.as_secs(),
            self.last_blocked
        );
        self.once(Finding {
            kind: ObservedKind::HangConfirmed.into(),
            title: format!("tasks hang in {function}: no progress while the rest of the machine runs"),
            source: Source::Probe,
            function: Some(function),
            workload: None,
            after_apply_ms: self.after_apply(now).map(|ms| ms.saturating_sub(millis(lasts))),
            line: None,
            in_patch: true,
            corrupted: false,
            evidence,
        })
    }

    /// Whether a stall in the patch may still turn out to be a hang.
    pub(crate) fn undecided(&self, now: Duration) -> bool {
        !self.found_hard() && self.stalls.undecided(now, self.grace * 5)
    }

    /// Threads that finish nothing, whatever the guest's list of tasks shows: it comes from `/proc`, which a patch may break.
    pub(crate) fn idle(&mut self, now: Duration, measure: &Measure) -> Vec<Body> {
        let Some((told, threads)) = self.waiting.idle() else { return Vec::new() };
        let counted: Vec<_> = threads
            .into_iter()
            .filter_map(|(id, idle)| Some((id, idle, measure.thread(id)?)))
            .filter(|(_, _, t)| self.must_work(t))
            .collect();
        if !counted.is_empty() && self.probe_alive(now) && now.saturating_sub(told) >= self.probe {
            let evidence =
                format!("no progress of any thread was reported for {:.0} s", self.probe.as_secs_f64());
            return self.unable(now, "the workloads' progress", evidence);
        }
        let mut late: BTreeMap<String, Vec<(u32, Duration)>> = BTreeMap::new();
        for (id, idle, thread) in counted {
            if idle >= self.stall_limit(&thread.workload) + self.grace {
                late.entry(thread.workload.clone()).or_default().push((id, idle));
            }
        }
        let named = |w: &str| {
            let kind = ObservedKind::ThreadStalled.into();
            self.seen.iter().any(|(k, title)| *k == kind && title.starts_with(&format!("{w}: ")))
        };
        late.retain(|workload, _| !named(workload));
        late.into_iter().flat_map(|(workload, threads)| self.stalled(now, &workload, &threads)).collect()
    }

    /// Threads of this workload finish nothing, for so long.
    fn stalled(&mut self, now: Duration, workload: &str, threads: &[(u32, Duration)]) -> Vec<Body> {
        let title = no_progress(workload);
        let longest = threads.iter().map(|(_, idle)| *idle).max().unwrap_or_default();
        let limit = self.stall_limit(workload);
        for (id, idle) in threads {
            self.stalls.follow(&title, limit, (Who::Thread(*id), now.saturating_sub(*idle)), None);
        }
        self.once(Finding {
            kind: ObservedKind::ThreadStalled.into(),
            title,
            source: Source::Workload,
            function: None,
            workload: Some(workload.to_owned()),
            after_apply_ms: self.after_apply(now).map(|ms| ms.saturating_sub(millis(longest))),
            line: None,
            in_patch: false,
            corrupted: false,
            evidence: format!(
                "{} threads finished nothing for up to {:.0} s; the guest's list of tasks does not say where they are\n{}",
                threads.len(),
                longest.as_secs_f64(),
                self.last_blocked
            ),
        })
    }

    /// Count the threads' operations anew.
    pub(crate) fn count_operations(&mut self) {
        self.waiting.count_operations();
    }

    /// Whether a thread that must finish operations has finished fewer than this since they were counted anew.
    pub(crate) fn owes_operations(&self, operations: u64, measure: &Measure) -> bool {
        let must = |id: u32| measure.thread(id).is_some_and(|t| self.must_work(t));
        self.waiting.short_of(operations).any(must)
    }

    /// The longest that it takes to find whoever hangs.
    pub(crate) fn patience(&self) -> Duration {
        let usual = self.usual_idle.values().max().map_or(Duration::ZERO, |ms| Duration::from_millis(ms * 3));
        let stalls = self.stall.max(usual) + self.grace;
        let limits = [stalls, self.blocked, self.cpu, self.console, self.probe, self.ssh];
        limits.into_iter().max().unwrap_or_default() + Duration::from_secs(5)
    }

    /// Whoever was waiting at that time and has not gone on since, as far as is known; as findings, should patience run out.
    pub(crate) fn hanging(&self, then: Duration, measure: &Measure) -> Vec<Hanging> {
        let mut all = Vec::new();
        let counted = |id: u32| measure.thread(id).filter(|t| self.must_work(t));
        let mut workloads: BTreeMap<&str, usize> = BTreeMap::new();
        for thread in self.waiting.behind(then).filter_map(counted) {
            *workloads.entry(&thread.workload).or_default() += 1;
        }
        for (workload, threads) in workloads {
            let evidence = format!("{threads} threads finished nothing before or after the phase was over");
            all.push((ObservedKind::ThreadStalled, Source::Workload, no_progress(workload), evidence));
        }
        if self.waiting.blocked_since_before(then) {
            let title = "tasks stay in uninterruptible sleep".to_owned();
            all.push((ObservedKind::TaskBlocked, Source::Probe, title, self.last_blocked.clone()));
        }
        // One that is not answered ends long after a soak, and until then it is no failure.
        if !self.ssh_error.is_empty() || self.login_since.is_some_and(|since| since < then) {
            let evidence = format!("no login since the phase was over; the last error: {}", self.ssh_error);
            all.push((ObservedKind::SshDead, Source::Ssh, "no SSH login succeeds".to_owned(), evidence));
        }
        all
    }
}

fn no_progress(workload: &str) -> String {
    format!("{workload}: threads finish no operation")
}
