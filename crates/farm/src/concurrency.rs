//! How many machines run at once: as many as the plan says while they get the CPU time that the plan counts on, fewer while they do not.
//!
//! Slowness on an overloaded host looks like a fault of the guest, and every trial that has to be repeated costs more time than running
//! one machine fewer. Pure: shares are handed in, what changed is handed out.

/// A machine that got less than this share of its planned CPU time ran on an overloaded host. What mere slowness can cause counts for
/// nothing then ([`crate::host::Host::judged`]), and fewer machines run at once.
pub(crate) use klpfarm_model::ENOUGH_CPU as ENOUGH;

/// A machine that got this share or more left the host room for another one.
const PLENTY: f64 = 0.9;

/// So many such machines one after another, and one more runs at once; twice as many each time that this proved to be one too many, up to
/// [`MOST_IN_A_ROW`]. Otherwise a host that carries one machine and not two would be overloaded every other time.
const IN_A_ROW: u32 = 3;
const MOST_IN_A_ROW: u32 = 48;

/// While a running machine gets less than this share, no further one is started beside it.
const FAR_BELOW: f64 = 0.5;

/// The number of machines that run at once.
#[derive(Debug)]
pub(crate) struct Concurrency {
    /// The plan's number.
    most: u32,
    now: u32,
    /// Machines with plenty of CPU time since the latest change.
    plenty: u32,
    /// How many of them bring one more.
    in_a_row: u32,
    /// The latest change brought one more.
    raised: bool,
    /// How often the number has changed.
    changes: u32,
}

/// When a machine was started, as far as this matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartedAt(u32);

impl Concurrency {
    /// At most so many at once, and so many to begin with.
    pub(crate) fn new(most: u32) -> Self {
        let most = most.max(1);
        Self { most, now: most, plenty: 0, in_a_row: IN_A_ROW, raised: false, changes: 0 }
    }

    /// So many machines may run at once now.
    pub(crate) fn now(&self) -> u32 {
        self.now
    }

    /// A machine is started now.
    pub(crate) fn start(&self) -> StartedAt {
        StartedAt(self.changes)
    }

    /// A machine ended that got this share of its planned CPU time: what to say of that, if the host was overloaded or the number of machines
    /// changes. One that was started before the latest change says nothing about the present number.
    pub(crate) fn ended(&mut self, started: StartedAt, share: f64) -> Option<String> {
        let before = self.now;
        if started == self.start() {
            self.plenty = if share >= PLENTY { self.plenty + 1 } else { 0 };
            if share < ENOUGH {
                self.now = (self.now - 1).max(1);
            } else if self.plenty >= self.in_a_row {
                self.now = (self.now + 1).min(self.most);
            }
        }
        let overloaded =
            format!("host overloaded: this machine got {:.0} % of its planned CPU time", share * 100.0);
        if self.now == before {
            return (share < ENOUGH).then(|| format!("{overloaded}, and was given longer"));
        }
        (self.changes, self.plenty) = (self.changes + 1, 0);
        let raised = self.now > before;
        let why = if raised {
            let percent = PLENTY * 100.0;
            format!(
                "the last {} machines got {percent:.0} % or more of their planned CPU time",
                self.in_a_row
            )
        } else {
            if self.raised {
                self.in_a_row = (self.in_a_row * 2).min(MOST_IN_A_ROW);
            }
            overloaded
        };
        self.raised = raised;
        let machines = if self.now == 1 { "machine" } else { "machines" };
        Some(format!("{why}; running {} {machines} at once from now on", self.now))
    }

    /// Why no further machine is to be started beside one that got this share of its planned CPU time of late.
    pub(crate) fn hold(recent: f64) -> Option<String> {
        (recent < FAR_BELOW).then(|| {
            format!(
                "host overloaded: this machine got {:.0} % of its planned CPU time in the last 20 s; no further machine is started beside it until it gets {:.0} %",
                recent * 100.0,
                FAR_BELOW * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that is started and ended now.
    fn one(all: &mut Concurrency, share: f64) -> u32 {
        all.ended(all.start(), share);
        all.now()
    }

    #[test]
    fn an_overloaded_host_runs_one_machine_fewer_at_once() {
        let mut all = Concurrency::new(3);
        let said = all.ended(all.start(), 0.45);
        assert_eq!(
            said.as_deref(),
            Some(
                "host overloaded: this machine got 45 % of its planned CPU time; running 2 machines at once from now on"
            )
        );
        assert_eq!(one(&mut all, 0.699), 1);
        let said = all.ended(all.start(), 0.1);
        assert_eq!(
            said.as_deref(),
            Some("host overloaded: this machine got 10 % of its planned CPU time, and was given longer")
        );
        assert_eq!(all.now(), 1, "one machine is the least");
        assert_eq!(all.ended(all.start(), 0.7), None);
    }

    #[test]
    fn machines_of_before_the_change_say_nothing_about_the_new_number() {
        let mut all = Concurrency::new(3);
        let first = all.start();
        all.ended(first, 0.5);
        all.ended(first, 0.4);
        all.ended(first, 0.4);
        assert_eq!(all.now(), 2);
        // Nor do they help to raise it.
        assert_eq!([1.0; 5].map(|share| all.ended(first, share)), [const { None }; 5]);
        assert_eq!(all.now(), 2);
    }

    #[test]
    fn three_machines_in_a_row_with_plenty_bring_one_more() {
        let mut all = Concurrency::new(3);
        assert_eq!([0.5; 2].map(|share| one(&mut all, share)), [2, 1]);
        assert_eq!([0.95, 0.9, 0.8, 0.95, 0.95].map(|share| one(&mut all, share)), [1; 5], "0.8 begins anew");
        let said = all.ended(all.start(), 1.0);
        assert_eq!(
            said.as_deref(),
            Some(
                "the last 3 machines got 90 % or more of their planned CPU time; running 2 machines at once from now on"
            )
        );
        assert_eq!([1.0; 3].map(|share| one(&mut all, share)), [2, 2, 3]);
        assert_eq!([1.0; 9].map(|share| one(&mut all, share)), [3; 9], "no more than the plan says");
    }

    #[test]
    fn a_host_that_is_busy_for_ever_settles_at_what_it_carries() {
        // So many machines share the time of one and a bit, or of one and a half.
        for (time, carried) in [(1.1, 1), (1.5, 2)] {
            let mut all = Concurrency::new(4);
            let mut counts = [0_u32; 5];
            for _ in 0..100 {
                counts[all.now() as usize] += 1;
                let share = (time / f64::from(all.now())).min(1.0);
                all.ended(all.start(), share);
            }
            assert!(counts[carried] >= 92, "{time}: {counts:?}");
        }
    }

    #[test]
    fn no_machine_is_started_beside_a_starving_one() {
        assert_eq!(Concurrency::hold(0.5), None);
        assert!(
            Concurrency::hold(0.3).unwrap().contains("got 30 % of its planned CPU time in the last 20 s")
        );
    }
}
