//! The plan: all that a run will do, resolved and hashed before the first boot. Execution makes no choices.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::patch::{Patch, PatchError, hex};
use crate::{Accel, Arm, Pipeline, Tier, Workload};

/// Version of `plan.json`, `journal.jsonl` and `verdict.json`.
pub const SCHEMA: u32 = 1;

/// What is known of an image when planning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Recipe name.
    pub name: String,
    /// Content hash of the recipe, in hex.
    pub hash: String,
    /// Kernel release, if it can be read without booting.
    pub release: Option<String>,
}

/// What a plan is made from, besides the pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The image.
    pub image: ImageFacts,
    /// The pipeline's workloads, in its order.
    pub workloads: Vec<Workload>,
    /// The candidate.
    pub patch: Patch,
    /// KVM or emulation.
    pub accel: Accel,
    /// Machines at once.
    pub jobs: u32,
    /// Tier asked for, if not the pipeline's.
    pub tier: Option<Tier>,
    /// Varies the moments of applying and what the workloads do.
    pub seed: u64,
}

/// All that a run will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of klpfarm.
    pub farm: String,
    /// The tier in question.
    pub tier: Tier,
    /// The candidate.
    pub patch: Patch,
    /// The image.
    pub image: ImageFacts,
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
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// The trials, in the order in which they start.
    pub trials: Vec<Trial>,
}

/// One machine of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// From 1; names the folder `trials/N`.
    pub number: u32,
    /// Its arm.
    pub arm: Arm,
    /// Added to the baseline, so that trials apply at different moments.
    #[serde(with = "crate::duration")]
    pub jitter: Duration,
    /// Seed of this trial's workloads.
    pub seed: u64,
}

impl Plan {
    /// Make the plan.
    ///
    /// # Errors
    /// If the patch does not fit the image.
    pub fn new(pipeline: &Pipeline, with: Resolved) -> Result<Self, PatchError> {
        if let Some(release) = &with.image.release {
            with.patch.check_release(&with.image.name, release)?;
        }
        let trials = order(pipeline)
            .into_iter()
            .zip(1..)
            .map(|(arm, number)| {
                let seed = mix(with.seed ^ mix(u64::from(number)));
                Trial { number, arm, jitter: Duration::from_millis(mix(seed) % 2000), seed }
            })
            .collect();
        Ok(Self {
            schema: SCHEMA,
            farm: env!("CARGO_PKG_VERSION").to_owned(),
            tier: with.tier.unwrap_or(pipeline.tier),
            patch: with.patch,
            image: with.image,
            accel: with.accel,
            scale: with.accel.scale(),
            jobs: with.jobs,
            seed: with.seed,
            pipeline: pipeline.clone(),
            workloads: with.workloads,
            trials,
        })
    }

    /// SHA-256 of the plan, in hex.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// A limit of the pipeline, scaled for this accelerator.
    pub fn scaled(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.scale)
    }

    /// The soak as it will be: never shorter than what it takes to see a stall.
    pub fn soak(&self) -> Duration {
        let limits = &self.pipeline.limits;
        let least = self.scaled(limits.stall.max(limits.blocked)) + Duration::from_secs(10);
        self.pipeline.phases.soak.max(least)
    }

    /// Folder of a trial below the run folder.
    pub fn trial_dir(number: u32) -> PathBuf {
        PathBuf::from("trials").join(number.to_string())
    }
}

/// Loaded, control, quiescent, and again: neighbours in time are compared, because a shared host's speed drifts.
fn order(pipeline: &Pipeline) -> Vec<Arm> {
    let rounds = Arm::ALL.iter().map(|a| pipeline.arms.of(*a)).max().unwrap_or(0);
    let mut arms = Vec::new();
    for round in 0..rounds {
        for arm in [Arm::Loaded, Arm::Control, Arm::Quiescent] {
            if round < pipeline.arms.of(arm) {
                arms.push(arm);
            }
        }
    }
    arms
}

/// splitmix64 (Steele, Lea, Flood 2014): small, well spread, the same everywhere.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
