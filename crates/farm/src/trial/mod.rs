//! One trial, decided without a machine: inputs in, actions out. No await, no clock: `now` is the time since power-on.

mod before;
mod beside;
mod counting;
mod ending;
mod io;
mod kept;
mod late;
mod length;
mod modules;
mod patching;
mod prepare;
mod script;
mod snapshot;
mod stopped;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use klpfarm_kmsg::Classifier;
use klpfarm_model::{Arm, Body, ObservedKind, Phase, Plan, Replaced, Source, Trial, TrialEnd};
use klpfarm_stress::wire::{Ask, ToGuest};

use crate::code::Code;
use crate::detect::Health;
use crate::detect::console::Console;
use crate::detect::cpus::Cpus;
use crate::guest;
use crate::measure::{Measure, millis};
use crate::secret::Secret;
use before::Before;
use beside::Beside;
use counting::Counting;
pub(crate) use io::{Action, CHUNK, Collect, Collected, Input, NoLogin, Upload};
use late::Late;
pub(crate) use length::longest;
pub(crate) use script::Purpose;
use script::{Op, script};
use snapshot::Snapshot;
use stopped::Stopped;

/// Where a trial is. Each step waits for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    PowerOn,
    Login,
    /// The n-th of [`Dispatcher::preparations`].
    Prepare(usize),
    Hello,
    Refresh,
    Rekey,
    /// The answer to a magic-sysrq key is awaited on the console.
    Sysrq,
    Vitals,
    /// Replies of so many workloads are awaited.
    StartLoad(usize),
    StopLoad(usize),
    /// The modules that the patches need are being loaded.
    Modules,
    /// This piece of this patch is on its way.
    Upload(usize, u64),
    /// Load runs until then.
    Run(Duration),
    /// Load runs until then, and until everything has been seen to make progress since the moment that comes first.
    Live {
        since: Duration,
        until: Duration,
    },
    /// This patch is to be applied for the first time; since then, and whether the taint has been asked for.
    Look {
        patch: usize,
        since: Duration,
        asked: bool,
    },
    Load,
    /// The patch's state is asked for again and again; the reply is awaited or due.
    Transition,
    Disable,
    Untransition,
    Unload,
    /// Whether patches are in force; or (true) whether a later one has replaced them.
    InForce(bool),
    Count,
    /// All is done; since then, and whether the taint has been read once more.
    Closing {
        since: Duration,
        taint: bool,
    },
    /// After a finding: hear what else there is.
    Listen(Duration),
    Collecting,
    Over,
}

/// How often a patch's state is asked for: less than a tick, so that it is asked at each.
const POLL: Duration = Duration::from_millis(150);
const LOGIN_EVERY: Duration = Duration::from_secs(10);
const CPUS_EVERY: Duration = Duration::from_secs(1);
const RATES_EVERY: Duration = Duration::from_secs(5);
/// How long a console must be quiet before an open report is taken as complete.
const QUIET: Duration = Duration::from_secs(2);
/// The probe goes by the guest's clock, which runs on while the host lets the machine wait: measured, 12 s of machine time were more
/// than 60 s on it (loading a patch on 6.12, which rewrites every `cond_resched`). So the probe's own limit is only there for a farm that
/// is gone; the deadline of the step counts.
fn guest_limit_ms(limit: Duration) -> u64 {
    millis(limit * 20)
}

/// From a channel's loss until QEMU's end is known, if that is why.
const ENDING: Duration = Duration::from_secs(5);

/// The channel that may come back.
const SSH_PORT: &str = "the machine's SSH port";

/// A channel that does not work: since when, and when that was seen last.
#[derive(Debug, Clone, Copy)]
struct Loss {
    since: Duration,
    again: Duration,
}

/// One trial's state.
pub(crate) struct Dispatcher {
    plan: Arc<Plan>,
    trial: Trial,
    purpose: Purpose,
    script: VecDeque<Op>,
    /// The patch that is being applied or taken back.
    patch: usize,
    /// Patches that are in force, and those of them that are still to be asked about.
    in_force: BTreeSet<usize>,
    to_check: Vec<usize>,
    /// Patches whose module was not unloaded and can only be enabled again (before 4.12).
    resident: BTreeSet<usize>,
    step: Step,
    phase: Phase,
    deadline: Duration,
    health: Health,
    measure: Measure,
    snapshot: Snapshot,
    /// Findings so far, in words.
    findings: Vec<String>,
    release: String,
    classifier: Classifier,
    console_at: Option<Duration>,
    /// The latest input's time.
    now: Duration,
    secret: Secret,
    /// Questions asked of the probe so far.
    asked: u64,
    awaited: u64,
    /// Questions to start or stop workloads that have not been answered.
    load_ids: BTreeMap<u64, String>,
    poll_at: Duration,
    late: Late,
    stopped: Option<Stopped>,
    /// Lines of the console so far, and whether another one has begun.
    lines: (u64, bool),
    /// The moment at which applying began for the first time.
    before: Option<Before>,
    /// The console shows a panic that a non-maskable interrupt of the farm's brought about.
    nmi_panic: bool,
    login_at: Option<Duration>,
    login_running: bool,
    ssh_ms: Option<u64>,
    cpus: Cpus,
    /// When to look next; `None` once it has proved to be impossible.
    cpus_at: Option<Duration>,
    cpus_running: bool,
    /// Since when looks have failed, and how many.
    cpus_failed: Option<(Duration, u32)>,
    console: Console,
    /// Channels that do not work.
    lost: BTreeMap<&'static str, Loss>,
    beat_at: Duration,
    /// Questions that no step waits for, by id.
    beside: BTreeMap<u64, Beside>,
    started_ms: u64,
    rates_at: Duration,
    load_runs: bool,
    applied: Option<Duration>,
    /// What loading said of tasks inside functions.
    inside: BTreeMap<String, u32>,
    /// The patch that is being applied is listed in sysfs.
    listed: bool,
    /// And enabled there.
    enabled: bool,
    /// Functions replaced by any patch, as far as known.
    functions: BTreeSet<String>,
    /// What the files of patches say of the functions that they replace.
    replaced: BTreeMap<usize, Vec<Replaced>>,
    /// What sysfs says of them.
    listed_functions: BTreeMap<usize, Vec<String>>,
    has_transition: bool,
    stragglers: Option<u8>,
    counting: Counting,
    out: VecDeque<Action>,
}

impl Dispatcher {
    pub(crate) fn new(plan: Arc<Plan>, trial: Trial, purpose: Purpose, secret: Secret) -> Self {
        let deadline = plan.scaled(plan.pipeline.limits.boot);
        let limits = &plan.pipeline.limits;
        let health = Health::new(&plan, &trial, !purpose.boots());
        let console =
            Console::new(trial.number, plan.scaled(limits.console), limits.console_flood, secret.clone());
        let cpus = Cpus::new(plan.scaled(limits.cpu));
        let zero = Duration::ZERO;
        Self {
            script: script(&plan, &trial, purpose).into(),
            plan,
            trial,
            purpose,
            patch: 0,
            in_force: BTreeSet::new(),
            to_check: Vec::new(),
            resident: BTreeSet::new(),
            step: Step::PowerOn,
            phase: Phase::Boot,
            deadline,
            health,
            measure: Measure::default(),
            snapshot: Snapshot::default(),
            findings: Vec::new(),
            release: String::new(),
            classifier: Classifier::new(),
            console_at: None,
            now: zero,
            secret,
            asked: 0,
            awaited: 0,
            load_ids: BTreeMap::new(),
            poll_at: zero,
            late: Late::default(),
            stopped: None,
            lines: (0, false),
            before: None,
            nmi_panic: false,
            login_at: None,
            login_running: false,
            ssh_ms: None,
            cpus,
            cpus_at: Some(zero),
            cpus_running: false,
            cpus_failed: None,
            console,
            lost: BTreeMap::new(),
            beat_at: zero,
            beside: BTreeMap::new(),
            started_ms: 0,
            rates_at: zero,
            // A checkpoint is one of a machine under load.
            load_runs: !purpose.boots(),
            applied: None,
            inside: BTreeMap::new(),
            listed: false,
            enabled: false,
            functions: BTreeSet::new(),
            replaced: BTreeMap::new(),
            listed_functions: BTreeMap::new(),
            has_transition: true,
            stragglers: None,
            counting: Counting::default(),
            out: VecDeque::new(),
        }
    }

    /// Where the functions of a patch lie within its module, and which of them replace others.
    pub(crate) fn know(&mut self, patch: usize, code: Code, replaced: Vec<Replaced>) {
        self.replaced.insert(patch, replaced);
        self.cpus.know(self.plan.patches[patch].name.clone(), code);
    }

    /// Take one input and say what is to be done, in order.
    pub(crate) fn handle(&mut self, now: Duration, input: Input) -> Vec<Action> {
        self.now = now;
        if self.step != Step::Over {
            match input {
                Input::Started(Ok(ms)) => self.power_on(now, ms),
                Input::Started(Err(message)) => self.end(TrialEnd::FarmError { message }),
                Input::Output(output) => self.output(now, output),
                Input::Login(result) => self.login(now, result),
                Input::Ssh(result) => self.ssh(now, result),
                Input::Rekeyed(result) => self.rekeyed(now, result),
                Input::Cpus(looks) => self.cpus_seen(now, looks),
                Input::Status(status) => self.status(now, status),
                Input::Collected(collected) => self.collected(collected),
                Input::Tick => self.tick(now),
                // A patched trial counts calls of its own functions only, which it learns by itself.
                Input::Functions(functions) if self.trial.arm == Arm::Control => {
                    self.functions.extend(functions);
                }
                Input::Functions(_) => {}
                Input::Stop(end) => self.end(end),
            }
        }
        self.out.drain(..).collect()
    }

    fn emit(&mut self, body: Body) {
        self.out.push_back(Action::Emit(self.phase, body));
    }

    /// Begin the next thing the trial does.
    fn next_op(&mut self, now: Duration) {
        match self.script.pop_front() {
            None => self.close(now),
            Some(Op::Rekey) => self.rekey(now),
            Some(Op::Sysrq) => self.press_sysrq(now),
            Some(Op::Vitals) => {
                self.step = Step::Vitals;
                self.ask(now, Ask::Vitals, self.scaled(20));
            }
            Some(Op::StartAging) => self.start_load(now, true),
            Some(Op::StartLoad) => self.start_load(now, false),
            Some(Op::StopLoad) => self.stop_load(now),
            Some(Op::Modules) => self.load_modules(now),
            Some(Op::Upload(patch)) => self.upload(now, patch, 0),
            Some(Op::AgeUntil(uptime)) => {
                // A machine that took long to boot still gets a load worth the name.
                let more = uptime.saturating_sub(now).max(uptime / 2);
                self.run_phase(now, Phase::Age, more);
            }
            Some(Op::Run(phase, length)) => self.run_phase(now, phase, length),
            Some(Op::Live(least)) => self.run_until_live(now, least),
            Some(Op::Apply(patch)) if self.before.is_none() => self.look_before(now, patch),
            Some(Op::Apply(patch)) => self.apply(now, patch),
            Some(Op::Revert(patch)) => self.disable(now, patch),
            Some(Op::Replaced(patch)) => self.check_force(now, Some(patch)),
            Some(Op::InForce) => self.check_force(now, None),
            Some(Op::Count) => self.count(now),
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.health.phase(phase);
        self.console.phase(phase);
        self.emit(Body::PhaseStarted);
    }

    fn tell(&mut self, ask: Ask) -> u64 {
        let id = self.fresh_id();
        self.out.push_back(Action::Tell(ToGuest { id, ask }));
        id
    }

    /// An id that no guest can guess: an answer to a question that it has not been asked is none.
    fn fresh_id(&mut self) -> u64 {
        self.asked += 1;
        self.secret.id(self.asked)
    }

    /// Ask for something whose reply ends the current step.
    fn ask(&mut self, now: Duration, ask: Ask, limit: Duration) {
        self.awaited = self.tell(ask);
        self.deadline = now + limit;
    }

    /// Have something done in the guest within `limit` of the machine's own time.
    fn exec(&mut self, now: Duration, line: &str, limit: Duration) {
        let argv = guest::shell(line);
        self.ask(now, Ask::Exec { argv, limit_ms: guest_limit_ms(limit) }, limit + self.scaled(5));
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

    fn find(&mut self, now: Duration, kind: ObservedKind, title: &str, evidence: String) {
        let bodies = self.health.find(now, kind, Source::Probe, title.to_owned(), evidence);
        self.report(now, bodies);
    }
}
