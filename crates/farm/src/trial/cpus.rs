//! CPUs that are stuck with interrupts off, told from outside by their registers: no detector of the kernel's own is needed, and it
//! works when all CPUs hang. Pure.
//!
//! A kernel turns interrupts off for microseconds. A sound CPU is now and then seen so, but never in look after look for seconds: it
//! is in user space, or sleeps, or takes interrupts in at least one of them. Where it is does not matter to that, and is told only
//! for people: under emulation the place can be some steps back.

use std::collections::BTreeMap;
use std::time::Duration;

use klpfarm_vm::CpuLook;

/// So many looks must agree at least, however late the answers come.
const LEAST_LOOKS: usize = 6;

/// The CPUs of one machine.
#[derive(Debug)]
pub(crate) struct Cpus {
    limit: Duration,
    /// CPUs that have had interrupts off in every look since.
    off: BTreeMap<u32, Off>,
    modules: Vec<Module>,
    known: bool,
}

#[derive(Debug)]
struct Off {
    since: Duration,
    places: Vec<u64>,
}

/// Where a module of the guest lies.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    name: String,
    start: u64,
    size: u64,
}

/// A CPU that is stuck.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stuck {
    pub(crate) cpu: u32,
    /// For so long.
    pub(crate) lasts: Duration,
    /// Where it was seen, oldest first.
    pub(crate) places: Vec<u64>,
    /// The module in whose code it was seen.
    pub(crate) module: Option<String>,
}

impl Cpus {
    /// `limit`: how long a CPU must have been so.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, off: BTreeMap::new(), modules: Vec::new(), known: false }
    }

    /// The machine stood still: what was seen before says nothing any more.
    pub(crate) fn forget(&mut self) {
        self.off.clear();
    }

    /// There has been a look.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// A CPU had interrupts off in the latest look.
    pub(crate) fn is_suspicious(&self) -> bool {
        !self.off.is_empty()
    }

    /// The content of `/proc/modules`. Modules of which the kernel does not tell where they are lie nowhere.
    pub(crate) fn modules(&mut self, text: &str) {
        let module = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let start = u64::from_str_radix(words.get(5)?.strip_prefix("0x")?, 16).ok()?;
            Some(Module { name: words[0].to_owned(), start, size: words[1].parse().ok()? })
        };
        self.modules = text.lines().filter_map(module).filter(|m| m.start != 0).collect();
    }

    /// The module with code at this address: from 6.4 on the size given is that of all its parts, which lie apart, so that the
    /// nearest beginning counts.
    fn module_at(&self, address: u64) -> Option<&Module> {
        let before = self.modules.iter().filter(|m| m.start <= address);
        before.max_by_key(|m| m.start).filter(|m| address - m.start < m.size)
    }

    /// Take a look; the CPUs that are stuck, again at every look.
    pub(crate) fn look(&mut self, now: Duration, looks: &[CpuLook]) -> Vec<Stuck> {
        self.known = true;
        for look in looks {
            // Halted with interrupts off is a CPU that was taken out of use, or that waits to be woken by another one.
            if look.interrupts || look.ring != 0 || look.halted {
                self.off.remove(&look.cpu);
            } else {
                let off = self.off.entry(look.cpu).or_insert(Off { since: now, places: Vec::new() });
                off.places.push(look.rip);
            }
        }
        let stuck = |(cpu, off): (&u32, &Off)| {
            let lasts = now.saturating_sub(off.since);
            let found = lasts >= self.limit && off.places.len() >= LEAST_LOOKS;
            found.then(|| Stuck {
                cpu: *cpu,
                lasts,
                places: off.places.clone(),
                module: off.places.iter().rev().find_map(|p| self.module_at(*p)).map(|m| m.name.clone()),
            })
        };
        self.off.iter().filter_map(stuck).collect()
    }
}
