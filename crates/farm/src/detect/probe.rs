//! `probe-silent`: no line of the probe for the limit `probe`, or something that it reported before no longer comes.

use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, Source};

use super::health::{Health, is_silent};

impl Health {
    /// The guest no longer reports something that it reported before, so that what shows by it is no longer seen.
    pub(crate) fn unable(&mut self, now: Duration, what: &str, evidence: String) -> Vec<Body> {
        let title = format!("the guest no longer reports {what}");
        self.find(now, ObservedKind::ProbeSilent, Source::Probe, title, evidence)
    }

    /// What the probe's silence tells.
    pub(super) fn probe_silence(&mut self, now: Duration) -> Vec<Body> {
        if is_silent(now, self.probe_at, self.probe) {
            let evidence =
                format!("no line from the probe for {:.0} s while QEMU runs", self.probe.as_secs_f64());
            let title = "the guest went silent".to_owned();
            return self.find(now, ObservedKind::ProbeSilent, Source::Probe, title, evidence);
        }
        // It comes every second while the guest can read it.
        if is_silent(now, self.memory_at, self.probe * 3) {
            self.memory_at = None;
            let evidence = "other lines of the probe still come".to_owned();
            return self.unable(now, "how much memory is in use", evidence);
        }
        Vec::new()
    }
}
