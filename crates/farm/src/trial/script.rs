//! What a trial does, step by step, as a list: the arms differ in it and in nothing else. Pure.

use std::time::Duration;

use klpfarm_model::{Arm, Length, Phase, Plan, Start, Trial};
use klpfarm_vm::Origin;

/// What a machine is there for, and with it how it comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A trial of the plan.
    Trial(Start),
    /// To be booted, aged and checkpointed.
    Aging,
    /// To go on from a checkpoint in files of its own, to be aged so much more and checkpointed again.
    Older(Duration),
}

impl Purpose {
    /// A trial on a machine of this origin.
    pub(crate) fn trial(origin: &Origin) -> Self {
        Self::Trial(if origin.is_resumed() { Start::Fork } else { Start::Boot })
    }

    /// Whether the machine is booted; otherwise its probe and its load run from its first moment.
    pub(crate) fn boots(self) -> bool {
        matches!(self, Self::Trial(Start::Boot) | Self::Aging)
    }

    /// Whether the machine is aged for others, and tries nothing.
    pub(crate) fn is_aging(self) -> bool {
        matches!(self, Self::Aging | Self::Older(_))
    }
}

/// One thing a trial does; the next begins when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Give the machine SSH keys of its own.
    Rekey,
    /// Learn whether magic sysrq is answered.
    Sysrq,
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
    /// Let the load run until everything is seen to make progress, and at least so long after applying began.
    Live(Duration),
    /// Apply a patch and await the end of its transition.
    Apply(usize),
    /// A later patch is in force: is this one still, or did that replace it?
    Replaced(usize),
    /// All patches that were in force still are.
    InForce,
    /// Take a patch back.
    Revert(usize),
    /// Count the calls of the patched functions.
    Count,
}

/// All that a trial does after its probe has answered.
pub(super) fn script(plan: &Plan, trial: &Trial, purpose: Purpose) -> Vec<Op> {
    let phases = plan.pipeline.phases;
    let mut ops = Vec::new();
    if purpose.is_aging() {
        // First, so that all later logins show that they work.
        ops.push(Op::Rekey);
    }
    match purpose {
        Purpose::Trial(Start::Boot) | Purpose::Aging => {
            let uptime = plan.pipeline.aging.uptime;
            // The wear comes first: beside the load it would take many times as long.
            let wear = Op::Run(Phase::Age, (uptime / 4).min(Duration::from_secs(30)));
            ops.extend([
                Op::Sysrq,
                Op::Vitals,
                Op::StartAging,
                wear,
                Op::StartLoad,
                Op::AgeUntil(uptime),
                Op::Vitals,
            ]);
        }
        Purpose::Older(more) => ops.extend([Op::Run(Phase::Age, more), Op::Vitals]),
        Purpose::Trial(Start::Fork) => {}
    }
    if purpose.is_aging() {
        return ops;
    }
    // In all arms alike, so that a module that is there is no difference between them.
    if plan.patches.iter().any(|p| !(p.depends.is_empty() && p.objects.is_empty())) {
        ops.push(Op::Modules);
    }
    ops.extend(trial.patches.iter().map(|p| Op::Upload(*p)));
    let short = trial.length == Length::Short;
    let soak = if short {
        // It is compared with no other, and has no baseline.
        ops.push(Op::Run(Phase::Settle, phases.settle + trial.jitter));
        Op::Live(phases.observe)
    } else {
        ops.push(Op::Run(Phase::Settle, phases.settle));
        ops.push(Op::Run(Phase::Baseline, phases.baseline + trial.jitter));
        Op::Run(Phase::Soak, plan.soak())
    };
    let pause = Op::Run(Phase::Soak, phases.revert);
    let after = Op::Run(Phase::Revert, phases.revert);
    match trial.arm {
        Arm::Control => ops.push(soak),
        Arm::Loaded | Arm::Soak | Arm::Stack => {
            let last = trial.patches.len().saturating_sub(1);
            for (n, patch) in trial.patches.iter().enumerate() {
                ops.push(Op::Apply(*patch));
                ops.extend(trial.patches[..n].iter().map(|p| Op::Replaced(*p)));
                ops.extend([if n < last { pause } else { soak }, Op::InForce]);
            }
        }
        Arm::Quiescent => {
            ops.push(Op::StopLoad);
            ops.extend(apply_all(trial));
            ops.extend([Op::StartLoad, soak, Op::InForce]);
        }
        Arm::Reapply => {
            for _ in 1..phases.cycles {
                let round = |p: &usize| [Op::Apply(*p), pause, Op::InForce, Op::Revert(*p), after];
                ops.extend(trial.patches.iter().flat_map(round));
            }
            ops.extend(apply_all(trial));
            ops.extend([soak, Op::InForce]);
        }
    }
    if short {
        return ops;
    }
    ops.push(Op::Count);
    if !phases.revert.is_zero() && !trial.patches.is_empty() {
        ops.extend(trial.patches.iter().rev().map(|p| Op::Revert(*p)));
        ops.push(after);
    }
    ops
}

/// All patches of a trial one on top of the other.
fn apply_all(trial: &Trial) -> Vec<Op> {
    let one = |(n, patch): (usize, &usize)| {
        std::iter::once(Op::Apply(*patch))
            .chain(trial.patches[..n].iter().map(|p| Op::Replaced(*p)))
            .collect()
    };
    trial.patches.iter().enumerate().flat_map(|p| -> Vec<Op> { one(p) }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn ops(arm: Arm, patches: &[usize]) -> Vec<Op> {
        let plan = plan();
        let trial = Trial::new(1, arm, patches.to_vec(), 1);
        let fixed = plan.pipeline.phases.baseline + trial.jitter;
        let all = script(&plan, &trial, Purpose::Trial(Start::Fork));
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
            [
                settle,
                Op::Apply(0),
                pause,
                Op::InForce,
                Op::Apply(1),
                Op::Replaced(0),
                soak,
                Op::InForce,
                Op::Count,
                Op::Revert(1),
                Op::Revert(0),
                after
            ]
        );
        assert_eq!(ops(Arm::Control, &[]), [settle, soak, Op::Count]);
    }

    #[test]
    fn reapplying_goes_round() {
        let all = ops(Arm::Reapply, &[0]);
        let count = |op: Op| all.iter().filter(|o| **o == op).count();
        assert_eq!((count(Op::Apply(0)), count(Op::Revert(0)), count(Op::Count)), (3, 3, 1));
        assert_eq!(count(Op::InForce), 3);
    }

    /// What is short is over as soon as everything is seen to make progress: it measures nothing, counts nothing and takes nothing back at its
    /// end.
    #[test]
    fn a_short_trial_applies_and_looks() {
        let s = Duration::from_secs;
        let plan = plan();
        let short = |arm: Arm, patches: &[usize]| {
            let trial = Trial { length: Length::Short, ..Trial::new(1, arm, patches.to_vec(), 1) };
            let ops = script(&plan, &trial, Purpose::Trial(Start::Fork));
            (ops.into_iter().filter(|op| !matches!(op, Op::Upload(_))).collect::<Vec<_>>(), trial.jitter)
        };
        let (ops, jitter) = short(Arm::Loaded, &[0]);
        let (settle, live) = (Op::Run(Phase::Settle, s(2) + jitter), Op::Live(s(5)));
        assert_eq!(ops, [settle, Op::Apply(0), live, Op::InForce]);
        assert_eq!(short(Arm::Control, &[]).0, [settle, live]);
        let (ops, _) = short(Arm::Reapply, &[0]);
        assert_eq!(ops[ops.len() - 3..], [Op::Apply(0), live, Op::InForce]);
        assert_eq!(ops.iter().filter(|op| matches!(op, Op::Revert(_))).count(), 2);
    }

    /// How often a fault needs to be called is known only if every trial with a soak says how often it was.
    #[test]
    fn every_long_trial_counts() {
        let plan = plan();
        for trial in &plan.trials {
            let ops = script(&plan, trial, Purpose::Trial(Start::Fork));
            assert_eq!(ops.iter().filter(|op| **op == Op::Count).count(), 1, "{trial:?}");
        }
    }

    #[test]
    fn a_machine_that_is_aged_only_grows_old() {
        let plan = plan();
        let trial = Trial::new(0, Arm::Control, Vec::new(), 1);
        let more = Duration::from_secs(9);
        let older = [Op::Rekey, Op::Run(Phase::Age, more), Op::Vitals];
        assert_eq!(script(&plan, &trial, Purpose::Older(more)), older);
        assert_eq!(script(&plan, &trial, Purpose::Aging).len(), 8);
    }
}
