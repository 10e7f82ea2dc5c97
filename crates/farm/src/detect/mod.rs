//! Detectors: which signal is a finding. Each file holds one detector or one family of signals, and has one shape: its first line names the
//! kinds of finding that it reports and their limits; a method of [`Health`], what is known of one machine, takes a signal or the time and
//! gives the findings. Pure; time is handed in. What holds for a kind of finding stands in the model's table (`finding/kinds.rs`).
//!
//! The comparison with control trials is made where the verdict is (`compare` of the model); what a kernel answers while a patch is applied
//! or taken back is found by the steps of a trial (`trial/patching.rs`).

pub(crate) mod blame;
pub(crate) mod console;
pub(crate) mod cpus;
mod health;
mod kernel;
mod machine;
mod oom;
mod probe;
pub(crate) mod progress;
mod results;
mod ssh;
mod stalls;
mod taint;
pub(crate) mod tasks;
pub(crate) mod unavailable;
mod waiting;

use std::time::Duration;

pub(crate) use health::Health;
use klpfarm_model::Body;
use klpfarm_stress::wire::FromGuest;

use crate::measure::Measure;

impl Health {
    /// What a line of the probe tells.
    pub(crate) fn probe(&mut self, now: Duration, message: &FromGuest, measure: &Measure) -> Vec<Body> {
        self.probe_at = Some(now);
        self.waiting.take(now, message, &self.always_blocked);
        let mut bodies = self.message(now, message, measure);
        bodies.extend(self.follow_up(now, message, measure));
        bodies
    }

    fn message(&mut self, now: Duration, message: &FromGuest, measure: &Measure) -> Vec<Body> {
        match message {
            FromGuest::Fault(fault) => self.fault(now, fault),
            FromGuest::Blocked { tasks, total, .. } => self.blocked(now, tasks, *total, measure),
            FromGuest::Memory { .. } => {
                self.memory_at = Some(now);
                Vec::new()
            }
            FromGuest::Unable { what, detail, .. } => self.unable(now, what, detail.clone()),
            FromGuest::Hello { taint, .. } => {
                self.taint.get_or_insert(*taint);
                Vec::new()
            }
            FromGuest::Taint { value, .. } => self.tainted(now, *value),
            _ => Vec::new(),
        }
    }

    /// What silence tells. `measure` knows threads the probe reports as idle.
    pub(crate) fn tick(&mut self, now: Duration, measure: &Measure) -> Vec<Body> {
        if self.is_stopped() {
            return Vec::new();
        }
        let mut bodies = self.idle(now, measure);
        bodies.extend(self.probe_silence(now));
        bodies.extend(self.ssh_silence(now));
        bodies
    }
}
