//! Which function of a stack is guilty: the first that is not mere machinery.

use crate::machinery::{dispatches, is_machinery};
use std::collections::BTreeMap;

/// Where a function was named.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Site {
    pub(crate) function: String,
    pub(crate) module: bool,
    pub(crate) reliable: bool,
    /// An instruction pointer, not a frame.
    pub(crate) pointer: bool,
    /// Counts the stacks in a report.
    pub(crate) stack: u32,
    /// In a stack that is shown beside the one in trouble: guilty only if no other is.
    pub(crate) aside: bool,
}

/// What the kernel itself takes part in when a task hangs: parts of names, since waiting has many wrappers.
const SKIP_HUNG: &[&str] =
    &["sched", "_slowlock", "rwsem", "completion", "wait", "synchronize", "console_lock"];

/// What allocates says nothing about a leak.
const SKIP_LEAK: &[&str] =
    &["alloc", "kmem", "slab", "strdup", "strndup", "memdup", "idr_", "asprintf", "create_object"];

/// How to look for the guilty function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// The first frame of the first stack.
    Frames,
    /// The instruction pointer, then the frames behind it.
    Pointer,
    /// As `Pointer`, but the interrupt that saw the trouble is not part of it, and idle CPUs are innocent.
    Interrupted,
    /// A task that waits: wrappers of waiting are machinery too.
    Hung,
    /// A stack that overflowed: what calls itself.
    Recursion,
    /// A page in a bad state: who had it before, if that is known, as whoever comes across it is a bystander.
    Owner,
    /// Memory that nobody refers to: wrappers of allocation are machinery too.
    Leak,
}

/// The guilty function among `sites`, which are in order of printing. Only what the unwinder is sure of counts: a frame marked `?` may be
/// left from an earlier call.
pub(crate) fn guilty(search: Search, sites: &[Site]) -> Option<&str> {
    let parts = match search {
        Search::Hung => SKIP_HUNG,
        Search::Leak => SKIP_LEAK,
        _ => &[],
    };
    // What a module brings is never the kernel's machinery: a livepatch may call its function as it likes.
    let machinery = |s: &Site| {
        !s.module && (is_machinery(&s.function) || parts.iter().any(|part| s.function.contains(part)))
    };
    match search {
        Search::Frames => pick(within_interrupt(main_stack(sites)), machinery),
        Search::Leak => pick(main_stack(sites), machinery),
        Search::Owner => {
            let mut stacks = sites.chunk_by(|a, b| a.stack == b.stack);
            let owner = stacks.find(|stack| stack[0].aside).and_then(|stack| pick(stack, machinery));
            owner.or_else(|| pick(main_stack(sites), machinery))
        }
        Search::Hung => {
            let stack = main_stack(sites);
            let grace = || stack.iter().any(|s| s.reliable && waits_for_grace(&s.function));
            if !stack.iter().any(|s| s.module) && grace() {
                return Some("synchronize_rcu");
            }
            pick(stack, machinery)
        }
        Search::Pointer => {
            let Some(from) = sites.iter().position(|s| s.pointer) else {
                return pick(main_stack(sites), machinery);
            };
            let stack = sites[from].stack;
            let end = sites[from..].iter().position(|s| s.stack != stack).map_or(sites.len(), |n| from + n);
            pick(within_interrupt(&sites[from..end]), machinery)
                .or_else(|| pick(within_interrupt(main_stack(sites)), machinery))
        }
        Search::Recursion => recurring(main_stack(sites), machinery),
        Search::Interrupted => {
            let find = |aside| {
                let mut stacks = sites.chunk_by(|a, b| a.stack == b.stack).filter(|s| s[0].aside == aside);
                stacks.find_map(|stack| looping(interrupted(stack), machinery))
            };
            find(false).or_else(|| find(true))
        }
    }
}

/// The first stack that is not shown aside: those of other CPUs and tasks do not count.
fn main_stack(sites: &[Site]) -> &[Site] {
    sites.chunk_by(|a, b| a.stack == b.stack).find(|s| !s[0].aside).unwrap_or(&[])
}

/// The part of `stack` that ran in an interrupt, if it did: what was interrupted has nothing to do with it.
fn within_interrupt(stack: &[Site]) -> &[Site] {
    let entry = stack.iter().position(|s| s.reliable && enters_interrupt(&s.function));
    &stack[..entry.unwrap_or(stack.len())]
}

/// Whether the function is where a hardware interrupt enters the kernel.
fn enters_interrupt(name: &str) -> bool {
    ["asm_sysvec_", "sysvec_", "asm_common_interrupt", "common_interrupt", "ret_from_intr", "do_IRQ"]
        .iter()
        .any(|start| name.starts_with(start))
        || ["apic_timer_interrupt", "call_function_interrupt", "reschedule_interrupt", "irq_work_interrupt"]
            .iter()
            .any(|end| name.ends_with(end))
        || matches!(name, "__irq_svc" | "el1_irq" | "el1h_64_irq")
}

/// Whether the function waits until RCU's grace period is over. Who waits is a bystander: one that never ends is the fault of a reader.
fn waits_for_grace(name: &str) -> bool {
    let known = ["synchronize_rcu", "synchronize_sched", "synchronize_srcu", "__synchronize_srcu"];
    known.iter().any(|k| name.starts_with(k)) && !name.starts_with("synchronize_rcu_tasks")
}

/// The function that calls itself, through others or not: a module's before the kernel's, then the one nearest to the entry, as the top of
/// the stack is wherever the stack ended.
fn recurring(stack: &[Site], machinery: impl Fn(&Site) -> bool) -> Option<&str> {
    /// Two frames of one name can be two functions, or a detour; a stack that overflows has many.
    const OFTEN: usize = 3;
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    let fit = || stack.iter().filter(|s| s.reliable && !s.pointer && !machinery(s));
    for site in fit() {
        *times.entry(&site.function).or_default() += 1;
    }
    let recurs = |s: &&Site| times[s.function.as_str()] >= OFTEN;
    let found = fit().filter(recurs).find(|s| s.module).or_else(|| fit().rev().find(recurs));
    found.map(|s| s.function.as_str()).or_else(|| looping(stack, machinery))
}

/// The function that does not come to an end. The top of the stack differs from one report to the next, as the loop calls this and that; a
/// module's function just below it is the same each time, and so is the operation that was called. One far below is a mere wrapper.
fn looping(stack: &[Site], machinery: impl Fn(&Site) -> bool) -> Option<&str> {
    let mut near = stack.iter().filter(|s| s.reliable && !machinery(s)).take(3);
    near.find(|s| s.module)
        .map(|s| s.function.as_str())
        .or_else(|| operation(stack, &machinery))
        .or_else(|| pick(stack, machinery))
}

/// The innermost function that was called as an operation: a system call, a file's or protocol's function, a work item, a timer. `None` if
/// the CPU waits for others, whose fault it is, or if the operation is a module's far below, as a wrapper of what the kernel does is.
fn operation(stack: &[Site], machinery: impl Fn(&Site) -> bool) -> Option<&str> {
    let mut last: Option<&Site> = None;
    for site in stack.iter().filter(|s| s.reliable && !s.function.is_empty()) {
        if site.function.starts_with("smp_call_function") {
            return None;
        }
        let called = last.filter(|s| !machinery(s) && !dispatches(&s.function));
        if !site.module
            && dispatches(&site.function)
            && let Some(operation) = called
        {
            return (!operation.module).then_some(operation.function.as_str());
        }
        last = Some(site);
    }
    None
}

/// The part of a stack that was interrupted: behind the timer interrupt that saw it, which may itself have interrupted
/// the work of another interrupt.
fn interrupted(stack: &[Site]) -> &[Site] {
    if let Some(pointer) = stack.iter().position(|s| s.pointer) {
        return &stack[pointer..];
    }
    let is_timer = |s: &Site| {
        s.function.contains("apic_timer_interrupt")
            || matches!(
                s.function.as_str(),
                "el1_irq" | "el1h_64_irq" | "el1_interrupt" | "__irq_svc" | "end_repeat_nmi" | "asm_exc_nmi"
            )
    };
    let Some(first) = stack.iter().position(is_timer) else { return stack };
    let behind = stack[first..].iter().position(|s| !is_timer(s)).map_or(stack.len(), |n| first + n);
    &stack[behind..]
}

/// The first function that is no machinery.
fn pick(sites: &[Site], machinery: impl Fn(&Site) -> bool) -> Option<&str> {
    sites.iter().find(|s| s.reliable && !machinery(s)).map(|s| s.function.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(function: &str, module: bool) -> Site {
        let function = function.to_string();
        Site { function, module, reliable: true, pointer: false, stack: 0, aside: false }
    }

    #[test]
    fn machinery_is_skipped_but_never_in_a_module() {
        let sites: Vec<Site> = [
            "__schedule",
            "schedule",
            "rwsem_down_write_slowpath",
            "down_write",
            "do_madvise",
            "do_syscall_64",
        ]
        .map(|f| site(f, false))
        .into();
        assert_eq!(guilty(Search::Hung, &sites), Some("do_madvise"));
        let mut patched = sites;
        patched.insert(2, site("wait_for_new_release", true));
        assert_eq!(guilty(Search::Hung, &patched), Some("wait_for_new_release"));
    }

    #[test]
    fn interrupts_and_idle_cpus_are_innocent() {
        let names =
            ["idle_probe", "default_idle", "tick_sched_timer", "apic_timer_interrupt", "spin_forever"];
        let mut sites: Vec<Site> = names.map(|f| site(f, false)).into();
        sites[1].pointer = true;
        sites[2..].iter_mut().for_each(|s| s.stack = 1);
        assert_eq!(guilty(Search::Interrupted, &sites), Some("spin_forever"));
        sites.push(Site { stack: 1, ..site("klp_loop", true) });
        assert_eq!(guilty(Search::Interrupted, &sites), Some("klp_loop"));
        let deep =
            ["zap_pte_range", "unmap_page_range", "do_madvise"].map(|f| Site { stack: 1, ..site(f, false) });
        sites.splice(4..4, deep);
        assert_eq!(guilty(Search::Interrupted, &sites), Some("zap_pte_range"));
    }

    #[test]
    fn a_loop_is_named_after_the_operation_that_was_called() {
        let stack = |names: &[&str]| -> Vec<Site> { names.iter().map(|f| site(f, false)).collect() };
        let spin = |names: &[&str]| guilty(Search::Interrupted, &stack(names)).map(str::to_string);
        let named = |name: &str| Some(name.to_string());
        assert_eq!(
            spin(&["xa_load", "lookup", "demo_write_iter", "vfs_write", "sys_write", "do_syscall_64"]),
            named("demo_write_iter")
        );
        assert_eq!(
            spin(&["zap_pte_range", "do_madvise", "sys_madvise", "do_syscall_64"]),
            named("sys_madvise")
        );
        assert_eq!(
            spin(&["leaf", "demo_expire", "call_timer_fn", "run_timer_softirq"]),
            named("demo_expire")
        );
        let waits =
            ["csd_lock_wait", "smp_call_function_many_cond", "flush_tlb_mm", "sys_munmap", "do_syscall_64"];
        assert_eq!(spin(&waits), named("smp_call_function_many_cond"), "another CPU is guilty");
        let mut wrapped = stack(&["a", "b", "c", "d", "klp_entry", "do_syscall_64"]);
        wrapped[4].module = true;
        assert_eq!(guilty(Search::Interrupted, &wrapped), Some("a"), "a wrapper far below is innocent");
    }

    #[test]
    fn what_an_interrupt_broke_into_is_innocent() {
        let names = ["kfree", "asm_sysvec_apic_timer_interrupt", "bystander"];
        let mut sites: Vec<Site> = names.map(|f| site(f, false)).into();
        sites[0].pointer = true;
        assert_eq!(guilty(Search::Pointer, &sites), None);
        sites.insert(1, site("demo_expire", false));
        assert_eq!(guilty(Search::Pointer, &sites), Some("demo_expire"));
        assert_eq!(guilty(Search::Frames, &sites), Some("demo_expire"));
    }

    #[test]
    fn doubtful_frames_and_other_stacks_name_nobody() {
        let mut sites: Vec<Site> = ["schedule", "left_over", "bystander"].map(|f| site(f, false)).into();
        sites[1].reliable = false;
        sites[2].stack = 1;
        for search in [Search::Frames, Search::Pointer, Search::Hung] {
            assert_eq!(guilty(search, &sites), None, "{search:?}");
        }
    }

    #[test]
    fn who_waits_for_a_grace_period_is_a_bystander_unless_a_module_is() {
        let mut sites: Vec<Site> =
            ["schedule", "synchronize_rcu_expedited", "bystander"].map(|f| site(f, false)).into();
        assert_eq!(guilty(Search::Hung, &sites), Some("synchronize_rcu"));
        sites[2].module = true;
        assert_eq!(guilty(Search::Hung, &sites), Some("bystander"));
    }
}
