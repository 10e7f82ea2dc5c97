//! Short trials: over as soon as everything is seen to make progress, and no sooner.

use super::fake::{Told, tell_short};
use super::*;

/// Seconds for which a short trial looks at least, from applying on.
const OBSERVED: u64 = 5;

fn loaded(faults: Faults) -> Told {
    tell_short(Arm::Loaded, faults)
}

#[test]
fn a_sound_one_applies_looks_and_ends() {
    let told = loaded(Faults { forked: true, ..Faults::default() });
    told.assert_clean();
    let phases = [Phase::Boot, Phase::Settle, Phase::Apply, Phase::Transition, Phase::Soak, Phase::End];
    assert_eq!(told.phases(), phases);
    assert!(told.seconds <= 2 + 2 + OBSERVED + 4, "{}", told.seconds);
    // The very end is not in it.
    assert!(told.after_load + 1 >= OBSERVED, "{}", told.after_load);
    let is_measured = |(phase, body): &(Phase, Body)| {
        matches!(body, Body::Measured(_)) && matches!(phase, Phase::Baseline | Phase::Soak)
    };
    assert!(!told.bodies.iter().any(is_measured), "it is compared with nothing");
    assert!(!told.bodies.iter().any(|(_, b)| matches!(b, Body::Reverted { .. } | Body::Reach { .. })));
}

#[test]
fn all_short_arms_end_by_themselves() {
    for arm in [Arm::Control, Arm::Loaded, Arm::Reapply, Arm::Stack] {
        tell_short(arm, Faults { forked: true, ..Faults::default() }).assert_clean();
        tell_short(arm, Faults::default()).assert_clean();
    }
}

/// What hangs while it is observed is never missed, however near to the end it begins.
#[test]
fn whoever_hangs_is_found() {
    for stop_after in 0..=OBSERVED {
        for hidden in [false, true] {
            loaded(Faults { threads_stop: true, stop_after, hidden, ..Faults::default() })
                .assert_only(ObservedKind::ThreadStalled);
        }
    }
}

#[test]
fn whatever_else_falls_silent_is_found() {
    loaded(Faults { console_silent: true, ..Faults::default() }).assert_only(ObservedKind::ConsoleSilent);
    loaded(Faults { probe_stops: true, ..Faults::default() }).assert_only(ObservedKind::ProbeSilent);
    let cpu_stuck = Some(0xffff_ffff_c050_0123);
    loaded(Faults { cpu_stuck, ..Faults::default() }).assert_only(ObservedKind::CpuStuck);
    loaded(Faults { login_mute: Some(0), ..Faults::default() }).assert_only(ObservedKind::SshDead);
}

/// A host that connects nobody for a while proves nothing of the guest: a login is tried again and waited for.
#[test]
fn a_refused_connection_is_no_login() {
    loaded(Faults { refused: 3, ..Faults::default() }).assert_clean();
    loaded(Faults { refused: 1000, ..Faults::default() }).assert_farm_error("SSH port");
}

/// A thread that is slow and does not hang is waited for, and is no finding.
#[test]
fn what_goes_on_again_is_clean() {
    let stall_s = Some(6);
    let hidden = true;
    let told = loaded(Faults { threads_stop: true, stop_after: 3, stall_s, hidden, ..Faults::default() });
    told.assert_clean();
    assert!(told.after_load >= 8, "{}", told.after_load);
}
