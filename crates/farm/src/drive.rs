//! The effects of one trial: it starts the machine, feeds the dispatcher, and does what the dispatcher says. It decides nothing.

mod forward;
mod jobs;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use klpfarm_model::{Body, Limits, Phase, Plan, Scope, Trial, TrialEnd, replaced_functions};
use klpfarm_vm::{Checkpointed, Login, Machine, Output, Spec, Ssh};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::code::Code;
use crate::evidence::Symbols;
use crate::fair::{Fair, TICK};
use crate::host::{Host, Look};
use crate::measure::millis;
use crate::nonce;
use crate::pace::{self, Pace};
use crate::trial::{Action, Dispatcher, Input, NoLogin, Purpose, longest};
use forward::Forward;

/// What all trials of a run share.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The machine each trial gets.
    pub spec: Spec,
    /// How to log in.
    pub login: Login,
    /// Where the debug symbols of its kernel are.
    pub symbols: Symbols,
    /// A machine that is aged is to get SSH keys of its own: those it has were made by the farm.
    pub rekey: bool,
    /// Contents of the patch files, as hashed in the plan and in its order.
    pub patches: Arc<Vec<Vec<u8>>>,
    /// Share of their time that a machine's CPUs are expected to get from the host, 0 to 1: less than 1 where machines that run at once
    /// have more CPUs than the host.
    pub share: f64,
    /// The run folder.
    pub run_dir: PathBuf,
    /// Folder for QEMU's temporary files.
    pub scratch: PathBuf,
}

/// Events of a trial, before the run numbers them.
pub(crate) type Report = mpsc::Sender<(Scope, Body)>;

/// How often it is looked at how long the machine's CPUs wait.
const LOOK: Duration = Duration::from_millis(200);
/// QEMU's monitor answers at once or, while it is busy, a little later.
const ANSWER: Duration = Duration::from_secs(10);
/// QEMU is asked to end so long before it is killed.
const CLOSE: Duration = Duration::from_secs(5);

/// A trial may take so many times what all its steps and their limits add up to. A busy host slows a machine's time down, and the farm's
/// limits with it; and what passes while the farm is not run counts for no limit. Without a bound such a trial would never end.
const PATIENCE: u32 = 4;

/// What is found so long after the host did something to the machine may be its doing: all limits for slowness are over by then.
fn grace(limits: &Limits) -> Duration {
    const LEAST: Duration = Duration::from_secs(60);
    let Limits { stall, blocked, ssh, probe, cpu, console, hung_task, .. } = *limits;
    [stall, blocked, ssh, probe, cpu, console, hung_task].into_iter().fold(LEAST, Duration::max)
}

/// What reaches a trial from outside while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Wires {
    /// Where its events go.
    pub(crate) report: Report,
    /// Functions that the patches replace, as soon as any trial knows.
    pub(crate) functions: watch::Receiver<Vec<String>>,
    /// It is to end now, in this way.
    pub(crate) stop: watch::Receiver<Option<TrialEnd>>,
    /// The share of its planned CPU time that it got of late, once that can be told ([`Pace::recent`]).
    pub(crate) recent: Arc<watch::Sender<Option<f64>>>,
}

/// What became of a trial.
pub(crate) struct Ended {
    pub(crate) end: TrialEnd,
    /// What a machine that was aged left for its forks.
    pub(crate) checkpointed: Option<Checkpointed>,
    /// How to log in to those, if not as to the machine they came from.
    pub(crate) login: Option<Login>,
}

/// Run one trial to its end.
pub(crate) async fn drive(bench: &Bench, trial: Trial, purpose: Purpose, wires: Wires) -> Ended {
    let Wires { report, mut functions, mut stop, recent } = wires;
    let most = longest(&bench.plan, &trial, purpose) * PATIENCE;
    let mut driver = Driver {
        bench,
        dispatcher: Dispatcher::new(Arc::clone(&bench.plan), trial.clone(), purpose, nonce::secret()),
        trial,
        purpose,
        report,
        power_on: Instant::now(),
        own_login: None,
        pace: Pace::new(bench.spec.cpus, bench.share),
        host: Host::new(bench.plan.scaled(grace(&bench.plan.pipeline.limits))),
        machine: None,
        ssh: None,
        jobs: JoinSet::new(),
        heard: None,
        recent,
        end: None,
    };
    for &patch in &driver.trial.patches {
        let file = &bench.patches[patch];
        driver.dispatcher.know(patch, Code::read(file), replaced_functions(file));
    }
    driver.emit(Phase::Boot, Body::TrialStarted).await;
    let mut outputs = driver.start().await;
    let known = functions.borrow_and_update().clone();
    driver.step(Input::Functions(known)).await;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut fair = Fair::default();
    while driver.end.is_none() {
        let must_tick = fair.must_tick(driver.power_on.elapsed());
        let input = tokio::select! {
            // What the machine said counts before the time that has gone by, but it must not keep timers from running.
            biased;
            Ok(end) = stop.wait_for(Option::is_some) => {
                Input::Stop(end.clone().unwrap_or(TrialEnd::Interrupted))
            }
            () = std::future::ready(()), if must_tick => Input::Tick,
            Ok(()) = functions.changed() => Input::Functions(functions.borrow_and_update().clone()),
            Some(output) = receive(&mut outputs) => Input::Output(output),
            Some(done) = driver.jobs.join_next() => driver.done(done),
            _ = ticks.tick() => Input::Tick,
        };
        let wall = driver.power_on.elapsed();
        if matches!(input, Input::Tick) {
            fair.ticked(wall);
        } else {
            fair.took(wall);
        }
        driver.step(input).await;
        if driver.end.is_none() && wall > most {
            driver.step(Input::Started(Err(overdue(most)))).await;
        }
        // A machine that is aged measures nothing: it goes on.
        if let Some(reason) =
            driver.host.hopeless().filter(|_| driver.trial.number > 0 && driver.end.is_none())
        {
            driver.step(Input::Stop(TrialEnd::Void { reason })).await;
        }
    }
    driver.finish(outputs).await
}

/// Why a trial is a farm error that took longer than any may.
fn overdue(most: Duration) -> String {
    format!(
        "the trial did not end within {} min, {PATIENCE} times the longest that its steps and their limits add up to: the host has too little time for it",
        most.as_secs() / 60
    )
}

async fn receive(outputs: &mut Option<mpsc::Receiver<Output>>) -> Option<Output> {
    match outputs {
        Some(outputs) => outputs.recv().await,
        None => None,
    }
}

/// What a job of a trial comes to.
enum Done {
    Input(Input),
    Login(Result<(u64, Ssh), NoLogin>),
    Rekeyed(Result<Login, String>),
}

struct Driver<'a> {
    bench: &'a Bench,
    trial: Trial,
    purpose: Purpose,
    report: Report,
    dispatcher: Dispatcher,
    power_on: Instant,
    pace: Pace,
    host: Host,
    /// How to log in once the machine has keys of its own.
    own_login: Option<Login>,
    machine: Option<Arc<Machine>>,
    ssh: Option<Arc<Ssh>>,
    jobs: JoinSet<Done>,
    /// While evidence is gathered, the console and replies of the probe go there as well.
    heard: Option<Forward>,
    recent: Arc<watch::Sender<Option<f64>>>,
    end: Option<TrialEnd>,
}

impl Driver<'_> {
    fn dir(&self) -> PathBuf {
        self.bench.run_dir.join(Plan::trial_dir(self.trial.number))
    }

    async fn emit(&self, phase: Phase, body: Body) {
        let scope = Scope { trial: self.trial.number, arm: self.trial.arm, phase };
        // Nobody listening means that the run is being torn down.
        let _ = self.report.send((scope, body)).await;
    }

    async fn start(&mut self) -> Option<mpsc::Receiver<Output>> {
        let dir = self.dir();
        let started = match tokio::fs::create_dir_all(&dir).await {
            Ok(()) => Machine::start(&self.bench.spec, &self.bench.scratch, dir.join("console.log"))
                .await
                .map_err(|e| e.to_string()),
            Err(error) => Err(format!("{}: {error}", dir.display())),
        };
        let started_ms = millis(self.power_on.elapsed());
        match started {
            Ok((machine, outputs)) => {
                self.pace.begin();
                tracing::debug!(
                    trial = self.trial.number,
                    qemu = machine.pid(),
                    ssh = machine.ssh_port(),
                    "machine started"
                );
                self.machine = Some(Arc::new(machine));
                self.step(Input::Started(Ok(started_ms))).await;
                Some(outputs)
            }
            Err(error) => {
                self.step(Input::Started(Err(error))).await;
                None
            }
        }
    }

    /// What a job came to. A job that panicked leaves the trial in a state that nothing is known about: a farm error, whatever its step.
    fn done(&mut self, done: Result<Done, JoinError>) -> Input {
        match done {
            Ok(Done::Input(input)) => input,
            Ok(Done::Login(result)) => self.logged_in(result),
            Ok(Done::Rekeyed(result)) => Input::Rekeyed(result.map(|login| self.own_login = Some(login))),
            Err(error) => Input::Started(Err(format!("a task of the farm failed: {error}"))),
        }
    }

    /// The machine's time, by which all limits and phases go.
    fn now(&mut self, wall: Duration) -> Duration {
        let due = wall.saturating_sub(self.pace.looked()) >= LOOK;
        let qemu = self.machine.as_ref().map(|m| m.pid());
        if due {
            self.pace.look(wall, qemu.and_then(pace::waited));
            self.recent.send_replace(self.pace.recent());
        }
        let now = self.pace.now(wall);
        if due {
            self.host.look(Look::take(wall, now, self.pace.speed(), qemu));
        }
        now
    }

    async fn step(&mut self, mut input: Input) {
        let wall = self.power_on.elapsed();
        let now = self.now(wall);
        if let Input::Output(Output::Probe(message)) = &mut input {
            self.pace.convert(wall, message);
        }
        if let Some(heard) = &mut self.heard {
            heard.pass_on(&input);
        }
        for action in self.dispatcher.handle(now, input) {
            tracing::trace!(trial = self.trial.number, ?action);
            match action {
                Action::Emit(phase, body) => {
                    match &body {
                        Body::PhaseStarted => self.host.phase(now, phase),
                        Body::Finding(finding) => self.host.found(now, finding),
                        Body::StallEnded { title, .. } => self.host.stall_ended(title),
                        _ => {}
                    }
                    self.emit(phase, body).await;
                }
                Action::Login { limit } => self.login(limit),
                Action::Rekey { limit } => self.rekey(limit),
                Action::Sysrq(key) => self.sysrq(key),
                Action::Cpus => self.cpus(),
                Action::Status => self.status(),
                Action::Ssh { command, input, limit } => self.over_ssh(command, input, limit),
                Action::Tell(message) => {
                    if let Some(machine) = &self.machine {
                        machine.tell_probe(&message);
                    }
                }
                Action::Refresh { id } => self.refresh(id).await,
                Action::Upload { id, patch, chunk } => self.upload(id, patch, chunk),
                Action::Collect(what) => {
                    self.pace.end();
                    self.collect(what);
                }
                Action::End(end) => self.end = Some(end),
            }
        }
    }

    /// End the machine in order, then report the end: whoever reads the event finds nothing running any more. A machine that was
    /// aged is checkpointed instead.
    async fn finish(mut self, outputs: Option<mpsc::Receiver<Output>>) -> Ended {
        self.pace.end();
        for text in self.host.notes() {
            self.emit(Phase::End, Body::Note { text }).await;
        }
        self.jobs.shutdown().await;
        self.ssh = None;
        let mut end = self.end.take().unwrap_or(TrialEnd::Interrupted);
        if !self.purpose.is_aging() {
            end = self.host.judged(end, self.pace.share());
        }
        let mut checkpointed = None;
        match (self.machine.take().and_then(Arc::into_inner), outputs) {
            (Some(machine), Some(mut outputs)) if self.purpose.is_aging() && end == TrialEnd::Completed => {
                match machine.checkpoint(&mut outputs).await {
                    Ok(done) => checkpointed = Some(done),
                    Err(error) => end = TrialEnd::FarmError { message: error.to_string() },
                }
            }
            (machine, outputs) => {
                // Readers must never wait for us while QEMU ends.
                drop(outputs);
                if let Some(machine) = machine
                    && let Some(left) = machine.close(CLOSE).await
                {
                    let text = format!(
                        "console.log holds the beginning and the end only: {} bytes with {} line ends are left out",
                        left.bytes, left.lines
                    );
                    self.emit(Phase::End, Body::Note { text }).await;
                }
            }
        }
        if let Some(share) = self.pace.share().filter(|_| self.trial.number > 0) {
            self.emit(Phase::End, Body::CpuShare { share }).await;
        }
        self.emit(Phase::End, Body::TrialEnded { end: end.clone() }).await;
        Ended { end, checkpointed, login: self.own_login }
    }
}
