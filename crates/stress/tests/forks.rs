//! What the farm asks of a machine that was forked from a checkpoint. Runs on this host; what needs privilege is tested as far as
//! the privilege goes.

mod harness;

use harness::Probe;
use klpfarm_stress::wire::{Ask, FromGuest, Vitals};
use std::time::{SystemTime, UNIX_EPOCH};

fn write(name: &str, data: &str, append: bool) -> Ask {
    Ask::Write { name: name.into(), data: data.into(), append }
}

fn load(name: &str) -> Ask {
    Ask::Load { name: name.into(), limit_ms: 60_000 }
}

#[test]
fn files_are_written_beside_the_program_in_pieces() {
    let mut probe = Probe::start();
    // Not waiting for answers: the order is kept.
    let ids = [write("a.ko", "AAEC", false), write("a.ko", "/w==", true)].map(|ask| probe.send(ask));
    for id in ids {
        assert_eq!(probe.reply(id), (0, String::new()));
    }
    let path = probe.home.path().join("a.ko");
    assert_eq!(std::fs::read(&path).unwrap(), [0, 1, 2, 255]);
    // As long as a line may be.
    let long = "AAAA".repeat((klpfarm_stress::wire::MAX_LINE - 200) / 4);
    assert_eq!(probe.ask(write("a.ko", &long, false)).0, 0);
    assert_eq!(std::fs::metadata(&path).unwrap().len() as usize, long.len() / 4 * 3);
    assert_eq!(probe.ask(write("a.ko", "", false)).0, 0);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn wrong_files_are_refused_by_name() {
    let mut probe = Probe::start();
    for (name, data, part) in [
        ("../a", "AAEC", "not a plain file name"),
        (".a", "AAEC", "not a plain file name"),
        ("", "AAEC", "not a plain file name"),
        ("a", "AAE", "data of a: not base64"),
        ("a", "AA EC", "data of a: not base64"),
    ] {
        let (code, out) = probe.ask(write(name, data, false));
        assert!(code == libc::EINVAL && out.contains(part), "{name} {data}: {code} {out}");
    }
    let (code, out) = probe.ask(write("klpfarm-stress", "AAEC", false));
    assert!(code == libc::ETXTBSY && out.contains("cannot write klpfarm-stress"), "{code} {out}");
    let left: Vec<_> =
        std::fs::read_dir(probe.home.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["klpfarm-stress"]);
}

#[test]
fn a_module_that_is_none_is_refused_with_the_kernels_errno_and_tasks_are_noted() {
    let mut probe = Probe::start();
    let (code, out) = probe.ask(load("none.ko"));
    assert!(code == libc::ENOENT && out.contains("none.ko: No such file"), "{code} {out}");
    assert_eq!(probe.ask(load("../none.ko")).0, libc::EINVAL);
    assert_eq!(probe.ask(write("bad.ko", "AAEC", false)).0, 0);
    let (code, out) = probe.ask(load("bad.ko"));
    // Without the privilege or without modules in the kernel, that comes first.
    assert!([libc::ENOEXEC, libc::EPERM, libc::ENOSYS].contains(&code), "{code} {out}");
    let (last, noted) =
        out.trim_end().split('\n').collect::<Vec<_>>().split_last().map(|(l, n)| (*l, n.to_vec())).unwrap();
    assert!(last.contains("bad.ko") && last.contains(&format!("(os error {code})")), "{out}");
    let own = format!("/proc/{}/stack", std::process::id());
    let may_look = std::fs::read_to_string(own).is_ok_and(|s| !s.is_empty());
    assert!(!noted.is_empty() || !may_look, "no task was noted: {out}");
    for line in noted {
        let words: Vec<&str> = line.split(' ').collect();
        let [inside, function, count] = words[..] else { panic!("{line}") };
        assert!(inside == "inside" && !function.is_empty() && count.parse::<u32>().unwrap() > 0, "{line}");
    }
}

#[test]
fn a_patch_that_is_not_there_is_not_listed() {
    let mut probe = Probe::start();
    assert_eq!(probe.ask(Ask::Livepatch { name: "klpfarm_no_such".into() }), (0, String::new()));
    let (code, out) = probe.ask(Ask::Livepatch { name: "../kernel".into() });
    assert!(code == libc::EINVAL && out.contains("not a module's name"), "{code} {out}");
}

#[test]
fn vitals_are_told() {
    let mut probe = Probe::start();
    let (code, out) = probe.ask(Ask::Vitals);
    assert_eq!(code, 0, "{out}");
    let first: Vitals = serde_json::from_str(&out).unwrap();
    assert!(first.uptime_s > 0.0 && first.tasks > 0 && !first.buddy.is_empty(), "{first:?}");
    probe.exec("true", 60_000);
    let second: Vitals = serde_json::from_str(&probe.ask(Ask::Vitals).1).unwrap();
    assert!(second.forks > first.forks, "{first:?} {second:?}");
}

/// The time given is this machine's own, so that its clock is left alone.
fn resume(probe: &mut Probe, entropy: &str) -> (i32, String) {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    probe.ask(Ask::Resume { entropy: entropy.into(), unix_ms })
}

#[test]
fn a_resumed_machine_goes_on_and_nobody_is_idle() {
    let mut probe = Probe::start();
    let (code, out) = resume(&mut probe, "00ff");
    assert!(code == libc::EINVAL && out.contains("hex digits"), "{code} {out}");
    probe.start_builtin("syscall-mix", &["processes=1"]);
    let (code, out) = resume(&mut probe, &"5a".repeat(64));
    // An ordinary user's entropy is not credited; the rest is done nevertheless.
    assert!(code == 0 || (code == libc::EPERM && out.contains("entropy")), "{code} {out}");
    let mut rounds = 0;
    probe.until("progress after that", |l| match l {
        FromGuest::Progress { threads, .. } => {
            rounds += 1;
            assert!(threads.iter().all(|t| t.idle_ms < 60_000), "{threads:?}");
            rounds > 4
        }
        _ => false,
    });
    probe.stop("syscall-mix");
    assert!(probe.faults().is_empty(), "{:?}", probe.faults());
}
