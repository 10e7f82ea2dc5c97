//! `klpfarm run`: plan, execute, judge, report.

use std::future::Future;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use klpfarm_farm::Bench;
use klpfarm_model::{Event, judge};
use klpfarm_report::{Run, Terminal, View, summary};
use klpfarm_vm::{Login, Spec};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, code, print, print_json};
use crate::plan::{Choice, Planned, plan};
use crate::{home, host, interrupt};

/// Gate a livepatch.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// The run folder, which must be empty or not exist; by default one below KLPFARM_HOME/runs.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the verdict as JSON on standard output, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Less free space than this and a run would die of a full disk.
const LEAST_DISK_MIB: u64 = 512;

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let planned = plan(&args.choice).await?;
    let (qemu, version) = klpfarm_vm::qemu_version().await.map_err(Failure::farm)?;
    let home = home::home()?;
    let dir = match &args.out {
        Some(dir) => std::path::absolute(dir).map_err(Failure::input)?,
        None => fresh_dir(&home.join("runs"), &planned.plan.patch.name),
    };
    for place in [&home, &dir] {
        if let Some(free) = host::free_disk_mib(place).filter(|free| *free < LEAST_DISK_MIB) {
            return Err(Failure::farm(format!(
                "{}: only {free} MiB are free; a run needs {LEAST_DISK_MIB} MiB",
                place.display()
            )));
        }
    }
    if version.is_some_and(|v| !klpfarm_vm::supported(v)) {
        eprintln!("klpfarm: warning: {qemu} is older than what klpfarm is tried with");
    }
    host::sweep(&std::env::temp_dir(), "klpfarm-");
    host::sweep(&home, ".scratch-");
    // Nobody may remove the image under running machines.
    let _held = planned.image.hold().map_err(Failure::farm)?;
    let scratch = scratch(&home)?;
    let bench = bench(&planned, &dir, scratch.path())?;
    let mut journal = Run::create(&dir, &planned.plan).map_err(Failure::input)?;
    let view = if std::io::stderr().is_terminal() { View::Live } else { View::Plain };
    eprintln!("klpfarm: accelerator: {}", planned.accel_because);
    eprintln!("klpfarm: run folder: {}", dir.display());
    let mut terminal = Terminal::new(view, &planned.plan);
    let mut sink = |event: &Event| {
        // The journal first: nothing is shown or done that is not kept.
        journal.append(event)?;
        terminal.event(event);
        Ok(())
    };
    let cancel = CancellationToken::new();
    let time = jiff::Timestamp::now().to_string();
    let events = klpfarm_farm::run(&bench, time, qemu, &mut sink, cancel.clone());
    let Some(events) = interruptible(events, &cancel).await else {
        return Ok(code::INTERRUPTED);
    };
    let events =
        events.map_err(|e| Failure::farm(format!("{}: the journal can't be written: {e}", dir.display())))?;
    let verdict = judge(&planned.plan, &events);
    Run::conclude(&dir, &planned.plan, &events, &verdict).map_err(Failure::farm)?;
    if args.json {
        print_json(&verdict);
    } else {
        print(&format!("\n{}", summary(&verdict, &dir, std::io::stdout().is_terminal())));
    }
    Ok(if cancel.is_cancelled() { code::INTERRUPTED } else { verdict.exit_code() })
}

/// The first signal ends all machines in order; the second drops everything, which kills them. `None` after a second one.
async fn interruptible<T>(work: impl Future<Output = T>, cancel: &CancellationToken) -> Option<T> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        result = &mut work => return Some(result),
        () = interrupt::first() => {}
    }
    eprintln!("klpfarm: ending all machines; once more to kill them");
    cancel.cancel();
    tokio::select! {
        result = &mut work => Some(result),
        () = interrupt::first() => None,
    }
}

fn bench(planned: &Planned, dir: &Path, scratch: &Path) -> Result<Bench, Failure> {
    let image = &planned.image;
    let plan = &planned.plan;
    let ssh = image.ssh();
    let login = Login::new(&ssh.user, &ssh.key, ssh.host_key.as_deref()).map_err(Failure::farm)?;
    let (disk, format) = image.disk();
    let spec = Spec {
        disk,
        disk_format: format.as_str().to_owned(),
        kernel: image.kernel(),
        initrd: image.initrd(),
        cmdline: image.cmdline().to_owned(),
        seed: image.seed(),
        cpus: plan.pipeline.machine.cpus,
        memory_mib: plan.pipeline.machine.memory_mib,
        accel: plan.accel,
        origin: klpfarm_vm::Origin::Boot,
    };
    Ok(Bench {
        plan: Arc::new(plan.clone()),
        spec,
        login,
        patch: Arc::new(planned.patch.clone()),
        run_dir: dir.to_owned(),
        scratch: scratch.to_owned(),
    })
}

/// QEMU's temporary files: on the same disk as everything else, not on a small `/tmp`.
fn scratch(home: &Path) -> Result<tempfile::TempDir, Failure> {
    std::fs::create_dir_all(home).map_err(|e| Failure::farm(format!("{}: {e}", home.display())))?;
    tempfile::Builder::new()
        .prefix(&format!(".scratch-{}-", std::process::id()))
        .tempdir_in(home)
        .map_err(|e| Failure::farm(format!("{}: {e}", home.display())))
}

/// A folder named by time and patch that is not there yet.
fn fresh_dir(runs: &Path, patch: &str) -> PathBuf {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let names =
        std::iter::once(format!("{stamp}-{patch}")).chain((2..).map(|n| format!("{stamp}-{patch}-{n}")));
    names.map(|name| runs.join(name)).find(|dir| !dir.exists()).unwrap_or_else(|| runs.join(stamp))
}
