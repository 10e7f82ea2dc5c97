//! One machine: QEMU's arguments, its process, QMP, serial console, probe channel and SSH.
//!
//! A [`Machine`] turns all that comes out of it into one stream of [`Output`]; deciding what it means is the farm's work.

mod accel;
mod channel;
mod checkpoint;
mod counts;
mod dump;
mod error;
mod group;
mod machine;
mod origin;
mod overlay;
mod owner;
mod qmp;
mod registers;
mod rekey;
mod spec;
mod ssh;

pub use accel::{KvmProbe, QEMU, QEMU_LEAST, probe_kvm, qemu_version, supported};
pub use checkpoint::Checkpointed;
pub use counts::{COUNT_LEAST, Counts};
pub use error::VmError;
pub use group::{GROUP_VARIABLE, Group, RunGroup};
pub use machine::{LeftOut, Machine, Output, SOCKETS};
pub use origin::{FORK_LEAST, Files, Origin, can_fork};
pub use owner::{Claimed, OWNER_VARIABLE, Owner};
pub use qmp::{Qmp, QmpEvent};
pub use registers::{CpuLook, parse_registers};
pub use spec::Spec;
pub use ssh::{Login, Ssh, SshOutput};

/// The guest binary of `crates/stress`, built statically by this crate's build script.
pub const GUEST_BINARY: &[u8] = include_bytes!(env!("KLPFARM_GUEST_BINARY"));
