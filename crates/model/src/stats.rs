//! Exact statistics for people: bounds of a failure rate and whether two arms differ, looked at once. What decides a verdict is looked at
//! after each trial and stands in [`crate::sequential`].
//!
//! Both are exact, not approximations: trials are few and failures rare, which is where normal approximations lie.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF, Discrete, Hypergeometric};

/// Hits of an arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hits {
    /// Trials that showed it.
    pub hit: u32,
    /// Trials that could have shown it.
    pub of: u32,
}

/// Exact one-sided upper bound of the failure rate (Clopper and Pearson 1934): with probability `confidence` the true
/// rate is no higher, after `failures` of `trials` independent trials failed.
///
/// A share of 1, from 0 to 1. No trials, or nothing but failures, bound nothing: 1. `confidence` is a share of 1 as well; at 0
/// and below anything is claimed (0), at 1 and above nothing can be (1).
pub fn upper_bound(failures: u32, trials: u32, confidence: f64) -> f64 {
    if failures >= trials || confidence.is_nan() || confidence >= 1.0 {
        return 1.0;
    }
    if confidence <= 0.0 {
        return 0.0;
    }
    if failures == 0 {
        // 1 - (1-c)^(1/n), written so that tiny rates keep their digits.
        return -((-confidence).ln_1p() / f64::from(trials)).exp_m1();
    }
    // The rate at which so few failures have a chance of 1-c only: a quantile of the beta distribution.
    let beta = Beta::new(f64::from(failures) + 1.0, f64::from(trials - failures));
    beta.map_or(1.0, |b| b.inverse_cdf(confidence).clamp(0.0, 1.0))
}

/// Tables count as no more probable than the observed one up to this relative difference, so that rounding does not part
/// tables that are exactly alike. The value in common use (R's `fisher.test`).
const ALIKE: f64 = 1e-7;

/// Two-sided p of Fisher's exact test: how probable it is that two arms of one and the same failure rate differ as much as
/// `a` and `b` do, or more. "More" are all tables of the same margins that are no more probable than the observed one.
///
/// From 0 to 1; 1 if an arm has no trials. More hits than trials are read as all trials hit. The time grows with the hits.
pub fn fisher(a: Hits, b: Hits) -> f64 {
    let (a, b) = (bounded(a), bounded(b));
    let hits = a.hit + b.hit;
    // Given the margins, the hits of `a` are drawn from all trials without putting back.
    let Ok(draws) = Hypergeometric::new(a.of + b.of, a.of, hits) else { return 1.0 };
    let observed = draws.ln_pmf(a.hit);
    let limit = observed + ALIKE.ln_1p();
    let tables: Vec<f64> =
        (hits.saturating_sub(b.of)..=hits.min(a.of)).map(|hit| draws.ln_pmf(hit)).collect();
    // Weights relative to the most probable table: what rounding adds to all logarithms alike cancels out.
    let most = tables.iter().copied().fold(observed, f64::max);
    let sum = |tables: &mut dyn Iterator<Item = &f64>| tables.map(|t| (t - most).exp()).sum::<f64>();
    sum(&mut tables.iter().filter(|t| **t <= limit)) / sum(&mut tables.iter())
}

/// Hits in the type of the distribution, whose sums cannot overflow.
struct Bounded {
    hit: u64,
    of: u64,
}

fn bounded(hits: Hits) -> Bounded {
    Bounded { hit: u64::from(hits.hit.min(hits.of)), of: u64::from(hits.of) }
}

#[cfg(test)]
mod tests;
