//! What a line is within a report.

use crate::arch;
use crate::line::{Body, Frame, frame, is_module};
use crate::scan::{Scan, decoded, plain, symbol};
use crate::words::{is_history, is_strong};

/// Says what `message` is; its prefix is gone, its indentation is not.
pub(crate) fn parse(message: &str) -> Body<'_> {
    let text = message.trim();
    if text.is_empty() {
        return Body::Weak;
    }
    if let Some(body) = marker(text).or_else(|| pointer(text)).or_else(|| cpu_line(text)) {
        return body;
    }
    if let Some(frame) = frame(text) {
        return Body::Frame(frame);
    }
    task_line(message)
        .or_else(|| named(text))
        .or_else(|| arch::body(text))
        .unwrap_or_else(|| fixed(message, text))
}

/// `<TASK>`, `</IRQ>` and the like, with or without a frame behind it.
fn marker(text: &str) -> Option<Body<'_>> {
    if !text.starts_with('<') {
        return None;
    }
    let (name, rest) = text.split_once('>')?;
    if name.len() > 24 {
        return None;
    }
    let rest = rest.trim_start_matches('>').trim();
    if rest.is_empty() {
        return Some(Body::Strong);
    }
    frame(rest).map(Body::Frame)
}

/// `RIP: 0010:F+0x1/0x2`, `RIP: 0010:[<addr>]  [<addr>] F+0x1/0x2`, `RIP  [<addr>] F`, `IP: F`, `pc : F`.
fn pointer(text: &str) -> Option<Body<'_>> {
    let mut scan = Scan(text);
    let selector = if scan.eat("RIP: ") || scan.eat("EIP: ") {
        let selector = scan.until(":").unwrap_or("");
        if selector.contains("+0x") || selector.contains(" (") || scan.0.is_empty() {
            // 32 bit: `EIP: F+0x1/0x2` has no selector.
            scan = Scan(&text[5..]);
            "0010"
        } else {
            selector
        }
    } else if scan.eat("RIP  ")
        || scan.eat("IP: ")
        || scan.eat("EIP is at ")
        || scan.eat("pc : ")
        || scan.eat("PC is at ")
    {
        "0010"
    } else {
        return None;
    };
    let kernel = !matches!(selector, "0033" | "0023" | "002b" | "0073");
    scan.spaces();
    while scan.eat("[<") {
        scan.until(">]")?;
        scan.spaces();
    }
    let named = symbol(scan.0).map(|(name, tail)| (name, is_module(tail))).or_else(|| decoded(scan.0));
    let (function, module) = named.map_or((None, false), |(name, module)| (Some(name), module));
    let plausible =
        function.is_some() || text.contains("[<") || scan.0.starts_with("0x") || scan.0.ends_with("(null)");
    plausible.then_some(Body::Pointer { function, module, kernel })
}

/// `CPU: 0 PID: 12 Comm: a b Not tainted 4.4`, with `UID: 0` since 6.12.
fn cpu_line(text: &str) -> Option<Body<'_>> {
    let mut scan = Scan(text);
    scan.lit("CPU: ")?;
    let cpu = u32::try_from(scan.number()?).ok()?;
    scan.lit(" ")?;
    if scan.eat("UID: ") {
        scan.number()?;
        scan.lit(" ")?;
    }
    scan.lit("PID: ")?;
    let pid = scan.number()?;
    scan.lit(" Comm: ")?;
    let end = scan.0.find(" Not tainted").or_else(|| scan.0.find(" Tainted:")).unwrap_or(scan.0.len());
    Some(Body::Cpu { cpu, pid, comm: &scan.0[..end] })
}

/// `task:COMM  state:D stack:0 pid:12 ...` or `COMM            D ADDR STACK PID PPID 0xFLAGS`.
fn task_line(message: &str) -> Option<Body<'_>> {
    if let Some(rest) = message.strip_prefix("task:") {
        let (comm, rest) = rest.split_once(" state:")?;
        let pid = rest.split_once("pid:")?.1.trim_start();
        return Some(Body::Task { comm: comm.trim_end(), pid: Scan(pid).number()? });
    }
    let bytes = message.as_bytes();
    let fits = bytes.len() > 30
        && bytes[15] == b' '
        && bytes[16].is_ascii_uppercase()
        && matches!(bytes[17], b' ' | b'0'..=b'9');
    if !fits || !message.is_char_boundary(15) {
        return None;
    }
    let mut fields = message.split_ascii_whitespace().rev();
    fields.next().filter(|flags| flags.starts_with("0x"))?;
    fields.next()?.parse::<u64>().ok()?;
    let pid = fields.next()?.parse().ok()?;
    Some(Body::Task { comm: message[..15].trim_end(), pid })
}

/// Lines that carry something we want.
fn named(text: &str) -> Option<Body<'_>> {
    if text.starts_with("Call Trace:") || text.starts_with("Call trace:") || text.starts_with("Backtrace:") {
        return Some(Body::Trace);
    }
    if text.starts_with("NMI backtrace for cpu ") || text.starts_with("Task dump for CPU ") {
        return Some(Body::NewStack);
    }
    if text.strip_prefix("rcu: ").unwrap_or(text).starts_with("Stack dump where RCU GP kthread last ran") {
        return Some(Body::Aside);
    }
    if text == "stack backtrace:" {
        return Some(Body::Backtrace);
    }
    if is_history(text) {
        return Some(Body::History);
    }
    if text.starts_with("Preemption disabled at:") {
        return Some(Body::Stale);
    }
    if text.starts_with("---[ end ") {
        return Some(Body::End);
    }
    if text.len() > 30 && text.bytes().all(|b| b == b'=') {
        return Some(Body::Rule);
    }
    if let Some(access) = ["Read of size ", "Read at addr ", "Write of size ", "Write at addr "]
        .iter()
        .position(|a| text.starts_with(a))
    {
        return Some(Body::Access { write: access > 1 });
    }
    let leaked =
        text.strip_prefix("last function: ").or_else(|| text.split_once(" workfn=").map(|(_, name)| name));
    let running =
        || text.strip_prefix("in-flight: ").and_then(|rest| rest.split_once(':')).map(|(_, name)| name);
    if let Some(name) = leaked.or_else(running) {
        let end = name.find([' ', ',']).unwrap_or(name.len());
        return Some(Body::InFlight { function: plain(&name[..end]) });
    }
    if let Some((_, function)) = text.strip_prefix("Workqueue: ").and_then(|work| work.split_once(' ')) {
        let end = function.find(' ').unwrap_or(function.len());
        return Some(Body::Work { function: plain(&function[..end]) });
    }
    if text.starts_with("sysrq: ") || text.starts_with("SysRq : ") {
        return Some(Body::Request);
    }
    None
}

fn fixed<'a>(message: &'a str, text: &'a str) -> Body<'a> {
    let text = ["rcu: ", "watchdog: ", "NMI watchdog: "]
        .iter()
        .find_map(|p| text.strip_prefix(p))
        .unwrap_or(text)
        .trim();
    if is_strong(text) {
        return Body::Strong;
    }
    let dump_word = |w: &str| w.len() >= 16 && w.bytes().all(|b| b.is_ascii_hexdigit());
    if is_release(text) {
        return Body::Strong;
    }
    if text == "Stack:" || text.split(' ').take(2).all(dump_word) || is_lock_line(text) {
        return Body::Strong;
    }
    let indented = message.starts_with([' ', '\t']);
    let weak = indented || text.starts_with("---") || text.starts_with("note: ") || text.starts_with("[ end");
    if weak || text.starts_with("Fixing recursive fault") || text.starts_with("INFO: lockdep is turned off") {
        return Body::Weak;
    }
    Body::Other
}

/// `6.1.0-30-amd64 #1 Not tainted`: lockdep says which kernel it speaks of.
fn is_release(text: &str) -> bool {
    let known = || text.ends_with(" Not tainted") || text.contains(" Tainted: ");
    text.starts_with(|c: char| c.is_ascii_digit()) && text.contains(" #") && known()
}

/// ` #0: ffff888 (&x){....}, at: F+0x1/0x2` and the like.
fn is_lock_line(text: &str) -> bool {
    let listed = || text.starts_with('#') || text.starts_with("->");
    match memchr::memchr2(b'{', b'}', text.as_bytes()) {
        None => listed() && text.contains(" ("),
        Some(_) => (listed() || text.contains('{')) && text.contains(" (") || text.contains("}, at: "),
    }
}

/// The function behind `at: ` in a lockdep line; `Some(None)` if `at:` ends the line and the next one names it.
pub(crate) fn lock_site(message: &str) -> Option<Option<Frame<'_>>> {
    let text = message.trim();
    if text.ends_with(" at:") {
        return Some(None);
    }
    let (_, rest) = text.split_once(" at: ")?;
    frame(rest).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(line: &str) -> Option<(&str, bool, bool)> {
        match parse(line) {
            Body::Frame(f) => Some((f.function, f.module, f.reliable)),
            _ => None,
        }
    }

    #[test]
    fn frames_of_all_versions() {
        assert_eq!(name(" [<ffffffffc014c07c>] func+0x5c/0x70 [module]"), Some(("func", true, true)));
        assert_eq!(name(" [<ffffffff810b1234>] ? func+0x5c/0x70"), Some(("func", false, false)));
        assert_eq!(name(" <EOI>  [<ffffffff810b1234>] ? func+0x5c/0x70"), Some(("func", false, false)));
        assert_eq!(name(" ? __schedule+0x1/0x2"), Some(("__schedule", false, false)));
        assert_eq!(name(" do_madvise.part.0+0x1/0x2 mm/madvise.c:12"), Some(("do_madvise", false, true)));
        assert_eq!(
            name(" context_switch kernel/sched/core.c:5399 [inline]"),
            Some(("context_switch", false, true))
        );
        assert_eq!(
            name("[<8013fee8>] (do_work) from [<8207ed1c>] (run+0x12c/0x208)"),
            Some(("do_work", false, true))
        );
        assert_eq!(
            name("[c000000049a87710] [c0000000000286fc] mmput+0xbc/0x260"),
            Some(("mmput", false, true))
        );
        assert_eq!(name("see func+0x5c/0x70"), None);
        assert_eq!(name("func+0x5c/0x70 failed"), None);
    }

    #[test]
    fn pointers_of_all_versions() {
        let kernel = |f| Body::Pointer { function: Some(f), module: false, kernel: true };
        assert_eq!(parse("RIP: 0010:[<ffffffff81234567>]  [<ffffffff81234567>] f+0x1/0x2"), kernel("f"));
        let of_module = Body::Pointer { function: Some("f"), module: true, kernel: true };
        assert_eq!(parse("RIP: 0010:f.isra.0+0x1/0x2 [m]"), of_module);
        assert_eq!(parse("RIP  [<ffffffff81234567>] f+0x1/0x2"), kernel("f"));
        assert_eq!(parse("IP: [<ffffffff81234567>] f+0x1/0x2"), kernel("f"));
        assert_eq!(parse("RIP: 0010:0x0"), Body::Pointer { function: None, module: false, kernel: true });
        assert_eq!(parse("RIP: 0033:0x7f12"), Body::Pointer { function: None, module: false, kernel: false });
    }

    #[test]
    fn tasks_of_all_versions() {
        let task = Body::Task { comm: "klp worker", pid: 1234 };
        assert_eq!(
            parse("task:klp worker     state:D stack:    0 pid: 1234 ppid:     1 flags:0x00000004"),
            task
        );
        assert_eq!(parse("klp worker      D ffff88003fc13e40     0  1234      1 0x00000000"), task);
        assert_eq!(
            parse("CPU: 1 UID: 0 PID: 7 Comm: a b Tainted: G   O 6.12"),
            Body::Cpu { cpu: 1, pid: 7, comm: "a b" }
        );
    }
}
