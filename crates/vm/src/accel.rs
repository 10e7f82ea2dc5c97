//! Whether KVM really runs a guest, and which QEMU there is.
//!
//! `/dev/kvm` can be there, open, and even create a virtual CPU, and still no guest gets anywhere (nested virtualisation that
//! emulates each instruction, or misses features). So a tiny guest has to run: a boot sector that counts to a hundred
//! million and leaves through QEMU's debug-exit device, with the same CPU model as the real machines.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::VmError;

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// Oldest QEMU tried (Debian 12's).
pub const QEMU_LEAST: (u32, u32) = (7, 2);

/// How long the tiny guest may take. On sound hosts it takes well below one second.
const KVM_LIMIT: Duration = Duration::from_secs(5);

/// `mov ecx, 100000000; l: dec ecx; jnz l; mov dx, 0x501; mov al, 0x2a; out dx, al; hlt`, in 16-bit mode.
const COUNT_AND_LEAVE: [u8; 19] = [
    0x66, 0xb9, 0x00, 0xe1, 0xf5, 0x05, 0x66, 0x49, 0x75, 0xfc, 0xba, 0x01, 0x05, 0xb0, 0x2a, 0xee, 0xf4,
    0xeb, 0xfd,
];

/// The debug-exit device ends QEMU with `(value << 1) | 1`.
const LEFT: i32 = (0x2a << 1) | 1;

/// What came of trying KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmProbe {
    /// The tiny guest ran, in so many milliseconds.
    Works(u64),
    /// It did not; why, in words.
    Fails(String),
}

/// Run the tiny guest under KVM.
///
/// # Errors
/// If QEMU can't be started at all, or the boot sector can't be written.
pub async fn probe_kvm() -> Result<KvmProbe, VmError> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(KvmProbe::Fails("there is no /dev/kvm".into()));
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(KvmProbe::Fails(format!("/dev/kvm can't be opened ({error}); join the kvm group")));
    }
    run_tiny_guest("kvm", "host", KVM_LIMIT).await
}

async fn run_tiny_guest(accel: &str, cpu: &str, limit: Duration) -> Result<KvmProbe, VmError> {
    let image = boot_sector().map_err(|source| VmError::Io { path: std::env::temp_dir(), source })?;
    let mut drive = std::ffi::OsString::from("format=raw,if=ide,file=");
    drive.push(image.path());
    let started = Instant::now();
    let mut child = Command::new(QEMU)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            "q35",
            "-m",
            "64",
        ])
        .args(["-accel", accel, "-cpu", cpu, "-device", "isa-debug-exit,iobase=0x501,iosize=2", "-drive"])
        .arg(drive)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| VmError::NoQemu { program: QEMU, source })?;
    let stderr = child.stderr.take();
    let Ok(status) = tokio::time::timeout(limit, child.wait()).await else {
        let _ = child.kill().await;
        return Ok(KvmProbe::Fails(format!("a tiny guest did not end within {} s", limit.as_secs())));
    };
    match status {
        Ok(status) if status.code() == Some(LEFT) => {
            Ok(KvmProbe::Works(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)))
        }
        Ok(status) => {
            let mut text = String::new();
            if let Some(mut stderr) = stderr {
                let _ = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut text).await;
            }
            let first = text.lines().find(|l| !l.contains("warning:")).unwrap_or("").trim();
            Ok(KvmProbe::Fails(format!("a tiny guest failed ({status}) {first}").trim().to_owned()))
        }
        Err(error) => Ok(KvmProbe::Fails(error.to_string())),
    }
}

fn boot_sector() -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("klpfarm-kvm-").tempfile()?;
    let mut sector = [0_u8; 512];
    sector[..COUNT_AND_LEAVE.len()].copy_from_slice(&COUNT_AND_LEAVE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all(&sector)?;
    // Firmware takes no disk of a single sector for one.
    file.as_file().set_len(1 << 20)?;
    Ok(file)
}

/// First line of QEMU's `--version` and the version in it.
///
/// # Errors
/// If QEMU can't be run.
pub async fn qemu_version() -> Result<(String, Option<(u32, u32)>), VmError> {
    let output = Command::new(QEMU)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|source| VmError::NoQemu { program: QEMU, source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or("").to_owned();
    Ok((line.clone(), version_in(&line)))
}

/// Whether this QEMU is new enough.
pub fn supported(version: (u32, u32)) -> bool {
    version >= QEMU_LEAST
}

fn version_in(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(version_in("QEMU emulator version 7.2.22"), Some((7, 2)));
        assert_eq!(version_in("something else"), None);
        assert!(supported((7, 2)) && supported((10, 0)) && !supported((6, 9)));
    }

    /// The tiny guest itself is sound: emulation always runs it.
    #[tokio::test]
    async fn the_tiny_guest_runs_under_emulation() {
        let probe = run_tiny_guest("tcg", "max", Duration::from_secs(60)).await.unwrap();
        assert!(matches!(probe, KvmProbe::Works(_)), "{probe:?}");
    }
}
