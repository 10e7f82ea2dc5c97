//! What a person sees while a run goes on: on a terminal one live line a trial, otherwise plain lines with time stamps.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use klpfarm_model::{Body, Event, Plan, Scope, SoFar, Start, TrialEnd, counted};

use crate::one_line;

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// A terminal: lines are redrawn.
    Live,
    /// A file or CI log: lines are appended, with time stamps.
    Plain,
}

/// Shows events on standard error.
#[derive(Debug)]
pub struct Terminal {
    view: View,
    bars: MultiProgress,
    trials: BTreeMap<u32, Shown>,
    /// Trials are many and short: a log tells less of each.
    brief: bool,
    plan: Plan,
    /// Of a run that lasts for a time.
    so_far: SoFar,
    /// When it was last said how far such a run is.
    said_ms: u64,
}

/// Share of its planned CPU time below which it is said how much a machine got, 0 to 1: slowness in such a trial may be the host's.
use klpfarm_model::ENOUGH_CPU as SHORT;

#[derive(Debug, Default)]
struct Shown {
    bar: Option<ProgressBar>,
    rate: f64,
    findings: u32,
    /// When rates were last shown on a plain view.
    rates_ms: u64,
}

impl Terminal {
    /// Show the trials of `plan` as they happen.
    pub fn new(view: View, plan: &Plan) -> Self {
        Self {
            view,
            bars: MultiProgress::new(),
            trials: BTreeMap::new(),
            brief: plan.start == Start::Fork,
            plan: plan.clone(),
            so_far: SoFar::default(),
            said_ms: 0,
        }
    }

    /// The trial in words; a machine that is aged is of no arm.
    fn place(&self, scope: Scope) -> String {
        if scope.is_aging() {
            return "aging".to_owned();
        }
        let trial = self.plan.trial(scope.trial);
        let turn = trial.as_ref().and_then(|t| self.plan.mode.turns().get(t.turn));
        let turn = turn.map(|t| format!(" {}", t.name())).unwrap_or_default();
        // Which patches it applies, where there are several.
        let names = trial.filter(|t| self.plan.patches.len() > 1 && !t.patches.is_empty());
        let names = names.map(|t| format!(" {}", self.plan.names(&t).collect::<Vec<_>>().join(" + ")));
        format!("trial {}{turn} {}{}", scope.trial, scope.arm, names.unwrap_or_default())
    }

    /// An event from before the run was resumed: it counts, and is not shown.
    pub fn past(&mut self, event: &Event) {
        self.so_far.add(event);
        self.said_ms = event.at_ms;
    }

    /// Show an event.
    pub fn event(&mut self, event: &Event) {
        for line in self.lines(event) {
            match self.view {
                View::Plain => eprint_line(&line),
                View::Live => {
                    let _ = self.bars.println(line);
                }
            }
        }
        if self.view == View::Live {
            self.draw(event);
        }
    }

    /// The lines that an event adds to what was printed before.
    fn lines(&mut self, event: &Event) -> Vec<String> {
        self.so_far.add(event);
        let line = match self.view {
            View::Plain => self.plain_line(event),
            View::Live => self.live_print(event),
        };
        line.into_iter().chain(self.how_far(event)).collect()
    }

    /// What was done, what it shows, what is next and when it ends, every minute in which a trial ends.
    fn how_far(&mut self, event: &Event) -> Option<String> {
        const EVERY_MS: u64 = 60_000;
        let rotation = self.plan.rotation()?;
        let ended = matches!(event.body, Body::TrialEnded { .. });
        if !ended || event.at_ms < self.said_ms + EVERY_MS {
            return None;
        }
        self.said_ms = event.at_ms;
        let (done, confidence) = (&self.so_far, self.plan.rule.applications.confidence);
        let next = self.plan.trial(done.highest() + 1);
        let next = next.and_then(|t| Some((self.plan.mode.turns().get(t.turn)?.name(), t.arm)));
        let left = rotation.duration.saturating_sub(Duration::from_millis(event.at_ms));
        Some(format!(
            "{} run: {} ended; loaded: {} clean, {} failed, with {:.0} % confidence at most {:.1} % fail{}; {}; {} left",
            stamp(event),
            counted(done.ended, "trial"),
            done.clean,
            done.failed,
            confidence * 100.0,
            done.bound(confidence) * 100.0,
            if done.void > 0 { format!("; {} not counted", done.void) } else { String::new() },
            next.map(|(turn, arm)| format!("next: {turn} {arm}")).unwrap_or_default(),
            hours(left)
        ))
    }

    fn plain_line(&mut self, event: &Event) -> Option<String> {
        // The note that follows says it, and what was done about it.
        let said_again = matches!(event.body, Body::CpuShare { .. });
        if said_again || !self.is_due(event) {
            return None;
        }
        let text = plain(event)?;
        let place = event.scope.map_or_else(|| "run".to_owned(), |scope| self.place(scope));
        Some(format!("{} {place}: {text}", stamp(event)))
    }

    /// Rates come every few seconds; a log wants them less often.
    fn is_due(&mut self, event: &Event) -> bool {
        const EVERY_MS: u64 = 20_000;
        let Some(scope) = event.scope else { return true };
        let brief = self.brief && scope.trial > 0;
        let shown = self.trials.entry(scope.trial).or_default();
        match &event.body {
            Body::PhaseStarted | Body::Reverted { .. } | Body::MachineReady { .. } | Body::Blind { .. } => {
                !brief
            }
            Body::TrialStarted => {
                shown.rates_ms = event.at_ms;
                !brief
            }
            Body::TrialEnded { .. } => {
                self.trials.remove(&scope.trial);
                true
            }
            Body::Progress { .. } => {
                let every = if brief { 3 * EVERY_MS } else { EVERY_MS };
                let due = event.at_ms >= shown.rates_ms + every;
                if due {
                    shown.rates_ms = event.at_ms;
                }
                due
            }
            _ => true,
        }
    }

    /// What stays on a terminal above the lines that are redrawn.
    fn live_print(&mut self, event: &Event) -> Option<String> {
        let Some(scope) = event.scope else {
            return plain(event).map(|text| format!("{} run: {text}", stamp(event)));
        };
        let place = self.place(scope);
        let shown = self.trials.entry(scope.trial).or_default();
        match &event.body {
            Body::Progress { rates, .. } => shown.rate = rates.values().sum(),
            Body::Finding(f) => {
                shown.findings += 1;
                return Some(format!("{}: finding: {}", place, one_line(&f.title, 120)));
            }
            Body::StallEnded { .. } | Body::CpuShare { .. } => {
                return plain(event).map(|text| format!("{place}: {text}"));
            }
            Body::TrialEnded { end } => {
                return Some(format!("{}: {}", place, end_in_words(end, shown.findings)));
            }
            _ => {}
        }
        None
    }

    /// The line of a trial that is redrawn.
    fn live_line(&self, scope: Scope) -> String {
        let (rate, findings) = self.trials.get(&scope.trial).map_or((0.0, 0), |s| (s.rate, s.findings));
        format!(
            "{:<19} {:<10} {:>8.0} ops/s  {}",
            self.place(scope),
            scope.phase,
            rate,
            counted(findings, "finding")
        )
    }

    fn draw(&mut self, event: &Event) {
        let Some(scope) = event.scope else { return };
        let line = self.live_line(scope);
        let shown = self.trials.entry(scope.trial).or_default();
        match &event.body {
            Body::TrialStarted => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(250));
                shown.bar = Some(bar);
            }
            Body::TrialEnded { .. } => {
                if let Some(bar) = shown.bar.take() {
                    bar.finish_and_clear();
                }
                self.trials.remove(&scope.trial);
                return;
            }
            _ => {}
        }
        if let Some(bar) = &shown.bar {
            bar.set_message(line);
        }
    }
}

/// All that is printed in the course of a run, a line each.
#[cfg(test)]
pub(crate) fn printed(view: View, plan: &Plan, events: &[Event]) -> String {
    let mut terminal = Terminal::new(view, plan);
    events.iter().flat_map(|event| terminal.lines(event)).map(|line| line + "\n").collect()
}

/// What the redrawn line of each trial says after each event in it.
#[cfg(test)]
pub(crate) fn redrawn(plan: &Plan, events: &[Event]) -> String {
    let mut terminal = Terminal::new(View::Live, plan);
    let mut lines = Vec::new();
    for event in events {
        terminal.lines(event);
        lines.extend(event.scope.map(|scope| terminal.live_line(scope) + "\n"));
    }
    lines.dedup();
    lines.concat()
}

fn eprint_line(text: &str) {
    use std::io::Write;
    // A closed standard error is no reason to end a run.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn end_in_words(end: &TrialEnd, findings: u32) -> String {
    match end {
        TrialEnd::Completed if findings == 0 => "clean".to_owned(),
        TrialEnd::Completed | TrialEnd::Stopped => format!("ended with {}", counted(findings, "finding")),
        TrialEnd::FarmError { message } => format!("klpfarm failed: {}", one_line(message, 300)),
        TrialEnd::Void { reason } => format!("invalid: {}", one_line(reason, 300)),
        TrialEnd::Interrupted => "interrupted".to_owned(),
        TrialEnd::Unneeded => "no longer needed".to_owned(),
        TrialEnd::OutOfBudget => "out of time or disk space".to_owned(),
    }
}

/// What a plain line says of an event, if it is worth one.
fn plain(event: &Event) -> Option<String> {
    let text = match &event.body {
        Body::RunStarted { accel, qemu, .. } => format!("started under {accel}, {}", one_line(qemu, 100)),
        Body::RunResumed { void, .. } => match void.len() {
            0 => "resumed".to_owned(),
            n => format!("resumed; repeating {} that had not ended", counted(n, "trial")),
        },
        Body::TrialStarted => "machine starts".to_owned(),
        Body::PhaseStarted => format!("phase {}", event.scope?.phase),
        Body::Checkpoint(c) => format!(
            "trials fork from checkpoint {}, up for {:.0} s ({})",
            c.id,
            c.reached.uptime_s,
            c.made_ms
                .map_or_else(|| "from an earlier run".to_owned(), |ms| format!("made in {} s", ms / 1000))
        ),
        Body::Vitals(v) => format!(
            "up for {:.0} s: {} processes started, page cache {} MiB, slab {} MiB, {:.0} % of free memory in small blocks",
            v.uptime_s,
            v.forks,
            v.page_cache_kib >> 10,
            v.slab_kib >> 10,
            v.fragmentation * 100.0
        ),
        Body::MachineReady { release, ssh_ms, fork_ms, .. } => {
            let after = |what: &str, ms: &Option<u64>| {
                ms.map(|ms| format!(", {what} after {:.1} s", ms as f64 / 1000.0)).unwrap_or_default()
            };
            format!(
                "ready: Linux {}{}{}",
                one_line(release, 80),
                after("SSH", ssh_ms),
                after("forked", fork_ms)
            )
        }
        Body::Applied { patch, functions, took_ms, .. } => {
            format!("{patch} applied in {took_ms} ms: {}", one_line(&functions.join(", "), 200))
        }
        Body::TransitionDone { took_ms, per_task } => {
            let how =
                if *per_task { "all tasks switched" } else { "switched at once (no consistency model)" };
            format!("{how}, {took_ms} ms after applying")
        }
        Body::Reverted { patch, unloaded: true } => format!("{patch} disabled and unloaded"),
        Body::Reverted { patch, unloaded: false } => {
            format!("{patch} disabled (this kernel cannot unload it)")
        }
        Body::Progress { rates, ssh_ms } => {
            let rates: Vec<String> = rates.iter().map(|(w, r)| format!("{w} {r:.0}/s")).collect();
            let ssh = ssh_ms.map(|ms| format!(", ssh {ms} ms")).unwrap_or_default();
            format!("{}{ssh}", rates.join(", "))
        }
        Body::Reach { function, calls, window_ms, new_code } => {
            let new = new_code.as_ref().map(|new| {
                let patch = one_line(&new.patch, 60);
                format!("; the new code in {patch} {} times in {} ms", new.calls, new.window_ms)
            });
            let new = new.unwrap_or_default();
            format!("{} called {calls} times in {window_ms} ms{new}", one_line(function, 100))
        }
        Body::Finding(f) => format!("FINDING [{}] {}", f.kind, one_line(&f.title, 200)),
        // One line for the whole folder: its page lists the rest.
        Body::Evidence { file, .. } if file.ends_with("README") => {
            format!("evidence gathered: trials/{}/{file}", event.scope?.trial)
        }
        Body::Evidence { .. } => return None,
        Body::Note { text } => format!("note: {}", one_line(text, 200)),
        Body::Blind { detector, reason } => {
            format!("detector {} unavailable: {}", detector.as_str(), one_line(reason, 160))
        }
        Body::WorkloadUnavailable { workload, reason } => {
            format!("workload {} can't run on this guest: {}", one_line(workload, 40), one_line(reason, 160))
        }
        Body::TrialEnded { end } => end_in_words_plain(end),
        Body::RunEnded { interrupted } => (if *interrupted { "interrupted" } else { "ended" }).to_owned(),
        Body::StallEnded { title, lasted_ms } => {
            format!("progress again after {:.1} s: {}", *lasted_ms as f64 / 1000.0, one_line(title, 200))
        }
        Body::CpuShare { share } if *share < SHORT => {
            format!("host overloaded: the machine got {:.0} % of its planned CPU time", share * 100.0)
        }
        Body::Measured(_) | Body::Waits(_) | Body::CpuShare { .. } => return None,
    };
    Some(text)
}

fn hours(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    if minutes < 60 {
        format!("{minutes} min")
    } else {
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    }
}

fn stamp(event: &Event) -> String {
    format!("[{:>7.1}s]", event.at_ms as f64 / 1000.0)
}

fn end_in_words_plain(end: &TrialEnd) -> String {
    match end {
        TrialEnd::Completed => "completed".to_owned(),
        TrialEnd::Stopped => "ended early by a finding".to_owned(),
        TrialEnd::FarmError { .. }
        | TrialEnd::Void { .. }
        | TrialEnd::Interrupted
        | TrialEnd::Unneeded
        | TrialEnd::OutOfBudget => end_in_words(end, 0),
    }
}

#[cfg(test)]
mod tests {
    use klpfarm_model::{Arm, Phase};

    use super::*;

    fn said(body: Body) -> Option<String> {
        plain(&Event {
            seq: 1,
            at_ms: 0,
            scope: Some(Scope { trial: 1, arm: Arm::Loaded, phase: Phase::Soak }),
            body,
        })
    }

    #[test]
    fn a_trial_that_the_host_starved_says_so_and_no_other() {
        let words = said(Body::CpuShare { share: 0.42 });
        assert_eq!(words.as_deref(), Some("host overloaded: the machine got 42 % of its planned CPU time"));
        assert_eq!((said(Body::CpuShare { share: 0.7 }), said(Body::CpuShare { share: 1.0 })), (None, None));
    }

    #[test]
    fn a_stall_that_ended_is_told() {
        let words = said(Body::StallEnded { title: "w: threads\nstall".into(), lasted_ms: 12_340 });
        assert_eq!(words.as_deref(), Some("progress again after 12.3 s: w: threads stall"));
    }
}
