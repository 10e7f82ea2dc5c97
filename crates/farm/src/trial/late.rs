//! Ticks that come late because the host did not let the farm run: how much of that is forgiven. Pure.

use std::time::Duration;

/// A tick that comes later than this was held up by the host.
const LATE: Duration = Duration::from_secs(1);

/// This much is forgiven in one trial, in the machine's time: more than any pause that leaves a trial worth having, and little enough
/// that a dead guest is found, and the trial ends, on a host that is always late.
const MOST: Duration = Duration::from_secs(600);

/// Watches the ticks of one trial.
#[derive(Debug)]
pub(super) struct Late {
    last: Duration,
    left: Duration,
    /// [`MOST`] has been reached, and that was said.
    said: bool,
}

impl Default for Late {
    fn default() -> Self {
        Self { last: Duration::ZERO, left: MOST, said: false }
    }
}

impl Late {
    /// A tick: how much later than [`LATE`] it is, as far as that is forgiven.
    pub(super) fn tick(&mut self, now: Duration) -> Duration {
        let gap = now.saturating_sub(self.last);
        self.last = now;
        self.forgive(gap.saturating_sub(LATE))
    }

    /// The machine stood still for so long through no fault of its own: how much of that is forgiven.
    pub(super) fn forgive(&mut self, lost: Duration) -> Duration {
        let forgiven = lost.min(self.left);
        self.left -= forgiven;
        forgiven
    }

    /// Said once, when nothing more is forgiven.
    pub(super) fn note(&mut self) -> Option<String> {
        let used_up = self.left.is_zero() && !self.said;
        self.said |= used_up;
        used_up.then(|| {
            format!(
                "the host kept the farm from running for more than {} s in all: no more of it is forgiven, and limits run on",
                MOST.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_a_second_is_forgiven_up_to_a_total() {
        let ms = Duration::from_millis;
        let mut late = Late::default();
        assert_eq!(late.tick(ms(200)), Duration::ZERO);
        assert_eq!(late.tick(ms(1300)), ms(100));
        assert_eq!(late.tick(ms(301_300)), ms(299_000));
        assert_eq!(late.note(), None);
        assert_eq!(late.tick(ms(901_300)), MOST - ms(299_100));
        assert!(late.note().is_some_and(|text| text.contains("600 s")));
        assert_eq!((late.tick(ms(999_000)), late.note()), (Duration::ZERO, None));
    }
}
