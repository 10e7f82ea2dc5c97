use proptest::prelude::*;

use super::*;

/// All outcomes of a pair and how probable they are, if noise is `noise` and the patch adds `fault`.
fn outcomes(noise: f64, fault: f64) -> [(bool, bool, f64); 4] {
    let patched = noise + (1.0 - noise) * fault;
    let p = |hit: bool, rate: f64| if hit { rate } else { 1.0 - rate };
    [(false, false), (false, true), (true, false), (true, true)]
        .map(|(x, y)| (x, y, p(x, patched) * p(y, noise)))
}

fn one(failed: bool, control: Option<bool>) -> Tally {
    let mut tally = Tally::default();
    tally.add(failed, control);
    tally
}

proptest! {
    /// What makes the tests valid: under the hypothesis no bet gains on average, whatever the noise, in each single trial.
    #[test]
    fn no_bet_gains_on_a_patch_that_fails_as_often_as_is_asked(
        rate in 0.001_f64..0.6, more in 0.0_f64..1.0, noise in 0.0_f64..1.0
    ) {
        let fault = rate + (1.0 - rate) * more;
        for bet in &Wager::against_failure_rate(rate).0 {
            let pairs: f64 =
                outcomes(noise, fault).iter().map(|(x, y, p)| p * one(*x, Some(*y)).growth(bet).exp()).sum();
            prop_assert!(pairs <= 1.0 + 1e-9, "{pairs}");
            let patched = noise + (1.0 - noise) * fault;
            let alone = (1.0 - patched) * bet.alone[0].exp() + patched * bet.alone[1].exp();
            prop_assert!(alone <= 1.0 + 1e-9, "{alone}");
        }
    }

    #[test]
    fn no_bet_gains_on_a_harmless_patch(noise in 0.0_f64..1.0, better in 0.0_f64..1.0) {
        for bet in &Wager::against_innocence().0 {
            let same: f64 =
                outcomes(noise, 0.0).iter().map(|(x, y, p)| p * one(*x, Some(*y)).growth(bet).exp()).sum();
            prop_assert!(same <= 1.0 + 1e-9, "{same}");
            // Nor on one whose trials fail more rarely than those without it.
            let p = |hit: bool, rate: f64| if hit { rate } else { 1.0 - rate };
            let rarer: f64 = outcomes(noise, 0.0)
                .iter()
                .map(|(x, y, _)| p(*x, noise * better) * p(*y, noise) * one(*x, Some(*y)).growth(bet).exp())
                .sum();
            prop_assert!(rarer <= 1.0 + 1e-9, "{rarer}");
        }
    }

    /// A failure more never helps a patch, and the bound is where the capital suffices.
    #[test]
    fn failures_cost_and_bounds_agree(clean in 1_u32..400, failed in 0_u32..5, pairs in 0_u32..200) {
        let tally = Tally { alone: [clean, failed], pairs: [[pairs, 0], [0, 0]] };
        let worse = Tally { alone: [clean, failed + 1], ..tally };
        let (a, b) = (bound(&tally, 0.95), bound(&worse, 0.95));
        prop_assert!(b >= a, "{a} {b}");
        if a < 1.0 {
            prop_assert!(shows(&tally, a * 1.001 + 1e-9, 0.95) && !shows(&tally, a * 0.999, 0.95));
        }
    }
}

#[test]
fn clean_trials_cost_what_an_exact_test_would_take() {
    assert_eq!(trials_needed(0.20, 0.95), 14);
    assert_eq!(trials_needed(0.05, 0.95), 61);
    assert_eq!(trials_needed(0.01, 0.95), 310);
    for (rate, confidence, needed) in [
        (0.0, 0.95, u32::MAX),
        (-1.0, 0.95, u32::MAX),
        (f64::NAN, 0.95, u32::MAX),
        (0.05, 1.0, u32::MAX),
        (1.0, 0.95, 0),
    ] {
        assert_eq!(trials_needed(rate, confidence), needed, "{rate} at {confidence}");
    }
    // Control trials next to them change nothing on a quiet host.
    let pairs = Tally { pairs: [[14, 0], [0, 0]], ..Tally::default() };
    assert!(shows(&pairs, 0.20, 0.95) && bound(&pairs, 0.95) < 0.20);
    assert_eq!(bound(&Tally::default(), 0.95), 1.0);
}

#[test]
fn a_failure_costs_more_trials_and_noise_is_told_by_pairs() {
    let one = Tally { alone: [0, 1], ..Tally::default() };
    let more = needed(0.20, 0.95, one);
    assert!((30..45).contains(&more), "{more}");
    // A tenth of all trials fails on either side: pairs show that the patch adds nothing, trials alone never do.
    let pairs = Tally { pairs: [[1620, 180], [180, 20]], ..Tally::default() };
    assert!(shows(&pairs, 0.05, 0.95));
    assert!(!shows(&Tally { alone: [1800, 200], ..Tally::default() }, 0.05, 0.95));
}

#[test]
fn harm_is_shown_by_pairs_only() {
    let wager = Wager::against_innocence();
    let harm = |n| wager.capital(&Tally { pairs: [[0, 0], [n, 0]], ..Tally::default() });
    assert!(harm(9) > 3000.0 && harm(5) < 1000.0, "{} {}", harm(9), harm(5));
    assert_eq!(wager.capital(&Tally { alone: [0, 50], ..Tally::default() }).round(), 1.0);
    assert!(wager.capital(&Tally { pairs: [[81, 9], [9, 1]], ..Tally::default() }) < 1.0);
}

#[test]
fn trials_that_ran_alone_show_harm_as_well() {
    assert!(against_chance([0, 14], [4, 0]) > 20_000.0);
    assert!(against_chance([5, 9], [4, 0]) < 300.0);
    // A host on which everything fails accuses nobody.
    assert!(against_chance([0, 14], [0, 4]) < 1.0 && against_chance([2, 30], [1, 9]) < 1.0);
    assert!(against_chance([0, 0], [0, 0]) < 1.001);
}

proptest! {
    /// At any noise up to that which is assumed, one step of the capital gains nothing on average.
    #[test]
    fn noise_is_taken_for_no_harm(noise in 0.0_f64..0.3, trials in 1_u32..5, controls in 1_u32..5) {
        let p = |[clean, failed]: [u32; 2]| {
            let ways = (0..failed).fold(1.0, |w, i| w * f64::from(clean + failed - i) / f64::from(i + 1));
            ways * log_likelihood([f64::from(clean), f64::from(failed)], noise).exp()
        };
        let all: f64 = (0..=trials)
            .flat_map(|x| (0..=controls).map(move |y| ([trials - x, x], [controls - y, y])))
            .map(|(x, y)| p(x) * p(y) * against_chance(x, y))
            .sum();
        prop_assert!(all <= 1.0 + 1e-9, "{all}");
    }
}
