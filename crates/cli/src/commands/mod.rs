//! One file a subcommand: its arguments, what it prints, its exit code. The work is done by `klpfarm-engine`.

pub(crate) mod age;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod db;
pub(crate) mod doctor;
pub(crate) mod gc;
pub(crate) mod image;
pub(crate) mod judge;
pub(crate) mod key;
pub(crate) mod module;
pub(crate) mod plan;
pub(crate) mod qualify_detectors;
pub(crate) mod reach;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod sign;
pub(crate) mod trend;
pub(crate) mod triage;
pub(crate) mod verify;
