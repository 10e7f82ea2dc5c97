//! Runs every file of `tests/corpus`: expected findings, a blank line, the raw log.
//!
//! Each finding starts with `KIND: `; `TITLE: ` must follow; `FUNCTION: `, `TASK: `, `CPU: `, `LINE: ` (in the log) are
//! checked where given; `CORRUPTED: Y` and `PANICKED: Y` always (absent means no). `NONE` stands for no finding.

use klpfarm_kmsg::{Kind, Report, Signal, triage};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::{fs, path::Path};

type Expected = Vec<(String, String)>;

fn expectations(header: &str) -> Vec<Expected> {
    let mut findings: Vec<Expected> = Vec::new();
    for line in header.lines().filter(|l| *l != "NONE") {
        let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("no 'KEY: value': {line}"));
        if key == "KIND" {
            findings.push(Vec::new());
        }
        let finding = findings.last_mut().unwrap_or_else(|| panic!("KIND must come first: {line}"));
        finding.push((key.to_string(), value.to_string()));
    }
    findings
}

fn actual(report: &Report, key: &str) -> String {
    match key {
        "KIND" => report.kind.name().to_string(),
        "TITLE" => report.title.clone(),
        "FUNCTION" => report.function.clone().unwrap_or_default(),
        "TASK" => report.task.clone().unwrap_or_default(),
        "CPU" => report.cpu.map(|c| c.to_string()).unwrap_or_default(),
        "LINE" => report.line.to_string(),
        "CORRUPTED" => if report.corrupted { "Y" } else { "N" }.to_string(),
        "PANICKED" => if report.panicked { "Y" } else { "N" }.to_string(),
        _ => panic!("unknown key {key}"),
    }
}

fn check(name: &str, text: &str) -> String {
    let (header, log) = text.split_once("\n\n").expect("a blank line ends the header");
    let expected = expectations(header);
    let signals = triage(log.as_bytes());
    let reports: Vec<&Report> = signals.iter().filter_map(Signal::report).collect();
    let mut wrong = String::new();
    if reports.len() != expected.len() {
        let found: Vec<_> =
            reports.iter().map(|r| format!("{}: {} (line {})", r.kind, r.title, r.line)).collect();
        let _ = writeln!(wrong, "{name}: {} findings expected, found {found:#?}", expected.len());
        return wrong;
    }
    for (report, finding) in reports.iter().zip(&expected) {
        let mut wanted = finding.clone();
        for flag in ["CORRUPTED", "PANICKED"] {
            if !wanted.iter().any(|(key, _)| key == flag) {
                wanted.push((flag.to_string(), "N".to_string()));
            }
        }
        for (key, value) in wanted {
            let got = actual(report, &key);
            if key == "PANICKED" && report.kind.name() == "panic" {
                continue;
            }
            if got != value {
                let _ = writeln!(wrong, "{name}: {key}: expected {value:?}, got {got:?}");
            }
        }
    }
    wrong
}

#[test]
fn every_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("the corpus").map(|e| e.expect("entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 60, "the corpus has shrunk to {} files", paths.len());
    let mut wrong = String::new();
    for path in paths {
        let bytes = fs::read(&path).expect("readable");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        wrong += &check(&name, &String::from_utf8_lossy(&bytes));
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// `real-KERNEL-DEFECT.txt`: what a defect is called must not depend on the kernel. Which of a soft lockup and an RCU stall comes
/// first does: the first report of each kind is compared.
#[test]
fn a_defect_has_one_title_on_all_kernels() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut titles: BTreeMap<(String, Kind), Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(&folder).expect("the corpus") {
        let path = entry.expect("entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let Some((_, defect)) = name.strip_prefix("real-").and_then(|n| n.split_once('-')) else { continue };
        let signals = triage(&fs::read(&path).expect("readable"));
        let mut kinds = BTreeSet::new();
        for report in signals.iter().filter_map(Signal::report).filter(|r| kinds.insert(r.kind)) {
            titles.entry((defect.to_owned(), report.kind)).or_default().push(report.title.clone());
        }
    }
    titles.retain(|_, titles| titles.len() > 1);
    assert!(titles.len() >= 8, "only these defects were recorded on more than one kernel: {titles:?}");
    for (defect, titles) in titles {
        assert!(titles.iter().all(|t| *t == titles[0]), "{defect:?}: {titles:?}");
    }
}
