//! Evidence from a sick machine, before it goes. Every part has its own limit and none needs another: what fails is left out.

use std::path::Path;
use std::time::Duration;

use klpfarm_stress::wire::{Ask, ToGuest};
use klpfarm_vm::Machine;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::guest;
use crate::trial::Collect;

/// Ids of these questions do not meet the dispatcher's, which count from 1.
const FIRST_ID: u64 = 1 << 32;

/// Gather evidence into `dir/evidence`; returns file (below `dir`) and what it is.
pub(crate) async fn collect(
    machine: &Machine,
    dir: &Path,
    patches: &[String],
    what: &Collect,
    mut replies: mpsc::UnboundedReceiver<(u64, String)>,
) -> Vec<(String, String)> {
    let until = Instant::now() + what.limit;
    let mut kept = Kept { dir, files: Vec::new() };
    if tokio::fs::create_dir_all(dir.join("evidence")).await.is_err() {
        return kept.files;
    }
    kept.keep(
        "blocked.txt",
        "tasks that do not get on, with their stacks, as the probe last saw them",
        &what.blocked,
    )
    .await;
    let short = Duration::from_secs(5);
    for (command, file, text) in [
        ("info status", "qemu-status.txt", "QEMU's view of the machine"),
        ("info registers -a", "registers.txt", "registers of all virtual CPUs"),
    ] {
        if let Ok(answer) = machine.qmp().monitor(command, short).await {
            kept.keep(file, text, &answer).await;
        }
    }
    // A second look tells a CPU that goes round in a circle from one that works.
    if let Ok(answer) = machine.qmp().monitor("info registers -a", short).await {
        kept.keep("registers-2.txt", "registers of all virtual CPUs, a moment later", &answer).await;
    }
    // w: blocked tasks; l: backtrace of all CPUs. Over the serial line: it works when nothing else does.
    for key in ["w", "l"] {
        machine.sysrq(key).await;
    }
    if what.probe {
        let mut questions = vec![
            ("dmesg.txt", "end of the kernel's log", "dmesg | tail -c 60000".to_owned()),
            (
                "livepatch.txt",
                "livepatch state in sysfs",
                format!(
                    "cd /sys/kernel/livepatch && grep -r . {} 2>/dev/null; lsmod; cat /proc/sys/kernel/tainted",
                    patches.join(" ")
                ),
            ),
            (
                "memory.txt",
                "meminfo, slabs, load",
                "cat /proc/meminfo /proc/loadavg; head -50 /proc/slabinfo".to_owned(),
            ),
        ];
        if let Some(wanted) = what.stragglers {
            questions.insert(
                0,
                ("stragglers.txt", "tasks that hold up the transition", guest::stragglers(wanted)),
            );
        }
        for (id, (file, text, line)) in (FIRST_ID..).zip(questions) {
            let ask = Ask::Exec { argv: guest::shell(&line), limit_ms: 10_000 };
            machine.tell_probe(&ToGuest { id, ask });
            let answer = async {
                while let Some((from, out)) = replies.recv().await {
                    if from == id {
                        return Some(out);
                    }
                }
                None
            };
            match timeout_at(until, answer).await {
                Ok(Some(out)) => kept.keep(file, text, &out).await,
                Ok(None) | Err(_) => break,
            }
        }
    }
    kept.files
}

struct Kept<'a> {
    dir: &'a Path,
    files: Vec<(String, String)>,
}

impl Kept<'_> {
    async fn keep(&mut self, file: &str, what: &str, text: &str) {
        let file = format!("evidence/{file}");
        if !text.trim().is_empty() && tokio::fs::write(self.dir.join(&file), text).await.is_ok() {
            self.files.push((file, what.to_owned()));
        }
    }
}
