//! Counting the calls of the patched functions: which of them in this trial, how often again, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use klpfarm_model::{Arm, Body, Detector, Phase, Plan, Trial};

use super::{Dispatcher, Step};
use crate::calls::{self, Answer, Function, GROUP};

/// How long calls are counted at a time.
pub(super) const SECONDS: u64 = 2;

/// Seconds for which functions that were not called at all are counted once more: in the control arm, where it is to be known whether the
/// load calls them, and elsewhere. One long count and not many short ones, because setting one up takes seconds in a starved guest.
pub(super) const AGAIN_CONTROL: u64 = 22;
pub(super) const AGAIN: u64 = 4;

/// Groups that a control trial counts at most.
pub(super) const ROUNDS: u32 = 12;

/// Groups of functions that a trial with patches counts, at most. Trials of a kind take turns, so that none is left out.
const GROUPS: usize = 4;

/// Seconds for which the end of a count is waited for when it has taken too long.
pub(super) const PATIENCE: u64 = 120;

/// The counting of one trial.
#[derive(Debug, Default)]
pub(super) struct Counting {
    functions: Vec<Function>,
    /// Keys of those that are counted now.
    now: BTreeSet<String>,
    /// Groups that are still to be counted for the first time.
    groups: Vec<Vec<Function>>,
    /// Seconds of the count that may follow when these are through.
    again: Option<u64>,
    /// Seconds of the count that is going on.
    seconds: u64,
    /// Calls, and milliseconds, by key.
    calls: BTreeMap<String, (u64, u64)>,
    /// Why they can't be counted, by key.
    unable: BTreeMap<String, String>,
    /// It takes too long: its end is waited for, and what has not been counted by then is not counted.
    given_up: bool,
}

impl Counting {
    fn new(keys: &BTreeSet<String>, trial: &Trial, plan: &Plan) -> Self {
        let (functions, unable) = calls::countable(keys);
        let mut groups = grouped(functions);
        let control = trial.arm == Arm::Control;
        let most = if control { ROUNDS as usize } else { GROUPS }.min(groups.len());
        let alike =
            |t: &&Trial| (t.arm, &t.patches) == (trial.arm, &trial.patches) && t.number < trial.number;
        let turn = plan.trials.iter().filter(alike).count();
        if !groups.is_empty() {
            let first = turn * most % groups.len();
            groups.rotate_left(first);
        }
        groups.truncate(most);
        // Patches that share control trials bring many functions, of which some are rare for sure, and many such trials.
        let again = match control {
            true if plan.mode.is_independent() => None,
            true => Some(AGAIN_CONTROL),
            false => Some(AGAIN),
        };
        groups.reverse();
        Self {
            functions: groups.iter().flatten().cloned().collect(),
            groups,
            again,
            unable,
            ..Self::default()
        }
    }

    /// What is to be counted next, if anything.
    fn next(&mut self) -> Option<Vec<Function>> {
        self.seconds = SECONDS;
        let group = self.groups.pop().or_else(|| {
            self.seconds = self.again.take()?;
            let never = |f: &&Function| self.calls.get(&f.key).is_some_and(|(calls, _)| *calls == 0);
            let again = self.functions.iter().filter(never).cloned().collect();
            let mut groups = grouped(again);
            groups.truncate(1);
            groups.pop()
        })?;
        self.now = group.iter().map(|f| f.key.clone()).collect();
        Some(group)
    }

    fn take(&mut self, out: &str) {
        let mut answers = calls::read(out);
        let now = std::mem::take(&mut self.now);
        let hidden = |key: &String| matches!(answers.get(key), Some(Answer::Hidden));
        let hidden: BTreeSet<String> = now.iter().filter(|key| hidden(key)).cloned().collect();
        // Without those that were seen, so that each time there are fewer.
        if !hidden.is_empty() && hidden.len() < now.len() {
            self.groups.push(self.functions.iter().filter(|f| hidden.contains(&f.key)).cloned().collect());
        }
        for key in now {
            match answers.remove(&key) {
                Some(Answer::Calls(n)) => {
                    let (calls, ms) = self.calls.entry(key).or_default();
                    *calls += n;
                    *ms += self.seconds * 1000;
                }
                Some(Answer::Hidden) => {
                    self.unable.insert(key, "other functions are called too often beside it".to_owned());
                }
                Some(Answer::Unable(why)) => {
                    self.unable.insert(key, why);
                }
                None => {
                    self.unable.insert(key, calls::silence(out).to_owned());
                }
            }
        }
    }

    /// What is to be reported.
    fn result(&self) -> Vec<Body> {
        let reach = |(f, (calls, window_ms)): (&String, &(u64, u64))| Body::Reach {
            function: f.clone(),
            calls: *calls,
            window_ms: *window_ms,
        };
        // One that could be counted once could be counted.
        let unable = self.unable.iter().filter(|(key, _)| !self.calls.contains_key(*key));
        let blind = |(key, why): (&String, &String)| Body::Blind {
            detector: Detector::Reach,
            reason: format!("calls of {key} can't be counted: {why}"),
        };
        self.calls.iter().map(reach).chain(unable.map(blind)).collect()
    }
}

/// Groups of functions that can be told apart in one trace, which names no modules.
fn grouped(functions: Vec<Function>) -> Vec<Vec<Function>> {
    let mut groups: Vec<Vec<Function>> = Vec::new();
    for function in functions {
        let fits = |group: &&mut Vec<Function>| {
            group.len() < GROUP && group.iter().all(|f| calls::name(&f.key) != calls::name(&function.key))
        };
        match groups.iter_mut().rev().find(fits) {
            Some(group) => group.push(function),
            None => groups.push(vec![function]),
        }
    }
    groups
}

impl Dispatcher {
    /// Count calls, once the soak is judged: without the patch in the control arm, elsewhere with the patch in force. On 4.4.220 a function
    /// tracer counts as well with a patch on the same function (measured: 2665 calls before, 411 in force, 750 after enabling it again, no
    /// warning, no taint).
    pub(super) fn count(&mut self, now: Duration) {
        if self.functions.is_empty() {
            self.next_op(now);
            return;
        }
        self.counting = Counting::new(&self.functions, &self.trial, &self.plan);
        self.enter(Phase::Reach);
        self.step = Step::Count;
        self.count_next(now);
    }

    fn count_next(&mut self, now: Duration) {
        match self.counting.next() {
            Some(group) => {
                let seconds = self.counting.seconds;
                self.exec(now, &calls::count(&group, seconds), self.scaled(30 + seconds));
            }
            None => self.count_done(now),
        }
    }

    pub(super) fn counted(&mut self, now: Duration, out: &str) {
        self.counting.take(out);
        if self.counting.given_up { self.count_done(now) } else { self.count_next(now) }
    }

    /// As long as the tracer is being taken away it holds a lock that taking back a livepatch needs: going on would find a transition
    /// that does not end, and blame the patch.
    pub(super) fn count_late(&mut self, now: Duration) {
        if self.counting.given_up {
            self.farm_error("counting calls did not end, and the patch can't be taken back meanwhile".into());
            return;
        }
        self.emit(Body::Blind {
            detector: Detector::Reach,
            reason: "counting calls did not end in time".into(),
        });
        self.counting.given_up = true;
        self.deadline = now + self.scaled(PATIENCE);
    }

    fn count_done(&mut self, now: Duration) {
        for body in self.counting.result() {
            self.emit(body);
        }
        self.next_op(now);
    }
}
