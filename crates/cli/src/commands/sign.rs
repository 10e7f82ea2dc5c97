//! `klpfarm sign`.

use std::path::PathBuf;

use klpfarm_engine::sign::countersign;
use klpfarm_engine::signing::private_key;

use crate::failure::{Failure, print};

/// Sign the verdict of a finished run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run folder.
    run: PathBuf,
    /// Private key: ed25519, PKCS#8 in PEM (`klpfarm key new`).
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let key = private_key(&args.key)?;
    let place = countersign(&args.run, &key)?;
    print(&format!("{}\nsigned by {}\n", place.display(), key.public().id()));
    Ok(0)
}
