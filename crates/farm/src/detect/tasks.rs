//! Tasks that make no progress, in words: where they wait, what they are called. Pure.

use klpfarm_model::{Frame, counted};
use klpfarm_stress::wire::BlockedTask;

/// The kernel function in which a task waits: the first frame that is no machinery of scheduling and locking. A function of the patch
/// itself wins: that is where an engineer wants to look first.
pub(crate) fn waits_in(stack: &str, wchan: &str, patches: &[String]) -> Option<String> {
    let frames: Vec<Frame<'_>> = stack.lines().filter_map(Frame::read).collect();
    let of_patch = |f: &&Frame<'_>| f.module.is_some_and(|m| patches.iter().any(|p| p == m));
    let own = frames.iter().find(of_patch);
    let named = own.or_else(|| frames.iter().find(|f| !klpfarm_kmsg::is_machinery(f.symbol)));
    // On 4.4 a task that waits in a page fault has nothing but machinery on its stack: the lock's, and the trap's.
    let named = named.or_else(|| frames.iter().find(|f| f.function.contains("page_fault")));
    let function = named.or_else(|| frames.first()).map(|f| f.function);
    // Compilers append `.constprop.0` and the like.
    let wchan = wchan.split('.').next().filter(|name| !name.is_empty() && *name != "0");
    function.or(wchan).map(str::to_owned)
}

/// `kworker/1:2` and `kworker/0:1` are the same to a title.
pub(crate) fn general(comm: &str) -> String {
    match comm.split_once('/') {
        Some((name, _)) => name.to_owned(),
        None => comm.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(),
    }
}

pub(crate) fn describe(tasks: &[BlockedTask], total: u32, most: usize) -> String {
    let mut text = format!("{} making no progress:\n", counted(total, "task"));
    for t in tasks.iter().take(most) {
        text.push_str(&format!(
            "{}:{} pid {} state {} for {:.1} s in {}\n",
            t.comm,
            t.tid,
            t.pid,
            t.state,
            t.for_ms as f64 / 1000.0,
            if t.wchan.is_empty() { "?" } else { &t.wchan }
        ));
        for frame in t.stack.lines().take(16) {
            text.push_str(&format!("    {}\n", frame.trim()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: &str =
        "[<0>] __schedule+0x1/0x2\n[<0>] klp_wait+0x5c/0x70 [klp_held]\n[<0>] do_syscall_64+0x5b/0xc0\n";

    #[test]
    fn the_patch_itself_is_named_first() {
        assert_eq!(waits_in(STACK, "", &["klp_held".into()]).as_deref(), Some("klp_wait"));
        let other = "[<ffffffffc014c07c>] down_read+0x5c/0x70\n[<ffffffff8114c07c>] do_user_addr_fault.isra.0+0x5/0x7\n";
        assert_eq!(waits_in(other, "", &[]).as_deref(), Some("do_user_addr_fault"));
        assert_eq!(waits_in("", "futex_wait", &[]).as_deref(), Some("futex_wait"));
        assert_eq!(waits_in("", "0", &[]), None);
    }

    #[test]
    fn names_of_tasks_are_general() {
        assert_eq!(general("kworker/u4:2"), "kworker");
        assert_eq!(general("jbd2/vda-8"), "jbd2");
        assert_eq!(general("stress0012"), "stress");
    }
}
