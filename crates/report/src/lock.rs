//! Whose a run folder is.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{FolderError, one_line};

/// A run folder is worked in by one farm at a time. The kernel gives the lock back however the farm ends; the file says whose it is.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    _file: File,
}

impl RunLock {
    /// Its name below the run folder.
    pub const FILE: &str = "run.lock";

    /// Take the folder `dir` for this process.
    ///
    /// # Errors
    /// [`FolderError::Busy`] if another farm has it, or as the file system says.
    pub fn take(dir: &Path) -> Result<Self, FolderError> {
        let path = dir.join(Self::FILE);
        let io = |source| FolderError::Io { path: path.clone(), source };
        let mut file = loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(io)?;
            match file.try_lock() {
                // Its owner may have removed it after we opened it: then nobody else would see our lock.
                Ok(()) if file.metadata().map_err(io)?.nlink() == 0 => {}
                Ok(()) => break file,
                Err(TryLockError::WouldBlock) => {
                    let owner = fs::read_to_string(&path).unwrap_or_default();
                    return Err(FolderError::Busy { dir: dir.to_owned(), owner: one_line(&owner, 100) });
                }
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
        };
        file.set_len(0).map_err(io)?;
        writeln!(file, "process {}", std::process::id()).map_err(io)?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Nobody can have taken it meanwhile: it is still locked.
        let _ = fs::remove_file(&self.path);
    }
}
