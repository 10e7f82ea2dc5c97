//! Whether a stack blames the patch: its code stands on the stack of whoever is in trouble, as a frame that the unwinder is sure of. Pure.

use klpfarm_model::Frame;

/// Whether code of a patch stands on a task's own stack, as `/proc/PID/stack` has it.
pub(crate) fn on_stack(stack: &str, patches: &[String]) -> bool {
    stack.lines().filter_map(Frame::read).any(|f| f.module.is_some_and(|m| patches.iter().any(|p| p == m)))
}

/// What begins a stack of somebody else than the one whom a report is about.
const ASIDE: [&str; 6] = [
    // RCU's own thread, and the CPU where it ran last.
    "kthread stack dump:",
    "Stack dump where RCU GP kthread last ran",
    // KASAN shows who allocated and freed the memory.
    "Allocated by task",
    "Freed by task",
    "Last potentially related work creation:",
    "Showing all locks held in the system",
];

/// Whether a report of the kernel blames the patch. Only its first stack counts, which is that of the culprit: what other CPUs and tasks
/// were doing meanwhile is shown behind it. Frames marked `?` are leftovers of earlier calls.
pub(crate) fn in_report(text: &str, patches: &[String]) -> bool {
    let mut found = false;
    let mut has_stack = false;
    for line in text.lines() {
        if line.contains("stack backtrace:") {
            // What lockdep shows before it is the history of the locks.
            (found, has_stack) = (false, false);
            continue;
        }
        let trace = line.contains("Call Trace:") || line.contains("Call trace:");
        if ASIDE.iter().any(|aside| line.contains(aside)) || (has_stack && (trace || begins_stack(line))) {
            break;
        }
        has_stack |= trace;
        found |= module(line).is_some_and(|m| patches.iter().any(|p| p == m));
    }
    found
}

/// A line with which the stack of another CPU or task begins.
fn begins_stack(line: &str) -> bool {
    line.contains("NMI backtrace for cpu ")
        || line.contains("Task dump for CPU ")
        || line.contains("ending NMI ")
        || (line.contains("CPU: ") && line.contains(" PID: ") && line.contains(" Comm: "))
        || (line.contains("task:") && line.contains(" state:"))
}

/// The module of the function that a line of a report names, `F+0x1/0x2 [MODULE]` or `F+0x1/0x2 [MODULE BUILDID]`; none if the unwinder
/// doubts it.
fn module(line: &str) -> Option<&str> {
    let (head, tail) = line.split_at(line.find("+0x")?);
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    if head.trim_end_matches(name).trim_end().ends_with('?') {
        return None;
    }
    let rest = tail.trim_start_matches(|c: char| c.is_ascii_hexdigit() || matches!(c, '+' | 'x' | '/'));
    rest.trim_start().strip_prefix('[')?.split([' ', ']']).next()
}

/// The CPUs that stall RCU, by its report: `\t1-...: (3185 ticks this GP) ...`, with letters and signs in place of the dots that tell what RCU
/// knows of them.
pub(crate) fn stalling_cpus(report: &str) -> Vec<u32> {
    let cpu = |line: &str| {
        let (head, _) = line.split_once(": (")?;
        let (number, flags) = head.rsplit(char::is_whitespace).next()?.split_once('-')?;
        let marks = |c: char| matches!(c, '.' | '!' | '?' | 'O' | 'o' | 'N' | 'D');
        (flags.len() >= 3 && flags.chars().all(marks)).then(|| number.parse().ok())?
    };
    report.lines().filter_map(cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blames(text: &str) -> bool {
        in_report(text, &["x".to_owned()])
    }

    /// As 6.1 prints it.
    fn lockup(pointer: &str, frames: &[&str]) -> String {
        let frames: Vec<String> = frames.iter().map(|f| format!("[  120.52]  {f}\n")).collect();
        format!(
            "[  120.51] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [alloc-worker:1234]\n\
             [  120.51] Modules linked in: x(OK) virtio_net [last unloaded: x]\n\
             [  120.51] CPU: 1 PID: 1234 Comm: alloc-worker Tainted: G           O  K   6.1.0-41-cloud-amd64 #1\n\
             [  120.51] RIP: 0010:{pointer}\n\
             [  120.52] Call Trace:\n\
             [  120.52]  <TASK>\n{}\
             [  120.52]  </TASK>\n",
            frames.concat()
        )
    }

    #[test]
    fn frames_and_pointers_of_the_culprit_count() {
        assert!(blames(&lockup("klp_do_madvise+0x2c/0x70 [x]", &["do_syscall_64+0x5c/0x1f0"])));
        assert!(blames(&lockup("clear_huge_page+0x2c/0x70", &["klp_madvise+0x59/0x11f [x]"])));
        // CONFIG_STACKTRACE_BUILD_ID
        let id = "klp_madvise.isra.0+0x59/0x11f [x 6e2a9d2ffa5e0b5d4f2c7ab1b0f8e6b2e3c4d5a6]";
        assert!(blames(&lockup("clear_huge_page+0x2c/0x70", &[id])));
        assert!(!blames(&lockup("clear_huge_page+0x2c/0x70 [xfs]", &["f+0x1/0x2 [x86_pkg]"])));
        // 4.4
        assert!(blames(
            "[    9.1] BUG: unable to handle kernel NULL pointer dereference at 0000000000000008\n\
             [    9.1] IP: [<ffffffffc0012345>] klp_f+0x5/0x20 [x]\n"
        ));
        assert!(blames("[    9.1] WARNING: CPU: 1 PID: 12 at /root/x.c:33 klp_f+0x9e/0xb0 [x]()\n"));
    }

    #[test]
    fn the_cpus_that_stall_rcu() {
        let report = "[  462.3] INFO: rcu_sched detected stalls on CPUs/tasks:\n\
             [  462.3] \t1-...: (3185 ticks this GP) idle=5e1/140000000000000/0 softirq=19072/19072 fqs=3692 \n\
             [  462.3] \t(detected by 0, t=5255 jiffies, g=8107, c=8106, q=19806)\n";
        assert_eq!(stalling_cpus(report), [1]);
        // 6.1, two at once.
        let report = "[  9.0] rcu: \t0-...!: (1 GPs behind) idle=4c54/1/0x4000000000000000\n\
             [  9.0] rcu: \t12-O.?D: (0 ticks this GP) idle=1\n[  9.0] x: a-b: (c)\n";
        assert_eq!(stalling_cpus(report), [0, 12]);
        assert!(stalling_cpus("rcu: INFO: rcu_preempt self-detected stall on CPU\n1-2-3: (x)\n").is_empty());
    }

    #[test]
    fn leftovers_do_not_count() {
        let frames =
            ["? klp_madvise+0x59/0x11f [x]", "do_huge_pmd_anonymous_page+0x11/0x300", "? f+0x1/0x2 [x]"];
        assert!(!blames(&lockup("clear_huge_page+0x2c/0x70", &frames)));
        assert!(!blames("[  9.0]  [<ffffffffc0012345>] ? klp_f+0x5/0x20 [x]\n"));
        assert!(!on_stack("[<0>] ? klp_f+0x5/0x20 [x]\n", &["x".to_owned()]));
        assert!(on_stack("[<0>] schedule+0x1/0x2\n[<0>] klp_f+0x5/0x20 [x]\n", &["x".to_owned()]));
    }

    #[test]
    fn bystanders_do_not_count() {
        let other = "[  120.53] Sending NMI from CPU 1 to CPUs 0:\n\
             [  120.53] NMI backtrace for cpu 0\n\
             [  120.53] CPU: 0 PID: 99 Comm: w Tainted: G           O  K   6.1.0-41-cloud-amd64 #1\n\
             [  120.53] RIP: 0010:klp_do_madvise+0x2c/0x70 [x]\n\
             [  120.53] Call Trace:\n\
             [  120.53]  klp_madvise+0x59/0x11f [x]\n";
        let own = lockup("clear_huge_page+0x2c/0x70", &["do_syscall_64+0x5c/0x1f0"]);
        assert!(!blames(&format!("{own}{other}")));
        // Of a stall seen by another CPU, the stack that comes first is that of the CPU that stalls.
        let stall = "[  120.51] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n\
             [  120.51] rcu: \t0-...!: (1 GPs behind) idle=4c54/1/0x4000000000000000 softirq=4712/4713 fqs=0\n";
        assert!(blames(&format!("{stall}{other}")));
        let thread = "[  120.53] rcu: RCU grace-period kthread stack dump:\n\
             [  120.53] task:rcu_preempt     state:R  running task     stack:0     pid:15    ppid:2\n\
             [  120.53] Call Trace:\n";
        assert!(!blames(&format!("{stall}{thread}[  120.54]  klp_f+0x1/0x2 [x]\n")));
    }

    #[test]
    fn the_history_of_a_lock_does_not_count() {
        let text = "WARNING: possible circular locking dependency detected\n\
             -> #1 (&mm->mmap_lock){++++}-{3:3}:\n       klp_madvise+0x59/0x11f [x]\n\
             stack backtrace:\nCPU: 0 PID: 9 Comm: w Not tainted 6.1.0 #1\nCall Trace:\n";
        assert!(!blames(&format!("{text} do_exit+0x1/0x2\n")));
        assert!(blames(&format!("{text} klp_exit+0x1/0x2 [x]\n")));
    }
}
