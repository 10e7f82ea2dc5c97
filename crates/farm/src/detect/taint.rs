//! `tainted`: the kernel's taint flags, whenever they are read, beside those of the first time and those that a livepatch sets.

use std::time::Duration;

use klpfarm_model::{Body, ObservedKind, Source};

use super::health::Health;

/// Taint bits that loading a livepatch sets by itself: out-of-tree (12), unsigned (13), livepatch (15). Source: kernel
/// `Documentation/admin-guide/tainted-kernels.rst`.
const LIVEPATCH_TAINTS: u64 = 1 << 12 | 1 << 13 | 1 << 15;

/// Names of the other taint bits, from bit 0, same source.
const TAINTS: [&str; 19] = [
    "P proprietary module",
    "F module force-loaded",
    "S out-of-specification system",
    "R module force-unloaded",
    "M machine check",
    "B bad page",
    "U user request",
    "D kernel died",
    "A ACPI table overridden",
    "W kernel warned",
    "C staging driver",
    "I firmware workaround",
    "O out-of-tree module",
    "E unsigned module",
    "L soft lockup",
    "K livepatched",
    "X auxiliary",
    "T randomised structures",
    "N test",
];

impl Health {
    pub(crate) fn tainted(&mut self, now: Duration, value: u64) -> Vec<Body> {
        let before = *self.taint.get_or_insert(value);
        let allowed = before | if self.patches.is_empty() { 0 } else { LIVEPATCH_TAINTS };
        let new = value & !allowed;
        if new == 0 {
            return Vec::new();
        }
        self.taint = Some(before | new);
        let names: Vec<String> = (0..64)
            .filter(|bit| new >> bit & 1 == 1)
            .map(|bit| TAINTS.get(bit).map_or_else(|| format!("bit {bit}"), |t| (*t).to_owned()))
            .collect();
        let title = format!("the kernel became tainted: {}", names.join(", "));
        self.find(
            now,
            ObservedKind::Tainted,
            Source::Probe,
            title,
            format!("/proc/sys/kernel/tainted: {before} before, {value} now"),
        )
    }
}
