use proptest::prelude::*;

use super::*;

fn close(value: f64, published: f64, tolerance: f64) -> bool {
    (value - published).abs() <= tolerance
}

fn hits(hit: u32, of: u32) -> Hits {
    Hits { hit, of }
}

/// P(at most `failures` of `trials` fail) at `rate`, summed term by term: no beta distribution involved.
fn binomial_tail(failures: u32, trials: u32, rate: f64) -> f64 {
    let mut ln_factorials = vec![0.0];
    for i in 1..=trials {
        ln_factorials.push(ln_factorials[i as usize - 1] + f64::from(i).ln());
    }
    let ln = |n: u32| ln_factorials[n as usize];
    (0..=failures)
        .map(|i| {
            let rest = trials - i;
            let chance = f64::from(i) * rate.ln() + f64::from(rest) * (-rate).ln_1p();
            (ln(trials) - ln(i) - ln(rest) + chance).exp()
        })
        .sum()
}

#[test]
fn bounds_of_newcombes_examples() {
    // Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 857-872, table I,
    // method 5 (Clopper-Pearson): the upper limit of a two-sided 95 % interval is a one-sided limit at 97.5 %.
    for (failures, trials, upper) in [(81, 263, 0.3676), (15, 148, 0.1617), (0, 20, 0.1684), (1, 29, 0.1776)]
    {
        let bound = upper_bound(failures, trials, 0.975);
        assert!(close(bound, upper, 5e-5), "{failures}/{trials}: {bound}");
    }
}

#[test]
fn bound_of_the_nist_handbook() {
    // NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.4, exact limits for small samples: 4 defects of 20, two-sided 90 %:
    // 0.071354 to 0.401029 (by a root finder, whose last digit is not exact). The lower limit of the failures is 1 less the
    // upper limit of the successes.
    assert!(close(upper_bound(4, 20, 0.95), 0.401_029, 2e-6));
    assert!(close(1.0 - upper_bound(16, 20, 0.95), 0.071_354, 2e-6));
}

#[test]
fn trials_of_wilks_tables() {
    // Wilks' sample sizes (Annals of Mathematical Statistics 12, 1941), as tabulated for 95 % confidence: trials that bound the
    // rate at 10, 5 and 1 % with 0, 1, 2... failures. One trial fewer does not.
    for (rate, sizes) in [
        (0.10, &[29, 46, 61, 76, 89][..]),
        (0.05, &[59, 93, 124, 153, 181, 208]),
        (0.01, &[299, 473, 628, 773]),
    ] {
        for (failures, &trials) in (0..).zip(sizes) {
            let (at, before) = (upper_bound(failures, trials, 0.95), upper_bound(failures, trials - 1, 0.95));
            assert!(at <= rate && rate < before, "{failures}/{trials}: {at} <= {rate} < {before}");
        }
    }
}

#[test]
fn senseless_questions_have_careful_answers() {
    assert_eq!(upper_bound(0, 0, 0.95), 1.0);
    assert_eq!(upper_bound(3, 3, 0.95), 1.0);
    assert_eq!(upper_bound(4, 3, 0.95), 1.0);
    for confidence in [1.0, 2.0, f64::NAN] {
        assert_eq!(upper_bound(0, 10, confidence), 1.0);
    }
    assert_eq!(upper_bound(0, 10, 0.0), 0.0);
    assert_eq!(fisher(hits(0, 0), hits(3, 4)), 1.0);
    assert_eq!(fisher(hits(0, 0), hits(0, 0)), 1.0);
    assert_eq!(fisher(hits(9, 4), hits(0, 4)), fisher(hits(4, 4), hits(0, 4)));
}

#[test]
fn rule_of_three() {
    // Hanley and Lippman-Hand 1983, JAMA 249, 1743-1745: without failures the 95 % bound is about 3/n, a little above the exact
    // one.
    for trials in [30, 100, 1000, 10_000] {
        let (bound, rule) = (upper_bound(0, trials, 0.95), 3.0 / f64::from(trials));
        assert!(bound < rule && bound > 0.94 * rule, "{trials}: {bound}, {rule}");
    }
}

#[test]
fn published_fisher_tests() {
    // Fisher 1935, "The Design of Experiments", the lady tasting tea: 3 of 4 against 1 of 4, and all right. 34/70 and 2/70.
    assert!(close(fisher(hits(3, 4), hits(1, 4)), 0.4857, 5e-5));
    assert!(close(fisher(hits(4, 4), hits(0, 4)), 0.028_57, 5e-6));
    // Fisher's convicted twins (R's example of `fisher.test`): 10 of 13 against 2 of 17, p = 0.0005367.
    assert!(close(fisher(hits(10, 13), hits(2, 17)), 0.000_536_7, 5e-8));
    // The example of the encyclopedias: 1 of 12 men and 9 of 12 women are studying, p = 0.002759.
    assert!(close(fisher(hits(1, 12), hits(9, 12)), 0.002_759, 5e-7));
}

#[test]
fn large_tables_agree_with_integer_arithmetic() {
    // Computed once with integers of any length (binomial coefficients, compared and added exactly).
    for (a, b, p) in [
        (hits(5000, 10_000), hits(5100, 10_000), 1.614_692_915_084_580_7e-1),
        (hits(10, 10_000), hits(2, 9000), 4.165_095_954_117_885e-2),
        (hits(7, 9000), hits(20, 10_000), 3.242_926_938_679_417e-2),
        (hits(4000, 10_000), hits(6000, 10_000), 5.386_095_705_146_241e-177),
    ] {
        let own = fisher(a, b);
        assert!(close(own / p, 1.0, 1e-9), "{a:?} {b:?}: {own:e}, not {p:e}");
    }
    // Less than a double can hold.
    assert_eq!(fisher(hits(9999, 10_000), hits(0, 10_000)), 0.0);
}

/// The same p by counting: binomial coefficients as integers, so that equal tables are equal.
fn fisher_by_counting(a: Hits, b: Hits) -> f64 {
    let choose = |n: u32, k: u32| (0..u128::from(k)).fold(1, |c, i| c * (u128::from(n) - i) / (i + 1));
    let all = a.hit + b.hit;
    let ways = |hit: u32| choose(a.of, hit) * choose(b.of, all - hit);
    let tables = all.saturating_sub(b.of)..=all.min(a.of);
    let as_rare: u128 = tables.clone().map(ways).filter(|w| *w <= ways(a.hit)).sum();
    as_rare as f64 / tables.map(ways).sum::<u128>() as f64
}

#[test]
fn tables_alike_count_and_tables_nearly_alike_do_not() {
    // All small tables: among them those whose mirror image is exactly as probable, whatever rounding makes of it.
    let small = || (0..=12).flat_map(|of| (0..=of).map(move |hit| hits(hit, of)));
    for (a, b) in small().flat_map(|a| small().map(move |b| (a, b))) {
        let (own, counted) = (fisher(a, b), fisher_by_counting(a, b));
        assert!(close(own / counted, 1.0, 1e-10), "{a:?} {b:?}: {own}, not {counted}");
    }
    // The next table is more probable by 9e-5 and 2e-5 of the observed one: rarer it is not.
    for (a, b) in [(hits(9, 50), hits(6, 22)), (hits(8, 46), hits(10, 33))] {
        assert!(close(fisher(a, b), fisher_by_counting(a, b), 1e-10), "{a:?} {b:?}");
    }
}

fn arm(most: u32) -> impl Strategy<Value = Hits> {
    (0..=most).prop_flat_map(|of| (0..=of, Just(of))).prop_map(|(hit, of)| Hits { hit, of })
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![0.5..0.9999, prop::sample::select(vec![0.5, 0.9, 0.95, 0.99])]
}

proptest! {
    #[test]
    fn the_bound_is_where_the_tail_is_what_confidence_leaves(a in arm(2000), confidence in share()) {
        let bound = upper_bound(a.hit, a.of, confidence);
        if a.hit == a.of {
            prop_assert_eq!(bound, 1.0);
        } else {
            let left = binomial_tail(a.hit, a.of, bound) / (1.0 - confidence);
            prop_assert!(close(left, 1.0, 1e-6), "{:?} at {}: {}, {}", a, confidence, bound, left);
        }
    }

    #[test]
    fn bounds_lie_above_the_rate_seen_and_move_the_right_way(a in arm(500), confidence in share()) {
        let bound = upper_bound(a.hit, a.of, confidence);
        prop_assert!((0.0..=1.0).contains(&bound));
        prop_assert!(upper_bound(a.hit + 1, a.of, confidence) >= bound, "one failure more");
        prop_assert!(upper_bound(a.hit, a.of + 1, confidence) <= bound, "one clean trial more");
        prop_assert!(upper_bound(a.hit, a.of, confidence + 0.000_05) >= bound, "more confidence");
        if a.of > 0 {
            prop_assert!(bound > f64::from(a.hit) / f64::from(a.of) || a.hit == a.of);
        }
    }

    #[test]
    fn fisher_agrees_with_counting(a in arm(30), b in arm(30)) {
        let (own, counted) = (fisher(a, b), fisher_by_counting(a, b));
        prop_assert!(close(own / counted, 1.0, 1e-10), "{:?} {:?}: {} {}", a, b, own, counted);
    }

    #[test]
    fn fisher_does_not_care_what_is_called_what(a in arm(1000), b in arm(1000)) {
        let p = fisher(a, b);
        prop_assert!((0.0..=1.0).contains(&p));
        let clean = |arm: Hits| hits(arm.of - arm.hit, arm.of);
        for mirrored in [fisher(b, a), fisher(clean(a), clean(b))] {
            prop_assert!(close(mirrored, p, 1e-9 * p), "{:?} {:?}: {} {}", a, b, p, mirrored);
        }
    }

    #[test]
    fn more_hits_against_a_clean_control_are_rarer(of in 2_u32..300, hit in 1_u32..300) {
        let hit = hit.min(of - 1);
        let (fewer, more) = (fisher(hits(hit, of), hits(0, of)), fisher(hits(hit + 1, of), hits(0, of)));
        prop_assert!(more < fewer, "{} then {}", fewer, more);
    }

    #[test]
    fn arms_alike_differ_by_chance(a in arm(10_000)) {
        prop_assert!(close(fisher(a, a), 1.0, 1e-12));
    }
}
