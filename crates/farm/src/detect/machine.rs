//! `panicked`, `rebooted`, `powered-off`, `watchdog-fired`: what QEMU says of the machine, at once.

use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, Source};
use klpfarm_vm::QmpEvent;

use super::health::Health;

impl Health {
    pub(crate) fn qmp(&mut self, now: Duration, event: &QmpEvent) -> Vec<Body> {
        let (kind, title) = match event {
            QmpEvent::Panicked => (ObservedKind::Panicked, "the guest kernel panicked"),
            QmpEvent::Reset => (ObservedKind::Rebooted, "the machine restarted unexpectedly"),
            QmpEvent::Shutdown { guest: true, reason } if reason == "guest-reset" => {
                (ObservedKind::Rebooted, "the machine restarted unexpectedly")
            }
            QmpEvent::Shutdown { guest: true, reason } if reason == "guest-panic" => {
                (ObservedKind::Panicked, "the guest kernel panicked")
            }
            QmpEvent::Shutdown { guest: true, .. } => {
                (ObservedKind::PoweredOff, "the guest powered itself off")
            }
            QmpEvent::Watchdog => (ObservedKind::WatchdogFired, "the watchdog device fired"),
            QmpEvent::Stopped => {
                self.stopped = true;
                return Vec::new();
            }
            QmpEvent::Resumed => {
                self.runs();
                return Vec::new();
            }
            // An I/O error is the host's: the dispatcher ends the trial.
            QmpEvent::Shutdown { guest: false, .. } | QmpEvent::IoError { .. } | QmpEvent::Other(_) => {
                return Vec::new();
            }
        };
        self.find(now, kind, Source::Qmp, title.into(), format!("QMP event: {event:?}"))
    }
}
