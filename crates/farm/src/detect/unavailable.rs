//! What can't be seen on a guest or host: the one list of it, with the reason that stands in the verdict. Pure.
//!
//! What the guest tells is looked at once, while its kernel is set up; forks take it from their checkpoint. What only shows while a
//! machine runs (no console, no registers) is said by whoever notices, in words from here.

use klpfarm_model::{Body, Detector};

/// A detector that works only if a test in the guest's shell succeeds.
struct Check {
    detector: Detector,
    /// Succeeds if it can fire. The current folder is `/proc/sys/kernel`.
    test: &'static str,
    /// What is not seen otherwise.
    reason: &'static str,
}

const CHECKS: &[Check] = &[
    Check {
        detector: Detector::HungTask,
        test: "[ -w hung_task_timeout_secs ]",
        reason: "this kernel has no hung-task detector: hangs show by the workloads' progress and by tasks in state D only",
    },
    Check {
        detector: Detector::SoftLockup,
        test: r#"[ "$(cat soft_watchdog 2>/dev/null || cat watchdog 2>/dev/null)" = 1 ]"#,
        reason: "the kernel's watchdog is off: a CPU that goes round in the kernel shows by the workloads' progress only",
    },
    Check {
        detector: Detector::HardLockup,
        test: r#"[ "$(cat nmi_watchdog 2>/dev/null)" = 1 ]"#,
        reason: "no NMI watchdog in this guest: a CPU stuck with interrupts off is seen by its registers only (cpu-stuck)",
    },
    Check {
        detector: Detector::RcuStall,
        test: r#"[ "$(cat /sys/module/rcupdate/parameters/rcu_cpu_stall_suppress 2>/dev/null)" = 0 ]"#,
        reason: "RCU stall warnings are suppressed: a read section that never ends shows by its consequences only",
    },
    Check {
        detector: Detector::KernelReports,
        test: r#"[ "$(cut -f1 printk)" -ge 7 ] || grep -qw ignore_loglevel /proc/cmdline"#,
        reason: "the console's log level can't be raised: reports of the kernel reach the farm in part only",
    },
    Check {
        detector: Detector::Warning,
        test: r#"[ "$(cat panic_on_warn 2>/dev/null || echo 0)" = 0 ]"#,
        reason: "panic_on_warn is set: a warning shows as a panic",
    },
    Check {
        detector: Detector::BlockedStacks,
        test: "[ -r /proc/self/stack ]",
        reason: "no /proc/PID/stack: a hang can't be named after the function in which tasks wait",
    },
    Check {
        detector: Detector::AsleepShare,
        test: r#"[ -e /proc/1/schedstat ] && [ "$(cat /proc/1/schedstat)" != "0 0 0" ]"#,
        reason: "no /proc/PID/schedstat: calls that sleep where none slept before are not seen",
    },
    Check {
        detector: Detector::ResourcesLeaked,
        test: "grep -q ^SUnreclaim: /proc/meminfo && grep -q ^MemAvailable: /proc/meminfo",
        reason: "no SUnreclaim or MemAvailable in /proc/meminfo: leaks are not seen before memory is short",
    },
    Check {
        detector: Detector::Slabs,
        test: "[ -r /proc/slabinfo ]",
        reason: "no /proc/slabinfo: which slab leaks can't be told",
    },
    Check {
        detector: Detector::Panicked,
        test: "[ -e /sys/module/pvpanic ] || [ -e /sys/module/pvpanic_mmio ] || [ -e /sys/bus/acpi/drivers/pvpanic ] || modprobe -q pvpanic",
        reason: "no driver for the pvpanic device: a panic shows by the console and by silence only",
    },
    Check {
        detector: Detector::Livepatch,
        test: "[ -d /sys/kernel/livepatch ] || [ -e /sys/kernel/livepatch ]",
        reason: "this kernel lists no /sys/kernel/livepatch: is CONFIG_LIVEPATCH on?",
    },
    Check {
        detector: Detector::DebugKernel,
        test: r#"[ -e /proc/lockdep ] || grep -qs '^CONFIG_KASAN=y' "/boot/config-$(uname -r)""#,
        reason: "built without lockdep and KASAN: wrong lock order and use after free show by their damage only",
    },
];

/// Shell lines that say `blind DETECTOR REASON` of each detector that can't fire. To be run when the kernel has been set up.
pub(crate) fn shell() -> String {
    CHECKS
        .iter()
        .map(|Check { detector, test, reason }| {
            format!("{{ {test}; }} 2>/dev/null || echo \"blind {detector} {reason}\"\n")
        })
        .collect()
}

/// Read one line of the guest's answer.
pub(crate) fn read(line: &str) -> Option<Body> {
    let (detector, reason) = line.strip_prefix("blind ")?.split_once(' ')?;
    Some(body(detector.parse().ok()?, reason.to_owned()))
}

/// The kernel's reports are not heard, and why.
pub(crate) fn console(why: &str) -> Body {
    body(
        Detector::Console,
        format!("{why}: none of the detectors that read the kernel's reports sees anything"),
    )
}

/// Magic sysrq on the serial line is not answered.
pub(crate) fn sysrq() -> Body {
    body(
        Detector::Sysrq,
        "magic sysrq over the serial line is not answered: of a machine whose probe is dead, evidence has no stacks but those of an NMI"
            .to_owned(),
    )
}

/// The virtual CPUs' registers can't be had, and why.
pub(crate) fn cpus(why: &str) -> Body {
    body(
        Detector::CpuStuck,
        format!(
            "QEMU does not tell the CPUs' registers ({why}): a CPU with interrupts off shows by silence only"
        ),
    )
}

fn body(detector: Detector, reason: String) -> Body {
    Body::Blind { detector, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reason goes through a shell in double quotes, and stays on one line.
    #[test]
    fn every_check_survives_the_shell_and_is_read_back() {
        for check in CHECKS {
            let plain = |c: char| c.is_ascii_alphanumeric() || " -_/:?,()'".contains(c);
            assert!(check.reason.chars().all(plain), "{}", check.reason);
            let said = read(&format!("blind {} {}", check.detector, check.reason));
            assert_eq!(said, Some(body(check.detector, check.reason.to_owned())));
        }
        assert_eq!((read("anything else"), read("blind nobody x")), (None, None));
    }

    /// The real shell: what is missing is said, what is there is not.
    #[test]
    fn a_shell_says_what_is_missing() {
        let line = |test| {
            let check = Check { detector: Detector::Slabs, test, reason: "no x" };
            let text = format!(
                "{{ {}; }} 2>/dev/null || echo \"blind {} {}\"",
                check.test, check.detector, check.reason
            );
            String::from_utf8(
                std::process::Command::new("/bin/sh").args(["-c", &text]).output().unwrap().stdout,
            )
            .unwrap()
        };
        assert_eq!(line("[ -e /nowhere ] || [ -e /neither ]"), "blind slabs no x\n");
        assert_eq!(line("[ -e /nowhere ] || [ -e / ]"), "");
        let syntax = std::process::Command::new("/bin/sh").args(["-n", "-c", &shell()]).status().unwrap();
        assert!(syntax.success());
    }
}
