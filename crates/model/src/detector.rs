//! The parts of klpfarm, of the kernel and of the machine that watch for trouble. Each finding kind is reported by one of them
//! ([`crate::Rules::detector`]); others add to what a finding says.

use crate::words::words;

words! {
    /// Who watches for what. One that cannot work on a guest or host is named in the verdict, with the reason.
    Detector {
        /// Share of time that threads spend asleep, from `/proc/PID/schedstat`: calls that sleep where none slept before.
        AsleepShare = "asleep-share",
        /// Kernel stacks of blocked tasks, after which hangs are named.
        BlockedStacks = "blocked-stacks",
        /// Speed of the workloads beside control trials.
        Comparison = "comparison",
        /// The console: whether what is written to the kernel's log comes out, and how much does.
        Console = "console",
        /// Registers of the virtual CPUs.
        CpuStuck = "cpu-stuck",
        /// Lockdep and KASAN together: a kernel that is built for finding faults.
        DebugKernel = "debug-kernel",
        /// The kernel's hard lockup (NMI) watchdog.
        HardLockup = "hard-lockup",
        /// The kernel's hung-task reports (khungtaskd).
        HungTask = "hung-task",
        /// Reports of the kernel on the console that need nothing to be set up in the kernel.
        KernelReports = "kernel-reports",
        /// The kernel's memory leak detector.
        Kmemleak = "kmemleak",
        /// Applying, switching and taking back a patch, as the kernel answers and sysfs says.
        Livepatch = "livepatch",
        /// The kernel's checks of locks.
        Lockdep = "lockdep",
        /// Events of QEMU: restarts, power-off, watchdog.
        Machine = "machine",
        /// The kernel's debug objects.
        Odebug = "odebug",
        /// The pvpanic device.
        Panicked = "panicked",
        /// The probe's own lines.
        Probe = "probe",
        /// Progress of workload threads and of all tasks.
        Progress = "progress",
        /// The kernel's RCU stall reports.
        RcuStall = "rcu-stall",
        /// Calls of the patched functions.
        Reach = "reach",
        /// Memory, files and tasks that are not given back, beside control trials.
        ResourcesLeaked = "resources-leaked",
        /// What the workloads check of each answer they get.
        Results = "results",
        /// A sanitizer of the kernel: KASAN, KFENCE, KCSAN, KMSAN, UBSAN.
        Sanitizer = "sanitizer",
        /// `/proc/slabinfo`: which slab leaks.
        Slabs = "slabs",
        /// The kernel's soft lockup watchdog.
        SoftLockup = "soft-lockup",
        /// Fresh SSH logins.
        Ssh = "ssh",
        /// Magic sysrq over the serial line, for stacks of a machine whose probe is dead.
        Sysrq = "sysrq",
        /// The kernel's taint flags.
        Taint = "taint",
        /// The kernel's warnings.
        Warning = "warning",
    }
}

#[cfg(test)]
mod tests {
    use super::Detector;

    /// Lists of detectors in files and verdicts are sorted by their words.
    #[test]
    fn the_order_is_that_of_the_words() {
        assert!(Detector::ALL.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str()));
    }
}
