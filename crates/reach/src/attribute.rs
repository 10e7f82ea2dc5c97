//! From counts of addresses to calls of functions.

use std::collections::{BTreeMap, HashMap};

use crate::symbols::{Function, Symbols};

/// Calls of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// From the order to start until the first progress.
    pub setup: u64,
    /// While it was measured.
    pub window: u64,
}

/// Calls of each function that was called at all, from three counts of the same machine: before the workload was started, at its first
/// progress, and at the end. All names of an address count.
pub fn attribute(
    symbols: &Symbols,
    before: &HashMap<u64, u64>,
    begun: &HashMap<u64, u64>,
    end: &HashMap<u64, u64>,
) -> BTreeMap<Function, Calls> {
    let mut all = BTreeMap::new();
    for (address, functions) in &symbols.at {
        let count = |counts: &HashMap<u64, u64>| counts.get(address).copied().unwrap_or(0);
        let (before, begun, end) = (count(before), count(begun), count(end));
        let calls = Calls { setup: begun.saturating_sub(before), window: end.saturating_sub(begun) };
        if calls != Calls::default() {
            all.extend(functions.iter().map(|f| (f.clone(), calls)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        Symbols::parse(
            "ffffffff81000100 t a\nffffffff81000200 T sys_x\nffffffff81000200 T SyS_x\nffffffff81000300 T idle\nffffffffc0000000 t a\t[m]\n",
            None,
        )
    }

    #[test]
    fn all_names_of_an_address_count_and_other_addresses_do_not() {
        let counts = |pairs: &[(u64, u64)]| pairs.iter().copied().collect::<HashMap<_, _>>();
        let before = counts(&[(0xffff_ffff_8100_0100, 5)]);
        let begun = counts(&[(0xffff_ffff_8100_0100, 7), (0xffff_ffff_8100_0110, 9)]);
        let end = counts(&[
            (0xffff_ffff_8100_0100, 7),
            (0xffff_ffff_8100_0110, 99),
            (0xffff_ffff_8100_0200, 4),
            (0xffff_ffff_c000_0000, 1),
        ]);
        let all = attribute(&symbols(), &before, &begun, &end);
        let said: Vec<(String, u64, u64)> =
            all.iter().map(|(f, c)| (f.to_string(), c.setup, c.window)).collect();
        let expected = [("SyS_x", 0, 4), ("a [m]", 0, 1), ("a", 2, 0), ("sys_x", 0, 4)];
        assert_eq!(said, expected.map(|(n, s, w)| (n.to_owned(), s, w)));
    }
}
