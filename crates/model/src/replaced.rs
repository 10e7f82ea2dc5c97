//! Which functions a patch replaces, as far as its file tells: before anything is booted. Pure.
//!
//! A livepatch holds its functions as `struct klp_func`: a name, then the address of the new code, then which of several functions of that
//! name is meant. In the file these are relocations: one to a string and, 8 bytes behind, one to code. What tools generate for the same
//! purpose (klp-build's `struct klp_func_ext`, the examples' own tables) begins alike; kpatch-build has a section `.kpatch.funcs` of its own, in
//! which the object's name follows. Other structures hardly ever look so.

use std::collections::{BTreeMap, BTreeSet};

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind};

/// A function that a patch replaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replaced {
    /// `vmlinux` or the module it is in.
    pub object: String,
    /// Its name.
    pub name: String,
    /// Which of several functions of this name, from 1; `None`: there must be one only.
    pub position: Option<u32>,
}

/// Where a pointer leads to.
#[derive(Clone)]
enum Target {
    /// A string.
    Name(String),
    Code,
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
        let (object, position) = match next {
            Some(Target::Name(object)) if kpatch == Some(section) => {
                (object.clone(), offset.checked_sub(8).and_then(|at| number(&elf, section, at)))
            }
            Some(Target::Code) => {
                // The object whose functions begin last before this one.
                let owner = owners.range((section, 0)..=(section, offset)).next_back();
                let object = owner.map_or("vmlinux", |(_, object)| object).to_owned();
                // Where a pointer stands instead of a number, it is another structure.
                let is_number = !pointers.contains_key(&(section, offset + 16));
                (object, is_number.then(|| number(&elf, section, offset + 16)).flatten())
            }
            _ => continue,
        };
        if is_symbol(name) {
            let position = position.filter(|n| (1..10_000).contains(n)).and_then(|n| u32::try_from(n).ok());
            all.insert(Replaced { object, name: name.clone(), position });
        }
    }
    all.into_iter().collect()
}

/// An offset in a section, which is known by its index.
type Place = (usize, u64);

/// All pointers in the data of a module.
fn pointers(elf: &ElfFile64<'_, Endianness>) -> BTreeMap<Place, Target> {
    let mut all = BTreeMap::new();
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
                SectionKind::Text => Target::Code,
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

/// Where the functions of each object begin: `struct klp_object` holds the object's name and, 8 bytes behind, where its functions are.
fn owners(pointers: &BTreeMap<Place, Target>) -> BTreeMap<Place, String> {
    let mut owners = BTreeMap::new();
    for (&(section, offset), target) in pointers {
        let Target::Data(at, address) = target else { continue };
        let is_function = matches!(pointers.get(&(*at, *address)), Some(Target::Name(_)))
            && matches!(pointers.get(&(*at, *address + 8)), Some(Target::Code));
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

    #[test]
    fn symbols_are_plain_words() {
        assert!(is_symbol("f.isra.0") && is_symbol("__x64_sys_madvise"));
        assert!(!is_symbol("6%s") && !is_symbol("") && !is_symbol("a b"));
    }
}
