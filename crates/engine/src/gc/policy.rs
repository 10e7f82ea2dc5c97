//! What goes and what stays. Pure: the list and the time are handed in.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use klpfarm_model::size::size;
use klpfarm_vm::Owner;

/// Something that `gc` may remove.
#[derive(Debug, Clone, PartialEq)]
pub struct Thing {
    /// What it is.
    pub what: What,
    /// Where it is; of a process, its folder below `/proc`.
    pub path: PathBuf,
    /// On disk; of a process, in memory.
    pub bytes: u64,
    /// When it was last worked on.
    pub at: SystemTime,
}

/// What it is.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A machine whose farm is gone.
    Process(Owner),
    /// A temporary folder, or something half-made or half-removed, whose maker is gone.
    Folder,
    /// Something half-made in the store of images, whose files may be another user's within a namespace.
    HalfImage,
    /// A control group whose run is gone.
    Group,
    /// A run folder.
    Run(Run),
    /// The console of a machine that did not stay sound while it was aged.
    Log,
    /// A checkpoint.
    Checkpoint(Checkpoint),
}

impl What {
    /// As written in the output.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Folder | Self::HalfImage => "leftovers",
            Self::Group => "group",
            Self::Run(_) => "run",
            Self::Log => "log",
            Self::Checkpoint(_) => "checkpoint",
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// A farm works on it.
    InUse,
    /// It has no verdict and could be resumed; the checkpoint that this takes, if any.
    Unfinished(Option<String>),
    /// Its verdict, in the words of `verdict.json`.
    Ended(String),
}

/// What decides about a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of its folder.
    pub id: String,
    /// The one that it was aged from.
    pub parent: Option<String>,
    /// Why nothing can be run from it any more.
    pub useless: Option<&'static str>,
    /// Machines run from it.
    pub busy: bool,
}

/// What the user wants to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Runs and logs older than this go.
    pub age: Duration,
    /// Of the rest, the oldest go until all runs and logs take no more bytes than this.
    pub size: u64,
    /// Rejected runs are treated as others; else they stay.
    pub also_rejected: bool,
    /// Checkpoints older than this go; none without it.
    pub checkpoints: Option<Duration>,
}

/// One thing that goes: its place in the list, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Going {
    pub(crate) thing: usize,
    pub(crate) why: String,
}

/// What goes, leftovers first, then runs from the oldest on, then checkpoints.
pub(crate) fn what_goes(listing: &[Thing], policy: &Policy, now: SystemTime) -> Vec<Going> {
    let mut going: Vec<Going> = Vec::new();
    for (thing, left) in listing.iter().enumerate() {
        let why = match &left.what {
            What::Process(owner) => format!("its run (process {}) has ended", owner.pid),
            What::Folder | What::HalfImage | What::Group => "its run has ended".to_owned(),
            What::Run(_) | What::Log | What::Checkpoint(_) => continue,
        };
        going.push(Going { thing, why });
    }
    going.extend(runs(listing, policy, now));
    if let Some(age) = policy.checkpoints {
        let gone: BTreeSet<usize> = going.iter().map(|g| g.thing).collect();
        going.extend(checkpoints(listing, age, now, &gone));
    }
    going
}

/// A clock that was set back makes nothing old.
fn age(thing: &Thing, now: SystemTime) -> Duration {
    now.duration_since(thing.at).unwrap_or_default()
}

fn runs(listing: &[Thing], policy: &Policy, now: SystemTime) -> Vec<Going> {
    let is_run = |t: &Thing| matches!(t.what, What::Run(_) | What::Log);
    let mut total: u64 = listing.iter().filter(|t| is_run(t)).map(|t| t.bytes).sum();
    let mut candidates: Vec<usize> =
        (0..listing.len()).filter(|&i| may_go(&listing[i].what, policy)).collect();
    candidates.sort_by_key(|&i| listing[i].at);
    let mut going = Vec::new();
    for i in candidates {
        let thing = &listing[i];
        let age = age(thing, now);
        let because = if age > policy.age {
            format!("{} old, limit {}", days(age), days(policy.age))
        } else if total > policy.size {
            format!("the oldest; all runs take {}, limit {}", size(total), size(policy.size))
        } else {
            continue;
        };
        total -= thing.bytes;
        let state = match &thing.what {
            What::Run(Run::Unfinished(_)) => "not finished; ",
            What::Run(Run::Ended(verdict)) if verdict == "rejected" => "rejected; ",
            _ => "",
        };
        going.push(Going { thing: i, why: format!("{state}{because}") });
    }
    going
}

fn may_go(what: &What, policy: &Policy) -> bool {
    match what {
        What::Run(Run::Ended(verdict)) => policy.also_rejected || verdict != "rejected",
        What::Run(Run::Unfinished(_)) | What::Log => true,
        _ => false,
    }
}

/// A checkpoint that a run makes again when it needs it goes by age alone. One that was aged from another carries uptime that nothing
/// brings back: of such a lineage the youngest stays while its image is there.
fn checkpoints(listing: &[Thing], limit: Duration, now: SystemTime, gone: &BTreeSet<usize>) -> Vec<Going> {
    let needed: BTreeSet<&str> = listing
        .iter()
        .enumerate()
        .filter(|(i, _)| !gone.contains(i))
        .filter_map(|(_, t)| match &t.what {
            What::Run(Run::Unfinished(Some(id))) => Some(id.as_str()),
            _ => None,
        })
        .collect();
    let parents: BTreeSet<&str> = listing
        .iter()
        .filter_map(|t| match &t.what {
            What::Checkpoint(c) => c.parent.as_deref(),
            _ => None,
        })
        .collect();
    let mut going = Vec::new();
    for (i, thing) in listing.iter().enumerate() {
        let What::Checkpoint(c) = &thing.what else { continue };
        let age = age(thing, now);
        let youngest = c.parent.is_some() && !parents.contains(c.id.as_str());
        if age <= limit || c.busy || needed.contains(c.id.as_str()) || (youngest && c.useless.is_none()) {
            continue;
        }
        let more = c.useless.map(|why| format!(", and {why}")).unwrap_or_default();
        going.push(Going { thing: i, why: format!("{} old, limit {}{more}", days(age), days(limit)) });
    }
    going
}

/// Days, or hours below two days.
fn days(age: Duration) -> String {
    let hours = age.as_secs() / 3600;
    if hours < 48 { format!("{hours} h") } else { format!("{} d", hours / 24) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;
    const POLICY: Policy =
        Policy { age: Duration::from_secs(30 * DAY), size: 1000, also_rejected: false, checkpoints: None };

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1000 * DAY)
    }

    fn thing(what: What, days: u64, bytes: u64) -> Thing {
        let at = now() - Duration::from_secs(days * DAY);
        Thing { what, path: PathBuf::from(format!("/{days}")), bytes, at }
    }

    fn run(verdict: &str, days: u64, bytes: u64) -> Thing {
        thing(What::Run(Run::Ended(verdict.into())), days, bytes)
    }

    fn goes(listing: &[Thing], policy: &Policy) -> Vec<usize> {
        what_goes(listing, policy, now()).into_iter().map(|g| g.thing).collect()
    }

    #[test]
    fn old_runs_go_but_not_rejected_ones_or_those_in_use() {
        let listing = [
            run("qualified", 31, 1),
            run("qualified", 29, 1),
            run("rejected", 99, 1),
            thing(What::Run(Run::InUse), 99, 1),
            thing(What::Run(Run::Unfinished(None)), 40, 1),
            thing(What::Log, 50, 1),
        ];
        assert_eq!(goes(&listing, &POLICY), [5, 4, 0]);
        assert_eq!(goes(&listing, &Policy { also_rejected: true, ..POLICY }), [2, 5, 4, 0]);
    }

    #[test]
    fn of_what_is_too_much_the_oldest_go_first_and_no_more_than_must() {
        let listing = [run("qualified", 3, 400), run("inconclusive", 5, 400), run("qualified", 1, 400)];
        assert_eq!(goes(&listing, &POLICY), [1]);
        let why = what_goes(&listing, &POLICY, now()).remove(0).why;
        assert!(why.contains("all runs take 1.2 KiB, limit 1000 B"), "{why}");
        // What stays counts as well.
        let listing = [run("rejected", 9, 900), run("qualified", 3, 400), run("qualified", 1, 50)];
        assert_eq!(goes(&listing, &POLICY), [1]);
    }

    #[test]
    fn what_the_dead_left_goes_whatever_its_age() {
        let owner = Owner { pid: 7, started: 1, namespace: "pid:[1]".into() };
        let listing =
            [thing(What::Process(owner), 0, 5), thing(What::Folder, 0, 5), thing(What::Group, 0, 0)];
        assert_eq!(goes(&listing, &POLICY), [0, 1, 2]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_old() {
        let ahead = Thing { at: now() + Duration::from_secs(900 * DAY), ..run("qualified", 0, 1) };
        assert_eq!(goes(&[ahead], &POLICY), [0_usize; 0]);
    }

    fn checkpoint(id: &str, parent: Option<&str>, days: u64) -> Thing {
        let of = Checkpoint { id: id.into(), parent: parent.map(str::to_owned), useless: None, busy: false };
        thing(What::Checkpoint(of), days, 1)
    }

    #[test]
    fn checkpoints_go_only_if_asked_and_a_lineage_keeps_its_youngest() {
        let mut listing = vec![
            checkpoint("base", None, 90),
            checkpoint("night-1", Some("base"), 80),
            checkpoint("night-2", Some("night-1"), 70),
            checkpoint("lone", None, 70),
            checkpoint("new", None, 1),
            checkpoint("resumable", None, 70),
            thing(What::Run(Run::Unfinished(Some("resumable".into()))), 2, 1),
        ];
        assert_eq!(goes(&listing, &POLICY), [0_usize; 0]);
        let asked = Policy { checkpoints: Some(Duration::from_secs(60 * DAY)), ..POLICY };
        assert_eq!(goes(&listing, &asked), [0, 1, 3]);
        // The youngest of a lineage whose image is gone is of no use; one that machines run from stays.
        for (at, change) in [(2, (Some("its image no longer exists"), false)), (3, (None, true))] {
            let What::Checkpoint(c) = &mut listing[at].what else { unreachable!() };
            (c.useless, c.busy) = change;
        }
        assert_eq!(goes(&listing, &asked), [0, 1, 2]);
        // A run that goes itself needs nothing.
        listing[6].at = now() - Duration::from_secs(31 * DAY);
        assert_eq!(goes(&listing, &asked), [6, 0, 1, 2, 5]);
    }
}
