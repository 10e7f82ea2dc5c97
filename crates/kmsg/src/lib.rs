//! Kernel console text to findings: pure, streaming, without I/O.
//!
//! [`Classifier`] takes the bytes of a console as they come and gives [`Signal`]s; [`triage`] takes a whole log.
//! A line goes through these steps:
//!
//! 1. `records`: is it a field of a record (JSON, export and verbose forms of the journal)? Then the message is taken from it.
//!    `prefix` (with `heads`, `logcat`): what stands before the message (time stamp, caller, syslog head) and whether the kernel
//!    wrote it. `echo`: was it there a moment ago already?
//! 2. `candidate`: can the message be a header at all? A quick look, for every line; `skim` passes over most lines even before.
//! 3. `first_line` (with `oops`, `lockdep`, `single`, `quiet`, `arch`, `notice`): is the message the first line of a report, and of which (`header`)? Anchored at the start of the message, so that text which
//!    merely mentions such words is none.
//! 4. `body` (with `words`): what the line is within a report (`line`): stack frame, register, task line, end mark.
//! 5. `open`: one report while it grows; it must be *proven* by lines that only the kernel's own dump has,
//!    because a module can print any header it likes.
//! 6. `frames`: which function of the stack is guilty, with `machinery` (what never is) and `names` (how a function is called).
//! 7. `classifier`: which open report a line belongs to, when reports end, interleave or lose lines.
//!
//! Signals come when a report is complete, so their order is that of the reports' ends.

mod arch;
mod body;
mod candidate;
mod classifier;
mod echo;
mod first_line;
mod frames;
mod header;
mod heads;
mod kind;
mod line;
mod lockdep;
mod logcat;
mod machinery;
mod names;
mod notice;
mod oops;
mod open;
mod prefix;
mod quiet;
mod records;
mod scan;
mod signal;
mod single;
mod skim;
mod words;

pub use classifier::{Classifier, triage};
pub use kind::{Kind, Severity};
pub use machinery::is_machinery;
pub use signal::{LivepatchState, Report, Signal};
