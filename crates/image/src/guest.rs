//! The files a built guest gets, besides its packages.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Recipe, Result};

const MKE2FS_CONF: &str = include_str!("guest/mke2fs.conf");
const ESSENTIAL: &str = include_str!("guest/essential.sh");
const CUSTOMIZE: &str = include_str!("guest/customize.sh");

/// Files that are the same in every guest: path, mode, content.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/initramfs-tools/conf.d/klpfarm", 0o644, "MODULES=list\nCOMPRESS=gzip\n"),
    ("etc/initramfs-tools/hooks/klpfarm", 0o755, include_str!("guest/initramfs-hook")),
    ("etc/ssh/sshd_config", 0o644, include_str!("guest/sshd_config")),
    // No fsck (pass 0): a fork's disk was never unmounted, and its journal is replayed anyway.
    ("etc/fstab", 0o644, "/dev/vda / ext4 noatime 0 0\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 klpfarm\n::1 localhost\n"),
    // QEMU's user network answers names there.
    ("etc/resolv.conf", 0o644, "nameserver 10.0.2.3\n"),
    // A fixed address instead of a DHCP client: no daemon that wakes up by the clock, and seconds less of boot.
    ("etc/udev/rules.d/80-klpfarm-network.rules", 0o644, include_str!("guest/network.rules")),
    ("etc/modprobe.d/klpfarm.conf", 0o644, include_str!("guest/modprobe.conf")),
    // Persistent, so that a crash can be read afterwards; small, so that it is no load of its own. The console is the
    // kernel's: messages of the system manager would cut its reports in pieces.
    (
        "etc/systemd/journald.conf.d/klpfarm.conf",
        0o644,
        "[Journal]\nStorage=persistent\nSystemMaxUse=16M\nRuntimeMaxUse=8M\nForwardToConsole=no\n",
    ),
    (
        "etc/systemd/system.conf.d/klpfarm.conf",
        0o644,
        "[Manager]\nShowStatus=no\nLogLevel=notice\nDefaultTimeoutStopSec=20s\n",
    ),
    // The build has checked the configuration already; checking it at every boot loads sshd twice.
    ("etc/systemd/system/ssh.service.d/klpfarm.conf", 0o644, "[Service]\nExecStartPre=\n"),
];

/// Hash of everything here that ends up in an image: a new version of these files is a new image.
pub(crate) fn digest() -> String {
    let mut hash = Sha256::new();
    for (path, mode, content) in FILES {
        hash.update(format!("{path} {mode:o} {}\n{content}", content.len()));
    }
    for content in [MKE2FS_CONF, ESSENTIAL, CUSTOMIZE] {
        hash.update(format!("{}\n{content}", content.len()));
    }
    crate::fsutil::hex(&hash.finalize())
}

/// Write `dir/guest/`: the hooks and, under `overlay/`, the guest's files. The SSH keys must be in `dir` already.
pub(crate) fn write(recipe: &Recipe, dir: &Path) -> Result<()> {
    let guest = dir.join("guest");
    for (name, mode, content) in [
        ("mke2fs.conf", 0o644, MKE2FS_CONF),
        ("essential.sh", 0o755, ESSENTIAL),
        ("customize.sh", 0o755, CUSTOMIZE),
    ] {
        file(&guest.join(name), mode, content)?;
    }
    let overlay = guest.join("overlay");
    for (path, mode, content) in FILES {
        file(&overlay.join(path), *mode, content)?;
    }
    // One identity for all machines of an image: without one, the first boot would count as a new installation.
    let id = crate::fsutil::hex(&Sha256::digest(dir.as_os_str().as_encoded_bytes()))[..32].to_owned();
    file(&overlay.join("etc/machine-id"), 0o444, &format!("{id}\n"))?;
    file(&overlay.join("etc/hostname"), 0o644, &format!("{}\n", recipe.name.replace('.', "-")))?;
    for (from, to, mode) in [
        ("ssh_key.pub", "root/.ssh/authorized_keys", 0o600),
        ("ssh_host_key", "etc/ssh/ssh_host_ed25519_key", 0o600),
        ("ssh_host_key.pub", "etc/ssh/ssh_host_ed25519_key.pub", 0o644),
    ] {
        let source = dir.join(from);
        let content = fs::read_to_string(&source).map_err(Error::io("read", &source))?;
        file(&overlay.join(to), mode, &content)?;
    }
    Ok(())
}

/// Create a file with exactly this mode from the start: some of them are private keys.
fn file(path: &Path, mode: u32, content: &str) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(Error::io("create", parent))?;
    let mut options = fs::OpenOptions::new();
    let mut out =
        options.write(true).create_new(true).mode(mode).open(path).map_err(Error::io("create", path))?;
    std::io::Write::write_all(&mut out, content.as_bytes()).map_err(Error::io("write", path))?;
    // The umask may have taken bits away that the guest needs.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .map_err(Error::io("chmod", path))
}
