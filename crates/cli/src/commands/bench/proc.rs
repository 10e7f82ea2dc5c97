//! What Linux tells of processes: parsing, pure, and the few reads.

use std::time::Duration;

/// Ticks a second in `/proc/PID/stat` (`USER_HZ`, proc(5)): 100 on every architecture that QEMU and livepatches share.
const TICKS: u64 = 100;

/// From `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: String,
    pub(super) parent: u32,
    /// User and system time of all its threads, in a resolution of 10 ms.
    pub(super) cpu: Duration,
}

impl Stat {
    /// The name stands in parentheses and may hold any character, these included.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(") ")?;
        let (_, comm) = before.split_once(" (")?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        // proc(5) counts from 1 and from the process id: state is field 3, parent 4, utime 14, stime 15.
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self {
            comm: comm.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            cpu: Duration::from_millis(ticks * (1000 / TICKS)),
        })
    }

    /// This process.
    pub(super) fn own() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/stat").ok()?)
    }
}

/// Memory that a process has, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// What it alone has written. Pages of files that nobody else happens to map just now are not in it: the kernel calls them private
    /// too, but they are the page cache's, and the next fork shares them.
    pub(super) private: u64,
    /// Proportional set size: all that is mapped, divided among those who map it.
    pub(super) pss: u64,
}

impl Memory {
    /// From `/proc/PID/smaps_rollup`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(Self { private: kib(text, "Private_Dirty:")? << 10, pss: kib(text, "Pss:")? << 10 })
    }

    /// Of the process `pid`, which must be ours to look at.
    pub(super) fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
    }
}

/// This process' resident memory and its peak, in bytes.
pub(super) fn resident() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    Some((kib(&text, "VmRSS:")? << 10, kib(&text, "VmHWM:")? << 10))
}

/// Let the peak begin anew (proc(5), `clear_refs`).
pub(super) fn reset_peak() {
    // Where that is not allowed, the peak is that since the start: too large, but not wrong.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Children of this process whose name begins with `name`.
pub(super) fn children(name: &str) -> Vec<u32> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Stat::parse(&text).is_some_and(|s| s.parent == own && s.comm.starts_with(name))
    };
    pids.filter(is_child).collect()
}

/// The processor's name, from `/proc/cpuinfo`.
pub(super) fn cpu_model(text: &str) -> Option<&str> {
    text.lines().find_map(|l| Some(l.strip_prefix("model name")?.split_once(':')?.1.trim()))
}

/// The number in a line `KEY   N kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let text = "4242 (a) b (c) S 17 4242 0 0 -1 4194304 100 0 0 0 150 25 3 4 20 0 1 0 99 1000 200\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.comm.as_str(), stat.parent), ("a) b (c", 17));
        assert_eq!(stat.cpu, Duration::from_millis(1750));
        assert_eq!(Stat::parse("4242 (short) S 17"), None);
    }

    #[test]
    fn memory_is_read_from_its_own_lines() {
        let text = "55b9-7ffd ---p 00000000 00:00 0    [rollup]\nRss:    1680 kB\nPss:     277 kB\nPss_Dirty:   112 kB\n\
                    Private_Clean:    44 kB\nPrivate_Dirty:   112 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { private: 112 << 10, pss: 277 << 10 }));
        assert_eq!(Memory::parse("Pss: 5 kB\n"), None);
        assert_eq!(Memory::parse("Pss: 5\nPrivate_Clean: 1 kB\nPrivate_Dirty: 1 kB\n"), None);
    }

    #[test]
    fn the_processor_is_named() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n"), Some("AMD EPYC"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }

    /// What this kernel writes can be read.
    #[test]
    fn this_process_is_found() {
        assert_eq!(Stat::own().unwrap().parent, std::os::unix::process::parent_id());
        let (now, peak) = resident().unwrap();
        assert!(now > 0 && peak > 0);
        assert!(Memory::of(std::process::id()).unwrap().private > 0);
    }
}
