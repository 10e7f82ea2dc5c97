//! Counting the calls of the patched functions and of their new code: which of them in this trial, how often again, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use klpfarm_model::event::NewCodeCalls;
use klpfarm_model::{Arm, Body, Detector, Phase, Plan, Replaced, Trial};

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

/// Where the new code of a function is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewCode {
    /// The patch: the last of those in force that replaces the function.
    patch: String,
    /// The function, or all of the patch's where its name is not known; `None` if its name can't be passed on.
    function: Option<Function>,
}

impl NewCode {
    /// The new code of the function that sysfs lists as `key`, in a patch whose file says this.
    pub(super) fn of(key: &str, patch: String, file: &[Replaced]) -> Self {
        let mut names = file.iter().filter(|r| r.is_listed_as(key)).map(|r| r.new_code.as_deref());
        let name = names.next().flatten().filter(|_| names.next().is_none());
        Self { function: Function::new_code(&patch, name), patch }
    }
}

/// The counting of one trial.
#[derive(Debug, Default)]
pub(super) struct Counting {
    functions: Vec<Function>,
    /// New code by the keys of the functions that it replaces; none in the control arm.
    new_code: BTreeMap<String, NewCode>,
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
    fn new(keys: &BTreeSet<String>, new_code: BTreeMap<String, NewCode>, trial: &Trial, plan: &Plan) -> Self {
        let (functions, unable) = calls::countable(keys);
        let mut groups = grouped(functions, &new_code);
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
        let mut functions: Vec<Function> = groups.iter().flatten().cloned().collect();
        functions.sort_by(|a, b| a.key.cmp(&b.key));
        functions.dedup();
        Self { functions, new_code, groups, again, unable, ..Self::default() }
    }

    /// What is to be counted next, if anything.
    fn next(&mut self) -> Option<Vec<Function>> {
        self.seconds = SECONDS;
        let group = self.groups.pop().or_else(|| {
            self.seconds = self.again.take()?;
            let is_zero = |f: &Function| self.calls.get(&f.key).is_some_and(|(calls, _)| *calls == 0);
            let never = |f: &&Function| is_zero(f) || self.new_function(&f.key).is_some_and(is_zero);
            let replaced = |f: &&Function| !f.is_new_code();
            let again = self.functions.iter().filter(replaced).filter(never).cloned().collect();
            let mut groups = grouped(again, &self.new_code);
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

    /// What is counted for the new code of a function.
    fn new_function(&self, key: &str) -> Option<&Function> {
        self.new_code.get(key)?.function.as_ref()
    }

    /// What is to be reported.
    fn result(&self) -> Vec<Body> {
        let replaced = |f: &&Function| !f.is_new_code();
        let counted = self.functions.iter().filter(replaced).filter_map(|f| {
            let (calls, window_ms) = *self.calls.get(&f.key)?;
            Some((f.key.clone(), calls, window_ms))
        });
        let counted: BTreeSet<_> = counted.collect();
        let mut bodies = Vec::new();
        let mut blind = |reason: String| Body::Blind { detector: Detector::Reach, reason };
        for (function, calls, window_ms) in counted {
            let new_code = self.new_code.get(&function).map(|new| self.calls_of(new)).transpose();
            let unknown = new_code
                .as_ref()
                .err()
                .map(|why| format!("calls of the new code of {function} can't be counted: {why}"));
            bodies.push(Body::Reach { function, calls, window_ms, new_code: new_code.ok().flatten() });
            bodies.extend(unknown.map(&mut blind));
        }
        // One that could be counted once could be counted.
        let replaced = |key: &String| !Function::is_key_of_new_code(key);
        let unable = self.unable.iter().filter(|(key, _)| replaced(key) && !self.calls.contains_key(*key));
        bodies.extend(unable.map(|(key, why)| blind(format!("calls of {key} can't be counted: {why}"))));
        bodies
    }

    /// Calls of new code, or why they are not known.
    fn calls_of(&self, new: &NewCode) -> Result<NewCodeCalls, String> {
        let function =
            new.function.as_ref().ok_or("its name holds characters that are not passed on to a shell")?;
        let unable = || self.unable.get(&function.key).map_or("it was not counted", String::as_str);
        let (calls, window_ms) = *self.calls.get(&function.key).ok_or_else(unable)?;
        // Some of a patch's functions were called: which, is not known. That none was is known of each.
        if function.is_all() && calls > 0 {
            return Err(format!("the file of {} does not tell its name", new.patch));
        }
        Ok(NewCodeCalls { patch: new.patch.clone(), calls, window_ms })
    }
}

/// Groups of functions that are counted at once, each with its new code.
fn grouped(functions: Vec<Function>, new_code: &BTreeMap<String, NewCode>) -> Vec<Vec<Function>> {
    let mut groups: Vec<Vec<Function>> = Vec::new();
    for function in functions {
        let new = new_code.get(&function.key).and_then(|new| new.function.clone());
        match groups.last_mut() {
            Some(group) if group.len() + 1 + usize::from(new.is_some()) <= GROUP => {
                group.push(function);
                // All functions of a patch are counted once for several.
                group.extend(new.filter(|new| !group.contains(new)));
            }
            _ => groups.push(std::iter::once(function).chain(new).collect()),
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
        let new_code = self.new_code();
        self.counting = Counting::new(&self.functions, new_code, &self.trial, &self.plan);
        self.enter(Phase::Reach);
        self.step = Step::Count;
        self.count_next(now);
    }

    /// The new code that runs by now: of a stack, that of the last patch in force that replaces a function.
    fn new_code(&self) -> BTreeMap<String, NewCode> {
        let mut all = BTreeMap::new();
        for patch in self.trial.patches.iter().filter(|p| self.in_force.contains(p)) {
            let file = self.replaced.get(patch).map(Vec::as_slice).unwrap_or_default();
            for key in self.listed_functions.get(patch).into_iter().flatten() {
                let name = self.plan.patches[*patch].name.clone();
                all.insert(key.clone(), NewCode::of(key, name, file));
            }
        }
        all
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
