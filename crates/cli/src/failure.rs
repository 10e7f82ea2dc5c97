//! Why a command failed, and the exit code that goes with it.

use std::process::ExitCode;

/// Exit codes are API: docs/reference.md, "Exit codes".
pub(crate) mod code {
    pub(crate) const INPUT: u8 = 2;
    pub(crate) const FARM: u8 = 4;
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// A failure to do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Wrong use or bad input: the user can mend it.
    Input(String),
    /// The farm or the host failed.
    Farm(String),
    /// The user ended it.
    Interrupted(String),
}

impl Failure {
    pub(crate) fn input(error: impl std::fmt::Display) -> Self {
        Self::Input(error.to_string())
    }

    pub(crate) fn farm(error: impl std::fmt::Display) -> Self {
        Self::Farm(error.to_string())
    }

    /// Several problems at once, one a line.
    pub(crate) fn inputs<E: std::fmt::Display>(errors: &[E]) -> Self {
        Self::Input(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    pub(crate) fn report(&self) -> ExitCode {
        let (Self::Input(text) | Self::Farm(text) | Self::Interrupted(text)) = self;
        for line in text.lines() {
            tell!("klpfarm: {}", klpfarm_report::printable(line));
        }
        ExitCode::from(match self {
            Self::Input(_) => code::INPUT,
            Self::Farm(_) => code::FARM,
            Self::Interrupted(_) => code::INTERRUPTED,
        })
    }
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
