//! `klpfarm judge`: the verdict again, from the run folder alone.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use klpfarm_model::known::sort_verdict;
use klpfarm_model::{Event, Plan, consistency};
use klpfarm_report::{Run, one_line, summary_with_known};

use crate::failure::{Failure, print_as_it_is, print_json};
use crate::known;

/// Recompute the verdict of a run from its folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder.
    run: PathBuf,
    /// The list of known findings; by default known-findings.yaml here or in KLPFARM_HOME, if there is one.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let run = Run::open(&args.run).map_err(Failure::input)?;
    if run.torn {
        tell!("klpfarm: the last line of the journal is incomplete and was ignored");
    }
    documents_agree(&args.run, &run.plan, &run.events)?;
    if run.plan.mode.is_independent() {
        tell!(
            "klpfarm: this is a run of qualify-detectors, which judges each patch on its own: use `klpfarm qualify-detectors --again`"
        );
    }
    let list = known::list(args.known.as_deref())?;
    let verdict = klpfarm_model::judge(&run.plan, &run.events);
    let standings = sort_verdict(&verdict, &list, known::today());
    if args.json {
        print_json(&verdict);
    } else {
        print_as_it_is(&summary_with_known(&verdict, &args.run, std::io::stdout().is_terminal(), &standings));
        known::say_expired(&list);
    }
    Ok(verdict.exit_code())
}

/// Refuse a run folder whose plan and journal contradict each other or themselves, with all that is wrong: nothing can be said of such a
/// run, nor can it go on.
pub(crate) fn documents_agree(dir: &Path, plan: &Plan, events: &[Event]) -> Result<(), Failure> {
    let wrong = consistency(plan, events);
    if wrong.is_empty() {
        return Ok(());
    }
    let head = format!("{}: plan.json and journal.jsonl do not agree:", dir.display());
    let lines: Vec<String> =
        std::iter::once(head).chain(wrong.iter().map(|text| format!("  {}", one_line(text, 600)))).collect();
    Err(Failure::inputs(&lines))
}
