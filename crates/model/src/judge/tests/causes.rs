//! Hangs, and what they have in common.

use super::*;
use crate::verdict::{Holder, WaitFor};

/// Tasks that were seen waiting when evidence was gathered.
fn waits(stacks: &[&str]) -> Body {
    let task = |(n, stack): (usize, &&str)| crate::Wait {
        task: "w".into(),
        pid: 7,
        tid: 100 + n as u32,
        state: 'D',
        workload: None,
        threads: None,
        since_apply_ms: Some(1500),
        stack: stack.lines().map(str::to_owned).collect(),
    };
    let tasks: Vec<crate::Wait> = stacks.iter().enumerate().map(task).collect();
    let total = tasks.len() as u32;
    Body::Waits(Box::new(crate::Waits { noted: crate::Noted::Blocked, total, tasks }))
}

const IN_PATCH: &str = "klp_new+0x1/0x2 [x]\ndo_syscall_64+0x1/0x2";
const IN_FAULT: &str = "rwsem_down_read_slowpath+0x1/0x2\ndo_user_addr_fault+0x1/0x2";

/// Who notices a hang first differs from trial to trial; the place where tasks wait does not.
#[test]
fn hangs_with_different_names_are_one_item_with_a_count() {
    let elsewhere = |title: &str, function: &str| Finding {
        function: Some(function.into()),
        ..finding(FindingKind::Kernel(klpfarm_kmsg::Kind::HungTask), title)
    };
    let story = Story::default()
        .finding(L0, Phase::Soak, elsewhere("INFO: task hung in do_madvise", "do_madvise"))
        .add(L0, Phase::Soak, waits(&[IN_FAULT, IN_PATCH]))
        .end(L0, TrialEnd::Stopped)
        .finding(
            L1,
            Phase::Soak,
            Finding { function: Some("klp_new".into()), ..own("a: threads hang in klp_new") },
        )
        .finds(L1, Phase::Soak, ObservedKind::SshDead, "no SSH login succeeds")
        .end(L1, TrialEnd::Stopped)
        .finds((Arm::Loaded, 2), Phase::Soak, ObservedKind::SshDead, "no SSH login succeeds")
        .add((Arm::Loaded, 2), Phase::Soak, waits(&[IN_PATCH]))
        .end((Arm::Loaded, 2), TrialEnd::Stopped)
        .end(C0, TrialEnd::Completed)
        .end(Q0, TrialEnd::Completed);
    let verdict = story.judge();
    assert_eq!(verdict.evidence.len(), 1, "{:#?}", verdict.evidence);
    let item = &verdict.evidence[0];
    assert_eq!((item.count, item.arms[&Arm::Loaded].hit), (4, 3));
    assert_eq!(item.title, "a: threads hang in klp_new", "the one in the patch's own code leads");
    let own = &item.waits[0];
    assert_eq!((own.waits_for, &*own.function, own.since_apply_ms), (WaitFor::Patch, "klp_new", Some(1500)));
    let same = Holder::SameProcess { function: Some("klp_new".into()), state: 'D' };
    assert_eq!(item.waits[1].holder, Some(same));
    assert_eq!((item.waits.len(), item.waits_of), (2, Some(story.number(L0))));
    let Why::AgainstThePatch(found) = &verdict.causes[0].what else { panic!("{:?}", verdict.causes) };
    assert_eq!(found.waits, item.waits);
}

/// Nothing but the lock in common, and nothing of the patch: still one cause. A crash is another.
#[test]
fn hangs_on_one_lock_are_one_item_and_a_crash_is_its_own() {
    let stalled =
        |title: &str, function: &str| Finding { function: Some(function.into()), ..finding(HANG, title) };
    let verdict = Story::default()
        .finding(L0, Phase::Soak, stalled("a: threads hang in vm_mmap_pgoff", "vm_mmap_pgoff"))
        .add(L0, Phase::Soak, waits(&[IN_FAULT]))
        .end(L0, TrialEnd::Stopped)
        .finding(L1, Phase::Soak, stalled("b: threads hang in do_user_addr_fault", "do_user_addr_fault"))
        .add(L1, Phase::Soak, waits(&[IN_FAULT]))
        .end(L1, TrialEnd::Stopped)
        .finds((Arm::Loaded, 2), Phase::Soak, OOPS, "BUG: NULL pointer dereference in klp_new")
        .add((Arm::Loaded, 2), Phase::Soak, waits(&[IN_FAULT]))
        .end((Arm::Loaded, 2), TrialEnd::Stopped)
        .end((Arm::Control, 0), TrialEnd::Completed)
        .end((Arm::Control, 1), TrialEnd::Completed)
        .end(Q0, TrialEnd::Completed)
        .judge();
    let hits: Vec<(u32, bool)> =
        verdict.evidence.iter().map(|e| (e.arms[&Arm::Loaded].hit, !e.waits.is_empty())).collect();
    assert_eq!(hits, [(1, false), (2, true)], "{:#?}", verdict.evidence);
}

/// Two hangs in two functions of the patch, with nothing in common, stay two.
#[test]
fn hangs_in_different_functions_of_the_patch_are_two_items() {
    let at = |function: &str| Finding {
        function: Some(function.into()),
        ..own(&format!("a: threads hang in {function}"))
    };
    let verdict = Story::default()
        .finding(L0, Phase::Soak, at("klp_one"))
        .end(L0, TrialEnd::Stopped)
        .finding(L1, Phase::Soak, at("klp_two"))
        .end(L1, TrialEnd::Stopped)
        .end(C0, TrialEnd::Completed)
        .judge();
    assert_eq!(verdict.evidence.len(), 2);
}
