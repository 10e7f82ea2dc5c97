//! A run's life: from a plan to a folder that holds its journal, and from the journal to a verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use klpfarm_farm::{Beginning, Bench, Stop};
use klpfarm_image::{Checkpoint, CheckpointStore, Hold};
use klpfarm_model::event::CheckpointFacts;
use klpfarm_model::{Event, Plan, Trial, Verdict, consistency, judge};
use klpfarm_report::{Journal, Run, one_line};
use klpfarm_vm::{Files, Origin, RunGroup};

use crate::checkpoint::{self, Wanted};
use crate::maker::Maker;
use crate::plan::{Place, Planned};
use crate::{Error, Interrupts, Kind, Note, Result, Watcher, disk, gc, history, machine};

/// Where a run keeps what it makes, and how much disk it may use.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The folder of images, checkpoints and runs.
    pub home: &'a Path,
    /// The run folder.
    pub dir: &'a Path,
    /// The disk it may not use up.
    pub limits: disk::Limits,
}

/// Judge a run that has ended, and write the verdict and the report to its folder.
///
/// # Errors
/// If they can't be written.
pub fn conclude(dir: &Path, plan: &Plan, events: &[Event]) -> Result<Verdict> {
    let verdict = judge(plan, events);
    Run::conclude(dir, plan, events, &verdict).map_err(Error::farm)?;
    Ok(verdict)
}

/// Refuse a run folder whose plan and journal contradict each other or themselves: nothing can be said of such a run, nor can it go on.
///
/// # Errors
/// All that is wrong, a line each.
pub fn documents_agree(dir: &Path, plan: &Plan, events: &[Event]) -> Result<()> {
    let wrong = consistency(plan, events);
    if wrong.is_empty() {
        return Ok(());
    }
    let head = format!("{}: plan.json and journal.jsonl do not agree:", dir.display());
    let lines: Vec<String> =
        std::iter::once(head).chain(wrong.iter().map(|text| format!("  {}", one_line(text, 600)))).collect();
    Err(Error::inputs(&lines))
}

/// Run the trials of a plan from the beginning, their journal kept in the run folder, which must not exist or be empty; `None` if whoever
/// asked did not want to wait for the machines to end.
///
/// # Errors
/// If the folder can't be used, a machine can't be made, or the journal can't be written.
pub async fn execute(
    planned: &Planned,
    site: Site<'_>,
    interrupts: &Interrupts,
    watcher: &mut dyn Watcher,
) -> Result<Option<Vec<Event>>> {
    let Site { home, dir, limits } = site;
    limits.allow(home, dir)?;
    let journal = Run::create(dir, &planned.plan, &planned.patches).map_err(Error::input)?;
    let ended = go_on(planned, site, (journal, Vec::new()), interrupts, watcher).await;
    let journal = dir.join("journal.jsonl");
    let refused = ended.as_ref().is_err_and(|error| error.kind() == Kind::Input);
    if refused && std::fs::metadata(journal).is_ok_and(|m| m.len() == 0) {
        // Refused for what it was given, before anything happened: there is nothing to go on with.
        std::fs::remove_dir_all(dir).map_err(|e| Error::farm(e).about(dir.display()))?;
    }
    ended
}

/// Run the trials that are left, behind what the journal holds already; `None` as of [`execute`].
///
/// # Errors
/// If a machine can't be made, or the journal can't be written.
pub async fn go_on(
    planned: &Planned,
    site: Site<'_>,
    (mut journal, past): (Journal, Vec<Event>),
    interrupts: &Interrupts,
    watcher: &mut dyn Watcher,
) -> Result<Option<Vec<Event>>> {
    let Site { home, dir, limits } = site;
    gc::sweep(home, watcher).await;
    let plan = &planned.plan;
    watcher.note(Note::new(format!("accelerator: {}", planned.accel_because)));
    if plan.pipeline.is_auto() {
        for note in &planned.reach {
            watcher.note(Note { text: format!("reach: {}", note.text), remedy: note.remedy.clone() });
        }
    }
    watcher.note(Note::new(format!("run folder: {}", dir.display())));
    let scratch = machine::scratch(home)?;
    let machine = plan.pipeline.machine;
    // Ended with whatever is in it when the run is over.
    let group = RunGroup::create(machine.memory_mib, machine.cpus, plan.accel, plan.jobs).await;
    watcher.note(Note::new(format!("machines {}", group.words)));
    let Machines { mut benches, checkpoints, _held } =
        machines(planned, site, scratch.path(), interrupts, watcher).await?;
    benches.iter_mut().for_each(|bench| bench.spec.group = group.group());
    if let Some(note) = history::begun(home, dir) {
        watcher.note(note);
    }
    watcher.begins(plan, &past);
    set_aside(dir, &past).map_err(|e| Error::farm(e).about(dir.display()))?;
    let time = jiff::Timestamp::now().to_string();
    let beginning = Beginning { time, qemu: planned.qemu.clone(), checkpoints, past };
    let stop = Stop::from(interrupts.first.clone());
    let mut guard = disk::Guard::new(limits.or(plan.rotation().and_then(|r| r.disk_mib)), home, dir)?;
    let watching = async {
        stop.end(guard.low().await);
        std::future::pending().await
    };
    let mut sink = |event: &Event| {
        // The journal first: nothing is shown or done that is not kept.
        journal.append(event)?;
        watcher.event(event);
        Ok(())
    };
    let events = klpfarm_farm::run(plan, &benches, beginning, &mut sink, stop.clone());
    let ended = tokio::select! {
        ended = interrupts.until_second(events) => ended,
        never = watching => never,
    };
    watcher.ends();
    if let Some(note) = history::ended(home, dir) {
        watcher.note(note);
    }
    match ended {
        None => Ok(None),
        Some(Ok(events)) => Ok(Some(events)),
        Some(Err(e)) => Err(Error::farm(e).about("cannot write the journal").about(dir.display())),
    }
}

/// What the machines of a run are made of, and what must stay while they run.
struct Machines {
    /// One for each turn; without a rotation, one.
    benches: Vec<Bench>,
    checkpoints: Vec<CheckpointFacts>,
    _held: Vec<Hold>,
}

async fn machines(
    planned: &Planned,
    site: Site<'_>,
    scratch: &Path,
    interrupts: &Interrupts,
    watcher: &mut dyn Watcher,
) -> Result<Machines> {
    let mut machines = Machines { benches: Vec::new(), checkpoints: Vec::new(), _held: Vec::new() };
    for (turn, place) in planned.places.iter().enumerate() {
        // Nobody may remove the image under running machines.
        machines._held.push(place.image.hold().map_err(Error::farm)?);
        let own = Arc::new(planned.plan.of_turn(turn));
        let (origin, forked) = origin(&own, planned, place, site, interrupts, watcher).await?;
        let from = forked.as_ref().map(|forked| &forked.checkpoint);
        let bench = machine::bench(&own, &place.image, from, &planned.patches, origin, site.dir, scratch)?;
        machines.benches.push(bench);
        if let Some(forked) = forked {
            machines.checkpoints.push(forked.facts);
            machines._held.push(forked.hold);
        }
    }
    Ok(machines)
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

/// What a run of this plan can't show, or costs, for those who would rather know before it begins.
pub fn limits(planned: &Planned) -> Vec<Note> {
    let plan = &planned.plan;
    let mut notes = Vec::new();
    // Every patch alone, and all together.
    let groups = plan.trials.iter().filter(|t| t.arm.is_bounded());
    let alike = |a: &Trial| plan.trials.iter().filter(|b| (a.arm, &a.patches) == (b.arm, &b.patches)).count();
    let mut short = groups.map(|t| (alike(t), plan.due(t.arm), t.arm));
    let short = short.find(|(allowed, needed, _)| *allowed < *needed as usize);
    if let Some((allowed, needed, arm)) = short.filter(|_| !plan.mode.is_rotation()) {
        notes.push(Note::new(format!(
            "note: tier {} needs {needed} clean {arm} trials but only {allowed} are allowed: this run can reject the patch, not qualify it",
            plan.tier
        )));
    }
    if let Some(why) = &planned.cold_because {
        notes.push(Note::new(format!(
            "note: cannot fork machines: {why}; each of up to {} trials boots and ages its own machine for {} s",
            plan.trials.len(),
            plan.pipeline.aging.uptime.as_secs()
        )));
    }
    notes
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
    site: Site<'_>,
    interrupts: &Interrupts,
    watcher: &mut dyn Watcher,
) -> Result<(Origin, Option<Forked>)> {
    let Some(wanted) = &place.checkpoint else { return Ok((Origin::Boot, None)) };
    let store = CheckpointStore::open(site.home).map_err(Error::farm)?;
    let maker = |parent: Option<(Checkpoint, Duration)>| Maker {
        plan: Arc::clone(own),
        image: place.image.clone(),
        home: site.home.to_owned(),
        parent,
        limits: site.limits,
    };
    let (forked, made_ms) = match wanted {
        Wanted::There(checkpoint) => ((**checkpoint).clone(), None),
        Wanted::New(key) => maker(None).ensure(&store, key, interrupts, watcher).await?,
        Wanted::Older { key, parent, more } => {
            let maker = maker(Some(((**parent).clone(), *more)));
            let made = maker.ensure(&store, key, interrupts, watcher).await?;
            checkpoint::thin_out(&store, own, *more, (&place.image, &planned.qemu), watcher);
            made
        }
    };
    // Nobody may remove it under running machines, and none may run from a damaged one.
    let hold = forked.hold().map_err(Error::farm)?;
    checkpoint::verified(&forked).await?;
    let facts = checkpoint::facts(&forked, made_ms);
    Ok((Origin::Fork(Files::in_dir(&forked.dir)), Some(Forked { checkpoint: forked, facts, hold })))
}

/// The run folder: `out`, or one below the home, named by time and what is run.
///
/// # Errors
/// If the current folder, which `out` is relative to, no longer exists.
pub fn run_dir(out: Option<&Path>, home: &Path, what: &str) -> Result<PathBuf> {
    match out {
        Some(dir) => std::path::absolute(dir).map_err(Error::input),
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
