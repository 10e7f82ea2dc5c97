//! What runs beside a trial's steps: looks at the virtual CPUs, and heartbeats on the console.

use std::time::Duration;

use klpfarm_model::{ObservedKind, Phase, Source};
use klpfarm_stress::wire::Ask;
use klpfarm_vm::CpuLook;

use super::{Action, CPUS_EVERY, Dispatcher, Step};
use crate::detect::console::{BEAT_EVERY, Trouble};
use crate::detect::unavailable;

/// Looks at the registers that must fail before they are given up, where none has succeeded.
const FIRST_LOOKS: u32 = 3;

/// Seconds without registers after which QEMU's monitor is taken for dead, where it has reported them before.
const DEAF_SECONDS: u64 = 60;

/// What is asked of the probe beside the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// To write a heartbeat.
    Beat,
    /// Where modules lie.
    Modules,
}

impl Dispatcher {
    /// On schedule, as long as there is a guest to watch.
    pub(super) fn watch_beside(&mut self, now: Duration) {
        // Before the kernel runs, CPUs are in other modes; while it boots, it keeps interrupts off as long as it likes.
        let boots = self.phase == Phase::Boot;
        if !boots && !self.cpus_running && self.cpus_at.is_some_and(|at| now >= at) {
            (self.cpus_running, self.cpus_at) = (true, Some(now + CPUS_EVERY));
            self.out.push_back(Action::Cpus);
        }
        let talks = !matches!(
            self.step,
            Step::PowerOn | Step::Login | Step::Prepare(_) | Step::Hello | Step::Listen(_) | Step::Collecting
        );
        if !talks || !self.health.probe_alive(now) {
            return;
        }
        if now >= self.beat_at {
            self.beat(now);
        }
        match self.console.tick(now) {
            Some(Trouble::Flood(evidence)) => {
                self.find_on_console(now, ObservedKind::ConsoleFlood, "the console is flooded", evidence);
            }
            Some(Trouble::Silent(evidence)) => {
                self.find_on_console(
                    now,
                    ObservedKind::ConsoleSilent,
                    "the console has fallen silent",
                    evidence,
                );
            }
            Some(Trouble::Blind) => self.emit(unavailable::console("nothing written to it comes out")),
            None => {}
        }
    }

    /// Have a heartbeat written, unless none has ever come out here.
    pub(super) fn beat(&mut self, now: Duration) {
        if let Some(line) = self.console.beat(now) {
            self.beat_at = now + BEAT_EVERY;
            let id = self.tell(Ask::Kmsg { line });
            self.beside.insert(id, Beside::Beat);
        }
    }

    fn find_on_console(&mut self, now: Duration, kind: ObservedKind, title: &str, evidence: String) {
        let bodies = self.health.find(now, kind, Source::Console, title.to_owned(), evidence);
        self.report(now, bodies);
    }

    /// The answer to a question that no step waits for; false if it is none.
    pub(super) fn reply_beside(&mut self, id: u64, code: i32, out: &str) -> bool {
        match self.beside.remove(&id) {
            // What does not come back may be printing for others, or wait for ever: the heartbeat tells.
            Some(Beside::Beat) if code != 0 && code != 124 => {
                if self.console.refuse(out.trim()) {
                    self.emit(unavailable::console(&format!(
                        "/dev/kmsg can't be written to ({})",
                        out.trim()
                    )));
                }
            }
            Some(Beside::Modules) if code == 0 => self.cpus.modules(out),
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// A patch has been loaded: where its code lies.
    pub(super) fn ask_modules(&mut self) {
        let id = self.tell(Ask::Read { path: "/proc/modules".into() });
        self.beside.insert(id, Beside::Modules);
    }

    /// A look at the virtual CPUs.
    pub(super) fn cpus_seen(&mut self, now: Duration, looks: Result<Vec<CpuLook>, String>) {
        self.cpus_running = false;
        let looks = match looks {
            Ok(looks) => looks,
            Err(error) => return self.no_registers(now, &error),
        };
        self.cpus_failed = None;
        tracing::trace!(trial = self.trial.number, ?now, ?looks);
        if self.health.is_stopped() || self.step == Step::Collecting {
            self.cpus.forget();
            return;
        }
        for stuck in self.cpus.look(now, &looks) {
            let bodies = self.health.cpu_stuck(now, &stuck);
            let began = now.saturating_sub(stuck.lasts);
            let before = self.before.is_some_and(|b| began < b.at);
            self.report_of(now, bodies, before);
        }
    }

    /// QEMU did not report the registers. Late once is no reason to give up; if it never did, it can't. A monitor that answered before and
    /// is silent for long is a machine that can't be watched any more.
    fn no_registers(&mut self, now: Duration, error: &str) {
        let (since, times) = self.cpus_failed.unwrap_or((now, 0));
        self.cpus_failed = Some((since, times + 1));
        if !self.cpus.is_known() {
            if times + 1 >= FIRST_LOOKS {
                self.cpus_at = None;
                self.emit(unavailable::cpus(error));
            }
            return;
        }
        // The farm's own dump keeps the monitor busy.
        let busy = matches!(self.step, Step::Listen(_) | Step::Collecting);
        if !busy && now.saturating_sub(since) >= self.scaled(DEAF_SECONDS) {
            self.farm_error(format!(
                "QEMU has not reported the registers of the virtual CPUs for {} s, which it did before: {error}",
                now.saturating_sub(since).as_secs()
            ));
        }
    }
}
