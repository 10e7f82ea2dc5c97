//! Which workloads call which functions of a kernel. Pure: texts and numbers of a guest go in, a map comes out, which can be kept as
//! bytes and asked.

mod ask;
mod attribute;
mod choose;
mod record;
mod symbols;

pub use ask::{Answer, Caller, Found, Question, ask};
pub use attribute::{Calls, attribute};
pub use choose::{Choice, LEAST_RATE, MOST_OVERCOMMIT, Offer, Room, choose};
pub use record::{BACKGROUND, Kernel, Outcome, Record, RecordError, SCHEMA};
pub use symbols::{Entry, Function, Symbols, VMLINUX};
