//! Advice with its effects, protection and moves.

use super::*;

/// One advice: its number, latency kind, and name in findings.
struct Advice {
    number: i32,
    kind: usize,
    name: &'static str,
    /// How often, relative to the others.
    weight: u64,
}

const fn advice(number: i32, kind: usize, name: &'static str, weight: u64) -> Advice {
    Advice { number, kind, name, weight }
}

const MADV_COLD: i32 = 20;
const MADV_PAGEOUT: i32 = 21;
const MADV_POPULATE_READ: i32 = 22;
const MADV_POPULATE_WRITE: i32 = 23;
const MADV_WIPEONFORK: i32 = 18;
const MADV_KEEPONFORK: i32 = 19;

static ADVICES: &[Advice] = &[
    advice(libc::MADV_DONTNEED, DONTNEED, "madvise-dontneed", 40),
    advice(libc::MADV_FREE, FREE, "madvise-free", 20),
    advice(libc::MADV_WILLNEED, WILLNEED, "madvise-willneed", 8),
    advice(libc::MADV_HUGEPAGE, HUGEPAGE, "madvise-hugepage", 5),
    advice(libc::MADV_NOHUGEPAGE, HUGEPAGE, "madvise-nohugepage", 5),
    advice(libc::MADV_REMOVE, OTHER, "madvise-remove", 3),
    advice(libc::MADV_NORMAL, OTHER, "madvise-normal", 2),
    advice(libc::MADV_RANDOM, OTHER, "madvise-random", 2),
    advice(libc::MADV_SEQUENTIAL, OTHER, "madvise-sequential", 2),
    advice(libc::MADV_DONTFORK, OTHER, "madvise-dontfork", 1),
    advice(libc::MADV_DOFORK, OTHER, "madvise-dofork", 1),
    advice(libc::MADV_DONTDUMP, OTHER, "madvise-dontdump", 1),
    advice(libc::MADV_DODUMP, OTHER, "madvise-dodump", 1),
    advice(MADV_WIPEONFORK, OTHER, "madvise-wipeonfork", 1),
    advice(MADV_KEEPONFORK, OTHER, "madvise-keeponfork", 1),
    advice(MADV_COLD, OTHER, "madvise-cold", 3),
    advice(MADV_PAGEOUT, OTHER, "madvise-pageout", 2),
    advice(MADV_POPULATE_READ, OTHER, "madvise-populate-read", 2),
    advice(MADV_POPULATE_WRITE, OTHER, "madvise-populate-write", 2),
];

/// Answers a sound kernel may give to this advice on this backing; the first one learned must stay. What came with a
/// later kernel may also have been brought to an older one, but never goes missing again.
fn allowed(advice: i32, backing: Backing, kernel: (u32, u32)) -> &'static [i32] {
    use Backing::{Anon, FilePrivate, Shared};
    let since = |version| if kernel >= version { &[0][..] } else { &[0, libc::EINVAL] };
    match (advice, backing) {
        (libc::MADV_FREE, Anon) => since((4, 5)),
        (libc::MADV_FREE, _) | (libc::MADV_REMOVE, Anon) => &[libc::EINVAL],
        (libc::MADV_REMOVE, FilePrivate) => &[libc::EACCES],
        (libc::MADV_REMOVE, Shared) => &[0],
        (libc::MADV_WILLNEED, Anon) => &[0, libc::EBADF], // EBADF without swap support
        (libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE, _) => &[0, libc::EINVAL], // may be configured out
        (MADV_WIPEONFORK, FilePrivate | Shared) => &[libc::EINVAL],
        (MADV_WIPEONFORK | MADV_KEEPONFORK, _) => since((4, 14)),
        (MADV_COLD | MADV_PAGEOUT, _) => since((5, 4)),
        (MADV_POPULATE_READ | MADV_POPULATE_WRITE, _) => since((5, 14)),
        _ => &[0],
    }
}

impl Allocator<'_, '_> {
    /// Gives an advice on a random part of a region and checks answer, effect and surroundings.
    pub(super) fn advise(&mut self, i: usize) {
        let mut region = self.regions.swap_remove(i);
        let (from, len) = self.range(region.len());
        let advice = self.pick_advice();
        let destroys = matches!(advice.number, libc::MADV_DONTNEED | libc::MADV_FREE);
        if destroys && self.context.rng.one_in(2) {
            // A call that does nothing is only seen where there was something to lose.
            self.write_pages(&mut region, from, len, 1);
        }
        // A length within the last page covers that page as a whole.
        let bytes = len * PAGE - if self.context.rng.one_in(8) { self.context.rng.index(PAGE) } else { 0 };
        let at = region.at(from);
        let got = self.context.op(advice.kind, || madvise(at, bytes, advice.number));
        let case = (advice.number as u64) << 8 | region.backing as u64;
        let what = format!("on {}", region.backing.name());
        let allowed = allowed(advice.number, region.backing, self.kernel);
        self.context.expect_constant(advice.name, case, &what, allowed, got);
        if got != 0 {
            self.context.failed(got);
        } else {
            region.split |= advice.kind == OTHER || advice.kind == HUGEPAGE;
            for page in &mut region.pages[from..from + len] {
                match (advice.number, region.backing) {
                    (libc::MADV_DONTNEED, Backing::Anon | Backing::FilePrivate) => *page = Page::Fresh,
                    (libc::MADV_REMOVE, Backing::Shared) => *page = Page::Fresh,
                    (libc::MADV_FREE, _) => *page = freed(*page),
                    _ => {}
                }
            }
        }
        self.check_pages(&region, from, len, advice.name);
        self.check_around(&region, from, len, advice.name);
        if destroys && self.context.rng.one_in(4) {
            self.write_pages(&mut region, from, len, 2);
        }
        self.regions.push(region);
    }

    fn pick_advice(&mut self) -> &'static Advice {
        let mut left = self.context.rng.below(ADVICES.iter().map(|a| a.weight).sum());
        for advice in ADVICES {
            if left < advice.weight {
                return advice;
            }
            left -= advice.weight;
        }
        &ADVICES[0]
    }

    /// Takes rights away from a part, drops some of it meanwhile, and gives them back.
    pub(super) fn protect(&mut self, i: usize) {
        let mut region = self.regions.swap_remove(i);
        let (from, len) = self.range(region.len());
        let none = self.context.rng.one_in(2);
        let rights = if none { libc::PROT_NONE } else { libc::PROT_READ };
        let at = region.at(from);
        let ok = self.mprotect(at, len, rights);
        region.split = true;
        if ok && region.backing != Backing::Shared && self.context.rng.one_in(2) {
            let got = self.context.op(DONTNEED, || madvise(at, len * PAGE, libc::MADV_DONTNEED));
            if self.context.expect("madvise-dontneed", "on a protected part", 0, got) {
                region.pages[from..from + len].fill(Page::Fresh);
            }
        }
        if ok && !none {
            self.check_pages(&region, from, len, "mprotect");
        }
        if self.mprotect(at, len, libc::PROT_READ | libc::PROT_WRITE) {
            self.check_pages(&region, from, len, "mprotect");
            self.check_around(&region, from, len, "mprotect");
            self.regions.push(region);
        } else {
            // Rights unknown: nothing may touch it any more.
            region.unmap();
        }
    }

    fn mprotect(&mut self, at: usize, len: usize, rights: i32) -> bool {
        let got = self.context.op(MPROTECT, || {
            // SAFETY: a range of one of this thread's own regions, not touched before the rights are back.
            let ret = unsafe { libc::mprotect(at as *mut libc::c_void, len * PAGE, rights) };
            if ret == 0 { 0 } else { crate::sys::errno() }
        });
        // ENOMEM is documented for a split that finds no memory.
        if got == libc::ENOMEM {
            self.context.failed(got);
            return false;
        }
        self.context.expect("mprotect", "part of a region", 0, got)
    }

    /// Grows, shrinks or moves a region; its content must come along.
    pub(super) fn remap(&mut self, i: usize) {
        if self.regions[i].split || self.regions[i].backing != Backing::Anon {
            return self.verify_whole(i);
        }
        let mut region = self.regions.swap_remove(i);
        let held: usize = self.regions.iter().map(Region::len).sum();
        let room = self.budget.saturating_sub(held).max(region.len());
        let len = match self.context.rng.below(3) {
            0 => region.len(),
            1 => 1 + self.context.rng.index(region.len()),
            _ => region.len() + self.context.rng.index(room - region.len() + 1).min(64),
        };
        self.regions.push(region);
        let target = (self.context.rng.one_in(2)).then(|| self.free_place());
        region = self.regions.pop().expect("pushed above");
        let flags = libc::MREMAP_MAYMOVE | if target.is_some() { libc::MREMAP_FIXED } else { 0 };
        let (old, old_bytes) = (region.base, region.len() * PAGE);
        let got = self.context.call(MREMAP, || {
            // SAFETY: the region is ours alone; the target, if any, is a range of ours in which nothing is mapped.
            let p = unsafe {
                libc::mremap(
                    old as *mut _,
                    old_bytes,
                    len * PAGE,
                    flags,
                    target.unwrap_or(0) as *mut libc::c_void,
                )
            };
            p as i64
        });
        match got {
            Ok(base) => {
                self.moved(&mut region, base as usize, len);
            }
            Err(errno) if super::super::context::short_of_resources(errno) => {}
            Err(errno) => {
                self.context.expect("mremap", "a region of one mapping", 0, errno);
            }
        }
        self.regions.push(region);
    }

    fn moved(&mut self, region: &mut Region, base: usize, len: usize) {
        let from = std::mem::replace(&mut region.base, base);
        region.pages.resize(len, Page::Fresh);
        self.check_pages(region, 0, len, "mremap");
        // Only our own range is sure to stay empty.
        if base != from && (self.arena..self.arena + ARENA_SIZE).contains(&from) {
            let gone = madvise(from, PAGE, libc::MADV_NORMAL);
            self.context.expect("mremap", "advice on the place a region moved away from", libc::ENOMEM, gone);
        }
    }
}
