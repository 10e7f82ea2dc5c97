//! What the classifier says besides reports, and when.

use klpfarm_kmsg::{Classifier, Kind, LivepatchState, Severity, Signal, triage};

const BARE: &str = "[  120.000000] BUG: soft lockup - CPU#0 stuck for 22s! [none:1]\n";
const HUNG: &str = "\
[  120.000000] INFO: task alloc-worker:1234 blocked for more than 120 seconds.
[  120.000001]       Tainted: G           O  K   6.1.0-41-cloud-amd64 #1 Debian 6.1.158-1
[  120.000002] \"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.
[  120.000003] task:alloc-worker    state:D stack:0     pid:1234  ppid:871    flags:0x00004002
[  120.000004] Call Trace:
[  120.000005]  <TASK>
[  120.000006]  __schedule+0x34d/0x9e0
[  120.000007]  schedule+0x5a/0xd0
[  120.000008]  klp_madvise+0x5c/0x1f0 [klp_candidate]
[  120.000009]  </TASK>
";

fn titles(signals: &[Signal]) -> Vec<&str> {
    signals.iter().filter_map(Signal::report).map(|r| r.title.as_str()).collect()
}

#[test]
fn a_second_boot_is_told_and_ends_what_was_open() {
    let log = format!(
        "[    0.000000] Linux version 6.1.0-41-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP\n{BARE}\
         [    0.000000] Linux version 6.1.0-41-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP\n"
    );
    let signals = triage(log.as_bytes());
    let boots: Vec<u64> =
        signals.iter().filter(|s| matches!(s, Signal::Boot { .. })).map(Signal::line).collect();
    assert_eq!(boots, [1, 3]);
    assert!(matches!(&signals[0], Signal::Boot { release, .. } if release == "6.1.0-41-cloud-amd64"));
    assert_eq!(titles(&signals), ["BUG: soft lockup"], "a header right before a reset is believed");
    assert!(triage(b"myapp: Linux version 6.1 is running\n[ 1.000000] x: Linux version 6.1\n").is_empty());
}

#[test]
fn a_livepatch_is_followed() {
    let log = "\
[   10.000000] klp_x: tainting kernel with TAINT_LIVEPATCH
[   10.000001] livepatch: enabling patch 'klp_x'
[   10.000002] livepatch: 'klp_x': starting patching transition
[   25.000003] livepatch: signaling remaining tasks
[   26.000004] livepatch: 'klp_x': patching complete
[   30.000005] livepatch: 'klp_x': starting unpatching transition
[   31.000006] livepatch: 'klp_x': unpatching complete
";
    use LivepatchState::*;
    let steps: Vec<(String, LivepatchState)> = triage(log.as_bytes())
        .into_iter()
        .map(|s| match s {
            Signal::Livepatch { patch, state, .. } => (patch, state),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [Loaded, Enabling, Patching, Signaling, Patched, Unpatching, Unpatched];
    assert_eq!(steps, expected.map(|state| ("klp_x".to_string(), state)));
}

#[test]
fn losses_are_told_and_mark_the_report() {
    let (head, tail) = HUNG.split_at(HUNG.find("[  120.000003]").expect("a line"));
    // The second form is that of kernels before 4.19: the next message follows on the same line.
    for lost in ["** 12 printk messages dropped **\n", "** 12 printk messages dropped ** "] {
        let signals = triage(format!("{head}{lost}{tail}").as_bytes());
        assert!(
            signals.iter().any(|s| matches!(s, Signal::Lost { line: 4, count: Some(12) })),
            "{signals:?}"
        );
        let report = signals.iter().find_map(Signal::report).expect("the report");
        assert!(report.corrupted);
        assert_eq!(report.title, "INFO: task hung in klp_madvise");
    }
    let journal = triage(b"Nov 02 10:00:00 host systemd-journald[222]: Missed 7 kernel messages\n");
    assert_eq!(journal, [Signal::Lost { line: 1, count: Some(7) }]);
    assert!(triage(b"[    1.000000] net_ratelimit: 12 callbacks suppressed\n").is_empty());
}

#[test]
fn blind_detectors_are_told() {
    let log = "\
[    0.100000] NMI watchdog: disabled (cpu0): hardware events not enabled
[    0.200000] NMI watchdog: Perf NMI watchdog permanently disabled
[   50.000000] Future hung task reports are suppressed, see sysctl kernel.hung_task_warnings
";
    let blind: Vec<Kind> = triage(log.as_bytes())
        .iter()
        .map(|s| match s {
            Signal::Blind { kind, .. } => *kind,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(blind, [Kind::HardLockup, Kind::HardLockup, Kind::HungTask]);
}

#[test]
fn a_flush_gives_what_is_proven_and_nothing_else() {
    let mut classifier = Classifier::new();
    assert!(classifier.push(HUNG.as_bytes()).is_empty(), "the report may go on");
    assert_eq!(titles(&classifier.flush()), ["INFO: task hung in klp_madvise"]);
    classifier.push(BARE.as_bytes());
    assert!(classifier.flush().is_empty(), "a module can print such a line");
    assert_eq!(
        titles(&classifier.finish()),
        ["BUG: soft lockup"],
        "but a machine that died right after it is believed"
    );
}

#[test]
fn an_unfinished_line_is_not_lost_and_not_doubled() {
    let panic = "[   50.000000] Kernel panic - not syncing: drill\n[   50.000001] CPU: 0 PID: 1 Comm: init Not tainted 6.1";
    for cut in 0..panic.len() {
        let mut classifier = Classifier::new();
        let mut signals = classifier.push(&panic.as_bytes()[..cut]);
        signals.extend(classifier.flush());
        signals.extend(classifier.push(&panic.as_bytes()[cut..]));
        signals.extend(classifier.finish());
        let lines: Vec<u64> = signals.iter().map(Signal::line).collect();
        assert_eq!((titles(&signals), lines), (vec!["kernel panic: drill"], vec![1]), "cut at {cut}");
    }
}

#[test]
fn kinds_have_names_of_their_own() {
    let mut names: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Kind::ALL.len());
    assert_eq!(serde_json::to_string(&Kind::RcuStall).expect("JSON"), "\"rcu-stall\"");
    assert_eq!(Kind::HungTask.severity(), Severity::Fatal);
    assert_eq!(Kind::Warning.severity(), Severity::Warning);
}

#[test]
fn a_report_is_open_until_nothing_of_it_is_awaited() {
    let mut classifier = Classifier::new();
    assert!(!classifier.is_open());
    classifier.push(b"[  119.000000] some line\nguest login: ");
    assert!(!classifier.is_open());
    classifier.push(b"\n");
    classifier.push(HUNG.as_bytes());
    assert!(classifier.is_open());
    assert_eq!(titles(&classifier.flush()).len(), 1);
    assert!(!classifier.is_open());
}
