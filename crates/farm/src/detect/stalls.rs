//! What becomes of a stall after it was found: those who stalled make progress, or they stay where they are while all others work, which no
//! slow host explains. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use klpfarm_model::Body;
use klpfarm_stress::wire::{BlockedTask, FromGuest};

use crate::measure::millis;

/// How far two figures of the moment at which the same stall began may be apart: they come from the guest's clock and are converted.
const APART: Duration = Duration::from_secs(2);

/// How often the limit of a stall must have passed without progress until it is a hang.
pub(crate) const TIMES: u32 = 3;

/// Who stalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A workload thread, by the number that the probe gave it.
    Thread(u32),
    /// Another task, by its id in the guest.
    Task(u32),
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) function: Option<String>,
    pub(crate) in_patch: bool,
    pub(crate) state: char,
}

#[derive(Debug)]
struct Member {
    since: Duration,
    place: Option<Place>,
}

/// One finding that is followed up.
#[derive(Debug)]
struct Stall {
    title: String,
    limit: Duration,
    since: Duration,
    members: BTreeMap<Who, Member>,
    /// The kernel named this task; who it is will be known when the probe tells of it.
    wanted: Option<u32>,
    in_patch: bool,
    progress: Duration,
    over: bool,
}

/// A hang that is certain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hang {
    pub(crate) function: String,
    pub(crate) lasts: Duration,
    pub(crate) tasks: usize,
    /// What the rest of the machine did meanwhile.
    pub(crate) rest: String,
}

/// The stalls of one machine.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    stalls: Vec<Stall>,
    /// Operations of each thread, and when that last grew.
    threads: BTreeMap<u32, (u64, Duration)>,
    /// The latest two logins that succeeded.
    logins: [Option<Duration>; 2],
}

impl Stalls {
    pub(crate) fn knows(&self, title: &str) -> bool {
        self.stalls.iter().any(|s| s.title == title)
    }

    /// Follow up a finding of this title: this one stalls since then, and takes part in it. `limit`: how long is a stall.
    pub(crate) fn follow(
        &mut self,
        title: &str,
        limit: Duration,
        (who, since): (Who, Duration),
        place: Option<Place>,
    ) {
        let in_patch = place.as_ref().is_some_and(|p| p.in_patch);
        let stall = self.stall(title, limit, since);
        stall.in_patch |= in_patch;
        if !stall.over {
            stall.since = stall.since.min(since);
            stall.members.entry(who).or_insert(Member { since, place });
        }
    }

    /// Follow up a finding of the kernel's, which names a task.
    pub(crate) fn follow_task(
        &mut self,
        title: &str,
        limit: Duration,
        now: Duration,
        tid: u32,
        in_patch: bool,
    ) {
        let stall = self.stall(title, limit, now);
        stall.wanted = Some(tid);
        stall.in_patch |= in_patch;
    }

    fn stall(&mut self, title: &str, limit: Duration, since: Duration) -> &mut Stall {
        let at = self.stalls.iter().position(|s| s.title == title).unwrap_or_else(|| {
            self.stalls.push(Stall {
                title: title.to_owned(),
                limit,
                since,
                members: BTreeMap::new(),
                wanted: None,
                in_patch: false,
                progress: since,
                over: false,
            });
            self.stalls.len() - 1
        });
        &mut self.stalls[at]
    }

    /// The machine stood still for so long through no fault of its own.
    pub(crate) fn forgive(&mut self, lost: Duration) {
        for stall in &mut self.stalls {
            stall.since += lost;
            stall.members.values_mut().for_each(|m| m.since += lost);
        }
        self.threads.values_mut().for_each(|(_, at)| *at += lost);
    }

    pub(crate) fn login(&mut self, now: Duration) {
        self.logins = [self.logins[1], Some(now)];
    }

    /// A line of the probe. `place` tells where a task stands.
    pub(crate) fn take(&mut self, now: Duration, message: &FromGuest, place: impl Fn(&BlockedTask) -> Place) {
        match message {
            FromGuest::Progress { threads, .. } => {
                for p in threads {
                    let (ops, at) = self.threads.entry(p.id).or_insert((p.ops, now));
                    if *ops != p.ops {
                        (*ops, *at) = (p.ops, now);
                        self.went_on(now, Who::Thread(p.id));
                    }
                }
            }
            FromGuest::Gone { id } => {
                self.threads.remove(id);
                self.went_on(now, Who::Thread(*id));
            }
            FromGuest::Blocked { tasks, total, .. } => {
                let complete = usize::try_from(*total).is_ok_and(|total| total <= tasks.len());
                self.stalls.iter_mut().for_each(|s| s.look(now, tasks, complete, &place));
            }
            _ => {}
        }
    }

    fn went_on(&mut self, now: Duration, who: Who) {
        for stall in &mut self.stalls {
            if stall.members.remove(&who).is_some() {
                stall.progress = now;
            }
        }
    }

    /// Stalls that have ended since the last call.
    pub(crate) fn ended(&mut self) -> Vec<Body> {
        let ended = |s: &mut Stall| {
            s.over = true;
            Body::StallEnded { title: s.title.clone(), lasted_ms: millis(s.progress.saturating_sub(s.since)) }
        };
        let open = |s: &&mut Stall| !s.over && s.members.is_empty() && s.wanted.is_none();
        self.stalls.iter_mut().filter(open).map(ended).collect()
    }

    /// A stall in the patch may still turn out to be a hang, or to have been none.
    pub(crate) fn undecided(&self, now: Duration, slack: Duration) -> bool {
        self.stalls.iter().any(|s| s.in_patch && !s.over && now < s.since + s.limit * TIMES + slack)
    }

    /// A hang in the patch that is certain; once each. `others`: threads of the workloads that count their operations.
    pub(crate) fn hang(&mut self, now: Duration, others: impl Fn(u32) -> bool) -> Option<Hang> {
        let stalled: BTreeSet<Who> = self.stalls.iter().flat_map(|s| s.members.keys().copied()).collect();
        let counts = |id: &u32| others(*id) && !stalled.contains(&Who::Thread(*id));
        for stall in self.stalls.iter_mut().filter(|s| !s.over) {
            let lasts = |m: &Member| now.saturating_sub(m.since);
            let hangs =
                |m: &&Member| m.place.as_ref().is_some_and(|p| p.in_patch) && lasts(m) >= stall.limit * TIMES;
            let Some(longest) = stall.members.values().filter(hangs).max_by_key(|m| lasts(m)) else {
                continue;
            };
            let others: Vec<Duration> =
                self.threads.iter().filter(|(id, _)| counts(id)).map(|(_, (_, at))| *at).collect();
            let busy = others.iter().filter(|at| now.saturating_sub(**at) < stall.limit).count();
            let place = longest.place.as_ref();
            let logins = self.logins[0].is_some_and(|first| first > longest.since);
            let rest = if others.is_empty() && logins && place.is_some_and(|p| p.state != 'R') {
                "logins succeeded meanwhile; no other workload thread was there".to_owned()
            } else if busy > 0 && busy * 2 >= others.len() {
                format!(
                    "{busy} of {} other workload threads completed operations within the last {} s",
                    others.len(),
                    stall.limit.as_secs()
                )
            } else {
                continue;
            };
            let function = place.and_then(|p| p.function.clone()).unwrap_or_else(|| "the patch".to_owned());
            let tasks = stall.members.values().filter(hangs).count();
            let lasts = lasts(longest);
            stall.over = true;
            return Some(Hang { function, lasts, tasks, rest });
        }
        None
    }
}

impl Stall {
    /// The probe's latest list of tasks that make no progress.
    fn look(
        &mut self,
        now: Duration,
        tasks: &[BlockedTask],
        complete: bool,
        place: &impl Fn(&BlockedTask) -> Place,
    ) {
        let since = |t: &BlockedTask| now.saturating_sub(Duration::from_millis(t.for_ms));
        if let Some(task) = tasks.iter().find(|t| Some(t.tid) == self.wanted) {
            self.wanted = None;
            let who = task.thread.map_or(Who::Task(task.tid), Who::Thread);
            self.since = self.since.min(since(task));
            self.members.insert(who, Member { since: since(task), place: Some(place(task)) });
        }
        let mut went_on = false;
        self.members.retain(|who, member| {
            let task = tasks.iter().find(|t| match who {
                Who::Thread(id) => t.thread == Some(*id),
                Who::Task(tid) => t.tid == *tid && t.thread.is_none(),
            });
            if let Some(task) = task {
                member.place = Some(place(task));
            }
            // Operations tell more surely whether a thread has made progress.
            let stays =
                matches!(who, Who::Thread(_)) || task.map_or(!complete, |t| since(t) <= member.since + APART);
            went_on |= !stays;
            stays
        });
        self.in_patch |= self.members.values().any(|m| m.place.as_ref().is_some_and(|p| p.in_patch));
        if went_on {
            self.progress = now;
        }
    }
}
