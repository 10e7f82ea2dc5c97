//! The index of runs and the list of known findings, and what is said on standard error of them.

use std::path::Path;

use klpfarm_engine::{history, known};
use klpfarm_history::{History, Refreshed};
use klpfarm_model::known::KnownFindings;
use klpfarm_report::one_line;

use crate::failure::Failure;

/// The index, up to date; what can't be read is said.
pub(crate) fn up_to_date(home: &Path) -> Result<History, Failure> {
    let (history, refreshed) = history::up_to_date(home)?;
    say_problems(&refreshed);
    Ok(history)
}

/// Run folders that can't be read: the first few by name, the rest by number.
pub(crate) fn say_problems(refreshed: &Refreshed) {
    const MOST: usize = 5;
    for (dir, problem) in refreshed.problems.iter().take(MOST) {
        let told = one_line(problem, 300);
        // Most problems begin with the file that they are about.
        if problem.starts_with(&*dir.to_string_lossy()) {
            tell!("klpfarm: warning: skipped: {told}");
        } else {
            tell!("klpfarm: warning: skipped: {}: {told}", one_line(&dir.display().to_string(), 400));
        }
    }
    let more = refreshed.problems.len().saturating_sub(MOST);
    if more > 0 {
        tell!("klpfarm: warning: skipped {more} more that cannot be read");
    }
}

/// Entries that act no more are said, so that somebody looks again.
pub(crate) fn say_expired(list: &KnownFindings) {
    for entry in list.expired(known::today()) {
        tell!(
            "klpfarm: known finding `{}` expired on {}: such findings are reported as new again",
            one_line(&entry.title, 120),
            entry.expires
        );
    }
}
