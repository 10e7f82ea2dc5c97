//! From symptom to cause: where tasks wait, for what, since when, and who may hold it. Pure, and never more than the stacks show.

use std::collections::{BTreeMap, BTreeSet};

use crate::verdict::{Holder, WaitFor, WaitGroup};
use crate::wait::{Frame, Noted, Wait, Waits};

/// One task with what its stack says.
struct Task<'a> {
    wait: &'a Wait,
    noted: Noted,
    place: Place,
}

/// Where a task waits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    waits_for: WaitFor,
    /// Innermost function that does more than waiting and locking; empty if unknown.
    function: String,
    /// Outermost function of the patch on the stack, the one that replaces the kernel's, and the patch.
    patched: Option<(String, String)>,
}

/// Tasks by where they wait; those that lead to the cause first. `patches` are names of modules.
pub(crate) fn groups(waits: &[Waits], patches: &[&str]) -> Vec<WaitGroup> {
    let tasks = tasks(waits, patches);
    let mut by_place: BTreeMap<(Noted, &Place), Vec<&Task<'_>>> = BTreeMap::new();
    // A task that merely goes through the patch's code waits for nothing; it may hold what others wait for.
    for task in tasks.iter().filter(|t| t.noted != Noted::InPatch) {
        by_place.entry((task.noted, &task.place)).or_default().push(task);
    }
    let mut groups: Vec<WaitGroup> =
        by_place.into_iter().map(|((noted, place), members)| group(noted, place, &members, &tasks)).collect();
    groups.sort_by_key(|g| {
        (
            g.noted != Noted::Straggler,
            g.waits_for != WaitFor::Patch,
            g.patch.is_none(),
            std::cmp::Reverse(g.tasks),
        )
    });
    groups
}

/// What trials whose hangs have one cause have in common: the patch's functions in which tasks wait, or else the kind of lock.
pub(crate) fn marks(groups: &[WaitGroup]) -> BTreeSet<String> {
    let own: BTreeSet<String> =
        groups.iter().filter(|g| g.waits_for == WaitFor::Patch).map(|g| g.function.clone()).collect();
    if !own.is_empty() {
        return own;
    }
    let below = groups.iter().filter_map(|g| g.patch_function.clone());
    let lock = |name: &str, of: &dyn Fn(WaitFor) -> bool| {
        groups.iter().any(|g| of(g.waits_for)).then(|| name.to_owned())
    };
    let mmap = lock("the mmap lock", &WaitFor::is_mmap_lock);
    let inode = lock("an inode's lock", &|w| w == WaitFor::InodeLock);
    below.chain(mmap).chain(inode).collect()
}

fn tasks<'a>(waits: &'a [Waits], patches: &[&str]) -> Vec<Task<'a>> {
    let mut lists: Vec<&Waits> = waits.iter().collect();
    lists.sort_by_key(|w| w.noted);
    let mut seen = BTreeSet::new();
    let mut tasks = Vec::new();
    for list in lists {
        for wait in &list.tasks {
            // A straggler that is blocked as well stands for both: as a straggler it says what the patch waits for.
            if list.noted == Noted::Straggler || seen.insert(wait.tid) {
                tasks.push(Task { wait, noted: list.noted, place: place(wait, patches) });
            }
        }
    }
    tasks
}

fn group(noted: Noted, place: &Place, members: &[&Task<'_>], all: &[Task<'_>]) -> WaitGroup {
    let pids: BTreeSet<u32> = members.iter().map(|t| t.wait.pid).collect();
    let names: BTreeSet<&str> = members.iter().map(|t| t.wait.task.as_str()).collect();
    let states: BTreeSet<char> = members.iter().map(|t| t.wait.state).collect();
    let workloads: BTreeSet<String> = members.iter().filter_map(|t| t.wait.workload.clone()).collect();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    WaitGroup {
        noted,
        function: place.function.clone(),
        patch_function: place.patched.as_ref().map(|(function, _)| function.clone()),
        patch: place.patched.as_ref().map(|(_, patch)| patch.clone()),
        waits_for: place.waits_for,
        states: states.into_iter().collect(),
        tasks: count(members.len()),
        processes: count(pids.len()),
        names: names.into_iter().take(5).map(str::to_owned).collect(),
        workloads: workloads.into_iter().collect(),
        since_apply_ms: members.iter().filter_map(|t| t.wait.since_apply_ms).min(),
        holder: holder(place, members, &pids, all),
    }
}

/// Who may hold what these wait for.
fn holder(place: &Place, members: &[&Task<'_>], pids: &BTreeSet<u32>, all: &[Task<'_>]) -> Option<Holder> {
    if place.waits_for.is_mmap_lock() {
        return mmap_holder(pids, all);
    }
    let own = place.waits_for == WaitFor::Patch;
    if !own && !place.waits_for.is_lock() {
        return None;
    }
    // Which lock it is can't be seen in a stack: what tasks in the patch's code hold is a guess.
    let stuck = |t: &&Task<'_>| t.place.waits_for == WaitFor::Patch && t.noted != Noted::InPatch;
    if let Some(task) = all.iter().filter(|_| !own).find(stuck) {
        return Some(Holder::WaitingInThePatch { function: task.place.function.clone() });
    }
    let replaced = place.patched.as_ref()?;
    let crossed = |t: &&Task<'_>| {
        (t.place.waits_for == WaitFor::Patch || t.place.waits_for.is_lock())
            && t.noted != Noted::InPatch
            && t.place.patched.as_ref().is_some_and(|p| p.0 != replaced.0)
            && !members.iter().any(|m| m.wait.tid == t.wait.tid)
    };
    let other = all.iter().find(crossed)?.place.patched.as_ref()?;
    Some(Holder::OtherOrder { function: other.0.clone() })
}

/// The mmap lock is one a process, so that its holder is one of the process's threads, but for rare visitors.
fn mmap_holder(pids: &BTreeSet<u32>, all: &[Task<'_>]) -> Option<Holder> {
    let same = |t: &&Task<'_>| pids.contains(&t.wait.pid) && !t.place.waits_for.is_mmap_lock();
    let others: Vec<&Task<'_>> = all.iter().filter(same).collect();
    let of_patch = others.iter().find(|t| t.place.patched.is_some());
    if let Some(task) = of_patch.or(others.first()) {
        let function = match &task.place.patched {
            Some((function, _)) => Some(function.clone()),
            None => Some(task.place.function.clone()).filter(|f| !f.is_empty()),
        };
        return Some(Holder::SameProcess { function, state: task.wait.state });
    }
    let waiting = |pid: u32| all.iter().filter(|t| t.wait.pid == pid && t.noted == Noted::Blocked).count();
    let everybody = |pid: &u32| {
        let threads = all.iter().find(|t| t.wait.pid == *pid).and_then(|t| t.wait.threads);
        threads.is_some_and(|n| waiting(*pid) >= n as usize)
    };
    // One process is enough: what it shows is what the others will come to.
    pids.iter().any(everybody).then_some(Holder::NobodyLeft)
}

fn place(wait: &Wait, patches: &[&str]) -> Place {
    let frames: Vec<Frame<'_>> = wait.frames().collect();
    let of_patch = |f: &Frame<'_>| f.module.is_some_and(|m| patches.contains(&m));
    let patched = frames
        .iter()
        .rfind(|f| of_patch(f))
        .map(|f| (f.function.to_owned(), f.module.unwrap_or_default().to_owned()));
    let inner = frames.iter().position(|f| of_patch(f) || !is_waiting(f.function));
    let (locking, function) = match inner {
        Some(at) => (&frames[..at], frames[at]),
        None => match frames.last() {
            Some(last) => (&frames[..], *last),
            None => {
                let waits_for = if wait.state == 'R' { WaitFor::Cpu } else { WaitFor::Unknown };
                return Place { waits_for, function: String::new(), patched: None };
            }
        },
    };
    let own = of_patch(&function);
    let lock = locking.iter().find_map(|f| lock(f.function));
    let waits_for = match lock {
        _ if wait.state == 'R' => WaitFor::Cpu,
        Some(WaitFor::RwsemRead) if !own && is_of_memory(function.function) => WaitFor::MmapLockRead,
        Some(WaitFor::RwsemWrite) if !own && is_of_memory(function.function) => WaitFor::MmapLockWrite,
        Some(WaitFor::RwsemRead | WaitFor::RwsemWrite) if !own && is_of_inode(function.function) => {
            WaitFor::InodeLock
        }
        Some(lock) => lock,
        None if own => WaitFor::Patch,
        // What a task of state D sleeps in right below one of these is a lock.
        None if inner == Some(0) && wait.state == 'D' => hidden_lock(function.function),
        None => WaitFor::Other,
    };
    Place { waits_for, function: function.function.to_owned(), patched }
}

/// Functions that wait or take locks on behalf of others.
fn is_waiting(name: &str) -> bool {
    const STARTS: &[&str] = &[
        "schedule",
        "io_schedule",
        "preempt_schedule",
        "__cond_resched",
        "rwsem_",
        "__rwsem",
        "down_",
        "__down",
        "call_rwsem",
        "mutex_",
        "__mutex",
        "ww_mutex",
        "__ww_mutex",
        "rt_mutex",
        "__rt_mutex",
        "percpu_down",
        "__percpu",
        "wait_on_",
        "__wait_on",
        "wait_for_",
        "__wait_for",
        "do_wait_for",
        "folio_wait",
        "__folio_lock",
        "folio_lock",
        "__lock_page",
        "lock_page",
        "bit_wait",
        "out_of_line_wait",
        "mmap_read_lock",
        "mmap_write_lock",
        "__mmap_lock",
        "wait_rcu_gp",
        "__wait_rcu",
        "synchronize_",
        "queued_",
        "_raw_spin",
        "native_queued",
        "__raw_",
    ];
    name == "down" || STARTS.iter().any(|s| name.starts_with(s))
}

/// What a function that waits waits for.
fn lock(name: &str) -> Option<WaitFor> {
    let is = |starts: &[&str]| starts.iter().any(|s| name.starts_with(s));
    let rwsem = is(&[
        "rwsem_",
        "__rwsem",
        "down_read",
        "down_write",
        "__down_read",
        "__down_write",
        "call_rwsem",
        "mmap_",
    ]);
    if rwsem && name.contains("write") {
        Some(WaitFor::RwsemWrite)
    } else if rwsem && name.contains("read") {
        Some(WaitFor::RwsemRead)
    } else if is(&["mutex_", "__mutex", "ww_mutex", "__ww_mutex", "rt_mutex", "__rt_mutex"]) {
        Some(WaitFor::Mutex)
    } else if is(&["__folio_lock", "folio_lock", "__lock_page", "lock_page", "folio_wait", "wait_on_page"]) {
        Some(WaitFor::Page)
    } else if is(&["wait_for_completion", "__wait_for_common", "do_wait_for_common"]) {
        Some(WaitFor::Completion)
    } else if is(&["synchronize_", "wait_rcu_gp", "__wait_rcu"]) {
        Some(WaitFor::Rcu)
    } else {
        None
    }
}

/// What a function waits for that stands on top of a stack: `/proc/PID/stack` leaves out the functions of locks themselves.
fn hidden_lock(name: &str) -> WaitFor {
    let reads = ["fault", "find_vma", "gup", "get_user_pages", "remote_vm"];
    let both = ["madvise", "khugepaged", "huge_page"];
    match name {
        _ if is_of_inode(name) => WaitFor::InodeLock,
        _ if !is_of_memory(name) => WaitFor::Other,
        _ if reads.iter().any(|p| name.contains(p)) => WaitFor::MmapLockRead,
        _ if both.iter().any(|p| name.contains(p)) => WaitFor::MmapLock,
        _ => WaitFor::MmapLockWrite,
    }
}

/// Functions that take the mmap lock of a process, in the spellings of all kernels.
fn is_of_memory(name: &str) -> bool {
    const PARTS: &[&str] = &[
        "page_fault",
        "addr_fault",
        "find_vma",
        "mmap",
        "munmap",
        "madvise",
        "mprotect",
        "mremap",
        "munlock",
        "mlock",
        "msync",
        "mincore",
        "brk",
        "dup_mm",
        "exit_mm",
        "copy_mm",
        "shmat",
        "get_user_pages",
        "gup",
        "remote_vm",
        "khugepaged",
        "huge_page",
        "numa_work",
        "setup_arg_pages",
        "userfaultfd",
    ];
    PARTS.iter().any(|p| name.contains(p))
}

/// Functions that take the lock of a file or folder themselves, before they do anything else that can last.
fn is_of_inode(name: &str) -> bool {
    const PARTS: &[&str] = &[
        "buffered_write_iter",
        "file_write_iter",
        "dio_write_iter",
        "fallocate",
        "do_truncate",
        "chmod_common",
        "chown_common",
        "utimes",
        "do_unlinkat",
        "do_rmdir",
        "filename_create",
        "lock_rename",
        "do_renameat",
        "iterate_dir",
        "open_last_lookups",
        "lookup_slow",
        "setxattr",
        "inode_lock",
        "xfs_ilock",
    ];
    PARTS.iter().any(|p| name.contains(p))
}

#[cfg(test)]
mod tests;
