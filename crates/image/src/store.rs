//! The store: a folder of images, each named by its content's recipe.
//!
//! A build works in `.tmp-ID` and ends with one rename to `ID`. `.lock-ID` is locked meanwhile, by us and by the tools we
//! start, so a `.tmp-ID` whose lock is free was left by a build that died, and the next build removes it.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::recipe::Source;
use crate::sandbox::Sandbox;
use crate::{Error, Image, Manifest, Progress, Recipe, Result, Sink, fsutil, guest, prebuilt, rootfs};

/// All images below one `KLPFARM_HOME`.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// How to build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Build again although there is an image.
    pub force: bool,
    /// A folder whose programs are taken before those of `PATH`.
    pub tools: Option<PathBuf>,
}

impl Store {
    /// The store in `home/images`, created when missing.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn open(home: &Path) -> Result<Self> {
        let home = std::path::absolute(home).map_err(Error::io("find", home))?;
        let dir = home.join("images");
        // A guest's disk holds its host key, and lies beside the key that opens it: for the owner alone.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        let open = fs::metadata(&dir).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
        if open {
            // One that an earlier version made.
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(&dir, private).map_err(Error::io("protect", &dir))?;
        }
        Ok(Self { dir })
    }

    /// The folder of the images.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image made from this recipe, if there is one and the user's own files behind it have not changed.
    ///
    /// # Errors
    /// When its manifest cannot be read.
    pub fn get(&self, recipe: &Recipe) -> Result<Option<Image>> {
        let image = Image::read(&self.dir.join(image_id(recipe)))?;
        Ok(image.filter(Image::is_current))
    }

    /// All images, by name, the newest of a name first. One with an unreadable manifest is left out with a warning.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            match Image::read(&entry.path()) {
                Ok(image) => images.extend(image),
                Err(error) => tracing::warn!(%error, "image left out"),
            }
        }
        images.sort_by(|a, b| {
            (&a.manifest.name, &b.manifest.created).cmp(&(&b.manifest.name, &a.manifest.created))
        });
        Ok(images)
    }

    /// The image with this id, or the newest with this name.
    ///
    /// # Errors
    /// [`Error::NoImage`] when there is none.
    pub fn lookup(&self, name: &str) -> Result<Image> {
        let mut images = self.list()?.into_iter();
        images
            .find(|image| image.id() == name || image.manifest.name == name)
            .ok_or_else(|| Error::NoImage { name: name.to_owned(), dir: self.dir.clone() })
    }

    /// Remove the image with this id, or all with this name; returns their ids.
    ///
    /// # Errors
    /// [`Error::NoImage`] when there is none, [`Error::Busy`] when it is being built or held.
    pub async fn remove(&self, name: &str) -> Result<Vec<String>> {
        let mut images = self.list()?;
        images.retain(|image| image.id() == name || image.manifest.name == name);
        if images.is_empty() {
            return Err(Error::NoImage { name: name.to_owned(), dir: self.dir.clone() });
        }
        for image in &images {
            let search_path = fsutil::search_path(None);
            let sandbox = match image.rootfs() {
                Some(_) => Sandbox::detect(search_path).await?,
                None => Sandbox::plain(search_path),
            };
            let _lock = self.take(image.id())?.ok_or_else(|| Error::Busy(image.id().to_owned()))?;
            // First out of sight, in one step; then the long work.
            let old = self.dir.join(format!(".old-{}", image.id()));
            sandbox.remove_tree(&old).await?;
            fs::rename(&image.dir, &old).map_err(Error::io("rename", &image.dir))?;
            sandbox.remove_tree(&old).await?;
        }
        Ok(images.into_iter().map(|image| image.manifest.id).collect())
    }

    /// The image of this recipe: the one there is, or a new one. A second build of the same recipe waits for the first.
    /// Cancel-safe: dropping the future ends the tools, and nothing half-made is ever seen as an image.
    ///
    /// # Errors
    /// What is missing on the host, what a tool said, what a file is not; each with what to do.
    pub async fn build(&self, recipe: &Recipe, options: &BuildOptions, progress: Sink<'_>) -> Result<Image> {
        if let (false, Some(image)) = (options.force, self.get(recipe)?) {
            return Ok(image);
        }
        let id = image_id(recipe);
        let lock = self.lock(&id, progress).await?;
        let built = self.build_locked(recipe, options, &id, &lock, progress).await;
        // Not on cancellation, when tools may still be dying: their copies of the lock end with them. But now, explicitly:
        // a process that another thread is just starting may hold a copy for a moment.
        lock.unlock().map_err(Error::io("unlock", &self.dir))?;
        built
    }

    async fn build_locked(
        &self,
        recipe: &Recipe,
        options: &BuildOptions,
        id: &str,
        lock: &File,
        progress: Sink<'_>,
    ) -> Result<Image> {
        if let (false, Some(image)) = (options.force, self.get(recipe)?) {
            return Ok(image);
        }
        let search_path = fsutil::search_path(options.tools.as_deref());
        let sandbox = match &recipe.source {
            Source::Build(build) => {
                rootfs::check_host(recipe, build, &search_path, &self.dir)?;
                let sandbox = Sandbox::detect(search_path).await?;
                self.sweep(&sandbox).await?;
                sandbox
            }
            Source::Prebuilt(_) => Sandbox::plain(search_path),
        };
        let temporary = self.dir.join(format!(".tmp-{id}"));
        sandbox.remove_tree(&temporary).await?;
        fs::DirBuilder::new().mode(0o755).create(&temporary).map_err(Error::io("create", &temporary))?;
        let made = self.make(recipe, &temporary, &sandbox, lock, progress).await;
        match made {
            Ok(()) => self.publish(id, &temporary, &sandbox).await,
            Err(error) => {
                if let Err(cleanup) = sandbox.remove_tree(&temporary).await {
                    tracing::warn!(%cleanup, "left over; the next build tries again");
                }
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        recipe: &Recipe,
        dir: &Path,
        sandbox: &Sandbox,
        lock: &File,
        progress: Sink<'_>,
    ) -> Result<()> {
        let manifest = match &recipe.source {
            Source::Build(build) => rootfs::make(recipe, build, dir, sandbox, lock, progress).await?,
            Source::Prebuilt(spec) => prebuilt::make(recipe, spec, dir, sandbox, lock, progress).await?,
        };
        let manifest = Manifest { id: image_id(recipe), recipe_hash: recipe_hash(recipe), ..manifest };
        let file = dir.join("manifest.json");
        let text =
            serde_json::to_string_pretty(&manifest).map_err(|e| Error::io("write", &file)(e.into()))?;
        fs::write(&file, text + "\n").map_err(Error::io("write", &file))?;
        fsutil::sync(&file)?;
        fsutil::sync(dir)
    }

    /// The one moment in which an image comes to be.
    async fn publish(&self, id: &str, temporary: &Path, sandbox: &Sandbox) -> Result<Image> {
        let place = self.dir.join(id);
        let old = self.dir.join(format!(".old-{id}"));
        if place.exists() {
            sandbox.remove_tree(&old).await?;
            fs::rename(&place, &old).map_err(Error::io("rename", &place))?;
        }
        fs::rename(temporary, &place).map_err(Error::io("rename", temporary))?;
        fsutil::sync(&self.dir)?;
        sandbox.remove_tree(&old).await?;
        Image::read(&place)?.ok_or_else(|| Error::NoImage { name: id.to_owned(), dir: self.dir.clone() })
    }

    /// Remove what builds and removals that died have left, of all images; those of living ones are locked.
    async fn sweep(&self, sandbox: &Sandbox) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_prefix(".tmp-").or_else(|| name.strip_prefix(".old-")) else {
                continue;
            };
            // Our own lock is another open file, so it counts as taken here; `build` removes that folder itself.
            if let Some(_lock) = self.take(id)? {
                tracing::info!(%name, "removing what an ended build left");
                sandbox.remove_tree(&entry.path()).await?;
            }
        }
        Ok(())
    }

    /// Folders that builds and removals that died have left.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn left_over(&self) -> Result<Vec<PathBuf>> {
        left_over(&self.dir)
    }

    /// Remove what [`Store::left_over`] names; the next build does the same.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub async fn clear_left_over(&self) -> Result<()> {
        let sandbox = Sandbox::detect(fsutil::search_path(None)).await?;
        self.sweep(&sandbox).await
    }

    fn lock_file(&self, id: &str) -> Result<File> {
        open_lock(&self.dir.join(format!(".lock-{id}")))
    }

    /// The lock of this image, if nobody has it.
    fn take(&self, id: &str) -> Result<Option<Hold>> {
        let file = self.lock_file(id)?;
        Ok(file.try_lock().is_ok().then(|| Hold(file)))
    }

    async fn lock(&self, id: &str, progress: Sink<'_>) -> Result<File> {
        let file = self.lock_file(id)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if !told => {
                    progress(Progress::Waiting { id: id.to_owned() });
                    told = true;
                }
                // Nothing asynchronous tells when a file lock is free, and a thread blocked in it could not be cancelled.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &self.dir)(error)),
            }
        }
    }
}

impl Image {
    /// Keep this image from being removed or rebuilt until the returned value is dropped; for as long as machines run.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is just being removed or rebuilt.
    pub fn hold(&self) -> Result<Hold> {
        let store = self.dir.parent().unwrap_or(Path::new("/"));
        let file = open_lock(&store.join(format!(".lock-{}", self.id())))?;
        file.try_lock_shared().map_err(|_| Error::Busy(self.id().to_owned()))?;
        Ok(Hold(file))
    }
}

/// An image or a checkpoint in use; see [`Image::hold`] and [`crate::Checkpoint::hold`].
#[derive(Debug)]
#[must_use = "dropping it lets what is held be removed"]
pub struct Hold(File);

impl Hold {
    /// Of a file that has been locked.
    pub(crate) fn new(locked: File) -> Self {
        Self(locked)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is just starting has a copy for a moment.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot unlock");
        }
    }
}

/// Half-made and half-removed things in a store whose lock nobody has. Looked at with a shared lock, which no user of a thing minds.
pub(crate) fn left_over(store: &Path) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(store).map_err(Error::io("read", store))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix(".tmp-").or_else(|| name.strip_prefix(".old-")) else { continue };
        let lock = File::open(store.join(format!(".lock-{id}")));
        if lock
            .as_ref()
            .map_or_else(|e| e.kind() == std::io::ErrorKind::NotFound, |l| l.try_lock_shared().is_ok())
        {
            left.push(entry.path());
        }
    }
    Ok(left)
}

pub(crate) fn open_lock(path: &Path) -> Result<File> {
    File::options().read(true).append(true).create(true).open(path).map_err(Error::io("create", path))
}

/// SHA-256 of everything that decides what an image of this recipe is: the recipe without its description, our commands,
/// and our files in the guest.
fn recipe_hash(recipe: &Recipe) -> String {
    let commands = format!("{:?}", recipe.commands(Path::new("")));
    let parts = serde_json::json!([crate::SCHEMA, recipe.name, recipe.source, commands, guest::digest()]);
    fsutil::hex(&Sha256::digest(parts.to_string()))
}

/// The name of an image's folder.
pub(crate) fn image_id(recipe: &Recipe) -> String {
    format!("{}-{}", recipe.name, &recipe_hash(recipe)[..12])
}
