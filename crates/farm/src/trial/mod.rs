//! One trial, decided without a machine: inputs in, actions out. No await, no clock: `now` is the time since power-on.

mod health;
mod measure;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use klpfarm_kmsg::Classifier;
use klpfarm_model::plan::Trial;
use klpfarm_model::{Arm, Body, FarmKind, Phase, Plan, Source, TrialEnd};
use klpfarm_stress::wire::{Ask, FromGuest, Run, ToGuest};
use klpfarm_vm::{Output, QmpEvent, SshOutput};

use crate::guest::{self, PatchState};
use health::Health;
use measure::Measure;
pub(crate) use measure::millis;

/// What happens to a trial.
#[derive(Debug)]
pub(crate) enum Input {
    /// QEMU runs, or could not be started.
    Started(Result<(), String>),
    /// Something came out of the machine.
    Output(Output),
    /// [`Action::Login`] ended: milliseconds, or why not.
    Login(Result<u64, String>),
    /// [`Action::Ssh`] ended.
    Ssh(Result<SshOutput, String>),
    /// [`Action::Collect`] ended: file and what it is.
    Collected(Vec<(String, String)>),
    /// Time went by; comes several times a second.
    Tick,
    /// The user wants the run to end.
    Interrupt,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Report it, as of this phase.
    Emit(Phase, Body),
    /// Log in afresh, run `true`, and keep the first connection that works for [`Action::Ssh`].
    Login {
        /// At most so long.
        limit: Duration,
    },
    /// Run a command over the kept connection.
    Ssh {
        /// Shell line.
        command: String,
        /// Its standard input.
        input: Upload,
        /// At most so long.
        limit: Duration,
    },
    /// Say something to the probe.
    Tell(ToGuest),
    /// Gather evidence.
    Collect(Collect),
    /// End the machine; the trial is over.
    End(TrialEnd),
}

/// What is sent along with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upload {
    Nothing,
    GuestBinary,
    Patch,
}

/// Which evidence to gather.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collect {
    /// Tasks that do not get on, as the probe last saw them.
    pub(crate) blocked: String,
    /// The probe answers: commands can be run in the guest.
    pub(crate) probe: bool,
    /// Tasks that hold up the transition to this state.
    pub(crate) stragglers: Option<u8>,
    /// At most so long in all.
    pub(crate) limit: Duration,
}

/// Where a trial is. Each step waits for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    PowerOn,
    Login,
    /// The n-th of [`Dispatcher::preparations`].
    Prepare(usize),
    Hello,
    /// Replies of so many workloads are awaited; then this phase begins.
    StartLoad(usize, Phase),
    /// Load runs until then.
    Run(Duration),
    /// Replies of so many workloads are awaited; then the patch is applied.
    StopLoad(usize),
    Load,
    /// The patch's state is asked for again and again; the reply is awaited or due.
    Transition,
    Disable,
    Untransition,
    Unload,
    Count,
    /// After a finding: hear what else there is.
    Listen(Duration),
    Collecting,
    Over,
}

/// How often a patch's state is asked for, and a fresh login is tried.
const POLL: Duration = Duration::from_millis(300);
const LOGIN_EVERY: Duration = Duration::from_secs(10);
const RATES_EVERY: Duration = Duration::from_secs(5);
/// A tick that comes so late means that the host did not let us run.
const LATE: Duration = Duration::from_secs(1);
/// How long a console must be quiet before an open report is taken as complete.
const QUIET: Duration = Duration::from_secs(2);
/// How long calls are counted, and how often again while a function was not called at all.
const COUNT_SECONDS: u64 = 3;
const COUNT_ROUNDS: u32 = 4;

/// One trial's state.
pub(crate) struct Dispatcher {
    plan: Arc<Plan>,
    trial: Trial,
    step: Step,
    phase: Phase,
    deadline: Duration,
    health: Health,
    measure: Measure,
    classifier: Classifier,
    console_at: Option<Duration>,
    next_id: u64,
    awaited: u64,
    poll_at: Duration,
    last_tick: Duration,
    login_at: Option<Duration>,
    login_running: bool,
    ssh_ms: Option<u64>,
    booted_ms: u64,
    rates_at: Duration,
    load_runs: bool,
    applied: Option<Duration>,
    functions: Vec<String>,
    has_transition: bool,
    stragglers: Option<u8>,
    calls: Vec<(String, u64, u64)>,
    count_round: u32,
    out: VecDeque<Action>,
}

impl Dispatcher {
    pub(crate) fn new(plan: Arc<Plan>, trial: Trial) -> Self {
        let deadline = plan.scaled(plan.pipeline.limits.boot);
        let health = Health::new(&plan, trial.arm.patched());
        let zero = Duration::ZERO;
        Self {
            plan,
            trial,
            step: Step::PowerOn,
            phase: Phase::Boot,
            deadline,
            health,
            measure: Measure::default(),
            classifier: Classifier::new(),
            console_at: None,
            next_id: 1,
            awaited: 0,
            poll_at: zero,
            last_tick: zero,
            login_at: None,
            login_running: false,
            ssh_ms: None,
            booted_ms: 0,
            rates_at: zero,
            load_runs: false,
            applied: None,
            functions: Vec::new(),
            has_transition: false,
            stragglers: None,
            calls: Vec::new(),
            count_round: 0,
            out: VecDeque::new(),
        }
    }

    /// Take one input and say what is to be done, in order.
    pub(crate) fn handle(&mut self, now: Duration, input: Input) -> Vec<Action> {
        if self.step != Step::Over {
            match input {
                Input::Started(Ok(())) => self.power_on(now),
                Input::Started(Err(message)) => self.end(TrialEnd::FarmError { message }),
                Input::Output(output) => self.output(now, output),
                Input::Login(result) => self.login(now, result),
                Input::Ssh(result) => self.ssh(now, result),
                Input::Collected(files) => self.collected(files),
                Input::Tick => self.tick(now),
                Input::Interrupt => self.end(TrialEnd::Interrupted),
            }
        }
        self.out.drain(..).collect()
    }

    // ---- small verbs -------------------------------------------------------------------------------------------------

    fn emit(&mut self, body: Body) {
        self.out.push_back(Action::Emit(self.phase, body));
    }

    fn end(&mut self, end: TrialEnd) {
        self.enter(Phase::End);
        self.step = Step::Over;
        self.out.push_back(Action::End(end));
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.health.phase(phase);
        self.emit(Body::PhaseStarted);
    }

    fn tell(&mut self, ask: Ask) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.out.push_back(Action::Tell(ToGuest { id, ask }));
        id
    }

    /// Ask for something whose reply ends the current step.
    fn ask(&mut self, now: Duration, ask: Ask, limit: Duration) {
        self.awaited = self.tell(ask);
        self.deadline = now + limit;
    }

    fn exec(&mut self, now: Duration, line: &str, limit: Duration) {
        let argv = guest::shell(line);
        self.ask(now, Ask::Exec { argv, limit_ms: millis(limit) }, limit + self.scaled(5));
    }

    fn over_ssh(&mut self, now: Duration, command: String, input: Upload, limit: Duration) {
        self.deadline = now + limit + Duration::from_secs(5);
        self.out.push_back(Action::Ssh { command, input, limit });
    }

    fn scaled(&self, seconds: u64) -> Duration {
        self.plan.scaled(Duration::from_secs(seconds))
    }

    fn farm_error(&mut self, message: String) {
        self.end(TrialEnd::FarmError { message });
    }

    /// Report what the rules of health say; the first finding leads to evidence and the end.
    fn report(&mut self, now: Duration, bodies: Vec<Body>) {
        let found = bodies.iter().any(|b| matches!(b, Body::Finding(_)));
        for body in bodies {
            self.emit(body);
        }
        if found && !matches!(self.step, Step::Listen(_) | Step::Collecting | Step::Over) {
            self.step = Step::Listen(now + self.scaled(10));
        }
    }

    fn find(&mut self, now: Duration, kind: FarmKind, title: &str, evidence: String) {
        let bodies = self.health.find(now, kind, Source::Probe, title.to_owned(), evidence);
        self.report(now, bodies);
    }

    // ---- boot and preparation ----------------------------------------------------------------------------------------

    fn power_on(&mut self, _now: Duration) {
        self.emit(Body::PhaseStarted);
        self.step = Step::Login;
        self.try_login();
    }

    fn try_login(&mut self) {
        if !self.login_running {
            self.login_running = true;
            let limit = self.plan.scaled(self.plan.pipeline.limits.ssh);
            self.out.push_back(Action::Login { limit });
        }
    }

    fn login(&mut self, now: Duration, result: Result<u64, String>) {
        self.login_running = false;
        self.login_at = Some(now);
        self.health.login(now, &result);
        if let Ok(ms) = result {
            self.ssh_ms = Some(ms);
            if self.step == Step::Login {
                self.booted_ms = millis(now);
                self.prepare(now, 0);
            }
        }
    }

    fn preparations(&self) -> Vec<(String, Upload)> {
        let hung = self.plan.scaled(self.plan.pipeline.limits.hung_task).as_secs().max(1);
        let mut list = vec![
            (guest::MAKE_DIR.to_owned(), Upload::Nothing),
            (guest::TAKE_BINARY.to_owned(), Upload::GuestBinary),
        ];
        if self.trial.arm.patched() {
            list.push((guest::take_patch(&self.plan.patch.name), Upload::Patch));
        }
        list.push((guest::prepare(hung), Upload::Nothing));
        list
    }

    fn prepare(&mut self, now: Duration, n: usize) {
        self.step = Step::Prepare(n);
        match self.preparations().into_iter().nth(n) {
            Some((command, input)) => self.over_ssh(now, command, input, self.scaled(30)),
            None => {
                self.step = Step::Hello;
                self.deadline = now + self.scaled(20);
                self.poll_at = now;
            }
        }
    }

    fn ssh(&mut self, now: Duration, result: Result<SshOutput, String>) {
        match (self.step, result) {
            (Step::Prepare(n), Ok(output)) => {
                for line in output.text.lines() {
                    if let Some((detector, reason)) =
                        line.strip_prefix("blind ").and_then(|l| l.split_once(' '))
                    {
                        self.emit(Body::Blind { detector: detector.to_owned(), reason: reason.to_owned() });
                    }
                }
                if output.code != 0 || output.text.contains("failed to start the probe") {
                    let message =
                        format!("preparing the guest failed ({}): {}", output.code, output.text.trim());
                    self.farm_error(message);
                } else {
                    self.prepare(now, n + 1);
                }
            }
            (Step::Prepare(_), Err(error)) => self.farm_error(format!("preparing the guest failed: {error}")),
            (Step::Load, Ok(output)) if output.code == 0 => self.loaded(now),
            (Step::Load, Ok(output)) => {
                let evidence = format!("insmod ended with status {}: {}", output.code, output.text.trim());
                self.find(now, FarmKind::LoadRefused, "the kernel refuses to load the patch", evidence);
            }
            (Step::Load, Err(error)) => {
                self.find(now, FarmKind::LoadStuck, "loading the patch does not end", error);
            }
            // The answer came after a finding ended the step.
            _ => {}
        }
    }

    // ---- load ----------------------------------------------------------------------------------------------------------

    fn start_load(&mut self, now: Duration, then: Phase) {
        let plan = Arc::clone(&self.plan);
        for workload in &plan.workloads {
            let run = match (&workload.run.builtin, &workload.run.command) {
                (Some(name), _) => {
                    let mut args: Vec<String> =
                        workload.run.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    if !workload.run.args.contains_key("seed") {
                        args.push(format!("seed={}", self.trial.seed));
                    }
                    Run::Builtin { name: name.clone(), args }
                }
                (None, argv) => Run::Command { argv: argv.clone().unwrap_or_default() },
            };
            self.tell(Ask::Start { workload: workload.name.clone(), run });
        }
        self.step = Step::StartLoad(plan.workloads.len(), then);
        self.deadline = now + self.scaled(30);
    }

    fn stop_load(&mut self, now: Duration) {
        let plan = Arc::clone(&self.plan);
        for workload in &plan.workloads {
            self.tell(Ask::Stop { workload: workload.name.clone() });
        }
        self.load_runs = false;
        self.step = Step::StopLoad(plan.workloads.len());
        self.deadline = now + self.scaled(30);
    }

    fn run_phase(&mut self, now: Duration, phase: Phase) {
        let phases = self.plan.pipeline.phases;
        let length = match phase {
            Phase::Age => phases.age,
            Phase::Baseline => phases.baseline + self.trial.jitter,
            Phase::Soak => self.plan.soak(),
            _ => phases.revert,
        };
        self.load_runs = true;
        if self.phase != phase {
            self.enter(phase);
        }
        self.measure.begin(now);
        self.rates_at = now;
        self.step = Step::Run(now + length);
    }

    /// A phase under load is over.
    fn phase_done(&mut self, now: Duration) {
        let measured = self.measure.summary(now);
        self.emit(Body::Measured(measured));
        match (self.phase, self.trial.arm) {
            (Phase::Age, _) => self.run_phase(now, Phase::Baseline),
            (Phase::Baseline, Arm::Loaded) => self.apply(now),
            (Phase::Baseline, Arm::Quiescent) => self.stop_load(now),
            (Phase::Baseline, Arm::Control) => self.run_phase(now, Phase::Soak),
            (Phase::Soak, Arm::Control) => self.end(TrialEnd::Completed),
            (Phase::Soak, _) if self.plan.pipeline.phases.revert.is_zero() => self.count(now),
            (Phase::Soak, _) => self.disable(now),
            _ => self.count(now),
        }
    }

    // ---- the patch -----------------------------------------------------------------------------------------------------

    fn apply(&mut self, now: Duration) {
        self.health.applying(now, self.measure.longest_idle_ms());
        self.applied = Some(now);
        self.enter(Phase::Apply);
        self.step = Step::Load;
        let limit = self.plan.scaled(self.plan.pipeline.limits.apply);
        self.over_ssh(now, guest::load(&self.plan.patch.name), Upload::Nothing, limit);
    }

    fn loaded(&mut self, now: Duration) {
        self.enter(Phase::Transition);
        self.step = Step::Transition;
        self.ask_state(now);
        self.deadline = now + self.plan.scaled(self.plan.pipeline.limits.transition);
    }

    fn ask_state(&mut self, now: Duration) {
        let argv = guest::shell(&guest::state(&self.plan.patch.name));
        let limit_ms = millis(self.scaled(10));
        self.awaited = self.tell(Ask::Exec { argv, limit_ms });
        self.poll_at = now + self.scaled(10);
    }

    fn in_transition(&mut self, now: Duration, state: &PatchState) {
        let took_ms = millis(now.saturating_sub(self.applied.unwrap_or(now)));
        if self.functions.is_empty() && state.listed {
            self.functions.clone_from(&state.functions);
            self.emit(Body::Applied { took_ms, functions: state.functions.clone() });
        }
        if !(state.listed && state.enabled && state.settled()) {
            self.poll_at = now + POLL;
            return;
        }
        self.has_transition = state.transition.is_some();
        self.emit(Body::TransitionDone { took_ms, per_task: self.has_transition });
        if self.trial.arm == Arm::Quiescent {
            self.start_load(now, Phase::Soak);
        } else {
            self.run_phase(now, Phase::Soak);
        }
    }

    fn transition_late(&mut self, now: Duration) {
        if self.functions.is_empty() {
            let evidence = format!(
                "insmod succeeded, but /sys/kernel/livepatch/{} is not there or not enabled",
                self.plan.patch.name
            );
            self.find(now, FarmKind::NotInForce, "the patch is loaded but not in force", evidence);
            return;
        }
        self.stragglers = Some(1);
        let seconds = self.plan.scaled(self.plan.pipeline.limits.transition).as_secs();
        let evidence = format!(
            "some tasks still run the old code {seconds} s after applying; evidence/stragglers.txt lists them"
        );
        self.find(now, FarmKind::TransitionStalled, "the transition does not end", evidence);
    }

    fn disable(&mut self, now: Duration) {
        self.enter(Phase::Revert);
        self.measure.begin(now);
        self.step = Step::Disable;
        self.exec(
            now,
            &guest::disable(&self.plan.patch.name),
            self.plan.scaled(self.plan.pipeline.limits.apply),
        );
    }

    fn disabled(&mut self, now: Duration, code: i32, out: &str) {
        if code != 0 {
            let evidence = format!("writing 0 to enabled failed: {}", out.trim());
            self.find(now, FarmKind::RevertRefused, "the kernel refuses to disable the patch", evidence);
            return;
        }
        self.step = Step::Untransition;
        self.ask_state(now);
        self.deadline = now + self.plan.scaled(self.plan.pipeline.limits.transition);
    }

    fn in_untransition(&mut self, now: Duration, state: &PatchState) {
        if state.listed && (state.enabled || !state.settled()) {
            self.poll_at = now + POLL;
        } else if self.has_transition {
            self.step = Step::Unload;
            self.exec_unload(now);
        } else {
            // Before 4.12 a livepatch module can't be unloaded, whatever it does.
            self.emit(Body::Reverted { unloaded: false });
            self.run_phase(now, Phase::Revert);
        }
    }

    fn exec_unload(&mut self, now: Duration) {
        let argv = guest::shell(&guest::unload(&self.plan.patch.name));
        self.awaited = self.tell(Ask::Exec { argv, limit_ms: millis(self.scaled(10)) });
        self.poll_at = now + self.scaled(15);
    }

    fn unloaded(&mut self, now: Duration, code: i32, out: &str) {
        if code == 0 {
            self.emit(Body::Reverted { unloaded: true });
            self.run_phase(now, Phase::Revert);
        } else if now >= self.deadline {
            let evidence = format!("rmmod: {}", out.trim());
            self.find(now, FarmKind::RevertRefused, "the disabled patch can't be unloaded", evidence);
        } else {
            self.poll_at = now + POLL;
        }
    }

    fn count(&mut self, now: Duration) {
        let functions = guest::countable(&self.functions);
        if functions.is_empty() {
            self.end(TrialEnd::Completed);
            return;
        }
        if self.phase != Phase::Reach {
            self.enter(Phase::Reach);
        }
        self.step = Step::Count;
        self.count_round += 1;
        self.exec(now, &guest::count_calls(&functions, COUNT_SECONDS), self.scaled(30 + COUNT_SECONDS));
    }

    fn counted(&mut self, now: Duration, out: &str) {
        for line in out.lines() {
            let Some((name, n)) = line.strip_prefix("calls ").and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let Ok(n) = n.parse::<u64>() else { continue };
            match self.calls.iter_mut().find(|(f, _, _)| f == name) {
                Some((_, calls, ms)) => {
                    *calls += n;
                    *ms += COUNT_SECONDS * 1000;
                }
                None => self.calls.push((name.to_owned(), n, COUNT_SECONDS * 1000)),
            }
        }
        if self.calls.iter().any(|(_, calls, _)| *calls == 0) && self.count_round < COUNT_ROUNDS {
            self.count(now);
            return;
        }
        for function in guest::countable(&self.functions) {
            match self.calls.iter().find(|(f, _, _)| *f == function) {
                Some((f, calls, window_ms)) => {
                    let body = Body::Reach { function: f.clone(), calls: *calls, window_ms: *window_ms };
                    self.emit(body);
                }
                None => {
                    let reason =
                        format!("calls of {function} can't be counted on this kernel: {}", out.trim());
                    self.emit(Body::Blind { detector: "reach".into(), reason });
                }
            }
        }
        self.end(TrialEnd::Completed);
    }

    // ---- what comes out of the machine -----------------------------------------------------------------------------------

    fn output(&mut self, now: Duration, output: Output) {
        match output {
            Output::Console(bytes) => {
                self.console_at = Some(now);
                let signals = self.classifier.push(&bytes);
                self.console(now, signals);
            }
            Output::Probe(message) => self.probe(now, message),
            Output::Qmp(QmpEvent::IoError { reason }) => {
                self.farm_error(format!(
                    "the machine's disk failed on the host ({reason}): is the host's disk full?"
                ));
            }
            Output::Qmp(event) => {
                let bodies = self.health.qmp(now, &event);
                self.report(now, bodies);
            }
            Output::Exited { status, stderr } => {
                let signals = self.classifier.finish();
                self.console(now, signals);
                // After a finding the guest's end is no news; before one, nobody but the host can have ended QEMU.
                if matches!(self.step, Step::Listen(_) | Step::Collecting) {
                    self.end(TrialEnd::Stopped);
                } else {
                    self.farm_error(
                        format!("QEMU ended by itself in phase {} ({status}) {stderr}", self.phase)
                            .trim()
                            .to_owned(),
                    );
                }
            }
        }
    }

    fn console(&mut self, now: Duration, signals: Vec<klpfarm_kmsg::Signal>) {
        for signal in signals {
            let bodies = self.health.console(now, signal);
            self.report(now, bodies);
        }
    }

    fn probe(&mut self, now: Duration, message: FromGuest) {
        self.measure.take(&message);
        let bodies = self.health.probe(now, &message, &self.measure);
        self.report(now, bodies);
        match message {
            FromGuest::Hello { release, taint, .. } if self.step == Step::Hello => {
                let ssh_ms = self.booted_ms;
                self.emit(Body::MachineReady { release: release.clone(), ssh_ms, taint });
                self.ready(now, &release);
            }
            FromGuest::Reply { id, code, out } => self.reply(now, id, code, &out),
            _ => {}
        }
    }

    fn ready(&mut self, now: Duration, release: &str) {
        if self.trial.arm.patched()
            && let Err(error) = self.plan.patch.check_release(&self.plan.image.name, release)
        {
            self.farm_error(error.to_string());
            return;
        }
        self.enter(Phase::Age);
        self.start_load(now, Phase::Age);
    }

    fn reply(&mut self, now: Duration, id: u64, code: i32, out: &str) {
        match self.step {
            Step::StartLoad(_, _) if code != 0 => {
                let message = format!("a workload could not be started: {}", out.trim());
                // With the patch in force that is the patch's doing: the same load started before.
                if self.applied.is_some() {
                    self.find(
                        now,
                        FarmKind::WorkloadDied,
                        "workloads can't be started with the patch in force",
                        message,
                    );
                } else {
                    self.farm_error(message);
                }
            }
            Step::StartLoad(1, phase) => self.run_phase(now, phase),
            Step::StartLoad(n, phase) => self.step = Step::StartLoad(n - 1, phase),
            Step::StopLoad(_) if code != 0 => {
                self.farm_error(format!("a workload could not be stopped: {}", out.trim()))
            }
            Step::StopLoad(1) => self.apply(now),
            Step::StopLoad(n) => self.step = Step::StopLoad(n - 1),
            _ if id != self.awaited => {}
            Step::Transition => self.in_transition(now, &PatchState::read(out)),
            Step::Disable => self.disabled(now, code, out),
            Step::Untransition => self.in_untransition(now, &PatchState::read(out)),
            Step::Unload => self.unloaded(now, code, out),
            Step::Count => self.counted(now, out),
            _ => {}
        }
    }

    fn collected(&mut self, files: Vec<(String, String)>) {
        for (file, what) in files {
            self.emit(Body::Evidence { file, what });
        }
        if self.step == Step::Collecting {
            self.end(TrialEnd::Stopped);
        }
    }

    // ---- time ------------------------------------------------------------------------------------------------------------

    fn tick(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if gap > LATE {
            self.health.forgive(gap);
            self.deadline += gap;
        }
        if self.console_at.is_some_and(|at| now.saturating_sub(at) >= QUIET) {
            self.console_at = None;
            let signals = self.classifier.flush();
            self.console(now, signals);
        }
        let bodies = self.health.tick(now);
        self.report(now, bodies);
        self.routine(now);
        self.step_tick(now);
    }

    /// Fresh logins and rates, on schedule.
    fn routine(&mut self, now: Duration) {
        let booting = self.step == Step::Login;
        let every = if booting { Duration::from_secs(1) } else { LOGIN_EVERY };
        let due = self.login_at.is_some_and(|at| now.saturating_sub(at) >= every);
        if due && !matches!(self.step, Step::PowerOn | Step::Over) {
            self.try_login();
        }
        if self.load_runs && now.saturating_sub(self.rates_at) >= RATES_EVERY {
            self.rates_at = now;
            let rates = self.measure.rates(now);
            self.emit(Body::Progress { rates, ssh_ms: self.ssh_ms });
        }
    }

    fn step_tick(&mut self, now: Duration) {
        let late = now >= self.deadline;
        match self.step {
            Step::Run(until) if now >= until => self.phase_done(now),
            Step::Listen(until) if now >= until => self.collect(now),
            Step::Collecting if late => self.end(TrialEnd::Stopped),
            Step::Hello if late => self.farm_error(
                "the probe did not answer: neither on the virtio port nor on the second UART".into(),
            ),
            Step::Hello if now >= self.poll_at => {
                self.poll_at = now + Duration::from_secs(1);
                self.tell(Ask::Hello);
            }
            Step::Login if late => {
                let seconds = now.as_secs();
                self.farm_error(format!("no SSH login within {seconds} s of power-on; see console.log"));
            }
            Step::Prepare(_) if late => self.farm_error("preparing the guest did not end".into()),
            Step::StartLoad(..) | Step::StopLoad(_) if late => self.load_late(now),
            Step::Load if late => {
                self.find(
                    now,
                    FarmKind::LoadStuck,
                    "loading the patch does not end",
                    "no answer over SSH".into(),
                );
            }
            Step::Transition if late => self.transition_late(now),
            Step::Untransition if late => {
                self.stragglers = Some(0);
                self.find(
                    now,
                    FarmKind::RevertStalled,
                    "the transition back does not end",
                    "some tasks still run the new code".into(),
                );
            }
            Step::Transition | Step::Untransition if now >= self.poll_at => self.ask_state(now),
            Step::Unload if now >= self.poll_at => self.exec_unload(now),
            Step::Disable if late => {
                self.find(
                    now,
                    FarmKind::RevertStalled,
                    "disabling the patch does not end",
                    "no answer of the probe".into(),
                );
            }
            Step::Count if late => {
                self.emit(Body::Blind {
                    detector: "reach".into(),
                    reason: "counting calls did not end".into(),
                });
                self.end(TrialEnd::Completed);
            }
            _ => {}
        }
    }

    fn load_late(&mut self, now: Duration) {
        if self.applied.is_some() {
            self.find(
                now,
                FarmKind::WorkloadDied,
                "workloads can't be started with the patch in force",
                "no answer of the probe".into(),
            );
        } else {
            self.farm_error("the workloads did not start or stop in time".into());
        }
    }

    fn collect(&mut self, now: Duration) {
        let measured = self.measure.summary(now);
        if self.load_runs {
            self.emit(Body::Measured(measured));
        }
        self.step = Step::Collecting;
        let limit = self.scaled(30);
        self.deadline = now + limit + Duration::from_secs(5);
        let probe = self.health.probe_alive(now);
        let blocked = self.health.last_blocked().to_owned();
        self.out.push_back(Action::Collect(Collect { blocked, probe, stragglers: self.stragglers, limit }));
    }
}
