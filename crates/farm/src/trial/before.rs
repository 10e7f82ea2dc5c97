//! Reporting findings, and telling those that show only now from those that began now: what a machine said before a patch was applied is
//! no fault of the patch. The order decides, never a clock of the guest's, which a patch may break.

use std::time::Duration;

use klpfarm_model::{Body, Phase};

use super::kept::kept;
use super::{Dispatcher, Step};

/// The moment at which applying began for the first time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    pub(super) at: Duration,
    /// The phase that was left for it.
    phase: Phase,
    /// The latest line of the console that had begun by then.
    pub(super) line: u64,
}

impl Dispatcher {
    /// A patch is to be applied for the first time. What the machine has to say by itself is heard first: what was printed before a
    /// heartbeat that is written now; then its taint, and what the workloads saw, which the probe reports before it.
    pub(super) fn look_before(&mut self, now: Duration, patch: usize) {
        self.step = Step::Look { patch, since: now, asked: false };
        self.beat(now);
        self.look_on(now);
    }

    /// A console from which nothing comes is not waited for.
    pub(super) fn look_on(&mut self, now: Duration) {
        let Step::Look { patch, since, asked } = self.step else { return };
        if asked {
            if now >= self.deadline {
                self.farm_error(format!("the probe did not answer in phase {}", self.phase));
            } else if now >= self.poll_at {
                self.ask_taint(now);
            }
        } else if self.console.heard_all_before(since + Duration::from_millis(1))
            || now >= since + self.scaled(5)
        {
            self.step = Step::Look { patch, since, asked: true };
            self.deadline = now + self.scaled(20);
            self.ask_taint(now);
        }
    }

    /// Applying begins.
    pub(super) fn remember_before(&mut self, now: Duration) {
        let (complete, begun) = self.lines;
        self.before.get_or_insert(Before { at: now, phase: self.phase, line: complete + u64::from(begun) });
    }

    /// Text of the console has come.
    pub(super) fn count_lines(&mut self, bytes: &[u8]) {
        let ends = bytes.iter().filter(|b| **b == b'\n').count();
        self.lines.0 += u64::try_from(ends).unwrap_or(u64::MAX);
        if let Some(last) = bytes.last() {
            self.lines.1 = *last != b'\n';
        }
        if self.step == Step::Collecting {
            self.nmi_panic |= super::kept::panics_of_nmi(bytes);
        }
    }

    /// Report what the rules of health say; the first finding leads to evidence and the end.
    pub(super) fn report(&mut self, now: Duration, bodies: Vec<Body>) {
        self.report_of(now, bodies, false);
    }

    /// The same, of what began before applying did.
    pub(super) fn report_of(&mut self, now: Duration, mut bodies: Vec<Body>, before: bool) {
        if self.step == Step::Collecting {
            let nmi_panic = self.nmi_panic;
            bodies.retain(|b| kept(b, nmi_panic));
        }
        let phase = self.before.filter(|_| before).map_or(self.phase, |b| b.phase);
        let mut found = false;
        for mut body in bodies {
            if let Body::Finding(finding) = &mut body {
                found = true;
                if before {
                    finding.after_apply_ms = None;
                }
                self.snapshot.hold();
                self.findings.push(format!("[{}] {}", finding.kind, finding.title));
            }
            self.out.push_back(super::Action::Emit(phase, body));
        }
        if found && !matches!(self.step, Step::Listen(_) | Step::Collecting | Step::Over) {
            self.step = Step::Listen(now + self.scaled(10));
        }
    }
}
