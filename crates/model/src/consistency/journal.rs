//! The journal against the plan and against itself, event by event.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{checkpoints, in_place};
use crate::event::{AGED, Body, Event, Scope, TrialEnd};
use crate::{Arm, Finding, Phase, Plan, Trial};

/// What is wrong with the journal, in its order.
pub(super) fn complaints(plan: &Plan, events: &[Event]) -> Vec<String> {
    let starts = events.iter().any(|e| matches!(e.body, Body::TrialStarted));
    let mut reading = Reading {
        plan,
        starts,
        begun: false,
        ended: None,
        trials: BTreeMap::new(),
        kept: BTreeSet::new(),
        found: Vec::new(),
        places: HashMap::new(),
    };
    for (n, event) in events.iter().enumerate() {
        if n == 0 && !matches!(event.body, Body::RunStarted { .. }) {
            let text =
                format!("the first event is `{}`, and a journal begins with `run-started`", word(event));
            reading.say(event, "first", text);
        }
        reading.take(event);
    }
    reading.found.into_iter().map(Complaint::text).collect()
}

/// What is wrong, said once for all events of a trial that are wrong in the same way.
struct Complaint {
    seq: u64,
    text: String,
    more: u32,
}

impl Complaint {
    fn text(self) -> String {
        let more = match self.more {
            0 => String::new(),
            1 => "; the same in 1 more event".to_owned(),
            n => format!("; the same in {n} more events"),
        };
        format!("journal event {}: {}{more}", self.seq, self.text)
    }
}

/// How far a trial is.
#[derive(Default)]
struct State {
    started: bool,
    phase: Option<Phase>,
    /// It has come to the point where its first patch is applied.
    applying: bool,
    soaked: bool,
    /// Patches that were applied.
    applied: BTreeSet<String>,
    found: bool,
    end: Option<(u64, TrialEnd)>,
}

struct Reading<'a> {
    plan: &'a Plan,
    /// The journal has the starts of trials, as that of every run has.
    starts: bool,
    begun: bool,
    /// The event with which the run ended.
    ended: Option<u64>,
    trials: BTreeMap<u32, State>,
    /// Checkpoints that were reported.
    kept: BTreeSet<String>,
    found: Vec<Complaint>,
    /// Where in `found` a trial's complaint of a kind stands.
    places: HashMap<(&'static str, u32), usize>,
}

impl Reading<'_> {
    fn say(&mut self, event: &Event, kind: &'static str, text: impl Into<String>) {
        let trial = event.scope.map(|s| s.trial);
        let place = trial.map(|trial| *self.places.entry((kind, trial)).or_insert(self.found.len()));
        match place.and_then(|place| self.found.get_mut(place)) {
            Some(same) => same.more += 1,
            None => self.found.push(Complaint { seq: event.seq, text: text.into(), more: 0 }),
        }
    }

    fn take(&mut self, event: &Event) {
        if let Some(at) = self.ended
            && !matches!(event.body, Body::RunResumed { .. })
        {
            let text =
                format!("`{}` comes after the run's end (event {at}) and no `run-resumed`", word(event));
            self.say(event, "after-run", text);
        }
        match (&event.body, event.scope) {
            (Body::Note { .. }, None) => {}
            (body, None) if is_of_run(body) => self.of_run(event),
            (body, Some(_)) if is_of_run(body) => {
                self.say(event, "scope", format!("`{}` is of the whole run, and names a trial", word(event)));
                self.of_run(event);
            }
            (_, None) => self.say(event, "scope", format!("`{}` names no trial", word(event))),
            (_, Some(scope)) => self.of_trial(event, scope),
        }
    }

    fn of_run(&mut self, event: &Event) {
        match &event.body {
            Body::RunStarted { plan, accel, .. } => {
                if std::mem::replace(&mut self.begun, true) {
                    self.say(event, "begin", "the run begins a second time");
                }
                let hash = self.plan.hash();
                if *plan != hash {
                    let own = env!("CARGO_PKG_VERSION");
                    let versions = if self.plan.farm == own {
                        String::new()
                    } else {
                        format!(
                            " (or klpfarm {own} reads it differently from {}, which made it)",
                            self.plan.farm
                        )
                    };
                    self.say(event, "plan", format!("the run began with plan {plan}, and plan.json is {hash}: it was changed since{versions}"));
                }
                if *accel != self.plan.accel {
                    self.say(
                        event,
                        "accel",
                        format!("the run began under {accel}, and the plan is for {}", self.plan.accel),
                    );
                }
            }
            Body::RunResumed { void, .. } => self.resumed(event, void),
            Body::Checkpoint(facts) => {
                if !checkpoints(self.plan).any(|id| id == facts.id) {
                    let ids: BTreeSet<&str> = checkpoints(self.plan).collect();
                    let ids = if ids.is_empty() { "none".to_owned() } else { list(ids) };
                    self.say(
                        event,
                        "checkpoint",
                        format!("checkpoint {} is none of the plan's: {ids}", facts.id),
                    );
                }
                if !self.kept.insert(facts.id.clone()) {
                    self.say(
                        event,
                        "checkpoint",
                        format!("checkpoint {} is reported a second time", facts.id),
                    );
                }
            }
            Body::RunEnded { .. } => {
                self.ended = Some(event.seq);
                for number in self.open() {
                    self.say(event, "open", format!("the run ends, and trial {number} has not ended"));
                }
            }
            _ => {}
        }
    }

    /// Trials that have begun and not ended.
    fn open(&self) -> Vec<u32> {
        self.trials.iter().filter(|(_, state)| state.end.is_none()).map(|(number, _)| *number).collect()
    }

    /// Trials that had not ended are done again, if they had found nothing; the others were closed before.
    fn resumed(&mut self, event: &Event, void: &[u32]) {
        self.ended = None;
        let mut said = Vec::new();
        for number in void {
            let why = match self.trials.get(number) {
                None => Some("which had not begun".to_owned()),
                Some(State { found: true, .. }) => Some(
                    "which had found something: such a trial is not done again, and what it found counts"
                        .to_owned(),
                ),
                Some(State { end: Some((at, end)), .. })
                    if !matches!(end, TrialEnd::Interrupted | TrialEnd::OutOfBudget) =>
                {
                    Some(format!("which had ended as {} (event {at})", how(end)))
                }
                Some(_) => None,
            };
            said.extend(why.map(|why| format!("`void` names trial {number}, {why}")));
            self.trials.remove(number);
        }
        let open = self.open().into_iter();
        said.extend(open.map(|number| format!("`void` leaves out trial {number}, which had not ended")));
        said.into_iter().for_each(|text| self.say(event, "void", text));
    }

    fn of_trial(&mut self, event: &Event, scope: Scope) {
        let number = scope.trial;
        let plain = in_place(self.plan, number).filter(|_| !self.plan.mode.is_rotation());
        let Some(trial) = plain.map(Cow::Borrowed).or_else(|| self.plan.trial(number)) else {
            let text = match number {
                AGED => {
                    "is of trial 0, the machine that is aged, of which a journal has no events".to_owned()
                }
                n => format!("is of trial {n}, which the plan does not have"),
            };
            return self.say(event, "number", format!("`{}` {text}", word(event)));
        };
        if trial.arm != scope.arm {
            let text =
                format!("says that trial {number} is {}, and in the plan it is {}", scope.arm, trial.arm);
            self.say(event, "arm", text);
        }
        let state = self.trials.entry(number).or_default();
        let (started, end) = (state.started, state.end.clone());
        let again = matches!(event.body, Body::TrialStarted);
        match (&event.body, end) {
            (Body::TrialStarted, Some((at, _))) => {
                let text = format!("trial {number} starts a second time after its end (event {at})");
                self.say(event, "start", text);
            }
            (Body::TrialStarted, None) if started => {
                self.say(event, "start", format!("trial {number} starts a second time"));
            }
            (Body::TrialEnded { end }, Some((at, before))) => {
                let text = format!(
                    "trial {number} ends as {}, and had ended as {} (event {at})",
                    how(end),
                    how(&before)
                );
                self.say(event, "end", text);
            }
            (_, Some((at, _))) => {
                let text = format!("`{}` comes after the end of trial {number} (event {at})", word(event));
                self.say(event, "after-trial", text);
            }
            _ => {}
        }
        if self.starts && !started && !again {
            let text = format!("`{}` comes before the start of trial {number}", word(event));
            self.say(event, "before-start", text);
        }
        self.follow(event, scope, &trial);
    }

    /// What the trial does, step by step.
    fn follow(&mut self, event: &Event, scope: Scope, trial: &Trial) {
        let number = trial.number;
        let state = self.trials.entry(number).or_default();
        let mut said: Vec<(&'static str, String)> = Vec::new();
        if let Some(now) = state.phase
            && !fits(event, scope, now)
        {
            said.push((
                "phase",
                format!(
                    "`{}` is of phase {}, and trial {number} is in phase {now}",
                    word(event),
                    scope.phase
                ),
            ));
        }
        match &event.body {
            Body::TrialStarted => {
                state.started = true;
                let own = match self.plan.mode.turns().get(trial.turn) {
                    Some(turn) => turn.checkpoint.as_ref(),
                    None => self.plan.checkpoint.as_ref(),
                };
                if let Some(id) = own.filter(|id| !self.kept.contains(*id)) {
                    said.push((
                        "fork",
                        format!("trial {number} is a fork of checkpoint {id}, which no event before reports"),
                    ));
                }
            }
            Body::PhaseStarted => {
                if state.applying && before_applying(scope.phase) {
                    said.push((
                        "back",
                        format!("trial {number} enters phase {} after applying", scope.phase),
                    ));
                }
                let in_force = matches!(scope.phase, Phase::Soak | Phase::Reach | Phase::Revert);
                if in_force && trial.arm.patched() && state.applied.is_empty() {
                    said.push((
                        "unapplied",
                        format!("trial {number} enters phase {}, and no patch was applied", scope.phase),
                    ));
                }
                state.applying |= scope.phase == Phase::Apply;
                state.soaked |= scope.phase == Phase::Soak;
                state.phase = Some(scope.phase);
            }
            Body::Applied { patch, .. } => {
                said.extend(foreign(self.plan, trial, "applies", patch));
                state.applied.insert(patch.clone());
            }
            Body::Reverted { patch, .. } => {
                let foreign = foreign(self.plan, trial, "takes back", patch);
                if foreign.is_none() && !state.applied.contains(patch) {
                    said.push((
                        "unapplied",
                        format!("trial {number} takes back {patch}, and it was not applied"),
                    ));
                }
                said.extend(foreign);
            }
            Body::TransitionDone { .. } if state.applied.is_empty() => {
                said.push((
                    "unapplied",
                    format!("trial {number} has changed over to a patch, and none was applied"),
                ));
            }
            Body::Finding(_) => state.found = true,
            Body::TrialEnded { end } => {
                if state.phase.is_some() {
                    said.extend(ends_too_early(self.plan, trial, state, end).map(|text| ("early", text)));
                }
                // Of several the first stands, so that each further one is wrong.
                state.end.get_or_insert((event.seq, end.clone()));
            }
            _ => {}
        }
        said.into_iter().for_each(|(kind, text)| self.say(event, kind, text));
    }
}

/// Whether the event may be of this phase while the trial is in phase `now`. The machine's end has notes of its own. What happened
/// before applying may be read, and found, later.
fn fits(event: &Event, scope: Scope, now: Phase) -> bool {
    let early = |f: &Finding| before_applying(scope.phase) && f.after_apply_ms.is_none();
    match &event.body {
        Body::PhaseStarted | Body::TrialStarted => true,
        _ if scope.phase == now => true,
        Body::Note { .. } if before_applying(scope.phase) => true,
        Body::Note { .. } | Body::CpuShare { .. } | Body::TrialEnded { .. } => scope.phase == Phase::End,
        Body::Finding(finding) => early(finding),
        _ => false,
    }
}

/// Whether the trial ended in a way to which it had not come.
fn ends_too_early(plan: &Plan, trial: &Trial, state: &State, end: &TrialEnd) -> Option<String> {
    let ends = |why: String| format!("trial {} ends as {}, and {why}", trial.number, how(end));
    match end {
        TrialEnd::Completed if !state.soaked => Some(ends("was never in phase soak".to_owned())),
        TrialEnd::Completed => {
            let missing = plan.names(trial).find(|name| !state.applied.contains(*name));
            missing.map(|name| ends(format!("never applied {name}")))
        }
        TrialEnd::Stopped => (!state.found).then(|| ends("found nothing".to_owned())),
        _ => None,
    }
}

fn before_applying(phase: Phase) -> bool {
    matches!(phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::Baseline)
}

/// A patch that the trial does not have.
fn foreign(plan: &Plan, trial: &Trial, does: &str, patch: &str) -> Option<(&'static str, String)> {
    let names: Vec<&str> = plan.names(trial).collect();
    if names.contains(&patch) {
        return None;
    }
    let own = if trial.arm == Arm::Control {
        "a control trial has no patch".to_owned()
    } else {
        format!("its own are {}", list(names))
    };
    Some(("patch", format!("trial {} {does} {patch}, and {own}", trial.number)))
}

/// Whether such events are of the whole run; a `note` may be of either.
fn is_of_run(body: &Body) -> bool {
    matches!(
        body,
        Body::RunStarted { .. } | Body::RunResumed { .. } | Body::Checkpoint(_) | Body::RunEnded { .. }
    )
}

/// The event's name in the journal.
fn word(event: &Event) -> String {
    let json = serde_json::to_value(&event.body).unwrap_or_default();
    json["event"].as_str().unwrap_or_default().to_owned()
}

/// How a trial ended, as the journal has it.
fn how(end: &TrialEnd) -> &'static str {
    match end {
        TrialEnd::Completed => "completed",
        TrialEnd::Stopped => "stopped",
        TrialEnd::FarmError { .. } => "farm-error",
        TrialEnd::Interrupted => "interrupted",
        TrialEnd::Unneeded => "unneeded",
        TrialEnd::OutOfBudget => "out-of-budget",
        TrialEnd::Void { .. } => "void",
    }
}

fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}
