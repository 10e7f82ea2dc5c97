//! `klpfarm judge`: the verdict again, from the run folder alone.

use std::io::IsTerminal;
use std::path::PathBuf;

use klpfarm_engine::known;
use klpfarm_engine::run::documents_agree;
use klpfarm_model::known::sort_verdict;
use klpfarm_report::{Run, summary_with_known};

use crate::failure::{Failure, print_as_it_is, print_json};
use crate::runs_index::say_expired;

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
        say_expired(&list);
    }
    Ok(verdict.exit_code())
}
