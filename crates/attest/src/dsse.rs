//! DSSE, "Dead Simple Signing Envelope", version 1: a payload, its type, and signatures of both.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};

use crate::{PrivateKey, PublicKey};

/// The envelope as it stands in a file. Fields that are not known are left alone, as the specification asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// What the payload is: a media type.
    pub payload_type: String,
    /// The payload in base64.
    pub payload: String,
    /// Signatures of type and payload.
    pub signatures: Vec<Signature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Which key, for people: nobody vouches for it, and nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyid: Option<String>,
    /// The signature in base64.
    pub sig: String,
}

/// Why an envelope can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an envelope.
    #[error("not a DSSE envelope: {0}")]
    Shape(String),
    /// No key that was given signed it.
    #[error("has no valid signature of the key {0}")]
    Unsigned(String),
}

/// "Pre-authentication encoding": the bytes that are signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// Sign `payload`.
    pub fn sign(payload_type: &str, payload: &[u8], key: &PrivateKey) -> Self {
        let mut envelope = Self {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: Vec::new(),
        };
        envelope.add(payload, key);
        envelope
    }

    /// Sign what is in the envelope with another key.
    ///
    /// # Errors
    /// If the payload can't be read.
    pub fn countersign(&mut self, key: &PrivateKey) -> Result<(), EnvelopeError> {
        let payload = self.unverified()?;
        self.add(&payload, key);
        Ok(())
    }

    fn add(&mut self, payload: &[u8], key: &PrivateKey) {
        let sig = STANDARD.encode(key.sign(&pae(&self.payload_type, payload)));
        self.signatures.push(Signature { keyid: Some(key.public().id()), sig });
    }

    /// Read an envelope in JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        serde_json::from_slice(json).map_err(|e| EnvelopeError::Shape(e.to_string()))
    }

    /// As JSON, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// The payload, which anybody may have written: for [`Envelope::verify`] first.
    ///
    /// # Errors
    /// If it is no base64.
    pub fn unverified(&self) -> Result<Vec<u8>, EnvelopeError> {
        decode(&self.payload).ok_or_else(|| EnvelopeError::Shape("payload: not base64".to_owned()))
    }

    /// Whether `key` signed it.
    ///
    /// # Errors
    /// If the payload can't be read.
    pub fn is_signed_by(&self, key: &PublicKey) -> Result<bool, EnvelopeError> {
        let signed = pae(&self.payload_type, &self.unverified()?);
        // Every signature is tried, whatever key it names.
        Ok(self.signatures.iter().filter_map(|s| decode(&s.sig)).any(|sig| key.is_signed(&signed, &sig)))
    }

    /// The payload, if `key` signed it.
    ///
    /// # Errors
    /// If the key did not, or the envelope can't be read.
    pub fn verify(&self, key: &PublicKey) -> Result<Vec<u8>, EnvelopeError> {
        if self.is_signed_by(key)? { self.unverified() } else { Err(EnvelopeError::Unsigned(key.id())) }
    }
}

/// Both alphabets of base64: the specification leaves writers the choice.
fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

#[cfg(test)]
mod tests;
