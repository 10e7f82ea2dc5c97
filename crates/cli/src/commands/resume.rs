//! `klpfarm resume`: a run that was cut off goes on.

use std::path::PathBuf;

use klpfarm_engine::resume::planned;
use klpfarm_engine::run::{Site, documents_agree, go_on};
use klpfarm_engine::{home, sign};
use klpfarm_report::Run;

use super::run::{Common, conclude};
use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt;

/// Resume an interrupted run: trials that ended count, the others are repeated.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder.
    run: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let telling = args.common.telling()?;
    let dir = std::path::absolute(&args.run).map_err(Failure::input)?;
    let (run, journal) = Run::resume(&dir).map_err(Failure::input)?;
    let Run { plan, events, torn } = run;
    if torn {
        tell!("klpfarm: the last line of the journal was incomplete and was removed");
    }
    documents_agree(&dir, &plan, &events)?;
    let interrupts = interrupt::listen();
    if klpfarm_farm::is_over(&plan, &events) {
        tell!("klpfarm: this run has already ended with this verdict:");
        return conclude(&plan, Some(events), &dir, &telling, &interrupts);
    }
    let home = home()?;
    let planned = planned(plan, &events, &dir, &home).await?;
    if sign::withdraw(&dir) && telling.key.is_none() {
        tell!(
            "klpfarm: the signature of the previous verdict was removed; sign the new one with `klpfarm sign`"
        );
    }
    let site = Site { home: &home, dir: &dir, limits: args.common.limits.into() };
    let events = go_on(&planned, site, (journal, events), &interrupts, &mut Console::default()).await?;
    if planned.plan.mode.is_independent() && !interrupts.first.is_cancelled() {
        tell!("klpfarm: for the results of this run: klpfarm qualify-detectors --again {}", dir.display());
    }
    conclude(&planned.plan, events, &dir, &telling, &interrupts)
}
