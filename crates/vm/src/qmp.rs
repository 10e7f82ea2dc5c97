//! QMP: qapi's types over a transport of our own.
//!
//! qapi's own stream aborts the process when a command that timed out is followed by another, and loses the connection at an
//! event it does not know (see `docs/decisions/0002-qmp-transport.md`). Here commands carry ids, late replies are
//! dropped, and an unknown event is passed on raw.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qapi::qmp;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::{CpuLook, Output, VmError, parse_registers};

/// What QEMU says on its own, reduced to what the farm acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpEvent {
    /// The guest kernel panicked (pvpanic).
    Panicked,
    /// The guest reset the machine.
    Reset,
    /// The guest powered off or was reset.
    Shutdown {
        /// QEMU's word for why, for example `guest-reset`.
        reason: String,
        /// The guest did it, not the farm.
        guest: bool,
    },
    /// The watchdog device fired.
    Watchdog,
    /// The virtual CPUs stopped.
    Stopped,
    /// They run again.
    Resumed,
    /// A disk operation failed on the host.
    IoError {
        /// What QEMU says of it.
        reason: String,
    },
    /// Anything else, by name.
    Other(String),
}

impl QmpEvent {
    fn read(value: Value) -> Self {
        let name = value["event"].as_str().unwrap_or_default().to_owned();
        match serde_json::from_value::<qmp::Event>(value) {
            Ok(qmp::Event::GUEST_PANICKED { .. }) => Self::Panicked,
            Ok(qmp::Event::RESET { .. }) => Self::Reset,
            Ok(qmp::Event::SHUTDOWN { data, .. }) => Self::Shutdown {
                reason: serde_json::to_value(data.reason)
                    .ok()
                    .and_then(|v| v.as_str().map(str::to_owned))
                    .unwrap_or_default(),
                guest: data.guest,
            },
            Ok(qmp::Event::WATCHDOG { .. }) => Self::Watchdog,
            Ok(qmp::Event::STOP { .. }) => Self::Stopped,
            Ok(qmp::Event::RESUME { .. }) => Self::Resumed,
            Ok(qmp::Event::BLOCK_IO_ERROR { data, .. }) => Self::IoError { reason: data.reason },
            Ok(_) | Err(_) => Self::Other(name),
        }
    }
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    next: AtomicU64,
    pending: Pending,
    lines: mpsc::Sender<Vec<u8>>,
    migration: watch::Receiver<String>,
    dumped: watch::Receiver<Dumped>,
}

/// How the latest dump of the guest's memory ended; an error in words.
pub(crate) type Dumped = Result<(), String>;

/// Waits for the end of a migration; see [`Qmp::migration`].
pub(crate) struct Migration(watch::Receiver<String>);

impl Migration {
    /// Wait until the migration is complete.
    ///
    /// # Errors
    /// Why it failed, in words.
    pub(crate) async fn completed(mut self) -> Result<(), String> {
        loop {
            self.0.changed().await.map_err(|_| "the connection was closed".to_owned())?;
            match self.0.borrow_and_update().as_str() {
                "completed" => return Ok(()),
                status @ ("failed" | "cancelled") => return Err(format!("migration {status}")),
                _ => {}
            }
        }
    }
}

impl Qmp {
    /// Take over a connected socket and negotiate. Reader and writer run in `tasks`; events go to `output`.
    pub(crate) async fn connect(
        stream: UnixStream,
        tasks: &mut JoinSet<()>,
        output: mpsc::Sender<Output>,
    ) -> Result<Self, VmError> {
        let (read, mut write) = stream.into_split();
        let pending = Pending::default();
        let waiting = Arc::clone(&pending);
        let (status, migration) = watch::channel(String::new());
        let (dump, dumped) = watch::channel(Ok(()));
        tasks.spawn(async move {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                if value["event"] == "MIGRATION" {
                    let _ = status.send(value["data"]["status"].as_str().unwrap_or_default().to_owned());
                } else if value["event"] == "DUMP_COMPLETED" {
                    let _ = dump.send(how_dumped(&value["data"]));
                } else if value.get("event").is_some() {
                    if output.send(Output::Qmp(QmpEvent::read(value))).await.is_err() {
                        break;
                    }
                } else if let Some(id) = value["id"].as_u64()
                    && let Some(reply) = lock(&waiting).remove(&id)
                {
                    // Nobody waits any more after a timeout: the late reply is dropped.
                    let _ = reply.send(value);
                }
            }
            lock(&waiting).clear();
            let _ = output.send(Output::Closed("QMP")).await;
        });
        // One writer, so that a caller that gives up never leaves half a line.
        let (lines, mut queue) = mpsc::channel::<Vec<u8>>(16);
        tasks.spawn(async move {
            while let Some(line) = queue.recv().await {
                if write.write_all(&line).await.is_err() {
                    break;
                }
            }
        });
        let qmp = Self { next: AtomicU64::new(1), pending, lines, migration, dumped };
        qmp.execute(qmp::qmp_capabilities { enable: None }, Duration::from_secs(30)).await?;
        Ok(qmp)
    }

    /// Run a command and wait for its answer, at most `limit`.
    ///
    /// # Errors
    /// QEMU's refusal, silence beyond `limit`, or a closed connection.
    pub async fn execute<C: qapi::Command>(&self, command: C, limit: Duration) -> Result<C::Ok, VmError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let error = |reason: String| VmError::Qmp { command: C::NAME, reason };
        let mut line = serde_json::to_vec(&qapi::Execute::<C, u64>::with_id(command, id))
            .map_err(|e| error(e.to_string()))?;
        line.push(b'\n');
        let (tx, rx) = oneshot::channel();
        lock(&self.pending).insert(id, tx);
        let answer = tokio::time::timeout(limit, async {
            self.lines.send(line).await.map_err(|_| error("the connection is closed".into()))?;
            rx.await.map_err(|_| error("the connection was closed".into()))
        })
        .await;
        lock(&self.pending).remove(&id);
        let mut value = answer.map_err(|_| error(format!("no answer within {} s", limit.as_secs())))??;
        if let Some(refusal) = value.get("error") {
            return Err(error(refusal["desc"].as_str().unwrap_or("refused").to_owned()));
        }
        serde_json::from_value(value["return"].take()).map_err(|e| error(e.to_string()))
    }

    /// What tells the end of the migration that is about to be started: take it first, then start.
    pub(crate) fn migration(&self) -> Migration {
        let mut status = self.migration.clone();
        status.mark_unchanged();
        Migration(status)
    }

    /// What tells the end of the dump that is about to be started: take it first, then start.
    pub(crate) fn dumped(&self) -> watch::Receiver<Dumped> {
        let mut dumped = self.dumped.clone();
        dumped.mark_unchanged();
        dumped
    }

    /// A command of the human monitor; its answer is text.
    ///
    /// # Errors
    /// As for [`Qmp::execute`].
    pub async fn monitor(&self, command: &str, limit: Duration) -> Result<String, VmError> {
        let command = qmp::human_monitor_command { command_line: command.to_owned(), cpu_index: None };
        self.execute(command, limit).await
    }

    /// What all virtual CPUs are doing; it works whatever the guest does.
    ///
    /// # Errors
    /// As for [`Qmp::execute`], and if the answer names no CPU.
    pub async fn cpus(&self, limit: Duration) -> Result<Vec<CpuLook>, VmError> {
        const COMMAND: &str = "info registers -a";
        let looks = parse_registers(&self.monitor(COMMAND, limit).await?);
        if looks.is_empty() {
            return Err(VmError::Qmp { command: COMMAND, reason: "the answer names no CPU".into() });
        }
        Ok(looks)
    }
}

/// `DUMP_COMPLETED` tells how a dump went, and why not.
fn how_dumped(data: &Value) -> Dumped {
    match (data["result"]["status"].as_str(), data["error"].as_str()) {
        (Some("completed"), None) => Ok(()),
        (_, error) => Err(error.unwrap_or("it failed").to_owned()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A poisoned map of waiting senders is still a map.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scripted QEMU: answers each line it gets with the lines `script` returns.
    async fn scripted(
        script: impl Fn(Value) -> Vec<String> + Send + 'static,
    ) -> (Qmp, mpsc::Receiver<Output>, JoinSet<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (read, mut write) = theirs.into_split();
            write.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\n").await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                for answer in script(serde_json::from_str(&line).unwrap()) {
                    write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
                }
            }
        });
        let (tx, rx) = mpsc::channel(16);
        let qmp = Qmp::connect(ours, &mut tasks, tx).await.unwrap();
        (qmp, rx, tasks)
    }

    fn ok(command: &Value) -> String {
        format!(r#"{{"return": {{}}, "id": {}}}"#, command["id"])
    }

    #[tokio::test]
    async fn unknown_events_and_refusals_do_not_end_the_connection() {
        let (qmp, mut events, _tasks) = scripted(|command| match command["execute"].as_str().unwrap() {
            "stop" => vec![
                r#"{"event": "BRAND_NEW", "data": {"x": 1}, "timestamp": {"seconds": -1, "microseconds": 0}}"#.into(),
                "not json".into(),
                format!(r#"{{"error": {{"class": "GenericError", "desc": "no"}}, "id": {}}}"#, command["id"]),
            ],
            _ => vec![ok(&command)],
        })
        .await;
        let limit = Duration::from_secs(20);
        let refusal = qmp.execute(qmp::stop {}, limit).await.unwrap_err().to_string();
        assert!(refusal.contains("stop") && refusal.contains("no"), "{refusal}");
        assert!(
            matches!(events.recv().await, Some(Output::Qmp(QmpEvent::Other(name))) if name == "BRAND_NEW")
        );
        qmp.execute(qmp::cont {}, limit).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_reply_disturbs_nobody() {
        let held: Arc<Mutex<Option<String>>> = Arc::default();
        let (qmp, _events, _tasks) = scripted(move |command| {
            if command["execute"] == "stop" {
                *lock(&held) = Some(ok(&command));
                return vec![];
            }
            lock(&held).take().into_iter().chain([ok(&command)]).collect()
        })
        .await;
        let error = qmp.execute(qmp::stop {}, Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("no answer"), "{error}");
        qmp.execute(qmp::cont {}, Duration::from_secs(20)).await.unwrap();
    }

    #[test]
    fn a_dump_that_failed_says_why() {
        let data = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(
            how_dumped(&data(r#"{"result": {"status": "completed", "total": 9, "completed": 9}}"#)),
            Ok(())
        );
        let full =
            how_dumped(&data(r#"{"result": {"status": "failed"}, "error": "No space left on device"}"#));
        assert_eq!(full, Err("No space left on device".to_owned()));
    }

    #[test]
    fn events_are_reduced_to_what_matters() {
        let event = |text: &str| QmpEvent::read(serde_json::from_str(text).unwrap());
        let stamp = r#""timestamp": {"seconds": 1, "microseconds": 2}"#;
        assert_eq!(event(&format!(r#"{{"event": "STOP", {stamp}}}"#)), QmpEvent::Stopped);
        let shutdown = format!(
            r#"{{"event": "SHUTDOWN", "data": {{"guest": true, "reason": "guest-reset"}}, {stamp}}}"#
        );
        assert_eq!(event(&shutdown), QmpEvent::Shutdown { reason: "guest-reset".into(), guest: true });
        let panicked = format!(r#"{{"event": "GUEST_PANICKED", "data": {{"action": "pause"}}, {stamp}}}"#);
        assert_eq!(event(&panicked), QmpEvent::Panicked);
    }
}
