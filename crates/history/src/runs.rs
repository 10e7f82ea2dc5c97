//! The list of runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{Row, params};
use serde::Serialize;

use crate::error::sqlite;
use crate::{History, HistoryError};

/// What `outcome` of a filter may be.
pub const OUTCOMES: [&str; 4] = ["qualified", "rejected", "inconclusive", UNFINISHED];

/// A run without an end in its journal.
const UNFINISHED: &str = "unfinished";

/// Which runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// This is part of the name of one of its patches, in capitals or not; with `outcome`, of one that has that outcome.
    pub patch: Option<String>,
    /// One of its images.
    pub image: Option<String>,
    /// One of [`OUTCOMES`].
    pub outcome: Option<String>,
    /// Its tier.
    pub tier: Option<String>,
    /// It did not begin before this moment, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// So many at most, the newest.
    pub limit: Option<u32>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSeen {
    /// Its folder.
    pub dir: PathBuf,
    /// The folder is there no more.
    pub gone: bool,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// Length in milliseconds, so far.
    pub took_ms: u64,
    /// Name of its pipeline.
    pub pipeline: String,
    /// Tier in question.
    pub tier: String,
    /// Its images: the plan's, and those of its trials.
    pub images: Vec<String>,
    /// Its patches have nothing to do with each other, and each has an outcome of its own.
    pub apart: bool,
    /// It has not ended: `klpfarm resume` goes on with it.
    pub unfinished: bool,
    /// It was ended by the user.
    pub interrupted: bool,
    /// Trials without a finding.
    pub clean: u32,
    /// Trials with one that may be a patch's.
    pub failed: u32,
    /// Trials with one that is not.
    pub unexplained: u32,
    /// Trials that say nothing.
    pub void: u32,
    /// Its patches.
    pub patches: Vec<PatchSeen>,
    /// Its findings, by title.
    pub findings: Vec<FindingSeen>,
}

/// One patch of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PatchSeen {
    /// Its name.
    pub name: String,
    /// SHA-256 of its file, in hex.
    pub sha256: String,
    /// The outcome; absent while the run has not ended.
    pub outcome: Option<String>,
    /// Highest failure rate that its loaded trials leave possible.
    pub failure_rate: Option<f64>,
    /// With this confidence.
    pub confidence: Option<f64>,
}

/// One finding of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindingSeen {
    /// Its title.
    pub title: String,
    /// Its kind.
    pub kind: String,
    /// The image that it was seen on.
    pub image: String,
    /// Trials that had it.
    pub trials: u32,
    /// The image shows it without the patch as well, by the judge's word on each sighting.
    pub of_image: bool,
}

/// An SQL condition on a finding `f` and its trial `t`: it is the image's own.
pub(crate) const OF_IMAGE: &str = "(f.attribution IN ('control-too', 'before-apply', 'control-only') \
                                   OR (f.attribution IS NULL AND t.arm = 'control'))";

impl RunSeen {
    /// How many of its patches have which outcome; `unfinished` for all if the run has not ended.
    pub fn outcomes(&self) -> BTreeMap<&str, usize> {
        let mut outcomes = BTreeMap::new();
        if self.patches.is_empty() {
            outcomes.insert(if self.unfinished { UNFINISHED } else { "inconclusive" }, 1);
        }
        // What is judged together has one outcome.
        let judged = if self.apart { self.patches.len() } else { 1 };
        for patch in self.patches.iter().take(judged) {
            *outcomes.entry(patch.outcome.as_deref().unwrap_or(UNFINISHED)).or_insert(0) += 1;
        }
        outcomes
    }
}

impl History {
    /// The runs that `filter` lets through, newest first.
    ///
    /// # Errors
    /// If the index can't be read.
    pub fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSeen>, HistoryError> {
        self.select_runs(filter).map_err(sqlite(&self.file()))
    }

    fn select_runs(&self, filter: &RunFilter) -> rusqlite::Result<Vec<RunSeen>> {
        let mut query = self.db.prepare(
            "SELECT r.id, d.path, d.gone, r.started_ms, r.took_ms, r.pipeline, r.tier, r.image, r.apart, r.ended, r.interrupted, \
                    r.clean, r.failed, r.unexplained, r.void \
             FROM runs r JOIN folders d ON d.id = r.folder \
             WHERE (?1 IS NULL OR ?1 IN (SELECT r.image UNION SELECT t.image FROM trials t WHERE t.run = r.id)) AND (?2 IS NULL OR r.tier = ?2) AND (?3 IS NULL OR r.started_ms >= ?3) \
               AND (?5 IS NULL OR ?5 <> 'unfinished' OR NOT r.ended) \
               AND ((?4 IS NULL AND (?5 IS NULL OR ?5 = 'unfinished')) OR EXISTS ( \
                   SELECT 1 FROM patches p WHERE p.run = r.id AND (?4 IS NULL OR instr(lower(p.name), lower(?4)) > 0) \
                   AND (?5 IS NULL OR ?5 = 'unfinished' OR p.outcome = ?5))) \
             ORDER BY r.started_ms DESC, r.id DESC LIMIT ?6",
        )?;
        let limit = filter.limit.map_or(-1, i64::from);
        let rows = query.query_map(
            params![filter.image, filter.tier, filter.since_ms, filter.patch, filter.outcome, limit],
            |row| Ok((row.get::<_, i64>(0)?, run(row)?)),
        )?;
        rows.map(|row| {
            let (id, mut run) = row?;
            run.patches = self.patches_of(id)?;
            for image in self.images_of(id)? {
                if !run.images.contains(&image) {
                    run.images.push(image);
                }
            }
            run.findings = self.findings_of(id)?;
            Ok(run)
        })
        .collect()
    }

    fn patches_of(&self, run: i64) -> rusqlite::Result<Vec<PatchSeen>> {
        let mut query = self.db.prepare(
            "SELECT name, sha256, outcome, failure_rate, confidence FROM patches WHERE run = ?1 ORDER BY position",
        )?;
        let rows = query.query_map([run], |row| {
            Ok(PatchSeen {
                name: row.get(0)?,
                sha256: row.get(1)?,
                outcome: row.get(2)?,
                failure_rate: row.get(3)?,
                confidence: row.get(4)?,
            })
        })?;
        rows.collect()
    }

    fn images_of(&self, run: i64) -> rusqlite::Result<Vec<String>> {
        let mut query = self.db.prepare("SELECT DISTINCT image FROM trials WHERE run = ?1 ORDER BY image")?;
        query.query_map([run], |row| row.get(0))?.collect()
    }

    fn findings_of(&self, run: i64) -> rusqlite::Result<Vec<FindingSeen>> {
        let mut query = self.db.prepare(&format!(
            "SELECT f.title, min(f.kind), t.image, count(DISTINCT f.trial), min({OF_IMAGE}) \
             FROM findings f JOIN trials t ON t.run = f.run AND t.number = f.trial \
             WHERE f.run = ?1 GROUP BY f.title, t.image ORDER BY min(f.seq)"
        ))?;
        let rows = query.query_map([run], |row| {
            Ok(FindingSeen {
                title: row.get(0)?,
                kind: row.get(1)?,
                image: row.get(2)?,
                trials: row.get(3)?,
                of_image: row.get(4)?,
            })
        })?;
        rows.collect()
    }
}

fn run(row: &Row<'_>) -> rusqlite::Result<RunSeen> {
    Ok(RunSeen {
        dir: PathBuf::from(row.get::<_, String>(1)?),
        gone: row.get(2)?,
        started_ms: row.get(3)?,
        took_ms: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
        pipeline: row.get(5)?,
        tier: row.get(6)?,
        images: vec![row.get(7)?],
        apart: row.get(8)?,
        unfinished: !row.get::<_, bool>(9)?,
        interrupted: row.get(10)?,
        clean: row.get(11)?,
        failed: row.get(12)?,
        unexplained: row.get(13)?,
        void: row.get(14)?,
        patches: Vec::new(),
        findings: Vec::new(),
    })
}
