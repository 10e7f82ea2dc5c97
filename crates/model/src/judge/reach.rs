//! Whether the load reached what the patches replace, and how often the new code ran.

use std::collections::BTreeMap;

use super::outcome::{Mark, Outcomes};
use super::{Record, TrialRecord};
use crate::event::function_name;
use crate::verdict::Reach;
use crate::{Arm, Plan};

/// A function as people write it: without its object where that is the kernel itself, without its position where it is the first of its name.
pub(super) fn for_people(path: &str) -> &str {
    let path = path.strip_prefix("vmlinux/").unwrap_or(path);
    path.strip_suffix(",1").unwrap_or(path)
}

/// Calls of each function that the patches replace, over all trials.
pub(super) fn reach(plan: &Plan, record: &Record, outcomes: &Outcomes) -> Vec<Reach> {
    let mut all: BTreeMap<String, Reach> = BTreeMap::new();
    for (path, inside) in &record.functions {
        all.insert(path.clone(), Reach { inside: *inside, ..of(path) });
    }
    for trial in &plan.trials {
        let Some(own) = record.trials.get(&trial.number) else { continue };
        let clean = outcomes.mark(trial.number) == Mark::Clean;
        for (function, (calls, window_ms)) in &own.calls {
            let rate = *calls as f64 * 1000.0 / (*window_ms).max(1) as f64;
            for reach in matching(&mut all, function) {
                if trial.arm == Arm::Control {
                    raise(&mut reach.before_per_s, rate);
                    continue;
                }
                raise(&mut reach.after_per_s, rate);
                if clean {
                    let in_force = (rate * own.seconds_in_force()) as u64;
                    reach.calls = Some(reach.calls.unwrap_or(0).saturating_add(in_force.max(*calls)));
                    reach.counted_trials += 1;
                }
            }
        }
    }
    all.into_values().collect()
}

fn of(function: &str) -> Reach {
    Reach {
        function: function.to_owned(),
        turn: None,
        before_per_s: None,
        after_per_s: None,
        inside: 0,
        calls: None,
        counted_trials: 0,
    }
}

fn raise(place: &mut Option<f64>, rate: f64) {
    *place = Some(place.unwrap_or(0.0).max(rate));
}

/// The functions that a count is of: the one of that path, or, where a count names no object, those of that name. One that no patch is
/// known to replace is listed by itself.
fn matching<'a>(all: &'a mut BTreeMap<String, Reach>, function: &str) -> Vec<&'a mut Reach> {
    let is = |path: &str| path == function || !function.contains('/') && function_name(path) == function;
    if !all.keys().any(|path| is(path)) {
        all.insert(function.to_owned(), of(function));
    }
    all.iter_mut().filter(|(path, _)| is(path)).map(|(_, reach)| reach).collect()
}

impl TrialRecord {
    /// How long the patch was in force, in seconds of the host.
    fn seconds_in_force(&self) -> f64 {
        let (Some(from), Some(to)) = self.in_force else { return 0.0 };
        to.saturating_sub(from) as f64 / 1000.0
    }
}
