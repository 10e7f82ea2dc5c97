//! The measurements, in the order in which they are made.

use std::time::{Duration, Instant};

use klpfarm_engine::host;
use klpfarm_model::{Aging, Arm, Body, Event, Phase, Plan, Start, Trial, TrialEnd};
use klpfarm_stress::wire::{Ask, FromGuest, ToGuest};
use klpfarm_vm::{Files, Machine, Origin, Output};
use tokio::sync::{mpsc, watch};

use super::Extent;
use super::figure::{Expected, Figure, Unit, median};
use super::lab::{Lab, say};
use super::proc::{self, Memory};
use crate::failure::Failure;

/// QEMU is asked to end so long before it is killed.
const CLOSE: Duration = Duration::from_secs(5);
/// A fork's probe has to answer within this.
const ANSWER: Duration = Duration::from_secs(30);

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Age a machine by the pipeline and checkpoint it.
pub(super) async fn checkpoint(lab: &Lab) -> Result<(Files, Vec<Figure>), Failure> {
    let uptime = lab.plan.pipeline.aging.uptime.as_secs();
    say(&format!("aging a machine to an uptime of {uptime} s"));
    let begun = Instant::now();
    let (files, aged) = lab.age(lab.plan.clone(), "aged").await?;
    let made = begun.elapsed().as_secs_f64();
    let c = aged.checkpointed;
    let bytes = c.ram_bytes + c.state_bytes + c.disk_bytes;
    let parts = format!(
        "memory {:.0}, processors and devices {:.2}, disk {:.1}",
        megabytes(c.ram_bytes),
        megabytes(c.state_bytes),
        megabytes(c.disk_bytes)
    );
    let save = Figure::new("checkpoint, stop and save", Unit::Seconds, vec![seconds(c.stop_ms + c.save_ms)])
        .noting(format!("stop {:.3} s, save {:.3} s", seconds(c.stop_ms), seconds(c.save_ms)));
    let figures = vec![
        Figure::new("aged machine, from nothing", Unit::Seconds, vec![made]),
        save,
        Figure::new("checkpoint, sync to the disk", Unit::Seconds, vec![seconds(c.sync_ms)]),
        Figure::new("checkpoint, size", Unit::Megabytes, vec![megabytes(bytes)]).noting(parts),
    ];
    Ok((files, figures))
}

/// What one fork showed.
struct Fork {
    running: f64,
    answered: f64,
    at_once: Option<Memory>,
    loaded: Option<Memory>,
}

/// Fork machines, one at a time.
pub(super) async fn forks(lab: &Lab, files: &Files, extent: Extent) -> Result<Vec<Figure>, Failure> {
    say(&format!("{} forks, one at a time", extent.forks));
    let mut forks = Vec::new();
    for number in 0..extent.forks {
        let load = (number < extent.loaded_forks).then_some(extent.load);
        // Dropping a machine kills it and removes its sockets.
        let one = lab.interrupts.until_first(fork(lab, files, load)).await;
        lab.not_interrupted()?;
        forks.extend(one.transpose()?);
    }
    let times = |f: fn(&Fork) -> f64| forks.iter().map(f).collect();
    let memory = |of: fn(&Fork) -> Option<Memory>, part: fn(Memory) -> u64| {
        forks.iter().filter_map(of).map(|m| megabytes(part(m))).collect()
    };
    let after = extent.load.as_secs();
    Ok(vec![
        Figure::new("fork to running", Unit::Seconds, times(|f| f.running)).expecting(Expected::AtMost(0.15)),
        Figure::new("fork to the probe's first answer", Unit::Seconds, times(|f| f.answered)),
        Figure::new("fork's memory at once, private", Unit::Megabytes, memory(|f| f.at_once, |m| m.private)),
        Figure::new("fork's memory at once, Pss", Unit::Megabytes, memory(|f| f.at_once, |m| m.pss)),
        Figure::new(
            format!("fork's memory after {after} s of load, private"),
            Unit::Megabytes,
            memory(|f| f.loaded, |m| m.private),
        ),
        Figure::new(
            format!("fork's memory after {after} s of load, Pss"),
            Unit::Megabytes,
            memory(|f| f.loaded, |m| m.pss),
        )
        .noting("alone on the host: Pss counts the checkpoint's pages that others would share"),
    ])
}

async fn fork(lab: &Lab, files: &Files, load: Option<Duration>) -> Result<Fork, Failure> {
    let bench = lab.bench(lab.plan.clone(), Origin::Fork(files.clone()), "fork")?;
    let begun = Instant::now();
    let (machine, mut outputs) =
        Machine::start(&bench.spec, lab.dir(), lab.dir().join("console.log")).await.map_err(Failure::farm)?;
    let running = begun.elapsed().as_secs_f64();
    let at_once = Memory::of(machine.pid());
    machine.tell_probe(&ToGuest { id: 1, ask: Ask::Hello });
    tokio::time::timeout(ANSWER, hello(&mut outputs))
        .await
        .map_err(|_| Failure::farm(format!("a fork's probe did not answer within {} s", ANSWER.as_secs())))?;
    let answered = begun.elapsed().as_secs_f64();
    let mut loaded = None;
    if let Some(load) = load {
        // A stream that nobody reads holds the machine up; it ends with the machine.
        let _ = tokio::time::timeout(load, async { while outputs.recv().await.is_some() {} }).await;
        loaded = Memory::of(machine.pid());
    }
    drop(outputs);
    machine.close(CLOSE).await;
    Ok(Fork { running, answered, at_once, loaded })
}

async fn hello(outputs: &mut mpsc::Receiver<Output>) {
    while let Some(output) = outputs.recv().await {
        if matches!(output, Output::Probe(FromGuest::Hello { .. })) {
            break;
        }
    }
}

/// Apply the candidate at once, under the full load, on one machine after the other.
pub(super) async fn applied(lab: &Lab, files: &Files, extent: Extent) -> Result<Vec<Figure>, Failure> {
    say(&format!("{} times from fork to applied, one machine at a time", extent.applications));
    let (mut listed, mut complete, mut spoilt) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=extent.applications {
        let mut plan = lab.plan.clone();
        plan.pipeline.phases.settle = Duration::ZERO;
        plan.pipeline.phases.baseline = Duration::ZERO;
        let trial = Trial::new(number, Arm::Loaded, vec![0], plan.seed);
        plan.trials = vec![Trial { jitter: Duration::ZERO, ..trial }];
        let enough = lab.interrupts.first.child_token();
        let (name, origin) = (format!("applied-{number}"), Origin::Fork(files.clone()));
        // When the machine was started, the patch was listed, and all tasks had switched, in the host's milliseconds.
        let (mut start, mut at, mut done) = (0, None, None);
        let seen = |event: &Event| match &event.body {
            Body::TrialStarted => start = event.at_ms,
            Body::Applied { .. } => at = Some(event.at_ms),
            Body::TransitionDone { .. } => {
                done = Some(event.at_ms);
                enough.cancel();
            }
            _ => {}
        };
        let events = lab.run(plan, origin, &name, &enough, seen).await?;
        match (at, done) {
            (Some(at), Some(done)) => {
                listed.push(seconds(at - start));
                complete.push(seconds(done - start));
            }
            _ => spoilt.push(ends(&events)),
        }
    }
    let mut applied = Figure::new("fork to applied", Unit::Seconds, listed).expecting(Expected::AtMost(2.0));
    if !spoilt.is_empty() {
        applied = applied.noting(format!("without an end: {}", spoilt.join("; ")));
    }
    Ok(vec![applied, Figure::new("fork to transition complete", Unit::Seconds, complete)])
}

/// Why a run's trials ended, where not in order, and what they found.
fn ends(events: &[Event]) -> String {
    let words = |e: &Event| match &e.body {
        Body::Finding(finding) => Some(finding.title.clone()),
        // It ended in order, after a finding, or because we had seen enough.
        Body::TrialEnded { end: TrialEnd::Completed | TrialEnd::Stopped | TrialEnd::Interrupted } => None,
        Body::TrialEnded { end: TrialEnd::FarmError { message } } => Some(message.clone()),
        Body::TrialEnded { end } => Some(format!("{end:?}")),
        _ => None,
    };
    events.iter().filter_map(words).collect::<Vec<_>>().join(", ")
}

/// The farm's own use of the host.
struct Use {
    /// Per cent of one core.
    cpu: f64,
    resident: f64,
    peak: f64,
    /// The machines' memory, one by one.
    memory: Vec<Memory>,
}

/// The farm's own CPU and memory, with machines under load and with idle ones.
pub(super) async fn farm(lab: &Lab, files: &Files, extent: Extent) -> Result<Vec<Figure>, Failure> {
    let each = u64::from(lab.plan.pipeline.machine.memory_mib) + host::QEMU_OVERHEAD_MIB;
    let carries = host::available_memory_mib().unwrap_or(0) / each;
    let machines = extent.machines.min(u32::try_from(carries).unwrap_or(u32::MAX)).max(1);
    say(&format!("{machines} machines under load at once, for {} s", extent.window.as_secs()));
    let busy = watched(lab, lab.plan.clone(), "busy", files, machines, extent.window).await?;
    // A machine without load: the wear of no size at all does next to nothing, and the probe has somebody to watch.
    let mut plan = lab.plan.clone();
    plan.pipeline.aging = Aging {
        uptime: Duration::from_secs(1),
        cache_mib: 0,
        files: 0,
        fragment_mib: 0,
        residents: 0,
        churn: 0,
    };
    plan.workloads = vec![plan.pipeline.aging.workload()];
    say("booting a machine without load");
    let (idle_files, _) = lab.age(plan.clone(), "aged-idle").await?;
    say(&format!("{machines} idle machines at once, for {} s", extent.window.as_secs()));
    let idle = watched(lab, plan, "idle", &idle_files, machines, extent.window).await?;
    let mut figures = Vec::new();
    for (result, word) in [(busy, "busy"), (idle, "idle")] {
        figures.extend(used(result, machines, word));
    }
    Ok(figures)
}

fn used(result: Result<Use, String>, machines: u32, word: &str) -> Vec<Figure> {
    let (used, note) = match result {
        Ok(used) => (Some(used), None),
        Err(note) => (None, Some(note)),
    };
    let name = |what: &str| format!("farm's {what}, {machines} {word} machines");
    let one = |f: fn(&Use) -> f64| used.iter().map(f).collect::<Vec<_>>();
    let mut cpu = Figure::new(name("CPU"), Unit::Percent, one(|u| u.cpu)).expecting(Expected::AtMost(2.0));
    cpu.note = note;
    let resident = Figure::new(name("memory"), Unit::Megabytes, one(|u| u.resident));
    let each = |part: fn(&Memory) -> u64| {
        used.iter().flat_map(|u| &u.memory).map(|m| megabytes(part(m))).collect::<Vec<_>>()
    };
    vec![
        cpu,
        resident.expecting(Expected::AtMost(30.0)),
        Figure::new(name("memory at its peak"), Unit::Megabytes, one(|u| u.peak)),
        Figure::new(
            format!("{word} machine's memory, {machines} at once, private"),
            Unit::Megabytes,
            each(|m| m.private),
        ),
        Figure::new(
            format!("{word} machine's memory, {machines} at once, Pss"),
            Unit::Megabytes,
            each(|m| m.pss),
        ),
    ]
}

/// Run so many control trials at once and look at this process while all of them are in their baseline; in words, why not.
async fn watched(
    lab: &Lab,
    mut plan: Plan,
    name: &str,
    files: &Files,
    machines: u32,
    window: Duration,
) -> Result<Result<Use, String>, Failure> {
    plan.trials = (1..=machines).map(|n| Trial::new(n, Arm::Control, Vec::new(), plan.seed)).collect();
    plan.jobs = machines;
    // More machines than `run` would start on these cores: slowness must not look like a stall.
    plan.scale *= 5.0;
    plan.pipeline.phases.baseline = window + Duration::from_secs(120);
    let (settled, mut all) = watch::channel(0);
    let enough = lab.interrupts.first.child_token();
    let seen = |event: &Event| {
        if matches!((event.scope, &event.body), (Some(s), Body::PhaseStarted) if s.phase == Phase::Baseline) {
            settled.send_modify(|n| *n += 1);
        }
    };
    proc::reset_peak();
    let origin = Origin::Fork(files.clone());
    let mut running = std::pin::pin!(lab.run(plan, origin, name, &enough, seen));
    let used = tokio::select! {
        events = &mut running => return Ok(Err(format!("ended early: {}", ends(&events?)))),
        used = look(&mut all, machines, window) => used,
    };
    enough.cancel();
    let events = running.await?;
    let trouble = events.iter().any(|e| matches!(e.body, Body::Finding(_)));
    Ok(match used {
        Some(_) if trouble => Err(format!("a machine did not stay sound: {}", ends(&events))),
        Some(used) => Ok(used),
        None => Err("/proc can't be read".into()),
    })
}

async fn look(all: &mut watch::Receiver<u32>, machines: u32, window: Duration) -> Option<Use> {
    all.wait_for(|n| *n >= machines).await.ok()?;
    let (before, begun) = (proc::Stat::own()?.cpu, Instant::now());
    tokio::time::sleep(window).await;
    let (after, took) = (proc::Stat::own()?.cpu, begun.elapsed());
    let (resident, peak) = proc::resident()?;
    Some(Use {
        cpu: after.saturating_sub(before).as_secs_f64() / took.as_secs_f64() * 100.0,
        resident: megabytes(resident),
        peak: megabytes(peak),
        memory: proc::children("qemu-system").into_iter().filter_map(Memory::of).collect(),
    })
}

/// A wave of the pipeline's trials by forking, and one by booting.
pub(super) async fn trials(lab: &Lab, files: &Files) -> Result<Vec<Figure>, Failure> {
    let machine = lab.plan.pipeline.machine;
    let in_step = lab.plan.image.release.as_deref().is_some_and(klpfarm_model::rewrites_itself);
    let jobs = host::jobs(None, machine.cpus, machine.memory_mib, in_step)?;
    let forking = wave(lab, Start::Fork, Origin::Fork(files.clone()), jobs).await?;
    let booting = wave(lab, Start::Boot, Origin::Boot, jobs).await?;
    let ratio: Vec<f64> =
        if booting.an_hour > 0.0 { vec![forking.an_hour / booting.an_hour] } else { Vec::new() };
    let mut against = Figure::new("trials by forking against booting", Unit::Times, ratio)
        .expecting(Expected::AtLeast(10.0));
    if let (true, Some(start), Some(rest)) = (against.missed, median(&booting.start), median(&forking.rest)) {
        against = against.noting(format!(
            "booting and aging take {start:.0} s of a trial, all else {rest:.0} s by forking: ten times needs an aging of some {:.0} s",
            9.0 * rest
        ));
    }
    Ok(vec![
        forking.figure("trials an hour by forking"),
        booting.figure("trials an hour by booting and aging"),
        against,
    ])
}

struct Wave {
    an_hour: f64,
    note: String,
    /// Seconds until the machine was there and, if it was booted, old.
    start: Vec<f64>,
    /// Seconds from then on.
    rest: Vec<f64>,
}

impl Wave {
    fn figure(&self, name: &str) -> Figure {
        Figure::new(name, Unit::PerHour, vec![self.an_hour]).noting(self.note.clone())
    }
}

/// As many loaded trials at once as the host carries.
async fn wave(lab: &Lab, start: Start, origin: Origin, jobs: u32) -> Result<Wave, Failure> {
    let word = if start == Start::Fork { "forking" } else { "booting and aging" };
    say(&format!("a wave of {jobs} whole trials by {word}"));
    let mut plan = lab.plan.clone();
    plan.start = start;
    plan.jobs = jobs;
    // None is left out because enough were clean.
    plan.needed = plan.needed.max(jobs);
    plan.trials = (1..=jobs).map(|n| Trial::new(n, Arm::Loaded, vec![0], plan.seed)).collect();
    let cancel = lab.interrupts.first.child_token();
    let begun = Instant::now();
    let name = if start == Start::Fork { "forked" } else { "booted" };
    let events = lab.run(plan, origin, name, &cancel, |_| {}).await?;
    let took = begun.elapsed().as_secs_f64();
    Ok(sum_up(&events, jobs, took))
}

fn sum_up(events: &[Event], jobs: u32, took: f64) -> Wave {
    let at = |trial: u32, wanted: &dyn Fn(&Event) -> bool| {
        let event = events.iter().find(|e| e.scope.is_some_and(|s| s.trial == trial) && wanted(e));
        event.map(|e| seconds(e.at_ms))
    };
    let completed = |e: &Event| matches!(e.body, Body::TrialEnded { end: TrialEnd::Completed });
    let (mut begin, mut rest) = (Vec::new(), Vec::new());
    for trial in 1..=jobs {
        let started = at(trial, &|e| e.body == Body::TrialStarted);
        let ready =
            at(trial, &|e| e.body == Body::PhaseStarted && e.scope.is_some_and(|s| s.phase == Phase::Settle));
        if let (Some(started), Some(ready), Some(ended)) = (started, ready, at(trial, &completed)) {
            begin.push(ready - started);
            rest.push(ended - ready);
        }
    }
    let done = rest.len();
    let whole: f64 = begin.iter().chain(&rest).sum();
    // From the length of whole trials: one that was spoilt makes neither way look better.
    let an_hour = if done > 0 { f64::from(jobs) * 3600.0 * done as f64 / whole } else { 0.0 };
    let mut note = format!("{done} of {jobs} trials completed, {jobs} at once, in {took:.0} s");
    if done < jobs as usize {
        note.push_str(&format!(": {}", ends(events)));
    }
    Wave { an_hour, note, start: begin, rest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use klpfarm_model::Scope;

    fn event(at_ms: u64, trial: u32, phase: Phase, body: Body) -> Event {
        Event { seq: at_ms, at_ms, scope: Some(Scope { trial, arm: Arm::Loaded, phase }), body }
    }

    #[test]
    fn a_wave_counts_whole_trials_only() {
        let error = TrialEnd::FarmError { message: "no disk".into() };
        let events = [
            event(0, 1, Phase::Boot, Body::TrialStarted),
            event(0, 2, Phase::Boot, Body::TrialStarted),
            event(2000, 1, Phase::Settle, Body::PhaseStarted),
            event(3000, 2, Phase::Settle, Body::PhaseStarted),
            event(4000, 1, Phase::Baseline, Body::PhaseStarted),
            event(5000, 2, Phase::End, Body::TrialEnded { end: error }),
            event(30_000, 1, Phase::End, Body::TrialEnded { end: TrialEnd::Completed }),
        ];
        let wave = sum_up(&events, 2, 36.0);
        assert_eq!((wave.an_hour, wave.start, wave.rest), (240.0, vec![2.0], vec![28.0]));
        assert_eq!(wave.note, "1 of 2 trials completed, 2 at once, in 36 s: no disk");
    }
}
