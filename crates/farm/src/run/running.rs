//! The trials that run at a moment, and whether the host has room for another.

use std::collections::HashMap;

use klpfarm_model::{Body, Phase, Scope, TrialEnd};
use tokio::sync::watch;
use tokio::task::{Id, JoinError};

use crate::concurrency::{Concurrency, StartedAt};

/// The trials that run, and how many may.
pub(super) struct Running {
    concurrency: Concurrency,
    trials: HashMap<Id, One>,
}

/// A trial that runs.
struct One {
    /// Of its latest event.
    scope: Scope,
    started: StartedAt,
    /// The share of its planned CPU time that its machine got of late.
    recent: watch::Receiver<Option<f64>>,
    /// That it holds up further machines has been said.
    held: bool,
    ended: bool,
}

impl Running {
    pub(super) fn new(jobs: u32) -> Self {
        Self { concurrency: Concurrency::new(jobs), trials: HashMap::new() }
    }

    pub(super) fn has_room(&self) -> bool {
        self.trials.len() < self.concurrency.now() as usize
    }

    pub(super) fn started(&mut self, task: Id, scope: Scope, recent: watch::Receiver<Option<f64>>) {
        let started = self.concurrency.start();
        self.trials.insert(task, One { scope, started, recent, held: false, ended: false });
    }

    pub(super) fn gone(&mut self, task: Id) {
        self.trials.remove(&task);
    }

    /// A running machine gets so little CPU time that no further one is started beside it.
    pub(super) fn is_starving(&self) -> bool {
        self.trials.values().any(|one| one.why_hold().is_some())
    }

    /// What to say of that, once for each such machine.
    pub(super) fn hold(&mut self) -> Option<(Scope, String)> {
        let one = self.trials.values_mut().find(|one| !one.held && one.why_hold().is_some())?;
        one.held = true;
        Some((one.scope, one.why_hold()?))
    }

    /// What to say of the number of machines after this event.
    pub(super) fn heard(&mut self, scope: Scope, body: &Body) -> Option<String> {
        let one = self.trials.values_mut().find(|one| one.scope.trial == scope.trial)?;
        one.scope = scope;
        match body {
            Body::CpuShare { share } => self.concurrency.ended(one.started, *share),
            Body::TrialEnded { .. } => {
                one.ended = true;
                None
            }
            _ => None,
        }
    }

    /// The task of a trial panicked: its end, unless that has been reported. Its machine is gone with it.
    pub(super) fn crashed(&mut self, error: &JoinError) -> Option<(Scope, Body)> {
        let one = self.trials.remove(&error.id()).filter(|one| !one.ended)?;
        let message = format!("a task of the farm failed: {error}");
        let scope = Scope { phase: Phase::End, ..one.scope };
        Some((scope, Body::TrialEnded { end: TrialEnd::FarmError { message } }))
    }
}

impl One {
    fn why_hold(&self) -> Option<String> {
        (*self.recent.borrow()).filter(|_| !self.ended).and_then(Concurrency::hold)
    }
}
