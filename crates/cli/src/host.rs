//! What this host has: the accelerator, memory, disk.

use std::path::Path;

use klpfarm_model::Accel;
use klpfarm_vm::KvmProbe;

use crate::failure::Failure;

/// The accelerator to use, and why, in words.
pub(crate) async fn accel(wanted: Option<Accel>) -> Result<(Accel, String), Failure> {
    if let Some(accel) = wanted {
        return Ok((accel, format!("{accel}, as asked for")));
    }
    match klpfarm_vm::probe_kvm().await.map_err(Failure::farm)? {
        KvmProbe::Works(ms) => Ok((Accel::Kvm, format!("kvm (a tiny guest ran in {ms} ms)"))),
        KvmProbe::Fails(why) => {
            Ok((Accel::Tcg, format!("tcg, emulation: KVM does not run guests here: {why}")))
        }
    }
}

/// Memory that can be had, in MiB.
pub(crate) fn available_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// Free disk space below `dir` (or its nearest existing parent), in MiB.
pub(crate) fn free_disk_mib(dir: &Path) -> Option<u64> {
    let dir = dir.ancestors().find(|d| d.exists())?;
    let stat = nix::sys::statvfs::statvfs(dir).ok()?;
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64) >> 20)
}

/// Memory QEMU needs beside the guest's, in MiB. Measured: 60 to 150 under emulation.
pub(crate) const QEMU_OVERHEAD_MIB: u64 = 200;

/// How many machines of `cpus` and `memory_mib` to run at once. All three arms side by side are wanted even on a small host: they see the
/// same disturbances, and a soak takes its time anyway.
pub(crate) fn jobs(wanted: Option<u32>, trials: u32, cpus: u32, memory_mib: u32) -> Result<u32, Failure> {
    let each = u64::from(memory_mib) + QEMU_OVERHEAD_MIB;
    let available = available_memory_mib().unwrap_or(each);
    let fit = u32::try_from(available / each).unwrap_or(u32::MAX);
    if let Some(wanted) = wanted {
        if wanted > fit {
            return Err(Failure::input(format!(
                "--jobs {wanted} needs {} MiB of memory, but only {available} MiB are available: at most {fit} machines of {memory_mib} MiB fit",
                u64::from(wanted) * each
            )));
        }
        return Ok(wanted);
    }
    if fit == 0 {
        return Err(Failure::farm(format!(
            "a machine needs {each} MiB of memory, but only {available} MiB are available"
        )));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    Ok((cores / cpus.max(1)).max(3).min(fit).min(trials.max(1)))
}

/// Remove what a killed farm left in `dir`: folders named `prefix`, its process id, a dash and more, when no such process lives.
pub(crate) fn sweep(dir: &Path, prefix: &str) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(prefix)?.split_once('-')).map(|(pid, _)| pid);
        let number = pid.filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        if number.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another user's is not ours to remove, and can't be.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mine = format!("klpfarm-{}-a", std::process::id());
        // Process ids end at 4194304 (kernel: PID_MAX_LIMIT).
        for name in [mine.as_str(), "klpfarm-4194305-b", "klpfarm-test-c", "klpfarm-x", "other-4194305-d"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path(), "klpfarm-");
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        left.sort();
        let mut expected = [mine.as_str(), "klpfarm-test-c", "klpfarm-x", "other-4194305-d"];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
