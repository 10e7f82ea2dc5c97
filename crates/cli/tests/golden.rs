//! What the command line prints that needs no machine, compared with files in `tests/golden/`. `make bless` writes them anew.

use std::path::Path;
use std::process::{Command, Stdio};

use snapbox::{assert_data_eq, file};

/// What `klpfarm ARGS` prints in `dir`, and its exit code; paths of this machine are replaced.
fn printed(args: &[&str], dir: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_klpfarm"))
        .args(args)
        .current_dir(dir)
        .env("KLPFARM_HOME", dir.join("home"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let all = format!(
        "$ klpfarm {}\n{}{}exit code {}\n",
        args.join(" "),
        text(&output.stdout),
        text(&output.stderr),
        output.status.code().map_or_else(|| "none".to_owned(), |code| code.to_string())
    );
    all.replace(&*dir.to_string_lossy(), "DIR")
}

fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("klpfarm-test-").tempdir().unwrap()
}

/// `--help` of a command and of all commands below it.
fn help(path: &mut Vec<String>, dir: &Path, all: &mut String) {
    let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
    args.push("--help");
    let text = printed(&args, dir);
    let listed = text.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let names: Vec<String> = listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    all.push_str(&text);
    all.push('\n');
    for name in names {
        path.push(name);
        help(path, dir, all);
        path.pop();
    }
}

#[test]
fn help_of_every_command() {
    let dir = temporary();
    let mut all = String::new();
    help(&mut Vec::new(), dir.path(), &mut all);
    assert_data_eq!(all, file!["golden/help.txt"].raw());
}

#[test]
fn errors_name_file_line_field_and_what_to_do() {
    let dir = temporary();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "pipeline.yaml",
        "name: bad\nimage: debian-99\nworkloads:\n  - madvise-allocator\n  - nonsense\n  - ./missing.yaml\n",
    );
    write("typo.yaml", "name: typo\nimage: debian-12\nworkloads: [syscall-mix]\nsoak: 3s\n");
    write(
        "numbers.yaml",
        "name: numbers\nimage: debian-12\nworkloads: [syscall-mix]\nmachine: {cpus: 0, memory_mib: 16}\n\
         phases: {soak: 3 parsecs}\n",
    );
    write("workload.yaml", "name: w\nrun: {builtin: syscall-mix, args: {procesess: 2}}\n");
    write("args.yaml", "name: args\nimage: debian-12\nworkloads: [./workload.yaml]\n");
    write(
        "tiers.yaml",
        "proposed: {applications: {max_failure_rate: 2, confidence: 0.6}, exposure: {soak: 20s}, arms: [loaded]}\n",
    );
    write("tier.yaml", "name: t\nimage: debian-12\nworkloads: [syscall-mix]\ntiers: tiers.yaml\n");
    write("x.ko", "hello");
    write("known.yaml", "- title: x\n  reasn: y\n");
    let commands: &[&[&str]] = &[
        &["check", "pipeline.yaml"],
        &["check", "typo.yaml"],
        &["check", "numbers.yaml"],
        &["check", "args.yaml"],
        &["check", "tier.yaml"],
        &["check", "gone.yaml"],
        &["check", "gate"],
        &["plan", "gate", "--patch", "x.ko"],
        &["plan", "gate", "--patch", "gone.ko"],
        &["plan", "gate", "--patch", "."],
        &["run", "gate", "--patch", "x.ko", "--tier", "gold"],
        &["run"],
        &["frobnicate"],
        &["judge", "nowhere"],
        &["resume", "nowhere"],
        &["verify", "nowhere"],
        &["sign", "nowhere", "--key", "gone"],
        &["runs"],
        &["runs", "--since", "yesterday"],
        &["trend"],
        &["triage", "gone.log"],
        &["image", "show", "debian-99"],
        &["image", "build", "debian-99"],
        &["module", "build", "gone", "--image", "debian-12"],
        &["age", "debian-12", "--for", "long"],
        &["checkpoint", "show", "gone"],
        &["checkpoint", "rm", "gone"],
        &["key", "new", "nowhere/key"],
        &["gc", "--keep", "many"],
    ];
    let all: String = commands.iter().map(|args| printed(args, dir.path()) + "\n").collect();
    assert_data_eq!(all, file!["golden/errors.txt"].raw());
}
