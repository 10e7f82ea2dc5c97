//! Making an image from a package archive, in a folder that becomes the image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::check::Check;
use crate::manifest::{FileEntry, Manifest, Package, SCHEMA, Ssh};
use crate::recipe::{BuildSpec, DiskFormat};
use crate::sandbox::{self, Sandbox};
use crate::{Error, Progress, Recipe, Result, Sink, fsutil, guest, kernel};

/// Bytes a build takes at most: packages, the tree and the disk, each well below a GiB.
const NEEDED: u64 = 5 << 29;

/// What must hold before anything is started.
pub(crate) fn check_host(
    recipe: &Recipe,
    build: &BuildSpec,
    search_path: &std::ffi::OsStr,
    dir: &Path,
) -> Result<()> {
    let missing = sandbox::missing_for_build(search_path);
    if !missing.is_empty() {
        return Err(Error::MissingTools(missing));
    }
    if !build.keyring.is_file() {
        let text = recipe.text();
        let mut check = Check::new(&recipe.file, &text);
        let message = format!("no keyring {}; {}", build.keyring.display(), keyring_advice(&build.keyring));
        check.problem(&["build", "keyring"], message);
        return Err(Error::Recipe(check.problems));
    }
    fsutil::require_space(dir, NEEDED)
}

fn keyring_advice(keyring: &Path) -> String {
    let name = keyring.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("ubuntu-archive") {
        "install the package ubuntu-keyring (on Debian 12 it is in bookworm-backports)".to_owned()
    } else if name.starts_with("debian-archive") {
        "install the package debian-archive-keyring".to_owned()
    } else {
        "install the package that brings it, or correct the path".to_owned()
    }
}

/// Run the recipe's commands in `dir` and describe the result.
pub(crate) async fn make(
    recipe: &Recipe,
    build: &BuildSpec,
    dir: &Path,
    sandbox: &Sandbox,
    lock: &File,
    progress: Sink<'_>,
) -> Result<Manifest> {
    let commands = recipe.commands(dir);
    let total = commands.len() + 1;
    let log = dir.join("build.log");
    for (index, command) in commands.iter().enumerate() {
        progress(Progress::Step { number: index + 1, total, title: command.title.clone() });
        if command.program == "mmdebstrap" {
            guest::write(recipe, dir)?;
        }
        sandbox.run(command, Some(lock), Some(&log), progress).await?;
    }
    progress(Progress::Step { number: total, total, title: "kernel, initrd and manifest".to_owned() });
    let release = release(&dir.join("rootfs"))?;
    let kernel = take(dir, &format!("vmlinuz-{release}"), "vmlinuz").await?;
    let initrd = take(dir, &format!("initrd.img-{release}"), "initrd.img").await?;
    fsutil::sync(&dir.join("disk.img"))?;
    // The hooks and the overlay have done their work; the overlay holds a second copy of the host key.
    fs::remove_dir_all(dir.join("guest")).map_err(Error::io("remove", dir))?;
    Ok(Manifest {
        schema: SCHEMA,
        name: recipe.name.clone(),
        id: String::new(),
        description: recipe.description.clone(),
        recipe_hash: String::new(),
        headers: Some(headers(&release, dir)?),
        release: Some(release),
        disk: FileEntry { path: "disk.img".into(), sha256: None, stamp: None },
        disk_format: DiskFormat::Raw,
        kernel: Some(kernel),
        initrd: Some(initrd),
        // The guest's network rule names eth0.
        cmdline: "root=/dev/vda rw fsck.mode=skip net.ifnames=0".to_owned(),
        seed: None,
        rootfs: Some("rootfs".into()),
        ssh: Ssh {
            user: "root".into(),
            key: "ssh_key".into(),
            host_key: Some(public_key(&dir.join("ssh_host_key.pub"))?),
        },
        sources: build.source_lines(),
        packages: packages(&dir.join("rootfs/var/lib/dpkg/status"))?,
        created: jiff::Timestamp::now().to_string(),
        tools: tool_versions(sandbox).await,
    })
}

/// The kernel's release: the one folder of modules that has a build tree.
fn release(rootfs: &Path) -> Result<String> {
    let dir = rootfs.join("lib/modules");
    let entries = fs::read_dir(&dir).map_err(Error::io("read", &dir))?;
    let mut releases: Vec<String> = entries
        .flatten()
        .filter(|entry| fs::symlink_metadata(entry.path().join("build")).is_ok())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    match (releases.pop(), releases.pop()) {
        (Some(release), None) => Ok(release),
        (None, _) => Err(Error::Unexpected(
            "the guest has no kernel with headers: `kernel.image` and `kernel.headers` of the recipe must name packages \
             of the same kernel version"
                .to_owned(),
        )),
        (Some(a), Some(b)) => Err(Error::Unexpected(format!(
            "the guest has two kernels, {a} and {b}: name one in the recipe's `kernel`, and none in `packages`"
        ))),
    }
}

/// Copy a file of the guest's `/boot` into the image.
async fn take(dir: &Path, from: &str, to: &str) -> Result<FileEntry> {
    let (source, target) = (dir.join("rootfs/boot").join(from), dir.join(to));
    fs::copy(&source, &target).map_err(Error::io("copy", &source))?;
    fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(Error::io("chmod", &target))?;
    fsutil::sync(&target)?;
    if to == "vmlinuz" {
        let named = kernel::release_of_bzimage(&target);
        if named.is_none_or(|named| !from.ends_with(&named)) {
            return Err(Error::Unexpected(format!(
                "{}: a kernel of another release than its name says",
                source.display()
            )));
        }
    }
    let sha256 = fsutil::sha256(&target, &mut |_| {}).await?;
    Ok(FileEntry { path: to.into(), sha256: Some(sha256), stamp: None })
}

/// Where the modules' `build` link leads, as a path below the image's folder. The link is absolute inside the guest or
/// relative to a folder that is itself behind links; all distributions put its goal in `/usr/src`.
fn headers(release: &str, dir: &Path) -> Result<PathBuf> {
    let link = dir.join("rootfs/lib/modules").join(release).join("build");
    let goal = fs::read_link(&link).map_err(Error::io("read", &link))?;
    let headers = Path::new("rootfs/usr/src").join(goal.file_name().unwrap_or_default());
    if dir.join(&headers).join("Makefile").exists() {
        return Ok(headers);
    }
    Err(Error::Unexpected(format!(
        "{}: leads to {}, which is not a kernel build tree",
        link.display(),
        goal.display()
    )))
}

/// Type and key of a public key file, without the comment.
pub(crate) fn public_key(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).map_err(Error::io("read", file))?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// The installed packages, from dpkg's database.
fn packages(status: &Path) -> Result<Vec<Package>> {
    let text = fs::read_to_string(status).map_err(Error::io("read", status))?;
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let installed = |p: &&str| field(p, "Status").is_some_and(|s| s.ends_with(" installed"));
    let package = |p: &str| Some(Package { name: field(p, "Package")?, version: field(p, "Version")? });
    let mut list: Vec<Package> = text.split("\n\n").filter(installed).filter_map(package).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

/// First lines of the tools' own version texts.
async fn tool_versions(sandbox: &Sandbox) -> Vec<String> {
    let mut versions = vec![format!("klpfarm {}", env!("CARGO_PKG_VERSION"))];
    for (program, option) in [("mmdebstrap", "--version"), ("mkfs.ext4", "-V")] {
        if let Ok(output) = sandbox.command(program, false).arg(option).output().await {
            let text = [output.stdout, output.stderr].concat();
            versions.extend(String::from_utf8_lossy(&text).lines().next().map(str::to_owned));
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_the_installed_ones() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("status");
        let text = "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.2\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 3\n\n\
                    Package: bash\nStatus: install ok installed\nVersion: 5\nDescription: shell\n Version: none\n";
        fs::write(&status, text).unwrap();
        let list = packages(&status).unwrap();
        let list: Vec<_> = list.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        assert_eq!(list, [("bash", "5"), ("zlib1g", "1:1.2")]);
    }

    #[test]
    fn exactly_one_kernel_with_headers() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("lib/modules");
        fs::create_dir_all(modules.join("6.1.0-1")).unwrap();
        assert!(release(dir.path()).unwrap_err().to_string().contains("no kernel with headers"));
        std::os::unix::fs::symlink("/usr/src/x", modules.join("6.1.0-1/build")).unwrap();
        assert_eq!(release(dir.path()).unwrap(), "6.1.0-1");
        fs::create_dir_all(modules.join("6.1.0-2")).unwrap();
        std::os::unix::fs::symlink("/usr/src/x", modules.join("6.1.0-2/build")).unwrap();
        assert!(release(dir.path()).unwrap_err().to_string().contains("two kernels"));
    }
}
