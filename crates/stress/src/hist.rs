//! A latency histogram of fixed size: powers of two in quarter steps, so that a quantile is off by at most a quarter. The guest counts,
//! the farm adds up and takes quantiles. Pure.

/// Number of buckets.
pub const BUCKETS: usize = 128;

/// Counts by [`bucket`].
pub type Counts = [u64; BUCKETS];

/// Durations below `1 << FLOOR` nanoseconds share the first bucket: no system call is faster.
const FLOOR: u32 = 6;

/// The bucket of a duration in nanoseconds.
pub fn bucket(ns: u64) -> usize {
    if ns < 1 << FLOOR {
        return 0;
    }
    let log = ns.ilog2();
    let quarter = (ns >> (log - 2)) & 3;
    (1 + 4 * (log - FLOOR) as usize + quarter as usize).min(BUCKETS - 1)
}

/// Octaves of [`octave`].
pub const OCTAVES: usize = 16;

/// An operation that takes so long, in nanoseconds, is slow: about a millisecond.
pub const SLOW_NS: u64 = 1 << SLOW;
const SLOW: u32 = 20;

/// The octave of a slow operation: 0 for one to two milliseconds, 1 for two to four, and so on. The last one is open above.
pub fn octave(ns: u64) -> usize {
    (ns.max(SLOW_NS).ilog2() - SLOW).min(OCTAVES as u32 - 1) as usize
}

/// Those counts that are not zero, as pairs of bucket and count: what goes over the wire.
pub fn sparse(counts: &[u64]) -> Vec<(u8, u64)> {
    let pairs = counts.iter().enumerate().filter(|(_, n)| **n > 0);
    pairs.filter_map(|(i, n)| Some((u8::try_from(i).ok()?, *n))).collect()
}

/// Adds what [`sparse`] made to `counts`; a bucket that there is not is left out.
pub fn add(counts: &mut [u64], pairs: &[(u8, u64)]) {
    for (i, n) in pairs {
        if let Some(count) = counts.get_mut(usize::from(*i)) {
            *count = count.saturating_add(*n);
        }
    }
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
pub fn quantile(counts: &Counts, q: f64) -> u64 {
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
        fn what_goes_over_the_wire_arrives(counts in prop::collection::vec(0u64..5, BUCKETS), stray in any::<(u8, u64)>()) {
            let mut back: Counts = [0; BUCKETS];
            add(&mut back, &sparse(&counts));
            prop_assert_eq!(&back[..], &counts[..]);
            add(&mut back, &[stray]);
        }

        #[test]
        fn octaves_double(ns in SLOW_NS..1 << 35) {
            let low = SLOW_NS << octave(ns);
            prop_assert!(low <= ns && ns < 2 * low, "{ns} from {low}");
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
        assert_eq!(octave(u64::MAX), OCTAVES - 1);
    }
}
