//! The verdict as a person reads it at the end of a run.

use std::fmt::Write;
use std::path::Path;

use klpfarm_model::known::Standing;
use klpfarm_model::verdict::{ArmCount, Attribution, Evidence, Reach, Remark, TrialRemark, Wear};
use klpfarm_model::{Arm, Noted, Outcome, Verdict, counted};

use crate::causes::new_code_in_words;
use crate::{cause_in_words, one_line, printable, unavailable_in_words};

/// The verdict as text for a terminal, with `colour` or without. Control characters that an untrusted run folder may contain are removed.
pub fn summary(verdict: &Verdict, dir: &Path, colour: bool) -> String {
    summary_with_known(verdict, dir, colour, &[])
}

/// As [`summary`], with what the list of known findings says of each item of the evidence: known ones are listed at the end, a line each.
pub fn summary_with_known(verdict: &Verdict, dir: &Path, colour: bool, standings: &[Standing<'_>]) -> String {
    let (on, off) = match (colour, verdict.verdict) {
        (false, _) => ("", ""),
        (true, Outcome::Qualified) => ("\x1b[1;32m", "\x1b[0m"),
        (true, Outcome::Rejected) => ("\x1b[1;31m", "\x1b[0m"),
        (true, Outcome::Inconclusive) => ("\x1b[1;33m", "\x1b[0m"),
    };
    let word = verdict.verdict.as_str().to_uppercase();
    format!("{on}{word}{off}{}", printable(&after_the_outcome(verdict, dir, standings)))
}

/// Everything after the outcome: first what a reader needs to act (causes, where the evidence is), then what it rests on.
fn after_the_outcome(verdict: &Verdict, dir: &Path, standings: &[Standing<'_>]) -> String {
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
        let _ = writeln!(out, "  - {}", one_line(&cause_in_words(cause), 1200));
    }
    if let Some(folder) = evidence_folder(verdict, dir) {
        let _ = writeln!(out, "  Start reading at {folder}/README.");
    }
    out.push('\n');
    out.push_str(&trials(verdict));
    out.push_str(&remarked(&verdict.remarks));
    out.push_str(&bounds(verdict));
    out.push_str(&reach(verdict));
    if let Some(wear) = &verdict.wear {
        out.push_str(&worn(wear));
    }
    out.push_str(&findings(verdict, dir, standings));
    if !verdict.blind.is_empty() {
        let _ = writeln!(out, "\n  Detectors unavailable in this run:");
        for detector in &verdict.blind {
            let _ = writeln!(out, "    {}", one_line(&unavailable_in_words(detector), 200));
        }
    }
    if !verdict.unavailable.is_empty() {
        out.push_str("\n  Workloads that this guest can't run:\n");
        for (workload, reason) in &verdict.unavailable {
            let _ = writeln!(out, "    {workload}: {}", one_line(reason, 200));
        }
    }
    let _ = writeln!(out, "\n  verdict: {}", dir.join("verdict.json").display());
    let _ = writeln!(out, "  JUnit:   {}", dir.join("junit.xml").display());
    out
}

/// Folder of the evidence for the first item that counts against the patch and has any.
fn evidence_folder(verdict: &Verdict, dir: &Path) -> Option<String> {
    let against = verdict.evidence.iter().filter(|item| item.attribution == Attribution::Patch);
    let file = against.flat_map(|item| &item.observations).find_map(|seen| seen.files.first())?;
    Some(dir.join(file).parent()?.display().to_string())
}

/// How the trials of each arm ended, and the outcome of each turn of a rotation.
fn trials(verdict: &Verdict) -> String {
    let arm = |(arm, n): (&Arm, &ArmCount)| {
        let more = |n: u32, word: &str| if n > 0 { format!(", {n} {word}") } else { String::new() };
        let more = more(n.unexplained, "unexplained") + &more(n.void, "not counted");
        format!("{arm} {} clean, {} failed{more}", n.clean, n.failed)
    };
    let mut out = String::new();
    for (turn, outcome) in &verdict.turns {
        let _ = writeln!(out, "  turn:    {}: {outcome}", one_line(turn, 100));
    }
    let _ = writeln!(out, "  trials:  {}", verdict.arms.iter().map(arm).collect::<Vec<_>>().join("; "));
    out
}

fn of_turn(turn: Option<&String>) -> String {
    turn.map(|t| format!("{}: ", one_line(t, 100))).unwrap_or_default()
}

/// What the trials say about the failure rate. Of a rejected patch nothing is claimed.
fn bounds(verdict: &Verdict) -> String {
    let mut out = String::new();
    for bound in verdict.bounds.iter().filter(|_| verdict.verdict != Outcome::Rejected) {
        let (confidence, rate) = (bound.confidence * 100.0, bound.failure_rate * 100.0);
        let shown = match bound.exposure {
            _ if bound.failure_rate >= 0.995 => "too few clean trials to bound the failure rate".to_owned(),
            None => format!("with {confidence:.0} % confidence at most {rate:.1} % of such machines fail"),
            Some(soaks) => format!(
                "with {confidence:.0} % confidence at most {:.1} failures per machine-hour ({:.0} min in force)",
                soaks.failures_per_hour,
                soaks.clean_s as f64 / 60.0
            ),
        };
        let of = format!("{}{}", of_turn(bound.turn.as_ref()), bound.patches.join(" + "));
        let _ = writeln!(out, "  bound:   {of}, {} trials: {shown}", bound.arm);
    }
    out
}

/// How often each patched function was called: of many those called least, which say most about what was not tested.
fn reach(verdict: &Verdict) -> String {
    const MOST: usize = 8;
    let mut out = String::new();
    let mut rarest: Vec<&Reach> = verdict.reach.iter().collect();
    if rarest.len() > MOST {
        rarest.sort_by(|a, b| a.after_per_s.unwrap_or(-1.0).total_cmp(&b.after_per_s.unwrap_or(-1.0)));
        rarest.truncate(MOST);
    }
    for r in &rarest {
        let rate = |rate: Option<f64>| rate.map_or_else(|| "not counted".to_owned(), |r| format!("{r:.0}/s"));
        let calls = r.calls.map_or_else(String::new, |calls| {
            format!(", about {calls} in {}", counted(r.counted_trials, "clean trial"))
        });
        let new = new_code_in_words(r);
        let inside = match r.inside {
            0 => String::new(),
            1 => "; 1 task was inside it when the patch was applied".to_owned(),
            n => format!("; {n} tasks were inside it when the patch was applied"),
        };
        let _ = writeln!(
            out,
            "  calls:   {}{}: {} without the patch; {} with it{new}{calls}{inside}",
            of_turn(r.turn.as_ref()),
            one_line(&r.function, 100),
            rate(r.before_per_s),
            rate(r.after_per_s),
        );
    }
    if rarest.len() < verdict.reach.len() {
        let more = counted(verdict.reach.len() - rarest.len(), "more function");
        let _ = writeln!(out, "           {more}, called more often: see verdict.json");
    }
    out
}

/// The findings in full, but those known in a line each at the end.
fn findings(verdict: &Verdict, dir: &Path, standings: &[Standing<'_>]) -> String {
    const MOST: usize = 5;
    let standing = |n: usize| standings.get(n).copied().unwrap_or(Standing::Unlisted);
    let (known, news): (Vec<_>, Vec<_>) = verdict
        .evidence
        .iter()
        .enumerate()
        .map(|(n, item)| (item, standing(n)))
        .partition(|(_, standing)| matches!(standing, Standing::Known(_)));
    let mut out = String::new();
    for (item, standing) in news.iter().take(MOST) {
        out.push_str(&finding(item, dir, *standing));
    }
    if news.len() > MOST {
        let _ = writeln!(out, "\n  {} more in verdict.json.", counted(news.len() - MOST, "finding"));
    }
    if !known.is_empty() {
        out.push_str("\n  Known findings:\n");
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
    out
}

/// One item of the evidence: how often it was seen, who waits where, and the observation that names the cause.
fn finding(item: &Evidence, dir: &Path, standing: Standing<'_>) -> String {
    let attribution = match item.attribution {
        Attribution::Patch => "counts against the patch",
        Attribution::Unconfirmed => "seen only with the patch, too rarely to attribute it",
        Attribution::NoControl => "cannot be attributed without a control trial",
        Attribution::ControlToo => "also seen without the patch",
        Attribution::BeforeApply => "seen before the patch was applied",
        Attribution::ControlOnly => "seen only without the patch",
    };
    let mut out = format!(
        "\n  [{}] {} ({attribution}; {} in {})\n",
        item.kind,
        one_line(&item.title, 200),
        counted(item.count, "observation"),
        counted(item.arms.values().map(|h| h.hit).sum::<u32>(), "trial")
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
            let _ = writeln!(out, "    evidence: {}", folder.parent().unwrap_or(dir).display());
        }
    }
    out
}

/// Trials that did not simply run to their end, a line each.
fn remarked(remarks: &[TrialRemark]) -> String {
    const MOST: usize = 12;
    if remarks.is_empty() {
        return String::new();
    }
    let count = |what: Remark| remarks.iter().filter(|r| r.what == what).count();
    let all = [(Remark::Invalid, "invalid"), (Remark::Lost, "lost"), (Remark::Repeated, "repeated")];
    let counts = all.into_iter().map(|(what, word)| (count(what), word)).filter(|(n, _)| *n > 0);
    let counts: Vec<String> = counts.map(|(n, word)| format!("{n} {word}")).collect();
    let mut out = format!("  of these: {}\n", counts.join(", "));
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
        Remark::Invalid => "invalid and not counted",
        Remark::Lost => "lost and counted as a failure",
        Remark::Repeated => "repeated",
    };
    format!("trial {} ({}) was {what}: {}", remark.trial, remark.arm, remark.reason)
}

/// Who waits where, a line for each place.
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
        let word = if group.noted == Noted::Straggler { "delaying the transition in" } else { "in" };
        let _ = writeln!(
            out,
            "    {since}  {} of {}, state {}, {word} {} ({})",
            counted(group.tasks, "task"),
            counted(group.processes, "process"),
            printable(&group.states),
            one_line(&place, 120),
            one_line(&group.names.join(", "), 80)
        );
    }
    if item.waits.len() > MOST {
        let _ = writeln!(out, "    and {}; see verdict.json", counted(item.waits.len() - MOST, "more place"));
    }
    if !out.is_empty() {
        let head = format!("    blocked tasks in trial {trial} (last progress, seconds after applying):\n");
        out.insert_str(0, &head);
    }
    out
}

/// How worn the machines were, compared with a freshly booted one.
fn worn(wear: &Wear) -> String {
    let (fresh, old) = (&wear.fresh, &wear.reached);
    let mib = |kib: u64| kib >> 10;
    format!(
        "  aging:   up {:.0} s (freshly booted: {:.0}), {} processes started ({}), {} context switches ({}), {} tasks ({}), page cache {} MiB ({}), slab {} MiB ({}), {:.0} % of free memory in small blocks ({:.0}), journal {} MiB ({})\n",
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
