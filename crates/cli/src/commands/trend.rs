//! `klpfarm trend`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use klpfarm_engine::{home, known};
use klpfarm_history::{FindingTrend, Hit, RateTrend, TitleSeen, TrendFilter, Trends};
use klpfarm_model::counted;
use klpfarm_model::known::{KnownFindings, Sighted, Standing, sort};
use klpfarm_report::one_line;
use serde_json::{Value, json};

use super::runs::table;
use crate::failure::{Failure, print, print_json};
use crate::runs_index::{say_expired, up_to_date};

/// Compare nights: all findings, one finding, or the rate of a workload. A night is noon to noon, UTC.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only trials of patches whose name contains this, and the control trials of their runs.
    #[arg(long, value_name = "TEXT")]
    patch: Option<String>,
    /// Only runs on this image.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Show how often findings occurred whose title contains this, or of this kind.
    #[arg(long, value_name = "TITLE-TEXT", conflicts_with = "rate")]
    finding: Option<String>,
    /// Show the operations per second of this workload during the soak of control trials.
    #[arg(long, value_name = "WORKLOAD")]
    rate: Option<String>,
    /// Number of nights to show, counting only nights with runs.
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..))]
    nights: u32,
    /// The list of known findings; by default known-findings.yaml here or in KLPFARM_HOME, if there is one.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// Said wherever nights are shown.
const NIGHTS: &str = "nights run from noon to noon (UTC) and are named after the day on which they begin";

/// The arms that are always told; any other if it has something to tell.
const COMPARED: [&str; 2] = ["loaded", "control"];

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let list = known::list(args.known.as_deref())?;
    let filter = TrendFilter {
        patch: args.patch.clone(),
        image: args.image.clone(),
        nights: usize::try_from(args.nights).unwrap_or(usize::MAX),
    };
    let history = up_to_date(&home()?)?;
    let (text, value) = match (&args.finding, &args.rate) {
        (Some(text), _) => {
            let trend = history.finding_trend(&filter, text)?;
            (
                finding_text(&trend, &list),
                json!({"titles": facts(&trend.titles, &list), "nights": nights(&trend)}),
            )
        }
        (None, Some(workload)) => {
            let trend = history.rate_trend(&filter, workload)?;
            if trend.nights.is_empty() && !trend.workloads.is_empty() {
                let names: Vec<&str> = trend.workloads.iter().map(String::as_str).collect();
                return Err(Failure::input(format!(
                    "--rate {workload}: no control trial ran it; workloads that ran: {}",
                    names.join(", ")
                )));
            }
            (rate_text(&trend), json!({"workload": trend.workload, "nights": trend.nights}))
        }
        (None, None) => {
            let trends = history.trends(&filter)?;
            (
                all_text(&trends, &list),
                json!({"nights": trends.nights, "findings": facts(&trends.findings, &list)}),
            )
        }
    };
    // Others may want it alone while somebody reads on.
    drop(history);
    if args.json {
        print_json(&value);
        return Ok(0);
    }
    print(&text);
    say_expired(&list);
    Ok(0)
}

/// What the list says of each title.
fn standings<'a>(titles: &[TitleSeen], list: &'a KnownFindings) -> Vec<Standing<'a>> {
    let sighted: Vec<Sighted<'_>> =
        titles.iter().map(|t| Sighted { title: &t.title, image: &t.image, of_image: t.of_image }).collect();
    sort(&sighted, list, known::today())
}

fn facts(titles: &[TitleSeen], list: &KnownFindings) -> Vec<Value> {
    let fact = |(title, standing): (&TitleSeen, Standing<'_>)| {
        let mut value = json!(title);
        value["arms"] = arms(&title.arms);
        value["standing"] = json!(standing.as_str());
        if let Standing::Known(entry) | Standing::Counts(entry) | Standing::Expired(entry) = standing {
            value["reason"] = json!(entry.reason);
            value["expires"] = json!(entry.expires.to_string());
        }
        value
    };
    titles.iter().zip(standings(titles, list)).map(fact).collect()
}

fn nights(trend: &FindingTrend) -> Vec<Value> {
    trend.nights.iter().map(|n| json!({"night": n.night, "arms": arms(&n.arms)})).collect()
}

/// Hits with the exact bounds of their rates.
fn arms(arms: &BTreeMap<String, Hit>) -> Value {
    let of = |hit: &Hit| {
        let (low, high) = hit.bounds();
        json!({"hit": hit.hit, "of": hit.of, "low": low, "high": high})
    };
    arms.iter().map(|(arm, hit)| (arm.clone(), of(hit))).collect::<serde_json::Map<_, _>>().into()
}

/// One finding, a line a night.
fn finding_text(trend: &FindingTrend, list: &KnownFindings) -> String {
    if trend.titles.is_empty() {
        return "no matching finding\n".to_owned();
    }
    let mut out = String::new();
    for (title, standing) in trend.titles.iter().zip(standings(&trend.titles, list)) {
        let _ = writeln!(out, "{}", title_line(title));
        let _ = writeln!(out, "  first seen {}, last {}{}", title.first, title.last, new_since(title));
        if let Some(words) = standing.in_words() {
            let _ = writeln!(out, "  {}", one_line(&words, 300));
        }
    }
    let mut shown = COMPARED.to_vec();
    for arm in trend.nights.iter().flat_map(|n| n.arms.keys()) {
        if !shown.contains(&arm.as_str()) {
            shown.push(arm);
        }
    }
    let mut rows = vec![std::iter::once("night").chain(shown.iter().copied()).map(str::to_owned).collect()];
    for night in &trend.nights {
        let cells = shown.iter().map(|arm| rate(night.arms.get(*arm).copied().unwrap_or_default()));
        rows.push(std::iter::once(night.night.clone()).chain(cells).collect());
    }
    let _ = write!(out, "\n{}{NIGHTS}; exact 95 % bounds of the rate in brackets\n", table(rows));
    out
}

fn rate(hit: Hit) -> String {
    if hit.of == 0 {
        return "-".to_owned();
    }
    let (low, high) = hit.bounds();
    format!(
        "{} of {}: {:.0} % ({:.0} to {:.0})",
        hit.hit,
        hit.of,
        f64::from(hit.hit) * 100.0 / f64::from(hit.of),
        low * 100.0,
        high * 100.0
    )
}

fn rate_text(trend: &RateTrend) -> String {
    if trend.nights.is_empty() {
        return "no control trial has completed its soak\n".to_owned();
    }
    let head = ["night", "trials", "lowest", "median", "highest"].map(str::to_owned).to_vec();
    let row = |n: &klpfarm_history::RateNight| {
        vec![
            n.night.clone(),
            n.trials.to_string(),
            format!("{:.1}", n.lowest),
            format!("{:.1}", n.median),
            format!("{:.1}", n.highest),
        ]
    };
    let rows = std::iter::once(head).chain(trend.nights.iter().map(row)).collect();
    format!(
        "{}: operations per second during the soak of control trials\n\n{}{NIGHTS}\n",
        one_line(&trend.workload, 80),
        table(rows)
    )
}

/// All findings: what is new, what is not, what is known.
fn all_text(trends: &Trends, list: &KnownFindings) -> String {
    let (Some(first), Some(last)) = (trends.nights.first(), trends.nights.last()) else {
        return "no runs yet\n".to_owned();
    };
    let mut out = format!("{}, {first} to {last}\n", counted(trends.nights.len(), "night"));
    let (known, news): (Vec<_>, Vec<_>) = trends
        .findings
        .iter()
        .zip(standings(&trends.findings, list))
        .partition(|(_, standing)| matches!(standing, Standing::Known(_)));
    if trends.findings.is_empty() {
        out.push_str("no findings\n");
    }
    for (head, findings) in [("", news), ("\nknown findings:\n", known)] {
        if !findings.is_empty() {
            out.push_str(head);
        }
        for (title, standing) in findings {
            let hits = |arm: &str| title.arms.get(arm).copied().unwrap_or_default();
            let others =
                title.arms.iter().filter(|(arm, hit)| hit.hit > 0 && !COMPARED.contains(&arm.as_str()));
            let told = COMPARED.into_iter().chain(others.map(|(arm, _)| arm.as_str()));
            let told: Vec<String> =
                told.map(|arm| format!("{arm} {} of {}", hits(arm).hit, hits(arm).of)).collect();
            let _ = writeln!(out, "{}", title_line(title));
            let _ = writeln!(
                out,
                "  {}; first seen {}, last {}{}",
                told.join(", "),
                title.first,
                title.last,
                new_since(title)
            );
            if let Some(words) = standing.in_words() {
                let _ = writeln!(out, "  {}", one_line(&words, 300));
            }
        }
    }
    let _ = writeln!(out, "\n{NIGHTS}");
    out
}

fn title_line(title: &TitleSeen) -> String {
    format!(
        "[{}] {} on {}",
        one_line(&title.kind, 40),
        one_line(&title.title, 200),
        one_line(&title.image, 40)
    )
}

fn new_since(title: &TitleSeen) -> String {
    if title.new { format!(": new since {}", title.first) } else { String::new() }
}
