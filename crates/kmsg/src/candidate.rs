//! Which messages are worth parsing.

use memchr::memchr;
use std::sync::LazyLock;

/// What a header or notice can start with; each is three bytes or longer.
const STARTS: &[&[u8]] = &[
    b"[ BUG: ",
    b"[ INFO: ",
    b"Aborting journal on device ",
    b"addressing exception",
    b"alignment check",
    b"Allocated in ",
    b"Bad mode in",
    b"blk_update_request",
    b"bounds",
    b"BTRFS",
    b"Buffer I/O",
    b"BUG",
    b"Bad pagetable",
    b"control protection",
    b"CPU ",
    b"CFI failure",
    b"critical ",
    b"data exception",
    b"Disabling lock",
    b"divide",
    b"double fault",
    b"EXT",
    b"F2FS",
    b"FAT",
    b"fixpoint divide",
    b"fpu exception",
    b"Freed in ",
    b"Future hung",
    b"general protection fault",
    b"huh, entered softirq",
    b"hung_task: ",
    b"I/O error",
    b"illegal operation",
    b"INFO: ",
    b"Insufficient stack space",
    b"int3",
    b"Internal error",
    b"invalid opcode",
    b"invalid TSS",
    b"irq ",
    b"kasan: GPF",
    b"JBD2: ",
    b"Kernel BUG",
    b"kmem_cache_destroy ",
    b"RTNL: assertion",
    b"end_request: ",
    b"Kernel bug",
    b"kernel BUG",
    b"Kernel panic",
    b"kernel stack",
    b"kfence: ",
    b"kmemleak: ",
    b"Linux version",
    b"list_",
    b"livepatch: ",
    b"Memory cgroup out",
    b"Missed ",
    b"monitor event",
    b"NMI watchdog: ",
    b"ODEBUG: ",
    b"Oops",
    b"operation exception",
    b"Out of memory",
    b"overflow",
    b"PANIC: ",
    b"Perf NMI",
    b"print_req_error",
    b"privileged operation",
    b"protection e",
    b"rcu",
    b"refcount_t: ",
    b"Reserved instruction",
    b"segment",
    b"SError Interrupt",
    b"simd exception",
    b"specification exc",
    b"stack guard page",
    b"stack segment",
    b"timeout error",
    b"traps: Missing ENDBR",
    b"traps: PANIC",
    b"turning off",
    b"UBSAN: ",
    b"Unable to handle",
    b"unchecked MSR",
    b"Unhandled 64-bit",
    b"unreferenced object",
    b"unregister_netdevice",
    b"VFS: ",
    b"WARNING: ",
    b"Watchdog detected",
    b"watchdog: ",
    b"XFS (",
];

/// The texts of `STARTS` by what they start with, so that most messages are turned away by their first two bytes.
struct Index {
    /// One bit for each pair of bytes.
    pairs: Vec<u64>,
    by_first: [Vec<&'static [u8]>; 256],
}

impl Index {
    fn new() -> Self {
        let mut pairs = vec![0; 1 << 10];
        for start in STARTS {
            let pair = usize::from(u16::from_le_bytes([start[0], start[1]]));
            pairs[pair / 64] |= 1 << (pair % 64);
        }
        let starting = |first| STARTS.iter().copied().filter(|s| usize::from(s[0]) == first).collect();
        Index { pairs, by_first: std::array::from_fn(starting) }
    }

    fn starts(&self, rest: &[u8]) -> bool {
        let [first, second, ..] = *rest else { return false };
        let pair = usize::from(u16::from_le_bytes([first, second]));
        self.pairs[pair / 64] >> (pair % 64) & 1 == 1
            && self.by_first[usize::from(first)].iter().any(|s| rest.starts_with(s))
    }
}

/// Whether a message can be a header or notice at all: a quick look, for every line.
pub(crate) fn is_candidate(rest: &[u8]) -> bool {
    static INDEX: LazyLock<Index> = LazyLock::new(Index::new);
    INDEX.starts(rest) || comm_candidate(rest)
}

/// Whether the message has the form `NAME: TEXT` with one of the texts that matter.
fn comm_candidate(rest: &[u8]) -> bool {
    let window = &rest[..rest.len().min(66)];
    let Some(colon) = memchr(b':', window) else { return false };
    let tail = &rest[colon + 1..];
    let starts: &[&[u8]] = match tail.get(1) {
        Some(b'p') => &[b" page allocation failure", b" page allocation stalls"],
        Some(b'B') => &[b" Bad swap "],
        Some(b'C') => &[b" Corrupted page table"],
        Some(b'd') => &[b" disagrees about version"],
        Some(b'U') => &[b" Unknown symbol ", b" Unused swap "],
        Some(b'v') => &[b" version magic "],
        Some(b't') => &[b" tainting kernel with TAINT_LIVEPATCH"],
        Some(b'M') => &[b" Missed "],
        Some(b'N') => &[b" NETDEV WATCHDOG: "],
        _ => comm_with_colon(rest),
    };
    starts.iter().any(|s| tail.starts_with(s))
}

/// Comms such as `kworker/0:1` hold a colon themselves.
fn comm_with_colon(rest: &[u8]) -> &'static [&'static [u8]] {
    let needle = b": page allocation failure: order:";
    let window = &rest[..rest.len().min(64)];
    if rest.starts_with(b"kworker/") && window.windows(needle.len()).any(|w| w == needle) {
        return &[b""];
    }
    // `FILE:LINE: bad pmd`
    let window = &rest[..rest.len().min(66)];
    if memchr(b':', window).is_some_and(|colon| window[..colon].ends_with(b".c"))
        && window.windows(7).any(|w| w == b": bad p")
    {
        return &[b""];
    }
    // The name of a PCI device holds two colons: `0000:00:03.0`.
    let needle = b": NETDEV WATCHDOG: ";
    if rest.get(..66).is_some_and(|head| is_pci(head) && head.windows(needle.len()).any(|w| w == needle)) {
        return &[b""];
    }
    &[]
}

/// Whether the first colon is one of a PCI address.
fn is_pci(head: &[u8]) -> bool {
    memchr(b':', head).is_some_and(|colon| {
        head.get(colon + 3) == Some(&b':')
            && head[colon + 1..colon + 3].iter().all(u8::is_ascii_hexdigit)
            && head[..colon].ends_with(b"0000")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{first_line, notice, prefix};

    /// What the quick look turns away, nobody looks at again.
    #[test]
    fn no_header_of_the_corpus_is_turned_away() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        let mut headers = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus") {
            let text = std::fs::read(entry.expect("entry").path()).expect("readable");
            for line in text.split(|&b| b == b'\n') {
                let line = prefix::clean(line.trim_ascii_end());
                let message = String::from_utf8_lossy(&line[prefix::split(&line).start..]).into_owned();
                if first_line::parse(&message).is_some() || notice::parse(&message).is_some() {
                    headers += 1;
                    assert!(is_candidate(message.as_bytes()), "{message}");
                }
            }
        }
        assert!(headers > 200, "only {headers} headers in the corpus");
    }

    #[test]
    fn rare_headers_are_looked_at() {
        for text in [
            "Oops: bounds: 0000 [#1] PREEMPT SMP",
            "alignment check: 0000 [#1] SMP",
            "control protection: 0003 [#1] SMP",
            "fpu exception: 0000 [#1] SMP",
            "invalid TSS: 0000 [#1] SMP",
            "overflow: 0000 [#1] SMP",
            "segment not present: 0000 [#1] SMP",
            "simd exception: 0000 [#1] SMP",
            "stack guard page: 0000 [#1] SMP",
            "traps: Missing ENDBR: klp_new_madvise+0x0/0x40 [klp]",
            "watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 1",
            "VFS: Close: file count is 0",
            "VFS: Busy inodes after unmount of vda (ext4)",
            "kworker/0:1: page allocation failure: order:0, mode:0x40800(GFP_NOWAIT)",
        ] {
            assert!(first_line::parse(text).is_some(), "{text}");
            assert!(is_candidate(text.as_bytes()), "{text}");
        }
    }
}
