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
