//! Files the farm sends over the probe's own line: kernel modules, mostly.
//!
//! Written by the probe itself, not by a helper: pieces stay in order however many the farm sends without waiting, and the folder is
//! in memory in every guest, so that a piece takes about as long as decoding it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest name, as of any Linux file system.
const MAX_NAME: usize = 255;

/// The folder of this program.
///
/// # Errors
/// The program cannot be found by its process, which no sane system does.
pub(super) fn own_folder() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    program.parent().map(Path::to_path_buf).ok_or_else(|| io::Error::other("this program has no folder"))
}

/// Where a file of this name is.
///
/// # Errors
/// `EINVAL` and a sentence, if the name is not one plain file name.
pub(super) fn place(folder: &Path, name: &str) -> Result<PathBuf, (i32, String)> {
    let plain = !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && !name.contains(|c: char| c == '/' || c.is_control());
    if plain {
        Ok(folder.join(name))
    } else {
        Err((libc::EINVAL, format!("name {name:?}: not a plain file name")))
    }
}

/// Carries out [`klpfarm_stress::wire::Ask::Write`].
///
/// # Errors
/// An errno and a sentence: a name or data that is not allowed (`EINVAL`), or what the file system says.
pub(super) fn write(folder: &Path, name: &str, data: &str, append: bool) -> Result<(), (i32, String)> {
    let path = place(folder, name)?;
    let bytes = STANDARD
        .decode(data)
        .map_err(|e| (libc::EINVAL, format!("data of {name}: not base64: {e}; nothing was written")))?;
    // Never through a link, and closed at once: a file open for writing cannot be loaded as a module.
    let written = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .and_then(|mut file| file.write_all(&bytes));
    written.map_err(|e| (e.raw_os_error().unwrap_or(libc::EIO), format!("cannot write {name}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_written() {
        for name in ["", ".", "..", ".x", "a/b", "/a", "../a", "a\0b", "a\nb", &"x".repeat(256)] {
            assert_eq!(place(Path::new("/f"), name).unwrap_err().0, libc::EINVAL, "{name:?}");
        }
        for name in ["a", "livepatch-x.ko", "a..b", &"x".repeat(255)] {
            assert_eq!(place(Path::new("/f"), name).unwrap(), Path::new("/f").join(name));
        }
    }

    #[test]
    fn pieces_are_put_together_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name| std::fs::read(dir.path().join(name)).unwrap();
        write(dir.path(), "a", "AAEC", false).unwrap();
        write(dir.path(), "a", "/w==", true).unwrap();
        assert_eq!(read("a"), [0, 1, 2, 255]);
        write(dir.path(), "a", "", false).unwrap();
        assert!(read("a").is_empty());
        assert_eq!(write(dir.path(), "a", "====", false).unwrap_err().0, libc::EINVAL);
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("link")).unwrap();
        assert_eq!(write(dir.path(), "link", "AAEC", false).unwrap_err().0, libc::ELOOP);
        assert!(!dir.path().join("elsewhere").exists());
    }
}
