//! The functions of a running kernel, from its `/proc/kallsyms` and its tracer's list of functions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// The object of all functions that are in no module.
pub const VMLINUX: &str = "vmlinux";

/// A function of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// Its name in the kernel's symbols.
    pub name: String,
    /// [`VMLINUX`], or the module it is in.
    pub object: String,
    /// Which of the functions of this name in its object it is, from 1, in the order of their addresses: what livepatches call
    /// `sympos`.
    pub position: u32,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.object != VMLINUX {
            write!(f, " [{}]", self.object)?;
        }
        Ok(())
    }
}

/// Whether a function has an entry that a livepatch, or a tracer, can take hold of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// It has.
    Traceable,
    /// Its code is thrown away once the kernel has booted.
    Init,
    /// It is compiled without one (`notrace`, assembly).
    None,
    /// The kernel does not tell.
    Unknown,
}

impl Entry {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Traceable => 't',
            Self::Init => 'i',
            Self::None => '-',
            Self::Unknown => '?',
        }
    }

    pub(crate) fn of_letter(letter: &str) -> Self {
        match letter {
            "t" => Self::Traceable,
            "i" => Self::Init,
            "-" => Self::None,
            _ => Self::Unknown,
        }
    }
}

/// All functions of a kernel, with their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbols {
    /// All names of an address: system calls of old kernels have two.
    pub(crate) at: BTreeMap<u64, Vec<Function>>,
    /// Whether each function can be traced.
    pub(crate) entries: HashMap<Function, Entry>,
}

impl Symbols {
    /// Read lines of `/proc/kallsyms`, and of the tracer's `available_filter_functions` if the kernel has a tracer. Lines that are not
    /// of functions are skipped.
    pub fn parse(kallsyms: &str, traceable: Option<&str>) -> Self {
        let mut at = BTreeMap::<u64, Vec<(&str, &str)>>::new();
        let (mut init_from, mut init_to) = (0, 0);
        for line in kallsyms.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            // Without privileges all addresses are zero.
            let Some(address) = u64::from_str_radix(address, 16).ok().filter(|a| *a != 0) else { continue };
            match name {
                "_sinittext" => init_from = address,
                "_einittext" => init_to = address,
                _ => {}
            }
            let object = words.next().map_or(VMLINUX, |w| w.trim_matches(['[', ']']));
            if matches!(kind, "t" | "T" | "w" | "W") && is_function(name) && !object.starts_with("bpf") {
                at.entry(address).or_default().push((name, object));
            }
        }
        let traceable = traceable.filter(|text| !text.trim().is_empty()).map(traced_names);
        let mut positions = HashMap::<(&str, &str), u32>::new();
        let mut symbols = Self::default();
        for (address, names) in &at {
            let is_traced = |(name, object): &(&str, &str)| {
                traceable.as_ref().is_some_and(|known| known.contains(&(*name, *object)))
            };
            let entry = match &traceable {
                _ if (init_from..init_to).contains(address) => Entry::Init,
                None => Entry::Unknown,
                Some(_) if names.iter().any(is_traced) => Entry::Traceable,
                Some(_) => Entry::None,
            };
            for (name, object) in names {
                let position = positions.entry((name, object)).or_default();
                *position += 1;
                let function =
                    Function { name: (*name).to_owned(), object: (*object).to_owned(), position: *position };
                symbols.entries.insert(function.clone(), entry);
                symbols.at.entry(*address).or_default().push(function);
            }
        }
        symbols
    }

    /// These and those of another part of the same kernel: its modules.
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.entries.extend(other.entries.iter().map(|(f, e)| (f.clone(), *e)));
        for (address, functions) in &other.at {
            both.at.insert(*address, functions.clone());
        }
        both
    }

    /// Those of the kernel itself, without its modules.
    pub fn of_vmlinux(&self) -> Self {
        let is_own = |f: &Function| f.object == VMLINUX;
        let own = |(address, functions): (&u64, &Vec<Function>)| {
            let functions: Vec<Function> = functions.iter().filter(|f| is_own(f)).cloned().collect();
            (!functions.is_empty()).then_some((*address, functions))
        };
        Self {
            at: self.at.iter().filter_map(own).collect(),
            entries: self.entries.iter().filter(|(f, _)| is_own(f)).map(|(f, e)| (f.clone(), *e)).collect(),
        }
    }

    /// Where the function begins whose entry a tracer saw: it tells the address of the call to itself, a few bytes behind.
    pub fn beginning(&self, traced: u64) -> Option<u64> {
        const BEHIND: u64 = 16;
        self.at.range(traced.saturating_sub(BEHIND)..=traced).next_back().map(|(address, _)| *address)
    }

    /// Whether there are none: the guest hides its symbols.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Each function once, with whether it can be traced, by name.
    pub fn functions(&self) -> BTreeMap<&Function, Entry> {
        self.entries.iter().map(|(f, e)| (f, *e)).collect()
    }

    /// The modules that are loaded.
    pub fn modules(&self) -> HashSet<&str> {
        self.entries.keys().map(|f| f.object.as_str()).filter(|o| *o != VMLINUX).collect()
    }
}

/// What the compiler and the kernel's build put among functions that are none.
fn is_function(name: &str) -> bool {
    !(name.starts_with("__pfx_") || name.starts_with("__cfi_") || name.starts_with("__SCT__"))
}

/// The tracer's list: names, those of modules with the module behind them.
fn traced_names(text: &str) -> HashSet<(&str, &str)> {
    text.lines().filter_map(traced_name).collect()
}

fn traced_name(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    // Newer kernels can write an id behind a module's name.
    let object = rest.trim_start_matches('[').split([']', ' ']).next().unwrap_or_default();
    (!name.is_empty()).then_some((name, if object.is_empty() { VMLINUX } else { object }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, object: &str, position: u32) -> Function {
        Function { name: name.into(), object: object.into(), position }
    }

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 t helper
ffffffff81000200 T do_exit
ffffffff81000300 t helper
ffffffff81000400 D some_data
ffffffff81000500 T SyS_madvise
ffffffff81000500 T sys_madvise
ffffffff82000000 T _sinittext
ffffffff82000010 t start_early
ffffffff82001000 T _einittext
ffffffffc0000000 t helper\t[ext4]
ffffffffc0000040 t __pfx_helper\t[ext4]
ffffffffc0000100 t bpf_prog_6deef7357e7b4530\t[bpf]
short line
";

    #[test]
    fn functions_of_kernel_and_modules_are_read() {
        let traceable = "helper\ndo_exit\nSyS_madvise\nhelper [ext4]\n";
        let symbols = Symbols::parse(KALLSYMS, Some(traceable));
        let entry = |f| symbols.functions().get(&f).copied();
        assert_eq!(entry(function("helper", VMLINUX, 2)), Some(Entry::Traceable));
        assert_eq!(entry(function("helper", VMLINUX, 3)), None);
        assert_eq!(entry(function("helper", "ext4", 1)), Some(Entry::Traceable));
        assert_eq!(entry(function("start_early", VMLINUX, 1)), Some(Entry::Init));
        assert_eq!(entry(function("_stext", VMLINUX, 1)), Some(Entry::None));
        assert_eq!(entry(function("some_data", VMLINUX, 1)), None);
        // Known to the tracer by its other name.
        assert_eq!(entry(function("sys_madvise", VMLINUX, 1)), Some(Entry::Traceable));
        assert_eq!(symbols.modules(), ["ext4"].into());
    }

    #[test]
    fn a_kernel_without_a_tracer_does_not_tell() {
        let symbols = Symbols::parse(KALLSYMS, None);
        assert_eq!(symbols.functions()[&function("do_exit", VMLINUX, 1)], Entry::Unknown);
        assert!(Symbols::parse("0000000000000000 T do_exit\n", None).is_empty());
    }

    #[test]
    fn a_tracer_sees_a_function_a_little_behind_its_beginning() {
        let symbols = Symbols::parse(KALLSYMS, None);
        let exit = 0xffff_ffff_8100_0200;
        assert_eq!(symbols.beginning(exit + 4), Some(exit));
        assert_eq!(symbols.beginning(exit), Some(exit));
        assert_eq!(symbols.beginning(exit + 40), None);
    }

    #[test]
    fn modules_come_and_go() {
        let idle = Symbols::parse(KALLSYMS, None);
        let later = Symbols::parse("ffffffffc0000000 t other\t[btrfs]\n", None);
        let both = idle.of_vmlinux().and(&later);
        assert_eq!(both.modules(), ["btrfs"].into());
        assert!(both.functions().contains_key(&function("do_exit", VMLINUX, 1)));
    }

    #[test]
    fn the_tracer_names_modules_in_two_ways() {
        let names = traced_names("a\nb [ext4]\nc [xfs 6e2a9d2f]\n\n");
        assert_eq!(names, [("a", VMLINUX), ("b", "ext4"), ("c", "xfs")].into());
    }
}
