//! The history from the command line, without a machine: made-up run folders are indexed, listed and compared.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[path = "../../history/tests/story/mod.rs"]
mod story;
use story::{C0, C1, L0, L1, Story, faulty, quiet, temporary};

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_klpfarm"));
    command.args(args).current_dir(dir).env("KLPFARM_HOME", dir.join("home"));
    command
}

struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

fn done(output: Output) -> Done {
    let utf8 = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), out: utf8(output.stdout), err: utf8(output.stderr) }
}

fn klpfarm(dir: &Path, args: &[&str]) -> Done {
    done(command(dir, args).output().unwrap())
}

fn json(dir: &Path, args: &[&str]) -> Value {
    let done = klpfarm(dir, args);
    assert_eq!(done.code, Some(0), "{}", done.err);
    serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.out))
}

/// Both images' own trouble and that of a patch.
fn three_nights(dir: &Path) {
    let runs = dir.join("home/runs");
    quiet("fix_a", "2026-11-19T20:00:00Z").write(&runs.join("1"));
    faulty("fix_a", "2026-11-20T20:00:00Z", "bad data \u{1b}[31m").write(&runs.join("2"));
    Story::new("fix_b", "debian-12", "2026-11-21T20:00:00Z")
        .failed(C0, "INFO: task hung in jbd2_commit")
        .failed(L0, "INFO: task hung in jbd2_commit")
        .clean(L1)
        .begin(C1)
        .write(&runs.join("3"));
}

#[test]
fn runs_are_a_line_each_newest_first() {
    let dir = temporary();
    three_nights(dir.path());
    let listed = klpfarm(dir.path(), &["runs"]);
    assert_eq!((listed.code, listed.err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = listed.out.lines().collect();
    let parts = [
        ["2026-11-21 20:00", "fix_b", "unfinished", "klpfarm resume /"],
        ["2026-11-20 20:00", "fix_a", "rejected", "3 clean, 1 failed"],
        ["2026-11-19 20:00", "fix_a", "inconclusive", "no finding"],
    ];
    assert_eq!(lines.len(), parts.len(), "{}", listed.out);
    for (line, parts) in lines.iter().zip(parts) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let rejected = json(dir.path(), &["runs", "--outcome", "rejected", "--since", "2026-11-20", "--json"]);
    assert_eq!(rejected.as_array().unwrap().len(), 1);
    assert_eq!(rejected[0]["started"], "2026-11-20T20:00:00Z");
    assert_eq!(rejected[0]["findings"][0]["standing"], "unlisted");
    assert_eq!(klpfarm(dir.path(), &["runs", "--image", "debian-99"]).out, "no matching runs\n");
    for args in [&["runs", "--outcome", "good"][..], &["runs", "--since", "soon"], &["runs", "--limit", "0"]]
    {
        assert_eq!(klpfarm(dir.path(), args).code, Some(2), "{args:?}");
    }
}

#[test]
fn nights_are_compared() {
    let dir = temporary();
    assert_eq!(klpfarm(dir.path(), &["trend"]).out, "no runs yet\n");
    three_nights(dir.path());
    let all = klpfarm(dir.path(), &["trend"]);
    assert!(all.out.contains("3 nights, 2026-11-19 to 2026-11-21"), "{}", all.out);
    assert!(all.out.contains(
        "loaded 1 of 5, control 1 of 5; first seen 2026-11-21, last 2026-11-21: new since 2026-11-21"
    ));
    assert!(all.out.contains("bad data") && !all.out.contains('\u{1b}'), "cleaned: {}", all.out);
    let one = klpfarm(dir.path(), &["trend", "--finding", "bad data"]);
    assert!(one.out.contains("2026-11-20  1 of 2: 50 % (1 to 99)  0 of 2: 0 % (0 to 84)"), "{}", one.out);
    assert_eq!(klpfarm(dir.path(), &["trend", "--finding", "never seen"]).out, "no matching finding\n");
    let facts = json(dir.path(), &["trend", "--finding", "bad data", "--json"]);
    assert_eq!(facts["nights"][1]["arms"]["loaded"]["hit"], 1);
    let rate = klpfarm(dir.path(), &["trend", "--rate", "w"]);
    assert!(rate.out.contains("2026-11-19  2       100.0   200.0   300.0"), "{}", rate.out);
    let unknown = klpfarm(dir.path(), &["trend", "--rate", "v"]);
    assert!(unknown.code == Some(2) && unknown.err.contains("workloads that ran: w"), "{}", unknown.err);
}

#[test]
fn known_findings_are_reported_apart_and_expire() {
    let dir = temporary();
    three_nights(dir.path());
    let list = |expires: &str| {
        let text = format!(
            "- {{title: 'INFO: task hung in jbd2_*', reason: slow disk, expires: {expires}}}\n- {{title: 'bad *', reason: wishful, expires: 9999-12-31}}\n"
        );
        fs::write(dir.path().join("known-findings.yaml"), text).unwrap();
    };
    list("9999-12-31");
    let all = klpfarm(dir.path(), &["trend"]).out;
    let (news, known) = all.split_once("known findings:").unwrap();
    assert!(known.contains("jbd2_commit") && known.contains("known: slow disk, until 9999-12-31"), "{all}");
    // What happens only with the patch no entry excuses.
    assert!(news.contains("bad data") && news.contains("listed as known (wishful), but"), "{all}");
    assert!(klpfarm(dir.path(), &["runs"]).out.contains("0 findings, 1 known"));
    let judged = klpfarm(dir.path(), &["judge", "home/runs/3"]);
    assert_eq!(judged.code, Some(3));
    assert!(
        judged.out.contains(
            "Known findings:\n    [wrong-content] INFO: task hung in jbd2_commit: known: slow disk"
        )
    );
    let judged = klpfarm(dir.path(), &["judge", "home/runs/2"]);
    assert_eq!(judged.code, Some(1), "the list changes no verdict");
    assert!(judged.out.contains("listed as known (wishful), but") && !judged.out.contains("reported apart"));

    list("2026-01-31");
    let all = klpfarm(dir.path(), &["trend"]);
    assert!(
        !all.out.contains("known findings:")
            && all.out.contains("expired on 2026-01-31: reported as new again")
    );
    assert!(all.err.contains("`INFO: task hung in jbd2_*` expired on 2026-01-31"), "{}", all.err);

    fs::write(dir.path().join("k.yaml"), "- title: a\n  reason: b\n  expires: never\n").unwrap();
    for args in [
        &["runs", "--known", "k.yaml"][..],
        &["trend", "--known", "k.yaml"],
        &["judge", "home/runs/2", "--known", "k.yaml"],
    ] {
        let wrong = klpfarm(dir.path(), args);
        assert_eq!(wrong.code, Some(2));
        assert!(wrong.err.contains("k.yaml:3:1: [0].expires: `never` is not a valid date"), "{}", wrong.err);
    }
}

#[test]
fn a_damaged_index_is_made_anew_from_the_journals() {
    let dir = temporary();
    three_nights(dir.path());
    let elsewhere = quiet("far", "2026-11-22T20:00:00Z").write(&dir.path().join("elsewhere/out"));
    let before = klpfarm(dir.path(), &["db", "rebuild", "--runs", "elsewhere"]);
    assert_eq!((before.code, before.out.as_str()), (Some(0), "4 runs indexed, 0 skipped, 0 dropped\n"));
    let before = klpfarm(dir.path(), &["runs"]);
    assert!(before.out.lines().next().unwrap().contains("far"), "{}", before.out);
    fs::write(dir.path().join("home/history.sqlite"), "damaged ".repeat(100)).unwrap();
    let damaged = klpfarm(dir.path(), &["runs"]);
    assert_eq!((damaged.code, damaged.out.as_str()), (Some(2), ""));
    assert!(
        damaged.err.contains("history.sqlite: is damaged") && damaged.err.contains("`klpfarm db rebuild`")
    );
    let rebuilt = klpfarm(dir.path(), &["db", "rebuild", "--runs", elsewhere.to_str().unwrap()]);
    assert_eq!(rebuilt.code, Some(0), "{}", rebuilt.err);
    assert!(rebuilt.err.contains("unless given with --runs"), "{}", rebuilt.err);
    assert_eq!(klpfarm(dir.path(), &["runs"]).out, before.out);
    let nowhere = klpfarm(dir.path(), &["db", "rebuild", "--runs", "nowhere"]);
    assert!(nowhere.code == Some(2) && nowhere.err.contains("nowhere: not a folder"), "{}", nowhere.err);
}

#[test]
fn several_processes_in_one_home_do_not_harm_each_other() {
    let dir = temporary();
    three_nights(dir.path());
    let start = |args: &[&str]| {
        command(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend([start(&["runs"]), start(&["db", "rebuild"]), start(&["trend"])]);
    }
    for one in all {
        let done = done(one.wait_with_output().unwrap());
        assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    }
    assert_eq!(klpfarm(dir.path(), &["runs"]).out.lines().count(), 3);
}
