//! The index of all runs: `history.sqlite` in the farm's home.
//!
//! The journals are the truth, this is an index of them: what is lost here is read again from the run folders
//! ([`History::rebuild`]). SQLite's one home.

mod error;
mod extract;
mod index;
mod night;
mod runs;
mod schema;
mod trend;
mod write;

pub use error::HistoryError;
pub use index::{Rebuilt, Refreshed};
pub use night::{night, parse_since};
pub use runs::{FindingSeen, OUTCOMES, PatchSeen, RunFilter, RunSeen};
pub use schema::History;
pub use trend::{FindingNight, FindingTrend, Hit, RateNight, RateTrend, TitleSeen, TrendFilter, Trends};
