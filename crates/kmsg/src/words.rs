//! Lines that only a dump of the kernel has, by their words.

use std::sync::LazyLock;

/// Starts of lines behind which a dump shows how things came about: who allocated, freed or queued what went wrong.
const HISTORY: &[&str] = &[
    "Allocated by task",
    "Freed by task",
    "Allocated:",
    "Freed:",
    "allocated by task",
    "freed by task",
    "INFO: Allocated in ",
    "INFO: Freed in ",
    "Allocated in ",
    "Freed in ",
    "Last potentially related work creation:",
    "Second to last potentially related work creation:",
    "Last call_rcu():",
    "Uninit was created at:",
    "Uninit was stored to memory at:",
    "page_owner tracks the page as ",
    "page last allocated via order",
    "page last free stack trace:",
    "page last free pid ",
    "page has been migrated",
    "page allocated via order",
];

/// Starts of lines that only a dump has.
const STRONG: &[&str] = &[
    "Hardware name: ",
    "Modules linked in:",
    "Code: ",
    "RAX: ",
    "RDX: ",
    "RBP: ",
    "RSP: ",
    "R10: ",
    "R13: ",
    "EAX: ",
    "ESI: ",
    "FS:  ",
    "CS:  ",
    "DR0: ",
    "DR3: ",
    "CR2: ",
    "PKRU: ",
    "ORIG_RAX: ",
    "Workqueue: ",
    "task: ",
    "Tainted: ",
    "Tainted:",
    "Not tainted",
    "\"echo 0 > ",
    "Oops: ",
    "PGD ",
    "Thread overran stack",
    "Dumping ftrace buffer:",
    "Kernel Offset: ",
    "Sending NMI ",
    "Showing busy workqueues",
    "Showing all locks held",
    "Memory state around",
    "The buggy address",
    "irq event stamp: ",
    "hardirqs last ",
    "softirqs last ",
    "in_atomic(): ",
    "caller is ",
    "other info that might help",
    "but task is already holding",
    "which lock already depends",
    "the existing dependency chain",
    "Possible unsafe locking scenario",
    "page:",
    "page: refcount",
    "page dumped because",
    "(detected by ",
    "(t=",
    "All QSes seen",
    "blocking rcu_node",
    "Tasks blocked on level-",
    "RCU grace-period kthread",
    "Slab 0x",
    "Object 0x",
    "Object ",
    "Redzone ",
    "Padding ",
    "Bytes b4 ",
    "Kernel panic - ",
    "Rebooting in ",
    "#PF: ",
    "BAD IP",
    "Bad RIP value",
    "Code: Bad RIP",
    "KASAN: ",
    "kasan: ",
    "addr:",
    "file:",
    "pc : ",
    "lr : ",
    "sp : ",
    "pstate: ",
    "Internal error: ",
    "Mem abort info",
    "Local variable ",
    "Use-after-free ",
    "Out-of-bounds ",
    "Corrupted memory ",
    "Invalid read ",
    "Invalid write ",
    "Invalid free ",
    "kfence-#",
    "Reported by Kernel Concurrency",
    "value changed: ",
    "the code is fine but needs",
    "turning off the locking",
    "INFO: Slab ",
    "INFO: Object ",
    "INFO: 0x",
    "comm \"",
    "lock: ",
    "nvcsw",
    "<...>-",
    "kernel stack overflow",
    "index ",
    "shift exponent ",
    "signed integer overflow",
    "member access within",
    "load of value ",
    "load of address ",
    "left shift of ",
    "division ",
    "Showing backtraces of running workers",
];

/// Those of the above that can start a line of any program as well.
const EVERYDAY: &[&str] = &[
    "file:",
    "addr:",
    "index ",
    "lock: ",
    "page:",
    "Object ",
    "Padding ",
    "Redzone ",
    "division ",
    "load of ",
    "left shift of ",
    "shift exponent ",
    "Code: ",
];

/// Whether `message` proves nothing unless the kernel's time stamp is before it.
pub(crate) fn is_everyday(message: &str) -> bool {
    EVERYDAY.iter().any(|word| message.trim_start().starts_with(word))
}

/// Parts of lines that only a dump has; each starts a word.
const STRONG_INSIDE: &[&str] = &[
    "is trying to acquire",
    "is trying to release lock",
    "is trying to lock",
    "is leaving the kernel with locks",
    "is freeing memory ",
    "just changed the state of lock",
    "takes:",
    "lock held by ",
    "locks held by ",
    "blocked on ",
    "ticks this GP) idle=",
    "GPs behind) idle=",
    "kthread starved for ",
    "kthread timer wakeup",
    "usage!",
    "bytes by task ",
    "of size ",
    "bytes by interrupt",
    "nvcsw: ",
];

/// Texts by their first byte: every line of a report is looked up.
struct ByFirst([Vec<&'static str>; 256]);

impl ByFirst {
    fn new(texts: &[&'static str]) -> Self {
        ByFirst(std::array::from_fn(|first| {
            texts.iter().copied().filter(|t| usize::from(t.as_bytes()[0]) == first).collect()
        }))
    }

    /// Whether `bytes` starts with one of the texts.
    fn starts(&self, bytes: &[u8]) -> bool {
        let Some(&first) = bytes.first() else { return false };
        self.0[usize::from(first)].iter().any(|t| bytes.starts_with(t.as_bytes()))
    }
}

/// Whether only a dump has this line, by its start or by words in it.
pub(crate) fn is_strong(text: &str) -> bool {
    static START: LazyLock<ByFirst> = LazyLock::new(|| ByFirst::new(STRONG));
    static INSIDE: LazyLock<ByFirst> = LazyLock::new(|| ByFirst::new(STRONG_INSIDE));
    let bytes = text.as_bytes();
    START.starts(bytes) || memchr::memchr_iter(b' ', bytes).any(|space| INSIDE.starts(&bytes[space + 1..]))
}

/// Whether the stack that follows `text` tells what was before.
pub(crate) fn is_history(text: &str) -> bool {
    HISTORY.iter().any(|start| text.starts_with(start))
}
