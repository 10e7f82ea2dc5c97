//! The families of kernel reports.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How much of the machine is left after a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A task, a CPU or the machine is lost, or memory is corrupt.
    Fatal,
    /// The kernel complains and goes on.
    Warning,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $severity:ident;)*) => {
        /// What a report is about. Serialized in kebab-case, as [`Kind::name`] spells it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl Kind {
            /// Every kind, in order of declaration.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kebab-case name, the same as in serialized form.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }

            /// Whether reports of this kind are dumps of a trap: registers, stack, end mark, and often a `[#1]` line.
            pub(crate) fn is_oops(self) -> bool {
                matches!(
                    self,
                    Kind::NullDeref
                        | Kind::PageFault
                        | Kind::GeneralProtection
                        | Kind::KernelBug
                        | Kind::InvalidOpcode
                        | Kind::DivideError
                        | Kind::DoubleFault
                        | Kind::StackSegment
                        | Kind::Int3
                        | Kind::StackOverflow
                        | Kind::Oops
                )
            }

            /// How much of the machine is left.
            pub fn severity(self) -> Severity {
                match self { $(Kind::$name => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    /// `INFO: task COMM:PID blocked for more than N seconds.` (all versions), also `can't die for more than`.
    HungTask = "hung-task", Fatal;
    /// `BUG: soft lockup - CPU#N stuck for Ns! [COMM:PID]`, `NMI watchdog: ` before it on 4.4, `watchdog: ` later.
    SoftLockup = "soft-lockup", Fatal;
    /// `Watchdog detected hard LOCKUP on cpu N` (all versions; the prefix changes as for soft lockups, and the newest
    /// kernels put `CPUn: ` before it).
    HardLockup = "hard-lockup", Fatal;
    /// `INFO: rcu_sched self-detected stall on CPU`, `detected stalls on CPUs/tasks`, `expedited stalls`;
    /// `rcu: ` before it since 4.19. All flavours: `rcu_sched`, `rcu_preempt`, `rcu_bh`, `rcu_tasks`, `rcu_tasks_trace`...
    RcuStall = "rcu-stall", Fatal;
    /// `BUG: workqueue lockup - pool ...` (4.6 and newer).
    WorkqueueLockup = "workqueue-lockup", Fatal;
    /// `BUG: unable to handle kernel NULL pointer dereference at ADDR` (to 5.0),
    /// `BUG: kernel NULL pointer dereference, address: ADDR` (since).
    NullDeref = "null-deref", Fatal;
    /// `BUG: unable to handle kernel paging request at ADDR` (to 5.0), `BUG: unable to handle page fault for
    /// address: ADDR` (since).
    PageFault = "page-fault", Fatal;
    /// `general protection fault: 0000 [#1]`, `..., probably for non-canonical address` (5.7), after `Oops: ` (6.10).
    GeneralProtection = "general-protection", Fatal;
    /// `kernel BUG at FILE:LINE!` (all versions); `traps: Missing ENDBR: F` before it (5.18 and newer).
    KernelBug = "kernel-bug", Fatal;
    /// `invalid opcode: 0000 [#1]` without a `kernel BUG at` before it.
    InvalidOpcode = "invalid-opcode", Fatal;
    /// `divide error: 0000 [#1]`.
    DivideError = "divide-error", Fatal;
    /// `double fault: 0000 [#1]`, `PANIC: double fault, error_code: 0x0`.
    DoubleFault = "double-fault", Fatal;
    /// `stack segment: 0000 [#1]`.
    StackSegment = "stack-segment", Fatal;
    /// `int3: 0000 [#1]`: a patched instruction hit half-made.
    Int3 = "int3", Fatal;
    /// `BUG: stack guard page was hit at ADDR` (4.9), `kernel stack overflow`, `corrupted stack end detected`.
    StackOverflow = "stack-overflow", Fatal;
    /// `Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: F`.
    StackProtector = "stack-protector", Fatal;
    /// Any other `Oops: ` or `Internal error: ` without a better header, and rare traps, such as `alignment check: 0000 [#1]`.
    Oops = "oops", Fatal;
    /// `BUG: KASAN: TYPE in F` (4.0 and newer).
    Kasan = "kasan", Fatal;
    /// `BUG: KFENCE: TYPE in F` (5.12 and newer).
    Kfence = "kfence", Fatal;
    /// `BUG: KCSAN: data-race in F / G` (5.8 and newer).
    Kcsan = "kcsan", Warning;
    /// `BUG: KMSAN: TYPE in F` (6.1 and newer).
    Kmsan = "kmsan", Warning;
    /// `UBSAN: Undefined behaviour in FILE:LINE` (4.5 to 5.8), `UBSAN: TYPE in FILE:LINE` (since).
    Ubsan = "ubsan", Warning;
    /// `refcount_t: underflow; use-after-free.` and the warning in `lib/refcount.c` (4.11 and newer).
    Refcount = "refcount", Fatal;
    /// `list_add corruption`, `list_del corruption` (all versions).
    ListCorruption = "list-corruption", Fatal;
    /// `BUG: Bad page state in process`, `Bad page map`, `Bad page cache`; `FILE:LINE: bad pmd ADDR`, `F: Bad swap file entry N`.
    BadPage = "bad-page", Fatal;
    /// `BUG: Bad rss-counter state mm:...`, `BUG: non-zero pgtables_bytes on freeing mm` (`nr_ptes` on 4.4).
    BadRssCounter = "bad-rss-counter", Warning;
    /// `BUG kmalloc-64 (Tainted: G B): Redzone overwritten` and the like from SLUB debugging.
    SlabCorruption = "slab-corruption", Fatal;
    /// Lockdep: circular, recursive, irq-inverting lock order, nested lock not taken.
    Deadlock = "deadlock", Warning;
    /// Lockdep: `inconsistent lock state`.
    LockState = "lock-state", Warning;
    /// Lockdep: bad unlock balance, held lock freed, lock held when returning to user space, invalid wait context. Also
    /// `BUG: workqueue leaked lock or atomic: ...`, which needs no lockdep.
    LockMisuse = "lock-misuse", Warning;
    /// `suspicious RCU usage`.
    SuspiciousRcu = "suspicious-rcu", Warning;
    /// `BUG: scheduling while atomic: COMM/PID/COUNT`.
    SchedulingWhileAtomic = "scheduling-while-atomic", Fatal;
    /// `BUG: sleeping function called from invalid context at FILE:LINE`.
    SleepInAtomic = "sleep-in-atomic", Warning;
    /// `BUG: using smp_processor_id() in preemptible [00000000] code: COMM/PID`.
    Preemptible = "preemptible", Warning;
    /// `BUG: spinlock bad magic|lockup suspected|recursion|...`, the same of rwlocks.
    Spinlock = "spinlock", Fatal;
    /// `ODEBUG: ...` and the warning in `lib/debugobjects.c`.
    Odebug = "odebug", Warning;
    /// `WARNING: CPU: N PID: N at FILE:LINE F()` (4.4 with `()`), `WARNING: FILE:LINE at F, CPU#N: COMM/PID` (6.18).
    Warning = "warning", Warning;
    /// `Kernel panic - not syncing: TEXT` that no other report led to.
    Panic = "panic", Fatal;
    /// `Out of memory: Kill process N (COMM) score N` (4.4), `Out of memory: Killed process N (COMM)` (5.x),
    /// `Memory cgroup out of memory: ...`.
    Oom = "oom", Warning;
    /// `kmemleak: N new suspected memory leaks`, `unreferenced object 0xADDR (size N):`.
    MemoryLeak = "memory-leak", Warning;
    /// `unregister_netdevice: waiting for DEV to become free. Usage count = N`.
    NetdeviceRefs = "netdevice-refs", Fatal;
    /// `irq N: nobody cared` (all versions): an interrupt that no handler took.
    UnhandledIrq = "unhandled-irq", Warning;
    /// `DEV: NETDEV WATCHDOG: CPU: N: transmit queue N timed out N ms` (6.8 and newer; before, a warning in `dev_watchdog`).
    TransmitTimeout = "transmit-timeout", Warning;
    /// `unchecked MSR access error: WRMSR to 0xN ...` (4.6 and newer).
    MsrAccess = "msr-access", Warning;
    /// `EXT4-fs error (device DEV): ...`, the same of other file systems, `Aborting journal on device`, `XFS (DEV): Metadata corruption
    /// detected at F`, `Corruption of in-memory data`, `BTRFS critical (device DEV): ...`.
    FilesystemError = "filesystem-error", Fatal;
    /// `blk_update_request: I/O error, dev D`, `Buffer I/O error on dev D`, `I/O error, dev D`.
    IoError = "io-error", Warning;
    /// `COMM: page allocation failure: order:N, mode:...`.
    PageAllocation = "page-allocation", Warning;
    /// `livepatch: failed to ...` and the other ways in which a livepatch is refused.
    LivepatchFailure = "livepatch-failure", Warning;
    /// `MOD: disagrees about version of symbol`, `Unknown symbol`, `version magic 'A' should be 'B'`.
    ModuleLoad = "module-load", Warning;
    /// Any other `BUG: ` whose follow-up proves that the kernel printed it; `VFS: Close: file count is 0`, `VFS: Busy inodes
    /// after unmount`.
    Bug = "bug", Warning;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
