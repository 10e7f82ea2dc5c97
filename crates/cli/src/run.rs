//! `klpfarm run`: plan, execute, judge, report.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use klpfarm_attest::PrivateKey;
use klpfarm_farm::{Beginning, Stop};
use klpfarm_image::{Checkpoint, CheckpointStore, Hold};
use klpfarm_model::event::CheckpointFacts;
use klpfarm_model::{Arm, Event, Plan, Trial, judge};
use klpfarm_report::{Journal, Run, Terminal, View, summary};
use klpfarm_vm::{Files, Origin, RunGroup};

use crate::aging::{self, Maker, Wanted};
use crate::failure::{Failure, code, print_as_it_is, print_json};
use crate::interrupt::Interrupts;
use crate::plan::{Choice, Place, Planned, plan};
use crate::{disk, gc, history, home, sign, signing};

/// Test a livepatch and decide whether it qualifies for a tier.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// Run folder to create; it must be empty or not exist [default: a new one in KLPFARM_HOME/runs].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What is said to a run whether it begins or goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Sign the verdict with this private key and write the signature to verdict.dsse.json.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: disk::Limits,
    /// Print only the verdict, as JSON, on standard output.
    #[arg(long)]
    json: bool,
}

impl Common {
    /// How the verdict is to be told; before anything else, for a key that can't be read must not cost a night.
    pub(crate) fn telling(&self) -> Result<Telling, Failure> {
        let key = self.sign.as_deref().map(signing::private_key).transpose()?;
        Ok(Telling { json: self.json, key })
    }
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let telling = args.common.telling()?;
    let planned = plan(&args.choice).await?;
    let home = home::home()?;
    let name = match planned.plan.rotation() {
        Some(_) => &planned.plan.pipeline.name,
        None => &planned.plan.patches[0].name,
    };
    let dir = run_dir(args.out.as_deref(), &home, name)?;
    say_limits(&planned);
    let interrupts = Interrupts::listen();
    let events = execute(&planned, &home, &dir, args.common.limits, &interrupts).await?;
    conclude(&planned.plan, events, &dir, &telling, &interrupts)
}

/// How a verdict is told.
pub(crate) struct Telling {
    /// As JSON on standard output, and nothing else.
    pub(crate) json: bool,
    /// Signed with this key.
    pub(crate) key: Option<PrivateKey>,
}

/// Judge and report; the exit code.
pub(crate) fn conclude(
    plan: &Plan,
    events: Option<Vec<Event>>,
    dir: &Path,
    telling: &Telling,
    interrupts: &Interrupts,
) -> Result<u8, Failure> {
    let Some(events) = events else { return Ok(code::INTERRUPTED) };
    let verdict = judge(plan, &events);
    Run::conclude(dir, plan, &events, &verdict).map_err(Failure::farm)?;
    if telling.json {
        print_json(&verdict);
    } else {
        print_as_it_is(&format!("\n{}", summary(&verdict, dir, std::io::stdout().is_terminal())));
    }
    // After printing: whatever becomes of the signature, the verdict has been said.
    telling.key.as_ref().map_or(Ok(()), |key| sign::sign_anew(dir, key))?;
    if interrupts.first.is_cancelled() {
        tell!("klpfarm: to continue: klpfarm resume {}", dir.display());
        return Ok(code::INTERRUPTED);
    }
    Ok(verdict.exit_code())
}

/// Run the trials of a plan from the beginning, their journal kept in `dir`; nothing if the user did not want to wait for the machines to
/// end.
pub(crate) async fn execute(
    planned: &Planned,
    home: &Path,
    dir: &Path,
    limits: disk::Limits,
    interrupts: &Interrupts,
) -> Result<Option<Vec<Event>>, Failure> {
    limits.allow(home, dir)?;
    let journal = Run::create(dir, &planned.plan, &planned.patches).map_err(Failure::input)?;
    let ended = go_on(planned, home, dir, (journal, Vec::new()), limits, interrupts).await;
    let journal = dir.join("journal.jsonl");
    if matches!(ended, Err(Failure::Input(_))) && std::fs::metadata(journal).is_ok_and(|m| m.len() == 0) {
        // Refused for what it was given, before anything happened: there is nothing to go on with.
        std::fs::remove_dir_all(dir).map_err(|e| Failure::farm(format!("{}: {e}", dir.display())))?;
    }
    ended
}

/// Run the trials that are left, behind what the journal holds already.
pub(crate) async fn go_on(
    planned: &Planned,
    home: &Path,
    dir: &Path,
    (mut journal, past): (Journal, Vec<Event>),
    limits: disk::Limits,
    interrupts: &Interrupts,
) -> Result<Option<Vec<Event>>, Failure> {
    gc::sweep(home).await;
    let plan = &planned.plan;
    tell!("klpfarm: accelerator: {}", planned.accel_because);
    if planned.plan.pipeline.is_auto() {
        for line in &planned.reach {
            tell!("klpfarm: reach: {}", klpfarm_report::one_line(line, 300));
        }
    }
    tell!("klpfarm: run folder: {}", dir.display());
    let scratch = aging::scratch(home)?;
    let machine = plan.pipeline.machine;
    // Ended with whatever is in it when the run is over.
    let group = RunGroup::create(machine.memory_mib, machine.cpus, plan.accel, plan.jobs).await;
    tell!("klpfarm: machines {}", group.words);
    let (mut held, mut benches, mut checkpoints) = (Vec::new(), Vec::new(), Vec::new());
    for (turn, place) in planned.places.iter().enumerate() {
        // Nobody may remove the image under running machines.
        held.push(place.image.hold().map_err(Failure::farm)?);
        let own = Arc::new(plan.of_turn(turn));
        let (origin, forked) = origin(&own, planned, place, home, (limits, interrupts)).await?;
        let from = forked.as_ref().map(|forked| &forked.checkpoint);
        let mut bench =
            aging::bench(&own, &place.image, from, &planned.patches, origin, dir, scratch.path())?;
        if let Some(forked) = forked {
            checkpoints.push(forked.facts);
            held.push(forked.hold);
        }
        bench.spec.group = group.group();
        benches.push(bench);
    }
    history::begun(home, dir);
    let view = if std::io::stderr().is_terminal() { View::Live } else { View::Plain };
    let mut terminal = Terminal::new(view, plan);
    past.iter().for_each(|e| terminal.past(e));
    let mut sink = |event: &Event| {
        // The journal first: nothing is shown or done that is not kept.
        journal.append(event)?;
        terminal.event(event);
        Ok(())
    };
    set_aside(dir, &past).map_err(|e| Failure::farm(format!("{}: {e}", dir.display())))?;
    let time = jiff::Timestamp::now().to_string();
    let beginning = Beginning { time, qemu: planned.qemu.clone(), checkpoints, past };
    let stop = Stop::from(interrupts.first.clone());
    let mut guard = disk::Guard::new(limits.or(plan.rotation().and_then(|r| r.disk_mib)), home, dir)?;
    let watching = async {
        stop.end(guard.low().await);
        std::future::pending().await
    };
    let events = klpfarm_farm::run(plan, &benches, beginning, &mut sink, stop.clone());
    let ended = tokio::select! {
        ended = interrupts.until_second(events) => ended,
        never = watching => never,
    };
    history::ended(home, dir);
    match ended {
        None => Ok(None),
        Some(Ok(events)) => Ok(Some(events)),
        Some(Err(e)) => Err(Failure::farm(format!("{}: cannot write the journal: {e}", dir.display()))),
    }
}

/// What trials that are done again left behind is kept beside their new folders.
fn set_aside(dir: &Path, past: &[Event]) -> std::io::Result<()> {
    for number in klpfarm_farm::unfinished(past) {
        let old = dir.join(Plan::trial_dir(number));
        let free = (1..).map(|n| old.with_file_name(format!("{number}-cut-off-{n}"))).find(|p| !p.exists());
        match free.map(|free| std::fs::rename(&old, free)) {
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What this run can't show, or costs, is said before it begins.
fn say_limits(planned: &Planned) {
    let plan = &planned.plan;
    // Every patch alone, and all together.
    let groups = plan.trials.iter().filter(|t| matches!(t.arm, Arm::Loaded | Arm::Soak | Arm::Stack));
    let alike = |a: &Trial| plan.trials.iter().filter(|b| (a.arm, &a.patches) == (b.arm, &b.patches)).count();
    let short = groups.map(|t| (alike(t), plan.due(t.arm), t.arm)).find(|(n, due, _)| *n < *due as usize);
    if let Some((allowed, needed, arm)) = short.filter(|_| !plan.mode.is_rotation()) {
        tell!(
            "klpfarm: note: tier {} needs {needed} clean {arm} trials but only {allowed} are allowed: this run can reject the patch, not qualify it",
            plan.tier
        );
    }
    if let Some(why) = &planned.cold_because {
        tell!(
            "klpfarm: note: cannot fork machines: {why}; each of up to {} trials boots and ages its own machine for {} s",
            plan.trials.len(),
            plan.pipeline.aging.uptime.as_secs()
        );
    }
}

/// What a turn's machines are forks of.
struct Forked {
    checkpoint: Checkpoint,
    facts: CheckpointFacts,
    hold: Hold,
}

/// How a turn's machines come to be: the checkpoint is found, made if there is none, and compared with its manifest.
async fn origin(
    own: &Arc<Plan>,
    planned: &Planned,
    place: &Place,
    home: &Path,
    (limits, interrupts): (disk::Limits, &Interrupts),
) -> Result<(Origin, Option<Forked>), Failure> {
    let Some(wanted) = &place.checkpoint else { return Ok((Origin::Boot, None)) };
    let store = CheckpointStore::open(home).map_err(Failure::farm)?;
    let maker = |parent: Option<(Checkpoint, Duration)>| Maker {
        plan: Arc::clone(own),
        image: place.image.clone(),
        home: home.to_owned(),
        parent,
        limits,
    };
    let (checkpoint, made_ms) = match wanted {
        Wanted::There(checkpoint) => ((**checkpoint).clone(), None),
        Wanted::New(key) => maker(None).ensure(&store, key, interrupts).await?,
        Wanted::Older { key, parent, more } => {
            let made = maker(Some(((**parent).clone(), *more))).ensure(&store, key, interrupts).await?;
            aging::thin_out(&store, own, *more, &place.image, &planned.qemu);
            made
        }
    };
    // Nobody may remove it under running machines, and none may run from a damaged one.
    let hold = checkpoint.hold().map_err(Failure::farm)?;
    aging::verified(&checkpoint).await?;
    let facts = aging::facts(&checkpoint, made_ms);
    Ok((Origin::Fork(Files::in_dir(&checkpoint.dir)), Some(Forked { checkpoint, facts, hold })))
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
