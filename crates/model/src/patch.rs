//! Candidate patches: a `.ko` read as ELF before anything boots, and its optional sidecar.

use std::path::{Path, PathBuf};

use object::elf::{EM_X86_64, ET_REL};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::yaml::{self, YamlError};

/// What can be known of a candidate without loading it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Modules it needs.
    pub depends: Vec<String>,
    /// Whether a module signature is appended.
    pub signed: bool,
    /// The sidecar's content, if there is one.
    pub sidecar: Sidecar,
}

/// `X.yaml` beside `X.ko`: what people know of the patch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
                    message: format!("`{cve}` is no CVE number; write for example CVE-2020-29372"),
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
        let elf: ElfFile64<'_, Endianness> = ElfFile64::parse(data)
            .map_err(|e| refuse(&format!("is no 64-bit ELF file ({e}); give the built module, X.ko")))?;
        let header = elf.elf_header();
        if header.e_machine(elf.endian()) != EM_X86_64 {
            return Err(refuse("is not for x86-64"));
        }
        if header.e_type(elf.endian()) != ET_REL {
            return Err(refuse("is an ELF file but no kernel module (not relocatable); give X.ko"));
        }
        let info = Modinfo::read(&elf).ok_or_else(|| {
            refuse("has no .modinfo section: it is an object file, not a linked module; give X.ko")
        })?;
        let vermagic = info
            .get("vermagic")
            .ok_or_else(|| refuse("has no vermagic: it is not a finished kernel module; give X.ko as the kernel's build makes it"))?;
        let livepatch =
            info.get("livepatch").is_some_and(|v| v.starts_with('Y')) || wants_livepatch_api(&elf);
        if !livepatch {
            return Err(refuse(
                "is a kernel module but no livepatch (no `livepatch=Y` mark, and it calls neither klp_enable_patch nor klp_register_patch)",
            ));
        }
        let name = this_module_name(&elf)
            .or_else(|| info.get("name").map(str::to_owned))
            .or_else(|| file.file_stem().map(|s| s.to_string_lossy().replace('-', "_")))
            .unwrap_or_default();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return Err(refuse(&format!("has the module name {name:?}, which no module can have")));
        }
        Ok(Self {
            file: file.to_owned(),
            name: name.replace('-', "_"),
            sha256: Self::sha256_of(data),
            size: data.len() as u64,
            vermagic: vermagic.to_owned(),
            depends: info
                .get("depends")
                .map(|d| d.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect())
                .unwrap_or_default(),
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
                "was built for kernel {}, but image {image} runs {release}: build it again for that kernel, or name the image it was built for",
                self.release()
            ),
        })
    }
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
        assert!(refusal(b"hello").contains("no 64-bit ELF"));
        assert!(refusal(b"\xfd7zXZ\0...").contains("unxz"));
    }

    #[test]
    fn a_program_is_no_module() {
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(refusal(&me).contains("no kernel module"), "{}", refusal(&me));
    }

    #[test]
    fn cve_numbers_are_checked() {
        let parse = |t: &str| Sidecar::parse(Path::new("x.yaml"), t).map_err(|e| e.to_string());
        assert_eq!(parse("cves: [CVE-2020-29372]\nseverity: high\n").unwrap().severity, Some(Severity::High));
        assert!(parse("notes: a\ncves: [2020-29372]\n").unwrap_err().starts_with("x.yaml:2:1: cves"));
        assert!(parse("severity: bad\n").unwrap_err().contains("severity"));
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
