//! Measuring what a workload calls: one fork of an idle machine in which it alone runs, while the entries into every function of the kernel
//! are counted.

mod fork;
mod tracer;

use std::collections::HashMap;
use std::time::Duration;

use klpfarm_model::Workload;
use klpfarm_reach::{BACKGROUND, Calls, Entry, Function, Outcome, Record, Symbols, attribute};
use klpfarm_vm::{Counts, VmError};

use crate::Bench;
use fork::{Fork, Trouble};

/// How calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By a plugin of QEMU's emulator, which the guest does not notice.
    Plugin,
    /// By samples of the guest's function tracer, which slows the guest down: where there is no emulator.
    Tracer,
}

impl Method {
    /// Its name in files and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Tracer => "tracer",
        }
    }
}

/// Why nothing was measured: always the farm's or the host's trouble.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] VmError),
    /// The guest does not do what any guest does.
    #[error("{0}")]
    Guest(String),
}

/// What an idle machine shows of its kernel.
#[derive(Debug, Clone)]
pub struct Look {
    /// `uname -r`.
    pub release: String,
    /// All its functions.
    pub symbols: Symbols,
}

/// Look at the kernel of the bench's machine, which must be a fork of an idle one.
///
/// # Errors
/// If the machine can't be run, or hides its symbols.
pub async fn look(bench: &Bench) -> Result<Look, ReachError> {
    let mut fork = Fork::start(bench, false).await?;
    let looked = async {
        let symbols = fork.symbols(false).await?;
        if symbols.is_empty() {
            let message = "the guest's /proc/kallsyms holds no addresses: is its user root, and kernel.kptr_restrict below 2?";
            return Err(ReachError::Guest(message.into()));
        }
        Ok(Look { release: fork.release().to_owned(), symbols })
    };
    let looked = looked.await;
    fork.close().await;
    looked
}

/// Counts of one machine, by address.
struct Counted {
    before: Counts,
    begun: Counts,
    end: Counts,
    outcome: Outcome,
    /// Of the modules that were loaded at the end.
    modules: Symbols,
}

/// Measure a workload, or with none what the machine does by itself, for so long after its first progress. A guest that can't run it is no
/// error but an outcome.
///
/// # Errors
/// If the machine can't be run, or the guest does not do what any guest does.
pub async fn measure(
    bench: &Bench,
    look: &Look,
    workload: Option<&Workload>,
    window: Duration,
    method: Method,
) -> Result<Record, ReachError> {
    let mut fork = Fork::start(bench, method == Method::Plugin).await?;
    let counted = match method {
        Method::Plugin => count(&mut fork, workload, window).await,
        Method::Tracer => sample(&mut fork, look, workload).await,
    };
    fork.close().await;
    let counted = match counted {
        Ok(counted) => counted,
        Err(Trouble::Farm(error)) => return Err(error),
        Err(Trouble::Unavailable(why)) => Counted {
            before: HashMap::new(),
            begun: HashMap::new(),
            end: HashMap::new(),
            outcome: Outcome::Unavailable(why),
            modules: Symbols::default(),
        },
    };
    let name = workload.map_or(BACKGROUND, |w| &w.name);
    Ok(record(counted, look, name, method, bench.spec.cpus))
}

fn record(counted: Counted, look: &Look, workload: &str, method: Method, machine_cpus: u32) -> Record {
    let Counted { before, begun, end, outcome, modules } = counted;
    let all = look.symbols.of_vmlinux().and(&modules);
    let calls = attribute(&all, &before, &begun, &end);
    let idle = look.symbols.modules();
    let entries = all.functions();
    let called = calls.iter().map(|(f, calls)| (f.clone(), (entry(&entries, f), *calls)));
    // What only this workload loads is known from it alone, called or not.
    let loaded = entries
        .iter()
        .filter(|(f, _)| f.object != klpfarm_reach::VMLINUX && !idle.contains(f.object.as_str()))
        .map(|(f, entry)| ((*f).clone(), (*entry, Calls::default())));
    let functions = loaded.chain(called).collect();
    let modules = modules.modules().into_iter().filter(|m| !idle.contains(m)).map(str::to_owned).collect();
    Record {
        workload: workload.to_owned(),
        method: method.as_str().to_owned(),
        machine_cpus,
        outcome,
        functions,
        modules,
    }
}

fn entry(all: &std::collections::BTreeMap<&Function, Entry>, function: &Function) -> Entry {
    all.get(function).copied().unwrap_or(Entry::Unknown)
}

async fn count(fork: &mut Fork, workload: Option<&Workload>, window: Duration) -> Result<Counted, Trouble> {
    let before = fork.counts().await?;
    let (ordered, available) = (fork.at_ms(), fork.available_kib());
    if let Some(workload) = workload {
        fork.start_workload(workload).await?;
    }
    let begun = fork.counts().await?;
    let (begun_ms, busy) = (fork.at_ms(), fork.busy().await?);
    fork.run_until(begun_ms + window.as_millis() as u64).await?;
    let end = fork.counts().await?;
    let (end_ms, busy) = (fork.at_ms(), fork.busy().await?.share_since(busy));
    let modules = fork.symbols(true).await?;
    let outcome = Outcome::Measured {
        window_ms: end_ms - begun_ms,
        setup_ms: begun_ms - ordered,
        cpus: busy * f64::from(fork.cpus()),
        memory_mib: available.saturating_sub(fork.least_available_kib()) >> 10,
    };
    Ok(Counted { before, begun, end, outcome, modules })
}

/// The same by the guest's tracer: calls of samples, and none while starting.
async fn sample(fork: &mut Fork, look: &Look, workload: Option<&Workload>) -> Result<Counted, Trouble> {
    let (ordered, available) = (fork.at_ms(), fork.available_kib());
    if let Some(workload) = workload {
        fork.start_workload(workload).await?;
    }
    let (begun_ms, busy) = (fork.at_ms(), fork.busy().await?);
    let (traced, window_ms) = fork.traced().await?;
    let busy = fork.busy().await?.share_since(busy);
    let modules = fork.symbols(true).await?;
    let all = look.symbols.of_vmlinux().and(&modules);
    let mut end = Counts::new();
    for (address, calls) in traced {
        if let Some(beginning) = all.beginning(address) {
            *end.entry(beginning).or_default() += calls;
        }
    }
    let outcome = Outcome::Measured {
        window_ms,
        setup_ms: begun_ms - ordered,
        cpus: busy * f64::from(fork.cpus()),
        memory_mib: available.saturating_sub(fork.least_available_kib()) >> 10,
    };
    Ok(Counted { before: HashMap::new(), begun: HashMap::new(), end, outcome, modules })
}
