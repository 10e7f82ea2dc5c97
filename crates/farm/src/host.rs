//! What the host does to a machine that is not the machine's fault: it sleeps, it stops QEMU, it does not let the farm run, it has no
//! time left for anybody. A trial in which that happened is void if nothing but slowness was found in it: the plan has others. What
//! the host cannot cause, an oops say, counts whatever the host did. Pure, but for [`Look::take`]; times are handed in.

use std::time::{Duration, SystemTime};

use klpfarm_kmsg::Kind as KernelKind;
use klpfarm_model::{FarmKind, FindingKind, TrialEnd};

use crate::pace::SLOWEST;

/// Clocks that drift apart by more than this between two looks were moved apart.
const APART: Duration = Duration::from_secs(2);

/// So long between two looks, which are due five times a second, and the farm did not run.
const LATE: Duration = Duration::from_secs(5);

/// So long stopped, and the guest's own watchdogs may notice.
const STOPPED: Duration = Duration::from_secs(1);

/// So long at (nearly) the slowest pace there is, and no limit means anything any more.
const SLOW: Duration = Duration::from_secs(20);

/// Troubles of one trial beyond this are not told apart.
const MOST: usize = 20;

/// The host at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Time since the machine was started, by a clock that stands still while the host sleeps.
    wall: Duration,
    /// The machine's own time.
    now: Duration,
    /// Time since the host's boot, sleep included.
    boot: Option<Duration>,
    /// The time of day, since 1970.
    day: Duration,
    /// QEMU is stopped, by a signal or a debugger.
    stopped: bool,
    /// [`crate::pace::Pace::speed`].
    speed: f64,
}

impl Look {
    /// Look at the host and the process `qemu`.
    pub(crate) fn take(wall: Duration, now: Duration, speed: f64, qemu: Option<u32>) -> Self {
        // CLOCK_BOOTTIME, to a hundredth of a second; read so, it takes no unsafe call.
        let boot = std::fs::read_to_string("/proc/uptime").ok().and_then(|text| seconds(&text));
        let state = |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        let stopped = qemu.and_then(state).is_some_and(|stat| is_stopped(&stat));
        let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { wall, now, boot, day, stopped, speed }
    }
}

fn seconds(uptime: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(uptime.split_whitespace().next()?.parse().ok()?).ok()
}

/// State `T` or `t` in a line of `/proc/PID/stat`. A stop signal stops all threads, so the first one's state is enough.
fn is_stopped(stat: &str) -> bool {
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('T' | 't'))
}

/// What the host did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It slept.
    Slept,
    /// It stopped QEMU.
    Stopped,
    /// It did not run the farm.
    Late,
    /// It had next to no time for the machine.
    Slow,
}

/// It did so from then to then, in the machine's time, for so long.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trouble {
    kind: Kind,
    from: Duration,
    to: Duration,
    lasted: Duration,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.lasted.as_secs_f64();
        match self.kind {
            Kind::Slept => write!(f, "the host slept for {seconds:.0} s")?,
            Kind::Stopped => write!(f, "QEMU was stopped on the host for {seconds:.0} s")?,
            Kind::Late => write!(f, "the host did not let klpfarm run for {seconds:.0} s")?,
            Kind::Slow => write!(f, "the host had next to no time for the machine for {seconds:.0} s")?,
        }
        write!(f, ", at second {:.0} of the machine", self.from.as_secs_f64())
    }
}

/// Watches the host during one trial.
#[derive(Debug)]
pub(crate) struct Host {
    /// A finding that comes so long after a trouble may be its doing.
    grace: Duration,
    last: Option<Look>,
    /// Since when (machine's time, host's time) QEMU is stopped, or slow.
    stopped: Option<(Duration, Duration)>,
    slow: Option<(Duration, Duration)>,
    troubles: Vec<Trouble>,
    /// How far the time of day was set each time, in seconds.
    set: Vec<f64>,
    findings: Vec<(Duration, FindingKind)>,
}

impl Host {
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            last: None,
            stopped: None,
            slow: None,
            troubles: Vec::new(),
            set: Vec::new(),
            findings: Vec::new(),
        }
    }

    pub(crate) fn look(&mut self, look: Look) {
        if let Some(last) = self.last.replace(look) {
            self.compare(last, look);
        }
        let lasts = |since: &mut Option<(Duration, Duration)>, is: bool, least| {
            let (from, begun) =
                if is { *since.get_or_insert((look.now, look.wall)) } else { since.take()? };
            let lasted = look.wall.saturating_sub(begun);
            (lasted >= least).then_some((from, lasted))
        };
        if let Some((from, lasted)) = lasts(&mut self.stopped, look.stopped, STOPPED) {
            self.trouble(Trouble { kind: Kind::Stopped, from, to: look.now, lasted });
        }
        if let Some((from, lasted)) = lasts(&mut self.slow, look.speed < SLOWEST * 1.5, SLOW) {
            self.trouble(Trouble { kind: Kind::Slow, from, to: look.now, lasted });
        }
    }

    fn compare(&mut self, last: Look, look: Look) {
        let passed = look.wall.saturating_sub(last.wall);
        let slept = match (last.boot, look.boot) {
            (Some(before), Some(boot)) => boot.saturating_sub(before).saturating_sub(passed),
            _ => Duration::ZERO,
        };
        if slept > APART {
            self.trouble(Trouble { kind: Kind::Slept, from: last.now, to: look.now, lasted: slept });
        }
        if passed > LATE {
            self.trouble(Trouble { kind: Kind::Late, from: last.now, to: look.now, lasted: passed });
        }
        let day = look.day.as_secs_f64() - last.day.as_secs_f64();
        let set = day - (passed + slept).as_secs_f64();
        if set.abs() > APART.as_secs_f64() && self.set.len() < MOST {
            self.set.push(set);
        }
    }

    /// One that goes on is one trouble.
    fn trouble(&mut self, new: Trouble) {
        let full = self.troubles.len() >= MOST;
        match self.troubles.iter_mut().rev().find(|t| t.kind == new.kind) {
            Some(same) if same.from == new.from || full => {
                (same.to, same.lasted) = (new.to, same.lasted.max(new.lasted));
            }
            _ => self.troubles.push(new),
        }
    }

    /// The trial has found something.
    pub(crate) fn found(&mut self, now: Duration, kind: FindingKind) {
        self.findings.push((now, kind));
    }

    /// Why it is of no use to go on: the machine stood still, its measurements are worth nothing, and nothing has been found.
    pub(crate) fn hopeless(&self) -> Option<String> {
        // While it stands still nothing can be ended in order.
        if self.stopped.is_some() || !self.findings.is_empty() {
            return None;
        }
        let stood = |t: &&Trouble| matches!(t.kind, Kind::Slept | Kind::Stopped);
        self.troubles.iter().find(stood).map(|t| format!("{t}: the trial says nothing"))
    }

    /// How the trial ended, given how it would have on a host without trouble.
    pub(crate) fn judged(&self, end: TrialEnd) -> TrialEnd {
        match end {
            // The farm's own failures, and trials that were void before they began to say anything, stay what they are.
            TrialEnd::FarmError { .. } | TrialEnd::Void { .. } => end,
            TrialEnd::Interrupted | TrialEnd::Unneeded | TrialEnd::OutOfBudget
                if self.findings.is_empty() =>
            {
                end
            }
            _ => match self.hopeless().or_else(|| self.spoiled()) {
                Some(reason) => TrialEnd::Void { reason },
                None => end,
            },
        }
    }

    /// Why all that was found may be the host's doing; `None` if a single finding is not.
    fn spoiled(&self) -> Option<String> {
        let cause = |(at, kind): &(Duration, FindingKind)| {
            let near = |t: &&Trouble| t.from <= *at && *at <= t.to + self.grace;
            self.troubles.iter().find(near).filter(|_| by_time(*kind))
        };
        let causes: Option<Vec<&Trouble>> = self.findings.iter().map(cause).collect();
        let first = *causes?.first()?;
        Some(format!("{first}, and what was found then may be of that: the trial says nothing"))
    }

    /// What is worth a word whatever came of it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let steps: Vec<String> = self.set.iter().map(|s| format!("{s:+.0} s")).collect();
        let set = (!steps.is_empty())
            .then(|| format!("the host's time of day was set by {}; no limit goes by it", steps.join(", ")));
        self.troubles.iter().map(ToString::to_string).chain(set).collect()
    }
}

/// Whether mere lack of time can look so: all but what the kernel, the workload or QEMU says outright.
fn by_time(kind: FindingKind) -> bool {
    match kind {
        FindingKind::Kernel(KernelKind::Oom | KernelKind::PageAllocation) => false,
        FindingKind::Farm(
            FarmKind::CpuStuck
            | FarmKind::LoadStuck
            | FarmKind::TransitionStalled
            | FarmKind::RevertStalled
            | FarmKind::WatchdogFired,
        ) => true,
        kind => kind.is_soft(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANG: FindingKind = FindingKind::Farm(FarmKind::ThreadStalled);
    const SOFT_LOCKUP: FindingKind = FindingKind::Kernel(KernelKind::SoftLockup);
    const WRONG: FindingKind = FindingKind::Farm(FarmKind::WrongContent);
    const OOM: FindingKind = FindingKind::Kernel(KernelKind::Oom);

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn at(seconds: f64) -> Look {
        let wall = s(seconds);
        Look { wall, now: wall, boot: Some(s(1000.0) + wall), day: s(1e9) + wall, stopped: false, speed: 1.0 }
    }

    /// Looks five times a second from `from` to `to`, each changed.
    fn pass(host: &mut Host, from: u32, to: u32, change: impl Fn(&mut Look)) {
        for n in from * 5..to * 5 {
            let mut look = at(f64::from(n) * 0.2);
            change(&mut look);
            host.look(look);
        }
    }

    fn host() -> Host {
        let mut host = Host::new(s(60.0));
        pass(&mut host, 0, 10, |_| {});
        host
    }

    fn is_void(host: &Host) -> bool {
        matches!(host.judged(TrialEnd::Stopped), TrialEnd::Void { .. })
    }

    #[test]
    fn a_quiet_host_changes_nothing() {
        let mut host = host();
        pass(&mut host, 10, 100, |_| {});
        host.found(s(90.0), HANG);
        assert_eq!(host.judged(TrialEnd::Stopped), TrialEnd::Stopped);
        assert_eq!((host.hopeless(), host.notes()), (None, vec![]));
    }

    #[test]
    fn a_machine_that_stood_still_says_nothing_more() {
        let mut host = host();
        pass(&mut host, 10, 35, |l| l.stopped = true);
        assert_eq!(host.hopeless(), None, "it still stands");
        pass(&mut host, 35, 36, |_| {});
        let why = host.hopeless().unwrap();
        assert!(
            why.starts_with("QEMU was stopped on the host for 25 s, at second 10 of the machine"),
            "{why}"
        );
        assert_eq!(host.judged(TrialEnd::Completed), TrialEnd::Void { reason: why });
        assert_eq!(host.notes().len(), 1, "{:?}", host.notes());
        let unneeded = host.judged(TrialEnd::Unneeded);
        assert_eq!(unneeded, TrialEnd::Unneeded);
    }

    #[test]
    fn what_the_guest_says_of_the_pause_is_void_and_a_hard_finding_is_not() {
        let mut host = host();
        pass(&mut host, 10, 35, |l| l.stopped = true);
        pass(&mut host, 35, 40, |_| {});
        host.found(s(36.0), SOFT_LOCKUP);
        host.found(s(38.0), HANG);
        assert!(is_void(&host));
        host.found(s(39.0), WRONG);
        assert!(!is_void(&host));
        let mut host = self::host();
        pass(&mut host, 10, 35, |l| l.stopped = true);
        host.found(s(30.0), OOM);
        assert!(!is_void(&host), "no lack of time takes memory");
    }

    #[test]
    fn what_was_found_before_or_long_after_counts() {
        for (found, void) in [(9.0, false), (10.5, true), (70.0, true), (96.0, false)] {
            let mut host = host();
            pass(&mut host, 10, 35, |l| l.stopped = true);
            host.found(s(found), HANG);
            assert_eq!(is_void(&host), void, "{found}");
        }
        let mut host = host();
        host.found(s(9.0), HANG);
        pass(&mut host, 10, 35, |l| l.stopped = true);
        host.found(s(30.0), SOFT_LOCKUP);
        assert!(!is_void(&host), "one of them is not the host's");
    }

    #[test]
    fn a_moment_is_no_pause() {
        let mut host = host();
        host.look(Look { stopped: true, ..at(10.0) });
        host.look(Look { stopped: true, ..at(10.6) });
        host.look(at(10.8));
        pass(&mut host, 11, 12, |_| {});
        host.found(s(11.0), HANG);
        assert!(!is_void(&host));
    }

    #[test]
    fn a_host_that_slept_is_told_by_the_clock_that_went_on() {
        let mut host = host();
        let woken = |l: &mut Look| (l.boot, l.day) = (l.boot.map(|b| b + s(3600.0)), l.day + s(3600.0));
        pass(&mut host, 10, 12, woken);
        assert!(host.hopeless().unwrap().starts_with("the host slept for 3600 s"));
        assert_eq!(host.notes().len(), 1, "the time of day went on as it should: {:?}", host.notes());
    }

    #[test]
    fn a_clock_that_is_set_is_worth_a_word_only() {
        let mut host = host();
        pass(&mut host, 10, 12, |l| l.day -= s(7200.0));
        host.found(s(11.0), HANG);
        assert!(!is_void(&host));
        assert_eq!(host.notes(), ["the host's time of day was set by -7200 s; no limit goes by it"]);
        pass(&mut host, 13, 14, |_| {});
        assert_eq!(host.notes(), ["the host's time of day was set by -7200 s, +7200 s; no limit goes by it"]);
    }

    #[test]
    fn a_farm_that_did_not_run_and_a_host_without_time_spoil_only_what_was_found_then() {
        let mut late = host();
        pass(&mut late, 18, 20, |_| {});
        assert_eq!(late.judged(TrialEnd::Completed), TrialEnd::Completed, "nothing was found");
        late.found(s(19.0), HANG);
        let TrialEnd::Void { reason } = late.judged(TrialEnd::Stopped) else { panic!("it counts") };
        assert!(reason.starts_with("the host did not let klpfarm run for 8 s"), "{reason}");
        let mut slow = host();
        pass(&mut slow, 10, 29, |l| l.speed = SLOWEST);
        slow.found(s(28.0), HANG);
        assert!(!is_void(&slow), "busy hosts are what the pace is for");
        pass(&mut slow, 29, 40, |l| l.speed = SLOWEST);
        assert!(is_void(&slow));
        assert_eq!(slow.troubles.len(), 1);
    }

    #[test]
    fn troubles_are_bounded() {
        let mut host = host();
        for n in 0..500_u32 {
            host.look(at(10.0 + f64::from(n) * 6.0));
        }
        assert_eq!(host.troubles.len(), MOST);
        host.found(s(3000.0), HANG);
        assert!(is_void(&host), "the latest is known");
    }

    #[test]
    fn states_and_uptimes_are_read() {
        assert!(is_stopped("7 (qemu) x) T 1 2") && is_stopped("7 (q) t 1"));
        assert!(!is_stopped("7 (T T) S 1") && !is_stopped(""));
        assert_eq!(seconds("12.34 99.00\n"), Some(s(12.34)));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let look = Look::take(Duration::ZERO, Duration::ZERO, 1.0, Some(child.id()));
        assert!(!look.stopped && look.boot.is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
