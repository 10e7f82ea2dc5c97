//! `klpfarm qualify-detectors`: the farm's own acceptance test. Every example patch is run, and the verdicts are held against what the
//! corpus says of it: no fault escapes, no good patch is held up.

mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use klpfarm_engine::plan::{Choice, resolve};
use klpfarm_engine::run::{self, Site, documents_agree, execute, run_dir};
use klpfarm_engine::{catalog, home, image};
use klpfarm_image::Image;
use klpfarm_model::{Accel, Corpus, Event, Example, Outcome, Plan, Row, Score, counted, needed_kinds, score};
use klpfarm_report::{Run, cause_in_words, one_line, write_atomically};
use serde_json::json;
use sources::Unbuilt;

use crate::console::Console;
use crate::failure::{Failure, code, print, print_json};
use crate::interrupt;
use crate::limits::LimitArgs;

/// Its result, in the run folder.
const RESULT: &str = "qualification.json";

/// Validate the detectors: run the example patches and report which faults were caught, by what, and which good patches passed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Table of examples; their folders are next to it.
    #[arg(long, value_name = "FILE", default_value = "examples/corpus.yaml")]
    corpus: PathBuf,
    /// Only examples whose name contains this; can be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Pipeline: a YAML file, or the name of a shipped one.
    #[arg(long, default_value = "qualify")]
    pipeline: String,
    /// Image to run on, instead of the pipeline's.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Soak time, instead of the pipeline's.
    #[arg(long, value_name = "60s", value_parser = klpfarm_model::duration::parse)]
    soak: Option<Duration>,
    /// Maximum number of loaded trials per patch; good patches need ten to be qualified.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    trials: Option<u32>,
    /// Number of machines to run at once; by default as many as cores and memory allow.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Random seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    limits: LimitArgs,
    /// Accelerator: kvm or tcg; by default KVM if a test guest runs, otherwise emulation (tcg).
    #[arg(long)]
    accel: Option<Accel>,
    /// Run folder to create; it must be empty or not exist [default: a new one in KLPFARM_HOME/runs].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Run nothing; recompute the results of the run in this folder.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["only", "image", "soak", "trials", "jobs", "out", "accel"])]
    again: Option<PathBuf>,
    /// Print only the results, as JSON, on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let corpus = corpus(&args.corpus)?;
    if let Some(dir) = &args.again {
        let run = Run::open(dir).map_err(Failure::input)?;
        documents_agree(dir, &run.plan, &run.events)?;
        let examples = examples_of(&run.plan, &corpus, &args.corpus)?;
        let facts = &run.plan.image;
        let images = image::store()?.list().map_err(Failure::farm)?;
        let image =
            images.iter().find(|i| i.manifest.name == facts.name && i.manifest.recipe_hash == facts.hash);
        let examples = expected(examples, facts.release.as_deref().unwrap_or_default(), image);
        return Ok(conclude(&run.plan, &run.events, &examples, unbuilt_of(dir), dir, args.json));
    }
    let examples = chosen(corpus, &args)?;
    let mut loaded = catalog::load(&args.pipeline)?;
    if let Some(name) = &args.image {
        loaded.recipe = catalog::recipe(Path::new("."), name)?;
        loaded.pipeline.image.clone_from(name);
    }
    if let Some(soak) = args.soak {
        loaded.pipeline.phases.soak = soak;
        loaded.tiers.soaks_of(soak);
    }
    let built = image::built(&image::store()?, &loaded.recipe)?;
    let release = built.release().unwrap_or_default();
    let (examples, other): (Vec<Example>, Vec<Example>) =
        examples.into_iter().partition(|e| release.is_empty() || e.fits(release));
    if !other.is_empty() {
        let names: Vec<&str> = other.iter().map(Example::name).collect();
        tell!("klpfarm: note: not for kernel {release}: {}", names.join(", "));
    }
    if examples.is_empty() {
        return Err(Failure::input(format!("none of the examples is for kernel {release}")));
    }
    let home = home()?;
    let base = args.corpus.parent().unwrap_or(Path::new(".")).to_owned();
    sources::check(&args.corpus, &corpus_text(&args.corpus)?, &base, &examples)?;
    let examples = expected(examples, release, Some(&built));
    let (made, unbuilt) = sources::modules(&built, &base, examples, &home).await?;
    if made.is_empty() {
        return Err(Failure::input("none of the examples could be built"));
    }
    let (examples, patches): (Vec<Example>, Vec<PathBuf>) = made.into_iter().unzip();
    let choice = Choice {
        pipeline: args.pipeline.clone(),
        patches,
        tier: None,
        prior: None,
        prior_keys: Vec::new(),
        trials: args.trials,
        checkpoint: None,
        cold: false,
        seed: args.seed,
        jobs: args.jobs,
        accel: args.accel,
        independent: true,
    };
    let planned = resolve(Ok(loaded), &choice).await?;
    let dir = run_dir(args.out.as_deref(), &home, "qualify-detectors")?;
    let interrupts = interrupt::listen();
    let site = Site { home: &home, dir: &dir, limits: args.limits.into() };
    let Some(events) = execute(&planned, site, &interrupts, &mut Console::default()).await? else {
        return Ok(code::INTERRUPTED);
    };
    run::conclude(&dir, &planned.plan, &events)?;
    let right = conclude(&planned.plan, &events, &examples, unbuilt, &dir, args.json);
    Ok(if interrupts.first.is_cancelled() { code::INTERRUPTED } else { right })
}

fn corpus_text(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|e| {
        Failure::input(format!("{}: {e}; give the table of examples with --corpus", file.display()))
    })
}

fn corpus(file: &Path) -> Result<Corpus, Failure> {
    Corpus::parse(file, &corpus_text(file)?).map_err(|errors| Failure::inputs(&errors))
}

/// What is expected of examples on this kernel. Of one whose configuration is not at hand nothing is known to be missing.
fn expected(examples: Vec<Example>, release: &str, image: Option<&Image>) -> Vec<Example> {
    let lacks = |option: &str| image.and_then(|i| i.lacks_option(option)) == Some(true);
    examples.into_iter().map(|example| example.on(release, &lacks)).collect()
}

/// What a run that is judged again could not build.
fn unbuilt_of(dir: &Path) -> Vec<Unbuilt> {
    let text = fs::read_to_string(dir.join(RESULT)).unwrap_or_default();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    serde_json::from_value(value["unbuilt"].take()).unwrap_or_default()
}

/// The examples that are asked for.
fn chosen(corpus: Corpus, args: &Args) -> Result<Vec<Example>, Failure> {
    for text in &args.only {
        if !corpus.examples.iter().any(|e| e.patch.contains(text)) {
            return Err(Failure::input(format!(
                "--only {text}: no such example in {}",
                args.corpus.display()
            )));
        }
    }
    let asked = |e: &Example| args.only.is_empty() || args.only.iter().any(|text| e.patch.contains(text));
    Ok(corpus.examples.into_iter().filter(asked).collect())
}

/// The examples that a run was of, in the order of its patches.
fn examples_of(plan: &Plan, corpus: &Corpus, file: &Path) -> Result<Vec<Example>, Failure> {
    let example =
        |name: &String| corpus.examples.iter().find(|e| e.name().replace('-', "_") == *name).cloned();
    let found = |p: &klpfarm_model::Patch| {
        example(&p.name)
            .ok_or_else(|| Failure::input(format!("no example {1} in {0}", file.display(), p.name)))
    };
    if !plan.mode.is_independent() {
        return Err(Failure::input("that folder is from `klpfarm run`: use `klpfarm judge`"));
    }
    plan.patches.iter().map(found).collect()
}

/// Print and keep the matrix; the exit code.
fn conclude(
    plan: &Plan,
    events: &[Event],
    examples: &[Example],
    unbuilt: Vec<Unbuilt>,
    dir: &Path,
    as_json: bool,
) -> u8 {
    let rows = score(plan, events, examples);
    let needed = needed_kinds(&rows);
    let value = json!({
        "image": plan.image,
        "checkpoint": plan.checkpoint,
        "soak_ms": plan.soak().as_millis() as u64,
        "rows": rows,
        "alone": needed,
        "unbuilt": unbuilt,
    });
    let file = dir.join(RESULT);
    let text = serde_json::to_string_pretty(&value).unwrap_or_default() + "\n";
    if let Err(error) = write_atomically(&file, text.as_bytes()) {
        tell!("klpfarm: {error}");
    }
    if as_json {
        print_json(&value);
    } else {
        print(&matrix(plan, &rows));
        for Unbuilt { patch, reason } in &unbuilt {
            print(&format!("NOT BUILT    {patch}  ({})\n", one_line(reason, 160)));
        }
        print(&format!("\nrun folder: {}\n", file.display()));
    }
    u8::from(!unbuilt.is_empty() || !rows.iter().all(|r| r.score.is_right()))
}

fn matrix(plan: &Plan, rows: &[Row]) -> String {
    let release = plan.image.release.as_deref().unwrap_or("kernel unknown");
    let mut text = format!(
        "\n{} ({release}), soak {} s. Times are seconds after applying; * marks findings that suffice to reject.\n\n",
        plan.image.name,
        plan.soak().as_secs()
    );
    let width = rows.iter().map(|r| r.patch.len()).max().unwrap_or(0);
    for row in rows {
        let found: Vec<String> = row
            .found
            .iter()
            .map(|f| {
                let at =
                    f.after_apply_ms.map(|ms| format!(" {:.1} s", ms as f64 / 1000.0)).unwrap_or_default();
                format!("{}{}{at}", f.kind, if f.enough { "*" } else { "" })
            })
            .collect();
        let why = match &row.cause {
            Some(cause) if !row.score.is_right() => format!("  ({})", one_line(&cause_in_words(cause), 160)),
            _ => String::new(),
        };
        text.push_str(&format!(
            "{:<12} {:<width$} {:>9}  {}{why}\n",
            word(row.score),
            row.patch,
            counted(row.trials, "trial"),
            found.join(", "),
        ));
    }
    let count = |score: Score| rows.iter().filter(|r| r.score == score).count();
    let faulty = rows.iter().filter(|r| r.expected != Outcome::Qualified).count();
    text.push_str(&format!(
        "\nfaulty: {} of {faulty} stopped ({} caught, {} held), {} missed, {} undecided, {} rejected for another reason\ngood: {} of {} passed, {} rejected, {} undecided\n",
        count(Score::Caught) + count(Score::Held),
        count(Score::Caught),
        count(Score::Held),
        count(Score::Missed),
        rows.iter().filter(|r| r.score == Score::Undecided && r.expected != Outcome::Qualified).count(),
        count(Score::Misnamed),
        count(Score::Passed),
        rows.len() - faulty,
        count(Score::FalseAlarm),
        rows.iter().filter(|r| r.score == Score::Undecided && r.expected == Outcome::Qualified).count(),
    ));
    let needed = needed_kinds(rows);
    for (detector, patches) in needed {
        let patches: Vec<&str> = patches.into_iter().collect();
        text.push_str(&format!("only {detector} catches {}\n", patches.join(", ")));
    }
    text
}

fn word(score: Score) -> &'static str {
    match score {
        Score::Caught => "caught",
        Score::Passed => "passed",
        Score::Held => "held",
        Score::Missed => "MISSED",
        Score::FalseAlarm => "FALSE ALARM",
        Score::Misnamed => "MISNAMED",
        Score::Undecided => "UNDECIDED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders, the table for programs and the table for people name the same examples.
    #[test]
    fn the_corpus_is_complete() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let corpus = corpus(&examples.join("corpus.yaml")).unwrap();
        let mut listed: Vec<String> = corpus.examples.iter().map(|e| e.patch.clone()).collect();
        listed.sort();
        let folders = |below: &str| -> Vec<String> {
            let entries = fs::read_dir(examples.join(below)).unwrap().flatten();
            let names = entries.filter(|e| e.path().join("Kbuild").is_file()).map(|e| e.file_name());
            names.map(|n| format!("{below}{}", n.to_string_lossy())).collect()
        };
        let mut there = [folders(""), folders("faulty/"), folders("good/")].concat();
        there.sort();
        assert_eq!(listed, there);
        let table = fs::read_to_string(examples.join("README.md")).unwrap();
        for example in &corpus.examples {
            let row = format!("| `{}` |", example.name());
            assert_eq!(table.matches(&row).count(), 1, "examples/README.md: {}", example.name());
        }
    }
}
