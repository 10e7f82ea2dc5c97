//! `klpfarm runs`.

use std::path::PathBuf;

use jiff::Timestamp;
use klpfarm_engine::{home, host, known};
use klpfarm_history::{OUTCOMES, RunFilter, RunSeen, parse_since};
use klpfarm_model::known::{KnownFindings, Sighted, Standing, sort};
use klpfarm_model::{Tier, counted};
use klpfarm_report::{RunLock, one_line};
use serde_json::{Value, json};

use crate::failure::{Failure, print, print_json};
use crate::runs_index::{say_expired, up_to_date};

/// List runs, newest first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only runs of patches whose name contains this.
    #[arg(long, value_name = "TEXT")]
    patch: Option<String>,
    /// Only runs on this image.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Only runs with this outcome.
    #[arg(long, value_parser = OUTCOMES)]
    outcome: Option<String>,
    /// Only runs for this tier.
    #[arg(long)]
    tier: Option<Tier>,
    /// Only runs that started since then: `7d` ago, or a date (UTC).
    #[arg(long, value_name = "7d|DATE", value_parser = since)]
    since: Option<Timestamp>,
    /// Maximum number of runs to list.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// The list of known findings; by default known-findings.yaml here or in KLPFARM_HOME, if there is one.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

fn since(text: &str) -> Result<Timestamp, String> {
    parse_since(text, Timestamp::now())
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let list = known::list(args.known.as_deref())?;
    let filter = RunFilter {
        patch: args.patch.clone(),
        image: args.image.clone(),
        outcome: args.outcome.clone(),
        tier: args.tier.map(|tier| tier.as_str().to_owned()),
        since_ms: args.since.map(Timestamp::as_millisecond),
        limit: Some(args.limit),
    };
    let history = up_to_date(&home()?)?;
    let runs = history.runs(&filter)?;
    // Others may want it alone while somebody reads on.
    drop(history);
    if args.json {
        print_json(&runs.iter().map(|run| facts(run, &list)).collect::<Vec<_>>());
        return Ok(0);
    }
    if runs.is_empty() {
        print("no matching runs\n");
    } else {
        print(&table(runs.iter().map(|run| line(run, &list)).collect()));
    }
    say_expired(&list);
    Ok(0)
}

/// What the list says of each of the run's findings.
fn standings<'a>(run: &RunSeen, list: &'a KnownFindings) -> Vec<Standing<'a>> {
    let sighted: Vec<Sighted<'_>> = run
        .findings
        .iter()
        .map(|f| Sighted { title: &f.title, image: &f.image, of_image: f.of_image })
        .collect();
    sort(&sighted, list, known::today())
}

fn facts(run: &RunSeen, list: &KnownFindings) -> Value {
    let mut value = json!(run);
    value["started"] = json!(started(run));
    let findings = value["findings"].as_array_mut().into_iter().flatten();
    for (finding, standing) in findings.zip(standings(run, list)) {
        finding["standing"] = json!(standing.as_str());
        if let Standing::Known(entry) | Standing::Counts(entry) | Standing::Expired(entry) = standing {
            finding["reason"] = json!(entry.reason);
            finding["expires"] = json!(entry.expires.to_string());
        }
    }
    value
}

fn started(run: &RunSeen) -> Timestamp {
    Timestamp::from_millisecond(run.started_ms).unwrap_or_default()
}

/// The cells of a run's line.
fn line(run: &RunSeen, list: &KnownFindings) -> Vec<String> {
    let patches = match run.patches.as_slice() {
        [] => "no patch".to_owned(),
        [one] => one.name.clone(),
        many if run.apart => format!("{} patches", many.len()),
        many => many.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" + "),
    };
    let known = standings(run, list).iter().filter(|s| matches!(s, Standing::Known(_))).count();
    let findings = match (run.findings.len() - known, known) {
        (0, 0) => "no findings".to_owned(),
        (new, 0) => counted(new, "finding"),
        (new, known) => format!("{}, {known} known", counted(new, "finding")),
    };
    vec![
        started(run).strftime("%Y-%m-%d %H:%M").to_string(),
        one_line(&patches, 40),
        one_line(&run.images.join(" + "), 40),
        one_line(&run.tier, 10),
        outcome(run),
        format!("{} clean, {} failed", run.clean, run.failed),
        bound(run),
        findings,
        length(run.took_ms),
        place(run),
    ]
}

fn outcome(run: &RunSeen) -> String {
    let outcomes = run.outcomes();
    let one = outcomes.len() == 1 && outcomes.values().all(|n| *n == 1);
    let words: Vec<String> = outcomes
        .iter()
        .map(|(word, n)| if one { (*word).to_owned() } else { format!("{n} {word}") })
        .collect();
    let words = words.join(", ");
    if run.interrupted { format!("{words}, interrupted") } else { words }
}

/// Where it is, and how to go on with it.
fn place(run: &RunSeen) -> String {
    let dir = one_line(&run.dir.display().to_string(), 400);
    match (run.gone, run.unfinished || run.interrupted) {
        (true, _) => format!("{dir} (deleted)"),
        (false, true) if host::is_locked(&run.dir.join(RunLock::FILE)) => format!("{dir} (running)"),
        (false, true) => format!("klpfarm resume {dir}"),
        (false, false) => dir,
    }
}

/// The highest failure rate that is possible of any of its patches alone; patches that have nothing to do with each other have no common one.
fn bound(run: &RunSeen) -> String {
    let worst = run
        .patches
        .iter()
        .filter_map(|p| Some((p.failure_rate?, p.confidence?)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match worst {
        Some((rate, confidence)) if !run.apart => {
            format!("at most {:.1} % fail ({:.0} % confidence)", rate * 100.0, confidence * 100.0)
        }
        _ => "-".to_owned(),
    }
}

fn length(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min", s / 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

/// Cells in columns, each as wide as its widest; the last as it is.
pub(crate) fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".into(), "bb".into(), "c".into()], vec!["äöü".into(), "b".into()]];
        assert_eq!(table(rows), "a    bb  c\näöü  b\n");
        assert_eq!(table(Vec::new()), "");
    }

    #[test]
    fn lengths_for_people() {
        for (ms, text) in [(59_999, "59 s"), (60_000, "1 min"), (3_660_000, "1 h 01 min")] {
            assert_eq!(length(ms), text);
        }
    }
}
