//! The times and names that loggers put before the kernel's messages: forms of dmesg, journalctl, syslog daemons, build
//! services and terminal programs, in any language.

use memchr::memchr;

use crate::scan::digits;

/// A time without brackets at the start of a line.
pub(crate) struct Time {
    /// Up to the blank behind it, in bytes.
    len: usize,
    /// The form of `dmesg --time-format iso`, behind which the message comes at once.
    pub(crate) dmesg: bool,
    /// It names a day, so a logger wrote it.
    dated: bool,
}

/// What follows a time: where the rest starts, in bytes, and whose line it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// The kernel's own stamp or priority.
    Stamp(usize),
    /// A tag of the kernel.
    Kernel(usize),
    /// A tag of somebody else.
    User(usize),
    /// Nothing that a logger writes.
    None,
}

/// The kernel's time in brackets.
pub(crate) struct Stamp {
    /// Microseconds, if it has that precision.
    pub(crate) micros: Option<u64>,
}

/// What stands in brackets, if it is a time since boot or since the last line: `12.345678`, `12.345678 <    0.000001>` (dmesg -d,
/// journalctl -o short-delta), `<    0.000001>`, `+0.000001` (dmesg -H).
pub(crate) fn stamp(inner: &[u8]) -> Option<Stamp> {
    let (time, delta) = without_delta(inner);
    if time.is_empty() {
        return delta.then_some(Stamp { micros: None });
    }
    let (time, relative) = time.strip_prefix(b"+").map_or((time, false), |time| (time, true));
    if !is_seconds(time) {
        return None;
    }
    let micros = !relative && time.len() > 7 && time[time.len() - 7] == b'.';
    Some(Stamp { micros: micros.then(|| number(time)) })
}

/// Takes `<    0.000001 >` off the end.
fn without_delta(inner: &[u8]) -> (&[u8], bool) {
    let split = || {
        let open = memchr::memrchr(b'<', inner.strip_suffix(b">")?)?;
        let delta = inner[open + 1..inner.len() - 1].trim_ascii();
        is_seconds(delta.strip_suffix(b"*").unwrap_or(delta)).then(|| inner[..open].trim_ascii_end())
    };
    match inner.last() {
        Some(b'>') => split().map_or((inner, false), |time| (time, true)),
        _ => (inner, false),
    }
}

/// `12.345678`
pub(crate) fn is_seconds(inner: &[u8]) -> bool {
    let whole = digits(inner);
    whole > 0 && inner.get(whole) == Some(&b'.') && {
        let fraction = digits(&inner[whole + 1..]);
        fraction >= 3 && whole + 1 + fraction == inner.len()
    }
}

/// The digits of `text` as one number.
pub(crate) fn number(text: &[u8]) -> u64 {
    let digits = text.iter().filter(|b| b.is_ascii_digit());
    digits.fold(0, |n: u64, b| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')))
}

/// `10:00:00` or `10:00:00.123`.
pub(crate) fn is_clock(inner: &[u8]) -> bool {
    time_of_day(inner) == Some(0) && inner[8..].iter().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b','))
}

/// What stands in brackets, if it is a day and time: `Mon Nov  2 10:00:00 2020` in any language, `2020-11-02 10:00:00`, both with or
/// without `<    0.000001>`, or the `Nov 2 10:00` of `dmesg -H`.
pub(crate) fn is_wall_time(inner: &[u8]) -> bool {
    if is_day_and_minute(inner) {
        return true;
    }
    let (time, _) = without_delta(inner);
    let year = |part: &[u8]| part.split(|b| !b.is_ascii_digit()).any(|n| n.len() == 4);
    time_of_day(time).is_some_and(|at| {
        (year(&time[..at]) || year(&time[at + 8..]))
            && time.iter().all(|&b| is_date_byte(b) || matches!(b, b':' | b'+'))
    })
}

/// `Nov 2 10:00` or `Nov17 12:34`.
fn is_day_and_minute(inner: &[u8]) -> bool {
    let Some((day, clock)) = inner.split_at_checked(inner.len().saturating_sub(5)) else { return false };
    let minute = clock.len() == 5 && digits(clock) == 2 && clock[2] == b':' && digits(&clock[3..]) == 2;
    let Some(day) = day.strip_suffix(b" ").filter(|_| minute) else { return false };
    let word =
        day.iter().take_while(|b| !b.is_ascii_digit() && !b.is_ascii_punctuation() || **b == b'.').count();
    let number = digits(&day[word..]);
    // `11月 2`: in some languages the month itself is a number.
    let month = |d: &[u8]| !d.is_empty() && d.len() <= 20 && d.iter().all(|&b| is_date_byte(b));
    (1..=2).contains(&number) && word + number == day.len() && month(&day[..word])
        || month(day) && !day.is_ascii() && day.last().is_some_and(u8::is_ascii_digit)
}

fn is_date_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b' ' | b'.' | b',' | b'-' | b'/') || b >= 0x80
}

/// Where a `10:00:00` is that does not go on at either side.
fn time_of_day(text: &[u8]) -> Option<usize> {
    let colon = memchr(b':', text)?;
    let start = colon.checked_sub(2)?;
    let time = text.get(start..start + 8)?;
    let sound = time[5] == b':' && digits(time) == 2 && digits(&time[3..]) == 2 && digits(&time[6..]) == 2;
    let before = start == 0 || matches!(text[start - 1], b' ' | b'T');
    let after = text.get(start + 8).is_none_or(|b| !b.is_ascii_digit() && *b != b':');
    (sound && before && after).then_some(start)
}

/// The time at the start of `rest`, if one is there: of a syslog daemon, of journalctl, of a build service, of `ts`.
pub(crate) fn time(rest: &[u8]) -> Option<Time> {
    let window = &rest[..rest.len().min(72)];
    let Some(at) = time_of_day(window) else { return unix_time(window) };
    let (day, tail) = (&window[..at], &window[at + 8..]);
    if !is_day(day) {
        return None;
    }
    let mut len = at + 8;
    let mut comma = false;
    if let Some((b'.' | b',', fraction)) = tail.split_first() {
        let count = digits(fraction);
        comma = tail[0] == b',' && count == 6;
        len += 1 + count;
    }
    let zone = zone(&window[len..]);
    len += zone;
    let ends = window.get(len).is_none_or(|b| *b == b' ');
    // Programs write their fractions with a comma as well, but not so.
    let dmesg = comma && zone > 1 && day.ends_with(b"T");
    ends.then_some(Time { len, dmesg, dated: !day.is_empty() })
}

/// `1604311200.123456 ` (journalctl -o short-unix).
fn unix_time(window: &[u8]) -> Option<Time> {
    let whole = digits(window);
    let sound = (9..=11).contains(&whole)
        && window.get(whole) == Some(&b'.')
        && digits(&window[whole + 1..]) == 6
        && window.get(whole + 7) == Some(&b' ');
    sound.then_some(Time { len: whole + 7, dmesg: false, dated: false })
}

/// What stands before a time of day: nothing, `2020-11-02T`, `Nov  2 `, `Mo 2020-11-02 `, `11-02 `.
fn is_day(day: &[u8]) -> bool {
    let Some((last, words)) = day.split_last() else { return true };
    let words = words.trim_ascii_end();
    let sound = matches!(last, b' ' | b'T') && words.iter().all(|&b| is_date_byte(b));
    let count = words.split(|&b| b == b' ').filter(|w| !w.is_empty()).count();
    sound && count <= 4 && words.iter().any(u8::is_ascii_digit)
}

/// Length of `Z`, `+01:00`, `+0100`, `-03`.
fn zone(rest: &[u8]) -> usize {
    match rest.first() {
        Some(b'Z') => 1,
        Some(b'+' | b'-') => {
            1 + rest[1..].iter().take(5).take_while(|b| b.is_ascii_digit() || **b == b':').count()
        }
        _ => 0,
    }
}

/// What follows the time at the start of `rest`.
pub(crate) fn tail(rest: &[u8], time: &Time) -> Tail {
    let len = (time.len + 1).min(rest.len());
    if time.dmesg {
        return Tail::Kernel(len);
    }
    let found = after(&rest[len..]).plus(len);
    if found != Tail::None || !time.dated {
        return found;
    }
    // A zone's name (`Mon 2020-11-02 10:00:00 UTC host`) or a year (`Mon Nov  2 10:00:00 2020 kern.err`).
    let word = word(&rest[len..]);
    if (1..=6).contains(&word.len()) {
        let found = after(rest.get(len + word.len() + 1..).unwrap_or(&[])).plus(len + word.len() + 1);
        if found != Tail::None {
            return found;
        }
    }
    // A logger's line of which nothing is known. Days alone (`2 files 10:00:00`) are no proof of one.
    let logger = rest[..time.len].iter().filter(|b| **b == b'-').count() >= 2 || is_month(rest);
    if logger { Tail::User(len) } else { Tail::None }
}

impl Tail {
    fn plus(self, more: usize) -> Self {
        match self {
            Tail::Stamp(len) => Tail::Stamp(len + more),
            Tail::Kernel(len) => Tail::Kernel(len + more),
            Tail::User(len) => Tail::User(len + more),
            Tail::None => Tail::None,
        }
    }
}

fn is_month(rest: &[u8]) -> bool {
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    rest.get(3) == Some(&b' ') && MONTHS.chunks(3).any(|m| m == &rest[..3])
}

fn word(rest: &[u8]) -> &[u8] {
    let window = &rest[..rest.len().min(80)];
    &window[..memchr(b' ', window).unwrap_or(window.len())]
}

fn after(rest: &[u8]) -> Tail {
    let found = own(rest);
    if found != Tail::None {
        return found;
    }
    let found = tagged(rest);
    if found != Tail::None {
        return found;
    }
    let first = word(rest);
    let tail = rest.get(first.len() + 1..).unwrap_or(&[]);
    if let Some(len) = rfc5424(tail) {
        return len.plus(first.len() + 1);
    }
    if is_logcat(rest) {
        return Tail::User(0);
    }
    // `host name: `
    let tag = word(tail);
    if tag.len() > 1 && tag.ends_with(b":") && !first.ends_with(b":") && first.len() > 1 {
        return Tail::User(first.len() + 1 + tag.len());
    }
    Tail::None
}

/// `  812   815 W `, with or without a user before it: pid, thread and level of logcat.
fn is_logcat(rest: &[u8]) -> bool {
    let mut words = rest[..rest.len().min(60)].split(|b| *b == b' ').filter(|w| !w.is_empty());
    let number = |word: &[u8]| digits(word) == word.len();
    let mut next = || words.next().unwrap_or(b"?");
    let first = next();
    let pid = if number(first) { first } else { next() };
    number(pid) && number(next()) && matches!(next(), [b'V' | b'D' | b'I' | b'W' | b'E' | b'F'])
}

/// The kernel's own stamp or priority, behind blanks or the stream's name that a build service writes (`01O `, `00E+`).
pub(crate) fn own(rest: &[u8]) -> Tail {
    let stream = match rest {
        [a, b, b'O' | b'E', b' ' | b'+', ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => 4,
        _ => 0,
    };
    let blanks =
        rest[stream..].iter().take(8).take_while(|b| matches!(b, b' ' | b'\t' | b'|' | b':')).count();
    let at = stream + blanks;
    let rest = &rest[at..];
    let stamped = match rest.first() {
        Some(b'[') => {
            let end = memchr(b']', &rest[..rest.len().min(40)]);
            end.is_some_and(|end| stamp(rest[1..end].trim_ascii()).is_some())
        }
        Some(b'<') => {
            let len = digits(&rest[1..]);
            (1..=3).contains(&len) && rest.get(len + 1) == Some(&b'>') && rest.get(len + 2) == Some(&b'[')
        }
        _ => false,
    };
    if stamped { Tail::Stamp(at) } else { Tail::None }
}

/// `host kernel: `, `kernel: `, `host kern.err kernel: ` (busybox), `kern.err kernel: `; `host name[12]: ` is a program's.
pub(crate) fn tagged(rest: &[u8]) -> Tail {
    let mut at = 0;
    for position in 0..3 {
        let word = word(&rest[at..]);
        let end = at + word.len() + usize::from(rest.len() > at + word.len());
        if word == b"kernel:" {
            return Tail::Kernel(end);
        }
        let program = || word.ends_with(b"]:") && word.contains(&b'[');
        if position > 0 && program() {
            return Tail::User(end);
        }
        let facility = || word.starts_with(b"kern.") || position == 1 && is_facility(word);
        if position > 0 && !facility() || word.is_empty() || word.ends_with(b":") {
            return Tail::None;
        }
        at = end;
    }
    Tail::None
}

/// `daemon.info`
fn is_facility(word: &[u8]) -> bool {
    let dot = word.iter().position(|b| *b == b'.');
    dot.is_some_and(|dot| {
        let (facility, level) = (&word[..dot], &word[dot + 1..]);
        let known =
            matches!(facility, b"user" | b"daemon" | b"auth" | b"authpriv" | b"syslog" | b"cron" | b"mail");
        known && (3..=7).contains(&level.len()) && level.iter().all(u8::is_ascii_lowercase)
    })
}

/// `APP PROCID MSGID [DATA] ` behind the host's name.
fn rfc5424(rest: &[u8]) -> Option<Tail> {
    let app = word(rest);
    let mut at = app.len() + 1;
    for _ in 0..2 {
        let word = word(rest.get(at..)?);
        let plain = word == b"-" || !word.is_empty() && word.iter().all(u8::is_ascii_alphanumeric);
        if !plain {
            return None;
        }
        at += word.len() + 1;
    }
    let data = rest.get(at..)?;
    at += match data.first()? {
        b'-' => 1,
        b'[' => memchr(b']', &data[..data.len().min(400)])? + 1,
        _ => return None,
    };
    if rest.get(at).is_some_and(|b| *b != b' ') {
        return None;
    }
    at = (at + 1).min(rest.len());
    if rest[at..].starts_with(b"\xef\xbb\xbf") {
        at += 3;
    }
    Some(if app == b"kernel" { Tail::Kernel(at) } else { Tail::User(at) })
}
