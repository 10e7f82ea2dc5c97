//! What QEMU can tell of a guest that no longer answers: its state, an NMI into it, its memory in a file.

use std::path::Path;
use std::time::Duration;

use qapi::qmp::{self, DumpGuestMemoryFormat as Format};

use crate::{Machine, VmError};

/// How often a growing dump's size is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long QEMU may take to answer what costs it nothing.
const ANSWER: Duration = Duration::from_secs(5);

impl Machine {
    /// QEMU's word for the state of the virtual CPUs, and whether they run: `running`, `paused`, `guest-panicked`, `shutdown`...
    ///
    /// # Errors
    /// As for [`crate::Qmp::execute`].
    pub async fn status(&self) -> Result<(String, bool), VmError> {
        let status = self.qmp().execute(qmp::query_status {}, ANSWER).await?;
        let word = serde_json::to_value(status.status).ok();
        let word = word.as_ref().and_then(|v| v.as_str()).unwrap_or("unknown").to_owned();
        Ok((word, status.running))
    }

    /// Send a non-maskable interrupt to all virtual CPUs: it reaches a kernel that spins with interrupts off.
    ///
    /// # Errors
    /// As for [`crate::Qmp::execute`].
    pub async fn inject_nmi(&self) -> Result<(), VmError> {
        self.qmp().execute(qmp::inject_nmi {}, ANSWER).await.map(|_| ())
    }

    /// Write the guest's physical memory to the new file `to`, compressed, in the format of kdump, which `crash` reads. The virtual CPUs
    /// stand still meanwhile. Returns the file's size in bytes.
    ///
    /// If it grows beyond `most` bytes or takes longer than `limit`, the file is removed and the error says why. QEMU goes on writing
    /// into it, unseen, and takes no more commands: the machine is to be closed then.
    ///
    /// # Errors
    /// The above, QEMU's refusal, and a full disk.
    pub async fn dump(&self, to: &Path, most: u64, limit: Duration) -> Result<u64, VmError> {
        let result = self.dump_within(to, most, limit).await;
        if result.is_err() {
            // Half a dump is worth nothing, and it may be what filled the disk.
            let _ = tokio::fs::remove_file(to).await;
        }
        result
    }

    async fn dump_within(&self, to: &Path, most: u64, limit: Duration) -> Result<u64, VmError> {
        let error = |reason: String| VmError::Qmp { command: "dump-guest-memory", reason };
        let io = |source| VmError::Io { path: to.to_owned(), source };
        let path = std::path::absolute(to).map_err(io)?;
        let mut done = self.qmp().dumped();
        // The raw form (QEMU 8.2) is what all tools read; the other one is "flattened", which only some do.
        if self.start_dump(&path, Format::kdump_raw_zlib).await.is_err() {
            self.start_dump(&path, Format::kdump_zlib).await?;
        }
        let late = tokio::time::sleep(limit);
        let mut late = std::pin::pin!(late);
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                changed = done.changed() => {
                    changed.map_err(|_| error("the connection was closed".into()))?;
                    let outcome = done.borrow_and_update().clone();
                    outcome.map_err(error)?;
                    return size(to).await.map_err(io);
                }
                _ = look.tick() => {
                    if size(to).await.map_err(io)? > most {
                        return Err(error(format!("it became larger than {} MiB", most >> 20)));
                    }
                }
                () = &mut late => {
                    return Err(error(format!("it took longer than {} s", limit.as_secs())));
                }
            }
        }
    }

    async fn start_dump(&self, path: &Path, format: Format) -> Result<(), VmError> {
        let command = qmp::dump_guest_memory {
            begin: None,
            length: None,
            detach: Some(true),
            format: Some(format),
            // Physical memory: walking page tables of a broken guest would be asking it for directions.
            paging: false,
            protocol: format!("file:{}", path.display()),
        };
        self.qmp().execute(command, ANSWER).await.map(|_| ())
    }
}

async fn size(path: &Path) -> std::io::Result<u64> {
    Ok(tokio::fs::metadata(path).await?.len())
}
