//! Headers of oopses and panics.

use crate::Kind;
use crate::header::{Header, blank_numbers};
use crate::scan::{plain, symbol};

pub(crate) const NULL: &str = "BUG: unable to handle kernel NULL pointer dereference";
pub(crate) const TABLE: &str = "BUG: corrupted page table";
pub(crate) const PAGING: &str = "BUG: unable to handle kernel paging request";

/// After `BUG: `.
pub(crate) fn bug(rest: &str) -> Option<Header> {
    let null =
        ["unable to handle kernel NULL pointer dereference", "kernel NULL pointer dereference, address:"];
    if null.iter().any(|n| rest.starts_with(n)) {
        return Some(Header::new(Kind::NullDeref, NULL));
    }
    let paging = ["unable to handle kernel paging request at", "unable to handle page fault for address:"];
    if paging.iter().any(|p| rest.starts_with(p)) {
        return Some(Header::new(Kind::PageFault, PAGING));
    }
    if let Some(what) = rest.strip_prefix("unable to handle ") {
        // `kernel ` alone, if another CPU's message broke in: all that is left to say is paging.
        let what = what.split(" at ").next().unwrap_or(what);
        if what.contains('[') || what.trim() == "kernel" {
            return Some(Header::new(Kind::PageFault, PAGING).exact(false));
        }
        return Some(Header::new(Kind::PageFault, format!("BUG: unable to handle {what}")).exact(false));
    }
    let guard = rest.split_once("stack guard page was hit at ").is_some_and(|(kind, _)| kind.len() < 12);
    guard.then(|| Header::new(Kind::StackOverflow, "BUG: stack guard page was hit"))
}

/// Headers that start the message.
pub(crate) fn parse(text: &str) -> Option<Header> {
    if let Some(rest) = text.strip_prefix("Kernel panic - not syncing: ") {
        return Some(panic(rest));
    }
    if text.strip_prefix("kernel BUG at ").is_some_and(|place| place.ends_with('!')) {
        return Some(kernel_bug(&text["kernel BUG at ".len()..]));
    }
    if text.starts_with("Kernel BUG at ") && text.ends_with("[verbose debug info unavailable]") {
        return Some(Header::new(Kind::KernelBug, "kernel BUG"));
    }
    if text.starts_with("Unable to handle kernel NULL pointer dereference at virtual address") {
        return Some(Header::new(Kind::NullDeref, NULL));
    }
    if text.starts_with("Unable to handle kernel paging request at virtual address") {
        return Some(Header::new(Kind::PageFault, PAGING));
    }
    if let Some((what, _)) =
        text.strip_prefix("Unable to handle kernel ").and_then(|rest| rest.split_once(" at virtual address"))
    {
        // `access to user memory without uaccess routines`, `execution of user memory`, ...
        let what = what.split(" without ").next().unwrap_or(what);
        return Some(Header::new(Kind::PageFault, format!("BUG: unable to handle kernel {what}")));
    }
    if let Some(site) = text.strip_prefix("traps: Missing ENDBR: ") {
        // An indirect call of a function without landing pad, as calls of original code past its entry are; `kernel BUG at` follows.
        let function = symbol(site).map(|(f, _)| f.to_string());
        let header = Header::new(Kind::KernelBug, "kernel BUG: missing ENDBR").message();
        return Some(Header { function: function.clone(), ..header.exact(function.is_some()) });
    }
    if text.starts_with("PANIC: double fault") || text.starts_with("traps: PANIC: double fault") {
        return Some(Header::new(Kind::DoubleFault, "double fault"));
    }
    die(text)
}

/// `kernel BUG at FILE:LINE!`
fn kernel_bug(place: &str) -> Header {
    if place.contains("lib/list_debug.c:") {
        return Header::new(Kind::ListCorruption, "BUG: corrupted list");
    }
    if place.contains("mm/usercopy.c:") {
        return Header::new(Kind::KernelBug, "BUG: bad usercopy");
    }
    Header::new(Kind::KernelBug, "kernel BUG").exact(place.contains(':'))
}

/// Lines with a `[#1]`: `general protection fault: 0000 [#1] SMP`, after `Oops: ` since 6.10.
fn die(text: &str) -> Option<Header> {
    const TRAPS: &[(&str, Kind, &str)] = &[
        ("general protection fault", Kind::GeneralProtection, "general protection fault"),
        ("invalid opcode", Kind::InvalidOpcode, "invalid opcode"),
        ("divide error", Kind::DivideError, "divide error"),
        ("divide_error", Kind::DivideError, "divide error"),
        ("double fault", Kind::DoubleFault, "double fault"),
        ("stack segment", Kind::StackSegment, "stack segment fault"),
        ("int3", Kind::Int3, "int3"),
        ("stack guard page", Kind::StackOverflow, "stack guard page"),
        ("Bad pagetable", Kind::PageFault, TABLE),
        ("bounds", Kind::Oops, "bounds"),
        ("overflow", Kind::Oops, "overflow"),
        ("invalid TSS", Kind::Oops, "invalid TSS"),
        ("segment not present", Kind::Oops, "segment not present"),
        ("alignment check", Kind::Oops, "alignment check"),
        ("fpu exception", Kind::Oops, "fpu exception"),
        ("simd exception", Kind::Oops, "simd exception"),
        ("control protection", Kind::Oops, "control protection"),
        ("kernel stack overflow", Kind::StackOverflow, "kernel stack overflow"),
        ("kernel stack corruption", Kind::StackOverflow, "kernel stack corruption"),
    ];
    let inner = text.strip_prefix("Oops: ").unwrap_or(text);
    let inner = inner.strip_prefix("segment-related ").unwrap_or(inner);
    let number = inner.split_once("[#").and_then(|(_, n)| n.split_once(']')).map(|(n, _)| n);
    let counted = number.is_some_and(|n| n.parse::<u32>().is_ok());
    let trap = TRAPS
        .iter()
        .find(|(name, ..)| inner.strip_prefix(name).is_some_and(|tail| tail.starts_with([':', ',', ' '])));
    let (kind, stem, exact) = match trap {
        // A program's fault reads `traps: app[1] general protection fault ip:...`: not at the start, and uncounted.
        Some((_, kind, stem)) => (*kind, *stem, counted),
        None if text.starts_with("Oops: ") || text.starts_with("Internal error: ") => {
            (Kind::Oops, "Oops", counted)
        }
        None => return None,
    };
    let whole = exact || inner.contains(": 0000") || text.starts_with("general protection fault");
    whole.then(|| Header { die: true, ..Header::new(kind, stem).exact(exact) })
}

/// Panics that say why another report was fatal.
const CONSEQUENCES: &[&str] = &[
    "Fatal exception",
    "panic_on_warn set",
    "kernel: panic_on_warn set",
    "hung_task: blocked tasks",
    "softlockup: hung tasks",
    "RCU Stall",
    "panic_on_oops",
    "scheduling while atomic",
    "Hard LOCKUP",
    "hard lockup",
    "kasan.fault=panic set",
    "KASAN: panic_on_warn set",
    "UBSAN: panic_on_warn set",
    "KFENCE: panic_on_warn set",
    "kernel: panic_on",
    "Fatal machine check",
    "BUG: panic_on",
    "Oops: Fatal exception",
    "panic_on_rcu_stall",
];

/// Whether a panic with this title can only follow another report.
pub(crate) fn is_consequence(panic: &Header) -> bool {
    let text = panic.stem.strip_prefix("kernel panic: ").unwrap_or("");
    CONSEQUENCES.iter().any(|c| text.starts_with(c)) || text.contains("panic_on_warn")
}

/// `Kernel panic - not syncing: TEXT`
fn panic(text: &str) -> Header {
    if let Some(site) = text.strip_prefix("stack-protector: Kernel stack is corrupted in: ") {
        let site =
            site.strip_prefix("[<").and_then(|s| s.split_once(">]")).map_or(site, |(_, s)| s.trim_start());
        let function = symbol(site).map_or(plain(site.split([' ', '+']).next().unwrap_or("")), |(f, _)| f);
        let address = |name: &str| name.len() >= 8 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let known =
            !function.is_empty() && !function.starts_with(|c: char| c.is_ascii_digit()) && !address(function);
        let header = Header::new(Kind::StackProtector, "kernel panic: stack is corrupted");
        return Header { function: known.then(|| function.to_string()), ..header };
    }
    if text.starts_with("corrupted stack end detected inside scheduler") {
        return Header::new(Kind::StackOverflow, "kernel panic: corrupted stack end");
    }
    if text.trim_end() == "kernel stack overflow" {
        return Header { panic: true, ..Header::new(Kind::StackOverflow, "kernel stack overflow") };
    }
    if let Some(cpu) = text.strip_prefix("Watchdog detected hard LOCKUP on cpu ") {
        let cpu = cpu.trim_end().parse().ok();
        return Header { cpu, panic: true, ..Header::new(Kind::HardLockup, "BUG: hard lockup") };
    }
    let text = text.trim_end_matches(['.', ' ']);
    let text = text.split(" exitcode=").next().unwrap_or(text);
    let text = text.strip_suffix(" in interrupt").unwrap_or(text);
    Header::new(Kind::Panic, format!("kernel panic: {}", blank_numbers(text))).alone()
}
