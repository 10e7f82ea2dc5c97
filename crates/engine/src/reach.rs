//! Which workloads call which functions: the map of an image, measuring it, and choosing workloads by it.

mod choose;
mod map;
mod measure;
mod store;

pub(crate) use choose::{Request, reached};
pub use map::{Map, not_there, rate, unpatchable};
pub use measure::{Measurement, default_method, measure};
