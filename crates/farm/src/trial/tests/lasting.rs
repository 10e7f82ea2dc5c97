//! What becomes of a stall: it ends, or it is a hang, or that stays open.

use super::*;

fn stall(faults: Faults) -> fake::Told {
    tell(Arm::Loaded, Faults { threads_stop: true, stop_after: 3, ..faults })
}

fn ended(told: &fake::Told) -> Vec<(String, u64)> {
    let ended = |(_, body): &(Phase, Body)| match body {
        Body::StallEnded { title, lasted_ms } => Some((title.clone(), *lasted_ms)),
        _ => None,
    };
    told.bodies.iter().filter_map(ended).collect()
}

#[test]
fn threads_that_stay_in_the_patch_while_all_others_work_hang() {
    let told = stall(Faults { others: Some(true), ..Faults::default() });
    assert_eq!(told.end, TrialEnd::Stopped);
    assert_eq!(told.of_kind(ObservedKind::ThreadStalled).len(), 1);
    let [(_, hang)] = &told.of_kind(ObservedKind::HangConfirmed)[..] else { panic!("{:?}", told.findings()) };
    assert_eq!(hang.title, "tasks hang in klp_f: no progress while the rest of the machine runs");
    assert!(hang.in_patch && hang.function.as_deref() == Some("klp_f"), "{hang:?}");
    assert!(hang.evidence.contains("no progress for 30 s") && hang.evidence.contains("3 of 3"), "{hang:?}");
    assert_eq!(ended(&told), []);
    assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::Evidence { .. })));
}

#[test]
fn a_stall_that_ends_is_no_hang() {
    for seconds in [12, 18, 25] {
        let stall_s = Some(seconds);
        let told = stall(Faults { others: Some(true), stall_s, ..Faults::default() });
        assert!(told.of_kind(ObservedKind::HangConfirmed).is_empty(), "{:?}", told.findings());
        let [(title, lasted_ms)] = &ended(&told)[..] else { panic!("{seconds}: {:?}", ended(&told)) };
        assert_eq!(*title, told.findings()[0].1);
        assert!(lasted_ms.abs_diff(seconds * 1000) < 1000, "{lasted_ms}");
        assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::Evidence { .. })));
    }
}

/// A host that starves the whole machine has all threads stall, some of them in the patch.
#[test]
fn a_machine_that_stands_still_as_a_whole_is_no_hang() {
    let told =
        stall(Faults { others: Some(false), no_port: false, login_mute: Some(0), ..Faults::default() });
    assert!(told.of_kind(ObservedKind::HangConfirmed).is_empty(), "{:?}", told.findings());
    assert_eq!(told.end, TrialEnd::Stopped);
}

/// Where no thread is left that could make progress, logins show that the machine does.
#[test]
fn logins_show_that_the_machine_runs() {
    for others in [None, Some(false)] {
        let told = stall(Faults { others, ..Faults::default() });
        let [(_, hang)] = &told.of_kind(ObservedKind::HangConfirmed)[..] else {
            panic!("{:?}", told.findings())
        };
        assert!(hang.evidence.contains("logins succeeded"), "{hang:?}");
    }
}

/// A stall elsewhere is reported with its end, and is waited for no longer than before.
#[test]
fn a_stall_outside_the_patch_is_never_confirmed() {
    let told = stall(Faults { others: Some(true), elsewhere: true, ..Faults::default() });
    assert!(told.of_kind(ObservedKind::HangConfirmed).is_empty());
    assert!(told.after_load <= 3 + 10 + 12, "{}", told.after_load);
    let told = stall(Faults { others: Some(true), elsewhere: true, stall_s: Some(14), ..Faults::default() });
    assert_eq!(ended(&told).len(), 1);
}

/// A pause of the host stops all machines: what follows is no hang.
#[test]
fn a_pause_of_the_host_confirms_nothing() {
    let told = stall(Faults { others: Some(true), stall_s: Some(12), host_pause: true, ..Faults::default() });
    assert!(told.of_kind(ObservedKind::HangConfirmed).is_empty(), "{:?}", told.findings());
}

/// The kernel's own report of a task, with the patch on its stack, is followed up in the probe's list.
#[test]
fn a_hung_task_of_the_kernels_is_followed_up() {
    let text = "[  120.512345] INFO: task w:8 blocked for more than 10 seconds.\n\
        [  120.512345]       Tainted: G           O  K   6.1.0-41-cloud-amd64 #1\n\
        [  120.512345] \"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.\n\
        [  120.512345] task:w   state:D stack:0     pid:8  ppid:871    flags:0x00004002\n\
        [  120.512345] Call Trace:\n[  120.512345]  klp_f+0x5c/0x1f0 [x]\n[  120.512345]  do_syscall_64+0x5c/0x1f0\n";
    let after_apply = vec![(8, Output::Console(text.as_bytes().to_vec()))];
    let told = stall(Faults { others: Some(true), after_apply, ..Faults::default() });
    let kind = FindingKind::Kernel(klpfarm_kmsg::Kind::HungTask);
    assert!(matches!(&told.of_kind(kind)[..], [(_, f)] if f.in_patch));
    assert_eq!(told.of_kind(ObservedKind::HangConfirmed).len(), 1, "{:?}", told.findings());
}

#[test]
fn what_breaks_while_evidence_is_gathered_counts() {
    let oops = "[   99.100000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n\
        [   99.100000] Oops: 0000 [#1] PREEMPT SMP NOPTI\n\
        [   99.100000] CPU: 0 PID: 1234 Comm: w Tainted: G           O  K   6.1.0 #1\n\
        [   99.100000] RIP: 0010:klp_f+0x2c/0x70 [x]\n[   99.100000] Call Trace:\n[   99.100000]  do_exit+0x5c/0x1f0\n\
        [   99.100000] ---[ end trace 0000000000000000 ]---\n";
    let lockup = "[   99.100000] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [w:1234]\n\
        [   99.100000] CPU: 1 PID: 1234 Comm: w Tainted: G           O  K   6.1.0 #1\n\
        [   99.100000] RIP: 0010:f+0x2c/0x70\n[   99.100000] Call Trace:\n[   99.100000]  do_exit+0x5c/0x1f0\n";
    let console = |text: &str| Output::Console(text.as_bytes().to_vec());
    let hard = FindingKind::Kernel(klpfarm_kmsg::Kind::NullDeref);
    let soft = FindingKind::Kernel(klpfarm_kmsg::Kind::SoftLockup);
    let fault = |output| {
        // Evidence is gathered from 3 + 10 + 10 s on.
        let after_apply = vec![(28, output), (29, console(&"[   99.200000] x\n".repeat(60)))];
        stall(Faults { elsewhere: true, collecting_s: Some(15), after_apply, ..Faults::default() })
    };
    assert_eq!(fault(console(oops)).of_kind(hard).len(), 1);
    assert!(fault(console(lockup)).of_kind(soft).is_empty(), "the farm makes the guest stand still");
    assert_eq!(fault(Output::Qmp(QmpEvent::Panicked)).of_kind(ObservedKind::Panicked).len(), 1);
    assert_eq!(fault(Output::Qmp(QmpEvent::Reset)).of_kind(ObservedKind::Rebooted).len(), 1);
    let nmi = "[   99.100000] Kernel panic - not syncing: NMI: Not continuing\n";
    let after_apply = vec![(28, console(nmi)), (29, Output::Qmp(QmpEvent::Panicked))];
    let told = stall(Faults { elsewhere: true, collecting_s: Some(15), after_apply, ..Faults::default() });
    assert!(told.of_kind(ObservedKind::Panicked).is_empty());
}
