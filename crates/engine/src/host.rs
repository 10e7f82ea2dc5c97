//! What this host has: the accelerator, memory, disk.

use std::path::Path;

use klpfarm_model::Accel;
use klpfarm_vm::KvmProbe;

use crate::{Error, Remedy, Result};

/// The accelerator to use, and why, in words.
///
/// # Errors
/// If QEMU cannot be run to try KVM.
pub async fn accel(wanted: Option<Accel>) -> Result<(Accel, String)> {
    if let Some(accel) = wanted {
        return Ok((accel, format!("{accel}, as requested")));
    }
    match klpfarm_vm::probe_kvm().await.map_err(Error::farm)? {
        KvmProbe::Works(ms) => Ok((Accel::Kvm, format!("kvm (a test guest ran in {ms} ms)"))),
        KvmProbe::Fails(why) => {
            Ok((Accel::Tcg, format!("tcg (emulation), because KVM does not work on this host: {why}")))
        }
    }
}

/// The processor that a guest sees: an emulated one is the same everywhere, under KVM it is the host's, and a checkpoint fits no other.
pub fn processor(accel: Accel) -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor_in(accel, &text)
}

fn processor_in(accel: Accel, cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    match (accel, model) {
        (Accel::Kvm, Some((_, name))) => format!("{accel} on {}", name.trim()),
        _ => accel.to_string(),
    }
}

/// Memory that can be had, in MiB.
pub fn available_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// Free disk space below `dir` (or its nearest existing parent), in bytes.
pub fn free_disk(dir: &Path) -> Option<u64> {
    let dir = dir.ancestors().find(|d| d.exists())?;
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

/// Whether some process holds a lock on the file, as far as the kernel's list tells. Looking takes no lock, and so keeps nobody from it.
pub fn is_locked(file: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(file) else { return false };
    let inode = std::os::unix::fs::MetadataExt::ino(&meta);
    inode_is_locked(&std::fs::read_to_string("/proc/locks").unwrap_or_default(), inode)
}

/// `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`, with `->` before the kind for one who waits. Device numbers are not compared:
/// some file systems tell others in `stat`.
fn inode_is_locked(locks: &str, inode: u64) -> bool {
    let of_line = |line: &str| {
        let place = line.split_whitespace().find(|word| word.matches(':').count() == 2)?;
        (!line.contains("->")).then(|| place.rsplit(':').next()?.parse::<u64>().ok()).flatten()
    };
    locks.lines().filter_map(of_line).any(|locked| locked == inode)
}

/// Memory QEMU needs beside the guest's, in MiB. Measured: 60 to 150 under emulation.
pub const QEMU_OVERHEAD_MIB: u64 = 200;

/// Virtual CPUs a core may carry. Trials wait for time to pass and not for work to be done, so that more at once are more trials an
/// hour; measured under emulation, four a core slow the load down twenty times, and then slowness begins to look like stalls.
const CPUS_PER_CORE: u32 = 3;

/// And so many where a kernel's CPUs wait for each other (see [`klpfarm_model::rewrites_itself`]): a trial of six minutes with three a core
/// takes one.
const CPUS_PER_CORE_IN_STEP: u32 = 1;

/// How many machines of `cpus` and `memory_mib` to run at once: as many as cores and memory carry, fewer if their CPUs are often `in_step`.
/// Memory is counted in full: forks share what they do not write to, but they may write to all of it.
///
/// # Errors
/// If the `wanted` number of machines does not fit, or not even one machine does.
pub fn jobs(wanted: Option<u32>, cpus: u32, memory_mib: u32, in_step: bool) -> Result<u32> {
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let each = u64::from(memory_mib) + QEMU_OVERHEAD_MIB;
    let available = available_memory_mib().unwrap_or(each);
    fit(wanted, Host { cores, available }, Machine { cpus, memory_mib, each, in_step })
}

/// Share of their time that the CPUs of each of so many machines can expect to get.
pub fn share(jobs: u32, cpus: u32) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    (cores / f64::from((jobs * cpus).max(1))).min(1.0)
}

struct Host {
    cores: u32,
    available: u64,
}

struct Machine {
    cpus: u32,
    memory_mib: u32,
    each: u64,
    in_step: bool,
}

fn fit(wanted: Option<u32>, host: Host, machine: Machine) -> Result<u32> {
    let Host { cores, available } = host;
    let Machine { cpus, memory_mib, each, in_step } = machine;
    let by_memory = u32::try_from(available / each).unwrap_or(u32::MAX);
    // One machine may have more CPUs than the host.
    let carried = |per_core: u32| (cores * per_core / cpus.max(1)).max(1);
    let by_cores = carried(CPUS_PER_CORE);
    match wanted {
        Some(wanted) if wanted > by_memory => Err(Error::input(format!(
            "{wanted} machines at once need {} MiB of memory, but only {available} MiB are available: at most {by_memory} machines of {memory_mib} MiB fit",
            u64::from(wanted) * each
        ))
        .with(Remedy::FewerMachines)),
        Some(wanted) if wanted > by_cores => Err(Error::input(format!(
            "{wanted} machines at once need {} virtual CPUs, but {cores} cores support at most {} ({CPUS_PER_CORE} per core): at most {by_cores} machines of {cpus} CPUs fit",
            u64::from(wanted) * u64::from(cpus),
            cores * CPUS_PER_CORE
        ))
        .with(Remedy::FewerMachines)),
        Some(wanted) => Ok(wanted),
        None if by_memory == 0 => Err(Error::farm(format!(
            "a machine needs {each} MiB of memory, but only {available} MiB are available"
        ))),
        None if in_step => Ok(carried(CPUS_PER_CORE_IN_STEP).min(by_memory)),
        None => Ok(by_cores.min(by_memory)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(wanted: Option<u32>, cores: u32, available: u64, cpus: u32) -> Result<u32, String> {
        let machine = Machine { cpus, memory_mib: 1000, each: 1200, in_step: false };
        fit(wanted, Host { cores, available }, machine).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn a_lock_is_seen_and_left_alone() {
        let text = "1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 4712 fe:00:99 0 EOF\n\
                    2: POSIX  ADVISORY  READ -1 08:02:5678 0 EOF\n";
        for (inode, expected) in [(1234, true), (5678, true), (99, false), (34, false), (4711, false)] {
            assert_eq!(inode_is_locked(text, inode), expected, "{inode}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_locked(file.path()));
        file.as_file().lock().unwrap();
        assert!(is_locked(file.path()));
        assert!(!is_locked(Path::new("/nowhere/run.lock")));
    }

    #[test]
    fn a_checkpoint_of_kvm_is_one_of_its_processor() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(processor_in(Accel::Kvm, text), "kvm on Some CPU @ 2 GHz");
        assert_eq!(processor_in(Accel::Tcg, text), "tcg");
    }

    #[test]
    fn machines_fit_cores_and_memory() {
        assert_eq!(fits(None, 2, 100_000, 2), Ok(3));
        assert_eq!(fits(None, 64, 12_500, 2), Ok(10));
        assert_eq!(fits(None, 1, 100_000, 8), Ok(1));
        assert_eq!(fits(Some(3), 2, 100_000, 2), Ok(3));
        let error = fits(Some(5), 2, 100_000, 2).unwrap_err();
        assert!(error.contains("need 10 virtual CPUs") && error.contains("at most 3 machines"), "{error}");
        let error = fits(Some(4), 64, 3000, 2).unwrap_err();
        assert!(error.contains("need 4800 MiB") && error.contains("at most 2 machines"), "{error}");
        assert!(fits(None, 2, 100, 2).unwrap_err().contains("needs 1200 MiB"));
        // Unless asked for more, machines in step have cores of their own.
        for (wanted, cores, jobs) in [(None, 2, 1), (None, 8, 4), (None, 1, 1), (Some(3), 2, 3)] {
            let machine = Machine { cpus: 2, memory_mib: 1000, each: 1200, in_step: true };
            assert_eq!(fit(wanted, Host { cores, available: 100_000 }, machine).unwrap(), jobs);
        }
    }
}
