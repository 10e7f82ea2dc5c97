//! What bounds the machines of a run and ends them with it: systemd where it runs, else a control group of our own, which is killed as
//! a whole, else nothing but the parent-death signal that every machine has anyway.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use klpfarm_model::Accel;
use tokio::process::Command;

use crate::{Owner, Spec};

/// Most memory (MiB) and CPUs of one machine.
#[derive(Debug, Clone, Copy)]
struct Most {
    memory: u64,
    cpus: u32,
}

impl Most {
    /// Its own, and what QEMU needs for itself.
    fn of(memory_mib: u32, cpus: u32, accel: Accel) -> Self {
        Self { memory: u64::from(memory_mib) + overhead_mib(accel), cpus: cpus + 1 }
    }
}

/// Set to `off`, it leaves machines to the parent-death signal alone.
pub const GROUP_VARIABLE: &str = "KLPFARM_GROUP";

/// The systemd slice of all machines. A slice for each run would stay behind: systemd keeps empty ones until somebody stops them.
const SLICE: &str = "klpfarm.slice";

const UNBOUNDED: &str = "without limits";

/// Memory that QEMU may take beside the guest's, in MiB. Under emulation its translations alone may grow to 1 GiB (QEMU's
/// default `tb-size` on large hosts); usual are 200, so that a machine that meets this limit is out of bounds.
const fn overhead_mib(accel: Accel) -> u64 {
    match accel {
        Accel::Kvm => 512,
        Accel::Tcg => 1536,
    }
}

/// What keeps the machines of a run together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Group {
    /// Nothing but their parent.
    #[default]
    Alone,
    /// Systemd: each machine is a scope, which goes with it, in the slice of all runs.
    Slice {
        /// Of the user's own systemd.
        user: bool,
    },
    /// A control group (version 2).
    Folder(PathBuf),
}

/// What the machines of one run are in. Dropping it ends what is still in a control group.
#[derive(Debug)]
pub struct RunGroup {
    group: Group,
    /// What it is and bounds, in words that follow "machines".
    pub words: String,
    bounded: bool,
}

impl RunGroup {
    /// The best group that this host has, for so many machines of `memory_mib` and `cpus` at once.
    pub async fn create(memory_mib: u32, cpus: u32, accel: Accel, machines: u32) -> Self {
        let most = Most::of(memory_mib, cpus, accel);
        let alone = |why: &str| Self {
            group: Group::Alone,
            words: format!("end with klpfarm by the parent-death signal, without limits: {why}"),
            bounded: false,
        };
        if std::env::var_os(GROUP_VARIABLE).is_some_and(|v| v == "off") {
            return alone("KLPFARM_GROUP is off");
        }
        if Path::new("/run/systemd/system").exists() {
            return match slice(most).await {
                Some(user) => {
                    let Most { memory, cpus } = most;
                    let words = format!(
                        "are systemd scopes of at most {memory} MiB and {cpus} CPUs each, in {SLICE}"
                    );
                    Self { group: Group::Slice { user }, words, bounded: true }
                }
                None => alone("systemd-run starts no scope here (see `loginctl enable-linger`)"),
            };
        }
        match folder(most, machines) {
            Ok((dir, limits)) => {
                let bounded = !limits.starts_with(UNBOUNDED);
                let words = format!("are in control group {}, {limits}", dir.display());
                Self { group: Group::Folder(dir), words, bounded }
            }
            Err(why) => alone(&format!("no systemd runs, and {why}")),
        }
    }

    /// Whether memory and CPU of its machines are bounded.
    pub fn is_bounded(&self) -> bool {
        self.bounded
    }

    /// For [`Spec::group`].
    pub fn group(&self) -> Group {
        self.group.clone()
    }
}

impl Drop for RunGroup {
    fn drop(&mut self) {
        if let Group::Folder(dir) = &self.group {
            // What could not be removed is found by `klpfarm gc`.
            let _ = Group::clear(dir);
        }
    }
}

impl Group {
    /// What comes before a machine's command line.
    pub(crate) fn prefix(&self, spec: &Spec) -> Vec<OsString> {
        let Self::Slice { user } = self else { return Vec::new() };
        scope(*user, Most::of(spec.memory_mib, spec.cpus, spec.accel))
    }

    /// Take in a process that has just been started. Best effort: limits are a second line of defence.
    pub(crate) fn join(&self, pid: u32) {
        if let Self::Folder(dir) = self {
            let _ = fs::write(dir.join("cgroup.procs"), pid.to_string());
        }
    }

    /// Control groups whose run is gone.
    pub fn left_over() -> Vec<PathBuf> {
        let Ok(base) = base() else { return Vec::new() };
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        entries
            .filter(|e| e.file_name().to_str().and_then(owner_in).is_some_and(|owner| owner.is_gone()))
            .map(|e| e.path())
            .collect()
    }

    /// End all that is in a control group, and remove it.
    ///
    /// # Errors
    /// As the kernel says; `EBUSY` if something in it does not end.
    pub fn clear(dir: &Path) -> io::Result<()> {
        // Linux 5.14; before, whatever is in it keeps it.
        let _ = fs::write(dir.join("cgroup.kill"), "1");
        let begun = Instant::now();
        loop {
            match fs::remove_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // Nothing tells when the killed are gone but their group's being empty.
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy
                        && begun.elapsed() < Duration::from_secs(2) =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                done => return done,
            }
        }
    }
}

/// The command line that a scope's command comes after. A scope is entered by systemd-run itself, which then becomes the command:
/// process id and parent stay.
fn scope(user: bool, most: Most) -> Vec<OsString> {
    let mut words = vec!["systemd-run".to_owned()];
    words.extend(user.then(|| "--user".to_owned()));
    words.extend(["--scope", "--quiet", "--collect"].map(str::to_owned));
    words.push(format!("--slice={SLICE}"));
    words.push(format!("--property=MemoryMax={}M", most.memory));
    words.push(format!("--property=CPUQuota={}%", most.cpus * 100));
    words.push("--".to_owned());
    words.into_iter().map(OsString::from).collect()
}

/// Whether the slice is of the user's own systemd, if a scope can really be started in it.
async fn slice(most: Most) -> Option<bool> {
    // For root only the system's manager is sure to run.
    let root = fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    let words = scope(!root, most);
    let (program, arguments) = words.split_first()?;
    let mut tried = Command::new(program);
    tried.args(arguments).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = tokio::time::timeout(Duration::from_secs(10), tried.kill_on_drop(true).status()).await;
    status.ok()?.ok()?.success().then_some(!root)
}

/// A control group of our own below ours, with limits for all machines together as far as they can be had.
fn folder(most: Most, machines: u32) -> Result<(PathBuf, String), String> {
    let base = base()?;
    let owner = Owner::me().ok_or("/proc tells nothing of this process")?;
    let dir = base.join(name_of(&owner));
    fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    // Refused where processes live beside, or nothing is delegated to us: then there are no limits.
    let _ = fs::write(base.join("cgroup.subtree_control"), "+memory +cpu");
    let (memory, cpus) = (most.memory * u64::from(machines), most.cpus * machines);
    let set = |file: &str, value: String| fs::write(dir.join(file), value).is_ok();
    let mut limits = Vec::new();
    if set("memory.max", (memory << 20).to_string()) {
        limits.push(format!("{memory} MiB"));
    }
    // Microseconds of CPU time in each period of 100 ms.
    if set("cpu.max", format!("{} 100000", u64::from(cpus) * 100_000)) {
        limits.push(format!("{cpus} CPUs"));
    }
    let words = match limits.as_slice() {
        [] => format!("{UNBOUNDED}: it is given no controllers"),
        limits => format!("of at most {} in all", limits.join(" and ")),
    };
    Ok((dir, words))
}

/// Our own control group's folder.
fn base() -> Result<PathBuf, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    base_in(&read("/proc/mounts")?, &read("/proc/self/cgroup")?)
        .ok_or_else(|| "there is no cgroup v2".to_owned())
}

fn base_in(mounts: &str, cgroup: &str) -> Option<PathBuf> {
    let place = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(2) == Some(&"cgroup2")).then(|| fields[1].to_owned())
    })?;
    let own = cgroup.lines().find_map(|l| l.strip_prefix("0::/"))?;
    // Outside of what is mounted here.
    (!own.contains("..")).then(|| Path::new(&place).join(own))
}

fn name_of(owner: &Owner) -> String {
    format!("klpfarm-{}-{}-{}", owner.pid, owner.started, owner.namespace)
}

fn owner_in(name: &str) -> Option<Owner> {
    let mut parts = name.strip_prefix("klpfarm-")?.splitn(3, '-');
    let pid = parts.next()?.parse().ok()?;
    let started = parts.next()?.parse().ok()?;
    Some(Owner { pid, started, namespace: parts.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    fn spec() -> Spec {
        Spec {
            disk: "/d".into(),
            disk_format: "raw".into(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            seed: None,
            cpus: 2,
            memory_mib: 1024,
            accel: Accel::Kvm,
            origin: Origin::Boot,
            group: Group::Alone,
            counted: false,
        }
    }

    #[test]
    fn our_control_group_is_found_or_is_none() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(
            base_in(mounts, "4:memory:/x\n0::/user.slice/a.scope\n").unwrap(),
            Path::new("/sys/fs/cgroup/user.slice/a.scope")
        );
        assert_eq!(base_in(mounts, "0::/../other\n"), None);
        assert_eq!(base_in("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n", "0::/\n"), None);
    }

    #[test]
    fn a_control_group_names_its_owner() {
        let me = Owner::me().unwrap();
        assert_eq!(owner_in(&name_of(&me)), Some(me));
        for name in ["klpfarm-1", "klpfarm-x-1-pid", "other-1-2-pid"] {
            assert_eq!(owner_in(name), None);
        }
    }

    #[test]
    fn a_scope_bounds_its_machine_and_becomes_it() {
        let slice = Group::Slice { user: true };
        let words = slice.prefix(&spec());
        let text: Vec<_> = words.iter().map(|w| w.to_str().unwrap()).collect();
        assert_eq!(
            text.join(" "),
            "systemd-run --user --scope --quiet --collect --slice=klpfarm.slice --property=MemoryMax=1536M --property=CPUQuota=300% --"
        );
        assert!(Group::Alone.prefix(&spec()).is_empty());
    }

    /// Where this host lets us make one; the words say where it does not.
    #[test]
    fn what_is_in_a_control_group_dies_with_it() {
        let Ok((dir, limits)) = folder(Most { memory: 100, cpus: 1 }, 2) else { return };
        if limits.contains("200 MiB") {
            assert_eq!(fs::read_to_string(dir.join("memory.max")).unwrap().trim(), (200 << 20).to_string());
        }
        if limits.contains("2 CPUs") {
            assert_eq!(fs::read_to_string(dir.join("cpu.max")).unwrap().trim(), "200000 100000");
        }
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        Group::Folder(dir.clone()).join(child.id());
        let inside = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), child.id().to_string());
        assert!(!Group::left_over().contains(&dir), "its owner lives");
        Group::clear(&dir).unwrap();
        assert!(!dir.exists());
        assert!(!child.wait().unwrap().success());
    }
}
