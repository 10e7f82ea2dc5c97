//! What a workload's threads report, and which tasks are its threads.

use super::*;

impl Workload {
    /// Tells new faults in the slots.
    pub(in crate::serve) fn collect_faults(&mut self, shared: &mut Shared<'_>) {
        let What::Builtin { slots, seen, .. } = &mut self.what else { return };
        for (i, (slot, seen)) in slots.iter().zip(seen).enumerate() {
            let thread = self.threads.iter().find(|t| t.slot == Some(i)).map(|t| t.thread.id);
            slot.new_faults(seen, |f| {
                self.died |= f.kind == FaultKind::Died;
                let fault = Fault {
                    at_ms: sys::boot_ms(),
                    workload: self.name.clone(),
                    thread,
                    kind: f.kind,
                    op: f.op,
                    detail: f.detail,
                    count: f.count,
                };
                shared.faults.add(fault, shared.outbox);
            });
        }
    }

    /// Progress of every live thread.
    pub(in crate::serve) fn progress(&self, now: u64, to: &mut Vec<ThreadProgress>) {
        to.extend(self.threads.iter().map(|live| {
            let id = live.thread.id;
            match (&self.what, live.slot) {
                (What::Builtin { slots, .. }, Some(i)) => {
                    let slot = &slots[i];
                    ThreadProgress {
                        id,
                        ops: slot.ops.load(Relaxed),
                        latency_us: slot.latency_ns.load(Relaxed) / 1000,
                        idle_ms: now.saturating_sub(slot.finished_ns.load(Relaxed)) / 1_000_000,
                        errors: slot.errors.load(Relaxed),
                        errno: slot.errno.load(Relaxed),
                    }
                }
                (What::Command { ops, finished, .. }, None) if live.thread.counted => {
                    let idle_ms = now.saturating_sub(*finished) / 1_000_000;
                    ThreadProgress { id, ops: *ops, latency_us: 0, idle_ms, errors: 0, errno: 0 }
                }
                _ => {
                    let idle_ms = now.saturating_sub(live.changed) / 1_000_000;
                    ThreadProgress { id, ops: live.slices, latency_us: 0, idle_ms, errors: 0, errno: 0 }
                }
            }
        }));
    }

    /// The latencies counted since last time, one line a kind that was used.
    pub(in crate::serve) fn latencies(&mut self, outbox: &mut Outbox) {
        let What::Builtin { stressor, slots, told, .. } = &mut self.what else { return };
        if self.phase == Phase::Ended {
            return;
        }
        let mut now;
        for (kind, op) in stressor.kinds.iter().enumerate() {
            now = Counts::ZERO;
            slots.iter().for_each(|s| s.add_kind(kind, &mut now));
            let told = &mut told[kind];
            let buckets = fresh(&now.buckets, &told.buckets);
            if !buckets.is_empty() {
                outbox.push(&FromGuest::Latency {
                    at_ms: sys::boot_ms(),
                    workload: self.name.clone(),
                    op: (*op).to_owned(),
                    sum_ns: now.sum_ns.wrapping_sub(told.sum_ns),
                    buckets,
                    slept: fresh(&now.slept, &told.slept),
                });
            }
            told.clone_from(&now);
        }
    }

    /// Where the threads' time went since last time.
    pub(in crate::serve) fn usage(&mut self, scanner: &mut Scanner, now: u64, outbox: &mut Outbox) {
        let (mut wall, mut cpu, mut wait) = (0, 0, 0);
        for live in self.threads.iter_mut().filter(|t| t.slot.is_some()) {
            let Some((on_cpu, waited)) = scanner.times(live.thread.pid, live.thread.tid) else { continue };
            if let Some((then, cpu_then, wait_then)) = live.times.replace((now, on_cpu, waited)) {
                wall += now.saturating_sub(then);
                cpu += on_cpu.saturating_sub(cpu_then);
                wait += waited.saturating_sub(wait_then);
            }
        }
        if wall > 0 {
            outbox.push(&FromGuest::Usage {
                at_ms: sys::boot_ms(),
                workload: self.name.clone(),
                wall_us: wall / 1000,
                cpu_us: cpu / 1000,
                wait_us: wait / 1000,
            });
        }
    }

    /// Compares the threads known with the tasks there are.
    pub(in crate::serve) fn scanned(
        &mut self,
        tasks: &[Task],
        scanner: &mut Scanner,
        shared: &mut Shared<'_>,
    ) {
        if self.phase == Phase::Ended {
            return;
        }
        if let What::Command { .. } = self.what {
            self.scan_command(tasks, scanner, shared);
        }
        let ended = |live: &Live| match (&self.what, live.slot) {
            (What::Builtin { slots, .. }, Some(i)) => {
                slots[i].state.load(Acquire) == ENDED || !tasks.iter().any(|t| t.tid == live.thread.tid)
            }
            _ => !live.thread.counted && !tasks.iter().any(|t| t.tid == live.thread.tid),
        };
        self.threads.retain(|live| {
            let gone = ended(live);
            if gone {
                shared.outbox.push(&FromGuest::Gone { id: live.thread.id });
            }
            !gone
        });
    }

    /// Finds new tasks of a command, and counts the time slices of all.
    fn scan_command(&mut self, tasks: &[Task], scanner: &mut Scanner, shared: &mut Shared<'_>) {
        for task in tasks {
            if !self.owns(task) {
                continue;
            }
            let watched = |t: &Live| t.thread.tid == task.tid && !t.thread.counted;
            if !self.threads.iter().any(watched) && self.threads.len() < slots::SLOTS {
                let of_process =
                    self.threads.iter().filter(|t| t.thread.pid == task.pid && !t.thread.counted);
                let thread = of_process.clone().count() as u32;
                let process = of_process.map(|t| t.thread.process).next().unwrap_or_else(|| {
                    let used =
                        self.threads.iter().filter(|t| !t.thread.counted).map(|t| t.thread.process + 1);
                    used.max().unwrap_or(0)
                });
                self.add_thread(process, thread, task.pid, task.tid, false, shared);
            }
            if let Some(live) = self.threads.iter_mut().find(|t| watched(t)) {
                let slices = scanner.slices(task.pid, task.tid, &task.stat);
                if slices != live.slices {
                    (live.slices, live.changed) = (slices, shared.now);
                }
            }
        }
    }

    /// For a task that is a thread of this workload: its id, and how long it has been idle if that is long. Only threads
    /// that count their own operations can be idle: a packaged program may sleep as it likes.
    pub(in crate::serve) fn idle(&self, tid: u32, now: u64) -> Option<(u32, Option<u64>)> {
        let live = self.threads.iter().find(|t| t.thread.tid == tid)?;
        let idle = match (&self.what, live.slot) {
            (What::Builtin { slots, .. }, Some(i)) => now.saturating_sub(slots[i].finished_ns.load(Relaxed)),
            _ => 0,
        };
        Some((live.thread.id, (idle >= IDLE_NS).then_some(idle)))
    }
}

/// What was counted since.
fn fresh(now: &[u64], then: &[u64]) -> Vec<(u8, u64)> {
    let fresh: Vec<u64> = now.iter().zip(then).map(|(now, then)| now.wrapping_sub(*then)).collect();
    crate::hist::sparse(&fresh)
}
