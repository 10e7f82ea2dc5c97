//! Memory full of holes: pages taken in small pieces between those of the other keepers, of which every other one is given back, with
//! kernel objects that cannot be moved in between.

use super::*;
use crate::work::region::{Backing, PAGE, Region};
use std::os::fd::OwnedFd;

/// Pages of a region, and of one operation.
const REGION: usize = 256;
const PIECE: usize = 32;
/// Pipes for each region, each with a page in the kernel; half of them go again.
const PIPES: usize = 4;
/// Most pipes held, for the limit on open files.
const MOST_PIPES: usize = 256;

pub(super) struct Holes {
    /// Regions wanted; of those there are, so many have been holed.
    wanted: usize,
    holed: usize,
    regions: Vec<Region>,
    pipes: Vec<(OwnedFd, OwnedFd)>,
}

impl Holes {
    pub(super) fn new(bytes: u64, keepers: u64) -> Self {
        let wanted = bytes.min(memory().0 / 4 / keepers) as usize / (REGION * PAGE);
        Self { wanted, holed: 0, regions: Vec::new(), pipes: Vec::new() }
    }

    /// Takes one more region, piece by piece.
    fn take(&mut self, context: &mut Context<'_>) {
        let mut region = match Region::map(None, REGION, Backing::Anon, None) {
            Ok(region) => region,
            Err(errno) => {
                self.wanted = self.regions.len();
                return judge(context, "touch", "new memory", &io::Error::from_raw_os_error(errno));
            }
        };
        // In single pages, and nothing that short-lived processes would have to copy.
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTFORK] {
            advise(region.base, REGION, advice);
        }
        let tag = context.rng.next();
        for piece in (0..REGION).step_by(PIECE) {
            context.op(TOUCH, || {
                (piece..piece + PIECE).for_each(|page| region.write(page, tag ^ page as u64));
            });
            if piece.is_multiple_of(REGION / PIPES) {
                self.object(context);
            }
        }
        self.regions.push(region);
    }

    /// Gives back every other page of one region, and half of the pipes made with it.
    fn hole(&mut self, context: &mut Context<'_>) {
        let region = &mut self.regions[self.holed];
        self.holed += 1;
        for piece in (0..REGION).step_by(PIECE) {
            let errno = context.op(FREE, || {
                (piece + 1..piece + PIECE).step_by(2).map(|page| free(region, page)).find(|&e| e != 0)
            });
            if let Some(errno) = errno {
                judge(context, "free", "every other page", &io::Error::from_raw_os_error(errno));
            }
        }
        for _ in 0..PIPES / 2 {
            if !self.pipes.is_empty() {
                let i = context.rng.index(self.pipes.len());
                let pipe = self.pipes.swap_remove(i);
                context.op(OBJECTS, || drop(pipe));
            }
        }
    }

    /// A pipe with a page in it.
    fn object(&mut self, context: &mut Context<'_>) {
        let made = context.op(OBJECTS, || {
            let pipe = sys::pipe()?;
            sys::write_some(&pipe.1, &[0x6b; PAGE])?;
            Ok(pipe)
        });
        match made {
            Ok(pipe) => self.pipes.push(pipe),
            Err(error) => judge_files(context, &error),
        }
        if self.pipes.len() > MOST_PIPES {
            let i = context.rng.index(self.pipes.len());
            self.pipes.swap_remove(i);
        }
    }

    /// What lies in an old pipe must come out of it.
    fn look_into_pipe(&mut self, context: &mut Context<'_>) {
        if self.pipes.is_empty() {
            return;
        }
        let i = context.rng.index(self.pipes.len());
        let (from, _to) = self.pipes.swap_remove(i);
        let mut page = [0u8; PAGE];
        match context.op(OBJECTS, || sys::read_some(&from, &mut page)) {
            Ok(PAGE) if page.iter().all(|&b| b == 0x6b) => {}
            Ok(n) => context
                .wrong_content("objects", &format!("{PAGE} bytes in a pipe, {n} came out, content compared")),
            Err(error) => judge(context, "objects", "reading an old pipe", &error),
        }
        self.object(context);
    }

    fn check(&mut self, context: &mut Context<'_>) {
        if self.regions.is_empty() {
            return;
        }
        let region = context.rng.index(self.regions.len());
        let page = context.rng.index(REGION);
        let mut rng = crate::work::Rng::new(context.rng.next());
        let region = &mut self.regions[region];
        let wrong = context.op(MEMORY, || region.check(page, &mut rng).err());
        if let Some(detail) = wrong {
            context.wrong_content("memory", &detail);
        }
        // A hole is filled for a moment, and is one again.
        if page % 2 == 1 {
            let tag = context.rng.next();
            let errno = context.op(FREE, || {
                region.write(page, tag);
                free(region, page)
            });
            context.expect("free", "one page", 0, errno);
        }
    }
}

fn advise(at: usize, pages: usize, advice: i32) -> i32 {
    // SAFETY: pages of a region of our own, whose content the caller knows to change.
    if unsafe { libc::madvise(at as *mut libc::c_void, pages * PAGE, advice) } == 0 {
        0
    } else {
        sys::errno()
    }
}

/// Gives a page back; 0 or an errno.
fn free(region: &mut Region, page: usize) -> i32 {
    let errno = advise(region.at(page), 1, libc::MADV_DONTNEED);
    if errno == 0 {
        region.pages[page] = crate::work::region::Page::Fresh;
    }
    errno
}

/// As [`judge`], and having no more file descriptors is no fault either.
fn judge_files(context: &Context<'_>, error: &io::Error) {
    if error.raw_os_error() == Some(libc::EMFILE) {
        context.failed(libc::EMFILE);
    } else {
        judge(context, "objects", "a new pipe", error);
    }
}

impl Wear for Holes {
    fn is_done(&self) -> bool {
        self.holed >= self.wanted
    }

    fn wear(&mut self, context: &mut Context<'_>) {
        if self.regions.len() < self.wanted && memory_to_spare() {
            return self.take(context);
        }
        self.wanted = self.regions.len();
        if self.holed < self.wanted {
            self.hole(context);
        }
    }

    fn keep(&mut self, context: &mut Context<'_>) {
        if context.rng.one_in(4) { self.look_into_pipe(context) } else { self.check(context) }
    }
}
