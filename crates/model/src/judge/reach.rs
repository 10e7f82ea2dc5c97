//! Whether the load reached what the patches replace, and how often the new code ran.

use std::collections::BTreeMap;

use super::fold::Fold;
use super::outcome::Mark;
use super::record::{Facts, TrialRecord};
use crate::Arm;
use crate::event::function_name;
use crate::verdict::{NewCode, Reach};

/// A function as people write it: without its object where that is the kernel itself, without its position where it is the first of its name.
pub fn plain_function(path: &str) -> &str {
    let path = path.strip_prefix("vmlinux/").unwrap_or(path);
    path.strip_suffix(",1").unwrap_or(path)
}

impl Fold {
    /// Calls of each function that the patches replace, over all trials.
    pub(super) fn reach(&self, facts: &Facts) -> Vec<Reach> {
        let record = &self.record;
        let mut all = replaced(facts);
        let mut new_code: BTreeMap<String, BTreeMap<&str, Rates>> = BTreeMap::new();
        for trial in &self.plan.trials {
            let Some(own) = record.trials.get(&trial.number) else { continue };
            let clean = self.outcomes.mark(trial.number) == Mark::Clean;
            for counted in own.calls.iter().filter(|c| record.is_relevant(facts, &c.function)) {
                let calls = counted.calls;
                let rate = per_s(calls, counted.window_ms);
                for reach in matching(&mut all, &counted.function) {
                    if trial.arm == Arm::Control {
                        raise(&mut reach.before_per_s, rate);
                        continue;
                    }
                    raise(&mut reach.after_per_s, rate);
                    if let Some(new) = &counted.new_code {
                        let of = new_code.entry(reach.function.clone()).or_default();
                        of.entry(&new.patch).or_default().add(rate, per_s(new.calls, new.window_ms));
                    }
                    if clean {
                        let in_force = (rate * own.seconds_in_force()) as u64;
                        reach.calls = Some(reach.calls.unwrap_or(0).saturating_add(in_force.max(calls)));
                        reach.counted_trials += 1;
                    }
                }
            }
        }
        for (function, patches) in new_code {
            if let Some(reach) = all.get_mut(&function) {
                reach.new_code = patches.into_iter().map(|(patch, rates)| rates.of(patch)).collect();
            }
        }
        all.into_values().collect()
    }

    /// The same with 1 for every rate above zero, which is all that a decision asks for, whatever the number of trials.
    pub(super) fn reached(&self, facts: &Facts) -> Vec<Reach> {
        let mut all = replaced(facts);
        let counted =
            self.record.called.iter().filter(|(function, _)| self.record.is_relevant(facts, function));
        for (function, sides) in counted {
            if !all.keys().any(|path| is_of(path, function)) {
                // Which functions are listed by themselves is up to the order of the trials.
                return self.reach(facts);
            }
            for reach in matching(&mut all, function) {
                for ([seen, above], rate) in
                    sides.iter().zip([&mut reach.before_per_s, &mut reach.after_per_s])
                {
                    if *seen > 0 {
                        raise(rate, if *above > 0 { 1.0 } else { 0.0 });
                    }
                }
            }
        }
        all.into_values().collect()
    }
}

/// Rates of a function and of its new code in one patch, over several trials.
#[derive(Default)]
struct Rates {
    function: f64,
    new_code: f64,
    most: f64,
    trials: u32,
}

impl Rates {
    fn add(&mut self, function: f64, new_code: f64) {
        self.function += function;
        self.new_code += new_code;
        self.most = self.most.max(new_code);
        self.trials += 1;
    }

    fn of(self, patch: &str) -> NewCode {
        // New code may be called from elsewhere in the patch as well.
        let share = (self.function > 0.0).then(|| (self.new_code / self.function).min(1.0));
        NewCode { patch: patch.to_owned(), per_s: self.most, share, trials: self.trials }
    }
}

fn per_s(calls: u64, window_ms: u64) -> f64 {
    calls as f64 * 1000.0 / window_ms.max(1) as f64
}

fn replaced(facts: &Facts) -> BTreeMap<String, Reach> {
    let of = |(path, inside): (&String, &u32)| (path.clone(), Reach { inside: *inside, ..of(path) });
    facts.functions.iter().map(of).collect()
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
        new_code: Vec::new(),
    }
}

fn raise(place: &mut Option<f64>, rate: f64) {
    *place = Some(place.unwrap_or(0.0).max(rate));
}

/// The functions that a count is of: the one of that path, or, where a count names no object, those of that name. One that no patch is
/// known to replace is listed by itself.
fn matching<'a>(all: &'a mut BTreeMap<String, Reach>, function: &str) -> Vec<&'a mut Reach> {
    if !all.keys().any(|path| is_of(path, function)) {
        all.insert(function.to_owned(), of(function));
    }
    all.iter_mut().filter(|(path, _)| is_of(path, function)).map(|(_, reach)| reach).collect()
}

/// Whether a count of `function` is one of the function at `path`.
fn is_of(path: &str, function: &str) -> bool {
    path == function || !function.contains('/') && function_name(path) == function
}

impl TrialRecord {
    /// How long the patch was in force, in seconds of the host.
    fn seconds_in_force(&self) -> f64 {
        let (Some(from), Some(to)) = self.in_force else { return 0.0 };
        to.saturating_sub(from) as f64 / 1000.0
    }
}
