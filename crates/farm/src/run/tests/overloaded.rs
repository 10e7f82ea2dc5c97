//! Runs on hosts that have less CPU time than the plan counts on, and tasks that fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// Machines that run at once, as they start and end: how many after each start.
#[derive(Clone, Default)]
struct Crowd {
    running: Arc<AtomicU32>,
    starts: Arc<Mutex<Vec<u32>>>,
}

/// What one more machine among so many, itself included, gets of its planned CPU time after so many trials.
type Shares = fn(running: u32, trials: usize) -> f64;

/// A clean trial on such a host.
async fn crowded(crowd: Crowd, shares: Shares, trial: Trial, wires: Wires) -> Ended {
    let running = crowd.running.fetch_add(1, Ordering::SeqCst) + 1;
    let trials = {
        let mut starts = crowd.starts.lock().unwrap();
        starts.push(running);
        starts.len()
    };
    let share = shares(running, trials);
    let scope = Scope { trial: trial.number, arm: trial.arm, phase: Phase::Soak };
    wires.recent.send_replace(Some(share));
    tokio::time::sleep(Duration::from_secs(20)).await;
    wires.report.send((scope, Body::CpuShare { share })).await.unwrap();
    let ended = scripted(clean, trial, wires).await;
    crowd.running.fetch_sub(1, Ordering::SeqCst);
    ended
}

/// The journal of such a run, and how many machines ran after each start.
async fn crowded_run(plan: &Plan, shares: Shares) -> (Vec<Event>, Vec<u32>) {
    let crowd = Crowd::default();
    let carry = |trial: Trial, wires: Wires| crowded(crowd.clone(), shares, trial, wires);
    let mut sink = |_: &Event| Ok(());
    let stop = CancellationToken::new().into();
    let events = conduct(plan, beginning(plan, Vec::new()), &mut sink, stop, carry).await.unwrap();
    let starts = crowd.starts.lock().unwrap().clone();
    (events, starts)
}

fn notes(events: &[Event]) -> Vec<String> {
    let note = |e: &Event| match &e.body {
        Body::Note { text } => Some((e.scope.is_some(), text.clone())),
        _ => None,
    };
    let all: Vec<(bool, String)> = events.iter().filter_map(note).collect();
    // A note of the whole run is why it ended.
    assert!(all.iter().all(|(of_trial, _)| *of_trial), "{all:?}");
    all.into_iter().map(|(_, text)| text).collect()
}

fn three_at_once() -> Plan {
    plan("arms: {loaded: 14, control: 3, quiescent: 2, reapply: 1}\n", 3, &[])
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_host_runs_fewer_machines_until_each_gets_its_time() {
    let plan = three_at_once();
    let (events, starts) = crowded_run(&plan, |running, _| (1.7 / f64::from(running)).min(0.85)).await;
    let verdict = judge(&plan, &events);
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    assert_eq!(starts[..3], [1, 2, 3]);
    assert!(starts[3..].iter().all(|n| *n <= 2) && starts[3..].contains(&2), "{starts:?}");
    let said = "host overloaded: this machine got 57 % of its planned CPU time; running 2 machines at once from now on";
    assert_eq!(notes(&events), [said]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_has_its_time_again_runs_as_many_machines_as_the_plan_says() {
    let plan = three_at_once();
    let busy = |running, trials| if trials < 6 { 0.9 / f64::from(running) } else { 1.0 };
    let (events, starts) = crowded_run(&plan, busy).await;
    assert_eq!(judge(&plan, &events).verdict, Outcome::Qualified);
    let fewer = starts.iter().skip(3).position(|n| *n == 1).expect("one at a time") + 3;
    assert!(starts[fewer..].contains(&3), "{starts:?}");
    let notes = notes(&events);
    let again = |n: u32| {
        notes.iter().any(|text| text.ends_with(&format!("running {n} machines at once from now on")))
    };
    assert!(again(3) && notes.iter().any(|text| text.contains("90 % or more")), "{notes:?}");
}

#[tokio::test(start_paused = true)]
async fn no_machine_is_started_beside_one_that_starves() {
    let plan = three_at_once();
    let (events, starts) = crowded_run(&plan, |_, trials| if trials <= 3 { 0.2 } else { 1.0 }).await;
    assert_eq!(judge(&plan, &events).verdict, Outcome::Qualified);
    // Two machines starve when the first of the three has ended, so that the fourth runs alone.
    assert_eq!(starts[..4], [1, 2, 3, 1], "{starts:?}");
    let held = notes(&events).iter().filter(|text| text.contains("no further machine is started")).count();
    assert!((1..=3).contains(&held), "said once for each: {held}");
}

#[tokio::test(start_paused = true)]
async fn a_trial_whose_task_panics_is_a_farm_error_and_the_run_goes_on() {
    let plan = three_at_once();
    let carry = |trial: Trial, wires: Wires| async move {
        if trial.number == 2 {
            let scope = Scope { trial: 2, arm: trial.arm, phase: Phase::Settle };
            wires.report.send((scope, Body::TrialStarted)).await.unwrap();
            panic!("a fault of the farm's own");
        }
        scripted(clean, trial, wires).await
    };
    let mut sink = |_: &Event| Ok(());
    let stop = CancellationToken::new().into();
    let events = conduct(&plan, beginning(&plan, Vec::new()), &mut sink, stop, carry).await.unwrap();
    let ends: Vec<&Event> = events
        .iter()
        .filter(|e| e.scope.is_some_and(|s| s.trial == 2) && matches!(e.body, Body::TrialEnded { .. }))
        .collect();
    let [Event { body: Body::TrialEnded { end: TrialEnd::FarmError { message } }, .. }] = ends[..] else {
        panic!("{ends:?}")
    };
    assert!(message.contains("a task of the farm failed"), "{message}");
    let verdict = judge(&plan, &events);
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}
