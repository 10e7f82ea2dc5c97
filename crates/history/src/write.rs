//! Writing a run into the tables.

use klpfarm_model::Plan;
use rusqlite::{Transaction, params};

use crate::extract::{RunRow, TrialRow, attribution_word, end_word};
use crate::night::night;
use crate::schema::whole;

/// Put a run in the place of what the index had of its folder.
pub(crate) fn insert(
    change: &Transaction<'_>,
    folder: i64,
    plan: &Plan,
    row: &RunRow,
    started_ms: i64,
) -> rusqlite::Result<()> {
    // What belongs to the run goes with it.
    change.execute("DELETE FROM runs WHERE folder = ?1", [folder])?;
    let identity = row.identity.clone().unwrap_or_else(|| format!("folder {folder}"));
    change.execute(
        "INSERT INTO runs (folder, identity, started_ms, took_ms, tier, image, release, accel, pipeline, farm, apart, ended, \
         interrupted, clean, failed, unexplained, void) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        params![
            folder,
            identity,
            started_ms,
            whole(row.took_ms),
            plan.tier.as_str(),
            plan.image.name,
            plan.image.release,
            plan.accel.as_str(),
            plan.pipeline.name,
            plan.farm,
            plan.mode.is_independent(),
            row.ended,
            row.interrupted,
            row.clean,
            row.failed,
            row.unexplained,
            row.void
        ],
    )?;
    let run = change.last_insert_rowid();
    for (position, patch) in row.patches.iter().enumerate() {
        change.execute(
            "INSERT INTO patches (run, position, name, sha256, outcome, failed, clean, failure_rate, confidence) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                run,
                whole(position as u64),
                patch.name,
                patch.sha256,
                patch.outcome.map(|o| o.as_str()),
                patch.failed,
                patch.clean,
                patch.bound.map(|b| b.0),
                patch.bound.map(|b| b.1)
            ],
        )?;
    }
    for facts in &row.checkpoints {
        change.execute(
            "INSERT OR REPLACE INTO checkpoints (run, id, bytes, made_ms, uptime_s) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![run, facts.id, whole(facts.size), facts.made_ms.map(whole), facts.reached.uptime_s],
        )?;
    }
    row.trials.iter().try_for_each(|trial| insert_trial(change, run, started_ms, trial))
}

fn insert_trial(change: &Transaction<'_>, run: i64, run_ms: i64, trial: &TrialRow) -> rusqlite::Result<()> {
    let at_ms = trial.began_ms.unwrap_or(run_ms);
    change.execute(
        "INSERT INTO trials (run, number, arm, image, started_ms, took_ms, night, ended, valid) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            run,
            trial.number,
            trial.arm.as_str(),
            trial.image,
            at_ms,
            whole(trial.took_ms),
            night(at_ms).to_string(),
            trial.end.as_ref().map(end_word),
            trial.is_valid()
        ],
    )?;
    for patch in &trial.patches {
        change.execute(
            "INSERT OR IGNORE INTO applied (run, trial, patch) VALUES (?1, ?2, ?3)",
            params![run, trial.number, patch],
        )?;
    }
    for finding in &trial.findings {
        change.execute(
            "INSERT INTO findings (run, trial, seq, phase, kind, title, after_apply_ms, in_patch, attribution) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                run,
                trial.number,
                whole(finding.seq),
                finding.phase.as_str(),
                finding.kind.as_str(),
                finding.title,
                finding.after_apply_ms.map(whole),
                finding.in_patch,
                finding.attribution.map(attribution_word)
            ],
        )?;
    }
    for (phase, measured) in &trial.measured {
        for (workload, of) in &measured.workloads {
            change.execute(
                "INSERT INTO rates (run, trial, phase, workload, ops, window_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    run,
                    trial.number,
                    phase.as_str(),
                    workload,
                    whole(of.ops),
                    whole(measured.window_ms)
                ],
            )?;
        }
    }
    Ok(())
}
