//! Randomness of the host for what a guest must not guess.

use std::io::Read;

use crate::secret::Secret;

/// A fresh secret for one trial.
pub(crate) fn secret() -> Secret {
    let mut nonce = [0_u8; 16];
    // It never blocks once the host is up.
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut nonce));
    if let Err(error) = read {
        tracing::warn!(%error, "no randomness of the host: a guest could guess the ids of questions to its probe");
    }
    Secret::new(nonce)
}
