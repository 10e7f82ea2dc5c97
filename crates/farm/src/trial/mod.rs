//! One trial, decided without a machine: inputs in, actions out. No await, no clock: `now` is the time since power-on.

mod health;
mod measure;
mod patching;
mod prepare;
mod tasks;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use klpfarm_kmsg::Classifier;
use klpfarm_model::plan::Trial;
use klpfarm_model::{Body, FarmKind, Phase, Plan, Source, TrialEnd};
use klpfarm_stress::wire::{Ask, ToGuest};
use klpfarm_vm::{Output, SshOutput};

use crate::guest;
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
const COUNT_ROUNDS: u32 = 8;

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
}
