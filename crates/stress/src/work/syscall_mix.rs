//! `syscall-mix`: a little of everything, so that a patch of almost any function is reached. Each unit makes a few calls
//! and checks what they are documented to do.

use super::units::{self, Unit};
use super::{Context, Stressor, syscall_files, syscall_ipc, syscall_units};

pub(super) static STRESSOR: Stressor = Stressor {
    name: "syscall-mix",
    about: "light use of some hundred system calls, documented results verified",
    params: &[],
    processes: "2",
    threads: "1",
    nice: "0",
    singles: super::no_singles,
    kinds: &[
        "identity",
        "clock",
        "sleep",
        "signal",
        "futex",
        "pipe",
        "socket",
        "poll",
        "event",
        "proc-read",
        "file",
        "memory",
        "sched",
        "ipc",
        "copy",
        "yardstick",
    ],
    run,
    prepare: super::nothing_to_prepare,
    clean: super::nothing_to_clean,
};

pub(super) const IDENTITY: usize = 0;
pub(super) const CLOCK: usize = 1;
pub(super) const SLEEP: usize = 2;
pub(super) const SIGNAL: usize = 3;
pub(super) const FUTEX: usize = 4;
pub(super) const PIPE: usize = 5;
pub(super) const SOCKET: usize = 6;
pub(super) const POLL: usize = 7;
pub(super) const EVENT: usize = 8;
pub(super) const PROC_READ: usize = 9;
pub(super) const FILE: usize = 10;
pub(super) const MEMORY: usize = 11;
pub(super) const SCHED: usize = 12;
pub(super) const IPC: usize = 13;
pub(super) const COPY: usize = 14;

fn run(context: &mut Context<'_>) {
    let units: Vec<&Unit> =
        [syscall_units::UNITS, syscall_files::UNITS, syscall_ipc::UNITS].into_iter().flatten().collect();
    units::run(context, &units);
}
