//! What the guest binary and the farm share: the [`wire`] protocol of the probe, and which stressors there are.
//!
//! # Versions of the protocol
//! 1. Workloads, progress, faults, commands, files.
//! 2. Machines forked from a checkpoint: [`wire::Ask::Resume`] parts twins (entropy, clock, the generators of running workloads),
//!    [`wire::Ask::Write`] and [`wire::Ask::Load`] bring a patch in without a shell and tell where all tasks were at that moment,
//!    [`wire::Ask::Livepatch`] and [`wire::Ask::Vitals`] answer from helper processes. Their replies carry an errno as status. After a
//!    checkpoint the probe may still hold half a line of the old host: a farm begins with an empty line. The stressor `aging` came with it.
//! 3. Latencies as counts by duration ([`hist`]), slow operations that slept apart from those that only waited for a CPU; memory that no
//!    counter accounts for, open files and zombies.
//! 4. Workloads as scripts ([`wire::Run::Script`]), which may say that a guest can't run them ([`wire::UNAVAILABLE`]).
#![forbid(unsafe_code)]

pub mod hist;
pub mod wire;

/// Parameters that every stressor has.
pub const COMMON_PARAMETERS: &[&str] = &["processes", "threads", "seed", "nice"];

/// The builtin stressors with their own parameters, so that a workload's mistakes are found before anything boots. A test of the
/// binary holds this list against the stressors themselves.
pub const STRESSORS: &[(&str, &[&str])] = &[
    ("madvise-allocator", &["map"]),
    ("page-fault-storm", &["map"]),
    ("fork-exec-churn", &[]),
    ("file-io-fsync", &["dir", "size"]),
    ("syscall-mix", &[]),
    ("socket-mix", &[]),
    ("bpf-programs", &[]),
    ("aging", &["dir", "cache", "files", "fragment", "residents", "churn"]),
];

/// What is wrong with a builtin stressor's name or parameter names, if anything.
///
/// # Errors
/// Names what is unknown and what there is.
pub fn check_stressor<'a>(name: &str, parameters: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    let Some((_, own)) = STRESSORS.iter().find(|(n, _)| *n == name) else {
        let names: Vec<&str> = STRESSORS.iter().map(|(n, _)| *n).collect();
        return Err(format!("no builtin stressor `{name}`; there are {}", names.join(", ")));
    };
    for parameter in parameters {
        if !own.contains(&parameter) && !COMMON_PARAMETERS.contains(&parameter) {
            let known: Vec<&str> = COMMON_PARAMETERS.iter().chain(*own).copied().collect();
            return Err(format!("{name} has no parameter `{parameter}`; known are {}", known.join(", ")));
        }
    }
    Ok(())
}
