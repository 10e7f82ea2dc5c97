//! The streaming classifier: which line belongs to which report.

use crate::body;
use crate::candidate::is_candidate;
use crate::echo::Echoes;
use crate::first_line;
use crate::header::{Header, Proof};
use crate::line::Body;
use crate::notice::{self, Notice};
use crate::open::{Open, Verdict};
use crate::prefix::{self, Caller, Origin, Prefix};
use crate::records::{Record, Records};
use crate::{Kind, Report, Signal, logcat, skim};
use memchr::memchr2;
use std::borrow::Cow;

/// The most of a line that is looked at, in bytes; the kernel's own limit is about 1 KiB.
const LINE_LIMIT: usize = 8 << 10;
/// The most reports open at once; with caller information one per task and CPU that prints.
const OPEN_LIMIT: usize = 8;
/// From this many time-stamped lines on, a line without a stamp is not the kernel's.
const STAMPED_ENOUGH: u32 = 8;
/// For how many messages a dead task is remembered.
const GRIEF: u64 = 300;

/// Reads the console of one machine, in chunks of any size, and tells what the kernel reported.
///
/// Signals come when they are complete: a report ends with its end mark, with the next report, or when enough other
/// lines went by. [`Classifier::flush`] ends what is open when the console went quiet; [`Classifier::finish`] when it
/// ended.
#[derive(Debug, Default)]
pub struct Classifier {
    partial: Vec<u8>,
    /// The line is longer than what is kept of it.
    overlong: bool,
    /// Line feeds and carriage returns so far.
    feeds: u64,
    returns: u64,
    /// Something stood in this line before a carriage return.
    begun: bool,
    records: Records,
    echoes: Echoes,
    stamped: u32,
    open: Vec<Open>,
    patch: String,
    /// A header that a line break in the name of a task cut in two, as far as it came.
    half: Option<String>,
    /// Messages so far: records have more lines than messages.
    messages: u64,
    /// The last oops: pid and message.
    dead: Option<(u64, u64)>,
    out: Vec<Signal>,
}

/// The signals of a whole log.
pub fn triage(text: &[u8]) -> Vec<Signal> {
    let mut classifier = Classifier::new();
    let mut signals = classifier.push(text);
    signals.extend(classifier.finish());
    signals
}

impl Classifier {
    /// A classifier at the start of a console.
    pub fn new() -> Self {
        Classifier::default()
    }

    /// Takes the next bytes of the console.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Signal> {
        while let Some(end) = memchr2(b'\n', b'\r', bytes) {
            let feed = bytes[end] == b'\n';
            self.end_line(&bytes[..end], feed);
            bytes = &bytes[end + 1..];
        }
        self.extend_partial(bytes);
        std::mem::take(&mut self.out)
    }

    /// Number of the present line, from 1. Text without a line feed is counted by its carriage returns.
    fn line(&self) -> u64 {
        1 + if self.feeds == 0 { self.returns } else { self.feeds }
    }

    /// The line ends with `bytes`: at a line feed, or at a carriage return, which may stand before one.
    fn end_line(&mut self, bytes: &[u8], feed: bool) {
        let empty = bytes.is_empty() && self.partial.is_empty();
        let nothing = if feed {
            // Within a report or record, an empty line counts.
            empty && (self.begun || self.open.is_empty() && !self.records.is_inside())
        } else {
            empty
        };
        if !nothing {
            let number = self.line();
            if self.partial.is_empty() {
                self.overlong = bytes.len() > LINE_LIMIT;
                self.process(&bytes[..bytes.len().min(LINE_LIMIT)], number);
            } else {
                self.extend_partial(bytes);
                let line = std::mem::take(&mut self.partial);
                self.process(&line, number);
                self.partial = line;
                self.partial.clear();
            }
            self.overlong = false;
        }
        self.begun = !feed && (self.begun || !empty);
        *if feed { &mut self.feeds } else { &mut self.returns } += 1;
    }

    /// The console went quiet, or we stop listening to a machine that still lives: gives the reports that are open and
    /// proven. A bare header still waits for its proof: the kernel would have followed up at once, and a module can
    /// print any line. An unfinished line waits for its end. More bytes may be pushed afterwards.
    pub fn flush(&mut self) -> Vec<Signal> {
        let open = std::mem::take(&mut self.open);
        for report in open {
            if report.proven || report.lost { self.close(report, true) } else { self.open.push(report) }
        }
        std::mem::take(&mut self.out)
    }

    /// The machine died, or a recorded log ends: as [`Classifier::flush`], and a header at the very end is believed
    /// without proof, as a corrupted report, if it has exactly the kernel's format.
    pub fn finish(&mut self) -> Vec<Signal> {
        let line = std::mem::take(&mut self.partial);
        if !line.is_empty() {
            self.process(&line, self.line());
        }
        if let Some(record) = self.records.finish() {
            self.record(&record);
        }
        self.close_all(true);
        std::mem::take(&mut self.out)
    }

    /// Whether a report may not be complete yet. A line without an end is none: a login prompt has none for ever.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The line of the first report that is not complete yet: no report of an earlier line will come.
    pub fn open_since(&self) -> Option<u64> {
        self.open.iter().map(Open::since).min()
    }

    /// Bytes that are held for lines and reports not yet complete. Bounded whatever comes: at most 8 MiB, and
    /// mostly some KiB.
    pub fn retained(&self) -> usize {
        self.partial.capacity()
            + self.records.retained()
            + self.open.iter().map(Open::retained).sum::<usize>()
    }

    fn extend_partial(&mut self, bytes: &[u8]) {
        let room = LINE_LIMIT.saturating_sub(self.partial.len());
        self.overlong |= bytes.len() > room;
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn process(&mut self, raw: &[u8], number: u64) {
        // What follows of the line is read only as far as it matters: nothing is open, and this line opens nothing.
        let idle = self.open.is_empty() && self.half.is_none() && self.stamped >= STAMPED_ENOUGH;
        if idle && !self.records.is_inside() && skim::is_boring(raw) {
            self.messages += 1;
            return;
        }
        let line = raw.trim_ascii_end();
        if !self.records.is_inside()
            && let Some(prefix) = prefix::usual(line)
        {
            return self.console_line(line, prefix, number);
        }
        let cleaned = prefix::clean(line);
        let mut line = cleaned.as_ref();
        // What netconsole and /dev/kmsg tell of the device.
        if line.starts_with(b" SUBSYSTEM=") || line.starts_with(b" DEVICE=") {
            return;
        }
        if self.records.wants(line) {
            let taken = self.records.take(line, raw, number);
            if let Some(record) = self.records.ready() {
                self.record(&record);
            }
            if taken {
                return;
            }
        }
        if line.starts_with(b"** ")
            && let Some((count, rest)) = notice::lost(line)
        {
            self.lose(number, count);
            line = &line[rest..];
        }
        match logcat::kernel_line(line) {
            Some(line) => self.console_line(&line, prefix::split(&line), number),
            None => self.console_line(line, prefix::split(line), number),
        }
    }

    /// Takes the message of a record.
    fn record(&mut self, record: &Record) {
        let foreign = record.origin() == Origin::User;
        for line in record.message.split(|b| *b == b'\n') {
            let line = prefix::clean(line.trim_ascii_end());
            let mut prefix = prefix::split(&line);
            if foreign || prefix.origin != Origin::Kernel {
                let (origin, caller, stamp) = (record.origin(), record.caller, record.stamp);
                prefix = Prefix { start: 0, origin, caller, stamp, tagged: true };
            }
            self.console_line(&line, prefix, record.line);
        }
    }

    fn console_line(&mut self, line: &[u8], mut prefix: Prefix, number: u64) {
        self.messages += 1;
        if prefix.origin == Origin::Kernel {
            self.stamped = self.stamped.saturating_add(1);
        }
        if prefix.origin == Origin::Kernel
            && !is_candidate(&line[prefix.start..])
            && let Some(second) = prefix::second(line, prefix.start)
            && is_candidate(&line[second.start..])
        {
            prefix = Prefix { caller: second.caller.or(prefix.caller), ..second };
        }
        if prefix.origin == Origin::MidLine && !is_candidate(&line[prefix.start..]) && is_candidate(line) {
            prefix = Prefix { start: 0, origin: Origin::Unknown, ..prefix };
        }
        // A few kernels indent whole reports.
        if self.open.is_empty()
            && prefix.origin == Origin::Kernel
            && line[prefix.start..].strip_prefix(b" ").is_some_and(is_candidate)
        {
            prefix.start += 1;
        }
        let rest = &line[prefix.start..];
        let joined = self.half.take().map(|half| format!("{half} {}", String::from_utf8_lossy(rest)));
        let candidate = is_candidate(rest) || joined.is_some();
        if self.open.is_empty() && !candidate {
            return;
        }
        // Two boots begin with the same line at the same time: only a logger's is surely an echo.
        let boot = !prefix.tagged && rest.starts_with(b"Linux version ");
        if prefix.origin != Origin::User && !boot && self.echoes.is_echo(line, &prefix, number) {
            return;
        }
        let raw = String::from_utf8_lossy(line);
        // Broken UTF-8 changes the length of what stands before the message, if it stands there.
        let message = match line[..prefix.start].is_ascii() {
            true => Cow::Borrowed(&raw[prefix.start..]),
            false => String::from_utf8_lossy(rest),
        };
        if let Some(joined) = joined.filter(|joined| first_line::parse(joined).is_some()) {
            return self.message(&joined, &raw, prefix, true, number);
        }
        if first_line::is_half(&message) {
            self.half = Some(message.clone().into_owned());
        }
        if self.overlong {
            self.message(&message, &format!("{raw} [truncated]"), prefix, candidate, number);
        } else {
            self.message(&message, &raw, prefix, candidate, number);
        }
    }

    /// `candidate` says whether the message can be a header or notice at all.
    fn message(&mut self, message: &str, raw: &str, prefix: Prefix, candidate: bool, number: u64) {
        if prefix.origin == Origin::User || self.is_stray(prefix.origin) {
            if let Some(count) = message.contains("Missed ").then(|| notice::journal_lost(message)).flatten()
            {
                self.lose(number, Some(count));
            }
            // In a syslog, lines of programs stand between the kernel's and split nothing. On a console, a line without
            // stamp splits the report, unless it is the rest of a message of several lines.
            if prefix.origin == Origin::Unknown {
                self.belong(message, raw, prefix);
            }
            return;
        }
        if !candidate {
            self.belong(message, raw, prefix);
        } else if let Some(notice) = notice::parse(message) {
            self.notice(notice, message, raw, number);
        } else if let Some(header) = first_line::parse(message) {
            self.header(header, raw, prefix, number);
        } else if let Some(header) = self.headless(message, prefix.origin) {
            self.header(header, raw, prefix, number);
            self.open.iter_mut().for_each(|open| open.corrupted = true);
        } else {
            self.belong(message, raw, prefix);
        }
    }

    /// A report of which the start was lost, by a line that nothing else has.
    fn headless(&self, message: &str, origin: Origin) -> Option<Header> {
        (self.open.is_empty() && origin == Origin::Kernel).then(|| first_line::orphan(message)).flatten()
    }

    /// A line without stamp where the kernel's lines have one.
    fn is_stray(&self, origin: Origin) -> bool {
        origin == Origin::Unknown && self.stamped >= STAMPED_ENOUGH
    }

    fn notice(&mut self, notice: Notice, message: &str, raw: &str, line: u64) {
        match notice {
            Notice::Boot { release } => {
                self.close_all(true);
                self.dead = None;
                self.out.push(Signal::Boot { line, release });
            }
            Notice::Livepatch { patch, state } => {
                if let Some(patch) = patch {
                    self.patch = patch;
                }
                self.out.push(Signal::Livepatch { line, patch: self.patch.clone(), state });
            }
            Notice::LivepatchFailure(header) => self.single(header, raw, line),
            Notice::Blind { kind } => {
                self.out.push(Signal::Blind { line, kind, reason: message.trim().to_string() });
            }
        }
    }

    /// A report of one line.
    fn single(&mut self, header: Header, raw: &str, line: u64) {
        let report = Open::new(header, line, raw, None, true).into_report(false);
        self.out.push(Signal::Report(report));
    }

    fn header(&mut self, header: Header, raw: &str, prefix: Prefix, number: u64) {
        if header.proof == Proof::Given && prefix.origin != Origin::MidLine {
            return self.single(header, raw, number);
        }
        let position = self.position(prefix.caller);
        let mut next = Open::new(header, number, raw, prefix.caller, prefix.origin == Origin::Kernel);
        next.header.exact &= prefix.origin != Origin::MidLine;
        if let Some(position) = position {
            if self.open[position].absorbs(&next.header) {
                self.open[position].push_absorbed(raw);
                return;
            }
            let mut last = self.open.remove(position);
            if !last.proven && last.gap == 0 && last.header.exact && last.rival.is_none() {
                last.corrupted = true;
                next.rival = Some(Box::new(last));
            } else {
                let mixed = last.proven
                    && last.is_fresh()
                    && prefix.caller.is_none()
                    && !is_textual(last.header.kind);
                last.corrupted |= mixed;
                next.corrupted |= mixed;
                self.close(last, false);
            }
        }
        if self.open.len() >= OPEN_LIMIT {
            let oldest = self.open.remove(0);
            self.close(oldest, false);
        }
        self.open.push(next);
    }

    /// Gives a line to the report that it belongs to.
    fn belong(&mut self, message: &str, raw: &str, prefix: Prefix) {
        if self.open.is_empty() {
            return;
        }
        let body = body::parse(message);
        let strong = !matches!(body, Body::Other | Body::Weak);
        let Some(position) = self.owner(prefix.caller, strong) else { return };
        let open = &mut self.open[position];
        let unstamped = prefix.origin == Origin::Unknown;
        let stray = open.stamped && !strong && !message.trim().is_empty();
        if unstamped && (stray || is_program(message)) {
            open.push_foreign(raw);
            return;
        }
        // systemd writes to the kernel's log: such lines count for nothing.
        if is_program(message) {
            return;
        }
        open.push(body, message, raw);
        if open.is_over() || body == Body::Request {
            let report = self.open.remove(position);
            self.close(report, false);
        }
    }

    /// Where the open report is that a header or line of `caller` meets.
    fn position(&self, caller: Option<Caller>) -> Option<usize> {
        self.open.iter().rposition(|o| o.caller == caller)
    }

    /// The open report that a line of `caller` belongs to. Other CPUs print their stacks into a stall's report.
    fn owner(&self, caller: Option<Caller>, strong: bool) -> Option<usize> {
        let lockup = |o: &Open| matches!(o.header.kind, Kind::RcuStall | Kind::SoftLockup | Kind::HardLockup);
        self.position(caller)
            .or_else(|| strong.then(|| self.open.iter().rposition(lockup)).flatten())
            .or_else(|| caller.is_none().then(|| self.open.len().checked_sub(1)).flatten())
    }

    fn lose(&mut self, line: u64, count: Option<u64>) {
        for open in &mut self.open {
            open.lost = true;
        }
        self.out.push(Signal::Lost { line, count });
    }

    fn close_all(&mut self, cut: bool) {
        for report in std::mem::take(&mut self.open) {
            self.close(report, cut);
        }
    }

    fn close(&mut self, mut report: Open, cut: bool) {
        if let Some(mut rival) = report.rival.take() {
            let both = report.holds_two();
            rival.lost |= both;
            report.corrupted |= both;
            self.close(*rival, cut && !report.proven);
        }
        if self.is_aftermath(&report) {
            return;
        }
        let pid = report.pid();
        if let Verdict::Real(report) = report.close(cut) {
            self.mourn(&report, pid);
            self.out.push(Signal::Report(report));
        }
    }

    /// Remembers the task that an oops killed.
    fn mourn(&mut self, report: &Report, pid: Option<u64>) {
        if report.kind.is_oops() || report.kind == Kind::ListCorruption {
            self.dead = pid.map(|pid| (pid, self.messages));
        }
    }

    /// A dying task complains while it is being buried: the oops said it all.
    fn is_aftermath(&self, report: &Open) -> bool {
        let late =
            matches!(report.header.kind, Kind::Warning | Kind::SleepInAtomic | Kind::SchedulingWhileAtomic)
                || report.header.kind.is_oops();
        let dead =
            self.dead.is_some_and(|(pid, then)| Some(pid) == report.pid() && self.messages < then + GRIEF);
        late && dead && report.is_exiting()
    }
}

/// Kinds whose header is followed by much text before any stack.
fn is_textual(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::WorkqueueLockup
            | Kind::RcuStall
            | Kind::SlabCorruption
            | Kind::BadPage
            | Kind::MemoryLeak
            | Kind::Panic
            | Kind::Deadlock
            | Kind::LockState
            | Kind::LockMisuse
            | Kind::SuspiciousRcu
    )
}

/// `name[12]: text`: a program that writes to the console or to the kernel's log.
fn is_program(message: &str) -> bool {
    let Some((name, rest)) = message.split_once('[') else { return false };
    let short = !name.is_empty() && name.len() < 32 && !name.contains(' ');
    short && rest.split_once("]: ").is_some_and(|(pid, _)| pid.parse::<u32>().is_ok())
}
