//! Where state is kept.

use std::path::PathBuf;

use crate::{Error, Result};

/// The folder of images, checkpoints and runs: `$KLPFARM_HOME`, or `klpfarm` in the XDG data folder.
///
/// # Errors
/// If the environment names none.
pub fn home() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = set("KLPFARM_HOME")
        .or_else(|| set("XDG_DATA_HOME").map(|d| d.join("klpfarm")))
        .or_else(|| set("HOME").map(|d| d.join(".local/share/klpfarm")))
        .ok_or_else(|| {
            Error::input("no home directory: set KLPFARM_HOME to a folder for images, checkpoints and runs")
        })?;
    std::path::absolute(&home).map_err(|e| Error::input(e).about(home.display()))
}
