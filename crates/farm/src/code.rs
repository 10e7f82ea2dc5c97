//! Which function of a patch an address belongs to, from the patch's file: the guest need not be asked, and may be dead. Pure.

use object::elf::{SHF_ALLOC, SHF_EXECINSTR};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionFlags, SymbolKind};

/// The functions of a module as the kernel lays them out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Code(Vec<Function>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    start: u64,
    end: u64,
    name: String,
}

impl Code {
    /// Made up: name, beginning and end of each function.
    #[cfg(test)]
    pub(crate) fn of(functions: &[(&str, u64, u64)]) -> Self {
        let function = |(name, start, end): &(&str, u64, u64)| Function {
            start: *start,
            end: *end,
            name: (*name).to_owned(),
        };
        Self(functions.iter().map(function).collect())
    }

    /// Read a module's file; nothing is known of one that can't be read.
    ///
    /// The kernel puts the sections with code first, in the order of the file and each aligned, and code that is needed while loading
    /// only elsewhere (`kernel/module`, `layout_sections`).
    pub(crate) fn read(file: &[u8]) -> Self {
        let Ok(elf) = ElfFile64::<'_, Endianness>::parse(file) else { return Self::default() };
        let mut functions = Vec::new();
        let mut next = 0_u64;
        for section in elf.sections() {
            let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
            let code = u64::from(SHF_ALLOC | SHF_EXECINSTR);
            if sh_flags & code != code || section.name().is_ok_and(|n| n.starts_with(".init")) {
                continue;
            }
            let Some(start) = next.checked_next_multiple_of(section.align().max(1)) else { break };
            next = start.saturating_add(section.size());
            let inside = |s: &_| ObjectSymbol::section_index(s) == Some(section.index());
            let here = elf.symbols().filter(inside).filter(|s| s.kind() == SymbolKind::Text && s.size() > 0);
            functions.extend(here.filter_map(|s| {
                let at = start.checked_add(s.address())?;
                Some(Function { start: at, end: at.checked_add(s.size())?, name: s.name().ok()?.to_owned() })
            }));
        }
        Self(functions)
    }

    /// The function so many bytes behind the module's beginning.
    pub(crate) fn at(&self, offset: u64) -> Option<&str> {
        self.0.iter().find(|f| (f.start..f.end).contains(&offset)).map(|f| f.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a compiler makes it; the linker that made this test needs one as well.
    #[test]
    fn functions_are_found_in_sections_laid_out_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (dir.path().join("x.c"), dir.path().join("x.o"));
        let text = "int first(int a) { return a + 1; }\n\
                    __attribute__((section(\".init.text\"))) int starts(int a) { return a; }\n\
                    int second(int a) { return a * 3; }\n";
        std::fs::write(&source, text).unwrap();
        let cc = std::process::Command::new("cc")
            .args(["-c", "-O0", "-ffunction-sections", "-o"])
            .args([&object, &source])
            .status()
            .unwrap();
        assert!(cc.success());
        let code = Code::read(&std::fs::read(&object).unwrap());
        assert_eq!(code.at(0), Some("first"));
        let second = (1..400).find(|at| code.at(*at) == Some("second")).unwrap();
        assert!((0..400).all(|at| code.at(at) != Some("starts")));
        assert!((0..second).all(|at| matches!(code.at(at), Some("first") | None)));
        assert_eq!(code.at(100_000), None);
    }

    #[test]
    fn what_is_no_module_has_no_functions() {
        assert_eq!(Code::read(b"\x7fELF\x02\x01\x01nonsense"), Code::default());
        assert_eq!(Code::default().at(0), None);
    }
}
