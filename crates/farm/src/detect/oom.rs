//! Whose process the kernel killed when memory ran out: the workload's, or one that guest and farm live on.

use klpfarm_kmsg::{Kind, Report};

/// The probe starts the workloads with this, so that they go first (klpfarm-stress, `launch`). Kernels since 5.4 say it
/// where they tell whom they killed.
const WORKLOADS_FIRST: &str = "oom_score_adj:800";

/// What of a process name the kernel keeps, in bytes.
const COMM: usize = 15;

/// Makes the title of an out-of-memory report say whose process was killed. Which of the workload's it was is chance: they are all one.
/// `workloads` are the names of those that run. Other reports stay as they are.
pub(crate) fn tell_apart(report: &mut Report, workloads: &[String]) {
    let Some((comm, _)) = report.task.as_deref().and_then(|task| task.rsplit_once(':')) else { return };
    if report.kind != Kind::Oom {
        return;
    }
    let known = workloads.iter().any(|name| name.get(..COMM).unwrap_or(name) == comm);
    if known || report.text.contains(WORKLOADS_FIRST) {
        report.title = "out of memory: processes of the workload are killed".to_owned();
    } else {
        report.title.push_str(", not of the workload");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "out of memory: processes of the workload are killed";

    fn told(line: &str) -> String {
        let signals = klpfarm_kmsg::triage(format!("[    9.000000] {line}\n").as_bytes());
        let mut report = signals[0].report().unwrap().clone();
        tell_apart(&mut report, &["madvise-allocator".to_owned()]);
        report.title
    }

    #[test]
    fn the_workload_and_the_rest() {
        let killed = |name: &str, adj: i32| {
            told(&format!(
                "Out of memory: Killed process 12 ({name}) total-vm:9kB, UID:0 pgtables:48kB oom_score_adj:{adj}"
            ))
        };
        assert_eq!(killed("madvise-allocat", 800), OURS);
        assert_eq!(killed("stress-ng-vm", 800), OURS, "a program of the guest");
        for (name, adj) in [("sshd", -1000), ("klpfarm-stress", 0), ("systemd-journal", -250)] {
            assert_eq!(killed(name, adj), format!("out of memory: killed {name}, not of the workload"));
        }
    }

    #[test]
    fn old_kernels_tell_by_name() {
        let killed =
            |name: &str| told(&format!("Out of memory: Kill process 12 ({name}) score 9 or sacrifice child"));
        assert_eq!(killed("madvise-allocat"), OURS);
        assert_ne!(killed("sshd"), OURS);
    }

    #[test]
    fn other_reports_stay() {
        let title = told("EXT4-fs error (device vda): ext4_find_entry:1: bad");
        assert_eq!(title, "EXT4-fs error in ext4_find_entry");
    }
}
