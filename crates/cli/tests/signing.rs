//! Signed verdicts, without a machine: keys, signing, verifying, and what counts as the verdict of the tier below.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use klpfarm_attest::{Digests, Envelope, PAYLOAD_TYPE, PrivateKey, Statement, sha256};
use klpfarm_model::{
    Accel, Body, Event, ImageFacts, Outcome, Patch, Pipeline, Plan, Resolved, Sidecar, Start, Tier, Tiers,
    Verdict,
};
use klpfarm_report::Run;
use serde_json::Value;

struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

fn done(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let utf8 = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), out: utf8(output.stdout), err: utf8(output.stderr) }
}

/// A folder with a candidate, keys, and a run of it that ended.
struct World(tempfile::TempDir);

const PIPELINE: &str = "name: p\nimage: ./image.yaml\nworkloads: [syscall-mix]\ntiers: tiers.yaml\n\
                        arms: {quiescent: 0, reapply: 0}\n";
const TIERS: &str = "proposed: {applications: {max_failure_rate: 0.7, confidence: 0.6}, exposure: {soak: 30s}, arms: [loaded, control]}\n\
     updates: {applications: {max_failure_rate: 0.7, confidence: 0.6}, exposure: {soak: 30s}, arms: [loaded, control], after: proposed}\n";

impl World {
    fn new() -> Self {
        let world = Self(tempfile::Builder::new().prefix("klpfarm-test-").tempdir().unwrap());
        world.write("x.ko", &livepatch("x"));
        world.write("p.yaml", PIPELINE.as_bytes());
        world.write("tiers.yaml", TIERS.as_bytes());
        for key in ["a", "b"] {
            assert_eq!(world.klpfarm(&["key", "new", key]).code, Some(0));
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn klpfarm(&self, args: &[&str]) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_klpfarm"));
        done(command.args(args).current_dir(self.0.path()).env("KLPFARM_HOME", self.path("home")))
    }

    fn plan(&self, image: ImageFacts) -> Plan {
        let pipeline = Pipeline::parse(Path::new("p.yaml"), PIPELINE).unwrap();
        let tiers = Tiers::parse(Path::new("tiers.yaml"), TIERS).unwrap();
        let data = self.read("x.ko");
        let resolved = Resolved {
            patches: vec![Patch::parse(Path::new("x.ko"), &data, Sidecar::default()).unwrap()],
            start: Start::Boot,
            ..Resolved::new(image, tiers.rule(Tier::Proposed).unwrap().clone())
        };
        Plan::new(&pipeline, resolved).unwrap()
    }

    /// A run folder `run` as one that was ended before its first trial leaves it.
    fn run(&self) {
        self.run_of(&self.plan(ImageFacts { name: "i".into(), hash: "11".into(), release: None }));
    }

    fn run_of(&self, plan: &Plan) {
        let dir = self.path("run");
        let body = Body::RunStarted {
            time: "2026-11-22T01:02:03Z".into(),
            plan: plan.hash(),
            accel: Accel::Tcg,
            qemu: String::new(),
        };
        let events = [Event { seq: 1, at_ms: 0, scope: None, body }];
        let patches = [self.read("x.ko")];
        Run::create(&dir, plan, &patches).unwrap().append(&events[0]).unwrap();
        Run::conclude(&dir, plan, &events, &klpfarm_model::judge(plan, &events)).unwrap();
    }

    /// What plan and journal as they are now come to is written, without a look at whether they agree.
    fn judged_regardless(&self) {
        let dir = self.path("run");
        let run = Run::open(&dir).unwrap();
        let verdict = klpfarm_model::judge(&run.plan, &run.events);
        Run::conclude(&dir, &run.plan, &run.events, &verdict).unwrap();
    }

    /// And signed, as an earlier klpfarm did.
    fn signed_regardless(&self) {
        let digest = |name: &str| sha256(&self.read(&format!("run/{name}")));
        let digests = Digests {
            verdict: digest("verdict.json"),
            journal: digest("journal.jsonl"),
            plan: digest("plan.json"),
        };
        let verdict: Verdict = serde_json::from_slice(&self.read("run/verdict.json")).unwrap();
        let payload = Statement::new(&verdict, digests, "2026-11-22T01:02:03Z".into()).to_json();
        let key = PrivateKey::from_pem(&String::from_utf8(self.read("a")).unwrap()).unwrap();
        self.write(
            "run/verdict.dsse.json",
            Envelope::sign(PAYLOAD_TYPE, &payload, &key).to_json().as_bytes(),
        );
    }

    fn verify(&self, keys: &[&str]) -> (Option<i32>, Value) {
        let keys = keys.iter().flat_map(|key| ["--key", key]);
        let args: Vec<&str> = ["verify", "run", "--json"].into_iter().chain(keys).collect();
        let done = self.klpfarm(&args);
        (done.code, serde_json::from_str(&done.out).unwrap_or_default())
    }

    /// What is said of one check of `verify`.
    fn result(&self, check: &str) -> (Option<i32>, String) {
        let (code, report) = self.verify(&["a.pub"]);
        let checks = report["checks"].as_array().cloned().unwrap_or_default();
        let found = checks.iter().find(|c| c["what"].as_str().is_some_and(|w| w.starts_with(check)));
        let found = found.unwrap_or_else(|| panic!("no check {check}: {report:#}"));
        (code, found["result"].as_str().unwrap().to_owned())
    }
}

/// The least file that counts as a livepatch: an ELF header, `.modinfo` and the names of sections.
fn livepatch(name: &str) -> Vec<u8> {
    let info = format!("vermagic=6.1.0 SMP\0livepatch=Y\0name={name}\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let at = |n: usize| 64 + n as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([0; 16]);
    file.extend(at(info.len() + names.len()).to_le_bytes());
    file.extend([0; 4]);
    for half in [64u16, 0, 0, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(info.as_bytes());
    file.extend(names);
    for (name, kind, offset, size) in
        [(0u32, 0u32, 0, 0), (1, 1, at(0), info.len()), (10, 3, at(info.len()), names.len())]
    {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for word in [0, 0, offset, size as u64, 0, 1, 0] {
            file.extend(word.to_le_bytes());
        }
    }
    file
}

#[test]
fn a_new_key_is_private_and_never_written_over() {
    let world = World::new();
    let mode = |name| std::fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a"), mode("a.pub") & 0o600), (0o600, 0o600));
    let before = (world.read("a"), world.read("a.pub"));
    let again = world.klpfarm(&["key", "new", "a"]);
    assert!(again.code == Some(2) && again.err.contains("a: exists already"), "{}", again.err);
    std::fs::remove_file(world.path("b")).unwrap();
    let again = world.klpfarm(&["key", "new", "b"]);
    assert!(again.code == Some(2) && again.err.contains("b.pub: exists already"), "{}", again.err);
    assert!(!world.path("b").exists());
    assert_eq!(before, (world.read("a"), world.read("a.pub")));
}

#[test]
fn a_key_that_others_can_read_is_refused_before_anything_begins() {
    let world = World::new();
    world.run();
    for (mode, refused) in [(0o640, true), (0o604, true), (0o620, true), (0o400, false), (0o600, false)] {
        std::fs::set_permissions(world.path("a"), PermissionsExt::from_mode(mode)).unwrap();
        let _ = std::fs::remove_file(world.path("run/verdict.dsse.json"));
        let signed = world.klpfarm(&["sign", "run", "--key", "a"]);
        assert_eq!(signed.code, Some(if refused { 2 } else { 0 }), "{mode:o}: {}", signed.err);
        assert_eq!(signed.err.contains("`chmod 600 a`"), refused, "{}", signed.err);
    }
    // Of `run`, it is the first complaint, whatever else is wrong.
    for (key, part) in [("gone", "key gone: does not exist"), ("a.pub", "key a.pub: "), (".", "key .: ")] {
        let done = world.klpfarm(&["run", "no-such-pipeline", "--patch", "no.ko", "--sign", key]);
        assert!(done.code == Some(2) && done.err.starts_with(&format!("klpfarm: {part}")), "{}", done.err);
    }
}

#[test]
fn a_signed_run_verifies_as_a_whole() {
    let world = World::new();
    world.run();
    let unsigned = world.klpfarm(&["verify", "run", "--key", "a.pub"]);
    assert!(
        unsigned.code == Some(2) && unsigned.err.contains("`klpfarm sign RUN --key KEY`"),
        "{}",
        unsigned.err
    );
    assert_eq!(world.klpfarm(&["sign", "run", "--key", "a"]).code, Some(0));
    let (code, report) = world.verify(&["a.pub"]);
    assert_eq!((code, &report["good"]), (Some(0), &true.into()), "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().all(|c| c["result"] == "good"), "{report:#}");
    let what: Vec<&str> = checks.iter().filter_map(|c| c["what"].as_str()).skip(1).collect();
    let all = [
        "statement",
        "verdict.json",
        "plan.json",
        "journal.jsonl",
        "patches/x.ko",
        "plan and journal agree",
        "judged again from plan and journal",
    ];
    assert_eq!(what, all);
    assert_eq!(report["statement"]["verdict"], "inconclusive");
    // For people, and by the file's name.
    let said = world.klpfarm(&["verify", "run/verdict.json", "--key", "a.pub"]);
    assert!(
        said.code == Some(0) && said.out.contains("\nsigned: inconclusive for tier proposed on i"),
        "{}",
        said.out
    );
}

#[test]
fn each_changed_file_is_named() {
    let world = World::new();
    world.run();
    world.klpfarm(&["sign", "run", "--key", "a"]);
    for name in ["verdict.json", "plan.json", "journal.jsonl", "patches/x.ko"] {
        let file = format!("run/{name}");
        let whole = world.read(&file);
        let mut changed = whole.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        world.write(&file, &changed);
        assert_eq!(world.result(name), (Some(1), "wrong".into()));
        let said = world.klpfarm(&["verify", "run", "--key", "a.pub"]);
        assert!(said.out.contains(&format!("WRONG    {name}: ")), "{}", said.out);
        assert!(said.out.ends_with("DO NOT TRUST this verdict\n"), "{}", said.out);
        world.write(&file, &whole);
        assert_eq!(world.result(name), (Some(0), "good".into()));
        // What is not there is said, and is no lie.
        if name != "verdict.json" {
            std::fs::remove_file(world.path(&file)).unwrap();
            assert_eq!(world.result(name), (Some(0), "absent".into()));
            world.write(&file, &whole);
        }
    }
}

#[test]
fn a_changed_envelope_is_not_believed() {
    let world = World::new();
    world.run();
    world.klpfarm(&["sign", "run", "--key", "a"]);
    let file = "run/verdict.dsse.json";
    let envelope: Value = serde_json::from_slice(&world.read(file)).unwrap();
    let lies = |change: &dyn Fn(&mut Value)| {
        let mut changed = envelope.clone();
        change(&mut changed);
        world.write(file, changed.to_string().as_bytes());
        let (code, report) = world.verify(&["a.pub"]);
        assert_eq!((code, &report["statement"]), (Some(1), &Value::Null), "{report:#}");
    };
    lies(&|e| e["payloadType"] = "application/json".into());
    lies(&|e| e["payload"] = "e30=".into());
    lies(&|e| e["payload"] = "?".into());
    lies(&|e| e["signatures"] = Value::Array(Vec::new()));
    lies(&|e| e["signatures"][0]["sig"] = "AAAA".into());
    lies(&|e| drop(e.as_object_mut().unwrap().remove("payload")));
    world.write(file, b"");
    assert_eq!(world.result("verdict.dsse.json"), (Some(1), "wrong".into()));
    // The key's name decides nothing.
    let mut renamed = envelope.clone();
    renamed["signatures"][0]["keyid"] = "someone".into();
    world.write(file, renamed.to_string().as_bytes());
    assert_eq!(world.verify(&["a.pub"]).0, Some(0));
}

#[test]
fn each_key_that_is_named_must_have_signed() {
    let world = World::new();
    world.run();
    world.klpfarm(&["sign", "run", "--key", "a"]);
    assert_eq!(world.verify(&["b.pub"]).0, Some(1));
    assert_eq!(world.verify(&["a.pub", "b.pub"]).0, Some(1));
    assert_eq!(world.klpfarm(&["sign", "run", "--key", "b"]).code, Some(0));
    for keys in [&["a.pub", "b.pub"][..], &["a.pub"], &["b.pub"]] {
        assert_eq!(world.verify(keys).0, Some(0), "{keys:?}");
    }
    let again = world.klpfarm(&["sign", "run", "--key", "b"]);
    assert!(again.code == Some(2) && again.err.contains("already signed with this key"), "{}", again.err);
    // A private key is not asked for, and says so.
    let private = world.klpfarm(&["verify", "run", "--key", "a"]);
    assert!(private.code == Some(2) && private.err.contains("is a private key"), "{}", private.err);
}

#[test]
fn only_what_plan_and_journal_say_is_signed() {
    let world = World::new();
    world.run();
    let verdict = String::from_utf8(world.read("run/verdict.json")).unwrap();
    world.write("run/verdict.json", verdict.replace("inconclusive", "qualified").as_bytes());
    let refused = world.klpfarm(&["sign", "run", "--key", "a"]);
    assert!(refused.code == Some(2) && refused.err.contains("Not signed"), "{}", refused.err);
    assert!(!world.path("run/verdict.dsse.json").exists());
    // A second signature is not put below what somebody else made up.
    world.write("run/verdict.json", verdict.as_bytes());
    world.klpfarm(&["sign", "run", "--key", "a"]);
    let journal = world.read("run/journal.jsonl");
    world.write("run/journal.jsonl", &[&journal[..], b"{"].concat());
    let refused = world.klpfarm(&["sign", "run", "--key", "b"]);
    assert!(refused.code == Some(2) && refused.err.contains("another journal.jsonl"), "{}", refused.err);
    std::fs::remove_file(world.path("run/verdict.json")).unwrap();
    let refused = world.klpfarm(&["sign", "run", "--key", "b"]);
    assert!(refused.code == Some(2) && refused.err.contains("has not ended"), "{}", refused.err);
}

/// A plan that was edited after the run, with a verdict to match: whoever is asked says that it is not what was run.
#[test]
fn a_run_whose_plan_was_changed_is_refused_everywhere() {
    let world = World::new();
    world.run();
    let before = Run::open(&world.path("run")).unwrap().plan.hash();
    let mut plan: Value = serde_json::from_slice(&world.read("run/plan.json")).unwrap();
    let (takes, controls) = (plan["needed"].clone(), plan["controls"].clone());
    (plan["tier"], plan["needed"]) = ("stable".into(), 70.into());
    world.write("run/plan.json", plan.to_string().as_bytes());
    let after = Run::open(&world.path("run")).unwrap().plan.hash();
    world.judged_regardless();
    let said = format!(
        "klpfarm: run: plan.json and journal.jsonl do not agree:\n\
         klpfarm:   plan.json: needed: is 70, and its rule (at most 70.0 % failures at 60 % confidence) takes {takes} clean loaded trials\n\
         klpfarm:   plan.json: controls: is {controls}, and the pipeline and the rule take 7\n\
         klpfarm:   journal event 1: the run began with plan {before}, and plan.json is {after}: it was changed since\n"
    );
    for args in [&["judge", "run"][..], &["sign", "run", "--key", "a"], &["judge", "run", "--json"]] {
        let refused = world.klpfarm(args);
        assert_eq!((refused.code, refused.out.as_str(), &refused.err), (Some(2), "", &said), "{args:?}");
    }
    let resumed = world.klpfarm(&["resume", "run"]);
    let own_path = world.path("run").canonicalize().unwrap().display().to_string();
    assert_eq!((resumed.code, resumed.err), (Some(2), said.replace(": run: ", &format!(": {own_path}: "))));
    assert!(!world.path("run/run.lock").exists() && !world.path("run/verdict.dsse.json").exists());
    // What an earlier klpfarm signed is named for what it is.
    world.signed_regardless();
    let (code, report) = world.verify(&["a.pub"]);
    assert_eq!((code, &report["good"]), (Some(1), &false.into()));
    let checks = report["checks"].as_array().unwrap();
    let wrong: Vec<&Value> = checks.iter().filter(|c| c["result"] != "good").collect();
    assert_eq!((wrong.len(), &wrong[0]["what"]), (1, &"plan and journal agree".into()), "{report:#}");
    let detail = wrong[0]["detail"].as_str().unwrap();
    assert!(detail.starts_with("plan.json: needed: is 70") && detail.contains(&before), "{detail}");
    let said = world.klpfarm(&["verify", "run", "--key", "a.pub"]);
    assert!(said.out.contains("\nWRONG    plan and journal agree: plan.json: needed: is 70"), "{}", said.out);
}

/// Plan, journal and hash may be edited together: what they say of each other still has to fit.
#[test]
fn a_journal_that_contradicts_the_plan_is_refused_everywhere() {
    let world = World::new();
    world.run();
    let journal = String::from_utf8(world.read("run/journal.jsonl")).unwrap();
    let trial = r#""trial":1,"arm":"control","phase":"boot""#;
    let more = format!(
        "{{\"seq\":2,\"at_ms\":1,{trial},\"event\":\"trial-started\"}}\n\
         {{\"seq\":3,\"at_ms\":2,\"event\":\"run-resumed\",\"time\":\"\",\"qemu\":\"\",\"void\":[1,9]}}\n"
    );
    world.write("run/journal.jsonl", (journal + &more).as_bytes());
    world.judged_regardless();
    world.signed_regardless();
    for args in [&["judge", "run"][..], &["sign", "run", "--key", "b"], &["resume", "run"]] {
        let refused = world.klpfarm(args);
        assert_eq!(refused.code, Some(2), "{args:?}: {}", refused.err);
        for part in [
            "klpfarm:   journal event 2: says that trial 1 is control, and in the plan it is loaded\n",
            "klpfarm:   journal event 3: `void` names trial 9, which had not begun\n",
        ] {
            assert!(refused.err.contains(part), "{args:?}: {}", refused.err);
        }
    }
    assert_eq!(world.result("plan and journal agree"), (Some(1), "wrong".into()));
}

#[test]
fn what_is_no_plain_file_is_refused_and_not_waited_for() {
    let world = World::new();
    world.run();
    world.klpfarm(&["sign", "run", "--key", "a"]);
    for name in ["run/patches/x.ko", "run/verdict.dsse.json", "run/verdict.json", "a.pub"] {
        let kept = world.read(name);
        std::fs::remove_file(world.path(name)).unwrap();
        let made = Command::new("mkfifo").arg(world.path(name)).status().unwrap();
        assert!(made.success());
        let refused = world.klpfarm(&["verify", "run", "--key", "a.pub"]);
        assert!(refused.code == Some(2) && refused.err.contains("not a file"), "{name}: {}", refused.err);
        std::fs::remove_file(world.path(name)).unwrap();
        world.write(name, &kept);
    }
}

/// The name stands in shell lines that are run in the guest.
#[test]
fn a_module_whose_name_is_no_plain_word_is_refused() {
    let world = World::new();
    for name in ["x;reboot", "$(reboot)", "x y", "../x", "x\n"] {
        world.write("bad.ko", &livepatch(name));
        let refused = world.klpfarm(&["plan", "gate", "--patch", "bad.ko"]);
        assert!(
            refused.code == Some(2) && refused.err.contains("not a valid module name"),
            "{}",
            refused.err
        );
    }
}

#[test]
fn a_strangers_run_folder_is_text_to_the_terminal() {
    let world = World::new();
    let name = "i\u{1b}]0;title\u{7}\u{9b}31m".to_owned();
    world.run_of(&world.plan(ImageFacts { name, hash: "11".into(), release: None }));
    world.klpfarm(&["sign", "run", "--key", "a"]);
    for args in [&["judge", "run"][..], &["verify", "run", "--key", "a.pub"]] {
        let said = world.klpfarm(args);
        assert!(said.out.contains("i\u{fffd}]0;title\u{fffd}"), "{args:?}: {}", said.out);
        assert!(said.out.chars().all(|c| c == '\n' || !c.is_control()), "{args:?}: {:?}", said.out);
    }
}

/// A ready-made guest that is never booted, and a verdict of the tier below that says yes.
fn with_prior(world: &World) -> Verdict {
    world.write("disk.img", b"disk");
    world.write("ssh_key", b"key");
    world.write(
        "image.yaml",
        b"name: i\ndescription: d\nprebuilt:\n  disk: {path: disk.img, format: raw}\n  ssh: {key: ssh_key}\n",
    );
    let built = world.klpfarm(&["image", "build", "./image.yaml"]);
    assert_eq!(built.code, Some(0), "{}", built.err);
    let shown: Value = serde_json::from_str(&world.klpfarm(&["image", "show", "i", "--json"]).out).unwrap();
    let hash = shown["manifest"]["recipe_hash"].as_str().or(shown["hash"].as_str()).unwrap().to_owned();
    let plan = world.plan(ImageFacts { name: "i".into(), hash, release: None });
    let mut verdict = Verdict { verdict: Outcome::Qualified, ..klpfarm_model::judge(&plan, &[]) };
    verdict.arms.values_mut().for_each(|n| n.clean = 4);
    let bound = &mut verdict.bounds[0];
    (bound.clean, bound.failure_rate) = (4, klpfarm_model::upper_bound(0, 4, bound.confidence));
    world.write("v.json", &serde_json::to_vec(&verdict).unwrap());
    verdict
}

/// Sign `v.json` as the run that made it would have.
fn sign_prior(world: &World, verdict: &Verdict, key: &str) {
    let none = || sha256(b"");
    let digests = Digests { verdict: sha256(&world.read("v.json")), journal: none(), plan: none() };
    let key = PrivateKey::from_pem(&String::from_utf8(world.read(key)).unwrap()).unwrap();
    let payload = Statement::new(verdict, digests, "2026-11-22T01:02:03Z".into()).to_json();
    world.write("v.dsse.json", Envelope::sign(PAYLOAD_TYPE, &payload, &key).to_json().as_bytes());
}

/// `klpfarm plan` for the tier above; nothing if the prior verdict counts (what comes after it takes QEMU).
fn refusal(world: &World, more: &[&str]) -> Option<String> {
    let plan =
        ["plan", "p.yaml", "--patch", "x.ko", "--tier", "updates", "--accel", "tcg", "--prior", "v.json"];
    let done = world.klpfarm(&[&plan[..], more].concat());
    (done.code == Some(2)).then_some(done.err)
}

#[test]
fn a_tier_may_ask_for_a_signed_verdict() {
    let world = World::new();
    let verdict = with_prior(&world);
    assert_eq!(refusal(&world, &[]), None, "nobody asked for a signature");
    let signed = TIERS.replace("after: proposed", "after: proposed, signed_by: [a.pub, b.pub]");
    world.write("tiers.yaml", signed.as_bytes());
    let missing = refusal(&world, &[]).unwrap();
    assert!(missing.contains("v.dsse.json does not exist") && missing.contains("klpfarm sign"), "{missing}");
    sign_prior(&world, &verdict, "b");
    assert_eq!(refusal(&world, &[]), None, "one of the keys is enough");
    world.write("tiers.yaml", signed.replace(", b.pub", "").as_bytes());
    let wrong = refusal(&world, &[]).unwrap();
    assert!(
        wrong.contains("no valid signature of any key that tiers.yaml names for updates (signed_by: a.pub)"),
        "{wrong}"
    );
    // A good signature of another verdict.
    sign_prior(&world, &verdict, "a");
    let other = String::from_utf8(world.read("v.json")).unwrap().replacen(':', ": ", 1);
    world.write("v.json", other.as_bytes());
    let other = refusal(&world, &[]).unwrap();
    assert!(
        other.contains("is not what was signed in v.dsse.json: it is for another verdict.json"),
        "{other}"
    );
    // Keys are looked at with the pipeline that names them.
    world.write("tiers.yaml", signed.replace("b.pub", "gone.pub").as_bytes());
    let check = world.klpfarm(&["check", "p.yaml"]);
    assert!(
        check.code == Some(2) && check.err.contains("updates.signed_by: key gone.pub: does not exist"),
        "{}",
        check.err
    );
}

#[test]
fn a_signature_can_be_asked_for_on_the_command_line() {
    let world = World::new();
    let verdict = with_prior(&world);
    sign_prior(&world, &verdict, "a");
    assert_eq!(refusal(&world, &["--prior-key", "a.pub"]), None);
    let both = refusal(&world, &["--prior-key", "a.pub", "--prior-key", "b.pub"]).unwrap();
    assert!(both.contains("no valid signature of b.pub: have the owner of the key sign it"), "{both}");
    let run = world.klpfarm(&["plan", "p.yaml", "--patch", "x.ko", "--prior-key", "a.pub"]);
    assert!(run.code == Some(2) && run.err.contains("--prior"), "{}", run.err);
}

#[test]
fn a_prior_verdict_by_a_weaker_rule_does_not_count() {
    let world = World::new();
    with_prior(&world);
    assert_eq!(refusal(&world, &[]), None);
    // Since it was reached, more is asked of the tier below.
    let stricter = TIERS.replacen(
        "max_failure_rate: 0.7, confidence: 0.6",
        "max_failure_rate: 0.2, confidence: 0.95",
        1,
    );
    world.write("tiers.yaml", stricter.as_bytes());
    assert_eq!(
        refusal(&world, &[]).unwrap(),
        "klpfarm: the verdict given by --prior does not count: its loaded trials of x show a failure rate of at most 20.4729 % at 60 % confidence, but proposed now requires at most 20 % at 95 % confidence\n"
    );
}

/// openssl makes keys that we read, reads ours, and agrees with what was signed.
#[test]
fn openssl_and_klpfarm_understand_each_other() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: openssl is not installed");
        return;
    }
    let world = World::new();
    world.run();
    let openssl = |args: &[&str]| {
        let done = done(Command::new("openssl").args(args).current_dir(world.0.path()));
        assert_eq!(done.code, Some(0), "openssl {args:?}: {}", done.err);
        done.out
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "o"]);
    openssl(&["pkey", "-in", "o", "-pubout", "-out", "o.pub"]);
    std::fs::set_permissions(world.path("o"), PermissionsExt::from_mode(0o600)).unwrap();
    let signed = world.klpfarm(&["sign", "run", "--key", "o"]);
    assert_eq!(signed.code, Some(0), "{}", signed.err);
    assert_eq!(world.verify(&["o.pub"]).0, Some(0));
    // Ours: the public key it derives is the one that we wrote.
    assert_eq!(openssl(&["pkey", "-in", "a", "-pubout"]).as_bytes(), world.read("a.pub"));
    // The key's id as the documentation says that it can be had.
    openssl(&["pkey", "-pubin", "-in", "o.pub", "-outform", "DER", "-out", "o.der"]);
    assert!(signed.out.contains(&sha256(&world.read("o.der"))), "{}", signed.out);
    // And the signature, over the bytes that the specification says.
    let envelope = Envelope::parse(&world.read("run/verdict.dsse.json")).unwrap();
    let payload = envelope.unverified().unwrap();
    world.write("pae", &klpfarm_attest::pae(&envelope.payload_type, &payload));
    world.write("sig.b64", format!("{}\n", envelope.signatures[0].sig).as_bytes());
    openssl(&["base64", "-d", "-A", "-in", "sig.b64", "-out", "sig"]);
    openssl(&["pkeyutl", "-verify", "-pubin", "-inkey", "o.pub", "-rawin", "-in", "pae", "-sigfile", "sig"]);
}
