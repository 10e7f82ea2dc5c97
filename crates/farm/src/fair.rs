//! Which comes first in a trial: what its machine says, or the time that goes by. What was said counts before the time, but a machine
//! that never stops talking must not keep timers from running. Pure; times are handed in.

use std::time::Duration;

/// Timers run at least so often while the machine says little: five times a second.
pub(crate) const TICK: Duration = Duration::from_millis(200);

/// So many inputs are taken before a tick that is due, and for so long, and no more. What piles up while the host does not run the farm is
/// heard first, as long as it is no more than this. Altogether ticks stay well below a second apart, beyond which the dispatcher
/// takes it that the host did not run the farm.
const MOST: u32 = 300;
const LONGEST: Duration = Duration::from_millis(300);

/// Decides whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    last_tick: Duration,
    /// Inputs taken since a tick was due, and when the first of them was.
    waiting: u32,
    since: Option<Duration>,
}

impl Fair {
    /// Whether the next input has to be a tick, at host time `now`.
    pub(crate) fn must_tick(&self, now: Duration) -> bool {
        self.waiting >= MOST || self.since.is_some_and(|since| now.saturating_sub(since) >= LONGEST)
    }

    /// Timers have run.
    pub(crate) fn ticked(&mut self, now: Duration) {
        *self = Self { last_tick: now, ..Self::default() };
    }

    /// Another input was taken.
    pub(crate) fn took(&mut self, now: Duration) {
        if now.saturating_sub(self.last_tick) >= TICK {
            self.waiting += 1;
            self.since.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks in ten seconds of a machine that always has something to say, if each input takes this long.
    fn ticks(each: Duration) -> Vec<Duration> {
        let (mut fair, mut now, mut ticks) = (Fair::default(), Duration::ZERO, Vec::new());
        while now < Duration::from_secs(10) {
            if fair.must_tick(now) {
                fair.ticked(now);
                ticks.push(now);
            } else {
                now += each;
                fair.took(now);
            }
        }
        ticks
    }

    #[test]
    fn timers_run_however_much_a_machine_says() {
        for (micros, longest_ms) in [(20, 210), (200, 270), (1000, 510), (50_000, 600)] {
            let at = ticks(Duration::from_micros(micros));
            let gaps = at.windows(2).map(|w| w[1] - w[0]);
            let longest = gaps.max().unwrap();
            assert!(longest <= Duration::from_millis(longest_ms), "{micros} us an input: {longest:?}");
        }
    }

    #[test]
    fn what_was_said_before_the_farm_ran_again_is_heard_first() {
        let mut fair = Fair::default();
        let late = Duration::from_secs(30);
        for n in 0..MOST {
            assert!(!fair.must_tick(late), "{n}");
            fair.took(late);
        }
        assert!(fair.must_tick(late));
        fair.ticked(late);
        assert!(!fair.must_tick(late));
    }
}
