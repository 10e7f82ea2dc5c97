//! Prints how fast the classifier reads, in MB per second of one core: what a healthy guest prints, and the worst that a
//! sick or hostile one can.
//!
//!     cargo run --release -p klpfarm-kmsg --example throughput
//!     cargo run --release -p klpfarm-kmsg --example throughput -- console.log ...

use klpfarm_kmsg::Classifier;
use std::time::{Duration, Instant};

const ORDINARY: &str = "\
[    0.512345] pci 0000:00:02.0: reg 0x10: [mem 0xfd000000-0xfdffffff pref]
[    1.204411] EXT4-fs (vda): mounted filesystem with ordered data mode. Opts: (null)
[    1.899001] systemd[1]: Starting Journal Service...
[    2.000371][  T112] virtio_net virtio0 ens3: renamed from eth0
[  OK  ] Started OpenSSH server daemon.
Debian GNU/Linux 12 host ttyS0
[   93.115000] audit: type=1400 audit(1604311200.123:12): apparmor=\"STATUS\" operation=\"profile_load\" pid=312
[   94.000001] perf: interrupt took too long (2507 > 2500), lowering kernel.perf_event_max_sample_rate to 79750
";

const SOFT_LOCKUP: &str = include_str!("../tests/corpus/001-soft-lockup-6.1.txt");
const WARNING: &str = include_str!("../tests/corpus/034-warn-module-6.1.txt");
const HUNG_TASK: &str = include_str!("../tests/corpus/009-hung-task-6.1-patched.txt");
const NULL: &str = include_str!("../tests/corpus/019-null-5.10.txt");
const KASAN: &str = include_str!("../tests/corpus/045-kasan-uaf-6.1.txt");
const BOOT: &str = include_str!("../tests/corpus/201-none-boot-6.1.txt");
const HUNG: &str = include_str!("../tests/corpus/real-6.1-madvise-held-lock.txt");

/// So much of each kind is read.
const SIZE: usize = 64 << 20;

fn main() {
    let files: Vec<String> = std::env::args().skip(1).collect();
    for file in &files {
        match std::fs::read(file) {
            Ok(text) if !text.is_empty() => measure(file, &text.repeat(SIZE / text.len() + 1)),
            Ok(_) => eprintln!("{file}: empty"),
            Err(error) => eprintln!("{file}: {error}"),
        }
    }
    if files.is_empty() {
        for (name, text) in built_in() {
            measure(name, &text);
        }
    }
}

fn built_in() -> Vec<(&'static str, Vec<u8>)> {
    let fill = |block: &str| numbered(block.repeat(SIZE / block.len()));
    // A report that stays open, so that every line is looked at closely.
    let within = |lines: &str| {
        let head = "[    9.000000] WARNING: CPU: 0 PID: 1 at mm/madvise.c:12 do_madvise+0x1/0x2\n";
        let frame = "[    9.000000]  do_madvise+0x1/0x2\n";
        fill(&format!("{head}{frame}{}", format!("{}{frame}", lines.repeat(20)).repeat(50)))
    };
    let body = |text: &str| text.split_once("\n\n").map_or(String::new(), |(_, log)| log.to_owned());
    let clean: String =
        body(BOOT).lines().filter(|l| !l.contains("Linux version")).map(|l| l.to_owned() + "\n").collect();
    let reports: String = [SOFT_LOCKUP, WARNING, HUNG_TASK, NULL, KASAN].map(body).concat();
    vec![
        ("clean log", fill(&clean)),
        ("reports and nothing else", fill(&reports)),
        (
            "reports in a clean log, 1 %",
            fill(&(clean.repeat(1 + 100 * reports.len() / clean.len()) + &reports)),
        ),
        ("a journal of reports as JSON", fill(&json(&reports))),
        ("ordinary lines", fill(ORDINARY)),
        ("a boot", fill(&body(BOOT))),
        ("soft lockups", fill(&body(SOFT_LOCKUP))),
        ("warnings", fill(&body(WARNING))),
        ("hung tasks between workload lines", fill(&body(HUNG))),
        ("bare headers", fill("[    9.000000] BUG: soft lockup - CPU#0 stuck for 22s! [load:12]\n")),
        ("bare headers without stamp", fill("BUG: unable to handle page fault for address: 0\n")),
        ("headers of many kinds", fill(&headers())),
        ("one-line reports", fill("[    9.000000] EXT4-fs error (device vda): ext4_find_entry:1: bad\n")),
        (
            "other lines within a report",
            within("[    9.000000] virtio_net virtio0 ens3: link becomes ready\n"),
        ),
        (
            "indented lines within a report",
            within("[    9.000000]  this is no frame, nor anything else of it\n"),
        ),
        ("empty lines", fill("\n")),
        ("lost lines", fill("** 12 printk messages dropped **\n")),
        ("one endless line", vec![b'x'; SIZE]),
        ("long lines", fill(&format!("[    9.000000] {}\n", "x: [".repeat(4000)))),
        ("long lines within a report", within(&format!("[    9.000000] {}\n", "x".repeat(9000)))),
        ("brackets", fill(&format!("{}\n", "[".repeat(300)))),
        ("escape sequences", fill("\x1b[1;31m\x1b[0m[    9.000000] usb 1-1: new high-speed USB device\r\n")),
        (
            "no UTF-8",
            fill("[    9.000000] BUG: caf\u{e9}\n")
                .iter()
                .map(|b| if *b == 0xc3 { 0xff } else { *b })
                .collect(),
        ),
    ]
}

/// Gives each stamped line a time of its own: the same twice in a row would be an echo.
fn numbered(text: String) -> Vec<u8> {
    let mut text = text.into_bytes();
    let mut start = 0;
    for number in 0.. {
        let line = &mut text[start..];
        if line.is_empty() {
            break;
        }
        let end = line.iter().position(|b| *b == b'\n').map_or(line.len(), |end| end + 1);
        let stamp = line[..end.min(24)].iter().position(|b| *b == b'.');
        if let Some(digits) = stamp.filter(|_| line[0] == b'[').and_then(|dot| line.get_mut(dot + 1..dot + 7))
        {
            digits.copy_from_slice(format!("{:06}", number % 1_000_000).as_bytes());
        }
        start += end;
    }
    text
}

fn json(log: &str) -> String {
    let record = |line: &str| {
        let text = line.split_once("] ").map_or(line, |(_, text)| text);
        let message = serde_json::to_string(text).unwrap_or_default();
        format!(
            "{{\"__CURSOR\":\"s=0\",\"_TRANSPORT\":\"kernel\",\"MESSAGE\":{message},\"PRIORITY\":\"4\"}}\n"
        )
    };
    log.lines().map(record).collect()
}

fn headers() -> String {
    [
        "INFO: task load:12 blocked for more than 120 seconds.",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [load:12]",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "WARNING: CPU: 0 PID: 1 at mm/madvise.c:12 do_madvise+0x1/0x2",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        "Kernel panic - not syncing: Fatal exception",
        "BUG: scheduling while atomic: load/12/0x00000002",
    ]
    .map(|text| format!("[    9.000000] {text}\n"))
    .concat()
}

/// The time that this thread had a CPU, where Linux says it: the wall clock measures what else the host does.
fn cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

fn measure(name: &str, text: &[u8]) {
    let (cpu, start) = (cpu_time(), Instant::now());
    let mut classifier = Classifier::new();
    let mut signals = 0;
    for chunk in text.chunks(64 << 10) {
        signals += classifier.push(chunk).len();
    }
    signals += classifier.finish().len();
    let took = cpu_time().zip(cpu).map_or_else(|| start.elapsed(), |(end, begin)| end - begin);
    let speed = text.len() as f64 / 1e6 / took.as_secs_f64();
    println!("{name:34} {speed:7.0} MB/s {signals:8} signals");
}
