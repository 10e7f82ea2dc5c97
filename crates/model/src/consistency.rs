//! Whether a run's documents agree: the plan with itself, and the journal with the plan and with itself. A farm writes no others, so
//! whatever is found here was changed or damaged afterwards.

mod journal;

use std::collections::BTreeSet;

use crate::{Arm, Event, Plan, Start, Trial, plan};

/// Every inconsistency of a plan and a journal in plain words, each with its place: `plan.json` and the field, or the journal's event by
/// its number. Empty if they agree, as do the plan and the journal of every run, at each moment of it. Events of one trial that are wrong
/// in the same way are one complaint.
///
/// The journal may lack events that are of no interest to the judge (`progress`): gaps in the numbers are for its reader to refuse.
pub fn consistency(plan: &Plan, events: &[Event]) -> Vec<String> {
    let mut found: Vec<String> = of_plan(plan);
    found.extend(journal::complaints(plan, events));
    found
}

/// Where the plan contradicts itself.
fn of_plan(plan: &Plan) -> Vec<String> {
    let mut found = of_rule(plan);
    found.extend(of_machines(plan));
    let mut of_trials: Vec<String> =
        plan.trials.iter().zip(1..).flat_map(|(trial, number)| of_trial(plan, trial, number)).collect();
    for arm in &plan.rule.arms {
        let possible = *arm != Arm::Stack || plan.trials.iter().any(|t| t.arm == Arm::Stack);
        if possible && !plan.trials.iter().any(|t| t.arm == *arm) {
            of_trials.push(format!("trials: the rule asks for {arm} trials, and there are none"));
        }
    }
    found.extend(of_trials);
    found.into_iter().map(|text| format!("plan.json: {text}")).collect()
}

fn of_rule(plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    if plan.schema != plan::SCHEMA {
        found.push(format!("schema: is {}, but this klpfarm reads {}", plan.schema, plan::SCHEMA));
    }
    let rule = &plan.rule;
    let wrong = rule.problems();
    if wrong.is_empty() && plan.needed != rule.trials() {
        found.push(format!(
            "needed: is {}, and its rule (at most {:.1} % failures at {:.0} % confidence) takes {} clean loaded trials",
            plan.needed,
            rule.applications.max_failure_rate * 100.0,
            rule.applications.confidence * 100.0,
            rule.trials()
        ));
    }
    let soaks = if wrong.is_empty() { rule.soaks(plan.soak()) } else { plan.soaks };
    if plan.soaks != soaks {
        found.push(format!(
            "soaks: is {}, and its rule ({} failures per machine-hour at most) takes {soaks} clean soaks of {} s",
            plan.soaks,
            rule.exposure.max_failures_per_hour.unwrap_or_default(),
            plan.soak().as_secs()
        ));
    }
    if plan.controls != plan.controls_due() {
        found.push(format!(
            "controls: is {}, and the pipeline and the rule take {}",
            plan.controls,
            plan.controls_due()
        ));
    }
    found.extend(wrong.into_iter().map(|(field, text)| format!("rule.{field}: {text}")));
    if let Some(after) = rule.after.filter(|after| *after >= plan.tier) {
        found.push(format!("rule.after: is {after}, which is not below the plan's tier {}", plan.tier));
    }
    found
}

/// What the trials' machines are.
fn of_machines(plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    if plan.scale.to_bits() != plan.accel.scale().to_bits() {
        let scale = plan.accel.scale();
        found.push(format!("scale: is {}, and under {} it is {scale}", plan.scale, plan.accel));
    }
    if plan.start == Start::Boot && checkpoints(plan).next().is_some() {
        found.push("checkpoint: is there, and the trials boot".to_owned());
    }
    if plan.mode.is_rotation() != plan.pipeline.rotation.is_some() {
        let text = "mode: is a rotation only where the pipeline has one, and where it has one";
        found.push(text.to_owned());
    }
    if let Some(first) = plan.mode.turns().first().filter(|first| first.image != plan.image) {
        found.push(format!("image: is {}, and the first turn's is {}", plan.image.name, first.image.name));
    }
    for (n, turn) in plan.mode.turns().iter().enumerate() {
        if let Some(patch) = turn.patches.iter().find(|p| **p >= plan.patches.len()) {
            found
                .push(format!("mode.rotation[{n}].patches: has {patch}, and the plan has {}", patches(plan)));
        }
    }
    found
}

/// What is wrong with the trial that stands where `number` should.
fn of_trial(plan: &Plan, trial: &Trial, number: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |field: &str, text: String| found.push(format!("trials[{}].{field}: {text}", number - 1));
    if trial.number != number {
        say("number", format!("is {}, and {number} comes here", trial.number));
    }
    if trial.turn >= plan.turns() {
        say("turn", format!("is {}, and the plan has {}", trial.turn, plan.turns()));
    }
    let allowed = plan.mode.turns().get(trial.turn).map(|turn| &turn.patches);
    for patch in &trial.patches {
        if *patch >= plan.patches.len() {
            say("patches", format!("has {patch}, and the plan has {}", patches(plan)));
        } else if allowed.is_some_and(|allowed| !allowed.contains(patch)) {
            say("patches", format!("has {patch}, which is for another turn's kernel"));
        }
    }
    let different = trial.patches.iter().collect::<BTreeSet<_>>().len();
    let fits = different == trial.patches.len()
        && match trial.arm {
            Arm::Control => different == 0,
            Arm::Loaded | Arm::Soak | Arm::Quiescent | Arm::Reapply => different == 1,
            Arm::Stack => different > 1,
        };
    if !fits {
        let wanted = match trial.arm {
            Arm::Control => "none",
            Arm::Loaded | Arm::Soak | Arm::Quiescent | Arm::Reapply => "one",
            Arm::Stack => "several, each once",
        };
        say("patches", format!("are {:?}, and a {} trial takes {wanted}", trial.patches, trial.arm));
    }
    if let Some(partner) = trial.partner {
        let other = in_place(plan, partner).filter(|t| t.turn == trial.turn);
        let (fits, wanted) = match trial.arm {
            Arm::Control => (
                other.is_some_and(|t| t.arm.patched() && t.partner == Some(trial.number)),
                "patched trial that has this one for its partner",
            ),
            _ => (other.is_some_and(|t| t.arm == Arm::Control), "control trial of the plan"),
        };
        if !fits {
            say("partner", format!("is {partner}, which is no {wanted}"));
        }
    }
    found
}

/// The trial with this number, where it stands in its place: a plan may have many thousand.
fn in_place(plan: &Plan, number: u32) -> Option<&Trial> {
    let place = usize::try_from(number.checked_sub(1)?).ok()?;
    plan.trials.get(place).filter(|t| t.number == number)
}

fn patches(plan: &Plan) -> String {
    match plan.patches.len() {
        1 => "1 patch".to_owned(),
        n => format!("{n} patches"),
    }
}

/// The checkpoints of which trials are forks.
fn checkpoints(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.checkpoint
        .iter()
        .chain(plan.mode.turns().iter().filter_map(|t| t.checkpoint.as_ref()))
        .map(String::as_str)
}

#[cfg(test)]
mod tests;
