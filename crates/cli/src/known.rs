//! Where the list of known findings is, and what is said of it.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use klpfarm_model::known::KnownFindings;
use klpfarm_report::one_line;

use crate::failure::Failure;
use crate::home::home;

/// Its name where none is given.
const NAME: &str = "known-findings.yaml";

/// The list that `file` names, or else `known-findings.yaml` in the current folder or in KLPFARM_HOME; an empty one if there is none.
pub(crate) fn list(file: Option<&Path>) -> Result<KnownFindings, Failure> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => {
            let places = [Some(PathBuf::from(NAME)), home().ok().map(|home| home.join(NAME))];
            match places.into_iter().flatten().find(|file| file.is_file()) {
                Some(file) => file,
                None => return Ok(KnownFindings::default()),
            }
        }
    };
    let unreadable = |e| Failure::input(format!("known findings {}: {e}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(unreadable)?;
    KnownFindings::parse(&file, &text).map_err(|errors| Failure::inputs(&errors))
}

/// Entries that act no more are said, so that somebody looks again.
pub(crate) fn say_expired(list: &KnownFindings) {
    for entry in list.expired(today()) {
        tell!(
            "klpfarm: known finding `{}` expired on {}: such findings are reported as new again",
            one_line(&entry.title, 120),
            entry.expires
        );
    }
}

/// Today, UTC.
pub(crate) fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}
