//! The `klpfarm` binary: arguments, wiring, exit codes.

/// A line on standard error, as `eprintln` writes it. Whoever reads it may be gone, and that must not end a run, or lose the signal that is
/// to end it: `eprintln` would panic.
macro_rules! tell {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod commands;
mod console;
mod failure;
mod hints;
mod interrupt;
mod limits;
mod runs_index;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use commands::{
    age, bench, check, checkpoint, db, doctor, gc, image, judge, key, module, plan, qualify_detectors, reach,
    resume, run, runs, sign, trend, triage, verify,
};

/// Test kernel livepatches under load on disposable virtual machines, and decide whether they may enter the next tier.
///
/// Exit codes: 0 success or qualified, 1 rejected, 2 usage error or bad input, 3 inconclusive, 4 klpfarm or the host failed, 130 interrupted.
#[derive(Debug, Parser)]
#[command(version, about, long_about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Doctor(doctor::Args),
    #[command(subcommand)]
    Image(image::Command),
    #[command(subcommand)]
    Module(module::Command),
    Age(age::Args),
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    Check(check::Args),
    Plan(plan::Args),
    Run(Box<run::Args>),
    Resume(resume::Args),
    Judge(judge::Args),
    #[command(subcommand)]
    Key(key::Command),
    Sign(sign::Args),
    Verify(verify::Args),
    Runs(runs::Args),
    Trend(trend::Args),
    #[command(subcommand)]
    Db(db::Command),
    QualifyDetectors(Box<qualify_detectors::Args>),
    Triage(triage::Args),
    Reach(reach::Args),
    Bench(bench::Args),
    Gc(gc::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("KLPFARM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    let done = match Cli::parse().command {
        Command::Doctor(args) => doctor::run(args).await,
        Command::Image(command) => image::run(command).await,
        Command::Module(command) => module::run(command).await,
        Command::Age(args) => age::run(args).await,
        Command::Checkpoint(command) => checkpoint::run(command),
        Command::Check(args) => check::run(&args),
        Command::Plan(args) => plan::run(args).await,
        Command::Run(args) => run::run(*args).await,
        Command::Resume(args) => resume::run(args).await,
        Command::Judge(args) => judge::run(&args),
        Command::Key(command) => key::run(&command),
        Command::Sign(args) => sign::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Runs(args) => runs::run(&args),
        Command::Trend(args) => trend::run(&args),
        Command::Db(command) => db::run(command),
        Command::QualifyDetectors(args) => qualify_detectors::run(*args).await,
        Command::Reach(args) => reach::run(args).await,
        Command::Triage(args) => triage::run(&args),
        Command::Bench(args) => bench::run(args).await,
        Command::Gc(args) => gc::run(args).await,
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure::report(&error),
    }
}
