//! Detectors that worked and no longer do, and hosts that are late.

use super::*;

#[test]
fn threads_without_progress_are_found_whatever_the_list_of_tasks_shows() {
    for revert in [0, 2] {
        for stop_after in [0, 3, 20, 27, 29] {
            let revert = Some(Duration::from_secs(revert));
            let faults = Faults { threads_stop: true, hidden: true, stop_after, revert, ..Faults::default() };
            let told = tell(Arm::Loaded, faults);
            told.assert_only(ObservedKind::ThreadStalled);
            assert_eq!(told.findings()[0].1, "w: threads finish no operation");
        }
    }
    let told = tell(Arm::Control, Faults { threads_stop: true, hidden: true, ..Faults::default() });
    told.assert_only(ObservedKind::ThreadStalled);
}

/// A program of the guest that exits now and then is no thread that must finish something every ten seconds; one that finished operations
/// often enough before the patch is.
#[test]
fn a_program_takes_as_long_as_it_likes() {
    let mut plan = (*plan()).clone();
    plan.workloads[0].run.builtin = None;
    plan.workloads[0].run.command = Some(vec!["stress-ng".into()]);
    let name = plan.workloads[0].name.clone();
    let found = |ops: u64| {
        let mut health = Health::new(&plan, &Trial::new(1, Arm::Loaded, vec![0], 1), true);
        let mut measure = Measure::default();
        let mut tell = |health: &mut Health, now: u64, message: FromGuest| {
            measure.take(&message);
            health.probe(Duration::from_secs(now), &message, &measure);
            health.tick(Duration::from_secs(now), &measure).len()
        };
        let thread = klpfarm_stress::wire::Thread {
            id: 1,
            workload: name.clone(),
            process: 0,
            thread: 0,
            pid: 7,
            tid: 8,
            counted: true,
        };
        tell(&mut health, 1, FromGuest::Thread(thread));
        let workload = klpfarm_model::event::WorkloadMeasure { ops, ..Default::default() };
        let workloads = BTreeMap::from([(name.clone(), workload)]);
        let measured = klpfarm_model::event::Measured { window_ms: 10_000, workloads, resources: Vec::new() };
        health.baseline(BTreeMap::new(), &measured);
        let p = klpfarm_stress::wire::ThreadProgress {
            id: 1,
            ops: 5,
            latency_us: 0,
            idle_ms: 45_000,
            errors: 0,
            errno: 0,
        };
        tell(&mut health, 60, FromGuest::Progress { at_ms: 0, threads: vec![p] })
    };
    assert_eq!((found(2), found(3)), (0, 1));
}

/// Lines of other kinds still come.
#[test]
fn progress_that_is_no_longer_told_is_found() {
    let threads_stop = Faults { threads_stop: true, hidden: true, ..Faults::default() };
    for faults in [threads_stop, Faults::default()] {
        let told = tell(Arm::Loaded, Faults { progress_stops: Some(3), ..faults });
        told.assert_only(ObservedKind::ProbeSilent);
        assert_eq!(told.findings()[0].1, "the guest no longer reports the workloads' progress");
    }
}

#[test]
fn a_log_that_can_no_longer_be_written_to_is_found() {
    for arm in [Arm::Loaded, Arm::Quiescent, Arm::Control] {
        let told = tell(arm, Faults { kmsg_fails: true, ..Faults::default() });
        told.assert_only(ObservedKind::ConsoleSilent);
    }
}

#[test]
fn registers_that_are_no_longer_told_end_the_trial() {
    for arm in [Arm::Loaded, Arm::Reapply] {
        let mut plan = (*plan()).clone();
        plan.pipeline.phases.soak = Duration::from_secs(120);
        let trial = plan.trials.iter().find(|t| t.arm == arm).unwrap().clone();
        let told = tell_of(Arc::new(plan), trial, Faults { registers_stop: true, ..Faults::default() });
        told.assert_farm_error("registers of the virtual CPUs");
    }
}

#[test]
fn what_the_guest_can_no_longer_read_is_found() {
    let unable =
        FromGuest::Unable { at_ms: 1, what: "its list of tasks".into(), detail: "/proc is empty".into() };
    for arm in [Arm::Loaded, Arm::Control] {
        let after_apply = vec![(2, Output::Probe(unable.clone()))];
        let told = tell(arm, Faults { after_apply, ..Faults::default() });
        told.assert_only(ObservedKind::ProbeSilent);
        assert_eq!(told.findings()[0].1, "the guest no longer reports its list of tasks");
    }
    let memory = FromGuest::Memory {
        at_ms: 1,
        available_kib: 1,
        slab_kib: 1,
        slab_unreclaimable_kib: 1,
        unaccounted_kib: 1,
        open_files: 1,
        descriptors: 1,
        tasks: 1,
        zombies: 1,
    };
    let mut plan = (*plan()).clone();
    plan.pipeline.phases.soak = Duration::from_secs(60);
    let trial = plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    let after_apply = vec![(2, Output::Probe(memory))];
    let told = tell_of(Arc::new(plan), trial, Faults { after_apply, ..Faults::default() });
    told.assert_only(ObservedKind::ProbeSilent);
}

/// One connection that the host refuses is no lost machine.
#[test]
fn a_refused_connection_is_forgotten_when_the_next_one_works() {
    for refused in [1, 2, 4] {
        tell(Arm::Loaded, Faults { refused, ..Faults::default() }).assert_clean();
    }
    tell(Arm::Loaded, Faults { refused: u32::MAX, ..Faults::default() })
        .assert_farm_error("the machine's SSH port was lost in phase soak");
}

/// A host on which every tick is late must not undo all time.
#[test]
fn a_dead_guest_is_found_though_every_tick_is_late() {
    for tick_ms in [1200, 1300, 2000] {
        let faults = || Faults { tick_ms: Some(tick_ms), ..Faults::default() };
        let told = tell(Arm::Loaded, Faults { probe_stops: true, ..faults() });
        told.assert_only(ObservedKind::ProbeSilent);
        assert!(told.after_load < 120, "{tick_ms}: {} s", told.after_load);
        tell(Arm::Loaded, faults()).assert_clean();
    }
    let told = tell(Arm::Loaded, Faults { probe_stops: true, tick_ms: Some(30_000), ..Faults::default() });
    told.assert_only(ObservedKind::ProbeSilent);
    assert!(told.seconds < 3000, "{} s", told.seconds);
}
