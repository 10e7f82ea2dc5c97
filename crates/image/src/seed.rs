//! The NoCloud seed: a small FAT disk from which cloud-init takes its settings.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// What the guest is told. Texts without their line ends.
pub(crate) struct Settings<'a> {
    /// Name of the instance and the host.
    pub instance: &'a str,
    /// Our public key.
    pub user_public: &'a str,
    /// The guest's host key, private part.
    pub host_private: &'a str,
    /// The guest's host key, public part.
    pub host_public: &'a str,
}

/// Two MiB: more than FAT needs and less than anybody minds.
const SIZE: u64 = 2 << 20;

/// Write the seed to `path`, readable by its owner only: it holds the host key.
pub(crate) fn write(settings: &Settings<'_>, path: &Path) -> Result<()> {
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file =
        options.read(true).write(true).create_new(true).open(path).map_err(Error::io("create", path))?;
    fill(settings, &file).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

fn fill(settings: &Settings<'_>, file: &File) -> std::io::Result<()> {
    file.set_len(SIZE)?;
    // Lower case: older versions of cloud-init look for exactly this label.
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"cidata     ");
    fatfs::format_volume(file, options)?;
    let volume = fatfs::FileSystem::new(file, fatfs::FsOptions::new())?;
    {
        let root = volume.root_dir();
        root.create_file("meta-data")?.write_all(meta_data(settings).as_bytes())?;
        root.create_file("user-data")?.write_all(user_data(settings).as_bytes())?;
    }
    volume.unmount()
}

fn meta_data(settings: &Settings<'_>) -> String {
    format!("instance-id: {0}\nlocal-hostname: {0}\n", settings.instance)
}

/// Root by key, our host key, and nothing that runs by the clock: updates would be noise in every comparison of rates.
fn user_data(settings: &Settings<'_>) -> String {
    let Settings { user_public, host_private, host_public, .. } = settings;
    let host_private = host_private.replace('\n', "\n    ");
    format!(
        "\
#cloud-config
disable_root: false
ssh_pwauth: false
ssh_authorized_keys:
  - {user_public}
ssh_deletekeys: true
ssh_genkeytypes: []
ssh_keys:
  ed25519_private: |
    {host_private}
  ed25519_public: {host_public}
package_update: false
package_upgrade: false
bootcmd:
  - systemctl mask --now apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service
  - systemctl mask --now unattended-upgrades.service snapd.refresh.timer motd-news.timer serial-getty@ttyS1.service
"
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const SETTINGS: Settings<'_> = Settings {
        instance: "golden",
        user_public: "ssh-ed25519 AAAAuser klpfarm",
        host_private: "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----",
        host_public: "ssh-ed25519 AAAAhost klpfarm",
    };

    #[test]
    fn the_seed_is_a_fat_volume_named_cidata_with_both_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        write(&SETTINGS, &path).unwrap();
        let volume = fatfs::FileSystem::new(File::open(&path).unwrap(), fatfs::FsOptions::new());
        // fatfs wants to write when it opens; a copy in memory does for reading.
        drop(volume);
        let bytes = std::fs::read(&path).unwrap();
        let volume = fatfs::FileSystem::new(std::io::Cursor::new(bytes), fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "cidata");
        assert_eq!(volume.read_volume_label_from_root_dir().unwrap().as_deref(), Some("cidata"));
        let read = |name: &str| {
            let mut text = String::new();
            volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read("meta-data"), meta_data(&SETTINGS));
        assert_eq!(read("user-data"), user_data(&SETTINGS));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn user_data_is_yaml_with_the_keys_in_it() {
        #[derive(serde::Deserialize)]
        struct UserData {
            disable_root: bool,
            ssh_authorized_keys: Vec<String>,
            ssh_keys: std::collections::BTreeMap<String, String>,
        }
        let data: UserData =
            klpfarm_model::yaml::parse(Path::new("user-data"), &user_data(&SETTINGS)).unwrap();
        assert!(!data.disable_root);
        assert_eq!(data.ssh_authorized_keys, [SETTINGS.user_public]);
        assert_eq!(data.ssh_keys["ed25519_private"].trim_end(), SETTINGS.host_private);
        assert_eq!(data.ssh_keys["ed25519_public"], SETTINGS.host_public);
    }
}
