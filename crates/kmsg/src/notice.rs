//! Single lines that are no reports but matter: boots, livepatch steps, lost text, blind detectors.

use crate::header::Header;
use crate::scan::Scan;
use crate::{Kind, LivepatchState};

/// A notice, without its line number.
#[derive(Debug, PartialEq)]
pub(crate) enum Notice {
    Boot { release: String },
    Livepatch { patch: Option<String>, state: LivepatchState },
    LivepatchFailure(Header),
    Blind { kind: Kind },
}

/// The notice that `message` is, if it is one.
pub(crate) fn parse(message: &str) -> Option<Notice> {
    if let Some(rest) = message.strip_prefix("Linux version ") {
        let release = rest.split(' ').next().unwrap_or("");
        return release
            .starts_with(|c: char| c.is_ascii_digit())
            .then(|| Notice::Boot { release: release.to_string() });
    }
    if let Some(rest) = message.strip_prefix("livepatch: ") {
        return livepatch(rest);
    }
    if let Some((module, rest)) = message.split_once(": ")
        && rest.starts_with("tainting kernel with TAINT_LIVEPATCH")
    {
        return Some(Notice::Livepatch { patch: Some(module.to_string()), state: LivepatchState::Loaded });
    }
    blind(message).map(|kind| Notice::Blind { kind })
}

/// Text lost before this line: the count and where the rest of the line starts. The kernel before 4.19 printed the next
/// message on the same line.
pub(crate) fn lost(line: &[u8]) -> Option<(Option<u64>, usize)> {
    let text = std::str::from_utf8(&line[..line.len().min(60)])
        .unwrap_or_else(|e| std::str::from_utf8(&line[..e.valid_up_to()]).unwrap_or(""));
    if let Some(rest) = text.strip_prefix("** ") {
        let mut scan = Scan(rest);
        let count = scan.number();
        scan.lit(" printk messages dropped **")?;
        scan.eat(" ");
        return Some((count, text.len() - scan.0.len()));
    }
    None
}

/// systemd's journal lost kernel messages: `Missed 12 kernel messages`.
pub(crate) fn journal_lost(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("Missed ")?;
    let mut scan = Scan(rest);
    let count = scan.number()?;
    scan.lit(" kernel messages")?;
    Some(count)
}

/// `'X': patching complete` and the rest.
fn livepatch(rest: &str) -> Option<Notice> {
    use LivepatchState::*;
    let step = |patch: &str, state| Some(Notice::Livepatch { patch: Some(patch.to_string()), state });
    let anonymous = |state| Some(Notice::Livepatch { patch: None, state });
    let quoted = |text: &str| Some(text.strip_prefix('\'')?.split_once('\'')?.0.to_string());
    if let Some((patch, what)) = rest.strip_prefix('\'').and_then(|r| r.split_once("': ")) {
        let what = what.trim_end();
        return match what {
            "starting patching transition" => step(patch, Patching),
            "starting unpatching transition" => step(patch, Unpatching),
            "patching complete" | "completing patching transition" => step(patch, Patched),
            "unpatching complete" | "completing unpatching transition" => step(patch, Unpatched),
            _ if what.starts_with("reversing transition") || what.starts_with("canceling patching") => {
                step(patch, Reversing)
            }
            _ => None,
        };
    }
    for (start, state) in [
        ("enabling patch ", Enabling),
        ("disabling patch ", Disabling),
        ("applying patch ", ApplyingToModule),
        ("reverting patch ", RevertingFromModule),
    ] {
        if let Some(patch) = rest.strip_prefix(start).and_then(quoted) {
            return step(&patch, state);
        }
    }
    match rest {
        _ if rest.starts_with("signaling remaining tasks") => anonymous(Signaling),
        _ if rest.starts_with("forcing remaining tasks") => anonymous(Forced),
        _ if rest.starts_with("tainting kernel with TAINT_LIVEPATCH") => anonymous(Loaded),
        _ => livepatch_failure(rest).map(Notice::LivepatchFailure),
    }
}

/// Ways in which the livepatch core refuses or gives up. The numbers stay: an errno is part of the defect.
fn livepatch_failure(rest: &str) -> Option<Header> {
    let starts = [
        "failed to ",
        "patch '",
        "symbol '",
        "unresolvable symbol",
        "pre-patch callback failed",
        "unable to ",
        "error: ",
        "object '",
        "invalid ",
        "symbol ",
        "can't ",
    ];
    let words = [
        "failed",
        "not found",
        "unresolvable",
        "refusing",
        "incompatible",
        "not exported",
        "does not",
        "isn't",
        "unable",
    ];
    let fits = starts.iter().any(|s| rest.starts_with(s)) && words.iter().any(|w| rest.contains(w));
    fits.then(|| Header::new(Kind::LivepatchFailure, format!("livepatch: {}", rest.trim_end())).given())
}

/// Which detector says that it cannot fire, by a kind of its reports.
fn blind(message: &str) -> Option<Kind> {
    if let Some(rest) = message.strip_prefix("NMI watchdog: ") {
        let hard = [
            "disabled",
            "Perf NMI watchdog permanently disabled",
            "Perf event create on CPU",
            "Shutting down hard",
        ];
        return hard.iter().any(|h| rest.starts_with(h)).then_some(Kind::HardLockup);
    }
    const STARTS: &[(&str, Kind)] = &[
        ("Perf NMI watchdog permanently disabled", Kind::HardLockup),
        ("watchdog: NMI not fully supported", Kind::HardLockup),
        ("watchdog: Delayed init of the lockup detector failed", Kind::HardLockup),
        ("watchdog: Perf", Kind::HardLockup),
        ("watchdog: disabled", Kind::SoftLockup),
        ("INFO: lockdep is turned off", Kind::Deadlock),
        ("Disabling lock debugging due to kernel taint", Kind::Deadlock),
        ("turning off the locking correctness validator", Kind::Deadlock),
        ("BUG: MAX_LOCK", Kind::Deadlock),
        ("BUG: MAX_STACK_TRACE_ENTRIES too low", Kind::Deadlock),
        ("Future hung task reports are suppressed", Kind::HungTask),
        ("INFO: Future hung task reports are suppressed", Kind::HungTask),
        ("hung_task: ", Kind::HungTask),
        ("kmemleak: Kernel memory leak detector disabled", Kind::MemoryLeak),
        ("kmemleak: Early log buffer exceeded", Kind::MemoryLeak),
        ("kmemleak: Memory pool empty", Kind::MemoryLeak),
        ("ODEBUG: Out of memory", Kind::Odebug),
        ("ODEBUG: Not enough memory", Kind::Odebug),
        ("ODEBUG: selftest", Kind::Odebug),
        ("kfence: initialization failed", Kind::Kfence),
        ("kfence: disabled", Kind::Kfence),
    ];
    let (start, kind) = STARTS.iter().find(|(start, _)| message.starts_with(start))?;
    let off = ["hung_task: ", "watchdog: Perf", "ODEBUG: selftest"].contains(start);
    let says_off = ["disabled", "suppressed", "stopped", "failed"].iter().any(|w| message.contains(w));
    (!off || says_off).then_some(*kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn livepatch_steps() {
        let step = |text| match parse(text) {
            Some(Notice::Livepatch { patch, state }) => Some((patch, state)),
            _ => None,
        };
        let patch = || Some("kpatch_1".to_string());
        assert_eq!(step("livepatch: enabling patch 'kpatch_1'"), Some((patch(), LivepatchState::Enabling)));
        assert_eq!(
            step("livepatch: 'kpatch_1': patching complete"),
            Some((patch(), LivepatchState::Patched))
        );
        assert_eq!(
            step("livepatch: 'kpatch_1': unpatching complete"),
            Some((patch(), LivepatchState::Unpatched))
        );
        assert_eq!(step("livepatch: signaling remaining tasks"), Some((None, LivepatchState::Signaling)));
        assert_eq!(
            step("kpatch_1: tainting kernel with TAINT_LIVEPATCH"),
            Some((patch(), LivepatchState::Loaded))
        );
        assert_eq!(step("mymod: livepatch: 'x': patching complete"), None);
    }

    #[test]
    fn livepatch_failures() {
        for text in [
            "livepatch: failed to register ftrace handler for function 'do_madvise' (-16)",
            "livepatch: symbol 'no_such' not found in symbol table",
            "livepatch: failed to enable patch 'x'",
            "livepatch: pre-patch callback failed for object 'vmlinux'",
            "livepatch: patch 'x' failed for module 'm', refusing to load module 'm'",
        ] {
            assert!(matches!(parse(text), Some(Notice::LivepatchFailure(_))), "{text}");
        }
        assert_eq!(parse("livepatch: my patch says nothing failed"), None);
    }

    #[test]
    fn losses() {
        assert_eq!(lost(b"** 12 printk messages dropped **"), Some((Some(12), 32)));
        assert_eq!(lost(b"** 7 printk messages dropped ** [ 1.0] x"), Some((Some(7), 32)));
        assert_eq!(lost(b"net_ratelimit: 12 callbacks suppressed"), None);
    }

    #[test]
    fn blind_detectors() {
        let blind = |text| match parse(text) {
            Some(Notice::Blind { kind }) => Some(kind),
            _ => None,
        };
        let hard = Some(Kind::HardLockup);
        assert_eq!(blind("NMI watchdog: disabled (cpu0): hardware events not enabled"), hard);
        assert_eq!(blind("NMI watchdog: Perf NMI watchdog permanently disabled"), hard);
        assert_eq!(blind("NMI watchdog: Enabled. Permanently consumes one hw-PMU counter."), None);
        assert_eq!(blind("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [x:1]"), None);
    }
}
