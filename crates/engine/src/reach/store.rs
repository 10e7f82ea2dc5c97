//! The files of a reach map, which lie in the folder of their image and go with it: `reach/kernel.gz`, and `reach/WORKLOAD-KEY.gz` for
//! each workload, whose key says what it was made of.

use std::path::{Path, PathBuf};

use klpfarm_farm::Method;
use klpfarm_image::Image;
use klpfarm_model::Workload;
use klpfarm_reach::{BACKGROUND, Kernel, Record, RecordError, SCHEMA};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Ways to measure, the best first.
const METHODS: [&str; 2] = [Method::Plugin.as_str(), Method::Tracer.as_str()];

/// The map of one image.
pub(crate) struct Store {
    dir: PathBuf,
    identity: String,
}

impl Store {
    pub(crate) fn of(image: &Image) -> Self {
        Self { dir: image.dir.join("reach"), identity: image.identity() }
    }

    /// The file of a workload, or of none. Only what decides a measurement is in its key: not how long it took.
    fn file(&self, workload: Option<&Workload>, method: &str) -> PathBuf {
        let name = workload.map_or(BACKGROUND, |w| &w.name);
        let what = workload.map(|w| (&w.run, &w.packages));
        // A program of the guest is the same whatever guest binary starts it.
        let builtin = workload.is_some_and(|w| w.run.builtin.is_some());
        let binary = if builtin {
            klpfarm_model::hex(&Sha256::digest(klpfarm_vm::GUEST_BINARY))
        } else {
            String::new()
        };
        let parts = serde_json::json!([SCHEMA, self.identity, what, binary, method]);
        let key = klpfarm_model::hex(&Sha256::digest(parts.to_string()));
        self.dir.join(format!("{name}-{}.gz", &key[..12]))
    }

    /// What has been measured of this workload, if it can still be read.
    pub(crate) fn record(
        &self,
        workload: Option<&Workload>,
        method: &str,
        wanted: Option<&[&str]>,
    ) -> Option<Record> {
        let bytes = std::fs::read(self.file(workload, method)).ok()?;
        readable(Record::of_bytes(&bytes, wanted))
    }

    /// All that can be read: of the machine without any workload, of these workloads as they are now, and of the user's own. And the names of
    /// those of these that have not been measured. The method that does not disturb the guest comes first.
    pub(crate) fn all(&self, shipped: &[Workload], wanted: Option<&[&str]>) -> (Vec<Record>, Vec<String>) {
        let (mut records, mut missing) = (Vec::new(), Vec::new());
        for workload in std::iter::once(None).chain(shipped.iter().map(Some)) {
            match METHODS.iter().find_map(|method| self.record(workload, method, wanted)) {
                Some(record) => records.push(record),
                None => missing.extend(workload.map(|w| w.name.clone())),
            }
        }
        let known = |name: &str| name == BACKGROUND || shipped.iter().any(|w| w.name == name);
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        let own = entries.filter(|p| name_of(p).is_some_and(|name| name != "kernel" && !known(&name)));
        let read = |file: PathBuf| readable(Record::of_bytes(&std::fs::read(file).ok()?, wanted));
        let mut own: Vec<Record> = own.filter_map(read).collect();
        own.sort_by_key(|r| (r.workload.clone(), METHODS.iter().position(|m| *m == r.method)));
        own.dedup_by(|next, kept| next.workload == kept.workload);
        records.extend(own);
        (records, missing)
    }

    pub(crate) fn kernel(&self, wanted: Option<&[&str]>) -> Option<Kernel> {
        let bytes = std::fs::read(self.dir.join("kernel.gz")).ok()?;
        readable(Kernel::of_bytes(&bytes, wanted))
    }

    pub(crate) fn keep_kernel(&self, kernel: &Kernel) -> Result<()> {
        self.write(&self.dir.join("kernel.gz"), &kernel.to_bytes())
    }

    /// Keep a record in place of earlier ones of this workload.
    pub(crate) fn keep(&self, workload: Option<&Workload>, record: &Record) -> Result<()> {
        let file = self.file(workload, &record.method);
        self.write(&file, &record.to_bytes())?;
        for other in self.others(&file) {
            // Another klpfarm may have been faster.
            let _ = std::fs::remove_file(other);
        }
        Ok(())
    }

    /// Files of the same workload and method with another key.
    fn others(&self, file: &Path) -> Vec<PathBuf> {
        let method =
            |path: &Path| Record::of_bytes(&std::fs::read(path).ok()?, Some(&[])).ok().map(|r| r.method);
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| p != file && name_of(p) == name_of(file) && method(p) == method(file)).collect()
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> Result<()> {
        let failed = |e: std::io::Error| Error::farm(e).about(file.display());
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let fresh = tempfile::NamedTempFile::new_in(&self.dir).map_err(failed)?;
        std::fs::write(fresh.path(), bytes).map_err(failed)?;
        fresh.persist(file).map_err(|e| failed(e.error))?;
        Ok(())
    }
}

/// The workload that a file is of.
fn name_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?.strip_suffix(".gz")?;
    Some(name.rsplit_once('-').map_or(name, |(name, _)| name).to_owned())
}

/// What can't be read is measured again.
fn readable<T>(read: Result<T, RecordError>) -> Option<T> {
    read.inspect_err(|error| tracing::warn!("a file of the reach map is left out: {error}")).ok()
}
