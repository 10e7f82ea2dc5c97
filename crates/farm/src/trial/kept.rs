//! What counts of all that is seen while evidence is gathered. Gathering it interrupts the guest, has it print for long with interrupts off,
//! and makes it stand still: what looks like slowness then is the farm's doing. What breaks then, breaks all the same. Pure.

use klpfarm_model::{Body, WhileGathering};

/// Whether this is told. `nmi_panic`: the kernel panicked because of a non-maskable interrupt, which the farm sends.
pub(super) fn kept(body: &Body, nmi_panic: bool) -> bool {
    match body {
        Body::Finding(finding) => match finding.kind.rules().while_gathering {
            WhileGathering::Counts => true,
            WhileGathering::CountsInPatch => finding.in_patch,
            WhileGathering::CountsUnlessNmi => !nmi_panic,
            WhileGathering::CountsUnlessLockup => !finding.title.ends_with("tainted: L soft lockup"),
            WhileGathering::Ignored => false,
        },
        Body::StallEnded { .. } => false,
        _ => true,
    }
}

/// Whether the kernel says that it panics for a non-maskable interrupt (`arch/x86/kernel/nmi.c`; only if it was set up to).
pub(super) fn panics_of_nmi(console: &[u8]) -> bool {
    let words: [&[u8]; 2] = [b"not syncing: NMI", b"not syncing: Fatal exception in NMI"];
    words.iter().any(|word| console.windows(word.len()).any(|w| w == *word))
}

#[cfg(test)]
mod tests {
    use klpfarm_kmsg::Kind;
    use klpfarm_model::{Finding, FindingKind, ObservedKind, Source};

    use super::*;

    fn finding(kind: impl Into<FindingKind>, title: &str) -> Body {
        Body::Finding(Box::new(Finding {
            kind: kind.into(),
            title: title.into(),
            source: Source::Console,
            function: None,
            workload: None,
            after_apply_ms: None,
            line: None,
            in_patch: false,
            corrupted: false,
            evidence: String::new(),
        }))
    }

    #[test]
    fn what_breaks_counts_and_what_is_slow_does_not() {
        let oops = FindingKind::Kernel(Kind::NullDeref);
        for kind in [
            oops,
            ObservedKind::Panicked.into(),
            ObservedKind::Rebooted.into(),
            ObservedKind::WrongContent.into(),
        ] {
            assert!(kept(&finding(kind, "t"), false), "{kind}");
        }
        let lockup = FindingKind::Kernel(Kind::SoftLockup);
        for kind in [lockup, ObservedKind::CpuStuck.into(), ObservedKind::ProbeSilent.into()] {
            assert!(!kept(&finding(kind, "t"), false), "{kind}");
        }
        assert!(!kept(&finding(ObservedKind::Tainted, "the kernel became tainted: L soft lockup"), false));
        assert!(kept(
            &finding(ObservedKind::Tainted, "the kernel became tainted: B bad page, L soft lockup"),
            false
        ));
        assert!(kept(&Body::Note { text: String::new() }, false));
    }

    #[test]
    fn a_panic_that_the_farm_brought_about_does_not_count() {
        let text = b"[   99.1] Kernel panic - not syncing: NMI: Not continuing\n";
        assert!(panics_of_nmi(text) && !panics_of_nmi(b"Kernel panic - not syncing: Fatal exception\n"));
        assert!(!kept(&finding(ObservedKind::Panicked, "t"), true));
    }
}
