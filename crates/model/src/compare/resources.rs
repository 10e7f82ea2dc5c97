//! Leaks: what grows as long as the load goes on with the patch in force, and does not in the control arm.

use super::change::Change;
use super::differs;
use super::near::Near;
use super::trend::{self, rise, rises_by, without_multiples};
use crate::event::{Measured, Resources};
use crate::pipeline::Limits;
use crate::{Finding, ObservedKind};

/// Something that the kernel gives out and should get back.
pub(super) struct Resource {
    name: &'static str,
    unit: &'static str,
    /// How much is out.
    out: fn(&Resources) -> f64,
    /// Jumps by multiples of this are the load's own.
    jumps: Option<f64>,
    limit: fn(&Limits) -> f64,
}

/// Memory that can be had goes up and down with the load's own by tens of MiB, so that its slope is known less well than that of what
/// is the kernel's alone.
const AVAILABLE: f64 = 32.0;

/// Where something rises in the control arm as well, it has to rise by so much more.
const BEYOND: f64 = 1.5;

/// A huge page, in KiB. Pages that a thread is just about to map, or has just unmapped, are in no counter; huge ones show as jumps
/// by this much, back and forth, for as long as the thread waits for a CPU.
const HUGE: f64 = 2048.0;

pub(super) const RESOURCES: [Resource; 7] = [
    Resource {
        name: "unreclaimable slab",
        unit: "KiB",
        out: |r| r.slab_unreclaimable_kib as f64,
        jumps: None,
        limit: |l| l.leak,
    },
    Resource {
        name: "kernel memory outside slab",
        unit: "KiB",
        out: |r| r.unaccounted_kib as f64,
        jumps: Some(HUGE),
        limit: |l| l.leak,
    },
    Resource {
        name: "memory in use",
        unit: "KiB",
        out: |r| -(r.available_kib as f64),
        jumps: None,
        limit: |l| l.leak * AVAILABLE,
    },
    count("open files", |r| r.open_files as f64),
    count("file descriptors", |r| r.descriptors as f64),
    count("tasks", |r| r.tasks as f64),
    count("zombies", |r| r.zombies as f64),
];

/// Their names, in order.
pub(crate) const NAMES: [&str; 7] = {
    let mut names = [""; 7];
    let mut i = 0;
    while i < names.len() {
        names[i] = RESOURCES[i].name;
        i += 1;
    }
    names
};

const fn count(name: &'static str, out: fn(&Resources) -> f64) -> Resource {
    Resource { name, unit: name, out, jumps: None, limit: |l| l.growth }
}

/// Something that rises by its limit: a leak, unless it is usual.
#[derive(Debug)]
pub(super) struct Leak {
    /// In [`RESOURCES`].
    place: usize,
    /// By how much it rose a second.
    now: f64,
    /// A dozen samples, for people.
    table: String,
}

/// Whether the phase has enough samples.
pub(super) fn is_watched(phase: &Measured) -> bool {
    phase.resources.len() >= trend::LEAST
}

/// What may leak, whatever the control trials do: it can't come out as more than it rises.
pub(super) fn possible(phase: &Measured, limits: &Limits) -> Vec<Leak> {
    let series = &phase.resources;
    if series.len() < trend::LEAST {
        return Vec::new();
    }
    let leak = |(place, resource): (usize, &Resource)| {
        if !may_rise_by(series, resource, (resource.limit)(limits)) {
            return None;
        }
        Some(Leak { place, now: of_series(series, resource)?, table: table(series, resource) })
    };
    RESOURCES.iter().enumerate().filter_map(leak).collect()
}

/// One finding for each resource that rises faster than is usual in control trials, by the limit.
pub(super) fn leaks(own: &Change, near: &Near<'_>, limits: &Limits) -> Vec<Finding> {
    let what = || "what leaks".to_owned();
    if !own.watched {
        near.misses(what, "it was not watched for long enough");
        return Vec::new();
    }
    if !near.know(what, |c| c.watched) {
        return Vec::new();
    }
    let leak = |Leak { place, now, table }: &Leak| {
        let resource = &RESOURCES[*place];
        let Resource { name, unit, .. } = resource;
        let usual =
            near.usual(|| format!("the growth of {name}"), |c| Some(c.rise(*place)?.max(0.0) * BEYOND))?;
        (*now >= usual.plus((resource.limit)(limits))).then(|| {
            let evidence = format!(
                "{now:.1} {unit} a second more, as long as it was watched; usually {:.1} at most in the control arm\n{table}",
                usual.left() / BEYOND,
            );
            differs(ObservedKind::ResourcesLeaked, format!("{name}: more and more with the patch"), None, evidence)
        })
    };
    own.leaks.iter().filter_map(leak).collect()
}

fn points(series: &[Resources], resource: &Resource) -> Vec<(u64, f64)> {
    series.iter().map(|r| (r.at_ms, (resource.out)(r))).collect()
}

pub(super) fn of_series(series: &[Resources], resource: &Resource) -> Option<f64> {
    let points = points(series, resource);
    // A leak of more than half a huge page a second is seen in the series as it is, a smaller one beneath the jumps.
    let beneath = resource.jumps.and_then(|jump| rise(&without_multiples(&points, jump)));
    rise(&points).into_iter().chain(beneath).reduce(f64::max)
}

/// Whether [`of_series`] comes to `limit`; far cheaper where it does not.
fn may_rise_by(series: &[Resources], resource: &Resource, limit: f64) -> bool {
    let points = points(series, resource);
    rises_by(&points, limit)
        || resource.jumps.is_some_and(|jump| rises_by(&without_multiples(&points, jump), limit))
}

/// A dozen samples, for people.
fn table(series: &[Resources], resource: &Resource) -> String {
    let Some(first) = series.first() else { return String::new() };
    let every = series.len().div_ceil(12);
    let line = |r: &Resources| {
        let (seconds, grown) =
            (r.at_ms.saturating_sub(first.at_ms) as f64 / 1000.0, (resource.out)(r) - (resource.out)(first));
        format!("after {seconds:.0} s: {grown:+.0} {}", resource.unit)
    };
    series.iter().step_by(every).skip(1).map(line).collect::<Vec<_>>().join("\n")
}
