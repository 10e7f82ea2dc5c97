//! Putting a kernel's modules onto the disk of a ready-made guest, by `debugfs` of e2fsprogs: no mount, and so no root.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::sandbox::{self, Sandbox};
use crate::{Error, Result, fsutil};

/// The folder on the disk; `/lib` may be a link.
const PLACE: &str = "/lib/modules";

/// What `debugfs` says of each file that it has written.
const WRITTEN: &str = "Allocated inode:";

/// Copy the modules in `modules`, a folder `lib/modules/RELEASE` as `make modules_install` and `depmod` leave it, to `/lib/modules/RELEASE` on
/// `disk`, a file with an ext file system and no partitions. Links (`build`, `source`) are left out. Returns the number of files.
///
/// # Errors
/// [`Error::Unexpected`] with what is wrong with the folder or the disk, of which nothing is written then, except where the disk has too little
/// room: then it is of no use any more.
pub async fn add_modules(disk: &Path, modules: &Path) -> Result<usize> {
    let search_path = fsutil::search_path(None);
    let sandbox = Sandbox::plain(search_path);
    let modules = fs::canonicalize(modules).map_err(Error::io("find", modules))?;
    let release = release(&modules)?;
    check_disk(disk)?;
    let mut tree = Tree::default();
    tree.add(&modules, Path::new(&release))?;
    if !run(&sandbox, disk, &format!("stat {PLACE}/{release}\n"))
        .await?
        .iter()
        .any(|l| l.contains("not found"))
    {
        return Err(Error::Unexpected(format!(
            "{}: it has {PLACE}/{release} already: begin with a fresh copy of the disk",
            disk.display()
        )));
    }
    let said = run(&sandbox, disk, &tree.script()?).await?;
    let written = said.iter().filter(|line| line.starts_with(WRITTEN)).count();
    // It repeats each command, and ends well whatever became of them.
    let usual = |line: &str| line.is_empty() || line.starts_with("debugfs") || line.starts_with(WRITTEN);
    let odd: Vec<&str> = said.iter().map(|line| line.trim()).filter(|line| !usual(line)).collect();
    if written != tree.files.len() || !odd.is_empty() {
        return Err(Error::Unexpected(format!(
            "{}: not all of {} files could be written, so that the disk is of no use any more: {}",
            disk.display(),
            tree.files.len(),
            odd.iter().take(5).copied().collect::<Vec<_>>().join("; ")
        )));
    }
    Ok(written)
}

/// The release that a folder of modules is of: its name.
fn release(modules: &Path) -> Result<String> {
    let name = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !modules.join("kernel").is_dir() {
        return Err(Error::Unexpected(format!(
            "{} is no folder of a kernel's modules: give DIR/lib/modules/RELEASE, as `make modules_install INSTALL_MOD_PATH=DIR` makes it",
            modules.display()
        )));
    }
    if !modules.join("modules.dep").is_file() {
        return Err(Error::Unexpected(format!(
            "{} has no modules.dep, without which modprobe finds none of them: run `depmod -b DIR {name}` (package kmod), DIR being what has lib/modules",
            modules.display()
        )));
    }
    Ok(name)
}

/// The superblock of ext2, 3 and 4 has its magic number at this place.
const MAGIC: (u64, [u8; 2]) = (1024 + 56, [0x53, 0xef]);

fn check_disk(disk: &Path) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(disk).map_err(Error::io("open", disk))?;
    let mut magic = [0; 2];
    let read = file.seek(SeekFrom::Start(MAGIC.0)).and_then(|_| file.read_exact(&mut magic));
    if read.is_err() || magic != MAGIC.1 {
        return Err(Error::Unexpected(format!(
            "{} holds no ext file system at its beginning: only a raw disk without partitions can be written to here, such as a copy of one of \
             klpfarm's own; boot another one and copy the modules over SSH",
            disk.display()
        )));
    }
    Ok(())
}

/// Folders, each before what is in it, and files, by their place below [`PLACE`].
#[derive(Debug, Default)]
struct Tree {
    folders: Vec<PathBuf>,
    files: Vec<(PathBuf, PathBuf)>,
}

impl Tree {
    fn add(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.folders.push(to.to_owned());
        let mut entries: Vec<_> = fs::read_dir(from).map_err(Error::io("read", from))?.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, place) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().map_err(Error::io("read", &path))?;
            if kind.is_dir() {
                self.add(&path, &place)?;
            } else if kind.is_file() {
                self.files.push((path, place));
            }
        }
        Ok(())
    }

    /// The commands for `debugfs`, which writes a file into the folder it stands in only.
    fn script(&self) -> Result<String> {
        let mut text = String::new();
        for folder in &self.folders {
            text.push_str(&format!("mkdir {}\n", word(&Path::new(PLACE).join(folder))?));
        }
        let mut at = None;
        for (from, to) in &self.files {
            let folder = to.parent();
            if folder != at {
                at = folder;
                text.push_str(&format!("cd {}\n", word(&Path::new(PLACE).join(folder.unwrap_or(to)))?));
            }
            let name = Path::new(to.file_name().unwrap_or_default());
            text.push_str(&format!("write {} {}\n", word(from)?, word(name)?));
        }
        Ok(text)
    }
}

/// A word of a command: in double quotes, which can hold neither themselves nor the end of a line.
fn word(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if !text.contains(['"', '\n']) => Ok(format!("\"{text}\"")),
        _ => Err(Error::Unexpected(format!("{}: debugfs can't take this name", path.display()))),
    }
}

async fn run(sandbox: &Sandbox, disk: &Path, commands: &str) -> Result<Vec<String>> {
    let mut script =
        tempfile::NamedTempFile::new().map_err(Error::io("create", Path::new("a temporary file")))?;
    script.write_all(commands.as_bytes()).map_err(Error::io("write", script.path()))?;
    let mut process = sandbox.command("debugfs", false);
    process.arg("-w").arg("-f").arg(script.path()).arg(disk);
    match sandbox::capture(process, "debugfs", None, None, &mut |_| {}).await? {
        Ok(lines) => Ok(lines),
        Err((status, lines)) => Err(Error::Unexpected(format!(
            "{}: debugfs ended with {status}: {}",
            disk.display(),
            lines.join("; ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(dir: &Path) -> PathBuf {
        let own = dir.join("lib/modules/4.4.220-mine");
        fs::create_dir_all(own.join("kernel/drivers/net")).unwrap();
        fs::write(own.join("modules.dep"), "kernel/drivers/net/dummy.ko:\n").unwrap();
        fs::write(own.join("kernel/drivers/net/dummy.ko"), vec![7; 5000]).unwrap();
        std::os::unix::fs::symlink("/src/linux", own.join("build")).unwrap();
        own
    }

    /// A small disk whose `/lib` is a link, as on Debian 12.
    fn disk(dir: &Path, kib: u64) -> PathBuf {
        let root = dir.join("root");
        fs::create_dir_all(root.join("usr/lib/modules")).unwrap();
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
        let disk = dir.join("disk.img");
        File::create(&disk).unwrap().set_len(kib << 10).unwrap();
        let made = Sandbox::plain(fsutil::search_path(None));
        let mut process = made.command("mkfs.ext4", false).into_std();
        assert!(process.args(["-q", "-d"]).arg(&root).arg(&disk).status().unwrap().success());
        disk
    }

    fn listed(disk: &Path, folder: &str) -> String {
        let mut process = Sandbox::plain(fsutil::search_path(None)).command("debugfs", false).into_std();
        let output = process.arg("-R").arg(format!("ls -l {folder}")).arg(disk).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[tokio::test]
    async fn modules_get_onto_a_disk_without_mounting_it() {
        let dir = tempfile::tempdir().unwrap();
        let (modules, disk) = (modules(dir.path()), disk(dir.path(), 4096));
        assert_eq!(add_modules(&disk, &modules).await.unwrap(), 2);
        let there = listed(&disk, "/usr/lib/modules/4.4.220-mine/kernel/drivers/net");
        assert!(
            there.lines().any(|l| l.contains(" 100644 ") && l.contains(" 5000 ") && l.ends_with("dummy.ko")),
            "{there}"
        );
        let there = listed(&disk, "/lib/modules/4.4.220-mine");
        assert!(there.contains("modules.dep") && !there.contains("build"), "{there}");
        let again = add_modules(&disk, &modules).await.unwrap_err().to_string();
        assert!(again.contains("begin with a fresh copy"), "{again}");
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (modules, disk) = (modules(dir.path()), disk(dir.path(), 1024));
        let error =
            async |disk: &Path, modules: &Path| add_modules(disk, modules).await.unwrap_err().to_string();
        let other = dir.path().join("other.img");
        fs::write(&other, vec![0; 4096]).unwrap();
        assert!(error(&other, &modules).await.contains("no ext file system"));
        assert!(error(&disk, dir.path()).await.contains("make modules_install"));
        fs::write(modules.join("kernel/large.ko"), vec![1; 2 << 20]).unwrap();
        assert!(error(&disk, &modules).await.contains("not all of 3 files"));
        fs::remove_file(modules.join("modules.dep")).unwrap();
        assert!(error(&disk, &modules).await.contains("depmod -b DIR 4.4.220-mine"));
    }
}
