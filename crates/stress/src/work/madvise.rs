//! `madvise-allocator`: threads that map, touch, advise and unmap like jemalloc and friends do, and check the effect of
//! every single call. Each thread keeps to an address range of its own, so that holes stay holes.

use super::region::{Backing, PAGE, Page, Region, file_stamp, unmap};
use super::{Context, Stressor, context::mix};
use crate::params::{Form, Spec};
use std::os::fd::{AsFd, OwnedFd};

mod rules;
mod steps;

pub(super) static STRESSOR: Stressor = Stressor {
    name: "madvise-allocator",
    about: "threads map, touch and madvise memory as allocators do and verify every effect",
    params: &[Spec {
        name: "map",
        form: Form::Size(64 << 10, 4 << 30),
        default: "8M",
        help: "most memory a thread holds at a time",
    }],
    processes: "3",
    threads: "4",
    nice: "0",
    singles: super::no_singles,
    kinds: &[
        "mmap",
        "touch",
        "madvise-dontneed",
        "madvise-free",
        "madvise-willneed",
        "madvise-hugepage",
        "madvise-other",
        "madvise-error",
        "munmap",
        "mprotect",
        "mremap",
        "verify",
        "yardstick",
    ],
    run,
    prepare: super::nothing_to_prepare,
    clean: super::nothing_to_clean,
};

const MMAP: usize = 0;
const TOUCH: usize = 1;
const DONTNEED: usize = 2;
const FREE: usize = 3;
const WILLNEED: usize = 4;
const HUGEPAGE: usize = 5;
const OTHER: usize = 6;
const ERROR: usize = 7;
const MUNMAP: usize = 8;
const MPROTECT: usize = 9;
const MREMAP: usize = 10;
const VERIFY: usize = 11;

/// Regions a thread holds at most.
const REGIONS: usize = 6;
/// Pages of the file behind private file mappings.
const FILE_PAGES: usize = 64;
/// Where the threads' own address ranges begin: far from anything the kernel places by itself.
const ARENA: usize = 0x1000_0000_0000;
/// Room of one thread.
const ARENA_SIZE: usize = 0x20_0000_0000;

struct Allocator<'a, 'b> {
    context: &'a mut Context<'b>,
    regions: Vec<Region>,
    /// Pages all regions may have together.
    budget: usize,
    /// The file behind private file mappings.
    file: OwnedFd,
    /// First address of this thread's own range.
    arena: usize,
    /// Version and patch level: what `madvise` must know.
    kernel: (u32, u32),
}

fn run(context: &mut Context<'_>) {
    let file = match file_of_stamps() {
        Ok(file) => file,
        Err(error) => {
            let detail = format!("cannot make a memory file: {error}");
            return context.fault(klpfarm_stress::wire::FaultKind::CannotRun, "start", &detail);
        }
    };
    let budget = (context.params.number("map") as usize / PAGE).max(16);
    let arena = ARENA + context.thread as usize * ARENA_SIZE;
    let kernel = crate::sys::kernel_version(&crate::sys::release());
    let mut allocator = Allocator { context, regions: Vec::new(), budget, file, arena, kernel };
    // The answers that must never change are learned before anything else.
    allocator.error_semantics();
    while allocator.context.go_on() {
        allocator.step();
    }
}

fn file_of_stamps() -> std::io::Result<OwnedFd> {
    let fd = crate::sys::memfd(c"klpfarm-stamps")?;
    stamp_file(&fd, FILE_PAGES)?;
    Ok(fd)
}

/// Writes `pages` pages of [`file_stamp`] content to an empty file.
pub(super) fn stamp_file(fd: &OwnedFd, pages: usize) -> std::io::Result<()> {
    let mut page = [0u8; PAGE];
    for index in 0..pages {
        for (i, word) in page.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&mix(file_stamp(index) ^ (i as u64 * 8)).to_ne_bytes());
        }
        if crate::sys::write_some(fd, &page)? != PAGE {
            return Err(std::io::Error::other("short write"));
        }
    }
    Ok(())
}

impl Allocator<'_, '_> {
    fn step(&mut self) {
        if self.regions.len() < 2 || (self.regions.len() < REGIONS && self.context.rng.one_in(10)) {
            return self.grow();
        }
        let i = self.context.rng.index(self.regions.len());
        match self.context.rng.below(100) {
            0..=59 => self.advise(i),
            60..=74 => self.touch(i),
            75..=80 => self.drop_part(i),
            81..=85 => self.protect(i),
            86..=90 => self.remap(i),
            91..=93 => self.verify_whole(i),
            94..=97 => self.error_semantics(),
            _ => self.release(i),
        }
    }

    /// Maps a new region and writes to most of it.
    fn grow(&mut self) {
        let rng = &mut self.context.rng;
        let (mut len, backing) = match rng.below(100) {
            0..=49 => (1 + rng.index(32), Backing::Anon),
            50..=69 => (32 + rng.index(480), Backing::Anon),
            70..=79 => (self.budget - rng.index(self.budget / 8 + 1), Backing::Anon),
            80..=89 => (1 + rng.index(FILE_PAGES), Backing::FilePrivate),
            _ => (1 + rng.index(FILE_PAGES), Backing::Shared),
        };
        len = len.clamp(1, self.budget);
        while self.regions.iter().map(Region::len).sum::<usize>() + len > self.budget {
            if self.regions.is_empty() {
                break;
            }
            let i = self.context.rng.index(self.regions.len());
            self.release(i);
        }
        let Some(mut region) = self.map(len, backing) else { return };
        let sparse = self.context.rng.one_in(4);
        self.write_pages(&mut region, 0, len, if sparse { 2 } else { 1 });
        self.regions.push(region);
    }

    fn map(&mut self, len: usize, backing: Backing) -> Option<Region> {
        let base = (!self.context.rng.one_in(3)).then(|| self.free_place());
        let shared = if backing == Backing::Shared { self.memory_file(len) } else { None };
        let first = if backing == Backing::FilePrivate {
            self.context.rng.index(FILE_PAGES - len.min(FILE_PAGES) + 1)
        } else {
            0
        };
        let file = match backing {
            Backing::Anon => None,
            Backing::FilePrivate => Some((self.file.as_fd(), first)),
            Backing::Shared => Some((shared.as_ref()?.as_fd(), 0)),
        };
        let mapped = self.context.op(MMAP, || Region::map(base, len, backing, file));
        match mapped {
            Ok(region) => Some(region),
            Err(errno) => {
                self.context.failed(errno);
                if !super::context::short_of_resources(errno) {
                    self.context.expect("mmap", backing.name(), 0, errno);
                }
                None
            }
        }
    }

    fn memory_file(&mut self, len: usize) -> Option<OwnedFd> {
        let fd = crate::sys::memfd(c"klpfarm-shared").ok()?;
        crate::sys::ftruncate(&fd, (len * PAGE) as i64).ok()?;
        Some(fd)
    }

    /// A place of this thread's range that no region uses, on a huge page boundary or a little above.
    fn free_place(&mut self) -> usize {
        let stride = (self.budget * PAGE).next_multiple_of(2 << 20) + (2 << 20);
        let mut place = self.context.rng.index(2 * REGIONS);
        loop {
            let start = self.arena + place * stride;
            let used = |r: &Region| r.base < start + stride && start < r.base + r.len() * PAGE;
            if !self.regions.iter().any(used) {
                return start + if self.context.rng.one_in(2) { PAGE * self.context.rng.index(8) } else { 0 };
            }
            place = (place + 1) % (2 * REGIONS);
        }
    }

    fn write_pages(&mut self, region: &mut Region, from: usize, len: usize, one_in: u64) {
        let tag = self.context.rng.next();
        let skip = self.context.rng.next();
        for chunk in chunks(from, len) {
            self.context.op(TOUCH, || {
                for page in chunk {
                    if one_in == 1 || mix(skip ^ page as u64).is_multiple_of(one_in) {
                        region.write(page, tag ^ page as u64);
                    }
                }
            });
        }
    }

    fn touch(&mut self, i: usize) {
        let mut region = self.regions.swap_remove(i);
        let (from, len) = self.range(region.len());
        self.write_pages(&mut region, from, len, 1);
        self.check_pages(&region, from, len, "touch");
        self.regions.push(region);
    }

    /// A random part of `pages`: mostly short, often up to an end, sometimes all of it.
    fn range(&mut self, pages: usize) -> (usize, usize) {
        let rng = &mut self.context.rng;
        if rng.one_in(16) {
            return (0, pages);
        }
        let most = if rng.one_in(4) { pages } else { pages.min(32) };
        let len = 1 + rng.index(most);
        let from = match rng.below(4) {
            0 => 0,
            1 => pages - len,
            _ => rng.index(pages - len + 1),
        };
        (from, len)
    }

    /// Checks pages and reports at most one wrong page a call.
    fn check_pages(&mut self, region: &Region, from: usize, len: usize, op: &str) {
        let mut rng = super::Rng::new(self.context.rng.next());
        for chunk in chunks(from, len) {
            let mut pages = chunk;
            let wrong = self.context.op(VERIFY, || pages.find_map(|page| region.check(page, &mut rng).err()));
            if let Some(detail) = wrong {
                return self.context.wrong_content(op, &detail);
            }
        }
    }

    /// Whether pages of other regions, or far from the advised ones, still hold what they should.
    fn check_around(&mut self, region: &Region, from: usize, len: usize, op: &str) {
        let before = from.saturating_sub(4);
        self.check_pages(region, before, from - before, op);
        let after = (from + len + 4).min(region.len());
        self.check_pages(region, from + len, after - from - len, op);
        let anywhere = self.context.rng.index(region.len());
        self.check_pages(region, anywhere, 1, op);
        if !self.regions.is_empty() {
            let other = self.context.rng.index(self.regions.len());
            let other = self.regions.swap_remove(other);
            let page = self.context.rng.index(other.len());
            self.check_pages(&other, page, 1, op);
            self.regions.push(other);
        }
    }

    fn verify_whole(&mut self, i: usize) {
        let region = self.regions.swap_remove(i);
        self.check_pages(&region, 0, region.len(), "memory");
        self.regions.push(region);
    }

    fn release(&mut self, i: usize) {
        let region = self.regions.swap_remove(i);
        self.check_pages(&region, 0, region.len(), "memory");
        let got = self.context.op(MUNMAP, || region.unmap());
        self.context.expect("munmap", "a whole region", 0, got);
    }

    /// Unmaps the head or the tail of a region.
    fn drop_part(&mut self, i: usize) {
        let region = &mut self.regions[i];
        if region.len() < 2 {
            return;
        }
        let len = 1 + self.context.rng.index((region.len() - 1).min(16));
        let head = self.context.rng.one_in(2);
        let at = if head { region.base } else { region.at(region.len() - len) };
        let got = self.context.op(MUNMAP, || unmap(at, len));
        if !self.context.expect("munmap", "part of a region", 0, got) {
            return;
        }
        if head {
            region.base += len * PAGE;
            region.first += len;
            region.pages.drain(..len);
        } else {
            let left = region.len() - len;
            region.pages.truncate(left);
        }
    }
}

/// Splits pages into pieces that are short operations even on a slow machine, so that progress stays fine-grained.
pub(super) fn chunks(from: usize, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = from + len;
    (from..end).step_by(64).map(move |start| start..(start + 64).min(end))
}

/// `madvise`; 0 or an errno.
fn madvise(at: usize, bytes: usize, advice: i32) -> i32 {
    // SAFETY: only ranges of this thread's own regions, whose content the model expects to change, or ranges in
    // which nothing is mapped.
    if unsafe { libc::madvise(at as *mut libc::c_void, bytes, advice) } == 0 {
        0
    } else {
        crate::sys::errno()
    }
}

/// What becomes of a page that was advised away.
fn freed(page: Page) -> Page {
    match page {
        Page::Own(tag) | Page::Lazy(tag) => Page::Lazy(tag),
        Page::Fresh => Page::Fresh,
    }
}
