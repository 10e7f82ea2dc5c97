//! Which function of a stack is guilty: the first that is not mere machinery.

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

/// Names that are never guilty: what dumps the stack, what enters the kernel, what checks memory, what waits, what
/// locks, and helpers that everybody calls. `x*` is a start, `*x*` a part, others are the whole name.
const SKIP: &str = "
__pfx_* __cfi_*
dump_stack* __dump_stack show_stack show_trace* show_regs* sched_show_task dump_backtrace dump_cpu_task print_report
warn_slowpath* __warn* report_bug fixup_bug handle_bug panic panic_* vpanic oops_end oops_begin die die_* __die* do_trap*
do_error_trap do_invalid_op invalid_op exc_* asm_exc_* sysvec_* asm_sysvec_* do_int3 int3 do_general_protection
general_protection page_fault *_page_fault do_user_addr_fault do_kern_addr_fault bad_area* __bad_area* no_context
page_fault_oops show_fault_oops error_entry error_exit do_page_fault async_page_fault fixup_exception double_fault
do_double_fault divide_error stack_segment common_interrupt asm_common_interrupt ret_from_intr do_IRQ
nmi nmi_* do_nmi default_do_nmi end_repeat_nmi asm_exc_nmi trigger_*backtrace* arch_trigger_* rcu_dump_cpu_stacks
watchdog_timer_fn watchdog_overflow_callback* is_hardlockup watchdog_hardlockup_check

entry_SYSCALL* entry_INT80* do_syscall_* do_int80* do_fast_syscall* system_call_fastpath sysenter_* ia32_sys* x64_sys_call
el0_* el1_* el0t_* el1h_* invoke_syscall* do_el0_svc __sys_trace* tracesys* syscall_return_via_sysret int_ret_from_sys_call
syscall_exit_to_user_mode* exit_to_user_mode* irqentry_* prepare_exit_to_usermode ret_from_fork* kthread worker_thread rescuer_thread
smpboot_thread_fn start_secondary secondary_startup* x86_64_start* start_kernel rest_init kernel_init cpu_startup_entry
process_one_work process_scheduled_works call_cpuidle do_idle cpuidle_* default_idle* arch_cpu_idle intel_idle* acpi_idle*
mwait_idle* native_safe_halt pv_native_safe_halt native_halt poll_idle acpi_processor_ffh* acpi_safe_halt

update_process_times tick_* hrtimer_interrupt __hrtimer_run_queues* __run_hrtimer* local_apic_timer_interrupt smp_apic_timer*
smp_trace_apic* apic_timer_interrupt reschedule_interrupt smp_reschedule* call_function_*interrupt smp_call_function_*interrupt
irq_exit* irq_enter* scheduler_tick sched_tick account_* rcu_check_callbacks rcu_sched_clock_irq* rcu_pending
__rcu_pending print_cpu_stall* print_other_cpu_stall* check_cpu_stall* print_rcu_* rcu_gp_kthread* rcu_gp_fqs* rcu_check_gp*
rcu_dump* rcu_note_context_switch run_local_timers

*schedule* context_switch finish_task_switch* __switch_to* preempt_count* __cond_resched* _cond_resched __might_sleep
___might_sleep __might_resched might_fault __might_fault in_sched_functions
down down_* __down* rwsem_* __rwsem* call_rwsem* percpu_down* __percpu_down* up_read up_write mutex_* __mutex* ww_mutex*
__ww_mutex* rt_mutex* __rt_mutex* rtlock* __rtlock* rt_spin* rt_read* rt_write* atomic_dec_and_mutex_lock
wait_for_* __wait_for* do_wait_for_common *completion* wait_on_* __wait_on* out_of_line_wait* bit_wait* folio_wait_* wait_woken
wait_rcu_gp* __wait_rcu* synchronize_* __synchronize* rcu_barrier* __flush_work* flush_work* drain_workqueue flush_delayed_work cancel_work_sync
cancel_delayed_work_sync __cancel_work* kthread_stop kthread_park msleep*
usleep_* __delay delay_* __const_udelay __udelay udelay __ndelay prepare_to_wait* finish_wait autoremove_wake* swait_* do_wait_intr*
_raw_* __raw_* do_raw_* queued_* native_* __pv_* pv_* spin_lock* spin_unlock* spin_trylock* __spin_* arch_spin_* ticket_spin* lock_acquire* __lock_acquire*
lock_release* __lock_release* lock_is_held* __lock_is_held* validate_chain* check_prev* check_noncircular check_deadlock*
check_irq* mark_lock* mark_held* lock_acquired lock_contended print_circular* print_deadlock* print_bad* print_usage*
print_irq* print_unlock* print_freed* print_collision* valid_state register_lock_class assign_lock_key lockdep_* __lockdep*
debug_check_no_locks* debug_lock* debug_locks* lock_set_* reacquire_held* spin_bug spin_dump rwlock_bug debug_mutex*
osq_lock rcu_lock_acquire rcu_read_* __rcu_read_* trace_hardirqs* trace_softirqs* __local_bh* local_bh* __bh_* lockref_get

kasan_* __kasan* *_kasan* __asan_* asan_* check_memory_region* describe_* print_address* kfence_* __kfence* kcsan_* __kcsan*
__tsan_* tsan_* kmsan_* __kmsan* __msan_* msan_* __ubsan* ubsan_* handle_overflow val_to_string report_access
save_stack* __save_stack* arch_stack_walk* stack_trace_* unwind_* __unwind_* stack_depot* set_track* object_err slab_err slab_bug slab_pad_check check_bytes* check_object*
check_slab print_trailer alloc_debug* free_debug* ___slab_alloc __slab_alloc* slab_* __slab_* kmem_cache_* __kmem_cache*
kmalloc* __kmalloc* ___kmalloc* __do_kmalloc* krealloc* kzalloc* kfree kfree_sensitive kvfree* kvmalloc* vmalloc vzalloc vfree* __vunmap vunmap* __vmalloc* vm_unmap* kmemdup* kstrdup
cache_free_debug* ___cache_free __cache_free qlink_free qlist* quarantine_* mempool_alloc* mempool_free* __kvmalloc*
bad_page* free_pages_check* free_page_is_bad* check_new_page* bad_range free_pages_prepare free_pcp* free_unref_* __free_pages*
get_page_from_freelist __alloc_pages* __alloc_frozen_pages* alloc_pages* alloc_page alloc_kmem_pages warn_alloc* __page_frag* page_frag* print_bad_pte dump_page* 
mem*cpy* memcpy* __memcpy* memset* __memset* memmove* __memmove* memcmp* memchr* str*cmp strlen strnlen strcpy strncpy
strlcpy strlcat strscpy* strcat strchr strstr copy_user_* copy_to_user* copy_from_user* _copy_* __copy_* copy_page* rep_movs*
clear_page* usercopy_* __check_object_size check_heap_object __check_heap_object fortify_* __fortify* csum_partial*
refcount_* __refcount* kref_* kobject_* debug_print_object debug_object* __debug_object* __debug_check* debug_check_no_obj*
debug_timer* debug_hrtimer* debug_work* debug_rcu*
list_add* list_del* __list_* list_move* __slow_* hlist_* rb_* __rb_* atomic_* atomic64_* arch_atomic* raw_atomic* set_bit
test_bit clear_bit _find_* find_first_bit find_next_bit debug_smp_processor_id check_preemption_disabled* __this_cpu_preempt*
del_timer* timer_delete* lock_timer_base lock_hrtimer_base hrtimer_cancel hrtimer_try_to_cancel perf_trace* perf_tp_event*
__x86_indirect_thunk* __x86_return_thunk __sanitizer_* add_uevent_var device_add kfree_skb* __kfree_skb* consume_skb
skb_release* skb_free* ref_tracker_* drop_nlink test_and_* *_panic simple_copy_to_iter copyout instrument_* blk_mq_freeze*
depot_fetch_stack stack_slab_* count_memcg* debug_lockdep* trace_event_raw*
should_fail* fail_dump should_failslab printk* vprintk* _printk console_* __schedule_bug do_exit make_task_dead
rewind_stack_* do_group_exit get_signal* 
";

/// What the kernel itself takes part in when a task hangs: parts of names, since waiting has many wrappers.
const SKIP_HUNG: &[&str] = &["sched", "_slowlock", "rwsem", "completion", "wait", "synchronize"];

/// What allocates says nothing about a leak.
const SKIP_LEAK: &[&str] =
    &["alloc", "kmem", "slab", "strdup", "strndup", "memdup", "idr_", "asprintf", "create_object"];

/// What a name is compared with.
struct Pattern {
    head: &'static str,
    /// What must come behind the head; `None`: nothing may.
    tail: Option<&'static str>,
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        match self.tail {
            None => name == self.head,
            Some(tail) => name.strip_prefix(self.head).is_some_and(|rest| rest.contains(tail)),
        }
    }
}

/// The patterns of `SKIP`, by the byte that a name must start with: there are hundreds, and every frame is looked up.
struct Patterns {
    by_first: [Vec<Pattern>; 256],
    parts: Vec<&'static str>,
    ends: Vec<&'static str>,
}

impl Patterns {
    fn new(text: &'static str) -> Self {
        let mut patterns =
            Patterns { by_first: std::array::from_fn(|_| Vec::new()), parts: Vec::new(), ends: Vec::new() };
        for word in text.split_whitespace() {
            if let Some(rest) = word.strip_prefix('*') {
                match rest.strip_suffix('*') {
                    Some(part) => patterns.parts.push(part),
                    None => patterns.ends.push(rest),
                }
                continue;
            }
            let (head, tail) = match word.split_once('*') {
                Some((head, tail)) => (head, Some(tail.trim_end_matches('*'))),
                None => (word, None),
            };
            patterns.by_first[usize::from(word.as_bytes()[0])].push(Pattern { head, tail });
        }
        patterns
    }

    fn matches(&self, name: &str) -> bool {
        let Some(&first) = name.as_bytes().first() else { return true };
        self.by_first[usize::from(first)].iter().any(|p| p.matches(name))
            || self.ends.iter().any(|end| name.ends_with(end))
            || self.parts.iter().any(|part| name.contains(part))
    }
}

/// Whether `name` is mere machinery.
pub fn is_machinery(name: &str) -> bool {
    static PATTERNS: std::sync::LazyLock<Patterns> = std::sync::LazyLock::new(|| Patterns::new(SKIP));
    PATTERNS.matches(name)
}

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
    /// Memory that nobody refers to: wrappers of allocation are machinery too.
    Leak,
}

/// The guilty function among `sites`, which are in order of printing.
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
        Search::Frames | Search::Hung | Search::Leak => pick(sites, machinery),
        Search::Pointer => {
            let from = sites.iter().position(|s| s.pointer).unwrap_or(0);
            pick(&sites[from..], machinery).or_else(|| pick(sites, machinery))
        }
        Search::Interrupted => {
            let find = |aside| {
                let mut stacks = sites.chunk_by(|a, b| a.stack == b.stack).filter(|s| s[0].aside == aside);
                stacks.find_map(|stack| looping(interrupted(stack), machinery))
            };
            find(false).or_else(|| find(true))
        }
    }
}

/// The function that does not come to an end. The top of the stack differs from one report to the next, as the loop
/// calls this and that; a module's function just below it is the same each time. One far below is a mere wrapper.
fn looping(stack: &[Site], machinery: impl Fn(&Site) -> bool) -> Option<&str> {
    let mut near = stack.iter().filter(|s| s.reliable && !machinery(s)).take(3);
    near.find(|s| s.module).map(|s| s.function.as_str()).or_else(|| pick(stack, machinery))
}

/// The part of a stack that was interrupted: behind the timer interrupt that saw it, which may itself have interrupted
/// the work of another interrupt.
fn interrupted(stack: &[Site]) -> &[Site] {
    if let Some(pointer) = stack.iter().position(|s| s.pointer) {
        return &stack[pointer..];
    }
    let is_timer = |s: &Site| s.function.contains("apic_timer_interrupt");
    let Some(first) = stack.iter().position(is_timer) else { return stack };
    let behind = stack[first..].iter().position(|s| !is_timer(s)).map_or(stack.len(), |n| first + n);
    &stack[behind..]
}

/// The first function of the first stack that has one; frames that the unwinder doubts come last.
fn pick(sites: &[Site], machinery: impl Fn(&Site) -> bool) -> Option<&str> {
    let find = |reliable| sites.iter().find(|s| s.reliable == reliable && !machinery(s));
    find(true).or_else(|| find(false)).map(|s| s.function.as_str())
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
    fn patterns() {
        for name in [
            "schedule_timeout",
            "dump_stack_lvl",
            "strcmp",
            "asm_exc_page_fault",
            "kasan_report",
            "memcpy_erms",
        ] {
            assert!(is_machinery(name), "{name}");
        }
        for name in
            ["do_madvise", "ext4_file_write_iter", "downstream_init", "futex_wait", "lock_sock_nested"]
        {
            assert!(!is_machinery(name), "{name}");
        }
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
}
