//! `klpfarm verify`: is a verdict what was signed, and by whom?

use std::path::{Path, PathBuf};

use klpfarm_attest::{Envelope, Predicate, PublicKey, Statement};
use klpfarm_model::{Verdict, consistency};
use klpfarm_report::{Run, one_line};
use serde::Serialize;

use crate::failure::{Failure, print, print_json};
use crate::signing::{envelope_of, public_key, read, sha256_of};

/// Verify a signed verdict: exit code 0 if everything is as it was signed, 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The verdict.json, or its run folder; the signatures are read from verdict.dsse.json in the same folder.
    verdict: PathBuf,
    /// Public key that must have signed the verdict; if repeated, all of them must have.
    #[arg(long = "key", value_name = "PUB", required = true)]
    keys: Vec<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// What came of the whole; its fields are API (docs/verdict.md).
#[derive(Serialize)]
struct Report {
    /// The verdict's file.
    file: PathBuf,
    /// Every key signed it, and nothing that was looked at differs.
    good: bool,
    checks: Vec<Check>,
    /// What was signed, if any of the keys signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    statement: Option<Predicate>,
}

#[derive(Serialize)]
struct Check {
    what: String,
    result: CheckResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckResult {
    Good,
    Wrong,
    /// The file is not there: nothing can be said of it.
    Absent,
    /// Another version of klpfarm would have to say it.
    Unknown,
}

impl CheckResult {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Wrong => "WRONG",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let keys = args.keys.iter().map(|file| Ok((file, public_key(file)?))).collect::<Result<Vec<_>, String>>();
    let keys = keys.map_err(Failure::input)?;
    let file = if args.verdict.is_dir() { args.verdict.join("verdict.json") } else { args.verdict.clone() };
    let place = envelope_of(&file);
    let missing =
        |path: &Path, hint: &str| Failure::input(format!("{}: is not there; {hint}", path.display()));
    let bytes = read(&file)?.ok_or_else(|| missing(&file, "give a verdict.json or a run folder"))?;
    let json = read(&place)?.ok_or_else(|| {
        missing(&place, "the verdict is not signed; sign it with `klpfarm sign RUN --key KEY`")
    })?;
    let mut report = Report { file, good: false, checks: Vec::new(), statement: None };
    report.examine(&json, &bytes, &keys)?;
    report.good = !report.checks.iter().any(|c| c.result == CheckResult::Wrong);
    if args.json {
        print_json(&report);
    } else {
        print(&report.text());
    }
    Ok(u8::from(!report.good))
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
    fn examine(&mut self, json: &[u8], bytes: &[u8], keys: &[(&PathBuf, PublicKey)]) -> Result<(), Failure> {
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
    fn files(&mut self, statement: &Statement, verdict: Option<&Verdict>) -> Result<(), Failure> {
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

    fn file(&mut self, dir: &Path, name: &str, signed: Option<&str>) -> Result<CheckResult, Failure> {
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

    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let detail = check.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default();
            text += &format!(
                "{:<8} {}\n",
                check.result.word(),
                one_line(&format!("{}{detail}", check.what), 600)
            );
        }
        match (&self.statement, self.good) {
            (Some(said), true) => {
                let image = said.image.release.as_deref().unwrap_or(&said.image.name);
                let said = format!(
                    "signed: {} for tier {} on {image}, klpfarm {}, {}",
                    said.verdict, said.tier, said.farm, said.time
                );
                text += &(one_line(&said, 600) + "\n");
            }
            _ => text += "DO NOT TRUST this verdict\n",
        }
        text
    }
}
