//! Stating a verdict and signing the statement: what may be signed, and what a signature is added to.

use std::path::{Path, PathBuf};

use klpfarm_attest::{Digests, Envelope, PAYLOAD_TYPE, PrivateKey, Statement, sha256};
use klpfarm_model::Verdict;
use klpfarm_report::{Run, write_atomically};

use crate::run::documents_agree;
use crate::signing::{envelope_of, read, sha256_of};
use crate::{Error, Remedy, Result};

/// Sign the verdict of a finished run, beside whoever has signed it already; the file of the signatures.
///
/// # Errors
/// If the verdict is not what plan and journal say, or the signatures that are there are of something else.
pub fn countersign(dir: &Path, key: &PrivateKey) -> Result<PathBuf> {
    let place = envelope_of(&dir.join("verdict.json"));
    let stated = stated(dir)?;
    let envelope = match read(&place)? {
        None => stated.envelope(key),
        Some(json) => stated.countersigned(&json, key).map_err(|e| Error::input(e).about(place.display()))?,
    };
    write_atomically(&place, envelope.to_json().as_bytes()).map_err(Error::farm)?;
    Ok(place)
}

/// Sign what a run that has just ended says, in place of signatures of an earlier end; the file of the signature.
///
/// # Errors
/// If the verdict is not what plan and journal say.
pub fn sign_anew(dir: &Path, key: &PrivateKey) -> Result<PathBuf> {
    let envelope = stated(dir)?.envelope(key);
    let place = envelope_of(&dir.join("verdict.json"));
    write_atomically(&place, envelope.to_json().as_bytes()).map_err(Error::farm)?;
    Ok(place)
}

/// Remove the signatures of a run that goes on, for what was signed is no longer what its journal will say; whether there were any.
pub fn withdraw(dir: &Path) -> bool {
    std::fs::remove_file(envelope_of(&dir.join("verdict.json"))).is_ok()
}

/// What is signed, before it is.
struct Stated {
    /// `verdict.json` as it is on disk.
    bytes: Vec<u8>,
    verdict: Verdict,
    digests: Digests,
}

/// The verdict of a run folder, if it is what its plan and journal say: nobody shall sign anything else.
fn stated(dir: &Path) -> Result<Stated> {
    let file = dir.join("verdict.json");
    let wrong = |e: &str| Error::input(e).about(file.display());
    let bytes = read(&file)?
        .ok_or_else(|| wrong("does not exist: this is not a run folder, or the run has not ended"))?;
    let verdict: Verdict = serde_json::from_slice(&bytes)
        .map_err(|e| Error::input(e).about("not a valid verdict").about(file.display()))?;
    let run = Run::open(dir).map_err(Error::input)?;
    documents_agree(dir, &run.plan, &run.events)?;
    if klpfarm_model::judge(&run.plan, &run.events) != verdict {
        return Err(wrong(&format!(
            "differs from what this klpfarm ({}) concludes from the plan and journal in the same folder; it was written by klpfarm {}. Not signed",
            env!("CARGO_PKG_VERSION"),
            verdict.farm
        ))
        .with(Remedy::JudgeAgain(dir.to_owned())));
    }
    let digest = |name: &str| {
        let path = dir.join(name);
        sha256_of(&path)?.ok_or_else(|| Error::input(format!("{}: is not there", path.display())))
    };
    let digests =
        Digests { verdict: sha256(&bytes), journal: digest("journal.jsonl")?, plan: digest("plan.json")? };
    Ok(Stated { bytes, verdict, digests })
}

impl Stated {
    fn envelope(&self, key: &PrivateKey) -> Envelope {
        let time = jiff::Timestamp::now().to_string();
        let statement = Statement::new(&self.verdict, self.digests.clone(), time);
        Envelope::sign(PAYLOAD_TYPE, &statement.to_json(), key)
    }

    /// One more signature of the statement that is there, if it is about these files and says what they say.
    fn countersigned(&self, json: &[u8], key: &PrivateKey) -> Result<Envelope, String> {
        let mut envelope = Envelope::parse(json).map_err(|e| e.to_string())?;
        let payload = envelope.unverified().map_err(|e| e.to_string())?;
        let statement = Statement::parse(&envelope.payload_type, &payload).map_err(|e| e.to_string())?;
        let other = |what: &str| format!("{what}; to sign the current files, remove the envelope first");
        statement.about(&self.bytes).map_err(|e| other(&e.to_string()))?;
        for (name, digest) in [("journal.jsonl", &self.digests.journal), ("plan.json", &self.digests.plan)] {
            if statement.signed(name) != Some(digest.as_str()) {
                return Err(other(&format!("was made for another {name} than the one in this folder")));
            }
        }
        if envelope.is_signed_by(&key.public()).map_err(|e| e.to_string())? {
            return Err("already signed with this key".to_owned());
        }
        envelope.countersign(key).map_err(|e| e.to_string())?;
        Ok(envelope)
    }
}
