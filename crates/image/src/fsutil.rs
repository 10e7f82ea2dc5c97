//! Small helpers around files.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::{Error, Progress, Result, Sink};

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file, with progress.
pub(crate) async fn sha256(path: &Path, progress: Sink<'_>) -> Result<String> {
    let mut file = tokio::fs::File::open(path).await.map_err(Error::io("open", path))?;
    let total = file.metadata().await.ok().map(|m| m.len());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut done, mut told) = (0u64, 0);
    loop {
        match file.read(&mut buffer).await.map_err(Error::io("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            n => {
                hash.update(&buffer[..n]);
                done += n as u64;
                if done - told >= 64 << 20 {
                    told = done;
                    progress(Progress::Bytes { done, total });
                }
            }
        }
    }
}

/// Write the file's content to the device, so that a rename after it never uncovers an empty file.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))
}

/// Make a file for the owner alone, which must not be there.
pub(crate) fn create_private(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path).map_err(Error::io("create", path))
}

/// Refuse when `dir` has less than `needed` bytes free.
pub(crate) fn require_space(dir: &Path, needed: u64) -> Result<()> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|e| Error::io("measure", dir)(e.into()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < needed { Err(Error::NoSpace { dir: dir.to_owned(), free, needed }) } else { Ok(()) }
}

/// A program in one of the folders of `search_path`.
pub(crate) fn find_program(name: &str, search_path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(search_path).map(|dir| dir.join(name)).find(|path| is_executable(path))
}

/// `PATH` with `first` before it and the system's folders after it: an ordinary user's may lack those on Debian.
pub(crate) fn search_path(first: Option<&Path>) -> OsString {
    let mut path = OsString::new();
    if let Some(first) = first {
        path.push(first);
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Copy a source tree of a module: folders, files and what symbolic links lead to, for sources share headers by links out of
/// their folder; but none of kbuild's products. They could come from another kernel, and make would take them for up to
/// date.
pub(crate) fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    copy_level(from, to, 0)
}

fn copy_level(from: &Path, to: &Path, depth: u32) -> Result<()> {
    const DEEPEST: u32 = 16;
    if depth > DEEPEST {
        let source = std::io::Error::other(
            "folders are nested too deep: does a symbolic link lead back to its own folder?",
        );
        return Err(Error::io("copy", from)(source));
    }
    fs::create_dir_all(to).map_err(Error::io("create", to))?;
    for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
        let entry = entry.map_err(Error::io("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if is_build_product(&entry.file_name().to_string_lossy()) {
            continue;
        }
        // A link that leads nowhere is none of a module's sources.
        let Ok(kind) = fs::metadata(&source).map(|m| m.file_type()) else { continue };
        if kind.is_dir() {
            copy_level(&source, &target, depth + 1)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(Error::io("copy", &source))?;
        }
    }
    Ok(())
}

fn is_build_product(name: &str) -> bool {
    [".o", ".ko", ".mod", ".mod.c", ".cmd", ".git"].iter().any(|end| name.ends_with(end))
        || ["modules.order", "Module.symvers", ".tmp_versions"].contains(&name)
}
