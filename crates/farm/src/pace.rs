//! How fast time goes by for a machine on a host that has other things to do.
//!
//! A guest whose CPUs wait for the host's looks like one that stalls. What the plan's own machines take from each other is
//! expected, and the limits are made for it; beyond that, a machine's time is slowed down by as much as its CPUs wait longer than they
//! should: its phases last longer, and what happens in it seems to last shorter. Time itself is handed in.

use std::collections::VecDeque;
use std::time::Duration;

use klpfarm_stress::wire::FromGuest;

/// The slowest that time goes by: a machine that gets less is not held up for ever.
pub(crate) const SLOWEST: f64 = 0.05;

/// How much history is kept, to convert durations that a guest reports: the longest of any interest.
const KEPT: Duration = Duration::from_secs(600);

/// How far back [`Pace::recent`] looks.
const RECENT: Duration = Duration::from_secs(20);

/// A machine that ran for less has no share of its own.
const MEASURABLE: Duration = Duration::from_secs(1);

/// One machine's time.
#[derive(Debug)]
pub(crate) struct Pace {
    cpus: f64,
    /// Share of their time that its CPUs are expected to get.
    expected: f64,
    /// Host's time at the latest look, since the machine's start.
    wall: Duration,
    /// The machine's time then.
    machine: Duration,
    /// How fast it goes by, at most 1.
    speed: f64,
    /// The host tells how long CPUs wait.
    told: bool,
    /// How long its CPUs had waited in all.
    waited: Option<Duration>,
    /// Looks, oldest first: host's time, machine's time.
    history: VecDeque<(Duration, Duration)>,
    /// The latest time given out: a look may find that it was too far on.
    given: Duration,
    /// Host's time and the machine's time when its guest began to run, and when the trial stopped watching it.
    begun: Option<(Duration, Duration)>,
    ended: Option<(Duration, Duration)>,
}

impl Pace {
    /// The time of a machine of so many CPUs, which are expected to get this share of their time.
    pub(crate) fn new(cpus: u32, expected: f64) -> Self {
        let zero = Duration::ZERO;
        Self {
            cpus: f64::from(cpus.max(1)),
            expected: expected.clamp(SLOWEST, 1.0),
            wall: zero,
            machine: zero,
            speed: 1.0,
            told: false,
            waited: None,
            history: VecDeque::from([(zero, zero)]),
            given: zero,
            begun: None,
            ended: None,
        }
    }

    /// The guest runs from now on: what went before (starting QEMU, reading a checkpoint) is not part of [`Pace::share`].
    pub(crate) fn begin(&mut self) {
        self.begun.get_or_insert((self.wall, self.machine));
    }

    /// Evidence is gathered from now on, for which the machine stands still: that is not part of [`Pace::share`] either.
    pub(crate) fn end(&mut self) {
        self.ended.get_or_insert((self.wall, self.machine));
    }

    /// Share of its planned CPU time that the machine got, 0 to 1, while its guest was watched; `None` if that was too short to tell,
    /// or where the host does not tell.
    pub(crate) fn share(&self) -> Option<f64> {
        let (from, to) = (self.begun?, self.ended.unwrap_or((self.wall, self.machine)));
        let passed = to.0.saturating_sub(from.0);
        let got = to.1.saturating_sub(from.1);
        (self.told && passed >= MEASURABLE).then(|| (got.as_secs_f64() / passed.as_secs_f64()).min(1.0))
    }

    /// The same over the last 20 s; `None` while the guest has not run so long.
    pub(crate) fn recent(&self) -> Option<f64> {
        let since =
            self.wall.checked_sub(RECENT).filter(|since| self.begun.is_some_and(|b| b.0 <= *since))?;
        Some(self.machine.saturating_sub(self.at(since)).as_secs_f64() / RECENT.as_secs_f64())
    }

    /// The host's time of the latest look.
    pub(crate) fn looked(&self) -> Duration {
        self.wall
    }

    /// Look: the machine's CPUs have waited so long in all for one of the host's; `None` where that can't be told.
    pub(crate) fn look(&mut self, wall: Duration, waited: Option<Duration>) {
        let passed = wall.saturating_sub(self.wall);
        if passed.is_zero() {
            return;
        }
        if let (Some(now), Some(before)) = (waited, self.waited) {
            let waiting = now.saturating_sub(before).as_secs_f64() / (passed.as_secs_f64() * self.cpus);
            self.told = true;
            self.speed = ((1.0 - waiting) / self.expected).clamp(SLOWEST, 1.0);
        }
        self.waited = waited;
        self.machine += passed.mul_f64(self.speed);
        self.wall = wall;
        // One look a second is enough to convert by.
        if self.history.back().is_none_or(|(w, _)| wall.saturating_sub(*w) >= Duration::from_secs(1)) {
            self.history.push_back((wall, self.machine));
        }
        while self.history.len() > 1 && wall.saturating_sub(self.history[0].0) > KEPT {
            self.history.pop_front();
        }
    }

    /// How fast the machine's time goes by, from [`SLOWEST`] to 1.
    pub(crate) fn speed(&self) -> f64 {
        self.speed
    }

    /// The machine's time. It never goes back.
    pub(crate) fn now(&mut self, wall: Duration) -> Duration {
        self.given = self.given.max(self.guess(wall));
        self.given
    }

    fn guess(&self, wall: Duration) -> Duration {
        self.machine + wall.saturating_sub(self.wall).mul_f64(self.speed)
    }

    /// The machine's time `wall`, which is not before the oldest look.
    fn at(&self, wall: Duration) -> Duration {
        let after = self.history.partition_point(|(w, _)| *w <= wall);
        let Some(&(w0, m0)) = after.checked_sub(1).and_then(|i| self.history.get(i)) else {
            return self.history[0].1;
        };
        let (w1, m1) = self.history.get(after).copied().unwrap_or((self.wall, self.machine));
        if w1 <= w0 {
            return m0;
        }
        m0 + (m1.saturating_sub(m0))
            .mul_f64((wall - w0).as_secs_f64().min((w1 - w0).as_secs_f64()) / (w1 - w0).as_secs_f64())
    }

    /// What of the last `ms` milliseconds of the host was the machine's own time. Nothing lasts longer than the machine: what a
    /// checkpoint brought along began, for its forks, when they began.
    fn own_ms(&self, wall: Duration, ms: u64) -> u64 {
        let since = wall.saturating_sub(Duration::from_millis(ms));
        let own = self.guess(wall).saturating_sub(self.at(since));
        u64::try_from(own.as_millis()).unwrap_or(u64::MAX)
    }

    /// Convert the durations in a line of the probe.
    pub(crate) fn convert(&self, wall: Duration, message: &mut FromGuest) {
        match message {
            FromGuest::Progress { threads, .. } => {
                threads.iter_mut().for_each(|t| t.idle_ms = self.own_ms(wall, t.idle_ms));
            }
            FromGuest::Blocked { tasks, .. } => {
                tasks.iter_mut().for_each(|t| t.for_ms = self.own_ms(wall, t.for_ms));
            }
            _ => {}
        }
    }
}

/// How long the CPU threads of this QEMU have waited for one of the host's CPUs (second field of `/proc/PID/task/TID/schedstat`, in
/// nanoseconds); `None` where the kernel does not tell.
pub(crate) fn waited(qemu: u32) -> Option<Duration> {
    let mut all = None;
    for entry in std::fs::read_dir(format!("/proc/{qemu}/task")).ok()?.flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        // QEMU names its threads so, as asked for by `-name debug-threads=on`.
        if !read("comm").starts_with("CPU ") {
            continue;
        }
        let ns: u64 = read("schedstat").split_whitespace().nth(1)?.parse().ok()?;
        *all.get_or_insert(0) += ns;
    }
    all.map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use klpfarm_stress::wire::ThreadProgress;

    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Looks every half second for `seconds`, while both CPUs wait this share of their time.
    fn pass(pace: &mut Pace, seconds: u32, waiting: f64) {
        for _ in 0..seconds * 2 {
            let wall = pace.looked() + s(0.5);
            let waited = pace.waited.unwrap_or_default() + s(0.5 * 2.0 * waiting);
            pace.look(wall, Some(waited));
        }
    }

    #[test]
    fn expected_company_slows_nothing() {
        let mut pace = Pace::new(2, 1.0 / 3.0);
        pace.begin();
        pass(&mut pace, 30, 0.66);
        assert!(pace.now(s(30.0)) > s(29.0));
        assert_eq!(pace.share(), Some(1.0));
    }

    #[test]
    fn more_company_slows_time_down() {
        let mut pace = Pace::new(2, 1.0 / 3.0);
        pace.begin();
        pass(&mut pace, 60, 1.0 - 1.0 / 6.0);
        let now = pace.now(s(60.0));
        assert!(now > s(29.0) && now < s(32.0), "{now:?}");
        let share = pace.share().unwrap();
        assert!((0.49..0.52).contains(&share), "{share}");
        // What the guest says lasted 20 s was 10 s of its own.
        let mut line = FromGuest::Progress {
            at_ms: 0,
            threads: vec![ThreadProgress {
                id: 1,
                ops: 0,
                latency_us: 0,
                idle_ms: 20_000,
                errors: 0,
                errno: 0,
            }],
        };
        pace.convert(s(60.0), &mut line);
        let FromGuest::Progress { threads, .. } = line else { unreachable!() };
        assert!((9_500..10_600).contains(&threads[0].idle_ms), "{}", threads[0].idle_ms);
    }

    #[test]
    fn the_share_is_that_of_the_time_in_which_the_guest_was_watched() {
        let mut pace = Pace::new(2, 1.0);
        pass(&mut pace, 10, 0.9);
        assert_eq!((pace.share(), pace.recent()), (None, None), "no guest ran yet");
        pace.begin();
        pass(&mut pace, 40, 0.5);
        let share = pace.share().unwrap();
        assert!((0.49..0.51).contains(&share), "{share}");
        pass(&mut pace, 20, 0.0);
        assert!((0.62..0.71).contains(&pace.share().unwrap()), "{:?}", pace.share());
        assert!(pace.recent().unwrap() > 0.95, "{:?}", pace.recent());
        pace.end();
        let frozen = pace.share();
        pass(&mut pace, 60, 0.9);
        assert_eq!(pace.share(), frozen, "evidence is gathered");
        assert!(pace.recent().unwrap() < 0.15);
    }

    #[test]
    fn an_idle_machine_waits_for_nothing() {
        let mut pace = Pace::new(2, 1.0);
        pass(&mut pace, 100, 0.0);
        assert_eq!(pace.now(s(100.0)), s(100.0));
    }

    #[test]
    fn nothing_lasts_longer_than_the_machine() {
        let mut pace = Pace::new(2, 1.0);
        pass(&mut pace, 5, 0.0);
        assert_eq!(pace.own_ms(s(5.0), 3_600_000), 5000);
        assert_eq!(pace.own_ms(s(5.0), 2000), 2000);
    }

    #[test]
    fn without_figures_time_is_time() {
        let mut pace = Pace::new(2, 0.5);
        pace.begin();
        for n in 1..100_u32 {
            pace.look(s(f64::from(n)), None);
        }
        assert_eq!(pace.now(s(99.5)), s(99.5));
        assert_eq!(pace.share(), None);
    }

    #[test]
    fn a_machine_that_gets_nothing_at_all_is_not_held_up_for_ever() {
        let mut pace = Pace::new(2, 1.0);
        for _ in 0..1000 {
            let wall = pace.looked() + s(1.0);
            // More waiting than there was time, as figures that are rounded may say.
            let waited = pace.waited.unwrap_or_default() + s(3.0);
            pace.look(wall, Some(waited));
        }
        let now = pace.now(s(1000.0));
        assert!(now >= s(50.0) && now < s(60.0), "{now:?}");
    }

    #[test]
    fn the_machines_time_never_goes_back() {
        let mut pace = Pace::new(1, 0.5);
        let mut last = Duration::ZERO;
        for n in 0..500_u32 {
            pace.look(s(f64::from(n) * 0.2), Some(s(f64::from(n * n % 97) * 0.01)));
            let now = pace.now(s(f64::from(n) * 0.2 + 0.1));
            assert!(now >= last);
            last = now;
        }
    }
}
