//! `klpfarm run`: plan, execute, judge, report.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use klpfarm_attest::PrivateKey;
use klpfarm_engine::plan::plan;
use klpfarm_engine::run::{self, Site, execute, limits, run_dir};
use klpfarm_engine::{Interrupts, home, sign, signing};
use klpfarm_model::{Event, Plan};
use klpfarm_report::summary;

use super::plan::ChoiceArgs;
use crate::console::{Console, say};
use crate::failure::{Failure, code, print_as_it_is, print_json};
use crate::interrupt;
use crate::limits::LimitArgs;

/// Test a livepatch and decide whether it qualifies for a tier.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Run folder to create; it must be empty or not exist [default: a new one in KLPFARM_HOME/runs].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What is said to a run whether it begins or goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Sign the verdict with this private key and write the signature to verdict.dsse.json.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Print only the verdict, as JSON, on standard output.
    #[arg(long)]
    json: bool,
}

impl Common {
    /// How the verdict is to be told; before anything else, for a key that can't be read must not cost a night.
    pub(crate) fn telling(&self) -> Result<Telling, Failure> {
        let key = self.sign.as_deref().map(signing::private_key).transpose()?;
        Ok(Telling { json: self.json, key })
    }
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    let telling = args.common.telling()?;
    let planned = plan(&args.choice.into()).await?;
    let home = home()?;
    let name = match planned.plan.rotation() {
        Some(_) => &planned.plan.pipeline.name,
        None => &planned.plan.patches[0].name,
    };
    let dir = run_dir(args.out.as_deref(), &home, name)?;
    limits(&planned).iter().for_each(say);
    let interrupts = interrupt::listen();
    let site = Site { home: &home, dir: &dir, limits: args.common.limits.into() };
    let events = execute(&planned, site, &interrupts, &mut Console::default()).await?;
    conclude(&planned.plan, events, &dir, &telling, &interrupts)
}

/// How a verdict is told.
pub(crate) struct Telling {
    /// As JSON on standard output, and nothing else.
    pub(crate) json: bool,
    /// Signed with this key.
    pub(crate) key: Option<PrivateKey>,
}

/// Judge and report; the exit code.
pub(crate) fn conclude(
    plan: &Plan,
    events: Option<Vec<Event>>,
    dir: &Path,
    telling: &Telling,
    interrupts: &Interrupts,
) -> Result<u8, Failure> {
    let Some(events) = events else { return Ok(code::INTERRUPTED) };
    let verdict = run::conclude(dir, plan, &events)?;
    if telling.json {
        print_json(&verdict);
    } else {
        print_as_it_is(&format!("\n{}", summary(&verdict, dir, std::io::stdout().is_terminal())));
    }
    // After printing: whatever becomes of the signature, the verdict has been said.
    if let Some(key) = &telling.key {
        tell!("klpfarm: signed: {}", sign::sign_anew(dir, key)?.display());
    }
    if interrupts.first.is_cancelled() {
        tell!("klpfarm: to continue: klpfarm resume {}", dir.display());
        return Ok(code::INTERRUPTED);
    }
    Ok(verdict.exit_code())
}
