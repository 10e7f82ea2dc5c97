//! Choosing a load by the map: the fewest workloads that call each of some functions often enough.

/// A function is called often enough from so many calls a second on: 300 in a soak of 30 s.
pub const LEAST_RATE: f64 = 10.0;

/// Workloads may ask for so many times the CPUs that the machine has: each then gets a quarter of what it had alone. More, and threads
/// wait so long for a CPU that it looks like a stall.
pub const MOST_OVERCOMMIT: f64 = 4.0;

/// Workloads may take this share of the machine's memory: the guest, its page cache and the aging need the rest.
const MEMORY_SHARE: f64 = 0.5;

/// A workload that was measured alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Its name.
    pub name: String,
    /// It runs in any case.
    pub named: bool,
    /// CPUs it keeps busy.
    pub cpus: f64,
    /// Memory it takes, in MiB.
    pub memory_mib: u64,
    /// Calls a second of each function that is to be called.
    pub rates: Vec<f64>,
}

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// Virtual CPUs.
    pub cpus: f64,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Names of the workloads to be added to the named ones, in order.
    pub added: Vec<String>,
    /// How many times the machine's CPUs all of them ask for, 1 at least.
    pub overcommit: f64,
    /// Calls a second of each function that are to be expected of the named and the added workloads together: what they make alone, divided
    /// by the overcommitment, and what the machine makes by itself.
    pub expected: Vec<f64>,
}

/// The fewest offers that call each function at [`LEAST_RATE`] or more beside the named ones. `background` is what the machine calls by itself.
/// A function that no offer calls so often gets the one that calls it most, if any does.
///
/// The more of the machine's CPUs is asked for, the less each workload gets. So several levels of overcommitment are tried, from what the
/// named ones make of it up to [`MOST_OVERCOMMIT`]: at level `d`, a workload counts for a function only if it makes `d` times as
/// many calls alone, and all together may ask for `d` times the CPUs. The level at which most functions are called is taken, then that with the
/// fewest workloads, then the lowest.
pub fn choose(offers: &[Offer], background: &[f64], room: Room) -> Choice {
    let (mut named, mut others): (Vec<&Offer>, Vec<&Offer>) = offers.iter().partition(|o| o.named);
    named.sort_by(|a, b| a.name.cmp(&b.name));
    others.sort_by(|a, b| a.name.cmp(&b.name));
    let search = Search { named, others, background, room };
    let least = search.overcommit(&[]);
    let most = MOST_OVERCOMMIT.max(least + 1.0);
    let levels = std::iter::successors(Some(least), |d| Some(d + 0.5)).take_while(|d| *d <= most);
    let tried = levels.map(|d| search.at(d));
    // Of equal ones the first, which is the lowest level.
    let best = tried.reduce(|best, next| {
        let better = next.covered > best.covered
            || (next.covered == best.covered && next.added.len() < best.added.len());
        if better { next } else { best }
    });
    let mut added = best.map(|b| b.added).unwrap_or_default();
    search.add_rare(&mut added, most);
    search.prune(&mut added);
    added.sort_by(|a, b| a.name.cmp(&b.name));
    Choice {
        overcommit: search.overcommit(&added),
        expected: search.expected(&added),
        added: added.iter().map(|o| o.name.clone()).collect(),
    }
}

struct Search<'a> {
    named: Vec<&'a Offer>,
    others: Vec<&'a Offer>,
    background: &'a [f64],
    room: Room,
}

struct Tried<'a> {
    covered: usize,
    added: Vec<&'a Offer>,
}

impl<'a> Search<'a> {
    fn all<'b>(&'b self, added: &'b [&'a Offer]) -> impl Iterator<Item = &'b &'a Offer> {
        self.named.iter().chain(added)
    }

    fn overcommit(&self, added: &[&'a Offer]) -> f64 {
        let asked: f64 = self.all(added).map(|o| o.cpus).sum();
        (asked / self.room.cpus.max(1.0)).max(1.0)
    }

    fn expected(&self, added: &[&'a Offer]) -> Vec<f64> {
        let share = self.overcommit(added);
        let one = |(f, background): (usize, &f64)| {
            background + self.all(added).map(|o| o.rates[f]).sum::<f64>() / share
        };
        self.background.iter().enumerate().map(one).collect()
    }

    fn fits(&self, added: &[&'a Offer], next: &'a Offer, level: f64) -> bool {
        let asked: f64 = self.all(added).map(|o| o.cpus).sum::<f64>() + next.cpus;
        let memory: u64 = self.all(added).map(|o| o.memory_mib).sum::<u64>() + next.memory_mib;
        asked <= level * self.room.cpus && memory as f64 <= MEMORY_SHARE * self.room.memory_mib as f64
    }

    /// Whether a function is called often enough when the CPUs are asked for `level` times.
    fn is_covered(&self, function: usize, added: &[&'a Offer], level: f64) -> bool {
        let named: f64 = self.named.iter().map(|o| o.rates[function]).sum();
        self.background[function] + named / level >= LEAST_RATE
            || added.iter().any(|o| o.rates[function] >= LEAST_RATE * level)
    }

    fn covered(&self, added: &[&'a Offer], level: f64) -> usize {
        (0..self.background.len()).filter(|f| self.is_covered(*f, added, level)).count()
    }

    /// The classic greedy cover.
    fn at(&self, level: f64) -> Tried<'a> {
        let mut added: Vec<&Offer> = Vec::new();
        let mut covered = self.covered(&added, level);
        loop {
            let with = |next: &'a Offer| {
                let all: Vec<&Offer> = added.iter().copied().chain([next]).collect();
                (self.covered(&all, level), self.worst(&all))
            };
            let fitting = self.others.iter().filter(|o| self.fits(&added, o, level));
            let better = fitting.map(|o| (with(o), *o)).filter(|((n, _), _)| *n > covered);
            // Of equal ones the first by name.
            let best =
                better.reduce(|a, b| if b.0.0 > a.0.0 || (b.0.0 == a.0.0 && b.0.1 > a.0.1) { b } else { a });
            let Some(((n, _), next)) = best else { break };
            covered = n;
            added.push(next);
        }
        Tried { covered, added }
    }

    /// The rate of the function that is called least of those that are called at all.
    fn worst(&self, added: &[&'a Offer]) -> f64 {
        self.expected(added).into_iter().filter(|rate| *rate > 0.0).fold(f64::INFINITY, f64::min)
    }

    /// How many functions are called often enough, and how many at all.
    fn worth(&self, added: &[&'a Offer]) -> (usize, usize) {
        let expected = self.expected(added);
        let number = |least: f64| expected.iter().filter(|rate| **rate >= least).count();
        (number(LEAST_RATE), number(f64::MIN_POSITIVE))
    }

    /// Take out what later choices have made superfluous.
    fn prune(&self, added: &mut Vec<&'a Offer>) {
        let superfluous = |added: &[&'a Offer]| {
            (0..added.len()).find_map(|n| {
                let mut fewer = added.to_vec();
                fewer.remove(n);
                let (now, then) = (self.worth(added), self.worth(&fewer));
                (then.0 >= now.0 && then.1 >= now.1).then_some(fewer)
            })
        };
        while let Some(fewer) = superfluous(added) {
            *added = fewer;
        }
    }

    /// A few calls of a function say more than none.
    fn add_rare(&self, added: &mut Vec<&'a Offer>, most: f64) {
        for function in 0..self.background.len() {
            if self.expected(added)[function] > 0.0 {
                continue;
            }
            let callers = self.others.iter().filter(|o| o.rates[function] > 0.0 && self.fits(added, o, most));
            let best = callers.reduce(|a, b| if b.rates[function] > a.rates[function] { b } else { a });
            added.extend(best);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(name: &str, named: bool, cpus: f64, rates: &[f64]) -> Offer {
        Offer { name: name.into(), named, cpus, memory_mib: 10, rates: rates.into() }
    }

    const ROOM: Room = Room { cpus: 2.0, memory_mib: 1024 };

    #[test]
    fn what_the_named_ones_call_needs_no_other() {
        let offers = [offer("a", true, 1.0, &[50.0]), offer("b", false, 1.0, &[5000.0])];
        let choice = choose(&offers, &[0.0], ROOM);
        assert_eq!((choice.added, choice.expected), (vec![], vec![50.0]));
        // Without any workload the machine calls it often enough.
        assert!(choose(&offers[1..], &[10.0], ROOM).added.is_empty());
    }

    #[test]
    fn one_that_calls_both_is_better_than_two() {
        let offers = [
            offer("a", false, 1.0, &[900.0, 0.0]),
            offer("b", false, 1.0, &[0.0, 900.0]),
            offer("c", false, 1.0, &[20.0, 20.0]),
        ];
        assert_eq!(choose(&offers, &[0.0, 0.0], ROOM).added, ["c"]);
        assert_eq!(choose(&offers[..2], &[0.0, 0.0], ROOM).added, ["a", "b"]);
    }

    #[test]
    fn the_more_is_asked_for_the_less_each_gets() {
        // The named load takes half of what a workload makes alone: 15 calls a second are too few then.
        let offers = [
            offer("busy", true, 2.0, &[0.0]),
            offer("little", false, 2.0, &[15.0]),
            offer("much", false, 2.0, &[40.0]),
        ];
        let choice = choose(&offers, &[0.0], ROOM);
        assert_eq!(
            (choice.added, choice.overcommit, choice.expected),
            (vec!["much".into()], 2.0, vec![20.0])
        );
    }

    #[test]
    fn a_few_calls_are_better_than_none_and_nothing_is_better_than_too_much() {
        let offers = [offer("rare", false, 1.0, &[0.5, 0.0]), offer("huge", false, 9.0, &[0.0, 999.0])];
        let choice = choose(&offers, &[0.0, 0.0], ROOM);
        assert_eq!((choice.added, choice.expected), (vec!["rare".into()], vec![0.5, 0.0]));
        let large = Offer { memory_mib: 600, ..offer("large", false, 1.0, &[99.0]) };
        assert!(choose(&[large], &[0.0], ROOM).added.is_empty());
    }

    fn offers() -> impl Strategy<Value = (Vec<Offer>, usize)> {
        (1_usize..6).prop_flat_map(|functions| {
            let rate = prop_oneof![3 => Just(0.0), 1 => 0.1..9.0, 3 => 10.0..2000.0];
            let one = (any::<bool>(), 0.0..3.0, 0_u64..200, prop::collection::vec(rate, functions));
            let many = prop::collection::vec(one, 0..8);
            many.prop_map(move |all| {
                let offers = all.into_iter().enumerate().map(|(n, (named, cpus, memory_mib, rates))| Offer {
                    name: format!("w{n}"),
                    named: named && n < 2,
                    cpus,
                    memory_mib,
                    rates,
                });
                (offers.collect(), functions)
            })
        })
    }

    fn enough(expected: &[f64]) -> usize {
        expected.iter().filter(|rate| **rate >= LEAST_RATE).count()
    }

    /// The fewest of those that reach all that can be reached where there is room for everything.
    fn fewest(offers: &[Offer], functions: usize) -> usize {
        let covers = |mask: usize| {
            let with = |f: usize| {
                let mut chosen = offers.iter().enumerate().filter(|(n, o)| o.named || mask >> n & 1 == 1);
                chosen.any(|(_, o)| o.rates[f] >= LEAST_RATE)
                    || offers.iter().filter(|o| o.named).map(|o| o.rates[f]).sum::<f64>() >= LEAST_RATE
            };
            (0..functions).filter(|f| with(*f)).count()
        };
        let masks = || {
            (0..1_usize << offers.len())
                .filter(|m| (0..offers.len()).all(|n| m >> n & 1 == 0 || !offers[n].named))
        };
        let most = masks().map(covers).max().unwrap_or(0);
        masks().filter(|m| covers(*m) == most).map(|m| m.count_ones() as usize).min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn the_order_of_the_offers_does_not_matter((mut offers, functions) in offers()) {
            let background = vec![0.0; functions];
            let one = choose(&offers, &background, ROOM);
            offers.reverse();
            prop_assert_eq!(one.added, choose(&offers, &background, ROOM).added);
        }

        #[test]
        fn no_chosen_workload_is_superfluous((offers, functions) in offers()) {
            let background = vec![0.0; functions];
            let choice = choose(&offers, &background, ROOM);
            let worth = |without: Option<&String>| {
                let of = |o: &&Offer| o.named || choice.added.contains(&o.name) && Some(&o.name) != without;
                let named = offers.iter().filter(of).collect();
                Search { named, others: vec![], background: &background, room: ROOM }.worth(&[])
            };
            let now = worth(None);
            for name in &choice.added {
                let then = worth(Some(name));
                prop_assert!(then.0 < now.0 || then.1 < now.1, "{} of {:?}", name, choice);
            }
        }

        #[test]
        fn the_machine_is_not_asked_for_too_much((offers, functions) in offers()) {
            let choice = choose(&offers, &vec![0.0; functions], ROOM);
            let named: f64 = offers.iter().filter(|o| o.named).map(|o| o.cpus).sum();
            prop_assert!(choice.overcommit <= MOST_OVERCOMMIT.max((named / 2.0).max(1.0) + 1.0) + 1e-9);
        }

        #[test]
        fn with_room_all_is_covered_that_can_be_and_with_few((mut offers, functions) in offers()) {
            for offer in &mut offers {
                (offer.cpus, offer.memory_mib) = (0.0, 0);
                // Rare calls are another matter.
                for rate in &mut offer.rates {
                    if *rate < LEAST_RATE { *rate = 0.0 }
                }
            }
            let choice = choose(&offers, &vec![0.0; functions], ROOM);
            let best = offers.iter().fold(vec![0.0_f64; functions], |best, o| {
                best.iter().zip(&o.rates).map(|(a, b)| a.max(*b)).collect()
            });
            prop_assert_eq!(enough(&choice.expected), enough(&best));
            let bound = fewest(&offers, functions) as f64 * (1.0 + (functions as f64).ln());
            prop_assert!(choice.added.len() as f64 <= bound, "{:?}, bound {}", choice, bound);
        }
    }
}
