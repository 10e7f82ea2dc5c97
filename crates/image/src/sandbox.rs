//! Running tools, as root where they need it.
//!
//! Root uses private mount and process namespaces where the system lets it, an ordinary user a user namespace on top, in
//! which the user's own id is root and the subordinate ids of `/etc/subuid` are all others. Mounts made inside vanish
//! with the last process inside, and killing the outermost process kills them all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::{Error, MissingTool, Progress, Result, Sink, fsutil};

/// Lines of a failed tool's output that an error repeats.
const TAIL: usize = 25;

/// Where tools are looked up, and how they become root.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    way: Way,
    search_path: OsString,
}

/// How to be root here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Root, with private namespaces.
    RootPrivate,
    /// As we are: root where namespaces are forbidden, as in a plain container, or anybody for work that needs no root.
    Plain,
    /// An ordinary user in a user namespace.
    User,
}

/// Every tool that some build needs.
const TOOLS: [MissingTool; 5] = [
    MissingTool { program: "ssh-keygen", package: "openssh-client" },
    MissingTool { program: "mmdebstrap", package: "mmdebstrap" },
    MissingTool { program: "mkfs.ext4", package: "e2fsprogs" },
    MissingTool { program: "unshare", package: "util-linux" },
    // Last, because root does without.
    MissingTool { program: "newuidmap", package: "uidmap" },
];

/// Tools that building from an archive needs and that are not on this host; for `klpfarm doctor` too.
pub fn missing_tools() -> Vec<MissingTool> {
    missing_for_build(&fsutil::search_path(None))
}

/// Whether this user may build on this host, once no tool is missing.
///
/// # Errors
/// [`Error::Unprivileged`] with what to do: an ordinary user needs ids of their own and user namespaces.
pub async fn may_build() -> Result<()> {
    Sandbox::detect(fsutil::search_path(None)).await.map(drop)
}

pub(crate) fn missing_for_build(search_path: &OsStr) -> Vec<MissingTool> {
    let needed = if is_root() { &TOOLS[..TOOLS.len() - 1] } else { &TOOLS[..] };
    missing(needed, search_path)
}

/// A ready-made guest needs SSH keys at most.
pub(crate) fn missing_for_keys(search_path: &OsStr) -> Vec<MissingTool> {
    missing(&TOOLS[..1], search_path)
}

fn missing(tools: &[MissingTool], search_path: &OsStr) -> Vec<MissingTool> {
    tools.iter().filter(|tool| fsutil::find_program(tool.program, search_path).is_none()).cloned().collect()
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

impl Sandbox {
    /// Find out what works here, by trying.
    ///
    /// # Errors
    /// [`Error::Unprivileged`] for an ordinary user without user namespaces or subordinate ids.
    pub(crate) async fn detect(search_path: OsString) -> Result<Self> {
        let way = if is_root() { Way::RootPrivate } else { Way::User };
        let sandbox = Self { way, search_path };
        let reason = match sandbox.command("true", true).stdin(Stdio::null()).output().await {
            Ok(output) if output.status.success() => return Ok(sandbox),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if is_root() {
            return Ok(Self { way: Way::Plain, ..sandbox });
        }
        Err(Error::Unprivileged(format!(
            "`unshare --map-root-user --map-auto` says: {reason}; check that the package uidmap is installed, that \
             /etc/subuid and /etc/subgid give you a range (`usermod --add-subuids 100000-165535 --add-subgids \
             100000-165535 USER`) and that user namespaces are allowed; or build as root"
        )))
    }

    /// For work that touches our own files only.
    pub(crate) fn plain(search_path: OsString) -> Self {
        Self { way: Way::Plain, search_path }
    }

    pub(crate) fn search_path(&self) -> &OsStr {
        &self.search_path
    }

    /// Whether mounts made by a command of ours vanish with it.
    pub(crate) fn has_private_mounts(&self) -> bool {
        self.way != Way::Plain
    }

    /// A command, to be completed with arguments. Its environment is a clean one: a user's `MAKEFLAGS`, `GREP_OPTIONS`
    /// or locale must not end up in an image. Dropping it kills it.
    pub(crate) fn command(&self, program: &str, as_root: bool) -> tokio::process::Command {
        let wrapper: &[&str] = match self.way {
            _ if !as_root => &[],
            Way::Plain => &[],
            Way::RootPrivate => &["--mount", "--pid", "--fork", "--kill-child", "--"],
            Way::User => {
                &["--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child", "--"]
            }
        };
        let mut command = match wrapper {
            [] => tokio::process::Command::new(program),
            wrapper => {
                let mut command = tokio::process::Command::new("unshare");
                command.args(wrapper).arg(program);
                command
            }
        };
        command.env_clear().env("PATH", &self.search_path).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        for name in ["http_proxy", "https_proxy", "no_proxy", "TMPDIR", "SOURCE_DATE_EPOCH"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        // A process group of its own: Ctrl-C on the terminal is for us; we then end the tool.
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// Run to the end; every line goes to `progress` and, where given, to `log`. `lock` stays locked as long as any
    /// process of the tool lives, also when this program is killed.
    ///
    /// # Errors
    /// [`Error::Tool`] with the last lines when it fails.
    pub(crate) async fn run(
        &self,
        command: &crate::Command,
        lock: Option<&File>,
        log: Option<&Path>,
        progress: Sink<'_>,
    ) -> Result<()> {
        let mut process = self.command(command.program, command.as_root);
        process.args(&command.args).envs(command.env.iter().map(|(k, v)| (k, v)));
        let lines = capture(process, command.program, lock, log, progress).await?;
        match lines {
            Ok(_) => Ok(()),
            Err((status, tail)) => Err(Error::Tool {
                title: command.title.clone(),
                program: command.program.to_owned(),
                status,
                hint: hint(&tail),
                tail: tail[tail.len().saturating_sub(TAIL)..].to_vec(),
            }),
        }
    }

    /// Remove a tree that may hold files of other (subordinate) users.
    pub(crate) async fn remove_tree(&self, path: &Path) -> Result<()> {
        if std::fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let command = crate::Command {
            title: format!("removing {}", path.display()),
            program: "rm",
            args: vec!["-rf".into(), "--one-file-system".into(), "--".into(), path.display().to_string()],
            env: Vec::new(),
            as_root: true,
        };
        self.run(&command, None, None, &mut |_| {}).await
    }
}

/// Run `process` with both of its outputs in one stream, as lines: `Ok(lines)`, or `Err((status, lines))`.
pub(crate) async fn capture(
    mut process: tokio::process::Command,
    program: &str,
    lock: Option<&File>,
    log: Option<&Path>,
    progress: Sink<'_>,
) -> Result<Result<Vec<String>, (String, Vec<String>)>> {
    let reader = connect(&mut process, lock).map_err(Error::io("start", Path::new(program)))?;
    let mut child = process.spawn().map_err(Error::io("start", Path::new(program)))?;
    // The command still holds the pipe's writing ends; without this the lines would never end.
    drop(process);
    let mut log = match log {
        Some(path) => Some(
            tokio::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .await
                .map_err(Error::io("create", path))?,
        ),
        None => None,
    };
    let mut lines = Vec::new();
    let mut reader = BufReader::new(reader);
    let mut raw = Vec::new();
    while reader
        .read_until(b'\n', &mut raw)
        .await
        .map_err(Error::io("read the output of", Path::new(program)))?
        > 0
    {
        if let Some(log) = &mut log {
            // The log is a convenience; a full disk shows itself in the tool's own error.
            let _ = log.write_all(&raw).await;
        }
        let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
        raw.clear();
        progress(Progress::Line(line.clone()));
        lines.push(line);
    }
    let status = child.wait().await.map_err(Error::io("wait for", Path::new(program)))?;
    Ok(if status.success() { Ok(lines) } else { Err((status.to_string(), lines)) })
}

/// Give `process` its streams; returns what it will write to both outputs.
fn connect(
    process: &mut tokio::process::Command,
    lock: Option<&File>,
) -> std::io::Result<tokio::net::unix::pipe::Receiver> {
    let (reader, writer) = std::io::pipe()?;
    // The (empty) lock file as standard input: the lock belongs to the open file, so the tool's processes share it.
    process.stdin(match lock {
        Some(lock) => lock.try_clone()?.into(),
        None => Stdio::null(),
    });
    process.stdout(writer.try_clone()?).stderr(writer);
    tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())
}

/// Advice for failures that have a common cause: text in the output, what to do.
const ADVICE: [(&str, &str); 8] = [
    ("NO_PUBKEY", "the keyring does not hold this archive's key: check `keyring` in the recipe"),
    ("Could not resolve", "no name resolution: check the network, or set `http_proxy`"),
    ("Temporary failure resolving", "no name resolution: check the network, or set `http_proxy`"),
    ("Could not connect", "the archive does not answer: check `mirror` in the recipe and the network"),
    (
        "Unable to locate package",
        "the archive has no such package: check `packages`, `kernel` and `components`",
    ),
    (
        "does not have a Release file",
        "the archive has no such suite (moved to where old ones are kept?): check `mirror`",
    ),
    (
        "No space left on device",
        "the disk is full: free some space or set KLPFARM_HOME to a larger file system",
    ),
    (
        "Unable to fetch some archives",
        "the archive's list names files that it does not have: try again later, or another mirror, or without `security`",
    ),
];

fn hint(lines: &[String]) -> Option<String> {
    let known = ADVICE.iter().find(|(text, _)| lines.iter().any(|line| line.contains(text)));
    known.map(|(_, advice)| (*advice).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_failures_get_advice_and_others_none() {
        let apt = "E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?";
        assert!(hint(&["I: x".into(), apt.into()]).unwrap().contains("another mirror"));
        assert_eq!(hint(&["E: something else".into()]), None);
    }
}
