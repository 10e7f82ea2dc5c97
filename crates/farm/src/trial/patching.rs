//! Applying the patch, following its transition, taking it back, and counting the calls it would get.

use std::time::Duration;

use klpfarm_model::{Arm, Body, FarmKind, Phase, TrialEnd};
use klpfarm_stress::wire::Ask;

use super::{COUNT_ROUNDS, COUNT_SECONDS, Dispatcher, POLL, Step, Upload, millis};
use crate::guest::{self, PatchState};

impl Dispatcher {
    pub(super) fn apply(&mut self, now: Duration) {
        self.health.applying(now);
        self.applied = Some(now);
        self.enter(Phase::Apply);
        self.step = Step::Load;
        let limit = self.plan.scaled(self.plan.pipeline.limits.apply);
        self.over_ssh(now, guest::load(&self.plan.patch.name), Upload::Nothing, limit);
    }

    pub(super) fn loaded(&mut self, now: Duration) {
        self.enter(Phase::Transition);
        self.step = Step::Transition;
        self.ask_state(now);
        self.deadline = now + self.plan.scaled(self.plan.pipeline.limits.transition);
    }

    pub(super) fn ask_state(&mut self, now: Duration) {
        let argv = guest::shell(&guest::state(&self.plan.patch.name));
        let limit_ms = millis(self.scaled(10));
        self.awaited = self.tell(Ask::Exec { argv, limit_ms });
        self.poll_at = now + self.scaled(10);
    }

    pub(super) fn in_transition(&mut self, now: Duration, state: &PatchState) {
        let took_ms = millis(now.saturating_sub(self.applied.unwrap_or(now)));
        if self.functions.is_empty() && state.listed {
            self.functions.clone_from(&state.functions);
            self.emit(Body::Applied { took_ms, functions: state.functions.clone() });
        }
        if !(state.listed && state.enabled && state.settled()) {
            self.poll_at = now + POLL;
            return;
        }
        self.has_transition = state.transition.is_some();
        self.emit(Body::TransitionDone { took_ms, per_task: self.has_transition });
        if self.trial.arm == Arm::Quiescent {
            self.start_load(now, Phase::Soak);
        } else {
            self.run_phase(now, Phase::Soak);
        }
    }

    pub(super) fn transition_late(&mut self, now: Duration) {
        if self.functions.is_empty() {
            let evidence = format!(
                "insmod succeeded, but /sys/kernel/livepatch/{} is not there or not enabled",
                self.plan.patch.name
            );
            self.find(now, FarmKind::NotInForce, "the patch is loaded but not in force", evidence);
            return;
        }
        self.stragglers = Some(1);
        let seconds = self.plan.scaled(self.plan.pipeline.limits.transition).as_secs();
        let evidence = format!(
            "some tasks still run the old code {seconds} s after applying; evidence/stragglers.txt lists them"
        );
        self.find(now, FarmKind::TransitionStalled, "the transition does not end", evidence);
    }

    pub(super) fn disable(&mut self, now: Duration) {
        self.enter(Phase::Revert);
        self.measure.begin(now);
        self.step = Step::Disable;
        self.exec(
            now,
            &guest::disable(&self.plan.patch.name),
            self.plan.scaled(self.plan.pipeline.limits.apply),
        );
    }

    pub(super) fn disabled(&mut self, now: Duration, code: i32, out: &str) {
        if code != 0 {
            let evidence = format!("writing 0 to enabled failed: {}", out.trim());
            self.find(now, FarmKind::RevertRefused, "the kernel refuses to disable the patch", evidence);
            return;
        }
        self.step = Step::Untransition;
        self.ask_state(now);
        self.deadline = now + self.plan.scaled(self.plan.pipeline.limits.transition);
    }

    pub(super) fn in_untransition(&mut self, now: Duration, state: &PatchState) {
        if state.listed && (state.enabled || !state.settled()) {
            self.poll_at = now + POLL;
        } else if self.has_transition {
            self.step = Step::Unload;
            self.exec_unload(now);
        } else {
            // Before 4.12 a livepatch module can't be unloaded, whatever it does.
            self.emit(Body::Reverted { unloaded: false });
            self.run_phase(now, Phase::Revert);
        }
    }

    pub(super) fn exec_unload(&mut self, now: Duration) {
        let argv = guest::shell(&guest::unload(&self.plan.patch.name));
        self.awaited = self.tell(Ask::Exec { argv, limit_ms: millis(self.scaled(10)) });
        self.poll_at = now + self.scaled(15);
    }

    pub(super) fn unloaded(&mut self, now: Duration, code: i32, out: &str) {
        if code == 0 {
            self.emit(Body::Reverted { unloaded: true });
            self.run_phase(now, Phase::Revert);
        } else if now >= self.deadline {
            let evidence = format!("rmmod: {}", out.trim());
            self.find(now, FarmKind::RevertRefused, "the disabled patch can't be unloaded", evidence);
        } else {
            self.poll_at = now + POLL;
        }
    }

    pub(super) fn count(&mut self, now: Duration) {
        let functions = guest::countable(&self.functions);
        if functions.is_empty() {
            self.end(TrialEnd::Completed);
            return;
        }
        if self.phase != Phase::Reach {
            self.enter(Phase::Reach);
        }
        self.step = Step::Count;
        self.count_round += 1;
        self.exec(now, &guest::count_calls(&functions, COUNT_SECONDS), self.scaled(30 + COUNT_SECONDS));
    }

    pub(super) fn counted(&mut self, now: Duration, out: &str) {
        for line in out.lines() {
            let Some((name, n)) = line.strip_prefix("calls ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let Ok(n) = n.parse::<u64>() else { continue };
            match self.calls.iter_mut().find(|(f, _, _)| f == name) {
                Some((_, calls, ms)) => {
                    *calls += n;
                    *ms += COUNT_SECONDS * 1000;
                }
                None => self.calls.push((name.to_owned(), n, COUNT_SECONDS * 1000)),
            }
        }
        if self.calls.iter().any(|(_, calls, _)| *calls == 0) && self.count_round < COUNT_ROUNDS {
            self.count(now);
            return;
        }
        for function in guest::countable(&self.functions) {
            match self.calls.iter().find(|(f, _, _)| *f == function) {
                Some((f, calls, window_ms)) => {
                    let body = Body::Reach { function: f.clone(), calls: *calls, window_ms: *window_ms };
                    self.emit(body);
                }
                None => {
                    let reason =
                        format!("calls of {function} can't be counted on this kernel: {}", out.trim());
                    self.emit(Body::Blind { detector: "reach".into(), reason });
                }
            }
        }
        self.end(TrialEnd::Completed);
    }
}
