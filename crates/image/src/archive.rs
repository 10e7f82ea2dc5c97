//! A checkpoint as one tar file, to be carried to another host.
//!
//! The manifest comes first, then the files it lists; holes travel as the GNU form of sparse entries. An archive comes from
//! somewhere else, so nothing in it is believed before it is checked: only the known names, each once, each as long as the manifest
//! says, none of them a link, and all with the hashes of the manifest before anything is visible.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tar::EntryType;

use crate::checkpoint::parse;
use crate::{
    Checkpoint, CheckpointFile, CheckpointManifest, CheckpointStore, Draft, Error, Result, Store, fsutil,
    sparse,
};

const MANIFEST: &str = "manifest.json";

/// Longest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 16 << 20;

impl CheckpointStore {
    /// Write the checkpoint as a tar file to `to`, which must not be there. Its files are compared with its manifest first.
    ///
    /// # Errors
    /// No such checkpoint, a damaged one, no room, or a file that is there.
    pub fn export(&self, name: &str, to: &Path) -> Result<Checkpoint> {
        let checkpoint = self.find(name)?;
        let _hold = checkpoint.hold()?;
        checkpoint.verify()?;
        // A part of an archive never has its name, whatever ends us.
        let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::io("create", to))?;
        pack(&checkpoint, file.as_file_mut()).map_err(Error::io("write", to))?;
        file.as_file().sync_all().map_err(Error::io("sync", to))?;
        file.persist_noclobber(to).map_err(|e| Error::io("create", to)(e.error))?;
        Ok(checkpoint)
    }

    /// Take a checkpoint out of a tar file that [`CheckpointStore::export`] wrote. The image it is of must be in `images`.
    ///
    /// # Errors
    /// [`Error::Archive`] when the file is not such an archive or is damaged; a missing image; a checkpoint that is there already.
    pub fn import(&self, from: &Path, images: &Store) -> Result<Checkpoint> {
        let bad = |reason: String| Error::Archive { file: from.to_owned(), reason };
        let file = File::open(from).map_err(Error::io("open", from))?;
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
        let mut entries = archive.entries().map_err(|e| bad(e.to_string()))?;
        let first = entries.next().ok_or_else(|| bad("it is empty".into()))?;
        let manifest = first.map_err(|e| e.to_string()).and_then(read_manifest).map_err(bad)?;
        require_image(&manifest, images)?;
        let draft = self.begin_new(&manifest.key)?;
        let mut missing: Vec<&CheckpointFile> = manifest.files.iter().collect();
        for entry in entries {
            let mut entry = entry.map_err(|e| bad(e.to_string()))?;
            let wanted = allowed(&entry, &mut missing).map_err(bad)?;
            let path = draft.dir().join(&wanted.name);
            let mut file = fsutil::create_private(&path)?;
            let length = sparse::write(&mut entry, &mut file, wanted.size)
                .map_err(|e| bad(format!("`{}`: {e}", wanted.name)))?;
            if length != wanted.size {
                return Err(bad(format!(
                    "`{}` has {length} bytes, the manifest says {}",
                    wanted.name, wanted.size
                )));
            }
        }
        if let Some(file) = missing.first() {
            return Err(bad(format!("`{}` is missing; the archive was cut short", file.name)));
        }
        compare(&draft, &manifest).map_err(bad)?;
        draft.publish_as(manifest)
    }
}

fn pack(checkpoint: &Checkpoint, to: &mut File) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(to);
    tar.mode(tar::HeaderMode::Deterministic);
    tar.sparse(true);
    for name in [MANIFEST].into_iter().chain(checkpoint.manifest.made.files()) {
        tar.append_file(name, &mut File::open(checkpoint.dir.join(name))?)?;
    }
    tar.into_inner().map(drop)
}

fn read_manifest(mut entry: tar::Entry<'_, impl Read>) -> Result<CheckpointManifest, String> {
    if &*entry.path_bytes() != MANIFEST.as_bytes() || entry.header().entry_type() != EntryType::Regular {
        return Err(format!("it does not begin with `{MANIFEST}`"));
    }
    let mut text = String::new();
    let length = entry.by_ref().take(MANIFEST_LIMIT).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if length as u64 == MANIFEST_LIMIT {
        return Err(format!("`{MANIFEST}` is too long"));
    }
    let manifest = parse(&text).map_err(|e| format!("`{MANIFEST}`: {e}"))?.map_err(|schema| {
        format!("its schema is {schema}, but this klpfarm reads {}", crate::CHECKPOINT_SCHEMA)
    })?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    // The id becomes a folder's name.
    if manifest.id != manifest.key.id() || manifest.id.starts_with('.') || !manifest.id.chars().all(plain) {
        return Err(format!("`{MANIFEST}`: the id is not the one of its key"));
    }
    let mut names: Vec<_> = manifest.files.iter().map(|f| f.name.as_str()).collect();
    names.sort_unstable();
    let mut known: Vec<_> = manifest.made.files().collect();
    known.sort_unstable();
    if names != known {
        return Err(format!("`{MANIFEST}` lists other files than {}", known.join(", ")));
    }
    let memory = u64::from(manifest.key.memory_mib) << 20;
    if manifest.files.iter().any(|f| f.name == "ram" && f.size != memory) {
        return Err(format!("`{MANIFEST}`: the size of `ram` is not that of the machine's memory"));
    }
    Ok(manifest)
}

/// Find what an entry is in the list of what is still missing, and take it off there.
fn allowed<'m>(
    entry: &tar::Entry<'_, impl Read>,
    missing: &mut Vec<&'m CheckpointFile>,
) -> Result<&'m CheckpointFile, String> {
    let path = entry.path_bytes();
    let Some(at) = missing.iter().position(|f| f.name.as_bytes() == &*path) else {
        return Err(format!("`{}` does not belong in it", String::from_utf8_lossy(&path).escape_debug()));
    };
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::GNUSparse => Ok(missing.swap_remove(at)),
        other => Err(format!("`{}` is not a regular file but {other:?}", missing[at].name)),
    }
}

fn compare(draft: &Draft, manifest: &CheckpointManifest) -> Result<(), String> {
    for wanted in &manifest.files {
        let found = CheckpointFile::of(draft.dir(), &wanted.name).map_err(|e| e.to_string())?;
        if found != *wanted {
            return Err(format!("`{}` does not have the hash that the manifest says", wanted.name));
        }
    }
    own_overlay(&draft.dir().join("disk.qcow2"))
}

/// A qcow2 file can name others that QEMU then opens for it, and a stranger could name any file of this host.
fn own_overlay(path: &Path) -> Result<(), String> {
    /// Field of a qcow2 header (QEMU's `docs/interop/qcow2.txt`): bit 2 is an external data file.
    const INCOMPATIBLE_FEATURES: u64 = 72;
    const EXTERNAL_DATA: u64 = 1 << 2;
    const BACKING_FILE: u64 = 8;
    let file = File::open(path).map_err(|e| e.to_string())?;
    let field = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).map(|()| u64::from_be_bytes(bytes)).map_err(|e| e.to_string())
    };
    // Magic and version 3 together.
    if field(0)? != 0x5146_49fb_0000_0003 {
        return Err("`disk.qcow2` is not a qcow2 file of version 3".into());
    }
    if field(BACKING_FILE)? != 0 || field(INCOMPATIBLE_FEATURES)? & EXTERNAL_DATA != 0 {
        return Err("`disk.qcow2` refers to other files of its host".into());
    }
    Ok(())
}

/// The overlay belongs to one making of the image: another of the same recipe has other keys, and its files lie elsewhere on the
/// disk.
fn require_image(manifest: &CheckpointManifest, images: &Store) -> Result<()> {
    let key = &manifest.key;
    let missing =
        |reason: String| Error::NoImageOf { id: manifest.id.clone(), image: key.image.clone(), reason };
    let image = images.lookup(&key.image).map_err(|_| missing("it is not on this host".into()))?;
    if image.id() != key.image || image.identity() != key.image_hash {
        return Err(missing("the image on this host was built separately, so its disk differs".into()));
    }
    Ok(())
}
