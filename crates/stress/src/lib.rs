//! What the guest binary and the farm share: the [`wire`] protocol of the probe.
#![forbid(unsafe_code)]

pub mod wire;
