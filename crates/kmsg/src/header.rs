//! What the first line of a report says of it.

use crate::Kind;
use crate::frames::Search;
use crate::line::is_module;
use crate::machinery::is_machinery;
use crate::names::canonical;
use crate::scan::{decoded, symbol};

/// How a header is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The message is the whole report and its format is exact.
    Given,
    /// Lines that only the kernel's own dump has must follow.
    Needed,
}

/// How a title ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// ` in FUNCTION`, if one is known.
    InFunction,
    /// As it is.
    Alone,
}

/// The first line of a report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// Title without function.
    pub(crate) stem: String,
    pub(crate) place: Place,
    pub(crate) function: Option<String>,
    /// The function that the header names, if it is mere machinery: better than none.
    pub(crate) fallback: Option<String>,
    pub(crate) task: Option<String>,
    pub(crate) cpu: Option<u32>,
    pub(crate) proof: Proof,
    /// The whole line has the kernel's format, not only its start.
    pub(crate) exact: bool,
    /// A line like `Oops: 0000 [#1] SMP`, which a report can have in its middle.
    pub(crate) die: bool,
    /// The machine panics with it.
    pub(crate) panic: bool,
    /// Stands before the `WARNING: ` or `kernel BUG at ` of the same report, or just after it.
    pub(crate) message: bool,
}

impl Header {
    pub(crate) fn new(kind: Kind, stem: impl Into<String>) -> Self {
        Header {
            kind,
            stem: stem.into(),
            place: Place::InFunction,
            function: None,
            fallback: None,
            task: None,
            cpu: None,
            proof: Proof::Needed,
            exact: true,
            die: false,
            panic: false,
            message: false,
        }
    }

    pub(crate) fn alone(self) -> Self {
        Header { place: Place::Alone, ..self }
    }

    pub(crate) fn given(self) -> Self {
        Header { place: Place::Alone, proof: Proof::Given, ..self }
    }

    pub(crate) fn message(self) -> Self {
        Header { message: true, ..self }
    }

    pub(crate) fn exact(self, exact: bool) -> Self {
        Header { exact, ..self }
    }

    /// The header itself names a place: `F+0x1/0x2 [module]`.
    pub(crate) fn names(self, site: &str) -> Self {
        let named = symbol(site).map(|(name, tail)| (name, is_module(tail))).or_else(|| decoded(site));
        let Some((function, module)) = named else { return self };
        if module {
            return Header { function: Some(function.to_string()), ..self };
        }
        let name = Some(canonical(function).into_owned());
        match name.as_deref().is_some_and(is_machinery) {
            true => Header { fallback: name, ..self },
            false => Header { function: name, ..self },
        }
    }

    /// Where to look for the guilty function.
    pub(crate) fn search(&self) -> Search {
        use Kind::*;
        match self.kind {
            HungTask => Search::Hung,
            SoftLockup | HardLockup | RcuStall => Search::Interrupted,
            StackOverflow | DoubleFault => Search::Recursion,
            MemoryLeak => Search::Leak,
            BadPage => Search::Owner,
            kind if kind.is_oops() => Search::Pointer,
            _ => Search::Frames,
        }
    }
}

/// Replaces what differs from run to run: addresses and numbers.
pub(crate) fn blank_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(120));
    let mut rest = text.trim();
    while !rest.is_empty() && out.len() < 120 {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (head, tail) = rest.split_at(word);
        let hex = head.strip_prefix("0x").unwrap_or(head);
        let is_hex = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hex && (hex.len() >= 8 || head.len() > hex.len()) {
            out.push_str("ADDR");
        } else if !head.is_empty() && head.bytes().all(|b| b.is_ascii_digit()) {
            out.push('N');
        } else {
            out.push_str(head);
        }
        let mut chars = tail.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    out
}
