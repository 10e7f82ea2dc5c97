//! The verdict as a person reads it at the end of a run.

use std::fmt::Write;
use std::path::Path;

use klpfarm_model::known::Standing;
use klpfarm_model::verdict::{Attribution, Evidence, Remark, TrialRemark, Wear};
use klpfarm_model::{Noted, Outcome, Verdict};

use crate::{one_line, printable};

/// The verdict as text that a terminal takes for nothing but text, whoever wrote the run folder; `colour` for a terminal.
pub fn summary(verdict: &Verdict, dir: &Path, colour: bool) -> String {
    summary_with_known(verdict, dir, colour, &[])
}

/// The same with what the list of known findings says of each item of the evidence: what is known stands apart, in a line each.
pub fn summary_with_known(verdict: &Verdict, dir: &Path, colour: bool, standings: &[Standing<'_>]) -> String {
    let (on, off) = match (colour, verdict.verdict) {
        (false, _) => ("", ""),
        (true, Outcome::Qualified) => ("\x1b[1;32m", "\x1b[0m"),
        (true, Outcome::Rejected) => ("\x1b[1;31m", "\x1b[0m"),
        (true, Outcome::Inconclusive) => ("\x1b[1;33m", "\x1b[0m"),
    };
    let word = verdict.verdict.as_str().to_uppercase();
    format!("{on}{word}{off}{}", printable(&beside_the_word(verdict, dir, standings)))
}

/// All but the first word.
fn beside_the_word(verdict: &Verdict, dir: &Path, standings: &[Standing<'_>]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "  {} for tier {} on {} ({}), {}",
        verdict.patches.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" + "),
        verdict.tier,
        verdict.image.name,
        verdict.image.release.as_deref().unwrap_or("kernel unknown"),
        seconds(verdict.took_ms)
    );
    for cause in &verdict.causes {
        let _ = writeln!(out, "  - {}", one_line(cause, 1200));
    }
    let arms: Vec<String> = verdict
        .arms
        .iter()
        .map(|(arm, n)| {
            let more = |n: u32, word: &str| if n > 0 { format!(", {n} {word}") } else { String::new() };
            let more = more(n.unexplained, "unexplained") + &more(n.void, "void");
            format!("{arm} {} clean, {} failed{more}", n.clean, n.failed)
        })
        .collect();
    for (turn, outcome) in &verdict.turns {
        let _ = writeln!(out, "  turn:   {}: {outcome}", one_line(turn, 100));
    }
    let _ = writeln!(out, "  trials: {}", arms.join("; "));
    out.push_str(&remarked(&verdict.remarks));
    let of_turn = |turn: &Option<String>| turn.as_ref().map(|t| format!("{t}: ")).unwrap_or_default();
    for bound in &verdict.bounds {
        let _ = writeln!(
            out,
            "  bound:  {}{} {}: a failure rate up to {:.1} % is possible, at {:.0} % confidence",
            of_turn(&bound.turn),
            bound.patches.join(" + "),
            bound.arm,
            bound.failure_rate * 100.0,
            bound.confidence * 100.0
        );
    }
    for r in &verdict.reach {
        let rate = |r: Option<f64>| r.map_or_else(|| "not counted".to_owned(), |r| format!("{r:.1} calls/s"));
        let calls = r.calls.map_or_else(String::new, |calls| {
            format!("; about {calls} calls with it in {} clean trials", r.counted_trials)
        });
        let _ = writeln!(
            out,
            "  reach:  {}{}: {} without the patch, {} with it; {} task(s) inside at the moment of applying{calls}",
            of_turn(&r.turn),
            one_line(&r.function, 100),
            rate(r.before_per_s),
            rate(r.after_per_s),
            r.inside
        );
    }
    if let Some(wear) = &verdict.wear {
        out.push_str(&worn(wear));
    }
    let standing = |n: usize| standings.get(n).copied().unwrap_or(Standing::Unlisted);
    let (known, news): (Vec<_>, Vec<_>) = verdict
        .evidence
        .iter()
        .enumerate()
        .map(|(n, item)| (item, standing(n)))
        .partition(|(_, standing)| matches!(standing, Standing::Known(_)));
    for (item, standing) in news.into_iter().take(5) {
        let word = match item.attribution {
            Attribution::Patch => "against the patch",
            Attribution::Unconfirmed => "seen too rarely",
            Attribution::NoControl => "can't be attributed",
            Attribution::ControlToo => "without the patch as well",
            Attribution::BeforeApply => "before applying",
            Attribution::ControlOnly => "without the patch only",
        };
        let _ = writeln!(
            out,
            "\n  [{}] {} ({word}, {} observation(s) in {} trial(s))",
            item.kind,
            one_line(&item.title, 200),
            item.count,
            item.arms.values().map(|h| h.hit).sum::<u32>()
        );
        if let Some(words) = standing.in_words() {
            let _ = writeln!(out, "    {}", one_line(&words, 300));
        }
        out.push_str(&waiting(item));
        // Of all symptoms, the one that names the cause.
        let lead = item.observations.iter().find(|o| o.title == item.title);
        if let Some(seen) = lead.or(item.observations.first()) {
            let _ = writeln!(
                out,
                "    trial {} ({}), phase {}, journal event {}:",
                seen.trial, seen.arm, seen.phase, seen.seq
            );
            for line in printable(&seen.excerpt).lines().take(12) {
                let _ = writeln!(out, "    | {line}");
            }
            if let Some(file) = seen.files.first() {
                let folder = dir.join(file);
                let _ = writeln!(
                    out,
                    "    files: {} (README says what is what)",
                    folder.parent().unwrap_or(dir).display()
                );
            }
        }
    }
    if !known.is_empty() {
        out.push_str("\n  known, reported apart:\n");
    }
    for (item, standing) in known {
        let _ = writeln!(
            out,
            "    [{}] {}: {}",
            item.kind,
            one_line(&item.title, 200),
            one_line(&standing.in_words().unwrap_or_default(), 300)
        );
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

/// Trials that did not simply go through all their phases, a line each.
fn remarked(remarks: &[TrialRemark]) -> String {
    const MOST: usize = 12;
    if remarks.is_empty() {
        return String::new();
    }
    let count = |what: Remark| remarks.iter().filter(|r| r.what == what).count();
    let all = [(Remark::Invalid, "invalid"), (Remark::Lost, "lost"), (Remark::Repeated, "repeated")];
    let counts = all.into_iter().map(|(what, word)| (count(what), word)).filter(|(n, _)| *n > 0);
    let counts: Vec<String> = counts.map(|(n, word)| format!("{n} {word}")).collect();
    let mut out = format!("  not simply done: {}\n", counts.join(", "));
    for remark in remarks.iter().take(MOST) {
        let _ = writeln!(out, "    {}", one_line(&remark_in_words(remark), 300));
    }
    if remarks.len() > MOST {
        let _ = writeln!(out, "    and {} more, see verdict.json", remarks.len() - MOST);
    }
    out
}

/// What became of a trial, and why.
pub(crate) fn remark_in_words(remark: &TrialRemark) -> String {
    let what = match remark.what {
        Remark::Invalid => "invalid, says nothing of the patch",
        Remark::Lost => "lost, counts as a failure",
        Remark::Repeated => "repeated",
    };
    format!("trial {} ({}) {what}: {}", remark.trial, remark.arm, remark.reason)
}

/// Who waits where, a line a place.
fn waiting(item: &Evidence) -> String {
    const MOST: usize = 6;
    let mut out = String::new();
    let Some(trial) = item.waits_of else { return out };
    for group in item.waits.iter().take(MOST) {
        let place = match (&group.patch_function, &group.patch) {
            (Some(f), Some(patch)) if *f != group.function => format!("{} < {f} [{patch}]", group.function),
            (Some(f), Some(patch)) => format!("{f} [{patch}]"),
            _ if group.function.is_empty() => "?".to_owned(),
            _ => group.function.clone(),
        };
        let since = group
            .since_apply_ms
            .map_or_else(|| "      ?".to_owned(), |ms| format!("{:+6.1} s", ms as f64 / 1000.0));
        let word = if group.noted == Noted::Straggler { "hold up the transition" } else { "wait" };
        let _ = writeln!(
            out,
            "    {since}  {} task(s) of {} process(es) {word}, state {}: {} ({})",
            group.tasks,
            group.processes,
            printable(&group.states),
            one_line(&place, 120),
            one_line(&group.names.join(", "), 80)
        );
    }
    if item.waits.len() > MOST {
        let _ = writeln!(out, "    and {} more place(s); see verdict.json", item.waits.len() - MOST);
    }
    if !out.is_empty() {
        out.insert_str(
            0,
            &format!("    tasks of trial {trial}, and when they got on last, seconds after applying:\n"),
        );
    }
    out
}

/// How old the machines were, beside a fresh one.
fn worn(wear: &Wear) -> String {
    let (fresh, old) = (&wear.fresh, &wear.reached);
    let mib = |kib: u64| kib >> 10;
    format!(
        "  aged:   up {:.0} s (fresh: {:.0}), {} processes started ({}), {} context switches ({}), {} tasks ({}), page cache {} MiB ({}), slab {} MiB ({}), {:.0} % of free memory in small blocks ({:.0}), journal {} MiB ({})\n",
        old.uptime_s,
        fresh.uptime_s,
        old.forks,
        fresh.forks,
        old.context_switches,
        fresh.context_switches,
        old.tasks,
        fresh.tasks,
        mib(old.page_cache_kib),
        mib(fresh.page_cache_kib),
        mib(old.slab_kib),
        mib(fresh.slab_kib),
        old.fragmentation * 100.0,
        fresh.fragmentation * 100.0,
        mib(old.journal_kib),
        mib(fresh.journal_kib),
    )
}

fn seconds(ms: u64) -> String {
    let s = ms / 1000;
    if s < 60 { format!("{s} s") } else { format!("{} min {:02} s", s / 60, s % 60) }
}

#[cfg(test)]
mod tests;
