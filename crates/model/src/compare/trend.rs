//! The slope of a series, whatever steps and outliers are in it. Pure.

/// Fewer points than this have no slope.
pub(super) const LEAST: usize = 8;

/// The share of slopes that may be smaller than the one that counts.
const QUARTILE: f64 = 0.25;

/// By how much the value rises a second, as long as the series lasts: `points` are milliseconds and values, in order of time.
///
/// The lower quartile of the slopes between all pairs of points. Theil and Sen take the median of them, which a step near the middle moves:
/// half of all pairs stand on both sides of it. What grows all the time grows between nearly all pairs.
pub(super) fn rise(points: &[(u64, f64)]) -> Option<f64> {
    if points.len() < LEAST {
        return None;
    }
    let pairs = points.iter().enumerate().flat_map(|(i, a)| points[i + 1..].iter().map(move |b| (a, b)));
    let slope =
        |(a, b): (&(u64, f64), &(u64, f64))| (b.0 > a.0).then(|| (b.1 - a.1) * 1000.0 / (b.0 - a.0) as f64);
    let mut slopes: Vec<f64> = pairs.filter_map(slope).collect();
    let at = (slopes.len() as f64 * QUARTILE) as usize;
    (at < slopes.len()).then(|| *slopes.select_nth_unstable_by(at, f64::total_cmp).1)
}

/// Whether [`rise`] comes to `least` (above zero), or misses it by no more than rounding. A series that does not rise is done with after
/// part of its pairs.
pub(super) fn rises_by(points: &[(u64, f64)], least: f64) -> bool {
    if points.len() < LEAST {
        return false;
    }
    let least = least * (1.0 - 1e-9);
    // At most this many of all pairs may be below it; pairs of one moment, which have no slope, can only let through more.
    let pairs = points.len() * (points.len() - 1) / 2;
    let may = (pairs as f64 * QUARTILE) as usize;
    let mut below = 0;
    for (i, a) in points.iter().enumerate() {
        below += points[i + 1..]
            .iter()
            .filter(|b| b.0 > a.0 && (b.1 - a.1) * 1000.0 < least * (b.0 - a.0) as f64)
            .count();
        if below > may {
            return false;
        }
    }
    true
}

/// The series without its jumps by whole multiples of `quantum`: what remains of each change is the rest, at most half a quantum either way.
pub(super) fn without_multiples(points: &[(u64, f64)], quantum: f64) -> Vec<(u64, f64)> {
    let mut sum = 0.0;
    let changes = points.iter().zip(points.iter().skip(1)).map(|(a, b)| {
        let change = b.1 - a.1;
        sum += change - quantum * (change / quantum).round();
        (b.0, sum)
    });
    points.first().map(|first| (first.0, 0.0)).into_iter().chain(changes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn series(n: usize, value: impl Fn(f64) -> f64) -> Vec<(u64, f64)> {
        (0..n).map(|i| (5000 + 1000 * i as u64, value(i as f64))).collect()
    }

    proptest! {
        #[test]
        fn a_line_has_its_slope(n in 8_usize..100, slope in -1e4_f64..1e4, start in 0.0_f64..1e6) {
            let got: f64 = rise(&series(n, |t: f64| start + slope * t)).unwrap();
            prop_assert!((got - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{got}");
        }

        /// Wherever the step is and however high.
        #[test]
        fn a_step_is_no_slope(n in 8_usize..100, at in 0.0_f64..1.0, height in 0.0_f64..1e6) {
            let at = at * n as f64;
            prop_assert_eq!(rise(&series(n, |t| if t >= at { height } else { 0.0 })), Some(0.0));
        }

        /// One sample in twenty may be anything.
        #[test]
        fn outliers_do_not_hide_or_make_a_slope(
            slope in prop_oneof![Just(0.0_f64), 10.0_f64..1000.0], strays in prop::collection::vec((0_usize..40, -1e6_f64..1e6), 2)
        ) {
            let mut points = series(40, |t| slope * t);
            strays.iter().for_each(|(i, v)| points[*i].1 = *v);
            let got: f64 = rise(&points).unwrap();
            prop_assert!((got - slope).abs() < 1e-6 * (1.0 + slope), "{got}");
        }

        /// Whatever comes and goes in whole quanta, a slope below half a quantum a sample stays as it is.
        #[test]
        fn quanta_do_not_hide_a_slope(slope in 0.0_f64..40.0, quanta in prop::collection::vec(-5_i32..5, 30)) {
            let points = series(30, |t: f64| slope * t + 100.0 * f64::from(quanta[t as usize]));
            let got: f64 = rise(&without_multiples(&points, 100.0)).unwrap();
            prop_assert!((got - slope).abs() < 1e-6, "{got}");
        }

        /// The quick look says the same as the slope itself.
        #[test]
        fn a_quick_look_misses_no_rise(values in prop::collection::vec(-50.0_f64..50.0, 8..40), slope in -5.0_f64..20.0, least in 0.1_f64..10.0) {
            let points = series(values.len(), |t: f64| values[t as usize] + slope * t);
            let got: f64 = rise(&points).unwrap();
            prop_assert_eq!(rises_by(&points, least), got >= least, "{}", got);
        }

        /// Noise without a trend does not rise by more than itself.
        #[test]
        fn noise_does_not_rise(noise in prop::collection::vec(0.0_f64..100.0, 20)) {
            prop_assert!(rise(&series(20, |t| noise[t as usize])).unwrap() < 100.0 / 2.0);
        }
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(rise(&series(7, |t| t)), None);
        assert_eq!(rise(&[(5, 1.0); 20]), None, "one moment has no slope");
    }
}
