//! Pure: pipeline file to plan, events, and judging a run. No I/O: files are read at the edge and handed in as text.
//!
//! `Pipeline::parse` -> `Plan::new` -> (the farm runs it) -> [`Event`]s -> [`Judge`] -> [`Verdict`].

mod cause;
mod compare;
mod consistency;
mod corpus;
mod detector;
pub mod duration;
pub mod event;
mod finding;
mod image;
mod independent;
mod judge;
mod kernel;
pub mod known;
mod mode;
mod patch;
mod pipeline;
pub mod plan;
mod qualify;
mod replaced;
mod rotation;
pub mod sequential;
pub mod simulation;
pub mod size;
mod stats;
mod tiers;
pub mod verdict;
mod wait;
mod words;
mod workload;
pub mod yaml;

pub use compare::ENOUGH_CPU;
pub use consistency::consistency;
pub use corpus::{Corpus, Elsewhere, Example};
pub use detector::Detector;
pub use event::{Body, Event, Scope, TrialEnd};
pub use finding::{Failure, Finding, FindingKind, ObservedKind, Rank, Rules, Source, WhileGathering};
pub use image::ImageFacts;
pub use independent::judge_independent;
pub use judge::{Judge, judge, plain_function};
pub use kernel::{rewrites_itself, version};
pub use mode::{Mode, Turn};
pub use patch::{Patch, PatchError, Severity, Sidecar, file_names, hex, needed_modules};
pub use pipeline::{
    AGING, AUTO, Aging, Arms, Dump, Gathering, Limits, MachineShape, Phases, Pipeline, Rotation,
};
pub use plan::{Length, Plan, PlanError, Resolved, Start, Trial};
pub use qualify::{Found, Row, Score, needed_kinds, score};
pub use replaced::{Replaced, replaced_functions};
pub use rotation::SoFar;
pub use sequential::trials_needed;
pub use stats::{fisher, upper_bound};
pub use tiers::{Applications, Exposure, TierRule, Tiers, check_prior, check_severity};
pub use verdict::{Bound, Outcome, Verdict};
pub use wait::{Frame, Noted, Wait, Waits, without_address};
pub use words::{Accel, Arm, Phase, Tier, counted};
pub use workload::{Run, Scalar, Workload};
