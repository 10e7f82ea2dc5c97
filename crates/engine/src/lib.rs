//! Everything between a request and a run, for whoever asks: the command line, a page, a service.
//!
//! [`plan::resolve`] turns names into a plan and says all that is wrong with them; [`run::execute`] runs it in a folder, makes the
//! checkpoints that it needs, watches the disk and keeps the index of runs; [`run::conclude`] judges and reports. What happens
//! meanwhile goes to a [`Watcher`]. Nothing here prints, parses arguments or names one: an [`Error`] and a [`Note`] carry their
//! [`Remedy`] as data, and whoever shows them puts it in words.

pub mod aging;
pub mod catalog;
pub mod checkpoint;
pub mod disk;
mod error;
pub mod gc;
pub mod history;
mod home;
pub mod host;
pub mod image;
mod interrupts;
pub mod known;
pub mod machine;
mod maker;
mod note;
pub mod plan;
pub mod reach;
pub mod resume;
pub mod run;
pub mod sign;
pub mod signing;
pub mod verify;

pub use error::{Error, Kind};
pub use home::home;
pub use interrupts::Interrupts;
pub use note::{Note, Remedy, Watcher};

/// What everything here that can fail comes to.
pub type Result<T, E = Error> = std::result::Result<T, E>;
