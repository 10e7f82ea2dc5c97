//! Applying a patch, following its transition, seeing that it stays in force, and taking it back.

use std::collections::BTreeMap;
use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, Phase};
use klpfarm_stress::wire::Ask;

use super::{Dispatcher, POLL, Step, guest_limit_ms, millis};
use crate::calls;
use crate::guest::{self, PatchState};

impl Dispatcher {
    pub(super) fn patch_name(&self) -> String {
        self.plan.patches[self.patch].name.clone()
    }

    pub(super) fn apply(&mut self, now: Duration, patch: usize) {
        self.patch = patch;
        (self.listed, self.enabled) = (false, false);
        self.remember_before(now);
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
    pub(super) fn patient(&self, limit: Duration) -> Duration {
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
                self.find(
                    now,
                    ObservedKind::LoadStuck,
                    "loading the patch does not end",
                    out.trim().to_owned(),
                );
            }
            _ => {
                let why = out.lines().last().unwrap_or_default();
                let evidence = format!("loading ended with status {code}: {why}");
                self.find(now, ObservedKind::LoadRefused, "the kernel refuses to load the patch", evidence);
            }
        }
    }

    pub(super) fn ask_state(&mut self, now: Duration) {
        self.awaited = self.tell(Ask::Livepatch { name: self.patch_name() });
        self.poll_at = now + self.scaled(10);
    }

    pub(super) fn in_transition(&mut self, now: Duration, state: Option<PatchState>) {
        // What can't be read now is asked again, until it is too late.
        let Some(state) = state else {
            self.poll_at = now + POLL;
            return;
        };
        let took_ms = millis(now.saturating_sub(self.applied.unwrap_or(now)));
        self.enabled = state.listed && state.enabled;
        if !self.listed && state.listed {
            self.listed = true;
            self.ask_modules();
            self.functions.extend(state.functions.iter().cloned());
            self.listed_functions.insert(self.patch, state.functions.clone());
            // A stack tells names only.
            let inside = |f: &String| Some((f.clone(), *self.inside.get(calls::name(f))?));
            let inside: BTreeMap<String, u32> = state.functions.iter().filter_map(inside).collect();
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
        self.in_force.insert(self.patch);
        self.emit(Body::TransitionDone { took_ms, per_task: self.has_transition });
        self.next_op(now);
    }

    pub(super) fn transition_late(&mut self, now: Duration) {
        if !self.enabled {
            let evidence = format!(
                "loading succeeded, but /sys/kernel/livepatch/{} is not there or not enabled",
                self.patch_name()
            );
            self.find(now, ObservedKind::NotInForce, "the patch is loaded but not in force", evidence);
            return;
        }
        self.stragglers = Some(1);
        let seconds = self.patient(self.plan.pipeline.limits.transition).as_secs();
        let evidence = format!(
            "some tasks still run the old code {seconds} s after applying; evidence/stragglers.txt lists them"
        );
        self.find(now, ObservedKind::TransitionStalled, "the transition does not end", evidence);
    }

    /// Ask whether patches are in force; `replaced`: one that a later patch may have replaced.
    pub(super) fn check_force(&mut self, now: Duration, replaced: Option<usize>) {
        self.to_check = replaced.map_or_else(|| self.in_force.iter().copied().collect(), |p| vec![p]);
        self.to_check.retain(|p| self.in_force.contains(p));
        self.step = Step::InForce(replaced.is_some());
        self.deadline = now + self.patient(self.plan.pipeline.limits.transition);
        self.check_next(now);
    }

    fn check_next(&mut self, now: Duration) {
        match self.to_check.pop() {
            Some(patch) => {
                self.patch = patch;
                self.ask_state(now);
            }
            None => self.next_op(now),
        }
    }

    /// The state of a patch that was in force. A later patch may have replaced it, which the kernel does to those before (`replace` of
    /// `struct klp_patch`); otherwise it must be as it was.
    pub(super) fn still_in_force(&mut self, now: Duration, may_be_replaced: bool, state: Option<PatchState>) {
        let Some(state) = state else {
            self.poll_at = now + POLL;
            return;
        };
        if state.listed && state.enabled && state.settled() {
            self.check_next(now);
        } else if may_be_replaced {
            self.in_force.remove(&self.patch);
            self.emit(Body::Note { text: format!("a later patch has replaced {}", self.patch_name()) });
            self.check_next(now);
        } else {
            let what = match (state.listed, state.enabled) {
                (false, _) => "is no longer listed",
                (true, false) => "is disabled",
                (true, true) => "is in transition again",
            };
            let evidence = format!("/sys/kernel/livepatch/{} {what}", self.patch_name());
            let title = "the patch was no longer in force when the soak ended";
            self.find(now, ObservedKind::NotInForce, title, evidence);
        }
    }

    pub(super) fn disable(&mut self, now: Duration, patch: usize) {
        self.patch = patch;
        self.in_force.remove(&patch);
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
            self.find(now, ObservedKind::RevertRefused, "the kernel refuses to disable the patch", evidence);
            return;
        }
        self.step = Step::Untransition;
        self.ask_state(now);
        self.deadline = now + self.patient(self.plan.pipeline.limits.transition);
    }

    pub(super) fn in_untransition(&mut self, now: Duration, state: Option<PatchState>) {
        // What can't be read is no patch that is gone.
        let Some(state) = state else {
            self.poll_at = now + POLL;
            return;
        };
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
            self.find(now, ObservedKind::RevertRefused, "the disabled patch can't be unloaded", evidence);
        } else {
            self.poll_at = now + POLL;
        }
    }
}
