//! What the index keeps of a run: a pure fold of plan and journal, by the judge's own words.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use klpfarm_model::event::{CheckpointFacts, Measured, live};
use klpfarm_model::verdict::{Attribution, Bound, Verdict};
use klpfarm_model::{
    Arm, Body, Event, Finding, FindingKind, Outcome, Phase, Plan, Trial, TrialEnd, judge, judge_independent,
};

use crate::schema::whole;

/// One run.
#[derive(Debug, Default)]
pub(crate) struct RunRow {
    /// When it began, in milliseconds since 1970; absent if its journal does not say.
    pub(crate) started_ms: Option<i64>,
    /// The same for two copies of one run folder, and for no two runs.
    pub(crate) identity: Option<String>,
    pub(crate) took_ms: u64,
    pub(crate) ended: bool,
    pub(crate) interrupted: bool,
    pub(crate) clean: u32,
    pub(crate) failed: u32,
    pub(crate) unexplained: u32,
    pub(crate) void: u32,
    pub(crate) patches: Vec<PatchRow>,
    pub(crate) trials: Vec<TrialRow>,
    pub(crate) checkpoints: Vec<CheckpointFacts>,
}

/// One patch of a run.
#[derive(Debug)]
pub(crate) struct PatchRow {
    pub(crate) name: String,
    pub(crate) sha256: String,
    /// Absent while the run has not ended.
    pub(crate) outcome: Option<Outcome>,
    /// Its loaded trials.
    pub(crate) failed: u32,
    pub(crate) clean: u32,
    /// Highest failure rate that they leave possible, and with what confidence.
    pub(crate) bound: Option<(f64, f64)>,
}

/// One trial that was started.
#[derive(Debug)]
pub(crate) struct TrialRow {
    pub(crate) number: u32,
    pub(crate) arm: Arm,
    /// Name of its machine's image.
    pub(crate) image: String,
    /// Names of the patches that it applies.
    pub(crate) patches: Vec<String>,
    /// Milliseconds of the run when it began.
    pub(crate) at_ms: u64,
    /// When that was, in milliseconds since 1970; absent if the journal does not say.
    pub(crate) began_ms: Option<i64>,
    pub(crate) took_ms: u64,
    pub(crate) end: Option<TrialEnd>,
    pub(crate) findings: Vec<FindingRow>,
    pub(crate) measured: BTreeMap<Phase, Measured>,
}

/// One finding of a trial.
#[derive(Debug, PartialEq)]
pub(crate) struct FindingRow {
    pub(crate) seq: u64,
    pub(crate) phase: Phase,
    pub(crate) kind: FindingKind,
    pub(crate) title: String,
    pub(crate) after_apply_ms: Option<u64>,
    pub(crate) in_patch: bool,
    /// What the judge says of it; absent where it says nothing yet.
    pub(crate) attribution: Option<Attribution>,
}

impl TrialRow {
    /// Whether it says anything, so that it counts in rates.
    pub(crate) fn is_valid(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.is_valid(!self.findings.is_empty()))
    }
}

/// The word for how a trial ended.
pub(crate) fn end_word(end: &TrialEnd) -> &'static str {
    match end {
        TrialEnd::Completed => "completed",
        TrialEnd::Stopped => "stopped",
        TrialEnd::FarmError { .. } => "farm-error",
        TrialEnd::Void { .. } => "void",
        TrialEnd::Interrupted => "interrupted",
        TrialEnd::Unneeded => "unneeded",
        TrialEnd::OutOfBudget => "out-of-budget",
    }
}

/// The word for an attribution, as in `verdict.json`.
pub(crate) fn attribution_word(attribution: Attribution) -> &'static str {
    match attribution {
        Attribution::Patch => "patch",
        Attribution::Unconfirmed => "unconfirmed",
        Attribution::NoControl => "no-control",
        Attribution::ControlToo => "control-too",
        Attribution::BeforeApply => "before-apply",
        Attribution::ControlOnly => "control-only",
    }
}

/// What is kept of the run.
pub(crate) fn extract(plan: &Plan, events: &[Event]) -> RunRow {
    let mut row = fold(plan, events);
    let verdicts: Vec<Verdict> = if plan.mode.is_independent() {
        (0..plan.patches.len()).map(|patch| judge_independent(plan, events, patch)).collect()
    } else {
        vec![judge(plan, events)]
    };
    for verdict in &verdicts {
        for (arm, n) in &verdict.arms {
            // Patches that have nothing to do with each other share their control trials.
            if *arm == Arm::Control && !std::ptr::eq(verdict, &verdicts[0]) {
                continue;
            }
            row.clean += n.clean;
            row.failed += n.failed;
            row.unexplained += n.unexplained;
            row.void += n.void;
        }
        attribute(&mut row, verdict);
    }
    row.patches = plan
        .patches
        .iter()
        .enumerate()
        .map(|(n, patch)| {
            let verdict = if plan.mode.is_independent() { &verdicts[n] } else { &verdicts[0] };
            // On several kinds of machines a patch has a bound on each: the highest stands for all.
            let own = |b: &&Bound| b.arm == Arm::Loaded && b.patches == [patch.name.as_str()];
            let own: Vec<&Bound> = verdict.bounds.iter().filter(own).collect();
            let bound = own.iter().max_by(|a, b| a.failure_rate.total_cmp(&b.failure_rate));
            PatchRow {
                name: patch.name.clone(),
                sha256: patch.sha256.clone(),
                outcome: row.ended.then_some(verdict.verdict),
                failed: own.iter().map(|b| b.failed).sum(),
                clean: own.iter().map(|b| b.clean).sum(),
                bound: bound.map(|b| (b.failure_rate, b.confidence)),
            }
        })
        .collect();
    row
}

/// The journal by trials.
fn fold(plan: &Plan, events: &[Event]) -> RunRow {
    let mut row = RunRow::default();
    let mut trials: BTreeMap<u32, TrialRow> = BTreeMap::new();
    // The clock when the run's milliseconds were zero.
    let mut zero_ms: Option<i64> = None;
    for event in live(events) {
        row.took_ms = row.took_ms.max(event.at_ms);
        match (&event.body, event.scope) {
            (Body::RunStarted { time, plan, .. }, _) => {
                row.started_ms = clock(time);
                zero_ms = clock(time).map(|at| at.saturating_sub(whole(event.at_ms)));
                row.identity = Some(format!("{plan} {time}"));
            }
            (Body::RunResumed { time, .. }, _) => {
                // The run's milliseconds stood still while nobody ran it.
                zero_ms = clock(time).map(|at| at.saturating_sub(whole(event.at_ms)));
                (row.ended, row.interrupted) = (false, false);
            }
            (Body::RunEnded { interrupted }, _) => {
                (row.ended, row.interrupted) = (true, *interrupted);
            }
            (Body::Checkpoint(facts), _) => row.checkpoints.push((**facts).clone()),
            (Body::TrialStarted, Some(scope)) => {
                let Some((trial, image)) = planned(plan, scope.trial) else { continue };
                let fresh = TrialRow {
                    number: trial.number,
                    arm: trial.arm,
                    image: image.to_owned(),
                    patches: plan.names(&trial).map(str::to_owned).collect(),
                    at_ms: event.at_ms,
                    began_ms: zero_ms.map(|zero| zero.saturating_add(whole(event.at_ms))),
                    took_ms: 0,
                    end: None,
                    findings: Vec::new(),
                    measured: BTreeMap::new(),
                };
                trials.insert(trial.number, fresh);
            }
            (body, Some(scope)) => {
                let Some(trial) = trials.get_mut(&scope.trial) else { continue };
                trial.took_ms = event.at_ms.saturating_sub(trial.at_ms);
                match body {
                    Body::TrialEnded { end } => trial.end = Some(end.clone()),
                    Body::Measured(measured) => {
                        trial.measured.insert(scope.phase, measured.clone());
                    }
                    Body::Finding(finding) => trial.findings.push(seen(event.seq, scope.phase, finding)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    row.trials = trials.into_values().collect();
    row
}

/// A time in a journal, in milliseconds since 1970.
fn clock(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_millisecond)
}

/// The trial with this number, and the name of its machine's image.
fn planned(plan: &Plan, number: u32) -> Option<(Cow<'_, Trial>, &str)> {
    let trial = plan.trial(number)?;
    let image = plan.mode.turns().get(trial.turn).map_or(&plan.image, |turn| &turn.image);
    Some((trial, &image.name))
}

fn seen(seq: u64, phase: Phase, finding: &Finding) -> FindingRow {
    FindingRow {
        seq,
        phase,
        kind: finding.kind,
        title: finding.title.clone(),
        after_apply_ms: finding.after_apply_ms,
        in_patch: finding.in_patch,
        attribution: None,
    }
}

/// What the verdict says of the findings. What only the comparison of trials shows is in no event: it is added.
fn attribute(row: &mut RunRow, verdict: &Verdict) {
    for item in &verdict.evidence {
        for observation in &item.observations {
            let Some(trial) = row.trials.iter_mut().find(|t| t.number == observation.trial) else { continue };
            let seen =
                trial.findings.iter_mut().find(|f| f.seq == observation.seq && f.title == observation.title);
            match seen {
                Some(finding) => worst(&mut finding.attribution, item.attribution),
                None => trial.findings.push(FindingRow {
                    seq: observation.seq,
                    phase: observation.phase,
                    kind: observation.kind,
                    title: observation.title.clone(),
                    after_apply_ms: observation.after_apply_ms,
                    in_patch: false,
                    attribution: Some(item.attribution),
                }),
            }
        }
        // A verdict lists the first observations of a cause only: the others are told by their title.
        if item.count > item.observations.len() {
            let same = |f: &&mut FindingRow| f.kind == item.kind && f.title == item.title;
            for finding in row.trials.iter_mut().flat_map(|t| &mut t.findings).filter(same) {
                worst(&mut finding.attribution, item.attribution);
            }
        }
    }
}

/// Of several words on one finding (a control trial's is held against each patch of the run) the one that counts most against a
/// patch stands: nothing is taken for the image's own that is held against a patch.
fn worst(place: &mut Option<Attribution>, word: Attribution) {
    *place = Some(place.map_or(word, |before| before.min(word)));
}
