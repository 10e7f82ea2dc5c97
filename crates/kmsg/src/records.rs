//! Logs that write a message as a record of fields: `journalctl -o json`, `json-pretty`, `export`, `verbose`; `dmesg -J`.

use crate::heads;
use crate::prefix::{self, Caller, Origin};
use memchr::{memchr, memmem};

/// The most of a message that is kept, in bytes.
const LIMIT: usize = 8 << 10;

/// A message that a record held.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) message: Vec<u8>,
    /// The line that the message stood in.
    pub(crate) line: u64,
    pub(crate) caller: Option<Caller>,
    /// Microseconds since boot.
    pub(crate) stamp: Option<u64>,
    /// What the fields say about who wrote it: the kernel, or somebody else.
    kernel: Option<bool>,
    foreign: bool,
    found: bool,
}

impl Record {
    pub(crate) fn origin(&self) -> Origin {
        match self.kernel {
            _ if self.foreign => Origin::User,
            Some(true) => Origin::Kernel,
            Some(false) => Origin::User,
            None => Origin::Unknown,
        }
    }
}

/// The form of the record that is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// None is.
    #[default]
    Outside,
    /// JSON over several lines.
    Json,
    /// The numbers of a list, one a line; whether they are the message's bytes.
    List { message: bool },
    /// `KEY=VALUE` lines.
    Export,
    /// A value with its length before it; whether it is the message.
    Binary { message: bool },
    /// Indented `KEY=VALUE` lines.
    Verbose,
}

/// Puts records together, line by line.
#[derive(Debug, Default)]
pub(crate) struct Records {
    form: Form,
    record: Record,
    ready: Option<Record>,
}

impl Records {
    /// Takes `line`, with its control characters in `raw`; false if it is of no record.
    pub(crate) fn take(&mut self, line: &[u8], raw: &[u8], number: u64) -> bool {
        match self.form {
            Form::Outside => self.begin(line, number),
            Form::Json => self.json_line(line, number),
            Form::List { message } => self.list_line(line, message),
            Form::Export => self.export_line(line, number),
            Form::Binary { message } => self.binary_line(raw, message, number),
            Form::Verbose => self.verbose_line(line, number),
        }
    }

    /// Whether [`Records::take`] has to look at `line`.
    pub(crate) fn wants(&self, line: &[u8]) -> bool {
        self.form != Form::Outside
            || match line.first() {
                Some(b'{' | b'}' | b'_' | b' ' | b'\t' | b'd') => true,
                Some(_) => line.ends_with(b"]") && memmem::find(line, b"[s=").is_some(),
                None => false,
            }
    }

    /// Whether a record is being read.
    pub(crate) fn is_inside(&self) -> bool {
        self.form != Form::Outside
    }

    /// The record that became complete with the last line.
    pub(crate) fn ready(&mut self) -> Option<Record> {
        self.ready.take()
    }

    /// The log is over: so is the record.
    pub(crate) fn finish(&mut self) -> Option<Record> {
        self.end();
        self.form = Form::Outside;
        self.ready.take()
    }

    pub(crate) fn retained(&self) -> usize {
        self.record.message.capacity()
    }

    fn end(&mut self) {
        let record = std::mem::take(&mut self.record);
        if record.found {
            self.ready = Some(record);
        }
    }

    fn begin(&mut self, line: &[u8], number: u64) -> bool {
        let text = line.trim_ascii();
        let text = text.strip_prefix(b"data: ").unwrap_or(text);
        match text {
            b"{" | b"},{" | b"}, {" => self.form = Form::Json,
            [b'{', .., b'}'] => {
                let known =
                    [&b"\"MESSAGE\""[..], b"\"msg\""].iter().any(|key| memmem::find(text, key).is_some());
                if !known {
                    return false;
                }
                self.json_fields(&text[1..text.len() - 1], number);
                self.end();
                self.form = Form::Outside;
            }
            _ if line.starts_with(b"__CURSOR=") => self.form = Form::Export,
            _ if is_verbose_head(text) => self.form = Form::Verbose,
            _ => return false,
        }
        true
    }

    fn json_line(&mut self, line: &[u8], number: u64) -> bool {
        let text = line.trim_ascii();
        match text.first() {
            Some(b'"') => self.json_fields(text, number),
            Some(b'}') => {
                self.end();
                self.form = if text.ends_with(b"{") { Form::Json } else { Form::Outside };
            }
            Some(b'{') if text == b"{" => {}
            _ => {
                // Something else that began with a brace.
                self.end();
                self.form = Form::Outside;
                return self.begin(line, number);
            }
        }
        true
    }

    /// Fields of one line, without the braces around them.
    fn json_fields(&mut self, text: &[u8], number: u64) {
        let mut rest = text;
        while let Some((key, value, tail)) = json_pair(rest) {
            self.json_field(key, value, number);
            rest = tail;
        }
    }

    fn json_field(&mut self, key: &[u8], value: &[u8], number: u64) {
        if value == b"[" {
            self.form = Form::List { message: key == b"MESSAGE" };
            if key == b"MESSAGE" {
                self.message(&[], number);
            }
            return;
        }
        let plain = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        match key {
            b"MESSAGE" | b"msg" if value.starts_with(b"[") => self.message(&bytes_of_list(value), number),
            b"MESSAGE" | b"msg" if value.starts_with(b"\"") => self.message(&unescape(plain), number),
            b"pri" | b"fac" => {
                let number = std::str::from_utf8(plain).ok().and_then(|n| n.parse::<u32>().ok());
                // Decoded levels say nothing about the facility.
                let kernel = number.map(|n| n >> 3 == 0).or((key == b"fac").then_some(plain == b"kern"));
                self.record.kernel = kernel.or(self.record.kernel).or(Some(true));
            }
            b"time" => self.record.stamp = Some(heads::number(plain)),
            b"caller" => self.record.caller = prefix::caller(plain),
            _ => self.field(key, plain),
        }
    }

    /// A field of the journal that tells who wrote the message.
    fn field(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"_TRANSPORT" => self.record.kernel = Some(value == b"kernel"),
            // Programs that write to the kernel's log have a name and facility of their own.
            b"SYSLOG_IDENTIFIER" => {
                self.record.foreign |= value != b"kernel";
                self.record.kernel = self.record.kernel.or(Some(true));
            }
            b"_SOURCE_MONOTONIC_TIMESTAMP" => self.record.stamp = Some(heads::number(value)),
            b"__MONOTONIC_TIMESTAMP" => self.record.stamp = self.record.stamp.or(Some(heads::number(value))),
            b"SYSLOG_FACILITY" => self.record.foreign |= value != b"0",
            _ => {}
        }
    }

    fn message(&mut self, text: &[u8], number: u64) {
        let record = &mut self.record;
        record.message.clear();
        record.message.extend_from_slice(&text[..text.len().min(LIMIT)]);
        record.line = number;
        record.found = true;
    }

    fn extend(&mut self, text: &[u8]) {
        let room = LIMIT.saturating_sub(self.record.message.len());
        self.record.message.extend_from_slice(&text[..text.len().min(room)]);
    }

    fn list_line(&mut self, line: &[u8], message: bool) -> bool {
        let text = line.trim_ascii();
        if text.starts_with(b"]") {
            self.form = Form::Json;
        } else if let Some(byte) = Some(text).filter(|t| t.first().is_some_and(u8::is_ascii_digit)) {
            if message {
                self.extend(&bytes_of_list(byte));
            }
        } else if !text.starts_with(b"\"") {
            self.form = Form::Json;
            return self.json_line(line, 0);
        }
        true
    }

    fn export_line(&mut self, line: &[u8], number: u64) -> bool {
        if line.is_empty() {
            self.end();
            self.form = Form::Outside;
            return true;
        }
        let Some(equals) = memchr(b'=', line).filter(|at| is_field(&line[..*at])) else {
            if is_field(line) {
                self.form = Form::Binary { message: line == b"MESSAGE" };
                return true;
            }
            self.end();
            self.form = Form::Outside;
            return self.begin(line, number);
        };
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        if key == b"MESSAGE" {
            self.message(value, number);
        } else {
            self.field(key, value);
        }
        true
    }

    /// Eight bytes of length, the lowest first, stand before such a value; one of them may look like the end of a line.
    fn binary_line(&mut self, raw: &[u8], message: bool, number: u64) -> bool {
        if !raw.is_empty() {
            let length = raw.iter().take(8).rposition(|b| *b == 0).map_or(0, |at| at + 1);
            if message {
                self.message(&raw[length..], number);
            }
            self.form = Form::Export;
        }
        true
    }

    fn verbose_line(&mut self, line: &[u8], number: u64) -> bool {
        let indented = line.starts_with(b"    ");
        let text = line.trim_ascii();
        if let Some(equals) = memchr(b'=', text).filter(|at| indented && is_field(&text[..*at])) {
            let (key, value) = (&text[..equals], &text[equals + 1..]);
            if key == b"MESSAGE" {
                // Its own blanks count.
                let start = line.len() - line.trim_ascii_start().len() + equals + 1;
                self.message(&line[start.min(line.len())..], number);
            } else {
                self.field(key, value);
            }
            return true;
        }
        if indented {
            return true;
        }
        self.end();
        self.form = Form::Outside;
        self.begin(line, number)
    }
}

/// `Mon 2020-11-02 10:00:00.123456 UTC [s=0123;i=1;b=...]`
fn is_verbose_head(text: &[u8]) -> bool {
    let bracket = text.ends_with(b"]").then(|| memmem::find(text, b" [s=")).flatten();
    bracket.is_some_and(|at| at < 80 && memmem::find(&text[at..], b";b=").is_some())
}

/// The name of a field of the journal.
fn is_field(key: &[u8]) -> bool {
    let sound = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_';
    (1..=64).contains(&key.len()) && !key[0].is_ascii_digit() && key.iter().all(sound)
}

/// The next `"KEY": VALUE`, and what follows it. An unfinished list is given as `[`.
fn json_pair(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let skip = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_whitespace() || **b == b',').count();
    let text = &text[skip(text)..];
    let key_end = string_end(text)?;
    let key = &text[1..key_end - 1];
    let tail = text[key_end..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let end = match tail.first()? {
        b'"' => string_end(tail)?,
        b'[' => match list_end(tail) {
            Some(end) => end,
            None => return Some((key, b"[", &[])),
        },
        _ => tail.iter().position(|b| matches!(b, b',' | b'}')).unwrap_or(tail.len()),
    };
    Some((key, tail[..end].trim_ascii_end(), &tail[end..]))
}

/// Length of the string at the start of `text`, with its quotes.
fn string_end(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Length of the list at the start of `text`, with its brackets.
fn list_end(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b']', text.get(at..)?)?;
        if text[at] == b']' {
            return Some(at + 1);
        }
        at += string_end(&text[at..])?;
    }
}

fn bytes_of_list(list: &[u8]) -> Vec<u8> {
    let numbers = list.split(|b| !b.is_ascii_digit()).filter(|n| !n.is_empty());
    numbers.filter_map(|n| std::str::from_utf8(n).ok()?.parse().ok()).take(LIMIT).collect()
}

/// The text of a JSON string without its quotes. What is no JSON stays as it is.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let (len, char) = match rest.get(at + 1) {
            Some(b'n') => (2, '\n'),
            Some(b't') => (2, '\t'),
            Some(b'r' | b'b' | b'f') => (2, '\r'),
            Some(b'u') => unicode(&rest[at..]),
            Some(b) if b.is_ascii() => (2, char::from(*b)),
            _ => (1, '\\'),
        };
        out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        rest = rest.get(at + len..).unwrap_or(&[]);
    }
    out.extend_from_slice(rest);
    out
}

/// `\u00e9`, or two such of a surrogate pair: length and character.
fn unicode(text: &[u8]) -> (usize, char) {
    let unit = |text: &[u8]| {
        let hex = text.strip_prefix(b"\\u")?.get(..4)?;
        u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let Some(first) = unit(text) else { return (2, '\u{fffd}') };
    if let (0xd800..0xdc00, Some(second @ 0xdc00..0xe000)) = (first, unit(text.get(6..).unwrap_or(&[]))) {
        let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (12, char::from_u32(code).unwrap_or('\u{fffd}'));
    }
    (6, char::from_u32(first).unwrap_or('\u{fffd}'))
}
