//! Measurements of trials, kept until the soak is over: then what changed is worked out, once for all who judge by it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::compare::change::{Basis, Change, Names, is_compared};
use crate::event::{Body, Event, Measured};
use crate::pipeline::Limits;
use crate::{Arm, Phase};

/// Measurements of the trials that run.
#[derive(Debug)]
pub(crate) struct Measures {
    limits: Limits,
    names: Names,
    baselines: HashMap<u32, Measured>,
}

impl Measures {
    /// With these limits, what changes by less in one trial is no difference from others either.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: *limits, names: Names::default(), baselines: HashMap::new() }
    }

    /// What changed in a trial, if the event tells how its soak went. `arm` knows the trials of the plan.
    pub(crate) fn take(
        &mut self,
        event: &Event,
        arm: impl FnOnce(u32) -> Option<Arm>,
    ) -> Option<Arc<Change>> {
        let scope = event.scope;
        match (&event.body, scope) {
            (Body::Measured(measured), Some(scope))
                if matches!(scope.phase, Phase::Baseline | Phase::Soak) =>
            {
                let arm = arm(scope.trial).filter(|arm| is_compared(*arm))?;
                if scope.phase == Phase::Baseline {
                    self.baselines.insert(scope.trial, measured.clone());
                    return None;
                }
                let before = self.baselines.get(&scope.trial)?;
                let (limits, names) = (&self.limits, &mut self.names);
                let basis = &mut Basis { limits, names, control: arm == Arm::Control };
                Some(Arc::new(Change::new(before, measured, basis)))
            }
            (Body::TrialEnded { .. }, Some(scope)) => {
                self.baselines.remove(&scope.trial);
                None
            }
            (Body::RunResumed { void, .. }, _) => {
                void.iter().for_each(|trial| drop(self.baselines.remove(trial)));
                None
            }
            _ => None,
        }
    }
}
