//! Causes of a verdict as sentences: what an engineer needs to hear.

use std::collections::BTreeMap;

use klpfarm_model::verdict::{
    Attribution, Cause, Condition, FarmError, FindingCause, Hits, NewCode, PossibleExposure, PossibleRate,
    Reach, UnavailableDetector, Why, applied_under_load,
};
use klpfarm_model::{Arm, plain_function};

use crate::{one_line, waits};

/// A cause as a sentence, with the turn it is of. It may hold text of the guest's: print it through [`crate::one_line`].
pub fn cause_in_words(cause: &Cause) -> String {
    let words = why(&cause.what);
    cause.turn.as_ref().map_or_else(|| words.clone(), |turn| format!("{turn}: {words}"))
}

/// A detector that could not work, and why.
pub fn unavailable_in_words(UnavailableDetector { detector, reason }: &UnavailableDetector) -> String {
    format!("{detector}: {reason}")
}

fn why(what: &Why) -> String {
    match what {
        Why::AgainstThePatch(finding) => against(finding),
        Why::FailsMoreOften { arm, patches, pairs, failed, control_failed } => format!(
            "{arm} trials of {} fail more often than the control trials next to them: {failed} of {pairs} and {control_failed} of {pairs}, which chance would explain in fewer than one of a thousand runs",
            patches.join(" + ")
        ),
        Why::NotProven(finding) => not_proven(finding),
        Why::WithinTheRate(f) => format!(
            "{}: not proven to be the patch ({}), and counted as a failure within the tier's rate",
            f.title,
            hits(&f.arms)
        ),
        Why::TrialNotEnded { trial, title } => format!("trial {trial}: {title}: the trial has not ended"),
        Why::TooFewClean { .. }
        | Why::TrialsMissing { .. }
        | Why::NoneClean { .. }
        | Why::FailedTooOften { .. } => too_few(what),
        Why::ReplacesNothing { .. }
        | Why::NeverCalled { .. }
        | Why::NewCodeNeverRan { .. }
        | Why::NewCodeBypassed { .. }
        | Why::CallsUnknown { .. } => unreached(what),
        Why::TrialsOfAnotherPlan { trials } => format!(
            "the journal has events of trials that are not in the plan: {}: plan and journal belong to different runs",
            trials.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
        ),
        Why::JournalOfAnotherPlan { event, journal, plan } => {
            format!("the journal (event {event}) is of a run with another plan: {journal}, not {plan}")
        }
        Why::CutShort { reason } => reason.clone(),
        Why::FarmFailed(FarmError { trial, message }) => {
            format!("klpfarm or the host failed, not the patch: trial {trial}: {message}")
        }
        Why::NothingFound { trials, soak_s, bound, exposure, reach } => {
            nothing_found(trials, *soak_s, (*bound, *exposure), reach)
        }
    }
}

/// A finding that counts: what, where, how soon, under which condition, how often.
fn against(f: &FindingCause) -> String {
    let mut text = f.title.clone();
    if let Some(function) = f.function.as_ref().filter(|function| !text.contains(function.as_str())) {
        text.push_str(&format!(", in {function}"));
    }
    if let Some(ms) = f.first_after_apply_ms {
        text.push_str(&format!(", first seen {:.1} s after applying", ms as f64 / 1000.0));
    }
    if let Some(condition) = f.condition {
        text.push_str(": ");
        text.push_str(&condition_in_words(condition, &f.arms));
    }
    let control = of(&f.arms, Arm::Control);
    if control.of > 0 {
        let word = if control.hit == 0 { "never without the patch" } else { "without the patch" };
        text.push_str(&format!("; {word}, {}", share(control)));
    }
    if !f.patches.is_empty() {
        let by: Vec<String> = f.patches.iter().map(|(patch, h)| format!("{patch} {}", share(*h))).collect();
        text.push_str(&format!("; by patch: {}", by.join(", ")));
    }
    text + &waiting(f)
}

fn not_proven(f: &FindingCause) -> String {
    let (title, hits) = (&f.title, hits(&f.arms));
    match f.attribution {
        Attribution::Patch | Attribution::Unconfirmed => format!(
            "{title}: seen only with the patch ({hits}), too rarely to attribute it to the patch, which cannot qualify either: run more trials{}",
            waiting(f)
        ),
        Attribution::NoControl => {
            format!("{title}: no control trial was completed, so it cannot be attributed")
        }
        Attribution::ControlToo => format!(
            "{title}: seen without the patch as well ({hits}), so it is not proven to be the patch; its trials count as failures all the same"
        ),
        Attribution::BeforeApply => format!("{title}: seen before the patch was applied"),
        Attribution::ControlOnly => format!("{title}: seen without the patch ({hits})"),
    }
}

/// Where tasks wait, as a further sentence; empty where nobody was seen waiting.
fn waiting(f: &FindingCause) -> String {
    waits::sentence(&f.waits).map_or_else(String::new, |sentence| format!(". {sentence}"))
}

fn of(arms: &BTreeMap<Arm, Hits>, arm: Arm) -> Hits {
    arms.get(&arm).copied().unwrap_or_default()
}

fn share(hits: Hits) -> String {
    format!("{}/{}", hits.hit, hits.of)
}

fn hits(arms: &BTreeMap<Arm, Hits>) -> String {
    let parts: Vec<String> = arms.iter().map(|(arm, h)| format!("{arm} {}", share(*h))).collect();
    parts.join(", ")
}

fn condition_in_words(condition: Condition, arms: &BTreeMap<Arm, Hits>) -> String {
    let hits = |arm: Arm| of(arms, arm);
    let share = |arm: Arm| share(of(arms, arm));
    let others = |others: &[(&str, Arm)]| -> String {
        let parts = others.iter().filter(|(_, arm)| hits(*arm).of > 0).map(|(name, arm)| {
            format!("; {name} {}{}", if hits(*arm).hit == 0 { "never, " } else { "" }, share(*arm))
        });
        parts.collect()
    };
    let again = ("applied again after taking it back:", Arm::Reapply);
    let stacked = ("on top of the other patches:", Arm::Stack);
    let (loaded, idle) = (self::share(applied_under_load(arms)), share(Arm::Quiescent));
    match condition {
        Condition::Reverting => {
            let patched = arms.iter().filter(|(arm, _)| arm.patched());
            let all = patched.fold((0, 0), |(hit, of), (_, h)| (hit + h.hit, of + h.of));
            format!("only when the patch is taken back, {}/{}", all.0, all.1)
        }
        Condition::Reapplied => format!(
            "only when applied again after taking it back, {}; not when applied once, {loaded}{}",
            share(Arm::Reapply),
            others(&[stacked])
        ),
        Condition::Stacked => format!(
            "only with the patches on top of each other, {}; not with each alone, {loaded}",
            share(Arm::Stack)
        ),
        Condition::AppliedIdle => {
            format!("only when applied idle, {idle}; not when applied under load, {loaded}")
        }
        Condition::AppliedUnderLoad => format!(
            "only when the load was running at the moment of applying, {loaded}; not when applied idle, {idle}{}",
            others(&[again, stacked])
        ),
        Condition::AppliedUnderLoadOnlyTried => format!(
            "with the load running at the moment of applying, {loaded}; no idle trial to compare{}",
            others(&[again, stacked])
        ),
        Condition::Applying => format!(
            "always, even on an idle machine: under load {loaded}, idle {idle}{}",
            others(&[again, stacked])
        ),
        Condition::Load => format!(
            "whenever there is load, whether it was running at the moment of applying, {loaded}, or started afterwards, {idle}{}",
            others(&[again, stacked])
        ),
    }
}

/// What trials do not show.
fn too_few(what: &Why) -> String {
    match what {
        Why::TooFewClean {
            arm,
            patches,
            clean,
            failed,
            needed,
            tier,
            failure_rate,
            allowed,
            confidence,
            per_hour,
        } => {
            let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
            let (possible, allowed) = match per_hour {
                Some(rate) => {
                    (format!("{} failures per machine-hour", most(rate.possible)), most(rate.allowed))
                }
                None => (
                    format!("a failure rate of {:.0} %", failure_rate * 100.0),
                    format!("{:.0} %", allowed * 100.0),
                ),
            };
            format!(
                "{clean} clean {arm} trials of {}{failed}: tier {tier} needs {needed} without a failure (these leave {possible} possible, the tier allows {allowed} at {:.0} % confidence)",
                patches.join(" + "),
                confidence * 100.0
            )
        }
        Why::TrialsMissing { arm, missing, of } => {
            format!("{missing} of {of} {arm} trials were not completed")
        }
        Why::NoneClean { arm, patches, trials, tier } => {
            let of = if patches.is_empty() { String::new() } else { format!(" of {}", patches.join(" + ")) };
            format!("none of {trials} {arm} trials{of} ended cleanly, and tier {tier} asks for that arm")
        }
        Why::FailedTooOften { arm, patches, failed, of, failure_rate, allowed } => format!(
            "{failed} of {of} {arm} trials of {} failed, which leaves a failure rate of {:.0} % possible: {:.0} % at most must be shown",
            patches.join(" + "),
            failure_rate * 100.0,
            allowed * 100.0
        ),
        _ => String::new(),
    }
}

/// What code of the patch did not run, or may not have run.
fn unreached(what: &Why) -> String {
    match what {
        Why::ReplacesNothing { patch } => format!(
            "{} replaces no function, so nothing shows that the load runs its code",
            patch.as_deref().unwrap_or("the patch")
        ),
        Why::NeverCalled { function, workload: Some(workload) } => {
            format!("the workloads never call {function}: {workload} might; add it to the pipeline")
        }
        Why::NeverCalled { function, workload: None } => {
            format!("the workloads never call {function}: add a workload to the pipeline that does")
        }
        Why::NewCodeNeverRan { function, before_per_s: Some(before), .. } if *before > 0.0 => format!(
            "{function} is called {before:.1} times a second without the patch, and not once while the patch was in force and calls were counted: its new code never ran"
        ),
        Why::NewCodeNeverRan { function, inside, .. } => format!(
            "{} inside {function} when the patch was applied, and it was not called once while the patch was in force and calls were counted: its new code never ran",
            match inside {
                1 => "1 task was".to_owned(),
                n => format!("{n} tasks were"),
            }
        ),
        Why::NewCodeBypassed { function, patch, arms, calls } => format!(
            "calls of {function} do not reach the new code of {patch}, which the kernel says is in force: {calls} calls were counted, and trials in which not one got there are {}; look for a tracer, probe or other module that redirects {function} as well, and for a later patch of the same function: /sys/kernel/tracing/enabled_functions lists who sits on it",
            hits(arms)
        ),
        Why::CallsUnknown { function } => format!(
            "unknown whether the new code of {function} ever ran: its calls were not counted with the patch in force"
        ),
        _ => String::new(),
    }
}

/// Why a patch is let through.
fn nothing_found(
    trials: &BTreeMap<Arm, u32>,
    soak_s: u64,
    (bound, exposure): (Option<PossibleRate>, Option<PossibleExposure>),
    reach: &[Reach],
) -> String {
    let order = [Arm::Loaded, Arm::Soak, Arm::Quiescent, Arm::Reapply, Arm::Stack, Arm::Control];
    let clean = order.iter().filter_map(|arm| Some(format!("{} {arm}", trials.get(arm)?)));
    let clean: Vec<String> = clean.collect();
    let mut text = format!("no finding in {} trials", clean.join(", "));
    let rate = |bound: PossibleRate| format!("at most {:.1} %", bound.failure_rate * 100.0);
    let confidence = |of: f64| format!("with {:.0} % confidence", of * 100.0);
    match (bound, exposure) {
        (Some(bound), Some(soaks)) => text.push_str(&format!(
            ": applying it fails on {} of loaded machines, {}, and running with it at most {} times per machine-hour, {} ({:.0} min in force, soaks of {soak_s} s)",
            rate(bound),
            confidence(bound.confidence),
            most(soaks.bound.failures_per_hour),
            confidence(soaks.confidence),
            soaks.bound.clean_s as f64 / 60.0
        )),
        (Some(bound), None) => text.push_str(&format!(
            " with a soak of {soak_s} s each: {} of loaded machines can fail, {}",
            rate(bound),
            confidence(bound.confidence)
        )),
        (None, _) => text.push_str(&format!(" with a soak of {soak_s} s each")),
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
        "{} ({} without the patch, {} with it{}{sum})",
        plain_function(&r.function),
        rate(r.before_per_s),
        rate(r.after_per_s),
        new_code_in_words(r),
    )
}

/// An upper bound of a rate, rounded up: with one digit after the point where that says something.
fn most(rate: f64) -> String {
    if rate < 10.0 { format!("{:.1}", (rate * 10.0).ceil() / 10.0) } else { format!("{:.0}", rate.ceil()) }
}

/// How many of a function's calls went to the new code, by patch where several hold some; begins with a comma, empty where nothing was
/// counted.
pub(crate) fn new_code_in_words(r: &Reach) -> String {
    let several = r.new_code.len() > 1;
    let one = |new: &NewCode| {
        let of = if several { format!(" of {}", one_line(&new.patch, 60)) } else { String::new() };
        let share = new.share.map_or_else(String::new, |share| format!(" ({:.0} % of them)", share * 100.0));
        format!(", {}/s{share} to the new code{of}", short(new.per_s))
    };
    r.new_code.iter().map(one).collect()
}

/// A rate with as many digits as say something.
fn short(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

#[cfg(test)]
mod tests;
