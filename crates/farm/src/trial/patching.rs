//! Applying a patch, following its transition, taking it back, and counting the calls of the functions it replaces.

use std::time::Duration;

use klpfarm_model::{Arm, Body, FarmKind, Phase};
use klpfarm_stress::wire::Ask;

use super::{COUNT_ROUNDS, COUNT_SECONDS, Dispatcher, POLL, Step, guest_limit_ms, millis};
use crate::guest::{self, PatchState};

impl Dispatcher {
    pub(super) fn patch_name(&self) -> String {
        self.plan.patches[self.patch].name.clone()
    }

    pub(super) fn apply(&mut self, now: Duration, patch: usize) {
        self.patch = patch;
        (self.listed, self.enabled) = (false, false);
        self.health.applying(now);
        self.applied = Some(now);
        self.enter(Phase::Apply);
        self.step = Step::Load;
        let limit = self.patient(self.plan.pipeline.limits.apply);
        if self.resident.contains(&patch) {
            let line = guest::enable(&self.patch_name());
            self.exec(now, &line, limit);
        } else {
            let ask =
                Ask::Load { name: format!("{}.ko", self.patch_name()), limit_ms: guest_limit_ms(limit) };
            self.ask(now, ask, limit);
        }
    }

    /// A limit for what the guest's kernel does to switch to the patch or back. A kernel that rewrites itself has five times as long: four
    /// times what was measured with as many machines at once as are let.
    fn patient(&self, limit: Duration) -> Duration {
        let times = if klpfarm_model::rewrites_itself(&self.release) { 5 } else { 1 };
        self.plan.scaled(limit) * times
    }

    /// Loading ended, with this status.
    pub(super) fn loaded(&mut self, now: Duration, code: i32, out: &str) {
        match code {
            0 => {
                self.inside = guest::inside(out);
                self.enter(Phase::Transition);
                self.step = Step::Transition;
                self.ask_state(now);
                self.deadline = now + self.patient(self.plan.pipeline.limits.transition);
            }
            124 => {
                self.find(now, FarmKind::LoadStuck, "loading the patch does not end", out.trim().to_owned());
            }
            _ => {
                let why = out.lines().last().unwrap_or_default();
                let evidence = format!("loading ended with status {code}: {why}");
                self.find(now, FarmKind::LoadRefused, "the kernel refuses to load the patch", evidence);
            }
        }
    }

    pub(super) fn ask_state(&mut self, now: Duration) {
        self.awaited = self.tell(Ask::Livepatch { name: self.patch_name() });
        self.poll_at = now + self.scaled(10);
    }

    pub(super) fn in_transition(&mut self, now: Duration, state: &PatchState) {
        let took_ms = millis(now.saturating_sub(self.applied.unwrap_or(now)));
        self.enabled = state.listed && state.enabled;
        if !self.listed && state.listed {
            self.listed = true;
            self.ask_modules();
            self.functions.extend(state.functions.iter().cloned());
            let names = guest::countable(&state.functions);
            let inside = names.iter().filter_map(|f| Some((f.clone(), *self.inside.get(f)?))).collect();
            self.emit(Body::Applied {
                patch: self.patch_name(),
                took_ms,
                functions: state.functions.clone(),
                inside,
            });
        }
        if !(state.listed && state.enabled && state.settled()) {
            self.poll_at = now + POLL;
            return;
        }
        self.has_transition = state.transition.is_some();
        self.emit(Body::TransitionDone { took_ms, per_task: self.has_transition });
        self.next_op(now);
    }

    pub(super) fn transition_late(&mut self, now: Duration) {
        if !self.enabled {
            let evidence = format!(
                "loading succeeded, but /sys/kernel/livepatch/{} is not there or not enabled",
                self.patch_name()
            );
            self.find(now, FarmKind::NotInForce, "the patch is loaded but not in force", evidence);
            return;
        }
        self.stragglers = Some(1);
        let seconds = self.patient(self.plan.pipeline.limits.transition).as_secs();
        let evidence = format!(
            "some tasks still run the old code {seconds} s after applying; evidence/stragglers.txt lists them"
        );
        self.find(now, FarmKind::TransitionStalled, "the transition does not end", evidence);
    }

    pub(super) fn disable(&mut self, now: Duration, patch: usize) {
        self.patch = patch;
        if self.phase != Phase::Revert {
            self.enter(Phase::Revert);
        }
        self.measure.begin(now);
        self.step = Step::Disable;
        let line = guest::disable(&self.patch_name());
        self.exec(now, &line, self.patient(self.plan.pipeline.limits.apply));
    }

    pub(super) fn disabled(&mut self, now: Duration, code: i32, out: &str) {
        if code != 0 {
            let evidence = format!("writing 0 to enabled failed: {}", out.trim());
            self.find(now, FarmKind::RevertRefused, "the kernel refuses to disable the patch", evidence);
            return;
        }
        self.step = Step::Untransition;
        self.ask_state(now);
        self.deadline = now + self.patient(self.plan.pipeline.limits.transition);
    }

    pub(super) fn in_untransition(&mut self, now: Duration, state: &PatchState) {
        if state.listed && (state.enabled || !state.settled()) {
            self.poll_at = now + POLL;
        } else if self.has_transition {
            self.step = Step::Unload;
            self.deadline = now + self.patient(self.plan.pipeline.limits.apply);
            self.exec_unload(now);
        } else {
            // Before 4.12 a livepatch module can't be unloaded, whatever it does.
            self.resident.insert(self.patch);
            self.emit(Body::Reverted { patch: self.patch_name(), unloaded: false });
            self.next_op(now);
        }
    }

    pub(super) fn exec_unload(&mut self, now: Duration) {
        let argv = guest::shell(&guest::unload(&self.patch_name()));
        self.awaited = self.tell(Ask::Exec { argv, limit_ms: guest_limit_ms(self.scaled(10)) });
        self.poll_at = now + self.scaled(15);
    }

    pub(super) fn unloaded(&mut self, now: Duration, code: i32, out: &str) {
        if code == 0 {
            self.emit(Body::Reverted { patch: self.patch_name(), unloaded: true });
            self.next_op(now);
        } else if now >= self.deadline {
            let evidence = format!("rmmod: {}", out.trim());
            self.find(now, FarmKind::RevertRefused, "the disabled patch can't be unloaded", evidence);
        } else {
            self.poll_at = now + POLL;
        }
    }

    /// Count calls, once the soak is judged: without the patch in the control arm, elsewhere with the patch in force. Before 4.12 not
    /// in force: nobody has tried whether a tracer and a patch on the same function get on there.
    pub(super) fn count(&mut self, now: Duration) {
        let functions = guest::countable(&self.functions.iter().cloned().collect::<Vec<_>>());
        if functions.is_empty() || !(self.has_transition || self.trial.arm == Arm::Control) {
            self.next_op(now);
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
        // A call that is rare is waited for where nothing depends on it. Patches that share control trials bring many functions, of which
        // some are rare for sure, and many such trials.
        let rounds = match self.trial.arm {
            Arm::Control if !self.plan.apart => COUNT_ROUNDS,
            _ => 1,
        };
        if self.calls.iter().any(|(_, calls, _)| *calls == 0) && self.count_round < rounds {
            self.count(now);
            return;
        }
        for function in guest::countable(&self.functions.iter().cloned().collect::<Vec<_>>()) {
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
        self.next_op(now);
    }
}
