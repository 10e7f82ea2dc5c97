//! `klpfarm triage`: the console classifier on any kernel log.

use std::io::Read;
use std::path::PathBuf;

use klpfarm_kmsg::{Classifier, Signal};

use crate::failure::{Failure, print, print_json};

/// Find kernel error reports in a log.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Console log, dmesg output or journal text; `-` reads standard input.
    file: PathBuf,
    /// Print as JSON: an array of findings.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::input(format!("{}: {e}", args.file.display()));
    let mut input: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(&args.file).map_err(failed)?)
    };
    let mut classifier = Classifier::new();
    let mut signals = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match input.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => signals.extend(classifier.push(&buffer[..n])),
        }
    }
    signals.extend(classifier.finish());
    let report = |signal| if let Signal::Report(report) = signal { Some(report) } else { None };
    let mut reports: Vec<_> = signals.into_iter().filter_map(report).collect();
    reports.sort_by_key(|r| r.line);
    if args.json {
        print_json(&reports);
        return Ok(0);
    }
    for r in &reports {
        let corrupted = if r.corrupted { " (incomplete)" } else { "" };
        print(&format!("{}: [{}] {}{corrupted}\n", r.line, r.kind, klpfarm_report::one_line(&r.title, 300)));
    }
    if reports.is_empty() {
        tell!("klpfarm: no kernel error reports found");
    }
    Ok(0)
}
