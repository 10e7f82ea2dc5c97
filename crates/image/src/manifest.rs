//! What an image says about itself.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::recipe::DiskFormat;
use crate::{Error, Result, fsutil, kernel};

/// Version of `manifest.json`; an image of another version is not recognised and built again.
pub const SCHEMA: u32 = 1;

/// `manifest.json`. Paths are relative to the image's folder, or absolute for a user's own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the image, as in its recipe.
    pub name: String,
    /// Name and content hash; also the name of its folder.
    pub id: String,
    /// The recipe's line for people.
    pub description: String,
    /// SHA-256 of the recipe and of everything of ours that goes into the image.
    pub recipe_hash: String,
    /// The kernel's release; `None` when only the guest knows it.
    pub release: Option<String>,
    /// The root disk.
    pub disk: FileEntry,
    /// The root disk's format.
    pub disk_format: DiskFormat,
    /// The kernel to boot directly; `None` to boot from the disk.
    pub kernel: Option<FileEntry>,
    /// Its initrd.
    pub initrd: Option<FileEntry>,
    /// What the kernel's command line must hold, `root=` above all.
    pub cmdline: String,
    /// A second disk (raw, read-only) with the settings for cloud-init.
    pub seed: Option<PathBuf>,
    /// The kernel build tree, usable on the host where its compiler fits.
    pub headers: Option<PathBuf>,
    /// The root file system as a tree, to build modules in.
    pub rootfs: Option<PathBuf>,
    /// How to log in.
    pub ssh: Ssh,
    /// Where it came from: lines of a `sources.list`, or paths and URLs.
    pub sources: Vec<String>,
    /// Every package of the guest, by name.
    pub packages: Vec<Package>,
    /// When it was made, RFC 3339, UTC.
    pub created: String,
    /// The tools that made it, as `name version`.
    pub tools: Vec<String>,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the image's folder, or absolute for a user's own file.
    pub path: PathBuf,
    /// SHA-256 in hex; `None` for a disk that was made here.
    pub sha256: Option<String>,
    /// For a user's own file, which we only refer to: length in bytes and time of change (ns since 1970) as recorded.
    pub stamp: Option<(u64, i64)>,
}

/// How to log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ssh {
    /// The user.
    pub user: String,
    /// The private key.
    pub key: PathBuf,
    /// The guest's public host key (`ssh-ed25519 AAAA...`) to insist on; `None`: accept any.
    pub host_key: Option<String>,
}

/// A package in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A finished image: its folder and what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The folder, absolute.
    pub dir: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
}

impl Image {
    /// Name and content hash.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// The root disk and its format. Machines write to overlays, never to this file.
    pub fn disk(&self) -> (PathBuf, DiskFormat) {
        (self.dir.join(&self.manifest.disk.path), self.manifest.disk_format)
    }

    /// The kernel to boot directly; `None`: the disk has a boot loader.
    pub fn kernel(&self) -> Option<PathBuf> {
        self.manifest.kernel.as_ref().map(|file| self.dir.join(&file.path))
    }

    /// The initrd.
    pub fn initrd(&self) -> Option<PathBuf> {
        self.manifest.initrd.as_ref().map(|file| self.dir.join(&file.path))
    }

    /// What the kernel's command line must hold; empty without a kernel.
    pub fn cmdline(&self) -> &str {
        &self.manifest.cmdline
    }

    /// The cloud-init seed, a raw disk.
    pub fn seed(&self) -> Option<PathBuf> {
        self.manifest.seed.as_ref().map(|path| self.dir.join(path))
    }

    /// How to log in, with the key's absolute path.
    pub fn ssh(&self) -> Ssh {
        Ssh { key: self.dir.join(&self.manifest.ssh.key), ..self.manifest.ssh.clone() }
    }

    /// Whether the guest's SSH keys were made with the image, and are ours to replace. Otherwise the key is a user's own.
    pub fn has_own_keys(&self) -> bool {
        self.manifest.ssh.key.is_relative()
    }

    /// The kernel's release, where known before booting.
    pub fn release(&self) -> Option<&str> {
        self.manifest.release.as_deref()
    }

    /// The kernel build tree on this host.
    pub fn headers(&self) -> Option<PathBuf> {
        self.manifest.headers.as_ref().map(|path| self.dir.join(path))
    }

    /// The guest's root file system as a tree.
    pub fn rootfs(&self) -> Option<PathBuf> {
        self.manifest.rootfs.as_ref().map(|path| self.dir.join(path))
    }

    /// Whether the guest's kernel has this module, built in or as a file; `None` where that can't be told before booting.
    pub fn has_module(&self, name: &str) -> Option<bool> {
        let folder = self.rootfs()?.join("lib/modules").join(self.release()?);
        kernel::has_module(&folder, name)
    }

    /// Whether the kernel was built without this option (`CONFIG_DEBUG_LIST`); `None` where its configuration is not at hand, neither in the root
    /// file system nor in the build tree.
    pub fn lacks_option(&self, option: &str) -> Option<bool> {
        let packaged = || Some(self.rootfs()?.join(format!("boot/config-{}", self.release()?)));
        let built = || Some(self.headers()?.join(".config"));
        let files = [packaged(), built()];
        let text = files.into_iter().flatten().find_map(|file| std::fs::read_to_string(file).ok())?;
        Some(!kernel::has_option(&text, option))
    }

    /// Which making of the image this is, as SHA-256 in hex of its manifest: images of one recipe made twice differ in their
    /// keys, their packages and where files lie on the disk, and what was changed on one disk fits no other.
    pub fn identity(&self) -> String {
        fsutil::hex(&Sha256::digest(serde_json::to_vec(&self.manifest).unwrap_or_default()))
    }

    /// Read the image in `dir`. `None` when there is none of this schema.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join("manifest.json");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &file)(error)),
        };
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let bad =
            |error: serde_json::Error| Error::Manifest { file: file.clone(), message: error.to_string() };
        if serde_json::from_str::<Version>(&text).map_err(bad)?.schema != SCHEMA {
            return Ok(None);
        }
        let manifest = serde_json::from_str(&text).map_err(bad)?;
        Ok(Some(Self { dir: dir.to_owned(), manifest }))
    }

    /// Whether the user's own files that this image refers to are still the ones it was made with, by length and time.
    pub(crate) fn is_current(&self) -> bool {
        let m = &self.manifest;
        let files = [Some(&m.disk), m.kernel.as_ref(), m.initrd.as_ref()];
        files.into_iter().flatten().all(|file| match file.stamp {
            Some(stamp) => stamp_of(&self.dir.join(&file.path)) == Some(stamp),
            None => self.dir.join(&file.path).exists(),
        })
    }
}

/// Length and time of change of a file.
pub(crate) fn stamp_of(path: &Path) -> Option<(u64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let m = std::fs::metadata(path).ok()?;
    Some((m.len(), m.mtime().saturating_mul(1_000_000_000).saturating_add(m.mtime_nsec())))
}
