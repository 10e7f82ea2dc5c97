//! Faults on their way to the farm: the first of a kind at once, more of the same summed up once a second.

use super::outbox::Outbox;
use klpfarm_stress::wire::{Fault, FaultKind, FromGuest};
use std::collections::BTreeMap;

/// Kinds remembered; a workload that invents more names than this has them summed under one.
const MAX_KEYS: usize = 500;

#[derive(Default)]
pub(super) struct Faults {
    known: BTreeMap<(String, FaultKind, String), Option<Fault>>,
}

impl Faults {
    /// Takes a fault; the first of its kind goes out at once if there is room.
    pub(super) fn add(&mut self, mut fault: Fault, outbox: &mut Outbox) {
        if self.known.len() >= MAX_KEYS {
            fault.op = "other".into();
        }
        let key = (fault.workload.clone(), fault.kind, fault.op.clone());
        match self.known.get_mut(&key) {
            Some(Some(waiting)) => waiting.count += fault.count,
            Some(waiting) => *waiting = Some(fault),
            None if outbox.room() => {
                outbox.push(&FromGuest::Fault(fault));
                self.known.insert(key, None);
            }
            None => {
                self.known.insert(key, Some(fault));
            }
        }
    }

    /// Sends what has been summed up.
    pub(super) fn flush(&mut self, outbox: &mut Outbox) {
        for waiting in self.known.values_mut() {
            if outbox.room()
                && let Some(fault) = waiting.take()
            {
                outbox.push(&FromGuest::Fault(fault));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(op: &str, count: u64) -> Fault {
        Fault {
            at_ms: 1,
            workload: "w".into(),
            thread: None,
            kind: FaultKind::WrongErrno,
            op: op.into(),
            detail: "d".into(),
            count,
        }
    }

    #[test]
    fn the_first_goes_at_once_and_no_count_is_lost() {
        let (mut faults, mut outbox) = (Faults::default(), Outbox::new());
        (0..1000).for_each(|i| faults.add(fault(if i % 2 == 0 { "a" } else { "b" }, 3), &mut outbox));
        assert_eq!(outbox.waiting().iter().filter(|&&b| b == b'\n').count(), 2);
        faults.flush(&mut outbox);
        faults.flush(&mut outbox);
        let text = std::str::from_utf8(outbox.waiting()).unwrap();
        let total: u64 = text
            .lines()
            .map(|l| match serde_json::from_str(l).unwrap() {
                FromGuest::Fault(f) => f.count,
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!((total, text.lines().count()), (3000, 4));
    }
}
