//! What a trial does, step by step, as a list: the arms differ in it and in nothing else. Pure.

use std::time::Duration;

use klpfarm_model::{Arm, Phase, Plan, Trial};

/// How the machine of a trial comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Booted.
    Boot,
    /// Forked from a checkpoint.
    Fork,
    /// Forked in files of its own, to be aged so much more and checkpointed again.
    Older(Duration),
}

/// One thing a trial does; the next begins when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Give the machine SSH keys of its own.
    Rekey,
    /// Learn how old and worn the machine is.
    Vitals,
    /// Start what makes the machine old.
    StartAging,
    /// Start the workloads.
    StartLoad,
    StopLoad,
    /// Load the modules that the patches need.
    Modules,
    /// Send the patch file, by its position in the plan.
    Upload(usize),
    /// Let the load run until the machine is so old.
    AgeUntil(Duration),
    /// Let the load run in this phase.
    Run(Phase, Duration),
    /// Apply a patch and await the end of its transition.
    Apply(usize),
    /// Take a patch back.
    Revert(usize),
    /// Count the calls of the patched functions.
    Count,
}

/// All that a trial does after its probe has answered.
pub(super) fn script(plan: &Plan, trial: &Trial, origin: Origin) -> Vec<Op> {
    let phases = plan.pipeline.phases;
    let mut ops = Vec::new();
    if trial.number == 0 {
        // First, so that all later logins show that they work.
        ops.push(Op::Rekey);
    }
    match origin {
        Origin::Boot => {
            let uptime = plan.pipeline.aging.uptime;
            // The wear comes first: beside the load it would take many times as long.
            let wear = Op::Run(Phase::Age, (uptime / 4).min(Duration::from_secs(30)));
            ops.extend([Op::Vitals, Op::StartAging, wear, Op::StartLoad, Op::AgeUntil(uptime), Op::Vitals]);
        }
        Origin::Older(more) => ops.extend([Op::Run(Phase::Age, more), Op::Vitals]),
        Origin::Fork => {}
    }
    if trial.number == 0 {
        return ops;
    }
    // In all arms alike, so that a module that is there is no difference between them.
    if plan.patches.iter().any(|p| !(p.depends.is_empty() && p.objects.is_empty())) {
        ops.push(Op::Modules);
    }
    ops.extend(trial.patches.iter().map(|p| Op::Upload(*p)));
    ops.push(Op::Run(Phase::Settle, phases.settle));
    ops.push(Op::Run(Phase::Baseline, phases.baseline + trial.jitter));
    // Counting costs seconds: where the patch is in force, two trials of a kind are enough.
    let alike = |t: &&Trial| (t.arm, &t.patches) == (trial.arm, &trial.patches) && t.number < trial.number;
    let counts = trial.arm == Arm::Control || plan.trials.iter().filter(alike).count() < 2;
    let soak = Op::Run(Phase::Soak, plan.soak());
    let pause = Op::Run(Phase::Soak, phases.revert);
    let after = Op::Run(Phase::Revert, phases.revert);
    match trial.arm {
        Arm::Control => ops.extend([soak, Op::Count]),
        Arm::Loaded | Arm::Stack => {
            let (last, first) = trial.patches.split_last().unwrap_or((&0, &[]));
            ops.extend(first.iter().flat_map(|p| [Op::Apply(*p), pause]));
            ops.extend([Op::Apply(*last), soak, Op::Count]);
        }
        Arm::Quiescent => {
            ops.push(Op::StopLoad);
            ops.extend(trial.patches.iter().map(|p| Op::Apply(*p)));
            ops.extend([Op::StartLoad, soak, Op::Count]);
        }
        Arm::Reapply => {
            for _ in 1..phases.cycles {
                ops.extend(trial.patches.iter().flat_map(|p| [Op::Apply(*p), pause, Op::Revert(*p), after]));
            }
            ops.extend(trial.patches.iter().map(|p| Op::Apply(*p)));
            ops.extend([soak, Op::Count]);
        }
    }
    ops.retain(|op| counts || *op != Op::Count);
    if !phases.revert.is_zero() && !trial.patches.is_empty() {
        ops.extend(trial.patches.iter().rev().map(|p| Op::Revert(*p)));
        ops.push(after);
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn ops(arm: Arm, patches: &[usize]) -> Vec<Op> {
        let plan = plan();
        let trial = Trial::new(1, arm, patches.to_vec(), 1);
        let fixed = plan.pipeline.phases.baseline + trial.jitter;
        let all = script(&plan, &trial, Origin::Fork);
        all.into_iter()
            .filter(|op| !matches!(op, Op::Upload(_)) && *op != Op::Run(Phase::Baseline, fixed))
            .collect()
    }

    #[test]
    fn a_stack_goes_up_and_comes_down() {
        let s = Duration::from_secs;
        let (pause, after) = (Op::Run(Phase::Soak, s(2)), Op::Run(Phase::Revert, s(2)));
        let soak = Op::Run(Phase::Soak, s(30));
        let settle = Op::Run(Phase::Settle, s(2));
        assert_eq!(
            ops(Arm::Stack, &[0, 1]),
            [settle, Op::Apply(0), pause, Op::Apply(1), soak, Op::Count, Op::Revert(1), Op::Revert(0), after]
        );
        assert_eq!(ops(Arm::Control, &[]), [settle, soak, Op::Count]);
    }

    #[test]
    fn reapplying_goes_round() {
        let all = ops(Arm::Reapply, &[0]);
        let count = |op: Op| all.iter().filter(|o| **o == op).count();
        assert_eq!((count(Op::Apply(0)), count(Op::Revert(0)), count(Op::Count)), (3, 3, 1));
    }

    #[test]
    fn trial_0_only_grows_old() {
        let plan = plan();
        let trial = Trial::new(0, Arm::Control, Vec::new(), 1);
        let more = Duration::from_secs(9);
        let older = [Op::Rekey, Op::Run(Phase::Age, more), Op::Vitals];
        assert_eq!(script(&plan, &trial, Origin::Older(more)), older);
        assert_eq!(script(&plan, &trial, Origin::Boot).len(), 7);
    }
}
