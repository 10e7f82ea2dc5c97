//! Where state is kept.

use std::path::PathBuf;

use crate::failure::Failure;

/// `$KLPFARM_HOME`, or `klpfarm` in the XDG data folder.
pub(crate) fn home() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = set("KLPFARM_HOME")
        .or_else(|| set("XDG_DATA_HOME").map(|d| d.join("klpfarm")))
        .or_else(|| set("HOME").map(|d| d.join(".local/share/klpfarm")))
        .ok_or_else(|| {
            Failure::input("no home directory: set KLPFARM_HOME to a folder for images, checkpoints and runs")
        })?;
    std::path::absolute(&home).map_err(|e| Failure::input(format!("{}: {e}", home.display())))
}
