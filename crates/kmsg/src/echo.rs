//! Lines that come twice: from an early console that was kept beside the real one, or from a logger that writes the
//! kernel's messages back to the console.

use crate::prefix::{Caller, Prefix};

/// How many lines are remembered.
const SLOTS: usize = 512;
/// How many lines may stand between a line and its echo.
const REACH: u64 = 256;
/// The same for two consoles: a program may write between them.
const BESIDE: u64 = 2;
/// How much later a logger may write a message back, in microseconds.
const DELAY: u64 = 5_000_000;

/// What is known of a line that was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    hash: u64,
    /// Of the line with its head, where the kernel's stamp does not tell it from its like.
    whole: u64,
    /// 0 is none.
    line: u64,
    stamp: Option<u64>,
    tagged: bool,
    caller: Option<Caller>,
}

impl Seen {
    fn is_like(&self, other: &Seen) -> bool {
        let same_caller = self.caller == other.caller || self.caller.is_none() || other.caller.is_none();
        self.line > 0 && self.hash == other.hash && same_caller
    }
}

/// Remembers the last lines.
#[derive(Debug, Default)]
pub(crate) struct Echoes {
    /// By their hash.
    seen: Vec<Seen>,
    /// The last line, and the last with a stamp.
    last: Seen,
    last_stamped: Seen,
}

impl Echoes {
    /// Whether the message of `line`, the line of this `number`, was there already; remembers it if not.
    ///
    /// Two consoles print each message twice in a row. The same text again with the same stamp, but not in a row, is no echo: the
    /// clock of a guest may stand still for a whole report. What a logger writes back has its head, and may come later. Without a
    /// stamp, a line right after its very like is an echo; within a report it would add nothing anyway.
    pub(crate) fn is_echo(&mut self, line: &[u8], prefix: &Prefix, number: u64) -> bool {
        let message = line[prefix.start..].trim_ascii();
        if message.is_empty() {
            return false;
        }
        if self.seen.is_empty() {
            self.seen = vec![Seen::default(); SLOTS];
        }
        let Prefix { stamp, tagged, caller, .. } = *prefix;
        let whole = if stamp.is_some() { 0 } else { hash(line) };
        let new = Seen { hash: hash(message), whole, line: number, stamp, tagged, caller };
        let slot = &mut self.seen[new.hash as usize % SLOTS];
        let elsewhere = slot.is_like(&new)
            && slot.tagged != tagged
            && number.saturating_sub(slot.line) <= REACH
            // The logger's own time may be a little later.
            && slot.stamp.zip(stamp).is_none_or(|(a, b)| a.abs_diff(b) <= DELAY);
        if elsewhere {
            return true;
        }
        *slot = new;
        let last = if stamp.is_some() { &mut self.last_stamped } else { &mut self.last };
        let again = last.is_like(&new)
            && (last.tagged, last.stamp, last.whole) == (tagged, stamp, whole)
            // Lines that can be of no report are not remembered, so what counts is where the two stand.
            && number.saturating_sub(last.line) <= if stamp.is_some() { BESIDE } else { 1 };
        *last = new;
        again
    }
}

/// A quick hash of `text` (FxHash over words of eight bytes).
fn hash(text: &[u8]) -> u64 {
    const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = text.as_chunks::<8>();
    let mut hash = words.iter().fold(text.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    hash = mix(hash, u64::from_le_bytes(last));
    hash ^ hash >> 32
}
