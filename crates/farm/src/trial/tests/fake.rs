//! A fake machine that answers at once, and what a trial tells of it.

use std::path::Path;

use klpfarm_model::{
    Accel, Arm, Event, FindingKind, ImageFacts, Patch, Pipeline, Resolved, Scope, TierRule, Workload,
    consistency,
};
use klpfarm_stress::wire::{BlockedTask, FromGuest, Thread, ThreadProgress};
use klpfarm_vm::CpuLook;

use crate::trial::*;

pub(in crate::trial) fn plan() -> Arc<Plan> {
    let text = "name: gate\nimage: debian-12\nworkloads: [w]\naging: {uptime: 8s}\nphases: {settle: 2s, baseline: 6s, soak: 30s, revert: 2s}\n";
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), text).unwrap();
    let workload = Workload::parse(Path::new("w.yaml"), "name: w\nrun: {builtin: w}\n").unwrap();
    let patch = |name: &str| Patch {
        name: name.into(),
        vermagic: "6.1 SMP".into(),
        size: 200_000,
        ..Patch::default()
    };
    let rule = TierRule::new(0.2, 0.95, Duration::from_secs(5), vec![Arm::Loaded, Arm::Control]);
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
    pub(super) no_registers: bool,
    pub(super) no_kmsg: bool,
    /// After applying, nothing comes out on the console any more.
    pub(super) console_silent: bool,
    /// The workload's threads stop so long after applying, in seconds.
    pub(super) stop_after: u64,
    /// All inputs stop for this long, as on a suspended host.
    pub(super) host_pause: bool,
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
    pub(super) commands: Vec<String>,
    pub(super) asked: Vec<Ask>,
}

pub(super) struct Told {
    pub(super) bodies: Vec<(Phase, Body)>,
    pub(super) end: TrialEnd,
    pub(super) commands: Vec<String>,
    pub(super) asked: Vec<Ask>,
    pub(super) seconds: u64,
}

impl Told {
    pub(super) fn findings(&self) -> Vec<(FindingKind, String)> {
        let finding = |(_, body): &(Phase, Body)| match body {
            Body::Finding(f) => Some((f.kind, f.title.clone())),
            _ => None,
        };
        self.bodies.iter().filter_map(finding).collect()
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
    let plan = plan();
    let trial = plan.trials.iter().find(|t| t.arm == arm).unwrap().clone();
    tell_of(plan, trial, faults)
}

/// What is told of a machine that only grows old.
pub(super) fn tell_of_aging(faults: Faults) -> Told {
    tell_of(plan(), Trial::new(0, Arm::Control, Vec::new(), 0), faults)
}

pub(super) fn tell_of(plan: Arc<Plan>, trial: Trial, faults: Faults) -> Told {
    let arm = trial.arm;
    let origin = if faults.forked { Origin::Fork } else { Origin::Boot };
    let mut dispatcher = Dispatcher::new(Arc::clone(&plan), trial.clone(), origin);
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
            fake.now += Duration::from_millis(200);
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
                    let Fake { commands, asked, now, .. } = fake;
                    return Told { bodies, end, commands, asked, seconds: now.as_secs() };
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
            Action::Login { .. } if self.login_is_mute() => Vec::new(),
            Action::Login { .. } => vec![Input::Login(Ok(50))],
            Action::Rekey { .. } => {
                self.commands.push("rekey".into());
                vec![Input::Rekeyed(self.faults.rekey.map_or(Ok(()), |error| Err(error.into())))]
            }
            Action::Ssh { command, .. } => {
                self.commands.push(command);
                vec![Input::Ssh(Ok(SshOutput { code: 0, text: "blind nothing just a test\n".into() }))]
            }
            Action::Refresh { id } => self.ask(id, Ask::Resume { entropy: String::new(), unix_ms: 1 }),
            Action::Upload { id, patch, chunk } => {
                self.commands.push(format!("upload {patch} {chunk}"));
                self.ask(id, Ask::Write { name: String::new(), data: String::new(), append: chunk > 0 })
            }
            Action::Tell(ToGuest { id, ask }) => self.ask(id, ask),
            Action::Cpus => vec![Input::Cpus(self.cpus())],
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
            }
            _ => false,
        };
        match ask {
            Ask::Hello => {
                let release = self.faults.release.unwrap_or("6.1").to_owned();
                return vec![probe(FromGuest::Hello { version: 1, release, cpus: 2, at_ms: 0, taint: 0 })];
            }
            Ask::Start { workload, .. } => {
                self.load = true;
                more.push(probe(FromGuest::Thread(Thread {
                    id: if workload == klpfarm_model::AGING { 9 } else { 1 },
                    workload,
                    process: 0,
                    thread: 0,
                    pid: 7,
                    tid: 8,
                    counted: true,
                })));
            }
            Ask::Stop { .. } => self.load = false,
            Ask::Exec { argv, .. } => out = self.exec(&argv[2]),
            Ask::Load { name, .. } => {
                self.commands.push(format!("load {name}"));
                self.loaded_at = Some(self.now);
                self.patches.insert(name.trim_end_matches(".ko").to_owned(), true);
                (code, out) = match self.faults.load {
                    Some((code, text)) => (code, text.to_owned()),
                    None => (0, "inside do_it 3\ninside schedule 90\n".to_owned()),
                };
            }
            Ask::Livepatch { name } => out = self.livepatch(&name),
            Ask::Vitals => out = serde_json::to_string(&klpfarm_stress::wire::Vitals::default()).unwrap(),
            Ask::Kmsg { .. } if self.faults.no_kmsg => (code, out) = (1, "no such file".into()),
            Ask::Kmsg { line } if !self.faults.console_silent || self.loaded_at.is_none() => {
                let text =
                    format!("[{}.0] {}\r\n", self.now.as_secs(), line.trim_start_matches("<6>").trim());
                more.push(Input::Output(Output::Console(text.into())));
            }
            Ask::Read { path } if path == "/proc/modules" => out = MODULES.to_owned(),
            Ask::Kmsg { .. } | Ask::Read { .. } | Ask::Resume { .. } | Ask::Write { .. } => {}
        }
        if !mute {
            more.push(probe(FromGuest::Reply { id, code, out }));
        }
        more
    }

    /// Two CPUs, one idle; the other sticks after applying, if it is to.
    fn cpus(&self) -> Result<Vec<CpuLook>, String> {
        let stuck = self.faults.cpu_stuck.filter(|_| self.loaded_at.is_some());
        let idle = CpuLook { cpu: 0, rip: 1, interrupts: true, ring: 0, halted: true };
        let other =
            CpuLook { cpu: 1, rip: stuck.unwrap_or(2), interrupts: stuck.is_none(), halted: false, ..idle };
        if self.faults.no_registers { Err("no answer".into()) } else { Ok(vec![idle, other]) }
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
            return format!("calls do_it {}\n", if self.faults.unreached { 0 } else { 90 });
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
        format!("listed\nenabled {}\n{transition}function vmlinux/do_it,1\n", u8::from(enabled))
    }

    /// What comes on its own each tick.
    fn second(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        let since = self.loaded_at.map(|at| self.now.saturating_sub(at));
        let due: Vec<(u64, Output)> = self
            .faults
            .after_apply
            .extract_if(.., |(s, _)| since.is_some_and(|d| d.as_secs() >= *s))
            .collect();
        inputs.extend(due.into_iter().map(|(_, output)| Input::Output(output)));
        if self.arm == Arm::Control && self.now.as_secs() > 12 {
            self.loaded_at.get_or_insert(self.now);
        }
        if since.is_some() && self.faults.probe_stops {
            return inputs;
        }
        let at_ms = millis(self.now);
        let stop_after = Duration::from_secs(self.faults.stop_after);
        let stuck = since.filter(|d| self.faults.threads_stop && self.load && *d >= stop_after);
        let stuck = stuck.map(|d| millis(d - stop_after));
        if stuck.is_none() {
            self.ops += 20;
        }
        if self.load {
            let p = ThreadProgress {
                id: 1,
                ops: self.ops,
                latency_us: 5,
                idle_ms: stuck.unwrap_or(3),
                errors: 0,
                errno: 0,
            };
            inputs.push(Input::Output(Output::Probe(FromGuest::Progress { at_ms, threads: vec![p] })));
        }
        if let Some(for_ms) = stuck {
            let task = BlockedTask {
                pid: 7,
                tid: 8,
                comm: "w".into(),
                state: 'D',
                for_ms,
                wchan: "f".into(),
                stack: "schedule+0x1/0x2\nklp_f+0x1/0x2 [x]\n".into(),
                thread: Some(1),
            };
            inputs.push(Input::Output(Output::Probe(FromGuest::Blocked {
                at_ms,
                tasks: vec![task],
                total: 1,
            })));
        }
        inputs
    }
}
