//! One log in every form that people paste: what is found must be the same in all of them.

use klpfarm_kmsg::{Classifier, Report, Signal, triage};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::{fs, path::Path};

/// A message of the kernel and when it came, in microseconds since boot.
type Log<'a> = [(u64, &'a str)];
/// Writes the whole log.
type Write = fn(&Log<'_>) -> Vec<u8>;
type Form = (&'static str, Write);
/// What stands before a line, by its time and who wrote it.
type Head = fn(u64, &str) -> String;

fn seconds(time: u64) -> String {
    format!("{:5}.{:06}", time / 1_000_000, time % 1_000_000)
}

/// `10:00:00` and so on: the day began with the boot.
fn clock(time: u64) -> String {
    let seconds = time / 1_000_000;
    format!("{:02}:{:02}:{:02}", 10 + seconds / 3600 % 12, seconds / 60 % 60, seconds % 60)
}

fn micros(time: u64) -> String {
    format!("{}.{:06}", clock(time), time % 1_000_000)
}

fn each(log: &Log<'_>, line: impl Fn(u64, &str) -> String) -> Vec<u8> {
    log.iter().map(|(time, text)| line(*time, text) + "\n").collect::<String>().into_bytes()
}

/// Every line with a head before it.
macro_rules! heads {
    ($($name:literal => |$time:ident| $head:expr;)*) => {
        vec![$(($name, (|log: &Log<'_>| each(log, |$time, text| format!("{}{text}", $head))) as Write)),*]
    };
}

fn forms() -> Vec<Form> {
    let mut forms = heads! {
        "console" => |t| format!("[{}] ", seconds(t));
        "dmesg -r" => |t| format!("<4>[{}] ", seconds(t));
        "dmesg -x" => |t| format!("kern  :warn  : [{}] ", seconds(t));
        "dmesg -t" => |_t| "";
        "dmesg -d" => |t| format!("[{} <{:12.6}>] ", seconds(t), 0.000_731);
        "dmesg -d -t" => |_t| format!("[<{:12.6}>] ", 0.000_731);
        "dmesg -T" => |t| format!("[Mon Nov  2 {} 2020] ", clock(t));
        "dmesg -T, German" => |t| format!("[Mo Nov  2 {} 2020] ", clock(t));
        "dmesg -T, French" => |t| format!("[lun. nov.  2 {} 2020] ", clock(t));
        "dmesg -T, Russian" => |t| format!("[Пн ноя  2 {} 2020] ", clock(t));
        "dmesg -T, Chinese" => |t| format!("[一 11月  2 {} 2020] ", clock(t));
        "dmesg -T, day first" => |t| format!("[Mo 2. Nov {} 2020] ", clock(t));
        "dmesg -dT" => |t| format!("[Mon Nov  2 {} 2020 <{:12.6}>] ", clock(t), 0.000_731);
        "dmesg -x -T" => |t| format!("kern  :warn  : [Mon Nov  2 {} 2020] ", clock(t));
        "dmesg --time-format iso" => |t| format!("2020-11-02T{},{:06}+01:00 ", clock(t), t % 1_000_000);
        "dev kmsg" => |t| format!("4,{},{t},-;", 100 + t % 1000);
        "netconsole with release" => |t| format!("6.12.1-rc2+,4,{},{t},-;", 100 + t % 1000);
        "netconsole with caller" => |t| format!("6.12.1,4,{},{t},-,caller=T12;", 100 + t % 1000);
        "syslog" => |t| format!("Nov  2 {} host kernel: [{}] ", clock(t), seconds(t));
        "syslog, one blank" => |t| format!("Nov 2 {} host kernel: [{}] ", clock(t), seconds(t));
        "journalctl" => |t| format!("Nov 02 {} host kernel: ", clock(t));
        "journalctl, French" => |t| format!("nov. 02 {} host kernel: ", clock(t));
        "journalctl, Polish" => |t| format!("lis 02 {} host kernel: ", clock(t));
        "journalctl, Chinese" => |t| format!("11月 02 {} host kernel: ", clock(t));
        "journalctl, Russian" => |t| format!("ноя 02 {} host kernel: ", clock(t));
        "journalctl --no-hostname" => |t| format!("Nov 02 {} kernel: ", clock(t));
        "short-precise" => |t| format!("Nov 02 {} host kernel: ", micros(t));
        "short-iso" => |t| format!("2020-11-02T{}+0100 host kernel: ", clock(t));
        "short-iso-precise" => |t| format!("2020-11-02T{}+01:00 host kernel: ", micros(t));
        "short-full" => |t| format!("Mon 2020-11-02 {} UTC host kernel: ", clock(t));
        "short-full, German" => |t| format!("Mo 2020-11-02 {} CET host kernel: ", micros(t));
        "short-full, zone without a name" => |t| format!("Mon 2020-11-02 {} -03 host kernel: ", clock(t));
        "short-full --no-hostname" => |t| format!("Mon 2020-11-02 {} UTC kernel: ", clock(t));
        "short-unix" => |t| format!("{}.{:06} host kernel: ", 1_604_311_200 + t / 1_000_000, t % 1_000_000);
        "short-unix --no-hostname" => |t| format!("{}.{:06} kernel: ", 1_604_311_200 + t / 1_000_000, t % 1_000_000);
        "short-monotonic" => |t| format!("[{}] host kernel: ", seconds(t));
        "short-monotonic --no-hostname" => |t| format!("[{}] kernel: ", seconds(t));
        "short-delta" => |t| format!("[{} <{} >] host kernel: ", seconds(t), seconds(731));
        "short-delta across boots" => |t| format!("[{} <{}*>] host kernel: ", seconds(t), seconds(731));
        "short-delta, first line" => |t| format!("[{}{:16}] host kernel: ", seconds(t), "");
        "GitHub Actions" => |t| format!("2020-11-02T{}4Z [{}] ", micros(t), seconds(t));
        "GitLab" => |t| format!("2020-11-02T{}Z 01O [{}] ", micros(t), seconds(t));
        "GitLab, continued" => |t| format!("2020-11-02T{}Z 01O+[{}] ", micros(t), seconds(t));
        "docker logs -t" => |t| format!("2020-11-02T{}789Z [{}] ", micros(t), seconds(t));
        "docker logs -t, priorities" => |t| format!("2020-11-02T{}789Z <4>[{}] ", micros(t), seconds(t));
        "Jenkins" => |t| format!("[2020-11-02T{}.123Z] [{}] ", clock(t), seconds(t));
        "clock" => |t| format!("{}  [{}] ", clock(t), seconds(t));
        "tio" => |t| format!("[{}.123] [{}] ", clock(t), seconds(t));
        "ts" => |t| format!("Nov 02 {} [{}] ", clock(t), seconds(t));
        "ts -s with a date" => |t| format!("2020-11-02 {} [{}] ", clock(t), seconds(t));
        "RFC 5424" => |t| format!("<4>1 2020-11-02T{}Z host kernel - - - [{}] ", micros(t), seconds(t));
        "RFC 5424, no stamp" => |t| format!("<4>1 2020-11-02T{}+01:00 host kernel - - - ", micros(t));
        "RFC 5424, with data" => |t| format!("<4>1 2020-11-02T{}Z host kernel - - [meta a=\"b c\"] ", micros(t));
        "RFC 5424, no priority" => |t| format!("1 2020-11-02T{}Z host kernel - - - \u{feff}", micros(t));
        "RFC 3164" => |t| format!("<4>Nov  2 {} host kernel: [{}] ", clock(t), seconds(t));
        "busybox" => |t| format!("Nov  2 {} host kern.err kernel: [{}] ", clock(t), seconds(t));
        "busybox, no stamp" => |t| format!("Nov  2 {} host kern.warn kernel: ", clock(t));
        "logread" => |t| format!("Mon Nov  2 {} 2020 kern.warn kernel: [{}] ", clock(t), seconds(t));
        "quoted console" => |t| format!("> [{}] ", seconds(t));
        "quoted twice" => |t| format!("> >> [{}] ", seconds(t));
        "indented console" => |t| format!("    [{}] ", seconds(t));
        "quoted dmesg -T" => |t| format!("> [Mon Nov  2 {} 2020] ", clock(t));
        "indented dmesg -T" => |t| format!("\t[Mon Nov  2 {} 2020] ", clock(t));
        "quoted journal" => |t| format!("> Nov 02 {} host kernel: ", clock(t));
        "indented journal" => |t| format!("    Nov 02 {} host kernel: ", clock(t));
        "quoted short-iso" => |t| format!("| 2020-11-02T{}+0100 host kernel: ", clock(t));
        "logcat" => |t| format!("11-02 {}.123     0     0 W         : ", clock(t));
        "logcat with user" => |t| format!("11-02 {}.123  root     0     0 W         : ", clock(t));
    };
    let more: [Form; 16] = [
        ("dmesg -H", dmesg_h),
        ("carriage returns", |log| with(log, |text| text.replace('\n', "\r"))),
        ("both line ends", |log| with(log, |text| text.replace('\n', "\r\n"))),
        ("three line ends", |log| with(log, |text| text.replace('\n', "\r\r\n"))),
        ("no-break blanks", |log| with(log, |text| text.replace(' ', "\u{a0}"))),
        ("narrow no-break blanks", |log| with(log, |text| text.replace(' ', "\u{202f}"))),
        ("logcat, tags", logcat_tags),
        ("logcat -v brief", |log| each(log, |_, text| format!("W/{:8}(    0): {text}", ""))),
        ("netconsole with dictionary", |log| {
            each(log, |t, text| {
                format!("4,{},{t},-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:02.0", t % 1000)
            })
        }),
        ("json", |log| each(log, |t, text| format!("{{{}}}", fields(t, text).join(",")))),
        ("json-sse", |log| each(log, |t, text| format!("data: {{{}}}\n", fields(t, text).join(",")))),
        ("json-seq", |log| each(log, |t, text| format!("\x1e{{{}}}", fields(t, text).join(",")))),
        ("json-pretty", |log| {
            each(log, |t, text| {
                format!("{{\n\t{}\n}}", fields(t, text).join(",\n\t").replace("\":", "\" : "))
            })
        }),
        ("export", |log| {
            each(log, |t, text| {
                format!(
                    "__CURSOR=s=1;i={t}\n__MONOTONIC_TIMESTAMP={t}\nPRIORITY=4\n_TRANSPORT=kernel\nSYSLOG_IDENTIFIER=kernel\nMESSAGE={text}\n"
                )
            })
        }),
        ("verbose", |log| {
            each(log, |t, text| {
                format!(
                    "Mon 2020-11-02 {} UTC [s=01ab;i={t};b=02;m={t};t=5;x=6]\n    PRIORITY=4\n    _TRANSPORT=kernel\n    \
                     SYSLOG_IDENTIFIER=kernel\n    MESSAGE={text}\n    _HOSTNAME=host",
                    micros(t)
                )
            })
        }),
        ("dmesg -J", |log| {
            let record = |(t, text): &(u64, &str)| {
                format!(
                    "{{\n         \"pri\": 4,\n         \"time\": {},\n         \"msg\": {}\n      }}",
                    seconds(*t),
                    quoted(text)
                )
            };
            let records: Vec<String> = log.iter().map(record).collect();
            format!("{{\n   \"dmesg\": [\n      {}\n   ]\n}}\n", records.join(",")).into_bytes()
        }),
    ];
    forms.extend(more);
    forms.extend([
        ("json, bytes", json_bytes as Write),
        ("json-pretty, bytes", json_pretty_bytes),
        ("export, bytes", export_bytes),
        ("dmesg -J -x", |log| {
            each(log, |t, text| {
                format!(
                    "{{\n\"fac\": \"kern\",\n\"pri\": \"warn\",\n\"time\": {},\n\"msg\": {}\n}}",
                    seconds(t),
                    quoted(text)
                )
            })
        }),
    ]);
    forms
}

fn console(log: &Log<'_>) -> Vec<u8> {
    each(log, |time, text| format!("[{}] {text}", seconds(time)))
}

fn with(log: &Log<'_>, change: impl Fn(String) -> String) -> Vec<u8> {
    change(String::from_utf8(console(log)).expect("text")).into_bytes()
}

/// The minute once, then the time since the last line.
fn dmesg_h(log: &Log<'_>) -> Vec<u8> {
    let (mut minute, mut last, mut out) = (u64::MAX, 0, String::new());
    for (time, text) in log {
        let _ = if minute == time / 60_000_000 {
            writeln!(out, "[{:+10.6}] {text}", (time.saturating_sub(last)) as f64 / 1e6)
        } else {
            writeln!(out, "[Nov 2 {}] {text}", &clock(*time)[..5])
        };
        (minute, last) = (time / 60_000_000, *time);
    }
    out.into_bytes()
}

/// The text up to the first colon is taken for a program's name.
fn logcat_tags(log: &Log<'_>) -> Vec<u8> {
    each(log, |time, text| {
        let (tag, text) = text.split_once(": ").filter(|(tag, _)| !tag.contains(' ')).unwrap_or(("", text));
        format!("11-02 {}.123     0     0 E {tag:8}: {text}", clock(time))
    })
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("to JSON")
}

fn fields(time: u64, text: &str) -> Vec<String> {
    vec![
        format!("\"__CURSOR\":\"s=1;i={time}\""),
        "\"_TRANSPORT\":\"kernel\"".to_owned(),
        format!("\"_SOURCE_MONOTONIC_TIMESTAMP\":\"{time}\""),
        format!("\"MESSAGE\":{}", quoted(text)),
        "\"_KERNEL_DEVICE\":null".to_owned(),
        "\"SYSLOG_IDENTIFIER\":\"kernel\",\"SYSLOG_FACILITY\":\"0\"".to_owned(),
        "\"_UDEV_DEVLINK\":[\"/dev/a]\",\"/dev/b\"]".to_owned(),
    ]
}

/// Messages with control characters are lists of numbers.
fn json_bytes(log: &Log<'_>) -> Vec<u8> {
    each(log, |t, text| {
        format!(
            "{{\"__MONOTONIC_TIMESTAMP\":\"{t}\",\"MESSAGE\":{:?},\"_TRANSPORT\":\"kernel\"}}",
            text.as_bytes()
        )
    })
}

fn json_pretty_bytes(log: &Log<'_>) -> Vec<u8> {
    each(log, |_, text| {
        format!("{{\n\t\"MESSAGE\" : {:#?},\n\t\"_TRANSPORT\" : \"kernel\"\n}}", text.as_bytes())
    })
}

/// A length in eight bytes and then the text.
fn export_bytes(log: &Log<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for (_, text) in log {
        out.extend(b"__CURSOR=s=1\n_TRANSPORT=kernel\nMESSAGE\n");
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
        out.extend(b"\nPRIORITY=4\n\n");
    }
    out
}

/// What must be the same.
fn essence(text: &[u8]) -> Vec<String> {
    let told = |r: &Report| {
        let Report { kind, title, function, task, cpu, corrupted, panicked, .. } = r;
        format!("{kind} {title} {function:?} {task:?} {cpu:?} corrupted {corrupted} panicked {panicked}")
    };
    triage(text).iter().filter_map(Signal::report).map(told).collect()
}

/// The logs of the corpus in which all lines are stamped.
fn logs() -> Vec<(String, Vec<(u64, String)>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("the corpus").map(|e| e.expect("entry").path()).collect();
    paths.sort();
    let message = |line: &str| {
        let (stamp, text) = line.strip_prefix('[')?.split_once("] ")?;
        let (seconds, micros) = stamp.trim().split_once('.')?;
        let time = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
        (!text.starts_with('[')).then(|| (time, text.trim_end().to_owned()))
    };
    let mut logs = Vec::new();
    for path in paths {
        let text = String::from_utf8_lossy(&fs::read(&path).expect("readable")).into_owned();
        let (_, log) = text.split_once("\n\n").expect("a blank line ends the header");
        if let Some(log) = log.lines().map(message).collect::<Option<Vec<_>>>() {
            logs.push((path.file_stem().expect("a name").to_string_lossy().into_owned(), log));
        }
    }
    logs
}

fn borrowed(log: &[(u64, String)]) -> Vec<(u64, &str)> {
    log.iter().map(|(time, text)| (*time, text.as_str())).collect()
}

/// Whether two messages within a second look the same: one that came again may be one that was written twice.
fn is_coarse(write: Write) -> bool {
    // Three, because the first of the forms that tell the time between two messages has nothing before it.
    let text = write(&[(1_000_000, "x"), (1_000_731, "x"), (1_001_462, "x")]);
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
    lines.windows(2).any(|two| two[0] == two[1] && !two[0].is_empty())
}

#[test]
fn every_form_gives_the_same() {
    let logs = logs();
    assert!(logs.len() > 100, "only {} logs are stamped throughout", logs.len());
    let mut wrong = String::new();
    let mut found = 0;
    for (name, log) in &logs {
        let log = borrowed(log);
        let expected = essence(&console(&log));
        found += expected.len();
        for (form, write) in forms() {
            let got = essence(&write(&log));
            let mut once = expected.clone();
            once.dedup();
            // Without any time stamp, a header that was cut off before its proof is words that a program may have printed.
            let bare =
                form == "dmesg -t" && got.is_empty() && expected.iter().all(|e| e.contains("corrupted true"));
            if got != expected && !(is_coarse(write) && got == once) && !bare {
                let _ = writeln!(wrong, "{name} as {form}:\n  expected {expected:#?}\n  got {got:#?}");
            }
        }
    }
    assert!(found > 100, "only {found} reports");
    assert!(wrong.is_empty(), "{} differ:\n{wrong}", wrong.matches(" as ").count());
}

const REPORTS: &str = "\
[  113.571468] INFO: task worker:255 blocked for more than 20 seconds.
[  113.571883]       Tainted: G           OE K    6.1.0-56-cloud-amd64 #1 Debian 6.1.192-2
[  113.572384] task:worker          state:D stack:0     pid:255   ppid:230    flags:0x00000002
[  113.587100] Call Trace:
[  113.587264]  <TASK>
[  113.587420]  __schedule+0x34d/0xa00
[  113.587586]  schedule+0x5a/0xd0
[  113.587666]  demo_wait+0xd9/0x111 [demo]
[  113.598333]  do_syscall_64+0x5d/0x90
[  113.600367]  </TASK>
[  120.000000] EXT4-fs error (device vda): ext4_find_entry:1: inode #2: comm ls: reading directory lblock 0
[  130.000001] BUG: kernel NULL pointer dereference, address: 0000000000000008
[  130.000002] #PF: supervisor read access in kernel mode
[  130.000003] Oops: 0000 [#1] PREEMPT SMP
[  130.000004] CPU: 1 PID: 300 Comm: reader Tainted: G           O  K   6.1.0-56-cloud-amd64 #1
[  130.000005] RIP: 0010:demo_read+0x2c/0x70 [demo]
[  130.000006] Call Trace:
[  130.000007]  <TASK>
[  130.000008]  vfs_read+0x9b/0x320
[  130.000009]  ksys_read+0x63/0xe0
[  130.000010]  </TASK>
[  130.000011] ---[ end trace 0000000000000000 ]---
[  131.000000] WARNING: CPU: 0 PID: 301 at drivers/demo.c:12 demo_ioctl+0x1/0x2 [demo]
[  131.000001] Modules linked in: demo(OK)
[  131.000002] CPU: 0 PID: 301 Comm: user Tainted: G      D    O  K   6.1.0-56-cloud-amd64 #1
[  131.000003] Call Trace:
[  131.000004]  <TASK>
[  131.000005]  __x64_sys_ioctl+0x8b/0xc0
[  131.000006]  </TASK>
[  131.000007] ---[ end trace 0000000000000000 ]---
";

const FOUND: [&str; 4] = [
    "INFO: task hung in demo_wait",
    "EXT4-fs error",
    "BUG: unable to handle kernel NULL pointer dereference in demo_read",
    "WARNING in demo_ioctl",
];

fn reports() -> Vec<(u64, String)> {
    REPORTS
        .lines()
        .map(|line| {
            let (stamp, text) = line[1..].split_once("] ").expect("a stamp");
            (stamp.trim().replace('.', "").parse().expect("digits"), text.to_owned())
        })
        .collect()
}

/// Titles of the reports; fails if one is incomplete.
fn titles(text: &[u8]) -> Vec<String> {
    let signals = triage(text);
    let mut reports: Vec<&Report> = signals.iter().filter_map(Signal::report).collect();
    reports.sort_by_key(|r| r.line);
    reports
        .iter()
        .map(|r| {
            assert!(!r.corrupted, "{} is incomplete in\n{}", r.title, String::from_utf8_lossy(text));
            if r.title.starts_with("EXT4-fs error") { "EXT4-fs error".to_owned() } else { r.title.clone() }
        })
        .collect()
}

fn twice(text: &[u8]) -> Vec<u8> {
    text.split_inclusive(|b| *b == b'\n').flat_map(|line| [line, line].concat()).collect()
}

#[test]
fn lines_that_come_twice_make_no_more_reports() {
    assert_eq!(titles(REPORTS.as_bytes()), FOUND);
    let log = reports();
    let log = borrowed(&log);
    for (name, write) in forms() {
        let text = write(&log);
        if !["carriage returns", "export", "export, bytes", "verbose"].contains(&name)
            && !name.contains("-J")
            && !name.contains("pretty")
            && !name.contains("sse")
            && !name.contains("dictionary")
        {
            assert_eq!(titles(&twice(&text)), FOUND, "{name} twice");
        }
    }
    // The early console has its line ends, the real one has its own.
    let mixed: String = REPORTS.lines().map(|line| format!("{line}\n{line}\r\n")).collect();
    assert_eq!(titles(mixed.as_bytes()), FOUND);
    // The corpus: as many findings, and none of another kind. A header that the name of a task breaks in two is put together only if its
    // halves follow each other.
    for (name, log) in logs().into_iter().filter(|(name, _)| name != "331-comm-with-newline") {
        let text = console(&borrowed(&log));
        assert_eq!(essence(&twice(&text)), essence(&text), "{name}");
    }
}

#[test]
fn what_a_logger_writes_back_is_no_second_report() {
    let log = reports();
    let own = |(time, text): &(u64, String)| format!("[{}] {text}\n", seconds(*time));
    let heads: [fn(u64) -> String; 4] = [
        |t| format!("Nov  2 {} host kernel: [{}] ", clock(t), seconds(t)),
        |t| format!("[{}] kernel: ", seconds(t + 1234)),
        |t| format!("Nov 02 {} host kernel: ", clock(t)),
        |t| format!("<4>Nov  2 {} host kernel: [{}] ", clock(t), seconds(t)),
    ];
    for head in heads {
        for lag in [0, 1, 3, 10, 24, 100] {
            let mut text = String::new();
            for at in 0..log.len() + lag {
                if let Some(line) = log.get(at) {
                    text += &own(line);
                }
                if let Some((time, message)) = at.checked_sub(lag).and_then(|at| log.get(at)) {
                    text += &format!("{}{message}\n", head(*time));
                }
            }
            assert_eq!(titles(text.as_bytes()), FOUND, "{} lines later:\n{text}", lag);
        }
    }
}

#[test]
fn a_clock_that_stands_still_hides_nothing() {
    // The second stack has lines of the first, at the same microsecond.
    let frozen: String = REPORTS.lines().map(|line| format!("[  113.571468] {}\n", &line[15..])).collect();
    assert_eq!(titles(frozen.as_bytes()), FOUND);
}

#[test]
fn a_boot_like_the_last_and_a_report_like_the_last_are_no_echoes() {
    let banner = "[    0.000000] Linux version 6.1 (x@y) #1 SMP\n";
    let boots =
        |log: &str| triage(log.as_bytes()).iter().filter(|s| matches!(s, Signal::Boot { .. })).count();
    let between = "[    0.000000] Command line: quiet\n".repeat(3);
    assert_eq!(boots(&format!("{banner}{banner}")), 2);
    assert_eq!(boots(&format!("{banner}{between}{banner}{between}")), 2);
    // The clock stands still, and lines between the two are of no report.
    let error = "[    9.000000] EXT4-fs error (device vda): f:1: x\n";
    assert_eq!(essence(format!("{error}{between}{error}").as_bytes()).len(), 2);
}

/// Lines of programs between those of the kernel, in the forms that name the writer.
#[test]
fn lines_of_programs_split_nothing_and_are_nothing() {
    let log = reports();
    let heads: [(&str, Head); 12] = [
        ("short", |t, who| format!("Nov 02 {} host {who}: ", clock(t))),
        ("short, French", |t, who| format!("nov. 02 {} host {who}: ", clock(t))),
        ("short-full", |t, who| format!("Mon 2020-11-02 {} CET host {who}: ", clock(t))),
        ("short-iso", |t, who| format!("2020-11-02T{}+0100 host {who}: ", clock(t))),
        ("short-unix", |t, who| {
            format!("{}.{:06} host {who}: ", 1_604_311_200 + t / 1_000_000, t % 1_000_000)
        }),
        ("short-monotonic", |t, who| format!("[{}] host {who}: ", seconds(t))),
        ("short-delta", |t, who| format!("[{} <{} >] host {who}: ", seconds(t), seconds(1))),
        ("quoted", |t, who| format!("> Nov 02 {} host {who}: ", clock(t))),
        ("busybox", |t, who| {
            let facility = if who == "kernel" { "kern" } else { "daemon" };
            format!("Nov  2 {} host {facility}.err {who}: ", clock(t))
        }),
        ("RFC 5424", |t, who| {
            let name = who.split('[').next().unwrap_or("");
            format!(
                "<{}>1 2020-11-02T{}Z host {name} 812 - - ",
                if who == "kernel" { 4 } else { 28 },
                clock(t)
            )
        }),
        ("logcat", |t, who| {
            let pid = if who == "kernel" { 0 } else { 812 };
            format!("11-02 {}.123 {pid:5} {pid:5} W ", clock(t)) + if pid == 0 { "        : " } else { "" }
        }),
        ("json", |t, who| format!("{t} {who}")),
    ];
    let jokes = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "Oops: 0000 [#1] PREEMPT SMP",
        "WARNING: CPU: 0 PID: 301 at drivers/demo.c:12 demo_ioctl+0x1/0x2 [demo]",
        "EXT4-fs error (device vda): said the program",
        "  do_something+0x1/0x2",
        "Kernel panic - not syncing: no",
    ];
    for (name, head) in heads {
        let line = |time: u64, who: &str, text: &str| match name {
            "json" => {
                let transport = if who == "kernel" { "kernel" } else { "stdout" };
                let who = who.split('[').next().unwrap_or("");
                format!(
                    "{{\"__CURSOR\":\"{time}\",\"SYSLOG_IDENTIFIER\":\"{who}\",\"MESSAGE\":{},\"_TRANSPORT\":\"{transport}\"}}\n",
                    quoted(text)
                )
            }
            _ => format!("{}{text}\n", head(time, who)),
        };
        let mut text = String::new();
        for (at, (time, message)) in log.iter().enumerate() {
            text += &line(*time, "kernel", message);
            text += &line(*time, "demo[812]", jokes[at % jokes.len()]);
        }
        assert_eq!(titles(text.as_bytes()), FOUND, "{name}:\n{text}");
    }
}

/// What programs and builds write, with the times that they write, on a console beside the kernel.
#[test]
fn programs_and_builds_raise_no_alarm() {
    let texts = [
        "WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2",
        "BUG: unable to open display",
        "BUG: soft lockup - CPU#0 stuck for 22s! [x:1]",
        "INFO: task foo:12 blocked for more than 120 seconds.",
        "general protection fault in the story",
        "ERROR: modpost: \"demo\" [drivers/demo.ko] undefined!",
        "kernel BUG at mm/slub.c:3901!",
        "Kernel panic - not syncing: VFS",
        "  CC      kernel/panic.o",
        "drivers/demo.c:12:5: warning: unused variable 'x' [-Wunused-variable]",
        "Unable to handle the request",
        "Oops: something went wrong",
        "  frame+0x1/0x2",
        "{\"level\":\"error\",\"msg\":\"BUG: unable to handle kernel paging request\"}",
        "EXT4-fs error (device vda): quoted",
        "{",
        "\"MESSAGE\": \"Kernel panic - not syncing: x\"",
        "}",
        "MESSAGE=Kernel panic - not syncing: x",
    ];
    let heads = [
        "2020-11-02 10:00:00,123 ",
        "2020-11-02 10:00:00,123456 root ",
        "2020/11/02 10:00:00 ",
        "2020-11-02T10:00:00.123Z ",
        "2020-11-02T10:00:00.1234567Z ",
        "2020-11-02T10:00:00.123456Z 01O ",
        "10:00:00 ",
        "10:00:00.123 | ",
        "Nov  2 10:00:00 host demo[12]: ",
        "Nov  2 10:00:00 host demo: ",
        "nov. 2 10:00:00 host demo[12]: ",
        "Mo 2020-11-02 10:00:00 CET host demo[12]: ",
        "1604311200.123456 host demo[12]: ",
        "1604311200.123456 ",
        "<30>Nov  2 10:00:00 host demo: ",
        "<30>1 2020-11-02T10:00:00Z host demo 12 - - ",
        "11-02 10:00:00.123  1234  1250 E DEMO    : ",
        "E/DEMO    ( 1234): ",
        "I1102 10:00:00.123456    1234 demo.go:12] ",
        "[   12.345678] demo[12]: ",
        "[   12.345678] host demo[12]: ",
        "> ",
        "demo: ",
        "[12/34] ",
        "[ 50%] ",
        "#12 0.345 ",
    ];
    for head in heads {
        let text: String = texts.iter().map(|text| format!("{head}{text}\n")).collect();
        assert_eq!(essence(text.as_bytes()), [""; 0], "{head}");
        // And between the kernel's lines.
        let text: String =
            texts.iter().map(|text| format!("[   12.345678] usb 1-1: new device\n{head}{text}\n")).collect();
        assert_eq!(essence(text.as_bytes()), [""; 0], "{head}");
    }
}

#[test]
fn every_form_may_come_in_any_pieces() {
    let log = reports();
    let log = borrowed(&log);
    for (name, write) in forms() {
        let text = write(&log);
        let whole = triage(&text);
        for step in [1, 2, 7, 64, 1000] {
            let mut classifier = Classifier::new();
            let mut signals = Vec::new();
            for piece in text.chunks(step) {
                signals.extend(classifier.push(piece));
                assert!(classifier.retained() <= 1 << 20, "{name}");
            }
            signals.extend(classifier.finish());
            assert_eq!(signals, whole, "{name} in pieces of {step}");
        }
    }
}

/// Bytes of records that break off, lie about their lengths or never end.
fn broken_records() -> impl Strategy<Value = Vec<u8>> {
    let parts = [
        "{",
        "}",
        "},{",
        "{\n",
        "}\n",
        "\"MESSAGE\" : ",
        "\"msg\":",
        "\"",
        "\\u12",
        "\\ud800\\udc00",
        "\\",
        "[ 66, 85, 999",
        "]",
        ",",
        "\n",
        "\n\n",
        "__CURSOR=x\n",
        "MESSAGE=BUG: x\n",
        "MESSAGE\n",
        "_TRANSPORT=kernel\n",
        "    MESSAGE=x\n",
        "data: ",
        "\0\0\0\0\0\0\0",
        "Mon 2020-11-02 10:00:00 UTC [s=1;b=2]\n",
        "Nov  2 10:00:00 ",
        "11-02 10:00:00.123     0     0 W ",
        "W/x(    0): ",
        "host kernel: ",
        "<4>1 ",
        "2020-11-02T10:00:00",
        ".123456Z ",
        "01O ",
        "[   12.345678 <",
        "    0.000001>] ",
        "6.1,4,1,2,-;",
        "\r",
        "\u{a0}",
        "ноя 2 ",
        "> ",
        "\x1b[",
    ];
    let part = prop_oneof![
        4 => proptest::sample::select(parts.map(|p| p.as_bytes().to_vec()).to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ];
    proptest::collection::vec(part, 0..80).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn broken_records_are_survived_in_any_pieces(text in broken_records(), step in 1..50_usize) {
        let mut classifier = Classifier::new();
        let mut signals: Vec<Signal> = text.chunks(step).flat_map(|piece| classifier.push(piece)).collect();
        signals.extend(classifier.finish());
        prop_assert_eq!(signals, triage(&text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Lines of the corpus in any order, so that reports break off, interleave and lie.
    #[test]
    fn any_log_gives_the_same_in_every_form(picks in proptest::collection::vec((any::<prop::sample::Index>(), 1..40_usize), 1..8)) {
        let logs = logs();
        let mut log: Vec<(u64, &str)> = Vec::new();
        for (pick, count) in &picks {
            let (_, source) = &logs[pick.index(logs.len())];
            let start = pick.index(source.len());
            for (_, text) in source.iter().skip(start).take(*count) {
                // Never the same time between two: in some forms that is all that tells a second message from the same one twice.
                let time = log.last().map_or(1_000_000, |(time, _)| time + 1_000_731 + 13 * log.len() as u64);
                log.push((time, text));
            }
        }
        let expected = essence(&console(&log));
        for (name, write) in forms() {
            // Without stamps a line may be anybody's, and the first words of some messages look like a program's name;
            // with one caller for all, reports do not look as if two tasks printed them; and where stamps are coarse, a message that
            // comes again may be one that was written twice.
            if !["dmesg -t", "logcat, tags", "netconsole with caller"].contains(&name) && !is_coarse(write) {
                prop_assert_eq!(&essence(&write(&log)), &expected, "{}", name);
            }
        }
    }
}
