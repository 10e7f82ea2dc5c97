//! A checkpoint on disk: what it is of, what it says about itself, and whether it is still whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use klpfarm_model::Detector;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::store::{Hold, open_lock};
use crate::{Draft, Error, Result, Ssh, fsutil, sparse};

/// Version of a checkpoint's `manifest.json`; one of another version is not recognised.
pub const CHECKPOINT_SCHEMA: u32 = 2;

/// The files of every checkpoint: guest memory, processors and devices, disk changes, and the console until then.
pub const CHECKPOINT_FILES: [&str; 4] = ["ram", "state", "disk.qcow2", "console.log"];

/// The private SSH key of a checkpoint whose guest has keys of its own.
pub const CHECKPOINT_KEY: &str = "ssh_key";

/// The files a machine goes on from.
const MACHINE_FILES: [&str; 3] = ["ram", "state", "disk.qcow2"];

/// Everything that decides what a checkpoint is. Two runs that need the same one have the same key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Id of the image.
    pub image: String,
    /// [`crate::Image::identity`]: which making of that image. The overlay fits no other, not even one of the same recipe.
    pub image_hash: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// `kvm` or `tcg`; the guest has seen the processor that comes with it.
    pub accel: String,
    /// QEMU's exact version line: its state files fit no other version.
    pub qemu: String,
    /// The workloads that ran, with their settings.
    pub workloads: Value,
    /// How it was aged.
    pub aging: Value,
    /// Digest of what the farm itself puts into the guest.
    pub farm: String,
    /// Id of the checkpoint it was aged from; `None`: from power-on.
    pub parent: Option<String>,
}

impl Key {
    /// The image's name, a dash, and 12 hex digits of the SHA-256 of this key in JSON; also the name of the folder.
    pub fn id(&self) -> String {
        // An image's id ends the same way.
        let name = self.image.rsplit_once('-').map_or(self.image.as_str(), |(name, _)| name);
        let value = serde_json::to_value(self).unwrap_or_default();
        let hash = fsutil::hex(&Sha256::digest(canonical(&value)));
        format!("{name}-{}", &hash[..12])
    }
}

/// JSON whose objects are sorted by key, whatever the order they were made in.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> =
                map.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), canonical(v))).collect();
            fields.sort_unstable();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// [`CHECKPOINT_SCHEMA`].
    pub schema: u32,
    /// [`Key::id`].
    pub id: String,
    /// What it is of.
    pub key: Key,
    /// When it was made, RFC 3339, UTC.
    pub created: String,
    /// One entry for each of [`CHECKPOINT_FILES`], and for [`CHECKPOINT_KEY`] where there is one.
    pub files: Vec<CheckpointFile>,
    /// What its maker tells of it.
    #[serde(flatten)]
    pub made: Made,
}

/// What the maker of a checkpoint tells of it. Opaque here but for the uptime and the kernel, which lists show.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The kernel's release.
    pub release: String,
    /// From power-on (or from its parent) to the checkpoint, in milliseconds of the host.
    pub took_ms: u64,
    /// Vitals of the guest when it was fresh.
    pub fresh: Value,
    /// Vitals of the guest when the checkpoint was taken.
    pub reached: Value,
    /// The guest's uptime when the checkpoint was taken, in seconds.
    pub uptime_s: f64,
    /// Detectors that can't fire on this guest, and why.
    pub blind: BTreeMap<Detector, String>,
    /// Workloads that can't run on this guest, and why.
    #[serde(default)]
    pub unavailable: BTreeMap<String, String>,
    /// The guest's own public host key, which came with [`CHECKPOINT_KEY`]; `None`: it has its image's keys.
    pub host_key: Option<String>,
}

impl Made {
    /// The files of a checkpoint of which this is told.
    pub(crate) fn files(&self) -> impl Iterator<Item = &'static str> + use<> {
        CHECKPOINT_FILES.into_iter().chain(self.host_key.as_ref().map(|_| CHECKPOINT_KEY))
    }
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// One of [`CHECKPOINT_FILES`], or [`CHECKPOINT_KEY`].
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 in hex of the length (64 bits, least byte first) and of each block of 64 KiB that is not all zeros, its number
    /// before it: memory is mostly holes.
    pub sha256: String,
}

impl CheckpointFile {
    pub(crate) fn of(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let size = file.metadata().map_err(Error::io("read", &path))?.len();
        let sha256 = sparse::digest(&file).map_err(Error::io("read", &path))?;
        Ok(Self { name: name.to_owned(), size, sha256 })
    }
}

/// A finished checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The folder, absolute: `ram`, `state`, `disk.qcow2`, `console.log`, `ssh_key`, `manifest.json`.
    pub dir: PathBuf,
    /// The manifest.
    pub manifest: CheckpointManifest,
}

impl Checkpoint {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// Bytes it takes on the disk: less than the files' lengths, because memory is mostly holes.
    pub fn disk_bytes(&self) -> u64 {
        let blocks = |name| fs::metadata(self.dir.join(name)).map_or(0, |m| m.blocks() * 512);
        self.manifest.made.files().map(blocks).sum()
    }

    /// How to log in to its machines, where this is how to log in to its image.
    pub fn ssh(&self, image: Ssh) -> Ssh {
        match &self.manifest.made.host_key {
            None => image,
            host_key => Ssh { key: self.dir.join(CHECKPOINT_KEY), host_key: host_key.clone(), ..image },
        }
    }

    /// Read every file and compare it with the manifest. A GiB of memory takes a fraction of a second; call it where that may
    /// block.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the first file that is missing, cut short or changed.
    pub fn verify(&self) -> Result<()> {
        let damaged = |file: &str, reason: String| Error::Damaged {
            id: self.id().to_owned(),
            file: self.dir.join(file),
            reason,
        };
        for name in self.manifest.made.files() {
            let Some(wanted) = self.manifest.files.iter().find(|f| f.name == name) else {
                return Err(damaged("manifest.json", format!("it does not list `{name}`")));
            };
            match fs::metadata(self.dir.join(name)) {
                Err(error) => return Err(damaged(name, error.to_string())),
                Ok(found) if found.len() != wanted.size => {
                    let reason = format!("it has {} bytes, the manifest says {}", found.len(), wanted.size);
                    return Err(damaged(name, reason));
                }
                Ok(_) => {}
            }
            if CheckpointFile::of(&self.dir, name)?.sha256 != wanted.sha256 {
                return Err(damaged(name, "its content has changed since it was written".into()));
            }
        }
        Ok(())
    }

    /// Refuse another QEMU (by its exact version line) or accelerator than the one it was made with.
    ///
    /// # Errors
    /// [`Error::Misfit`], with both and what to do.
    pub fn fits(&self, qemu: &str, accel: &str) -> Result<()> {
        let key = &self.manifest.key;
        for (what, made, here) in [("QEMU", &key.qemu, qemu), ("accelerator", &key.accel, accel)] {
            if made != here {
                return Err(Error::Misfit {
                    id: self.id().to_owned(),
                    reason: format!("it was made with the {what} `{made}`, here is `{here}`"),
                });
            }
        }
        Ok(())
    }

    /// Keep this checkpoint from being removed until the returned value is dropped; for as long as machines run from it.
    ///
    /// # Errors
    /// [`Error::CheckpointBusy`] when it is just being removed.
    pub fn hold(&self) -> Result<Hold> {
        let store = self.dir.parent().unwrap_or(Path::new("/"));
        let file = open_lock(&store.join(format!(".lock-{}", self.id())))?;
        file.try_lock_shared().map_err(|_| Error::CheckpointBusy(self.id().to_owned()))?;
        let hold = Hold::new(file);
        // It may have gone between being found and being locked.
        if self.dir.join("manifest.json").exists() {
            Ok(hold)
        } else {
            Err(Error::NoCheckpoint { name: self.id().to_owned(), dir: store.to_owned() })
        }
    }

    /// Copy the files a machine goes on from into a draft, so that an older checkpoint can be made of them. Holes stay holes, and
    /// file systems that can share blocks do.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn copy_into(&self, draft: &Draft) -> Result<()> {
        for name in MACHINE_FILES {
            let (source, target) = (self.dir.join(name), draft.dir().join(name));
            let from = File::open(&source).map_err(Error::io("open", &source))?;
            let mut to = fsutil::create_private(&target)?;
            sparse::copy(&from, &mut to).map_err(Error::io("copy", &source))?;
        }
        Ok(())
    }

    /// Read the checkpoint in `dir`; `None` when there is none of this schema.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join("manifest.json");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &file)(error)),
        };
        let damaged = |reason: String| Error::Damaged {
            id: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            file: file.clone(),
            reason,
        };
        match parse(&text).map_err(damaged)? {
            Ok(manifest) => Ok(Some(Self { dir: dir.to_owned(), manifest })),
            Err(_other_schema) => Ok(None),
        }
    }
}

/// The manifest in this text, or the other schema it has.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn parse(text: &str) -> Result<Result<CheckpointManifest, u32>, String> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let Version { schema } = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if schema != CHECKPOINT_SCHEMA {
        return Ok(Err(schema));
    }
    serde_json::from_str(text).map(Ok).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_every_field_and_on_no_order() {
        let read = |text: &str| -> Key { serde_json::from_str(text).unwrap() };
        let one = r#"{"image": "debian-12-1c0b2883b670", "image_hash": "h", "cpus": 2, "memory_mib": 1024, "accel": "tcg",
            "qemu": "QEMU 10", "workloads": {"a": 1, "b": [2, {"c": 3, "d": 4}]}, "aging": null, "farm": "f", "parent": null}"#;
        let id = read(one).id();
        assert!(id.starts_with("debian-12-") && id.len() == "debian-12-".len() + 12, "{id}");
        let turned =
            one.replace(r#""a": 1, "b": [2, {"c": 3, "d": 4}]"#, r#""b": [2, {"d": 4, "c": 3}], "a": 1"#);
        assert_ne!(turned, one);
        assert_eq!(read(&turned).id(), id);
        for (from, to) in [
            ("670\"", "671\""),
            (r#""h""#, r#""i""#),
            (": 2,", ": 3,"),
            ("1024", "1025"),
            ("tcg", "kvm"),
            ("QEMU 10", "QEMU 11"),
            (r#""a": 1"#, r#""a": 2"#),
            ("\"aging\": null", "\"aging\": 1"),
            (r#""f""#, r#""g""#),
            ("\"parent\": null", "\"parent\": \"p\""),
        ] {
            let other = one.replacen(from, to, 1);
            assert_ne!(other, one, "{from}");
            assert_ne!(read(&other).id(), id, "{from}");
        }
    }

    #[test]
    fn another_qemu_or_accelerator_is_refused_by_name() {
        let key = Key {
            image: "i-0".into(),
            image_hash: String::new(),
            cpus: 1,
            memory_mib: 1,
            accel: "tcg".into(),
            qemu: "QEMU 10.0.2".into(),
            workloads: Value::Null,
            aging: Value::Null,
            farm: String::new(),
            parent: None,
        };
        let manifest = CheckpointManifest {
            schema: CHECKPOINT_SCHEMA,
            id: key.id(),
            key,
            created: String::new(),
            files: Vec::new(),
            made: Made::default(),
        };
        let checkpoint = Checkpoint { dir: "/nowhere".into(), manifest };
        checkpoint.fits("QEMU 10.0.2", "tcg").unwrap();
        let error = checkpoint.fits("QEMU 10.1.0", "tcg").unwrap_err().to_string();
        assert!(error.contains("QEMU 10.0.2") && error.contains("QEMU 10.1.0"), "{error}");
        assert!(error.contains(&format!("klpfarm checkpoint rm {}", checkpoint.id())), "{error}");
        assert!(checkpoint.fits("QEMU 10.0.2", "kvm").is_err());
    }
}
