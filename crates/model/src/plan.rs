//! The plan: all that a run may do, resolved and hashed before the first boot. Execution chooses nothing but when to stop: as soon
//! as the trials that are done decide the verdict.

mod order;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use order::{Count, Need, controls_due, counts, order};

use crate::TierRule;
use crate::patch::{Patch, PatchError, file_names, hex};
use crate::{Accel, Arm, ImageFacts, Mode, Pipeline, Tier, Turn, Workload};

/// Version of `plan.json`, `journal.jsonl` and `verdict.json`.
pub const SCHEMA: u32 = 6;

/// What a plan is made from, besides the pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The image.
    pub image: ImageFacts,
    /// The pipeline's workloads, in its order.
    pub workloads: Vec<Workload>,
    /// The candidates, in the order in which they go on top of each other.
    pub patches: Vec<Patch>,
    /// KVM or emulation.
    pub accel: Accel,
    /// Machines at once.
    pub jobs: u32,
    /// Tier in question.
    pub tier: Tier,
    /// Its rule.
    pub rule: TierRule,
    /// Loaded trials at most, if the user says so: then a verdict out of reach is the user's wish.
    pub trials: Option<u32>,
    /// Trials are forks of a checkpoint; otherwise each boots and ages by itself.
    pub start: Start,
    /// Varies the moments of applying and what the workloads do.
    pub seed: u64,
    /// Whose trials are judged together. Which patches the turns of a rotation take is found here.
    pub mode: Mode,
}

impl Resolved {
    /// Forks of one machine at a time on `image`, under emulation, for the first tier by `rule`; no candidate and no load yet.
    pub fn new(image: ImageFacts, rule: TierRule) -> Self {
        Self {
            image,
            workloads: Vec::new(),
            patches: Vec::new(),
            accel: Accel::Tcg,
            jobs: 1,
            tier: Tier::Proposed,
            rule,
            trials: None,
            start: Start::Fork,
            seed: 1,
            mode: Mode::Single,
        }
    }
}

/// How a trial's machine comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Forked from the checkpoint of an aged machine.
    Fork,
    /// Booted, and aged by itself.
    Boot,
}

/// All that a run may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of klpfarm.
    pub farm: String,
    /// The tier in question.
    pub tier: Tier,
    /// Its rule.
    pub rule: TierRule,
    /// Clean loaded trials that the rule asks for, of each patch.
    pub needed: u32,
    /// Clean soaks that the rule asks for, of each patch; 0 where it bounds no failures per hour, and each loaded trial soaks instead.
    #[serde(default)]
    pub soaks: u32,
    /// Control trials that are due: as the pipeline says, or more where the tier needs many loaded trials.
    pub controls: u32,
    /// The candidates, in the order in which they go on top of each other.
    pub patches: Vec<Patch>,
    /// The image.
    pub image: ImageFacts,
    /// How machines come to be.
    pub start: Start,
    /// Id of the checkpoint they are forks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Whose trials are judged together. Of a rotation, `image`, `workloads` and `checkpoint` are the first turn's.
    pub mode: Mode,
    /// KVM or emulation.
    pub accel: Accel,
    /// Factor on all deadlines.
    pub scale: f64,
    /// Machines at once.
    pub jobs: u32,
    /// Seed of all variation.
    pub seed: u64,
    /// The pipeline, defaults filled in.
    pub pipeline: Pipeline,
    /// The workloads, that which ages the machine last.
    pub workloads: Vec<Workload>,
    /// The trials, in the order in which they start; of a rotation, those of one round ([`Plan::trial`]).
    pub trials: Vec<Trial>,
}

/// One machine of one arm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    /// From 1; names the folder `trials/N`. A machine that is aged and checkpointed is no trial ([`crate::event::AGED`]).
    pub number: u32,
    /// Its arm.
    pub arm: Arm,
    /// Patches it applies, in order, as positions in [`Plan::patches`].
    pub patches: Vec<usize>,
    /// Added to the baseline, so that trials apply at different moments.
    #[serde(with = "crate::duration")]
    #[schemars(with = "String")]
    pub jitter: Duration,
    /// Seed of this trial's workloads.
    pub seed: u64,
    /// Whether it soaks, or ends once the patch is seen to work.
    #[serde(default, skip_serializing_if = "Length::is_long")]
    pub length: Length,
    /// The kind of its machine, as a position in [`Mode::turns`].
    #[serde(default, skip_serializing_if = "is_first")]
    pub turn: usize,
    /// Number of the control trial that runs next to this patched one, so that both see the same noise of the host; none for patched trials
    /// that are judged by themselves. For a control trial, the patched one that it is started for; none for those that are due anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<u32>,
}

/// When a trial ends in which nothing is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// After a soak, and with the patch taken back: its load is measured before and after applying.
    #[default]
    Long,
    /// As soon as it is seen that everything makes progress with the patch in force.
    Short,
}

impl Length {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands in a reference")]
    fn is_long(&self) -> bool {
        *self == Self::Long
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands in a reference")]
fn is_first(turn: &usize) -> bool {
    *turn == 0
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A patch does not fit the image.
    #[error("{0}")]
    Patch(#[from] PatchError),
    /// The pipeline's own numbers can't satisfy the tier.
    #[error("{0}")]
    OutOfReach(String),
}

impl Plan {
    /// Make the plan.
    ///
    /// # Errors
    /// If a patch does not fit the image, or the pipeline allows too few trials or too little time for the tier.
    pub fn new(pipeline: &Pipeline, with: Resolved) -> Result<Self, PlanError> {
        let needed = with.rule.trials();
        let soaks = with.rule.soaks(soak(pipeline, &with.rule, with.accel));
        let tier = with.tier;
        let (mode, trials) = match &with.mode {
            Mode::Rotation(turns) => {
                let (turns, trials) = round(pipeline, &with, turns)?;
                (Mode::Rotation(turns), trials)
            }
            other => (other.clone(), sequence(pipeline, &with, (needed, soaks))?),
        };
        let mut workloads = with.workloads;
        workloads.push(pipeline.aging.workload());
        let mut plan = Self {
            schema: SCHEMA,
            farm: env!("CARGO_PKG_VERSION").to_owned(),
            tier,
            rule: with.rule,
            needed,
            soaks,
            controls: 0,
            patches: with.patches,
            image: with.image,
            start: with.start,
            checkpoint: None,
            mode,
            accel: with.accel,
            scale: with.accel.scale(),
            jobs: with.jobs,
            seed: with.seed,
            pipeline: pipeline.clone(),
            workloads,
            trials,
        };
        plan.controls = plan.controls_due();
        let least = plan.once();
        match pipeline.rotation.as_ref().map(|r| r.duration) {
            Some(duration) if duration < least => {
                return Err(PlanError::OutOfReach(format!(
                    "rotation.duration: is {} s, but one round of its {} trials takes about {} s, {} at once: raise it, or use fewer images, loads or trials per arm",
                    duration.as_secs(),
                    plan.trials.len(),
                    least.as_secs(),
                    plan.jobs
                )));
            }
            _ => {}
        }
        match pipeline.budget {
            Some(budget) if budget < least && with.trials.is_none() => Err(PlanError::OutOfReach(format!(
                "budget: is {} s, but the {needed} loaded trials{} required by tier {tier}, plus the other arms, take about {} s with {} machines at once: raise it",
                budget.as_secs(),
                if soaks > 0 { format!(" and {soaks} soaks") } else { String::new() },
                least.as_secs(),
                plan.jobs
            ))),
            _ => Ok(plan),
        }
    }

    /// SHA-256 of the plan, in hex.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// A limit of the pipeline, scaled for this accelerator.
    pub fn scaled(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.scale)
    }

    /// The soak as it will be: what the tier asks for, and never shorter than what it takes to see a stall.
    pub fn soak(&self) -> Duration {
        soak(&self.pipeline, &self.rule, self.accel)
    }

    /// Share of the trials of this arm (of 1) that may fail at most.
    pub fn rate_of(&self, arm: Arm) -> f64 {
        self.rule.rate_of(arm, self.soak())
    }

    /// Trials of an arm that a run takes for each patch, or all together, if nothing goes wrong. What is planned beyond is to spare.
    pub fn due(&self, arm: Arm) -> u32 {
        match arm {
            Arm::Loaded | Arm::Stack => self.needed,
            Arm::Soak => self.soaks,
            Arm::Control => self.controls,
            Arm::Quiescent | Arm::Reapply => self.pipeline.arms.of(arm).unwrap_or(0),
        }
    }

    /// What [`Self::controls`] must be.
    pub(crate) fn controls_due(&self) -> u32 {
        match self.mode {
            Mode::Single => controls_due(&self.pipeline, self.needed, self.soaks),
            Mode::Independent | Mode::Rotation(_) => self.pipeline.arms.control,
        }
    }

    /// The names of the patches of a trial, in order.
    pub fn names<'a>(&'a self, trial: &'a Trial) -> impl Iterator<Item = &'a str> {
        trial.patches.iter().filter_map(|i| self.patches.get(*i)).map(|p| p.name.as_str())
    }

    /// How long a run without a finding takes at least, as far as it can be told: the checkpoint's making is not in it.
    pub fn estimate(&self) -> Duration {
        self.rotation().map_or_else(|| self.once(), |r| r.duration)
    }

    /// How long the plan's trials take, those to spare left out; of a rotation, one round.
    fn once(&self) -> Duration {
        let p = &self.pipeline.phases;
        let start = match self.start {
            Start::Fork => Duration::from_secs(2),
            Start::Boot => self.pipeline.aging.uptime,
        };
        let applying = self.scaled(Duration::from_secs(3));
        let mut places: BTreeMap<(Arm, &[usize]), u32> = BTreeMap::new();
        let mut all = Duration::ZERO;
        for trial in &self.trials {
            let place = places.entry((trial.arm, &trial.patches)).or_default();
            *place += 1;
            if *place > self.due(trial.arm) {
                continue;
            }
            let rounds = match trial.arm {
                Arm::Control => 0,
                Arm::Reapply => p.cycles,
                Arm::Loaded | Arm::Soak | Arm::Quiescent | Arm::Stack => {
                    u32::try_from(trial.patches.len()).unwrap_or(1)
                }
            };
            all += match trial.length {
                Length::Long => start + p.settle + p.baseline + self.soak() + (applying + p.revert) * rounds,
                // Between two applications of one trial the patch is taken back.
                Length::Short => {
                    let between = (applying + p.revert * 2) * rounds.saturating_sub(1);
                    start + p.settle + applying + p.observe + between
                }
            };
        }
        all / self.jobs.max(1)
    }

    /// Copy of a candidate below the run folder, by its position in [`Self::patches`].
    pub fn patch_file(&self, patch: usize) -> PathBuf {
        PathBuf::from("patches").join(&file_names(&self.patches)[patch])
    }

    /// Folder of a trial below the run folder.
    pub fn trial_dir(number: u32) -> PathBuf {
        PathBuf::from("trials").join(number.to_string())
    }
}

impl Trial {
    /// A trial with its own moment of applying, from the seed of the run.
    pub fn new(number: u32, arm: Arm, patches: Vec<usize>, seed: u64) -> Self {
        let seed = mix(seed ^ mix(u64::from(number)));
        Self {
            number,
            arm,
            patches,
            jitter: Duration::from_millis(mix(seed) % 2000),
            seed,
            length: Length::Long,
            turn: 0,
            partner: None,
        }
    }
}

/// How long a soak takes: as the pipeline or the tier says, and never shorter than what it takes to see a stall.
fn soak(pipeline: &Pipeline, rule: &TierRule, accel: Accel) -> Duration {
    let limits = &pipeline.limits;
    let least = limits.stall.max(limits.blocked).mul_f64(accel.scale()) + Duration::from_secs(10);
    pipeline.phases.soak.max(rule.exposure.soak).max(least)
}

/// The trials of an ordinary run.
fn sequence(
    pipeline: &Pipeline,
    with: &Resolved,
    (needed, soaks): (u32, u32),
) -> Result<Vec<Trial>, PlanError> {
    if let Some(release) = &with.image.release {
        for patch in &with.patches {
            patch.check_release(&with.image.name, release)?;
        }
    }
    let tier = with.tier;
    let independent = with.mode.is_independent();
    let stacked = if independent { 1 } else { with.patches.len() };
    let applications = with.rule.applications;
    let share = format!("at most {:.0} % failures", applications.max_failure_rate * 100.0);
    let exposure = with.rule.exposure.max_failures_per_hour.unwrap_or_default();
    let exposure = format!("at most {exposure} failures per machine-hour");
    let all = [(Arm::Loaded, needed, &share), (Arm::Stack, needed, &share), (Arm::Soak, soaks, &exposure)];
    for (arm, needed, what) in all {
        let relevant = arm != Arm::Stack || stacked > 1;
        let most = pipeline.arms.of(arm);
        if let Some(most) = most.filter(|most| *most < needed && with.trials.is_none() && relevant) {
            return Err(PlanError::OutOfReach(format!(
                "arms.{arm}: tier {tier} needs {needed} clean {arm} trials ({what} at {:.0} % confidence), but the pipeline allows {most}: raise it to {needed} or more, or remove it; to only look for findings, use --trials {most}",
                with.rule.confidence_of(arm) * 100.0,
            )));
        }
    }
    has_arms(pipeline, with)?;
    let length = soak(pipeline, &with.rule, with.accel);
    let need = Need { loaded: needed, soaks, independent, soak: length };
    let counts = counts(pipeline, &with.rule, stacked, with.trials, &need);
    let trials = order(&counts, with.patches.len()).into_iter().zip(1..);
    Ok(trials.map(|(place, number)| place.trial(number, with.seed, 0)).collect())
}

/// The arms that the tier asks for.
fn has_arms(pipeline: &Pipeline, with: &Resolved) -> Result<(), PlanError> {
    let lacks = |arm: &&Arm| pipeline.arms.of(**arm) == Some(0);
    with.rule.arms.iter().find(lacks).map_or(Ok(()), |arm| {
        Err(PlanError::OutOfReach(format!(
            "arms.{arm}: tier {} requires this arm, but the pipeline has 0 trials of it",
            with.tier
        )))
    })
}

/// Loaded trials of each patch in one round, and soaks, unless the pipeline says how many.
const LOADED_A_ROUND: u32 = 4;

/// The turns of a rotation, and the trials of one round: those of each turn stay together, so that neighbours in time can be compared.
fn round(pipeline: &Pipeline, with: &Resolved, turns: &[Turn]) -> Result<(Vec<Turn>, Vec<Trial>), PlanError> {
    let turns: Result<Vec<Turn>, PlanError> =
        turns.iter().cloned().map(|turn| with_patches(turn, &with.patches)).collect();
    let mut turns = turns?;
    for (i, patch) in with.patches.iter().enumerate() {
        if !turns.iter().any(|t| t.patches.contains(&i)) {
            let kernel = |t: &Turn| t.image.release.clone().unwrap_or_default();
            let kernels: Vec<String> = turns.iter().map(kernel).collect();
            return Err(PlanError::OutOfReach(format!(
                "patch {}: built for kernel {}, but the images have {}",
                patch.file.display(),
                patch.release(),
                kernels.join(", ")
            )));
        }
    }
    has_arms(pipeline, with)?;
    let mut trials = Vec::new();
    for (k, turn) in turns.iter_mut().enumerate() {
        turn.workloads.push(pipeline.aging.workload());
        let of = |arm: Arm| match arm {
            Arm::Stack if turn.patches.len() < 2 => 0,
            Arm::Soak if with.rule.exposure.max_failures_per_hour.is_none() => 0,
            Arm::Loaded | Arm::Soak | Arm::Stack => pipeline.arms.of(arm).unwrap_or(LOADED_A_ROUND),
            Arm::Quiescent | Arm::Control | Arm::Reapply => pipeline.arms.of(arm).unwrap_or(0),
        };
        let counts: Vec<Count> =
            Arm::ALL.iter().map(|&arm| Count { arm, due: of(arm), all: of(arm), pairs: 0 }).collect();
        let first = u32::try_from(trials.len()).unwrap_or(u32::MAX);
        for (place, number) in order(&counts, turn.patches.len()).into_iter().zip(first.saturating_add(1)..) {
            let patches = place.patches.iter().map(|p| turn.patches[*p]).collect();
            trials.push(Trial { turn: k, patches, ..place.trial(number, with.seed, first) });
        }
    }
    Ok((turns, trials))
}

/// The turn with the candidates that are for its kernel.
fn with_patches(mut turn: Turn, patches: &[Patch]) -> Result<Turn, PlanError> {
    let fits =
        |p: &Patch| turn.image.release.as_ref().is_none_or(|r| p.check_release(&turn.image.name, r).is_ok());
    turn.patches = (0..patches.len()).filter(|i| fits(&patches[*i])).collect();
    if turn.patches.is_empty() && !patches.is_empty() {
        return Err(PlanError::OutOfReach(format!(
            "rotation.images: no candidate was built for {} (kernel {}): add one, or remove the image",
            turn.image.name,
            turn.image.release.as_deref().unwrap_or("unknown")
        )));
    }
    Ok(turn)
}

/// splitmix64 (Steele, Lea, Flood 2014): small, well spread, the same everywhere.
pub(crate) fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
