//! What patched trials are compared with the control arm in.

use super::*;

fn measured(ops: u64, p10_us: u64, p50_us: u64) -> Measured {
    let latency = |p10_us: u64, p50_us: u64| LatencyMeasure {
        count: 100,
        p10_ns: p10_us * 1000,
        p50_ns: p50_us * 1000,
        ..LatencyMeasure::default()
    };
    let of = |ops, p10, p50| WorkloadMeasure {
        ops,
        threads: 1,
        longest_idle_ms: 0,
        asleep: Some(0.02),
        latency: BTreeMap::from([("madvise".to_owned(), latency(p10, p50))]),
        ..WorkloadMeasure::default()
    };
    let workloads =
        BTreeMap::from([("w".to_owned(), of(ops, p10_us, p50_us)), ("other".to_owned(), of(1000, 10, 20))]);
    Measured { window_ms: 10_000, workloads, resources: Vec::new() }
}

fn usual() -> Measured {
    measured(1000, 20, 50)
}

/// All controls do as `control` says in the soak; loaded trial `k` as `loaded(k)` says.
fn compared(control: impl Fn(usize) -> Measured, loaded: impl Fn(usize) -> Measured) -> Verdict {
    let phases = |s: Story, place: Place, soak: Measured| {
        s.add(place, Phase::Baseline, Body::Measured(usual())).add(place, Phase::Soak, Body::Measured(soak))
    };
    let story = (0..4).fold(Story::default().reach(5), |s, k| phases(s, (Arm::Control, k), control(k)));
    let story = (0..14).fold(story, |s, k| phases(s, (Arm::Loaded, k), loaded(k)));
    story.rest_clean().judge()
}

#[test]
fn a_slow_down_against_the_control_rejects() {
    let rate = compared(|_| usual(), |_| measured(100, 20, 50));
    assert_eq!(rate.verdict, Outcome::Rejected, "{:?}", rate.causes);
    assert!(says(&rate.causes[0], &["w does far fewer operations"]), "{:?}", rate.causes);
    assert_eq!((rate.arms[&Arm::Loaded].failed, rate.arms[&Arm::Loaded].clean), (14, 0));
    let latency = compared(|_| usual(), |_| measured(900, 220, 250));
    assert!(says(&latency.causes[0], &["madvise takes far longer"]), "{:?}", latency.causes);
}

/// What a busy host does to some trials of both arms rejects nothing and holds nothing up.
#[test]
fn chance_rejects_nothing() {
    let slower = || measured(100, 60, 300);
    assert_eq!(compared(|_| slower(), |_| slower()).verdict, Outcome::Qualified);
    // One that differs counts as a failure, and more trials tell.
    let one = compared(|_| usual(), |k| if k == 3 { measured(100, 200, 300) } else { usual() });
    assert_eq!(one.verdict, Outcome::Inconclusive, "{:?}", one.causes);
    assert_eq!(one.evidence[0].attribution, crate::verdict::Attribution::Unconfirmed);
    let both =
        compared(|k| if k < 2 { slower() } else { usual() }, |k| if k < 7 { slower() } else { usual() });
    assert_eq!(
        both.verdict,
        Outcome::Inconclusive,
        "half of all trials differ on either side: {:?}",
        both.causes
    );
    // One point of the distribution alone is noise.
    assert_eq!(compared(|_| usual(), |_| measured(900, 20, 400)).verdict, Outcome::Qualified);
}

/// A single pair of trials can't tell a slow patch from a busy host: nothing is claimed, and that is said.
#[test]
fn few_trials_compare_nothing_and_say_so() {
    let pair = Story::default();
    let phases = |s: Story, place: Place, soak: Measured| {
        s.add(place, Phase::Baseline, Body::Measured(usual())).add(place, Phase::Soak, Body::Measured(soak))
    };
    let pair = phases(phases(pair, L0, measured(100, 200, 300)), C0, usual());
    let verdict = pair.end(L0, TrialEnd::Completed).end(C0, TrialEnd::Completed).judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(verdict.evidence.is_empty());
    assert!(verdict.blind.iter().any(|b| b.detector == crate::Detector::Comparison), "{:?}", verdict.blind);
}

#[test]
fn calls_that_begin_to_sleep_reject() {
    let asleep = |share: f64| {
        let mut m = usual();
        m.workloads.get_mut("w").unwrap().asleep = Some(share);
        m
    };
    assert_eq!(compared(|_| asleep(0.02), |_| asleep(0.30)).verdict, Outcome::Rejected);
    assert_eq!(compared(|_| asleep(0.02), |_| asleep(0.05)).verdict, Outcome::Qualified);
    // One that sleeps anyway has to sleep far more than in any control trial.
    assert_eq!(compared(|_| asleep(0.30), |_| asleep(0.58)).verdict, Outcome::Rejected);
    assert_eq!(compared(|_| asleep(0.30), |_| asleep(0.38)).verdict, Outcome::Qualified);
    let one = |k: usize| asleep(if k == 0 { 0.50 } else { 0.30 });
    // One control trial that sleeps as much excuses nothing: what all loaded trials do is not let through.
    assert_ne!(compared(one, |_| asleep(0.55)).verdict, Outcome::Qualified);
}

#[test]
fn a_leak_beyond_the_control_rejects() {
    use crate::event::Resources;
    let grows = |kib_a_second: u64| {
        let sample = |s: u64| Resources {
            at_ms: s * 1000,
            slab_unreclaimable_kib: 30_000 + s * kib_a_second,
            ..Resources::default()
        };
        Measured { resources: (0..10).map(sample).collect(), ..usual() }
    };
    let leak = compared(|_| grows(5), |_| grows(500));
    assert_eq!(
        (leak.verdict, leak.evidence[0].kind),
        (Outcome::Rejected, ObservedKind::ResourcesLeaked.into())
    );
    assert_eq!(compared(|_| grows(490), |_| grows(500)).verdict, Outcome::Qualified);
    // Control machines that use more and more of something else excuse nothing.
    let uses = |what: fn(&mut Resources) -> &mut u64| {
        let sample = |s: u64| {
            let mut r = Resources { at_ms: s * 1000, available_kib: 900_000, ..Resources::default() };
            *what(&mut r) += s * 100;
            r
        };
        Measured { resources: (0..10).map(sample).collect(), ..usual() }
    };
    let control = |k: usize| match k {
        0 => uses(|r| &mut r.open_files),
        1 => uses(|r| &mut r.tasks),
        2 => uses(|r| &mut r.zombies),
        _ => grows(5),
    };
    let leak = compared(control, |_| grows(500));
    assert_eq!(
        (leak.verdict, leak.evidence[0].kind),
        (Outcome::Rejected, ObservedKind::ResourcesLeaked.into())
    );
}

/// What keeps the patch from being taken back leaves the soak comparable; what happened in the soak does not.
#[test]
fn a_finding_at_reverting_does_not_hide_a_leak() {
    let kinds = |phase: Phase| -> Vec<FindingKind> {
        let sample = |s: u64, kib: u64| crate::event::Resources {
            at_ms: s * 1000,
            unaccounted_kib: s * kib,
            ..Default::default()
        };
        let soak = |kib| Measured { resources: (0..10).map(|s| sample(s, kib)).collect(), ..usual() };
        let phases = |s: Story, place: Place, kib: u64| {
            s.add(place, Phase::Baseline, Body::Measured(usual())).add(
                place,
                Phase::Soak,
                Body::Measured(soak(kib)),
            )
        };
        let story = (0..4).fold(Story::default(), |s, k| phases(s, (Arm::Control, k), 0));
        let story = (0..4).fold(story, |s, k| {
            phases(s, (Arm::Loaded, k), 300)
                .finds((Arm::Loaded, k), phase, ObservedKind::RevertRefused, "refused")
                .end((Arm::Loaded, k), TrialEnd::Stopped)
        });
        story.rest_clean().judge().evidence.iter().map(|e| e.kind).collect()
    };
    assert!(kinds(Phase::Revert).contains(&ObservedKind::ResourcesLeaked.into()));
    assert!(!kinds(Phase::Soak).contains(&ObservedKind::ResourcesLeaked.into()));
}
