//! A mapped range of memory with a model of what each of its pages must hold.
//!
//! A page is stamped at three places (start, a place of its own, end) so that writing and checking stay cheap under
//! emulation; between them nothing is ever written, so those bytes must be zero in anonymous memory.

use super::Rng;
use super::context::mix;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of a page on x86-64.
pub(crate) const PAGE: usize = 4096;

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Private anonymous memory.
    Anon,
    /// A private mapping of a file whose page N holds the stamp of [`file_stamp`].
    FilePrivate,
    /// A shared mapping of a memory file of its own.
    Shared,
}

impl Backing {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backing::Anon => "private anonymous memory",
            Backing::FilePrivate => "a private file mapping",
            Backing::Shared => "a shared mapping",
        }
    }
}

/// What a page must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// Zeroes, or the file's content in a private file mapping.
    Fresh,
    /// Our stamp.
    Own(u64),
    /// Our stamp or zeroes: freed lazily.
    Lazy(u64),
}

/// Stamp of page `index` of the file behind private file mappings.
pub(crate) fn file_stamp(index: usize) -> u64 {
    mix(0xf11e ^ index as u64)
}

/// One mapping, or what is left of it.
pub(crate) struct Region {
    pub(crate) base: usize,
    pub(crate) backing: Backing,
    /// Number of the first page that is left, counted from the start of the file or of the first mapping.
    pub(crate) first: usize,
    pub(crate) pages: Vec<Page>,
    /// Several kernel mappings by now (partial advice or protection): `mremap` would refuse it.
    pub(crate) split: bool,
}

/// Offset within a page of the second stamp, by the page's number: it stays the same when the region moves.
fn middle(number: usize) -> usize {
    8 + (mix(number as u64) as usize % (PAGE / 8 - 2)) * 8
}

impl Region {
    /// Maps `len` pages at `base` (which must be unused), or where the kernel likes.
    pub(crate) fn map(
        base: Option<usize>,
        len: usize,
        backing: Backing,
        file: Option<(BorrowedFd<'_>, usize)>,
    ) -> Result<Self, i32> {
        let flags = match backing {
            Backing::Anon => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            Backing::FilePrivate => libc::MAP_PRIVATE,
            Backing::Shared => libc::MAP_SHARED,
        } | if base.is_some() { libc::MAP_FIXED } else { 0 };
        let (fd, first) = file.map_or((-1, 0), |(fd, first)| (fd.as_raw_fd(), first));
        // SAFETY: either the kernel picks unused addresses, or the caller gives a range of this thread's own.
        let p = unsafe {
            libc::mmap(
                base.unwrap_or(0) as *mut libc::c_void,
                len * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                (first * PAGE) as i64,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(crate::sys::errno());
        }
        Ok(Self { base: p as usize, backing, first, pages: vec![Page::Fresh; len], split: false })
    }

    /// Address of a page.
    pub(crate) fn at(&self, page: usize) -> usize {
        self.base + page * PAGE
    }

    /// Length in pages.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Stamps a page as ours.
    pub(crate) fn write(&mut self, page: usize, tag: u64) {
        let at = self.at(page);
        for offset in [0, middle(self.first + page), PAGE - 8] {
            // SAFETY: inside our own mapping, which is readable and writable whenever this is called; aligned.
            unsafe { ((at + offset) as *mut u64).write_volatile(mix(tag ^ offset as u64)) };
        }
        self.pages[page] = Page::Own(tag);
    }

    /// Reads a page and compares; the error is a sentence for people.
    pub(crate) fn check(&self, page: usize, rng: &mut Rng) -> Result<(), String> {
        let at = self.at(page);
        let middle = middle(self.first + page);
        // Between the stamps: only zeroes, but for a file whose pages are stamped elsewhere.
        let elsewhere = (rng.index(PAGE / 8)) * 8;
        for offset in [0, middle, PAGE - 8, elsewhere] {
            let stamped = offset == 0 || offset == middle || offset == PAGE - 8;
            // SAFETY: inside our own readable mapping; aligned.
            let got = unsafe { ((at + offset) as *const u64).read_volatile() };
            let fresh = match self.backing {
                Backing::FilePrivate => mix(file_stamp(self.first + page) ^ offset as u64),
                _ => 0,
            };
            let right = match self.pages[page] {
                Page::Own(tag) if stamped => got == mix(tag ^ offset as u64),
                Page::Lazy(tag) if stamped => got == mix(tag ^ offset as u64) || got == fresh,
                _ => got == fresh,
            };
            if !right {
                let expected = match self.pages[page] {
                    Page::Own(_) if stamped => "our own pattern",
                    Page::Lazy(_) if stamped => "our own pattern or zero",
                    _ if self.backing == Backing::FilePrivate => "the file's content",
                    _ => "zero",
                };
                return Err(format!(
                    "page {page} of {} of {}, offset {offset}: expected {expected}, got {got:#x}",
                    self.len(),
                    self.backing.name()
                ));
            }
        }
        Ok(())
    }

    /// True if an own page holds its three stamps. Allocates nothing, for use after a fork.
    pub(crate) fn holds_stamp(&self, page: usize) -> bool {
        let Page::Own(tag) = self.pages[page] else { return false };
        [0, middle(self.first + page), PAGE - 8].iter().all(|&offset| {
            // SAFETY: inside our own readable mapping; aligned.
            let got = unsafe { ((self.at(page) + offset) as *const u64).read_volatile() };
            got == mix(tag ^ offset as u64)
        })
    }

    /// Gives the memory back. Returns 0 or an errno.
    pub(crate) fn unmap(self) -> i32 {
        unmap(self.base, self.len())
    }
}

/// `munmap` of pages that belong to the caller. Returns 0 or an errno.
pub(crate) fn unmap(at: usize, pages: usize) -> i32 {
    // SAFETY: the caller's own mapping, to which no reference is left.
    if unsafe { libc::munmap(at as *mut libc::c_void, pages * PAGE) } == 0 { 0 } else { crate::sys::errno() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let mut rng = Rng::new(1);
        let mut region = Region::map(None, 4, Backing::Anon, None).unwrap();
        region.write(1, 77);
        assert!((0..4).all(|p| region.check(p, &mut rng).is_ok()));
        region.pages[1] = Page::Fresh;
        assert!(region.check(1, &mut rng).unwrap_err().contains("expected zero"));
        region.pages[1] = Page::Lazy(77);
        region.pages[2] = Page::Lazy(77);
        assert!(region.check(1, &mut rng).is_ok() && region.check(2, &mut rng).is_ok());
        region.pages[2] = Page::Own(77);
        assert!(region.check(2, &mut rng).unwrap_err().contains("our own pattern, got 0x0"));
        assert_eq!(region.unmap(), 0);
    }
}
