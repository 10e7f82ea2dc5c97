//! Which trials of a run have a difference.

use super::story::{Run, Work, phase, soak};
use super::*;

const LEAKED: ObservedKind = ObservedKind::ResourcesLeaked;
const RATE: ObservedKind = ObservedKind::RateCollapsed;

/// Nothing is amiss with two workloads, but for what `changed` makes of the soak of a trial.
fn two_workloads(control: u32, loaded: u32, changed: impl Fn(Arm, usize) -> Vec<Work>) -> Run {
    let usual = vec![Work::default(), Work::default()];
    Run::new(control, loaded, &["x"]).all(|t, k| (phase(6.0, &usual), phase(30.0, &changed(t.arm, k))))
}

fn slower(times: f64) -> Vec<Work> {
    vec![Work::default().slower(times), Work::default()]
}

fn usual() -> Vec<Work> {
    slower(1.0)
}

fn leaking(kib_a_second: u64) -> Vec<Resources> {
    let sample =
        |s| Resources { at_ms: s * 1000, slab_unreclaimable_kib: s * kib_a_second, ..Resources::default() };
    (0..30).map(sample).collect()
}

fn says(blind: &[String], parts: &[&str]) -> bool {
    blind.iter().any(|b| parts.iter().all(|p| b.contains(p)))
}

/// One control trial is 33 times slower and another leaks: the patch that is 100 times slower and leaks is found in every trial.
#[test]
fn a_noisy_control_trial_hides_nothing() {
    for controls in [4, 20] {
        for noisy in 0..controls as usize {
            let other = (noisy + 1) % controls as usize;
            let run = two_workloads(controls, 14, |arm, k| match arm {
                Arm::Control if k == noisy => slower(33.0),
                Arm::Control => usual(),
                _ => slower(100.0),
            });
            let run = run.change(Arm::Loaded, |_, r| soak(r).resources = leaking(5000));
            let run = run.change(Arm::Control, |k, r| {
                soak(r).resources = leaking(if k == other { 4000 } else { 1 });
            });
            assert_eq!(run.hits(Arm::Loaded, RATE), 14, "{controls} controls, {noisy}");
            assert_eq!(run.hits(Arm::Loaded, LEAKED), 14, "{controls} controls, {noisy}");
            // And the noise counts as what it is.
            assert_eq!((run.hits(Arm::Control, RATE), run.hits(Arm::Control, LEAKED)), (1, 1));
        }
    }
}

/// A control trial whose sleep is not known, or far above all others, leaves the detector on.
#[test]
fn a_control_trial_without_a_figure_is_left_out() {
    let asleep = |share| vec![Work { asleep: share, ..Work::default() }, Work::default()];
    let run = |unknown: usize, noisy: Option<f64>| {
        two_workloads(6, 14, move |arm, k| match arm {
            Arm::Control if k < unknown => asleep(None),
            Arm::Control if k == unknown => asleep(noisy.or(Some(0.02))),
            Arm::Control => asleep(Some(0.02)),
            _ => asleep(Some(0.35)),
        })
    };
    for (unknown, noisy) in [(0, None), (1, None), (3, None), (0, Some(0.9)), (1, Some(0.9))] {
        let run = run(unknown, noisy);
        assert_eq!(run.hits(Arm::Loaded, ObservedKind::LatencyGrown), 14, "{unknown}, {noisy:?}");
        assert!(!says(&run.blind(), &["sleeps"]), "{:?}", run.blind());
    }
    let none = run(5, None);
    assert_eq!(none.found().len(), 0);
    assert!(
        says(
            &none.blind(),
            &[
                "how long w0 sleeps was not compared in 14 of 14 patched trials",
                "too few of the nearest control trials"
            ]
        ),
        "{:?}",
        none.blind()
    );
}

/// One leaking control trial, and series too short to tell, hide no leak.
#[test]
fn leaks_are_compared_with_control_trials_that_were_watched() {
    let run = |short: usize| {
        let run = Run::new(6, 14, &["x"]).change(Arm::Loaded, |_, r| soak(r).resources = leaking(200));
        run.change(Arm::Control, |k, r| {
            soak(r).resources = if k < short { leaking(1)[..5].to_vec() } else { leaking(1) };
        })
    };
    assert_eq!(run(3).hits(Arm::Loaded, LEAKED), 14);
    assert!(!says(&run(3).blind(), &["what leaks"]));
    assert_eq!(run(6).found().len(), 0);
    assert!(says(&run(6).blind(), &["what leaks was not compared in 14 of 14"]), "{:?}", run(6).blind());
    let unwatched = run(0).change(Arm::Loaded, |k, r| soak(r).resources.truncate(if k < 2 { 3 } else { 99 }));
    assert_eq!(unwatched.hits(Arm::Loaded, LEAKED), 12);
    assert!(says(&unwatched.blind(), &["what leaks was not compared in 2 of 14", "long enough"]));
}

/// Two of four control trials were stopped by a soft finding: nothing is compared, and that is said with numbers.
#[test]
fn too_few_control_trials_are_said_with_the_reason() {
    let run = two_workloads(4, 14, |arm, _| if arm == Arm::Control { usual() } else { slower(100.0) });
    assert_eq!(run.hits(Arm::Loaded, RATE), 14);
    assert!(!says(&run.blind(), &["no slow-down or leak"]), "{:?}", run.blind());
    let stopped = run.change(Arm::Control, |k, r| {
        if k < 2 {
            r.end = Some(TrialEnd::Stopped);
            let scope = Scope { trial: 1, arm: Arm::Control, phase: Phase::Soak };
            let finding = differs(ObservedKind::ThreadStalled, "stalls".into(), None, String::new());
            r.findings.push(Seen { seq: 1, scope, finding });
        }
    });
    assert!(stopped.found().is_empty());
    let parts = ["with 2 control trials", "3 are needed", "2 did not complete the soak"];
    assert!(says(&stopped.blind(), &parts), "{:?}", stopped.blind());
    let unmeasured = Run::new(4, 14, &["x"]).change(Arm::Control, |_, r| r.measured.clear());
    assert!(says(&unmeasured.blind(), &["with 0 control trials", "4 without measurements"]));
}

/// Loaded trials are counted by patch: those of another one say nothing.
#[test]
fn too_few_trials_of_one_patch_are_said() {
    let run = Run::new(20, 6, &["a", "b"]);
    assert_eq!(run.blind().iter().filter(|b| b.contains("what leaks")).count(), run.blind().len());
    let lost = Run::new(20, 6, &["a", "b"]);
    let b: Vec<usize> = (0..12).filter(|k| k % 2 == 1).collect();
    let lost = lost.change(Arm::Loaded, |k, r| {
        if b[..3].contains(&k) {
            r.end = Some(TrialEnd::FarmError { message: "QEMU died".into() });
        }
    });
    let blind = lost.blind();
    assert!(
        says(&blind, &["leak of b", "3 loaded trials", "4 are needed", "3 did not complete"]),
        "{blind:?}"
    );
    assert!(!says(&blind, &["leak of a"]), "{blind:?}");
}

/// Few control trials take a wider margin, and more of them lift it.
#[test]
fn a_wider_margin_is_said() {
    assert!(says(
        &Run::new(4, 14, &["x"]).blind(),
        &["with 4 control trials", "2 times the limit", "with 9"]
    ));
    assert!(!says(&Run::new(9, 14, &["x"]).blind(), &["times the limit"]));
    let five_times = |controls| {
        two_workloads(controls, 14, |arm, _| if arm == Arm::Control { usual() } else { slower(5.5) })
    };
    assert_eq!(five_times(20).hits(Arm::Loaded, RATE), 14);
    assert_eq!(five_times(4).hits(Arm::Loaded, RATE), 14, "quiet controls need no more");
}

/// A trial whose machine got too little CPU time says nothing in either arm.
#[test]
fn trials_without_their_cpu_time_are_left_out() {
    let run = |share: Option<f64>| {
        let run =
            two_workloads(20, 14, |arm, k| if arm != Arm::Control && k < 3 { slower(10.0) } else { usual() });
        run.change(Arm::Loaded, |k, r| r.cpu_share = if k < 3 { share } else { Some(1.0) })
    };
    for (share, hits) in [(Some(0.69), 0), (Some(0.7), 3), (Some(1.0), 3), (None, 3)] {
        assert_eq!(run(share).hits(Arm::Loaded, RATE), hits, "{share:?}");
        let parts = ["only 11 loaded trials of x could be compared", "3 got less than 70 %"];
        assert_eq!(says(&run(share).blind(), &parts), hits == 0, "{:?}", run(share).blind());
    }
    let controls =
        two_workloads(20, 14, |arm, k| if arm == Arm::Control && k > 2 { slower(10.0) } else { usual() });
    let controls = controls.change(Arm::Control, |k, r| r.cpu_share = Some(if k > 2 { 0.5 } else { 0.95 }));
    assert!(controls.found().is_empty(), "{:?}", controls.found().len());
    let starved = controls.change(Arm::Control, |_, r| r.cpu_share = Some(0.45));
    assert!(says(
        &starved.blind(),
        &["with 0 control trials", "20 got less than 70 % of the planned CPU time"]
    ));
}

/// Every workload does 30 times fewer operations, with latencies as before.
#[test]
fn a_patch_that_takes_the_cpu_from_everything_is_one_finding() {
    let all = |times: f64, yardstick: Option<f64>| -> Vec<Work> {
        (0..3).map(|_| Work { yardstick, ..Work::default().slower(times) }).collect()
    };
    let run = |times: f64, before: Option<f64>, after: Option<f64>, share: Option<f64>| {
        let run = Run::new(20, 14, &["x"]).all(|t, _| {
            let soak = if t.arm == Arm::Control { all(1.0, before) } else { all(times, after) };
            (phase(6.0, &all(1.0, before)), phase(30.0, &soak))
        });
        run.change(Arm::Loaded, |_, r| r.cpu_share = share)
    };
    let titles = |run: &Run| -> Vec<String> { run.found().iter().map(|s| s.finding.title.clone()).collect() };
    let one = vec!["all workloads do far fewer operations with the patch"; 14];
    assert_eq!(titles(&run(30.0, Some(5.0), Some(5.0), Some(0.95))), one);
    // No yardstick, or none in the soak, explains nothing; nor does one that is twice as slow.
    assert_eq!(titles(&run(30.0, None, None, Some(0.95))), one);
    assert_eq!(titles(&run(30.0, None, None, None)), one);
    assert_eq!(titles(&run(30.0, Some(5.0), None, None)), one);
    assert_eq!(titles(&run(30.0, Some(5.0), Some(10.0), None)), one);
    let evidence = run(30.0, Some(5.0), Some(10.0), Some(0.95)).found()[0].finding.evidence.clone();
    for part in ["30.0 times fewer", "95 % of its CPU time", "2.0 times slower by the yardstick", "w2: 30.0"]
    {
        assert!(evidence.contains(part), "{evidence}");
    }
    // The host, by the yardstick or by the time it gave.
    assert!(titles(&run(30.0, Some(5.0), Some(150.0), Some(0.95))).is_empty());
    assert!(titles(&run(5.0, Some(5.0), Some(12.0), None)).is_empty());
    assert!(titles(&run(30.0, Some(5.0), Some(5.0), Some(0.4))).is_empty());
}

/// One workload falls further than what the host explains.
#[test]
fn a_workload_is_compared_with_what_the_yardstick_explains() {
    let works = |a: f64, b: f64, yardstick: f64| -> Vec<Work> {
        [a, b].map(|times| Work { yardstick: Some(yardstick), ..Work::default().slower(times) }).to_vec()
    };
    let hits = |a: f64, b: f64, yardstick: f64| {
        let run = Run::new(20, 14, &["x"]).all(|t, _| {
            let soak = if t.arm == Arm::Control { works(1.0, 1.0, 5.0) } else { works(a, b, yardstick) };
            (phase(6.0, &works(1.0, 1.0, 5.0)), phase(30.0, &soak))
        });
        run.found().into_iter().filter(|s| s.scope.trial == 1).map(|s| s.finding.workload).collect::<Vec<_>>()
    };
    assert_eq!(hits(6.0, 3.5, 5.0), [Some("w0".to_owned())], "the CPU is worth what it was");
    assert_eq!(hits(6.0, 3.5, 20.0), Vec::<Option<String>>::new(), "the CPU is four times slower");
    assert_eq!(hits(40.0, 5.0, 25.0), [Some("w0".to_owned())]);
    assert_eq!(hits(40.0, 5.0, 5.0), [None, Some("w0".to_owned())], "all of them, and one far more");
}

/// A workload that ended, or does nothing any more, is no gap.
#[test]
fn a_workload_that_is_gone_is_found() {
    let none = |works: usize| {
        two_workloads(20, 14, |arm, _| if arm == Arm::Control { usual() } else { slower(1e9) }).change(
            Arm::Loaded,
            |_, r| {
                if works == 1 {
                    soak(r).workloads.remove("w0");
                }
            },
        )
    };
    for gone in [0, 1] {
        let run = none(gone);
        assert_eq!(run.hits(Arm::Loaded, RATE), 14);
        let finding = &run.found()[0].finding;
        assert_eq!(finding.title, "w0 does far fewer operations with the patch");
        let after = if gone == 1 { "after: not running" } else { "after: 0.0 operations/s" };
        assert!(finding.evidence.contains(after), "{}", finding.evidence);
    }
    let all = two_workloads(20, 14, |_, _| usual()).change(Arm::Loaded, |_, r| soak(r).workloads.clear());
    assert_eq!(all.hits(Arm::Loaded, RATE), 14);
    assert!(all.found().iter().all(|s| s.finding.title.starts_with("all workloads")));
}

/// What did too little before the patch, or was not measured, can't be compared; that is said once for each workload.
#[test]
fn workloads_that_can_not_be_compared_are_said() {
    let usual = [Work::default(), Work { rate: 2.0, ..Work::default() }];
    let run = Run::new(20, 14, &["x"]).all(|t, _| {
        (phase(6.0, &usual), phase(30.0, if t.arm == Arm::Control { &usual } else { &usual[..1] }))
    });
    assert!(run.found().is_empty());
    let rate: Vec<String> = run.blind().into_iter().filter(|b| b.contains("the rate of")).collect();
    assert_eq!(
        rate,
        [
            "the rate of w1 was not compared in 14 of 14 patched trials: it did fewer than 30 operations before the patch"
        ]
    );
    let unmeasured = Run::new(20, 14, &["x"]).change(Arm::Loaded, |_, r| {
        r.measured.values_mut().for_each(|m| m.workloads.clear());
    });
    assert!(says(&unmeasured.blind(), &["the rate of w0", "was not measured"]), "{:?}", unmeasured.blind());
}

/// Rates, latencies and leaks, in all loaded trials and in some of them. How much noise hides is in `null.rs`.
#[test]
fn changes_of_every_kind_are_found_in_each_trial_that_has_them() {
    let calls = |times: f64| {
        let slow = |(p10, p50): (f64, f64)| (p10 * times, p50 * times);
        let usual = Work::default().slower(times);
        vec![Work { latency: usual.latency.iter().copied().map(slow).collect(), ..usual }, Work::default()]
    };
    let in_some = |of: u32, work: &dyn Fn() -> Vec<Work>| {
        two_workloads(20, 20, |arm, k| if arm != Arm::Control && (k as u32) < of { work() } else { usual() })
    };
    for times in [5.0, 10.0] {
        let run = in_some(20, &|| calls(times));
        assert_eq!(
            (run.hits(Arm::Loaded, RATE), run.hits(Arm::Loaded, ObservedKind::LatencyGrown)),
            (20, 20)
        );
        assert_eq!(in_some(20, &|| slower(times)).hits(Arm::Loaded, RATE), 20, "10th percentile as before");
    }
    assert_eq!(in_some(10, &|| slower(10.0)).hits(Arm::Loaded, RATE), 10);
    for of in [20, 14, 10, 5] {
        let leak = |k: usize| leaking(if k < of { 200 } else { 2 });
        let run = Run::new(20, 20, &["x"])
            .change(Arm::Loaded, |k, r| soak(r).resources = leak(k))
            .change(Arm::Control, |_, r| soak(r).resources = leaking(2));
        assert_eq!((run.hits(Arm::Loaded, LEAKED), run.hits(Arm::Control, LEAKED)), (of, 0));
    }
}

/// Several patches: each trial by itself, whatever the other patch does.
#[test]
fn another_patch_does_not_dilute_a_difference() {
    let usual = [Work::default(), Work::default()];
    let run = Run::new(20, 14, &["a", "b", "c"]).all(|t, _| {
        let soak = if t.patches == [0] { slower(100.0) } else { usual.to_vec() };
        (phase(6.0, &usual), phase(30.0, &soak))
    });
    let hit: Vec<u32> = run.found().iter().map(|s| s.scope.trial).collect();
    let of_a: Vec<u32> = run.plan.trials.iter().filter(|t| t.patches == [0]).map(|t| t.number).collect();
    assert_eq!(hit, of_a);
}

/// Short trials are measured in no phase, and none is missing for that.
#[test]
fn short_trials_are_not_missed() {
    let unmeasured = |run: Run| run.change(Arm::Loaded, |_, made| made.measured.clear());
    let long = unmeasured(Run::new(4, 14, &["x"]));
    assert!(says(&long.blind(), &["with 0 loaded trials", "14 without measurements"]), "{:?}", long.blind());
    let mut short = unmeasured(Run::new(4, 14, &["x"]));
    let loaded = short.plan.trials.iter_mut().filter(|t| t.arm == Arm::Loaded);
    loaded.for_each(|t| t.length = crate::Length::Short);
    assert!(!says(&short.blind(), &["loaded"]), "{:?}", short.blind());
}
