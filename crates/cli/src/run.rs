//! `klpfarm run`: plan, execute, judge, report.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use klpfarm_farm::Beginning;
use klpfarm_image::{CheckpointStore, Hold};
use klpfarm_model::event::CheckpointFacts;
use klpfarm_model::{Arm, Event, Start, Trial, judge};
use klpfarm_report::{Run, Terminal, View, summary};
use klpfarm_vm::{Files, Origin};

use crate::aging::{self, Maker};
use crate::failure::{Failure, code, print, print_json};
use crate::interrupt::Interrupts;
use crate::plan::{Choice, Planned, plan};
use crate::{home, host};

/// Gate a livepatch.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// The run folder, which must be empty or not exist; by default one below KLPFARM_HOME/runs.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the verdict as JSON on standard output, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Less free space than this and a run would die of a full disk.
const LEAST_DISK_MIB: u64 = 512;

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let planned = plan(&args.choice).await?;
    let home = home::home()?;
    let dir = run_dir(args.out.as_deref(), &home, &planned.plan.patches[0].name)?;
    say_limits(&planned);
    let interrupts = Interrupts::listen();
    let Some(events) = execute(&planned, &home, &dir, &interrupts).await? else {
        return Ok(code::INTERRUPTED);
    };
    let verdict = judge(&planned.plan, &events);
    Run::conclude(&dir, &planned.plan, &events, &verdict).map_err(Failure::farm)?;
    if args.json {
        print_json(&verdict);
    } else {
        print(&format!("\n{}", summary(&verdict, &dir, std::io::stdout().is_terminal())));
    }
    Ok(if interrupts.first.is_cancelled() { code::INTERRUPTED } else { verdict.exit_code() })
}

/// Run the trials of a plan, their journal kept in `dir`; nothing if the user did not want to wait for the machines to end.
pub(crate) async fn execute(
    planned: &Planned,
    home: &Path,
    dir: &Path,
    interrupts: &Interrupts,
) -> Result<Option<Vec<Event>>, Failure> {
    for place in [home, dir] {
        if let Some(free) = host::free_disk_mib(place).filter(|free| *free < LEAST_DISK_MIB) {
            return Err(Failure::farm(format!(
                "{}: only {free} MiB are free; a run needs {LEAST_DISK_MIB} MiB",
                place.display()
            )));
        }
    }
    host::sweep(&std::env::temp_dir(), "klpfarm-");
    host::sweep(home, ".scratch-");
    // Nobody may remove the image under running machines.
    let _held = planned.image.hold().map_err(Failure::farm)?;
    let plan = Arc::new(planned.plan.clone());
    Run::is_free(dir).map_err(Failure::input)?;
    eprintln!("klpfarm: accelerator: {}", planned.accel_because);
    let (origin, checkpoint, _kept) = origin(planned, home, interrupts).await?;
    let scratch = aging::scratch(home)?;
    let bench = aging::bench(&plan, &planned.image, &planned.patches, origin, dir, scratch.path())?;
    let view = if std::io::stderr().is_terminal() { View::Live } else { View::Plain };
    let mut journal = Run::create(dir, &plan).map_err(Failure::input)?;
    eprintln!("klpfarm: run folder: {}", dir.display());
    let mut terminal = Terminal::new(view, &plan);
    let mut sink = |event: &Event| {
        // The journal first: nothing is shown or done that is not kept.
        journal.append(event)?;
        terminal.event(event);
        Ok(())
    };
    let beginning =
        Beginning { time: jiff::Timestamp::now().to_string(), qemu: planned.qemu.clone(), checkpoint };
    let events = klpfarm_farm::run(&bench, beginning, &mut sink, interrupts.first.clone());
    match interrupts.until_second(events).await {
        None => Ok(None),
        Some(Ok(events)) => Ok(Some(events)),
        Some(Err(e)) => Err(Failure::farm(format!("{}: the journal can't be written: {e}", dir.display()))),
    }
}

/// What this run can't show, or costs, is said before it begins.
fn say_limits(planned: &Planned) {
    let plan = &planned.plan;
    // Every patch alone, and all together.
    let groups = plan.trials.iter().filter(|t| matches!(t.arm, Arm::Loaded | Arm::Stack));
    let alike = |a: &Trial| plan.trials.iter().filter(|b| (a.arm, &a.patches) == (b.arm, &b.patches)).count();
    let allowed = groups.map(alike).min().unwrap_or(0);
    if allowed < plan.needed as usize {
        eprintln!(
            "klpfarm: note: tier {} needs {} clean trials, and {allowed} are allowed: the patch can be rejected, but not qualified",
            plan.tier, plan.needed
        );
    }
    if let Some(why) = &planned.cold_because {
        eprintln!(
            "klpfarm: note: no forks: {why}; each of up to {} trials boots and ages for {} s by itself",
            plan.trials.len(),
            plan.pipeline.aging.uptime.as_secs()
        );
    }
}

/// How the trials' machines come to be: the checkpoint is found, made if there is none, and compared with its manifest.
async fn origin(
    planned: &Planned,
    home: &Path,
    interrupts: &Interrupts,
) -> Result<(Origin, Option<CheckpointFacts>, Option<Hold>), Failure> {
    if planned.plan.start == Start::Boot {
        return Ok((Origin::Boot, None, None));
    }
    let store = CheckpointStore::open(home).map_err(Failure::farm)?;
    let (checkpoint, made_ms) = match &planned.checkpoint {
        Some(checkpoint) => (checkpoint.clone(), None),
        None => {
            let maker = Maker {
                plan: Arc::new(planned.plan.clone()),
                image: planned.image.clone(),
                home: home.to_owned(),
                parent: None,
            };
            let key = aging::key(&planned.plan, &planned.image, &planned.qemu);
            maker.ensure(&store, &key, interrupts).await?
        }
    };
    // Nobody may remove it under running machines, and none may run from a damaged one.
    let held = checkpoint.hold().map_err(Failure::farm)?;
    aging::verified(&checkpoint).await?;
    let facts = aging::facts(&checkpoint, made_ms);
    Ok((Origin::Fork(Files::in_dir(&checkpoint.dir)), Some(facts), Some(held)))
}

/// The run folder: `out`, or one below the home, named by time and what is run.
pub(crate) fn run_dir(out: Option<&Path>, home: &Path, what: &str) -> Result<PathBuf, Failure> {
    match out {
        Some(dir) => std::path::absolute(dir).map_err(Failure::input),
        None => Ok(fresh_dir(&home.join("runs"), what)),
    }
}

/// A folder named by time and patch that is not there yet.
fn fresh_dir(runs: &Path, patch: &str) -> PathBuf {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let names =
        std::iter::once(format!("{stamp}-{patch}")).chain((2..).map(|n| format!("{stamp}-{patch}-{n}")));
    names.map(|name| runs.join(name)).find(|dir| !dir.exists()).unwrap_or_else(|| runs.join(stamp))
}
