//! What the helpers (`reader`) find out for the farm besides plain files: the state of a livepatch, and how worn the machine is.

use crate::procfs::{first, meminfo, tasks_in_loadavg};
use klpfarm_stress::wire::Vitals;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the kernel lists livepatches.
const LIVEPATCHES: &str = "/sys/kernel/livepatch";
/// Where systemd keeps its journal.
const JOURNALS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
/// Most files and folders looked at for the journal's size, and how deep.
const MOST_ENTRIES: usize = 4096;
const DEEPEST: usize = 3;

/// True for what a module can be called, so that it cannot lead out of a folder.
pub(super) fn is_module_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
}

/// The lines of [`klpfarm_stress::wire::Ask::Livepatch`]; empty if the kernel lists no such patch.
///
/// # Errors
/// What sysfs says, but for things that are not there (any more).
pub(super) fn livepatch(name: &str) -> io::Result<String> {
    livepatch_in(Path::new(LIVEPATCHES), name)
}

fn livepatch_in(all: &Path, name: &str) -> io::Result<String> {
    let own = all.join(name);
    if !there(own.metadata())?.is_some_and(|m| m.is_dir()) {
        return Ok(String::new());
    }
    let mut text = "listed\n".to_owned();
    for file in ["enabled", "transition"] {
        if let Some(value) = there(fs::read_to_string(own.join(file)))? {
            text += &format!("{file} {}\n", value.trim());
        }
    }
    for object in folders(&own)? {
        for function in folders(&own.join(&object))? {
            text += &format!("function {object}/{function}\n");
        }
    }
    Ok(text)
}

/// None for what is not there: a patch may go while it is looked at.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names of the folders in a folder, sorted.
fn folders(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in there(fs::read_dir(dir))?.into_iter().flatten() {
        let Some(entry) = there(entry)? else { continue };
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads everything in [`Vitals`].
///
/// # Errors
/// A file of `/proc` that every Linux has cannot be read.
pub(super) fn vitals() -> io::Result<Vitals> {
    let read = |path: &str| fs::read_to_string(path);
    let (stat, memory) = (read("/proc/stat")?, read("/proc/meminfo")?);
    let counter = |name: &str| {
        let value = |l: &str| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        stat.lines().find_map(value).unwrap_or(0)
    };
    let kib = |name| meminfo(&memory, name).unwrap_or(0);
    Ok(Vitals {
        uptime_s: first(&read("/proc/uptime")?).unwrap_or(0.0),
        forks: counter("processes"),
        context_switches: counter("ctxt"),
        tasks: tasks_in_loadavg(&read("/proc/loadavg")?).unwrap_or(0),
        free_kib: kib("MemFree"),
        available_kib: kib("MemAvailable"),
        page_cache_kib: kib("Cached") + kib("Buffers"),
        slab_kib: kib("Slab"),
        buddy: free_blocks(&read("/proc/buddyinfo")?),
        journal_kib: JOURNALS.iter().map(|dir| disk_use(Path::new(dir))).sum::<u64>() / 1024,
        dentries: first(&read("/proc/sys/fs/dentry-state")?).unwrap_or(0),
        open_files: first(&read("/proc/sys/fs/file-nr")?).unwrap_or(0),
    })
}

/// Free blocks by order, all zones together: `Node 0, zone   Normal   12   3 ...`.
fn free_blocks(text: &str) -> Vec<u64> {
    let mut sums: Vec<u64> = Vec::new();
    for line in text.lines() {
        let counts = line.split_once("zone").map_or("", |(_, rest)| rest);
        for (order, count) in counts.split_ascii_whitespace().skip(1).enumerate() {
            sums.resize(sums.len().max(order + 1), 0);
            sums[order] += count.parse::<u64>().unwrap_or(0);
        }
    }
    sums
}

/// Bytes of disk that the files below `dir` use, as far as they can be seen; zero if there is no such folder.
fn disk_use(dir: &Path) -> u64 {
    let mut left: Vec<(PathBuf, usize)> = vec![(dir.to_path_buf(), 0)];
    let (mut bytes, mut seen) = (0, 0);
    while let Some((dir, depth)) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MOST_ENTRIES {
                return bytes;
            }
            match entry.metadata() {
                Ok(meta) if meta.is_dir() && depth < DEEPEST => left.push((entry.path(), depth + 1)),
                // In units of 512 bytes whatever the file system's block is.
                Ok(meta) if meta.is_file() => bytes += meta.blocks() * 512,
                _ => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_of_a_new_and_of_an_old_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
        make("new/vmlinux/do_exit,1");
        make("new/ext4/ext4_sync_file,1");
        make("new/ext4/ext4_fsync,2");
        for (path, text) in
            [("new/enabled", "1\n"), ("new/transition", "0\n"), ("new/vmlinux/patched", "1\n")]
        {
            write(path, text);
        }
        assert_eq!(
            livepatch_in(dir.path(), "new").unwrap(),
            "listed\nenabled 1\ntransition 0\nfunction ext4/ext4_fsync,2\nfunction ext4/ext4_sync_file,1\n\
             function vmlinux/do_exit,1\n"
        );
        make("old/vmlinux/sys_madvise");
        write("old/enabled", "0\n");
        let old = livepatch_in(dir.path(), "old").unwrap();
        assert_eq!(old, "listed\nenabled 0\nfunction vmlinux/sys_madvise\n");
        // Distributions' 4.4 has the names of 4.5.
        make("ubuntu/vmlinux/sys_madvise,1");
        write("ubuntu/enabled", "1\n");
        let ubuntu = livepatch_in(dir.path(), "ubuntu").unwrap();
        assert_eq!(ubuntu, "listed\nenabled 1\nfunction vmlinux/sys_madvise,1\n");
        assert_eq!(livepatch_in(dir.path(), "none").unwrap(), "");
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_module_names() {
        for name in ["", ".", "..", "a/b", "a b", "a\n", &"x".repeat(65)] {
            assert!(!is_module_name(name), "{name:?}");
        }
        assert!(is_module_name("livepatch_CVE-2020_1"));
    }

    #[test]
    fn free_blocks_of_all_zones_are_added() {
        let text =
            "Node 0, zone      DMA      1      0      2\nNode 0, zone    DMA32     10     20     30     4\n";
        assert_eq!(free_blocks(text), [11, 20, 32, 4]);
        assert_eq!(free_blocks(""), [0; 0]);
    }

    #[test]
    fn the_journal_is_measured_and_the_walk_ends() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("1/2/3/4")).unwrap();
        fs::write(dir.path().join("1/a"), vec![1; 8192]).unwrap();
        fs::write(dir.path().join("1/2/3/4/too-deep"), vec![1; 8192]).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("1/loop")).unwrap();
        assert!((8192..16384).contains(&disk_use(dir.path())), "{}", disk_use(dir.path()));
        assert_eq!(disk_use(Path::new("/no/such/folder")), 0);
    }

    #[test]
    fn this_machine_has_vitals() {
        let v = vitals().unwrap();
        assert!(v.uptime_s > 0.0 && v.forks > 0 && v.context_switches > 0 && v.tasks > 0, "{v:?}");
        assert!(v.available_kib > 0 && v.buddy.len() > 4 && v.dentries > 0 && v.open_files > 0, "{v:?}");
    }
}
