//! What the plugin of `crates/plugin` counts inside QEMU: entries into the blocks of the guest's kernel.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::VmError;

/// The plugin, built by this crate's build script.
const PLUGIN: &[u8] = include_bytes!(env!("KLPFARM_PLUGIN"));

/// Oldest QEMU that takes the plugin: 9.0 brought counters for each virtual CPU.
pub const COUNT_LEAST: (u32, u32) = (9, 0);

/// More blocks than any kernel has: the plugin is ours, but a length is looked at before memory is taken for it.
const MOST: u64 = 1 << 24;

/// How often each block of the guest's kernel has been entered since the machine was started, by virtual address.
pub type Counts = HashMap<u64, u64>;

/// Put the plugin into QEMU's folder of temporary files.
fn install(scratch: &Path) -> Result<PathBuf, VmError> {
    let path = scratch.join("klpfarm-plugin.so");
    // Never over one that another machine has mapped.
    if !path.is_file() {
        let fresh = scratch.join(format!(".plugin-{}", std::process::id()));
        std::fs::write(&fresh, PLUGIN)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|source| VmError::Io { path: path.clone(), source })?;
    }
    Ok(path)
}

/// The plugin's file, and our end of its socket.
pub(crate) struct Counting {
    plugin: PathBuf,
    listener: UnixListener,
}

impl Counting {
    pub(crate) fn listen(socket: &Path, scratch: &Path) -> Result<Self, VmError> {
        let listener =
            UnixListener::bind(socket).map_err(|source| VmError::Io { path: socket.to_owned(), source })?;
        Ok(Self { plugin: install(scratch)?, listener })
    }

    /// The plugin's file, for QEMU.
    pub(crate) fn plugin(&self) -> &Path {
        &self.plugin
    }

    pub(crate) async fn accept(self, limit: Duration) -> Result<Counter, VmError> {
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let accepted = tokio::time::timeout(limit, self.listener.accept()).await.map_err(late);
        match accepted.flatten() {
            Ok((stream, _)) => Ok(Counter(stream)),
            Err(error) => Err(VmError::Counts(format!("the plugin did not connect: {error}"))),
        }
    }
}

/// The way to the plugin of one machine.
#[derive(Debug)]
pub(crate) struct Counter(pub(crate) UnixStream);

impl Counter {
    /// Ask for all counts. Not cancel-safe: an answer that was read in part can't be read on.
    pub(crate) async fn read(&mut self, limit: Duration) -> Result<Counts, VmError> {
        let lost = |reason: String| VmError::Counts(reason);
        let asked = async {
            self.0.write_all(b"?").await?;
            let number = self.0.read_u64_le().await?;
            if number > MOST {
                return Err(std::io::Error::other(format!("{number} blocks")));
            }
            let mut bytes = vec![0; 16 * number as usize];
            self.0.read_exact(&mut bytes).await?;
            Ok(bytes)
        };
        let bytes = tokio::time::timeout(limit, asked)
            .await
            .map_err(|_| lost(format!("no answer within {} s", limit.as_secs())))?
            .map_err(|e| lost(e.to_string()))?;
        let (pairs, _) = bytes.as_chunks::<16>();
        Ok(pairs.iter().map(|pair| (number(pair, 0), number(pair, 8))).collect())
    }
}

fn number(pair: &[u8; 16], at: usize) -> u64 {
    pair[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_snapshot_is_read_or_its_end_is_said() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut counter = Counter(ours);
        let plugin = async {
            assert_eq!(theirs.read_u8().await.unwrap(), b'?');
            theirs.write_u64_le(2).await.unwrap();
            for n in [0xffff_ffff_8100_0000, 7, 0xffff_ffff_c000_0010, u64::MAX] {
                theirs.write_u64_le(n).await.unwrap();
            }
            theirs
        };
        let (read, theirs) = tokio::join!(counter.read(Duration::from_secs(60)), plugin);
        assert_eq!(read.unwrap(), [(0xffff_ffff_8100_0000, 7), (0xffff_ffff_c000_0010, u64::MAX)].into());
        drop(theirs);
        assert!(counter.read(Duration::from_secs(60)).await.is_err());
    }

    #[test]
    fn the_plugin_is_a_library_for_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = install(dir.path()).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(b"\x7fELF"));
        assert_eq!(install(dir.path()).unwrap(), path);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
