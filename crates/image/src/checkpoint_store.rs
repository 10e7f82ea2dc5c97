//! All checkpoints: a folder of them, made and removed in one step each, like images.
//!
//! A checkpoint comes to be in `.tmp-ID` and ends with one rename to `ID`. `.lock-ID` is locked meanwhile, so a `.tmp-ID` whose
//! lock is free was left by a maker that died, and the next one removes it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::{Hold, left_over, open_lock};
use crate::{
    CHECKPOINT_SCHEMA, Checkpoint, CheckpointFile, CheckpointManifest, Error, Key, Made, Progress, Result,
    Sink, fsutil,
};

/// All checkpoints below one `KLPFARM_HOME`.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    dir: PathBuf,
}

/// What [`CheckpointStore::begin`] comes to.
#[derive(Debug)]
pub enum Begun {
    /// It is there: made before, or by another process meanwhile.
    There(Box<Checkpoint>),
    /// It is yours to make.
    Draft(Box<Draft>),
}

impl CheckpointStore {
    /// The store in `home/checkpoints`, created when missing.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn open(home: &Path) -> Result<Self> {
        let home = std::path::absolute(home).map_err(Error::io("find", home))?;
        let dir = home.join("checkpoints");
        // A guest's memory holds keys: for the owner alone.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        Ok(Self { dir })
    }

    /// The folder of the checkpoints.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The checkpoint with this key, if it is there. Its files are not looked at: see [`Checkpoint::verify`].
    ///
    /// # Errors
    /// When its manifest cannot be read.
    pub fn get(&self, key: &Key) -> Result<Option<Checkpoint>> {
        Checkpoint::read(&self.dir.join(key.id()))
    }

    /// The checkpoint with this id, or the only one whose id begins so.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`], or [`Error::AmbiguousCheckpoint`] with all that begin so.
    pub fn find(&self, name: &str) -> Result<Checkpoint> {
        let mut found = self.list()?;
        found.retain(|c| c.id().starts_with(name));
        if let Some(at) = found.iter().position(|c| c.id() == name) {
            return Ok(found.swap_remove(at));
        }
        match found.pop() {
            None => Err(Error::NoCheckpoint { name: name.to_owned(), dir: self.dir.clone() }),
            Some(only) if found.is_empty() => Ok(only),
            Some(last) => {
                let ids = found.iter().chain([&last]).map(|c| c.id().to_owned()).collect();
                Err(Error::AmbiguousCheckpoint { name: name.to_owned(), ids })
            }
        }
    }

    /// All checkpoints, the oldest first. One with an unreadable manifest is left out with a warning.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Checkpoint>> {
        let mut list = Vec::new();
        for name in self.names("")? {
            match Checkpoint::read(&self.dir.join(&name)) {
                Ok(checkpoint) => list.extend(checkpoint),
                Err(error) => tracing::warn!(%error, "checkpoint left out"),
            }
        }
        list.sort_by(|a, b| a.manifest.created.cmp(&b.manifest.created));
        Ok(list)
    }

    /// Ids of checkpoints that another klpfarm made and this one cannot read: lists leave them out, and they take disk all the same.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn of_other_schema(&self) -> Result<Vec<String>> {
        let mut names = self.names("")?;
        let dir = |name: &String| self.dir.join(name);
        names.retain(|name| {
            dir(name).join("manifest.json").exists() && matches!(Checkpoint::read(&dir(name)), Ok(None))
        });
        Ok(names)
    }

    /// Remove the checkpoint with this id, whatever its state, or the only one whose id begins so; returns the id.
    ///
    /// # Errors
    /// [`Error::CheckpointBusy`] when machines run from it or it is being made; none of that name.
    pub fn remove(&self, name: &str) -> Result<String> {
        // Also one whose manifest is damaged must go, and that one is found by its folder only.
        let id = match self.names("")?.into_iter().find(|id| id == name) {
            Some(id) => id,
            None => self.find(name)?.manifest.id,
        };
        let _lock = self.take(&id)?.ok_or_else(|| Error::CheckpointBusy(id.clone()))?;
        let (place, old) = (self.dir.join(&id), self.dir.join(format!(".old-{id}")));
        clear(&old)?;
        // First out of sight, in one step; then the long work.
        fs::rename(&place, &old).map_err(Error::io("rename", &place))?;
        fsutil::sync(&self.dir)?;
        clear(&old)?;
        Ok(id)
    }

    /// Begin to make the checkpoint with this key, or take the one that is there. While another process makes it, this waits.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub async fn begin(&self, key: &Key, progress: Sink<'_>) -> Result<Begun> {
        let id = key.id();
        let mut told = false;
        let lock = loop {
            if let Some(checkpoint) = self.get(key)? {
                return Ok(Begun::There(Box::new(checkpoint)));
            }
            match self.take(&id)? {
                Some(lock) => break lock,
                None if !told => progress(Progress::Waiting { id: id.clone() }),
                // Nothing asynchronous tells when a file lock is free, and a thread blocked in it could not be cancelled.
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
            told = true;
        };
        // Between the last look and the lock.
        if let Some(checkpoint) = self.get(key)? {
            return Ok(Begun::There(Box::new(checkpoint)));
        }
        self.clear_left_over()?;
        self.draft(key, lock).map(|draft| Begun::Draft(Box::new(draft)))
    }

    /// An empty draft, unless there is such a checkpoint or somebody makes it right now.
    pub(crate) fn begin_new(&self, key: &Key) -> Result<Draft> {
        let id = key.id();
        let lock = self.take(&id)?.ok_or_else(|| Error::CheckpointBusy(id.clone()))?;
        if self.dir.join(&id).exists() {
            return Err(Error::CheckpointThere(id));
        }
        self.clear_left_over()?;
        self.draft(key, lock)
    }

    fn draft(&self, key: &Key, lock: Hold) -> Result<Draft> {
        let id = key.id();
        let dir = self.dir.join(format!(".tmp-{id}"));
        clear(&dir)?;
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        Ok(Draft { place: self.dir.join(id), dir, key: key.clone(), published: false, _lock: lock })
    }

    /// The lock of this checkpoint, if nobody has it.
    fn take(&self, id: &str) -> Result<Option<Hold>> {
        let file = open_lock(&self.dir.join(format!(".lock-{id}")))?;
        Ok(file.try_lock().is_ok().then(|| Hold::new(file)))
    }

    /// Folders that makers and removals that died have left.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn left_over(&self) -> Result<Vec<PathBuf>> {
        left_over(&self.dir)
    }

    /// Whether machines run from this checkpoint, or it is being made or removed.
    ///
    /// # Errors
    /// When its lock cannot be opened.
    pub fn is_busy(&self, id: &str) -> Result<bool> {
        Ok(self.take(id)?.is_none())
    }

    /// Remove what makers and removals that died have left; what living ones have is locked. Making a checkpoint does the same.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clear_left_over(&self) -> Result<()> {
        for prefix in [".tmp-", ".old-"] {
            for name in self.names(prefix)? {
                if let Some(_lock) = self.take(&name[prefix.len()..])? {
                    tracing::info!(%name, "removing what an ended process left");
                    clear(&self.dir.join(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Names of entries that begin with `prefix`; with none, of those that are no hidden ones.
    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))?;
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        Ok(names.filter(|n| n.starts_with(prefix) && (!prefix.is_empty() || !n.starts_with('.'))).collect())
    }
}

/// A checkpoint that is being made, seen by nobody. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    place: PathBuf,
    key: Key,
    published: bool,
    // Last: what is made is removed while it is still locked.
    _lock: Hold,
}

impl Draft {
    /// The folder to put [`crate::CHECKPOINT_FILES`] into, and [`crate::CHECKPOINT_KEY`] with its host key in [`Made`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Hash and sync the files, write the manifest, and make it visible, in one rename. Takes as long as reading the guest's memory
    /// once.
    ///
    /// # Errors
    /// When a file is missing or cannot be read; nothing is visible then.
    pub fn publish(self, made: Made) -> Result<Checkpoint> {
        let files = made.files().map(|name| CheckpointFile::of(&self.dir, name)).collect::<Result<_>>()?;
        let manifest = CheckpointManifest {
            schema: CHECKPOINT_SCHEMA,
            id: self.key.id(),
            key: self.key.clone(),
            created: jiff::Timestamp::now().to_string(),
            files,
            made,
        };
        self.publish_as(manifest)
    }

    /// As [`Draft::publish`], with a manifest whose files have been compared.
    pub(crate) fn publish_as(mut self, manifest: CheckpointManifest) -> Result<Checkpoint> {
        let file = self.dir.join("manifest.json");
        let text =
            serde_json::to_string_pretty(&manifest).map_err(|e| Error::io("write", &file)(e.into()))?;
        fs::write(&file, text + "\n").map_err(Error::io("write", &file))?;
        for name in manifest.made.files().chain(["manifest.json"]) {
            let path = self.dir.join(name);
            // QEMU and the console's writer have modes of their own.
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(Error::io("protect", &path))?;
            fsutil::sync(&path)?;
        }
        fsutil::sync(&self.dir)?;
        // What is there is of another schema, or `begin` would have found it.
        clear(&self.place)?;
        fs::rename(&self.dir, &self.place).map_err(Error::io("rename", &self.dir))?;
        self.published = true;
        fsutil::sync(self.place.parent().unwrap_or(Path::new("/")))?;
        Ok(Checkpoint { dir: self.place.clone(), manifest })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = clear(&self.dir)
        {
            tracing::warn!(%error, "left over; the next checkpoint tries again");
        }
    }
}

/// Remove a folder, if it is there.
fn clear(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}
