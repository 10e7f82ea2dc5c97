//! Causes of a verdict, from what the trials show.

use std::collections::BTreeMap;

use super::attribute::Item;
use super::outcome::{Mark, Outcomes};
use crate::verdict::{
    Attribution, Bound, Condition, FindingCause, PossibleExposure, PossibleRate, Reach, Why,
    applied_under_load,
};
use crate::{Arm, Phase, Plan};

/// A finding: what, where, how soon, under which condition, how often.
pub(super) fn of_finding(plan: &Plan, item: &Item) -> FindingCause {
    let seen_with_patch = matches!(
        item.attribution,
        Attribution::Patch | Attribution::Unconfirmed | Attribution::NoControl | Attribution::ControlToo
    );
    FindingCause {
        title: item.lead.title.clone(),
        kind: item.lead.kind,
        attribution: item.attribution,
        condition: seen_with_patch.then(|| condition(item)),
        arms: item.arms.clone(),
        patches: if plan.patches.len() > 1 { item.patches.clone() } else { BTreeMap::new() },
        p_value: item.p_value,
        function: item.lead.function.clone(),
        first_after_apply_ms: item.first_after_apply_ms(),
        waits: item.waits.as_ref().map(|(_, groups)| groups.clone()).unwrap_or_default(),
    }
}

/// Under which condition it shows.
fn condition(item: &Item) -> Condition {
    let of = |arm: Arm| item.arms.get(&arm).copied().unwrap_or_default();
    let loaded = applied_under_load(&item.arms);
    let (quiescent, reapply) = (of(Arm::Quiescent), of(Arm::Reapply));
    let mut patched = item.seen.iter().filter(|s| s.scope.arm != Arm::Control).peekable();
    let none = patched.peek().is_none();
    let phases: Vec<Phase> = patched.map(|s| s.scope.phase).collect();
    let all = |of: &[Phase]| !none && phases.iter().all(|phase| of.contains(phase));
    if all(&[Phase::Revert]) {
        return Condition::Reverting;
    }
    match (loaded.hit, quiescent.hit) {
        (0, 0) if reapply.hit > 0 => Condition::Reapplied,
        (0, 0) => Condition::Stacked,
        (0, _) => Condition::AppliedIdle,
        (_, 0) if quiescent.of > 0 => Condition::AppliedUnderLoad,
        (_, 0) => Condition::AppliedUnderLoadOnlyTried,
        _ if all(&[Phase::Apply, Phase::Transition]) => Condition::Applying,
        _ => Condition::Load,
    }
}

/// Why a patch is let through.
pub(super) fn nothing_found(plan: &Plan, outcomes: &Outcomes, bounds: &[Bound], reach: &[Reach]) -> Why {
    let mut trials: BTreeMap<Arm, u32> = BTreeMap::new();
    for trial in plan.trials.iter().filter(|t| outcomes.mark(t.number) == Mark::Clean) {
        *trials.entry(trial.arm).or_default() += 1;
    }
    let worst = |soaks: bool| {
        let bounds = bounds.iter().filter(move |b| (b.arm == Arm::Soak) == soaks);
        bounds.max_by(|a, b| a.failure_rate.total_cmp(&b.failure_rate))
    };
    let exposure = worst(true).and_then(|b| Some((b.exposure?, b.confidence)));
    Why::NothingFound {
        trials,
        soak_s: plan.soak().as_secs(),
        bound: worst(false).map(|b| PossibleRate { failure_rate: b.failure_rate, confidence: b.confidence }),
        exposure: exposure.map(|(bound, confidence)| PossibleExposure { bound, confidence }),
        reach: reach.to_vec(),
    }
}

/// Names of patches, by their positions in the plan.
pub(super) fn names(plan: &Plan, patches: &[usize]) -> Vec<String> {
    patches.iter().filter_map(|i| plan.patches.get(*i)).map(|p| p.name.clone()).collect()
}

/// A shipped workload that probably calls a function, by what its name is about.
pub(super) fn workload_for(function: &str) -> Option<&'static str> {
    const ABOUT: &[(&str, &[&str])] = &[
        ("madvise-allocator", &["madvise", "mmap", "munmap", "mprotect", "mremap", "vma", "mlock", "brk"]),
        ("page-fault-storm", &["fault", "anon", "wp_page", "cow", "huge", "swap", "pte"]),
        ("fork-exec-churn", &["fork", "clone", "exec", "wait", "exit", "signal", "kill", "cred"]),
        (
            "file-io-fsync",
            &["fsync", "sync", "write", "read", "truncate", "fallocate", "rename", "link", "ext4", "inode"],
        ),
        (
            "syscall-mix",
            &[
                "timer", "clock", "futex", "pipe", "sock", "epoll", "poll", "inotify", "msg", "sem", "shm",
                "key",
            ],
        ),
    ];
    ABOUT.iter().find(|(_, words)| words.iter().any(|w| function.contains(w))).map(|(name, _)| *name)
}
