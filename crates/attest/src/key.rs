//! ed25519 keys, in the files that openssl writes and reads.

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::sha256;

/// Signs. Its `Debug` does not show the secret, which is wiped from memory when the key goes.
#[derive(Debug)]
pub struct PrivateKey(SigningKey);

/// Verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is something else; says what and what to do.
    #[error("{0}")]
    Wrong(&'static str),
    /// It looks like a key and can't be read.
    #[error("damaged, or not an ed25519 key: {0}; create one with `klpfarm key new FILE`")]
    Damaged(String),
    /// The system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl PrivateKey {
    /// A new key, from the system's random numbers.
    ///
    /// # Errors
    /// If the system has none.
    pub fn random() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| KeyError::Random(e.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of 32 bytes that must be random.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Read a PKCS#8 key in PEM: `BEGIN PRIVATE KEY`.
    ///
    /// # Errors
    /// If it is a public key, encrypted, of another algorithm or damaged.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.contains("BEGIN PUBLIC KEY") {
            return Err(KeyError::Wrong("is a public key; signing needs the private key"));
        }
        if pem.contains("BEGIN ENCRYPTED PRIVATE KEY") {
            return Err(KeyError::Wrong(
                "is encrypted, and an unattended run cannot ask for the passphrase; decrypt it with `openssl pkey -in FILE -out PLAIN`",
            ));
        }
        if !pem.contains("BEGIN PRIVATE KEY") {
            return Err(KeyError::Wrong(
                "not a private key in PEM (`BEGIN PRIVATE KEY`); create one with `klpfarm key new FILE`",
            ));
        }
        SigningKey::from_pkcs8_pem(pem.trim()).map(Self).map_err(|e| KeyError::Damaged(e.to_string()))
    }

    /// As PKCS#8 in PEM.
    ///
    /// # Errors
    /// None that is known of.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        // Without the public key, which PKCS#8 has room for: openssl does not read ed25519 keys that carry it.
        let pair = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let pem = pair.to_pkcs8_pem(LineEnding::LF).map_err(|e| KeyError::Damaged(e.to_string()))?;
        Ok(pem.to_string())
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl PublicKey {
    /// Read an SPKI key in PEM: `BEGIN PUBLIC KEY`.
    ///
    /// # Errors
    /// If it is a private key, of another algorithm or damaged.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.contains("PRIVATE KEY") {
            return Err(KeyError::Wrong("is a private key; verifying needs the public key, FILE.pub"));
        }
        if !pem.contains("BEGIN PUBLIC KEY") {
            return Err(KeyError::Wrong("not a public key in PEM (`BEGIN PUBLIC KEY`)"));
        }
        let key =
            VerifyingKey::from_public_key_pem(pem.trim()).map_err(|e| KeyError::Damaged(e.to_string()))?;
        if key.is_weak() {
            return Err(KeyError::Wrong("is a weak key, whose signatures anyone can forge"));
        }
        Ok(Self(key))
    }

    /// As SPKI in PEM.
    ///
    /// # Errors
    /// None that is known of.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|e| KeyError::Damaged(e.to_string()))
    }

    /// The key's id: SHA-256, in hex, of its SPKI in DER (`openssl pkey -pubin -in FILE.pub -outform DER | sha256sum`).
    pub fn id(&self) -> String {
        // RFC 8410: the 12 bytes that say "ed25519, 32 bytes follow", then the key.
        let mut der = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".to_vec();
        der.extend_from_slice(self.0.as_bytes());
        sha256(&der)
    }

    pub(crate) fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
        // Strict: exactly one signature is good for a key and a message.
        self.0.verify_strict(message, &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_again_as_they_were_written() {
        let key = PrivateKey::random().unwrap();
        let pem = key.to_pem().unwrap();
        assert_eq!(PrivateKey::from_pem(&pem).unwrap().public(), key.public());
        let public = key.public().to_pem().unwrap();
        assert_eq!(PublicKey::from_pem(&public).unwrap(), key.public());
        assert_ne!(PrivateKey::random().unwrap().public(), key.public());
        let debug = format!("{key:?}");
        assert!(!pem.lines().nth(1).is_some_and(|secret| debug.contains(secret)), "{debug}");
    }

    /// The key pair that RFC 8410 (section 10) gives as its example.
    #[test]
    fn the_key_of_the_rfc() {
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = PrivateKey::from_pem(private).unwrap();
        assert_eq!(key.to_pem().unwrap(), private);
        assert_eq!(key.public().to_pem().unwrap(), public);
        assert_eq!(key.public().id().len(), 64);
    }

    #[test]
    fn what_is_no_key_says_what_it_is() {
        let key = PrivateKey::from_seed(&[7; 32]);
        let (private, public) = (key.to_pem().unwrap(), key.public().to_pem().unwrap());
        for (text, part) in [
            (public.as_str(), "is a public key"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "is encrypted"),
            ("hello", "not a private key in PEM"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "damaged"),
        ] {
            let error = PrivateKey::from_pem(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        }
        // The point of order one verifies a signature of anything by anybody.
        let weak = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END PUBLIC KEY-----\n";
        for (text, part) in [
            (private.as_str(), "is a private key"),
            ("hello", "not a public key"),
            (weak, "is a weak key"),
            (&public.replace("MCow", "MCox"), "damaged"),
        ] {
            let error = PublicKey::from_pem(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
}
