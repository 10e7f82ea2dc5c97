//! How long a trial can last at most, if all its steps take as long as they may.

use std::time::Duration;

use klpfarm_model::{Plan, Trial};

use super::counting::{PATIENCE, ROUNDS, SECONDS};
use super::script::{Op, Purpose, script};

/// What a step takes at most that waits for the probe or for the workloads.
const STEP: Duration = Duration::from_secs(60);

/// How long a trial lasts, in the machine's own time, if each of its steps takes as long as it may, and something is found in the end:
/// several times what a trial without a finding takes.
pub(crate) fn longest(plan: &Plan, trial: &Trial, purpose: Purpose) -> Duration {
    let limits = &plan.pipeline.limits;
    let boot = if purpose.boots() { limits.boot } else { Duration::ZERO };
    let evidence = Duration::from_secs(plan.pipeline.evidence.seconds.into());
    // What hangs when a phase ends is watched until it is a finding.
    let patience = limits.stall.max(limits.blocked).max(limits.hung_task);
    let switch = limits.apply.max(limits.transition) * 5;
    let steps = script(plan, trial, purpose).into_iter().map(|op| match op {
        Op::Run(_, length) | Op::Live(length) => length + plan.scaled(patience),
        Op::AgeUntil(uptime) => uptime * 2,
        Op::Apply(_) => plan.scaled(switch) * 2,
        Op::Revert(_) => plan.scaled(switch) * 3,
        Op::Count => plan.scaled(Duration::from_secs(30 + SECONDS) * ROUNDS + Duration::from_secs(PATIENCE)),
        _ => plan.scaled(STEP),
    });
    plan.scaled(boot + STEP * 5 + evidence + patience * 2) + steps.sum::<Duration>()
}

#[cfg(test)]
mod tests {
    use klpfarm_model::{Arm, Start};

    use super::super::tests::plan;
    use super::*;

    #[test]
    fn it_is_well_above_what_a_trial_takes_and_no_more_than_hours() {
        let plan = plan();
        let usual = plan.pipeline.phases.settle + plan.pipeline.phases.baseline + plan.soak();
        for arm in [Arm::Control, Arm::Loaded, Arm::Quiescent, Arm::Reapply] {
            let trial = plan.trials.iter().find(|t| t.arm == arm).unwrap();
            let most = longest(&plan, trial, Purpose::Trial(Start::Fork));
            assert!(most > usual * 3 && most < Duration::from_secs(3 * 3600), "{arm}: {most:?}");
            assert!(longest(&plan, trial, Purpose::Trial(Start::Boot)) > most + plan.pipeline.limits.boot);
        }
        let aging = Trial::new(0, Arm::Control, Vec::new(), 1);
        let night = Duration::from_secs(8 * 3600);
        assert!(longest(&plan, &aging, Purpose::Older(night)) > night);
    }
}
