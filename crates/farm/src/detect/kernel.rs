//! What the kernel says on its console: its reports, a second boot, lost lines, detectors of its own that cannot work. Which text is a report
//! is known to `klpfarm-kmsg`; here a report becomes a finding.

use std::time::Duration;

use klpfarm_kmsg::{Report, Severity, Signal};
use klpfarm_model::{Body, Finding, FindingKind, ObservedKind, Phase, Source};

use super::cpus::Circle;
use super::health::Health;
use super::{blame, oom};

impl Health {
    /// `circle`: where the CPU that a report is about goes round, where its registers say more than the report.
    pub(crate) fn console(&mut self, now: Duration, signal: Signal, circle: Option<&Circle>) -> Vec<Body> {
        match signal {
            Signal::Report(report) => self.report(now, report, circle),
            Signal::Boot { line, release } => {
                self.boots += 1;
                if self.boots < 2 {
                    return Vec::new();
                }
                let evidence = format!("console line {line}: Linux version {release}");
                self.find(
                    now,
                    ObservedKind::Rebooted,
                    Source::Console,
                    "the machine restarted unexpectedly".into(),
                    evidence,
                )
            }
            Signal::Lost { line, count } => {
                let count = count.map_or_else(|| "some".to_owned(), |n| n.to_string());
                vec![Body::Note { text: format!("console line {line}: {count} kernel messages were lost") }]
            }
            Signal::Blind { kind, reason, .. } => {
                vec![Body::Blind { detector: FindingKind::Kernel(kind).rules().detector, reason }]
            }
            Signal::Livepatch { .. } => Vec::new(),
        }
    }

    fn report(&mut self, now: Duration, mut report: Report, circle: Option<&Circle>) -> Vec<Body> {
        // Complaints of a kernel that is still booting are its owner's business; what kills it is not.
        if self.phase == Phase::Boot && report.kind.severity() == Severity::Warning {
            return vec![Body::Note {
                text: format!("while booting, console line {}: {}", report.line, report.title),
            }];
        }
        let in_patch = circle.is_some() || blame::in_report(&report.text, &self.patches);
        if let Some(Circle { patch, function, looks: (own, all) }) = circle {
            report.title = format!("INFO: rcu detected stall in {function}");
            report.function = Some(function.clone());
            report.text.push_str(&format!(
                "\n[the farm: the CPU that stalls was in {function} of the patch {patch} at {own} of {all} looks at its registers]"
            ));
        }
        oom::tell_apart(&mut report, &self.workloads);
        self.follow_report(now, &report, in_patch);
        self.once(Finding {
            kind: FindingKind::Kernel(report.kind),
            title: report.title,
            source: Source::Console,
            function: report.function,
            workload: None,
            after_apply_ms: self.after_apply(now),
            line: Some(report.line),
            in_patch,
            corrupted: report.corrupted,
            evidence: report.text,
        })
    }
}
