//! Whether a verdict is what was signed, and by whom.

use std::path::{Path, PathBuf};

use klpfarm_attest::{Envelope, Predicate, PublicKey, Statement};
use klpfarm_model::{Verdict, consistency};
use klpfarm_report::Run;
use serde::Serialize;

use crate::signing::{envelope_of, public_key, read, sha256_of};
use crate::{Error, Remedy, Result};

/// What came of the whole; its fields are API (docs/verdict.md).
#[derive(Debug, Serialize)]
pub struct Report {
    /// The verdict's file.
    pub file: PathBuf,
    /// Every key signed it, and nothing that was looked at differs.
    pub good: bool,
    /// What was looked at, in that order.
    pub checks: Vec<Check>,
    /// What was signed, if any of the keys signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<Predicate>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// A file, a signature or a comparison.
    pub what: String,
    /// What came of it.
    pub result: CheckResult,
    /// Why it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What came of one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// It is what was signed.
    Good,
    /// It was changed after it had been signed.
    Wrong,
    /// The file is not there: nothing can be said of it.
    Absent,
    /// Another version of klpfarm would have to say it.
    Unknown,
}

/// Verify the verdict in `file` (a verdict.json, or its run folder) against these public keys.
///
/// # Errors
/// If a file that it takes is not there or can't be read. What differs is no error: the report says so.
pub fn verify(file: &Path, keys: &[PathBuf]) -> Result<Report> {
    let keys = keys.iter().map(|file| Ok((file, public_key(file)?))).collect::<Result<Vec<_>>>()?;
    let file = if file.is_dir() { file.join("verdict.json") } else { file.to_owned() };
    let place = envelope_of(&file);
    let bytes = read(&file)?.ok_or_else(|| {
        Error::input("is not there; give a verdict.json or a run folder").about(file.display())
    })?;
    let json = read(&place)?.ok_or_else(|| {
        Error::input("is not there; the verdict is not signed")
            .about(place.display())
            .with(Remedy::SignVerdict)
    })?;
    let mut report = Report { file, good: false, checks: Vec::new(), statement: None };
    report.examine(&json, &bytes, &keys)?;
    report.good = !report.checks.iter().any(|c| c.result == CheckResult::Wrong);
    Ok(report)
}

impl Report {
    fn say(&mut self, what: impl Into<String>, result: CheckResult, detail: Option<String>) {
        self.checks.push(Check { what: what.into(), result, detail });
    }

    /// Good, or wrong with the reason.
    fn hold<T>(&mut self, what: &str, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => {
                self.say(what, CheckResult::Good, None);
                Some(value)
            }
            Err(reason) => {
                self.say(what, CheckResult::Wrong, Some(reason));
                None
            }
        }
    }

    /// From the signatures inwards: what nobody signed is not looked at.
    fn examine(&mut self, json: &[u8], bytes: &[u8], keys: &[(&PathBuf, PublicKey)]) -> Result<()> {
        let envelope = Envelope::parse(json).and_then(|e| Ok((e.unverified()?, e)));
        let (payload, envelope) = match envelope {
            Ok(parts) => parts,
            Err(e) => {
                self.say("verdict.dsse.json", CheckResult::Wrong, Some(e.to_string()));
                return Ok(());
            }
        };
        let mut signed = false;
        for (file, key) in keys {
            let what = format!("signature of {} (key {})", file.display(), key.id());
            signed |= self.hold(&what, envelope.verify(key).map_err(|e| e.to_string())).is_some();
        }
        if !signed {
            return Ok(());
        }
        let statement = Statement::parse(&envelope.payload_type, &payload).map_err(|e| e.to_string());
        let Some(statement) = self.hold("statement", statement) else { return Ok(()) };
        let verdict = self.hold("verdict.json", statement.about(bytes).map_err(|e| e.to_string()));
        self.files(&statement, verdict.as_ref())?;
        self.statement = Some(statement.predicate);
        Ok(())
    }

    /// The other files of the run, as far as they are still there.
    fn files(&mut self, statement: &Statement, verdict: Option<&Verdict>) -> Result<()> {
        let dir = self.file.parent().unwrap_or(Path::new("")).to_owned();
        let plan = self.file(&dir, "plan.json", statement.signed("plan.json"))?;
        let journal = self.file(&dir, "journal.jsonl", statement.signed("journal.jsonl"))?;
        for subject in statement.subject.iter().filter(|s| s.name != "verdict.json") {
            // A name out of a file must not lead out of the folder.
            let plain = !subject.name.contains('/');
            let digest = subject.digest.get("sha256").map(String::as_str).filter(|_| plain);
            self.file(&dir, &format!("patches/{}", subject.name), digest)?;
        }
        const AGREE: &str = "plan and journal agree";
        const AGAIN: &str = "judged again from plan and journal";
        if plan == CheckResult::Absent || journal == CheckResult::Absent {
            for what in [AGREE, AGAIN] {
                self.say(what, CheckResult::Absent, Some("needs both files".to_owned()));
            }
            return Ok(());
        }
        let Some(run) = self.agree(AGREE, &dir, verdict) else { return Ok(()) };
        // What differs has been said.
        if let (Some(verdict), CheckResult::Good, CheckResult::Good) = (verdict, plan, journal) {
            self.again(AGAIN, &run, verdict);
        }
        Ok(())
    }

    /// The run, if its documents do not contradict each other, whatever was signed.
    fn agree(&mut self, what: &str, dir: &Path, verdict: Option<&Verdict>) -> Option<Run> {
        let run = Run::open(dir).map_err(|e| e.to_string()).and_then(|run| {
            let wrong = consistency(&run.plan, &run.events);
            if wrong.is_empty() { Ok(run) } else { Err(wrong.join("; ")) }
        });
        match run {
            Ok(run) => {
                self.say(what, CheckResult::Good, None);
                Some(run)
            }
            Err(reason) => {
                self.otherwise(what, reason, verdict);
                None
            }
        }
    }

    fn file(&mut self, dir: &Path, name: &str, signed: Option<&str>) -> Result<CheckResult> {
        let Some(signed) = signed else {
            self.say(name, CheckResult::Wrong, Some("not covered by the signature".to_owned()));
            return Ok(CheckResult::Wrong);
        };
        let (result, detail) = match sha256_of(&dir.join(name))? {
            None => (CheckResult::Absent, Some(format!("sha256 {signed} was signed"))),
            Some(found) if found == signed => (CheckResult::Good, None),
            Some(found) => (
                CheckResult::Wrong,
                Some(format!("differs: sha256 {signed} was signed, and this one has {found}")),
            ),
        };
        self.say(name, result, detail);
        Ok(result)
    }

    fn again(&mut self, what: &str, run: &Run, verdict: &Verdict) {
        if klpfarm_model::judge(&run.plan, &run.events) == *verdict {
            self.say(what, CheckResult::Good, None);
        } else {
            self.otherwise(what, "a different verdict".to_owned(), Some(verdict));
        }
    }

    /// The rules are pure, so the same version says the same of the same files; another one may not.
    fn otherwise(&mut self, what: &str, reason: String, verdict: Option<&Verdict>) {
        let own = env!("CARGO_PKG_VERSION");
        match verdict.filter(|verdict| verdict.farm != own) {
            None => self.say(what, CheckResult::Wrong, Some(reason)),
            Some(verdict) => {
                let detail = format!("{reason}; klpfarm {} judged it, and this is {own}", verdict.farm);
                self.say(what, CheckResult::Unknown, Some(detail));
            }
        }
    }
}
