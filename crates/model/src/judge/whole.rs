//! What a judge says of a whole journal, for tests.

use std::collections::BTreeSet;

use super::{Fold, Judge, Run};
use crate::{Event, Plan, Trial};

pub(crate) fn is_decided(plan: &Plan, events: &[Event]) -> bool {
    let mut judge = Judge::new(plan);
    events.iter().for_each(|event| judge.push(event));
    judge.is_decided()
}

/// The next trial, if those in `started` have been.
pub(crate) fn next_trial(plan: &Plan, events: &[Event], started: &BTreeSet<u32>) -> Option<Trial> {
    let mut judge = Judge::new(plan);
    events.iter().for_each(|event| judge.push(event));
    judge.only_started(started);
    judge.next_trial()
}

impl Judge {
    /// These trials have been started and no others, whatever the journal says: a test may have made it up in another order.
    fn only_started(&mut self, started: &BTreeSet<u32>) {
        match &mut self.run {
            Run::Single(fold) => fold.only_started(started),
            Run::Independent(patches) => patches.each(|fold| fold.only_started(started)),
            Run::Rotation(_) => started.iter().for_each(|trial| self.start(*trial)),
        }
    }
}

impl Fold {
    fn only_started(&mut self, started: &BTreeSet<u32>) {
        self.start_over();
        started.iter().for_each(|trial| self.start(*trial));
    }
}
