//! A fake machine that answers at once, and what a trial tells of it.

use std::path::Path;

use klpfarm_model::event::AGED;
use klpfarm_model::{
    Accel, Arm, Event, FindingKind, ImageFacts, Patch, Pipeline, Resolved, Scope, Start, TierRule, Workload,
    consistency,
};
use klpfarm_stress::wire::{BlockedTask, FromGuest, Thread, ThreadProgress};
use klpfarm_vm::{CpuLook, Output, SshOutput};

use crate::trial::*;

pub(in crate::trial) fn plan() -> Arc<Plan> {
    let rule = TierRule::new(0.2, 0.95, Duration::from_secs(5), vec![Arm::Loaded, Arm::Control]);
    plan_by(rule)
}

/// The same where soaks are trials of their own, and all others that apply a patch under load are short.
pub(in crate::trial) fn plan_with_soaks() -> Arc<Plan> {
    let arms = vec![Arm::Loaded, Arm::Soak, Arm::Control];
    let mut rule = TierRule::new(0.2, 0.95, Duration::from_secs(5), arms);
    rule.exposure.max_failures_per_hour = Some(100.0);
    plan_by(rule)
}

fn plan_by(rule: TierRule) -> Arc<Plan> {
    let text = "name: gate\nimage: debian-12\nworkloads: [w]\naging: {uptime: 8s}\nphases: {settle: 2s, baseline: 6s, soak: 30s, revert: 2s}\n";
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), text).unwrap();
    let workload = Workload::parse(Path::new("w.yaml"), "name: w\nrun: {builtin: w}\n").unwrap();
    let patch = |name: &str| Patch {
        name: name.into(),
        vermagic: "6.1 SMP".into(),
        size: 200_000,
        ..Patch::default()
    };
    let with = Resolved {
        workloads: vec![workload],
        patches: vec![patch("x"), patch("y")],
        accel: Accel::Kvm,
        ..Resolved::new(ImageFacts { name: "debian-12".into(), hash: String::new(), release: None }, rule)
    };
    Arc::new(Plan::new(&pipeline, with).unwrap())
}

/// What the fake machine does differently from a sound one.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) no_login: bool,
    /// After loading, the host connects nobody to the machine's SSH port.
    pub(super) no_port: bool,
    /// Why the guest takes no new SSH keys.
    pub(super) rekey: Option<&'static str>,
    /// So many seconds after loading, nobody answers a login any more.
    pub(super) login_mute: Option<u64>,
    pub(super) release: Option<&'static str>,
    /// Status and text of loading.
    pub(super) load: Option<(i32, &'static str)>,
    /// Loading, or unloading, is never answered.
    pub(super) load_mute: bool,
    pub(super) unload_mute: bool,
    pub(super) transition_hangs: bool,
    pub(super) no_transition_file: bool,
    pub(super) revert_hangs: bool,
    pub(super) unreached: bool,
    /// So many magic-sysrq keys are not answered.
    pub(super) deaf_keys: u32,
    /// What loading modules says.
    pub(super) modules: &'static str,
    /// Seconds after applying at which this comes out of the machine.
    pub(super) after_apply: Vec<(u64, Output)>,
    pub(super) threads_stop: bool,
    pub(super) probe_stops: bool,
    /// Forked from a checkpoint, not booted.
    pub(super) forked: bool,
    /// After applying, the second CPU stays here with interrupts off.
    pub(super) cpu_stuck: Option<u64>,
    /// And so it does from this moment on, whatever was applied.
    pub(super) cpu_stuck_at: Option<Duration>,
    pub(super) no_registers: bool,
    pub(super) no_kmsg: bool,
    /// After applying, nothing comes out on the console any more.
    pub(super) console_silent: bool,
    /// The workload's threads stop so long after applying, in seconds.
    pub(super) stop_after: u64,
    /// All inputs stop for this long, as on a suspended host.
    pub(super) host_pause: bool,
    /// Milliseconds from one tick to the next, if not 200.
    pub(super) tick_ms: Option<u64>,
    /// The guest's list of tasks does not show the threads that stop.
    pub(super) hidden: bool,
    /// Seconds after which threads that have stopped work again.
    pub(super) stall_s: Option<u64>,
    /// Threads that have stopped do not have the patch on their stack.
    pub(super) elsewhere: bool,
    /// Three more workload threads, which work whatever happens; or (false) stop with the first.
    pub(super) others: Option<bool>,
    /// After loading, heartbeats can no longer be written.
    pub(super) kmsg_fails: bool,
    /// After loading, QEMU tells no registers any more.
    pub(super) registers_stop: bool,
    /// Seconds after loading from which on the patch is disabled, in transition again, or gone; and the probe's answer then.
    pub(super) undone: Option<(u64, &'static str)>,
    /// How many answers on the state of a patch that is being taken back are of no use; and their status and text.
    pub(super) garbled: Option<(u32, i32, &'static str)>,
    /// QEMU's word for the virtual CPUs, once it has said that they are stopped.
    pub(super) status: Option<&'static str>,
    /// How many connections the host refuses after loading.
    pub(super) refused: u32,
    /// What the taint is when it is read, one after the other; 0 then.
    pub(super) taints: VecDeque<u64>,
    /// Seconds after loading from which on progress is no longer reported.
    pub(super) progress_stops: Option<u64>,
    /// Loading `y` replaces all patches before it.
    pub(super) replaces: bool,
    /// After loading, the taint can't be read.
    pub(super) no_taint: bool,
    /// Functions that the patch replaces, if not `vmlinux/do_it,1`.
    pub(super) functions: Vec<String>,
    /// In how many counts no function is called.
    pub(super) silent_counts: u32,
    /// Of each group one function is called so often that nothing of the others is seen.
    pub(super) one_is_hot: bool,
    /// The patches' files tell what replaces `do_it`, and so often it is called in each of them.
    pub(super) new_calls: Option<[u64; 2]>,
    /// Counting calls does not end.
    pub(super) count_mute: bool,
    /// Seconds that gathering evidence takes.
    pub(super) collecting_s: Option<u64>,
    /// The soak of the plan, if not 30 s, and the pause after reverting, if not 2 s.
    pub(super) revert: Option<Duration>,
}

const MODULES: &str =
    "x 16384 1 - Live 0xffffffffc0500000 (OEK)\nvirtio_net 65536 0 - Live 0xffffffffc0400000\n";

/// A machine that answers at once.
pub(super) struct Fake {
    pub(super) arm: Arm,
    pub(super) faults: Faults,
    pub(super) now: Duration,
    pub(super) loaded_at: Option<Duration>,
    /// Patches that are loaded, and whether they are enabled.
    pub(super) patches: BTreeMap<String, bool>,
    pub(super) load: bool,
    pub(super) ops: u64,
    /// The machine stands still.
    pub(super) stopped: bool,
    pub(super) counts: u32,
    pub(super) collected_at: Option<Duration>,
    pub(super) commands: Vec<String>,
    pub(super) asked: Vec<Ask>,
}

pub(super) struct Told {
    pub(super) bodies: Vec<(Phase, Body)>,
    pub(super) end: TrialEnd,
    pub(super) commands: Vec<String>,
    pub(super) asked: Vec<Ask>,
    pub(super) seconds: u64,
    /// Full seconds from loading to shortly before the end.
    pub(super) after_load: u64,
}

impl Told {
    pub(super) fn findings(&self) -> Vec<(FindingKind, String)> {
        let finding = |(_, body): &(Phase, Body)| match body {
            Body::Finding(f) => Some((f.kind, f.title.clone())),
            _ => None,
        };
        self.bodies.iter().filter_map(finding).collect()
    }

    pub(super) fn of_kind(&self, kind: impl Into<FindingKind>) -> Vec<(Phase, klpfarm_model::Finding)> {
        let kind = kind.into();
        let finding = |(phase, body): &(Phase, Body)| match body {
            Body::Finding(f) if f.kind == kind => Some((*phase, (**f).clone())),
            _ => None,
        };
        self.bodies.iter().filter_map(finding).collect()
    }

    pub(super) fn assert_clean(&self) {
        assert_eq!((self.end.clone(), self.findings()), (TrialEnd::Completed, Vec::new()));
    }

    /// It ended as the farm's error that says this.
    pub(super) fn assert_farm_error(&self, part: &str) {
        assert!(
            matches!(&self.end, TrialEnd::FarmError { message } if message.contains(part)),
            "{:?} {:?}",
            self.end,
            self.findings()
        );
    }

    pub(super) fn phases(&self) -> Vec<Phase> {
        self.bodies.iter().filter(|(_, b)| matches!(b, Body::PhaseStarted)).map(|(p, _)| *p).collect()
    }

    pub(super) fn assert_only(&self, kind: impl Into<FindingKind>) {
        let kind = kind.into();
        assert!(self.findings().iter().any(|(k, _)| *k == kind), "{:?}", self.findings());
        assert_eq!(self.end, TrialEnd::Stopped);
        assert!(self.bodies.iter().any(|(_, b)| matches!(b, Body::Evidence { .. })), "no evidence was kept");
    }
}

pub(super) fn tell(arm: Arm, faults: Faults) -> Told {
    let mut plan = plan();
    if let Some(revert) = faults.revert {
        Arc::make_mut(&mut plan).pipeline.phases.revert = revert;
    }
    let trial = plan.trials.iter().find(|t| t.arm == arm).unwrap().clone();
    tell_of(plan, trial, faults)
}

/// What is told of a short trial.
pub(super) fn tell_short(arm: Arm, faults: Faults) -> Told {
    let plan = plan_with_soaks();
    let trial =
        plan.trials.iter().find(|t| t.arm == arm && t.length == klpfarm_model::Length::Short).unwrap();
    let trial = trial.clone();
    tell_of(plan, trial, faults)
}

/// What is told of a machine that only grows old.
pub(super) fn tell_of_aging(faults: Faults) -> Told {
    tell_for(plan(), Trial::new(AGED, Arm::Control, Vec::new(), 0), Purpose::Aging, faults)
}

pub(super) fn tell_of(plan: Arc<Plan>, trial: Trial, faults: Faults) -> Told {
    let purpose = Purpose::Trial(if faults.forked { Start::Fork } else { Start::Boot });
    tell_for(plan, trial, purpose, faults)
}

/// As the file of a patch says it.
fn replaced(name: &str) -> Replaced {
    Replaced {
        object: "vmlinux".into(),
        name: name.into(),
        position: None,
        new_code: Some(format!("new_{name}")),
    }
}

fn tell_for(plan: Arc<Plan>, trial: Trial, purpose: Purpose, faults: Faults) -> Told {
    let arm = trial.arm;
    let mut dispatcher = Dispatcher::new(Arc::clone(&plan), trial.clone(), purpose, Secret::new([9; 16]));
    if faults.new_calls.is_some() {
        (0..2).for_each(|patch| dispatcher.know(patch, Code::default(), vec![replaced("do_it")]));
    }
    let mut fake = Fake::new(arm, faults);
    let mut bodies = Vec::new();
    let mut queue = VecDeque::from([Input::Started(Ok(70))]);
    if arm == Arm::Control {
        queue.push_back(Input::Functions(vec!["vmlinux/do_it".into()]));
    }
    let mut paused = false;
    for step in 0.. {
        assert!(step < 20_000, "the trial never ends");
        let input = queue.pop_front().unwrap_or_else(|| {
            fake.now += Duration::from_millis(fake.faults.tick_ms.unwrap_or(200));
            if fake.faults.host_pause
                && !paused
                && fake.loaded_at.is_some_and(|at| fake.now > at + Duration::from_secs(3))
            {
                paused = true;
                fake.now += Duration::from_secs(300);
            }
            queue.extend(fake.second());
            Input::Tick
        });
        for action in dispatcher.handle(fake.now, input) {
            match action {
                Action::Emit(phase, body) => bodies.push((phase, body)),
                Action::End(end) => {
                    assert_eq!(complaints(&plan, &trial, &bodies, &end), [""; 0]);
                    let Fake { commands, asked, now, loaded_at, .. } = fake;
                    // What comes at the very last tick is heard too late.
                    let last = now.saturating_sub(Duration::from_millis(400));
                    let after_load = last.saturating_sub(loaded_at.unwrap_or(last)).as_secs();
                    return Told { bodies, end, commands, asked, seconds: now.as_secs(), after_load };
                }
                other => queue.extend(fake.answer(other)),
            }
        }
    }
    unreachable!()
}

/// What is inconsistent in the journal of a run of this one trial.
fn complaints(plan: &Plan, trial: &Trial, bodies: &[(Phase, Body)], end: &TrialEnd) -> Vec<String> {
    // The machine that is aged is in no journal, nor is what a test made up for itself.
    if plan.trial(trial.number).as_deref() != Some(trial) {
        return Vec::new();
    }
    let begin =
        Body::RunStarted { time: String::new(), plan: plan.hash(), accel: plan.accel, qemu: String::new() };
    let scope = |phase| Some(Scope { trial: trial.number, arm: trial.arm, phase });
    let own = bodies.iter().map(|(phase, body)| (scope(*phase), body.clone()));
    let all = [(None, begin), (scope(Phase::Boot), Body::TrialStarted)].into_iter().chain(own);
    let all = all.chain([(scope(Phase::End), Body::TrialEnded { end: end.clone() })]);
    let events: Vec<Event> =
        all.zip(1..).map(|((scope, body), seq)| Event { seq, at_ms: seq, scope, body }).collect();
    consistency(plan, &events)
}

impl Fake {
    pub(super) fn new(arm: Arm, faults: Faults) -> Self {
        Self {
            arm,
            load: faults.forked,
            faults,
            now: Duration::ZERO,
            loaded_at: None,
            patches: BTreeMap::new(),
            ops: 0,
            stopped: false,
            counts: 0,
            collected_at: None,
            commands: Vec::new(),
            asked: Vec::new(),
        }
    }

    pub(super) fn answer(&mut self, action: Action) -> Vec<Input> {
        match action {
            Action::Login { .. } if self.faults.no_login => {
                vec![Input::Login(Err(NoLogin::Guest("no route".into())))]
            }
            Action::Login { .. } if self.faults.no_port && self.loaded_at.is_some() => {
                vec![Input::Login(Err(NoLogin::Host))]
            }
            Action::Login { .. } if self.loaded_at.is_some() && self.faults.refused > 0 => {
                self.faults.refused -= 1;
                vec![Input::Login(Err(NoLogin::Host))]
            }
            Action::Login { .. } if self.login_is_mute() => Vec::new(),
            Action::Login { .. } => vec![Input::Login(Ok(50))],
            Action::Rekey { .. } => {
                self.commands.push("rekey".into());
                vec![Input::Rekeyed(self.faults.rekey.map_or(Ok(()), |error| Err(error.into())))]
            }
            Action::Ssh { command, .. } => {
                self.commands.push(command);
                vec![Input::Ssh(Ok(SshOutput { code: 0, text: "blind slabs just a test\n".into() }))]
            }
            Action::Refresh { id } => self.ask(id, Ask::Resume { entropy: String::new(), unix_ms: 1 }),
            Action::Upload { id, patch, chunk } => {
                self.commands.push(format!("upload {patch} {chunk}"));
                self.ask(id, Ask::Write { name: String::new(), data: String::new(), append: chunk > 0 })
            }
            Action::Tell(ToGuest { id, ask }) => self.ask(id, ask),
            Action::Sysrq(_) if self.faults.deaf_keys > 0 => {
                self.faults.deaf_keys -= 1;
                Vec::new()
            }
            Action::Sysrq(key) => {
                self.commands.push(format!("sysrq {key}"));
                vec![Input::Output(Output::Console(b"[9.0] sysrq: HELP : loglevel(0-9) \r\n".to_vec()))]
            }
            Action::Cpus => vec![Input::Cpus(self.cpus())],
            Action::Status => {
                vec![Input::Status(
                    self.faults.status.map(str::to_owned).ok_or_else(|| "no answer".to_owned()),
                )]
            }
            Action::Collect(_) if self.faults.collecting_s.is_some() && self.collected_at.is_none() => {
                let takes = self.faults.collecting_s.unwrap_or_default();
                self.collected_at = Some(self.now + Duration::from_secs(takes));
                Vec::new()
            }
            Action::Collect(_) => vec![Input::Collected(crate::trial::Collected {
                files: vec![("evidence/x".into(), "x".into())],
                waits: Vec::new(),
            })],
            Action::Emit(..) | Action::End(_) => unreachable!(),
        }
    }

    fn login_is_mute(&self) -> bool {
        let at = self.loaded_at.zip(self.faults.login_mute);
        at.is_some_and(|(loaded, after)| self.now >= loaded + Duration::from_secs(after))
    }

    fn ask(&mut self, id: u64, ask: Ask) -> Vec<Input> {
        let probe = |m| Input::Output(Output::Probe(m));
        let mut out = String::new();
        let mut code = 0;
        let mut more = Vec::new();
        self.asked.push(ask.clone());
        let mute = match &ask {
            Ask::Load { .. } => self.faults.load_mute,
            Ask::Exec { argv, .. } => {
                self.faults.unload_mute && argv.iter().any(|line| line.starts_with("rmmod"))
                    || self.faults.count_mute && argv.iter().any(|line| line.contains("set_ftrace_filter"))
            }
            _ => false,
        };
        let dead = self.faults.probe_stops
            && self.loaded_at.is_some_and(|at| self.now > at + Duration::from_secs(1));
        let mute = mute || dead;
        match ask {
            Ask::Hello => {
                let release = self.faults.release.unwrap_or("6.1").to_owned();
                return vec![probe(FromGuest::Hello { version: 1, release, cpus: 2, at_ms: 0, taint: 0 })];
            }
            Ask::Start { workload, .. } => {
                self.load = true;
                let ids = match (workload == klpfarm_model::AGING, self.faults.others) {
                    (true, _) => 9..=9,
                    (false, Some(_)) => 1..=4,
                    (false, None) => 1..=1,
                };
                more.extend(ids.map(|id| {
                    let workload = workload.clone();
                    let thread =
                        Thread { id, workload, process: 0, thread: 0, pid: 7, tid: 7 + id, counted: true };
                    probe(FromGuest::Thread(thread))
                }));
            }
            Ask::Stop { .. } => self.load = false,
            Ask::Exec { argv, .. } => out = self.exec(&argv[2]),
            Ask::Load { name, .. } => {
                self.commands.push(format!("load {name}"));
                self.loaded_at = Some(self.now);
                if self.faults.replaces && name == "y.ko" {
                    self.patches.values_mut().for_each(|enabled| *enabled = false);
                }
                self.patches.insert(name.trim_end_matches(".ko").to_owned(), true);
                (code, out) = match self.faults.load {
                    Some((code, text)) => (code, text.to_owned()),
                    None => (0, "inside do_it 3\ninside schedule 90\n".to_owned()),
                };
            }
            Ask::Livepatch { name } => {
                out = self.livepatch(&name);
                let taken_back = self.patches.get(&name) == Some(&false);
                if let Some((times, status, text)) = self.faults.garbled.as_mut().filter(|_| taken_back)
                    && *times > 0
                {
                    *times -= 1;
                    (code, out) = (*status, (*text).to_owned());
                }
            }
            Ask::Vitals => out = serde_json::to_string(&klpfarm_stress::wire::Vitals::default()).unwrap(),
            Ask::Kmsg { .. } if self.faults.no_kmsg => (code, out) = (1, "no such file".into()),
            Ask::Kmsg { .. } if self.faults.kmsg_fails && self.loaded_at.is_some() => {
                (code, out) = (5, "Input/output error".into());
            }
            Ask::Kmsg { line } if !self.faults.console_silent || self.loaded_at.is_none() => {
                let text =
                    format!("[{}.0] {}\r\n", self.now.as_secs(), line.trim_start_matches("<6>").trim());
                more.push(Input::Output(Output::Console(text.into())));
            }
            Ask::Read { path } if path == "/proc/modules" => out = MODULES.to_owned(),
            Ask::Read { path } if path == "/proc/sys/kernel/tainted" => {
                (code, out) = if self.faults.no_taint && self.loaded_at.is_some() {
                    (5, "cannot read: Input/output error".into())
                } else {
                    (0, format!("{}\n", self.faults.taints.pop_front().unwrap_or(0)))
                };
            }
            Ask::Kmsg { .. } | Ask::Read { .. } | Ask::Resume { .. } | Ask::Write { .. } => {}
        }
        if !mute {
            more.push(probe(FromGuest::Reply { id, code, out }));
        }
        more
    }

    /// Two CPUs, one idle; the other sticks after applying, if it is to.
    fn cpus(&self) -> Result<Vec<CpuLook>, String> {
        let begun = self.faults.cpu_stuck_at.map_or(self.loaded_at.is_some(), |at| self.now >= at);
        let stuck = self.faults.cpu_stuck.filter(|_| begun);
        let idle = CpuLook { cpu: 0, rip: 1, interrupts: true, ring: 0, halted: true };
        let other =
            CpuLook { cpu: 1, rip: stuck.unwrap_or(2), interrupts: stuck.is_none(), halted: false, ..idle };
        let silent = self.faults.registers_stop && self.loaded_at.is_some();
        if self.faults.no_registers || silent { Err("no answer".into()) } else { Ok(vec![idle, other]) }
    }

    fn exec(&mut self, line: &str) -> String {
        self.commands.push(line.to_owned());
        let named = |prefix: &str| {
            line.split_once(prefix).map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_owned())
        };
        if let Some(name) = named("echo 0 > /sys/kernel/livepatch/") {
            self.patches.insert(name, false);
        } else if let Some(name) = named("echo 1 > /sys/kernel/livepatch/") {
            self.patches.insert(name, true);
        } else if let Some(rest) = line.strip_prefix("rmmod ") {
            self.patches.remove(rest.split(' ').next().unwrap());
        } else if line.contains("modprobe") {
            return self.faults.modules.to_owned();
        } else if line.contains("set_ftrace_filter") {
            self.counts += 1;
            let silent = self.faults.unreached || self.counts <= self.faults.silent_counts;
            let calls = if silent { 0 } else { 90 };
            let wanted = line.lines().find_map(|l| l.strip_prefix("take \"")?.split('"').next()).unwrap();
            let keys = wanted.split(' ').skip(1).step_by(3).enumerate();
            // The first function of a group fills the buffer.
            let word = |n: usize| if self.faults.one_is_hot && n > 0 { "hidden" } else { "calls" };
            let of = |key: &str| match self.faults.new_calls {
                Some([x, _]) if key == "new/x/new_do_it" => x,
                Some([_, y]) if key == "new/y/new_do_it" => y,
                _ => calls,
            };
            return keys.map(|(n, key)| format!("{} {key} {}\n", word(n), of(key))).collect();
        }
        String::new()
    }

    fn livepatch(&self, name: &str) -> String {
        let Some(&enabled) = self.patches.get(name) else { return String::new() };
        let in_transition = if enabled { self.faults.transition_hangs } else { self.faults.revert_hangs };
        if !enabled && !in_transition && !self.faults.no_transition_file {
            return String::new();
        }
        let transition = if self.faults.no_transition_file {
            String::new()
        } else {
            format!("transition {}\n", u8::from(in_transition))
        };
        let since = self.loaded_at.map(|at| self.now.saturating_sub(at));
        if let Some((_, how)) = self.faults.undone.filter(|(s, _)| since.is_some_and(|d| d.as_secs() >= *s)) {
            return how.to_owned();
        }
        let functions: String = if self.faults.functions.is_empty() {
            "function vmlinux/do_it,1\n".to_owned()
        } else {
            self.faults.functions.iter().map(|f| format!("function {f}\n")).collect()
        };
        format!("listed\nenabled {}\n{transition}{functions}", u8::from(enabled))
    }

    /// What comes on its own each tick.
    pub(super) fn second(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        if self.collected_at.is_some_and(|at| self.now >= at) {
            inputs.push(Input::Collected(crate::trial::Collected {
                files: vec![("evidence/x".into(), "x".into())],
                waits: Vec::new(),
            }));
        }
        let since = self.loaded_at.map(|at| self.now.saturating_sub(at));
        let due: Vec<(u64, Output)> = self
            .faults
            .after_apply
            .extract_if(.., |(s, _)| since.is_some_and(|d| d.as_secs() >= *s))
            .collect();
        for (_, output) in due {
            match &output {
                Output::Qmp(klpfarm_vm::QmpEvent::Stopped) => self.stopped = true,
                Output::Qmp(klpfarm_vm::QmpEvent::Resumed) => self.stopped = false,
                _ => {}
            }
            inputs.push(Input::Output(output));
        }
        if self.stopped {
            return inputs;
        }
        if self.arm == Arm::Control && self.now.as_secs() > 12 {
            self.loaded_at.get_or_insert(self.now);
        }
        if since.is_some() && self.faults.probe_stops {
            return inputs;
        }
        let at_ms = millis(self.now);
        let stop_after = Duration::from_secs(self.faults.stop_after);
        let lasts = self.faults.stall_s.map_or(Duration::MAX, Duration::from_secs);
        let stuck = since.filter(|d| self.faults.threads_stop && self.load && *d >= stop_after);
        let stuck = stuck.filter(|d| *d - stop_after < lasts);
        let stuck = stuck.map(|d| millis(d - stop_after));
        if stuck.is_none() {
            self.ops += 20;
        }
        let told = |after: u64| since.is_none_or(|d| d.as_secs() < after);
        if !self.faults.progress_stops.is_none_or(told) {
            inputs.push(Input::Output(Output::Probe(FromGuest::Taint { at_ms, value: 0 })));
        }
        if self.load && self.faults.progress_stops.is_none_or(told) {
            let p = ThreadProgress {
                id: 1,
                ops: self.ops,
                latency_us: 5,
                idle_ms: stuck.unwrap_or(3),
                errors: 0,
                errno: 0,
            };
            let mut threads = vec![p];
            if let Some(go_on) = self.faults.others {
                let q = ThreadProgress { ops: at_ms, idle_ms: 3, ..p };
                threads.extend((2..=4).map(|id| ThreadProgress { id, ..if go_on { q } else { p } }));
            }
            inputs.push(Input::Output(Output::Probe(FromGuest::Progress { at_ms, threads })));
        }
        if let Some(for_ms) = stuck.filter(|_| !self.faults.hidden) {
            let frame = if self.faults.elsewhere { "do_f+0x1/0x2" } else { "klp_f+0x1/0x2 [x]" };
            let task = BlockedTask {
                pid: 7,
                tid: 8,
                comm: "w".into(),
                state: 'D',
                for_ms,
                wchan: "f".into(),
                stack: format!("schedule+0x1/0x2\n{frame}\n"),
                thread: Some(1),
            };
            let stopped = if self.faults.others == Some(false) { 1..=4 } else { 1..=1 };
            let tasks: Vec<BlockedTask> =
                stopped.map(|id| BlockedTask { tid: 7 + id, thread: Some(id), ..task.clone() }).collect();
            let total = u32::try_from(tasks.len()).unwrap();
            inputs.push(Input::Output(Output::Probe(FromGuest::Blocked { at_ms, tasks, total })));
        }
        inputs
    }
}
