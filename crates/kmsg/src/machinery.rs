//! The kernel functions that are never guilty: what dumps, enters, locks, waits, allocates or checks, and helpers that everybody calls.
//!
//! The one home of this list. It holds for the kernel's own code only: what a module brings is never machinery, whatever it is called.

use std::sync::LazyLock;

/// By subsystem. `x*` is a start, `*x` an end, `*x*` a part, others are the whole name; `!x` and `!x*` are exceptions of a family.
const TABLE: &[(&str, &str)] = &[
    (
        "dumping and dying",
        "dump_stack* __dump_stack show_stack* show_trace* show_regs* sched_show_task dump_backtrace dump_cpu_task print_report
        warn_slowpath* __warn* warn_bogus_irq_restore report_bug fixup_bug handle_bug panic panic_* vpanic *_panic oops_end oops_begin
        die die_* __die* bust_spinlocks make_task_dead rewind_stack_* __stack_chk_fail fail_dump should_fail* should_failslab
        trigger_*backtrace* arch_trigger_* nmi_* rcu_dump_cpu_stacks printk* vprintk* _printk __printk* console_* !console_lock
        !console_device __schedule_bug assertfail* assfail xfs_asswarn __assertion_failed btrfs_assertfail* show_fault_oops __show_regs
        dump_header oom_kill_process dump_page __dump_page print_bad_pte print_modules
        check_panic_on_warn print_tainted get_taint",
    ),
    (
        "traps and interrupts",
        "do_trap* do_error_trap do_invalid_op invalid_op exc_* asm_exc_* sysvec_* asm_sysvec_* do_int3 int3 do_general_protection
        general_protection page_fault *_page_fault do_user_addr_fault do_kern_addr_fault bad_area* __bad_area* no_context page_fault_oops
        error_entry error_exit error_return fixup_exception double_fault do_double_fault divide_error do_divide_error stack_segment
        common_interrupt asm_common_interrupt ret_from_intr do_IRQ nmi do_nmi default_do_nmi end_repeat_nmi handle_stack_overflow
        handle_bad_stack retint_* !retint_user ret_from_exception restore_regs_and_iret irqentry_* irq_exit* irq_enter* __irq_exit*
        reschedule_interrupt smp_reschedule* call_function_*interrupt smp_call_function_*interrupt update_process_times tick_*
        !tick_handler hrtimer_interrupt __hrtimer_run_queues* __run_hrtimer* local_apic_timer_interrupt smp_apic_timer*
        smp_trace_apic* apic_timer_interrupt scheduler_tick sched_tick account_* run_local_timers call_on_stack
        run_on_irqstack* do_softirq* __do_softirq handle_softirqs invoke_softirq run_ksoftirqd call_timer_fn expire_timers tasklet_action* __tasklet_* do_softirq_own_stack watchdog_timer_fn watchdog_overflow_callback*
        is_hardlockup watchdog_hardlockup_check",
    ),
    (
        "traps of other architectures",
        "__do_kernel_fault do_mem_abort do_sp_pc_abort do_translation_fault do_tag_check_fault do_bad_area die_kernel_fault do_alignment*
        el1_* el0_* el0t_* el1h_* el1t_* do_el0_svc do_el1_* __dabt_svc __pabt_svc __irq_svc __und_svc do_DataAbort do_PrefetchAbort
        do_undefinstr bug_handler brk_handler do_debug_exception call_break_hook __do_user_fault ret_fast_syscall handle_exception
        ret_from_syscall el0_svc* !el0_svc_naked __hwasan_* kasan_tag_mismatch __virt_to_phys* walk_stackframe",
    ),
    (
        "system calls and interrupts of other architectures",
        "system_call system_call_common* system_call_exception system_call_vectored* syscall_exit interrupt_return* hardware_interrupt*
        data_access_common* program_check_common* decrementer_common* timer_interrupt replay_interrupt* arch_local_irq_restore*
        ret_from_kernel_thread ret_from_kernel_user_thread start_here_common snooze_loop shared_cede_loop dedicated_cede_loop __do_syscall
        pgm_check_handler __do_pgm_check do_dat_exception do_protection_exception do_per_trap ext_int_handler do_ext_irq io_int_handler
        do_io_irq psw_idle* syscall_common handle_sys handle_sys64 handle_sysn32 handle_syscall handle_tlb* handle_bp
        do_bp do_syscall do_trap_ecall_u gic_handle_irq handle_domain_irq __handle_domain_irq generic_handle_irq* generic_handle_domain_irq handle_percpu_devid_irq arch_timer_handler_*
        do_interrupt_handler call_on_irq_stack kernel_thread_helper cpu_idle arm64_serror_panic do_serror nmi_panic panic_bad_stack __bad_stack",
    ),
    (
        "entering the kernel, threads, idling",
        "entry_SYSCALL* entry_INT80* do_syscall_* do_int80* do_fast_syscall* __do_fast_syscall* system_call_fastpath sysenter_* ia32_sys*
        x64_sys_call invoke_syscall* __invoke_syscall* __sys_trace* tracesys* syscall_return_via_sysret int_ret_from_sys_call
        syscall_exit_to_user_mode* exit_to_user_mode* prepare_exit_to_usermode ret_from_fork* kthread worker_thread rescuer_thread
        smpboot_thread_fn start_secondary secondary_startup* x86_64_start* start_kernel rest_init kernel_init cpu_startup_entry
        process_one_work process_scheduled_works call_cpuidle do_idle cpuidle_* default_idle* arch_cpu_idle intel_idle* acpi_idle*
        mwait_idle* native_safe_halt pv_native_safe_halt native_halt poll_idle acpi_processor_ffh* acpi_safe_halt
        do_signal arch_do_signal* do_notify_resume task_work_run get_signal* do_group_exit signal_to_deliver",
    ),
    (
        "scheduling and waiting",
        "*schedule* !schedule_tail context_switch finish_task_switch* __switch_to* preempt_count* __cond_resched* _cond_resched __might_sleep
        ___might_sleep __might_resched might_fault __might_fault in_sched_functions wait_for_* __wait_for* do_wait_for_common
        *completion* wait_on_* __wait_on* out_of_line_wait* bit_wait* folio_wait_* wait_woken csd_lock* prepare_to_wait* finish_wait
        autoremove_wake* swait_* do_wait_intr* __wake_up* wake_up* !wake_up_new_task complete complete_all swake_up* rcuwait_wake_up
        default_wake_function try_to_wake_up msleep* usleep_* __delay delay_* __const_udelay
        __udelay udelay __ndelay kthread_stop kthread_park io_schedule* !io_schedule_*_fn",
    ),
    (
        "locking",
        "down down_* __down* up up_read up_write rwsem_* __rwsem* call_rwsem* percpu_down* __percpu_down* percpu_rwsem* mutex_* __mutex*
        ww_mutex* __ww_mutex* rt_mutex* __rt_mutex* rtlock* __rtlock* rt_spin* rt_read* rt_write* atomic_dec_and_mutex_lock
        _raw_* __raw_* do_raw_* queued_* native_queued* native_* !native_apic_mem_write __pv_* pv_* !pv_clock* spin_lock* spin_unlock*
        spin_trylock* read_lock* read_unlock* write_lock* write_unlock* raw_read_* raw_write_* __spin_* arch_spin_* arch_read* arch_write* ticket_spin* spin_bug spin_dump rwlock_bug osq_lock seqlock_* __seqprop*
        ldsem_* __ldsem* lockref_* *_atomic_dec_and_lock* _atomic_dec_and_raw_lock* __local_bh* local_bh* __bh_* bit_spin_*
        lock_sock* release_sock __lock_sock __release_sock lock_timer_base lock_hrtimer_base task_rq_lock* __task_rq_lock* raw_spin_rq_* tty_ldisc_lock* __tty_ldisc_lock* tty_lock* reiserfs_write_lock*
        task_blocks_on_rt_mutex lock_page __lock_page* __folio_lock*",
    ),
    (
        "checking of locks and contexts",
        "lock_acquire* __lock_acquire* lock_release* __lock_release* lock_is_held* __lock_is_held* validate_chain* check_prev*
        check_noncircular check_deadlock* check_irq* check_usage* check_path* mark_lock* mark_held* lock_acquired lock_contended
        lock_downgrade lock_pin* lock_unpin* lock_repin* print_circular* print_deadlock* print_bad* print_usage* print_irq* print_unlock*
        print_freed* print_collision* print_lock* valid_state register_lock_class assign_lock_key look_up_lock_class hlock_class
        lockdep_* __lockdep* debug_check_no_locks* debug_lock* debug_locks* lock_set_* __lock_set* reacquire_held* find_held_lock
        match_held_lock debug_mutex* debug_rt_mutex* trace_hardirqs* trace_softirqs* debug_smp_processor_id check_preemption_disabled*
        __this_cpu_preempt*",
    ),
    (
        "RCU",
        "rcu_check_callbacks rcu_sched_clock_irq* rcu_pending __rcu_pending print_cpu_stall* print_other_cpu_stall* check_cpu_stall*
        print_rcu_* rcu_gp_kthread* rcu_gp_fqs* rcu_check_gp* rcu_dump* rcu_note_context_switch rcu_lock_acquire rcu_lock_release
        rcu_read_* __rcu_read_* __srcu_read_* rcu_is_watching rcu_dynticks* __rcu_is_watching rcu_is_cpu_rrupt* rcu_lockdep_* rcu_core*
        rcu_do_batch rcu_process_callbacks __rcu_process_callbacks call_rcu* __call_rcu* !call_rcu_tasks_* kvfree_call_rcu
        synchronize_* __synchronize* !synchronize_sched_expedited_* rcu_barrier* _rcu_barrier* wait_rcu_gp* __wait_rcu* srcu_gp*
        cleanup_srcu_struct* rcu_sync_* debug_lockdep* rcu_cpu_* rcu_nmi_* rcu_irq_* rcu_user_* rcu_idle_* rcu_eqs_*",
    ),
    (
        "sanitizers and stack walks",
        "kasan_* __kasan* *_kasan* __asan_* asan_* check_memory_region* describe_* print_address* kfence_* __kfence* kcsan_* __kcsan*
        __tsan_* tsan_* kmsan_* __kmsan* __msan_* msan_* __ubsan* ubsan_* handle_overflow val_to_string report_access __sanitizer_*
        write_comp_data check_kcov_mode save_stack* __save_stack* arch_stack_walk* stack_trace_* unwind_* !unwind_next_frame
        get_stack_info* deref_stack_reg stack_depot* depot_* set_track* read_word_at_a_time __read_once* read_once*
        is_ftrace_trampoline is_bpf_text_address* __kernel_text_address kernel_text_address bpf_ksym_* __orc_find orc_*
        __x86_indirect_thunk* __x86_return_thunk instrument_* __pfx_* __cfi_* ftrace_* !ftrace_profile* !ftrace_shutdown* trace_event_* perf_trace*
        perf_tp_event* trace_call_bpf* kprobe_* __fentry__ arch_jump_label* __jump_label*",
    ),
    (
        "slab and page allocators",
        "object_err slab_err slab_bug slab_pad_check check_bytes* check_object* check_slab print_trailer alloc_debug* free_debug*
        ___slab_alloc __slab_alloc* slab_* __slab_* kmem_cache_* __kmem_cache* kmalloc* __kmalloc* ___kmalloc* __do_kmalloc*
        __do_cache_alloc krealloc* kzalloc* kcalloc* kfree kfree_sensitive kvfree* kvmalloc* __kvmalloc* vmalloc* !vmalloc_fault* vzalloc
        vfree* __vunmap vunmap* __vmalloc* vm_unmap* __vfree* kmemdup* kstrdup* memdup_* vmemdup_* strndup_user cache_free_debug* ___cache_free
        __cache_free cache_grow* cache_alloc* new_slab allocate_slab setup_object* init_object qlink_free qlist* quarantine_* mempool_*
        alloc_slab_page post_alloc_hook prep_new_page prep_compound* bad_page* free_pages_check* free_page_is_bad* check_new_page* bad_range
        free_pages_prepare free_pcp* free_unref_* __free_pages* free_pages* free_the_page __free_one_page free_one_page free_large_kmalloc
        free_page_and_swap* __free_frozen_pages* free_frozen_pages* free_tail_page* free_hot_cold* get_page_from_freelist rmqueue*
        __alloc_pages* __alloc_frozen_pages* alloc_pages* alloc_page alloc_page_interleave alloc_kmem_pages warn_alloc* __page_frag*
        page_frag* __set_page_owner* reset_page_owner* page_owner* __reset_page_owner* set_page_owner* __dump_page_owner __folio_alloc*
        folio_alloc* __folio_put* folios_put* folio_put* put_page* __put_page* release_pages free_pages_and_swap* count_memcg* obj_cgroup_* memcg_*
        pcpu_* __alloc_percpu* free_percpu stack_slab_* usercopy_* __check_object_size check_heap_object __check_heap_object",
    ),
    (
        "folios and pages in use",
        "filemap_alloc_folio* page_pool_* __page_pool_* do_read_cache_* unlock_page folio_unlock folio_end_* end_page_writeback folio_wake* put_devmap_managed* __phys_addr* __virt_addr_valid
        virt_to_* kmap_* kunmap_* clear_page* copy_page* clear_huge_page* copy_highpage mark_buffer_dirty* __brelse __bread_gfp
        cleancache_* __memcg_*",
    ),
    (
        "memory, strings, checksums, formatting",
        "mem*cpy* memcpy* __memcpy* memset* __memset* memmove* __memmove* memcmp* memchr* memscan mem*_page* str*cmp strlen strnlen strcpy strncpy
        strlcpy strlcat strcat strncat strscpy* sized_strscpy* strchr* strrchr strnchr* strstr strnstr strsep strspn strcspn strpbrk strim strreplace string_escape_* bin2hex hex_to_bin match_token seq_printf seq_puts seq_putc seq_write seq_vprintf 
        skip_spaces copy_user_* copy_to_user* copy_from_user* copyin copyout _copy_* __copy_* !__copy_siginfo*
        __get_user* __put_user* _inline_copy* raw_copy_* rep_movs* simple_copy_to_iter _copy_from_iter* _copy_to_iter* copy_from_iter*
        copy_to_iter* copy_page_*_iter* copyin_* fault_in_* sg_next sg_init_* sg_copy_* sg_miter_* fortify_* __fortify* csum_partial* crc16* crc32* crc_* crc64* __crc* crc7* hex_string
        hex_dump_* print_hex_dump* va_format device_printk* string string_nocheck symbol_string vsnprintf vscnprintf snprintf scnprintf sprintf vsprintf sprint_symbol* pointer
        number format_decode kvasprintf* kasprintf* simple_strto* kstrto* _kstrto* __kstrto* sscanf vsscanf jhash* siphash* xxh32* xxh64*
        sort sort_r bsearch find_*_bit* _find_* __bitmap_* bitmap_* !bitmap_ip* !bitmap_port* hweight* div*_u64* __div64* prandom_* get_random_*
        aes_* aesti_* crypto_ecb_* crypto_cbc_* crypto_skcipher_* cipher_crypt_one sha256_* sha1_* sha512_* chacha_* blake2s_*",
    ),
    (
        "counters, lists, trees, bits",
        "refcount_* __refcount* kref_* list_add* list_del* __list_* list_move* list_splice* list_lru_* __slow_* hlist_* rb_* __rb_*
        atomic_* atomic64_* arch_atomic* raw_atomic* set_bit test_bit clear_bit test_and_* xas_* xa_* __xa_* radix_tree_* !radix_tree_node_alloc
        __radix_tree_* idr_* ida_* klist_* llist_* rhashtable_* __rhashtable_* rht_* !rht_deferred_worker interval_tree_* timerqueue_*
        put_pid put_task_struct* put_cred* __put_cred module_put percpu_ref_* percpu_counter_* __percpu_counter_* percpu_* sbitmap_* __sbitmap_* ref_tracker_* assoc_array_* mas_* mtree_*
        page_counter_* !page_counter_cancel list_sort plist_*",
    ),
    (
        "timers and debug objects",
        "del_timer* try_to_del_timer* __try_to_del* timer_delete* __timer_delete* add_timer* mod_timer* __mod_timer* timer_reduce
        timer_shutdown* detach_timer detach_if_pending init_timer_key do_init_timer timer_is_static_object timer_fixup* hrtimer_cancel
        hrtimer_try_to_cancel hrtimer_active hrtimer_forward* hrtimer_start* hrtimer_init* __hrtimer_start* internal_add_timer debug_print_object
        debug_object* __debug_object* __debug_check* debug_check_no_obj* debug_timer* debug_hrtimer* debug_work* debug_rcu*
        work_is_static_object sk_stop_timer* lookup_object_or_alloc",
    ),
    (
        "work queues",
        "__queue_work queue_work_on queue_delayed_work* __queue_delayed_work insert_work mod_delayed_work* queue_rcu_work
        __flush_work* flush_work flush_work_* flush_workqueue __flush_workqueue drain_workqueue flush_delayed_work cancel_work*
        cancel_delayed_work* __cancel_work* destroy_workqueue start_flush_work get_work_pool try_to_grab_pending put_pwq* pwq_* wq_* kthread_insert_work*
        kthread_queue_* __kthread_queue* kthread_flush_* kthread_cancel* __kthread_cancel*",
    ),
    (
        "kobjects, devices, sysfs, proc",
        "kobject_* __kobject_* kset_* add_uevent_var device_add device_del device_register device_unregister device_initialize device_destroy
        device_create* device_for_each_child* device_find_* device_rename device_move device_release device_remove_*
        driver_register driver_unregister bus_register bus_unregister class_create* class_destroy class_register* class_unregister
        platform_device_add platform_device_del platform_device_register* platform_device_unregister dev_err_probe __device_release_driver device_release_driver*
        device_links_* device_pm_* device_attach __device_attach* driver_probe_device __driver_probe_device really_probe
        driver_sysfs_* bus_remove_device bus_add_device bus_probe_device bus_for_each_* get_device* !get_device_system* put_device devm_*
        devres_* release_nodes cleanup_glue_dir class_dev_iter* dpm_sysfs_* pm_runtime_* __pm_runtime_* sysfs_* !sysfs_warn_dup
        !sysfs_kf_* __sysfs_* create_dir kernfs_* !kernfs_fop_* !kernfs_iop_* __kernfs_new_node internal_create_group* proc_register proc_create*
        proc_mkdir* _proc_mkdir __proc_create remove_proc_* debugfs_create_* __debugfs_create* debugfs_remove*
        hwrng_unregister tty_register_device* tty_unregister_device i2c_del_adapter __unregister_client i2c_unregister_device",
    ),
    (
        "USB core",
        "usb_submit_urb usb_kill_* usb_poison_* usb_unlink_urb usb_start_wait_urb usb_control_msg* usb_bulk_msg usb_interrupt_msg
        usb_hcd_* usb_unanchor_* usb_anchor_urb usb_free_urb usb_put_* usb_get_* usb_disable_* usb_set_intfdata",
    ),
    (
        "socket buffers and network devices",
        "skb_over_panic skb_under_panic kfree_skb* __kfree_skb* sk_skb_reason_drop consume_skb __consume_* skb_release* skb_free* skb_put*
        __skb_put* skb_push* __skb_push* skb_pull* __skb_pull* __pskb_* pskb_* skb_copy* __skb_copy* skb_clone* skb_dequeue* __skb_dequeue*
        skb_queue_* __skb_queue_* skb_unlink __skb_unlink skb_append skb_ensure_writable skb_expand_head skb_array_* skb_trim ___pskb_trim skb_reserve skb_checksum* __skb_checksum* skb_set_*
        skb_orphan* skb_pad __skb_pad __dev_kfree_skb* dev_kfree_skb* __build_skb* build_skb* 
        __netdev_alloc_skb skb_to_sgvec* unregister_netdevice_* !unregister_netdevice_notifier* rollback_registered* unregister_netdev
        call_netdevice_notifiers* notifier_call_chain raw_notifier_* blocking_notifier_*
        atomic_notifier_* __blocking_notifier* dev_printk* __dev_printk* dev_vprintk* _dev_* __netdev_printk* netdev_printk netdev_err
        netdev_warn netdev_info nla_* __nla_* nlmsg_*",
    ),
    (
        "dentries, inodes, files, block requests",
        "fast_dput dput dput_to_list __dentry_kill dentry_free umount_check d_walk do_one_tree drop_nlink fput fput_many ____fput path_put mntput*
        kill_fasync iput blk_mq_freeze* blk_freeze_queue*",
    ),
    (
        "assertions and helpers of Rust",
        "rust_helper_* *rust_begin_unwind* core::panicking* core::panic::* core::option::* core::result::* core::ops::* core::ptr::*",
    ),
];

/// What calls an operation of something else through a pointer: a system call, a file's or protocol's function, a work item, a timer.
const DISPATCHERS: &str = "
    do_syscall_64 do_syscall_x64 do_syscall_32* do_fast_syscall_32 __do_fast_syscall_32 do_int80_syscall* entry_* system_call_fastpath
    tracesys* x64_sys_call ia32_sys_call invoke_syscall* __invoke_syscall* el0_svc* ret_fast_syscall ret_from_syscall sys_ioctl compat_sys_ioctl
    process_one_work kthread kthread_worker_fn task_work_run ret_from_fork* call_timer_fn __run_hrtimer* __hrtimer_run_queues*
    tasklet_action* __handle_irq_event_percpu handle_irq_event* rcu_do_batch __rcu_process_callbacks
    vfs_write __vfs_write new_sync_write vfs_read __vfs_read new_sync_read do_iter_write do_iter_read do_iter_readv_writev
    do_loop_readv_writev call_write_iter call_read_iter vfs_iter_write vfs_iter_read vfs_ioctl do_vfs_ioctl ksys_ioctl __fput
    do_dentry_open __do_fault vfs_fsync_range iterate_dir
    sock_sendmsg_nosec sock_sendmsg __sock_sendmsg sock_recvmsg* rtnetlink_rcv_msg nfnetlink_rcv_msg genl_family_rcv_msg* genl_rcv_msg
    __netif_receive_skb_one_core __netif_receive_skb_core* __netif_receive_skb_list* deliver_skb __napi_poll napi_poll net_rx_action
";

/// What a name is compared with.
struct Pattern {
    head: &'static str,
    /// What must come behind the head; `None`: nothing may.
    tail: Option<&'static str>,
}

impl Pattern {
    fn new(word: &'static str) -> Self {
        match word.split_once('*') {
            Some((head, tail)) => Pattern { head, tail: Some(tail.trim_end_matches('*')) },
            None => Pattern { head: word, tail: None },
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self.tail {
            None => name == self.head,
            Some(tail) => name.strip_prefix(self.head).is_some_and(|rest| rest.contains(tail)),
        }
    }
}

/// The patterns, by the byte that a name must start with: there are hundreds, and every frame is looked up.
struct Patterns {
    by_first: [Vec<Pattern>; 256],
    parts: Vec<&'static str>,
    ends: Vec<&'static str>,
    exceptions: Vec<Pattern>,
}

impl Patterns {
    fn new(words: impl Iterator<Item = &'static str>) -> Self {
        let mut patterns = Patterns {
            by_first: std::array::from_fn(|_| Vec::new()),
            parts: Vec::new(),
            ends: Vec::new(),
            exceptions: Vec::new(),
        };
        for word in words {
            if let Some(exception) = word.strip_prefix('!') {
                patterns.exceptions.push(Pattern::new(exception));
            } else if let Some(rest) = word.strip_prefix('*') {
                match rest.strip_suffix('*') {
                    Some(part) => patterns.parts.push(part),
                    None => patterns.ends.push(rest),
                }
            } else {
                patterns.by_first[usize::from(word.as_bytes()[0])].push(Pattern::new(word));
            }
        }
        patterns
    }

    fn matches(&self, name: &str) -> bool {
        let Some(&first) = name.as_bytes().first() else { return true };
        let fits = self.by_first[usize::from(first)].iter().any(|p| p.matches(name))
            || self.ends.iter().any(|end| name.ends_with(end))
            || self.parts.iter().any(|part| name.contains(part));
        fits && !self.exceptions.iter().any(|e| e.matches(name))
    }
}

/// Whether `name` is mere machinery, if it is the kernel's own: what a module brings never is.
pub fn is_machinery(name: &str) -> bool {
    static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns::new(words()));
    PATTERNS.matches(name)
}

/// Whether `name` calls an operation of something else through a pointer.
pub(crate) fn dispatches(name: &str) -> bool {
    static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns::new(DISPATCHERS.split_whitespace()));
    PATTERNS.matches(name)
}

fn words() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|(_, words)| words.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_machinery() {
        for name in [
            "schedule_timeout",
            "dump_stack_lvl",
            "strcmp",
            "asm_exc_page_fault",
            "kasan_report",
            "memcpy_erms",
            "kobject_put",
            "device_del",
            "timer_is_static_object",
            "__mod_timer",
            "insert_work",
            "xas_start",
            "klist_next",
            "skb_put",
            "crc32_le_base",
            "core::panicking::panic_fmt",
            "rustc::rust_begin_unwind",
        ] {
            assert!(is_machinery(name), "{name}");
        }
    }

    #[test]
    fn what_does_the_work_is_not_nor_are_exceptions() {
        for name in [
            "do_madvise",
            "ext4_file_write_iter",
            "downstream_init",
            "futex_wait",
            "do_exit",
            "vmalloc_fault",
        ] {
            assert!(!is_machinery(name), "{name}");
        }
    }

    #[test]
    fn no_word_stands_twice() {
        let mut words: Vec<&str> = words().collect();
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
    }

    #[test]
    fn every_exception_is_one_of_a_family() {
        let patterns = Patterns { exceptions: Vec::new(), ..Patterns::new(words()) };
        for word in words() {
            if let Some(name) = word.strip_prefix('!') {
                assert!(patterns.matches(&name.replace('*', "x")), "{name} is excepted from nothing");
            }
        }
    }
}
