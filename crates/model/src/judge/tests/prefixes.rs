//! The fold, event by event, against judging from scratch: for runs that are made up, with trials at once, measurements, findings of all
//! kinds, invalid and lost trials, and runs that were cut off and go on.

use std::path::Path;

use super::*;
use crate::Pipeline;
use crate::event::{Resources, live};
use crate::judge::fold::Fold;
use crate::judge::outcome::Mark;
use crate::plan::Trial;
use crate::sequential::{Tally, Wager, enough, shows};
use crate::simulation::Chance;

/// Makes up the journal of a run.
struct Maker {
    plan: Plan,
    chance: Chance,
    events: Vec<Event>,
    /// Of trials that run: what is still to come.
    running: BTreeMap<u32, Vec<(Phase, Body)>>,
    /// How often something goes wrong.
    trouble: f64,
}

impl Maker {
    fn new(plan: Plan, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let trouble = [0.0, 0.1, 0.4][(chance.share() * 3.0) as usize];
        let mut maker = Self { plan, chance, events: Vec::new(), running: BTreeMap::new(), trouble };
        let body = Body::RunStarted {
            time: String::new(),
            plan: maker.plan.hash(),
            accel: maker.plan.accel,
            qemu: String::new(),
        };
        maker.add(None, body);
        maker
    }

    fn add(&mut self, scope: Option<Scope>, body: Body) {
        let seq = self.events.len() as u64 + 1;
        self.events.push(Event { seq, at_ms: seq * 10, scope, body });
    }

    fn is(&mut self, share: f64) -> bool {
        self.chance.share() < share
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.chance.share() * all.len() as f64) as usize]
    }

    fn start(&mut self, trial: &Trial) {
        let script = self.script(trial);
        self.running.insert(trial.number, script);
    }

    /// The next event of a trial that runs; false if none does.
    fn step(&mut self) -> bool {
        let running: Vec<u32> = self.running.keys().copied().collect();
        if running.is_empty() {
            return false;
        }
        let trial = self.of(&running);
        let arm = self.plan.trial(trial).unwrap().arm;
        let script = self.running.get_mut(&trial).unwrap();
        let (phase, body) = script.remove(0);
        if script.is_empty() {
            self.running.remove(&trial);
        }
        self.add(Some(Scope { trial, arm, phase }), body);
        true
    }

    /// The run is cut off and goes on: what had not ended and found nothing is done again.
    fn cut_off(&mut self) {
        let found = |events: &[Event], n: u32| {
            let of = |e: &&Event| e.scope.is_some_and(|s| s.trial == n);
            events.iter().filter(of).any(|e| matches!(e.body, Body::Finding(_)))
        };
        let running: Vec<u32> = std::mem::take(&mut self.running).into_keys().collect();
        let mut void = Vec::new();
        for trial in running {
            let scope = Scope { trial, arm: self.plan.trial(trial).unwrap().arm, phase: Phase::End };
            if found(&self.events, trial) || self.is(0.5) {
                self.add(Some(scope), Body::TrialEnded { end: TrialEnd::Interrupted });
            }
            if !found(&self.events, trial) {
                void.push(trial);
            }
        }
        self.add(None, Body::RunEnded { interrupted: true });
        self.add(None, Body::RunResumed { time: String::new(), qemu: String::new(), void });
    }

    fn measured(&mut self, slow: f64, leak: u64) -> Measured {
        let mut workloads = BTreeMap::new();
        for name in ["aging", "w", "x"] {
            let jitter = 0.8 + 0.4 * self.chance.share();
            let ops = (2000.0 * jitter / slow) as u64;
            let latency = LatencyMeasure {
                count: ops,
                p10_ns: (20_000.0 * jitter * slow) as u64,
                p50_ns: (50_000.0 * jitter * slow) as u64,
                slept: if self.is(0.3) { vec![(2, 30), (5, 12)] } else { vec![(0, 3)] },
                ..LatencyMeasure::default()
            };
            let measure = WorkloadMeasure {
                ops,
                asleep: Some(0.1 * jitter),
                by_thread: vec![(1, ops / 3), (2, ops / 3), (3, if slow > 3.0 { 40 } else { ops / 3 })],
                latency: BTreeMap::from([("call".to_owned(), latency)]),
                ..WorkloadMeasure::default()
            };
            workloads.insert(name.to_owned(), measure);
        }
        let sample = |s: u64| Resources {
            at_ms: s * 1000,
            available_kib: 900_000,
            slab_unreclaimable_kib: 1000 + s * leak,
            ..Resources::default()
        };
        Measured { window_ms: 10_000, workloads, resources: (0..12).map(sample).collect() }
    }

    fn finding(&mut self, trial: &Trial) -> Finding {
        let kind: FindingKind = self.of(&[
            HANG.into(),
            OOPS,
            ObservedKind::SshDead.into(),
            ObservedKind::HangConfirmed.into(),
            ObservedKind::WorkloadDied.into(),
            FindingKind::Kernel(klpfarm_kmsg::Kind::Oom),
            ObservedKind::RevertRefused.into(),
        ]);
        let patched = trial.arm.patched();
        let own =
            matches!(kind, FindingKind::Observed(ObservedKind::HangConfirmed | ObservedKind::RevertRefused));
        let kind = if own && !(patched && self.is(0.1)) { HANG.into() } else { kind };
        let title = self.of(&["a hangs", "b breaks", "c"]);
        let in_patch = patched && self.is(0.2);
        Finding { in_patch, workload: Some("w".into()), ..finding(kind, title) }
    }

    /// All that a trial will say.
    fn script(&mut self, trial: &Trial) -> Vec<(Phase, Body)> {
        let mut all = vec![(Phase::Boot, Body::TrialStarted), (Phase::Baseline, Body::PhaseStarted)];
        if self.is(self.trouble / 4.0) {
            let end = TrialEnd::FarmError { message: "no SSH".into() };
            all.push((Phase::Baseline, Body::TrialEnded { end }));
            return all;
        }
        if self.is(0.2) {
            let reason = format!("why {}", trial.number);
            all.push((
                Phase::Baseline,
                Body::Blind { detector: self.of(&[crate::Detector::Reach, crate::Detector::Slabs]), reason },
            ));
        }
        all.push((Phase::Baseline, Body::Measured(self.measured(1.0, 0))));
        let names: Vec<String> = self.plan.names(trial).map(str::to_owned).collect();
        for patch in names {
            let functions = if self.is(0.95) { vec![format!("vmlinux/f_{patch},1")] } else { Vec::new() };
            let inside = BTreeMap::from([(format!("f_{patch}"), trial.number)]);
            all.push((Phase::Apply, Body::Applied { patch, took_ms: 1, functions, inside }));
            all.push((Phase::Transition, Body::TransitionDone { took_ms: 1, per_task: true }));
        }
        all.push((Phase::Soak, Body::PhaseStarted));
        let found = self.is(self.trouble);
        if found {
            let phase =
                self.of(&[Phase::Soak, Phase::Soak, Phase::Soak, Phase::Revert, Phase::Baseline, Phase::End]);
            let finding = self.finding(trial);
            all.push((phase, Body::Finding(Box::new(finding))));
            if self.is(0.3) {
                all.push((Phase::Soak, Body::StallEnded { title: "a hangs".into(), lasted_ms: 3 }));
            }
        }
        if !found || self.is(0.3) {
            let differs = self.is(self.trouble / 2.0);
            let (slow, leak) =
                if differs { (self.of(&[1.0, 2.5, 9.0]), self.of(&[0, 900])) } else { (1.0, 0) };
            let soak = self.measured(slow, leak);
            all.push((Phase::Soak, Body::Measured(soak)));
            let function = self.of(&["vmlinux/f_x,1", "vmlinux/f_x,1", "f_x", "g"]);
            let calls = self.of(&[5, 5, 0]);
            all.push((
                Phase::Reach,
                Body::Reach { function: function.into(), calls, window_ms: 1000, new_code: None },
            ));
        }
        if self.is(0.5) {
            all.push((Phase::End, Body::CpuShare { share: if self.is(0.2) { 0.5 } else { 0.9 } }));
        }
        let end = match self.chance.share() {
            x if x < self.trouble / 5.0 => TrialEnd::Void { reason: "it slept".into() },
            x if x < self.trouble / 4.0 => TrialEnd::FarmError { message: "QEMU died".into() },
            x if x < self.trouble / 3.0 => TrialEnd::Unneeded,
            _ if found => TrialEnd::Stopped,
            _ => TrialEnd::Completed,
        };
        all.push((Phase::End, Body::TrialEnded { end }));
        all
    }
}

/// Outcomes of the trials of a set that `begun` holds for, one after the other, as the definition has it: with `clean`, as if all that have
/// not ended were to end cleanly.
fn tally(fold: &Fold, trials: &[&Trial], begun: &dyn Fn(u32) -> bool, clean: bool, way: usize) -> Tally {
    let outcomes = &fold.outcomes;
    let failed = |n: u32| outcomes.said(n).is_some_and(|said| said.failures() >> way & 1 == 1);
    let mut tally = Tally::default();
    let mut behind_open = false;
    for trial in trials.iter().filter(|t| begun(t.number)) {
        let partner = trial.partner.filter(|p| begun(*p) && outcomes.mark(*p) != Mark::Void);
        let is_open = |number: u32| matches!(outcomes.mark(number), Mark::Open | Mark::Cut);
        behind_open |= !clean && (is_open(trial.number) || partner.is_some_and(is_open));
        match outcomes.mark(trial.number) {
            Mark::Void => {}
            Mark::Cut if clean => {}
            mark if behind_open => {
                if mark.counts() && failed(trial.number) {
                    tally.add(true, None);
                }
            }
            _ => tally.add(failed(trial.number), partner.map(failed)),
        }
    }
    tally
}

/// Sets of a plan, with their trials in order.
fn sets(plan: &Plan) -> Vec<Vec<&Trial>> {
    let mut sets: Vec<Vec<&Trial>> = Vec::new();
    for trial in plan.trials.iter().filter(|t| t.arm.patched()) {
        match sets.iter_mut().find(|s| (s[0].arm, &s[0].patches) == (trial.arm, &trial.patches)) {
            Some(set) => set.push(trial),
            None => sets.push(vec![trial]),
        }
    }
    sets
}

const ANY: usize = crate::judge::outcome::Class::COUNT;

/// The next trial, by going through the whole plan.
fn next(fold: &Fold, started: &BTreeSet<u32>) -> Option<u32> {
    let (plan, outcomes) = (&fold.plan, &fold.outcomes);
    let begun = |n: u32| started.contains(&n);
    let controls = plan.trials.iter().filter(|t| t.arm == Arm::Control && t.partner.is_none());
    let controls = controls.filter(|t| begun(t.number) && outcomes.mark(t.number) != Mark::Void).count();
    let sets = sets(plan);
    let wanted = |t: &Trial| {
        let Some(set) = sets.iter().find(|s| (s[0].arm, &s[0].patches) == (t.arm, &t.patches)) else {
            return (false, false);
        };
        let tally = tally(fold, set, &begun, true, ANY);
        let paired = set.iter().any(|t| t.partner.is_some() && !begun(t.number));
        let noisy = set.iter().any(|t| outcomes.mark(t.number).is_failure());
        let few = !matches!(t.arm, Arm::Loaded | Arm::Stack);
        if few && tally.clean() + tally.failed() < plan.due(t.arm) {
            return (true, paired && noisy);
        }
        let wager = Wager::against_failure_rate(plan.rate_of(t.arm));
        let done =
            few && tally.failed() == 0 || wager.capital(&tally) >= enough(plan.rule.confidence_of(t.arm));
        let left = set.iter().filter(|t| !begun(t.number)).count() as u32;
        (!done && has_prospect(plan, t.arm, &wager, &tally, left), paired && noisy)
    };
    let by_number: BTreeMap<u32, &Trial> = plan.trials.iter().map(|t| (t.number, t)).collect();
    let mut left = plan.trials.iter().filter(|t| !begun(t.number));
    let next = left.find(|trial| match (trial.arm, trial.partner) {
        (Arm::Control, None) => controls < plan.due(Arm::Control) as usize,
        (Arm::Control, Some(patched)) => {
            !begun(patched) && by_number.get(&patched).is_some_and(|t| wanted(t) == (true, true))
        }
        (_, partner) => {
            let (wants, in_pairs) = wanted(trial);
            wants && (!in_pairs || partner.is_some())
        }
    });
    next.map(|t| t.number)
}

/// Whether a run is decided, by its whole verdict.
fn is_decided(fold: &Fold, verdict: &Verdict) -> bool {
    let begun = |n: u32| fold.has_begun(n);
    let rule = &fold.plan.rule;
    let sets = sets(&fold.plan);
    let proof = fold.sets().iter().any(|s| s.rejects(sets.len()))
        || sets.iter().flatten().any(|t| fold.outcomes.mark(t.number) == Mark::Failed);
    let lacks = |set: &&Vec<&Trial>| {
        matches!(set[0].arm, Arm::Loaded | Arm::Stack)
            && !shows(
                &tally(fold, set, &begun, false, ANY),
                rule.applications.max_failure_rate,
                rule.applications.confidence,
            )
    };
    if !proof && sets.iter().any(|set| lacks(&set)) {
        return false;
    }
    let idle = verdict.arms.get(&Arm::Quiescent);
    match verdict.verdict {
        Outcome::Inconclusive => false,
        Outcome::Qualified => true,
        Outcome::Rejected => idle.is_none_or(|n| n.clean + n.failed + n.unexplained + n.void > 0),
    }
}

/// A judge that has seen nothing but the events that count.
fn from_scratch(plan: &Plan, events: &[Event]) -> Fold {
    let mut fold = Fold::new(plan.clone());
    let mut measures = Measures::new(&plan.pipeline.limits);
    for event in live(events) {
        let change = measures.take(event, |trial| fold.arm(trial));
        fold.push(event, change.as_ref());
    }
    fold.settle();
    fold
}

fn same(fold: &mut Fold, plan: &Plan, events: &[Event], started: &BTreeSet<u32>) {
    let mut scratch = from_scratch(plan, events);
    fold.settle();
    for trial in &plan.trials {
        let n = trial.number;
        assert_eq!(fold.outcomes.said(n), scratch.outcomes.said(n), "trial {n}");
        assert_eq!(fold.compared.of(n), scratch.compared.of(n), "trial {n}");
    }
    let begun = |n: u32| scratch.has_begun(n);
    for (set, trials) in fold.sets().into_iter().zip(sets(plan)) {
        for way in 0..=ANY {
            assert_eq!(set.tally_of(way), &tally(&scratch, &trials, &begun, false, way), "way {way}");
        }
    }
    let verdict = scratch.verdict();
    assert_eq!(fold.outcome(), verdict.verdict, "{:?}", verdict.causes);
    assert_eq!(fold.is_decided(), is_decided(&scratch, &verdict));
    assert_eq!(fold.next(), next(&scratch, started));
    assert_eq!(fold.verdict(), verdict);
}

fn a_plan(chance: &mut Chance) -> Plan {
    let patches: &[&str] = if chance.share() < 0.7 { &["x"] } else { &["x", "y"] };
    let mut with = resolved(patches);
    with.rule.applications.max_failure_rate = [0.2, 0.5][(chance.share() * 2.0) as usize];
    let controls = 1 + (chance.share() * 7.0) as u32;
    let text = format!("arms: {{loaded: {}, quiescent: 2, control: {controls}, reapply: 1}}\n", 40);
    try_plan(&text, Resolved { trials: Some(40), ..with }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever happens, and after each event.
    #[test]
    fn every_prefix_is_judged_as_from_scratch(seed in any::<u64>()) {
        let plan = a_plan(&mut Chance::new(seed));
        let mut maker = Maker::new(plan.clone(), seed);
        let mut fold = Fold::new(plan.clone());
        let mut measures = Measures::new(&plan.pipeline.limits);
        let (mut taken, mut started) = (0, BTreeSet::new());
        // Now and then whoever runs the trials starts another one than the judge would.
        while started.len() < 45 {
            let room = maker.running.len() < 3;
            if room && maker.is(0.5) {
                let left: Vec<u32> =
                    plan.trials.iter().map(|t| t.number).filter(|n| !started.contains(n)).take(9).collect();
                let next = if maker.is(0.1) { left.first().map(|_| maker.of(&left)) } else { fold.next() };
                if let Some(number) = next {
                    started.insert(number);
                    fold.start(number);
                    maker.start(&plan.trial(number).unwrap());
                } else if maker.running.is_empty() {
                    break;
                }
            } else if maker.is(0.01) {
                maker.cut_off();
            } else {
                maker.step();
            }
            let mut check = false;
            for event in &maker.events[taken..] {
                let change = measures.take(event, |trial| fold.arm(trial));
                fold.push(event, change.as_ref());
                if matches!(event.body, Body::RunResumed { .. }) {
                    started.retain(|n| fold.has_begun(*n));
                }
                check |= matches!(
                    event.body,
                    Body::TrialEnded { .. } | Body::RunResumed { .. } | Body::Finding(_)
                );
            }
            taken = maker.events.len();
            if check || maker.is(0.02) {
                same(&mut fold, &plan, &maker.events, &started);
            }
        }
        same(&mut fold, &plan, &maker.events, &started);
    }
}

/// Independent patches: what the run says, and which trial is next.
fn independent_plan(chance: &mut Chance) -> Plan {
    let with = Resolved { mode: crate::Mode::Independent, ..resolved(&["x", "y", "z"]) };
    let controls = 2 + (chance.share() * 5.0) as u32;
    try_plan(&format!("arms: {{quiescent: 1, control: {controls}, reapply: 1}}\n"), with).unwrap()
}

/// Two loads that take turns.
fn rotation_plan() -> Plan {
    let text = "rotation: {duration: 9h, loads: {one: [w], two: [w, x]}}\nworkloads: []\n";
    let text = format!("name: soak\nimage: debian-12\n{text}arms: {{loaded: 3, control: 2}}\n");
    let pipeline = Pipeline::parse(Path::new("soak.yaml"), &text).unwrap();
    let with = resolved(&["x"]);
    let turn = |(_, load, _): (String, String, Vec<String>)| crate::Turn {
        image: with.image.clone(),
        checkpoint: None,
        load,
        workloads: Vec::new(),
        patches: Vec::new(),
    };
    let turns = pipeline.rotation.as_ref().unwrap().turns(&pipeline).into_iter().map(turn).collect();
    Plan::new(&pipeline, Resolved { mode: crate::Mode::Rotation(turns), ..with }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// The same for runs of several patches and for those that go round: whoever follows one knows at each moment what somebody who reads
    /// its journal up to there knows.
    #[test]
    fn all_modes_are_judged_as_from_scratch(seed in any::<u64>(), round in any::<bool>()) {
        let plan = if round { rotation_plan() } else { independent_plan(&mut Chance::new(seed)) };
        let mut maker = Maker::new(plan.clone(), seed);
        let mut judge = Judge::new(&plan);
        let (mut taken, mut started) = (0, 0);
        while started < 40 {
            if maker.running.len() < 3 && maker.is(0.5) {
                match judge.next_trial() {
                    Some(trial) => {
                        judge.start(trial.number);
                        maker.start(&trial);
                        started += 1;
                    }
                    None if maker.running.is_empty() => break,
                    None => {}
                }
            } else if maker.is(0.02) {
                maker.cut_off();
            } else {
                maker.step();
            }
            let new = &maker.events[taken..];
            new.iter().for_each(|event| judge.push(event));
            let check = new.iter().any(|e| matches!(e.body, Body::TrialEnded { .. } | Body::RunResumed { .. }));
            taken = maker.events.len();
            if check {
                let mut other = Judge::new(&plan);
                let counts: Vec<Event> = live(&maker.events).cloned().collect();
                counts.iter().for_each(|event| other.push(event));
                prop_assert_eq!(judge.verdict(), other.verdict());
                // Those that run and have said nothing yet.
                maker.running.keys().for_each(|trial| other.start(*trial));
                let number = |t: Option<Trial>| t.map(|t| t.number);
                prop_assert_eq!(number(judge.next_trial()), number(other.next_trial()));
                for patch in 0..plan.patches.len() {
                    prop_assert_eq!(
                        crate::judge_independent(&plan, &maker.events, patch),
                        crate::judge_independent(&plan, &counts, patch)
                    );
                }
            }
        }
    }
}
