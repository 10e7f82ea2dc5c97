//! Whether calls arrive at the new code.

use super::*;
use crate::event::NewCodeCalls;

const R0: Place = (Arm::Reapply, 0);

fn both(calls: u64, new: u64) -> Body {
    let new_code = Some(NewCodeCalls { patch: "x".into(), calls: new, window_ms: 2000 });
    Body::Reach { function: "vmlinux/do_it".into(), calls, window_ms: 2000, new_code }
}

fn story(counts: &[(Place, u64, u64)]) -> Story {
    let start = Story::default().called(C0, 500).applied(L0).reach(9);
    counts
        .iter()
        .fold(start, |story, (place, calls, new)| story.add(*place, Phase::Reach, both(*calls, *new)))
}

#[test]
fn calls_that_do_not_arrive_at_the_new_code_keep_a_patch_from_qualifying() {
    let verdict = story(&[(L0, 1000, 0), (L1, 600, 0)]).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    let parts = ["new-code-bypassed", "do_it", r#""loaded":{"hit":2,"of":2}"#, r#""calls":1600"#];
    assert!(one_says(&verdict, &parts), "{:?}", verdict.causes);
    assert_eq!(verdict.reach[0].new_code[0].share, Some(0.0));
    // What other trials say of it is another matter.
    let verdict = story(&[(L0, 1000, 990), (R0, 30, 0), (L1, 1000, 1000)]).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Inconclusive);
    let parts = ["new-code-bypassed", r#""loaded":{"hit":0,"of":2}"#, r#""reapply":{"hit":1,"of":1}"#];
    assert!(one_says(&verdict, &parts), "{:?}", verdict.causes);
    let verdict = story(&[(L0, 1000, 990), (L1, 1000, 0)]).rest_clean().judge();
    let parts = ["new-code-bypassed", r#""loaded":{"hit":1,"of":2}"#];
    assert!(one_says(&verdict, &parts), "{:?}", verdict.causes);
}

#[test]
fn new_code_that_runs_is_told_with_its_share() {
    // A call between the start of two counters is no fault.
    let verdict = story(&[(L0, 1000, 990), (L1, 1000, 1200), (R0, 3, 0), ((Arm::Reapply, 1), 300, 297)]);
    let verdict = verdict.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    let new = &verdict.reach[0].new_code[0];
    assert_eq!((new.patch.as_str(), new.per_s, new.trials), ("x", 600.0, 4));
    assert!(new.share.is_some_and(|share| share == 1.0), "{new:?}");
    let verdict = story(&[(L0, 1000, 600)]).rest_clean().judge();
    assert_eq!(verdict.reach[0].new_code[0].share, Some(0.6));
    // What can't be counted is no reason against a patch, and no share is made up.
    let verdict = story(&[]).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    assert!(verdict.reach[0].new_code.is_empty());
}

/// The control arm has no new code, whatever an event says of it; and what a trial that is done again said no longer counts.
#[test]
fn only_patched_trials_that_count_say_anything_of_new_code() {
    let verdict = story(&[(C0, 1000, 0)]).rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
    let mut story = story(&[(L1, 1000, 0)]);
    let void = vec![story.number(L1)];
    let resumed = Body::RunResumed { time: String::new(), qemu: String::new(), void };
    let seq = story.events.len() as u64 + 1;
    story.events.push(Event { seq, at_ms: seq * 10, scope: None, body: resumed });
    let verdict = story.rest_clean().judge();
    assert_eq!(verdict.verdict, Outcome::Qualified, "{:?}", verdict.causes);
}
