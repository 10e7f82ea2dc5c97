//! What the release of a kernel says of it.

/// Version and patch level of a release such as `4.4.0-210-generic`; `None` where it does not begin with both.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether a kernel rewrites itself with each transition: every `cond_resched` when it begins and again when it ends, thousands of
/// places, one by one, each with interrupts to all CPUs that are waited for.
///
/// It does so from 6.4 (commit e3ff7c609f39) to 6.15 where preemption is chosen at boot, as distributions have it. Measured on 6.12 under
/// emulation and load: 1.4 s where the guest's CPUs had the host's to themselves, 106 to 134 s where three shared one.
pub fn rewrites_itself(release: &str) -> bool {
    matches!(version(release), Some((6, 4..=15)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("4.4.220-mine"), Some((4, 4)));
        assert_eq!(version("6.12.117+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!((version(""), version("6"), version("6.x"), version("x.1")), (None, None, None, None));
    }

    #[test]
    fn kernels_that_rewrite_themselves() {
        for release in ["6.4.0", "6.12.117+deb13-cloud-amd64", "6.15-rc1", "6.8.0-45-generic"] {
            assert!(rewrites_itself(release), "{release}");
        }
        for release in ["4.4.0-210-generic", "5.10.0-32-cloud-amd64", "6.1.0-56-cloud-amd64", "6.3.9"] {
            assert!(!rewrites_itself(release), "{release}");
        }
        for release in ["6.16.0", "7.4.0", "", "6", "6.x"] {
            assert!(!rewrites_itself(release), "{release}");
        }
    }
}
