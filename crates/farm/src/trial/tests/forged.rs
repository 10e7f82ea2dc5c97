//! Answers that can't be known beforehand, answers that are of no use, and what a machine said before the patch was applied.

use super::*;

const BAD_PAGE: &str = "[   99.100000] BUG: Bad page state in process w  pfn:12345\n\
    [   99.100000] page:00000000abcdef01 refcount:-1 mapcount:0 mapping:0000000000000000 index:0x0 pfn:0x12345\n\
    [   99.100000] CPU: 0 PID: 12 Comm: w Not tainted 6.1.0 #1\n\
    [   99.100000] Call Trace:\n\
    [   99.100000]  do_exit+0x1/0x2\n";

/// Reports that began before applying are no fault of the patch, however late they are complete.
#[test]
fn what_was_printed_before_applying_belongs_to_that_phase() {
    let plan = plan();
    let trial = plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    let told_of = |before: bool, cut: usize| {
        let mut dispatcher = Dispatcher::new(
            Arc::clone(&plan),
            trial.clone(),
            Purpose::Trial(Start::Fork),
            Secret::new([9; 16]),
        );
        let mut fake = Fake::new(Arm::Loaded, Faults { forked: true, ..Faults::default() });
        let mut queue = VecDeque::from([Input::Started(Ok(70))]);
        let mut found = None;
        let (head, tail) = BAD_PAGE.split_at(cut);
        let say = |text: &str| Input::Output(Output::Console(text.as_bytes().to_vec()));
        for _ in 0..3000 {
            let input = queue.pop_front().unwrap_or_else(|| {
                fake.now += Duration::from_millis(200);
                queue.extend(fake.second());
                Input::Tick
            });
            for action in dispatcher.handle(fake.now, input) {
                match action {
                    Action::Emit(phase, Body::Finding(f)) => found = Some((phase, f.after_apply_ms)),
                    Action::Emit(Phase::Apply, Body::PhaseStarted) if before => queue.push_front(say(tail)),
                    Action::Emit(Phase::Baseline, Body::PhaseStarted) if before => queue.push_back(say(head)),
                    Action::Emit(Phase::Soak, Body::PhaseStarted) if !before => {
                        queue.push_back(say(BAD_PAGE));
                    }
                    Action::End(_) => return found,
                    Action::Emit(..) => {}
                    other => queue.extend(fake.answer(other)),
                }
            }
        }
        found
    };
    let header = BAD_PAGE.find('\n').unwrap() + 1;
    // Half a line, a line, and a line and a half had come when applying began.
    for cut in [header - 5, header, header + 9] {
        assert_eq!(told_of(true, cut), Some((Phase::Baseline, None)), "{cut}");
    }
    assert!(matches!(told_of(false, 0), Some((Phase::Soak, Some(_)))));
}

/// The probe reports what the workloads saw before it reports the taint, and the console what was printed before a heartbeat. The order
/// decides: a clock of the guest's may be broken by the patch.
#[test]
fn all_is_heard_out_before_applying() {
    let told = tell(Arm::Loaded, Faults::default());
    let load = told.asked.iter().position(|a| matches!(a, Ask::Load { .. })).unwrap();
    let before = &told.asked[load - 2..load];
    assert!(
        matches!(before, [Ask::Kmsg { .. }, Ask::Read { path }] if path.ends_with("tainted")),
        "{before:?}"
    );
    let fault = klpfarm_stress::wire::Fault {
        at_ms: 0,
        workload: "w".into(),
        thread: None,
        kind: klpfarm_stress::wire::FaultKind::WrongContent,
        op: "read".into(),
        detail: "d".into(),
        count: 1,
    };
    let after_apply = vec![(1, Output::Probe(FromGuest::Fault(fault)))];
    let told = tell(Arm::Loaded, Faults { after_apply, ..Faults::default() });
    let found = told.of_kind(ObservedKind::WrongContent);
    assert!(matches!(&found[..], [(Phase::Soak, f)] if f.after_apply_ms.is_some()), "{found:?}");
}

/// The probe looks at the taint twice a second: one that was set just before applying must not be reported after it.
#[test]
fn a_taint_from_before_applying_belongs_to_that_phase() {
    let told = tell(Arm::Loaded, Faults { taints: VecDeque::from([1 << 5]), ..Faults::default() });
    told.assert_only(ObservedKind::Tainted);
    let found = told.of_kind(ObservedKind::Tainted);
    assert!(matches!(&found[..], [(Phase::Baseline, f)] if f.after_apply_ms.is_none()), "{found:?}");
    assert!(!told.commands.iter().any(|c| c.starts_with("load")));
}

#[test]
fn a_cpu_that_was_stuck_before_applying_belongs_to_that_phase() {
    let sound = tell(Arm::Loaded, Faults::default());
    let applied = Duration::from_secs(sound.seconds - sound.after_load);
    for (at, phase) in
        [(applied - Duration::from_secs(4), Phase::Baseline), (applied + Duration::from_secs(3), Phase::Soak)]
    {
        let cpu_stuck = Some(0xffff_ffff_8100_0000);
        let told = tell(Arm::Loaded, Faults { cpu_stuck, cpu_stuck_at: Some(at), ..Faults::default() });
        let found = told.of_kind(ObservedKind::CpuStuck);
        assert!(
            matches!(&found[..], [(p, f)] if *p == phase && f.after_apply_ms.is_some() == (phase == Phase::Soak)),
            "{found:?}"
        );
    }
}

#[test]
fn ids_are_not_guessed() {
    let plan = plan();
    let trial = Trial::new(1, Arm::Loaded, vec![0], 1);
    let ids = |nonce| {
        let mut dispatcher = Dispatcher::new(
            Arc::clone(&plan),
            trial.clone(),
            Purpose::Trial(Start::Fork),
            Secret::new([nonce; 16]),
        );
        let mut fake = Fake::new(Arm::Loaded, Faults { forked: true, ..Faults::default() });
        let mut queue = VecDeque::from([Input::Started(Ok(70))]);
        let mut ids = Vec::new();
        while let Some(input) = queue.pop_front() {
            for action in dispatcher.handle(Duration::ZERO, input) {
                if let Action::Tell(ToGuest { id, .. }) | Action::Refresh { id } | Action::Upload { id, .. } =
                    &action
                {
                    ids.push(*id);
                }
                if !matches!(action, Action::Emit(..)) {
                    queue.extend(fake.answer(action));
                }
            }
        }
        ids
    };
    let (a, b) = (ids(1), ids(2));
    assert!(a.len() > 3);
    assert!(a.iter().all(|id| !b.contains(id) && *id > 1 << 20), "{a:?}");
}

/// A load that was not started must not pass for one that runs.
#[test]
fn an_answer_to_no_question_starts_no_load() {
    let reply = |id| Input::Output(Output::Probe(FromGuest::Reply { id, code: 0, out: String::new() }));
    let trial = Trial::new(1, Arm::Loaded, vec![0], 1);
    let mut dispatcher = Dispatcher::new(plan(), trial, Purpose::Trial(Start::Boot), Secret::new([9; 16]));
    dispatcher.start_load(Duration::ZERO, false);
    let actions = dispatcher.handle(Duration::ZERO, Input::Tick);
    let id = actions.iter().find_map(|a| match a {
        Action::Tell(ToGuest { id, ask: Ask::Start { .. } }) => Some(*id),
        _ => None,
    });
    for forged in [0, 1, 2, id.unwrap() ^ 1] {
        dispatcher.handle(Duration::ZERO, reply(forged));
        assert_eq!(dispatcher.step, Step::StartLoad(1));
    }
    dispatcher.handle(Duration::ZERO, reply(id.unwrap()));
    assert_ne!(dispatcher.step, Step::StartLoad(1));
}

/// On 4.4 a patch that is not listed is one that is gone: an answer that fails must not read so.
#[test]
fn a_state_that_cannot_be_read_is_asked_again() {
    for (code, text) in [(5, "cannot read: Input/output error"), (124, ""), (0, "garb"), (0, "listed\n")] {
        for no_transition_file in [true, false] {
            let garbled = Some((3, code, text));
            let told = tell(Arm::Loaded, Faults { garbled, no_transition_file, ..Faults::default() });
            told.assert_clean();
            let garbled = Some((u32::MAX, code, text));
            let told = tell(Arm::Loaded, Faults { garbled, no_transition_file, ..Faults::default() });
            told.assert_only(ObservedKind::RevertStalled);
        }
    }
}
