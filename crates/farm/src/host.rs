//! What the host does to a machine that is not the machine's fault: it sleeps, it stops QEMU, it does not let the farm run, it has too
//! little time for the machine. A trial in which that happened is void, whether or not anything was found in it, and another takes its place.
//! What the host cannot cause, an oops for example, counts whatever the host did; so does a hang in the patch's own code that did not
//! end. Pure, but for [`Look::take`]; times are handed in.

use std::time::{Duration, SystemTime};

use klpfarm_model::{Finding, FindingKind, Phase, TrialEnd};

use crate::concurrency::ENOUGH;
use crate::pace::SLOWEST;

/// Clocks that drift apart by more than this between two looks were moved apart.
const APART: Duration = Duration::from_secs(2);

/// So long between two looks, which are due five times a second, and the farm did not run. A host that is merely busy delays a look by
/// tenths of a second.
const LATE: Duration = Duration::from_secs(5);

/// So long stopped, and the guest's own watchdogs may notice.
const STOPPED: Duration = Duration::from_secs(1);

/// So long at (nearly) the slowest pace there is, a twentieth, and no limit means anything any more.
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

impl Trouble {
    /// The machine itself did not run.
    fn stood_still(&self) -> bool {
        matches!(self.kind, Kind::Slept | Kind::Stopped)
    }

    /// Why a trial is void.
    fn void(&self) -> String {
        format!("{self}: the trial says nothing and is repeated")
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.lasted.as_secs_f64();
        match self.kind {
            Kind::Slept => write!(f, "the host slept for {seconds:.0} s")?,
            Kind::Stopped => write!(f, "QEMU was stopped on the host for {seconds:.0} s")?,
            Kind::Late => write!(f, "the host did not let klpfarm run for {seconds:.0} s")?,
            Kind::Slow => write!(f, "the host gave the machine next to no CPU time for {seconds:.0} s")?,
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
    findings: Vec<Found>,
    /// Since when the trial measures and watches what the verdict is made from: its baseline, its patch, its soak.
    watching: Option<Duration>,
}

/// What of a finding matters here.
#[derive(Debug)]
struct Found {
    at: Duration,
    kind: FindingKind,
    title: String,
    in_patch: bool,
    /// It was a stall, and it ended.
    ended: bool,
}

impl Found {
    /// It names the patch, and nothing shows that it was only slow.
    fn blames_the_patch(&self) -> bool {
        self.in_patch && !self.ended
    }

    /// Too little CPU time alone can look like this: it is soft, and neither memory that is gone nor a hang in the patch's own code.
    fn can_be_slowness(&self) -> bool {
        self.kind.is_soft() && self.kind.rules().by_lack_of_time && !self.blames_the_patch()
    }
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
            watching: None,
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

    /// The trial enters a phase.
    pub(crate) fn phase(&mut self, now: Duration, phase: Phase) {
        if !matches!(phase, Phase::Boot | Phase::Age | Phase::Settle | Phase::End) {
            self.watching.get_or_insert(now);
        }
    }

    /// The trial has found something.
    pub(crate) fn found(&mut self, now: Duration, finding: &Finding) {
        let Finding { kind, in_patch, .. } = *finding;
        let title = finding.title.clone();
        self.findings.push(Found { at: now, kind, title, in_patch, ended: false });
    }

    /// The stall that was found under this title has ended.
    pub(crate) fn stall_ended(&mut self, title: &str) {
        self.findings.iter_mut().filter(|f| f.title == title).for_each(|f| f.ended = true);
    }

    /// Why nothing more can be learnt from this trial: the machine stood still, so that its measurements are worth nothing, and nothing has
    /// been found.
    pub(crate) fn hopeless(&self) -> Option<String> {
        // While it stands still nothing can be ended in order.
        if self.stopped.is_some() || !self.findings.is_empty() {
            return None;
        }
        self.troubles.iter().find(|t| t.stood_still()).map(Trouble::void)
    }

    /// How the trial ended, given how it would have on a host without trouble, and the share of its planned CPU time that the machine got.
    pub(crate) fn judged(&self, end: TrialEnd, share: Option<f64>) -> TrialEnd {
        match end {
            // The farm's own failures, and trials that were void before they began to say anything, stay what they are.
            TrialEnd::FarmError { .. } | TrialEnd::Void { .. } => end,
            TrialEnd::Interrupted | TrialEnd::Unneeded | TrialEnd::OutOfBudget
                if self.findings.is_empty() =>
            {
                end
            }
            _ => match self.hopeless().or_else(|| self.disturbed()).or_else(|| self.starved(share)) {
                Some(reason) => TrialEnd::Void { reason },
                None => end,
            },
        }
    }

    /// Why the trial says nothing: the host disturbed what was watched, or all that was found may be its doing. `None` if a single finding is
    /// not.
    fn disturbed(&self) -> Option<String> {
        if self.findings.is_empty() {
            return self.troubles.iter().find(|t| self.is_watched(t)).map(Trouble::void);
        }
        let cause = |found: &Found| self.troubles.iter().find(|t| self.may_have_caused(t, found));
        let causes: Option<Vec<&Trouble>> = self.findings.iter().map(cause).collect();
        causes?.first().map(|t| t.void())
    }

    /// It fell into the time that the verdict is made from.
    fn is_watched(&self, trouble: &Trouble) -> bool {
        trouble.stood_still() || self.watching.is_some_and(|since| since <= trouble.to)
    }

    /// What was there before the trouble began is never its doing. What only slowness can look like is void in any trial that the host
    /// disturbed, as the trial without a finding is. What blames the patch or the kernel more than that is void only as long as the
    /// trouble can have led to it.
    fn may_have_caused(&self, trouble: &Trouble, found: &Found) -> bool {
        let near = found.at <= trouble.to + self.grace;
        trouble.from <= found.at
            && if found.kind.is_soft() {
                found.can_be_slowness() && (near || self.is_watched(trouble))
            } else {
                found.kind.rules().by_lack_of_time && !found.in_patch && near
            }
    }

    /// Why slowness says nothing: the host was overloaded, and slowness is all that was found.
    fn starved(&self, share: Option<f64>) -> Option<String> {
        let share = share.filter(|share| *share < ENOUGH)?;
        let slow = !self.findings.is_empty() && self.findings.iter().all(Found::can_be_slowness);
        slow.then(|| {
            format!(
                "host overloaded: this machine got {:.0} % of its planned CPU time, and nothing was found but slowness: the trial says nothing and is repeated",
                share * 100.0
            )
        })
    }

    /// What is worth a word whatever came of it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let steps: Vec<String> = self.set.iter().map(|s| format!("{s:+.0} s")).collect();
        let set = (!steps.is_empty())
            .then(|| format!("the host's time of day was set by {}; no limit goes by it", steps.join(", ")));
        self.troubles.iter().map(ToString::to_string).chain(set).collect()
    }
}

#[cfg(test)]
mod tests;
