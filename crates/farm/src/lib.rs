//! A run: a pure dispatcher for each trial (`trial`), the effects it asks for (`drive`, `evidence`), and the run that holds them
//! together (`run`).

mod calls;
mod code;
mod concurrency;
mod detect;
mod drive;
mod evidence;
mod fair;
mod guest;
mod host;
mod measure;
mod nonce;
mod pace;
mod past;
mod reach;
mod run;
mod secret;
mod stop;
mod trial;

pub use drive::Bench;
pub use evidence::Symbols;
pub use guest::digest;
pub use past::unfinished;
pub use reach::{Look, Method, ReachError, look, measure};
pub use run::{AgeError, Aged, Beginning, Sink, age, is_over, run};
pub use stop::Stop;
