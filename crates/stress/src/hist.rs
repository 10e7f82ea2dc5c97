//! A latency histogram of fixed size: powers of two in quarter steps, so that a quantile is off by at most a quarter.

/// Number of buckets.
pub(crate) const BUCKETS: usize = 128;

/// Durations below `1 << FLOOR` nanoseconds share the first bucket: no system call is faster.
const FLOOR: u32 = 6;

/// The bucket of a duration in nanoseconds.
pub(crate) fn bucket(ns: u64) -> usize {
    if ns < 1 << FLOOR {
        return 0;
    }
    let log = ns.ilog2();
    let quarter = (ns >> (log - 2)) & 3;
    (1 + 4 * (log - FLOOR) as usize + quarter as usize).min(BUCKETS - 1)
}

/// The durations of a bucket, from (inclusive) to (exclusive), in nanoseconds. The last one is open above.
fn bounds(bucket: usize) -> (u64, u64) {
    if bucket == 0 {
        return (0, 1 << FLOOR);
    }
    let (octave, quarter) = ((bucket as u64 - 1) / 4, (bucket as u64 - 1) % 4);
    let step = 1 << (u64::from(FLOOR) + octave - 2);
    let low = step * (4 + quarter);
    (low, low + step)
}

/// The `q` quantile (0 to 1) in nanoseconds, interpolated within its bucket; 0 if nothing was counted.
pub(crate) fn quantile(counts: &[u64; BUCKETS], q: f64) -> u64 {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return 0;
    }
    let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
    let mut before = 0;
    for (i, &n) in counts.iter().enumerate() {
        if before + n >= rank {
            let (low, high) = bounds(i);
            let share = ((rank - before) as f64 - 0.5) / n as f64;
            return low + ((high - low) as f64 * share) as u64;
        }
        before += n;
    }
    bounds(BUCKETS - 1).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_put_in_it(ns in 0u64..1 << 37) {
            let (low, high) = bounds(bucket(ns));
            prop_assert!(low <= ns && ns < high, "{ns} in {low}..{high}");
        }

        #[test]
        fn buckets_never_go_down(a in any::<u64>(), b in any::<u64>()) {
            prop_assert!(bucket(a.min(b)) <= bucket(a.max(b)));
            prop_assert!(bucket(a) < BUCKETS);
        }

        #[test]
        fn a_quantile_is_within_a_quarter_of_the_exact_one(
            mut values in prop::collection::vec(64u64..1 << 36, 1..300), q in 0.01f64..1.0
        ) {
            let mut counts = [0u64; BUCKETS];
            values.iter().for_each(|&v| counts[bucket(v)] += 1);
            values.sort_unstable();
            let rank = ((values.len() as f64 * q).ceil() as usize).clamp(1, values.len());
            let (exact, got) = (values[rank - 1] as f64, quantile(&counts, q) as f64);
            prop_assert!(got >= exact / 1.26 && got <= exact * 1.26, "exact {exact}, got {got}");
        }
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(quantile(&[0; BUCKETS], 0.5), 0);
    }
}
