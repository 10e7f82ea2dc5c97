//! Candidate patches: a `.ko` read as ELF before anything boots, and its optional sidecar.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use object::elf::{EM_X86_64, ET_REL};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::yaml::{self, YamlError};

/// What can be known of a candidate without loading it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Patch {
    /// The file as the user named it.
    pub file: PathBuf,
    /// Module name: the folder in `/sys/kernel/livepatch`.
    pub name: String,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
    /// `vermagic` of the module.
    pub vermagic: String,
    /// Modules it needs: the kernel refuses to load it without them.
    pub depends: Vec<String>,
    /// Modules whose functions it replaces, as far as its sections `.klp.rela.MODULE.SECTION` (since 4.7) say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<String>,
    /// Whether a module signature is appended.
    pub signed: bool,
    /// The sidecar's content, if there is one.
    pub sidecar: Sidecar,
}

/// `X.yaml` beside `X.ko`: what people know of the patch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sidecar {
    /// CVE numbers it closes.
    pub cves: Vec<String>,
    /// Severity of the worst of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Anything else worth saying in the verdict.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
}

/// Severity of a CVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl Sidecar {
    /// Read a sidecar from `text`, the content of `file`.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, YamlError> {
        let sidecar: Self = yaml::parse(file, text)?;
        for cve in &sidecar.cves {
            let mut parts = cve.split('-');
            let ok = parts.next() == Some("CVE")
                && parts.clone().count() == 2
                && parts.all(|p| p.len() >= 4 && p.bytes().all(|b| b.is_ascii_digit()));
            if !ok {
                return Err(YamlError {
                    file: file.to_owned(),
                    at: yaml::line_of(text, &["cves"]).map(|line| (line, 1)),
                    field: "cves".into(),
                    message: format!("`{cve}` is not a CVE number; write for example CVE-2020-29372"),
                });
            }
        }
        Ok(sidecar)
    }
}

/// Why a file is no candidate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", .file.display())]
pub struct PatchError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong and what to do.
    pub reason: String,
}

/// The end of a signed module (kernel: `scripts/sign-file.c`).
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

impl Patch {
    /// SHA-256 of a module, in hex.
    pub fn sha256_of(data: &[u8]) -> String {
        hex(&Sha256::digest(data))
    }

    /// Read a candidate from `data`, the content of `file`.
    ///
    /// # Errors
    /// If it is no x86-64 kernel module, or a module but no livepatch.
    pub fn parse(file: &Path, data: &[u8], sidecar: Sidecar) -> Result<Self, PatchError> {
        let refuse = |reason: &str| PatchError { file: file.to_owned(), reason: reason.to_owned() };
        let compressed: [(&[u8], &str); 3] =
            [(b"\xfd7zXZ\0", "unxz"), (b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd")];
        if let Some((_, tool)) = compressed.iter().find(|(magic, _)| data.starts_with(magic)) {
            return Err(refuse(&format!("is compressed; unpack it first with `{tool}`")));
        }
        if data.is_empty() {
            return Err(refuse("is empty"));
        }
        let elf: ElfFile64<'_, Endianness> = ElfFile64::parse(data).map_err(|e| {
            refuse(&format!("not a 64-bit ELF file ({e}); give the built kernel module (X.ko)"))
        })?;
        let header = elf.elf_header();
        if header.e_machine(elf.endian()) != EM_X86_64 {
            return Err(refuse("is not for x86-64"));
        }
        if header.e_type(elf.endian()) != ET_REL {
            return Err(refuse("is an ELF file but not a kernel module (not relocatable); give X.ko"));
        }
        let info = Modinfo::read(&elf).ok_or_else(|| {
            refuse("has no .modinfo section: an object file, not a linked module; give X.ko")
        })?;
        let vermagic = info.get("vermagic").ok_or_else(|| {
            refuse(
                "has no vermagic: not a finished kernel module; give the X.ko produced by the kernel build",
            )
        })?;
        let livepatch =
            info.get("livepatch").is_some_and(|v| v.starts_with('Y')) || wants_livepatch_api(&elf);
        if !livepatch {
            return Err(refuse(
                "is a kernel module but not a livepatch (no `livepatch=Y` mark, and it calls neither klp_enable_patch nor klp_register_patch)",
            ));
        }
        let name = this_module_name(&elf)
            .or_else(|| info.get("name").map(str::to_owned))
            .or_else(|| file.file_stem().map(|s| s.to_string_lossy().replace('-', "_")))
            .unwrap_or_default();
        if !is_module_name(&name) {
            return Err(refuse(&format!("has the module name {name:?}, which is not a valid module name")));
        }
        let depends = info.get("depends").unwrap_or_default().split(',').filter(|s| !s.is_empty());
        let depends: Vec<String> = depends.map(str::to_owned).collect();
        let objects = patched_objects(&elf);
        if let Some(module) = depends.iter().chain(&objects).find(|m| !is_module_name(m)) {
            return Err(refuse(&format!("depends on {module:?}, which is not a valid module name")));
        }
        Ok(Self {
            file: file.to_owned(),
            name: name.replace('-', "_"),
            sha256: Self::sha256_of(data),
            size: data.len() as u64,
            vermagic: vermagic.to_owned(),
            depends,
            objects,
            signed: data.ends_with(SIGNATURE_MARK),
            sidecar,
        })
    }

    /// The kernel release the module was built for: the first word of its vermagic.
    pub fn release(&self) -> &str {
        self.vermagic.split_whitespace().next().unwrap_or("")
    }

    /// Refuse a patch that was built for another kernel than `release`.
    ///
    /// # Errors
    /// Names both releases.
    pub fn check_release(&self, image: &str, release: &str) -> Result<(), PatchError> {
        if self.release() == release {
            return Ok(());
        }
        Err(PatchError {
            file: self.file.clone(),
            reason: format!(
                "was built for kernel {}, but image {image} runs {release}: rebuild it for that kernel, or use the image it was built for",
                self.release()
            ),
        })
    }
}

/// Modules that must be loaded before patches for kernel `release` are, and the first patch that needs each: what they depend on, and
/// the modules that they patch. Candidates that depend on each other are not among them.
pub fn needed_modules<'a>(patches: &'a [Patch], release: &str) -> BTreeMap<String, &'a Patch> {
    let mut needed = BTreeMap::new();
    for patch in patches.iter().filter(|p| p.release() == release) {
        for module in patch.depends.iter().chain(&patch.objects) {
            let module = module.replace('-', "_");
            if !patches.iter().any(|p| p.name == module) {
                needed.entry(module).or_insert(patch);
            }
        }
    }
    needed
}

/// Names of the candidates' files, each its own: modules for two kernels are often named alike, `x.ko` and then `x.2.ko`.
pub fn file_names(patches: &[Patch]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for patch in patches {
        let stem = &patch.name;
        let all = std::iter::once(format!("{stem}.ko")).chain((2..).map(|n| format!("{stem}.{n}.ko")));
        names.extend(all.into_iter().find(|name| !names.contains(name)));
    }
    names
}

/// Lower-case hex, as `sha256sum` prints it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Plain words, which may stand in a shell line.
fn is_module_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Modules of which the patch has relocations to be done when they are there, `vmlinux` left out, in order.
fn patched_objects(elf: &ElfFile64<'_, Endianness>) -> Vec<String> {
    let object = |section: &str| Some(section.strip_prefix(".klp.rela.")?.split_once('.')?.0.to_owned());
    let all: BTreeSet<String> = elf.sections().filter_map(|s| object(s.name().ok()?)).collect();
    all.into_iter().filter(|object| object != "vmlinux").collect()
}

struct Modinfo<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Modinfo<'a> {
    fn read(elf: &ElfFile64<'a, Endianness>) -> Option<Self> {
        let data = elf.section_by_name(".modinfo")?.data().ok()?;
        let pairs = data
            .split(|b| *b == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
            .collect();
        Some(Self(pairs))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

/// Before 4.7 there is no modinfo mark: such a module shows by the symbols it wants.
fn wants_livepatch_api(elf: &ElfFile64<'_, Endianness>) -> bool {
    elf.symbols()
        .filter(|s| s.is_undefined())
        .any(|s| matches!(s.name(), Ok("klp_enable_patch" | "klp_register_patch")))
}

/// `struct module` starts with `enum module_state` and a `struct list_head`; the name follows at byte 24 on x86-64, on
/// all kernels from 4.4 to 6.12.
fn this_module_name(elf: &ElfFile64<'_, Endianness>) -> Option<String> {
    let data = elf.section_by_name(".gnu.linkonce.this_module")?.data().ok()?;
    let name = data.get(24..24 + 56)?;
    let end = name.iter().position(|b| *b == 0)?;
    let text = std::str::from_utf8(&name[..end]).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(data: &[u8]) -> String {
        Patch::parse(Path::new("x.ko"), data, Sidecar::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_module_is_refused_with_the_reason() {
        assert!(refusal(b"").contains("is empty"));
        assert!(refusal(b"hello").contains("not a 64-bit ELF"));
        assert!(refusal(b"\xfd7zXZ\0...").contains("unxz"));
    }

    #[test]
    fn a_program_is_no_module() {
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(refusal(&me).contains("not a kernel module"), "{}", refusal(&me));
    }

    #[test]
    fn cve_numbers_are_checked() {
        let parse = |t: &str| Sidecar::parse(Path::new("x.yaml"), t).map_err(|e| e.to_string());
        assert_eq!(parse("cves: [CVE-2020-29372]\nseverity: high\n").unwrap().severity, Some(Severity::High));
        assert!(parse("notes: a\ncves: [2020-29372]\n").unwrap_err().starts_with("x.yaml:2:1: cves"));
        assert!(parse("severity: bad\n").unwrap_err().contains("severity"));
    }

    /// A livepatch for 6.1 named `x` with these sections besides `.modinfo`, all of them empty.
    fn livepatch(depends: &str, sections: &[&str]) -> Vec<u8> {
        let info = format!("vermagic=6.1 SMP\0livepatch=Y\0name=x\0depends={depends}\0");
        let (mut names, mut offsets) = (vec![0], Vec::new());
        for name in [".modinfo", ".shstrtab"].iter().chain(sections) {
            offsets.push(names.len());
            names.extend([name.as_bytes(), b"\0"].concat());
        }
        let at = |n: usize| 64 + n as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0".to_vec();
        file.extend([0; 16]);
        file.extend(at(info.len() + names.len()).to_le_bytes());
        file.extend([0; 4]);
        let count = u16::try_from(offsets.len() + 1).unwrap();
        file.extend([64_u16, 0, 0, 64, count, 2].iter().flat_map(|half| half.to_le_bytes()));
        file.extend(info.as_bytes());
        file.extend(&names);
        let mut header = |name: usize, kind: u32, offset: u64, size: usize| {
            file.extend(u32::try_from(name).unwrap().to_le_bytes());
            file.extend(kind.to_le_bytes());
            file.extend([0, 0, offset, size as u64, 0, 1, 0].iter().flat_map(|word| word.to_le_bytes()));
        };
        header(0, 0, 0, 0);
        header(offsets[0], 1, at(0), info.len());
        header(offsets[1], 3, at(info.len()), names.len());
        offsets[2..].iter().for_each(|name| header(*name, 1, at(0), 0));
        file
    }

    fn parse(depends: &str, sections: &[&str]) -> Result<Patch, PatchError> {
        Patch::parse(Path::new("x.ko"), &livepatch(depends, sections), Sidecar::default())
    }

    #[test]
    fn modules_are_read_from_modinfo_and_sections() {
        let patch = parse("", &[]).unwrap();
        assert_eq!((patch.name.as_str(), patch.depends, patch.objects), ("x", vec![], vec![]));
        let sections = [
            ".klp.rela.vmlinux..text",
            ".klp.rela.nf_tables..text.nft_do_chain",
            ".klp.rela.ext4..text",
            ".klp.rela.ext4..data",
            ".rela.text",
        ];
        let patch = parse("jbd2,ext4", &sections).unwrap();
        assert_eq!(
            (&patch.depends[..], &patch.objects[..]),
            (&["jbd2", "ext4"].map(String::from)[..], &["ext4", "nf_tables"].map(String::from)[..])
        );
        assert!(parse("a;reboot", &[]).unwrap_err().reason.contains("\"a;reboot\""));
        assert!(parse("", &[".klp.rela.$(reboot)..text"]).is_err());
        assert!(parse("-r", &[]).is_err());
    }

    #[test]
    fn candidates_are_no_modules_that_an_image_must_have() {
        let patch = |name: &str, depends: &[&str], objects: &[&str]| Patch {
            name: name.into(),
            vermagic: "6.1 SMP".into(),
            depends: depends.iter().map(|s| (*s).to_owned()).collect(),
            objects: objects.iter().map(|s| (*s).to_owned()).collect(),
            ..Patch::default()
        };
        let other = Patch { vermagic: "6.12 SMP".into(), ..patch("z", &["other"], &[]) };
        let all = [patch("x", &["nf-tables"], &["ext4"]), patch("y", &["x", "ext4"], &[]), other];
        let needed = needed_modules(&all, "6.1");
        let needed: Vec<_> = needed.iter().map(|(module, by)| (module.as_str(), by.name.as_str())).collect();
        assert_eq!(needed, [("ext4", "x"), ("nf_tables", "x")]);
        assert!(needed_modules(&all, "5.10").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut data in proptest::collection::vec(proptest::num::u8::ANY, 0..400), elf in proptest::bool::ANY) {
            if elf {
                data.splice(0..0, *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0");
            }
            let _ = Patch::parse(Path::new("x.ko"), &data, Sidecar::default());
        }
    }
}
