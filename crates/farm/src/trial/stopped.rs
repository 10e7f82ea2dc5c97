//! A machine whose virtual CPUs QEMU has stopped: why, and whose fault that is.

use std::time::Duration;

use klpfarm_model::{ObservedKind, Source};
use klpfarm_vm::QmpEvent;

use super::{Action, Dispatcher, ENDING, Step};

/// QEMU is asked again so often.
const AGAIN: Duration = Duration::from_secs(1);

/// The virtual CPUs do not run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped {
    since: Duration,
    asked: Duration,
}

impl Dispatcher {
    /// QEMU says that it has stopped the virtual CPUs. While evidence is gathered it is the farm that stops them.
    pub(super) fn stopped(&mut self, now: Duration) {
        if self.step == Step::Collecting {
            return;
        }
        self.stopped.get_or_insert(Stopped { since: now, asked: now });
        self.out.push_back(Action::Status);
    }

    /// The virtual CPUs run again: the guest is not to blame for the pause.
    pub(super) fn resumed(&mut self, now: Duration) {
        if let Some(stopped) = self.stopped.take() {
            let lost = self.late.forgive(now.saturating_sub(stopped.since));
            self.forgive(lost);
            // The load did not run meanwhile.
            if let Step::Run(until) | Step::Live { until, .. } = &mut self.step {
                *until += lost;
            }
        }
    }

    /// Ask again. True while the virtual CPUs stand still: then nothing in the guest is late.
    pub(super) fn stands_still(&mut self, now: Duration) -> bool {
        let Some(stopped) = &mut self.stopped else { return false };
        if now >= stopped.asked + AGAIN {
            stopped.asked = now;
            self.out.push_back(Action::Status);
        }
        // A QEMU that does not even answer is not waited for.
        if now >= stopped.since + ENDING * 4 {
            self.stopped = None;
            self.lost_machine(format!(
                "QEMU has stopped the virtual machine in phase {} and does not say why",
                self.phase
            ));
        }
        !matches!(self.step, Step::Listen(_) | Step::Collecting | Step::Over)
    }

    /// QEMU's word for the state of the virtual CPUs.
    pub(super) fn status(&mut self, now: Duration, status: Result<String, String>) {
        let Some(stopped) = self.stopped else { return };
        let word = match status {
            Ok(word) => word,
            Err(error) => {
                tracing::debug!(trial = self.trial.number, %error, "no state of the virtual CPUs");
                return;
            }
        };
        let lasts = now.saturating_sub(stopped.since);
        match word.as_str() {
            "running" => {
                self.health.runs();
                self.resumed(now);
            }
            "guest-panicked" => {
                self.stopped = None;
                let bodies = self.health.qmp(now, &QmpEvent::Panicked);
                self.report(now, bodies);
            }
            "suspended" => {
                self.stopped = None;
                let title = "the guest suspended itself".to_owned();
                let bodies = self.health.find(now, ObservedKind::PoweredOff, Source::Qmp, title, word);
                self.report(now, bodies);
            }
            // The event that says what the guest did comes with it.
            "shutdown" | "watchdog" if lasts < ENDING => {}
            // Whoever stopped it may let it run again.
            "paused" | "debug" | "save-vm" | "finish-migrate" if lasts < ENDING => {}
            _ => {
                self.stopped = None;
                self.lost_machine(format!(
                    "QEMU has stopped the virtual machine in phase {} ({word}), which the farm did not ask for",
                    self.phase
                ));
            }
        }
    }
}
