//! The console and the probe's channel: sockets read into the machine's stream of output.

use std::collections::VecDeque;
use std::path::PathBuf;

use klpfarm_stress::wire::{FromGuest, MAX_LINE};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::{Output, VmError};

/// Most of a console that is kept on disk, in bytes: the beginning, and of what comes after it the end. A guest that prints without end
/// must not fill the host, but its last words are worth most.
const CONSOLE_HEAD: usize = 63 << 20;
const CONSOLE_TAIL: usize = 1 << 20;

/// Record the console in `log` and pass it on; returns the way to type on it, and what is closed when all has been recorded.
pub(crate) async fn console(
    stream: UnixStream,
    log: PathBuf,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> Result<(mpsc::Sender<Vec<u8>>, oneshot::Receiver<()>), VmError> {
    let (recording, recorded) = oneshot::channel();
    let mut file = File::create(&log).await.map_err(|source| VmError::Io { path: log, source })?;
    let (mut read, write) = stream.into_split();
    tasks.spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        let mut kept = Kept::new(CONSOLE_HEAD, CONSOLE_TAIL);
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            // A full disk is noticed by the journal, which ends the run; this log is a best effort.
            let _ = file.write_all(kept.head(&buffer[..n])).await;
            if output.send(Output::Console(buffer[..n].to_vec())).await.is_err() {
                break;
            }
        }
        let _ = file.write_all(&kept.end()).await;
        let _ = file.flush().await;
        drop(recording);
    });
    Ok((writer(write, tasks), recorded))
}

/// What is kept of a console: all of it up to a limit, then the latest.
struct Kept {
    room: usize,
    most: usize,
    tail: VecDeque<u8>,
    /// Bytes and lines between head and tail.
    left_out: (u64, u64),
}

impl Kept {
    fn new(head: usize, tail: usize) -> Self {
        Self { room: head, most: tail, tail: VecDeque::new(), left_out: (0, 0) }
    }

    /// Take text; returns what of it still belongs to the head.
    fn head<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let (head, rest) = text.split_at(text.len().min(self.room));
        self.room -= head.len();
        self.tail.extend(rest);
        let out = self.tail.len().saturating_sub(self.most);
        self.left_out.0 += out as u64;
        self.left_out.1 += self.tail.drain(..out).filter(|b| *b == b'\n').count() as u64;
        head
    }

    /// The tail, with a word on what is missing before it.
    fn end(self) -> Vec<u8> {
        let mut text = Vec::new();
        let (bytes, lines) = self.left_out;
        if bytes > 0 {
            text =
                format!("\n[klpfarm: {bytes} bytes with {lines} line ends are left out here]\n").into_bytes();
        }
        text.extend(self.tail);
        text
    }
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
    fn of_a_flood_the_beginning_and_the_end_are_kept() {
        let mut kept = Kept::new(4, 3);
        assert_eq!(kept.head(b"ab"), b"ab");
        assert_eq!(kept.head(b"cdef"), b"cd");
        assert_eq!(kept.head(b"gh\ni\njkl"), b"");
        let text = String::from_utf8(kept.end()).unwrap();
        assert_eq!(text, "\n[klpfarm: 7 bytes with 2 line ends are left out here]\njkl");
        let mut whole = Kept::new(4, 3);
        assert_eq!(whole.head(b"abcdef"), b"abcd");
        assert_eq!(whole.end(), b"ef");
    }

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
