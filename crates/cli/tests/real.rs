//! The whole, on real machines: images are built, modules compiled, guests booted, patches applied under load.
//!
//! The state (images above all) is kept below the target folder between runs. One test at a time: machines are large, hosts
//! are small.

mod farm;

use std::path::Path;

use farm::*;
use serde_json::Value;

#[test]
fn a_faulty_patch_is_rejected_by_the_loaded_arm_alone() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-held-lock");
    let dir = temporary();
    let out = dir.path().join("run");
    let pipeline = pipeline(dir.path(), "debian-12", THREE_ARMS);
    let key = dir.path().join("key");
    succeed(klpfarm().args(["key", "new"]).arg(&key));
    let output = run(&pipeline, &patch, &out).arg("--sign").arg(&key).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let verdict = json(&out.join("verdict.json"));
    succeed(klpfarm().arg("verify").arg(&out).arg("--key").arg(dir.path().join("key.pub")));
    assert_eq!(verdict["verdict"], "rejected", "{verdict:#}");
    assert!(verdict["arms"]["loaded"]["failed"].as_u64() >= Some(1), "{verdict:#}");
    for arm in ["quiescent", "control"] {
        assert_eq!(verdict["arms"][arm]["clean"], 1, "{arm}: {verdict:#}");
    }
    let cause = &verdict["causes"][0];
    let of = |field: &str| cause[field].as_str().unwrap_or_default();
    assert_eq!((of("what"), of("condition")), ("against-the-patch", "applied-under-load"), "{cause:#}");
    assert!(of("title").contains("klp_new_madvise") || of("function") == "klp_new_madvise", "{cause:#}");
    assert_eq!(cause["arms"]["control"]["hit"], 0, "{cause:#}");
    // A machine that hung for good is no stub: its evidence was kept.
    let stacks = std::fs::read_to_string(out.join("trials/1/evidence/blocked.txt")).unwrap();
    assert!(stacks.contains("klp_new_madvise"), "{stacks}");
    // Whoever has the folder can judge again, with the same result.
    let again = klpfarm().args(["judge", "--json"]).arg(&out).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap(), verdict);
    // A folder that is in use is refused.
    let refused = run(&pipeline, &patch, &out).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("not empty"), "{}", text(&refused));
    assert_nothing_left();
}

/// Two good patches, each alone, again after taking it back, and one on top of the other.
#[test]
fn good_patches_are_qualified_alone_and_stacked() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    let other = module("debian-12", "good/fork-counted");
    let dir = temporary();
    let out = dir.path().join("run");
    let pipeline = pipeline(dir.path(), "debian-12", "{quiescent: 0, control: 1, reapply: 1}");
    let output = run(&pipeline, &patch, &out).arg("--patch").arg(other).arg("--json").output().unwrap();
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let journal = std::fs::read_to_string(out.join("journal.jsonl")).unwrap_or_default();
    for part in ["\"fork_ms\":", "\"transition-done\"", "\"unloaded\":true", "\"phase\":\"soak\""] {
        assert!(journal.contains(part), "the journal lacks {part}: {}", text(&output));
    }
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for arm in ["reapply", "stack", "loaded"] {
        assert_eq!(verdict["arms"][arm]["failed"], 0, "{verdict:#}");
        assert!(verdict["arms"][arm]["clean"].as_u64() >= Some(1), "{verdict:#}");
    }
    let madvise = verdict["reach"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["function"] == "vmlinux/__x64_sys_madvise,1")
        .unwrap();
    for rate in ["before_per_s", "after_per_s"] {
        assert!(madvise[rate].as_f64().unwrap() > 1.0, "{rate}: {verdict:#}");
    }
    let wear = &verdict["wear"];
    assert!(wear["reached"]["uptime_s"].as_f64() > wear["fresh"]["uptime_s"].as_f64(), "{wear:#}");
    assert_nothing_left();
}

/// The farm's acceptance test on some of the examples: one for each way to see a fault, and good ones that look like them.
#[test]
fn detectors_catch_what_they_must_and_nothing_else() {
    let _alone = alone();
    succeed(klpfarm().args(["image", "build", "debian-12"]));
    let dir = temporary();
    let pipeline = pipeline(dir.path(), "debian-12", "{quiescent: 0, control: 3, reapply: 0}");
    let faulty = [
        "lock-held-interruptible",
        "hard-lockup",
        "null-dereference",
        "dontneed-does-nothing",
        "load-refused",
    ];
    let held = ["never-exercised", "hook-bypasses"];
    let good = ["noisy-log", "callbacks"];
    let mut command = klpfarm();
    command.args(["qualify-detectors", "--json", "--pipeline"]).arg(&pipeline);
    for name in faulty.iter().chain(&held).chain(&good) {
        command.args(["--only", &format!("/{name}")]);
    }
    let out = dir.path().join("run");
    let output = command.arg("--out").arg(&out).output().unwrap();
    let matrix: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let rows = matrix["rows"].as_array().unwrap();
    let scored = |score: &str| rows.iter().filter(|r| r["score"] == score).count();
    assert!(scored("caught") >= faulty.len(), "{matrix:#}");
    assert_eq!((scored("held"), scored("passed")), (held.len(), good.len()), "{matrix:#}");
    // Whoever has the folder can judge again, with the same result.
    let again = klpfarm().args(["qualify-detectors", "--json", "--again"]).arg(&out).output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap(), matrix);
    assert_nothing_left();
}

/// The same on 5.10, without forks: the machines boot one by one.
#[test]
fn debian_11_boots_and_takes_a_patch() {
    let _alone = alone();
    let patch = module("debian-11", "madvise-fixed");
    let dir = temporary();
    let out = dir.path().join("run");
    let output =
        run(&pipeline(dir.path(), "debian-11", TWO_ARMS), &patch, &out).arg("--cold").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(json(&out.join("plan.json"))["image"]["release"].as_str().unwrap().starts_with("5.10."));
    assert!(json(&out.join("verdict.json"))["checkpoint"].is_null());
    assert_nothing_left();
}

#[test]
fn an_older_machine_is_made_of_an_old_one() {
    let _alone = alone();
    let young = aged();
    let id = young["id"].as_str().unwrap();
    let old: Value =
        serde_json::from_str(&succeed(klpfarm().args(["age", id, "--for", "5s", "--json"]))).unwrap();
    assert_eq!(old["key"]["parent"], id);
    let uptime = |c: &Value| c["uptime_s"].as_f64().unwrap();
    assert!(uptime(&old) >= uptime(&young) + 5.0, "{} then {}", uptime(&young), uptime(&old));
    let old = old["id"].as_str().unwrap();
    let list = succeed(klpfarm().args(["checkpoint", "list"]));
    assert!(list.contains(id) && list.contains(old), "{list}");
    succeed(klpfarm().args(["checkpoint", "rm", old]));
    assert_nothing_left();
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let _alone = alone();
    let young = aged();
    let id = young["id"].as_str().unwrap();
    let patch = module("debian-12", "madvise-fixed");
    let state = home().join("checkpoints").join(id).join("state");
    let good = std::fs::read(&state).unwrap();
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    for (damage, word) in [(changed, "changed"), (good[..good.len() - 1].to_vec(), "bytes")] {
        std::fs::write(&state, damage).unwrap();
        let dir = temporary();
        let out = dir.path().join("run");
        let output = run(&pipeline(dir.path(), "debian-12", TWO_ARMS), &patch, &out).output().unwrap();
        std::fs::write(&state, &good).unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        for part in [id, "state", word, "klpfarm checkpoint rm"] {
            assert!(text(&output).contains(part), "{} lacks {part}", text(&output));
        }
        assert!(!out.exists());
    }
}

#[test]
fn a_patch_for_another_kernel_is_refused_before_anything_boots() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    let mut data = std::fs::read(&patch).unwrap();
    let at = data.windows(9).position(|w| w == b"vermagic=").unwrap() + 9;
    data[at..at + 4].copy_from_slice(b"9.9.");
    let dir = temporary();
    let other = dir.path().join("other.ko");
    std::fs::write(&other, data).unwrap();
    let out = dir.path().join("run");
    let output = run(&pipeline(dir.path(), "debian-12", THREE_ARMS), &other, &out).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("was built for kernel 9.9."), "{}", text(&output));
    assert!(!out.exists());
}

#[test]
fn an_interrupted_run_ends_its_machines_and_says_what_is_known() {
    let _alone = alone();
    let patch = module("debian-12", "madvise-fixed");
    aged();
    for signal in ["-INT", "-TERM", "-HUP"] {
        let dir = temporary();
        let out = dir.path().join("run");
        let pipeline = pipeline(dir.path(), "debian-12", TWO_ARMS);
        let run = run(&pipeline, &patch, &out);
        // A terminal that goes away takes the reader of standard error with it.
        let mut running =
            if signal == "-HUP" { Running::start_unheard(run, &out) } else { Running::start(run, &out) };
        running.wait_for("\"phase-started\"");
        let machines = running.machines();
        assert!(!machines.is_empty());
        kill(signal, &running.child.id().to_string());
        assert_eq!(running.code(), Some(130));
        assert_eq!(json(&out.join("verdict.json"))["verdict"], "inconclusive");
        for pid in machines {
            assert!(!Path::new("/proc").join(&pid).exists(), "QEMU {pid} was left behind");
        }
        assert_nothing_left();
    }
}

#[test]
fn the_images_can_be_listed_and_shown() {
    let _alone = alone();
    succeed(klpfarm().args(["image", "build", "debian-12"]));
    let list = succeed(klpfarm().args(["image", "list", "--json"]));
    let list: Value = serde_json::from_str(&list).unwrap();
    assert!(list.as_array().unwrap().iter().any(|i| i["name"] == "debian-12"), "{list:#}");
    let shown: Value =
        serde_json::from_str(&succeed(klpfarm().args(["image", "show", "debian-12", "--json"]))).unwrap();
    for file in ["disk", "kernel", "initrd", "headers"] {
        assert!(Path::new(shown[file].as_str().unwrap()).exists(), "{file}: {shown:#}");
    }
}

/// The map of two workloads, which is asked without a machine and chosen by.
#[test]
fn workloads_are_chosen_by_what_they_call() {
    let _alone = alone();
    let patch = module("debian-12", "good/fork-counted");
    let map = || klpfarm_in_json(&["reach", "map", "--image", "debian-12", "--for", "5s", "--accel", "tcg"]);
    let first = map();
    let [fork, files] = [0, 1].map(|n| &first["workloads"][n]);
    assert_eq!((&fork["workload"], &files["workload"]), (&"fork-exec-churn".into(), &"file-io-fsync".into()));
    assert!(first["background"]["called"].as_u64() > Some(100), "{first:#}");
    assert!(fork["outcome"]["measured"]["cpus"].as_f64() > Some(0.1), "{first:#}");
    // What has been measured is not measured again: all figures are the same.
    assert_eq!(map(), first);
    let asked =
        klpfarm_in_json(&["reach", "--function", "kernel_clone", "--function", "vfs_fsync_range@vmlinux"]);
    let callers =
        |n: usize| asked["functions"][n]["found"][0]["callers"].as_array().cloned().unwrap_or_default();
    assert_eq!(callers(0)[0]["workload"], "fork-exec-churn", "{asked:#}");
    assert!(callers(0)[0]["per_second"].as_f64() > Some(1.0), "{asked:#}");
    assert_eq!(callers(1)[0]["workload"], "file-io-fsync", "{asked:#}");
    // A patch of kernel_clone gets the one that forks.
    let dir = temporary();
    let file = dir.path().join("auto.yaml");
    std::fs::write(&file, "name: auto\nimage: debian-12\nworkloads: [file-io-fsync, auto]\n").unwrap();
    let plan = klpfarm_in_json(&[
        "plan",
        file.to_str().unwrap(),
        "--patch",
        patch.to_str().unwrap(),
        "--accel",
        "tcg",
    ]);
    let names: Vec<&Value> = plan["workloads"].as_array().unwrap().iter().map(|w| &w["name"]).collect();
    assert_eq!(names, ["file-io-fsync", "fork-exec-churn", "aging"], "{plan:#}");
    assert_nothing_left();
}

fn klpfarm_in_json(args: &[&str]) -> Value {
    let mut command = klpfarm();
    command.args(args).arg("--json");
    if args[1] == "map" {
        command.args(["--workload", "fork-exec-churn", "--workload", "file-io-fsync"]);
    }
    serde_json::from_str(&succeed(&mut command)).unwrap()
}
