//! Findings and rates, night by night. Only trials that say anything count, as in a verdict.

use std::collections::{BTreeMap, BTreeSet};

use klpfarm_model::upper_bound;
use rusqlite::params;
use serde::Serialize;

use crate::error::sqlite;
use crate::runs::OF_IMAGE;
use crate::{History, HistoryError};

/// Which trials, and how far back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrendFilter {
    /// This is part of the name of a patch that the trial applied, in capitals or not; of a control trial, that its run was about.
    pub patch: Option<String>,
    /// The image.
    pub image: Option<String>,
    /// The last so many nights on which such a trial ran.
    pub nights: usize,
}

/// Trials of one arm with a finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Hit {
    /// Trials that had it.
    pub hit: u32,
    /// Trials that could have had it.
    pub of: u32,
}

impl Hit {
    /// The rate's exact two-sided bounds at 95 % (Clopper and Pearson 1934), as shares of 1.
    pub fn bounds(self) -> (f64, f64) {
        // What lies outside is shared by both sides.
        const SIDE: f64 = 0.975;
        (
            1.0 - upper_bound(self.of.saturating_sub(self.hit), self.of, SIDE),
            upper_bound(self.hit, self.of, SIDE),
        )
    }
}

/// A finding in one night.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FindingNight {
    /// The night, by the day on which it began.
    pub night: String,
    /// By arm.
    pub arms: BTreeMap<String, Hit>,
}

/// A finding over the nights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FindingTrend {
    /// The titles that it is about, with first and last sighting.
    pub titles: Vec<TitleSeen>,
    /// Night by night, the oldest first.
    pub nights: Vec<FindingNight>,
}

/// A title on an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TitleSeen {
    /// The finding's title.
    pub title: String,
    /// Its kind.
    pub kind: String,
    /// The image.
    pub image: String,
    /// The first night of all with a sighting.
    pub first: String,
    /// The last one.
    pub last: String,
    /// It was first seen in the latest night, and the image had nights before that.
    pub new: bool,
    /// By the judge's word on each sighting in the nights looked at, the image shows it without the patch as well.
    pub of_image: bool,
    /// Trials in the nights looked at, by arm.
    pub arms: BTreeMap<String, Hit>,
}

/// All findings of the nights looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trends {
    /// The nights, the oldest first.
    pub nights: Vec<String>,
    /// What was seen in them; what is new first.
    pub findings: Vec<TitleSeen>,
}

/// A workload in one night.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateNight {
    /// The night, by the day on which it began.
    pub night: String,
    /// Control trials that went through their soak.
    pub trials: usize,
    /// The lowest of their rates, in operations a second.
    pub lowest: f64,
    /// The median.
    pub median: f64,
    /// The highest.
    pub highest: f64,
}

/// A workload over the nights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateTrend {
    /// The workload.
    pub workload: String,
    /// Night by night, the oldest first.
    pub nights: Vec<RateNight>,
    /// Workloads that have been measured in control trials.
    pub workloads: BTreeSet<String>,
}

/// The trials that count, as a table `t`; ?1 is the patch, ?2 the image.
const TRIALS: &str = "WITH t AS ( \
    SELECT t.run, t.number, t.arm, t.night, t.ended, t.image FROM trials t \
    WHERE t.valid AND (?2 IS NULL OR t.image = ?2) AND (?1 IS NULL \
        OR (t.arm = 'control' AND EXISTS (SELECT 1 FROM patches p WHERE p.run = t.run AND instr(lower(p.name), lower(?1)) > 0)) \
        OR EXISTS (SELECT 1 FROM applied a WHERE a.run = t.run AND a.trial = t.number AND instr(lower(a.patch), lower(?1)) > 0))) ";

/// A night and the rate of one of its trials.
type NightRate = (String, f64);

/// Trials of an arm in one night on one image.
struct Ran {
    night: String,
    image: String,
    arm: String,
    trials: u32,
}

/// The same with one finding.
struct Saw {
    night: String,
    image: String,
    arm: String,
    kind: String,
    title: String,
    trials: u32,
    of_image: bool,
}

impl History {
    /// All findings of the last nights.
    ///
    /// # Errors
    /// If the index can't be read.
    pub fn trends(&self, filter: &TrendFilter) -> Result<Trends, HistoryError> {
        let ran = self.ran(filter)?;
        let nights = latest(&ran, filter.nights);
        let findings = titles(&ran, &self.saw(filter)?, &nights);
        Ok(Trends { nights: nights.into_iter().collect(), findings })
    }

    /// The findings with `text` in their title, or of the kind `text`, together, night by night.
    ///
    /// # Errors
    /// If the index can't be read.
    pub fn finding_trend(&self, filter: &TrendFilter, text: &str) -> Result<FindingTrend, HistoryError> {
        let ran = self.ran(filter)?;
        let nights = latest(&ran, filter.nights);
        let part = text.to_lowercase();
        let mut saw = self.saw(filter)?;
        saw.retain(|s| s.title.to_lowercase().contains(&part) || s.kind == text);
        let wanted: BTreeSet<&str> = saw.iter().map(|s| s.title.as_str()).collect();
        let hits = self.hits(filter, &wanted)?;
        let of_night = |night: &String| FindingNight {
            night: night.clone(),
            arms: arms(ran.iter().filter(|r| r.night == *night), hits.iter().filter(|h| h.night == *night)),
        };
        let shown = nights.iter().map(of_night).collect();
        // When it was first and last seen is told of all nights.
        let all: BTreeSet<String> = ran.iter().map(|r| r.night.clone()).collect();
        Ok(FindingTrend { titles: titles(&ran, &saw, &all), nights: shown })
    }

    /// The rate of a workload in the soak of control trials, night by night. Rates of a shared host drift threefold within minutes: a
    /// night's median says more than a trial.
    ///
    /// # Errors
    /// If the index can't be read.
    pub fn rate_trend(&self, filter: &TrendFilter, workload: &str) -> Result<RateTrend, HistoryError> {
        let (rates, workloads) = self.rates(filter, workload).map_err(sqlite(&self.file()))?;
        let mut by_night: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (night, rate) in rates {
            by_night.entry(night).or_default().push(rate);
        }
        let skipped = by_night.len().saturating_sub(filter.nights);
        let nights = by_night
            .into_iter()
            .skip(skipped)
            .map(|(night, mut rates)| {
                rates.sort_by(f64::total_cmp);
                let n = rates.len();
                let median = (rates[(n - 1) / 2] + rates[n / 2]) / 2.0;
                RateNight { night, trials: n, lowest: rates[0], median, highest: rates[n - 1] }
            })
            .collect();
        Ok(RateTrend { workload: workload.to_owned(), nights, workloads })
    }

    fn ran(&self, filter: &TrendFilter) -> Result<Vec<Ran>, HistoryError> {
        let select = || {
            let mut query = self
                .db
                .prepare(&format!("{TRIALS} SELECT night, image, arm, count(*) FROM t GROUP BY 1, 2, 3"))?;
            let rows = query.query_map(params![filter.patch, filter.image], |row| {
                Ok(Ran { night: row.get(0)?, image: row.get(1)?, arm: row.get(2)?, trials: row.get(3)? })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        select().map_err(sqlite(&self.file()))
    }

    fn saw(&self, filter: &TrendFilter) -> Result<Vec<Saw>, HistoryError> {
        let select = || {
            let mut query = self.db.prepare(&format!(
                "{TRIALS} SELECT t.night, t.image, t.arm, min(f.kind), f.title, count(DISTINCT t.run || ' ' || t.number), min({OF_IMAGE}) \
                 FROM t JOIN findings f ON f.run = t.run AND f.trial = t.number GROUP BY t.night, t.image, t.arm, f.title"
            ))?;
            let rows = query.query_map(params![filter.patch, filter.image], |row| {
                Ok(Saw {
                    night: row.get(0)?,
                    image: row.get(1)?,
                    arm: row.get(2)?,
                    kind: row.get(3)?,
                    title: row.get(4)?,
                    trials: row.get(5)?,
                    of_image: row.get(6)?,
                })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        select().map_err(sqlite(&self.file()))
    }

    /// Trials with any of `titles`: one that had two of them counts once.
    fn hits(&self, filter: &TrendFilter, titles: &BTreeSet<&str>) -> Result<Vec<Ran>, HistoryError> {
        let select = || {
            let mut query = self.db.prepare(&format!(
                "{TRIALS} SELECT t.night, t.image, t.arm, t.run, t.number, f.title \
                 FROM t JOIN findings f ON f.run = t.run AND f.trial = t.number"
            ))?;
            let mut trials: BTreeMap<(i64, u32), Ran> = BTreeMap::new();
            let mut rows = query.query(params![filter.patch, filter.image])?;
            while let Some(row) = rows.next()? {
                if titles.contains(row.get::<_, String>(5)?.as_str()) {
                    let one = Ran { night: row.get(0)?, image: row.get(1)?, arm: row.get(2)?, trials: 1 };
                    trials.insert((row.get(3)?, row.get(4)?), one);
                }
            }
            Ok(trials.into_values().collect())
        };
        select().map_err(sqlite(&self.file()))
    }

    fn rates(
        &self,
        filter: &TrendFilter,
        workload: &str,
    ) -> rusqlite::Result<(Vec<NightRate>, BTreeSet<String>)> {
        let mut query = self.db.prepare(&format!(
            "{TRIALS} SELECT t.night, s.ops * 1000.0 / s.window_ms, s.workload \
             FROM t JOIN rates s ON s.run = t.run AND s.trial = t.number \
             WHERE t.arm = 'control' AND t.ended = 'completed' AND s.phase = 'soak' AND s.window_ms > 0"
        ))?;
        let rows = query.query_map(params![filter.patch, filter.image], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, f64>(1)?, row.get::<_, String>(2)?))
        })?;
        let (mut rates, mut workloads) = (Vec::new(), BTreeSet::new());
        for row in rows {
            let (night, rate, of) = row?;
            if of == workload {
                rates.push((night, rate));
            }
            workloads.insert(of);
        }
        Ok((rates, workloads))
    }
}

/// The last `most` nights.
fn latest(ran: &[Ran], most: usize) -> BTreeSet<String> {
    let nights: BTreeSet<String> = ran.iter().map(|r| r.night.clone()).collect();
    let skipped = nights.len().saturating_sub(most);
    nights.into_iter().skip(skipped).collect()
}

/// Trials and hits by arm.
fn arms<'a>(
    ran: impl Iterator<Item = &'a Ran>,
    hits: impl Iterator<Item = &'a Ran>,
) -> BTreeMap<String, Hit> {
    let mut arms: BTreeMap<String, Hit> = BTreeMap::new();
    for r in ran {
        arms.entry(r.arm.clone()).or_default().of += r.trials;
    }
    for h in hits {
        arms.entry(h.arm.clone()).or_default().hit += h.trials;
    }
    arms
}

/// Title by title and image by image, what was seen in `nights`; what is new first, then what was seen last.
fn titles(ran: &[Ran], saw: &[Saw], nights: &BTreeSet<String>) -> Vec<TitleSeen> {
    let mut by_title: BTreeMap<(&str, &str), Vec<&Saw>> = BTreeMap::new();
    for s in saw {
        by_title.entry((&s.title, &s.image)).or_default().push(s);
    }
    let latest = ran.iter().map(|r| &r.night).max();
    let mut found: Vec<TitleSeen> = by_title
        .into_iter()
        .filter_map(|((title, image), saw)| {
            let looked_at: Vec<&&Saw> = saw.iter().filter(|s| nights.contains(&s.night)).collect();
            let first = saw.iter().map(|s| &s.night).min()?;
            let last = looked_at.iter().map(|s| &s.night).max()?;
            let before = ran.iter().any(|r| r.image == image && r.night < *first);
            let ran = ran.iter().filter(|r| r.image == image && nights.contains(&r.night));
            let hits: Vec<Ran> = looked_at
                .iter()
                .map(|s| Ran {
                    night: String::new(),
                    image: String::new(),
                    arm: s.arm.clone(),
                    trials: s.trials,
                })
                .collect();
            Some(TitleSeen {
                title: title.to_owned(),
                kind: saw[0].kind.clone(),
                image: image.to_owned(),
                first: first.clone(),
                last: last.clone(),
                new: Some(first) == latest && before,
                of_image: looked_at.iter().all(|s| s.of_image),
                arms: arms(ran, hits.iter()),
            })
        })
        .collect();
    found.sort_by(|a, b| (b.new, &b.last, &a.title, &a.image).cmp(&(a.new, &a.last, &b.title, &b.image)));
    found
}
