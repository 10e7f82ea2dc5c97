//! The commands that build an image, as data: pure, the same for every suite, and what the tests compare.

use std::path::Path;

use crate::recipe::{BuildSpec, Recipe, Source};

/// In every image: an init system, a way in, and what builds modules with this suite's own compiler.
const BASE_PACKAGES: [&str; 9] = [
    "systemd-sysv",
    "udev",
    "kmod",
    "initramfs-tools",
    "openssh-server",
    "iproute2",
    "procps",
    "gcc",
    "make",
];

/// One command of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What it does, in a few words.
    pub title: String,
    /// The program's name, looked up in `PATH` and the system folders.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables besides the common ones.
    pub env: Vec<(&'static str, String)>,
    /// Whether it needs to be root, real or in a user namespace.
    pub as_root: bool,
}

impl Recipe {
    /// All commands that build this recipe's image in the folder `dir`, in order; none for a ready-made guest. The
    /// folder holds `guest/` (see the guest's files) before the first of them runs.
    pub fn commands(&self, dir: &Path) -> Vec<Command> {
        match &self.source {
            Source::Build(build) => {
                vec![user_key(dir), host_key(dir), root_file_system(build, dir), disk(build, dir)]
            }
            Source::Prebuilt(_) => Vec::new(),
        }
    }
}

fn at(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// The key the farm logs in with.
pub(crate) fn user_key(dir: &Path) -> Command {
    key_pair("SSH user key", &at(dir, "ssh_key"))
}

/// The key the guest proves itself with.
pub(crate) fn host_key(dir: &Path) -> Command {
    key_pair("SSH host key", &at(dir, "ssh_host_key"))
}

/// Ed25519: small, fast under emulation, and known to OpenSSH 7.2.
fn key_pair(title: &str, file: &str) -> Command {
    let args = ["-q", "-t", "ed25519", "-N", "", "-C", "klpfarm", "-f", file];
    Command {
        title: title.to_owned(),
        program: "ssh-keygen",
        args: args.map(String::from).into(),
        env: Vec::new(),
        as_root: false,
    }
}

fn root_file_system(build: &BuildSpec, dir: &Path) -> Command {
    let packages = BASE_PACKAGES
        .iter()
        .copied()
        .chain([build.kernel.image.as_str(), build.kernel.headers.as_str()])
        .chain(build.packages.iter().map(String::as_str));
    let mut args: Vec<String> = [
        // Root either way: an ordinary user is root in a namespace of ours, because mmdebstrap's own `unshare` mode
        // cannot reach a home folder that is closed to other users.
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--architectures=amd64",
    ]
    .map(String::from)
    .into();
    args.push(format!("--keyring={}", build.keyring.display()));
    args.push(format!("--include={}", packages.collect::<Vec<_>>().join(",")));
    // Documentation is a third of the files and nobody reads it in a guest.
    args.extend(["doc", "man", "info", "locale"].map(|d| format!("--dpkgopt=path-exclude=/usr/share/{d}/*")));
    args.push(format!("--essential-hook={}", at(dir, "guest/essential.sh")));
    args.push(format!("--customize-hook={}", at(dir, "guest/customize.sh")));
    args.extend([build.suite.clone(), at(dir, "rootfs")]);
    args.extend(build.source_lines());
    Command {
        title: format!("root file system of {} with kernel, headers and compiler", build.suite),
        program: "mmdebstrap",
        args,
        env: Vec::new(),
        as_root: true,
    }
}

fn disk(build: &BuildSpec, dir: &Path) -> Command {
    let args = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        "klpfarm-root",
        // Nothing is left for the guest to initialise later: that would be I/O in the middle of a test.
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        "-d",
        &at(dir, "rootfs"),
        &at(dir, "disk.img"),
        &format!("{}K", build.disk_bytes() >> 10),
    ]
    .map(String::from)
    .into();
    Command {
        title: "disk".to_owned(),
        program: "mkfs.ext4",
        args,
        env: vec![("MKE2FS_CONFIG", at(dir, "guest/mke2fs.conf"))],
        as_root: true,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Every shipped recipe's commands, compared with a file that a person has read.
    #[test]
    fn commands_of_the_shipped_recipes() {
        let mut text = String::new();
        for (name, _) in crate::shipped() {
            writeln!(text, "# {name}").unwrap();
            for command in crate::find(name, &[]).unwrap().commands(Path::new("DIR")) {
                let env: String = command.env.iter().map(|(k, v)| format!("{k}={v} ")).collect();
                let args: Vec<_> = command.args.iter().map(|a| if a.is_empty() { "''" } else { a }).collect();
                let root = if command.as_root { "(root) " } else { "" };
                writeln!(text, "{root}{env}{}\n    {}", command.program, args.join("\n    ")).unwrap();
            }
        }
        let golden = include_str!("../tests/golden/commands.txt");
        assert!(text == golden, "tests/golden/commands.txt should be:\n{text}");
    }
}
