//! Where workers report to: an array of slots in memory shared with the probe, one slot a thread.
//!
//! Each slot has one writer (its thread) and one reader (the probe). Neither ever waits for the other: counters are
//! plain atomic stores, and a fault takes a cell of its own that counts how often it came back. Beside the slots stands
//! one word that goes the other way: [`Area::stir`].

use crate::hist::{self, BUCKETS, OCTAVES};
use klpfarm_stress::wire::FaultKind;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{
    AtomicI32, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Slots of one probe, all workloads together.
pub(crate) const SLOTS: usize = 256;
/// Kinds of operation one stressor may tell apart.
pub(crate) const KINDS: usize = 16;
const CELLS: usize = 16;

/// [`Slot::state`]: nobody uses it, its thread runs, its thread ended in order.
pub(crate) const FREE: u32 = 0;
/// See [`FREE`].
pub(crate) const RUNNING: u32 = 1;
/// See [`FREE`].
pub(crate) const ENDED: u32 = 2;

/// All that is shared.
#[repr(C)]
pub(crate) struct Area {
    /// Changes when the machine was forked from a checkpoint: every worker mixes it into its generator before its next
    /// operation, so that twins do not go on alike. Zero until then.
    pub(crate) stir: AtomicU64,
    pub(crate) slots: [Slot; SLOTS],
}

/// One thread's report.
#[repr(C)]
pub(crate) struct Slot {
    pub(crate) state: AtomicU32,
    pub(crate) pid: AtomicU32,
    pub(crate) tid: AtomicU32,
    pub(crate) errno: AtomicI32,
    pub(crate) errors: AtomicU64,
    pub(crate) ops: AtomicU64,
    pub(crate) latency_ns: AtomicU64,
    /// `CLOCK_MONOTONIC` when an operation was last finished.
    pub(crate) finished_ns: AtomicU64,
    kinds: [Kind; KINDS],
    cells: [Cell; CELLS],
}

#[repr(C)]
struct Kind {
    sum_ns: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
    /// Slow ones that slept.
    slept: [AtomicU32; OCTAVES],
}

/// A fault, by kind and operation. Its text is that of the first time.
#[repr(C)]
struct Cell {
    ready: AtomicU32,
    kind: AtomicU32,
    count: AtomicU64,
    op: [AtomicU8; 48],
    detail: [AtomicU8; 240],
}

/// A fault as read from a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FaultKind,
    pub(crate) op: String,
    pub(crate) detail: String,
    /// How often, since the slot was reset.
    pub(crate) count: u64,
}

/// One kind's counts, summed over slots by [`Slot::add_kind`].
#[derive(Clone)]
pub(crate) struct Counts {
    pub(crate) sum_ns: u64,
    pub(crate) buckets: hist::Counts,
    pub(crate) slept: [u64; OCTAVES],
}

impl Counts {
    pub(crate) const ZERO: Self = Self { sum_ns: 0, buckets: [0; BUCKETS], slept: [0; OCTAVES] };
}

const FAULT_KINDS: [FaultKind; 4] =
    [FaultKind::WrongErrno, FaultKind::WrongContent, FaultKind::Died, FaultKind::CannotRun];

fn store_text(to: &[AtomicU8], text: &str) {
    let bytes = crate::sys::cut(text, to.len() - 1).as_bytes();
    bytes.iter().zip(to).for_each(|(b, a)| a.store(*b, Relaxed));
    to[bytes.len()].store(0, Relaxed);
}

fn load_text(from: &[AtomicU8]) -> String {
    let bytes: Vec<u8> = from.iter().map(|a| a.load(Relaxed)).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn same_text(cell: &[AtomicU8], text: &str) -> bool {
    text.bytes().take(cell.len() - 1).zip(cell).all(|(b, a)| a.load(Relaxed) == b)
        && (text.len() >= cell.len() || cell[text.len()].load(Relaxed) == 0)
}

/// One writer only, so a load and a store need no lock prefix: cheaper under emulation.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

impl Slot {
    /// Writer: one operation of `kind` took `ns` and finished at `now_ns`.
    pub(crate) fn finish(&self, kind: usize, ns: u64, now_ns: u64) {
        self.time(kind, ns);
        self.latency_ns.store(ns, Relaxed);
        self.finished_ns.store(now_ns, Relaxed);
        bump(&self.ops, 1);
    }

    /// Writer: a slow operation was slow because the thread slept in it.
    pub(crate) fn slept(&self, kind: usize, ns: u64) {
        let octave = &self.kinds[kind].slept[hist::octave(ns)];
        octave.store(octave.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Writer: a duration that is no operation (the yardstick).
    pub(crate) fn time(&self, kind: usize, ns: u64) {
        let kind = &self.kinds[kind];
        let bucket = &kind.buckets[hist::bucket(ns)];
        bucket.store(bucket.load(Relaxed).wrapping_add(1), Relaxed);
        bump(&kind.sum_ns, ns);
    }

    /// Writer: a call failed, expectedly or not.
    pub(crate) fn error(&self, errno: i32) {
        self.errno.store(errno, Relaxed);
        bump(&self.errors, 1);
    }

    /// Writer: something is wrong. The last cell takes all that do not fit the others, under its first name.
    pub(crate) fn fault(&self, kind: FaultKind, op: &str, detail: &str) {
        let code = FAULT_KINDS.iter().position(|&k| k == kind).unwrap_or(0) as u32;
        for (i, cell) in self.cells.iter().enumerate() {
            if cell.ready.load(Relaxed) == 0 {
                cell.kind.store(code, Relaxed);
                store_text(&cell.op, op);
                store_text(&cell.detail, detail);
                cell.count.store(1, Relaxed);
                cell.ready.store(1, Release);
                return;
            }
            if i == CELLS - 1 || (cell.kind.load(Relaxed) == code && same_text(&cell.op, op)) {
                bump(&cell.count, 1);
                return;
            }
        }
    }

    /// Reader: all faults so far; `seen` holds the counts of the last visit, one a cell, and is brought up to date.
    pub(crate) fn new_faults(&self, seen: &mut [u64; CELLS], mut each: impl FnMut(Seen)) {
        for (cell, seen) in self.cells.iter().zip(seen) {
            if cell.ready.load(Acquire) == 0 {
                return;
            }
            let count = cell.count.load(Relaxed);
            if count > *seen {
                each(Seen {
                    kind: FAULT_KINDS[cell.kind.load(Relaxed) as usize % FAULT_KINDS.len()],
                    op: load_text(&cell.op),
                    detail: load_text(&cell.detail),
                    count: count - *seen,
                });
                *seen = count;
            }
        }
    }

    /// Reader: adds this slot's counts of one kind to `to`.
    pub(crate) fn add_kind(&self, kind: usize, to: &mut Counts) {
        to.sum_ns = to.sum_ns.wrapping_add(self.kinds[kind].sum_ns.load(Relaxed));
        let add = |from: &[AtomicU32], to: &mut [u64]| {
            from.iter().zip(to).for_each(|(from, to)| *to += u64::from(from.load(Relaxed)));
        };
        add(&self.kinds[kind].buckets, &mut to.buckets);
        add(&self.kinds[kind].slept, &mut to.slept);
    }

    /// Reader: makes the slot new. Nobody may be writing.
    pub(crate) fn reset(&self) {
        self.state.store(FREE, Relaxed);
        for a in [&self.pid, &self.tid] {
            a.store(0, Relaxed);
        }
        self.errno.store(0, Relaxed);
        for a in [&self.errors, &self.ops, &self.latency_ns, &self.finished_ns] {
            a.store(0, Relaxed);
        }
        for kind in &self.kinds {
            kind.sum_ns.store(0, Relaxed);
            kind.buckets.iter().chain(&kind.slept).for_each(|b| b.store(0, Relaxed));
        }
        self.cells.iter().for_each(|c| c.ready.store(0, Release));
    }
}

/// Counts of the faults already reported, a slot: for [`Slot::new_faults`].
pub(crate) type SeenCounts = [u64; CELLS];

/// A new file that can hold all slots.
pub(crate) fn create() -> io::Result<std::os::fd::OwnedFd> {
    let fd = crate::sys::memfd(c"klpfarm-slots")?;
    crate::sys::ftruncate(&fd, size_of::<Area>() as i64)?;
    Ok(fd)
}

/// Maps the area of `fd` for the life of this process.
pub(crate) fn map(fd: BorrowedFd<'_>) -> io::Result<&'static Area> {
    let bytes = size_of::<Area>();
    if crate::sys::file_size(&fd)? < bytes as u64 {
        return Err(io::Error::other("the slot file is too short: another version of this program made it"));
    }
    // SAFETY: a fresh shared mapping of the file, checked to be long enough; never unmapped.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            0,
        )
    };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: page aligned, long enough, and every field is an atomic for which all bit patterns are valid.
    Ok(unsafe { &*p.cast::<Area>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn faults_are_counted_by_kind_and_operation() {
        let fd = create().unwrap();
        let (writer, reader) = (&map(fd.as_fd()).unwrap().slots[3], &map(fd.as_fd()).unwrap().slots[3]);
        let mut seen = SeenCounts::default();
        let mut got = Vec::new();
        writer.fault(FaultKind::WrongErrno, "madvise-free", "first");
        writer.fault(FaultKind::WrongErrno, "madvise-free", "second");
        writer.fault(FaultKind::WrongContent, "madvise-free", &"é".repeat(200));
        reader.new_faults(&mut seen, |f| got.push(f));
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].detail.as_str(), got[0].count), ("first", 2));
        assert_eq!(got[1].kind, FaultKind::WrongContent);
        assert!(got[1].detail.chars().all(|c| c == 'é'), "cut at a character: {}", got[1].detail);
        got.clear();
        reader.new_faults(&mut seen, |f| got.push(f));
        assert!(got.is_empty(), "told twice");
        (0..100).for_each(|i| writer.fault(FaultKind::Died, &format!("op{i}"), ""));
        reader.new_faults(&mut seen, |f| got.push(f));
        assert_eq!(got.iter().map(|f| f.count).sum::<u64>(), 100);
        reader.reset();
        got.clear();
        reader.new_faults(&mut SeenCounts::default(), |f| got.push(f));
        assert!(got.is_empty());
    }

    #[test]
    fn an_operation_is_counted_once_in_its_kind() {
        let fd = create().unwrap();
        let slot = &map(fd.as_fd()).unwrap().slots[0];
        slot.finish(2, 1000, 5);
        slot.time(1, 70);
        slot.slept(2, 5 << 20);
        let mut counts = Counts::ZERO;
        slot.add_kind(2, &mut counts);
        assert_eq!((counts.sum_ns, counts.buckets[hist::bucket(1000)]), (1000, 1));
        assert_eq!(counts.slept[2], 1);
        assert_eq!(slot.ops.load(Relaxed), 1);
    }
}
