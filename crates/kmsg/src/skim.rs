//! Lines that need no close look: most of a healthy console.

use crate::candidate::is_candidate;
use crate::prefix::is_plain;
use memchr::{memchr, memmem};
use std::sync::LazyLock;

/// Whether `line` is a message of the kernel behind a plain time stamp that starts nothing, whatever else may stand before it. `false`
/// decides nothing.
pub(crate) fn is_boring(line: &[u8]) -> bool {
    /// What every tag of the kernel has that a logger may put between time stamp and message.
    static TAG: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("kern"));
    let Some(message) = behind_stamp(line) else { return false };
    let ordinary = |first: &u8| first.is_ascii_alphabetic() || *first == b' ';
    message.first().is_none_or(ordinary)
        && is_plain(message)
        && !is_candidate(message)
        // A few kernels indent whole reports.
        && !message.strip_prefix(b" ").is_some_and(is_candidate)
        // Another stamp, behind which another message starts.
        && !holds_time(message)
        && TAG.find(message).is_none()
}

/// What follows `[   12.345678] ` or `[   12.345678][    T1] `.
fn behind_stamp(line: &[u8]) -> Option<&[u8]> {
    let inner = line.strip_prefix(b"[")?;
    let end = match inner.get(12) {
        Some(b']') => 12,
        _ => memchr(b']', &inner[..inner.len().min(20)])?,
    };
    let (seconds, micros) = inner[..end].split_at_checked(end.checked_sub(7)?)?;
    let blank = seconds.iter().take_while(|b| **b == b' ').count();
    let number = seconds[blank..].iter().all(u8::is_ascii_digit) && blank < seconds.len();
    let fits = number && micros[0] == b'.' && micros[1..].iter().all(u8::is_ascii_digit);
    let rest = &inner[end + 1..];
    match rest.strip_prefix(b"[") {
        _ if !fits => None,
        Some(caller) => behind_caller(caller),
        None => rest.strip_prefix(b" "),
    }
}

/// What follows `    T12] `, which many kernels print behind the stamp.
fn behind_caller(inner: &[u8]) -> Option<&[u8]> {
    let end = memchr(b']', &inner[..inner.len().min(14)])?;
    let caller = inner[..end].trim_ascii_start();
    let number = caller.strip_prefix(b"T").or_else(|| caller.strip_prefix(b"C"))?;
    let fits = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    fits.then(|| inner[end + 1..].strip_prefix(b" ")).flatten()
}

/// Whether something in brackets may be a time.
fn holds_time(message: &[u8]) -> bool {
    memchr::memchr_iter(b'[', message).any(|open| {
        let inside = &message[open + 1..message.len().min(open + 40)];
        let end = memchr(b']', inside).unwrap_or(inside.len());
        memchr::memchr2(b'.', b':', &inside[..end]).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_lines_are_boring() {
        for line in [
            "[    1.204411] EXT3-fs (vda): mounted filesystem with ordered data mode",
            "[123456.204411] virtio_net virtio0 ens3: renamed from eth0",
            "[    0.000000]   DMA32    empty",
            "[    1.899001] systemd[1]: Starting Journal Service...",
            "[    1.204411][    T1] virtio_net virtio0 ens3: renamed from eth0",
            "[    0.000000] ",
        ] {
            assert_eq!(is_boring(line.as_bytes()), !line.contains("EXT"), "{line}");
        }
    }

    #[test]
    fn what_may_matter_is_not() {
        for line in [
            "[    1.204411] BUG: unable to handle page fault for address: 0",
            "[    1.204411]  BUG: unable to handle page fault for address: 0",
            "[    1.204411] host kernel: BUG: x",
            "[    1.204411] kern  :warn  : BUG: x",
            "[    1.204411][    T1] BUG: x",
            "[    1.204411] [    1.204412] BUG: x",
            "[    1.204411] unfinished [    1.204412] BUG: x",
            "[    1.204411] 2020-11-02T10:00:00,123456+01:00 BUG: x",
            "[    1.204411] \x1b[1mBUG: x",
            "[    1.204411] load: page allocation failure: order:0",
            "[Mon Nov  2 10:00:00 2020] usb",
            "[    ] usb",
            "[1.2] usb",
            "usb 1-1: new device",
        ] {
            assert!(!is_boring(line.as_bytes()), "{line}");
        }
    }

    /// What is passed over, nobody looks at again.
    #[test]
    fn no_header_of_the_corpus_is_boring() {
        use crate::{first_line, notice, prefix};
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        let mut headers = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus") {
            let text = std::fs::read_to_string(entry.expect("entry").path()).unwrap_or_default();
            for line in text.lines() {
                let message = &line[prefix::split(line.as_bytes()).start.min(line.len())..];
                if first_line::parse(message).is_none() && notice::parse(message).is_none() {
                    continue;
                }
                headers += 1;
                for head in [
                    "",
                    " ",
                    "kernel: ",
                    "host kernel: ",
                    "host kernel: [    1.000000] ",
                    "[   T12] ",
                    "usb 1-1: x[    1.000000] ",
                ] {
                    let line = format!("[    1.000000] {head}{message}");
                    assert!(!is_boring(line.as_bytes()), "{line}");
                }
            }
        }
        assert!(headers > 200, "only {headers} headers in the corpus");
    }
}
