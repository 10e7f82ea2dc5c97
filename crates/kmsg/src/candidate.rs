//! Which messages are worth parsing.

use memchr::memchr;

/// Whether a message can be a header or notice at all: a quick look, for every line.
pub(crate) fn is_candidate(rest: &[u8]) -> bool {
    let starts: &[&[u8]] = match rest.first() {
        Some(b'A') => &[b"Aborting journal on device ", b"Allocated in "],
        Some(b'C') => &[b"CPU "],
        Some(b'B') => &[b"BUG", b"Bad mode in", b"Buffer I/O", b"BTRFS"],
        Some(b'D') => &[b"Disabling lock"],
        Some(b'E') => &[b"EXT"],
        Some(b'F') => &[b"F2FS", b"FAT", b"Future hung", b"Freed in "],
        Some(b'I') => &[b"INFO: ", b"I/O error", b"Internal error"],
        Some(b'K') => &[b"Kernel panic", b"Kernel bug", b"Kernel BUG"],
        Some(b'L') => &[b"Linux version"],
        Some(b'M') => &[b"Memory cgroup out", b"Missed "],
        Some(b'N') => &[b"NMI watchdog: "],
        Some(b'O') => &[b"Oops", b"Out of memory", b"ODEBUG: "],
        Some(b'P') => &[b"PANIC: ", b"Perf NMI"],
        Some(b'R') => &[b"Reserved instruction"],
        Some(b'S') => &[b"SError Interrupt"],
        Some(b'U') => &[b"UBSAN: ", b"Unable to handle", b"Unhandled 64-bit"],
        Some(b'V') => &[b"VFS: "],
        Some(b'W') => &[b"WARNING: ", b"Watchdog detected"],
        Some(b'X') => &[b"XFS ("],
        Some(b'[') => &[b"[ INFO: ", b"[ BUG: "],
        Some(b'b') => &[b"blk_update_request", b"bounds"],
        Some(b'a') => &[b"alignment check", b"addressing exception"],
        Some(b'c') => &[b"critical ", b"control protection"],
        Some(b'd') => &[b"divide", b"double fault", b"data exception"],
        Some(b'f') => &[b"fpu exception", b"fixpoint divide"],
        Some(b'g') => &[b"general protection fault"],
        Some(b'h') => &[b"hung_task: "],
        Some(b'i') => &[b"invalid opcode", b"int3", b"invalid TSS", b"irq ", b"illegal operation"],
        Some(b'k') => &[b"kernel BUG", b"kmemleak: ", b"kernel stack", b"kfence: ", b"kasan: GPF"],
        Some(b'l') => &[b"list_", b"livepatch: "],
        Some(b'm') => &[b"monitor event"],
        Some(b'o') => &[b"overflow", b"operation exception"],
        Some(b'p') => &[b"print_req_error", b"protection e", b"privileged operation"],
        Some(b'r') => &[b"rcu", b"refcount_t: "],
        Some(b's') => {
            &[b"stack segment", b"stack guard page", b"segment", b"simd exception", b"specification exc"]
        }
        Some(b't') => &[b"traps: PANIC", b"traps: Missing ENDBR", b"turning off", b"timeout error"],
        Some(b'u') => &[b"unregister_netdevice", b"unreferenced object", b"unchecked MSR"],
        Some(b'w') => &[b"watchdog: "],
        _ => &[],
    };
    starts.iter().any(|s| rest.starts_with(s)) || comm_candidate(rest)
}

/// Whether the message has the form `NAME: TEXT` with one of the texts that matter.
fn comm_candidate(rest: &[u8]) -> bool {
    let window = &rest[..rest.len().min(66)];
    let Some(colon) = memchr(b':', window) else { return false };
    let tail = &rest[colon + 1..];
    let starts: &[&[u8]] = match tail.get(1) {
        Some(b'p') => &[b" page allocation failure"],
        Some(b'd') => &[b" disagrees about version"],
        Some(b'U') => &[b" Unknown symbol "],
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
    use crate::{header, notice, prefix};

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
                if header::parse(&message).is_some() || notice::parse(&message).is_some() {
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
            assert!(header::parse(text).is_some(), "{text}");
            assert!(is_candidate(text.as_bytes()), "{text}");
        }
    }
}
