//! `klpfarm reach PATCH.ko` and `klpfarm reach --function F`.

use std::path::PathBuf;

use klpfarm_engine::reach::{Map, not_there, rate, unpatchable};
use klpfarm_engine::{Remedy, catalog, image};
use klpfarm_image::Image;
use klpfarm_model::replaced_functions;
use klpfarm_reach::{Answer, Found, Question, ask};
use klpfarm_report::one_line;
use serde_json::{Value, json};

use crate::failure::{Failure, print, print_json};

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
        Failure::input(format!("image {} has no reach map", image.id()))
            .with(Remedy::MapReach(asked.image.to_owned()))
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
        all.push(Question::parse(text).map_err(Failure::input)?);
    }
    all.dedup();
    Ok(all)
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
