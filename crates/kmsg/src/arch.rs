//! What other architectures than x86 print: headers, instruction pointers and registers. Frames that all have are in `body`.

use crate::Kind;
use crate::header::Header;
use crate::line::{self, Body, Frame, is_module};
use crate::oops::{NULL, PAGING};
use crate::scan::{Scan, plain, symbol};

/// Headers that start the message.
pub(crate) fn header(text: &str) -> Option<Header> {
    bad_access(text).or_else(|| hard_lockup(text)).or_else(|| exception(text)).or_else(|| die(text))
}

/// A pointer that leads nowhere.
fn bad_access(text: &str) -> Option<Header> {
    const STARTS: &[(&str, Kind, &str)] = &[
        // POWER, with `on read` or `on write` since 5.2.
        ("BUG: Kernel NULL pointer dereference ", Kind::NullDeref, NULL),
        ("BUG: Unable to handle kernel data access ", Kind::PageFault, PAGING),
        ("BUG: Unable to handle kernel instruction fetch", Kind::PageFault, PAGING),
        ("Unable to handle kernel paging request for ", Kind::PageFault, PAGING),
        // s390: which address it was stands in the next line.
        ("Unable to handle kernel pointer dereference ", Kind::PageFault, PAGING),
    ];
    if let Some((_, kind, stem)) = STARTS.iter().find(|(start, ..)| text.starts_with(start)) {
        return Some(Header::new(*kind, *stem));
    }
    // MIPS (`epc ==`) and LoongArch (`era ==`) print this of null pointers too.
    let mut scan = Scan(text);
    scan.lit("CPU ")?;
    scan.number()?;
    scan.lit(" Unable to handle kernel paging request at virtual address ")?;
    Some(Header::new(Kind::PageFault, PAGING).exact(scan.0.contains(" == ")))
}

/// `CPU 5 self-detected hard LOCKUP @ F+0x1/0x2` and `CPU 3 detected hard LOCKUP on other CPUs 5` of POWER; `watchdog: ` before it is gone.
fn hard_lockup(text: &str) -> Option<Header> {
    let mut scan = Scan(text);
    scan.lit("CPU ")?;
    let cpu = scan.number().and_then(|n| u32::try_from(n).ok())?;
    let header = Header::new(Kind::HardLockup, "BUG: hard lockup");
    if scan.eat(" self-detected hard LOCKUP @ ") {
        return Some(Header { cpu: Some(cpu), ..header });
    }
    scan.lit(" detected hard LOCKUP on other CPUs ")?;
    let cpu = scan.number().and_then(|n| u32::try_from(n).ok());
    Some(Header { cpu, ..header })
}

/// Exceptions of arm64 that have no line with a `[#1]`.
fn exception(text: &str) -> Option<Header> {
    if text == "Insufficient stack space to handle exception!" {
        return Some(Header::new(Kind::StackOverflow, "kernel stack overflow"));
    }
    let serror = text.starts_with("SError Interrupt on CPU");
    let bad = text.starts_with("Bad mode in ") && text.contains(" detected on CPU")
        || text.starts_with("Unhandled 64-bit el1") && text.contains(" exception on CPU");
    let stem = if serror { "SError interrupt" } else { "unhandled exception" };
    (serror || bad).then(|| Header::new(Kind::Oops, stem).exact(text.contains(", code ") || bad))
}

/// Lines with a `[#1]` of MIPS and LoongArch (`Oops[#1]:`), RISC-V (`Oops [#1]`, `Oops - illegal instruction [#1]`) and s390 (`illegal
/// operation: 0001 ilc:1 [#1] SMP`).
fn die(text: &str) -> Option<Header> {
    let (head, tail) = text.split_once("[#")?;
    let (count, tail) = tail.split_once(']')?;
    count.parse::<u32>().ok()?;
    let head = head.trim_end();
    let header = |kind, stem: &str| Some(Header { die: true, ..Header::new(kind, stem) });
    if let Some((what, code)) = head.split_once(": ") {
        let mut scan = Scan(code);
        scan.run(|c| c.is_ascii_hexdigit()).filter(|code| code.len() == 4)?;
        scan.lit(" ilc:")?;
        return match what {
            "Oops" => header(Kind::Oops, "Oops"),
            "illegal operation" => header(Kind::InvalidOpcode, "illegal operation"),
            "fixpoint divide exception" => header(Kind::DivideError, "divide error"),
            _ if is_words(what) => header(Kind::Oops, what),
            _ => None,
        };
    }
    if !tail.starts_with(':') && !tail.is_empty() {
        return None;
    }
    match head {
        "Oops" => header(Kind::Oops, "Oops"),
        "Kernel bug detected" | "Kernel BUG" => header(Kind::KernelBug, "kernel BUG"),
        "Reserved instruction in kernel code" | "Oops - illegal instruction" => {
            header(Kind::InvalidOpcode, "illegal instruction")
        }
        _ if head.ends_with(" in kernel code") || head.starts_with("Oops - ") => header(Kind::Oops, "Oops"),
        _ => None,
    }
}

/// Some words, as s390 calls its exceptions.
fn is_words(text: &str) -> bool {
    let exception = text.ends_with(" exception") || text.ends_with(" operation") || text == "monitor event";
    exception && text.len() < 40 && text.bytes().all(|b| b.is_ascii_lowercase() || b" -".contains(&b))
}

/// Starts of lines with registers and the like.
const REGISTERS: &[&str] = &[
    // POWER
    "NIP: ",
    "LR [",
    "REGS: ",
    "MSR: ",
    "GPR",
    "CFAR: ",
    "DAR: ",
    "Instruction dump:",
    "Faulting instruction address: ",
    "LE PAGE_SIZE=",
    "BE PAGE_SIZE=",
    // s390
    "Krnl PSW ",
    "Krnl GPRS: ",
    "Krnl Code: ",
    "Failing address: ",
    "R:0 T:1 IO:",
    // MIPS, LoongArch
    "epc   : ",
    "ra    : ",
    "ra: ",
    "ERA: ",
    "era: ",
    "$ 0   : ",
    "Status: ",
    "Cause : ",
    "BadVA : ",
    "BADV: ",
    "CRMD: ",
    "ESTAT: ",
    "Process ",
    // RISC-V
    "epc : ",
    "ra : ",
    "status: ",
    // ARM
    "LR is at ",
    "Exception stack(",
    "Stack: (0x",
];

/// What a line within a report is.
pub(crate) fn body(text: &str) -> Option<Body<'_>> {
    if text == "Last Breaking-Event-Address:" {
        // s390: where the last jump came from, which is no frame.
        return Some(Body::Stale);
    }
    if let Some(body) = pointer(text) {
        return Some(body);
    }
    if let Some(frame) = frame(text) {
        return Some(Body::Frame(frame));
    }
    let registers = REGISTERS.iter().any(|r| text.starts_with(r));
    (registers || is_disassembly(text) || is_stack_row(text)).then_some(Body::Strong)
}

/// `NIP [ADDR] F+0x1/0x2` (POWER), `epc   : ADDR F+0x1/0x2` (MIPS), `ERA: ADDR F+0x1/0x2` (LoongArch), `epc : F+0x1/0x2` (RISC-V),
/// `Krnl PSW : MASK ADDR (F+0x1/0x2)` (s390).
fn pointer(text: &str) -> Option<Body<'_>> {
    let site = if let Some(rest) = text.strip_prefix("NIP [") {
        rest.split_once("] ")?.1
    } else if let Some(rest) = text.strip_prefix("Krnl PSW : ") {
        rest.split_once('(')?.1.strip_suffix(')')?
    } else {
        let rest = ["epc   : ", "ERA: ", "era: ", "epc : "].iter().find_map(|p| text.strip_prefix(p))?;
        match rest.split_once(' ') {
            Some((address, site)) if address.bytes().all(|b| b.is_ascii_hexdigit()) => site,
            _ => rest,
        }
    };
    let (function, tail) = symbol(site)?;
    Some(Body::Pointer { function: Some(function), module: is_module(tail), kernel: true })
}

/// `F from G+0x1/0x2` (ARM since 5.19), `([<ADDR>] F+0x1/0x2)` (s390, where the chain is broken).
fn frame(text: &str) -> Option<Frame<'_>> {
    if let Some(inner) = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        let frame = inner.starts_with("[<").then(|| line::frame(inner)).flatten()?;
        return Some(Frame { reliable: false, ..frame });
    }
    let (name, caller) = text.split_once(" from ")?;
    symbol(caller)?;
    let (name, module) = match name.split_once(' ') {
        Some((name, tail)) => (name, is_module(tail).then_some(true)?),
        None => (name, false),
    };
    let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.$".contains(&b));
    fits.then_some(Frame { function: plain(name), module, reliable: true })
}

/// `1f20: c0308ffc 20010013 ...`: a row of the stack of 32-bit ARM, which can have hundreds.
fn is_stack_row(text: &str) -> bool {
    let Some((offset, words)) = text.split_once(": ") else { return false };
    let hex = |word: &str, len| word.len() == len && word.bytes().all(|b| b.is_ascii_hexdigit());
    hex(offset, 4) && words.split_ascii_whitespace().all(|word| hex(word, 8))
}

/// What `decode_stacktrace.sh` writes behind a `Code: ` line.
fn is_disassembly(text: &str) -> bool {
    if matches!(text, "All code" | "========" | "Code starting with the faulting instruction") {
        return true;
    }
    let digits = text.bytes().take_while(u8::is_ascii_hexdigit).count();
    let rest = text[digits..].trim_start_matches([':', '*']);
    (1..=4).contains(&digits) && text[digits..].starts_with(':') && rest.starts_with('\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<(Kind, bool)> {
        header(text).map(|h| (h.kind, h.die))
    }

    #[test]
    fn headers_of_every_architecture() {
        let fault = Some((Kind::PageFault, false));
        assert_eq!(
            kind("BUG: Kernel NULL pointer dereference on read at 0x00000010"),
            Some((Kind::NullDeref, false))
        );
        assert_eq!(kind("BUG: Unable to handle kernel data access on write at 0x6b6b6b6b6b6b6b73"), fault);
        assert_eq!(
            kind("Unable to handle kernel pointer dereference in virtual kernel address space"),
            fault
        );
        let mips = "CPU 0 Unable to handle kernel paging request at virtual address 00000014, epc == 80345a10, ra == 80";
        assert_eq!(kind(mips), fault);
        assert_eq!(kind("Oops[#1]:"), Some((Kind::Oops, true)));
        assert_eq!(kind("Oops [#2]"), Some((Kind::Oops, true)));
        assert_eq!(kind("Kernel bug detected[#1]:"), Some((Kind::KernelBug, true)));
        assert_eq!(kind("illegal operation: 0001 ilc:1 [#1] SMP"), Some((Kind::InvalidOpcode, true)));
        assert_eq!(kind("monitor event: 0040 ilc:2 [#1] SMP"), Some((Kind::Oops, true)));
        assert_eq!(
            kind("SError Interrupt on CPU1, code 0x00000000bf000002 -- SError"),
            Some((Kind::Oops, false))
        );
        assert_eq!(kind("CPU 5 self-detected hard LOCKUP @ f+0x1/0x2"), Some((Kind::HardLockup, false)));
        assert_eq!(kind("see the list [#1]: nothing"), None);
        assert_eq!(kind("CPU 1 is idle"), None);
    }

    #[test]
    fn pointers_and_frames_of_every_architecture() {
        let at = |text| match body(text) {
            Some(Body::Pointer { function, module, .. }) => function.map(|f| (f, module)),
            _ => None,
        };
        assert_eq!(at("NIP [c00800000a1b0034] demo_walk+0x34/0xa0 [demo]"), Some(("demo_walk", true)));
        assert_eq!(at("epc   : 80345a10 demo_walk+0x38/0x90"), Some(("demo_walk", false)));
        assert_eq!(at("epc : demo_walk+0x1a/0x4c [demo]"), Some(("demo_walk", true)));
        assert_eq!(at("ERA: 9000000002a1b034 demo_walk+0x34/0x90"), Some(("demo_walk", false)));
        assert_eq!(
            at("Krnl PSW : 0704d00180000000 000003ff800b0134 (demo_walk+0x2c/0x70 [demo])"),
            Some(("demo_walk", true))
        );
        assert_eq!(at("epc : ffffffff0180401a ra : ffffffff0180408a sp : ff20000000a1bd40"), None);
        let named = |text| frame(text).map(|f| (f.function, f.module, f.reliable));
        assert_eq!(
            named("demo_walk [demo] from demo_ioctl+0x54/0x9c [demo]"),
            Some(("demo_walk", true, true))
        );
        assert_eq!(named("([<000003ff800b0230>] demo_ioctl+0x60/0xa0)"), Some(("demo_ioctl", false, false)));
        assert_eq!(named("this came from demo_ioctl+0x54/0x9c"), None);
        assert!(is_disassembly("2a:*\t48 8b a8 a0 00 00 00 \tmov    0xa0(%rax),%rbp"));
        assert!(!is_disassembly("a: b"));
        assert!(is_stack_row("1f20:                   c0308ffc 20010013"));
        assert!(!is_stack_row("beef: is what it is"));
    }
}
