//! Reading `/proc` without ever taking another task's mmap lock: `stat`, `schedstat`, `wchan` and `comm` only.
//! A monitor that read `cmdline`, `maps`, `status` or `environ` would hang together with its patient.

use std::fs::File;
use std::io::Read;

/// What we take from one line of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) state: char,
    pub(crate) session: u32,
    /// User and system time, in clock ticks.
    pub(crate) ticks: u64,
    pub(crate) threads: u32,
    /// Start time in ticks since boot: together with the id it names one task for ever.
    pub(crate) start: u64,
}

/// Reads a line of `/proc/PID/stat`. The name may hold spaces and parentheses: it ends at the last `)`.
pub(crate) fn parse_stat(line: &str) -> Option<Stat> {
    let open = line.find('(')?;
    let close = line.rfind(')')?;
    let comm = line.get(open + 1..close)?.to_owned();
    // Field 3 (state) is the first here, so field N of proc(5) is number N - 3.
    let mut fields = line.get(close + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    let user: u64 = fields.nth(7)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let threads = fields.nth(4)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    let pid = line.get(..open)?.trim().parse().ok()?;
    Some(Stat { pid, comm, state, session, ticks: user.wrapping_add(system), threads, start })
}

/// A task seen by [`Scanner::scan`].
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) stat: Stat,
}

/// Walks all tasks with buffers of its own: nothing grows once it has seen the busiest moment.
#[derive(Default)]
pub(crate) struct Scanner {
    buffer: Vec<u8>,
    pids: Vec<u32>,
    tids: Vec<u32>,
    path: String,
}

impl Scanner {
    /// Calls `each` for every task (thread) there is now. Tasks that vanish meanwhile are left out.
    pub(crate) fn scan(&mut self, mut each: impl FnMut(Task)) {
        let mut pids = std::mem::take(&mut self.pids);
        numbers_in("/proc", &mut pids);
        for &pid in &pids {
            let Some(stat) = self.stat(pid, pid) else { continue };
            if stat.threads <= 1 {
                each(Task { pid, tid: pid, stat });
                continue;
            }
            let mut tids = std::mem::take(&mut self.tids);
            numbers_in(&format!("/proc/{pid}/task"), &mut tids);
            for &tid in &tids {
                if let Some(stat) = self.stat(pid, tid) {
                    each(Task { pid, tid, stat });
                }
            }
            self.tids = tids;
        }
        self.pids = pids;
    }

    /// `stat` of one task.
    pub(crate) fn stat(&mut self, pid: u32, tid: u32) -> Option<Stat> {
        parse_stat(&self.read(pid, tid, "stat")?)
    }

    /// How many time slices a task has had (`schedstat`), or its CPU ticks on kernels without that file.
    pub(crate) fn slices(&mut self, pid: u32, tid: u32, stat: &Stat) -> u64 {
        self.read(pid, tid, "schedstat")
            .and_then(|line| line.split_ascii_whitespace().nth(2)?.parse().ok())
            .unwrap_or(stat.ticks)
    }

    /// Nanoseconds a task has had a CPU, and has waited for one (`schedstat`).
    pub(crate) fn times(&mut self, pid: u32, tid: u32) -> Option<(u64, u64)> {
        let line = self.read(pid, tid, "schedstat")?;
        let mut fields = line.split_ascii_whitespace().map_while(|f| f.parse().ok());
        Some((fields.next()?, fields.next()?))
    }

    /// Where a task sleeps; empty if unknown.
    pub(crate) fn wchan(&mut self, pid: u32, tid: u32) -> String {
        self.read(pid, tid, "wchan").filter(|w| w != "0").unwrap_or_default()
    }

    fn read(&mut self, pid: u32, tid: u32, name: &str) -> Option<String> {
        use std::fmt::Write;
        self.path.clear();
        if pid == tid && name == "stat" {
            // The process's own file counts all threads' time; the thread's is wanted, but costs a longer path.
            write!(self.path, "/proc/{pid}/stat").ok()?;
        } else {
            write!(self.path, "/proc/{pid}/task/{tid}/{name}").ok()?;
        }
        self.buffer.clear();
        File::open(&self.path).ok()?.take(4096).read_to_end(&mut self.buffer).ok()?;
        Some(String::from_utf8_lossy(&self.buffer).into_owned())
    }
}

fn numbers_in(dir: &str, to: &mut Vec<u32>) {
    to.clear();
    if let Ok(entries) = std::fs::read_dir(dir) {
        to.extend(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()));
    }
}

/// How many file descriptors a process has; none if it is gone.
pub(crate) fn descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.flatten().count() as u64)
}

/// The value of a `Name:   123 kB` line of `/proc/meminfo`, in KiB.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
}

/// The first word of a file that is one line of numbers.
pub(crate) fn first<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

const PAGE_KIB: u64 = 4;

/// Memory in KiB that no counter of `/proc/meminfo` accounts for. A page that the kernel takes and forgets shows nowhere else.
///
/// User memory and page cache are counted by the lists that they stand on (`Active`, `Inactive`, `Unevictable`) and not by `AnonPages`
/// and `Cached`: a huge page of which the load has given back a part is no longer mapped as a whole and not yet free. On a sound
/// machine that made 20 MiB of noise. `Percpu` and `VmallocUsed` are left in it: what grows there is kernel memory as well, and stacks (which are in `VmallocUsed`
/// on newer kernels) are counted apart on all.
///
/// `zoneinfo_text` (`/proc/zoneinfo`) tells of the free pages that each CPU keeps for itself: `MemFree` does not have them, and they are as
/// many as 30 MiB.
///
/// None if a figure that every kernel has cannot be read: taken for zero it would look like a leak.
pub(crate) fn unaccounted(meminfo_text: &str, zoneinfo_text: &str) -> Option<u64> {
    let kib = |name| meminfo(meminfo_text, name).unwrap_or(0);
    let always = ["MemTotal", "MemFree", "Active", "Inactive", "Slab", "PageTables"];
    if always.iter().any(|name| meminfo(meminfo_text, name).is_none()) || !zoneinfo_text.contains("count:") {
        return None;
    }
    // The only lines that begin so.
    let pages = |l: &str| l.trim_start().strip_prefix("count:")?.trim().parse::<u64>().ok();
    let kept: u64 = zoneinfo_text.lines().filter_map(pages).sum();
    let known =
        ["MemFree", "Active", "Inactive", "Unevictable", "Slab", "PageTables", "KernelStack", "Hugetlb"];
    Some(kib("MemTotal").saturating_sub(known.map(kib).iter().sum::<u64>() + kept * PAGE_KIB))
}

/// The number of tasks in a line of `/proc/loadavg` (`0.00 0.01 0.05 1/123 456`).
pub(crate) fn tasks_in_loadavg(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAIL: &str = "D 1 42 41 0 -1 4194304 9 0 0 0 7 5 0 0 20 0 3 0 1234 0 0 18446744073709551615 0";

    #[test]
    fn names_with_spaces_and_parentheses() {
        for comm in ["bash", "a b", "a) (b", "((", ")", "x) D 1 2 3", ""] {
            let stat = parse_stat(&format!("77 ({comm}) {TAIL}")).unwrap();
            assert_eq!(stat.comm, comm);
            assert_eq!((stat.pid, stat.state, stat.session), (77, 'D', 41));
            assert_eq!((stat.ticks, stat.threads, stat.start), (12, 3, 1234));
        }
    }

    #[test]
    fn our_own_line_is_understood() {
        let own = std::process::id();
        let stat = Scanner::default().stat(own, own).unwrap();
        assert_eq!(stat.pid, own);
        let mut found = 0;
        Scanner::default().scan(|t| found += u32::from(t.pid == own));
        assert!(found >= 1);
    }

    proptest! {
        #[test]
        fn no_line_is_fatal(line in ".{0,80}", cut in 0usize..100) {
            let _ = parse_stat(&line);
            let full = format!("77 (a b) {TAIL}");
            let _ = parse_stat(&full[..cut.min(full.len())]);
        }
    }

    #[test]
    fn our_own_descriptors_are_counted() {
        let held: Vec<File> = (0..100).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(descriptors(std::process::id()) > held.len() as u64);
        assert_eq!(descriptors(u32::MAX), 0);
    }

    #[test]
    fn memory_and_load() {
        let text = "MemTotal:  1000 kB\nMemAvailable:    812 kB\nSlab: 7 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(812));
        assert_eq!(meminfo(text, "Mem"), None);
        let all = "MemTotal: 1000 kB\nMemFree: 300 kB\nActive:  60 kB\nActive(anon): 50 kB\nInactive: 40 kB\nSlab: 50 kB\nPageTables: 0 kB\nKernelStack: 9 kB\nPercpu: 4 kB\n";
        let kept = "  pagesets\n    cpu: 0\n              count: 3\n              high:  378\n    cpu: 1\n              count: 2\n";
        assert_eq!(unaccounted(all, kept), Some(521));
        // What can't be read is no leak.
        assert_eq!(unaccounted("", kept), None);
        assert_eq!(unaccounted(all, ""), None);
        assert_eq!(unaccounted(&all.replace("MemFree:", "Other:"), kept), None);
        assert_eq!(first("96 0 9223372036854775807\n"), Some(96));
        assert_eq!(tasks_in_loadavg("0.00 0.09 0.07 3/205 1234\n"), Some(205));
    }
}
