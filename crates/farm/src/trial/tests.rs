//! The dispatcher against a fake machine: a guest that does as it is told, and the ways in which a real one does not.

mod counts;
mod endings;
mod fake;
mod forged;
mod lasting;
mod modules;
mod old;
mod short;
mod silence;
mod standing;

use klpfarm_model::{Arm, Detector, FindingKind, Start};
use klpfarm_stress::wire::{BlockedTask, FromGuest};
use klpfarm_vm::{Output, QmpEvent};

use super::*;
pub(super) use fake::plan;
use fake::{Fake, Faults, tell, tell_of, tell_of_aging};

#[test]
fn a_loaded_trial_goes_through_all_phases() {
    use Phase as P;
    let told = tell(Arm::Loaded, Faults::default());
    assert_eq!(told.end, TrialEnd::Completed);
    assert_eq!(
        told.phases(),
        [
            P::Boot,
            P::Age,
            P::Settle,
            P::Baseline,
            P::Apply,
            P::Transition,
            P::Soak,
            P::Reach,
            P::Revert,
            P::End
        ]
    );
    assert_eq!(told.findings(), []);
    let measured: Vec<Phase> =
        told.bodies.iter().filter(|(_, b)| matches!(b, Body::Measured(_))).map(|(p, _)| *p).collect();
    assert_eq!(measured, [P::Age, P::Age, P::Settle, P::Baseline, P::Soak, P::Revert]);
    assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::Reach { calls: 90, .. })));
    assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::Reverted { unloaded: true, .. })));
    let vitals: Vec<Phase> =
        told.bodies.iter().filter(|(_, b)| matches!(b, Body::Vitals(_))).map(|(p, _)| *p).collect();
    assert_eq!(vitals, [P::Boot, P::Age]);
    let uploads: Vec<&String> = told.commands.iter().filter(|c| c.starts_with("upload")).collect();
    assert_eq!(uploads, ["upload 0 0", "upload 0 1", "upload 0 2"]);
    let inside = told.bodies.iter().find_map(|(_, b)| match b {
        Body::Applied { inside, .. } => Some(inside.clone()),
        _ => None,
    });
    assert_eq!(inside, Some(BTreeMap::from([("vmlinux/do_it,1".to_owned(), 3)])));
}

/// Known before it is needed: on a dead machine it would be too late.
#[test]
fn sysrq_that_is_not_answered_is_a_blind_detector() {
    let blind = |told: &fake::Told| {
        told.bodies
            .iter()
            .any(|(_, b)| matches!(b, Body::Blind { detector, .. } if *detector == Detector::Sysrq))
    };
    let deaf = tell_of_aging(Faults { deaf_keys: u32::MAX, ..Faults::default() });
    assert_eq!((&deaf.end, blind(&deaf)), (&TrialEnd::Completed, true));
    // The line is being opened in the guest while the first keys are pressed.
    let slow = tell_of_aging(Faults { deaf_keys: 3, ..Faults::default() });
    assert_eq!((&slow.end, blind(&slow)), (&TrialEnd::Completed, false));
    let sound = tell_of_aging(Faults::default());
    assert_eq!((&sound.end, blind(&sound)), (&TrialEnd::Completed, false));
    assert!(sound.commands.contains(&"sysrq h".to_owned()), "{:?}", sound.commands);
    // A fork knows it from its checkpoint.
    let fork = tell(Arm::Loaded, Faults { forked: true, ..Faults::default() });
    assert!(!fork.commands.iter().any(|c| c.starts_with("sysrq")), "{:?}", fork.commands);
}

#[test]
fn a_fork_goes_on_where_its_checkpoint_was() {
    use Phase as P;
    let told = tell(Arm::Loaded, Faults { forked: true, ..Faults::default() });
    assert_eq!(told.end, TrialEnd::Completed);
    assert_eq!(told.phases()[..3], [P::Boot, P::Settle, P::Baseline]);
    assert!(matches!(told.asked[..2], [Ask::Hello, Ask::Resume { .. }]), "{:?}", told.asked);
    assert!(!told.asked.iter().any(|a| matches!(a, Ask::Start { .. } | Ask::Vitals)));
    let ready = |b: &Body| matches!(b, Body::MachineReady { fork_ms: Some(70), ssh_ms: None, .. });
    assert!(told.bodies.iter().any(|(_, b)| ready(b)));
    // No command needs SSH, which is slow under load.
    assert!(!told.commands.iter().any(|c| c.contains("mount")), "{:?}", told.commands);
    // A fork has booted: one more boot is one too many.
    let boot = Output::Console(b"[    0.000000] Linux version 6.1 (x@y) #1 SMP\n".to_vec());
    tell(Arm::Loaded, Faults { forked: true, after_apply: vec![(1, boot)], ..Faults::default() })
        .assert_only(ObservedKind::Rebooted);
}

#[test]
fn a_control_trial_never_sees_the_patch_and_counts_its_functions() {
    let told = tell(Arm::Control, Faults::default());
    assert_eq!(told.end, TrialEnd::Completed);
    assert!(
        !told.commands.iter().any(|c| c.starts_with("load") || c.starts_with("upload")),
        "{:?}",
        told.commands
    );
    assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::Reach { calls: 90, .. })));
}

#[test]
fn a_reapply_trial_applies_again_after_taking_back() {
    for no_transition_file in [false, true] {
        let told = tell(Arm::Reapply, Faults { no_transition_file, ..Faults::default() });
        assert_eq!(told.end, TrialEnd::Completed);
        let count = |wanted: fn(&Body) -> bool| told.bodies.iter().filter(|(_, b)| wanted(b)).count();
        assert_eq!(count(|b| matches!(b, Body::Applied { .. })), 3);
        assert_eq!(count(|b| matches!(b, Body::Reverted { .. })), 3);
        // On 4.4 the module stays and is enabled again in place.
        let loads = told.commands.iter().filter(|c| c.starts_with("load x.ko")).count();
        assert_eq!(loads, if no_transition_file { 1 } else { 3 });
    }
}

#[test]
fn a_stack_is_applied_in_order_and_taken_back_in_reverse() {
    let told = tell(Arm::Stack, Faults { forked: true, ..Faults::default() });
    assert_eq!(told.end, TrialEnd::Completed);
    let steps: Vec<&str> = told
        .commands
        .iter()
        .filter(|c| c.starts_with("load") || c.starts_with("rmmod"))
        .map(|c| c.split(" 2>").next().unwrap())
        .collect();
    assert_eq!(steps, ["load x.ko", "load y.ko", "rmmod y", "rmmod x"]);
}

#[test]
fn a_quiescent_trial_applies_with_the_load_stopped() {
    let told = tell(Arm::Quiescent, Faults::default());
    assert_eq!(told.end, TrialEnd::Completed);
    // With the load running at the moment of applying, a machine whose threads stop would be found; with it stopped it is not,
    // until the load starts again.
    assert!(told.phases().contains(&Phase::Soak));
}

#[test]
fn on_4_4_the_patch_is_in_force_at_once_and_never_unloaded() {
    let told = tell(Arm::Loaded, Faults { no_transition_file: true, ..Faults::default() });
    assert_eq!(told.end, TrialEnd::Completed);
    assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::TransitionDone { per_task: false, .. })));
    assert!(told.bodies.iter().any(|(_, b)| matches!(b, Body::Reverted { unloaded: false, .. })));
    assert!(!told.commands.iter().any(|c| c.starts_with("rmmod")));
}

#[test]
fn stalled_threads_are_found_and_named_after_the_patch() {
    let told = tell(Arm::Loaded, Faults { threads_stop: true, ..Faults::default() });
    told.assert_only(ObservedKind::ThreadStalled);
    assert!(told.findings()[0].1.contains("klp_f"), "{:?}", told.findings());
}

/// Some guests have a kernel thread that is never out of D state; one that falls into it later is another matter.
#[test]
fn a_task_that_was_always_blocked_is_no_finding() {
    let blocked = |comm: &str, for_ms| {
        let task = BlockedTask {
            pid: 2,
            tid: 2,
            comm: comm.into(),
            state: 'D',
            for_ms,
            wchan: String::new(),
            stack: "f+0x1/0x2\n".into(),
            thread: None,
        };
        Output::Probe(FromGuest::Blocked { at_ms: 0, tasks: vec![task], total: 1 })
    };
    let kinds = |usual: &str, later: &str| {
        let mut health = Health::new(&plan(), &Trial::new(1, Arm::Loaded, vec![0], 1), false);
        let mut at = |phase, comm: &str, for_ms| {
            let Output::Probe(message) = blocked(comm, for_ms) else { unreachable!() };
            health.phase(phase);
            health.probe(Duration::from_secs(1), &message, &Measure::default()).len()
        };
        (at(Phase::Baseline, usual, 7000), at(Phase::Soak, later, 60_000))
    };
    assert_eq!(kinds("odd/0", "odd/1"), (0, 0));
    assert_eq!(kinds("odd/0", "jbd2/vda"), (0, 1));
}

#[test]
fn a_silent_guest_is_found() {
    tell(Arm::Loaded, Faults { probe_stops: true, ..Faults::default() })
        .assert_only(ObservedKind::ProbeSilent);
}

#[test]
fn a_suspended_host_is_forgiven() {
    let told = tell(Arm::Loaded, Faults { host_pause: true, ..Faults::default() });
    assert_eq!((told.end.clone(), told.findings()), (TrialEnd::Completed, Vec::new()));
    assert!(told.seconds > 300);
}

#[test]
fn a_stalled_transition_is_found() {
    tell(Arm::Loaded, Faults { transition_hangs: true, ..Faults::default() })
        .assert_only(ObservedKind::TransitionStalled);
    tell(Arm::Loaded, Faults { revert_hangs: true, ..Faults::default() })
        .assert_only(ObservedKind::RevertStalled);
}

#[test]
fn a_refused_load_is_found() {
    let refused = Some((22, "inside f 1\nInvalid argument"));
    let told = tell(Arm::Quiescent, Faults { load: refused, ..Faults::default() });
    told.assert_only(ObservedKind::LoadRefused);
    let stuck = Some((124, "killed"));
    tell(Arm::Loaded, Faults { load: stuck, ..Faults::default() }).assert_only(ObservedKind::LoadStuck);
    let told = tell(Arm::Loaded, Faults { load_mute: true, ..Faults::default() });
    told.assert_only(ObservedKind::LoadStuck);
    // On a kernel that is slow at it a sound patch would be taken for one that is stuck.
    let mut slow = (*plan()).clone();
    slow.patches.iter_mut().for_each(|p| p.vermagic = "6.12 SMP".into());
    let trial = slow.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    let faults = Faults { load_mute: true, release: Some("6.12"), ..Faults::default() };
    let later = tell_of(Arc::new(slow), trial, faults);
    later.assert_only(ObservedKind::LoadStuck);
    assert!(later.seconds > told.seconds + 3 * 60, "{} and {} s", told.seconds, later.seconds);
    // The guest's own clock must not end it first.
    let limit = told.asked.iter().find_map(|ask| match ask {
        Ask::Load { limit_ms, .. } => Some(*limit_ms),
        _ => None,
    });
    assert!(limit.unwrap() > told.seconds * 1000, "{limit:?}");
}

#[test]
fn unloading_that_does_not_end_is_found() {
    tell(Arm::Loaded, Faults { unload_mute: true, ..Faults::default() })
        .assert_only(ObservedKind::RevertRefused);
}

#[test]
fn the_machines_own_words_are_findings() {
    let qmp = |event| Faults { after_apply: vec![(2, Output::Qmp(event))], ..Faults::default() };
    tell(Arm::Loaded, qmp(QmpEvent::Panicked)).assert_only(ObservedKind::Panicked);
    let reset = QmpEvent::Shutdown { reason: "guest-reset".into(), guest: true };
    tell(Arm::Loaded, qmp(reset)).assert_only(ObservedKind::Rebooted);
    let taint = Output::Probe(FromGuest::Taint { at_ms: 0, value: 1 << 9 | 1 << 15 });
    tell(Arm::Loaded, Faults { after_apply: vec![(2, taint)], ..Faults::default() })
        .assert_only(ObservedKind::Tainted);
    let expected = Output::Probe(FromGuest::Taint { at_ms: 0, value: 1 << 12 | 1 << 13 | 1 << 15 });
    let told = tell(Arm::Loaded, Faults { after_apply: vec![(2, expected)], ..Faults::default() });
    assert_eq!(told.findings(), []);
}

#[test]
fn a_second_boot_on_the_console_is_found() {
    let boot = || Output::Console(b"[    0.000000] Linux version 6.1 (x@y) #1 SMP\n".to_vec());
    let told = tell(Arm::Loaded, Faults { after_apply: vec![(1, boot()), (2, boot())], ..Faults::default() });
    told.assert_only(ObservedKind::Rebooted);
}

#[test]
fn qemu_ending_by_itself_is_the_farms_error() {
    let exited = Output::Exited { status: "signal: 9".into(), stderr: "killed".into() };
    let told = tell(Arm::Loaded, Faults { after_apply: vec![(2, exited)], ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("signal: 9")),
        "{:?}",
        told.end
    );
    let told =
        tell(Arm::Loaded, Faults { after_apply: vec![(2, Output::Closed("QMP"))], ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("the connection to QMP was lost in phase soak")),
        "{:?}",
        told.end
    );
    let failed = Output::Qmp(QmpEvent::IoError { reason: "No space left on device".into() });
    let told = tell(Arm::Loaded, Faults { after_apply: vec![(2, failed)], ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("disk full")),
        "{:?}",
        told.end
    );
}

#[test]
fn no_login_and_another_kernel_are_the_farms_errors() {
    let told = tell(Arm::Loaded, Faults { no_login: true, ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("no SSH login")),
        "{:?}",
        told.end
    );
    let told = tell(Arm::Loaded, Faults { no_port: true, ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("the machine's SSH port was lost in phase soak")),
        "{:?}",
        told.end
    );
    let told = tell(Arm::Loaded, Faults { release: Some("5.10"), ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("built for kernel 6.1")),
        "{:?}",
        told.end
    );
}

#[test]
fn a_machine_that_is_aged_gets_keys_of_its_own_or_is_of_no_use() {
    let told = tell_of_aging(Faults::default());
    assert_eq!(told.end, TrialEnd::Completed);
    assert_eq!(told.commands.iter().filter(|c| *c == "rekey").count(), 1, "{:?}", told.commands);
    let told = tell_of_aging(Faults { rekey: Some("read-only file system"), ..Faults::default() });
    assert!(
        matches!(&told.end, TrialEnd::FarmError { message } if message.contains("SSH keys of its own failed: read-only")),
        "{:?}",
        told.end
    );
    let none = tell(Arm::Loaded, Faults { rekey: Some("not asked for"), ..Faults::default() });
    assert_eq!(none.end, TrialEnd::Completed);
}

/// From a fork to its patch, only the guest is waited for.
#[test]
fn phases_of_no_length_do_not_wait_for_a_tick() {
    let mut plan = (*plan()).clone();
    plan.pipeline.phases.settle = Duration::ZERO;
    plan.pipeline.phases.baseline = Duration::ZERO;
    let trial = Trial { jitter: Duration::ZERO, ..Trial::new(1, Arm::Loaded, vec![0], 1) };
    let mut dispatcher =
        Dispatcher::new(Arc::new(plan), trial, Purpose::Trial(Start::Fork), Secret::new([9; 16]));
    let mut fake = Fake::new(Arm::Loaded, Faults { forked: true, ..Faults::default() });
    let mut queue = VecDeque::from([Input::Started(Ok(70))]);
    let mut applied = false;
    while let Some(input) = queue.pop_front() {
        for action in dispatcher.handle(Duration::ZERO, input) {
            match action {
                Action::Emit(_, body) => applied |= matches!(body, Body::Applied { .. }),
                other => queue.extend(fake.answer(other)),
            }
        }
    }
    assert!(applied, "{:?}", fake.commands);
}

#[test]
fn a_cpu_that_takes_no_interrupts_is_found_in_the_patch() {
    let told = tell(Arm::Loaded, Faults { cpu_stuck: Some(0xffff_ffff_c050_0123), ..Faults::default() });
    told.assert_only(ObservedKind::CpuStuck);
    let found = told.bodies.iter().find_map(|(_, b)| match b {
        Body::Finding(f) => Some(f),
        _ => None,
    });
    let found = found.unwrap();
    assert_eq!(found.title, "a CPU is stuck with interrupts off in code of the patch x");
    assert!(found.in_patch && found.after_apply_ms.is_some_and(|ms| ms < 2000), "{found:?}");
    let elsewhere = tell(Arm::Loaded, Faults { cpu_stuck: Some(0xffff_ffff_8100_0000), ..Faults::default() });
    assert_eq!(elsewhere.findings()[0].1, "a CPU is stuck with interrupts off");
}

/// Nothing but its CPUs can be seen of a machine that is dead: it must not need the probe.
#[test]
fn a_dead_machine_has_its_cpus_stuck() {
    let faults = Faults { cpu_stuck: Some(0xffff_ffff_c050_0123), probe_stops: true, ..Faults::default() };
    tell(Arm::Loaded, faults).assert_only(ObservedKind::CpuStuck);
}

#[test]
fn registers_that_cannot_be_had_are_a_blind_spot() {
    let told = tell(Arm::Loaded, Faults { no_registers: true, ..Faults::default() });
    assert_eq!(told.end, TrialEnd::Completed);
    let blind = |b: &Body| matches!(b, Body::Blind { detector, .. } if *detector == Detector::CpuStuck);
    assert_eq!(told.bodies.iter().filter(|(_, b)| blind(b)).count(), 1);
}

#[test]
fn a_log_that_cannot_be_written_to_is_a_blind_spot() {
    let told = tell(Arm::Loaded, Faults { no_kmsg: true, ..Faults::default() });
    assert_eq!(told.end, TrialEnd::Completed);
    let blind = |b: &Body| matches!(b, Body::Blind { detector, reason } if *detector == Detector::Console && reason.contains("kmsg"));
    assert_eq!(told.bodies.iter().filter(|(_, b)| blind(b)).count(), 1);
    assert_eq!(told.asked.iter().filter(|a| matches!(a, Ask::Kmsg { .. })).count(), 1);
}

#[test]
fn a_console_that_falls_silent_is_found() {
    let told = tell(Arm::Loaded, Faults { console_silent: true, ..Faults::default() });
    told.assert_only(ObservedKind::ConsoleSilent);
    assert_eq!(told.findings().len(), 1, "{:?}", told.findings());
}

#[test]
fn a_flooded_console_is_found() {
    let text = "[   12.345678] klp: madvise\r\n".repeat(8000);
    let flood = vec![(3, Output::Console(text.into_bytes()))];
    tell(Arm::Loaded, Faults { after_apply: flood, ..Faults::default() })
        .assert_only(ObservedKind::ConsoleFlood);
}

/// A hang that begins in the soak's last seconds: taking the patch back could end it unseen.
#[test]
fn no_soak_ends_while_somebody_hangs() {
    let soak = plan().soak().as_secs();
    for before_end in [1, 3, 8] {
        let faults = Faults { threads_stop: true, stop_after: soak - before_end, ..Faults::default() };
        let told = tell(Arm::Loaded, faults);
        told.assert_only(ObservedKind::ThreadStalled);
        assert_eq!(told.phases().iter().rev().take(2).collect::<Vec<_>>(), [&Phase::End, &Phase::Soak]);
    }
}

/// A login that nobody answers is no failure for as long as it waits, which may be longer than the soak.
#[test]
fn no_soak_ends_while_a_login_waits() {
    let plan = plan();
    let late = 8;
    assert!(plan.soak() < plan.pipeline.limits.ssh + Duration::from_secs(late));
    let told = tell(Arm::Loaded, Faults { login_mute: Some(late), ..Faults::default() });
    told.assert_only(ObservedKind::SshDead);
    assert_eq!(told.phases().iter().rev().take(2).collect::<Vec<_>>(), [&Phase::End, &Phase::Soak]);
}

/// Whoever goes on again has not hung: the soak ends then.
#[test]
fn a_soak_ends_when_all_have_gone_on() {
    let sound = tell(Arm::Loaded, Faults::default()).seconds;
    let limits = plan().pipeline.limits;
    assert!(sound < 120 && limits.stall >= Duration::from_secs(10));
    // A kernel thread sleeps when the soak ends, and wakes four seconds later.
    let soak = plan().soak().as_secs();
    let blocked = |tasks: Vec<BlockedTask>| {
        let total = u32::try_from(tasks.len()).unwrap();
        Output::Probe(FromGuest::Blocked { at_ms: 0, tasks, total })
    };
    let sleeper = BlockedTask {
        pid: 2,
        tid: 2,
        comm: "helper".into(),
        state: 'D',
        for_ms: 2000,
        wchan: String::new(),
        stack: String::new(),
        thread: None,
    };
    let after_apply = vec![(soak - 1, blocked(vec![sleeper])), (soak + 4, blocked(Vec::new()))];
    let told = tell(Arm::Loaded, Faults { after_apply, ..Faults::default() });
    assert_eq!((told.end.clone(), told.findings()), (TrialEnd::Completed, Vec::new()));
    assert!((sound + 2..sound + 8).contains(&told.seconds), "{} after {sound}", told.seconds);
}
