//! The effects of one trial: it starts the machine, feeds the dispatcher, and does what the dispatcher says. It decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use klpfarm_model::{Body, Limits, Phase, Plan, Scope, Trial, TrialEnd};
use klpfarm_stress::wire::{Ask, FromGuest, ToGuest};
use klpfarm_vm::{Checkpointed, GUEST_BINARY, Login, Machine, Output, Spec, Ssh, VmError};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::code::Code;
use crate::evidence::{self, About, Heard, Policy};
use crate::host::{Host, Look};
use crate::nonce;
use crate::pace::{self, Pace};
use crate::trial::{Action, CHUNK, Collect, Dispatcher, Input, NoLogin, Origin, Upload, millis};

/// What all trials of a run share.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The machine each trial gets.
    pub spec: Spec,
    /// How to log in.
    pub login: Login,
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

const TICK: Duration = Duration::from_millis(200);
/// How often it is looked at how long the machine's CPUs wait.
const LOOK: Duration = Duration::from_millis(200);
/// QEMU's monitor answers at once or, while it is busy, a little later.
const ANSWER: Duration = Duration::from_secs(10);
/// QEMU is asked to end so long before it is killed.
const CLOSE: Duration = Duration::from_secs(5);

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
}

/// What became of a trial.
pub(crate) struct Ended {
    pub(crate) end: TrialEnd,
    /// What a machine that was aged (trial 0) left for its forks.
    pub(crate) checkpointed: Option<Checkpointed>,
    /// How to log in to those, if not as to the machine they came from.
    pub(crate) login: Option<Login>,
}

/// Run one trial to its end.
pub(crate) async fn drive(bench: &Bench, trial: Trial, origin: Origin, wires: Wires) -> Ended {
    let Wires { report, mut functions, mut stop } = wires;
    let mut driver = Driver {
        bench,
        dispatcher: Dispatcher::new(Arc::clone(&bench.plan), trial.clone(), origin, nonce::secret()),
        trial,
        report,
        power_on: Instant::now(),
        own_login: None,
        pace: Pace::new(bench.spec.cpus, bench.share),
        host: Host::new(bench.plan.scaled(grace(&bench.plan.pipeline.limits))),
        machine: None,
        ssh: None,
        jobs: JoinSet::new(),
        heard: None,
        end: None,
    };
    for &patch in &driver.trial.patches {
        driver.dispatcher.know(patch, Code::read(&bench.patches[patch]));
    }
    driver.emit(Phase::Boot, Body::TrialStarted).await;
    let mut outputs = driver.start().await;
    let known = functions.borrow_and_update().clone();
    driver.step(Input::Functions(known)).await;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while driver.end.is_none() {
        let input = tokio::select! {
            // What the machine said counts before the time that has gone by.
            biased;
            Ok(end) = stop.wait_for(Option::is_some) => {
                Input::Stop(end.clone().unwrap_or(TrialEnd::Interrupted))
            }
            Ok(()) = functions.changed() => Input::Functions(functions.borrow_and_update().clone()),
            Some(output) = receive(&mut outputs) => Input::Output(output),
            Some(done) = driver.jobs.join_next() => match done {
                Ok(Done::Input(input)) => input,
                Ok(Done::Login(result)) => driver.logged_in(result),
                Ok(Done::Rekeyed(result)) => Input::Rekeyed(result.map(|login| driver.own_login = Some(login))),
                Err(error) => Input::Started(Err(format!("a task of the farm failed: {error}"))),
            },
            _ = ticks.tick() => Input::Tick,
        };
        driver.step(input).await;
        // A machine that is aged measures nothing: it goes on.
        if let Some(reason) =
            driver.host.hopeless().filter(|_| driver.trial.number > 0 && driver.end.is_none())
        {
            driver.step(Input::Stop(TrialEnd::Void { reason })).await;
        }
    }
    driver.finish(outputs).await
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
    heard: Option<mpsc::UnboundedSender<Heard>>,
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

    /// The machine's time, by which all limits and phases go.
    fn now(&mut self, wall: Duration) -> Duration {
        let due = wall.saturating_sub(self.pace.looked()) >= LOOK;
        let qemu = self.machine.as_ref().map(|m| m.pid());
        if due {
            self.pace.look(wall, qemu.and_then(pace::waited));
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
        if let Some(heard) = &self.heard {
            let _ = match &input {
                Input::Output(Output::Probe(FromGuest::Reply { id, code, out })) => {
                    heard.send(Heard::Reply { id: *id, code: *code, out: out.clone() })
                }
                Input::Output(Output::Console(bytes)) => heard.send(Heard::Console(bytes.clone())),
                _ => Ok(()),
            };
        }
        for action in self.dispatcher.handle(now, input) {
            tracing::trace!(trial = self.trial.number, ?action);
            match action {
                Action::Emit(phase, body) => {
                    if let Body::Finding(finding) = &body {
                        self.host.found(now, finding.kind);
                    }
                    self.emit(phase, body).await;
                }
                Action::Login { limit } => self.login(limit),
                Action::Rekey { limit } => self.rekey(limit),
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
                Action::Collect(what) => self.collect(what),
                Action::End(end) => self.end = Some(end),
            }
        }
    }

    fn login(&mut self, limit: Duration) {
        let Some(machine) = self.machine.clone() else { return };
        let login = self.own_login.as_ref().unwrap_or(&self.bench.login).clone();
        self.jobs.spawn(async move {
            let started = Instant::now();
            let result = async {
                let ssh = machine.ssh(&login, limit).await?;
                ssh.run("true", b"", limit).await?;
                Ok::<_, VmError>(ssh)
            };
            let result = result.await.map_err(|e| match e {
                VmError::Port { .. } => NoLogin::Host,
                e => NoLogin::Guest(e.to_string()),
            });
            let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            Done::Login(result.map(|ssh| (ms, ssh)))
        });
    }

    fn rekey(&mut self, limit: Duration) {
        let Some(machine) = self.machine.clone() else { return };
        let login = self.bench.login.clone();
        let rekey = self.bench.rekey;
        self.jobs.spawn(async move {
            if rekey {
                Done::Rekeyed(machine.rekey(&login, limit).await.map_err(|e| e.to_string()))
            } else {
                Done::Input(Input::Rekeyed(Ok(())))
            }
        });
    }

    fn cpus(&mut self) {
        let Some(machine) = self.machine.clone() else { return };
        self.jobs.spawn(async move {
            let looks = machine.qmp().cpus(ANSWER).await.map_err(|e| e.to_string());
            Done::Input(Input::Cpus(looks))
        });
    }

    fn status(&mut self) {
        let Some(machine) = self.machine.clone() else { return };
        self.jobs.spawn(async move {
            let status = machine.status().await.map(|(word, _)| word).map_err(|e| e.to_string());
            Done::Input(Input::Status(status))
        });
    }

    /// The first connection is kept for commands; later ones only prove that a login works.
    fn logged_in(&mut self, result: Result<(u64, Ssh), NoLogin>) -> Input {
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
        self.jobs.spawn(async move {
            let input: &[u8] = match upload {
                Upload::Nothing => b"",
                Upload::GuestBinary => GUEST_BINARY,
            };
            Done::Input(Input::Ssh(ssh.run(&command, input, limit).await.map_err(|e| e.to_string())))
        });
    }

    fn tell(&self, id: u64, ask: Ask) {
        if let Some(machine) = &self.machine {
            machine.tell_probe(&ToGuest { id, ask });
        }
    }

    async fn refresh(&self, id: u64) {
        let mut entropy = [0_u8; 64];
        // The host's own pool; it never blocks once the host is up.
        let read = async {
            let mut file = tokio::fs::File::open("/dev/urandom").await?;
            file.read_exact(&mut entropy).await
        };
        if let Err(error) = read.await {
            tracing::warn!(%error, "no fresh entropy for a fork");
        }
        let entropy = klpfarm_model::hex(&entropy);
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.tell(id, Ask::Resume { entropy, unix_ms: millis(clock) });
    }

    fn upload(&self, id: u64, patch: usize, chunk: u64) {
        let data = &self.bench.patches[patch];
        let from = usize::try_from(chunk * CHUNK).unwrap_or(usize::MAX).min(data.len());
        let to = from.saturating_add(CHUNK as usize).min(data.len());
        let data = base64::engine::general_purpose::STANDARD.encode(&data[from..to]);
        let name = format!("{}.ko", self.bench.plan.patches[patch].name);
        self.tell(id, Ask::Write { name, data, append: chunk > 0 });
    }

    fn collect(&mut self, what: Collect) {
        let Some(machine) = self.machine.clone() else { return };
        let (tx, rx) = mpsc::unbounded_channel();
        self.heard = Some(tx);
        let dir = self.dir();
        let about = self.about(&what);
        let plan = &self.bench.plan;
        let policy = Policy {
            gathering: plan.pipeline.evidence,
            memory_mib: self.bench.spec.memory_mib,
            scale: plan.scale,
            run_dir: self.bench.run_dir.clone(),
        };
        self.jobs.spawn(async move {
            Done::Input(Input::Collected(evidence::collect(&machine, &dir, &about, &policy, &what, rx).await))
        });
    }

    /// What the trial's evidence is of.
    fn about(&self, what: &Collect) -> About {
        let (plan, spec) = (&self.bench.plan, &self.bench.spec);
        let patches = self.trial.patches.iter().map(|i| &plan.patches[*i]);
        About {
            trial: self.trial.number,
            arm: self.trial.arm,
            farm: plan.farm.clone(),
            patches: patches
                .map(|p| format!("{} ({}, sha256 {})", p.name, p.file.display(), p.sha256))
                .collect(),
            modules: plan.names(&self.trial).map(str::to_owned).collect(),
            image: plan.checkpoint.clone().unwrap_or_else(|| plan.image.name.clone()),
            release: what.release.clone(),
            machine: format!("{} CPUs, {} MiB, {}", spec.cpus, spec.memory_mib, plan.accel),
            findings: what.findings.clone(),
        }
    }

    /// End the machine in order, then report the end: whoever reads the event finds nothing running any more. A machine that was
    /// aged is checkpointed instead.
    async fn finish(mut self, outputs: Option<mpsc::Receiver<Output>>) -> Ended {
        for text in self.pace.verdict().into_iter().chain(self.host.notes()) {
            self.emit(Phase::End, Body::Note { text }).await;
        }
        self.jobs.shutdown().await;
        self.ssh = None;
        let mut end = self.end.take().unwrap_or(TrialEnd::Interrupted);
        if self.trial.number > 0 {
            end = self.host.judged(end);
        }
        let mut checkpointed = None;
        match (self.machine.take().and_then(Arc::into_inner), outputs) {
            (Some(machine), Some(mut outputs)) if self.trial.number == 0 && end == TrialEnd::Completed => {
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
        self.emit(Phase::End, Body::TrialEnded { end: end.clone() }).await;
        Ended { end, checkpointed, login: self.own_login }
    }
}
