use klpfarm_kmsg::Kind as KernelKind;
use klpfarm_model::ObservedKind;

use klpfarm_model::Source;

use super::*;

const HANG: FindingKind = FindingKind::Observed(ObservedKind::ThreadStalled);
const SOFT_LOCKUP: FindingKind = FindingKind::Kernel(KernelKind::SoftLockup);
const WRONG: FindingKind = FindingKind::Observed(ObservedKind::WrongContent);
const OOM: FindingKind = FindingKind::Kernel(KernelKind::Oom);
const CPU_STUCK: FindingKind = FindingKind::Observed(ObservedKind::CpuStuck);
const CONFIRMED: FindingKind = FindingKind::Observed(ObservedKind::HangConfirmed);

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn at(seconds: f64) -> Look {
    let wall = s(seconds);
    Look { wall, now: wall, boot: Some(s(1000.0) + wall), day: s(1e9) + wall, stopped: false, speed: 1.0 }
}

/// Looks five times a second from `from` to `to`, each changed.
fn pass(host: &mut Host, from: u32, to: u32, change: impl Fn(&mut Look)) {
    for n in from * 5..to * 5 {
        let mut look = at(f64::from(n) * 0.2);
        change(&mut look);
        host.look(look);
    }
}

fn host() -> Host {
    let mut host = Host::new(s(60.0));
    pass(&mut host, 0, 10, |_| {});
    host
}

fn finding(kind: FindingKind, in_patch: bool) -> Finding {
    Finding {
        kind,
        title: format!("{kind} {in_patch}"),
        source: Source::Probe,
        function: None,
        workload: None,
        after_apply_ms: None,
        line: None,
        in_patch,
        corrupted: false,
        evidence: String::new(),
    }
}

fn found(host: &mut Host, at: f64, kind: FindingKind) {
    host.found(s(at), &finding(kind, false));
}

fn is_void(host: &Host) -> bool {
    matches!(host.judged(TrialEnd::Stopped, Some(1.0)), TrialEnd::Void { .. })
}

/// A host that stopped the machine from second 10 to second 35, which was in its soak.
fn stopped() -> Host {
    let mut host = host();
    host.phase(s(5.0), Phase::Soak);
    pass(&mut host, 10, 35, |l| l.stopped = true);
    pass(&mut host, 35, 40, |_| {});
    host
}

/// A host that did not let the farm run from second 10 to second 18.
fn late(phase: Phase) -> Host {
    let mut host = host();
    host.phase(s(5.0), phase);
    pass(&mut host, 18, 20, |_| {});
    host
}

#[test]
fn a_quiet_host_changes_nothing() {
    let mut host = host();
    pass(&mut host, 10, 100, |_| {});
    found(&mut host, 90.0, HANG);
    assert_eq!(host.judged(TrialEnd::Stopped, Some(1.0)), TrialEnd::Stopped);
    assert_eq!((host.hopeless(), host.notes()), (None, vec![]));
}

#[test]
fn a_machine_that_stood_still_says_nothing_more() {
    let mut host = host();
    pass(&mut host, 10, 35, |l| l.stopped = true);
    assert_eq!(host.hopeless(), None, "it still stands");
    pass(&mut host, 35, 36, |_| {});
    let why = host.hopeless().unwrap();
    assert!(why.starts_with("QEMU was stopped on the host for 25 s, at second 10 of the machine"), "{why}");
    assert_eq!(host.judged(TrialEnd::Completed, Some(1.0)), TrialEnd::Void { reason: why });
    assert_eq!(host.notes().len(), 1, "{:?}", host.notes());
    let unneeded = host.judged(TrialEnd::Unneeded, Some(1.0));
    assert_eq!(unneeded, TrialEnd::Unneeded);
}

#[test]
fn what_the_guest_says_of_the_pause_is_void_and_a_hard_finding_is_not() {
    let mut host = stopped();
    found(&mut host, 36.0, SOFT_LOCKUP);
    found(&mut host, 38.0, HANG);
    assert!(is_void(&host));
    found(&mut host, 39.0, WRONG);
    assert!(!is_void(&host));
    for hard in [OOM, CONFIRMED] {
        let mut host = stopped();
        found(&mut host, 36.0, hard);
        assert!(!is_void(&host), "{hard}: no lack of time takes memory, and a hang was confirmed");
    }
}

#[test]
fn what_was_found_before_counts_and_slowness_of_any_time_after_does_not() {
    for (at, void) in [(9.0, false), (10.5, true), (70.0, true), (96.0, true)] {
        let mut host = stopped();
        found(&mut host, at, HANG);
        assert_eq!(is_void(&host), void, "{at}");
    }
    // What blames the kernel more than slowness does is void only where the pause can have led to it.
    for (at, void) in [(9.0, false), (10.5, true), (70.0, true), (96.0, false)] {
        let mut host = stopped();
        found(&mut host, at, CPU_STUCK);
        assert_eq!(is_void(&host), void, "{at}");
    }
    let mut host = host();
    found(&mut host, 9.0, HANG);
    pass(&mut host, 10, 35, |l| l.stopped = true);
    found(&mut host, 30.0, SOFT_LOCKUP);
    assert!(!is_void(&host), "one of them is not the host's");
}

#[test]
fn a_hang_in_the_code_of_the_patch_is_never_void_unless_it_ended() {
    for kind in [HANG, SOFT_LOCKUP] {
        let mut host = stopped();
        host.found(s(36.0), &finding(kind, true));
        assert!(!is_void(&host), "{kind}");
        host.stall_ended("another stall");
        assert!(!is_void(&host), "{kind}");
        host.stall_ended(&finding(kind, true).title);
        assert!(is_void(&host), "{kind}");
        host.found(s(37.0), &finding(HANG, true));
        assert!(!is_void(&host), "each of them must have ended");
    }
    let mut host = stopped();
    host.found(s(36.0), &finding(CPU_STUCK, true));
    host.stall_ended(&finding(CPU_STUCK, true).title);
    assert!(!is_void(&host), "a CPU that is stuck in the patch is no stall");
}

#[test]
fn a_moment_is_no_pause() {
    let mut host = host();
    host.look(Look { stopped: true, ..at(10.0) });
    host.look(Look { stopped: true, ..at(10.6) });
    host.look(at(10.8));
    pass(&mut host, 11, 12, |_| {});
    found(&mut host, 11.0, HANG);
    assert!(!is_void(&host));
}

#[test]
fn a_host_that_slept_is_told_by_the_clock_that_went_on() {
    let mut host = host();
    let woken = |l: &mut Look| (l.boot, l.day) = (l.boot.map(|b| b + s(3600.0)), l.day + s(3600.0));
    pass(&mut host, 10, 12, woken);
    assert!(host.hopeless().unwrap().starts_with("the host slept for 3600 s"));
    assert_eq!(host.notes().len(), 1, "the time of day went on as it should: {:?}", host.notes());
}

#[test]
fn a_clock_that_is_set_is_worth_a_word_only() {
    let mut host = host();
    pass(&mut host, 10, 12, |l| l.day -= s(7200.0));
    found(&mut host, 11.0, HANG);
    assert!(!is_void(&host));
    assert_eq!(host.notes(), ["the host's time of day was set by -7200 s; no limit goes by it"]);
    pass(&mut host, 13, 14, |_| {});
    assert_eq!(host.notes(), ["the host's time of day was set by -7200 s, +7200 s; no limit goes by it"]);
}

#[test]
fn trouble_voids_a_trial_whatever_was_found_in_it_and_if_nothing_was() {
    let clean = late(Phase::Soak);
    let TrialEnd::Void { reason } = clean.judged(TrialEnd::Completed, Some(1.0)) else { panic!("it counts") };
    assert_eq!(
        reason,
        "the host did not let klpfarm run for 8 s, at second 10 of the machine: the trial says nothing and is repeated"
    );
    assert_eq!(clean.hopeless(), None, "it goes on: a hard finding would count");
    let mut slow = late(Phase::Soak);
    found(&mut slow, 19.0, HANG);
    assert_eq!(slow.judged(TrialEnd::Stopped, Some(1.0)), TrialEnd::Void { reason });
    // Not needed any more, and nothing found: that is void already.
    assert_eq!(late(Phase::Soak).judged(TrialEnd::Unneeded, Some(1.0)), TrialEnd::Unneeded);
    let lost = TrialEnd::FarmError { message: "QEMU ended".into() };
    assert_eq!(slow.judged(lost.clone(), Some(0.1)), lost);
}

#[test]
fn trouble_before_the_baseline_spoils_only_what_was_found_soon_after() {
    let clean = late(Phase::Settle);
    assert_eq!(clean.judged(TrialEnd::Completed, Some(1.0)), TrialEnd::Completed);
    for (at, void) in [(19.0, true), (70.0, true), (90.0, false)] {
        let mut host = late(Phase::Settle);
        host.phase(s(21.0), Phase::Baseline);
        found(&mut host, at, HANG);
        assert_eq!(is_void(&host), void, "{at}");
    }
}

#[test]
fn a_host_that_is_merely_busy_is_no_trouble() {
    let mut slow = host();
    slow.phase(s(5.0), Phase::Soak);
    pass(&mut slow, 10, 29, |l| l.speed = SLOWEST);
    found(&mut slow, 28.0, HANG);
    assert!(!is_void(&slow), "busy hosts are what the pace is for");
    pass(&mut slow, 29, 40, |l| l.speed = SLOWEST);
    assert!(is_void(&slow));
    assert_eq!(slow.troubles.len(), 1);
    // A look that is four seconds late.
    let mut late = host();
    late.phase(s(5.0), Phase::Soak);
    pass(&mut late, 14, 20, |_| {});
    assert_eq!(late.judged(TrialEnd::Completed, Some(1.0)), TrialEnd::Completed);
}

#[test]
fn on_an_overloaded_host_slowness_is_void_and_a_clean_trial_is_clean() {
    let judged = |kinds: &[(FindingKind, bool)], ended: bool, share: f64| {
        let mut host = host();
        host.phase(s(5.0), Phase::Soak);
        for (kind, in_patch) in kinds {
            host.found(s(9.0), &finding(*kind, *in_patch));
            if ended {
                host.stall_ended(&finding(*kind, *in_patch).title);
            }
        }
        let end = if kinds.is_empty() { TrialEnd::Completed } else { TrialEnd::Stopped };
        let judged = host.judged(end.clone(), Some(share));
        (judged != end).then_some(judged)
    };
    let Some(TrialEnd::Void { reason }) = judged(&[(HANG, false)], false, 0.45) else { panic!("it counts") };
    assert!(reason.starts_with("host overloaded: this machine got 45 % of its planned CPU time"), "{reason}");
    assert!(judged(&[(HANG, false), (SOFT_LOCKUP, false)], false, 0.69).is_some());
    assert_eq!(judged(&[(HANG, false)], false, 0.7), None, "that was enough");
    assert_eq!(judged(&[], false, 0.1), None, "clean is clean");
    for hard in [WRONG, OOM, CPU_STUCK, CONFIRMED] {
        assert_eq!(judged(&[(HANG, false), (hard, false)], true, 0.1), None, "{hard}");
    }
    assert_eq!(judged(&[(HANG, true)], false, 0.1), None, "in the code of the patch, and it lasted");
    assert!(judged(&[(HANG, true)], true, 0.1).is_some());
    assert_eq!(host().judged(TrialEnd::Completed, None), TrialEnd::Completed);
}

#[test]
fn troubles_are_bounded() {
    let mut host = host();
    for n in 0..500_u32 {
        host.look(at(10.0 + f64::from(n) * 6.0));
    }
    assert_eq!(host.troubles.len(), MOST);
    found(&mut host, 3000.0, HANG);
    assert!(is_void(&host), "the latest is known");
}

#[test]
fn states_and_uptimes_are_read() {
    assert!(is_stopped("7 (qemu) x) T 1 2") && is_stopped("7 (q) t 1"));
    assert!(!is_stopped("7 (T T) S 1") && !is_stopped(""));
    assert_eq!(seconds("12.34 99.00\n"), Some(s(12.34)));
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let look = Look::take(Duration::ZERO, Duration::ZERO, 1.0, Some(child.id()));
    assert!(!look.stopped && look.boot.is_some());
    child.kill().unwrap();
    child.wait().unwrap();
}
