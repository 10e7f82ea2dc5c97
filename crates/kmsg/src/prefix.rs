//! What stands before a message: priority, time stamp, caller, syslog head. Works on bytes, for every line.

use crate::heads::{self, Tail};
use crate::scan::digits;
use std::borrow::Cow;

/// The task or CPU that printed a line (`[ T12]`, `[ C0]`), where the kernel says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller(u64);

/// Who wrote the line, as far as its prefix tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A prefix that only kernel messages get.
    Kernel,
    /// No prefix: the kernel without time stamps, or anybody.
    Unknown,
    /// A kernel prefix in the middle of a line: the kernel after unfinished output of a program, or a citation.
    MidLine,
    /// A syslog head or facility that names somebody else.
    User,
}

/// A line taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// Where the message starts in the line, in bytes.
    pub(crate) start: usize,
    pub(crate) origin: Origin,
    pub(crate) caller: Option<Caller>,
    /// The kernel's own time in microseconds, where the prefix has it with that precision.
    pub(crate) stamp: Option<u64>,
    /// A logger's head says that the kernel wrote it: `host kernel: `.
    pub(crate) tagged: bool,
}

/// Drops ANSI escape sequences and other control characters but tab; blanks that do not break become blanks.
pub(crate) fn clean(line: &[u8]) -> Cow<'_, [u8]> {
    if is_plain(line) {
        return Cow::Borrowed(line);
    }
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        match b {
            0x1b => rest = escape(rest),
            // U+00A0 and U+202F, which web pages and office programs put in place of blanks.
            0xc2 if rest.first() == Some(&0xa0) => {
                out.push(b' ');
                rest = &rest[1..];
            }
            0xe2 if rest.starts_with(&[0x80, 0xaf]) => {
                out.push(b' ');
                rest = &rest[2..];
            }
            b'\t' => out.push(b),
            0..0x20 | 0x7f => {}
            _ => out.push(b),
        }
    }
    Cow::Owned(out)
}

/// Whether [`clean`] has nothing to do.
pub(crate) fn is_plain(line: &[u8]) -> bool {
    let odd = |b: u8| (b < 0x20) & (b != b'\t') | (b == 0x7f) | (b == 0xc2) | (b == 0xe2);
    !line.iter().fold(false, |bad, &b| bad | odd(b))
}

/// What [`split`] says of a line with nothing but `[   12.345678] ` before its message, in the kernel's width, and nothing for
/// [`clean`] to do: nearly all lines of nearly all consoles, at a fraction of the cost. `None` if it needs a closer look.
pub(crate) fn usual(line: &[u8]) -> Option<Prefix> {
    let (head, message) = line.split_at_checked(15)?;
    let stamp = head[0] == b'[' && head[6] == b'.' && head[13..] == *b"] ";
    let digits = head[5].is_ascii_digit() && head[7..13].iter().all(u8::is_ascii_digit);
    let padding = head[1..5].iter().take_while(|b| **b == b' ').count();
    let padded = head[1 + padding..5].iter().all(u8::is_ascii_digit);
    if !stamp || !digits || !padded {
        return None;
    }
    // More prefix may follow; none begins with a blank.
    let more = || {
        let first = message.first().is_none_or(|b| !b.is_ascii_alphabetic());
        first
            || heads::tagged(message) != Tail::None
            || heads::time(message).is_some()
            || named(message).is_some()
    };
    if message.first() != Some(&b' ') && more() || !is_plain(line) {
        return None;
    }
    let stamp = Some(heads::number(&head[1..13]));
    Some(Prefix { start: 15, origin: Origin::Kernel, caller: None, stamp, tagged: false })
}

/// What follows an escape sequence whose first byte is gone.
fn escape(rest: &[u8]) -> &[u8] {
    let Some(sequence) = rest.strip_prefix(b"[") else { return rest.get(1..).unwrap_or(&[]) };
    let end = sequence.iter().position(|b| (0x40..=0x7e).contains(b));
    end.map_or(&[], |end| &sequence[end + 1..])
}

/// Takes `line` apart.
pub(crate) fn split(line: &[u8]) -> Prefix {
    let whole = At::new(line, 0).run();
    if whole.origin != Origin::Unknown {
        return whole.prefix();
    }
    // A log that was quoted or indented when it was pasted.
    if let Some(b' ' | b'\t' | b'>' | b'|') = line.first() {
        let quote = line.iter().take(40).take_while(|b| matches!(b, b' ' | b'\t' | b'>' | b'|')).count();
        let inner = At::new(line, quote).run();
        if inner.origin == Origin::User || inner.timed {
            return inner.prefix();
        }
    }
    second(line, 0).unwrap_or_else(|| whole.prefix())
}

/// The message that starts behind a time stamp in the middle of `line`, past `from`: the kernel does not end some lines before another
/// message starts.
pub(crate) fn second(line: &[u8], from: usize) -> Option<Prefix> {
    let start = from + mid_line(&line[from..])?;
    Some(Prefix { origin: Origin::MidLine, ..At::new(line, start).run().prefix() })
}

#[derive(Clone, Copy)]
struct At<'a> {
    line: &'a [u8],
    pos: usize,
    origin: Origin,
    caller: Option<Caller>,
    stamp: Option<u64>,
    tagged: bool,
    /// More than a priority or caller was there.
    timed: bool,
}

impl<'a> At<'a> {
    fn new(line: &'a [u8], pos: usize) -> Self {
        At { line, pos, origin: Origin::Unknown, caller: None, stamp: None, tagged: false, timed: false }
    }

    fn prefix(self) -> Prefix {
        let At { pos, origin, caller, stamp, tagged, .. } = self;
        Prefix { start: pos, origin, caller, stamp, tagged }
    }

    /// Takes all pieces. Each form comes at most once or twice: a bound, since a hostile line could repeat them without end.
    fn run(mut self) -> Self {
        for _ in 0..8 {
            if !self.step() {
                break;
            }
        }
        self
    }

    fn rest(&self) -> &'a [u8] {
        &self.line[self.pos..]
    }

    /// Takes one piece of prefix; false if none stands here.
    fn step(&mut self) -> bool {
        let rest = self.rest();
        let Some(&first) = rest.first() else { return false };
        match first {
            b'[' => return self.bracket(),
            b'<' => match priority(rest) {
                Some((len, facility)) => self.take(len, facility_origin(facility)),
                None => return false,
            },
            b'0'..=b'9' => {
                if let Some(record) = record(rest) {
                    self.caller = record.caller.or(self.caller);
                    self.stamp = self.stamp.or(Some(record.stamp));
                    self.timed = true;
                    self.take(record.len, facility_origin(record.facility));
                } else {
                    return self.time();
                }
            }
            b'A'..=b'Z' | b'a'..=b'z' | 0x80.. => match named(rest) {
                Some((len, kernel)) => {
                    self.timed = true;
                    self.tagged |= kernel;
                    self.take(len, if kernel { Origin::Kernel } else { Origin::User });
                }
                None => return self.time(),
            },
            _ => return false,
        }
        true
    }

    fn take(&mut self, len: usize, origin: Origin) {
        self.pos += len;
        if self.origin != Origin::User {
            self.origin = origin;
        }
    }

    /// A time without brackets, as loggers write it; what follows says whose line it is.
    fn time(&mut self) -> bool {
        let rest = self.rest();
        // Only a priority may stand before it.
        let version = if self.pos > 0 && rest.starts_with(b"1 ") { 2 } else { 0 };
        let Some(time) = heads::time(&rest[version..]) else { return false };
        self.timed = true;
        match heads::tail(&rest[version..], &time) {
            Tail::Stamp(len) => self.pos += version + len,
            Tail::Kernel(len) => {
                self.tagged |= !time.dmesg;
                self.take(version + len, Origin::Kernel);
            }
            Tail::User(len) => self.take(version + len, Origin::User),
            Tail::None => {
                self.timed = false;
                return false;
            }
        }
        true
    }

    /// `[   12.345678]`, `[  T12]`, `[Mon Nov  2 10:00:00 2020]`, `[2020-11-02 10:00:00]` and the like.
    fn bracket(&mut self) -> bool {
        let rest = self.rest();
        let window = &rest[..rest.len().min(72)];
        let Some(end) = memchr::memchr(b']', window) else { return false };
        let inner = rest[1..end].trim_ascii();
        let mut len = end + 1 + usize::from(rest.get(end + 1) == Some(&b' '));
        if let Some(stamp) = heads::stamp(inner) {
            self.stamp = self.stamp.or(stamp.micros);
        } else if let Some(number) = caller(inner) {
            self.caller = Some(number);
            self.take(len, Origin::Kernel);
            return true;
        } else if heads::is_clock(inner) {
            // A terminal program's: what follows must be the kernel's own stamp.
            let Tail::Stamp(blanks) = heads::own(&rest[len..]) else { return false };
            self.pos += len + blanks;
            return true;
        } else if !heads::is_wall_time(inner) {
            return false;
        }
        let tagged = match if self.timed { Tail::None } else { heads::tagged(&rest[len..]) } {
            Tail::Kernel(head) => {
                len += head;
                true
            }
            Tail::User(head) => {
                self.timed = true;
                self.take(len + head, Origin::User);
                return true;
            }
            Tail::Stamp(_) | Tail::None => false,
        };
        self.timed = true;
        self.tagged |= tagged;
        self.take(len, Origin::Kernel);
        true
    }
}

fn facility_origin(facility: u32) -> Origin {
    if facility == 0 { Origin::Kernel } else { Origin::User }
}

/// `T123` or `C0`.
pub(crate) fn caller(inner: &[u8]) -> Option<Caller> {
    let kind = match inner.first()? {
        b'T' => 0,
        b'C' => 1 << 40,
        _ => return None,
    };
    let number = &inner[1..];
    if number.is_empty() || number.len() > 10 || digits(number) != number.len() {
        return None;
    }
    let value = number.iter().fold(0u64, |n, b| n * 10 + u64::from(b - b'0'));
    Some(Caller(kind | value))
}

/// `<4>`: length and facility.
fn priority(rest: &[u8]) -> Option<(usize, u32)> {
    let len = digits(&rest[1..]);
    if len == 0 || len > 3 || rest.get(1 + len) != Some(&b'>') {
        return None;
    }
    let value = rest[1..=len].iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
    Some((len + 2, value >> 3))
}

/// The head of a line of `/dev/kmsg` or of netconsole.
struct Record {
    len: usize,
    facility: u32,
    /// Microseconds.
    stamp: u64,
    caller: Option<Caller>,
}

/// `6,123,456789,-;` or `6,123,456789,-,caller=T12;`, with the release before it where netconsole is set so.
fn record(rest: &[u8]) -> Option<Record> {
    let window = &rest[..rest.len().min(120)];
    if !window[..window.len().min(65)].contains(&b',') {
        return None;
    }
    let end = memchr::memchr(b';', window)?;
    let mut fields = window[..end].split(|&b| b == b',');
    let mut first = fields.next()?;
    if first.contains(&b'.') {
        first = fields.next()?;
    }
    if first.is_empty() || first.len() > 3 || digits(first) != first.len() {
        return None;
    }
    let mut stamp = 0;
    for _ in 0..2 {
        let number = fields.next().filter(|f| !f.is_empty() && digits(f) == f.len())?;
        stamp = heads::number(number);
    }
    fields.next().filter(|f| f.len() == 1)?;
    let caller = fields.find_map(|f| caller(f.strip_prefix(b"caller=")?));
    let facility = first.iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0')) >> 3;
    Some(Record { len: end + 1, facility, stamp, caller })
}

/// `kern  :warn  : ` (dmesg -x) or `kernel: `: length, and whether it is the kernel's.
fn named(rest: &[u8]) -> Option<(usize, bool)> {
    if !matches!(rest[0], b'k' | b'u' | b'd' | b'a' | b'l' | b'm' | b's' | b'f') {
        return None;
    }
    if let Some(tail) = rest.strip_prefix(b"kernel:") {
        return Some((7 + usize::from(tail.first() == Some(&b' ')), true));
    }
    const FACILITIES: [&[u8]; 10] =
        [b"kern", b"user", b"mail", b"daemon", b"auth", b"syslog", b"lpr", b"authpriv", b"local", b"ftp"];
    let name = rest.iter().take(8).take_while(|b| b.is_ascii_alphanumeric()).count();
    let padded = name + rest[name..].iter().take(6).take_while(|&&b| b == b' ').count();
    if rest.get(padded) != Some(&b':') || padded < 6 {
        return None;
    }
    let word = &rest[..name];
    if !FACILITIES.iter().any(|f| word == *f || (*f == b"local" && word.starts_with(f))) {
        return None;
    }
    let level = rest[padded + 1..].iter().take(6).take_while(|b| b.is_ascii_alphabetic()).count();
    let level_end = padded + 1 + level;
    let gap = rest[level_end..].iter().take(6).take_while(|&&b| b == b' ').count();
    if level == 0 || rest.get(level_end + gap) != Some(&b':') {
        return None;
    }
    let end = level_end + gap + 1;
    Some((end + usize::from(rest.get(end) == Some(&b' ')), word == b"kern"))
}

/// The start of a `[   12.345678] ` in the middle of the line.
fn mid_line(line: &[u8]) -> Option<usize> {
    let line = &line[..line.len().min(424)];
    let mut start = 0;
    for at in memchr::memchr2_iter(b'[', b']', line) {
        if line[at] == b'[' {
            start = at;
        } else if start > 0
            && start < 400
            && at < start + 24
            && heads::is_seconds(line[start + 1..at].trim_ascii())
        {
            return Some(start);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> (&str, Origin) {
        let p = split(line.as_bytes());
        (&line[p.start..], p.origin)
    }

    #[test]
    fn kernel_forms() {
        for head in [
            "[    1.234567] ",
            "[12345.234567][ T123] ",
            "[    1.234567][    C0] ",
            "[  T123] ",
            "<4>",
            "<4>[    1.234567] ",
            "Nov  2 10:00:00 host kernel: [    1.234567] ",
            "Nov 02 10:00:00 host kernel: ",
            "2020-11-02T10:00:00.123456+00:00 host kernel: [    1.234567] ",
            "2020-11-02T10:00:00,123456+00:00 ",
            "[Mon Nov  2 10:00:00 2020] ",
            "6,123,456789,-;",
            "6,123,456789,-,caller=T12;",
            "kern  :warn  : [    1.234567] ",
            "kern  :warn  : ",
            "kernel:[    1.234567] ",
        ] {
            for text in ["WARNING: CPU: 0 PID: 1 at x", " do_it+0x1/0x2", "divide error: 0000 [#1] SMP"] {
                let line = format!("{head}{text}");
                assert_eq!(message(&line), (text, Origin::Kernel), "{line}");
            }
        }
    }

    #[test]
    fn the_quick_look_agrees_with_the_thorough_one() {
        let messages = [
            "WARNING: CPU: 0 PID: 1 at x",
            " do_it+0x1/0x2",
            "host kernel: BUG: x",
            "kernel: x",
            "[   T12] x",
            "[  1.000000] x",
            "<4>x",
            "host demo[12]: x",
            "host kern.err kernel: x",
            "Nov  2 10:00:00 host kernel: x",
            "4,1,2,-;x",
            "kern  :warn  : x",
            "",
            " ",
            "x",
            "daemon:info  : x",
            " host kernel: x",
            "2020-11-02T10:00:00,123456+00:00 x",
            "[ INFO: x",
            "RIP: 0010:x+0x1/0x2",
            "x\u{a0}y",
        ];
        let mut quick = 0;
        for stamp in [
            "[    1.234567] ",
            "[12345.234567] ",
            "[1 345.234567] ",
            "[   1a.234567] ",
            "[    1.23456a] ",
            "[     .234567] ",
        ] {
            for message in messages {
                let line = format!("{stamp}{message}");
                if let Some(prefix) = usual(line.as_bytes()) {
                    quick += 1;
                    assert_eq!(prefix, split(line.as_bytes()), "{line}");
                }
            }
        }
        assert!(quick >= 10, "only {quick}");
    }

    #[test]
    fn others() {
        assert_eq!(message("BUG: x").1, Origin::Unknown);
        assert_eq!(message("[  OK  ] Started x").1, Origin::Unknown);
        assert_eq!(message("Nov  2 10:00:00 host app[12]: BUG: x").1, Origin::User);
        assert_eq!(message("2020-11-02T10:00:00+00:00 host app: BUG: x").1, Origin::User);
        assert_eq!(message("<30>[    1.234567] systemd[1]: x").1, Origin::User);
        assert_eq!(message("daemon:info  : [    1.234567] systemd[1]: x").1, Origin::User);
        assert_eq!(message("root@vm:~# [    1.234567] BUG: x"), ("BUG: x", Origin::MidLine));
    }

    #[test]
    fn callers_differ() {
        let caller = |line: &str| split(line.as_bytes()).caller;
        assert_eq!(caller("[    1.234567][    T7] x"), caller("6,1,2,-,caller=T7;x"));
        assert_ne!(caller("[    1.234567][    T7] x"), caller("[    1.234567][    C7] x"));
        assert_eq!(caller("[    1.234567] x"), None);
    }

    #[test]
    fn escapes_go() {
        assert_eq!(clean(b"\x1b[1;31mBUG\x1b[0m: a\tb\x07").as_ref(), b"BUG: a\tb");
        assert!(matches!(clean(b"plain text"), Cow::Borrowed(_)));
    }
}
