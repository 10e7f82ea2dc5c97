//! What the reach map says of a plan, and the workloads that `workloads: auto` stands for.

use klpfarm_image::Image;
use klpfarm_model::{MachineShape, Patch, Workload, replaced_functions};
use klpfarm_reach::{Answer, Found, LEAST_RATE, Offer, Outcome, Question, Room, ask, choose};

use super::map::{Map, not_there, rate, unpatchable};
use crate::{Error, Note, Remedy, Result, catalog};

/// What is asked for a plan.
pub(crate) struct Request<'a> {
    pub(crate) image: &'a Image,
    pub(crate) machine: MachineShape,
    /// The workloads that the pipeline names.
    pub(crate) named: &'a [Workload],
    /// It leaves others to us.
    pub(crate) auto: bool,
    pub(crate) patches: Vec<(&'a Patch, &'a [u8])>,
}

/// What the map says of it.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    /// The workloads that were chosen.
    pub(crate) added: Vec<Workload>,
    /// For people, a line each.
    pub(crate) lines: Vec<Note>,
}

/// Look at the map, and choose workloads where that is wanted. Without a map the named workloads are the load; `auto` alone needs one.
pub(crate) fn reached(wanted: &Request<'_>) -> Result<Reached> {
    let (questions, mut lines) = questions(wanted);
    let mut known = wanted.named.to_vec();
    for shipped in catalog::shipped_workloads()? {
        if !known.iter().any(|w| w.name == shipped.name) {
            known.push(shipped);
        }
    }
    let image = &wanted.image.manifest.name;
    let alone = wanted.auto && wanted.named.is_empty();
    if questions.is_empty() && alone {
        let why = "the patches' files do not tell which functions they replace";
        return Err(Error::input(format!("workloads: `auto` can't choose any: {why}: name workloads")));
    }
    let Some(map) = Map::open(wanted.image, &questions, &known) else {
        let how = Remedy::MapReach(image.clone());
        if alone {
            let text = format!("workloads: `auto` needs a reach map of image {image}");
            return Err(Error::input(text).with(how));
        }
        let what =
            if wanted.auto { "`auto` adds no workload" } else { "who calls the functions is not known" };
        lines.push(Note::new(format!("{what}: image {image} has no reach map")).with(how));
        return Ok(Reached { added: Vec::new(), lines });
    };
    let answers: Vec<(&Question, Answer)> =
        questions.iter().map(|q| (q, ask(&map.kernel, &map.records, q))).collect();
    let found: Vec<&Found> = answers.iter().filter_map(|(_, a)| found(a)).flatten().collect();
    let offers = offers(&map, wanted, &known, &found);
    let background: Vec<f64> = found.iter().map(|f| f.background).collect();
    let room =
        Room { cpus: f64::from(wanted.machine.cpus), memory_mib: u64::from(wanted.machine.memory_mib) };
    let eligible: Vec<Offer> = offers.into_iter().filter(|o| o.named || wanted.auto).collect();
    let chosen = choose(&eligible, &background, room);
    if alone && chosen.added.is_empty() {
        let why = "no workload that was measured calls any of the patched functions";
        let text = format!("workloads: `auto` can't choose any: {why}");
        return Err(Error::input(text).with(Remedy::WriteWorkload));
    }
    if wanted.auto {
        let names =
            if chosen.added.is_empty() { "no other workload".to_owned() } else { chosen.added.join(", ") };
        lines.push(Note::new(format!(
            "auto: {names}; all workloads together ask for {:.1} times the machine's CPUs",
            chosen.overcommit
        )));
    }
    for (question, answer) in &answers {
        if found_of(answer).is_empty() {
            lines.push(Note::new(format!("{question}: {}", not_there(question, answer, wanted.image))));
        }
    }
    for (found, expected) in found.iter().zip(&chosen.expected) {
        lines.push(of_function(found, *expected, wanted.named, &chosen.added));
    }
    let added = chosen.added.iter().filter_map(|name| known.iter().find(|w| w.name == *name));
    Ok(Reached { added: added.cloned().collect(), lines })
}

fn found(answer: &Answer) -> Option<&[Found]> {
    match answer {
        Answer::Found(all) => Some(all),
        _ => None,
    }
}

fn found_of(answer: &Answer) -> &[Found] {
    found(answer).unwrap_or_default()
}

/// The functions that patches for this image's kernel replace; and what of them does not tell.
fn questions(wanted: &Request<'_>) -> (Vec<Question>, Vec<Note>) {
    let (mut all, mut silent) = (Vec::new(), Vec::new());
    let fits = |patch: &Patch| wanted.image.release().is_none_or(|release| patch.release() == release);
    for (patch, data) in wanted.patches.iter().filter(|(patch, _)| fits(patch)) {
        let replaced = replaced_functions(data);
        if replaced.is_empty() {
            let text = format!("{}: its file does not tell which functions it replaces", patch.name);
            silent.push(Note::new(text));
        }
        all.extend(replaced.into_iter().map(|r| Question {
            name: r.name,
            object: Some(r.object),
            position: r.position,
        }));
    }
    all.sort();
    all.dedup();
    (all, silent)
}

/// The workloads that were measured. A named one that was not is there, but nothing is known of it.
fn offers(map: &Map, wanted: &Request<'_>, known: &[Workload], found: &[&Found]) -> Vec<Offer> {
    let one = |workload: &Workload| {
        let named = wanted.named.iter().any(|w| w.name == workload.name);
        let record = map.records.iter().find(|r| r.workload == workload.name);
        match record.map(|r| (r, &r.outcome)) {
            Some((record, Outcome::Measured { cpus, memory_mib, .. })) => Some(Offer {
                name: workload.name.clone(),
                named,
                cpus: *cpus,
                memory_mib: *memory_mib,
                rates: found.iter().map(|f| record.rate(&f.function).unwrap_or(0.0)).collect(),
            }),
            _ if named => Some(Offer {
                name: workload.name.clone(),
                named,
                cpus: 0.0,
                memory_mib: 0,
                rates: vec![0.0; found.len()],
            }),
            _ => None,
        }
    };
    known.iter().filter_map(one).collect()
}

fn of_function(found: &Found, expected: f64, named: &[Workload], added: &[String]) -> Note {
    let name = match found.of {
        1 => found.function.to_string(),
        _ => format!("{} number {}", found.function, found.function.position),
    };
    if let Some(why) = unpatchable(found.entry) {
        return Note::new(format!("{name}: {why}"));
    }
    let runs =
        |workload: &str| named.iter().any(|w| w.name == workload) || added.iter().any(|a| a == workload);
    let of = |runs_here: bool| -> Vec<String> {
        let callers = found.callers.iter().filter(|c| c.per_second > 0.0 && runs(&c.workload) == runs_here);
        callers.take(3).map(|c| format!("{} ({}/s alone)", c.workload, rate(c.per_second))).collect()
    };
    let (here, elsewhere) = (of(true), of(false));
    if expected >= LEAST_RATE {
        let by = if here.is_empty() { "the machine itself".to_owned() } else { here.join(", ") };
        return Note::new(format!("{name}: about {}/s, by {by}", rate(expected)));
    }
    let little = match here.as_slice() {
        [] => "no workload of this plan calls it".to_owned(),
        some => format!("only about {}/s, by {}", rate(expected), some.join(", ")),
    };
    if elsewhere.is_empty() && here.is_empty() {
        return Note::new(format!("{name}: nothing calls it")).with(Remedy::WriteWorkload);
    }
    let others = if elsewhere.is_empty() {
        String::new()
    } else {
        format!("; it is called by {}", elsewhere.join(", "))
    };
    Note::new(format!("{name}: {little}{others}"))
}
