//! Signed verdicts. Bytes in, bytes out: nothing here reads a file or a clock.
//!
//! A verdict is signed as a [`Statement`] (in-toto Statement v1) about the candidates and the verdict's file, carried in an
//! [`Envelope`] (DSSE v1) with ed25519 signatures. The statement holds digests, so whoever has the envelope and a public key
//! they trust can tell whether the files beside it are those that were signed.

mod dsse;
mod key;
mod statement;

pub use dsse::{Envelope, EnvelopeError, Signature, pae};
pub use key::{KeyError, PrivateKey, PublicKey};
pub use statement::{
    Digests, PAYLOAD_TYPE, PREDICATE_TYPE, Predicate, STATEMENT_TYPE, Statement, StatementError, Subject,
    sha256,
};
