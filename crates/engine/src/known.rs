//! Where the list of known findings is.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use klpfarm_model::known::KnownFindings;

use crate::home::home;
use crate::{Error, Result};

/// Its name where none is given.
const NAME: &str = "known-findings.yaml";

/// The list that `file` names, or else `known-findings.yaml` in the current folder or in KLPFARM_HOME; an empty one if there is none.
///
/// # Errors
/// If the file cannot be read, or is not a valid list.
pub fn list(file: Option<&Path>) -> Result<KnownFindings> {
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
    let unreadable = |e| Error::input(e).about(format!("known findings {}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(unreadable)?;
    KnownFindings::parse(&file, &text).map_err(|errors| Error::inputs(&errors))
}

/// Today, UTC.
pub fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}
