//! Ways in which a faulty patch was qualified, or a good one held up, before every trial counted. Each was reproduced once.

use super::*;
use crate::event::{Body, Resources};

const LOST: &str = "QEMU ended by itself";

fn lost() -> TrialEnd {
    TrialEnd::FarmError { message: LOST.into() }
}

fn void() -> TrialEnd {
    TrialEnd::Void { reason: "the host slept for 60 s".into() }
}

fn is_nth(arm: Arm, hits: u32, of: u32) -> impl Fn(&Trial, u32) -> bool {
    move |trial, nth| trial.arm == arm && (nth * hits) % of < hits
}

/// A run, each trial of which ends as `ends` says; `None` stands for completed.
fn run(plan: Plan, ends: impl Fn(&Trial, u32) -> Option<(Option<Finding>, TrialEnd)>) -> Verdict {
    let mut judge = Judge::new(&plan);
    let (mut story, mut order) = (Story { plan, events: Vec::new() }, Vec::new());
    while !judge.is_decided() {
        let Some(trial) = judge.next_trial() else { break };
        judge.start(trial.number);
        let before = story.events.len();
        let key = (trial.arm, trial.patches.clone());
        let nth = order.iter().filter(|k| **k == key).count() as u32;
        order.push(key);
        let place = story.place(trial.number);
        if place == C0 {
            story = story.reach(5);
        }
        story = match ends(&trial, nth) {
            None => story.end(place, TrialEnd::Completed),
            Some((finding, end)) => {
                let story = story.applied(place).add(place, Phase::Soak, Body::PhaseStarted);
                let found = finding.map(|f| Body::Finding(Box::new(f)));
                found.into_iter().fold(story, |s, body| s.add(place, Phase::Soak, body)).end(place, end)
            }
        };
        story.events[before..].iter().for_each(|event| judge.push(event));
    }
    judge.verdict()
}

/// QEMU dies only with the patch, after applying.
#[test]
fn trials_that_are_lost_with_the_patch_count() {
    for (hits, of) in [(1, 1), (2, 5), (1, 4), (1, 2)] {
        let dies = is_nth(Arm::Loaded, hits, of);
        let verdict = run(plan(), |t, n| dies(t, n).then(|| (None, lost())));
        assert_eq!(verdict.verdict, Outcome::Rejected, "{hits}/{of}: {:?}", verdict.causes);
        let listed = verdict.remarks.iter().filter(|r| r.what == Remark::Lost && r.reason == LOST).count();
        assert_eq!(listed as u32, verdict.bounds[0].failed, "{:?}", verdict.remarks);
    }
    let many = try_plan("arms: {loaded: 400}\n", resolved(&["x"])).unwrap();
    let dies = is_nth(Arm::Loaded, 247, 261);
    assert_eq!(run(many, |t, n| dies(t, n).then(|| (None, lost()))).verdict, Outcome::Rejected);
    // One clean trial of an arm does not make up for those that were lost.
    for arm in [Arm::Quiescent, Arm::Reapply] {
        let verdict = run(plan(), |t, n| (t.arm == arm && n != 1).then(|| (None, lost())));
        assert_ne!(verdict.verdict, Outcome::Qualified, "{arm}: {:?}", verdict.causes);
    }
    // A host on which machines die without the patch as well proves nothing against it.
    let verdict = run(plan(), |_, n| (n % 5 == 2).then(|| (None, lost())));
    assert_eq!(verdict.verdict, Outcome::Inconclusive, "{:?}", verdict.causes);
    assert_eq!(verdict.exit_code(), 4);
    let verdict = run(plan(), |t, n| (t.arm != Arm::Reapply && n % 20 == 5).then(|| (None, lost())));
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}

/// What happens before the patch is applied says nothing of it: another trial takes its place.
#[test]
fn trials_that_are_lost_before_applying_are_made_up_for() {
    let mut story = Story::default().reach(5);
    let before =
        |s: Story, place: Place| s.add(place, Phase::Baseline, Body::PhaseStarted).end(place, lost());
    for place in [L0, Q0, (Arm::Reapply, 0), (Arm::Control, 1)] {
        story = before(story, place);
    }
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.remarks.iter().filter(|r| r.what == Remark::Invalid).count(), 4);
    assert_eq!(verdict.bounds[0].failed, 0);
}

/// One control trial has the same defect: nothing is proven, and nothing excused.
#[test]
fn what_one_control_trial_shows_excuses_nothing() {
    use klpfarm_kmsg::Kind;
    for (kind, title) in [
        (FindingKind::from(HANG), "hangs"),
        (ObservedKind::Panicked.into(), "the guest kernel panicked"),
        (ObservedKind::Rebooted.into(), "the machine restarted unexpectedly"),
        (ObservedKind::WrongContent.into(), "wrong content after read"),
        (FindingKind::Kernel(Kind::HungTask), "INFO: task hung in f"),
    ] {
        let hit = is_nth(Arm::Loaded, 10, 24);
        let verdict = run(plan(), |t, n| {
            let control = t.arm == Arm::Control && n == 0;
            (control || hit(t, n)).then(|| (Some(finding(kind, title)), TrialEnd::Stopped))
        });
        assert_eq!(verdict.verdict, Outcome::Rejected, "{kind}: {:?}", verdict.causes);
    }
}

/// The stall that comes first must not hide what the kernel is sure of.
#[test]
fn a_soft_finding_hides_no_crash() {
    use klpfarm_kmsg::Kind;
    let with = |kinds: &[FindingKind]| {
        let story = kinds.iter().fold(Story::default().reach(5), |s, k| s.finds(L0, Phase::Soak, *k, "t"));
        story.end(L0, TrialEnd::Stopped).rest_clean().judge()
    };
    let stall = FindingKind::from(HANG);
    for hard in
        [ObservedKind::Rebooted, ObservedKind::Tainted, ObservedKind::WorkloadDied, ObservedKind::PoweredOff]
    {
        let verdict = with(&[stall, hard.into()]);
        assert_eq!(verdict.verdict, Outcome::Rejected, "{hard:?}: {:?}", verdict.causes);
    }
    assert_eq!(with(&[stall]).verdict, Outcome::Inconclusive);
    // Where memory has run out, processes die.
    let oom = FindingKind::Kernel(Kind::Oom);
    assert_eq!(with(&[oom, ObservedKind::WorkloadDied.into()]).verdict, Outcome::Inconclusive);
}

/// All machines with one of two patches leak, and the other patch is fine.
#[test]
fn each_patch_is_compared_by_itself() {
    let plan = try_plan("", resolved(&["a", "b"])).unwrap();
    let leaks = |t: &Trial| t.arm == Arm::Loaded && t.patches == [0];
    let leak =
        || Finding { title: "unreclaimable slab: more".into(), ..finding(ObservedKind::ResourcesLeaked, "") };
    let verdict = run(plan, |t, _| leaks(t).then(|| (Some(leak()), TrialEnd::Stopped)));
    assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
    assert!(one_says(&verdict, &["fails-more-often", "loaded", r#"["a"]"#]), "{:?}", verdict.causes);
}

/// The idle trials of one patch never got as far as applying it; those of the other do not count for it.
#[test]
fn an_arm_is_asked_for_of_each_patch() {
    let plan = try_plan("", resolved(&["a", "b"])).unwrap();
    let mut story = Story { plan, events: Vec::new() }.reach(5);
    for trial in story.plan.trials.clone().iter().take(120) {
        let place = story.place(trial.number);
        story = if trial.arm == Arm::Quiescent && trial.patches == [0] {
            story.end(place, lost())
        } else {
            story.end(place, TrialEnd::Completed)
        };
    }
    let verdict = story.judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    assert!(one_says(&verdict, &["trials-missing", "quiescent"]), "{:?}", verdict.causes);
    // Every re-application of one patch hangs.
    let plan = try_plan("", resolved(&["a", "b", "c"])).unwrap();
    let hangs = |t: &Trial| t.arm == Arm::Reapply && t.patches == [0];
    let titled = |n: u32| (Some(finding(HANG, &format!("hangs in f{n}"))), TrialEnd::Stopped);
    let verdict = run(plan, |t, n| hangs(t).then(|| titled(n)));
    assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
}

/// The host's trouble explains slowness, and neither a crash nor a hang in the patch's own code.
#[test]
fn the_hosts_trouble_hides_nothing_that_it_cannot_cause() {
    for finding in [stall("hangs in klp_f"), finding(OOPS, "oops"), own("hangs")] {
        let verdict = Story::default().reach(5).finding(L0, Phase::Soak, finding.clone()).end(L0, void());
        let verdict = verdict.rest_clean().judge();
        assert_ne!(verdict.verdict, Outcome::Qualified, "{:?}", finding.kind);
        assert_eq!(verdict.bounds[0].failed, 1, "{:?}", finding.kind);
    }
    // A stall that ended again was none of the patch's.
    let ended = Body::StallEnded { title: "hangs in klp_f".into(), lasted_ms: 21_000 };
    let story = Story::default().reach(5).finding(L0, Phase::Soak, stall("hangs in klp_f"));
    let verdict = story.add(L0, Phase::Soak, ended).end(L0, void()).rest_clean().judge();
    assert_eq!((verdict.bounds[0].failed, verdict.arms[&Arm::Loaded].void), (0, 1));
    // A host that is always in trouble when the patch hangs is not believed.
    let hit = is_nth(Arm::Loaded, 10, 24);
    let verdict = run(plan(), |t, n| hit(t, n).then(|| (Some(finding(HANG, "hangs")), void())));
    assert_ne!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}

/// Trials that were never seen with the patch in force are not clean.
#[test]
fn a_trial_is_clean_only_if_it_was_observed_to_its_end() {
    let bare = |s: Story, place: Place, end: TrialEnd| s.add(place, Phase::End, Body::TrialEnded { end });
    let count = |story: Story| {
        let arms = story.rest_clean().judge().arms[&Arm::Loaded];
        (arms.clean, arms.unexplained)
    };
    assert_eq!(count(bare(Story::default(), L0, TrialEnd::Completed)), (13, 1), "nothing was applied");
    let applied = Body::Applied {
        patch: "x".into(),
        took_ms: 1,
        functions: vec!["vmlinux/do_it".into()],
        inside: BTreeMap::new(),
    };
    let story = Story::default().add(L0, Phase::Apply, applied);
    assert_eq!(count(bare(story, L0, TrialEnd::Completed)), (13, 1), "the transition never ended");
    assert_eq!(
        count(bare(Story::default().applied(L0), L0, TrialEnd::Stopped)),
        (13, 1),
        "stopped, and why?"
    );
}

/// A leak in 9 of 14 machines, and none in four control trials.
#[test]
fn a_difference_in_part_of_the_trials_is_not_let_through() {
    let phases = |s: Story, place: Place, kib: u64| {
        let sample =
            |n: u64| Resources { at_ms: n * 1000, slab_unreclaimable_kib: n * kib, ..Resources::default() };
        let measured = Measured {
            window_ms: 20_000,
            workloads: BTreeMap::new(),
            resources: (0..20).map(sample).collect(),
        };
        let m = || Body::Measured(measured.clone());
        s.add(place, Phase::Baseline, m()).add(place, Phase::Soak, m())
    };
    for leaking in [3, 9, 14] {
        let story = (0..4).fold(Story::default().reach(5), |s, k| phases(s, (Arm::Control, k), 1));
        let story =
            (0..14).fold(story, |s, k| phases(s, (Arm::Loaded, k), if k < leaking { 5000 } else { 1 }));
        let verdict = story.rest_clean().judge();
        assert_ne!(verdict.verdict, Outcome::Qualified, "{leaking}: {:?}", verdict.causes);
        assert_eq!(verdict.bounds[0].failed, leaking as u32, "{:?}", verdict.evidence);
    }
}

/// A journal that says things which no run does is not believed.
#[test]
fn an_edited_journal_lets_nothing_through() {
    let hang = || Story::default().reach(5).finding(L0, Phase::Soak, own("hangs")).end(L0, TrialEnd::Stopped);
    // The trial is said to be done again, although it had ended with a finding.
    let mut story = hang();
    let seq = story.events.len() as u64 + 1;
    let void = vec![story.number(L0)];
    let body = Body::RunResumed { time: String::new(), qemu: String::new(), void };
    story.events.push(Event { seq, at_ms: 1, scope: None, body });
    let story = story.end(L0, TrialEnd::Completed);
    assert_eq!(story.rest_clean().judge().verdict, Outcome::Rejected);
    // The finding is said to be of the control arm.
    let mut story = hang();
    story.events.iter_mut().filter_map(|e| e.scope.as_mut()).for_each(|s| s.arm = Arm::Control);
    assert_eq!(story.rest_clean().judge().verdict, Outcome::Rejected);
    // It is of a trial that the plan does not have.
    let mut story = Story::default().reach(5).rest_clean();
    let scope = Scope { trial: 9999, arm: Arm::Loaded, phase: Phase::Soak };
    let body = Body::Finding(Box::new(own("hangs")));
    story.events.push(Event { seq: 999, at_ms: 1, scope: Some(scope), body });
    assert_eq!(story.judge().verdict, Outcome::Inconclusive);
    // The trial ends a second time.
    let lost = Story::default().reach(5).applied(L0).end(L0, lost());
    let twice = lost.add(L0, Phase::End, Body::TrialEnded { end: TrialEnd::Completed });
    assert_eq!(twice.rest_clean().judge().bounds[0].failed, 1);
    // The journal is of another plan.
    let mut story = Story::default().reach(5).rest_clean();
    let started = |plan: String| Body::RunStarted {
        time: String::new(),
        plan,
        accel: crate::Accel::Tcg,
        qemu: String::new(),
    };
    let body = started(story.plan.hash());
    story.events.insert(0, Event { seq: 0, at_ms: 0, scope: None, body });
    assert_eq!(story.judge().verdict, Outcome::Qualified);
    story.events[0].body = started("d3aa0b31".into());
    assert_eq!(story.judge().verdict, Outcome::Inconclusive);
}

/// Stalls on a busy host, in both arms, also with the patched function on the stack; and two logins that fail by chance.
#[test]
fn a_busy_host_rejects_no_good_patch() {
    let verdict = run(plan(), |t, n| {
        let stalls = match t.arm {
            Arm::Control => n % 4 != 3,
            _ => n % 3 == 0,
        };
        stalls.then(|| (Some(stall("threads hang in do_madvise")), TrialEnd::Stopped))
    });
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    for hits in [[0, 4], [10, 13]] {
        let fails = |t: &Trial, n: u32| t.arm == Arm::Loaded && hits.contains(&n);
        let dead = || (Some(finding(ObservedKind::SshDead, "no SSH login succeeds")), TrialEnd::Stopped);
        let verdict = run(plan(), |t, n| fails(t, n).then(dead));
        assert_eq!(verdict.verdict, Outcome::Qualified, "{hits:?}: {:?}", verdict.causes);
    }
}

/// Spare trials are there to be used: the only trials of an arm had trouble before applying, or the only control trial stalled.
#[test]
fn no_arm_is_given_up_before_its_spare_trials_are() {
    for arm in [Arm::Reapply, Arm::Quiescent, Arm::Control] {
        let verdict = run(plan(), |t, n| {
            let early = t.arm == arm && n < 2;
            early.then(|| (None, void()))
        });
        assert_eq!(verdict.verdict, Outcome::Qualified, "{arm}: {:?}", verdict.causes);
    }
    // A control trial that finds something and is then lost holds nothing up.
    let verdict =
        run(plan(), |t, n| (t.arm == Arm::Control && n == 0).then(|| (Some(finding(HANG, "hangs")), lost())));
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}
