//! The console and the probe's channel: sockets read into the machine's stream of output.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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
const CONSOLE: Most = Most { head: 63 << 20, tail: 1 << 20 };

/// How much of a console is kept, in bytes.
#[derive(Clone, Copy)]
struct Most {
    head: usize,
    tail: usize,
}

/// What of a console was too much to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut {
    /// Bytes.
    pub bytes: u64,
    /// Ends of lines in them.
    pub lines: u64,
}

/// A console has been written to its file.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) left_out: Option<LeftOut>,
}

/// Record the console in `log` and pass it on; returns the way to type on it, and what is told when all has been recorded.
pub(crate) async fn console(
    stream: UnixStream,
    log: PathBuf,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> Result<(mpsc::Sender<Vec<u8>>, oneshot::Receiver<Recorded>), VmError> {
    record(stream, log, CONSOLE, tasks, output).await
}

async fn record(
    stream: UnixStream,
    log: PathBuf,
    most: Most,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> Result<(mpsc::Sender<Vec<u8>>, oneshot::Receiver<Recorded>), VmError> {
    let (recording, recorded) = oneshot::channel();
    let mut file = File::create(&log).await.map_err(|source| VmError::Io { path: log, source })?;
    let (mut read, write) = stream.into_split();
    tasks.spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        let mut kept = Kept::new(most);
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            // A full disk is noticed by the journal, which ends the run; this log is a best effort.
            let _ = file.write_all(kept.head(&buffer[..n])).await;
            // Waits for whoever reads: a guest that prints faster is held up in its serial port, and nothing piles up here.
            if output.send(Output::Console(buffer[..n].to_vec())).await.is_err() {
                break;
            }
        }
        let left_out = kept.left_out();
        let _ = file.write_all(&kept.end()).await;
        let _ = file.flush().await;
        let _ = recording.send(Recorded { left_out });
        let _ = output.send(Output::Closed("the serial console")).await;
    });
    Ok((writer(write, tasks), recorded))
}

/// What is kept of a console: all of it up to a limit, then the latest.
struct Kept {
    room: usize,
    most: usize,
    tail: VecDeque<u8>,
    /// Between head and tail.
    left_out: LeftOut,
}

impl Kept {
    fn new(most: Most) -> Self {
        let left_out = LeftOut { bytes: 0, lines: 0 };
        Self { room: most.head, most: most.tail, tail: VecDeque::new(), left_out }
    }

    fn left_out(&self) -> Option<LeftOut> {
        (self.left_out.bytes > 0).then_some(self.left_out)
    }

    /// Take text; returns what of it still belongs to the head.
    fn head<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let (head, rest) = text.split_at(text.len().min(self.room));
        self.room -= head.len();
        self.tail.extend(rest);
        let out = self.tail.len().saturating_sub(self.most);
        self.left_out.bytes += out as u64;
        self.left_out.lines += self.tail.drain(..out).filter(|b| *b == b'\n').count() as u64;
        head
    }

    /// The tail, with a word on what is missing before it.
    fn end(self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Some(LeftOut { bytes, lines }) = self.left_out() {
            text =
                format!("\n[klpfarm: {bytes} bytes with {lines} line ends are left out here]\n").into_bytes();
        }
        text.extend(self.tail);
        text
    }
}

/// Why [`probe`] stops reading a guest that sends too much, as the name of the channel that is lost by it.
pub(crate) const TOO_MUCH: &str =
    "the probe (which klpfarm no longer reads: the guest sent more than 1000 lines or 1 MiB a second on it)";

/// What a guest may send on one way to its probe: so much a second, and so much more at once, for replies with evidence (2 MiB a file)
/// and for what was held back while the farm did not run. Measured with five workloads: 77 lines and 21 KiB a second; 64 blocked tasks with
/// their stacks are another 100 KiB.
const ALLOWED: Rate = Rate { lines: 1000.0, bytes: 1_048_576.0 };
const AT_ONCE: Rate = Rate { lines: 10_000.0, bytes: 33_554_432.0 };

/// Lines and bytes.
#[derive(Debug, Clone, Copy)]
struct Rate {
    lines: f64,
    bytes: f64,
}

/// What of [`ALLOWED`] a guest has not used yet (a token bucket). Times are handed in.
struct Allowance {
    left: Rate,
    at: Duration,
}

impl Allowance {
    fn new() -> Self {
        Self { left: AT_ONCE, at: Duration::ZERO }
    }

    /// Take in `text`; false once it was too much.
    fn take(&mut self, now: Duration, text: &[u8]) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let lines = text.iter().filter(|b| **b == b'\n').count() as f64;
        self.left.lines = (self.left.lines + passed * ALLOWED.lines).min(AT_ONCE.lines) - lines;
        self.left.bytes = (self.left.bytes + passed * ALLOWED.bytes).min(AT_ONCE.bytes) - text.len() as f64;
        self.left.lines >= 0.0 && self.left.bytes >= 0.0
    }
}

/// Read one way to the probe (the virtio port or the second UART) and return the sender of lines to it. A guest that sends more than any
/// probe does is not read any more, and the channel counts as lost.
pub(crate) fn probe(
    stream: UnixStream,
    tasks: &mut JoinSet<()>,
    output: mpsc::Sender<Output>,
) -> mpsc::Sender<Vec<u8>> {
    let (mut read, write) = stream.into_split();
    tasks.spawn(async move {
        let mut lines = Lines::default();
        let (mut allowance, begun) = (Allowance::new(), Instant::now());
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            if !allowance.take(begun.elapsed(), &buffer[..n]) {
                let _ = output.send(Output::Closed(TOO_MUCH)).await;
                return;
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
        let mut kept = Kept::new(Most { head: 4, tail: 3 });
        assert_eq!(kept.head(b"ab"), b"ab");
        assert_eq!(kept.head(b"cdef"), b"cd");
        assert_eq!(kept.head(b"gh\ni\njkl"), b"");
        let text = String::from_utf8(kept.end()).unwrap();
        assert_eq!(text, "\n[klpfarm: 7 bytes with 2 line ends are left out here]\njkl");
        let mut whole = Kept::new(Most { head: 4, tail: 3 });
        assert_eq!(whole.head(b"abcdef"), b"abcd");
        assert_eq!(whole.end(), b"ef");
    }

    /// The producer writes as fast as the socket takes it, and far more than may be kept.
    #[tokio::test]
    async fn a_flood_at_full_speed_takes_bounded_memory_and_disk() {
        const FLOOD: usize = 64 << 20;
        const MOST: Most = Most { head: 300_000, tail: 50_000 };
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        let (guest, farm) = UnixStream::pair().unwrap();
        let (_keep, mut write) = guest.into_split();
        let mut tasks = JoinSet::new();
        let (output, mut outputs) = mpsc::channel(4);
        let (_type, recorded) = record(farm, log.clone(), MOST, &mut tasks, output).await.unwrap();
        let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&written);
        tokio::spawn(async move {
            let text = b"flood flood flood flood flood flood flood flood flood flood flo\n".repeat(1024);
            for _ in 0..FLOOD / text.len() {
                write.write_all(&text).await.unwrap();
                counter.fetch_add(text.len(), std::sync::atomic::Ordering::SeqCst);
            }
        });
        let mut read = 0;
        while let Some(Output::Console(bytes)) = outputs.recv().await {
            read += bytes.len();
            // What is on its way: the channel's pieces, the one in hand, a piece half written, and the kernel's buffers.
            let ahead = written.load(std::sync::atomic::Ordering::SeqCst).saturating_sub(read);
            assert!(ahead < 2 << 20, "{ahead} bytes piled up");
        }
        assert_eq!(read, FLOOD);
        let left_out = recorded.await.unwrap().left_out.unwrap();
        assert_eq!(left_out.bytes, (FLOOD - MOST.head - MOST.tail) as u64);
        let kept = std::fs::read(&log).unwrap();
        assert!(kept.len() < MOST.head + MOST.tail + 200, "{}", kept.len());
        let word = format!(
            "[klpfarm: {} bytes with {} line ends are left out here]",
            left_out.bytes, left_out.lines
        );
        assert!(String::from_utf8_lossy(&kept).contains(&word));
    }

    #[test]
    fn a_guest_may_send_a_multiple_of_what_a_probe_does_and_no_more() {
        let line = [b"x".repeat(280), b"\n".to_vec()].concat();
        let pass = |allowance: &mut Allowance, lines_a_second: u32, seconds: u32| {
            (0..lines_a_second * seconds)
                .all(|n| allowance.take(Duration::from_secs(1) * n / lines_a_second, &line))
        };
        assert!(pass(&mut Allowance::new(), 77, 3600), "as measured");
        assert!(pass(&mut Allowance::new(), 900, 3600), "twelve times that");
        assert!(!pass(&mut Allowance::new(), 2000, 15));
        // Seven files of evidence at once, and again after a minute.
        let evidence = vec![b'x'; 14 << 20];
        let mut allowance = Allowance::new();
        for second in [1, 2, 60, 120] {
            assert!(allowance.take(Duration::from_secs(second), &evidence), "{second}");
        }
        assert!(!(121..130).all(|second| allowance.take(Duration::from_secs(second), &evidence)));
    }

    /// What a guest sends as fast as it can ends the reading, and nothing is kept of it.
    #[tokio::test]
    async fn a_flood_of_probe_lines_ends_the_channel() {
        for line in [&b"{\"t\":\"gone\",\"id\":3}\n"[..], &[b'x'; 4096]] {
            let (guest, farm) = UnixStream::pair().unwrap();
            let (_keep, mut write) = guest.into_split();
            let mut tasks = JoinSet::new();
            let (output, mut outputs) = mpsc::channel(4);
            let _to_guest = probe(farm, &mut tasks, output);
            let flood = line.repeat(256);
            let sender = tokio::spawn(async move { while write.write_all(&flood).await.is_ok() {} });
            let mut messages = 0;
            let lost = loop {
                match outputs.recv().await {
                    Some(Output::Probe(_)) => messages += 1,
                    other => break other,
                }
            };
            assert_eq!(lost, Some(Output::Closed(TOO_MUCH)));
            assert!(messages <= 200_000, "{messages}");
            sender.abort();
        }
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
