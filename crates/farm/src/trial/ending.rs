//! How a trial ends: not before all that the machine had to say has been heard, and all who make progress have been seen to.

use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, Phase, Source, TrialEnd};
use klpfarm_stress::wire::Ask;

use super::{Action, Dispatcher, Step};
use crate::detect::progress::Hanging;

/// What the kernel's taint is read from.
const TAINT: &str = "/proc/sys/kernel/tainted";

impl Dispatcher {
    /// Everything has been done. Before the trial ends, the taint is read once more, and a last heartbeat must come out of the console: what
    /// was printed before it has been heard then.
    pub(super) fn close(&mut self, now: Duration) {
        self.step = Step::Closing { since: now, taint: false };
        self.deadline = now + self.scaled(20);
        self.ask_taint(now);
        self.beat(now);
    }

    pub(super) fn ask_taint(&mut self, now: Duration) {
        self.awaited = self.tell(Ask::Read { path: TAINT.to_owned() });
        self.poll_at = now + self.scaled(5);
    }

    /// The answer to a look at the taint, before applying or at the end.
    pub(super) fn last_taint(&mut self, now: Duration, code: i32, out: &str) {
        // A guest that is short of time may answer the next time it is asked.
        let Some(value) = out.trim().parse().ok().filter(|_| code == 0) else { return };
        if let Step::Closing { taint, .. } = &mut self.step {
            *taint = true;
        }
        let bodies = self.health.tainted(now, value);
        self.report(now, bodies);
        if let Step::Look { patch, .. } = self.step {
            self.apply(now, patch);
        }
    }

    pub(super) fn closing(&mut self, now: Duration, since: Duration, taint: bool) {
        if !taint {
            if now >= self.deadline {
                let evidence = format!("{TAINT} could not be read when the trial was to end");
                let bodies = self.health.unable(now, "its taint", evidence);
                self.report(now, bodies);
            } else if now >= self.poll_at {
                self.ask_taint(now);
            }
            return;
        }
        // The last heartbeat was written at that moment, and counts.
        if self.somebody_hangs(now, since, Duration::from_millis(1)) {
            return;
        }
        // A report that is still being printed ends with silence; a console that is never silent is not waited for.
        let quiet = self.console_at.is_none() || now >= since + self.scaled(10);
        if self.classifier.is_open() && !quiet {
            return;
        }
        self.flush(now);
        if matches!(self.step, Step::Closing { .. }) {
            self.end(TrialEnd::Completed);
        }
    }

    /// Take what the console has printed so far for all there is.
    pub(super) fn flush(&mut self, now: Duration) {
        let signals = self.classifier.flush();
        self.signals(now, signals);
    }

    /// At the end of a phase with the patch applied, and of the trial: whoever hangs is waited for until there is progress or a finding. Before
    /// applying there is no reason to hang, and what does is not the patch's. `beats`: heartbeats written within this time after the end count
    /// as well.
    pub(super) fn somebody_hangs(&mut self, now: Duration, end: Duration, beats: Duration) -> bool {
        if !matches!(self.phase, Phase::Soak | Phase::Reach | Phase::Revert) {
            return false;
        }
        let heard = self.console.heard_all_before(end + beats);
        let mut hanging = self.health.hanging(end, &self.measure);
        if hanging.is_empty() && heard && !self.cpus.is_suspicious() {
            return false;
        }
        if now < end + self.health.patience() {
            return true;
        }
        if !heard {
            let evidence = "a heartbeat from before the end of the phase has not come out".to_owned();
            let title = "the console has fallen silent".to_owned();
            hanging.push((ObservedKind::ConsoleSilent, Source::Console, title, evidence));
        }
        if self.cpus.is_suspicious_since_before(end) {
            let evidence = "a CPU had interrupts off in the few looks that there were".to_owned();
            let title = "the guest no longer tells whether a CPU is stuck".to_owned();
            hanging.push((ObservedKind::ProbeSilent, Source::Qmp, title, evidence));
        }
        let patience = self.health.patience().as_secs();
        for (kind, source, title, evidence) in hanging {
            let evidence = format!("{evidence}\nwaited for {patience} s after the end of the phase");
            self.find_hanging(now, (kind, source, title, evidence));
        }
        false
    }

    fn find_hanging(&mut self, now: Duration, (kind, source, title, evidence): Hanging) {
        let bodies = self.health.find(now, kind, source, title, evidence);
        self.report(now, bodies);
    }

    /// The trial is over. What the console has printed and has not been looked at yet is looked at first.
    pub(super) fn end(&mut self, end: TrialEnd) {
        self.flush(self.now);
        if let Some(text) = self.health.dropped() {
            self.emit(Body::Note { text });
        }
        self.enter(Phase::End);
        self.step = Step::Over;
        self.out.push_back(Action::End(end));
    }

    /// The machine is lost for no fault of the guest's. After a finding that is no news: what can still be gathered of it is.
    pub(super) fn lost_machine(&mut self, message: String) {
        if matches!(self.step, Step::Listen(_) | Step::Collecting) {
            self.emit(Body::Note { text: message });
        } else {
            self.farm_error(message);
        }
    }
}
