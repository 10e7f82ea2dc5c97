//! The console and the probe's channel: sockets read into the machine's stream of output.

use std::path::PathBuf;

use klpfarm_stress::wire::{FromGuest, MAX_LINE};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::{Output, VmError};

/// Most of a console that is kept on disk, in bytes. A guest that prints without end must not fill the host.
const CONSOLE_LIMIT: usize = 64 << 20;

/// Record the console in `log` and pass it on; returns the way to type on it.
pub(crate) async fn console(
    stream: UnixStream,
    log: PathBuf,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> Result<mpsc::Sender<Vec<u8>>, VmError> {
    let mut file = File::create(&log).await.map_err(|source| VmError::Io { path: log, source })?;
    let (mut read, write) = stream.into_split();
    tasks.spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        let mut kept = 0;
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            let keep = n.min(CONSOLE_LIMIT - kept);
            // A full disk is noticed by the journal, which ends the run; this log is a best effort.
            let _ = file.write_all(&buffer[..keep]).await;
            kept += keep;
            if output.send(Output::Console(buffer[..n].to_vec())).await.is_err() {
                break;
            }
        }
        let _ = file.flush().await;
    });
    Ok(writer(write, tasks))
}

/// Read one way to the probe (the virtio port or the second UART) and return the sender of lines to it.
pub(crate) fn probe(
    stream: UnixStream,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> mpsc::Sender<Vec<u8>> {
    let (mut read, write) = stream.into_split();
    tasks.spawn(async move {
        let mut lines = Lines::default();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            for message in lines.push(&buffer[..n]) {
                if output.send(Output::Probe(message)).await.is_err() {
                    return;
                }
            }
        }
    });
    writer(write, tasks)
}

fn writer(mut write: OwnedWriteHalf, tasks: &mut JoinSet<()>) -> mpsc::Sender<Vec<u8>> {
    let (tx, mut rx) = mpsc::channel::<Vec<u8>>(64);
    tasks.spawn(async move {
        while let Some(line) = rx.recv().await {
            if write.write_all(&line).await.is_err() {
                break;
            }
        }
    });
    tx
}

/// Bytes to messages. What is no message is skipped: a sick guest, or firmware on the UART, writes anything.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    overlong: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<FromGuest> {
        let mut messages = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let complete = piece.ends_with(b"\n");
            self.overlong |= self.partial.len() + piece.len() > MAX_LINE;
            if !self.overlong {
                self.partial.extend_from_slice(piece);
            }
            if complete {
                if !self.overlong
                    && let Ok(message) = serde_json::from_slice(&self.partial)
                {
                    messages.push(message);
                }
                self.partial.clear();
                self.overlong = false;
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_lines_are_joined_and_garbage_is_skipped() {
        let mut lines = Lines::default();
        assert!(lines.push(b"SeaBIOS\r\n{\"t\":\"gone\",\"i").is_empty());
        assert_eq!(lines.push(b"d\":3}\n{\"t\":\"nonsense\"}\n"), [FromGuest::Gone { id: 3 }]);
        let long = vec![b'x'; MAX_LINE + 10];
        assert!(lines.push(&long).is_empty());
        assert!(lines.partial.len() <= MAX_LINE);
        assert_eq!(lines.push(b"\n{\"t\":\"gone\",\"id\":4}\n"), [FromGuest::Gone { id: 4 }]);
    }
}
