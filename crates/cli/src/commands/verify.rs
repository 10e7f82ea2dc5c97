//! `klpfarm verify`.

use std::path::PathBuf;

use klpfarm_engine::verify::{CheckResult, Report, verify};
use klpfarm_report::one_line;

use crate::failure::{Failure, print, print_json};

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

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let report = verify(&args.verdict, &args.keys)?;
    if args.json {
        print_json(&report);
    } else {
        print(&text(&report));
    }
    Ok(u8::from(!report.good))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let detail = check.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default();
        text += &format!("{:<8} {}\n", word(check.result), one_line(&format!("{}{detail}", check.what), 600));
    }
    match (&report.statement, report.good) {
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

fn word(result: CheckResult) -> &'static str {
    match result {
        CheckResult::Good => "good",
        CheckResult::Wrong => "WRONG",
        CheckResult::Absent => "absent",
        CheckResult::Unknown => "unknown",
    }
}
