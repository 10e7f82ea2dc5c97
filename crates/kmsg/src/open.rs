//! One report while it grows.

use crate::body;
use crate::frames::{Site, guilty};
use crate::header::{Header, Place, Proof};
use crate::line::{self, Body};
use crate::machinery::is_machinery;
use crate::names::canonical;
use crate::prefix::Caller;
use crate::words::is_everyday;
use crate::{Kind, Report, oops};

/// The most text a report keeps, in bytes.
const TEXT_LIMIT: usize = 64 << 10;
/// The most functions a report remembers: the guilty one is near the top of a stack.
const SITE_LIMIT: usize = 512;
/// How many other lines of the kernel may follow the header before it counts as a lie.
const PROOF_WINDOW: u32 = 10;
/// How many other lines of the kernel may stand between two lines of a report.
const GAP: u32 = 40;
/// The same after the end mark.
const TAIL: u32 = 12;

/// A report that may still get lines.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) header: Header,
    pub(crate) caller: Option<Caller>,
    /// The header had a kernel prefix: so must the rest.
    pub(crate) stamped: bool,
    pub(crate) corrupted: bool,
    pub(crate) panicked: bool,
    /// Saw a line that only the kernel's dump has.
    pub(crate) proven: bool,
    /// Saw its end mark.
    pub(crate) ended: bool,
    /// Lines of the kernel since the last that belonged.
    pub(crate) gap: u32,
    /// Text was lost after the header.
    pub(crate) lost: bool,
    /// A header that was taken for this one's rival: two reports were being printed at once.
    pub(crate) rival: Option<Box<Open>>,
    line: u64,
    text: String,
    /// Length of `text` up to the last line that belonged.
    kept: usize,
    sites: Vec<Site>,
    stack: u32,
    /// The stack is not that of the trouble.
    aside: bool,
    /// Nor is the next one.
    aside_next: bool,
    /// Saw lockdep's `stack backtrace:`.
    backtrace: bool,
    /// The next frame is none of a stack.
    stale: bool,
    /// The stack tells what was before.
    history: bool,
    traces: u32,
    cpu_lines: u32,
    die_seen: bool,
    access: Option<&'static str>,
    /// Where the lock was taken, and whether a module did.
    lock: Option<(String, bool)>,
    lock_next: bool,
    /// The place is known, or will not come any more.
    locks_over: bool,
    /// What a worker was doing.
    work: Option<String>,
    comm: Option<(u32, String)>,
}

/// What became of a report that was closed.
pub(crate) enum Verdict {
    /// It is one.
    Real(Report),
    /// The header was never proven.
    Unproven,
}

impl Open {
    pub(crate) fn new(header: Header, line: u64, raw: &str, caller: Option<Caller>, stamped: bool) -> Self {
        let (die_seen, panicked) = (header.die, header.panic);
        let mut open = Open {
            header,
            caller,
            stamped,
            corrupted: false,
            panicked,
            proven: false,
            ended: false,
            gap: 0,
            lost: false,
            rival: None,
            line,
            text: String::new(),
            kept: 0,
            sites: Vec::new(),
            stack: 0,
            aside: false,
            aside_next: false,
            backtrace: false,
            stale: false,
            history: false,
            traces: 0,
            cpu_lines: 0,
            die_seen,
            access: None,
            lock: None,
            lock_next: false,
            locks_over: false,
            work: None,
            comm: None,
        };
        open.keep(raw, true);
        open
    }

    /// Appends `raw` to the text.
    fn keep(&mut self, raw: &str, belongs: bool) {
        if self.text.len() + raw.len() < TEXT_LIMIT {
            self.text.reserve(raw.len() + 1);
            self.text.push_str(raw);
            self.text.push('\n');
        } else if !self.text.ends_with("[truncated]\n") && self.text.len() < TEXT_LIMIT + 100 {
            self.text.push_str("[truncated]\n");
        }
        if belongs {
            self.kept = self.text.len();
        }
    }

    /// Takes a line that may belong to the report; `body` is what `message` is.
    pub(crate) fn push(&mut self, body: Body<'_>, message: &str, raw: &str) {
        self.lock_lines(message);
        let belongs = !matches!(body, Body::Other | Body::Weak | Body::Request);
        if belongs {
            self.gap = 0;
        } else {
            self.gap += u32::from(body == Body::Other);
        }
        let strong = belongs && !matches!(body, Body::Rule | Body::End);
        // Text without time stamps is anybody's: words alone prove nothing then.
        let words = !self.stamped
            && matches!(body, Body::Strong | Body::Access { .. })
            && (!self.header.exact || is_everyday(message));
        self.proven |= strong && !words;
        self.keep(raw, belongs);
        self.take(body);
    }

    /// A line of a program in the middle of the report: a whole line between whole lines, nothing is lost.
    pub(crate) fn push_foreign(&mut self, raw: &str) {
        self.keep(raw, false);
    }

    fn take(&mut self, body: Body<'_>) {
        let stale = !matches!(body, Body::Weak | Body::Other) && std::mem::take(&mut self.stale);
        match body {
            Body::Frame(_) if stale => {}
            Body::Frame(frame) => {
                self.site(frame.function, frame.module, frame.reliable, false);
            }
            // A jump to nowhere is kept without a name: the pointers that follow are not where it happened.
            Body::Pointer { function, module, kernel: true } => {
                self.site(function.unwrap_or(""), module, true, true);
            }
            Body::Pointer { .. } => {}
            Body::NewStack => self.next_stack(),
            Body::Aside => self.aside_next = true,
            Body::Trace => self.traces += 1,
            Body::Backtrace => {
                self.sites.clear();
                self.backtrace = true;
            }
            Body::History => {
                self.aside_next = true;
                self.next_stack();
                self.history = true;
            }
            Body::Stale => self.stale = true,
            Body::Cpu { cpu, pid, comm } => {
                self.cpu_lines += 1;
                // A CPU shows its own stack without a word before it, also after what was before.
                if self.history || self.sites.last().is_some_and(|s| s.stack == self.stack && s.aside) {
                    self.next_stack();
                }
                if self.comm.is_none() && !self.aside {
                    self.comm = Some((cpu, format!("{comm}:{pid}")));
                }
            }
            Body::Task { comm, pid } => {
                self.next_stack();
                // The thread that waits for the others is shown where it starves; all versions name it so.
                self.aside |= self.header.kind == Kind::RcuStall && comm.starts_with("rcu_");
                if self.comm.is_none() && self.header.task.is_none() && !self.aside {
                    self.header.task = Some(format!("{comm}:{pid}"));
                }
            }
            Body::End => self.ended = true,
            Body::Rule => {
                let framed = matches!(
                    self.header.kind,
                    Kind::Kasan | Kind::Kfence | Kind::Kcsan | Kind::Kmsan | Kind::Ubsan
                );
                self.ended |= framed && self.proven;
            }
            Body::Access { write } => {
                self.access = self.access.or(Some(if write { " Write" } else { " Read" }));
            }
            Body::InFlight { function } => {
                let work = matches!(self.header.kind, Kind::WorkqueueLockup | Kind::LockMisuse);
                if work && self.header.function.is_none() {
                    self.header.function = Some(function.to_string());
                }
            }
            Body::Work { function } if !self.aside && self.work.is_none() => {
                self.work = Some(canonical(function).into_owned());
            }
            Body::Work { .. } | Body::Strong | Body::Weak | Body::Request | Body::Other => {}
        }
    }

    fn next_stack(&mut self) {
        self.stack += 1;
        self.history = false;
        self.aside = std::mem::take(&mut self.aside_next);
    }

    fn site(&mut self, function: &str, module: bool, reliable: bool, pointer: bool) {
        if self.sites.len() < SITE_LIMIT {
            let function = match module {
                true => function.to_string(),
                false => canonical(function).into_owned(),
            };
            self.sites.push(Site {
                function,
                module,
                reliable,
                pointer,
                stack: self.stack,
                aside: self.aside,
            });
        }
    }

    /// Lockdep names the place of the offending lock before any stack, then that of the lock already held: the first that is no helper counts.
    fn lock_lines(&mut self, message: &str) {
        use Kind::*;
        let names = matches!(self.header.kind, Deadlock | LockState | LockMisuse | Preemptible);
        if !names || self.locks_over {
            return;
        }
        let text = message.trim();
        self.locks_over = text.contains("dependency chain") || text.starts_with("other info that");
        let found = if let Some(site) = text.strip_prefix("caller is ").or(self.lock_next.then_some(text)) {
            self.lock_next = false;
            line::frame(site)
        } else {
            match body::lock_site(message) {
                Some(None) => {
                    self.lock_next = true;
                    None
                }
                found => found.flatten(),
            }
        };
        if let Some(frame) = found {
            self.locks_over = frame.module || !is_machinery(frame.function);
            if self.lock.is_none() || self.locks_over {
                self.lock = Some((frame.function.to_string(), frame.module));
            }
        }
    }

    /// Whether the header `other`, which came while this report was open, is a part of this report.
    pub(crate) fn absorbs(&mut self, other: &Header) -> bool {
        use Kind::*;
        let mine = self.header.kind;
        if other.kind == Panic {
            let near = self.proven && self.gap <= TAIL;
            let consequence = oops::is_consequence(other);
            self.panicked |= near || consequence;
            return near || consequence;
        }
        if self.panicked || (mine == Panic && self.proven) {
            return true;
        }
        if mine.is_oops() && (other.die || other.kind.is_oops()) && !self.ended && !self.die_seen {
            self.die_seen = other.die;
            self.panicked |= other.panic;
            return true;
        }
        // KASAN names the slab in SLUB's words on old kernels, and a null pointer is an oops as well.
        if mine == Kasan
            && (other.kind.is_oops() || other.kind == SlabCorruption)
            && self.gap <= 2
            && self.proven
        {
            return true;
        }
        let fresh = self.sites.is_empty() && self.cpu_lines == 0 && self.gap <= 2;
        let messages = [Refcount, ListCorruption, Odebug];
        if fresh && self.header.message && matches!(other.kind, Warning | KernelBug)
            || fresh && mine == other.kind && messages.contains(&mine)
        {
            self.adopt(other, false);
            return true;
        }
        if other.message && messages.contains(&other.kind) && mine == Warning && self.traces == 0 {
            self.adopt(other, true);
            return true;
        }
        if messages.contains(&mine)
            && (other.kind == InvalidOpcode || other.kind == Oops)
            && !self.ended
            && self.sites.is_empty()
        {
            self.die_seen = true;
            return true;
        }
        if mine == HardLockup && other.kind == HardLockup && self.sites.is_empty() && self.traces == 0 {
            self.adopt(other, false);
            return true;
        }
        if mine == RcuStall && other.kind == RcuStall && (other.message || self.sites.is_empty()) {
            return true;
        }
        if mine == MemoryLeak && other.kind == MemoryLeak && self.sites.is_empty() {
            return true;
        }
        if mine == WorkqueueLockup && other.kind == WorkqueueLockup && self.sites.is_empty() {
            return true;
        }
        // A second complaint from within a dump that has an end mark and has not reached it.
        let marked = mine.is_oops() || mine == Warning || messages.contains(&mine);
        marked && self.proven && !self.ended && self.gap <= 2 && !fresh && self.traces == 0
    }

    /// Takes over what the other header of the same report knows.
    fn adopt(&mut self, other: &Header, title: bool) {
        if title {
            self.header.kind = other.kind;
            self.header.stem.clone_from(&other.stem);
        }
        self.header.message = false;
        self.header.cpu = self.header.cpu.or(other.cpu);
        self.header.task = self.header.task.take().or_else(|| other.task.clone());
        self.header.function = self.header.function.take().or_else(|| other.function.clone());
        self.die_seen |= other.die;
    }

    /// Keeps the line of an absorbed header.
    pub(crate) fn push_absorbed(&mut self, raw: &str) {
        self.gap = 0;
        self.keep(raw, true);
    }

    /// Whether the report got all lines that it can get.
    pub(crate) fn is_over(&self) -> bool {
        let limit = match (self.proven || self.ended, self.ended) {
            (_, true) => TAIL,
            (true, false) => GAP,
            (false, false) => PROOF_WINDOW,
        };
        self.gap >= limit
    }

    /// Whether nothing of the stack has come yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.traces == 0 && !self.ended
    }

    /// Whether more than one dump was printed into this report.
    pub(crate) fn holds_two(&self) -> bool {
        self.cpu_lines > 1 || self.traces > 1
    }

    /// Closes the report. `cut` tells that the console ended, or went on elsewhere, before the report was complete.
    pub(crate) fn close(self, cut: bool) -> Verdict {
        let truncated = !self.proven;
        // The text of an old kernel's warning stands between its header and its dump; what kills the machine at once may be cut anywhere.
        let one_between = matches!(self.header.kind, Kind::Warning | Kind::DoubleFault);
        let near = self.gap == 0 || self.gap == 1 && one_between;
        if truncated && !(self.lost || cut && self.header.exact && self.stamped && near) {
            return Verdict::Unproven;
        }
        Verdict::Real(self.into_report(truncated))
    }

    /// Closes the report as real.
    pub(crate) fn into_report(mut self, truncated: bool) -> Report {
        self.text.truncate(self.kept);
        // Lockdep shows no stack where a task that still holds a lock leaves the kernel.
        let leaving = self.header.kind == Kind::LockMisuse && self.header.stem.ends_with("user space");
        let headless = shows_stack(self.header.kind)
            && self.header.proof == Proof::Needed
            && !(leaving || self.ended || self.stack_seen());
        let named = self.header.function.take().or_else(|| {
            let (lock, module) = self.lock.take()?;
            match module || !is_machinery(&lock) {
                true => Some(lock),
                false => {
                    self.header.fallback = Some(lock);
                    None
                }
            }
        });
        if self.header.fallback.is_some() {
            // What the header names beats a frame that the unwinder doubts.
            self.sites.retain(|s| s.reliable);
        }
        let found = || guilty(self.header.search(), &self.sites).map(str::to_string);
        let function = named
            .or_else(found)
            .or_else(|| self.header.fallback.take())
            .or_else(|| self.work.take())
            .or_else(|| self.pointed_at());
        let access = if self.header.kind == Kind::Kasan { self.access.unwrap_or("") } else { "" };
        let mut title = std::mem::take(&mut self.header.stem);
        let panicked = self.panicked || title.starts_with("kernel panic");
        title.push_str(access);
        if let (Some(function), Place::InFunction) = (&function, self.header.place) {
            title.push_str(" in ");
            title.push_str(function);
        }
        let (cpu, task) = self.comm.map_or((None, None), |(cpu, task)| (Some(cpu), Some(task)));
        Report {
            kind: self.header.kind,
            title,
            function,
            task: self.header.task.or(task),
            cpu: self.header.cpu.or(cpu),
            line: self.line,
            corrupted: self.corrupted || self.lost || truncated || headless,
            panicked,
            text: self.text,
        }
    }

    /// Whether any stack came, even without a frame in it.
    fn stack_seen(&self) -> bool {
        self.traces > 0 || self.sites.iter().any(|s| !s.pointer && !s.aside)
    }

    /// Where an oops happened, even if that is mere machinery.
    fn pointed_at(&self) -> Option<String> {
        let first = self.sites.iter().find(|s| s.pointer)?;
        (self.header.kind.is_oops() && !first.function.is_empty()).then(|| first.function.clone())
    }

    /// Bytes of text held.
    pub(crate) fn retained(&self) -> usize {
        let sites: usize = self.sites.iter().map(|s| s.function.capacity()).sum();
        let task = self.comm.as_ref().map_or(0, |(_, task)| task.capacity());
        let header = self.header.stem.capacity() + self.header.task.as_ref().map_or(0, String::capacity);
        let rival = self.rival.as_ref().map_or(0, |rival| rival.retained());
        let list = self.sites.capacity() * size_of::<Site>() + size_of::<Open>();
        self.text.capacity() + sites + task + header + rival + list
    }

    /// The line of its header, or of its rival's.
    pub(crate) fn since(&self) -> u64 {
        self.rival.as_ref().map_or(self.line, |rival| rival.since().min(self.line))
    }

    /// The pid of the task, if it is known.
    pub(crate) fn pid(&self) -> Option<u64> {
        let task = self.header.task.as_ref().or(self.comm.as_ref().map(|(_, task)| task))?;
        task.rsplit_once(':')?.1.parse().ok()
    }

    /// Whether the stack shows a task that is being buried.
    pub(crate) fn is_exiting(&self) -> bool {
        self.sites
            .iter()
            .any(|s| matches!(s.function.as_str(), "do_exit" | "make_task_dead" | "rewind_stack_do_exit"))
    }
}

/// Whether a whole report of `kind` shows the stack of the trouble, on all kernels.
fn shows_stack(kind: Kind) -> bool {
    use Kind::*;
    kind.is_oops()
        || matches!(
            kind,
            Warning
                | HungTask
                | SoftLockup
                | Kasan
                | Kfence
                | Kmsan
                | Kcsan
                | Ubsan
                | Deadlock
                | LockState
                | SuspiciousRcu
                | SchedulingWhileAtomic
                | SleepInAtomic
                | Preemptible
                | Refcount
                | ListCorruption
                | Odebug
                | BadPage
                | Spinlock
                | LockMisuse
        )
}
