//! Sinks of the event stream: journal, JUnit, verdict file, and what a person sees. They see nothing but plan, events and verdict.

mod causes;
mod clean;
mod folder;
#[cfg(test)]
mod golden;
mod journal;
mod junit;
mod lock;
mod summary;
mod terminal;
mod waits;

pub use causes::{cause_in_words, unavailable_in_words};
pub use clean::{one_line, printable};
pub use folder::{FolderError, Run, write_atomically};
pub use journal::Journal;
pub use junit::junit;
pub use lock::RunLock;
pub use summary::{summary, summary_with_known};
pub use terminal::{Terminal, View};
