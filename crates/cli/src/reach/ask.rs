//! `klpfarm reach PATCH.ko` and `klpfarm reach --function F`.

use std::path::PathBuf;

use klpfarm_image::Image;
use klpfarm_model::{Workload, replaced_functions};
use klpfarm_reach::{Answer, Entry, Found, Kernel, Outcome, Question, Record, ask};
use klpfarm_report::one_line;
use serde_json::{Value, json};

use super::store::Store;
use crate::failure::{Failure, print, print_json};
use crate::{catalog, image};

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) patches: &'a [PathBuf],
    pub(super) functions: &'a [String],
    pub(super) image: &'a str,
    pub(super) json: bool,
}

pub(super) fn run(asked: &Asked<'_>) -> Result<u8, Failure> {
    let image = image::find(asked.image)?;
    let questions = questions(asked)?;
    let map = Map::open(&image, &questions, &catalog::shipped_workloads()?).ok_or_else(|| {
        let (id, name) = (image.id(), asked.image);
        Failure::input(format!("image {id} has no reach map: run `klpfarm reach map --image {name}`"))
    })?;
    let answers: Vec<(&Question, Answer)> =
        questions.iter().map(|q| (q, ask(&map.kernel, &map.records, q))).collect();
    if asked.json {
        print_json(&json!({
            "image": image.id(),
            "release": map.kernel.release,
            "functions": answers.iter().map(|(q, a)| as_json(q, a, &image)).collect::<Vec<_>>(),
            "unavailable": map.unavailable().map(|(w, why)| (w.to_owned(), Value::from(why))).collect::<serde_json::Map<_, _>>(),
            "unmeasured": map.unmeasured,
        }));
        return Ok(0);
    }
    let mut text = format!("image {} ({})\n", image.id(), map.kernel.release);
    for (question, answer) in &answers {
        text.push_str(&words(question, answer, &image, map.unmeasured.is_empty()));
    }
    for (workload, why) in map.unavailable() {
        text.push_str(&format!("unavailable: {workload}: {}\n", one_line(why, 200)));
    }
    if !map.unmeasured.is_empty() {
        text.push_str(&format!(
            "not measured: {}: run `klpfarm reach map --image {}`\n",
            map.unmeasured.join(", "),
            asked.image
        ));
    }
    print(&text);
    Ok(0)
}

/// What is asked for: the functions that the patches replace, and those that are named.
fn questions(asked: &Asked<'_>) -> Result<Vec<Question>, Failure> {
    let mut all = Vec::new();
    for file in asked.patches {
        let (_, data) = catalog::patch(file)?;
        let replaced = replaced_functions(&data);
        if replaced.is_empty() {
            return Err(Failure::input(format!(
                "patch {}: its file does not tell which functions it replaces: name them with --function",
                file.display()
            )));
        }
        all.extend(replaced.into_iter().map(|r| Question {
            name: r.name,
            object: Some(r.object),
            position: r.position,
        }));
    }
    for text in asked.functions {
        all.push(Question::parse(text).map_err(Failure::Input)?);
    }
    all.dedup();
    Ok(all)
}

/// What is known of an image, of the functions that are asked for.
pub(super) struct Map {
    pub(super) kernel: Kernel,
    pub(super) records: Vec<Record>,
    /// Workloads that have not been measured.
    unmeasured: Vec<String>,
}

impl Map {
    /// The map, of these workloads and the user's own that were measured; `None` if there is none.
    pub(super) fn open(image: &Image, questions: &[Question], workloads: &[Workload]) -> Option<Self> {
        let names: Vec<&str> = questions.iter().map(|q| q.name.as_str()).collect();
        let store = Store::of(image);
        let kernel = store.kernel(Some(&names))?;
        let (records, unmeasured) = store.all(workloads, Some(&names));
        (!records.is_empty()).then_some(Self { kernel, records, unmeasured })
    }

    fn unavailable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.records.iter().filter_map(|r| match &r.outcome {
            Outcome::Unavailable(why) => Some((r.workload.as_str(), why.as_str())),
            Outcome::Measured { .. } => None,
        })
    }
}

/// Why a livepatch can't replace a function that is there.
pub(super) fn unpatchable(entry: Entry) -> Option<&'static str> {
    match entry {
        Entry::Traceable | Entry::Unknown => None,
        Entry::Init => Some("its code is thrown away after booting (__init): no livepatch can replace it"),
        Entry::None => {
            Some("it has no entry for the tracer (notrace, or assembly): no livepatch can replace it")
        }
    }
}

pub(super) fn not_there(question: &Question, answer: &Answer, image: &Image) -> String {
    match answer {
        Answer::Found(_) => String::new(),
        Answer::NoModule(module) => match image.has_module(module) {
            Some(false) => format!("the image does not have module {module}"),
            _ => format!("no workload that was measured loads module {module}"),
        },
        Answer::Missing { variants, elsewhere } => {
            let mut text = match question.position {
                Some(position) => format!("the kernel has no function number {position} of this name there"),
                None => "the kernel has no such function there (inlined, or not built)".to_owned(),
            };
            if !variants.is_empty() {
                text.push_str(&format!("; the compiler made of it: {}", variants.join(", ")));
            }
            if !elsewhere.is_empty() {
                text.push_str(&format!("; there is one in: {}", elsewhere.join(", ")));
            }
            text
        }
    }
}

fn words(question: &Question, answer: &Answer, image: &Image, complete: bool) -> String {
    let Answer::Found(all) = answer else {
        return format!("{question}\n    {}\n", not_there(question, answer, image));
    };
    let mut text = String::new();
    for found in all {
        text.push_str(&format!("{}", found.function));
        if found.of > 1 {
            let word = if question.position.is_none() { ": a patch must say which one it means" } else { "" };
            text.push_str(&format!(
                " (number {} of {} of this name{word})",
                found.function.position, found.of
            ));
        }
        text.push('\n');
        text.extend(unpatchable(found.entry).map(|why| format!("    {why}\n")));
        for caller in &found.callers {
            let start = match caller.while_starting {
                0 => String::new(),
                n => format!(", {n} while starting"),
            };
            text.push_str(&format!("    {:<28} {:>10}/s{start}\n", caller.workload, rate(caller.per_second)));
        }
        if found.background > 0.0 {
            text.push_str(&format!(
                "    {:<28} {:>10}/s\n",
                "(without any workload)",
                rate(found.background)
            ));
        } else if found.callers.is_empty() {
            let word = if complete { "nothing calls it" } else { "nothing that was measured calls it" };
            text.push_str(&format!("    {word}\n"));
        }
    }
    text
}

/// Three digits are more than a rate tells.
pub(super) fn rate(per_second: f64) -> String {
    if per_second >= 100.0 || per_second == 0.0 {
        format!("{per_second:.0}")
    } else {
        format!("{per_second:.2}")
    }
}

fn as_json(question: &Question, answer: &Answer, image: &Image) -> Value {
    let object = question.object.as_deref();
    let one = |f: &Found| {
        json!({
            "object": f.function.object,
            "position": f.function.position,
            "of": f.of,
            "patchable": unpatchable(f.entry).is_none(),
            "why_not": unpatchable(f.entry),
            "callers": f.callers,
            "background_per_second": f.background,
        })
    };
    let found: Vec<Value> = match answer {
        Answer::Found(all) => all.iter().map(one).collect(),
        _ => Vec::new(),
    };
    let missing = (!matches!(answer, Answer::Found(_))).then(|| not_there(question, answer, image));
    json!({ "name": question.name, "object": object, "position": question.position, "found": found, "missing": missing })
}
