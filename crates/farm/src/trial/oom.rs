//! Whose process the kernel killed when memory ran out: the workload's, or one that guest and farm live on.

use klpfarm_kmsg::{Kind, Report};

/// The probe starts the workloads with this, so that they go first (klpfarm-stress, `launch`). Kernels since 5.4 say it
/// where they tell whom they killed.
const WORKLOADS_FIRST: &str = "oom_score_adj:800";

/// What of a process name the kernel keeps, in bytes.
const COMM: usize = 15;

/// Completes the title of an out-of-memory report, and names the workload whose process was killed, if one's was.
/// `workloads` are the names of those that run. Other reports stay as they are.
pub(super) fn tell_apart(report: &mut Report, workloads: &[String]) -> Option<String> {
    if report.kind != Kind::Oom {
        return None;
    }
    let comm = report.task.as_deref()?.rsplit_once(':')?.0;
    let known = workloads.iter().find(|name| name.get(..COMM).unwrap_or(name) == comm).map(String::as_str);
    let first = || report.text.contains(WORKLOADS_FIRST).then_some(comm);
    let workload = known.or_else(first).map(str::to_owned);
    report.title.push_str(if workload.is_some() { ", of the workload" } else { ", not of the workload" });
    workload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> (String, Option<String>) {
        let signals = klpfarm_kmsg::triage(format!("[    9.000000] {line}\n").as_bytes());
        let mut report = signals[0].report().unwrap().clone();
        let workload = tell_apart(&mut report, &["madvise-allocator".to_owned()]);
        (report.title, workload)
    }

    #[test]
    fn the_workload_and_the_rest() {
        let killed = |name: &str, adj: i32| {
            told(&format!(
                "Out of memory: Killed process 12 ({name}) total-vm:9kB, UID:0 pgtables:48kB oom_score_adj:{adj}"
            ))
        };
        let (title, workload) = killed("madvise-allocat", 800);
        assert_eq!(title, "out of memory: killed madvise-allocat, of the workload");
        assert_eq!(workload.as_deref(), Some("madvise-allocator"));
        assert_eq!(killed("stress-ng-vm", 800).1.as_deref(), Some("stress-ng-vm"), "a program of the guest");
        for (name, adj) in [("sshd", -1000), ("klpfarm-stress", 0), ("systemd-journal", -250)] {
            let (title, workload) = killed(name, adj);
            assert_eq!(title, format!("out of memory: killed {name}, not of the workload"));
            assert_eq!(workload, None);
        }
    }

    #[test]
    fn old_kernels_tell_by_name() {
        let killed =
            |name: &str| told(&format!("Out of memory: Kill process 12 ({name}) score 9 or sacrifice child"));
        assert!(killed("madvise-allocat").1.is_some());
        assert!(killed("sshd").1.is_none());
    }

    #[test]
    fn other_reports_stay() {
        let (title, workload) = told("EXT4-fs error (device vda): ext4_find_entry:1: bad");
        assert_eq!((title.as_str(), workload), ("EXT4-fs error in ext4_find_entry", None));
    }
}
