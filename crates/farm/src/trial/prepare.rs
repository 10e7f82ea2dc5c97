//! From power-on to the first answer of the probe, and the load.

use std::sync::Arc;
use std::time::Duration;

use klpfarm_model::{Arm, Body, FarmKind, Phase, TrialEnd};
use klpfarm_stress::wire::{Ask, Run};
use klpfarm_vm::SshOutput;

use super::{Action, Dispatcher, Step, Upload, millis};
use crate::guest;

impl Dispatcher {
    pub(super) fn power_on(&mut self, _now: Duration) {
        self.emit(Body::PhaseStarted);
        self.step = Step::Login;
        self.try_login();
    }

    pub(super) fn try_login(&mut self) {
        if !self.login_running {
            self.login_running = true;
            let limit = self.plan.scaled(self.plan.pipeline.limits.ssh);
            self.out.push_back(Action::Login { limit });
        }
    }

    pub(super) fn login(&mut self, now: Duration, result: Result<u64, String>) {
        self.login_running = false;
        self.login_at = Some(now);
        self.health.login(now, &result);
        if let Ok(ms) = result {
            self.ssh_ms = Some(ms);
            if self.step == Step::Login {
                self.booted_ms = millis(now);
                self.prepare(now, 0);
            }
        }
    }

    pub(super) fn preparations(&self) -> Vec<(String, Upload)> {
        let hung = self.plan.scaled(self.plan.pipeline.limits.hung_task).as_secs().max(1);
        let mut list = vec![
            (guest::MAKE_DIR.to_owned(), Upload::Nothing),
            (guest::TAKE_BINARY.to_owned(), Upload::GuestBinary),
        ];
        if self.trial.arm.patched() {
            list.push((guest::take_patch(&self.plan.patch.name), Upload::Patch));
        }
        list.push((guest::prepare(hung), Upload::Nothing));
        list
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
                for line in output.text.lines() {
                    if let Some((detector, reason)) =
                        line.strip_prefix("blind ").and_then(|l| l.split_once(' '))
                    {
                        self.emit(Body::Blind { detector: detector.to_owned(), reason: reason.to_owned() });
                    }
                }
                if output.code != 0 || output.text.contains("failed to start the probe") {
                    let message =
                        format!("preparing the guest failed ({}): {}", output.code, output.text.trim());
                    self.farm_error(message);
                } else {
                    self.prepare(now, n + 1);
                }
            }
            (Step::Prepare(_), Err(error)) => self.farm_error(format!("preparing the guest failed: {error}")),
            (Step::Load, Ok(output)) if output.code == 0 => self.loaded(now),
            (Step::Load, Ok(output)) => {
                let evidence = format!("insmod ended with status {}: {}", output.code, output.text.trim());
                self.find(now, FarmKind::LoadRefused, "the kernel refuses to load the patch", evidence);
            }
            (Step::Load, Err(error)) => {
                self.find(now, FarmKind::LoadStuck, "loading the patch does not end", error);
            }
            // The answer came after a finding ended the step.
            _ => {}
        }
    }

    pub(super) fn start_load(&mut self, now: Duration, then: Phase) {
        let plan = Arc::clone(&self.plan);
        for workload in &plan.workloads {
            let run = match (&workload.run.builtin, &workload.run.command) {
                (Some(name), _) => {
                    let mut args: Vec<String> =
                        workload.run.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    if !workload.run.args.contains_key("seed") {
                        args.push(format!("seed={}", self.trial.seed));
                    }
                    Run::Builtin { name: name.clone(), args }
                }
                (None, argv) => Run::Command { argv: argv.clone().unwrap_or_default() },
            };
            self.tell(Ask::Start { workload: workload.name.clone(), run });
        }
        self.step = Step::StartLoad(plan.workloads.len(), then);
        self.deadline = now + self.scaled(30);
    }

    pub(super) fn stop_load(&mut self, now: Duration) {
        let plan = Arc::clone(&self.plan);
        for workload in &plan.workloads {
            self.tell(Ask::Stop { workload: workload.name.clone() });
        }
        self.load_runs = false;
        self.step = Step::StopLoad(plan.workloads.len());
        self.deadline = now + self.scaled(30);
    }

    pub(super) fn run_phase(&mut self, now: Duration, phase: Phase) {
        let phases = self.plan.pipeline.phases;
        let length = match phase {
            Phase::Age => phases.age,
            Phase::Baseline => phases.baseline + self.trial.jitter,
            Phase::Soak => self.plan.soak(),
            _ => phases.revert,
        };
        self.load_runs = true;
        if self.phase != phase {
            self.enter(phase);
        }
        self.measure.begin(now);
        self.rates_at = now;
        self.step = Step::Run(now + length);
    }

    /// A phase under load is over.
    pub(super) fn phase_done(&mut self, now: Duration) {
        let measured = self.measure.summary(now);
        self.emit(Body::Measured(measured));
        if self.phase == Phase::Baseline {
            self.health.baseline(self.measure.longest_idle_ms());
        }
        match (self.phase, self.trial.arm) {
            (Phase::Age, _) => self.run_phase(now, Phase::Baseline),
            (Phase::Baseline, Arm::Loaded) => self.apply(now),
            (Phase::Baseline, Arm::Quiescent) => self.stop_load(now),
            (Phase::Baseline, Arm::Control) => self.run_phase(now, Phase::Soak),
            (Phase::Soak, Arm::Control) => self.end(TrialEnd::Completed),
            (Phase::Soak, _) if self.plan.pipeline.phases.revert.is_zero() => self.count(now),
            (Phase::Soak, _) => self.disable(now),
            _ => self.count(now),
        }
    }
}
