//! What can go wrong with a machine: always the farm's trouble, never the patch's.

use std::path::PathBuf;

/// A failure to run or reach a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The QEMU binary is missing.
    #[error("can't start {program}: {source}; install QEMU (Debian: apt-get install qemu-system-x86)")]
    NoQemu {
        /// What was to be run.
        program: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// QEMU ended before its sockets were there.
    #[error("QEMU ended at once ({status}): {stderr}")]
    EndedEarly {
        /// Exit status.
        status: String,
        /// What it wrote.
        stderr: String,
    },
    /// A file or socket of the machine.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A machine can't go on from a checkpoint.
    #[error(
        "{}: a machine can't go on from this: {reason}; remove the checkpoint (`klpfarm checkpoint rm`), the next run makes it again",
        .path.display()
    )]
    Unfit {
        /// The file that does not fit.
        path: PathBuf,
        /// Why, in QEMU's words where it said something.
        reason: String,
    },
    /// A machine can't leave a checkpoint.
    #[error("no checkpoint was made: {0}")]
    NotCheckpointed(String),
    /// A QMP command failed.
    #[error("QMP {command}: {reason}")]
    Qmp {
        /// Command.
        command: &'static str,
        /// Why.
        reason: String,
    },
    /// The host does not connect us to the port that leads to the guest's SSH. QEMU's end of it takes connections whatever the guest
    /// does.
    #[error("the host does not connect klpfarm to the machine's SSH port {port}: {reason}")]
    Port {
        /// On the loopback interface.
        port: u16,
        /// Why.
        reason: String,
    },
    /// Calls can't be counted.
    #[error("counting in QEMU: {0}")]
    Counts(String),
    /// SSH failed.
    #[error("SSH: {0}")]
    Ssh(String),
}
