//! The rules of the comparison, one at a time.

use proptest::prelude::*;

mod arms;
mod null;

mod story;

use super::change::{Basis, Names};
use super::near::Margin;
use super::*;
use crate::event::{LatencyMeasure, Measured, Resources, TrialEnd, WorkloadMeasure};
use crate::pipeline::Limits;

/// Measures of one phase of a trial: one workload with four threads.
#[derive(Debug, Clone)]
struct Load {
    /// Operations of each thread.
    threads: [u64; 4],
    /// Operations that slept, by octave.
    slept: Vec<(u8, u64)>,
    /// What is out, second by second.
    resources: Vec<Resources>,
}

impl Default for Load {
    fn default() -> Self {
        Self { threads: [2000, 1000, 3000, 1500], slept: vec![(0, 40), (3, 20)], resources: Vec::new() }
    }
}

impl Load {
    fn measured(&self) -> Measured {
        let ops = self.threads.iter().sum();
        let latency = LatencyMeasure { count: ops, slept: self.slept.clone(), ..LatencyMeasure::default() };
        let workload = WorkloadMeasure {
            ops,
            threads: 4,
            by_thread: (1..).zip(self.threads).collect(),
            latency: BTreeMap::from([("call".to_owned(), latency)]),
            ..WorkloadMeasure::default()
        };
        let workloads = BTreeMap::from([("w".to_owned(), workload)]);
        Measured { window_ms: 10_000, workloads, resources: self.resources.clone() }
    }

    /// The same on a machine that is `times` slower as a whole: so many times fewer operations, and each sleeps so much longer.
    fn slower(&self, times: u64) -> Self {
        Self {
            threads: self.threads.map(|n| n / times),
            slept: self.slept.iter().map(|(o, n)| (o + times.ilog2() as u8, n / times)).collect(),
            ..self.clone()
        }
    }
}

/// What changed from one phase to the other.
fn change(before: &Measured, after: &Measured) -> Change {
    let (limits, names) = (&Limits::default(), &mut Names::default());
    Change::new(before, after, &mut Basis { limits, names, control: true })
}

/// Findings of a trial that goes from `before` to `after`, against controls that do as `usual` says throughout.
fn found(before: &Load, after: &Load, usual: &Load) -> Vec<Finding> {
    let [before, after, usual] = [before, after, usual].map(Load::measured);
    let own = change(&before, &after);
    each(&own, &std::array::from_fn(|_| change(&usual, &usual)))
}

/// Findings of all rules but those of rates, against these controls.
fn each(own: &Change, controls: &[Change; 3]) -> Vec<Finding> {
    let (near, limits) = (Near::of(controls.iter().collect(), false), Limits::default());
    let mut found = resources::leaks(own, &near, &limits);
    found.extend(own.workloads().filter_map(|work| latency::tail(work, &near, &limits)));
    found.extend(threads::starved(own, &near, &limits));
    found
}

fn kinds(found: &[Finding]) -> Vec<ObservedKind> {
    let kind = |f: &Finding| match f.kind {
        crate::FindingKind::Observed(kind) => kind,
        crate::FindingKind::Kernel(kind) => panic!("{kind:?}"),
    };
    found.iter().map(kind).collect()
}

fn load() -> impl Strategy<Value = Load> {
    let slept = prop::collection::vec((0_u8..16, 0_u64..200), 0..6);
    let resource = (0_u64..1000, 0_u64..50).prop_map(|(kib, n)| Resources {
        slab_unreclaimable_kib: kib,
        unaccounted_kib: kib,
        open_files: n,
        ..Resources::default()
    });
    (prop::array::uniform4(0_u64..5000), slept, prop::collection::vec(resource, 0..20)).prop_map(
        |(threads, slept, mut resources)| {
            (0..).zip(&mut resources).for_each(|(s, r)| r.at_ms = s * 1000);
            Load { threads, slept, resources }
        },
    )
}

proptest! {
    /// Whatever the load does: what does the same with the patch as without is no finding.
    #[test]
    fn no_difference_is_no_finding(before in load(), after in load()) {
        let [before, after] = [&before, &after].map(Load::measured);
        let own = |_| change(&before, &after);
        prop_assert!(each(&own(0), &std::array::from_fn(own)).is_empty());
    }

    /// A host that is busy with other things while one trial soaks makes no finding.
    #[test]
    fn a_trial_that_is_slower_as_a_whole_is_no_finding(
        threads in prop::array::uniform4(500_u64..5000), slept in prop::collection::vec((0_u8..9, 0_u64..200), 0..6), times in 1_u64..5
    ) {
        let usual = Load { threads, slept, ..Load::default() };
        let got = found(&usual, &usual.slower(times), &usual);
        prop_assert!(got.is_empty(), "{got:?}");
    }
}

#[test]
fn a_few_operations_that_sleep_for_long_are_a_tail() {
    let usual = Load::default();
    let with = |more: (u8, u64)| Load { slept: [usual.slept.clone(), vec![more]].concat(), ..usual.clone() };
    let tail = found(&usual, &with((8, 15)), &usual);
    assert_eq!(kinds(&tail), [ObservedKind::TailGrown]);
    assert!(
        tail[0].evidence.contains("15 of 7500 operations slept for 268 ms or more"),
        "{}",
        tail[0].evidence
    );
    // Four may be chance; a little longer than usual may be the host; and what all do is nothing.
    for after in [with((8, 4)), with((4, 30))] {
        assert!(found(&usual, &after, &usual).is_empty());
    }
    assert!(found(&usual, &with((8, 15)), &with((8, 12))).is_empty());
    assert!(found(&with((8, 12)), &with((8, 15)), &usual).is_empty(), "it did so before the patch");
}

#[test]
fn one_thread_that_falls_behind_its_siblings_is_starved() {
    let usual = Load::default();
    let after = |threads| Load { threads, ..usual.clone() };
    let starved = found(&usual, &after([2000, 1000, 3000, 5]), &usual);
    assert_eq!(kinds(&starved), [ObservedKind::ThreadStarved]);
    assert_eq!(starved[0].title, "w: one thread starves beside the others with the patch");
    assert_eq!(kinds(&found(&usual, &after([2000, 1000, 3000, 0]), &usual)), [ObservedKind::ThreadStarved]);
    assert!(found(&usual, &usual.slower(4), &usual).is_empty(), "all alike");
    assert!(found(&usual, &after([2000, 1000, 3000, 400]), &usual).is_empty(), "less, but not starved");
    // Threads that took turns in the control arm as well.
    assert!(found(&usual, &after([2000, 1000, 3000, 5]), &after([5, 1000, 3000, 1500])).len() == 1);
    let [before, after] = [&usual, &after([2000, 1000, 3000, 5])].map(Load::measured);
    let own = |_| change(&before, &after);
    assert!(each(&own(0), &std::array::from_fn(own)).is_empty());
}

/// A series of 20 s of which each resource is as `of` says.
fn series(of: impl Fn(u64) -> Resources) -> Load {
    let sample = |s| Resources { at_ms: 60_000 + s * 1000, ..of(s) };
    Load { resources: (0..20).map(sample).collect(), ..Load::default() }
}

#[test]
fn each_resource_leaks_by_itself_and_a_step_does_not() {
    let still = series(|_| Resources::default());
    type Leak = fn(u64) -> Resources;
    let leaks: [(&str, Leak); 7] = [
        ("unreclaimable slab", |s| Resources { slab_unreclaimable_kib: 200 * s, ..Resources::default() }),
        ("kernel memory outside slab", |s| Resources { unaccounted_kib: 300 * s, ..Resources::default() }),
        ("memory in use", |s| Resources { available_kib: 5_000_000 - 5000 * s, ..Resources::default() }),
        ("open files", |s| Resources { open_files: 900 + 20 * s, ..Resources::default() }),
        ("file descriptors", |s| Resources { descriptors: 50 + 2 * s, ..Resources::default() }),
        ("tasks", |s| Resources { tasks: 100 + 5 * s, ..Resources::default() }),
        ("zombies", |s| Resources { zombies: 3 * s, ..Resources::default() }),
    ];
    for (name, leak) in leaks {
        let got = found(&still, &series(leak), &still);
        assert_eq!(kinds(&got), [ObservedKind::ResourcesLeaked], "{name}");
        assert!(got[0].title.starts_with(name) && got[0].evidence.contains("after 18 s: +"), "{:?}", got[0]);
        assert!(found(&still, &series(leak), &series(leak)).is_empty(), "{name}: the control arm as well");
        for at in [1, 7, 10, 15, 19] {
            let step = series(|s| if s < at { leak(0) } else { leak(400) });
            assert!(found(&still, &step, &still).is_empty(), "{name}: a step after {at} s");
        }
    }
}

/// The most extreme control trials are left out, the fewer there are the fewer and at the price of a wider margin.
#[test]
fn one_extreme_control_does_not_decide() {
    let times = |values: &[f64]| near::Usual::of(values.to_vec()).map(|u| u.times());
    assert_eq!(times(&[1.0]), None, "one alone says nothing of what is usual");
    assert_eq!(times(&[1.0, 2.0]), Some(3.0));
    assert_eq!(times(&[1.0, 1.1, 1.0]), Some(1.375), "the most extreme, with some margin");
    assert_eq!(times(&[1.0, 33.0, 1.0]), Some(2.0), "the other, with more");
    assert_eq!(times(&[1.0, 33.0, 1.0, 1.0, 1.0]), Some(1.5));
    assert_eq!(times(&[&[33.0], &[1.0; 9][..]].concat()), Some(1.0));
    assert_eq!(times(&[&[33.0, 20.0], &[1.0; 18][..]].concat()), Some(1.0));
    assert_eq!(
        times(&[&[33.0, 20.0, 7.0], &[1.0; 17][..]].concat()),
        Some(7.0),
        "three of 20 are no exception"
    );
    let plus = |values: &[f64]| near::Usual::of(values.to_vec()).map(|u| u.plus(10.0));
    assert_eq!((plus(&[0.0, 90.0, 0.0]), plus(&[0.0, 1.0, 0.0])), (Some(20.0), Some(13.5)));
    for n in 2..100 {
        let (Margin { out, extreme, left }, next) = (Margin::of(n), Margin::of(n + 1));
        assert!(out + 2 <= n && extreme <= left && (n < 3 || left >= next.left) && out <= next.out);
    }
}

/// As many neighbours for a control trial as for a patched one, on both sides, itself left out.
#[test]
fn the_nearest_control_trials_are_compared() {
    let load = Load::default().measured();
    let of = |n: u32| {
        let mut all = Comparison::default();
        for number in (0..n).map(|n| n * 3) {
            let mut record = TrialRecord::default();
            record.end = Some(TrialEnd::Completed);
            record.change = Some((1, Arc::new(change(&load, &load))));
            all.put(number, Arm::Control, Some(&record));
        }
        all
    };
    let numbers = |all: &Comparison, number: u32| {
        let mut all: Vec<u32> = all.nearest(number).iter().map(|c| c.0).collect();
        all.sort_unstable();
        all
    };
    let all = of(60);
    let around = |from: u32, without: u32, to: u32| -> Vec<u32> {
        (from..=to).step_by(3).filter(|n| *n != without).collect()
    };
    assert_eq!(numbers(&all, 90), around(60, 90, 120));
    assert_eq!(numbers(&all, 91), around(63, 0, 120), "a patched trial: ten earlier, ten later");
    assert_eq!(numbers(&all, 0), around(3, 0, 60));
    assert_eq!(numbers(&all, 177), around(117, 177, 174));
    assert_eq!(numbers(&all, 1000), around(120, 0, 177));
    let few = of(4);
    assert_eq!((numbers(&few, 0), numbers(&few, 9)), (vec![3, 6, 9], vec![0, 3, 6]));
    assert_eq!((numbers(&few, 1), numbers(&few, 8)), (vec![0, 3, 6], vec![3, 6, 9]));
}

/// One control trial of three with the same trouble, and with worse.
#[test]
fn a_noisy_control_trial_hides_no_tail_and_no_starved_thread() {
    let usual = Load::default();
    let with = |times: u64| Load {
        threads: [2000, 1000, 3000, 10 / times],
        slept: [usual.slept.clone(), vec![(8, 15 * times)]].concat(),
        ..usual.clone()
    };
    let [sound, bad, worse] = [&usual, &with(1), &with(4)].map(Load::measured);
    let sound_control = || change(&sound, &sound);
    for noisy in [&bad, &worse] {
        let controls = [sound_control(), change(&sound, noisy), sound_control()];
        let found = each(&change(&sound, &bad), &controls);
        assert_eq!(kinds(&found), [ObservedKind::TailGrown, ObservedKind::ThreadStarved]);
    }
    let two = [change(&sound, &bad), change(&sound, &worse), sound_control()];
    assert!(each(&change(&sound, &bad), &two).is_empty(), "two of three are what is usual");
}
