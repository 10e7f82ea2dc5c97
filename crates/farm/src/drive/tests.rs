use std::path::Path;

use klpfarm_model::{Arm, ImageFacts, Patch, Pipeline, Resolved, Start, TierRule};
use klpfarm_stress::wire::FromGuest;
use klpfarm_vm::QmpEvent;

use super::*;
use crate::trial::Collected;

fn plan() -> Arc<Plan> {
    let pipeline = Pipeline::parse(Path::new("gate.yaml"), "name: gate\nimage: a\nworkloads: [w]\n").unwrap();
    let image = ImageFacts { name: "a".into(), hash: String::new(), release: None };
    let rule = TierRule::new(0.2, 0.95, Duration::from_secs(5), vec![Arm::Loaded, Arm::Control]);
    let patch = Patch { name: "x".into(), vermagic: "6.1 SMP".into(), size: 9, ..Patch::default() };
    Arc::new(Plan::new(&pipeline, Resolved { patches: vec![patch], ..Resolved::new(image, rule) }).unwrap())
}

/// What a trial whose task has failed comes to after these inputs, each a second after the one before.
fn end_after(inputs: Vec<Input>) -> Vec<TrialEnd> {
    let plan = plan();
    let trial = plan.trials.iter().find(|t| t.arm == Arm::Loaded).unwrap().clone();
    let mut dispatcher = Dispatcher::new(plan, trial, Purpose::Trial(Start::Fork), nonce::secret());
    let failed = Input::Started(Err("a task of the farm failed: task 7 panicked".into()));
    let steps = inputs.into_iter().chain([failed, Input::Tick]).zip(1..);
    let actions = steps.flat_map(|(input, second)| dispatcher.handle(Duration::from_secs(second), input));
    actions.filter_map(|action| if let Action::End(end) = action { Some(end) } else { None }).collect()
}

#[test]
fn a_failed_task_is_a_farm_error_in_whatever_step_the_trial_is() {
    let started = || Input::Started(Ok(70));
    let hello = || {
        Input::Output(Output::Probe(FromGuest::Hello {
            version: 3,
            release: "6.1".into(),
            cpus: 2,
            at_ms: 9,
            taint: 0,
        }))
    };
    let reply = |id| Input::Output(Output::Probe(FromGuest::Reply { id, code: 0, out: String::new() }));
    let panicked = || Input::Output(Output::Qmp(QmpEvent::Panicked));
    let ticks = |n: usize| std::iter::repeat_with(|| Input::Tick).take(n);
    let cases: Vec<Vec<Input>> = vec![
        vec![],
        vec![started()],
        vec![started(), hello()],
        vec![started(), hello(), reply(2), reply(3)],
        // A finding is listened to, then its evidence is gathered.
        vec![started(), hello(), panicked()],
        [started(), hello(), panicked()].into_iter().chain(ticks(30)).collect(),
    ];
    for (n, inputs) in cases.into_iter().enumerate() {
        let ends = end_after(inputs);
        assert!(
            matches!(&ends[..], [TrialEnd::FarmError { message }] if message.contains("task 7 panicked")),
            "case {n}: {ends:?}"
        );
    }
    // What ended stays as it ended.
    let over = vec![started(), Input::Stop(TrialEnd::Unneeded), Input::Collected(Collected::default())];
    assert_eq!(end_after(over), [TrialEnd::Unneeded]);
}

#[test]
fn a_trial_that_cannot_end_says_so() {
    let text = overdue(Duration::from_secs(3600));
    assert!(text.starts_with("the trial did not end within 60 min"), "{text}");
}
