//! The effects of one trial: it starts the machine, feeds the dispatcher, and does what the dispatcher says. It decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use klpfarm_model::plan::Trial;
use klpfarm_model::{Body, Phase, Plan, Scope, TrialEnd};
use klpfarm_stress::wire::FromGuest;
use klpfarm_vm::{GUEST_BINARY, Login, Machine, Output, Spec, Ssh};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::evidence;
use crate::trial::{Action, Collect, Dispatcher, Input, Upload};

/// What all trials of a run share.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The machine each trial gets.
    pub spec: Spec,
    /// How to log in.
    pub login: Login,
    /// Content of the patch file, as hashed in the plan.
    pub patch: Arc<Vec<u8>>,
    /// The run folder.
    pub run_dir: PathBuf,
    /// Folder for QEMU's temporary files.
    pub scratch: PathBuf,
}

/// Events of a trial, before the run numbers them.
pub(crate) type Report = mpsc::Sender<(Scope, Body)>;

const TICK: Duration = Duration::from_millis(200);
/// QEMU is asked to end so long before it is killed.
const CLOSE: Duration = Duration::from_secs(5);

/// Run one trial to its end.
pub(crate) async fn drive(bench: &Bench, trial: Trial, report: Report, cancel: CancellationToken) {
    let mut driver = Driver {
        bench,
        trial,
        report,
        dispatcher: Dispatcher::new(Arc::clone(&bench.plan), trial),
        power_on: Instant::now(),
        machine: None,
        ssh: None,
        jobs: JoinSet::new(),
        replies: None,
        end: None,
    };
    driver.emit(Phase::Boot, Body::TrialStarted).await;
    let mut outputs = driver.start().await;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut interrupted = false;
    while driver.end.is_none() {
        let input = tokio::select! {
            // What the machine said counts before the time that has gone by.
            biased;
            () = cancel.cancelled(), if !interrupted => { interrupted = true; Input::Interrupt }
            Some(output) = receive(&mut outputs) => Input::Output(output),
            Some(done) = driver.jobs.join_next() => match done {
                Ok(Done::Input(input)) => input,
                Ok(Done::Login(result)) => driver.logged_in(result),
                Err(error) => Input::Started(Err(format!("a task of the farm failed: {error}"))),
            },
            _ = ticks.tick() => Input::Tick,
        };
        driver.step(input).await;
    }
    driver.finish(outputs).await;
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
    Login(Result<(u64, Ssh), String>),
}

struct Driver<'a> {
    bench: &'a Bench,
    trial: Trial,
    report: Report,
    dispatcher: Dispatcher,
    power_on: Instant,
    machine: Option<Arc<Machine>>,
    ssh: Option<Arc<Ssh>>,
    jobs: JoinSet<Done>,
    /// While evidence is gathered, replies of the probe go there as well.
    replies: Option<mpsc::UnboundedSender<(u64, String)>>,
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
        self.power_on = Instant::now();
        match started {
            Ok((machine, outputs)) => {
                tracing::debug!(
                    trial = self.trial.number,
                    qemu = machine.pid(),
                    ssh = machine.ssh_port(),
                    "machine started"
                );
                self.machine = Some(Arc::new(machine));
                self.step(Input::Started(Ok(()))).await;
                Some(outputs)
            }
            Err(error) => {
                self.step(Input::Started(Err(error))).await;
                None
            }
        }
    }

    async fn step(&mut self, input: Input) {
        if let (Some(replies), Input::Output(Output::Probe(FromGuest::Reply { id, out, .. }))) =
            (&self.replies, &input)
        {
            let _ = replies.send((*id, out.clone()));
        }
        for action in self.dispatcher.handle(self.power_on.elapsed(), input) {
            tracing::trace!(trial = self.trial.number, ?action);
            match action {
                Action::Emit(phase, body) => self.emit(phase, body).await,
                Action::Login { limit } => self.login(limit),
                Action::Ssh { command, input, limit } => self.over_ssh(command, input, limit),
                Action::Tell(message) => {
                    if let Some(machine) = &self.machine {
                        machine.tell_probe(&message);
                    }
                }
                Action::Collect(what) => self.collect(what),
                Action::End(end) => self.end = Some(end),
            }
        }
    }

    fn login(&mut self, limit: Duration) {
        let Some(machine) = self.machine.clone() else { return };
        let login = self.bench.login.clone();
        self.jobs.spawn(async move {
            let started = Instant::now();
            let result = async {
                let ssh = machine.ssh(&login, limit).await?;
                ssh.run("true", b"", limit).await?;
                Ok::<_, klpfarm_vm::VmError>(ssh)
            };
            let result = result.await.map_err(|e| e.to_string());
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Done::Login(result.map(|ssh| (ms, ssh)))
        });
    }

    /// The first connection is kept for commands; later ones only prove that a login works.
    fn logged_in(&mut self, result: Result<(u64, Ssh), String>) -> Input {
        Input::Login(result.map(|(ms, ssh)| {
            if self.ssh.is_none() {
                self.ssh = Some(Arc::new(ssh));
            } else {
                self.jobs.spawn(async move {
                    ssh.close().await;
                    Done::Input(Input::Tick)
                });
            }
            ms
        }))
    }

    fn over_ssh(&mut self, command: String, upload: Upload, limit: Duration) {
        let Some(ssh) = self.ssh.clone() else { return };
        let patch = Arc::clone(&self.bench.patch);
        self.jobs.spawn(async move {
            let input: &[u8] = match upload {
                Upload::Nothing => b"",
                Upload::GuestBinary => GUEST_BINARY,
                Upload::Patch => &patch,
            };
            Done::Input(Input::Ssh(ssh.run(&command, input, limit).await.map_err(|e| e.to_string())))
        });
    }

    fn collect(&mut self, what: Collect) {
        let Some(machine) = self.machine.clone() else { return };
        let (tx, rx) = mpsc::unbounded_channel();
        self.replies = Some(tx);
        let dir = self.dir();
        let patch = self.bench.plan.patch.name.clone();
        self.jobs.spawn(async move {
            Done::Input(Input::Collected(evidence::collect(&machine, &dir, &patch, &what, rx).await))
        });
    }

    /// End the machine in order, then report the end: whoever reads the event finds nothing running any more.
    async fn finish(mut self, outputs: Option<mpsc::Receiver<Output>>) {
        // Readers must never wait for us while QEMU ends.
        drop(outputs);
        self.jobs.shutdown().await;
        self.ssh = None;
        if let Some(machine) = self.machine.take().and_then(Arc::into_inner) {
            machine.close(CLOSE).await;
        }
        let end = self.end.take().unwrap_or(TrialEnd::Interrupted);
        self.emit(Phase::End, Body::TrialEnded { end }).await;
    }
}
