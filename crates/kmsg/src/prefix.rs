//! What stands before a message: priority, time stamp, caller, syslog head. Works on bytes, for every line.

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
}

/// Drops ANSI escape sequences and other control characters but tab.
pub(crate) fn clean(line: &[u8]) -> Cow<'_, [u8]> {
    if is_plain(line) {
        return Cow::Borrowed(line);
    }
    let mut out = Vec::with_capacity(line.len());
    let mut bytes = line.iter().copied().peekable();
    while let Some(b) = bytes.next() {
        if b == 0x1b {
            if bytes.next_if_eq(&b'[').is_some() {
                while bytes.next_if(|b| !(0x40..=0x7e).contains(b)).is_some() {}
                bytes.next();
            } else {
                bytes.next();
            }
        } else if (b >= 0x20 || b == b'\t') && b != 0x7f {
            out.push(b);
        }
    }
    Cow::Owned(out)
}

/// Whether [`clean`] has nothing to do.
pub(crate) fn is_plain(line: &[u8]) -> bool {
    let odd = |b: u8| (b < 0x20) & (b != b'\t') | (b == 0x7f);
    !line.iter().fold(false, |bad, &b| bad | odd(b))
}

/// Takes `line` apart.
pub(crate) fn split(line: &[u8]) -> Prefix {
    let mut at = At { line, pos: 0, origin: Origin::Unknown, caller: None };
    // Each form at most once or twice: a bound, since a hostile line could repeat them without end.
    for _ in 0..6 {
        if !at.step() {
            break;
        }
    }
    if at.origin == Origin::Unknown
        && let Some(inner) = second(line, 0)
    {
        return inner;
    }
    Prefix { start: at.pos, origin: at.origin, caller: at.caller }
}

/// The message that starts behind a time stamp in the middle of `line`, past `from`: the kernel does not end some lines before another
/// message starts.
pub(crate) fn second(line: &[u8], from: usize) -> Option<Prefix> {
    let pos = from + mid_line(&line[from..])?;
    let mut inner = At { line, pos, origin: Origin::Unknown, caller: None };
    while inner.step() {}
    Some(Prefix { start: inner.pos, origin: Origin::MidLine, caller: inner.caller })
}

struct At<'a> {
    line: &'a [u8],
    pos: usize,
    origin: Origin,
    caller: Option<Caller>,
}

impl<'a> At<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.line[self.pos..]
    }

    /// Takes one piece of prefix; false if none stands here.
    fn step(&mut self) -> bool {
        let rest = self.rest();
        let Some(&first) = rest.first() else { return false };
        let (len, origin) = match first {
            b'[' => return self.bracket(),
            b'<' => match priority(rest) {
                Some((len, facility)) => (len, if facility == 0 { Origin::Kernel } else { Origin::User }),
                None => return false,
            },
            b'0'..=b'9' => match record(rest) {
                Some((len, facility, caller)) => {
                    self.caller = caller.or(self.caller);
                    (len, if facility == 0 { Origin::Kernel } else { Origin::User })
                }
                None => match iso_time(rest) {
                    Some((len, true)) => (len, Origin::Kernel),
                    Some((len, false)) => syslog(rest, len),
                    None => return false,
                },
            },
            b'A'..=b'S' => match syslog_time(rest) {
                Some(len) => syslog(rest, len),
                None => return false,
            },
            b'k' | b'u' | b'd' | b'a' | b'l' | b'm' | b's' => match named(rest) {
                Some((len, kernel)) => (len, if kernel { Origin::Kernel } else { Origin::User }),
                None => return false,
            },
            _ => return false,
        };
        self.pos += len;
        if self.origin != Origin::User {
            self.origin = origin;
        }
        true
    }

    /// `[   12.345678]`, `[  T12]`, `[Mon Nov  2 10:00:00 2020]`, `[2020-11-02 10:00:00]`.
    fn bracket(&mut self) -> bool {
        let rest = self.rest();
        let window = &rest[..rest.len().min(40)];
        let Some(end) = memchr::memchr(b']', window) else { return false };
        let inner = rest[1..end].trim_ascii();
        let kernel_time = is_stamp(inner);
        if !kernel_time && !is_wall_time(inner) {
            match caller(inner) {
                Some(c) => self.caller = Some(c),
                None => return false,
            }
        }
        let space = usize::from(rest.get(end + 1) == Some(&b' '));
        self.pos += end + 1 + space;
        if self.origin != Origin::User {
            self.origin = Origin::Kernel;
        }
        true
    }
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// `12.345678`
fn is_stamp(inner: &[u8]) -> bool {
    let whole = digits(inner);
    whole > 0 && inner.get(whole) == Some(&b'.') && {
        let fraction = digits(&inner[whole + 1..]);
        fraction >= 3 && whole + 1 + fraction == inner.len()
    }
}

/// `Mon Nov  2 10:00:00 2020` or `2020-11-02 10:00:00`.
fn is_wall_time(inner: &[u8]) -> bool {
    let named = inner.len() >= 20 && inner[3] == b' ' && inner[..3].iter().all(u8::is_ascii_alphabetic);
    let dated = inner.len() >= 16 && digits(inner) == 4 && inner[4] == b'-';
    (named || dated) && inner.iter().filter(|&&b| b == b':').count() >= 2
}

/// `T123` or `C0`.
fn caller(inner: &[u8]) -> Option<Caller> {
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

/// `6,123,456789,-;` or `6,123,456789,-,caller=T12;`: length, facility, caller.
fn record(rest: &[u8]) -> Option<(usize, u32, Option<Caller>)> {
    let window = &rest[..rest.len().min(80)];
    let end = memchr::memchr(b';', window)?;
    let mut fields = window[..end].split(|&b| b == b',');
    let priority = fields.next().filter(|f| f.len() <= 3 && digits(f) == f.len())?;
    for _ in 0..2 {
        fields.next().filter(|f| !f.is_empty() && digits(f) == f.len())?;
    }
    fields.next().filter(|f| f.len() == 1)?;
    let caller = fields.find_map(|f| caller(f.strip_prefix(b"caller=")?));
    let value = priority.iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
    Some((end + 1, value >> 3, caller))
}

/// `2020-11-02T10:00:00.123456+00:00 `: length, and whether it is dmesg's form (a comma before the fraction), after
/// which the message comes at once.
fn iso_time(rest: &[u8]) -> Option<(usize, bool)> {
    if rest.len() < 20 || digits(rest) != 4 || rest[4] != b'-' || rest[7] != b'-' || rest[13] != b':' {
        return None;
    }
    if !matches!(rest[10], b'T' | b' ') {
        return None;
    }
    let len = rest[11..].iter().position(|&b| b == b' ')? + 12;
    (len <= 40).then(|| (len, rest[..len].contains(&b',')))
}

/// `Nov  2 10:00:00 ` or `Nov 02 10:00:00.123456 `: length.
fn syslog_time(rest: &[u8]) -> Option<usize> {
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    if rest.len() < 16 || rest[3] != b' ' || !MONTHS.chunks(3).any(|m| m == &rest[..3]) {
        return None;
    }
    if rest[6] != b' ' || rest[9] != b':' || rest[12] != b':' || !rest[7..9].iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(rest[7..].iter().take(20).position(|&b| b == b' ')? + 8)
}

/// After a time of `len` bytes: `host kernel: ` is the kernel's, `host name[pid]: ` a program's.
fn syslog(rest: &[u8], len: usize) -> (usize, Origin) {
    let tail = &rest[len..];
    let Some(host) = tail.iter().take(80).position(|&b| b == b' ') else { return (len, Origin::User) };
    let tag = &tail[host + 1..];
    let Some(end) = tag.iter().take(80).position(|&b| b == b':') else { return (len, Origin::User) };
    let after = len + host + 1 + end + 1;
    let space = usize::from(rest.get(after) == Some(&b' '));
    let origin = if tag[..end] == *b"kernel" { Origin::Kernel } else { Origin::User };
    (after + space, origin)
}

/// `kern  :warn  : ` (dmesg -x) or `kernel: `: length, and whether it is the kernel's.
fn named(rest: &[u8]) -> Option<(usize, bool)> {
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
        } else if start > 0 && start < 400 && at < start + 24 && is_stamp(line[start + 1..at].trim_ascii()) {
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
