//! The control trials next to a trial, and what is usual among them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::change::Change;

/// Something that was not compared in a trial.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gap {
    pub(super) what: String,
    pub(super) why: &'static str,
}

/// Control trials that a trial is compared with, at most: those whose numbers are nearest, before and after it.
pub(super) const NEAREST: usize = 20;

/// Fewer control trials with a figure than this say nothing of what is usual.
pub(super) const FEWEST: usize = 2;

/// Why a figure was not compared.
const TOO_FEW: &str = "too few of the nearest control trials have it";

/// The control trials that one trial is compared with.
pub(super) struct Near<'c> {
    controls: Vec<&'c Change>,
    /// What could not be compared, if anybody wants to know.
    gaps: Option<RefCell<BTreeSet<Gap>>>,
}

impl<'c> Near<'c> {
    pub(super) fn of(controls: Vec<&'c Change>, note_gaps: bool) -> Self {
        Self { controls, gaps: note_gaps.then(RefCell::default) }
    }

    pub(super) fn controls(&self) -> impl Iterator<Item = &'c Change> {
        self.controls.iter().copied()
    }

    /// What is usual for a figure that is the larger the worse. Control trials without it are left out; where too few are left there is
    /// none, and that is noted of `what`.
    pub(super) fn usual(
        &self,
        what: impl FnOnce() -> String,
        of: impl Fn(&'c Change) -> Option<f64>,
    ) -> Option<Usual> {
        let mut values = Vec::with_capacity(self.controls.len());
        values.extend(self.controls().filter_map(of));
        let usual = Usual::of(values);
        if usual.is_none() {
            self.misses(what, TOO_FEW);
        }
        usual
    }

    /// Whether enough control trials have a figure; noted of `what` if not.
    pub(super) fn know(&self, what: impl FnOnce() -> String, of: impl Fn(&'c Change) -> bool) -> bool {
        let enough = self.controls().filter(|c| of(c)).take(FEWEST).count() >= FEWEST;
        if !enough {
            self.misses(what, TOO_FEW);
        }
        enough
    }

    /// Note that something could not be compared.
    pub(super) fn misses(&self, what: impl FnOnce() -> String, why: &'static str) {
        if let Some(gaps) = &self.gaps {
            gaps.borrow_mut().insert(Gap { what: what(), why });
        }
    }

    pub(super) fn notes_gaps(&self) -> bool {
        self.gaps.is_some()
    }

    pub(super) fn gaps(self) -> BTreeSet<Gap> {
        self.gaps.map(RefCell::into_inner).unwrap_or_default()
    }
}

/// The upper end of what control trials do.
///
/// One noisy control trial must hide nothing, so the most extreme ones are left out: one of 3 to 11, two of more. What stands for
/// all the less surely asks for a wider margin: with few control trials, the limit counts from the most extreme one or, by a larger
/// factor, from the one that is left; whichever is nearer. The factors keep the share of sound trials in which any of seven
/// workloads, whose change varies with sd(log) 0.13 to 0.55, stands out by a factor of 4 below 0.5 % (`compare/tests/null.rs`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Usual {
    extreme: f64,
    /// The most extreme one that is not left out.
    left: f64,
    margin: Margin,
}

/// How many are left out, and by how much wider a limit is that counts from the most extreme one, or from the one that is left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Margin {
    pub(super) out: usize,
    pub(super) extreme: f64,
    pub(super) left: f64,
}

impl Margin {
    /// Of this many control trials.
    pub(super) const fn of(n: usize) -> Self {
        match n {
            0..=2 => Self { out: 0, extreme: 1.5, left: 1.5 },
            3..=4 => Self { out: 1, extreme: 1.25, left: 2.0 },
            5..=7 => Self { out: 1, extreme: 1.0, left: 1.5 },
            8..=11 => Self { out: 1, extreme: 1.0, left: 1.0 },
            _ => Self { out: 2, extreme: 1.0, left: 1.0 },
        }
    }
}

impl Usual {
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.len() < FEWEST {
            return None;
        }
        let margin = Margin::of(values.len());
        values.sort_unstable_by(|a, b| b.total_cmp(a));
        Some(Self { extreme: values[0], left: values[margin.out], margin })
    }

    /// What a limit that is a factor counts from.
    pub(super) fn times(&self) -> f64 {
        (self.extreme * self.margin.extreme).min(self.left * self.margin.left)
    }

    /// Where a limit that is a step up ends.
    pub(super) fn plus(&self, step: f64) -> f64 {
        (self.extreme + step * self.margin.extreme).min(self.left + step * self.margin.left)
    }

    /// The most extreme one that is not left out.
    pub(super) fn left(&self) -> f64 {
        self.left
    }
}
