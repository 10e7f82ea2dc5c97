//! Reports that need no lockup and no oops: memory, devices, modules. Most are complete in one line.

use crate::header::{Header, blank_numbers};
use crate::scan::{Scan, plain, symbol};
use crate::{Kind, oops};

/// `Out of memory: Kill process 12 (comm) score 9 or sacrifice child`, `Out of memory: Killed process 12 (comm) ...`
pub(crate) fn out_of_memory(text: &str) -> Option<Header> {
    let mut scan = Scan(text);
    let memcg = scan.eat("Memory cgroup out of memory");
    if !memcg {
        scan.lit("Out of memory")?;
    }
    if scan.eat(" (") {
        scan.until(")")?;
    }
    scan.lit(": Kill")?;
    scan.eat("ed");
    scan.lit(" process ")?;
    let pid = scan.number()?;
    scan.eat(",");
    scan.lit(" (")?;
    // A comm may hold brackets itself.
    let (comm, rest) = scan.0.split_once(") ")?;
    if !rest.starts_with("score ") && !rest.contains("total-vm:") {
        return None;
    }
    let stem = if memcg { "memory cgroup out of memory: killed " } else { "out of memory: killed " };
    let header = Header::new(Kind::Oom, format!("{stem}{}", blank_numbers(comm))).given();
    Some(Header { task: Some(format!("{comm}:{pid}")), ..header })
}

/// kmemleak.
pub(crate) fn leak(text: &str) -> Option<Header> {
    if let Some(rest) = text.strip_prefix("kmemleak: ") {
        let mut scan = Scan(rest);
        scan.number().filter(|&n| n > 0)?;
        scan.lit(" new suspected memory leaks (see ")?;
        return Some(Header::new(Kind::MemoryLeak, "kmemleak: new suspected memory leaks").given());
    }
    let mut scan = Scan(text);
    scan.lit("unreferenced object 0x")?;
    scan.run(|c| c.is_ascii_hexdigit())?;
    scan.lit(" (size ")?;
    Some(Header::new(Kind::MemoryLeak, "memory leak"))
}

/// `unregister_netdevice: waiting for lo to become free. Usage count = 1`
pub(crate) fn netdevice(text: &str) -> Option<Header> {
    let rest = text.strip_prefix("unregister_netdevice: waiting for ")?;
    let (device, count) = rest.split_once(" to become free. Usage count = ")?;
    count.trim().parse::<i64>().ok()?;
    let stem = format!("unregister_netdevice: waiting for {} to become free", blank_numbers(device));
    Some(Header::new(Kind::NetdeviceRefs, stem).given())
}

/// File systems and block devices.
pub(crate) fn io(text: &str) -> Option<Header> {
    let mut scan = Scan(text);
    let _ = scan.eat("blk_update_request: ") || scan.eat("end_request: ") || scan.eat("print_req_error: ");
    let kinds =
        ["critical medium", "critical target", "critical space allocation", "I/O", "timeout", "protection"];
    let is_kind = |k: &&str| scan.0.strip_prefix(*k).is_some_and(|tail| tail.starts_with(" error, dev "));
    if let Some(kind) = kinds.into_iter().find(is_kind) {
        scan.until(" error, dev ")?;
        let device = scan.until(", sector ")?;
        scan.number()?;
        return Some(Header::new(Kind::IoError, format!("{kind} error, dev {device}")).given());
    }
    if scan.eat("Buffer I/O error on dev") {
        scan.eat("ice");
        scan.lit(" ")?;
        let device = scan.until(", logical block ")?;
        return Some(Header::new(Kind::IoError, format!("Buffer I/O error on dev {device}")).given());
    }
    filesystem(text)
}

/// What file systems say of their own corruption, and that they give up.
fn filesystem(text: &str) -> Option<Header> {
    let report =
        |stem: String, function| Header { function, ..Header::new(Kind::FilesystemError, stem).given() };
    if text.starts_with("Aborting journal on device ") {
        return Some(report("Aborting journal".to_string(), None));
    }
    if let Some(rest) = text.strip_prefix("XFS (") {
        return xfs(rest.split_once("): ")?.1);
    }
    for fs in ["EXT4-fs", "EXT3-fs", "EXT2-fs", "BTRFS", "F2FS-fs", "FAT-fs"] {
        let Some(rest) = text.strip_prefix(fs) else { continue };
        let mut scan = Scan(rest);
        let level = if scan.eat(" critical (device ") { "critical" } else { "error" };
        if level == "error" && !scan.eat(" error (device ") && !scan.eat(": error (device ") {
            continue;
        }
        scan.until(")")?;
        if !scan.eat(" in ") && !scan.eat(": ") {
            return None;
        }
        // `ext4_lookup:1700: ...`; other text than a function's name has no line number behind it.
        let name = scan.run(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.').map(plain);
        let line = scan.eat(":") && scan.number().is_some();
        let function = name.filter(|_| line).map(str::to_string);
        let place = function.as_ref().map_or(String::new(), |f| format!(" in {f}"));
        return Some(report(format!("{fs} {level}{place}"), function));
    }
    None
}

/// Behind `XFS (DEV): `.
fn xfs(rest: &str) -> Option<Header> {
    let what = [
        ("Metadata corruption detected at ", "metadata corruption"),
        ("Metadata CRC error detected at ", "metadata corruption"),
        ("Internal error ", "internal error"),
        ("Corruption of in-memory data ", "corruption of in-memory data"),
        ("Corruption of on-disk metadata ", "corruption of metadata"),
        ("Corruption detected", "corruption detected"),
        ("Corruption warning: ", "corruption detected"),
        ("Log I/O Error ", "log I/O error"),
        ("Metadata I/O Error ", "metadata I/O error"),
        ("xfs_do_force_shutdown(", "shutdown"),
    ];
    let (start, what) = what.into_iter().find(|(start, _)| rest.starts_with(start))?;
    let site = rest[start.len()..].split_once("detected at ").map_or(&rest[start.len()..], |(_, site)| site);
    let caller = || rest.split_once("Caller ").map(|(_, caller)| caller);
    let named = symbol(site).or_else(|| caller().and_then(symbol)).map(|(name, _)| name.to_string());
    let place = named.as_ref().map_or(String::new(), |f| format!(" in {f}"));
    let header = Header::new(Kind::FilesystemError, format!("XFS: {what}{place}"));
    Some(Header { function: named, ..header.given() })
}

/// `irq 17: nobody cared (try booting with the "irqpoll" option)`, a stack and the handlers follow.
pub(crate) fn irq(text: &str) -> Option<Header> {
    let mut scan = Scan(text);
    scan.lit("irq ")?;
    scan.number()?;
    scan.lit(": nobody cared")?;
    Some(Header::new(Kind::UnhandledIrq, "irq: nobody cared").alone())
}

/// `unchecked MSR access error: WRMSR to 0x1b0 (...) at rIP: 0xADDR (F+0x1/0x2)`, a stack follows.
pub(crate) fn msr(text: &str) -> Option<Header> {
    let rest = text.strip_prefix("unchecked MSR access error: ")?;
    let exact = rest.starts_with("WRMSR to ") || rest.starts_with("RDMSR from ");
    Some(Header::new(Kind::MsrAccess, "unchecked MSR access error").exact(exact))
}

/// Files and inodes that are used after their end, or beyond that of their file system.
pub(crate) fn vfs(text: &str) -> Option<Header> {
    let rest = text.strip_prefix("VFS: ")?;
    let stem =
        ["Close: file count is ", "Busy inodes after unmount"].into_iter().find(|s| rest.starts_with(s))?;
    Some(Header::new(Kind::Bug, format!("VFS: {}", stem.trim_end_matches(" is "))).given())
}

/// Messages that start with the name of a task or module.
pub(crate) fn after_comm(text: &str) -> Option<Header> {
    let (name, rest) = text.split_once(": ")?;
    if name.len() > 64 {
        return None;
    }
    if let Some(what) = rest.strip_prefix("NETDEV WATCHDOG: ") {
        // Since 6.8; before, the same words came with a warning.
        let exact = what.contains("transmit queue ") && what.contains(" timed out");
        return exact.then(|| {
            Header::new(Kind::TransmitTimeout, "NETDEV WATCHDOG: transmit queue timed out").given()
        });
    }
    if let Some(tail) = rest.strip_prefix("page allocation failure") {
        let order = tail.strip_prefix(": order:").or_else(|| tail.strip_prefix(". order:"));
        let exact = order.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        return exact.then(|| Header::new(Kind::PageAllocation, "page allocation failure"));
    }
    if let Some(address) = rest.strip_prefix("Corrupted page table at address ") {
        // A line with a `[#1]` follows.
        let exact = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit());
        return exact.then(|| Header::new(Kind::PageFault, oops::TABLE));
    }
    if let Some(tail) = rest.strip_prefix("page allocation stalls for ") {
        // Kernels 4.10 to 4.14.
        let exact = tail.contains("ms, order:");
        return exact.then(|| Header::new(Kind::PageAllocation, "page allocation stalls").given());
    }
    let module = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let what = if let Some(symbol) = rest.strip_prefix("disagrees about version of symbol ") {
        format!("disagrees about version of symbol {symbol}")
    } else if let Some(symbol) = rest.strip_prefix("Unknown symbol ") {
        // The kernel says with which error.
        let (symbol, error) = symbol.split_once(" (err ")?;
        error.strip_suffix(')')?.parse::<i32>().ok()?;
        format!("Unknown symbol {symbol}")
    } else if rest.starts_with("version magic '") && rest.contains("' should be '") {
        "version magic mismatch".to_string()
    } else {
        return None;
    };
    module.then(|| Header::new(Kind::ModuleLoad, format!("{name}: {what}")).given())
}
