//! Printing, and what becomes of a failure: its text, a hint, an exit code.

use std::process::ExitCode;

pub(crate) use klpfarm_engine::Error as Failure;
use klpfarm_engine::Kind;

use crate::hints;

/// Exit codes are API: docs/reference.md, "Exit codes".
pub(crate) mod code {
    pub(crate) const INPUT: u8 = 2;
    pub(crate) const FARM: u8 = 4;
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// Say on standard error what failed and what could help.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    for line in hints::of_error(failure).lines() {
        tell!("klpfarm: {}", klpfarm_report::printable(line));
    }
    ExitCode::from(match failure.kind() {
        Kind::Input => code::INPUT,
        Kind::Farm => code::FARM,
        Kind::Interrupted => code::INTERRUPTED,
    })
}

/// Print to standard output. Names may come from an archive or another host's run folder: a terminal gets text and nothing else.
pub(crate) fn print(text: &str) {
    print_as_it_is(&klpfarm_report::printable(text));
}

/// Print what is JSON, or has colours of ours and is clean otherwise; a reader that went away (`| head`) is no failure.
pub(crate) fn print_as_it_is(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Print as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) {
    print_as_it_is(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}
