//! Virtual machines that QEMU stopped.

use super::*;

fn stop(status: Option<&'static str>, at: u64) -> Faults {
    Faults { status, after_apply: vec![(at, Output::Qmp(QmpEvent::Stopped))], ..Faults::default() }
}

#[test]
fn a_machine_that_qemu_stopped_is_the_farms_error_in_every_arm() {
    for arm in [Arm::Loaded, Arm::Control, Arm::Quiescent, Arm::Reapply, Arm::Stack] {
        for revert in [0, 2] {
            // In the soak, and while the patch is taken back.
            for at in [2, 29, 30, 31] {
                let revert = Some(Duration::from_secs(revert));
                let told = tell(arm, Faults { revert, ..stop(Some("internal-error"), at) });
                if told.end != TrialEnd::Completed {
                    told.assert_farm_error("internal-error");
                }
                assert!(told.end != TrialEnd::Completed || at >= 30, "{arm} {at}");
                assert_eq!(told.findings(), [], "{arm} {at}");
            }
        }
    }
    tell(Arm::Loaded, stop(Some("io-error"), 2)).assert_farm_error("io-error");
    tell(Arm::Loaded, stop(Some("paused"), 2)).assert_farm_error("paused");
    tell(Arm::Loaded, stop(None, 2)).assert_farm_error("does not say why");
}

#[test]
fn a_panic_stays_a_finding() {
    tell(Arm::Loaded, stop(Some("guest-panicked"), 2)).assert_only(ObservedKind::Panicked);
    let after_apply = vec![(2, Output::Qmp(QmpEvent::Panicked)), (2, Output::Qmp(QmpEvent::Stopped))];
    let told = tell(Arm::Loaded, Faults { status: Some("guest-panicked"), after_apply, ..Faults::default() });
    told.assert_only(ObservedKind::Panicked);
    assert_eq!(told.findings().len(), 1);
}

/// Whoever stops a machine for a moment and lets it run again has cost it nothing.
#[test]
fn a_machine_that_runs_again_is_forgiven() {
    let after_apply = vec![(2, Output::Qmp(QmpEvent::Stopped)), (5, Output::Qmp(QmpEvent::Resumed))];
    tell(Arm::Loaded, Faults { status: Some("paused"), after_apply, ..Faults::default() }).assert_clean();
    // It ran before the question came.
    let told = tell(Arm::Loaded, Faults { status: Some("running"), ..stop(None, 2) });
    assert_ne!(told.end, TrialEnd::Completed, "the fake machine says nothing more");
}

/// What is found of a machine before it stops is not lost.
#[test]
fn a_finding_before_it_counts() {
    let taint = Output::Probe(FromGuest::Taint { at_ms: 0, value: 1 << 9 });
    let after_apply = vec![(2, taint), (3, Output::Qmp(QmpEvent::Stopped))];
    let told = tell(Arm::Loaded, Faults { status: Some("internal-error"), after_apply, ..Faults::default() });
    told.assert_only(ObservedKind::Tainted);
}
