//! The verdict as a person reads it at the end of a run.

use std::fmt::Write;

use klpfarm_model::verdict::Attribution;
use klpfarm_model::{Outcome, Verdict};

use crate::{one_line, printable};

/// The verdict as text; `colour` for a terminal.
pub fn summary(verdict: &Verdict, dir: &std::path::Path, colour: bool) -> String {
    let mut out = String::new();
    let (on, off) = match (colour, verdict.verdict) {
        (false, _) => ("", ""),
        (true, Outcome::Qualified) => ("\x1b[1;32m", "\x1b[0m"),
        (true, Outcome::Rejected) => ("\x1b[1;31m", "\x1b[0m"),
        (true, Outcome::Inconclusive) => ("\x1b[1;33m", "\x1b[0m"),
    };
    let word = verdict.verdict.as_str().to_uppercase();
    let _ = writeln!(
        out,
        "{on}{word}{off}  {} for tier {} on {} ({}), {}",
        verdict.patch.name,
        verdict.tier,
        verdict.image.name,
        verdict.image.release.as_deref().unwrap_or("kernel unknown"),
        seconds(verdict.took_ms)
    );
    for cause in &verdict.causes {
        let _ = writeln!(out, "  - {}", one_line(cause, 500));
    }
    let arms: Vec<String> = verdict
        .arms
        .iter()
        .map(|(arm, n)| {
            let void = if n.void > 0 { format!(", {} void", n.void) } else { String::new() };
            format!("{arm} {} clean, {} failed{void}", n.clean, n.failed)
        })
        .collect();
    let _ = writeln!(out, "  trials: {}", arms.join("; "));
    for item in verdict.evidence.iter().take(5) {
        let word = match item.attribution {
            Attribution::Patch => "against the patch",
            Attribution::ControlToo => "without the patch as well",
            Attribution::BeforeApply => "before applying",
            Attribution::NoControl => "can't be attributed",
        };
        let _ = writeln!(
            out,
            "\n  [{}] {} ({word}, {} observation(s))",
            item.kind,
            one_line(&item.title, 200),
            item.count
        );
        if let Some(seen) = item.observations.first() {
            let _ = writeln!(
                out,
                "    trial {} ({}), phase {}, journal event {}:",
                seen.trial, seen.arm, seen.phase, seen.seq
            );
            for line in printable(&seen.excerpt).lines().take(12) {
                let _ = writeln!(out, "    | {line}");
            }
            if let Some(file) = seen.files.first() {
                let _ = writeln!(out, "    files: {}", dir.join(file).parent().unwrap_or(dir).display());
            }
        }
    }
    if !verdict.blind.is_empty() {
        let _ = writeln!(out, "\n  could not fire here:");
        for line in &verdict.blind {
            let _ = writeln!(out, "    {}", one_line(line, 200));
        }
    }
    let _ = writeln!(out, "\n  report: {}", dir.join("verdict.json").display());
    let _ = writeln!(out, "  JUnit:  {}", dir.join("junit.xml").display());
    out
}

fn seconds(ms: u64) -> String {
    let s = ms / 1000;
    if s < 60 { format!("{s} s") } else { format!("{} min {:02} s", s / 60, s % 60) }
}
