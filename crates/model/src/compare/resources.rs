//! Leaks: what grows as long as the load goes on with the patch in force, and does not in the control arm.

use super::trend::{rise, without_multiples};
use super::{Change, differs};
use crate::event::{Measured, Resources};
use crate::pipeline::Limits;
use crate::{FarmKind, Finding};

/// Something that the kernel gives out and should get back.
struct Resource {
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

const RESOURCES: [Resource; 7] = [
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
pub(super) const NAMES: [&str; 7] = {
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

/// One finding for each resource that rises faster than in all control trials, by the limit.
pub(super) fn leaks(own: &Change<'_>, controls: &[Change<'_>], limits: &Limits) -> Vec<Finding> {
    let leak = |resource: &Resource| {
        let rise = |m: &Measured| of_phase(m, resource);
        let now = rise(own.after)?;
        let usual = controls.iter().filter_map(|c| rise(c.after)).reduce(f64::max)?.max(0.0);
        let limit = (resource.limit)(limits);
        (now >= usual * BEYOND + limit).then(|| {
            let Resource { name, unit, .. } = resource;
            let evidence = format!(
                "{now:.1} {unit} a second more, as long as it was watched; {usual:.1} at most in the control arm\n{}",
                table(own.after, resource)
            );
            differs(FarmKind::ResourcesLeaked, format!("{name}: more and more with the patch"), None, evidence)
        })
    };
    RESOURCES.iter().filter_map(leak).collect()
}

fn of_phase(m: &Measured, resource: &Resource) -> Option<f64> {
    let points: Vec<(u64, f64)> = m.resources.iter().map(|r| (r.at_ms, (resource.out)(r))).collect();
    // A leak of more than half a huge page a second is seen in the series as it is, a smaller one beneath the jumps.
    let beneath = resource.jumps.and_then(|jump| rise(&without_multiples(&points, jump)));
    rise(&points).into_iter().chain(beneath).reduce(f64::max)
}

/// A dozen samples, for people.
fn table(m: &Measured, resource: &Resource) -> String {
    let Some(first) = m.resources.first() else { return String::new() };
    let every = m.resources.len().div_ceil(12);
    let line = |r: &Resources| {
        let (seconds, grown) =
            ((r.at_ms - first.at_ms) as f64 / 1000.0, (resource.out)(r) - (resource.out)(first));
        format!("after {seconds:.0} s: {grown:+.0} {}", resource.unit)
    };
    m.resources.iter().step_by(every).skip(1).map(line).collect::<Vec<_>>().join("\n")
}
