//! What an engineer needs to hear.

use super::attribute::Item;
use super::outcome::{Mark, Outcomes};
use super::reach::for_people;
use crate::verdict::{Bound, Reach};
use crate::{Arm, Phase, Plan, cause};

/// A finding that counts: what, where, how soon, under which condition, how often.
pub(super) fn of_finding(plan: &Plan, item: &Item) -> String {
    let mut text = item.lead.title.clone();
    if let Some(function) = item.lead.function.as_ref().filter(|f| !text.contains(f.as_str())) {
        text.push_str(&format!(", in {function}"));
    }
    if let Some(ms) = item.seen.iter().filter_map(|s| s.finding.after_apply_ms).min() {
        text.push_str(&format!(", first seen {:.1} s after applying", ms as f64 / 1000.0));
    }
    text.push_str(": ");
    text.push_str(&condition(item));
    let control = of(item, Arm::Control);
    if control.1 > 0 {
        let word = if control.0 == 0 { "never without the patch" } else { "without the patch" };
        text.push_str(&format!("; {word}, {}", share(control)));
    }
    if plan.patches.len() > 1 {
        let by: Vec<String> = item.patches.iter().map(|(p, h)| format!("{p} {}/{}", h.hit, h.of)).collect();
        text.push_str(&format!("; by patch: {}", by.join(", ")));
    }
    text.push_str(&cause(item));
    text
}

/// Where tasks wait, as a further sentence; empty where nobody was seen waiting.
pub(super) fn cause(item: &Item) -> String {
    let sentence = item.waits.as_ref().and_then(|(_, groups)| cause::sentence(groups));
    sentence.map_or_else(String::new, |s| format!(". {s}"))
}

fn of(item: &Item, arm: Arm) -> (u32, u32) {
    item.arms.get(&arm).map_or((0, 0), |h| (h.hit, h.of))
}

fn share((hit, of): (u32, u32)) -> String {
    format!("{hit}/{of}")
}

/// Under which condition it shows.
fn condition(item: &Item) -> String {
    let (loaded, quiescent) = (of(item, Arm::Loaded), of(item, Arm::Quiescent));
    let (reapply, stack) = (of(item, Arm::Reapply), of(item, Arm::Stack));
    let patched: Vec<&super::Seen> = item.seen.iter().filter(|s| s.scope.arm != Arm::Control).collect();
    let all =
        |phases: &[Phase]| !patched.is_empty() && patched.iter().all(|s| phases.contains(&s.scope.phase));
    let others = |arms: &[(&str, (u32, u32))]| -> String {
        let parts: Vec<String> = arms
            .iter()
            .filter(|(_, h)| h.1 > 0)
            .map(|(name, h)| format!("; {name} {}{}", if h.0 == 0 { "never, " } else { "" }, share(*h)))
            .collect();
        parts.concat()
    };
    let again = ("applied again after taking it back:", reapply);
    let stacked = ("on top of the other patches:", stack);
    if all(&[Phase::Revert]) {
        let any =
            (loaded.0 + quiescent.0 + reapply.0 + stack.0, loaded.1 + quiescent.1 + reapply.1 + stack.1);
        return format!("only when the patch is taken back, {}", share(any));
    }
    match (loaded.0, quiescent.0) {
        (0, 0) if reapply.0 > 0 => format!(
            "only when applied again after taking it back, {}; not when applied once, {}{}",
            share(reapply),
            share(loaded),
            others(&[stacked])
        ),
        (0, 0) => format!(
            "only with the patches on top of each other, {}; not with each alone, {}",
            share(stack),
            share(loaded)
        ),
        (0, _) => format!(
            "only when applied idle, {}; not when applied under load, {}",
            share(quiescent),
            share(loaded)
        ),
        (_, 0) if quiescent.1 > 0 => format!(
            "only when the load was running at the moment of applying, {}; not when applied idle, {}{}",
            share(loaded),
            share(quiescent),
            others(&[again, stacked])
        ),
        (_, 0) => format!(
            "with the load running at the moment of applying, {}; no idle trial to compare{}",
            share(loaded),
            others(&[again, stacked])
        ),
        _ if all(&[Phase::Apply, Phase::Transition]) => format!(
            "always, even on an idle machine: under load {}, idle {}{}",
            share(loaded),
            share(quiescent),
            others(&[again, stacked])
        ),
        _ => format!(
            "whenever there is load, whether it was running at the moment of applying, {}, or started afterwards, {}{}",
            share(loaded),
            share(quiescent),
            others(&[again, stacked])
        ),
    }
}

/// Why a patch is let through.
pub(super) fn praise(plan: &Plan, outcomes: &Outcomes, bounds: &[Bound], reach: &[Reach]) -> String {
    let clean = |arm: Arm| {
        plan.trials.iter().filter(|t| t.arm == arm && outcomes.mark(t.number) == Mark::Clean).count()
    };
    let trials: Vec<String> = [Arm::Loaded, Arm::Quiescent, Arm::Reapply, Arm::Stack, Arm::Control]
        .into_iter()
        .filter(|arm| clean(*arm) > 0)
        .map(|arm| format!("{} {arm}", clean(arm)))
        .collect();
    let mut text =
        format!("no finding in {} trials with a soak of {} s each", trials.join(", "), plan.soak().as_secs());
    if let Some(worst) = bounds.iter().max_by(|a, b| a.failure_rate.total_cmp(&b.failure_rate)) {
        text.push_str(&format!(
            ": at most {:.1} % of loaded machines can fail, with {:.0} % confidence",
            worst.failure_rate * 100.0,
            worst.confidence * 100.0
        ));
    }
    let calls: Vec<String> = reach.iter().map(calls).collect();
    if !calls.is_empty() {
        text.push_str(&format!("; the load reached {}", calls.join(", ")));
    }
    text
}

/// How often a function was called.
fn calls(r: &Reach) -> String {
    let rate =
        |r: Option<f64>| r.map_or_else(|| "not counted".to_owned(), |r| format!("{} calls/s", short(r)));
    let sum = r.calls.map_or_else(String::new, |calls| {
        format!("; about {calls} calls in {} clean trials", r.counted_trials)
    });
    format!(
        "{} ({} without the patch, {} with it{sum})",
        for_people(&r.function),
        rate(r.before_per_s),
        rate(r.after_per_s)
    )
}

/// A rate with as many digits as say something.
fn short(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

pub(super) fn hits(item: &Item) -> String {
    let parts: Vec<String> = item.arms.iter().map(|(arm, h)| format!("{arm} {}/{}", h.hit, h.of)).collect();
    parts.join(", ")
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
