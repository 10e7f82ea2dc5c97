//! A run that was cut off, and goes on: what its journal says of trials that had not ended.

use std::collections::{BTreeMap, BTreeSet};

use klpfarm_model::event::live;
use klpfarm_model::{Body, Event, Scope, TrialEnd};

/// Trials as the journal leaves them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Past {
    /// Trials that count, or that will when they are closed.
    pub(crate) started: BTreeSet<u32>,
    /// Had found something before they were cut off: that is not thrown away, so they are closed where they stood.
    pub(crate) found: Vec<Scope>,
    /// Say nothing yet, and are done again.
    pub(crate) void: Vec<u32>,
}

/// Trials that a run which goes on behind these events does again.
pub fn unfinished(events: &[Event]) -> Vec<u32> {
    Past::read(events).void
}

#[derive(Default)]
struct Known {
    last: Option<Scope>,
    found: bool,
    end: Option<TrialEnd>,
}

impl Past {
    pub(crate) fn read(events: &[Event]) -> Self {
        let mut trials: BTreeMap<u32, Known> = BTreeMap::new();
        for event in live(events) {
            let Some(scope) = event.scope else { continue };
            let known = trials.entry(scope.trial).or_default();
            known.last = Some(scope);
            match &event.body {
                Body::Finding(_) => known.found = true,
                Body::TrialEnded { end } => known.end = Some(end.clone()),
                _ => {}
            }
        }
        let mut past = Self::default();
        for (number, known) in trials {
            match (known.end, known.found, known.last) {
                (None, true, Some(scope)) => past.found.push(scope),
                (None | Some(TrialEnd::Interrupted | TrialEnd::OutOfBudget), false, _) => {
                    past.void.push(number);
                    continue;
                }
                _ => {}
            }
            past.started.insert(number);
        }
        past
    }
}
