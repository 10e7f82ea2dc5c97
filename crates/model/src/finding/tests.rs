use super::*;

/// `is_soft` as it stood before the table.
fn was_soft(kind: FindingKind) -> bool {
    match kind {
        FindingKind::Observed(kind) => matches!(
            kind,
            ObservedKind::ThreadStalled
                | ObservedKind::TaskBlocked
                | ObservedKind::RateCollapsed
                | ObservedKind::LatencyGrown
                | ObservedKind::TailGrown
                | ObservedKind::ThreadStarved
                | ObservedKind::ResourcesLeaked
                | ObservedKind::SshDead
                | ObservedKind::ProbeSilent
                | ObservedKind::ConsoleSilent
        ),
        FindingKind::Kernel(kind) => matches!(
            kind,
            KernelKind::HungTask
                | KernelKind::SoftLockup
                | KernelKind::RcuStall
                | KernelKind::WorkqueueLockup
                | KernelKind::Oom
                | KernelKind::PageAllocation
        ),
    }
}

#[test]
fn the_table_says_what_is_soft() {
    for kind in FindingKind::all() {
        assert_eq!(kind.is_soft(), was_soft(kind), "{kind}");
    }
}
