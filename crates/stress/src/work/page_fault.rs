//! `page-fault-storm`: every way user memory can fault, with the content checked after each.

use super::region::{Backing, PAGE, Page, Region};
use super::{Context, Stressor, child, context::mix};
use crate::params::{Form, Spec};
use std::cell::Cell;
use std::os::fd::AsFd;

pub(super) static STRESSOR: Stressor = Stressor {
    name: "page-fault-storm",
    about: "anonymous, file, copy-on-write, stack and protection faults, contents verified",
    params: &[Spec {
        name: "map",
        form: Form::Size(256 << 10, 1 << 30),
        default: "4M",
        help: "most memory a thread touches at a time",
    }],
    processes: "2",
    threads: "2",
    nice: "0",
    singles: super::no_singles,
    kinds: &[
        "anon",
        "zero-page",
        "file-private",
        "file-shared",
        "cow",
        "stack",
        "protection",
        "mremap",
        "thp",
        "munmap",
        "yardstick",
    ],
    run,
    prepare: super::nothing_to_prepare,
    clean: super::nothing_to_clean,
};

const ANON: usize = 0;
const ZERO: usize = 1;
const FILE_PRIVATE: usize = 2;
const FILE_SHARED: usize = 3;
const COW: usize = 4;
const STACK: usize = 5;
const PROTECTION: usize = 6;
const MREMAP: usize = 7;
const THP: usize = 8;
const MUNMAP: usize = 9;

fn run(context: &mut Context<'_>) {
    catch_faults();
    while context.go_on() {
        match context.rng.below(100) {
            0..=24 => anon(context),
            25..=39 => zero_page(context),
            40..=54 => file(context, Backing::FilePrivate),
            55..=69 => file(context, Backing::Shared),
            70..=79 => copy_on_write(context),
            80..=81 => stack(context),
            82..=91 => protection(context),
            92..=96 => mremap(context),
            _ => huge(context),
        }
    }
}

fn map(context: &mut Context<'_>, pages: usize) -> Option<Region> {
    match Region::map(None, pages, Backing::Anon, None) {
        Ok(region) => Some(region),
        Err(errno) => {
            context.failed(errno);
            if !super::context::short_of_resources(errno) {
                context.expect("mmap", "anonymous memory", 0, errno);
            }
            None
        }
    }
}

fn pages(context: &mut Context<'_>, most: usize) -> usize {
    1 + context.rng.index(most.min(context.params.number("map") as usize / PAGE))
}

fn check(context: &mut Context<'_>, region: &Region, op: &str) {
    let mut rng = super::Rng::new(context.rng.next());
    if let Some(detail) = (0..region.len()).find_map(|page| region.check(page, &mut rng).err()) {
        context.wrong_content(op, &detail);
    }
}

fn release(context: &mut Context<'_>, region: Region) {
    let got = context.op(MUNMAP, || region.unmap());
    context.expect("munmap", "a whole region", 0, got);
}

fn write_all(context: &mut Context<'_>, kind: usize, region: &mut Region) {
    let tag = context.rng.next();
    for chunk in super::madvise::chunks(0, region.len()) {
        context.op(kind, || {
            for page in chunk {
                region.write(page, tag ^ page as u64);
            }
        });
    }
}

fn anon(context: &mut Context<'_>) {
    let len = pages(context, 256);
    let Some(mut region) = map(context, len) else { return };
    write_all(context, ANON, &mut region);
    check(context, &region, "anon");
    release(context, region);
}

/// Reads first (the shared zero page), then writes.
fn zero_page(context: &mut Context<'_>) {
    let len = pages(context, 128);
    let Some(mut region) = map(context, len) else { return };
    let mut rng = super::Rng::new(context.rng.next());
    let wrong = context.op(ZERO, || (0..len).find_map(|p| region.check(p, &mut rng).err()));
    if let Some(detail) = wrong {
        context.wrong_content("zero-page", &detail);
    }
    write_all(context, ZERO, &mut region);
    check(context, &region, "zero-page");
    release(context, region);
}

/// A memory file of known content: private writes must stay private, shared ones must reach the file.
fn file(context: &mut Context<'_>, backing: Backing) {
    let len = pages(context, 64);
    let shared = backing == Backing::Shared;
    let (kind, op) = if shared { (FILE_SHARED, "file-shared") } else { (FILE_PRIVATE, "file-private") };
    let Ok(fd) = crate::sys::memfd(c"klpfarm-pages") else { return };
    let filled = if shared {
        crate::sys::ftruncate(&fd, (len * PAGE) as i64)
    } else {
        super::madvise::stamp_file(&fd, len)
    };
    if let Err(error) = filled {
        return context.failed(error.raw_os_error().unwrap_or(0)); // short of memory
    }
    let Ok(mut region) = Region::map(None, len, backing, Some((fd.as_fd(), 0))) else { return };
    check(context, &region, op);
    write_all(context, kind, &mut region);
    check(context, &region, op);
    let mut word = [0u8; 8];
    let page = context.rng.index(len);
    // SAFETY: room for the eight bytes asked for.
    let n = unsafe {
        use std::os::fd::AsRawFd;
        libc::pread(fd.as_fd().as_raw_fd(), word.as_mut_ptr().cast(), 8, (page * PAGE) as i64)
    };
    let Page::Own(tag) = region.pages[page] else { return };
    let in_file = u64::from_ne_bytes(word) == mix(tag);
    if n == 8 && in_file != shared {
        let detail =
            if shared { "a shared write did not reach the file" } else { "a private write reached the file" };
        context.wrong_content(op, detail);
    }
    release(context, region);
}

/// Parent and child write the same pages after a fork; each must see its own.
fn copy_on_write(context: &mut Context<'_>) {
    let len = pages(context, 64);
    let Some(mut region) = map(context, len) else { return };
    write_all(context, COW, &mut region);
    let tag = context.rng.next();
    // SAFETY: the child allocates nothing, touches its own memory only, and leaves with _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let seen = (0..len).all(|p| region.holds_stamp(p));
        (0..len).for_each(|p| region.write(p, !tag ^ p as u64));
        let kept = (0..len).all(|p| region.holds_stamp(p));
        // SAFETY: as above.
        unsafe { libc::_exit(if seen && kept { 7 } else { 9 }) };
    }
    if pid < 0 {
        context.failed(crate::sys::errno());
        return release(context, region);
    }
    if context.rng.one_in(2) {
        context.op(COW, || (0..len).for_each(|p| region.write(p, tag ^ p as u64)));
    }
    match child::wait(pid) {
        Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7 => {}
        Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 9 => {
            context.wrong_content(
                "cow",
                "a child saw memory that its parent wrote after the fork, or lost its own",
            );
        }
        Ok(status) => child::died(context, "cow", status),
        Err(errno) => {
            context.expect("cow", "waiting for a child", 0, errno);
        }
    }
    check(context, &region, "cow");
    release(context, region);
}

/// A process of its own grows its stack by a megabyte, checking what it wrote on the way back.
fn stack(context: &mut Context<'_>) {
    let result = context.op(STACK, || child::spawn(&[c"stack"], &[]).and_then(child::wait));
    match result {
        Ok(0) => {}
        Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 9 => {
            context.wrong_content("stack", "stack memory did not keep what was written");
        }
        Ok(status) => child::died(context, "stack", status),
        Err(errno) => context.failed(errno),
    }
}

thread_local! {
    /// The page this thread means to fault on (0: none), and how the kernel told: faults, code of the last one.
    static MEANT: Cell<usize> = const { Cell::new(0) };
    static FAULTS: Cell<(u32, i32)> = const { Cell::new((0, 0)) };
}

/// Makes the meant page writable and goes on; any other fault kills the process, as it should.
extern "C" fn on_fault(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; only mprotect, mmap and signal are called.
    unsafe {
        let page = (*info).si_addr() as usize & !(PAGE - 1);
        if page == 0 || page != MEANT.get() {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            return;
        }
        FAULTS.set((FAULTS.get().0 + 1, (*info).si_code));
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        if libc::mprotect(page as *mut libc::c_void, PAGE, rights) != 0 {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        }
    }
}

fn catch_faults() {
    // SAFETY: an all-zero sigaction is valid; the handler has the three-argument form that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
    }
}

/// Writes to pages without the right to; each must fault once, at the right address, and then work.
fn protection(context: &mut Context<'_>) {
    const SEGV_ACCERR: i32 = 2;
    let len = pages(context, 16);
    let Some(mut region) = map(context, len) else { return };
    write_all(context, PROTECTION, &mut region);
    let rights = if context.rng.one_in(2) { libc::PROT_NONE } else { libc::PROT_READ };
    // SAFETY: a region of our own; the handler gives the right back page by page.
    if unsafe { libc::mprotect(region.base as *mut libc::c_void, len * PAGE, rights) } != 0 {
        context.failed(crate::sys::errno());
        return release(context, region);
    }
    let tag = context.rng.next();
    for page in 0..len {
        MEANT.set(region.at(page));
        FAULTS.set((0, 0));
        context.op(PROTECTION, || region.write(page, tag ^ page as u64));
        MEANT.set(0);
        let (faults, code) = FAULTS.get();
        if (faults, code) != (1, SEGV_ACCERR) {
            let detail = format!(
                "a write to a protected page: {faults} faults with code {code}, expected 1 with code 2"
            );
            context.wrong_content("protection", &detail);
        }
    }
    check(context, &region, "protection");
    release(context, region);
}

/// Moves and grows pages; the content must come along.
fn mremap(context: &mut Context<'_>) {
    let len = pages(context, 64);
    let Some(mut region) = map(context, len) else { return };
    write_all(context, MREMAP, &mut region);
    let new = len + context.rng.index(64);
    let (base, bytes) = (region.base as *mut libc::c_void, len * PAGE);
    let moved = context.call(MREMAP, || {
        // SAFETY: our own region; the kernel picks unused addresses.
        unsafe { libc::mremap(base, bytes, new * PAGE, libc::MREMAP_MAYMOVE) as i64 }
    });
    match moved {
        Ok(base) => {
            region.base = base as usize;
            region.pages.resize(new, Page::Fresh);
        }
        Err(libc::ENOMEM) => {}
        Err(errno) => {
            context.expect("mremap", "growing a region", 0, errno);
        }
    }
    check(context, &region, "mremap");
    release(context, region);
}

/// With and without huge pages, then part of it dropped, so that huge pages are split.
fn huge(context: &mut Context<'_>) {
    let len = context.params.number("map") as usize / PAGE;
    let Some(mut region) = map(context, len) else { return };
    let advice = if context.rng.one_in(3) { libc::MADV_NOHUGEPAGE } else { libc::MADV_HUGEPAGE };
    // SAFETY: our own region; advice that changes no content. A kernel without huge pages refuses: that is all right.
    unsafe { libc::madvise(region.base as *mut libc::c_void, len * PAGE, advice) };
    write_all(context, THP, &mut region);
    let (from, some) = (context.rng.index(len / 2), 1 + context.rng.index(len / 2));
    // SAFETY: our own region; the model follows.
    let got =
        unsafe { libc::madvise(region.at(from) as *mut libc::c_void, some * PAGE, libc::MADV_DONTNEED) };
    if context.expect("thp", "dropping a part", 0, if got == 0 { 0 } else { crate::sys::errno() }) {
        region.pages[from..from + some].fill(Page::Fresh);
    }
    check(context, &region, "thp");
    release(context, region);
}
