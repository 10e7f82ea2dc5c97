use std::collections::BTreeMap;

use super::*;

#[test]
fn words_are_told_apart_and_read_back() {
    let mut words = BTreeMap::new();
    for kind in FindingKind::all() {
        assert_eq!(words.insert(kind.as_str(), kind), None, "{kind}");
        let written = serde_json::to_string(&kind).unwrap();
        assert_eq!((&*written, serde_json::from_str(&written).unwrap()), (&*format!("\"{kind}\""), kind));
    }
}

/// What the rules of one kind say must agree with each other, and with what the classifier says of the kernel's kinds.
#[test]
fn the_rules_of_a_kind_agree() {
    for kind in FindingKind::all() {
        let rules = kind.rules();
        assert!(!(rules.soft && rules.only_by_a_patch), "{kind}");
        assert_eq!(rules.soft, rules.while_gathering == WhileGathering::Ignored && !is_the_farms_doing(kind));
        assert!(rules.soft || rules.told_by_title, "{kind}: hard findings are told by their titles");
        assert_eq!(rules.rank == Rank::Compared, matches!(rules.failure, Failure::Slow | Failure::Leak));
        if let FindingKind::Kernel(kernel) = kind {
            let fatal = kernel.severity() == klpfarm_kmsg::Severity::Fatal;
            let rank = match (rules.soft, fatal) {
                (true, _) => Rank::SlowKernel,
                (false, true) => Rank::Crash,
                (false, false) => Rank::Complaint,
            };
            assert_eq!(rules.rank, rank, "{kind}");
        }
    }
}

/// Hard findings that gathering evidence brings about.
fn is_the_farms_doing(kind: FindingKind) -> bool {
    use ObservedKind as K;
    matches!(kind, FindingKind::Observed(K::CpuStuck | K::ConsoleFlood | K::HangConfirmed))
}

/// The rows of the tables below a heading of docs/detectors.md, up to the next heading, cell by cell, without the tables' heads.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/detectors.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, below) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = below.split("\n## ").next().unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    section
        .lines()
        .filter(|l| l.starts_with("| `") || l.starts_with("| ") && !l.contains("Kind"))
        .map(cells)
        .collect()
}

/// The words in backticks, and whether a star follows.
fn words(cell: &str) -> Vec<(&str, bool)> {
    let parts: Vec<&str> = cell.split('`').collect();
    parts
        .chunks(2)
        .enumerate()
        .filter_map(|(at, pair)| {
            let word = pair.get(1)?;
            let after = parts.get(at * 2 + 2).unwrap_or(&"");
            Some((*word, after.starts_with('*')))
        })
        .collect()
}

#[test]
fn the_documentation_has_a_row_for_each_kind_that_the_farm_observes() {
    let mut missing: BTreeMap<&str, bool> = ObservedKind::ALL.iter().map(|k| (k.as_str(), true)).collect();
    for row in rows("From the farm's own observation") {
        let word = words(&row[0])[0].0;
        let kind: ObservedKind = word.parse().unwrap();
        let soft = if FindingKind::from(kind).is_soft() { "yes" } else { "no" };
        assert_eq!(row[3], soft, "{word}");
        missing.remove(kind.as_str());
    }
    assert_eq!(missing, BTreeMap::new());
}

#[test]
fn the_documentation_names_each_kind_of_the_kernels() {
    let rows = rows("From the kernel's console");
    let documented: BTreeMap<&str, bool> = rows.iter().flat_map(|row| words(&row[1])).collect();
    let kinds = KernelKind::ALL.iter().map(|k| (k.name(), FindingKind::Kernel(*k).is_soft()));
    assert_eq!(documented, kinds.collect());
}

#[test]
fn the_documentation_says_which_detector_reports_what() {
    let mut documented: Vec<String> = Vec::new();
    for row in rows("Who reports what") {
        let detector: crate::Detector = words(&row[0])[0].0.parse().unwrap();
        documented.push(detector.to_string());
        if detector == crate::Detector::KernelReports {
            continue;
        }
        let mut said: Vec<&str> = if row[1].starts_with('(') {
            Vec::new()
        } else {
            words(&row[1]).into_iter().map(|w| w.0).collect()
        };
        let own = FindingKind::all().filter(|k| k.rules().detector == detector);
        let mut own: Vec<&str> = own.map(FindingKind::as_str).collect();
        said.sort_unstable();
        own.sort_unstable();
        assert_eq!(said, own, "{detector}");
    }
    let all: Vec<&str> = crate::Detector::ALL.iter().map(|d| d.as_str()).collect();
    assert_eq!(documented, all);
}
