//! `wrong-errno`, `wrong-content`, `workload-died`: what the workloads say of the answers they got, at once.

use std::time::Duration;

use klpfarm_model::{Body, Finding, ObservedKind, Source};
use klpfarm_stress::wire::{Fault, FaultKind};

use super::health::Health;

impl Health {
    pub(super) fn fault(&mut self, now: Duration, fault: &Fault) -> Vec<Body> {
        let (kind, what) = match fault.kind {
            FaultKind::WrongErrno => (ObservedKind::WrongErrno, "wrong result of"),
            FaultKind::WrongContent => (ObservedKind::WrongContent, "wrong content after"),
            FaultKind::Died => (ObservedKind::WorkloadDied, "a process died in"),
            // It ran until now: what keeps it from going on may well be the patch, and the control arm tells.
            FaultKind::CannotRun => (ObservedKind::WorkloadDied, "can't run on:"),
        };
        let finding = Finding {
            kind: kind.into(),
            title: format!("{}: {what} {}", fault.workload, fault.op),
            source: Source::Workload,
            function: None,
            workload: Some(fault.workload.clone()),
            after_apply_ms: self.after_apply(now),
            line: None,
            in_patch: false,
            corrupted: false,
            evidence: fault.detail.clone(),
        };
        self.once(finding)
    }
}
