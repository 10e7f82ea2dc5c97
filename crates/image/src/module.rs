//! Building a kernel module for an image, with the image's own compiler and headers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sandbox::{self, Sandbox};
use crate::{Error, Image, Result, fsutil, store};

/// Name of the folders, in the tree's `/tmp`, in which modules are built.
const PREFIX: &str = "klpfarm-module-";

/// Run inside the namespaces as root: `$1` is the tree, `$2` the private mounts flag, the rest the command. A tree made by
/// an ordinary user has no device nodes, and make and its shell need `/dev/null`.
const ENTER: &str = r#"root=$1 private=$2; shift 2
[ -c "$root/dev/null" ] || [ "$private" = no ] || mount --rbind /dev "$root/dev"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root "$@""#;

impl Image {
    /// Build the one module in `source_dir` (a `Makefile` or `Kbuild`, or just one C file) for this image's kernel, and
    /// copy the `.ko` to `out_dir`; returns its path. The sources are copied first: neither they nor the image change,
    /// and several builds may run at a time.
    ///
    /// # Errors
    /// [`Error::Module`] with the compiler's output; [`Error::NoHeaders`] for an image without a kernel build tree.
    pub async fn build_module(&self, source_dir: &Path, out_dir: &Path) -> Result<PathBuf> {
        let release = self.release().unwrap_or("unknown").to_owned();
        let fail = |output: String| Error::Module {
            source_dir: source_dir.to_owned(),
            release: release.clone(),
            output,
        };
        if self.rootfs().is_none() && self.headers().is_none() {
            let reason = "it has no kernel build tree: add one to the recipe as `prebuilt.headers`";
            return Err(Error::NoHeaders { image: self.id().to_owned(), reason: reason.to_owned() });
        }
        let search_path = fsutil::search_path(None);
        let sandbox = match self.rootfs() {
            Some(_) => Sandbox::detect(search_path).await?,
            None => Sandbox::plain(search_path),
        };
        // Shared by all who build modules here; who gets it alone may sweep up after those who were killed.
        let lock = store::open_lock(&self.dir.join(".module-lock"))?;
        let workshop = match self.rootfs() {
            Some(rootfs) => rootfs.join("tmp"),
            None => std::env::temp_dir(),
        };
        if self.rootfs().is_some() && lock.try_lock().is_ok() {
            sweep(&workshop);
        }
        lock.lock_shared().map_err(Error::io("lock", &self.dir))?;
        let place = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&workshop)
            .map_err(Error::io("create", &workshop))?;
        fsutil::copy_sources(source_dir, place.path())?;
        ensure_makefile(source_dir, place.path())?;
        let process = match self.rootfs() {
            Some(rootfs) => in_tree(&sandbox, &rootfs, &release, place.path()),
            None => on_host(&sandbox, &self.headers().unwrap_or_default(), place.path()),
        };
        match sandbox::capture(process, "make", Some(&lock), None, &mut |_| {}).await? {
            Ok(lines) => match modules_in(place.path())?.as_slice() {
                [one] => deliver(one, out_dir),
                [] => Err(fail(format!("make built no .ko; it wrote:\n{}", lines.join("\n")))),
                _ => Err(fail("make built more than one .ko: a patch is one module".to_owned())),
            },
            Err((_, lines)) => {
                // The copy's path means nothing to whoever reads this.
                let inside = inside(self.rootfs().as_deref(), place.path()).display().to_string();
                Err(fail(lines.join("\n").replace(&inside, &source_dir.display().to_string())))
            }
        }
    }
}

/// The place's path as make sees it.
fn inside(rootfs: Option<&Path>, place: &Path) -> PathBuf {
    match rootfs.and_then(|rootfs| place.strip_prefix(rootfs).ok()) {
        Some(below) => Path::new("/").join(below),
        None => place.to_owned(),
    }
}

fn in_tree(sandbox: &Sandbox, rootfs: &Path, release: &str, place: &Path) -> tokio::process::Command {
    let inside = inside(Some(rootfs), place);
    let mut process = sandbox.command("sh", true);
    let private = if sandbox.has_private_mounts() { "yes" } else { "no" };
    process.args(["-euc", ENTER, "enter"]).arg(rootfs).arg(private);
    process.args(["make", "-s", "-C"]).arg(format!("/lib/modules/{release}/build"));
    process.arg(format!("M={}", inside.display())).arg("modules");
    process
}

fn on_host(sandbox: &Sandbox, headers: &Path, place: &Path) -> tokio::process::Command {
    let mut process = sandbox.command("make", false);
    process.arg("-s").arg("-C").arg(headers).arg(format!("M={}", place.display())).arg("modules");
    process
}

/// A folder with one C file and nothing else needs no makefile.
fn ensure_makefile(source_dir: &Path, place: &Path) -> Result<()> {
    if ["Kbuild", "Makefile", "makefile", "GNUmakefile"].iter().any(|name| place.join(name).exists()) {
        return Ok(());
    }
    let sources = with_extension(place, "c")?;
    let [source] = sources.as_slice() else {
        return Err(Error::Module {
            source_dir: source_dir.to_owned(),
            release: "any".to_owned(),
            output: format!("no Makefile or Kbuild, and {} C files instead of one", sources.len()),
        });
    };
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let kbuild = place.join("Kbuild");
    fs::write(&kbuild, format!("obj-m := {stem}.o\n")).map_err(Error::io("write", &kbuild))
}

fn modules_in(place: &Path) -> Result<Vec<PathBuf>> {
    with_extension(place, "ko")
}

fn with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect())
}

/// Copy beside the goal and rename: whoever reads the goal never sees half a module.
fn deliver(module: &Path, out_dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out_dir).map_err(Error::io("create", out_dir))?;
    let goal = out_dir.join(module.file_name().unwrap_or_default());
    let mut copy = tempfile::NamedTempFile::new_in(out_dir).map_err(Error::io("create", out_dir))?;
    let mut source = fs::File::open(module).map_err(Error::io("read", module))?;
    std::io::copy(&mut source, &mut copy).map_err(Error::io("write", &goal))?;
    fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(Error::io("chmod", &goal))?;
    copy.persist(&goal).map_err(|e| Error::io("write", &goal)(e.error))?;
    Ok(goal)
}

fn sweep(workshop: &Path) {
    for entry in fs::read_dir(workshop).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            // A leftover costs space, no more; what cannot be removed now can be later.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
