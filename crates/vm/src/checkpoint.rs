//! Taking a machine's state, and going on from it.
//!
//! RAM stays where it is, in its file (capability `x-ignore-shared`), and disk changes in theirs; QEMU writes processors and
//! devices to a third. So a checkpoint takes the time that the host's disk needs, and a fork hardly any.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use qapi::qmp;
use tokio::sync::mpsc;

use crate::{Files, Machine, Output, Qmp, VmError};

/// How long QEMU may take for one step. Measured: 12 ms for 0.4 MB of state.
const LIMIT: Duration = Duration::from_secs(60);

/// A checkpoint that was taken; all its files are on the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpointed {
    /// From the order until the guest stood still, in milliseconds.
    pub stop_ms: u64,
    /// QEMU's writing of processors and devices, in milliseconds.
    pub save_ms: u64,
    /// QEMU's end, in milliseconds.
    pub quit_ms: u64,
    /// Syncing the three files to the disk, in milliseconds: most of the time, for the guest's memory.
    pub sync_ms: u64,
    /// Bytes of the RAM file that take room on the disk.
    pub ram_bytes: u64,
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// Bytes of the disk overlay that take room on the disk.
    pub disk_bytes: u64,
    /// What came out of the machine between the order and its end: to be judged like everything before it.
    pub rest: Vec<Output>,
}

impl Machine {
    /// Stop the guest, write its state to the files it was started with, and end QEMU. `outputs` is this machine's stream: it is
    /// read meanwhile, because a stream that nobody reads holds up QEMU's answers.
    ///
    /// # Errors
    /// [`VmError::NotCheckpointed`] if the machine was not started as a template or from a copy, or QEMU refuses or dies; its
    /// files are then of no use.
    pub async fn checkpoint(self, outputs: &mut mpsc::Receiver<Output>) -> Result<Checkpointed, VmError> {
        let mut rest = Vec::new();
        let Some(files) = self.kept.clone() else {
            beside(outputs, &mut rest, self.close(LIMIT)).await;
            let reason = "this machine keeps no files (it was booted or forked)";
            return Err(VmError::NotCheckpointed(reason.into()));
        };
        let saved = beside(outputs, &mut rest, save(self.qmp(), &files.state)).await;
        let begun = Instant::now();
        beside(outputs, &mut rest, self.close(LIMIT)).await;
        let quit_ms = ms(begun);
        // What was on its way when QEMU ended.
        while let Ok(output) = outputs.try_recv() {
            rest.push(output);
        }
        let (stop_ms, save_ms) = saved.map_err(|error| not_made(&error, &rest))?;
        let begun = Instant::now();
        let (ram_bytes, state_bytes, disk_bytes) = tokio::task::spawn_blocking(move || sync(&files))
            .await
            .map_err(|e| VmError::NotCheckpointed(e.to_string()))??;
        Ok(Checkpointed {
            stop_ms,
            save_ms,
            quit_ms,
            sync_ms: ms(begun),
            ram_bytes,
            state_bytes,
            disk_bytes,
            rest,
        })
    }
}

/// Do `work` while the machine's stream is read.
async fn beside<T>(
    outputs: &mut mpsc::Receiver<Output>,
    rest: &mut Vec<Output>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(output) = outputs.recv() => rest.push(output),
            done = &mut work => return done,
        }
    }
}

/// QEMU's last words, where it had any, say more than a closed connection.
fn not_made(error: &VmError, rest: &[Output]) -> VmError {
    let words = rest.iter().find_map(|output| match output {
        Output::Exited { stderr, .. } if !stderr.is_empty() => Some(format!("; QEMU: {stderr}")),
        _ => None,
    });
    VmError::NotCheckpointed(format!("{error}{}", words.unwrap_or_default()))
}

async fn save(qmp: &Qmp, state: &Path) -> Result<(u64, u64), VmError> {
    let begun = Instant::now();
    qmp.execute(qmp::stop {}, LIMIT).await?;
    let stop_ms = ms(begun);
    let begun = Instant::now();
    capabilities(qmp).await?;
    let migration = qmp.migration();
    let order = qmp::migrate { channels: None, detach: None, resume: None, uri: Some(uri(state)?) };
    qmp.execute(order, LIMIT).await?;
    ended("migrate", migration.completed()).await?;
    Ok((stop_ms, ms(begun)))
}

/// Read the state of a machine that waits for it.
pub(crate) async fn resume(qmp: &Qmp, state: &Path) -> Result<(), VmError> {
    capabilities(qmp).await?;
    let migration = qmp.migration();
    let order = qmp::migrate_incoming { channels: None, exit_on_error: None, uri: Some(uri(state)?) };
    qmp.execute(order, LIMIT).await?;
    ended("migrate-incoming", migration.completed()).await
}

async fn ended(command: &'static str, end: impl Future<Output = Result<(), String>>) -> Result<(), VmError> {
    let late = format!("no end within {} s", LIMIT.as_secs());
    tokio::time::timeout(LIMIT, end)
        .await
        .unwrap_or(Err(late))
        .map_err(|reason| VmError::Qmp { command, reason })
}

/// RAM stays in its file; ends are told by events instead of being asked for.
async fn capabilities(qmp: &Qmp) -> Result<(), VmError> {
    use qmp::MigrationCapability::{events, x_ignore_shared};
    let on = |capability| qmp::MigrationCapabilityStatus { capability, state: true };
    let capabilities = [x_ignore_shared, events].map(on).into();
    qmp.execute(qmp::migrate_set_capabilities { capabilities }, LIMIT).await?;
    Ok(())
}

/// QEMU's name for the file. It takes what follows `,offset=` for an option.
fn uri(state: &Path) -> Result<String, VmError> {
    match state.to_str() {
        Some(path) if !path.contains(",offset=") => Ok(format!("file:{path}")),
        _ => Err(VmError::Unfit {
            path: state.to_owned(),
            reason: "QEMU can't be given this path; use a plain KLPFARM_HOME".into(),
        }),
    }
}

/// Sync the files and tell the bytes of RAM, state and disk.
fn sync(files: &Files) -> Result<(u64, u64, u64), VmError> {
    use std::os::unix::fs::MetadataExt;
    let one = |path: &Path| {
        File::open(path)
            .and_then(|file| {
                file.sync_all()?;
                file.metadata()
            })
            .map_err(|source| VmError::Io { path: path.to_owned(), source })
    };
    let (ram, state, disk) = (one(&files.ram)?, one(&files.state)?, one(&files.disk)?);
    Ok((ram.blocks() * 512, state.len(), disk.blocks() * 512))
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
