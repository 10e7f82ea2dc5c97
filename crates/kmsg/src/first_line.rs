//! First lines of reports. Every match starts at the start of the message.

use crate::header::{Header, blank_numbers};
use crate::scan::{Scan, decoded, plain, symbol};
use crate::single::{after_comm, io, irq, leak, msr, netdevice, out_of_memory, vfs};
use crate::{Kind, arch, lockdep, oops, quiet};

/// Kernels before 4.15 printed this without ending the line; the header of the fault follows at once.
const GLUED: &str = "kasan: GPF could be caused by NULL-ptr deref or user memory access";

/// The header that `message` is, if it is one.
pub(crate) fn parse(message: &str) -> Option<Header> {
    let text = ["NMI watchdog: ", "watchdog: ", "rcu: ", GLUED]
        .iter()
        .find_map(|p| message.strip_prefix(p))
        .unwrap_or(message);
    match text.as_bytes().first()? {
        // POWER's words would be any other BUG.
        b'B' => arch::header(text).or_else(|| bug(text)).or_else(|| oops::parse(text)).or_else(|| io(text)),
        b'I' => info(text).or_else(|| oops::parse(text)).or_else(|| io(text)),
        b'W' => warning(text).or_else(|| hard_lockup(text)),
        b'[' => lockdep::parse(text.strip_prefix("[ ")?.strip_suffix(" ]")?),
        b'U' => ubsan(text).or_else(|| oops::parse(text)),
        b'O' => out_of_memory(text).or_else(|| oops::parse(text)).or_else(|| message_before(text)),
        b'M' => out_of_memory(text),
        b'r' | b'l' => message_before(text).or_else(|| rcu(text)),
        b'C' => hard_lockup(text),
        b'V' => vfs(text),
        b'a' | b'b' | b'c' | b'f' | b'o' => oops::parse(text),
        b'K' | b'k' | b'g' | b'd' | b'i' | b's' | b'P' | b't' => {
            oops::parse(text).or_else(|| leak(text)).or_else(|| irq(text))
        }
        b'u' => leak(text).or_else(|| netdevice(text)).or_else(|| msr(text)),
        _ => None,
    }
    .or_else(|| arch::header(text))
    .or_else(|| io(text))
    .or_else(|| after_comm(text))
    .or_else(|| quiet::parse(text))
}

/// `BUG: ...`
fn bug(text: &str) -> Option<Header> {
    if let Some(rest) = text.strip_prefix("BUG ") {
        return slab(rest);
    }
    let rest = text.strip_prefix("BUG: ")?;
    if rest.starts_with("Dentry ") && rest.contains(" still in use ") {
        return Some(Header::new(Kind::Bug, "BUG: Dentry still in use").alone().message());
    }
    sanitizer(rest)
        .or_else(|| soft_lockup(rest))
        .or_else(|| oops::bug(rest))
        .or_else(|| atomic(rest))
        .or_else(|| memory(rest))
        .or_else(|| leak_list(rest))
        .or_else(|| lockdep::parse(text))
        .or_else(|| other_bug(rest))
}

/// `soft lockup - CPU#0 stuck for 22s! [comm:pid]`, and what work queues complain of.
fn soft_lockup(rest: &str) -> Option<Header> {
    let mut scan = Scan(rest);
    if scan.eat("workqueue leaked ") {
        // `lock or atomic: COMM/COUNT/PID` to 6.8, `atomic, lock or RCU: COMM[PID]` since.
        let exact = scan.0.starts_with("lock or atomic: ") || scan.0.starts_with("atomic, lock or RCU: ");
        return Some(Header::new(Kind::LockMisuse, "BUG: workqueue leaked atomic, lock or RCU").exact(exact));
    }
    if scan.eat("workqueue lockup - pool") {
        let header = Header::new(Kind::WorkqueueLockup, "BUG: workqueue lockup").alone();
        return Some(header.exact(scan.0.contains(" stuck for ")));
    }
    scan.lit("soft lockup")?;
    let mut header = Header::new(Kind::SoftLockup, "BUG: soft lockup");
    let mut tail = || {
        scan.lit(" - CPU#")?;
        header.cpu = u32::try_from(scan.number()?).ok();
        scan.lit(" stuck for ")?;
        scan.number()?;
        scan.lit("s! [")?;
        header.task = Some(scan.0.strip_suffix(']')?.to_string());
        Some(())
    };
    let exact = tail().is_some();
    Some(header.exact(exact))
}

/// `Watchdog detected hard LOCKUP on cpu 0`, `CPU1: ` before it on the newest kernels.
fn hard_lockup(text: &str) -> Option<Header> {
    let mut scan = Scan(text);
    if scan.eat("CPU") {
        scan.number()?;
        scan.lit(": ")?;
    }
    scan.lit("Watchdog detected hard LOCKUP on cpu ")?;
    let cpu = scan.number().and_then(|n| u32::try_from(n).ok());
    let exact = cpu.is_some() && matches!(scan.0, "" | "dModules linked in:");
    Some(Header { cpu, ..Header::new(Kind::HardLockup, "BUG: hard lockup").exact(exact) })
}

/// `KASAN: use-after-free in F+0x1/0x2`, the same of KFENCE, KCSAN, KMSAN.
fn sanitizer(rest: &str) -> Option<Header> {
    let (name, what) = rest.split_once(": ")?;
    let kind = match name {
        "KASAN" => Kind::Kasan,
        "KFENCE" => Kind::Kfence,
        "KCSAN" => Kind::Kcsan,
        "KMSAN" => Kind::Kmsan,
        _ => return None,
    };
    let Some((bug, site)) = what.split_once(" in ") else {
        let bug = what.split(" on address").next().unwrap_or(what);
        return Some(Header::new(kind, format!("{name}: {bug}")).exact(false));
    };
    if kind == Kind::Kcsan {
        let mut names: Vec<&str> =
            site.split(" / ").map(|s| plain(s.split([' ', '+']).next().unwrap_or(s))).collect();
        // An address that no symbol has is no name.
        names.retain(|name| !name.starts_with(|c: char| c.is_ascii_digit()));
        names.dedup();
        if names.is_empty() {
            return Some(Header::new(kind, format!("KCSAN: {bug}")).alone());
        }
        let header = Header::new(kind, format!("KCSAN: {bug} in {}", names.join(" / "))).alone();
        return Some(Header { function: Some(names[0].to_string()), ..header });
    }
    let bug = match kind {
        Kind::Kfence => bug.trim_end_matches(" read").trim_end_matches(" write"),
        _ if bug == "double-free or invalid-free" => "invalid-free",
        _ => bug,
    };
    Some(
        Header::new(kind, format!("{name}: {bug}"))
            .exact(symbol(site).is_some() || decoded(site).is_some())
            .names(site),
    )
}

/// Atomic sleep, scheduling while atomic, spinlocks.
fn atomic(rest: &str) -> Option<Header> {
    if let Some(tail) = rest.strip_prefix("scheduling while atomic: ") {
        let mut fields = tail.rsplitn(3, '/');
        let exact = fields.next().is_some_and(|c| c.starts_with("0x"));
        let pid = fields.next();
        let task = fields.next().zip(pid).map(|(comm, pid)| format!("{comm}:{pid}"));
        let header = Header::new(Kind::SchedulingWhileAtomic, "BUG: scheduling while atomic");
        return Some(Header { task, ..header.exact(exact) });
    }
    if let Some(tail) = rest.strip_prefix("sleeping function called from invalid context") {
        let header = Header::new(Kind::SleepInAtomic, "BUG: sleeping function called from invalid context");
        return Some(header.exact(tail.starts_with(" at ") && is_place(&tail[4..])));
    }
    if let Some(tail) = rest.strip_prefix("using ") {
        let (what, _) = tail.split_once(" in preemptible [")?;
        return Some(Header::new(Kind::Preemptible, format!("BUG: using {what} in preemptible code")));
    }
    let lock = ["spinlock ", "rwlock ", "rwlock-", "read-lock ", "write-lock "]
        .into_iter()
        .find(|l| rest.starts_with(l))?;
    let what = &rest[lock.len()..];
    let what = &what[..what.find(" on CPU#").or_else(|| what.find(" on "))?];
    let exact = what.split(' ').count() <= 3;
    Some(Header::new(Kind::Spinlock, format!("BUG: {lock}{what}")).exact(exact))
}

/// Pages and counters.
fn memory(rest: &str) -> Option<Header> {
    for what in ["Bad page state", "Bad page map", "Bad page cache"] {
        if rest.strip_prefix(what).is_some_and(|tail| tail.starts_with(" in process ")) {
            return Some(Header::new(Kind::BadPage, format!("BUG: {what}")));
        }
    }
    if let Some(tail) = rest.strip_prefix("Bad rss-counter state mm:") {
        let header = Header::new(Kind::BadRssCounter, "BUG: Bad rss-counter state");
        return (tail.contains(" idx:") || tail.contains(" type:")).then(|| header.given());
    }
    let what = [
        "non-zero nr_ptes on freeing mm",
        "non-zero pgtables_bytes on freeing mm",
        "non-zero nr_pmds on freeing mm",
    ];
    let what = what.into_iter().find(|w| rest.starts_with(w))?;
    let header = Header::new(Kind::BadRssCounter, format!("BUG: {what}"));
    Scan(rest[what.len()..].strip_prefix(": ")?).0.parse::<i64>().ok().map(|_| header.given())
}

/// `kmalloc-64 (Tainted: G    B): Redzone overwritten`
fn slab(rest: &str) -> Option<Header> {
    let (cache, taints) = rest.split_once(" (")?;
    let (taints, what) = taints.split_once("): ")?;
    if taints != "Not tainted" && !taints.starts_with("Tainted: ") {
        return None;
    }
    Some(Header::new(Kind::SlabCorruption, format!("BUG {cache}: {what}")).alone())
}

/// `INFO: Allocated in F+0x1/0x2 age=1 cpu=1 pid=2` and the like (without `INFO: ` since 5.14), without the header of SLUB's report: it
/// was lost.
pub(crate) fn orphan(message: &str) -> Option<Header> {
    let text = message.strip_prefix("INFO: ").unwrap_or(message);
    let site = text.strip_prefix("Allocated in ").or_else(|| text.strip_prefix("Freed in "))?;
    let (_, tail) = symbol(site)?;
    (tail.trim_start().starts_with("age=") && tail.contains(" pid=")).then(|| {
        Header::new(Kind::SlabCorruption, "BUG: slab corruption, of which the start was lost").alone()
    })
}

/// kmemleak's list, as a script prints it to the console.
fn leak_list(rest: &str) -> Option<Header> {
    (rest == "memory leak").then(|| Header::new(Kind::MemoryLeak, "memory leak"))
}

/// Any other `BUG: `, with numbers and addresses blanked.
fn other_bug(rest: &str) -> Option<Header> {
    let header = Header::new(Kind::Bug, format!("BUG: {}", blank_numbers(rest)));
    Some(header.alone().exact(false))
}

/// `INFO: ...`
fn info(text: &str) -> Option<Header> {
    let rest = text.strip_prefix("INFO: ")?;
    if let Some(tail) = rest.strip_prefix("task ") {
        return hung_task(tail);
    }
    rcu(rest).or_else(|| lockdep::parse(text))
}

/// Whether `message` is the first line of a header whose task has a line break in its name: the kernel prints it as it is.
pub(crate) fn is_half(message: &str) -> bool {
    const COMM: usize = 16;
    let comm = message.strip_prefix("INFO: task ");
    comm.is_some_and(|comm| comm.len() < COMM && !comm.contains(" blocked"))
}

/// `COMM:PID blocked for more than N seconds.`
fn hung_task(tail: &str) -> Option<Header> {
    let forms =
        [" blocked for more than ", " blocked in I/O wait for more than ", " can't die for more than "];
    let (task, rest) = forms.iter().find_map(|form| tail.split_once(form))?;
    let (comm, pid) = task.rsplit_once(':')?;
    pid.parse::<u32>().ok()?;
    let mut scan = Scan(rest);
    let seconds = scan.number();
    let exact = !comm.is_empty() && comm.len() < 64 && seconds.is_some() && scan.0 == " seconds.";
    let stem = if tail.contains(forms[2]) { "INFO: task can't die" } else { "INFO: task hung" };
    let header = Header::new(Kind::HungTask, stem).exact(exact);
    Some(Header { task: Some(task.to_string()), ..header })
}

/// `rcu_sched self-detected stall on CPU`, `rcu_preempt detected stalls on CPUs/tasks:` ...
fn rcu(rest: &str) -> Option<Header> {
    let rest = rest.strip_prefix("INFO: ").unwrap_or(rest);
    let mut scan = Scan(rest);
    let flavour = scan.run(|c| c.is_ascii_lowercase() || c == '_')?;
    if !flavour.starts_with("rcu_") && !flavour.ends_with("rcu") {
        return None;
    }
    scan.lit(" ")?;
    let header = Header::new(Kind::RcuStall, "INFO: rcu detected stall");
    if scan.eat("kthread starved for ") {
        return Some(Header { message: true, ..header.exact(scan.number().is_some()) });
    }
    let exact = [
        "self-detected stall on CPU",
        "detected stalls on ",
        "detected expedited stalls on ",
        "self-detected expedited",
    ];
    exact.iter().any(|e| scan.0.starts_with(e)).then_some(header)
}

/// `WARNING: CPU: 0 PID: 1 at FILE:LINE F+0x1/0x2()` and its successors.
fn warning(text: &str) -> Option<Header> {
    let rest = text.strip_prefix("WARNING: ")?;
    let mut scan = Scan(rest);
    if scan.eat("CPU: ") {
        let cpu = u32::try_from(scan.number()?).ok()?;
        scan.lit(" PID: ")?;
        let pid = scan.number()?;
        let at = scan.until(" at ")?;
        if !at.is_empty() {
            return None;
        }
        let (file, site) = scan.0.split_once(' ').filter(|(file, _)| is_place(file)).unwrap_or(("", scan.0));
        let mut header = warning_at(file, site);
        header.cpu = Some(cpu);
        // The name of the task comes with the `CPU:` line.
        header.task = (pid == 0).then(|| format!("swapper/{cpu}:0"));
        return Some(header);
    }
    if let Some((place, tail)) = rest.split_once(" at ")
        && let Some((site, who)) = tail.split_once(", CPU#")
    {
        let place = place.rsplit_once(' ').map_or(place, |(_, last)| last);
        let mut header = warning_at(place, site);
        let (cpu, task) = who.split_once(": ")?;
        header.cpu = cpu.parse().ok();
        header.task = task.rsplit_once('/').map(|(comm, pid)| format!("{comm}:{pid}"));
        return Some(header);
    }
    if rest.strip_prefix("at ").is_some_and(is_place) {
        // Kernels without CONFIG_SMP reports of CPU and PID are older than any we boot, but their logs live on.
        return Some(warning_at(rest.strip_prefix("at ")?, ""));
    }
    unwinder(rest).or_else(|| lockdep::parse(text))
}

/// `kernel stack regs at ADDR in COMM:PID has bad 'bp' value ADDR` (4.9 to 4.14).
fn unwinder(rest: &str) -> Option<Header> {
    let what =
        ["kernel stack regs", "kernel stack frame pointer"].into_iter().find(|w| rest.starts_with(w))?;
    let (_, tail) = rest.split_once(" has bad ")?;
    let value = tail.split_once(" value").map_or("", |(name, _)| name);
    let space = if value.is_empty() { "" } else { " " };
    Some(Header::new(Kind::Warning, format!("WARNING: {what} has bad {value}{space}value")).given())
}

/// A warning at `file` (`lib/refcount.c:28`) in `site` (`F+0x1/0x2 [mod]()`): some places have a meaning of their own.
fn warning_at(file: &str, site: &str) -> Header {
    let name = file.rsplit_once(':').map_or(file, |(name, _)| name);
    // Kernels before 4.5 warn of a hard lockup; the text comes before or after.
    let watchdog = site.is_empty() || site.starts_with("watchdog_overflow_callback");
    if watchdog && name.ends_with("kernel/watchdog.c") {
        return Header::new(Kind::HardLockup, "BUG: hard lockup");
    }
    let (kind, stem) = match name.trim_start_matches("./") {
        "lib/refcount.c" => (Kind::Refcount, "WARNING: refcount bug"),
        "include/linux/refcount.h" => (Kind::Refcount, "WARNING: refcount bug"),
        "lib/debugobjects.c" => (Kind::Odebug, "WARNING: ODEBUG bug"),
        "lib/list_debug.c" => (Kind::ListCorruption, "BUG: corrupted list"),
        "mm/usercopy.c" => (Kind::Warning, "WARNING: bad usercopy"),
        "lib/kobject.c" => (Kind::Warning, "WARNING: kobject bug"),
        "fs/proc/generic.c" => (Kind::Warning, "WARNING: proc registration bug"),
        "kernel/locking/lockdep.c" => (Kind::Warning, "WARNING: locking bug"),
        _ if name.starts_with("mm/") && site.contains("malloc") => (Kind::Warning, "WARNING: kmalloc bug"),
        _ => (Kind::Warning, "WARNING"),
    };
    Header::new(kind, stem).exact(!file.is_empty()).names(site)
}

/// `UBSAN: Undefined behaviour in FILE:LINE:COLUMN`
fn ubsan(text: &str) -> Option<Header> {
    let (what, place) = text.strip_prefix("UBSAN: ")?.split_once(" in ")?;
    let what = if what == "Undefined behaviour" { "undefined-behaviour" } else { what };
    Some(Header::new(Kind::Ubsan, format!("UBSAN: {what}")).exact(is_place(place)))
}

/// Messages that a `WARNING: ` or `kernel BUG at ` follows (4.19 and newer) or precedes (older).
fn message_before(text: &str) -> Option<Header> {
    if let Some(rest) = text.strip_prefix("refcount_t: ") {
        let exact =
            ["underflow", "addition on 0", "increment on 0", "saturated", "decrement hit 0", "saturation"];
        let exact = exact.iter().any(|e| rest.starts_with(e));
        return Some(Header::new(Kind::Refcount, "WARNING: refcount bug").message().exact(exact));
    }
    if text.starts_with("list_add ")
        || text.starts_with("list_del ")
        || text.starts_with("list_add double add")
    {
        let corruption = text.starts_with("list_add corruption") || text.starts_with("list_del corruption");
        return (corruption || text.contains("double add"))
            .then(|| Header::new(Kind::ListCorruption, "BUG: corrupted list").message());
    }
    if text.starts_with("ODEBUG: ") && text.contains(" object") && text.contains("active state ") {
        return Some(Header::new(Kind::Odebug, "WARNING: ODEBUG bug").message());
    }
    None
}

/// `FILE:LINE`
fn is_place(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or("");
    let mut parts = word.split(':');
    parts.next().is_some_and(|file| file.contains('.') || file == "(null)")
        && parts.next().is_some_and(|line| line.parse::<u32>().is_ok())
}
