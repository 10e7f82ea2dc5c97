//! What `madvise` must refuse, and what it must do although it reports an error.

use super::*;

impl Allocator<'_, '_> {
    /// Goes through the documented errors once. Nothing here depends on kernel version or configuration.
    pub(super) fn error_semantics(&mut self) {
        let stride = (self.budget * PAGE).next_multiple_of(2 << 20) + (2 << 20);
        let base = self.arena + (2 * REGIONS + 1) * stride;
        let Ok(mut region) = Region::map(Some(base), 8, Backing::Anon, None) else { return };
        self.write_pages(&mut region, 0, 8, 1);
        self.refused_arguments(&region);
        self.locked(&mut region);
        let second = self.hole(&mut region);
        let got = region.unmap();
        self.context.expect("munmap", "scratch pages", 0, got);
        if let Some(second) = second {
            let got = second.unmap();
            self.context.expect("munmap", "scratch pages", 0, got);
        }
        let got = self.errored(base, PAGE, libc::MADV_DONTNEED);
        self.context.expect("madvise-error", "advice on unmapped memory", libc::ENOMEM, got);
    }

    fn errored(&mut self, at: usize, bytes: usize, advice: i32) -> i32 {
        let got = self.context.op(ERROR, || madvise(at, bytes, advice));
        if got != 0 {
            self.context.failed(got);
        }
        got
    }

    fn refused_arguments(&mut self, region: &Region) {
        let base = region.base;
        let odd = 1 + self.context.rng.index(PAGE - 1);
        let bad = [12345, -1, i32::MAX, 1000][self.context.rng.index(4)];
        let valid = [libc::MADV_DONTNEED, libc::MADV_WILLNEED, libc::MADV_NORMAL][self.context.rng.index(3)];
        for (at, bytes, advice, want, what) in [
            (base + odd, PAGE, valid, libc::EINVAL, "an address within a page"),
            (base, PAGE, bad, libc::EINVAL, "an advice that does not exist"),
            (base, 0, valid, 0, "a length of zero"),
            (base, 0, bad, libc::EINVAL, "an advice that does not exist, with a length of zero"),
            (base, usize::MAX - odd / 2, valid, libc::EINVAL, "a length that wraps round to zero or below"),
            (base, usize::MAX - 4 * PAGE + 1, valid, libc::EINVAL, "a length that ends before the start"),
        ] {
            let got = self.errored(at, bytes, advice);
            self.context.expect("madvise-error", what, want, got);
        }
        self.check_pages(region, 0, region.len(), "madvise-error");
    }

    /// Locked memory is never given up.
    fn locked(&mut self, region: &mut Region) {
        let at = region.at(2);
        // SAFETY: pages of our own.
        if unsafe { libc::mlock(at as *const libc::c_void, 2 * PAGE) } != 0 {
            return self.context.failed(crate::sys::errno()); // over the limit of locked memory: legitimate
        }
        for advice in [libc::MADV_DONTNEED, libc::MADV_FREE] {
            let got = self.errored(at, 2 * PAGE, advice);
            self.context.expect("madvise-error", "giving up locked memory", libc::EINVAL, got);
        }
        self.check_pages(region, 0, region.len(), "madvise-error");
        // SAFETY: as above.
        let got = if unsafe { libc::munlock(at as *const libc::c_void, 2 * PAGE) } == 0 {
            0
        } else {
            crate::sys::errno()
        };
        self.context.expect("munlock", "pages locked before", 0, got);
        let got = self.context.op(DONTNEED, || madvise(at, 2 * PAGE, libc::MADV_DONTNEED));
        if self.context.expect("madvise-dontneed", "pages unlocked again", 0, got) {
            region.pages[2..4].fill(Page::Fresh);
        }
        self.check_pages(region, 0, region.len(), "madvise-dontneed");
    }

    /// Advice over a hole reports ENOMEM, and yet reaches what is mapped on both sides. Returns the far side.
    fn hole(&mut self, region: &mut Region) -> Option<Region> {
        self.write_pages(region, 0, 8, 1);
        let got = self.context.op(MUNMAP, || unmap(region.at(3), 2));
        if !self.context.expect("munmap", "the middle of a region", 0, got) {
            return None;
        }
        let mut far = Region {
            base: region.at(5),
            backing: Backing::Anon,
            first: region.first + 5,
            pages: region.pages.split_off(5),
            split: false,
        };
        region.pages.truncate(3);
        let got = self.errored(region.at(2), 5 * PAGE, libc::MADV_DONTNEED);
        self.context.expect("madvise-error", "advice over a hole", libc::ENOMEM, got);
        region.pages[2] = Page::Fresh;
        far.pages[..2].fill(Page::Fresh);
        self.check_pages(region, 0, 3, "madvise-error");
        self.check_pages(&far, 0, 3, "madvise-error");
        Some(far)
    }
}
