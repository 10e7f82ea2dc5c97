//! Sequential tests of one set of patches, valid however often they are looked at.
//!
//! Both are test martingales (Ville 1939; Wald 1945; Ramdas, Grünwald, Vovk, Shafer, "Game-theoretic statistics and safe anytime-valid
//! inference", Statistical Science 2023): a capital that starts at 1 bets against a hypothesis. If the hypothesis is true, no look at the
//! capital, now or later, finds it at `n` or more with a probability above `1/n`. So looking after each trial, and stopping when it is
//! enough, needs no correction.
//!
//! A trial's failure can be the patch's or the host's noise. A patched trial that runs next to a control trial (a *pair*) has the same
//! noise, whatever that is and however it drifts; only that is assumed of it.

/// Outcomes of one set of patches in one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Patched trials without a control trial next to them: clean, failed.
    pub alone: [u32; 2],
    /// Pairs, by whether the patched trial failed and whether its control trial did: `pairs[patched][control]`.
    pub pairs: [[u32; 2]; 2],
}

impl Tally {
    /// Add a patched trial, with its control trial if it has one.
    pub fn add(&mut self, failed: bool, control_failed: Option<bool>) {
        self.count(failed, control_failed, 1);
    }

    /// Add so many of them; a negative number takes away what was added.
    pub(crate) fn count(&mut self, failed: bool, control_failed: Option<bool>, n: i32) {
        let place = match control_failed {
            Some(control) => &mut self.pairs[usize::from(failed)][usize::from(control)],
            None => &mut self.alone[usize::from(failed)],
        };
        *place = place.saturating_add_signed(n);
    }

    /// Patched trials that failed.
    pub fn failed(&self) -> u32 {
        self.alone[1] + self.pairs[1][0] + self.pairs[1][1]
    }

    /// Patched trials without a failure.
    pub fn clean(&self) -> u32 {
        self.alone[0] + self.pairs[0][0] + self.pairs[0][1]
    }

    /// Logarithm of the factor by which the capital of one bet has grown.
    fn growth(&self, bet: &Bet) -> f64 {
        // What did not happen must not become 0 times minus infinity.
        let times = |n: u32, factor: f64| if n == 0 { 0.0 } else { f64::from(n) * factor };
        let alone: f64 = (0..2).map(|x| times(self.alone[x], bet.alone[x])).sum();
        let pairs: f64 = (0..4).map(|i| times(self.pairs[i / 2][i % 2], bet.pair[i / 2][i % 2])).sum();
        alone + pairs
    }
}

/// One way to bet: logarithms of the factors by outcome.
#[derive(Debug, Clone, Copy)]
struct Bet {
    weight: f64,
    alone: [f64; 2],
    pair: [[f64; 2]; 2],
}

/// A capital spread over several bets.
#[derive(Debug, Clone)]
pub struct Wager(Vec<Bet>);

/// Shares of the capital that bet on a noise of so many times the failure rate in question. Most bets on a quiet host, so that clean
/// trials cost next to nothing more than they must; the rest is for hosts that are not.
const NOISE: [(f64, f64); 6] =
    [(0.0, 0.85), (0.125, 0.03), (0.25, 0.03), (0.5, 0.03), (1.0, 0.04), (2.0, 0.02)];

/// Failure rates with and without the patch on which the capital against a harmless patch is bet, in equal shares.
const HARM: [(f64, f64); 7] =
    [(0.1, 0.01), (0.25, 0.01), (0.25, 0.1), (0.5, 0.01), (0.5, 0.1), (0.9, 0.01), (0.9, 0.1)];

impl Wager {
    /// Against the hypothesis that the patch makes a trial fail with a probability of `rate` (a share of 1) or more, over and above the
    /// noise.
    pub fn against_failure_rate(rate: f64) -> Self {
        let rate = rate.clamp(1e-9, 1.0 - 1e-9);
        Self(NOISE.iter().map(|&(times, weight)| quiet(rate, (times * rate).min(0.5), weight)).collect())
    }

    /// Against the hypothesis that patched trials fail no more often than the control trials next to them.
    pub fn against_innocence() -> Self {
        let weight = 1.0 / HARM.len() as f64;
        let bet = |&(patched, control): &(f64, f64)| {
            let mean = f64::midpoint(patched, control);
            let pair = pair(factors(patched, mean), factors(control, mean));
            Bet { weight, alone: [0.0; 2], pair }
        };
        Self(HARM.iter().map(bet).collect())
    }

    /// The capital after these outcomes.
    pub fn capital(&self, tally: &Tally) -> f64 {
        self.0.iter().map(|bet| bet.weight * tally.growth(bet).exp()).sum()
    }

    /// The highest capital that `more` patched trials can bring, in pairs or alone, if none of them fails.
    pub fn reachable(&self, tally: &Tally, more: u32) -> f64 {
        let best = |bet: &Bet| {
            let each = [bet.alone[0], bet.pair[0][0], bet.pair[0][1]].into_iter().fold(0.0, f64::max);
            bet.weight * (tally.growth(bet) + f64::from(more) * each).exp()
        };
        self.0.iter().map(best).sum()
    }

    /// Logarithm by which the capital grows with each pair of a harmless patch on a host with so much noise, for the bet that suits it best.
    pub fn growth_per_pair(&self, noise: f64) -> f64 {
        let (x, y) = ([1.0 - noise, noise], [1.0 - noise, noise]);
        let of = |bet: &Bet| -> f64 {
            let term = |i: usize| {
                let p = x[i / 2] * y[i % 2];
                if p > 0.0 { p * bet.pair[i / 2][i % 2] } else { 0.0 }
            };
            (0..4).map(term).sum()
        };
        self.0.iter().map(of).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// More noise than this share of all trials is not assumed of a host, unless its control trials show it.
const MOST_NOISE: f64 = 0.3;

/// The capital against the hypothesis that patched trials fail no more often than control trials, whichever ran next to which: `[clean,
/// failed]` of either. It goes by the likelihood of the best explanation by noise alone (universal inference: Wasserman, Ramdas,
/// Balakrishnan 2020), so that it assumes that noise is independent from trial to trial, which pairs do not.
pub fn against_chance(patched: [u32; 2], control: [u32; 2]) -> f64 {
    let [clean, failed] = [0, 1].map(|i| f64::from(patched[i] + control[i]));
    let shown = (f64::from(control[1]) + 1.0) / (f64::from(control[0] + control[1]) + 1.0);
    let most = shown.clamp(MOST_NOISE, 1.0);
    let noise = (failed / (clean + failed).max(1.0)).min(most);
    let explained = log_likelihood([clean, failed], noise);
    let sum: f64 = [0.25, 0.5, 0.75, 0.95]
        .iter()
        .flat_map(|p| [0.005, 0.05, 0.15].map(|c| (*p, c)))
        .map(|(p, c)| {
            let bet = log_likelihood(patched.map(f64::from), p) + log_likelihood(control.map(f64::from), c);
            (bet - explained).exp() / 12.0
        })
        .sum();
    sum
}

/// Logarithm of the probability of these outcomes in their order, at this failure rate.
fn log_likelihood([clean, failed]: [f64; 2], rate: f64) -> f64 {
    let term = |n: f64, p: f64| if n > 0.0 { n * p.ln() } else { 0.0 };
    term(clean, 1.0 - rate) + term(failed, rate)
}

/// The bet that noise is `noise` and the patch adds nothing, against a patch that adds `rate`.
fn quiet(rate: f64, noise: f64, weight: f64) -> Bet {
    let alone = if noise < rate { factors(noise, rate) } else { [0.0; 2] };
    if noise <= 0.0 {
        // On a host without noise a control trial tells nothing.
        return Bet { weight, alone, pair: pair(alone, [0.0; 2]) };
    }
    // The noise that explains such a host best if the patch does add `rate`: the projection that makes the bet a fair one for every noise
    // (Turner, Ly, Grünwald, "Generic E-variables for exact sequential k-sample tests", 2021: linear boundaries). The expected factor as a
    // function of the true noise is a parabola that opens downwards and has its top, 1, there.
    let slope = |v: f64| {
        2.0 * (1.0 - noise) / (1.0 - v) - noise / v - noise * (1.0 - rate) / (rate + (1.0 - rate) * v)
    };
    let (mut low, mut high) = (1e-15, 1.0 - 1e-15);
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        // As near as numbers get.
        if middle <= low || middle >= high {
            break;
        }
        if slope(middle) > 0.0 { high = middle } else { low = middle }
    }
    let control = f64::midpoint(low, high);
    let patched = rate + (1.0 - rate) * control;
    Bet { weight, alone, pair: pair(factors(noise, patched), factors(noise, control)) }
}

/// Logarithms of the likelihood ratio of a clean and of a failed trial between two failure rates.
fn factors(bet: f64, hypothesis: f64) -> [f64; 2] {
    [((1.0 - bet) / (1.0 - hypothesis)).ln(), (bet / hypothesis).ln()]
}

fn pair(patched: [f64; 2], control: [f64; 2]) -> [[f64; 2]; 2] {
    [[patched[0] + control[0], patched[0] + control[1]], [patched[1] + control[0], patched[1] + control[1]]]
}

/// The capital at which a hypothesis is given up, with this confidence (a share of 1) that a true one is not.
pub fn enough(confidence: f64) -> f64 {
    1.0 / (1.0 - confidence).max(f64::MIN_POSITIVE)
}

/// Whether these outcomes show, with this confidence, that the patch adds less than `rate` to the failures of a trial.
pub fn shows(tally: &Tally, rate: f64, confidence: f64) -> bool {
    Wager::against_failure_rate(rate).capital(tally) >= enough(confidence)
}

/// Upper bound of what the patch adds to the failure rate of a trial (a share of 1), valid at every look with this confidence.
pub fn bound(tally: &Tally, confidence: f64) -> f64 {
    if !shows(tally, 1.0 - 1e-9, confidence) {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if shows(tally, middle, confidence) { high = middle } else { low = middle }
    }
    high
}

/// The smallest number of trials that, all clean and alone, show that the patch adds less than `rate`; `u32::MAX` if no number does.
pub fn trials_needed(rate: f64, confidence: f64) -> u32 {
    needed(rate, confidence, Tally::default())
}

/// How many clean trials more, all alone, are needed behind these outcomes.
pub fn needed(rate: f64, confidence: f64, behind: Tally) -> u32 {
    if rate >= 1.0 {
        return 0;
    }
    if rate.is_nan() || rate <= 0.0 || confidence.is_nan() || confidence >= 1.0 {
        return u32::MAX;
    }
    let wager = Wager::against_failure_rate(rate);
    let with = |more: u32| {
        let mut tally = behind;
        tally.alone[0] = tally.alone[0].saturating_add(more);
        tally
    };
    let suffices = |more: u32| wager.capital(&with(more)) >= enough(confidence);
    if suffices(0) {
        return 0;
    }
    let Some(mut high) = (0..32).map(|bit| 1_u32 << bit).find(|n| suffices(*n)) else { return u32::MAX };
    let mut low = high / 2;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if suffices(middle) { high = middle } else { low = middle }
    }
    high
}

#[cfg(test)]
mod tests;
