//! What a person sees while a run goes on: on a terminal one live line a trial, otherwise plain lines with time stamps.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use klpfarm_model::{Body, Event, Plan, Scope, Start, TrialEnd};

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
    /// Which patches a trial applies, where there are several.
    patches: BTreeMap<u32, String>,
}

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
        // Trial 0 is the machine that is aged.
        let numbers = std::iter::once(0).chain(plan.trials.iter().map(|t| t.number));
        let trials = numbers.map(|number| (number, Shown::default())).collect();
        let several = plan.patches.len() > 1;
        let names = |t: &klpfarm_model::Trial| plan.names(t).collect::<Vec<_>>().join(" + ");
        let patches = plan.trials.iter().filter(|t| several && !t.patches.is_empty());
        let patches = patches.map(|t| (t.number, names(t))).collect();
        Self { view, bars: MultiProgress::new(), trials, brief: plan.start == Start::Fork, patches }
    }

    /// The trial in words; trial 0 is of no arm.
    fn place(&self, scope: Scope) -> String {
        match (scope.trial, self.patches.get(&scope.trial)) {
            (0, _) => "aging".to_owned(),
            (n, None) => format!("trial {n} {}", scope.arm),
            (n, Some(patches)) => format!("trial {n} {} {patches}", scope.arm),
        }
    }

    /// Show an event.
    pub fn event(&mut self, event: &Event) {
        match self.view {
            View::Plain => {
                if self.is_due(event)
                    && let Some(text) = plain(event)
                {
                    let place = event.scope.map_or_else(|| "run".to_owned(), |scope| self.place(scope));
                    eprint_line(&format!("{} {place}: {text}", stamp(event)));
                }
            }
            View::Live => self.live(event),
        }
    }

    /// Rates come every few seconds; a log wants them less often.
    fn is_due(&mut self, event: &Event) -> bool {
        const EVERY_MS: u64 = 20_000;
        let Some(scope) = event.scope else { return true };
        let brief = self.brief && scope.trial > 0;
        match (&event.body, self.trials.get_mut(&scope.trial)) {
            (Body::PhaseStarted | Body::Reverted { .. } | Body::MachineReady { .. }, _) => !brief,
            (Body::Blind { .. }, _) => !brief,
            (Body::TrialStarted, Some(shown)) => {
                shown.rates_ms = event.at_ms;
                !brief
            }
            (Body::Progress { .. }, Some(shown)) => {
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

    fn live(&mut self, event: &Event) {
        let Some(scope) = event.scope else {
            if let Some(text) = plain(event) {
                let _ = self.bars.println(format!("{} run: {text}", stamp(event)));
            }
            return;
        };
        let place = self.place(scope);
        let Some(shown) = self.trials.get_mut(&scope.trial) else { return };
        match &event.body {
            Body::TrialStarted => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(250));
                shown.bar = Some(bar);
            }
            Body::Progress { rates, .. } => shown.rate = rates.values().sum(),
            Body::Finding(f) => {
                shown.findings += 1;
                let _ = self.bars.println(format!("{}: finding: {}", place, one_line(&f.title, 120)));
            }
            Body::TrialEnded { end } => {
                if let Some(bar) = shown.bar.take() {
                    bar.finish_and_clear();
                }
                let _ = self.bars.println(format!("{}: {}", place, end_in_words(end, shown.findings)));
                return;
            }
            _ => {}
        }
        if let Some(bar) = &shown.bar {
            bar.set_message(format!(
                "{:<19} {:<10} {:>8.0} ops/s  {} finding(s)",
                place, scope.phase, shown.rate, shown.findings
            ));
        }
    }
}

fn eprint_line(text: &str) {
    use std::io::Write;
    // A closed standard error is no reason to end a run.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn end_in_words(end: &TrialEnd, findings: u32) -> String {
    match end {
        TrialEnd::Completed if findings == 0 => "clean".to_owned(),
        TrialEnd::Completed | TrialEnd::Stopped => format!("ended with {findings} finding(s)"),
        TrialEnd::FarmError { message } => format!("farm error: {}", one_line(message, 300)),
        TrialEnd::Interrupted => "interrupted".to_owned(),
        TrialEnd::Unneeded => "not needed any more".to_owned(),
        TrialEnd::OutOfBudget => "the budget is used up".to_owned(),
    }
}

/// What a plain line says of an event, if it is worth one.
fn plain(event: &Event) -> Option<String> {
    let text = match &event.body {
        Body::RunStarted { accel, qemu, .. } => format!("started under {accel}, {}", one_line(qemu, 100)),
        Body::TrialStarted => "machine starts".to_owned(),
        Body::PhaseStarted => format!("phase {}", event.scope?.phase),
        Body::Checkpoint(c) => format!(
            "trials are forks of {}, up for {:.0} s ({})",
            c.id,
            c.reached.uptime_s,
            c.made_ms.map_or_else(|| "kept from before".to_owned(), |ms| format!("made in {} s", ms / 1000))
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
            format!("{patch} disabled (this kernel can't unload it)")
        }
        Body::Progress { rates, ssh_ms } => {
            let rates: Vec<String> = rates.iter().map(|(w, r)| format!("{w} {r:.0}/s")).collect();
            let ssh = ssh_ms.map(|ms| format!(", ssh {ms} ms")).unwrap_or_default();
            format!("{}{ssh}", rates.join(", "))
        }
        Body::Reach { function, calls, window_ms } => {
            format!("{} called {calls} times in {window_ms} ms", one_line(function, 100))
        }
        Body::Finding(f) => format!("FINDING [{}] {}", f.kind, one_line(&f.title, 200)),
        // One line for the whole folder: its page lists the rest.
        Body::Evidence { file, .. } if file.ends_with("README") => {
            format!("evidence gathered: trials/{}/{file}", event.scope?.trial)
        }
        Body::Evidence { .. } => return None,
        Body::Note { text } => format!("note: {}", one_line(text, 200)),
        Body::Blind { detector, reason } => {
            format!("can't detect {}: {}", one_line(detector, 40), one_line(reason, 160))
        }
        Body::TrialEnded { end } => format!("ended: {}", end_in_words_plain(end)),
        Body::RunEnded { interrupted } => (if *interrupted { "interrupted" } else { "ended" }).to_owned(),
        Body::Measured(_) | Body::Waits(_) => return None,
    };
    Some(text)
}

fn stamp(event: &Event) -> String {
    format!("[{:>7.1}s]", event.at_ms as f64 / 1000.0)
}

fn end_in_words_plain(end: &TrialEnd) -> String {
    match end {
        TrialEnd::Completed => "all phases done".to_owned(),
        TrialEnd::Stopped => "stopped on a finding".to_owned(),
        TrialEnd::FarmError { .. } | TrialEnd::Interrupted | TrialEnd::Unneeded | TrialEnd::OutOfBudget => {
            end_in_words(end, 0)
        }
    }
}
