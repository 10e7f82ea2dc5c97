//! The machines of a plan: what they are made of, and where their temporary files go.

use std::path::Path;
use std::sync::Arc;

use klpfarm_farm::{Bench, Symbols};
use klpfarm_image::{Checkpoint, Image};
use klpfarm_model::Plan;
use klpfarm_vm::{Claimed, Group, Login, Origin, Spec};

use crate::{Error, Result, host};

/// What trials of this plan run on; `from` is the checkpoint that their machines go on from.
///
/// # Errors
/// If the key that logs in can't be read.
pub fn bench(
    plan: &Arc<Plan>,
    image: &Image,
    from: Option<&Checkpoint>,
    patches: &[Vec<u8>],
    origin: Origin,
    dir: &Path,
    scratch: &Path,
) -> Result<Bench> {
    let ssh = from.map_or_else(|| image.ssh(), |checkpoint| checkpoint.ssh(image.ssh()));
    let login = Login::new(&ssh.user, &ssh.key, ssh.host_key.as_deref()).map_err(Error::farm)?;
    let (disk, format) = image.disk();
    let spec = Spec {
        disk,
        disk_format: format.as_str().to_owned(),
        kernel: image.kernel(),
        initrd: image.initrd(),
        cmdline: image.cmdline().to_owned(),
        seed: image.seed(),
        cpus: plan.pipeline.machine.cpus,
        memory_mib: plan.pipeline.machine.memory_mib,
        accel: plan.accel,
        origin,
        group: Group::Alone,
        counted: false,
    };
    // A machine that is aged is alone.
    let jobs = if matches!(spec.origin, Origin::Template(_) | Origin::Continue(_)) { 1 } else { plan.jobs };
    Ok(Bench {
        share: host::share(jobs, spec.cpus),
        plan: Arc::clone(plan),
        spec,
        login,
        symbols: symbols(image),
        rekey: false,
        patches: Arc::new(patches.to_vec()),
        run_dir: dir.to_owned(),
        scratch: scratch.to_owned(),
    })
}

/// Where the debug symbols of an image's kernel are: an image that was made from packages has its root file system beside it.
fn symbols(image: &Image) -> Symbols {
    match image.headers() {
        _ if image.rootfs().is_some() => Symbols::Package,
        Some(tree) if tree.join("vmlinux").is_file() => Symbols::Tree(tree),
        _ => Symbols::Builder,
    }
}

/// QEMU's temporary files: on the same disk as everything else, not on a small `/tmp`.
///
/// # Errors
/// If the folder can't be made.
pub fn scratch(home: &Path) -> Result<Claimed> {
    std::fs::create_dir_all(home)
        .and_then(|()| Claimed::create(home, SCRATCH))
        .map_err(|e| Error::farm(e).about(home.display()))
}

/// Folders of QEMU's temporary files below the home begin so.
pub(crate) const SCRATCH: &str = ".scratch-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_write_is_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let scratch = scratch(home.path()).unwrap();
        assert_eq!(std::fs::metadata(scratch.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
