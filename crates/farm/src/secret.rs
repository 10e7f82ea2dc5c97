//! Words that a guest can't guess: ids of questions to the probe, and what a heartbeat carries. Pure; the randomness is handed in.

use sha2::{Digest, Sha256};

/// What the words of one trial are made from.
#[derive(Clone)]
pub(crate) struct Secret([u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// `nonce`: random bytes of the host, fresh for each trial.
    pub(crate) fn new(nonce: [u8; 16]) -> Self {
        Self(nonce)
    }

    /// The n-th word for this purpose. Whoever knows any number of them can't tell the next.
    fn word(&self, purpose: &str, n: u64) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(purpose);
        hash.update(n.to_le_bytes());
        let hash = hash.finalize();
        hash.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    /// Id of the n-th question to the probe.
    pub(super) fn id(&self, n: u64) -> u64 {
        self.word("id", n)
    }

    /// What the n-th heartbeat carries.
    pub(super) fn beat(&self, n: u64) -> String {
        format!("{:016x}", self.word("beat", n))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_words_are_alike() {
        let (a, b) = (Secret::new([1; 16]), Secret::new([2; 16]));
        let ids: BTreeSet<u64> = (0..1000).flat_map(|n| [a.id(n), b.id(n)]).collect();
        assert_eq!(ids.len(), 2000);
        assert_eq!(a.id(7), Secret::new([1; 16]).id(7));
        assert_ne!(a.beat(1), format!("{:016x}", a.id(1)));
        assert_eq!(format!("{a:?}"), "Secret");
    }
}
