//! What must hold for any bytes.

use klpfarm_kmsg::{Classifier, Signal, triage};
use proptest::prelude::*;
use std::{fs, path::Path};

/// Logs of the corpus and what is built from their lines: text near enough to real reports to reach every branch.
fn logs() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("the corpus").map(|e| e.expect("entry").path()).collect();
    paths.sort();
    paths.iter().map(|p| fs::read(p).expect("readable")).collect()
}

fn lines() -> impl Strategy<Value = Vec<u8>> {
    let all: Vec<Vec<u8>> =
        logs().iter().flat_map(|l| l.split(|&b| b == b'\n').map(<[u8]>::to_vec)).collect();
    let noise = proptest::collection::vec(any::<u8>(), 0..40);
    let line = prop_oneof![8 => proptest::sample::select(all), 1 => noise];
    proptest::collection::vec(line, 0..60).prop_map(|lines| lines.join(&b'\n'))
}

fn in_chunks(text: &[u8], cuts: &[prop::sample::Index]) -> Vec<Signal> {
    let mut at: Vec<usize> = cuts.iter().map(|c| c.index(text.len() + 1)).collect();
    at.extend([0, text.len()]);
    at.sort_unstable();
    let mut classifier = Classifier::new();
    let mut signals: Vec<Signal> = at.windows(2).flat_map(|w| classifier.push(&text[w[0]..w[1]])).collect();
    signals.extend(classifier.finish());
    signals
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_split_gives_the_same(text in lines(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        prop_assert_eq!(in_chunks(&text, &cuts), triage(&text));
    }

    #[test]
    fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..4000), at in any::<prop::sample::Index>()) {
        let mut classifier = Classifier::new();
        let cut = at.index(text.len() + 1);
        let mut signals = classifier.push(&text[..cut]);
        signals.extend(classifier.flush());
        signals.extend(classifier.push(&text[cut..]));
        prop_assert!(classifier.retained() <= RETAINED);
        signals.extend(classifier.finish());
        let ends = |end| text.iter().filter(|&&b| b == end).count() as u64 + 1;
        let last = ends(b'\n').max(ends(b'\r'));
        prop_assert!(signals.iter().all(|s| (1..=last).contains(&s.line())));
    }

    #[test]
    fn a_flush_loses_no_report(text in lines(), at in any::<prop::sample::Index>()) {
        // Flushing in the middle may cut a report in two, but never makes a kind of trouble vanish unless its proof comes later.
        let mut classifier = Classifier::new();
        let cut = text[..at.index(text.len() + 1)].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
        let mut signals = classifier.push(&text[..cut]);
        signals.extend(classifier.flush());
        let whole = triage(&text[..cut]);
        let proven = whole.iter().filter_map(Signal::report).filter(|r| !r.corrupted).count();
        prop_assert!(signals.iter().filter_map(Signal::report).count() >= proven);
    }
}

#[test]
fn every_split_in_two_gives_the_same() {
    for log in logs() {
        let whole = triage(&log);
        for cut in (0..log.len()).step_by(97) {
            let mut classifier = Classifier::new();
            let mut signals = classifier.push(&log[..cut]);
            signals.extend(classifier.push(&log[cut..]));
            signals.extend(classifier.finish());
            assert_eq!(signals, whole);
        }
    }
}

/// As `Classifier::retained` promises.
const RETAINED: usize = 8 << 20;

#[test]
fn an_endless_line_is_not_kept() {
    let mut classifier = Classifier::new();
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        assert!(classifier.push(&chunk).is_empty());
        assert!(classifier.retained() <= 16 << 10, "{}", classifier.retained());
    }
    classifier.push(b"\n[    1.000000] EXT4-fs error (device vda): f:1: x");
    let signals = classifier.finish();
    assert_eq!(signals[0].line(), 2, "the endless line was one line");
}

#[test]
fn reports_without_end_are_bounded() {
    // As many callers as may be, each with a report that never ends and the longest names there can be.
    let mut classifier = Classifier::new();
    let name = "n".repeat(510);
    let mut most = 0;
    for round in 0..560 {
        for caller in 0..20 {
            let head = format!("[    1.000000][   T{caller}] ");
            let line = match round {
                // A second header makes a rival of the first, which is kept as well.
                0 | 1 => "BUG: kernel NULL pointer dereference, address: 0000000000000000".to_owned(),
                _ => format!(" {name}+0x10/0x20"),
            };
            classifier.push(format!("{head}{line}\n{head}{}\n", "R".repeat(9000)).as_bytes());
        }
        most = most.max(classifier.retained());
    }
    assert!(most > 100 << 10, "nothing was held: {most}");
    assert!(most <= RETAINED, "{most}");
}

#[test]
fn long_lines_and_reports_are_bounded() {
    let mut text = b"[    1.000000] WARNING: CPU: 0 PID: 1 at mm/madvise.c:12 do_madvise+0x1/0x2\n".to_vec();
    text.extend(b"[    1.000000] Modules linked in: ");
    text.extend(vec![b'x'; 3 << 20]);
    for n in 0..10_000 {
        text.extend(format!("\n[    1.000000]  frame_{n}+0x10/0x20").into_bytes());
    }
    let signals = triage(&text);
    let report = signals[0].report().expect("a report");
    assert_eq!(report.title, "WARNING in do_madvise");
    assert!(report.text.len() <= (64 << 10) + 100, "{}", report.text.len());
    assert!(report.text.ends_with("[truncated]\n"), "the report says so");
    assert!(report.text.lines().any(|l| l.ends_with("xx [truncated]") && l.len() < 9000), "so does the line");
}

#[test]
fn signals_survive_json() {
    for log in logs() {
        for signal in triage(&log) {
            let json = serde_json::to_string(&signal).expect("to JSON");
            assert_eq!(serde_json::from_str::<Signal>(&json).expect("from JSON"), signal);
        }
    }
}
