//! What a line within a report can be, and the stack frames that all architectures print.

use crate::scan::{decoded, plain, symbol};

/// One line of a report, as far as the classifier cares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Body<'a> {
    /// A stack frame.
    Frame(Frame<'a>),
    /// An instruction pointer; `None` if it is no symbol.
    Pointer { function: Option<&'a str>, module: bool, kernel: bool },
    /// `CPU: N PID: N Comm: COMM`.
    Cpu { cpu: u32, pid: u64, comm: &'a str },
    /// The line with which a dump names its task.
    Task { comm: &'a str, pid: u64 },
    /// `Call Trace:`.
    Trace,
    /// `NMI backtrace for cpu N`, `Task dump for CPU N:`: another stack starts here.
    NewStack,
    /// `Stack dump where RCU GP kthread last ran:`: the next stack is another CPU's, which may have nothing to do with it.
    Aside,
    /// `stack backtrace:` of lockdep: the frames before were history.
    Backtrace,
    /// `Allocated by task 12:`, `page last allocated via order 0`: the next frames tell what was before.
    History,
    /// `Preemption disabled at:`: the next line names a place that may be long left.
    Stale,
    /// `---[ end trace 0123 ]---`, `---[ end Kernel panic ...`.
    End,
    /// A row of `=`.
    Rule,
    /// `Read of size 8 at addr ...`.
    Access { write: bool },
    /// `in-flight: 123:FUNC`, `last function: FUNC`, `preempt=0x0 ... workfn=FUNC`.
    InFlight { function: &'a str },
    /// `Workqueue: NAME FUNC`: what the worker was doing.
    Work { function: &'a str },
    /// Another line that only such a dump has.
    Strong,
    /// A line that a dump can have, but anything else too.
    Weak,
    /// The kernel starts to show something by request: no dump goes on past it.
    Request,
    /// None of these.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) function: &'a str,
    pub(crate) module: bool,
    /// Not marked with `?`.
    pub(crate) reliable: bool,
}

/// `[<addr>] ? F+0x1/0x2 [mod]`, ` ? F+0x1/0x2`, `F+0x1/0x2 file.c:12`, `F file.c:12 [inline]`.
pub(crate) fn frame(text: &str) -> Option<Frame<'_>> {
    let mut rest = text;
    if let Some(tail) = rest.strip_prefix("[<") {
        rest = tail.split_once(">]")?.1.trim_start();
        if let Some(frame) = arm_frame(rest) {
            return Some(frame);
        }
    } else if rest.starts_with('[') {
        // 64-bit POWER: `[SP] [ADDR] F+0x1/0x2`.
        for _ in 0..2 {
            let (address, tail) = rest.strip_prefix('[')?.split_once("] ")?;
            if address.len() != 16 || !address.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            rest = tail;
        }
    }
    let reliable = match rest.strip_prefix("? ") {
        Some(tail) => {
            rest = tail.trim_start();
            false
        }
        None => true,
    };
    if let Some((function, tail)) = symbol(rest) {
        let tail = tail.trim();
        let module = is_module(tail);
        let ends = tail.is_empty() || module || tail.starts_with('(') || is_source(tail);
        return ends.then_some(Frame { function, module, reliable });
    }
    if let Some((function, module)) = decoded(rest) {
        return Some(Frame { function, module, reliable });
    }
    let (name, place) = rest.strip_suffix(" [inline]")?.split_once(' ')?;
    is_source(place).then_some(Frame { function: plain(name), module: false, reliable })
}

/// `(F) from [<ADDR>] (G+0x1/0x2)`, as 32-bit ARM has it: the next line names G again.
fn arm_frame(text: &str) -> Option<Frame<'_>> {
    let (name, caller) = text.strip_prefix('(')?.split_once(") from [<")?;
    let (name, module) = name.split_once(' ').map_or((name, false), |(name, tail)| (name, is_module(tail)));
    caller.contains(">] (").then_some(Frame { function: plain(name), module, reliable: true })
}

/// ` [module]` behind a symbol, as opposed to ` [inline]`.
pub(crate) fn is_module(tail: &str) -> bool {
    let tail = tail.trim_start();
    tail.starts_with('[') && !tail.starts_with("[inline")
}

/// `mm/madvise.c:123`, with or without something behind it.
fn is_source(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or("");
    word.rsplit_once(':').is_some_and(|(file, line)| {
        file.contains('.') && !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit())
    })
}
