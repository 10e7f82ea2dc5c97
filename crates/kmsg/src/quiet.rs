//! Trouble that the kernel tells in one plain line, without the words that other reports start with.

use crate::Kind;
use crate::header::Header;
use crate::scan::{Scan, symbol};

/// The header that `text` is, if it is one.
pub(crate) fn parse(text: &str) -> Option<Header> {
    match text.as_bytes().first()? {
        b'W' => unwinder(text.strip_prefix("WARNING: ")?),
        b'C' => cfi(text),
        b'h' => softirq(text),
        b'R' => rtnl(text),
        b'J' => journal(text),
        b'k' => cache(text),
        _ => None,
    }
    .or_else(|| page_table(text))
    .or_else(|| swap_entry(text))
}

/// `stack going in the wrong direction? at F+0x1/0x2` and what else the unwinder cannot make sense of (5.2 and newer).
fn unwinder(rest: &str) -> Option<Header> {
    const WORDS: &[&str] = &[
        "stack going in the wrong direction",
        "can't access registers",
        "can't dereference registers",
        "can't dereference iret registers",
    ];
    let words = WORDS.iter().find(|w| rest.starts_with(**w))?;
    let (_, site) = rest[words.len()..].split_once(" at ")?;
    let (function, _) = symbol(site)?;
    let header = Header::new(Kind::Warning, format!("WARNING: {words} in {function}")).given();
    Some(Header { function: Some(function.to_string()), ..header })
}

/// `CFI failure at F+0x1/0x2 (target: G+0x0/0x1; expected type: 0x12)`; a trap or a warning follows.
fn cfi(text: &str) -> Option<Header> {
    let site = text.strip_prefix("CFI failure at ")?;
    let (function, tail) = symbol(site)?;
    let header = Header::new(Kind::KernelBug, "kernel BUG: CFI failure").message();
    let function = Some(function.to_string());
    tail.contains("(target: ").then_some(Header { function, ..header })
}

/// `huh, entered softirq 1 TIMER ADDR with preempt_count 00000100, exited with 00000101?`
fn softirq(text: &str) -> Option<Header> {
    let mut scan = Scan(text);
    scan.lit("huh, entered softirq ")?;
    scan.number()?;
    scan.lit(" ")?;
    let name = scan.run(|c| c.is_ascii_uppercase() || c == '_')?;
    let fits = scan.0.contains(" with preempt_count ") && scan.0.contains(", exited with ");
    fits.then(|| Header::new(Kind::LockMisuse, format!("softirq {name} leaked preempt_count")).given())
}

/// `RTNL: assertion failed at net/core/dev.c (1684)`; a stack follows.
fn rtnl(text: &str) -> Option<Header> {
    let (file, line) = text.strip_prefix("RTNL: assertion failed at ")?.split_once(" (")?;
    let exact = file.ends_with(".c") && line.strip_suffix(')').is_some_and(|n| n.parse::<u32>().is_ok());
    exact.then(|| Header::new(Kind::Warning, "WARNING: RTNL assertion failed"))
}

/// `JBD2: Error -5 detected when updating journal superblock for vda-8.`
fn journal(text: &str) -> Option<Header> {
    let rest = text.strip_prefix("JBD2: Error ")?;
    rest.contains(" detected when updating journal superblock").then(|| {
        Header::new(Kind::FilesystemError, "JBD2: error when updating the journal's superblock").given()
    })
}

/// `kmem_cache_destroy CACHE: Slab cache still has objects`; a stack follows. Since 5.17 the words come with a warning.
fn cache(text: &str) -> Option<Header> {
    let (cache, words) = text.strip_prefix("kmem_cache_destroy ")?.split_once(": ")?;
    let exact = words == "Slab cache still has objects" && !cache.contains(' ');
    exact.then(|| Header::new(Kind::Bug, "slab cache still has objects"))
}

/// `mm/pgtable-generic.c:51: bad pmd ADDR(ENTRY)`, the same of the other levels.
fn page_table(text: &str) -> Option<Header> {
    let (place, rest) = text.split_once(": bad ")?;
    let (file, line) = place.rsplit_once(':')?;
    let (level, address) = rest.split_once(' ')?;
    let known = matches!(level, "pte" | "pmd" | "pud" | "p4d" | "pgd");
    let hex = address.bytes().take_while(u8::is_ascii_hexdigit).count() >= 8;
    let fits = known && hex && file.ends_with(".c") && line.parse::<u32>().is_ok();
    fits.then(|| Header::new(Kind::BadPage, format!("BUG: bad {level}")).given())
}

/// `swap_info_get: Bad swap file entry HEX`, `swap_free: Unused swap offset entry HEX`: a page table holds what it should not.
fn swap_entry(text: &str) -> Option<Header> {
    let (function, rest) = text.split_once(": ")?;
    let entry = [
        "Bad swap file entry ",
        "Bad swap offset entry ",
        "Unused swap file entry ",
        "Unused swap offset entry ",
    ]
    .iter()
    .find_map(|words| rest.strip_prefix(words))?;
    let name = function.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let hex = entry.len() >= 8 && entry.bytes().all(|b| b.is_ascii_hexdigit());
    (name && hex).then(|| Header::new(Kind::BadPage, "BUG: bad swap entry").given())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_and_its_like_is_not() {
        let found = |text| parse(text).map(|h| (h.kind, h.stem));
        for (text, kind, stem) in [
            ("mm/memory.c:405: bad pgd ffff888101234567.", Kind::BadPage, "BUG: bad pgd"),
            (
                "mm/pgtable-generic.c:51: bad pmd ffff888101234567(00000000deadbeef)",
                Kind::BadPage,
                "BUG: bad pmd",
            ),
            ("swap_dup: Bad swap file entry 4000000000000001", Kind::BadPage, "BUG: bad swap entry"),
            ("_swap_info_get: Unused swap offset entry 00000012", Kind::BadPage, "BUG: bad swap entry"),
            (
                "huh, entered softirq 1 TIMER ffffffff810a1b20 with preempt_count 00000100, exited with 00000101?",
                Kind::LockMisuse,
                "softirq TIMER leaked preempt_count",
            ),
            (
                "RTNL: assertion failed at net/core/dev.c (1684)",
                Kind::Warning,
                "WARNING: RTNL assertion failed",
            ),
            (
                "WARNING: can't access registers at walk+0x1e/0x30",
                Kind::Warning,
                "WARNING: can't access registers in walk",
            ),
            (
                "JBD2: Error -5 detected when updating journal superblock for vda-8.",
                Kind::FilesystemError,
                "JBD2: error when updating the journal's superblock",
            ),
            (
                "CFI failure at call+0x20/0x40 [demo] (target: cb+0x0/0x10; expected type: 0x12345678)",
                Kind::KernelBug,
                "kernel BUG: CFI failure",
            ),
            (
                "kmem_cache_destroy demo: Slab cache still has objects",
                Kind::Bug,
                "slab cache still has objects",
            ),
        ] {
            assert!(crate::candidate::is_candidate(text.as_bytes()), "{text}");
            assert_eq!(found(text), Some((kind, stem.to_string())), "{text}");
        }
        for text in [
            "main.c:12: bad pmd",
            "main.c:12: bad pointer ffff888101234567",
            "swapon: Bad swap file entry",
            "JBD2: Error -5",
            "CFI failure at random",
            "WARNING: can't access registers at the desk",
            "RTNL: assertion failed at noon (12)",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
