//! Whether calls of a patched function arrive at the code that takes its place. The kernel may list a patch as enabled, and something else on
//! the same entry keeps its code from ever running.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reach::plain_function;
use super::record::Calls;
use crate::Arm;
use crate::verdict::{Hits, Why};

/// Calls of a function in one trial after which it is no chance that none arrived at the new code. A few may: neither do all counters start
/// in the same moment, nor are calls under way when they stop counted twice.
const ENOUGH: u64 = 20;

/// What patched trials counted of functions and of the new code beside them.
#[derive(Debug, Default)]
pub(super) struct NewCodeRecord(BTreeMap<(Arc<str>, Arc<str>, Arm), Sum>);

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    trials: u32,
    /// Trials in which the function was called often enough, and the new code not once.
    without: u32,
    /// Calls, wide enough to be taken out again.
    function: u128,
    new_code: u128,
}

impl NewCodeRecord {
    /// Take in what a trial counted of one function.
    pub(super) fn add(&mut self, arm: Arm, calls: &Calls) {
        let Some(new) = &calls.new_code else { return };
        let sum = self.0.entry((calls.function.clone(), new.patch.clone(), arm)).or_default();
        sum.trials += 1;
        sum.without += u32::from(is_without(calls));
        sum.function += u128::from(calls.calls);
        sum.new_code += u128::from(new.calls);
    }

    /// Take it out again, because more was counted, or because the trial is done again.
    pub(super) fn remove(&mut self, arm: Arm, calls: &Calls) {
        let Some(new) = &calls.new_code else { return };
        let Some(sum) = self.0.get_mut(&(calls.function.clone(), new.patch.clone(), arm)) else { return };
        sum.trials -= 1;
        sum.without -= u32::from(is_without(calls));
        sum.function -= u128::from(calls.calls);
        sum.new_code -= u128::from(new.calls);
    }

    /// Functions that are called while the new code does not run, in any one trial or in an arm as a whole.
    pub(super) fn bypassed(&self) -> impl Iterator<Item = Why> {
        let mut all: BTreeMap<(&str, &str), Vec<(Arm, Sum)>> = BTreeMap::new();
        for ((function, patch, arm), sum) in &self.0 {
            all.entry((function, patch)).or_default().push((*arm, *sum));
        }
        all.into_iter().filter(|(_, arms)| arms.iter().any(|(_, sum)| sum.hit() > 0)).map(
            |((function, patch), arms)| Why::NewCodeBypassed {
                function: plain_function(function).to_owned(),
                patch: patch.to_owned(),
                calls: arms.iter().fold(0, |calls: u64, (_, sum)| calls.saturating_add(sum.calls())),
                arms: arms.into_iter().map(|(arm, s)| (arm, Hits { hit: s.hit(), of: s.trials })).collect(),
            },
        )
    }
}

impl Sum {
    /// Trials in which the new code did not run though the function was called.
    fn hit(self) -> u32 {
        if self.function > 0 && self.new_code == 0 { self.trials } else { self.without }
    }

    fn calls(self) -> u64 {
        u64::try_from(self.function).unwrap_or(u64::MAX)
    }
}

fn is_without(calls: &Calls) -> bool {
    calls.calls >= ENOUGH && calls.new_code.as_ref().is_some_and(|new| new.calls == 0)
}
