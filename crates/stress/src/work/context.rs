//! What a stressor's thread has at hand: its slot, random numbers, a stopwatch, and a place to tell faults.

use super::Job;
use crate::hist::SLOW_NS;
use crate::params::Params;
use crate::slots::Slot;
use crate::sys;
use klpfarm_stress::wire::FaultKind;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Set when the process was asked to end.
pub(super) static STOP: AtomicBool = AtomicBool::new(false);

/// Errnos that a sound kernel may give to any call that needs memory, while memory is short.
pub(super) fn short_of_resources(errno: i32) -> bool {
    matches!(errno, libc::ENOMEM | libc::EAGAIN | libc::ENOSPC | libc::EDQUOT | libc::ENFILE | libc::ENOBUFS)
}

/// A small generator of random numbers (xorshift64*): repeatable, and it never asks the kernel.
pub(crate) struct Rng(u64);

impl Rng {
    /// From any seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which must not be zero.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// The same as an index.
    pub(crate) fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Spreads a number's bits; patterns in memory and files are made of it.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One thread of a stressor.
pub(crate) struct Context<'a> {
    pub(crate) params: &'a Params,
    pub(crate) rng: Rng,
    /// Number of its process, and its own within it.
    pub(crate) process: u32,
    pub(crate) thread: u32,
    slot: &'a Slot,
    /// [`crate::slots::Area::stir`], and what it was when last mixed in.
    stir: &'a AtomicU64,
    stirred: u64,
    kinds: &'static [&'static str],
    yardstick: usize,
    until_yardstick: u32,
    /// How often this thread had given up its CPU by itself when that was last looked at.
    gave_way: u64,
    learned: BTreeMap<(&'static str, u64), i32>,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        job: &'a Job,
        (slot, stir): (&'a Slot, &'a AtomicU64),
        seed: u64,
        process: u32,
        thread: u32,
    ) -> Self {
        let Job { stressor, params } = job;
        Self {
            params,
            rng: Rng::new(seed ^ (u64::from(process) << 32) ^ u64::from(thread)),
            process,
            thread,
            slot,
            stir,
            stirred: 0,
            kinds: stressor.kinds,
            yardstick: stressor.kinds.iter().position(|&k| k == "yardstick").unwrap_or(0),
            until_yardstick: 0,
            gave_way: 0,
            learned: BTreeMap::new(),
        }
    }

    /// False once the process was asked to end.
    pub(crate) fn go_on(&self) -> bool {
        !STOP.load(Relaxed)
    }

    /// Goes on otherwise than the machine's twins do, once it was forked.
    fn stir(&mut self) {
        let word = self.stir.load(Relaxed);
        if word != self.stirred {
            self.stirred = word;
            self.rng = Rng::new(self.rng.next() ^ word);
        }
    }

    /// Times one operation of `kind`, and now and then the yardstick.
    pub(crate) fn op<R>(&mut self, kind: usize, work: impl FnOnce() -> R) -> R {
        self.stir();
        let start = sys::now_ns();
        let result = work();
        let end = sys::now_ns();
        let ns = end.saturating_sub(start);
        self.slot.finish(kind, ns, end);
        if ns >= SLOW_NS {
            self.slow(kind, ns);
        }
        if self.until_yardstick == 0 {
            self.until_yardstick = 32;
            self.slot.time(self.yardstick, yardstick());
        }
        self.until_yardstick -= 1;
        result
    }

    /// Tells a slow operation that slept from one that only waited for a CPU. It is looked at after slow ones alone, to cost the others
    /// nothing; so sleep since the slow one before counts as well, which no thread has whose calls do not sleep.
    fn slow(&mut self, kind: usize, ns: u64) {
        let gave_way = sys::gave_way();
        if gave_way != self.gave_way {
            self.gave_way = gave_way;
            self.slot.slept(kind, ns);
        }
    }

    /// Counts an operation that was timed elsewhere, in nanoseconds.
    pub(crate) fn took(&mut self, kind: usize, ns: u64) {
        self.stir();
        self.slot.finish(kind, ns, sys::now_ns());
    }

    /// Times a system call that returns -1 for an error; the result is its value, or the errno.
    pub(crate) fn call(&mut self, kind: usize, call: impl FnOnce() -> i64) -> Result<i64, i32> {
        let result = self.op(kind, || {
            let value = call();
            if value == -1 { Err(sys::errno()) } else { Ok(value) }
        });
        if let Err(errno) = result {
            self.slot.error(errno);
        }
        result
    }

    /// Counts a failed call that was not made through [`Self::call`].
    pub(crate) fn failed(&self, errno: i32) {
        self.slot.error(errno);
    }

    /// Tells the farm that something is wrong. Not after the end was asked for: the kills of an orderly end must not
    /// look like a defect.
    pub(crate) fn fault(&self, kind: FaultKind, op: &str, detail: &str) {
        if self.go_on() {
            self.slot.fault(kind, op, detail);
        }
    }

    /// [`FaultKind::WrongContent`].
    pub(crate) fn wrong_content(&self, op: &str, detail: &str) {
        self.fault(FaultKind::WrongContent, op, detail);
    }

    /// A fault unless `got` (0 or an errno) is `want`. `what` describes the call. True if it was right.
    pub(crate) fn expect(&self, op: &str, what: &str, want: i32, got: i32) -> bool {
        if got != want {
            let detail = format!("{what}: expected {}, got {}", sys::errno_name(want), sys::errno_name(got));
            self.fault(FaultKind::WrongErrno, op, &detail);
        }
        got == want
    }

    /// Learns the first answer (0 or an errno) to a question whose right answer depends on the kernel, and tells a fault
    /// if it ever changes. `allowed` are the answers a sound kernel may give at all.
    pub(crate) fn expect_constant(
        &mut self,
        op: &'static str,
        case: u64,
        what: &str,
        allowed: &[i32],
        got: i32,
    ) {
        let first = *self.learned.entry((op, case)).or_insert(got);
        if !allowed.contains(&got) || first != got {
            let detail = format!(
                "{what}: got {}, at first {}; allowed: {}",
                sys::errno_name(got),
                sys::errno_name(first),
                allowed.iter().map(|&e| sys::errno_name(e)).collect::<Vec<_>>().join(", ")
            );
            self.fault(FaultKind::WrongErrno, op, &detail);
        }
    }

    /// Name of a kind.
    pub(crate) fn kind_name(&self, kind: usize) -> &'static str {
        self.kinds[kind]
    }
}

/// A fixed short piece of arithmetic, in nanoseconds: how fast this CPU is just now, whatever the kernel does.
fn yardstick() -> u64 {
    let start = sys::now_ns();
    // Shifts and exclusive ors do not fold into fewer steps, as multiplications and additions do.
    let mut x = start | 1;
    for _ in 0..2000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    std::hint::black_box(x);
    sys::now_ns().saturating_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// What one thread does next after `before` operations and, if not zero, a stirring `word`.
    fn goes_on(before: usize, word: u64) -> Vec<u64> {
        let fd = crate::slots::create().unwrap();
        let area = crate::slots::map(fd.as_fd()).unwrap();
        let job = Job::parse("madvise-allocator", &[]).unwrap();
        let mut context = Context::new(&job, (&area.slots[0], &area.stir), 1, 0, 0);
        (0..before).for_each(|_| context.op(0, || {}));
        area.stir.store(word, Relaxed);
        (0..4)
            .map(|_| {
                context.op(0, || {});
                context.rng.next()
            })
            .collect()
    }

    #[test]
    fn twins_part_when_stirred_and_only_then() {
        assert_eq!(goes_on(3, 0), goes_on(3, 0));
        assert_eq!(goes_on(3, 7), goes_on(3, 7));
        let [plain, one, other] = [0, 7, 8].map(|word| goes_on(3, word));
        assert!(plain != one && one != other && plain != other);
        // Mixed in once, not at every operation: the numbers go on differing from each other.
        assert!(one.windows(2).all(|w| w[0] != w[1]));
    }
}
