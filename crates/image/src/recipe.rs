//! The recipe file: its shape, and what must hold beyond the shape.

use std::path::{Path, PathBuf};

use klpfarm_model::yaml;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::check::{Check, parse_size};

/// A guest as a file in `images/` describes it, checked. Paths in it are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recipe {
    /// The image's name: lower-case letters, digits, `.`, `-`.
    pub name: String,
    /// One line for people; no part of the image's identity.
    pub description: String,
    /// Built here or ready-made.
    pub source: Source,
    /// Where the recipe was read from; `images/NAME.yaml` for the ones shipped inside the program.
    pub file: PathBuf,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// From a Debian-style archive.
    Build(BuildSpec),
    /// From a user's own disk.
    Prebuilt(PrebuiltSpec),
}

/// A guest made from a package archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildSpec {
    /// The distribution's suite, for example `bookworm`.
    pub suite: String,
    /// The archive, for example `http://deb.debian.org/debian`.
    pub mirror: String,
    /// Parts of the archive; default `main`.
    #[serde(default = "main_only")]
    pub components: Vec<String>,
    /// Further suites of the same mirror, for example `xenial-updates`.
    #[serde(default)]
    pub updates: Vec<String>,
    /// Where security updates come from.
    #[serde(default)]
    pub security: Option<Security>,
    /// The archive's public keys, a file on this host.
    pub keyring: PathBuf,
    /// Packages besides those every image has.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The kernel.
    pub kernel: KernelPackages,
    /// The disk's size: a number with K, M, G; the file is sparse. Default 4G.
    #[serde(default = "four_gib")]
    pub disk: String,
}

/// A suite of security updates, with a mirror of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// The archive.
    pub mirror: String,
    /// The suite, for example `bookworm-security`.
    pub suite: String,
}

/// Kernel packages: the two must belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelPackages {
    /// The kernel itself.
    pub image: String,
    /// What modules are built against.
    pub headers: String,
}

/// A user's own guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrebuiltSpec {
    /// The disk.
    pub disk: PrebuiltDisk,
    /// The kernel to boot directly; without one the disk's boot loader does it.
    #[serde(default)]
    pub kernel: Option<PrebuiltFile>,
    /// The kernel's initrd.
    #[serde(default)]
    pub initrd: Option<PrebuiltFile>,
    /// The kernel's command line, `root=` included; only together with `kernel`.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// How the guest learns our key.
    #[serde(default)]
    pub seed: Option<Seed>,
    /// How to log in, for a guest that already holds a key.
    #[serde(default)]
    pub ssh: Option<SshSpec>,
    /// A kernel build tree on this host, for modules.
    #[serde(default)]
    pub headers: Option<PathBuf>,
}

/// A disk, by path or URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrebuiltDisk {
    /// A file of this host.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Something to download.
    #[serde(default)]
    pub url: Option<String>,
    /// SHA-256 in hex. A download is refused without it.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The disk's format.
    pub format: DiskFormat,
}

/// A kernel or an initrd, by path or URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrebuiltFile {
    /// A file of this host.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Something to download.
    #[serde(default)]
    pub url: Option<String>,
    /// SHA-256 in hex. A download is refused without it.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// What QEMU is told about a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Ways to hand a ready-made guest its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seed {
    /// A second disk labelled `cidata`, read by cloud-init.
    Nocloud,
}

/// How to log in to a ready-made guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshSpec {
    /// The user; must be root to apply patches.
    #[serde(default = "root_user")]
    pub user: String,
    /// The private key on this host.
    pub key: PathBuf,
    /// The guest's public host key (`ssh-ed25519 AAAA...`); without it any is accepted.
    #[serde(default)]
    pub host_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    build: Option<BuildSpec>,
    #[serde(default)]
    prebuilt: Option<PrebuiltSpec>,
}

fn main_only() -> Vec<String> {
    vec!["main".into()]
}

fn four_gib() -> String {
    "4G".into()
}

fn root_user() -> String {
    "root".into()
}

impl Recipe {
    /// Read a recipe from `text`, the content of `file`. Relative paths in it are taken from the file's folder.
    ///
    /// # Errors
    /// [`Error::Recipe`] with every problem found, each with file, line and field.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let shape: RecipeFile = yaml::parse(file, text).map_err(|e| Error::Recipe(vec![e]))?;
        let mut check = Check::new(file, text);
        check.name(&shape.name);
        let base = file.parent().unwrap_or(Path::new(""));
        let source = match (shape.build, shape.prebuilt) {
            (Some(build), None) => {
                check.build(&build);
                Some(Source::Build(BuildSpec { keyring: base.join(&build.keyring), ..build }))
            }
            (None, Some(mut prebuilt)) => {
                check.prebuilt(&prebuilt);
                prebuilt.paths().for_each(|path| *path = base.join(&*path));
                Some(Source::Prebuilt(prebuilt))
            }
            (Some(_), Some(_)) => {
                check.problem(&["prebuilt"], "a recipe has either `build` or `prebuilt`, not both");
                None
            }
            (None, None) => {
                check.problem(&[], "neither `build` nor `prebuilt`: say where the guest comes from");
                None
            }
        };
        match source {
            Some(source) if check.problems.is_empty() => {
                Ok(Self { name: shape.name, description: shape.description, source, file: file.to_owned() })
            }
            _ => Err(Error::Recipe(check.problems)),
        }
    }

    /// Read a recipe file.
    ///
    /// # Errors
    /// As [`Recipe::parse`], and when the file cannot be read.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let absolute = std::path::absolute(file).map_err(Error::io("find", file))?;
        let text = std::fs::read_to_string(&absolute).map_err(Error::io("read", file))?;
        Self::parse(&absolute, &text)
    }

    /// The recipe's text, to find lines for problems that show only at the build; empty when it has gone since.
    pub(crate) fn text(&self) -> String {
        let shipped = || {
            crate::shipped().iter().find(|(name, _)| *name == self.name).map(|(_, text)| (*text).to_owned())
        };
        std::fs::read_to_string(&self.file).ok().or_else(shipped).unwrap_or_default()
    }
}

impl BuildSpec {
    /// The disk's size in bytes.
    pub fn disk_bytes(&self) -> u64 {
        parse_size(&self.disk).unwrap_or(4 << 30)
    }

    /// The archive as lines of a `sources.list`.
    pub fn source_lines(&self) -> Vec<String> {
        let components = self.components.join(" ");
        let line = |mirror: &str, suite: &str| format!("deb {mirror} {suite} {components}");
        let mut lines = vec![line(&self.mirror, &self.suite)];
        lines.extend(self.updates.iter().map(|suite| line(&self.mirror, suite)));
        lines.extend(self.security.iter().map(|s| line(&s.mirror, &s.suite)));
        lines
    }
}

impl PrebuiltSpec {
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { disk, kernel, initrd, ssh, headers, .. } = self;
        (disk.path.iter_mut())
            .chain(kernel.iter_mut().filter_map(|f| f.path.as_mut()))
            .chain(initrd.iter_mut().filter_map(|f| f.path.as_mut()))
            .chain(ssh.iter_mut().map(|s| &mut s.key))
            .chain(headers.iter_mut())
    }
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
