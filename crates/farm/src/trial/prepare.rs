//! From power-on to the first answer of the probe, and the load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use klpfarm_model::event::{Measured, Vitals, WorkloadMeasure};
use klpfarm_model::{AGING, Body, Length, Phase};
use klpfarm_stress::wire::{self, Ask};
use klpfarm_vm::SshOutput;

use super::{Action, CHUNK, Dispatcher, NoLogin, SSH_PORT, Step, Upload, millis};
use crate::detect::unavailable;
use crate::guest;

impl Dispatcher {
    pub(super) fn power_on(&mut self, now: Duration, started_ms: u64) {
        self.emit(Body::PhaseStarted);
        self.started_ms = started_ms;
        if self.purpose.boots() {
            self.step = Step::Login;
            self.try_login(now);
        } else {
            // The probe goes on where it was. SSH is for watching only: its first login, which takes a second of the guest's time,
            // comes when its turn comes.
            self.login_at = Some(now);
            self.health.login(now, &Ok(0));
            self.step = Step::Hello;
            self.deadline = now + self.scaled(20);
            self.hello(now);
        }
    }

    pub(super) fn hello(&mut self, now: Duration) {
        self.poll_at = now + Duration::from_secs(1);
        self.tell(Ask::Hello);
    }

    /// After a fork: what its twins must not share.
    pub(super) fn refresh(&mut self, now: Duration) {
        self.step = Step::Refresh;
        self.awaited = self.fresh_id();
        self.deadline = now + self.scaled(20);
        self.out.push_back(Action::Refresh { id: self.awaited });
    }

    pub(super) fn rekey(&mut self, now: Duration) {
        self.step = Step::Rekey;
        let limit = self.plan.scaled(self.plan.pipeline.limits.ssh);
        self.deadline = now + limit + Duration::from_secs(5);
        self.out.push_back(Action::Rekey { limit });
    }

    pub(super) fn rekeyed(&mut self, now: Duration, result: Result<(), String>) {
        match (self.step, result) {
            (Step::Rekey, Ok(())) => self.next_op(now),
            (Step::Rekey, Err(error)) => {
                self.farm_error(format!("giving the machine SSH keys of its own failed: {error}"));
            }
            // The answer came after a finding ended the step.
            _ => {}
        }
    }

    /// Evidence from a machine whose probe is dead comes by magic sysrq: whether it is answered must be known before that. The key is one
    /// that only lists the others.
    pub(super) fn press_sysrq(&mut self, now: Duration) {
        self.step = Step::Sysrq;
        self.console.press();
        self.deadline = now + self.scaled(8);
        self.press_key(now);
    }

    fn press_key(&mut self, now: Duration) {
        self.poll_at = now + Duration::from_secs(2);
        self.out.push_back(Action::Sysrq("h"));
    }

    pub(super) fn await_sysrq(&mut self, now: Duration, late: bool) {
        let answered = self.console.sysrq_answered();
        if !answered && late {
            self.emit(unavailable::sysrq());
        }
        if answered || late {
            self.next_op(now);
        } else if now >= self.poll_at {
            // What keeps the line open for it in the guest may only have begun.
            self.press_key(now);
        }
    }

    pub(super) fn vitals(&mut self, now: Duration, out: &str) {
        match serde_json::from_str::<wire::Vitals>(out) {
            Ok(v) => {
                self.emit(Body::Vitals(Vitals {
                    uptime_s: v.uptime_s,
                    forks: v.forks,
                    context_switches: v.context_switches,
                    tasks: v.tasks,
                    free_kib: v.free_kib,
                    available_kib: v.available_kib,
                    page_cache_kib: v.page_cache_kib,
                    slab_kib: v.slab_kib,
                    fragmentation: Vitals::fragmentation_of(&v.buddy),
                    journal_kib: v.journal_kib,
                    dentries: v.dentries,
                    open_files: v.open_files,
                }));
                self.next_op(now);
            }
            Err(error) => self.farm_error(format!("the probe's vitals can't be read: {error}: {out}")),
        }
    }

    pub(super) fn upload(&mut self, now: Duration, patch: usize, chunk: u64) {
        if chunk * CHUNK >= self.plan.patches[patch].size {
            self.next_op(now);
            return;
        }
        self.step = Step::Upload(patch, chunk);
        self.awaited = self.fresh_id();
        self.deadline = now + self.scaled(30);
        self.out.push_back(Action::Upload { id: self.awaited, patch, chunk });
    }

    pub(super) fn try_login(&mut self, now: Duration) {
        if !self.login_running {
            self.login_running = true;
            self.health.login_begins(now);
            let limit = self.plan.scaled(self.plan.pipeline.limits.ssh);
            self.out.push_back(Action::Login { limit });
        }
    }

    pub(super) fn login(&mut self, now: Duration, result: Result<u64, NoLogin>) {
        self.login_running = false;
        self.login_at = Some(now);
        if !matches!(result, Err(NoLogin::Host)) {
            // The host connects again.
            self.lost.remove(SSH_PORT);
        }
        let result = result.map_err(|why| match why {
            NoLogin::Guest(error) => error,
            NoLogin::Host => {
                self.lost(now, SSH_PORT);
                "the host did not connect".to_owned()
            }
        });
        self.health.login(now, &result);
        if let Ok(ms) = result {
            self.ssh_ms = Some(ms);
            if self.step == Step::Login {
                self.started_ms = millis(now);
                self.prepare(now, 0);
            }
        }
    }

    pub(super) fn preparations(&self) -> Vec<(String, Upload)> {
        vec![
            (guest::MAKE_DIR.to_owned(), Upload::Nothing),
            (guest::TAKE_BINARY.to_owned(), Upload::GuestBinary),
            (guest::prepare(guest::hung_task_secs(&self.plan)), Upload::Nothing),
        ]
    }

    pub(super) fn prepare(&mut self, now: Duration, n: usize) {
        self.step = Step::Prepare(n);
        match self.preparations().into_iter().nth(n) {
            Some((command, input)) => self.over_ssh(now, command, input, self.scaled(30)),
            None => {
                self.step = Step::Hello;
                self.deadline = now + self.scaled(20);
                self.poll_at = now;
            }
        }
    }

    pub(super) fn ssh(&mut self, now: Duration, result: Result<SshOutput, String>) {
        match (self.step, result) {
            (Step::Prepare(n), Ok(output)) => {
                output.text.lines().filter_map(unavailable::read).for_each(|body| self.emit(body));
                if output.code != 0 || output.text.contains("failed to start the probe") {
                    let message =
                        format!("preparing the guest failed ({}): {}", output.code, output.text.trim());
                    self.farm_error(message);
                } else {
                    self.prepare(now, n + 1);
                }
            }
            (Step::Prepare(_), Err(error)) => self.farm_error(format!("preparing the guest failed: {error}")),
            // The answer came after a finding ended the step.
            _ => {}
        }
    }

    /// Start what makes the machine old, or all other workloads.
    pub(super) fn start_load(&mut self, now: Duration, aging: bool) {
        let plan = Arc::clone(&self.plan);
        let wanted = plan.workloads.iter().filter(|w| aging == (w.name == AGING));
        let mut count = 0;
        for workload in wanted {
            let run = guest::run_of(workload, self.trial.seed);
            let id = self.tell(Ask::Start { workload: workload.name.clone(), run });
            self.load_ids.insert(id, workload.name.clone());
            count += 1;
        }
        self.step = Step::StartLoad(count);
        self.deadline = now + self.scaled(guest::start_secs(plan.workloads.iter()));
        if count == 0 {
            self.next_op(now);
        }
    }

    pub(super) fn stop_load(&mut self, now: Duration) {
        let plan = Arc::clone(&self.plan);
        for workload in &plan.workloads {
            let id = self.tell(Ask::Stop { workload: workload.name.clone() });
            self.load_ids.insert(id, workload.name.clone());
        }
        self.load_runs = false;
        self.step = Step::StopLoad(plan.workloads.len());
        self.deadline = now + self.scaled(30);
    }

    pub(super) fn run_phase(&mut self, now: Duration, phase: Phase, length: Duration) {
        self.load_runs = true;
        if self.phase != phase {
            self.enter(phase);
        }
        self.measure.begin(now);
        self.rates_at = now;
        self.step = Step::Run(now + length);
        if length.is_zero() {
            // Waiting for the next tick would make it last.
            self.phase_done(now);
        }
    }

    /// Let the load run until everything is seen to make progress, and at least so long after applying began: what goes wrong within that time is
    /// not to be missed by a look that came too soon.
    pub(super) fn run_until_live(&mut self, now: Duration, least: Duration) {
        self.run_phase(now, Phase::Soak, least);
        self.health.count_operations();
        let until = now.max(self.applied.unwrap_or(now) + least);
        self.step = Step::Live { since: now, until };
        self.try_login(now);
    }

    /// A phase under load is over.
    pub(super) fn phase_done(&mut self, now: Duration) {
        let measured = self.measure.summary(now);
        let short = self.trial.length == Length::Short;
        // A short trial has nothing else before the patch.
        if self.phase == if short { Phase::Settle } else { Phase::Baseline } {
            self.health.baseline(self.measure.longest_idle_ms(), &measured);
        }
        let compared = matches!(self.phase, Phase::Baseline | Phase::Soak);
        // What is short is compared with nothing.
        if !(short && compared) {
            self.emit(Body::Measured(if compared { measured } else { rates_only(measured) }));
        }
        self.next_op(now);
    }
}

/// What is kept of a phase that is not compared: nobody asks how long its operations took, which is half of what a journal would hold.
fn rates_only(measured: Measured) -> Measured {
    let bare =
        |of: WorkloadMeasure| WorkloadMeasure { by_thread: Vec::new(), latency: BTreeMap::new(), ..of };
    let workloads = measured.workloads.into_iter().map(|(name, of)| (name, bare(of))).collect();
    Measured { workloads, resources: Vec::new(), ..measured }
}
