//! Where a machine comes from: power-on, or a checkpoint.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{Spec, VmError, overlay};

/// Oldest QEMU that can fork: 8.2 brought `file:` migration and private writable RAM over a file opened for reading.
pub const FORK_LEAST: (u32, u32) = (8, 2);

/// Where a machine comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Power on; RAM is anonymous, disk changes go to an unnamed temporary file.
    Boot,
    /// Power on, with RAM and disk changes kept in these files, so that a checkpoint can be taken. They are made; none may be
    /// there yet. Their folder must be on a disk: the RAM file grows to the guest's memory.
    Template(Files),
    /// Go on from a checkpoint with private copies of everything: its files are never written, and any number of machines may
    /// do so at once.
    Fork(Files),
    /// Go on from a checkpoint in these very files (copies made for it), so that an older checkpoint can be taken.
    Continue(Files),
}

/// The files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The guest's memory, byte for byte.
    pub ram: PathBuf,
    /// Processors and devices, as QEMU's migration stream.
    pub state: PathBuf,
    /// What the guest changed on its disk: qcow2 over the image's disk. Which disk that is, is not looked up in here:
    /// [`Spec::disk`] says it, so that a checkpoint holds no path of any host.
    pub disk: PathBuf,
}

impl Files {
    /// The files of a checkpoint in `dir`: `ram`, `state`, `disk.qcow2`.
    pub fn in_dir(dir: &Path) -> Self {
        Self { ram: dir.join("ram"), state: dir.join("state"), disk: dir.join("disk.qcow2") }
    }
}

impl Origin {
    /// The checkpoint's files, if there are any.
    pub(crate) fn files(&self) -> Option<&Files> {
        match self {
            Self::Boot => None,
            Self::Template(files) | Self::Fork(files) | Self::Continue(files) => Some(files),
        }
    }

    /// Whether the machine's state is read from a checkpoint.
    pub fn is_resumed(&self) -> bool {
        matches!(self, Self::Fork(_) | Self::Continue(_))
    }

    /// Where this machine can leave a checkpoint.
    pub(crate) fn kept(&self) -> Option<&Files> {
        match self {
            Self::Boot | Self::Fork(_) => None,
            Self::Template(files) | Self::Continue(files) => Some(files),
        }
    }
}

/// Whether this QEMU can take checkpoints and fork from them.
///
/// # Errors
/// Why not, in words, and what to do.
pub fn can_fork(version: Option<(u32, u32)>) -> Result<(), String> {
    let (major, minor) = FORK_LEAST;
    match version {
        Some(version) if version >= FORK_LEAST => Ok(()),
        Some((old, older)) => Err(format!(
            "QEMU {old}.{older} can't write a machine's state to a file: forks need QEMU {major}.{minor} or newer \
             (Debian 12: from bookworm-backports); every trial boots cold"
        )),
        None => Err(format!("QEMU's version can't be told, and forks need {major}.{minor} or newer")),
    }
}

/// Make, or look at, the files of the machine's origin before QEMU opens them.
pub(crate) fn prepare(spec: &Spec) -> Result<(), VmError> {
    match &spec.origin {
        Origin::Boot => Ok(()),
        Origin::Template(files) => make(files, spec),
        Origin::Fork(files) | Origin::Continue(files) => check(files, spec),
    }
}

fn make(files: &Files, spec: &Spec) -> Result<(), VmError> {
    let size = overlay::virtual_size(&spec.disk, &spec.disk_format).map_err(at(&spec.disk))?;
    // Sparse: it grows as the guest touches its memory.
    create(&files.ram).and_then(|f| f.set_len(ram_bytes(spec))).map_err(at(&files.ram))?;
    create(&files.state).map_err(at(&files.state))?;
    create(&files.disk).and_then(|mut f| f.write_all(&overlay::empty(size))).map_err(at(&files.disk))
}

/// QEMU maps a RAM file that was cut short, and dies of it only later; so its length is looked at first.
fn check(files: &Files, spec: &Spec) -> Result<(), VmError> {
    for file in [&files.ram, &files.state, &files.disk] {
        let length = std::fs::metadata(file).map_err(at(file))?.len();
        let wanted = ram_bytes(spec);
        if file == &files.ram && length != wanted {
            return Err(VmError::Unfit {
                path: file.clone(),
                reason: format!("it has {length} bytes, a machine of {} MiB needs {wanted}", spec.memory_mib),
            });
        }
    }
    Ok(())
}

pub(crate) fn ram_bytes(spec: &Spec) -> u64 {
    u64::from(spec.memory_mib) << 20
}

/// A guest's memory holds keys: nobody else reads it. A file that is there belongs to something else.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> VmError {
    let path = path.to_owned();
    move |source| VmError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Group;
    use klpfarm_model::Accel;

    fn spec(dir: &Path, origin: Origin) -> Spec {
        let disk = dir.join("disk.img");
        std::fs::write(&disk, [0; 1000]).unwrap();
        Spec {
            disk,
            disk_format: "raw".into(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            seed: None,
            cpus: 1,
            memory_mib: 2,
            accel: Accel::Tcg,
            origin,
            group: Group::Alone,
            counted: false,
        }
    }

    #[test]
    fn a_templates_files_are_private_and_never_those_of_another() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let files = Files::in_dir(dir.path());
        let spec = spec(dir.path(), Origin::Template(files.clone()));
        prepare(&spec).unwrap();
        assert_eq!(std::fs::metadata(&files.ram).unwrap().len(), 2 << 20);
        for file in [&files.ram, &files.state, &files.disk] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = prepare(&spec).unwrap_err().to_string();
        assert!(again.contains("ram") && again.contains("exists"), "{again}");
    }

    #[test]
    fn a_missing_or_short_file_is_named_before_qemu_starts() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::in_dir(dir.path());
        prepare(&spec(dir.path(), Origin::Template(files.clone()))).unwrap();
        let fork = spec(dir.path(), Origin::Fork(files.clone()));
        prepare(&fork).unwrap();
        File::options().write(true).open(&files.ram).unwrap().set_len(5).unwrap();
        let short = prepare(&fork).unwrap_err().to_string();
        assert!(short.contains("ram") && short.contains("5 bytes"), "{short}");
        std::fs::remove_file(&files.ram).unwrap();
        assert!(prepare(&fork).unwrap_err().to_string().contains("ram"));
    }

    #[test]
    fn old_qemus_boot_cold_and_say_why() {
        assert_eq!(can_fork(Some((8, 2))), Ok(()));
        assert_eq!(can_fork(Some((10, 0))), Ok(()));
        assert!(can_fork(Some((7, 2))).unwrap_err().contains("8.2"));
        assert!(can_fork(None).is_err());
    }
}
