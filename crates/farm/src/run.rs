//! A run: trials, so many at once, their events numbered and handed to one sink, until the verdict is reached.

mod running;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use klpfarm_model::event::{AGED, CheckpointFacts, Vitals};
use klpfarm_model::{Arm, Body, Detector, Event, Finding, Judge, Phase, Plan, Scope, Trial, TrialEnd};
use klpfarm_vm::{Checkpointed, Login};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::drive::{Bench, Ended, Wires, drive};
use crate::past::Past;
use crate::stop::Stop;
use crate::trial::Purpose;
use running::Running;

/// Takes each event, in order, before it is acted on.
pub trait Sink {
    /// Take an event.
    ///
    /// # Errors
    /// If it can't be kept (disk full): the run ends then.
    fn event(&mut self, event: &Event) -> std::io::Result<()>;
}

impl<F: FnMut(&Event) -> std::io::Result<()>> Sink for F {
    fn event(&mut self, event: &Event) -> std::io::Result<()> {
        self(event)
    }
}

/// What a run is begun with, besides its benches.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// RFC 3339 time of the host.
    pub time: String,
    /// First line of QEMU's version.
    pub qemu: String,
    /// The checkpoints that the benches' machines are forks of.
    pub checkpoints: Vec<CheckpointFacts>,
    /// What the journal of a run that was cut off holds; empty if the run is new.
    pub past: Vec<Event>,
}

/// Run trials of the plan, `plan.jobs` at once or fewer while the host is overloaded, until the verdict is reached, the trials or the time are used up, or `early`. All machines
/// are gone when it returns. `benches` are those of the plan's turns; a plan without turns has one.
///
/// # Errors
/// If the sink can't keep an event; the machines are ended first.
pub async fn run(
    plan: &Plan,
    benches: &[Bench],
    beginning: Beginning,
    sink: &mut dyn Sink,
    early: impl Into<Stop>,
) -> std::io::Result<Vec<Event>> {
    let carry = |trial: Trial, wires: Wires| {
        let bench = benches[trial.turn].clone();
        let purpose = Purpose::trial(&bench.spec.origin);
        async move { drive(&bench, trial, purpose, wires).await }
    };
    conduct(plan, beginning, sink, early.into(), carry).await
}

/// The same, whatever carries the trials out.
async fn conduct<F, Fut>(
    plan: &Plan,
    beginning: Beginning,
    sink: &mut dyn Sink,
    early: Stop,
    carry: F,
) -> std::io::Result<Vec<Event>>
where
    F: Fn(Trial, Wires) -> Fut,
    Fut: Future<Output = Ended> + Send + 'static,
{
    let mut judge = Judge::new(plan);
    let mut log = begin(plan, beginning, sink, &mut judge)?;
    let (report, mut reports) = mpsc::channel::<(Scope, Body)>(256);
    let known = Functions::new(plan, &log.events);
    let (stop, _) = watch::channel(None);
    let mut running: JoinSet<Option<Ended>> = JoinSet::new();
    let mut trials = Running::new(plan.jobs);
    let mut failed = None;
    let mut more = !log.is_decided();
    let mut over = std::pin::pin!(tokio::time::sleep(time_left(plan, log.before)));
    loop {
        while more && stop.borrow().is_none() && trials.has_room() {
            if trials.is_starving() {
                if let Some((scope, text)) = trials.hold()
                    && let Err(error) = log.add(Some(scope), Body::Note { text })
                {
                    failed = Some(error);
                    stop.send_replace(Some(TrialEnd::Interrupted));
                }
                break;
            }
            let Some(trial) = log.next_trial() else {
                more = false;
                break;
            };
            let functions = known.subscribe(trial.turn);
            let (recent, share) = watch::channel(None);
            let wires =
                Wires { report: report.clone(), functions, stop: stop.subscribe(), recent: Arc::new(recent) };
            let scope = Scope { trial: trial.number, arm: trial.arm, phase: Phase::Boot };
            let driven = carry(trial, wires);
            let task = running.spawn(async move { Some(driven.await) });
            trials.started(task.id(), scope, share);
        }
        let (scope, body) = tokio::select! {
            biased;
            Some(event) = reports.recv() => event,
            () = early.user(), if stop.borrow().is_none() => {
                stop.send_replace(Some(TrialEnd::Interrupted));
                continue;
            }
            why = early.host(), if stop.borrow().is_none() => {
                stop.send_replace(Some(TrialEnd::OutOfBudget));
                if let Err(error) = log.add(None, Body::Note { text: format!("the run ends here: {why}") }) {
                    failed = Some(error);
                }
                continue;
            }
            () = &mut over, if stop.borrow().is_none() => {
                stop.send_replace(Some(TrialEnd::OutOfBudget));
                continue;
            }
            ended = running.join_next_with_id() => match ended {
                Some(Ok((id, _))) => {
                    trials.gone(id);
                    continue;
                }
                Some(Err(error)) => {
                    if let Some(end) = trials.crashed(&error) {
                        // Behind whatever the trial has still said.
                        let report = report.clone();
                        running.spawn(async move { report.send(end).await.ok().and(None) });
                    }
                    continue;
                }
                // Nothing runs and nothing was started: that was all.
                None => break,
            },
        };
        if failed.is_some() {
            continue;
        }
        known.learn(plan, scope, &body);
        let ended = matches!(body, Body::TrialEnded { .. });
        let said = trials.heard(scope, &body);
        let kept = log.add(Some(scope), body);
        let kept = kept.and_then(|()| said.map_or(Ok(()), |text| log.add(Some(scope), Body::Note { text })));
        if let Err(error) = kept {
            failed = Some(error);
            stop.send_replace(Some(TrialEnd::Interrupted));
        } else if ended && stop.borrow().is_none() {
            more = true;
            if log.is_decided() {
                stop.send_replace(Some(TrialEnd::Unneeded));
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    log.add(None, Body::RunEnded { interrupted: early.by_user() })?;
    Ok(log.events)
}

/// Open the run's journal, or go on with it.
fn begin<'a>(
    plan: &Plan,
    beginning: Beginning,
    sink: &'a mut dyn Sink,
    judge: &'a mut Judge,
) -> std::io::Result<Log<'a>> {
    let Beginning { time, qemu, checkpoints, past } = beginning;
    let before = Past::read(&past);
    let new = past.is_empty();
    past.iter().for_each(|event| judge.push(event));
    let mut log = Log { judge: Some(judge), ..Log::after(past, sink) };
    if new {
        log.add(None, Body::RunStarted { time, plan: plan.hash(), accel: plan.accel, qemu })?;
    } else {
        for scope in before.found {
            log.add(Some(scope), Body::TrialEnded { end: TrialEnd::Interrupted })?;
        }
        log.add(None, Body::RunResumed { time, qemu, void: before.void })?;
    }
    for facts in checkpoints {
        let known = |e: &Event| matches!(&e.body, Body::Checkpoint(c) if c.id == facts.id);
        if !log.events.iter().any(known) {
            log.add(None, Body::Checkpoint(Box::new(facts)))?;
        }
    }
    Ok(log)
}

/// How long a run may still go on that has gone on for so long; far beyond any run if nothing limits it.
fn time_left(plan: &Plan, gone: Duration) -> Duration {
    let all = plan.rotation().map(|r| r.duration).or(plan.pipeline.budget);
    all.unwrap_or(Duration::from_secs(10 * 365 * 24 * 3600)).saturating_sub(gone)
}

/// Whether a run with these events has come to its end, so that there is nothing to go on with: its verdict is reached, its trials have been
/// done, or its time is over. One that was ended early is not over, by whatever it was.
pub fn is_over(plan: &Plan, events: &[Event]) -> bool {
    let Some(last) = events.last() else { return false };
    let past = Past::read(events);
    if !matches!(last.body, Body::RunEnded { interrupted: false }) {
        return false;
    }
    let mut judge = Judge::new(plan);
    events.iter().for_each(|event| judge.push(event));
    if judge.is_decided() || time_left(plan, Duration::from_millis(last.at_ms)).is_zero() {
        return true;
    }
    // As a run that goes on begins.
    let body = Body::RunResumed { time: String::new(), qemu: String::new(), void: past.void };
    judge.push(&Event { seq: last.seq + 1, at_ms: last.at_ms, scope: None, body });
    judge.next_trial().is_none()
}

/// Functions that the patches replace, by turn: what one trial learns from sysfs, the others count calls of.
struct Functions(Vec<watch::Sender<Vec<String>>>);

impl Functions {
    fn new(plan: &Plan, past: &[Event]) -> Self {
        let known = Self((0..plan.turns()).map(|_| watch::channel(Vec::new()).0).collect());
        for event in past {
            if let Some(scope) = event.scope {
                known.learn(plan, scope, &event.body);
            }
        }
        known
    }

    fn subscribe(&self, turn: usize) -> watch::Receiver<Vec<String>> {
        self.0[turn].subscribe()
    }

    fn learn(&self, plan: &Plan, scope: Scope, body: &Body) {
        let Body::Applied { functions: new, .. } = body else { return };
        self.0[plan.turn_of(scope.trial)].send_if_modified(|all| {
            let before = all.len();
            all.extend(new.iter().cloned());
            all.sort();
            all.dedup();
            all.len() > before
        });
    }
}

/// A machine that has grown old.
#[derive(Debug)]
pub struct Aged {
    /// What its checkpoint cost.
    pub checkpointed: Checkpointed,
    /// How to log in to its forks, if it was given keys of its own.
    pub login: Option<Login>,
    /// The machine soon after booting; absent if it was forked from an older checkpoint.
    pub fresh: Option<Vitals>,
    /// The machine in the end.
    pub reached: Vitals,
    /// The guest's kernel.
    pub release: String,
    /// Detectors that can't fire on it, and why.
    pub blind: BTreeMap<Detector, String>,
    /// Workloads that can't run on it, and why.
    pub unavailable: BTreeMap<String, String>,
}

/// Why there is no aged machine.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// The farm's trouble.
    #[error("{0}")]
    Farm(String),
    /// Something is wrong without any patch.
    #[error("the machine did not stay sound while it was aged: {}", .0.title)]
    Unsound(Box<Finding>),
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
    /// An event could not be kept.
    #[error("an event could not be kept: {0}")]
    Sink(#[from] std::io::Error),
}

/// Age the bench's machine under its load and checkpoint it: after booting until the plan's `aging.uptime`, or, from an older
/// checkpoint, for `more`. Its events have a scope of their own ([`Scope::is_aging`]).
///
/// # Errors
/// See [`AgeError`].
pub async fn age(
    bench: &Bench,
    more: Option<Duration>,
    sink: &mut dyn Sink,
    cancel: CancellationToken,
) -> Result<Aged, AgeError> {
    let mut log = Log::new(sink);
    let (report, mut reports) = mpsc::channel::<(Scope, Body)>(256);
    let (_functions, functions) = watch::channel(Vec::new());
    let (stop, stopped) = watch::channel(None);
    // The same whatever run it is made for: its forks are given seeds of their own.
    let trial = Trial::new(AGED, Arm::Control, Vec::new(), 0);
    let purpose = more.map_or(Purpose::Aging, Purpose::Older);
    let recent = Arc::new(watch::channel(None).0);
    let wires = Wires { report, functions, stop: stopped, recent };
    let mut machine = std::pin::pin!(drive(bench, trial, purpose, wires));
    let mut failed = None;
    let ended = loop {
        tokio::select! {
            biased;
            Some((scope, body)) = reports.recv() => {
                // A finding's evidence is of no use to anybody here, but its title is.
                let found = matches!(body, Body::Finding(_));
                if let Err(error) = log.add(Some(scope), body) {
                    failed = Some(error);
                }
                if (found || failed.is_some()) && stop.borrow().is_none() {
                    stop.send_replace(Some(TrialEnd::Stopped));
                }
            }
            () = cancel.cancelled(), if stop.borrow().is_none() => {
                stop.send_replace(Some(TrialEnd::Interrupted));
            }
            ended = &mut machine => break ended,
        }
    };
    while let Ok((scope, body)) = reports.try_recv() {
        log.add(Some(scope), body)?;
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    aged(ended, &log.events)
}

fn aged(ended: Ended, events: &[Event]) -> Result<Aged, AgeError> {
    let (mut fresh, mut reached, mut release) = (None, None, String::new());
    let (mut blind, mut unavailable) = (BTreeMap::new(), BTreeMap::new());
    for event in events {
        match &event.body {
            Body::Finding(finding) => return Err(AgeError::Unsound(finding.clone())),
            Body::MachineReady { release: r, .. } => release.clone_from(r),
            Body::Blind { detector, reason } => {
                blind.insert(*detector, reason.clone());
            }
            Body::WorkloadUnavailable { workload, reason } => {
                unavailable.insert(workload.clone(), reason.clone());
            }
            Body::Vitals(v) if event.scope.is_some_and(|s| s.phase == Phase::Boot) => fresh = Some(v.clone()),
            Body::Vitals(v) => reached = Some(v.clone()),
            _ => {}
        }
    }
    match (ended.end, ended.checkpointed, reached) {
        (TrialEnd::Completed, Some(checkpointed), Some(reached)) => {
            Ok(Aged { checkpointed, login: ended.login, fresh, reached, release, blind, unavailable })
        }
        (TrialEnd::FarmError { message }, _, _) => Err(AgeError::Farm(message)),
        (TrialEnd::Interrupted, _, _) => Err(AgeError::Interrupted),
        (end, _, _) => Err(AgeError::Farm(format!("aging ended without a checkpoint: {end:?}"))),
    }
}

struct Log<'a> {
    started: Instant,
    /// How long the run had gone on before it was cut off.
    before: Duration,
    seq: u64,
    events: Vec<Event>,
    /// Who says what comes next; nobody while a machine is aged.
    judge: Option<&'a mut Judge>,
    sink: &'a mut dyn Sink,
}

impl<'a> Log<'a> {
    fn new(sink: &'a mut dyn Sink) -> Self {
        Self::after(Vec::new(), sink)
    }

    fn after(past: Vec<Event>, sink: &'a mut dyn Sink) -> Self {
        let (seq, at_ms) = past.last().map_or((0, 0), |e| (e.seq, e.at_ms));
        Self {
            started: Instant::now(),
            before: Duration::from_millis(at_ms),
            seq,
            events: past,
            judge: None,
            sink,
        }
    }

    fn is_decided(&mut self) -> bool {
        self.judge.as_mut().is_some_and(|judge| judge.is_decided())
    }

    /// The next trial worth starting, from now on a trial that was started.
    fn next_trial(&mut self) -> Option<Trial> {
        let judge = self.judge.as_mut()?;
        let trial = judge.next_trial()?;
        judge.start(trial.number);
        Some(trial)
    }

    fn add(&mut self, scope: Option<Scope>, body: Body) -> std::io::Result<()> {
        self.seq += 1;
        let at = self.before + self.started.elapsed();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let event = Event { seq: self.seq, at_ms, scope, body };
        self.sink.event(&event)?;
        if let Some(judge) = &mut self.judge {
            judge.push(&event);
        }
        // Half of a journal, and nobody judges by it: a soak of days would fill the memory.
        if !matches!(event.body, Body::Progress { .. }) {
            self.events.push(event);
        }
        Ok(())
    }
}
