//! `cpu-stuck`: CPUs that are stuck with interrupts off, told from outside by their registers: no detector of the kernel's own is needed, and it
//! works when all CPUs hang. Pure.
//!
//! A kernel turns interrupts off for microseconds. A sound CPU is seen so now and then (measured under emulation and full load: in a
//! third of all looks, because QEMU answers just when a CPU has lost its turn in a device or timer), but not in look after look: in
//! at least one of them it is in user space, sleeps, or takes interrupts. And where it is seen differs, while a CPU that goes round
//! in a circle is found in the same few places.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use klpfarm_model::{Body, Finding, ObservedKind, Source};
use klpfarm_vm::CpuLook;

use super::health::Health;
use crate::code::Code;
use crate::measure::millis;

/// So many looks must agree at least, however late the answers come. Six in a row have been seen by chance, in two places.
const LEAST_LOOKS: usize = 12;

/// And so many if the CPU is not in a few places: by chance a third of all looks to that power.
const LEAST_LOOKS_ANYWHERE: usize = 20;

/// A few places, and how large one is, as a power of two.
const FEW: usize = 4;
const PLACE_BITS: u32 = 8;

/// Looks that are kept of each CPU, and that it takes at least to say where one has been.
const RECENT: usize = 10;
const LEAST_RECENT: usize = 5;

/// The CPUs of one machine.
#[derive(Debug)]
pub(crate) struct Cpus {
    limit: Duration,
    /// CPUs that have had interrupts off in every look since.
    off: BTreeMap<u32, Off>,
    /// Where each CPU was in the kernel at the latest looks; `None` in user space and halted.
    recent: BTreeMap<u32, VecDeque<Option<u64>>>,
    modules: Vec<Module>,
    /// Functions of modules whose file is at hand, by name.
    code: BTreeMap<String, Code>,
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
    /// Its function in which it was seen most often.
    pub(crate) function: Option<String>,
}

/// A CPU that goes round in a patch's code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Circle {
    pub(crate) patch: String,
    pub(crate) function: String,
    /// At so many looks, of so many.
    pub(crate) looks: (usize, usize),
}

impl Stuck {
    /// The same wherever the kernel put the module.
    pub(crate) fn title(&self, in_patch: bool) -> String {
        let what = self.function.as_deref().unwrap_or("code");
        let place = match &self.module {
            Some(name) if in_patch => format!(" in {what} of the patch {name}"),
            Some(name) => format!(" in {what} of the module {name}"),
            None => String::new(),
        };
        format!("a CPU is stuck with interrupts off{place}")
    }

    pub(crate) fn evidence(&self) -> String {
        let mut last: Vec<String> = self.places.iter().rev().take(8).map(|p| format!("{p:#x}")).collect();
        last.dedup();
        format!(
            "CPU {}: interrupts off, in the kernel and not halted in all {} looks at its registers within {:.0} s; seen last at {}",
            self.cpu,
            self.places.len(),
            self.lasts.as_secs_f64(),
            last.join(", ")
        )
    }
}

impl Cpus {
    /// `limit`: how long a CPU must have been so.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            off: BTreeMap::new(),
            recent: BTreeMap::new(),
            modules: Vec::new(),
            code: BTreeMap::new(),
            known: false,
        }
    }

    /// The machine stood still: what was seen before says nothing any more.
    pub(crate) fn forget(&mut self) {
        self.off.clear();
        self.recent.clear();
    }

    /// The machine stood still for so long through no fault of its own.
    pub(crate) fn forgive(&mut self, lost: Duration) {
        self.off.values_mut().for_each(|off| off.since += lost);
    }

    /// A CPU has had interrupts off in every look since before.
    pub(crate) fn is_suspicious_since_before(&self, then: Duration) -> bool {
        self.off.values().any(|off| off.since < then)
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

    /// The functions of a module.
    pub(crate) fn know(&mut self, module: String, code: Code) {
        self.code.insert(module, code);
    }

    /// The function in which most of these addresses lie.
    fn function(&self, module: &Module, places: &[u64]) -> Option<String> {
        let code = self.code.get(&module.name)?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let offsets = places.iter().filter_map(|place| place.checked_sub(module.start));
        offsets.filter_map(|offset| code.at(offset)).for_each(|name| *counts.entry(name).or_default() += 1);
        counts.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name.to_owned())
    }

    /// The module with code at this address: from 6.4 on the size given is that of all its parts, which lie apart, so that the
    /// nearest beginning counts.
    fn module_at(&self, address: u64) -> Option<&Module> {
        let before = self.modules.iter().filter(|m| m.start <= address);
        before.max_by_key(|m| m.start).filter(|m| address - m.start < m.size)
    }

    /// The patch in whose code a CPU goes round, and the function: it has been in the kernel at each of the latest looks, and there at half of
    /// them or more. What it calls meanwhile is in the kernel as well.
    pub(crate) fn goes_round_in(&self, cpu: u32, patches: &[String]) -> Option<Circle> {
        let places: Vec<u64> = self.recent.get(&cpu)?.iter().copied().collect::<Option<_>>()?;
        patches.iter().find_map(|patch| {
            let module = self.modules.iter().find(|m| m.name == *patch)?;
            let own: Vec<u64> =
                places.iter().copied().filter(|p| self.module_at(*p) == Some(module)).collect();
            let enough = places.len() >= LEAST_RECENT && own.len() * 2 >= places.len();
            let function = enough.then(|| self.function(module, &own))??;
            Some(Circle { patch: patch.clone(), function, looks: (own.len(), places.len()) })
        })
    }

    /// Take a look; the CPUs that are stuck, again at every look.
    pub(crate) fn look(&mut self, now: Duration, looks: &[CpuLook]) -> Vec<Stuck> {
        self.known = true;
        for look in looks {
            let recent = self.recent.entry(look.cpu).or_default();
            recent.push_back((look.ring == 0 && !look.halted).then_some(look.rip));
            if recent.len() > RECENT {
                recent.pop_front();
            }
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
            let places: BTreeSet<u64> = off.places.iter().map(|p| p >> PLACE_BITS).collect();
            let looks = if places.len() <= FEW { LEAST_LOOKS } else { LEAST_LOOKS_ANYWHERE };
            let found = lasts >= self.limit && off.places.len() >= looks;
            found.then(|| {
                let module = off.places.iter().rev().find_map(|p| self.module_at(*p));
                Stuck {
                    cpu: *cpu,
                    lasts,
                    places: off.places.clone(),
                    function: module.and_then(|m| self.function(m, &off.places)),
                    module: module.map(|m| m.name.clone()),
                }
            })
        };
        self.off.iter().filter_map(stuck).collect()
    }
}

impl Health {
    /// A CPU does not take interrupts any more.
    pub(crate) fn cpu_stuck(&mut self, now: Duration, stuck: &Stuck) -> Vec<Body> {
        let in_patch = stuck.module.as_ref().is_some_and(|m| self.patches.contains(m));
        self.once(Finding {
            kind: ObservedKind::CpuStuck.into(),
            title: stuck.title(in_patch),
            source: Source::Qmp,
            function: stuck.function.clone(),
            workload: None,
            after_apply_ms: self.after_apply(now).map(|ms| ms.saturating_sub(millis(stuck.lasts))),
            line: None,
            in_patch,
            corrupted: false,
            evidence: stuck.evidence(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const OFF: CpuLook =
        CpuLook { cpu: 1, rip: 0xffff_ffff_c050_1000, interrupts: false, ring: 0, halted: false };

    /// A look each second for so long; what the last one finds.
    fn look(cpus: &mut Cpus, from: u64, to: u64, looks: &[CpuLook]) -> Vec<Stuck> {
        (from..=to).map(|now| cpus.look(s(now), looks)).last().unwrap_or_default()
    }

    #[test]
    fn a_cpu_with_interrupts_off_for_long_is_stuck() {
        let mut cpus = Cpus::new(s(12));
        let sound = CpuLook { cpu: 0, interrupts: true, ..OFF };
        assert_eq!(look(&mut cpus, 1, 12, &[sound, OFF]), []);
        assert!(cpus.is_suspicious());
        let stuck = look(&mut cpus, 13, 13, &[sound, OFF]);
        assert_eq!((stuck[0].cpu, stuck[0].lasts, stuck[0].places.len()), (1, s(12), 13));
        assert_eq!(stuck[0].module, None);
    }

    #[test]
    fn a_cpu_that_goes_round_in_the_patch_is_told_by_its_registers() {
        let patches = ["klp_x".to_owned()];
        let circle = |looks: &[(u64, u8)]| {
            let mut cpus = Cpus::new(s(10));
            cpus.modules("klp_x 16384 1 - Live 0xffffffffc0500000 (OEK)\n");
            cpus.know("klp_x".into(), Code::of(&[("klp_f", 0x1000, 0x1100), ("klp_g", 0x1100, 0x1200)]));
            for (now, (rip, ring)) in looks.iter().enumerate() {
                let look = CpuLook { rip: *rip, ring: *ring, interrupts: true, ..OFF };
                cpus.look(s(now as u64), &[look]);
            }
            cpus.goes_round_in(1, &patches).map(|c| (c.function, c.looks))
        };
        let (own, kernel) = ((0xffff_ffff_c050_1040, 0), (0xffff_ffff_8100_0000, 0));
        assert_eq!(circle(&[own; 5]), Some(("klp_f".into(), (5, 5))));
        assert_eq!(circle(&[own; 4]), None, "too few looks");
        assert_eq!(circle(&[own, own, own, kernel, kernel]), Some(("klp_f".into(), (3, 5))));
        assert_eq!(circle(&[own, own, kernel, kernel, kernel]), None, "it only passes by");
        assert_eq!(circle(&[own, own, (0x4000_0000, 3), own, own, own]), None, "it was in user space");
        let long = [&[(0x4000_0000, 3)][..], &[own; RECENT]].concat();
        assert_eq!(circle(&long), Some(("klp_f".into(), (RECENT, RECENT))), "that was long ago");
    }

    #[test]
    fn all_cpus_may_be_stuck() {
        let mut cpus = Cpus::new(s(10));
        let stuck = look(&mut cpus, 1, 12, &[CpuLook { cpu: 0, ..OFF }, OFF]);
        assert_eq!(stuck.iter().map(|s| s.cpu).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn one_sound_look_clears_a_cpu() {
        for sound in [
            CpuLook { interrupts: true, ..OFF },
            CpuLook { ring: 3, ..OFF },
            // Taken out of use, or waiting for another CPU.
            CpuLook { halted: true, ..OFF },
        ] {
            let mut cpus = Cpus::new(s(12));
            look(&mut cpus, 1, 12, &[OFF]);
            look(&mut cpus, 13, 13, &[sound]);
            assert!(!cpus.is_suspicious());
            assert_eq!(look(&mut cpus, 14, 25, &[OFF]), [], "{sound:?}");
        }
    }

    #[test]
    fn few_looks_and_a_pause_prove_nothing() {
        let mut cpus = Cpus::new(s(10));
        for now in (0..11).map(|n| n * 10) {
            assert_eq!(cpus.look(s(now), &[OFF]), []);
        }
        cpus.forget();
        assert_eq!(look(&mut cpus, 111, 121, &[OFF]), []);
        assert_eq!(look(&mut cpus, 122, 122, &[OFF]).len(), 1);
    }

    /// Chance finds a busy CPU with interrupts off several times in a row, in one place and another.
    #[test]
    fn a_cpu_that_gets_about_needs_more_looks() {
        let mut cpus = Cpus::new(s(10));
        let at = |now: u64| CpuLook { rip: 0xffff_ffff_8100_0000 + (now << 12), ..OFF };
        for now in 1..20 {
            assert_eq!(cpus.look(s(now), &[at(now)]), []);
        }
        assert_eq!(cpus.look(s(20), &[at(20)]).len(), 1);
    }

    #[test]
    fn the_module_is_that_with_the_nearest_beginning() {
        let mut cpus = Cpus::new(s(1));
        cpus.modules(
            "low 131072 0 - Live 0xffffffffc04f8000\nklp_x 16384 1 [permanent], Live 0xffffffffc0500000 (OEK)\n\
             hidden 16384 0 - Live 0x0000000000000000\nno module\n",
        );
        let at = |rip: u64| cpus.module_at(rip).map(|m| m.name.as_str());
        assert_eq!(at(0xffff_ffff_c050_1000), Some("klp_x"));
        assert_eq!(at(0xffff_ffff_c04f_8000), Some("low"));
        assert_eq!(at(0xffff_ffff_c050_4000), None);
        assert_eq!(at(0x1000), None);
        let mut places = cpus;
        for now in 1..12 {
            places.look(s(now), &[CpuLook { rip: 0xffff_ffff_8100_0000, ..OFF }]);
        }
        // Under emulation the place may be that of a block on the way.
        assert_eq!(places.look(s(13), &[OFF])[0].module.as_deref(), Some("klp_x"));
    }
}
