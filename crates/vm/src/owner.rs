//! Whose a process or a folder is, so that what a dead farm left can be told from what a living one uses.
//!
//! A process carries its farm's mark in its environment: the farm's process id, the time at which that process started, for ids are
//! given out again, and the pid namespace, for the ids of another one mean nothing here. A folder holds a file that its farm
//! keeps locked: a lock ends with its process, however that ends, and is never another's by chance.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Environment variable of every machine's process.
pub const OWNER_VARIABLE: &str = "KLPFARM_OWNER";

/// The file that is locked while a folder is in use.
const LOCK: &str = ".owner";

/// A process, told apart from all that had or will have its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Process id.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot.
    pub started: u64,
    /// Its pid namespace, in the kernel's words.
    pub namespace: String,
}

impl Owner {
    /// The living process with this id in our pid namespace; `None` if there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: start_time(&stat)?, namespace: namespace()? })
    }

    /// This process.
    pub fn me() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Read a mark.
    pub fn parse(mark: &str) -> Option<Self> {
        let mut parts = mark.splitn(3, ' ');
        let pid = parts.next()?.parse().ok()?;
        let started = parts.next()?.parse().ok()?;
        Some(Self { pid, started, namespace: parts.next()?.to_owned() })
    }

    /// Whether it is known to be gone. Of another pid namespace nothing is known.
    pub fn is_gone(&self) -> bool {
        namespace().as_ref() == Some(&self.namespace) && Self::of(self.pid).as_ref() != Some(self)
    }

    /// The owner in the mark of the process `pid`; `None` if it has no mark, or is not ours to look at.
    pub fn marked_on(pid: u32) -> Option<Self> {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mark = environ.split(|b| *b == 0).find_map(|variable| {
            std::str::from_utf8(variable).ok()?.strip_prefix(OWNER_VARIABLE)?.strip_prefix('=')
        })?;
        Self::parse(mark)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.pid, self.started, self.namespace)
    }
}

/// The kernel's name of our pid namespace.
fn namespace() -> Option<String> {
    Some(fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned())
}

/// Field 22 of `/proc/PID/stat`. The second one, the name in parentheses, may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A temporary folder of this process; removed when dropped, and known to be left over once the process is gone.
#[derive(Debug)]
pub struct Claimed {
    // First: the folder goes while it is still ours.
    dir: tempfile::TempDir,
    _lock: File,
}

impl Claimed {
    /// Make a folder in `parent` whose name is `prefix`, our process id, a dash and something random; for the owner alone.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(parent: &Path, prefix: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{prefix}{}-", std::process::id()))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in(parent)?;
        let lock = File::create_new(dir.path().join(LOCK))?;
        lock.try_lock().map_err(io::Error::from)?;
        Ok(Self { dir, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Folders in `parent`, made by [`Claimed::create`] with this prefix, that nobody uses any more.
    pub fn left_over(parent: &Path, prefix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let pid = |name: &str| name.strip_prefix(prefix)?.split_once('-')?.0.parse::<u32>().ok();
        entries
            // A link with such a name, in a folder where everybody may make one, leads who knows where.
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter(|e| e.file_name().to_str().and_then(pid).is_some_and(|pid| is_left(&e.path(), pid)))
            .map(|e| e.path())
            .collect()
    }
}

fn is_left(dir: &Path, pid: u32) -> bool {
    let alive = Path::new(&format!("/proc/{pid}")).exists();
    match File::open(dir.join(LOCK)) {
        Ok(file) => file.try_lock_shared().is_ok() && !(is_fresh(dir) && alive),
        // It is just being made, or an older klpfarm made it: then its process must be gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => !alive,
        // Another user's.
        Err(_) => false,
    }
}

/// It may have been made and not yet locked.
fn is_fresh(dir: &Path) -> bool {
    let modified = fs::metadata(dir).and_then(|m| m.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < Duration::from_secs(60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let me = Owner::me().unwrap();
        assert_eq!(Owner::parse(&me.to_string()), Some(me.clone()));
        assert!(!me.is_gone());
        assert!(Owner { started: me.started + 1, ..me.clone() }.is_gone());
        // Process ids end at 4194304 (kernel: PID_MAX_LIMIT).
        assert!(Owner { pid: 4_194_305, ..me.clone() }.is_gone());
        let elsewhere = Owner { pid: 4_194_305, namespace: "pid:[1]".into(), ..me };
        assert!(!elsewhere.is_gone(), "nothing is known of another namespace");
        assert_eq!(Owner::parse("x"), None);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 19";
        assert_eq!(start_time(stat), Some(4711));
    }

    #[test]
    fn a_mark_is_read_from_a_living_process() {
        let mark = Owner { pid: 4_194_305, started: 7, namespace: namespace().unwrap() };
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env(OWNER_VARIABLE, mark.to_string())
            .spawn()
            .unwrap();
        // Until it has become `sleep`, it shows our environment.
        while Owner::marked_on(child.id()).is_none() {
            std::thread::yield_now();
        }
        assert_eq!(Owner::marked_on(child.id()), Some(mark));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Owner::marked_on(std::process::id()), None);
    }

    #[test]
    fn only_folders_that_nobody_holds_are_left_over() {
        let parent = tempfile::tempdir().unwrap();
        let held = Claimed::create(parent.path(), "farm-").unwrap();
        for name in ["farm-4194305-old", "farm-x-y", "other-4194305-z"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        // Its process seems to live, for its number was given out again; the lock tells.
        let reused = parent.path().join(format!("farm-{}-reused", std::process::id()));
        fs::create_dir(&reused).unwrap();
        fs::write(reused.join(LOCK), "").unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(100);
        File::open(&reused).unwrap().set_modified(old).unwrap();
        let unlocked = parent.path().join(format!("farm-{}-unlocked", std::process::id()));
        fs::create_dir(&unlocked).unwrap();
        fs::write(unlocked.join(LOCK), "").unwrap();
        let fresh = parent.path().join(format!("farm-{}-fresh", std::process::id()));
        fs::create_dir(fresh).unwrap();
        std::os::unix::fs::symlink("/", parent.path().join("farm-4194305-link")).unwrap();
        let mut left = Claimed::left_over(parent.path(), "farm-");
        left.sort();
        let mut expected = vec![parent.path().join("farm-4194305-old"), reused];
        expected.sort();
        assert_eq!(left, expected);
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }
}
