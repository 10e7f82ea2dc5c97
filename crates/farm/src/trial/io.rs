//! What goes into a trial's dispatcher, and what comes out of it.

use std::time::Duration;

use klpfarm_model::{Body, Phase, TrialEnd, Waits};
use klpfarm_stress::wire::ToGuest;
use klpfarm_vm::{CpuLook, Output, SshOutput};

/// What happens to a trial.
#[derive(Debug)]
pub(crate) enum Input {
    /// The guest runs, so many milliseconds after QEMU was started; or it could not be.
    Started(Result<u64, String>),
    /// Something came out of the machine.
    Output(Output),
    /// [`Action::Login`] ended: milliseconds, or why not.
    Login(Result<u64, NoLogin>),
    /// [`Action::Ssh`] ended.
    Ssh(Result<SshOutput, String>),
    /// [`Action::Rekey`] ended.
    Rekeyed(Result<(), String>),
    /// [`Action::Cpus`] ended: what the virtual CPUs do, or why that can't be told.
    Cpus(Result<Vec<CpuLook>, String>),
    /// [`Action::Status`] ended: QEMU's word for the state of the virtual CPUs, or why there is none.
    Status(Result<String, String>),
    /// [`Action::Collect`] ended.
    Collected(Collected),
    /// Another trial has learnt which functions the patches replace.
    Functions(Vec<String>),
    /// Time went by; comes several times a second.
    Tick,
    /// The trial is to end now, in this way.
    Stop(TrialEnd),
}

/// Why there was no login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoLogin {
    /// The guest's doing, as far as can be told.
    Guest(String),
    /// The host did not even connect us.
    Host,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Report it, as of this phase.
    Emit(Phase, Body),
    /// Log in afresh, run `true`, and keep the first connection that works for [`Action::Ssh`].
    Login {
        /// At most so long.
        limit: Duration,
    },
    /// Give the guest SSH keys of its own, and log in with them from now on.
    Rekey {
        /// At most so long.
        limit: Duration,
    },
    /// Press this magic-sysrq key on the serial line.
    Sysrq(&'static str),
    /// Look at the virtual CPUs.
    Cpus,
    /// Ask QEMU whether they run, and why not.
    Status,
    /// Run a command over the kept connection.
    Ssh {
        /// Shell line.
        command: String,
        /// Its standard input.
        input: Upload,
        /// At most so long.
        limit: Duration,
    },
    /// Say something to the probe.
    Tell(ToGuest),
    /// Give the guest fresh entropy and the host's clock, by this question.
    Refresh {
        /// [`ToGuest::id`].
        id: u64,
    },
    /// Write a piece of a patch file in the guest.
    Upload {
        /// [`ToGuest::id`].
        id: u64,
        /// Position in the plan.
        patch: usize,
        /// Which piece of [`CHUNK`] bytes.
        chunk: u64,
    },
    /// Gather evidence.
    Collect(Collect),
    /// End the machine; the trial is over.
    End(TrialEnd),
}

/// What is sent along with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upload {
    Nothing,
    GuestBinary,
}

/// A patch file goes to the guest in pieces of so many bytes: in base64 a piece stays below the longest line.
pub(crate) const CHUNK: u64 = 96 << 10;

/// Which evidence to gather.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collect {
    /// Tasks that make no progress, as the probe last saw them.
    pub(crate) blocked: String,
    /// What each thread of the workloads has done.
    pub(crate) counters: String,
    /// Processes of tasks that make no progress.
    pub(crate) concerned: Vec<u32>,
    /// Threads whose stack hangs whoever reads it.
    pub(crate) unreadable: Vec<u32>,
    /// Findings so far, in words.
    pub(crate) findings: Vec<String>,
    /// The guest's kernel; empty if it has not told.
    pub(crate) release: String,
    /// The probe answers: commands can be run in the guest.
    pub(crate) probe: bool,
    /// Tasks that hold up the transition to this state.
    pub(crate) stragglers: Option<u8>,
    /// At most so long in all.
    pub(crate) limit: Duration,
}

/// What was gathered.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// File below the trial's folder, and what it is.
    pub(crate) files: Vec<(String, String)>,
    /// Tasks that say something of the cause.
    pub(crate) waits: Vec<Waits>,
}
