//! `klpfarm gc`: it prints what goes and why.

use std::time::Duration;

use klpfarm_engine::gc::{Policy, Removal, collect};
use klpfarm_engine::home;
use klpfarm_model::counted;
use klpfarm_model::size::{self, size};
use klpfarm_report::{one_line, printable};
use serde_json::json;

use crate::failure::{Failure, code, print, print_json};

/// Remove what crashed runs left behind and old runs: orphaned machines, temporary files, runs beyond an age or total size.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print what would be removed; remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove runs in KLPFARM_HOME/runs older than this.
    #[arg(long, value_name = "30d", default_value = "30d", value_parser = days)]
    keep_age: Duration,
    /// Then remove the oldest runs until all of them together take no more disk space than this.
    #[arg(long, value_name = "20G", default_value = "20G", value_parser = size::parse)]
    keep_size: u64,
    /// Also remove rejected runs, which are otherwise kept for their evidence.
    #[arg(long)]
    also_rejected: bool,
    /// Also remove checkpoints older than this, except the most recent of each chain; by default checkpoints are kept.
    #[arg(long, value_name = "60d", value_parser = days)]
    checkpoints_age: Option<Duration>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let policy = Policy {
        age: args.keep_age,
        size: args.keep_size,
        also_rejected: args.also_rejected,
        checkpoints: args.checkpoints_age,
    };
    let show = |removal: &Removal| {
        if !args.json {
            print(&line(removal, args.dry_run));
        }
    };
    let removals = collect(&home()?, &policy, args.dry_run, show).await?;
    let failed = removals.iter().any(|r| r.error.is_some());
    let total: u64 = removals.iter().filter(|r| r.error.is_none()).map(|r| r.thing.bytes).sum();
    if args.json {
        let one = |r: &Removal| json!({ "what": r.thing.what.as_str(), "path": r.thing.path, "bytes": r.thing.bytes, "why": r.why, "error": r.error });
        let things: Vec<_> = removals.iter().map(one).collect();
        print_json(&json!({ "dry_run": args.dry_run, "bytes": total, "things": things }));
    } else {
        let word = if args.dry_run { "would remove" } else { "removed" };
        print(&format!("{word} {} ({})\n", counted(removals.len(), "item"), size(total)));
    }
    Ok(if failed { code::FARM } else { 0 })
}

fn line(removal: &Removal, dry_run: bool) -> String {
    let Removal { thing, why, error } = removal;
    let word = match error {
        Some(_) => "FAILED",
        None if dry_run => "would remove",
        None => "removed",
    };
    let place = thing.path.to_string_lossy();
    let error = error.as_deref().map(|e| format!(": {}", one_line(e, 300))).unwrap_or_default();
    format!(
        "{word:<12}  {:<10} {:>10}  {}  ({}){error}\n",
        thing.what.as_str(),
        size(thing.bytes),
        printable(&place),
        printable(why)
    )
}

/// Read an age: days, as in 30d, or any other duration.
fn days(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(Duration::from_secs(u64::from(days) * 24 * 3600)),
        _ => klpfarm_model::duration::parse(text).map_err(|e| format!("{e}, or `30d`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read() {
        assert_eq!(days("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(days("90m"), Ok(Duration::from_secs(5400)));
        assert!(days("1.5d").is_err() && days("d").is_err() && days("soon").is_err());
    }
}
