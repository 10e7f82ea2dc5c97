use std::path::Path;

use klpfarm_model::event::live;
use klpfarm_model::verdict::Remark;
use klpfarm_model::{
    ImageFacts, Mode, ObservedKind, Outcome, Patch, Pipeline, Resolved, Source, TierRule, Turn, Verdict,
    consistency, judge,
};

use super::*;

mod overloaded;

const HOUR: u64 = 3600;

fn plan(more: &str, jobs: u32, turns: &[(&str, &str)]) -> Plan {
    let text = format!("name: gate\nimage: a\nworkloads: [w]\n{more}");
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), &text).unwrap();
    let image = |name: &str, release: &str| ImageFacts {
        name: name.into(),
        hash: name.into(),
        release: Some(release.into()),
    };
    let patch =
        |release: &str| Patch { name: "x".into(), vermagic: format!("{release} SMP"), ..Patch::default() };
    let turn = |(name, load): &(&str, &str)| Turn {
        image: image(name, &format!("6.1-{name}")),
        load: (*load).to_owned(),
        workloads: Vec::new(),
        patches: Vec::new(),
        checkpoint: Some(format!("{name}-{load}")),
    };
    let with = Resolved {
        patches: if turns.is_empty() { vec![patch("6.1-a")] } else { vec![patch("6.1-a"), patch("6.1-b")] },
        jobs,
        mode: if turns.is_empty() { Mode::Single } else { Mode::Rotation(turns.iter().map(turn).collect()) },
        ..Resolved::new(
            image("a", "6.1-a"),
            TierRule::new(0.2, 0.95, Duration::from_secs(30), vec![Arm::Loaded, Arm::Control]),
        )
    };
    Plan::new(&pipeline, with).unwrap()
}

/// What a trial finds, by its number: the same whenever and however often it is done.
type Script = fn(&Trial) -> Option<ObservedKind>;

/// A trial by a script instead of a machine; it lasts some time of the paused clock.
async fn scripted(script: Script, trial: Trial, mut wires: Wires) -> Ended {
    let tell = |phase: Phase, body: Body| {
        let scope = Scope { trial: trial.number, arm: trial.arm, phase };
        let report = wires.report.clone();
        async move { report.send((scope, body)).await.unwrap() }
    };
    tell(Phase::Boot, Body::TrialStarted).await;
    let stop = wires.stop.wait_for(Option::is_some);
    let lasts = Duration::from_secs(40 + u64::from(trial.number * 7 % 5));
    let stopped = tokio::select! {
        end = stop => Some(end.unwrap().clone().unwrap()),
        () = tokio::time::sleep(lasts) => None,
    };
    let end = match stopped {
        Some(end) => end,
        None => {
            let found = script(&trial);
            if trial.arm != Arm::Control {
                let functions = vec!["vmlinux/f".to_owned()];
                let applied =
                    Body::Applied { patch: "x".into(), took_ms: 1, functions, inside: BTreeMap::new() };
                tell(Phase::Apply, applied).await;
                tell(Phase::Transition, Body::TransitionDone { took_ms: 2, per_task: true }).await;
            }
            let calls = Body::Reach { function: "f".into(), calls: 9, window_ms: 1000, new_code: None };
            tell(Phase::Reach, calls).await;
            if let Some(kind) = found {
                tell(Phase::Soak, Body::Finding(Box::new(finding(kind)))).await;
            }
            if found.is_some() { TrialEnd::Stopped } else { TrialEnd::Completed }
        }
    };
    tell(Phase::End, Body::TrialEnded { end: end.clone() }).await;
    Ended { end, checkpointed: None, login: None }
}

fn finding(kind: ObservedKind) -> Finding {
    Finding {
        kind: kind.into(),
        title: "something is wrong".into(),
        source: Source::Probe,
        function: None,
        workload: None,
        after_apply_ms: Some(10),
        line: None,
        in_patch: true,
        corrupted: false,
        evidence: String::new(),
    }
}

fn beginning(plan: &Plan, past: Vec<Event>) -> Beginning {
    let fact = |id: &str| CheckpointFacts {
        id: id.to_owned(),
        size: 1,
        made_ms: None,
        fresh: Vitals::default(),
        reached: Vitals::default(),
        blind: BTreeMap::new(),
        unavailable: BTreeMap::new(),
    };
    let checkpoints = plan.mode.turns().iter().filter_map(|t| t.checkpoint.as_deref()).map(fact).collect();
    Beginning { time: String::new(), qemu: String::new(), checkpoints, past }
}

/// The whole journal of a run that goes on after `past`, until its end or until `cancel`.
async fn journal(plan: &Plan, past: Vec<Event>, script: Script, cancel: &CancellationToken) -> Vec<Event> {
    let mut all = past.clone();
    let mut sink = |e: &Event| {
        all.push(e.clone());
        Ok(())
    };
    let carry = |trial: Trial, wires: Wires| scripted(script, trial, wires);
    conduct(plan, beginning(plan, past), &mut sink, cancel.clone().into(), carry).await.unwrap();
    assert!(all.iter().zip(1..).all(|(e, seq)| e.seq == seq), "numbered without gaps");
    assert_eq!(consistency(plan, &all), [""; 0]);
    all
}

/// What may differ between a run and the same run with an interruption is left out: when, and which event it was.
fn essence(mut verdict: Verdict) -> Verdict {
    verdict.took_ms = 0;
    verdict.remarks.retain(|r| r.what != Remark::Repeated);
    verdict.arms.values_mut().for_each(|n| n.void = 0);
    verdict.evidence.iter_mut().flat_map(|e| &mut e.observations).for_each(|o| o.seq = 0);
    verdict
}

/// Trials that ended with something to say, and how often.
fn completed(events: &[Event]) -> BTreeMap<u32, u32> {
    let mut all = BTreeMap::new();
    for event in live(events) {
        if let Body::TrialEnded { end: TrialEnd::Completed | TrialEnd::Stopped } = event.body {
            *all.entry(event.scope.unwrap().trial).or_default() += 1;
        }
    }
    all
}

fn clean(_: &Trial) -> Option<ObservedKind> {
    None
}

fn faulty(trial: &Trial) -> Option<ObservedKind> {
    (trial.arm == Arm::Loaded && trial.number.is_multiple_of(2)).then_some(ObservedKind::WrongErrno)
}

/// Wherever a journal breaks off, and wherever it does so again: the run goes on to the same verdict.
async fn cut_anywhere(script: Script, expected: Outcome) {
    let plan = plan("arms: {loaded: 14, control: 2, quiescent: 2, reapply: 1}\n", 1, &[]);
    let never = CancellationToken::new();
    let whole = journal(&plan, Vec::new(), script, &never).await;
    let verdict = judge(&plan, &whole);
    assert_eq!(verdict.verdict, expected, "{:?}", verdict.causes);
    for cut in 0..whole.len() {
        let once = journal(&plan, whole[..cut].to_vec(), script, &never).await;
        assert_eq!(essence(judge(&plan, &once)), essence(verdict.clone()), "cut before event {}", cut + 1);
        assert!(completed(&once).values().all(|n| *n == 1), "cut before event {}", cut + 1);
        let again = cut + (once.len() - cut) / 2;
        let twice = journal(&plan, once[..again].to_vec(), script, &never).await;
        assert_eq!(essence(judge(&plan, &twice)), essence(verdict.clone()), "cut at {cut} and at {again}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_patch_is_qualified_wherever_the_run_was_cut_off() {
    cut_anywhere(clean, Outcome::Qualified).await;
}

#[tokio::test(start_paused = true)]
async fn a_faulty_patch_is_rejected_wherever_the_run_was_cut_off() {
    cut_anywhere(faulty, Outcome::Rejected).await;
}

/// With several machines at once the order of ends may differ, the outcome may not.
#[tokio::test(start_paused = true)]
async fn trials_in_flight_are_done_again() {
    let plan = plan("arms: {loaded: 14, control: 3, quiescent: 2, reapply: 1}\n", 3, &[]);
    let never = CancellationToken::new();
    let whole = journal(&plan, Vec::new(), clean, &never).await;
    let mut again = 0;
    for cut in 1..whole.len() {
        let once = journal(&plan, whole[..cut].to_vec(), clean, &never).await;
        let verdict = judge(&plan, &once);
        assert_eq!(verdict.verdict, Outcome::Qualified, "cut before event {}: {:?}", cut + 1, verdict.causes);
        again += once
            .iter()
            .map(|e| if let Body::RunResumed { void, .. } = &e.body { void.len() } else { 0 })
            .sum::<usize>();
    }
    assert!(again > whole.len(), "three machines at once are cut off in most places: {again}");
}

#[tokio::test(start_paused = true)]
async fn what_was_found_before_the_cut_is_not_thrown_away() {
    let plan = plan("arms: {loaded: 14, control: 2, quiescent: 0, reapply: 0}\n", 1, &[]);
    let never = CancellationToken::new();
    let whole = journal(&plan, Vec::new(), faulty, &never).await;
    let found = whole.iter().position(|e| matches!(e.body, Body::Finding(_))).unwrap();
    // It was chance, and would not come again.
    let once = journal(&plan, whole[..=found].to_vec(), clean, &never).await;
    let verdict = judge(&plan, &once);
    assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
    assert_eq!(verdict.arms[&Arm::Loaded].failed, 1);
}

const NIGHTS: &str = "rotation: {duration: 72h}\narms: {loaded: 4, control: 2, quiescent: 1, reapply: 1}\n";
const TURNS: &[(&str, &str)] = &[("a", "memory"), ("b", "memory"), ("a", "files"), ("b", "files")];

/// One loaded trial in 400 fails.
fn rarely(trial: &Trial) -> Option<ObservedKind> {
    (trial.arm == Arm::Loaded && trial.number % 400 == 1).then_some(ObservedKind::WrongErrno)
}

#[tokio::test(start_paused = true)]
async fn a_soak_of_three_days_goes_round_until_its_time_is_over() {
    let plan = plan(NIGHTS, 3, TURNS);
    let events = journal(&plan, Vec::new(), clean, &CancellationToken::new()).await;
    let end = events.last().unwrap();
    assert!(matches!(end.body, Body::RunEnded { interrupted: false }));
    assert!((72 * HOUR * 1000..72 * HOUR * 1000 + 60_000).contains(&end.at_ms), "{}", end.at_ms);
    let done = completed(&events);
    assert!(done.len() > 15_000 && done.values().all(|n| *n == 1), "{}", done.len());
    let mut turns = [0_usize; 4];
    done.keys().for_each(|n| turns[plan.turn_of(*n)] += 1);
    assert!(turns.iter().all(|n| n.abs_diff(turns[0]) <= plan.trials.len()), "{turns:?}");
    let verdict = judge(&plan, &events);
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    assert_eq!(verdict.turns.len(), 4);
    assert!(verdict.bounds.iter().all(|b| b.failure_rate < 0.002), "{:?}", verdict.bounds);
}

#[tokio::test(start_paused = true)]
async fn a_soak_that_is_cut_off_goes_on_for_the_rest_of_its_time() {
    let plan = plan(NIGHTS, 3, TURNS);
    let cancel = CancellationToken::new();
    let (first, ()) = tokio::join!(journal(&plan, Vec::new(), rarely, &cancel), async {
        tokio::time::sleep(Duration::from_secs(30 * HOUR)).await;
        cancel.cancel();
    });
    assert!(matches!(first.last().unwrap().body, Body::RunEnded { interrupted: true }));
    let events = journal(&plan, first, rarely, &CancellationToken::new()).await;
    let end = events.last().unwrap().at_ms;
    assert!((72 * HOUR * 1000..72 * HOUR * 1000 + 60_000).contains(&end), "{end}");
    let done = completed(&events);
    assert!(done.values().all(|n| *n == 1));
    let verdict = judge(&plan, &events);
    assert_eq!(verdict.verdict, Outcome::Rejected, "{:?}", verdict.causes);
    assert!(verdict.evidence[0].turn.is_some());
    let failed: u32 = verdict.bounds.iter().map(|b| b.failed).sum();
    assert_eq!(failed, u32::try_from(done.keys().filter(|n| *n % 400 == 1).count()).unwrap());
}
