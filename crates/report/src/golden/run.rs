//! Made-up runs with the texts and figures of real ones, from which the golden files are rendered.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use klpfarm_model::event::{CheckpointFacts, NewCodeCalls, Vitals};
use klpfarm_model::{
    Accel, Arm, Body, Detector, Event, Finding, FindingKind, ImageFacts, Mode, Noted, ObservedKind, Patch,
    Phase, Pipeline, Plan, Resolved, Scope, Source, TierRule, TrialEnd, Turn, Wait, Waits,
};

/// Function that every made-up patch replaces, as sysfs names it.
pub(super) const FUNCTION: &str = "vmlinux/__x64_sys_madvise,1";

/// A run that is being told, event by event.
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) events: Vec<Event>,
    now_ms: u64,
}

impl Run {
    /// A run of these patches that needs two clean loaded trials; with a rotation if `rounds`.
    pub(super) fn new(patches: &[&str], rounds: bool) -> Self {
        let mut text = "name: gate\nimage: debian-12\nworkloads: [madvise-allocator]\n\
                        arms: {quiescent: 1, control: 1, reapply: 1}\n"
            .to_owned();
        if rounds {
            text.push_str("rotation: {duration: 8h, images: [debian-12, debian-12-generic]}\n");
        }
        let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text).unwrap();
        let facts = |name: &str, release: &str| ImageFacts {
            name: name.into(),
            hash: "1c0b2883b670".into(),
            release: Some(release.into()),
        };
        let turn = |image: &ImageFacts| Turn {
            image: image.clone(),
            load: "memory".into(),
            workloads: Vec::new(),
            patches: (0..patches.len()).collect(),
            checkpoint: None,
        };
        let images =
            [facts("debian-12", "6.1.0-56-cloud-amd64"), facts("debian-12-generic", "6.1.0-56-cloud-amd64")];
        let rule = TierRule::new(
            0.7,
            0.6,
            Duration::from_secs(30),
            vec![Arm::Loaded, Arm::Quiescent, Arm::Control, Arm::Reapply],
        );
        let candidate = |name: &&str| Patch {
            name: (*name).into(),
            sha256: "3b1f5a0c9d7e".repeat(5) + "3b1f",
            vermagic: "6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions ".into(),
            ..Patch::default()
        };
        let resolved = Resolved {
            patches: patches.iter().map(candidate).collect(),
            jobs: 3,
            mode: if rounds { Mode::Rotation(images.iter().map(turn).collect()) } else { Mode::Single },
            ..Resolved::new(images[0].clone(), rule)
        };
        let plan = Plan::new(&pipeline, resolved).unwrap();
        let started = Body::RunStarted {
            time: "2026-11-28T00:15:17Z".into(),
            plan: plan.hash(),
            accel: Accel::Tcg,
            qemu: "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)".into(),
        };
        let mut run = Self { plan, events: Vec::new(), now_ms: 0 };
        run.add(None, started);
        run.add(None, Body::Checkpoint(Box::new(checkpoint())));
        run
    }

    /// An event now.
    pub(super) fn add(&mut self, scope: Option<Scope>, body: Body) -> &mut Self {
        self.events.push(Event { seq: self.events.len() as u64 + 1, at_ms: self.now_ms, scope, body });
        self
    }

    /// So many milliseconds go by.
    pub(super) fn later(&mut self, ms: u64) -> &mut Self {
        self.now_ms += ms;
        self
    }

    /// Where an event of the `nth` trial of an arm belongs, counted from 0, in a phase.
    pub(super) fn at(&self, arm: Arm, nth: usize, phase: Phase) -> Scope {
        let mut ours = (1..1000).filter(|n| self.plan.trial(*n).is_some_and(|t| t.arm == arm));
        Scope { trial: ours.nth(nth).unwrap(), arm, phase }
    }

    fn phase(&mut self, arm: Arm, nth: usize, phase: Phase, body: Body) -> &mut Self {
        let scope = self.at(arm, nth, phase);
        self.add(Some(scope), body)
    }

    /// A trial from its fork until its patches are in force.
    pub(super) fn begin(&mut self, arm: Arm, nth: usize) -> &mut Self {
        self.later(1000).phase(arm, nth, Phase::Boot, Body::TrialStarted);
        let release = "6.1.0-56-cloud-amd64".to_owned();
        let ready = Body::MachineReady { release, ssh_ms: None, fork_ms: Some(1400), taint: 12288 };
        self.later(1400).phase(arm, nth, Phase::Boot, ready);
        let trial = self.plan.trial(self.at(arm, nth, Phase::Boot).trial).unwrap().into_owned();
        let names: Vec<String> = self.plan.names(&trial).map(str::to_owned).collect();
        for patch in names {
            let functions = vec![FUNCTION.to_owned()];
            let inside = BTreeMap::from([(FUNCTION.to_owned(), u32::from(arm != Arm::Quiescent) * 3)]);
            let applied = Body::Applied { patch, took_ms: 981, functions, inside };
            self.later(8000).phase(arm, nth, Phase::Apply, applied);
            let done = Body::TransitionDone { took_ms: 2188, per_task: true };
            self.later(1200).phase(arm, nth, Phase::Transition, done);
        }
        self
    }

    /// The load's rates, and the calls of the patched function.
    pub(super) fn works(&mut self, arm: Arm, nth: usize) -> &mut Self {
        let rates = BTreeMap::from([("madvise-allocator".to_owned(), 1112.4), ("aging".to_owned(), 64.0)]);
        self.later(25_000).phase(arm, nth, Phase::Soak, Body::Progress { rates, ssh_ms: Some(1679) });
        let calls = if arm == Arm::Control { 1084 } else { 5748 };
        let trial = self.plan.trial(self.at(arm, nth, Phase::Soak).trial).unwrap().into_owned();
        let last = self.plan.names(&trial).last();
        let new_code = last.map(|patch| NewCodeCalls { patch: patch.to_owned(), calls, window_ms: 2000 });
        let reach = Body::Reach { function: FUNCTION.into(), calls, window_ms: 2000, new_code };
        self.later(4000).phase(arm, nth, Phase::Soak, reach)
    }

    /// A trial in which nothing is wrong.
    pub(super) fn clean(&mut self, arm: Arm, nth: usize) -> &mut Self {
        self.begin(arm, nth).works(arm, nth);
        if arm.patched() {
            let patch = self.plan.patches[0].name.clone();
            self.later(1500).phase(arm, nth, Phase::Revert, Body::Reverted { patch, unloaded: true });
        }
        self.ends(arm, nth, TrialEnd::Completed)
    }

    /// The trial ends.
    pub(super) fn ends(&mut self, arm: Arm, nth: usize, end: TrialEnd) -> &mut Self {
        self.later(900).phase(arm, nth, Phase::End, Body::CpuShare { share: 0.82 });
        self.later(100).phase(arm, nth, Phase::End, Body::TrialEnded { end })
    }

    /// The trial finds something.
    pub(super) fn finds(&mut self, arm: Arm, nth: usize, finding: Finding) -> &mut Self {
        self.later(6000).phase(arm, nth, Phase::Soak, Body::Finding(Box::new(finding)))
    }

    /// Tasks wait in the patch's code, and evidence was gathered.
    pub(super) fn hangs(&mut self, arm: Arm, nth: usize) -> &mut Self {
        let task = |tid: u32, workload: &str| Wait {
            task: workload.chars().take(15).collect(),
            pid: 517,
            tid,
            state: 'D',
            workload: Some(workload.into()),
            threads: Some(4),
            since_apply_ms: Some(1081),
            stack: vec![
                "klp_new_madvise+0xd9/0x120 [held_lock]".into(),
                "do_syscall_64+0x5d/0x90".into(),
                "entry_SYSCALL_64_after_hwframe+0x6e/0xd8".into(),
            ],
        };
        let tasks = vec![task(529, "madvise-allocator"), task(530, "madvise-allocator")];
        let waits = Waits { noted: Noted::Blocked, total: 2, tasks };
        self.later(100).phase(arm, nth, Phase::Soak, Body::Waits(Box::new(waits)));
        let readme = Body::Evidence { file: "evidence/README".into(), what: "what is what".into() };
        self.later(9000).phase(arm, nth, Phase::Soak, readme)
    }

    /// The run is over.
    pub(super) fn over(&mut self) -> &mut Self {
        self.later(100).add(None, Body::RunEnded { interrupted: false })
    }
}

/// A finding of the farm's own about tasks that stand in `function`.
pub(super) fn finding(kind: impl Into<FindingKind>, title: &str, function: &str) -> Finding {
    let module = if function.starts_with("klp_") { " [held_lock]" } else { "" };
    Finding {
        kind: kind.into(),
        title: title.into(),
        source: Source::Probe,
        function: Some(function.into()),
        workload: Some("madvise-allocator".into()),
        after_apply_ms: Some(1087),
        line: None,
        in_patch: !module.is_empty(),
        corrupted: false,
        evidence: format!(
            "madvise-allocat:529 pid 517 state D for 20.0 s in {function}\n    {function}+0xd9/0x120{module}\n    do_syscall_64+0x5d/0x90"
        ),
    }
}

/// A hang that no slow host explains.
pub(super) fn hang() -> Finding {
    let title = "tasks hang in klp_new_madvise: no progress while the rest of the machine runs";
    finding(ObservedKind::HangConfirmed, title, "klp_new_madvise")
}

fn checkpoint() -> CheckpointFacts {
    let vitals = |uptime_s, forks, context_switches, page_cache_kib| Vitals {
        uptime_s,
        forks,
        context_switches,
        tasks: 70 + forks / 90,
        page_cache_kib,
        slab_kib: 23_152 + forks * 3,
        fragmentation: if forks > 1000 { 0.3167 } else { 0.0017 },
        journal_kib: 2048,
        ..Vitals::default()
    };
    CheckpointFacts {
        id: "debian-12-58a911e49505".into(),
        size: 1_189_408_768,
        made_ms: Some(140_207),
        fresh: vitals(24.26, 308, 10_897, 40_768),
        reached: vitals(137.92, 6191, 239_786, 192_092),
        unavailable: BTreeMap::new(),
        blind: BTreeMap::from([(
            Detector::HardLockup,
            "no NMI watchdog in this guest: a CPU stuck with interrupts off is seen by its registers only (cpu-stuck)".into(),
        )]),
    }
}
