//! Where tasks wait, for what, since when, and who may hold it, as a sentence.

use klpfarm_model::Noted;
use klpfarm_model::verdict::{Holder, WaitFor, WaitGroup};

/// What the groups come to, in a sentence.
pub(crate) fn sentence(groups: &[WaitGroup]) -> Option<String> {
    const MOST: usize = 4;
    let mut text = group_in_words(groups.first()?, false);
    let mut told: Vec<&Holder> = Vec::new();
    for (n, group) in groups.iter().take(MOST).enumerate() {
        if n > 0 {
            text.push_str("; ");
            text.push_str(&group_in_words(group, true));
        }
        // Groups that differ in the function only share the holder.
        if let Some(holder) = group.holder.as_ref().filter(|h| !told.contains(h)) {
            text.push_str(&format!(" ({})", holder_in_words(holder)));
            told.push(holder);
        }
    }
    if groups.len() > MOST {
        let rest: u32 = groups[MOST..].iter().map(|g| g.tasks).sum();
        text.push_str(&format!("; {rest} more elsewhere"));
    }
    Some(text)
}

fn group_in_words(group: &WaitGroup, more: bool) -> String {
    let one = group.tasks == 1;
    let more = if more { " more" } else { "" };
    let who = match (group.tasks, group.processes) {
        (1, _) => group.names.first().map_or_else(|| "a task".to_owned(), Clone::clone),
        (n, p) if n == p => format!("{n}{more} tasks"),
        (n, 1) => format!("{n}{more} threads of a process"),
        (n, p) => format!("{n}{more} threads of {p} processes"),
    };
    let mut text = format!("{who} {}", place_in_words(group, one));
    if let Some(ms) = group.since_apply_ms {
        let when = if ms < 0 { "before" } else { "after" };
        text.push_str(&format!(" since {:.1} s {when} applying", ms.unsigned_abs() as f64 / 1000.0));
    }
    text
}

fn place_in_words(group: &WaitGroup, one: bool) -> String {
    let s = if one { "s" } else { "" };
    let states: Vec<String> = group.states.chars().map(String::from).collect();
    let state = format!("state {}", states.join(", "));
    let function = &group.function;
    let called = match (&group.patch_function, &group.patch) {
        (Some(f), Some(patch)) if f != function => format!(", called by {f} of {patch}"),
        (Some(_), Some(patch)) => format!(", {patch}'s own code"),
        _ => String::new(),
    };
    if group.noted == Noted::Straggler {
        let have = if one { "has" } else { "have" };
        let place = if function.is_empty() { String::new() } else { format!(": in {function}{called}") };
        return format!("{have} not switched{place} ({state})");
    }
    match (group.waits_for, function.as_str()) {
        (WaitFor::Cpu, "") => format!("run{s} without getting anywhere"),
        (WaitFor::Cpu, f) => format!("run{s} without getting anywhere, in {f}{called}"),
        (WaitFor::Unknown, _) | (_, "") => format!("wait{s} ({state}; no stack could be read)"),
        (WaitFor::Patch, f) => {
            let patch = group.patch.as_deref().unwrap_or("the patch");
            format!("wait{s} in {f} ({patch}'s own code, {state})")
        }
        (WaitFor::Other, f) => format!("wait{s} in {f}{called} ({state})"),
        (what, f) => format!("wait{s} for {} in {f}{called} ({state})", in_words(what)),
    }
}

fn holder_in_words(holder: &Holder) -> String {
    match holder {
        Holder::WaitingInThePatch { function } => {
            format!("perhaps held by the tasks that wait in {function}")
        }
        Holder::OtherOrder { function } => {
            format!("perhaps for what tasks in {function} hold, which wait as well: a wrong order of locks?")
        }
        Holder::SameProcess { function: Some(function), .. } => {
            format!("likely held by threads of the same processes that stand in {function}")
        }
        Holder::SameProcess { function: None, state } => {
            format!("likely held by threads of the same processes that stand in state {state}")
        }
        Holder::NobodyLeft => {
            "all working threads of such a process wait for it and none is left to give it back: likely never released"
                .to_owned()
        }
    }
}

/// What is waited for.
fn in_words(waits_for: WaitFor) -> &'static str {
    match waits_for {
        WaitFor::Patch => "something of the patch's own",
        WaitFor::MmapLock => "the mmap lock of the process",
        WaitFor::MmapLockRead => "the mmap lock of the process, to read,",
        WaitFor::MmapLockWrite => "the mmap lock of the process, to write,",
        WaitFor::InodeLock => "the lock of a file or folder",
        WaitFor::RwsemRead => "a read-write semaphore, to read,",
        WaitFor::RwsemWrite => "a read-write semaphore, to write,",
        WaitFor::Mutex => "a mutex",
        WaitFor::Page => "a page",
        WaitFor::Completion => "another task to finish",
        WaitFor::Rcu => "a grace period of RCU",
        WaitFor::Cpu => "a CPU",
        WaitFor::Other | WaitFor::Unknown => "something",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(noted: Noted, tasks: u32, processes: u32, function: &str, waits_for: WaitFor) -> WaitGroup {
        WaitGroup {
            noted,
            function: function.into(),
            patch_function: None,
            patch: None,
            waits_for,
            states: "D".into(),
            tasks,
            processes,
            names: vec!["w".into()],
            workloads: Vec::new(),
            since_apply_ms: None,
            holder: None,
        }
    }

    #[test]
    fn a_hang_names_who_waits_where_since_when_and_who_holds_what() {
        let mut own = group(Noted::Blocked, 24, 6, "klp_new_madvise", WaitFor::Patch);
        own.patch_function = Some("klp_new_madvise".into());
        own.patch = Some("madvise_held_lock".into());
        own.since_apply_ms = Some(3040);
        let mut others = group(Noted::Blocked, 5, 5, "do_user_addr_fault", WaitFor::MmapLockRead);
        others.since_apply_ms = Some(4000);
        others.holder = Some(Holder::SameProcess { function: Some("klp_new_madvise".into()), state: 'D' });
        assert_eq!(
            sentence(&[own, others]).unwrap(),
            "24 threads of 6 processes wait in klp_new_madvise (madvise_held_lock's own code, state D) since 3.0 s after applying; \
             5 more tasks wait for the mmap lock of the process, to read, in do_user_addr_fault (state D) since 4.0 s after applying \
             (likely held by threads of the same processes that stand in klp_new_madvise)"
        );
        assert_eq!(sentence(&[]), None);
    }

    #[test]
    fn groups_that_share_a_holder_name_it_once() {
        let mut group = group(Noted::Blocked, 1, 1, "do_madvise", WaitFor::MmapLock);
        group.patch_function = Some("klp_new_madvise".into());
        group.patch = Some("lock_leaked_write".into());
        group.since_apply_ms = Some(-200);
        group.holder = Some(Holder::NobodyLeft);
        let text = sentence(&[group.clone(), group]).unwrap();
        assert!(text.starts_with("w waits for the mmap lock of the process in do_madvise, called by klp_new_madvise of lock_leaked_write (state D) since 0.2 s before applying"), "{text}");
        assert_eq!(text.matches("never released").count(), 1, "{text}");
    }

    #[test]
    fn holders_that_are_guessed_are_said_to_be_so() {
        let function = || "klp_f".to_owned();
        for (holder, expected) in [
            (
                Holder::WaitingInThePatch { function: function() },
                "perhaps held by the tasks that wait in klp_f",
            ),
            (
                Holder::OtherOrder { function: function() },
                "perhaps for what tasks in klp_f hold, which wait as well: a wrong order of locks?",
            ),
            (
                Holder::SameProcess { function: None, state: 'R' },
                "likely held by threads of the same processes that stand in state R",
            ),
        ] {
            assert_eq!(holder_in_words(&holder), expected);
        }
    }

    #[test]
    fn stragglers_and_the_unreadable_have_their_words() {
        let mut straggler = group(Noted::Straggler, 1, 1, "klp_wait", WaitFor::Other);
        straggler.names = vec!["klp_helper".into()];
        straggler.patch_function = Some("klp_wait".into());
        straggler.patch = Some("revert_stall".into());
        straggler.states = "S".into();
        let unreadable = group(Noted::Blocked, 1, 1, "", WaitFor::Unknown);
        let runs = group(Noted::Blocked, 1, 1, "", WaitFor::Cpu);
        let text = sentence(&[straggler, unreadable, runs]).unwrap();
        assert_eq!(
            text,
            "klp_helper has not switched: in klp_wait, revert_stall's own code (state S); \
             w waits (state D; no stack could be read); w runs without getting anywhere"
        );
    }
}
