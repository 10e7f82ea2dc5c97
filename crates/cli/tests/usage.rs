//! What needs no machine: bad input and its messages, exit codes, triage, judging a folder.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

fn klpfarm(args: &[&str], dir: &Path, input: &[u8]) -> Done {
    let mut child = Command::new(env!("CARGO_BIN_EXE_klpfarm"))
        .args(args)
        .current_dir(dir)
        .env("KLPFARM_HOME", dir.join("home"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input is no failure.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let utf8 = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), out: utf8(output.stdout), err: utf8(output.stderr) }
}

fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("klpfarm-test-").tempdir().unwrap()
}

#[test]
fn every_problem_of_a_pipeline_is_told_with_its_place() {
    let dir = temporary();
    let text =
        "name: bad\nimage: debian-99\nworkloads:\n  - madvise-allocator\n  - nonsense\n  - ./missing.yaml\n";
    std::fs::write(dir.path().join("bad.yaml"), text).unwrap();
    let done = klpfarm(&["check", "bad.yaml"], dir.path(), b"");
    assert_eq!(done.code, Some(2));
    for part in
        ["bad.yaml:2: image: ", "debian-12", "bad.yaml:5: workloads: no workload `nonsense`", "missing.yaml"]
    {
        assert!(done.err.contains(part), "{} lacks {part}", done.err);
    }
    std::fs::write(dir.path().join("w.yaml"), "name: w\nrun: {builtin: syscall-mix, args: {procesess: 2}}\n")
        .unwrap();
    std::fs::write(dir.path().join("args.yaml"), "name: args\nimage: debian-12\nworkloads: [./w.yaml]\n")
        .unwrap();
    let done = klpfarm(&["check", "args.yaml"], dir.path(), b"");
    assert!(
        done.code == Some(2) && done.err.contains("w.yaml:2: run: syscall-mix has no parameter `procesess`"),
        "{}",
        done.err
    );
    std::fs::write(
        dir.path().join("typo.yaml"),
        "name: typo\nimage: debian-12\nworkloads: [syscall-mix]\nsoak: 3s\n",
    )
    .unwrap();
    let done = klpfarm(&["check", "typo.yaml"], dir.path(), b"");
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("typo.yaml:4:1: soak: unknown field `soak`"), "{}", done.err);
}

#[test]
fn shipped_pipelines_are_sound() {
    let dir = temporary();
    assert_eq!(klpfarm(&["check", "gate"], dir.path(), b"").code, Some(0));
}

#[test]
fn what_is_no_livepatch_is_refused_with_the_reason() {
    let dir = temporary();
    std::fs::write(dir.path().join("x.ko"), b"hello").unwrap();
    for (patch, reason) in
        [("x.ko", "not a 64-bit ELF file"), ("gone.ko", "No such file"), (".", "not a file")]
    {
        let done = klpfarm(&["plan", "gate", "--patch", patch], dir.path(), b"");
        assert_eq!(done.code, Some(2), "{}", done.err);
        assert!(done.err.contains(reason), "{} lacks {reason}", done.err);
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let dir = temporary();
    for args in
        [&["frobnicate"][..], &["run"], &["run", "gate", "--patch", "x.ko", "--tier", "gold"], &["check"]]
    {
        assert_eq!(klpfarm(args, dir.path(), b"").code, Some(2), "{args:?}");
    }
    assert_eq!(klpfarm(&["judge", "nowhere"], dir.path(), b"").code, Some(2));
    assert_eq!(klpfarm(&["--version"], dir.path(), b"").code, Some(0));
}

const LOG: &[u8] = b"[   12.000000] systemd[1]: WARNING: CPU: 0 is not a finding\n\
[  113.571468] INFO: task worker:255 blocked for more than 20 seconds.\n\
[  113.571883]       Tainted: G           OE K    6.1.0-56-cloud-amd64 #1 Debian 6.1.192-2\n\
[  113.572122] \"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.\n\
[  113.572384] task:worker          state:D stack:0     pid:255   ppid:230    flags:0x00000002\n\
[  113.587100] Call Trace:\n\
[  113.587264]  <TASK>\n\
[  113.587420]  __schedule+0x34d/0xa00\n\
[  113.587586]  schedule+0x5a/0xd0\n\
[  113.587666]  klp_new_madvise+0xd9/0x111 [patch]\n\
[  113.598333]  do_syscall_64+0x5d/0x90\n\
[  113.600367]  </TASK>\n";

#[test]
fn triage_reads_files_and_standard_input() {
    let dir = temporary();
    std::fs::write(dir.path().join("console.log"), LOG).unwrap();
    let done = klpfarm(&["triage", "console.log"], dir.path(), b"");
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "2: [hung-task] INFO: task hung in klp_new_madvise\n")
    );
    let done = klpfarm(&["triage", "-", "--json"], dir.path(), LOG);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&found[0]["kind"], &found[0]["line"], found.as_array().unwrap().len()),
        (&"hung-task".into(), &2.into(), 1)
    );
    assert_eq!(klpfarm(&["triage", "gone.log"], dir.path(), b"").code, Some(2));
    let done = klpfarm(&["triage", "-", "--json"], dir.path(), b"all is well\n");
    assert_eq!((done.code, done.out.trim()), (Some(0), "[]"));
}

#[test]
fn triage_reads_what_is_compressed_and_tells_what_it_found_before_damage() {
    let dir = temporary();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&[LOG, &b"[  200.000000] usb 1-1: new device\n".repeat(100_000)].concat()).unwrap();
    let packed = packed.finish().unwrap();
    let found = "2: [hung-task] INFO: task hung in klp_new_madvise\n";
    std::fs::write(dir.path().join("console.log.gz"), &packed).unwrap();
    let done = klpfarm(&["triage", "console.log.gz"], dir.path(), b"");
    assert_eq!((done.code, done.out.as_str()), (Some(0), found));
    let done = klpfarm(&["triage", "-"], dir.path(), &packed);
    assert_eq!((done.code, done.out.as_str()), (Some(0), found));
    std::fs::write(dir.path().join("cut.gz"), &packed[..packed.len() - 20]).unwrap();
    let done = klpfarm(&["triage", "cut.gz", "--json"], dir.path(), b"");
    let json: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, json.as_array().unwrap().len()), (Some(2), 1));
    assert!(done.err.contains("cut.gz: "), "{}", done.err);
    std::fs::write(dir.path().join("system.journal"), b"LPKSHHRH\0\0").unwrap();
    let done = klpfarm(&["triage", "system.journal"], dir.path(), b"");
    assert!(done.code == Some(2) && done.err.contains("journalctl --file"), "{}", done.err);
}

#[test]
fn doctor_says_what_to_do() {
    let dir = temporary();
    let done = klpfarm(&["doctor", "--json"], dir.path(), b"");
    let lines: Value = serde_json::from_str(&done.out).unwrap();
    let names: Vec<&str> = lines.as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["qemu", "forks", "kvm", "image-tools", "memory", "disk", "machines", "leftovers"]);
    for line in lines.as_array().unwrap() {
        let told = line["status"] == "ok" || line["hint"].as_str().is_some_and(|h| !h.is_empty());
        assert!(told, "{line:#}");
    }
}
