//! `klpfarm triage`: the console classifier on any kernel log.

mod unpack;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use klpfarm_kmsg::{Classifier, Report, Signal};

use crate::failure::Failure;

/// Find kernel error reports in a log.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Console log, dmesg output or journal text in any form, also as gzip or xz; `-` reads standard input.
    file: PathBuf,
    /// Print as JSON: an array of findings, one a line.
    #[arg(long)]
    json: bool,
}

/// How much is read at once, in bytes; what was found in it is printed before the next.
const CHUNK: usize = 64 << 10;
/// The most findings that wait for one of an earlier line to become complete.
const WAITING: usize = 64;

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::input(format!("{}: {e}", args.file.display()));
    let input: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(&args.file).map_err(failed)?)
    };
    let mut input = unpack::text(input).map_err(failed)?;
    let mut printer =
        Printer { out: io::stdout().lock(), json: args.json, count: 0, waiting: BTreeMap::new() };
    let read = printer.log(&mut *input);
    // What was found before an error is told all the same. A reader that went away (`| head`) is no failure.
    match read {
        Err(Stop::Gone) => return Ok(0),
        Err(Stop::Unreadable(e)) => {
            let _ = printer.end();
            return Err(failed(e));
        }
        Ok(()) => {}
    }
    if printer.end().is_ok() && printer.count == 0 && !args.json {
        tell!("klpfarm: no kernel error reports found");
    }
    Ok(0)
}

/// Why reading ended early.
enum Stop {
    Unreadable(io::Error),
    /// Nobody reads what is printed.
    Gone,
}

/// Prints findings as they become complete, in the order of their lines as far as that needs no long wait.
struct Printer<W> {
    out: W,
    json: bool,
    /// Findings printed.
    count: usize,
    /// Findings by line, and by order within one.
    waiting: BTreeMap<(u64, usize), Report>,
}

impl<W: Write> Printer<W> {
    fn log(&mut self, input: &mut dyn Read) -> Result<(), Stop> {
        let mut classifier = Classifier::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = match input.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read,
            };
            let end = !matches!(read, Ok(n) if n > 0);
            let signals = match read {
                Ok(n) if n > 0 => classifier.push(&buffer[..n]),
                _ => classifier.finish(),
            };
            self.take(signals);
            self.print(classifier.open_since()).map_err(|_| Stop::Gone)?;
            if end {
                return read.map(|_| ()).map_err(Stop::Unreadable);
            }
        }
    }

    fn take(&mut self, signals: Vec<Signal>) {
        for signal in signals {
            if let Signal::Report(report) = signal {
                let order = self.count + self.waiting.len();
                self.waiting.insert((report.line, order), report);
            }
        }
    }

    /// Prints what no report that is still open, from line `open` on, can come before.
    fn print(&mut self, open: Option<u64>) -> io::Result<()> {
        let mut text = String::new();
        while let Some(entry) = self.waiting.first_entry() {
            if open.is_some_and(|open| entry.key().0 > open) && self.waiting.len() <= WAITING {
                break;
            }
            let Some((_, report)) = self.waiting.pop_first() else { break };
            self.format(&report, &mut text);
            self.count += 1;
        }
        if text.is_empty() {
            return Ok(());
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// A comma before a finding, not behind it: its line is complete at once.
    fn format(&self, report: &Report, text: &mut String) {
        if self.json {
            *text += if self.count == 0 { "[\n " } else { "," };
            *text += &serde_json::to_string(report).unwrap_or_default();
            *text += "\n";
            return;
        }
        let corrupted = if report.corrupted { " (incomplete)" } else { "" };
        let title = klpfarm_report::one_line(&report.title, 300);
        *text +=
            &klpfarm_report::printable(&format!("{}: [{}] {title}{corrupted}\n", report.line, report.kind));
    }

    fn end(&mut self) -> io::Result<()> {
        self.print(None)?;
        if self.json {
            self.out.write_all(if self.count == 0 { b"[]\n" } else { b"]\n" })?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    fn printer<W: Write>(out: W, json: bool) -> Printer<W> {
        Printer { out, json, count: 0, waiting: BTreeMap::new() }
    }

    fn printed(log: &str, json: bool) -> String {
        let mut out = Vec::new();
        let mut printer = printer(&mut out, json);
        assert!(printer.log(&mut log.as_bytes()).is_ok() && printer.end().is_ok());
        String::from_utf8(out).unwrap()
    }

    /// A log without end, which wants to see that everything found so far was printed.
    struct Live {
        round: usize,
        out: Rc<RefCell<Vec<u8>>>,
    }

    impl Read for Live {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let printed = self.out.borrow().iter().filter(|b| **b == b'\n').count();
            assert_eq!(printed, self.round);
            if self.round == 100 {
                return Err(io::Error::other("damaged"));
            }
            self.round += 1;
            let text = format!("[{:5}.000000] EXT4-fs error (device vda): f:1: x\n", self.round);
            buffer[..text.len()].copy_from_slice(text.as_bytes());
            Ok(text.len())
        }
    }

    struct Shared(Rc<RefCell<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn findings_are_printed_as_they_come() {
        let out = Rc::new(RefCell::new(Vec::new()));
        let mut printer = printer(Shared(out.clone()), false);
        let stopped = printer.log(&mut Live { round: 0, out });
        assert!(matches!(stopped, Err(Stop::Unreadable(_))));
        assert_eq!(printer.count, 100);
    }

    #[test]
    fn a_finding_waits_for_one_of_an_earlier_line() {
        let warning = "[    1.000000] WARNING: CPU: 0 PID: 1 at mm/madvise.c:12 do_madvise+0x1/0x2\n\
                       [    1.000001] Call Trace:\n";
        let error = |n| format!("[    2.{n:06}] EXT4-fs error (device vda): f:1: x\n");
        let log = format!("{warning}{}{}[    3.000000]  do_madvise+0x1/0x2\n", error(1), error(2));
        let text = printed(&log, false);
        let lines: Vec<&str> = text.lines().map(|l| l.split(':').next().unwrap()).collect();
        assert_eq!(lines, ["1", "3", "4"]);
        // But not for ever.
        let mut printer = printer(Vec::new(), false);
        let mut classifier = Classifier::new();
        printer.take(classifier.push(warning.as_bytes()));
        for n in 0..1000 {
            printer.take(classifier.push(error(n).as_bytes()));
            assert!(printer.print(Some(1)).is_ok() && printer.waiting.len() <= WAITING);
        }
        assert!(printer.count > 900);
    }

    #[test]
    fn json_is_an_array_of_lines() {
        assert_eq!(printed("all is well\n", true), "[]\n");
        let log: String =
            (1..4).map(|n| format!("[    {n}.000000] EXT4-fs error (device vda): f:1: x\n")).collect();
        let text = printed(&log, true);
        let found: Vec<Report> = serde_json::from_str(&text).unwrap();
        assert_eq!(found.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(text.lines().count(), 5);
        let first = text.lines().nth(1).unwrap();
        assert!(serde_json::from_str::<Report>(first).is_ok(), "{first}");
    }
}
