//! What the classifier tells its caller.

use crate::Kind;
use serde::{Deserialize, Serialize};

/// One thing the kernel said that matters to the farm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "kebab-case")]
pub enum Signal {
    /// Kernel trouble.
    Report(Report),
    /// A `Linux version X` line. The second in one console is an unexpected reboot; the caller counts.
    Boot {
        /// Line number in the stream, from 1.
        line: u64,
        /// The release, as `uname -r` says it.
        release: String,
    },
    /// A step in the life of a livepatch.
    Livepatch {
        /// Line number in the stream, from 1.
        line: u64,
        /// Name of the patch; the one last named where the message names none; empty if none was.
        patch: String,
        /// The step.
        state: LivepatchState,
    },
    /// The console says that text is missing here: what follows may be incomplete.
    Lost {
        /// Line number in the stream, from 1.
        line: u64,
        /// How many messages, if the kernel says.
        count: Option<u64>,
    },
    /// A detector of the kernel says that it cannot fire, or will not any more.
    Blind {
        /// Line number in the stream, from 1.
        line: u64,
        /// Reports of this kind, and others of the same detector, are not to be expected.
        kind: Kind,
        /// The message.
        reason: String,
    },
}

impl Signal {
    /// The report, if it is one.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Signal::Report(report) => Some(report),
            _ => None,
        }
    }

    /// Line number of the (first) line it stems from, from 1.
    pub fn line(&self) -> u64 {
        match self {
            Signal::Report(report) => report.line,
            Signal::Boot { line, .. }
            | Signal::Livepatch { line, .. }
            | Signal::Lost { line, .. }
            | Signal::Blind { line, .. } => *line,
        }
    }
}

/// One report of the kernel, from its header to its last line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The family.
    pub kind: Kind,
    /// The same for the same defect: no address, pid, CPU, time, offset or compiler suffix.
    pub title: String,
    /// The function to look at first, as in the symbol table but without compiler suffixes.
    pub function: Option<String>,
    /// `COMM:PID` of the task the report is about; out of memory, the one that was killed.
    pub task: Option<String>,
    /// CPU the report is about.
    pub cpu: Option<u32>,
    /// Line number of the header in the stream, from 1.
    pub line: u64,
    /// The text is incomplete or mixed with another report: title and function are a guess.
    pub corrupted: bool,
    /// The machine panicked in consequence.
    pub panicked: bool,
    /// The raw lines without control characters, at most 64 KiB.
    pub text: String,
}

/// Steps in the life of a livepatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LivepatchState {
    /// `enabling patch 'X'`: on 4.4 the only message, the patch is in force at once.
    Enabling,
    /// `disabling patch 'X'` (before 4.12).
    Disabling,
    /// `'X': starting patching transition` (4.12 and newer).
    Patching,
    /// `'X': starting unpatching transition`.
    Unpatching,
    /// `'X': patching complete`.
    Patched,
    /// `'X': unpatching complete`.
    Unpatched,
    /// `signaling remaining tasks`: some tasks did not switch for 15 s.
    Signaling,
    /// `'X': reversing transition`, `canceling patching transition`.
    Reversing,
    /// `forcing remaining tasks to the patched state`.
    Forced,
    /// `applying patch 'X' to loading module 'M'`.
    ApplyingToModule,
    /// `reverting patch 'X' on unloading module 'M'`.
    RevertingFromModule,
    /// `tainting kernel with TAINT_LIVEPATCH`: a livepatch module was loaded.
    Loaded,
}
