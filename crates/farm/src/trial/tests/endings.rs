//! A trial is clean only if it was observed to its end.

use super::*;

/// As 6.1 prints it, without an end mark.
const HUNG: &str = "[  120.512345] INFO: task alloc-worker:1234 blocked for more than 120 seconds.\n\
    [  120.512345]       Tainted: G           O  K   6.1.0-41-cloud-amd64 #1  Debian 6.1.158-1\n\
    [  120.512345] \"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.\n\
    [  120.512345] task:alloc-worker    state:D stack:0     pid:1234  ppid:871    flags:0x00004002\n\
    [  120.512345] Call Trace:\n\
    [  120.512345]  <TASK>\n\
    [  120.512345]  __schedule+0x5c/0x1f0\n\
    [  120.512345]  klp_wait+0x5c/0x1f0 [x]\n\
    [  120.512345]  do_syscall_64+0x5c/0x1f0\n\
    [  120.512345]  </TASK>\n";

fn console(text: &str) -> Output {
    Output::Console(text.as_bytes().to_vec())
}

#[test]
fn what_is_printed_just_before_the_end_is_heard() {
    for arm in [Arm::Loaded, Arm::Control, Arm::Quiescent, Arm::Reapply] {
        for revert in [0, 2, 4] {
            let revert = Some(Duration::from_secs(revert));
            let sound = tell(arm, Faults { revert, ..Faults::default() });
            sound.assert_clean();
            for before_end in 0..3 {
                let after_apply = vec![(sound.after_load - before_end, console(HUNG))];
                let told = tell(arm, Faults { revert, after_apply, ..Faults::default() });
                let kind = klpfarm_kmsg::Kind::HungTask;
                assert_eq!(told.of_kind(FindingKind::Kernel(kind)).len(), 1, "{arm} {revert:?} {before_end}");
                assert_eq!(told.end, TrialEnd::Stopped);
            }
        }
    }
}

/// A slow console prints the rest of a report after the time is over.
#[test]
fn a_report_that_is_being_printed_is_waited_for() {
    let sound = tell(Arm::Loaded, Faults::default());
    let (head, tail) = HUNG.split_at(HUNG.find("Tainted").unwrap());
    let last = sound.after_load;
    let after_apply = vec![(last, console(head)), (last + 1, console(tail))];
    let told = tell(Arm::Loaded, Faults { after_apply, ..Faults::default() });
    told.assert_only(FindingKind::Kernel(klpfarm_kmsg::Kind::HungTask));
    // A header that nothing follows is text that anybody may print, and is not waited for without end.
    let line = HUNG.lines().next().unwrap();
    let after_apply = vec![(last, console(&format!("{line}\n")))];
    let told = tell(Arm::Loaded, Faults { after_apply, ..Faults::default() });
    told.assert_clean();
    assert!(told.seconds <= sound.seconds + 12, "{}", told.seconds);
}

#[test]
fn a_trial_that_is_ended_from_outside_tells_what_it_has_heard() {
    let plan = plan();
    let trial = plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    let mut dispatcher = Dispatcher::new(plan, trial, Purpose::Trial(Start::Fork), Secret::new([9; 16]));
    let now = Duration::from_secs(1);
    dispatcher.handle(now, Input::Started(Ok(70)));
    dispatcher.handle(now, Input::Output(console(HUNG)));
    let actions = dispatcher.handle(now, Input::Stop(TrialEnd::Unneeded));
    let found = actions.iter().position(|a| matches!(a, Action::Emit(_, Body::Finding(_))));
    let end = actions.iter().position(|a| matches!(a, Action::End(TrialEnd::Unneeded)));
    assert!(found.unwrap() < end.unwrap(), "{actions:?}");
}

#[test]
fn the_taint_is_read_once_more() {
    let told = tell(Arm::Loaded, Faults::default());
    let read = |a: &Ask| matches!(a, Ask::Read { path } if path.ends_with("tainted"));
    assert!(told.asked.iter().any(read));
    // The probe has not reported it by then.
    let told = tell(Arm::Loaded, Faults { taints: VecDeque::from([0, 1 << 9]), ..Faults::default() });
    told.assert_only(ObservedKind::Tainted);
    assert!(
        matches!(&told.of_kind(ObservedKind::Tainted)[..], [(Phase::Revert, f)] if f.after_apply_ms.is_some())
    );
    let told = tell(Arm::Loaded, Faults { no_taint: true, ..Faults::default() });
    told.assert_only(ObservedKind::ProbeSilent);
}

/// Also with nothing left to do but to count, and to take the patch back.
#[test]
fn threads_that_stop_after_the_soak_are_found() {
    for revert in [0, 2] {
        let revert = Some(Duration::from_secs(revert));
        let sound = tell(Arm::Loaded, Faults { revert, ..Faults::default() });
        sound.assert_clean();
        for before_end in 1..3 {
            let stop_after = sound.after_load - before_end;
            let told =
                tell(Arm::Loaded, Faults { revert, threads_stop: true, stop_after, ..Faults::default() });
            told.assert_only(ObservedKind::ThreadStalled);
        }
    }
}

#[test]
fn a_patch_that_is_no_longer_in_force_is_found() {
    for how in ["listed\nenabled 0\ntransition 0\n", "listed\nenabled 1\ntransition 1\n", ""] {
        for arm in [Arm::Loaded, Arm::Quiescent, Arm::Reapply, Arm::Stack] {
            let told = tell(arm, Faults { undone: Some((2, how)), ..Faults::default() });
            told.assert_only(ObservedKind::NotInForce);
            let title = "the patch was no longer in force when the soak ended";
            assert_eq!(told.findings()[0].1, title, "{arm} {how:?}");
        }
    }
    let told = tell(Arm::Loaded, Faults { undone: Some((2, "%&$")), ..Faults::default() });
    told.assert_only(ObservedKind::ProbeSilent);
}

/// A patch that replaces all earlier ones takes them out of force: that is no fault of theirs.
#[test]
fn a_patch_that_was_replaced_is_none_that_is_no_longer_in_force() {
    let told = tell(Arm::Stack, Faults { replaces: true, ..Faults::default() });
    told.assert_clean();
    let note = |b: &Body| matches!(b, Body::Note { text } if text == "a later patch has replaced x");
    assert!(told.bodies.iter().any(|(_, b)| note(b)));
    tell(Arm::Stack, Faults::default()).assert_clean();
}

/// Hard findings are reported however many soft ones there were; those left out are counted.
#[test]
fn many_soft_findings_hide_no_hard_one() {
    let blocked = |n: u32| {
        let task = BlockedTask {
            pid: 100 + n,
            tid: 100 + n,
            comm: format!("task{}", char::from_u32(0x3b1 + n).unwrap()),
            state: 'D',
            for_ms: 60_000,
            wchan: String::new(),
            stack: "f+0x1/0x2\n".into(),
            thread: None,
        };
        (2, Output::Probe(FromGuest::Blocked { at_ms: 0, tasks: vec![task], total: 1 }))
    };
    let mut after_apply: Vec<(u64, Output)> = (0..60).map(blocked).collect();
    after_apply.push((3, Output::Qmp(QmpEvent::Panicked)));
    let told = tell(Arm::Loaded, Faults { after_apply, ..Faults::default() });
    assert_eq!(told.of_kind(ObservedKind::TaskBlocked).len(), 40);
    assert_eq!(told.of_kind(ObservedKind::Panicked).len(), 1);
    let note = |b: &Body| matches!(b, Body::Note { text } if text.starts_with("20 more findings"));
    assert!(told.bodies.iter().any(|(_, b)| note(b)));
}
