//! The statistics of a verdict: how rare failures must be, how many trials show it, and whether two arms differ.
//!
//! All three are exact, not approximations: trials are few and failures rare, which is where normal approximations lie.

use statrs::distribution::{Beta, ContinuousCDF, Discrete, Hypergeometric};

use crate::verdict::Hits;

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

/// The smallest number of trials that, all clean, bound the failure rate at `max_failure_rate` with `confidence` (both shares
/// of 1): the least n with `upper_bound(0, n, confidence) <= max_failure_rate`.
///
/// `u32::MAX` stands for "no number of trials will do": a rate of 0, a confidence of 1.
pub fn trials_needed(max_failure_rate: f64, confidence: f64) -> u32 {
    let enough = |n: u32| upper_bound(0, n, confidence) <= max_failure_rate;
    if enough(0) {
        return 0;
    }
    if !enough(u32::MAX) {
        return u32::MAX;
    }
    // Bisection on the bound itself, not its inverse in closed form: plan and judge must agree to the last bit.
    least(0, u32::MAX, enough)
}

/// The same when one of the trials failed.
pub(crate) fn trials_needed_with_one_failure(max_failure_rate: f64, confidence: f64) -> u32 {
    let enough = |n: u32| upper_bound(1, n, confidence) <= max_failure_rate;
    let clean = trials_needed(max_failure_rate, confidence);
    // From a confidence of a half upwards, one failure makes it no more than two and a half times as many.
    let most = clean.saturating_mul(4).saturating_add(4);
    if clean > MOST_WITH_FAILURES || !enough(most) { u32::MAX } else { least(clean, most, enough) }
}

/// Beyond so many trials the quantile of the beta distribution takes its time, and nobody runs them.
const MOST_WITH_FAILURES: u32 = 100_000;

/// The least number that is sufficient, between one that is not and one that is.
fn least(mut too_few: u32, mut sufficient: u32, enough: impl Fn(u32) -> bool) -> u32 {
    while sufficient - too_few > 1 {
        let middle = too_few + (sufficient - too_few) / 2;
        if enough(middle) {
            sufficient = middle;
        } else {
            too_few = middle;
        }
    }
    sufficient
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
