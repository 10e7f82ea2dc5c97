use super::*;

fn task(tid: u32, pid: u32, state: char, since: i64, stack: &str) -> Wait {
    Wait {
        task: "madvise-allocat".into(),
        pid,
        tid,
        state,
        workload: Some("madvise-allocator".into()),
        threads: Some(4),
        since_apply_ms: Some(since),
        stack: stack.lines().map(|l| l.trim().to_owned()).collect(),
    }
}

fn blocked(tasks: Vec<Wait>) -> Vec<Waits> {
    vec![Waits { noted: Noted::Blocked, total: tasks.len() as u32, tasks }]
}

const PATCH: &[&str] = &["madvise_held_lock"];
const OWN: &str = "klp_new_madvise+0xd9/0x120 [madvise_held_lock]\ndo_syscall_64+0x5d/0x90";
const FAULT: &str =
    "rwsem_down_read_slowpath+0x2d2/0x350\ndo_user_addr_fault+0x1/0x2\nexc_page_fault+0x1/0x2";
const MMAP: &str = "rwsem_down_write_slowpath+0x1/0x2\ndown_write_killable+0x1/0x2\nvm_mmap_pgoff+0x1/0x2";

#[test]
fn a_hang_in_the_patch_names_who_waits_where_since_when_and_who_holds_what() {
    let own = (0..6).flat_map(|p| (0..4).map(move |t| task(100 + p * 10 + t, 100 + p * 10, 'D', 3040, OWN)));
    let others = (0..5).map(|p| task(105 + p * 10, 100 + p * 10, 'D', 4000, FAULT));
    let groups = groups(&blocked(own.chain(others).collect()), PATCH);
    let told = |g: &WaitGroup| (g.tasks, g.processes, g.function.clone(), g.since_apply_ms, g.holder.clone());
    assert_eq!(told(&groups[0]), (24, 6, "klp_new_madvise".into(), Some(3040), None));
    let holder = Some(Holder::SameProcess { function: Some("klp_new_madvise".into()), state: 'D' });
    assert_eq!(told(&groups[1]), (5, 5, "do_user_addr_fault".into(), Some(4000), holder));
    assert_eq!((groups[0].patch.as_deref(), &*groups[0].states), (Some("madvise_held_lock"), "D"));
    assert_eq!((groups[0].waits_for, groups[1].waits_for), (WaitFor::Patch, WaitFor::MmapLockRead));
    assert_eq!(marks(&groups), BTreeSet::from(["klp_new_madvise".to_owned()]));
}

#[test]
fn a_lock_nobody_is_left_to_release_was_leaked() {
    let all = |threads| {
        let tasks = (0..threads).map(|t| task(10 + t, 10, 'D', -200, if t == 0 { MMAP } else { FAULT }));
        groups(&blocked(tasks.collect()), PATCH)
    };
    assert!(all(4).iter().all(|g| g.holder == Some(Holder::NobodyLeft)), "{:?}", all(4));
    assert!(all(4).iter().all(|g| g.since_apply_ms == Some(-200)));
    assert_eq!(marks(&all(4)), BTreeSet::from(["the mmap lock".to_owned()]));
    // One thread is still about: it may hold the lock.
    assert!(all(3).iter().all(|g| g.holder.is_none()), "{:?}", all(3));
}

/// A holder that runs through the patch's code is no waiting task, but it is the likely holder.
#[test]
fn who_stands_in_the_patch_may_hold_the_lock_though_it_does_not_wait() {
    let mut waits = blocked(vec![task(11, 10, 'D', 500, FAULT)]);
    let inside = vec![task(12, 10, 'R', 0, OWN), task(77, 70, 'R', 0, OWN)];
    waits.push(Waits { noted: Noted::InPatch, total: 2, tasks: inside });
    let groups = groups(&waits, PATCH);
    assert_eq!(groups.len(), 1);
    let same = Holder::SameProcess { function: Some("klp_new_madvise".into()), state: 'R' };
    assert_eq!(groups[0].holder, Some(same));
}

#[test]
fn two_locks_in_the_wrong_order_are_suspected() {
    let lock = |f: &str| {
        format!("__mutex_lock.constprop.0+0x1/0x2\n{f}+0x1/0x2 [madvise_held_lock]\ndo_syscall_64+0x1/0x2")
    };
    let tasks =
        vec![task(1, 1, 'D', 9, &lock("klp_new_madvise")), task(2, 2, 'D', 9, &lock("klp_new_munmap"))];
    let groups = groups(&blocked(tasks), PATCH);
    assert!(groups.iter().all(|g| g.waits_for == WaitFor::Mutex), "{groups:?}");
    let other = |f: &str| Some(Holder::OtherOrder { function: f.into() });
    assert_eq!((&groups[0].holder, &groups[1].holder), (&other("klp_new_munmap"), &other("klp_new_madvise")));
}

#[test]
fn a_lock_that_is_not_the_process_own_is_held_by_a_guess_at_most() {
    let write = "rwsem_down_write_slowpath+0x1/0x2\next4_buffered_write_iter+0x1/0x2\nvfs_write+0x1/0x2";
    let alone = groups(&blocked(vec![task(1, 1, 'D', 9, write)]), PATCH);
    assert_eq!((alone[0].waits_for, alone[0].holder.as_ref()), (WaitFor::InodeLock, None));
    let with = groups(&blocked(vec![task(1, 1, 'D', 9, write), task(2, 2, 'D', 5, OWN)]), PATCH);
    let own = Holder::WaitingInThePatch { function: "klp_new_madvise".into() };
    assert_eq!(with[1].holder, Some(own));
}

#[test]
fn stragglers_come_first_and_the_unreadable_is_said_to_be_so() {
    let mut waits = blocked(vec![task(1, 1, 'D', 9, ""), task(2, 1, 'R', 9, "")]);
    let mut straggler = task(57, 57, 'S', 0, "klp_wait+0x1/0x2 [revert_stall]\nkthread+0x1/0x2");
    straggler.task = "klp_helper".into();
    straggler.since_apply_ms = None;
    waits.push(Waits { noted: Noted::Straggler, total: 1, tasks: vec![straggler] });
    let groups = groups(&waits, &["revert_stall"]);
    let told: Vec<(Noted, &str, WaitFor)> =
        groups.iter().map(|g| (g.noted, &*g.function, g.waits_for)).collect();
    assert_eq!(told[0].0, Noted::Straggler);
    assert_eq!(told[0].1, "klp_wait");
    assert!(told.contains(&(Noted::Blocked, "", WaitFor::Unknown)), "{told:?}");
    assert!(told.contains(&(Noted::Blocked, "", WaitFor::Cpu)), "{told:?}");
}

/// As `/proc/PID/stack` of 6.1 has them, which leaves out the functions of locks: recorded from lock-leaked-write.
#[test]
fn locks_that_the_stack_leaves_out_are_told_by_who_takes_them() {
    const PATCH: &[&str] = &["lock_leaked_write"];
    let fault = "lock_mm_and_find_vma+0x9b/0x220\ndo_user_addr_fault+0x127/0x560\nexc_page_fault+0x70/0x170";
    let madvise = "do_madvise+0xfd/0xdf0\n__x64_sys_madvise+0x28/0x30\noriginal_madvise+0x4e/0x80 [lock_leaked_write]\n\
                   klp_new_madvise+0x19/0x68 [lock_leaked_write]\ndo_syscall_64+0x5d/0x90";
    let munlock = "__x64_sys_munlock+0x1/0x2\ndo_syscall_64+0x5d/0x90";
    let tasks = [fault, fault, madvise, munlock].into_iter().enumerate();
    let tasks: Vec<Wait> = tasks.map(|(n, stack)| task(n as u32, 10, 'D', 940, stack)).collect();
    let groups = groups(&blocked(tasks), PATCH);
    let of: Vec<(WaitFor, &str)> = groups.iter().map(|g| (g.waits_for, g.function.as_str())).collect();
    assert_eq!(
        of,
        [
            (WaitFor::MmapLock, "do_madvise"),
            (WaitFor::MmapLockRead, "lock_mm_and_find_vma"),
            (WaitFor::MmapLockWrite, "__x64_sys_munlock")
        ]
    );
    assert_eq!(groups[0].patch_function.as_deref(), Some("klp_new_madvise"));
    assert_eq!(groups[0].patch.as_deref(), Some("lock_leaked_write"));
    assert!(groups.iter().all(|g| g.holder == Some(Holder::NobodyLeft)), "{groups:?}");
    assert!(marks(&groups).contains("the mmap lock"));
}

#[test]
fn two_functions_of_the_patch_that_wait_for_each_other_are_suspected_without_lock_frames() {
    let own = |f: &str| format!("{f}+0x1/0x2 [madvise_held_lock]\ndo_syscall_64+0x1/0x2");
    let tasks = vec![task(1, 1, 'D', 9, &own("klp_new_madvise")), task(2, 2, 'D', 9, &own("klp_new_munmap"))];
    let other = Holder::OtherOrder { function: "klp_new_munmap".into() };
    assert_eq!(groups(&blocked(tasks), PATCH)[0].holder, Some(other));
}

/// Recorded from fsync-lock-leaked: each trial hangs elsewhere, all for an inode's lock.
#[test]
fn an_inodes_lock_is_told_by_who_takes_it() {
    for function in
        ["ext4_fallocate+0x71/0x1200", "do_truncate+0x8f/0xe0", "ext4_buffered_write_iter+0x30/0x140"]
    {
        let stack = format!("{function}\nksys_write+0x1/0x2\ndo_syscall_64+0x5d/0x90");
        let groups = super::groups(&blocked(vec![task(1, 1, 'D', 7100, &stack)]), PATCH);
        assert_eq!(
            (groups[0].waits_for, groups[0].holder.as_ref()),
            (WaitFor::InodeLock, None),
            "{function}"
        );
        assert_eq!(marks(&groups), BTreeSet::from(["an inode's lock".to_owned()]));
        // Asleep for another reason.
        let groups = super::groups(&blocked(vec![task(1, 1, 'S', 7100, &stack)]), PATCH);
        assert_eq!(groups[0].waits_for, WaitFor::Other);
    }
}

/// 4.4 spells it otherwise.
#[test]
fn old_kernels_are_understood() {
    let old = "call_rwsem_down_read_failed+0x14/0x30\n__do_page_fault+0x1/0x2\npage_fault+0x1/0x2";
    let groups = groups(&blocked(vec![task(1, 1, 'D', 9, old)]), PATCH);
    assert_eq!(
        (groups[0].waits_for, groups[0].function.as_str()),
        (WaitFor::MmapLockRead, "__do_page_fault")
    );
}
