//! What is signed: an in-toto Statement v1 about the candidates and the file of the verdict.

use std::collections::BTreeMap;

use klpfarm_model::verdict::Bound;
use klpfarm_model::{ImageFacts, Outcome, Tier, Verdict, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Type of an envelope's payload that is a statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Type of the statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of what the statement says: a name, not a place. The number is that of [`Predicate`]'s fields.
pub const PREDICATE_TYPE: &str = "urn:klpfarm:verdict:v1";

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// What it is about: each candidate as `NAME.ko`, and `verdict.json`.
    pub subject: Vec<Subject>,
    /// [`PREDICATE_TYPE`].
    pub predicate_type: String,
    /// What it says.
    pub predicate: Predicate,
}

/// A file that the statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its digests by algorithm; only `sha256` is looked at.
    pub digest: BTreeMap<String, String>,
}

/// What is said of the candidates. All of it stands in the files too; it is repeated for those who have the envelope alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predicate {
    /// The outcome.
    pub verdict: Outcome,
    /// The tier in question.
    pub tier: Tier,
    /// The image, its hash and kernel release.
    pub image: ImageFacts,
    /// The checkpoint that all trials were forks of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint: Option<String>,
    /// Failure rates that the trials leave possible.
    pub bounds: Vec<Bound>,
    /// Version of klpfarm that planned and judged.
    pub farm: String,
    /// [`klpfarm_model::Plan::hash`] of the plan.
    pub plan: String,
    /// SHA-256, in hex, of the files of the run folder by name.
    pub files: BTreeMap<String, String>,
    /// When it was stated (RFC 3339), by the clock of the host that signed.
    pub time: String,
}

/// Digests of a run's files, SHA-256 in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Of `verdict.json`.
    pub verdict: String,
    /// Of `journal.jsonl`.
    pub journal: String,
    /// Of `plan.json`.
    pub plan: String,
}

/// Why a statement is not believed, although it was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// It is not one of ours.
    #[error("the payload is not a klpfarm statement: {0}")]
    Shape(String),
    /// It is about other bytes.
    #[error("it is for another verdict.json: sha256 {signed} was signed, but this one has {found}")]
    OtherVerdict {
        /// As signed.
        signed: String,
        /// As found.
        found: String,
    },
    /// It contradicts the verdict that it is about.
    #[error("{field}: the statement says {signed}, but verdict.json says {found}")]
    Contradiction {
        /// Field of the statement.
        field: String,
        /// As signed.
        signed: String,
        /// As in the verdict.
        found: String,
    },
}

impl Statement {
    /// State `verdict`, whose files have these digests, at `time` (RFC 3339).
    pub fn new(verdict: &Verdict, digests: Digests, time: String) -> Self {
        let names = klpfarm_model::file_names(&verdict.patches).into_iter();
        let patches = names.zip(&verdict.patches);
        let mut subject: Vec<Subject> =
            patches.map(|(name, patch)| Subject::new(name, patch.sha256.clone())).collect();
        subject.push(Subject::new("verdict.json".to_owned(), digests.verdict.clone()));
        let files = [
            ("verdict.json", digests.verdict),
            ("journal.jsonl", digests.journal),
            ("plan.json", digests.plan),
        ];
        Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                verdict: verdict.verdict,
                tier: verdict.tier,
                image: verdict.image.clone(),
                checkpoint: verdict.checkpoint.clone(),
                bounds: verdict.bounds.clone(),
                farm: verdict.farm.clone(),
                plan: verdict.plan.clone(),
                files: files.map(|(name, digest)| (name.to_owned(), digest)).into(),
                time,
            },
        }
    }

    /// The payload of an envelope.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Read the payload of an envelope whose type is `payload_type`.
    ///
    /// # Errors
    /// If it is no statement of ours.
    pub fn parse(payload_type: &str, payload: &[u8]) -> Result<Self, StatementError> {
        let wrong = |what: &str, is: &str, wanted: &str| {
            StatementError::Shape(format!("{what} is {is:?}, but must be {wanted:?}"))
        };
        if payload_type != PAYLOAD_TYPE {
            return Err(wrong("payloadType", payload_type, PAYLOAD_TYPE));
        }
        // The types first: of another version, the rest may look different.
        let value: serde_json::Value =
            serde_json::from_slice(payload).map_err(|e| StatementError::Shape(e.to_string()))?;
        for (field, wanted) in [("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)] {
            let is = value[field].as_str().unwrap_or_default();
            if is != wanted {
                return Err(wrong(field, is, wanted));
            }
        }
        serde_json::from_value(value).map_err(|e| StatementError::Shape(e.to_string()))
    }

    /// Whether it is about the verdict in these bytes and says the same; returns the verdict.
    ///
    /// # Errors
    /// If the bytes are others, or the statement contradicts them.
    pub fn about(&self, bytes: &[u8]) -> Result<Verdict, StatementError> {
        let found = sha256(bytes);
        for signed in [self.signed("verdict.json"), self.subject_digest("verdict.json")] {
            if signed != Some(found.as_str()) {
                let signed = signed.unwrap_or("none").to_owned();
                return Err(StatementError::OtherVerdict { signed, found });
            }
        }
        let verdict: Verdict =
            serde_json::from_slice(bytes).map_err(|e| StatementError::Shape(format!("verdict.json: {e}")))?;
        self.agrees(&verdict)?;
        Ok(verdict)
    }

    /// Digest of a file of the run folder.
    pub fn signed(&self, file: &str) -> Option<&str> {
        self.predicate.files.get(file).map(String::as_str)
    }

    fn subject_digest(&self, name: &str) -> Option<&str> {
        self.subject.iter().find(|s| s.name == name)?.digest.get("sha256").map(String::as_str)
    }

    /// Whoever reads the envelope alone must not be told anything else than who reads the verdict.
    fn agrees(&self, verdict: &Verdict) -> Result<(), StatementError> {
        let digest = |file: &str| self.signed(file).unwrap_or_default().to_owned();
        let digests = Digests {
            verdict: digest("verdict.json"),
            journal: digest("journal.jsonl"),
            plan: digest("plan.json"),
        };
        let own = Self::new(verdict, digests, self.predicate.time.clone());
        if self.subject != own.subject {
            let names = |s: &Self| s.subject.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(StatementError::Contradiction {
                field: "subject".to_owned(),
                signed: names(self),
                found: names(&own),
            });
        }
        let fields = |s: &Self| serde_json::to_value(&s.predicate).unwrap_or_default();
        let (signed, found) = (fields(self), fields(&own));
        for field in signed.as_object().into_iter().chain(found.as_object()).flat_map(|o| o.keys()) {
            if signed[field] != found[field] {
                return Err(StatementError::Contradiction {
                    field: field.clone(),
                    signed: signed[field].to_string(),
                    found: found[field].to_string(),
                });
            }
        }
        Ok(())
    }
}

impl Subject {
    fn new(name: String, sha256: String) -> Self {
        Self { name, digest: BTreeMap::from([("sha256".to_owned(), sha256)]) }
    }
}

/// By the module's name, which no two candidates of a run share, and under which the run folder keeps a copy.
#[cfg(test)]
mod tests;
