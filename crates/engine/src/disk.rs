//! Disk, watched while a run goes on: it ends in order, with what it has, before the disk is full.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::host::free_disk;
use crate::{Error, Remedy, Result};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(3);

/// What a run folder takes is counted every so many looks: a long soak's has many files.
const COUNT_EVERY: u32 = 10;

/// What is set aside in the run folder, in bytes: the last lines of the journal, the verdict and the report fit in, even if the disk
/// fills up faster than it is looked.
const ASIDE: usize = 4 << 20;

/// How much disk a run may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The run ends in order when fewer bytes are free for its folder, KLPFARM_HOME or the temporary folder.
    pub reserve: u64,
    /// The run ends in order when its folder takes more bytes than this.
    pub run: Option<u64>,
}

impl Limits {
    /// The same, and what a pipeline allows at most where the user did not say.
    pub fn or(self, disk_mib: Option<u32>) -> Self {
        let limit = disk_mib.map(|mib| u64::from(mib) << 20);
        Self { run: self.run.or(limit), ..self }
    }

    /// Whether there is disk enough to begin.
    ///
    /// # Errors
    /// If less than the reserve is free.
    pub fn allow(self, home: &Path, run: &Path) -> Result<()> {
        Watched::new(self, home, run).enough()
    }

    /// Wait until disk runs short for a machine that is aged: nothing is written but below `home` and to the temporary folder. Returns
    /// what to say.
    pub async fn low(self, home: &Path) -> String {
        Arc::new(Watched::new(Self { run: None, ..self }, home, home)).low().await
    }
}

/// What is watched.
struct Watched {
    limits: Limits,
    /// Folders whose disks must not fill up.
    places: Vec<PathBuf>,
    run: PathBuf,
}

/// Watches the disks of a run.
pub struct Guard {
    watched: Arc<Watched>,
    /// Given back when the end has come; goes with the guard in any case.
    aside: Option<tempfile::TempPath>,
}

impl Guard {
    /// Set the reserve aside in `run`, which exists, and watch its disk and those of `home` and the temporary folder.
    ///
    /// # Errors
    /// If less than the reserve is free already.
    pub fn new(limits: Limits, home: &Path, run: &Path) -> Result<Self> {
        let watched = Watched::new(limits, home, run);
        watched.enough()?;
        let aside = set_aside(run).map_err(|e| Error::farm(e).about(run.display()))?;
        Ok(Self { watched: Arc::new(watched), aside: Some(aside) })
    }

    /// Wait until disk runs short; returns what to say, when the reserve has been given back.
    pub async fn low(&mut self) -> String {
        let why = Arc::clone(&self.watched).low().await;
        self.aside.take();
        why
    }
}

impl Watched {
    fn new(limits: Limits, home: &Path, run: &Path) -> Self {
        let places = vec![run.to_owned(), home.to_owned(), std::env::temp_dir()];
        Self { limits, places, run: run.to_owned() }
    }

    async fn low(self: Arc<Self>) -> String {
        let mut looks = 0_u32;
        loop {
            tokio::time::sleep(LOOK).await;
            looks = looks.wrapping_add(1);
            // A file system may take its time to answer, and machines must be looked after meanwhile.
            let (watched, count) = (Arc::clone(&self), looks.is_multiple_of(COUNT_EVERY));
            let short = tokio::task::spawn_blocking(move || watched.short(count)).await;
            if let Ok(Some(why)) = short {
                return why;
            }
        }
    }

    fn enough(&self) -> Result<()> {
        match self.short(false) {
            Some(why) => Err(Error::farm(why).with(Remedy::FreeDisk)),
            None => Ok(()),
        }
    }

    /// What runs short; what the run folder takes is counted on demand only.
    fn short(&self, count: bool) -> Option<String> {
        let Limits { reserve, run } = self.limits;
        let place = self.places.iter().find_map(|place| {
            let free = free_disk(place).filter(|free| *free < reserve)?;
            let mib = |bytes: u64| bytes >> 20;
            Some(format!(
                "{}: only {} MiB are free, {} are kept in reserve",
                place.display(),
                mib(free),
                mib(reserve)
            ))
        });
        place.or_else(|| {
            let limit = run.filter(|_| count)?;
            let used = used(&self.run);
            (used > limit).then(|| {
                format!("{}: takes {} MiB, its limit is {}", self.run.display(), used >> 20, limit >> 20)
            })
        })
    }
}

/// Written and not only made long: a hole takes no disk.
fn set_aside(dir: &Path) -> std::io::Result<tempfile::TempPath> {
    // The same name each time: one that a killed farm left is taken over, and never more than one is there.
    let path = dir.join(".reserve");
    let mut file = File::create(&path)?;
    let path = tempfile::TempPath::try_from_path(path)?;
    file.write_all(&vec![0; ASIDE])?;
    file.sync_all()?;
    Ok(path)
}

/// What a file, or a folder with all that is in it, takes on disk, in bytes. Links are not followed; what cannot be read counts
/// nothing.
pub fn used(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    // POSIX: st_blocks counts 512 bytes each, whatever the file system's blocks are.
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|e| used(&e.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(reserve: u64, run: Option<u64>) -> Limits {
        Limits { reserve, run }
    }

    #[test]
    fn a_run_does_not_begin_without_its_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let begun = Guard::new(limits(u64::MAX, None), dir.path(), dir.path());
        let Err(error) = begun else { panic!("it began") };
        assert_eq!((error.kind(), error.remedy()), (crate::Kind::Farm, Some(&Remedy::FreeDisk)));
        assert!(error.to_string().contains("are kept in reserve"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_folder_that_grows_too_large_is_noticed_and_the_reserve_given_back() {
        let (home, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut guard = Guard::new(limits(1, Some(6 << 20)), home.path(), run.path()).unwrap();
        assert!(used(run.path()) >= ASIDE as u64, "set aside, and no hole");
        // Some looks, none of which finds anything: what is set aside is within the limit.
        let quiet = tokio::time::timeout(LOOK * COUNT_EVERY * 2, guard.low()).await;
        assert!(quiet.is_err());
        fs::write(run.path().join("console.log"), vec![b'x'; 4 << 20]).unwrap();
        let why = guard.low().await;
        assert!(why.contains("its limit is 6"), "{why}");
        assert!(!run.path().join(".reserve").exists());
        // One that a killed farm left is taken over.
        fs::write(run.path().join(".reserve"), "").unwrap();
        let guard = Guard::new(limits(1, None), home.path(), run.path()).unwrap();
        assert!(fs::metadata(run.path().join(".reserve")).unwrap().len() == ASIDE as u64);
        drop(guard);
        assert!(!run.path().join(".reserve").exists());
    }
}
