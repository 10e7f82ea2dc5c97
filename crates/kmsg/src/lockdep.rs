//! Headers of lockdep: `WARNING: TEXT` since 4.12, `[ INFO: TEXT ]` and `[ BUG: TEXT ]` before.

use crate::Kind;
use crate::header::Header;

/// Parses the header without the brackets.
pub(crate) fn parse(text: &str) -> Option<Header> {
    let (level, rest) = text.split_once(": ")?;
    if !matches!(level, "WARNING" | "INFO" | "BUG") {
        return None;
    }
    let rest = rest.trim_end_matches(['!', '.']);
    let deadlock = matches!(
        rest,
        "possible circular locking dependency detected"
            | "possible recursive locking detected"
            | "possible irq lock inversion dependency detected"
            | "possible irq-unsafe lock inversion"
    ) || rest.ends_with("-unsafe lock order detected");
    if deadlock {
        return Some(Header::new(Kind::Deadlock, "possible deadlock"));
    }
    let exact = match rest {
        "inconsistent lock state" => Header::new(Kind::LockState, "inconsistent lock state"),
        "suspicious RCU usage" => Header::new(Kind::SuspiciousRcu, format!("{level}: suspicious RCU usage")),
        "bad unlock balance detected" => misuse(level, "bad unlock balance"),
        "bad contention detected" => misuse(level, "bad contention"),
        "held lock freed" => misuse(level, "held lock freed"),
        "lock held when returning to user space" => misuse(level, "lock held when returning to user space"),
        "Nested lock was not taken" => misuse(level, "Nested lock was not taken"),
        "Invalid wait context" | "invalid wait context" => misuse(level, "invalid wait context"),
        "trying to register non-static key" => misuse(level, "trying to register non-static key"),
        _ if rest.ends_with("still has locks held") => misuse(level, "still has locks held"),
        _ if rest.ends_with("still has lock held") => misuse(level, "still has locks held"),
        _ => return None,
    };
    Some(exact)
}

fn misuse(level: &str, what: &str) -> Header {
    Header::new(Kind::LockMisuse, format!("{level}: {what}"))
}
