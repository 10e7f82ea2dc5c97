//! `klpfarm checkpoint`.

use std::path::PathBuf;

use klpfarm_engine::{home, image};
use klpfarm_image::{Checkpoint, CheckpointStore};
use serde_json::{Value, json};

use crate::failure::{Failure, print, print_json};

/// Manage checkpoints of aged machines; runs make and use them by themselves.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the checkpoints.
    List {
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a checkpoint: what it was made from and how old the machine is.
    Show {
        /// Checkpoint id, or a unique prefix of it.
        id: String,
        /// First read all files and compare them with the manifest.
        #[arg(long)]
        verify: bool,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a checkpoint; the next run that needs it makes a new one.
    Rm {
        /// Checkpoint id, or a unique prefix of it.
        id: String,
    },
    /// Export a checkpoint to a tar file, for another host with the same image.
    Export {
        /// Checkpoint id, or a unique prefix of it.
        id: String,
        /// File to write; it must not exist.
        file: PathBuf,
    },
    /// Import a checkpoint from a file written by `export`.
    Import {
        /// File to read.
        file: PathBuf,
    },
}

fn store() -> Result<CheckpointStore, Failure> {
    Ok(CheckpointStore::open(&home()?)?)
}

pub(crate) fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::List { json } => list(json)?,
        Command::Show { id, verify, json } => show(&id, verify, json)?,
        Command::Rm { id } => print(&format!("removed {}\n", store()?.remove(&id)?)),
        Command::Export { id, file } => {
            let checkpoint = store()?.export(&id, &file)?;
            print(&format!("exported {} to {}\n", checkpoint.id(), file.display()));
        }
        Command::Import { file } => {
            let checkpoint = store()?.import(&file, &image::store()?)?;
            print(&format!("{}\n", checkpoint.id()));
        }
    }
    Ok(0)
}

fn list(json: bool) -> Result<(), Failure> {
    let checkpoints = store()?.list()?;
    if json {
        print_json(&checkpoints.iter().map(facts).collect::<Vec<_>>());
        return Ok(());
    }
    if checkpoints.is_empty() {
        print("no checkpoints: runs create them when needed\n");
    }
    for checkpoint in checkpoints {
        let m = &checkpoint.manifest;
        print(&format!(
            "{:<28} {:<28} up {:<9} {:>6} MiB  {}  {}\n",
            m.id,
            m.made.release,
            uptime(m.made.uptime_s),
            checkpoint.disk_bytes() >> 20,
            m.created,
            words(&m.key.workloads),
        ));
    }
    Ok(())
}

fn show(id: &str, verify: bool, json: bool) -> Result<(), Failure> {
    let checkpoint = store()?.find(id)?;
    if verify {
        checkpoint.verify()?;
    }
    if json {
        print_json(&facts(&checkpoint));
        return Ok(());
    }
    let m = &checkpoint.manifest;
    print(&format!(
        "id         {}\nimage      {}\nkernel     {}\nmachine    {} CPUs, {} MiB, {}\nqemu       {}\nworkloads  {}\naging      {}\n\
         aged from  {}\nuptime     {}\ncreated    {} in {} s\nfolder     {}\nsize       {} MiB on disk\n{}",
        m.id,
        m.key.image,
        m.made.release,
        m.key.cpus,
        m.key.memory_mib,
        m.key.accel,
        m.key.qemu,
        words(&m.key.workloads),
        words(&m.key.aging),
        m.key.parent.as_deref().unwrap_or("power-on"),
        uptime(m.made.uptime_s),
        m.created,
        m.made.took_ms / 1000,
        checkpoint.dir.display(),
        checkpoint.disk_bytes() >> 20,
        if verify { "files      verified\n" } else { "" },
    ));
    Ok(())
}

fn facts(checkpoint: &Checkpoint) -> Value {
    json!({
        "id": checkpoint.id(),
        "dir": checkpoint.dir,
        "image": checkpoint.manifest.key.image,
        "release": checkpoint.manifest.made.release,
        "uptime_s": checkpoint.manifest.made.uptime_s,
        "disk_bytes": checkpoint.disk_bytes(),
        "manifest": checkpoint.manifest,
    })
}

/// Names only, where there are any: of a list of names or of things with a `name`, or the keys of a map.
fn words(value: &Value) -> String {
    let word =
        |v: &Value| v.as_str().or_else(|| v["name"].as_str()).map_or_else(|| v.to_string(), str::to_owned);
    match value {
        Value::Null => "-".to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(" "),
        other => word(other),
    }
}

/// Seconds for people: the two largest units.
fn uptime(seconds: f64) -> String {
    // Whole seconds; a negative or absurd number from a manifest becomes the nearest end.
    let s = seconds as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_and_workloads_for_people() {
        for (seconds, text) in
            [(9.9, "9s"), (61.0, "1m01s"), (7260.0, "2h01m"), (180_000.0, "2d02h"), (-1.0, "0s")]
        {
            assert_eq!(uptime(seconds), text);
        }
        assert_eq!(words(&json!(["a", {"name": "b", "x": 1}])), "a b");
        assert_eq!(words(&json!([])), "-");
        assert_eq!(words(&Value::Null), "-");
        assert_eq!(words(&json!({"uptime": 5})), r#"{"uptime":5}"#);
    }
}
