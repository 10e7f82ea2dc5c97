//! Lines waiting to be sent: bounded, whatever the host does. News that comes again anyway (progress, latencies) is dropped
//! first; answers and faults are kept, and their senders hold back while there is no [`Outbox::room`].

use klpfarm_stress::wire::{FromGuest, MAX_LINE};

/// Bytes waiting beyond which news that comes again is dropped.
const SOFT: usize = 64 * 1024;
/// Bytes waiting beyond which nothing more is accepted that can wait.
const HARD: usize = 512 * 1024;

pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    dropped: u64,
}

impl Outbox {
    pub(super) fn new() -> Self {
        // All it will ever need: a few largest lines may be added while just below the limit.
        Self { bytes: Vec::with_capacity(HARD + 4 * MAX_LINE), sent: 0, dropped: 0 }
    }

    /// False while too much waits already: keep what you have, stop reading requests.
    pub(super) fn room(&self) -> bool {
        self.waiting().len() < HARD
    }

    /// Adds a line. The kinds that come again are dropped while the host does not read.
    pub(super) fn push(&mut self, line: &FromGuest) {
        let again = matches!(
            line,
            FromGuest::Progress { .. }
                | FromGuest::Latency { .. }
                | FromGuest::Blocked { .. }
                | FromGuest::Memory { .. }
        );
        let limit = if again { SOFT } else { HARD + 3 * MAX_LINE };
        if self.waiting().len() > limit {
            self.dropped += 1;
            return;
        }
        if self.sent > 0 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        // Writing to memory cannot fail, and these types have no maps with odd keys.
        if serde_json::to_writer(&mut self.bytes, line).is_ok() {
            self.bytes.push(b'\n');
        }
    }

    /// What is to be written next.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// So much of it was.
    pub(super) fn wrote(&mut self, n: usize) {
        self.sent += n;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
    }

    /// A new reader: the rest of a line that the old one got a part of means nothing to it, and the greeting comes first.
    pub(super) fn restart(&mut self, greeting: &FromGuest) {
        if self.sent > 0 && self.bytes[self.sent - 1] != b'\n' {
            let waiting = self.waiting();
            let rest = waiting.iter().position(|&b| b == b'\n').map_or(waiting.len(), |n| n + 1);
            self.wrote(rest);
        }
        if let Ok(mut line) = serde_json::to_vec(greeting) {
            line.push(b'\n');
            self.bytes.splice(..self.sent, line);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> FromGuest {
        FromGuest::Memory {
            at_ms: 1,
            available_kib: 2,
            slab_kib: 3,
            slab_unreclaimable_kib: 4,
            unaccounted_kib: 5,
            open_files: 6,
            descriptors: 7,
            tasks: 8,
            zombies: 9,
        }
    }

    fn reply(out: &str) -> FromGuest {
        FromGuest::Reply { id: 1, code: 0, out: out.into() }
    }

    #[test]
    fn news_is_dropped_and_answers_are_kept_when_nobody_reads() {
        let mut outbox = Outbox::new();
        let capacity = outbox.bytes.capacity();
        (0..100_000).for_each(|_| outbox.push(&memory()));
        assert!(outbox.waiting().len() < SOFT + 200 && outbox.dropped > 0);
        outbox.push(&reply("kept"));
        assert!(outbox.waiting().ends_with(b"\"out\":\"kept\"}\n"));
        while outbox.room() {
            outbox.push(&reply(&"x".repeat(60_000)));
        }
        (0..50).for_each(|_| outbox.push(&reply(&"x".repeat(60_000))));
        assert_eq!(outbox.bytes.capacity(), capacity, "the outbox grew");
    }

    #[test]
    fn a_new_reader_gets_whole_lines() {
        let mut outbox = Outbox::new();
        outbox.push(&reply("first"));
        outbox.push(&reply("second"));
        outbox.wrote(5);
        outbox.restart(&reply("greeting"));
        let text = std::str::from_utf8(outbox.waiting()).unwrap();
        let lines: Vec<FromGuest> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines, [reply("greeting"), reply("second")]);
        let len = outbox.waiting().len();
        outbox.wrote(len);
        assert!(outbox.waiting().is_empty());
        outbox.restart(&reply("greeting"));
        assert!(outbox.waiting().ends_with(b"\"out\":\"greeting\"}\n"));
    }
}
