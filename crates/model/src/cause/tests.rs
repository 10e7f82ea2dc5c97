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

/// The sentence an engineer needs to hear.
#[test]
fn a_hang_in_the_patch_names_who_waits_where_since_when_and_who_holds_what() {
    let own = (0..6).flat_map(|p| (0..4).map(move |t| task(100 + p * 10 + t, 100 + p * 10, 'D', 3040, OWN)));
    let others = (0..5).map(|p| task(105 + p * 10, 100 + p * 10, 'D', 4000, FAULT));
    let groups = groups(&blocked(own.chain(others).collect()), PATCH);
    assert_eq!(
        sentence(&groups).unwrap(),
        "24 threads of 6 processes wait in klp_new_madvise (madvise_held_lock's own code, state D) since 3.0 s after applying; \
         5 more tasks wait for the mmap lock of the process, to read, in do_user_addr_fault (state D) since 4.0 s after applying \
         (likely held by threads of the same processes that stand in klp_new_madvise)"
    );
    assert_eq!((groups[0].waits_for, groups[1].waits_for), (WaitFor::Patch, WaitFor::MmapLockRead));
    assert_eq!(marks(&groups), BTreeSet::from(["klp_new_madvise".to_owned()]));
}

#[test]
fn a_lock_nobody_is_left_to_release_was_leaked() {
    let all = |threads| {
        let tasks = (0..threads).map(|t| task(10 + t, 10, 'D', -200, if t == 0 { MMAP } else { FAULT }));
        groups(&blocked(tasks.collect()), PATCH)
    };
    let text = sentence(&all(4)).unwrap();
    assert!(text.contains("never released") && text.contains("since 0.2 s before applying"), "{text}");
    assert_eq!(marks(&all(4)), BTreeSet::from(["the mmap lock".to_owned()]));
    // One thread is still about: it may hold the lock.
    let text = sentence(&all(3)).unwrap();
    assert!(!text.contains("held") && !text.contains("released"), "{text}");
}

/// A holder that runs through the patch's code is no waiting task, but it is the likely holder.
#[test]
fn who_stands_in_the_patch_may_hold_the_lock_though_it_does_not_wait() {
    let mut waits = blocked(vec![task(11, 10, 'D', 500, FAULT)]);
    let inside = vec![task(12, 10, 'R', 0, OWN), task(77, 70, 'R', 0, OWN)];
    waits.push(Waits { noted: Noted::InPatch, total: 2, tasks: inside });
    let groups = groups(&waits, PATCH);
    assert_eq!(groups.len(), 1);
    assert!(groups[0].holder.as_ref().unwrap().contains("stand in klp_new_madvise"), "{groups:?}");
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
    let text = sentence(&groups).unwrap();
    assert!(
        text.contains("in klp_new_munmap, madvise_held_lock's own code") && text.contains("wrong order"),
        "{text}"
    );
}

#[test]
fn a_lock_that_is_not_the_process_own_is_held_by_a_guess_at_most() {
    let write = "rwsem_down_write_slowpath+0x1/0x2\next4_buffered_write_iter+0x1/0x2\nvfs_write+0x1/0x2";
    let alone = groups(&blocked(vec![task(1, 1, 'D', 9, write)]), PATCH);
    assert_eq!((alone[0].waits_for, alone[0].holder.as_deref()), (WaitFor::InodeLock, None));
    let with = groups(&blocked(vec![task(1, 1, 'D', 9, write), task(2, 2, 'D', 5, OWN)]), PATCH);
    assert_eq!(with[1].holder.as_deref(), Some("perhaps held by the tasks that wait in klp_new_madvise"));
}

#[test]
fn stragglers_come_first_and_the_unreadable_is_said_to_be_so() {
    let mut waits = blocked(vec![task(1, 1, 'D', 9, ""), task(2, 1, 'R', 9, "")]);
    let mut straggler = task(57, 57, 'S', 0, "klp_wait+0x1/0x2 [revert_stall]\nkthread+0x1/0x2");
    straggler.task = "klp_helper".into();
    straggler.since_apply_ms = None;
    waits.push(Waits { noted: Noted::Straggler, total: 1, tasks: vec![straggler] });
    let text = sentence(&groups(&waits, &["revert_stall"])).unwrap();
    assert!(
        text.starts_with("klp_helper has not switched: in klp_wait, revert_stall's own code (state S);"),
        "{text}"
    );
    assert!(text.contains("no stack could be read") && text.contains("without getting anywhere"), "{text}");
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
    let text = sentence(&groups).unwrap();
    assert!(text.contains("do_madvise, called by klp_new_madvise of lock_leaked_write"), "{text}");
    assert_eq!(text.matches("never released").count(), 1, "{text}");
    assert!(marks(&groups).contains("the mmap lock"));
}

#[test]
fn two_functions_of_the_patch_that_wait_for_each_other_are_suspected_without_lock_frames() {
    let own = |f: &str| format!("{f}+0x1/0x2 [madvise_held_lock]\ndo_syscall_64+0x1/0x2");
    let tasks = vec![task(1, 1, 'D', 9, &own("klp_new_madvise")), task(2, 2, 'D', 9, &own("klp_new_munmap"))];
    let text = sentence(&groups(&blocked(tasks), PATCH)).unwrap();
    assert!(text.contains("perhaps for what tasks in klp_new_munmap hold"), "{text}");
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
            (groups[0].waits_for, groups[0].holder.as_deref()),
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
    assert_eq!(sentence(&[]), None);
}
