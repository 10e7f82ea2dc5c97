//! Which functions a patch replaces, as far as its file tells: before anything is booted. Pure.
//!
//! A livepatch holds its functions as `struct klp_func`: a name, then the address of the new code, then which of several functions of that
//! name is meant. In the file these are relocations: one to a string and, 8 bytes behind, one to code. What tools generate for the same
//! purpose (klp-build's `struct klp_func_ext`, the examples' own tables) begins alike; kpatch-build has a section `.kpatch.funcs` of its own, in
//! which the object's name follows. Other structures hardly ever look so.

use std::collections::{BTreeMap, BTreeSet};

use object::read::elf::ElfFile64;
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, SymbolKind,
};

/// A function that a patch replaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replaced {
    /// `vmlinux` or the module it is in.
    pub object: String,
    /// Its name.
    pub name: String,
    /// Which of several functions of this name, from 1; `None`: there must be one only.
    pub position: Option<u32>,
    /// Name of the function in the patch that takes its place; `None` if the file has no symbol for it.
    pub new_code: Option<String>,
}

impl Replaced {
    /// Whether it is the function that sysfs lists below a livepatch as `object/function,sympos`; without sympos on vanilla 4.4.
    pub fn is_listed_as(&self, key: &str) -> bool {
        let (object, function) = key.split_once('/').unwrap_or(("vmlinux", key));
        let (name, position) = function.rsplit_once(',').unwrap_or((function, "1"));
        self.object == object && self.name == name && position.parse() == Ok(self.position.unwrap_or(1))
    }
}

/// Where a pointer leads to.
#[derive(Clone)]
enum Target {
    /// A string.
    Name(String),
    /// Code, and the function that begins there.
    Code(Option<String>),
    Data(usize, u64),
}

/// The functions that the module in `data` replaces, in order; none if the file does not tell, or is no module.
pub fn replaced_functions(data: &[u8]) -> Vec<Replaced> {
    let Ok(elf) = ElfFile64::<'_, Endianness>::parse(data) else { return Vec::new() };
    let mut all = BTreeSet::new();
    let pointers = pointers(&elf);
    let owners = owners(&pointers);
    let kpatch = elf.section_by_name(".kpatch.funcs").map(|s| s.index().0);
    for (&(section, offset), target) in &pointers {
        let Target::Name(name) = target else { continue };
        let next = pointers.get(&(section, offset + 8));
        let (object, position, new_code) = match next {
            Some(Target::Name(object)) if kpatch == Some(section) => {
                let position = offset.checked_sub(8).and_then(|at| number(&elf, section, at));
                // The new code's address and size, the old one's, and the position come before the name.
                let first = offset.checked_sub(40).and_then(|at| pointers.get(&(section, at)));
                let new_code = match first {
                    Some(Target::Code(name)) => name.clone(),
                    _ => None,
                };
                (object.clone(), position, new_code)
            }
            Some(Target::Code(new_code)) => {
                // The object whose functions begin last before this one.
                let owner = owners.range((section, 0)..=(section, offset)).next_back();
                let object = owner.map_or("vmlinux", |(_, object)| object).to_owned();
                // Where a pointer stands instead of a number, it is another structure.
                let is_number = !pointers.contains_key(&(section, offset + 16));
                (object, is_number.then(|| number(&elf, section, offset + 16)).flatten(), new_code.clone())
            }
            _ => continue,
        };
        if is_symbol(name) {
            let position = position.filter(|n| (1..10_000).contains(n)).and_then(|n| u32::try_from(n).ok());
            all.insert(Replaced { object, name: name.clone(), position, new_code });
        }
    }
    all.into_iter().collect()
}

/// An offset in a section, which is known by its index.
type Place = (usize, u64);

/// All pointers in the data of a module.
fn pointers(elf: &ElfFile64<'_, Endianness>) -> BTreeMap<Place, Target> {
    let mut all = BTreeMap::new();
    let functions = functions(elf);
    let data = |s: &object::read::elf::ElfSection64<'_, '_, Endianness>| {
        matches!(
            s.kind(),
            SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::Other | SectionKind::Elf(_)
        )
    };
    for section in elf.sections().filter(data) {
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let Ok(symbol) = elf.symbol_by_index(index) else { continue };
            let Some(at) = symbol.section_index() else { continue };
            let Ok(there) = elf.section_by_index(at) else { continue };
            let at = at.0;
            let address = symbol.address().wrapping_add_signed(relocation.addend());
            let target = match there.kind() {
                SectionKind::Text => Target::Code(functions.get(&(at, address)).cloned()),
                SectionKind::ReadOnlyString | SectionKind::ReadOnlyData => match string(&there, address) {
                    Some(name) => Target::Name(name),
                    None => Target::Data(at, address),
                },
                _ => Target::Data(at, address),
            };
            all.insert((section.index().0, offset), target);
        }
    }
    all
}

/// Names of the functions that begin at each place.
fn functions(elf: &ElfFile64<'_, Endianness>) -> BTreeMap<Place, String> {
    let function = |s: object::read::elf::ElfSymbol64<'_, '_, Endianness>| {
        let named = s.kind() == SymbolKind::Text && s.name().is_ok_and(is_symbol);
        Some(((s.section_index().filter(|_| named)?.0, s.address()), s.name().ok()?.to_owned()))
    };
    elf.symbols().filter_map(function).collect()
}

/// Where the functions of each object begin: `struct klp_object` holds the object's name and, 8 bytes behind, where its functions are.
fn owners(pointers: &BTreeMap<Place, Target>) -> BTreeMap<Place, String> {
    let mut owners = BTreeMap::new();
    for (&(section, offset), target) in pointers {
        let Target::Data(at, address) = target else { continue };
        let is_function = matches!(pointers.get(&(*at, *address)), Some(Target::Name(_)))
            && matches!(pointers.get(&(*at, *address + 8)), Some(Target::Code(_)));
        if !is_function {
            continue;
        }
        let name = offset.checked_sub(8).and_then(|before| pointers.get(&(section, before)));
        let object = match name {
            Some(Target::Name(name)) => name.clone(),
            _ => "vmlinux".to_owned(),
        };
        owners.insert((*at, *address), object);
    }
    owners
}

fn string<'a>(section: &impl ObjectSection<'a>, address: u64) -> Option<String> {
    let data = section.data().ok()?.get(usize::try_from(address).ok()?..)?;
    let end = data.iter().take(512).position(|b| *b == 0)?;
    let text = std::str::from_utf8(&data[..end]).ok()?;
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
}

fn number(elf: &ElfFile64<'_, Endianness>, section: usize, offset: u64) -> Option<u64> {
    let data = elf.section_by_index(SectionIndex(section)).ok()?.data().ok()?;
    let at = usize::try_from(offset).ok()?;
    let bytes = data.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn is_symbol(name: &str) -> bool {
    name.len() <= 512
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_module_tells_nothing() {
        assert!(replaced_functions(b"").is_empty());
        assert!(replaced_functions(b"\x7fELF").is_empty());
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        // A program has no relocations of this kind.
        assert!(replaced_functions(&me).is_empty());
    }

    /// What a compiler makes of this.
    fn compiled(text: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (dir.path().join("x.c"), dir.path().join("x.o"));
        std::fs::write(&source, text).unwrap();
        let cc = std::process::Command::new("cc")
            .args(["-c", "-O1", "-ffunction-sections", "-fno-toplevel-reorder", "-o"])
            .args([&object, &source])
            .status();
        assert!(cc.unwrap().success());
        std::fs::read(&object).unwrap()
    }

    fn replaced(object: &str, name: &str, position: Option<u32>, new_code: &str) -> Replaced {
        let new_code = Some(new_code.to_owned());
        Replaced { object: object.into(), name: name.into(), position, new_code }
    }

    #[test]
    fn tables_of_livepatches_tell_the_new_code() {
        let file = compiled(
            "struct func { const char *name; void *new; unsigned long position; };\n\
             struct object { const char *name; struct func *funcs; };\n\
             static __attribute__((noinline)) int other(int a) { return a + 1; }\n\
             static __attribute__((noinline)) int klpp_exit(int a) { return other(a) * 3; }\n\
             static int sync_file(int a) { return a * 5; }\n\
             static struct func funcs[] = { { \"do_exit\", klpp_exit, 0 }, { 0 } };\n\
             static struct func ext4[] = { { \"ext4_sync\", sync_file, 2 }, { 0 } };\n\
             struct object objects[] = { { 0, funcs }, { \"ext4\", ext4 }, { 0 } };\n",
        );
        let expected = [
            replaced("ext4", "ext4_sync", Some(2), "sync_file"),
            replaced("vmlinux", "do_exit", None, "klpp_exit"),
        ];
        assert_eq!(replaced_functions(&file), expected);
        assert!(
            expected[0].is_listed_as("ext4/ext4_sync,2") && !expected[0].is_listed_as("ext4/ext4_sync,1")
        );
        assert!(expected[1].is_listed_as("vmlinux/do_exit,1") && expected[1].is_listed_as("vmlinux/do_exit"));
        assert!(!expected[1].is_listed_as("ext4/do_exit,1"));
    }

    #[test]
    fn tables_of_kpatch_build_tell_the_new_code() {
        let file = compiled(
            "int do_exit(int a) { return a * 3; }\n\
             struct { void *new; unsigned long sizes[3], position; const char *name, *object; }\n\
             f __attribute__((section(\".kpatch.funcs\"))) = { do_exit, { 9, 0, 9 }, 1, \"do_exit\", \"vmlinux\" };\n",
        );
        assert_eq!(replaced_functions(&file), [replaced("vmlinux", "do_exit", Some(1), "do_exit")]);
    }

    #[test]
    fn symbols_are_plain_words() {
        assert!(is_symbol("f.isra.0") && is_symbol("__x64_sys_madvise"));
        assert!(!is_symbol("6%s") && !is_symbol("") && !is_symbol("a b"));
    }
}
