use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::event::{LatencyMeasure, WorkloadMeasure};
use crate::plan::{ImageFacts, Resolved};
use crate::{Accel, Patch, Pipeline, Source};

fn plan() -> Plan {
    let text = "name: gate\nimage: debian-12\nworkloads: [w]\n";
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), text).unwrap();
    let patch = Patch { name: "x".into(), vermagic: "6.1 SMP".into(), ..Patch::default() };
    let image = ImageFacts { name: "debian-12".into(), hash: String::new(), release: Some("6.1".into()) };
    let with =
        Resolved { image, workloads: Vec::new(), patch, accel: Accel::Tcg, jobs: 3, tier: None, seed: 1 };
    Plan::new(&pipeline, with).unwrap()
}

/// Builds a journal: trial 1 is loaded, 2 control, 3 quiescent.
#[derive(Default)]
struct Story(Vec<Event>);

impl Story {
    fn add(mut self, trial: u32, phase: Phase, body: Body) -> Self {
        let arm = [Arm::Loaded, Arm::Control, Arm::Quiescent][trial as usize - 1];
        let seq = self.0.len() as u64 + 1;
        self.0.push(Event { seq, at_ms: seq * 10, scope: Some(Scope { trial, arm, phase }), body });
        self
    }

    fn finds(self, trial: u32, phase: Phase, kind: impl Into<FindingKind>, title: &str) -> Self {
        let finding = Finding {
            kind: kind.into(),
            title: title.into(),
            source: Source::Console,
            function: None,
            workload: None,
            after_apply_ms: Some(1500),
            line: None,
            corrupted: false,
            evidence: "raw".into(),
        };
        self.add(trial, phase, Body::Finding(Box::new(finding)))
    }

    fn end(self, trial: u32, end: TrialEnd) -> Self {
        self.add(trial, Phase::End, Body::TrialEnded { end })
    }

    fn rest_clean(self) -> Self {
        (1..=3).fold(self, |story, trial| {
            let ended = story.0.iter().any(|e| {
                e.scope.is_some_and(|s| s.trial == trial) && matches!(e.body, Body::TrialEnded { .. })
            });
            if ended { story } else { story.end(trial, TrialEnd::Completed) }
        })
    }

    fn reach(self, calls: u64) -> Self {
        self.add(1, Phase::Reach, Body::Reach { function: "do_it".into(), calls, window_ms: 1000 })
    }

    fn judge(self) -> Verdict {
        judge(&plan(), &self.0)
    }
}

const HANG: FarmKind = FarmKind::ThreadStalled;
const OOPS: FindingKind = FindingKind::Kernel(klpfarm_kmsg::Kind::NullDeref);

#[test]
fn a_clean_run_qualifies_and_says_what_it_is_worth() {
    let verdict = Story::default().reach(500).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Qualified, 0));
    assert!(verdict.causes[0].contains("do_it (500 calls/s)"), "{:?}", verdict.causes);
}

#[test]
fn a_finding_of_the_loaded_arm_alone_rejects_and_names_the_condition() {
    let verdict = Story::default()
        .finds(1, Phase::Soak, HANG, "hangs in f")
        .end(1, TrialEnd::Stopped)
        .rest_clean()
        .judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Rejected, 1));
    let cause = &verdict.causes[0];
    for part in [
        "hangs in f",
        "1.5 s after applying",
        "only when the load was running",
        "1/1",
        "not when applied idle, 0/1",
        "never without the patch, 0/1",
    ] {
        assert!(cause.contains(part), "{cause} lacks {part}");
    }
    assert_eq!(verdict.evidence[0].observations[0].seq, 1);
    assert_eq!(verdict.arms[&Arm::Loaded].failed, 1);
}

#[test]
fn a_finding_of_the_control_arm_too_says_nothing_of_the_patch() {
    let story = Story::default().finds(1, Phase::Soak, OOPS, "same").finds(2, Phase::Soak, OOPS, "same");
    let verdict = story.end(1, TrialEnd::Stopped).end(2, TrialEnd::Stopped).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 3));
    assert!(
        verdict.causes.iter().any(|c| c.contains("seen without the patch as well")),
        "{:?}",
        verdict.causes
    );
}

#[test]
fn a_hang_that_the_control_has_elsewhere_is_the_hosts_mood_but_an_oops_is_not() {
    let hang =
        Story::default().finds(1, Phase::Soak, HANG, "hangs in f").finds(2, Phase::Soak, HANG, "hangs in g");
    assert_eq!(hang.rest_clean().judge().verdict, Outcome::Inconclusive);
    let oops =
        Story::default().finds(1, Phase::Soak, OOPS, "oops in f").finds(2, Phase::Soak, HANG, "hangs in g");
    assert_eq!(oops.rest_clean().judge().verdict, Outcome::Rejected);
}

#[test]
fn trouble_before_applying_never_rejects() {
    let verdict = Story::default()
        .finds(1, Phase::Baseline, OOPS, "oops")
        .end(1, TrialEnd::Stopped)
        .rest_clean()
        .judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(verdict.causes[0].contains("before the patch was applied"), "{:?}", verdict.causes);
}

#[test]
fn a_farm_error_is_nobodys_fault_but_the_farms() {
    let error = || TrialEnd::FarmError { message: "QEMU died".into() };
    let verdict = Story::default().end(1, error()).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 4));
    // Without a control trial a finding can't be attributed, unless no unpatched machine can have it.
    let hang = Story::default().finds(1, Phase::Soak, HANG, "hangs").end(2, error()).rest_clean().judge();
    assert_eq!((hang.verdict, hang.exit_code()), (Outcome::Inconclusive, 4));
    let refused = Story::default()
        .finds(1, Phase::Apply, FarmKind::LoadRefused, "refused")
        .end(2, error())
        .rest_clean()
        .judge();
    assert_eq!(refused.verdict, Outcome::Rejected);
}

#[test]
fn an_unreached_function_is_never_qualified() {
    let verdict = Story::default().reach(0).rest_clean().judge();
    assert_eq!((verdict.verdict, verdict.exit_code()), (Outcome::Inconclusive, 3));
    assert!(verdict.causes[0].contains("never call do_it"), "{:?}", verdict.causes);
}

#[test]
fn a_function_whose_calls_could_not_be_counted_is_never_qualified() {
    let applied = || Body::Applied { took_ms: 1, functions: vec!["vmlinux/do_it".into()] };
    let verdict = Story::default().add(1, Phase::Transition, applied()).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(verdict.causes[0].contains("do_it"), "{:?}", verdict.causes);
    assert_eq!(
        Story::default().add(1, Phase::Transition, applied()).reach(5).rest_clean().judge().verdict,
        Outcome::Qualified
    );
}

#[test]
fn an_interrupted_or_empty_run_is_inconclusive() {
    assert_eq!(Story::default().judge().verdict, Outcome::Inconclusive);
    let some = Story::default().end(1, TrialEnd::Completed).end(2, TrialEnd::Interrupted);
    assert_eq!(some.judge().verdict, Outcome::Inconclusive);
}

#[test]
fn symptoms_of_one_cause_are_one_item_led_by_the_crash() {
    let story = Story::default()
        .finds(1, Phase::Soak, HANG, "hangs")
        .finds(1, Phase::Soak, OOPS, "oops in f")
        .finds(1, Phase::Soak, FarmKind::SshDead, "no SSH")
        .finds(3, Phase::Soak, OOPS, "oops in f");
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.evidence.len(), 1);
    let item = &verdict.evidence[0];
    assert_eq!((item.title.as_str(), item.count), ("oops in f", 4));
    assert_eq!((item.arms[&Arm::Loaded].hit, item.arms[&Arm::Quiescent].hit), (1, 1));
}

fn measured(ops: u64, p10_us: u64, p50_us: u64) -> Body {
    let latency = |p10_us: u64, p50_us: u64| LatencyMeasure {
        count: 100,
        p10_ns: p10_us * 1000,
        p50_ns: p50_us * 1000,
        p99_ns: 0,
        mean_ns: 0,
    };
    let of = |ops, p10, p50| WorkloadMeasure {
        ops,
        threads: 1,
        longest_idle_ms: 0,
        asleep: Some(0.02),
        latency: BTreeMap::from([("madvise".to_owned(), latency(p10, p50))]),
    };
    let workloads =
        BTreeMap::from([("w".to_owned(), of(ops, p10_us, p50_us)), ("other".to_owned(), of(1000, 10, 20))]);
    Body::Measured(Measured { window_ms: 10_000, workloads, resources: None })
}

fn slow(ops: [(u64, u64, u64); 4]) -> Verdict {
    let [lb, ls, cb, cs] = ops.map(|(ops, p10, p50)| measured(ops, p10, p50));
    Story::default()
        .add(1, Phase::Baseline, lb)
        .add(1, Phase::Soak, ls)
        .add(2, Phase::Baseline, cb)
        .add(2, Phase::Soak, cs)
        .rest_clean()
        .judge()
}

#[test]
fn a_slow_down_against_the_control_rejects() {
    let usual = (1000, 20, 50);
    let rate = slow([usual, (100, 20, 50), usual, usual]);
    assert_eq!(rate.verdict, Outcome::Rejected, "{:?}", rate.causes);
    assert!(rate.causes[0].contains("w does far fewer operations"), "{:?}", rate.causes);
    assert_eq!((rate.arms[&Arm::Loaded].failed, rate.arms[&Arm::Loaded].clean), (1, 0));
    let latency = slow([usual, (900, 220, 250), usual, usual]);
    assert!(latency.causes[0].contains("madvise takes far longer"), "{:?}", latency.causes);
}

#[test]
fn a_slow_host_rejects_nothing() {
    let usual = (1000, 20, 50);
    let slower = (100, 60, 300);
    assert_eq!(slow([usual, slower, usual, slower]).verdict, Outcome::Qualified);
    // One point of the distribution alone is noise.
    assert_eq!(slow([usual, (900, 20, 400), usual, usual]).verdict, Outcome::Qualified);
}

#[test]
fn calls_that_begin_to_sleep_reject() {
    let asleep = |share: f64| {
        let Body::Measured(mut m) = measured(1000, 20, 50) else { unreachable!() };
        m.workloads.get_mut("w").unwrap().asleep = Some(share);
        Body::Measured(m)
    };
    let judge = |shares: [f64; 4]| {
        let [lb, ls, cb, cs] = shares.map(asleep);
        let story = Story::default().add(1, Phase::Baseline, lb).add(1, Phase::Soak, ls);
        story.add(2, Phase::Baseline, cb).add(2, Phase::Soak, cs).rest_clean().judge()
    };
    assert_eq!(judge([0.01, 0.30, 0.01, 0.02]).verdict, Outcome::Rejected);
    assert_eq!(judge([0.01, 0.05, 0.01, 0.02]).verdict, Outcome::Qualified);
    // A workload that sleeps anyway says nothing by sleeping more.
    assert_eq!(judge([0.01, 0.60, 0.01, 0.30]).verdict, Outcome::Qualified);
}

#[test]
fn a_leak_beyond_the_control_rejects() {
    use crate::event::Resources;
    let grown = |slab_kib: u64| {
        let Body::Measured(mut m) = measured(1000, 20, 50) else { unreachable!() };
        let first = Resources { available_kib: 500_000, slab_unreclaimable_kib: 30_000, tasks: 90 };
        let last = Resources { slab_unreclaimable_kib: 30_000 + slab_kib, ..first };
        m.resources = Some((first, last));
        Body::Measured(m)
    };
    let judge = |own, control| {
        let story = Story::default().add(1, Phase::Baseline, grown(0)).add(1, Phase::Soak, grown(own));
        story.add(2, Phase::Baseline, grown(0)).add(2, Phase::Soak, grown(control)).rest_clean().judge()
    };
    assert_eq!(judge(40_000, 500).verdict, Outcome::Rejected);
    assert_eq!(judge(40_000, 39_000).verdict, Outcome::Qualified);
}

fn body() -> impl Strategy<Value = Body> {
    let phase = prop_oneof![Just(HANG), Just(FarmKind::Tainted), Just(FarmKind::WrongContent)];
    prop_oneof![
        phase.prop_map(|kind| Body::Finding(Box::new(Finding {
            kind: kind.into(),
            title: "t".into(),
            source: Source::Probe,
            function: None,
            workload: None,
            after_apply_ms: None,
            line: None,
            corrupted: false,
            evidence: String::new(),
        }))),
        (0_u64..3).prop_map(|calls| Body::Reach { function: "f".into(), calls, window_ms: 1 }),
        Just(Body::TrialEnded { end: TrialEnd::Completed }),
        Just(Body::TrialEnded { end: TrialEnd::FarmError { message: "m".into() } }),
    ]
}

proptest! {
    /// Whatever happens: a patched trial with a finding after applying never qualifies, and judging again gives the same.
    #[test]
    fn nothing_faulty_qualifies(events in proptest::collection::vec((1_u32..4, body()), 0..12)) {
        let story = events.into_iter().fold(Story::default(), |s, (trial, body)| s.add(trial, Phase::Soak, body));
        let verdict = judge(&plan(), &story.0);
        let found = story.0.iter().any(|e| matches!(e.body, Body::Finding(_)));
        let all_ended = (1..=3).all(|t| story.0.iter().rev().find_map(|e| match &e.body {
            Body::TrialEnded { end } if e.scope.unwrap().trial == t => Some(*end == TrialEnd::Completed),
            _ => None,
        }).unwrap_or(false));
        if verdict.verdict == Outcome::Qualified {
            prop_assert!(!found && all_ended);
        }
        prop_assert_eq!(&judge(&plan(), &story.0), &verdict);
        let json = serde_json::to_string(&verdict).unwrap();
        prop_assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
    }
}

#[test]
fn plans_are_the_same_for_the_same_seed_and_arms_are_interleaved() {
    let (a, b) = (plan(), plan());
    assert_eq!(a.hash(), b.hash());
    assert_eq!(
        a.trials.iter().map(|t| t.arm).collect::<Vec<_>>(),
        [Arm::Loaded, Arm::Control, Arm::Quiescent]
    );
    assert!(a.trials.iter().all(|t| t.jitter < Duration::from_secs(2)));
    assert_ne!(a.trials[0].seed, a.trials[1].seed);
}
