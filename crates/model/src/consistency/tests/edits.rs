//! Any run, and any edit of one.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use proptest::sample::Index;

use super::story::*;
use crate::event::{Body, Scope, TrialEnd};
use crate::{Arm, Event, Phase, Source};

/// Trials that overlap, some of which find something, in a run that is cut off and resumed: as `farm` writes it.
fn run(kind: Kind, steps: &[(u8, u8)]) -> Story {
    let mut story = Story::new(kind);
    let mut lives: BTreeMap<u32, VecDeque<(Scope, Body)>> = BTreeMap::new();
    let mut last: BTreeMap<u32, (Scope, bool)> = BTreeMap::new();
    let (mut next, mut again) = (1, Vec::<u32>::new());
    for &(what, which) in steps {
        let nth = usize::from(which) % lives.len().max(1);
        let open = lives.keys().nth(nth).copied();
        match (what % 16, open) {
            (0..=1, _) | (_, None) => {
                let number = again.pop().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                if story.plan.trial(number).is_some() {
                    let mut life: VecDeque<_> = life(&story.plan, number).into();
                    let (scope, body) = life.pop_front().unwrap();
                    last.insert(number, (scope, false));
                    story.add(Some(scope), body);
                    lives.insert(number, life);
                }
            }
            (2, Some(number)) => {
                let (scope, found) = last.get_mut(&number).unwrap();
                *found = true;
                let scope = *scope;
                story.add(Some(scope), finding(Source::Probe, Some(9)));
            }
            // A crash: what had found something is closed, the others are done again.
            (3, Some(_)) => {
                let mut void = Vec::new();
                for number in std::mem::take(&mut lives).into_keys() {
                    match last[&number] {
                        (scope, true) => {
                            let end = TrialEnd::Interrupted;
                            story.add(Some(scope), Body::TrialEnded { end });
                        }
                        (_, false) => void.push(number),
                    }
                }
                again.extend(&void);
                story.add(None, Body::RunResumed { time: String::new(), qemu: String::new(), void });
            }
            // Ended in order by the user, and resumed.
            (4, Some(_)) => {
                let mut void = Vec::new();
                for number in std::mem::take(&mut lives).into_keys() {
                    story.close(number, &TrialEnd::Interrupted);
                    if !last[&number].1 {
                        void.push(number);
                    }
                }
                again.extend(&void);
                story.add(None, Body::RunEnded { interrupted: true });
                story.add(None, Body::RunResumed { time: String::new(), qemu: String::new(), void });
            }
            (5, Some(number)) => {
                lives.remove(&number);
                story.close(number, &TrialEnd::FarmError { message: "QEMU died".into() });
            }
            (_, Some(number)) => match lives.get_mut(&number).and_then(VecDeque::pop_front) {
                Some((scope, body)) => {
                    last.get_mut(&number).unwrap().0 = scope;
                    story.add(Some(scope), body);
                }
                None => {
                    lives.remove(&number);
                    story.close(number, &TrialEnd::Completed);
                }
            },
        }
    }
    story
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::One), Just(Kind::Stacked), Just(Kind::Booted), Just(Kind::Round)]
}

/// One edit of one event, where it can be done; each of them changes what the journal says.
fn edited(story: &Story, what: usize, place: Index) -> Option<Story> {
    let mut story = story.clone();
    let plan = &story.plan;
    let last = story.events.len() - 1;
    let ended = |n: u32, events: &[Event]| {
        events
            .iter()
            .any(|e| matches!(e.body, Body::TrialEnded { .. }) && e.scope.is_some_and(|s| s.trial == n))
    };
    let fits = |e: &Event| match what {
        0 => matches!(e.body, Body::RunStarted { .. }),
        1..=4 => e.scope.is_some(),
        9 => e.scope.is_some() && !matches!(e.body, Body::TrialStarted),
        5 | 10 => matches!(e.body, Body::TrialEnded { .. }),
        6 => matches!(e.body, Body::Applied { .. } | Body::Reverted { .. }),
        7 => matches!(e.body, Body::Checkpoint(_)),
        // What has found something, or ended, is not done again.
        8 => matches!(&e.body, Body::RunResumed { .. }),
        _ => matches!(e.body, Body::Finding(_)) && e.scope.is_some_and(|s| !before(s.phase)),
    };
    let places: Vec<usize> = (0..=last).filter(|n| fits(&story.events[*n])).collect();
    if places.is_empty() {
        return None;
    }
    let at = places[place.index(places.len())];
    let unknown = 90_000;
    let has_no_end = plan.rotation().is_some();
    let event = &mut story.events[at];
    match (what, &mut event.body) {
        (0, Body::RunStarted { plan, .. }) => *plan = "0".repeat(64),
        (1, _) => {
            let scope = event.scope.as_mut()?;
            scope.arm = if scope.arm == Arm::Control { Arm::Loaded } else { Arm::Control };
        }
        (2, _) if has_no_end => return None,
        (2, _) => event.scope.as_mut()?.trial = unknown,
        (3, _) => event.scope.as_mut()?.trial = 0,
        (4, Body::Note { .. }) => return None,
        (4, _) => event.scope = None,
        (5, _) => {
            let copy = event.clone();
            story.events.insert(at, copy);
        }
        (6, Body::Applied { patch, .. } | Body::Reverted { patch, .. }) => *patch = "z".into(),
        (7, Body::Checkpoint(facts)) => facts.id = "c-3".into(),
        (8, Body::RunResumed { void, .. }) => {
            let voided = void.clone();
            let before = &story.events[..at];
            let number = before.iter().filter_map(|e| e.scope).map(|s| s.trial);
            let ended = number.clone().find(|n| ended(*n, before) && !voided.contains(n))?;
            let Body::RunResumed { void, .. } = &mut story.events[at].body else { return None };
            void.push(ended);
        }
        // An event of a trial behind the end of another one.
        (9, _) => {
            let scope = event.scope?;
            let closed = story.events.iter().rev().find(|e| matches!(e.body, Body::TrialEnded { .. }))?;
            let number = closed.scope?.trial;
            let after = story.events[at].seq > closed.seq;
            let begun = |e: &Event| matches!(e.body, Body::TrialStarted) && e.seq > closed.seq;
            let begins_again =
                story.events.iter().any(|e| begun(e) && e.scope.is_some_and(|s| s.trial == number));
            if !after || number == scope.trial || begins_again {
                return None;
            }
            story.events[at].scope = Some(Scope { phase: scope.phase, ..closed.scope? });
        }
        // Before its beginning.
        (10, _) => {
            let copy = event.clone();
            story.events.insert(1, copy);
        }
        _ => event.scope.as_mut()?.phase = Phase::Baseline,
    }
    Some(story)
}

fn before(phase: Phase) -> bool {
    matches!(phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline)
}

const EDITS: usize = 12;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_a_run_writes_has_no_complaint_at_any_moment(kind in kinds(), steps in prop::collection::vec(any::<(u8, u8)>(), 0..200)) {
        let whole = run(kind, &steps);
        for cut in [whole.events.len() / 3, whole.events.len() / 2, whole.events.len()] {
            let part = Story { plan: whole.plan.clone(), events: whole.events[..cut].to_vec() };
            prop_assert_eq!(part.complaints(), Vec::<String>::new());
        }
    }

    #[test]
    fn each_edit_has_a_complaint(
        kind in kinds(),
        steps in prop::collection::vec(any::<(u8, u8)>(), 60..200),
        what in 0..EDITS,
        place in any::<Index>(),
    ) {
        let whole = run(kind, &steps);
        if let Some(changed) = edited(&whole, what, place) {
            prop_assert!(!changed.complaints().is_empty(), "edit {} of {:#?}", what, changed.events);
        }
    }
}
