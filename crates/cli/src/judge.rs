//! `klpfarm judge`: the verdict again, from the run folder alone.

use std::io::IsTerminal;
use std::path::PathBuf;

use klpfarm_report::{Run, summary};

use crate::failure::{Failure, print_as_it_is, print_json};

/// Judge a run again from its folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder.
    run: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let run = Run::open(&args.run).map_err(Failure::input)?;
    if run.torn {
        eprintln!("klpfarm: the journal's last line is incomplete and was left out");
    }
    if run.plan.apart {
        eprintln!(
            "klpfarm: the patches of this run have nothing to do with each other: `klpfarm qualify-detectors --again` judges each by itself"
        );
    }
    let verdict = klpfarm_model::judge(&run.plan, &run.events);
    if args.json {
        print_json(&verdict);
    } else {
        print_as_it_is(&summary(&verdict, &args.run, std::io::stdout().is_terminal()));
    }
    Ok(verdict.exit_code())
}
