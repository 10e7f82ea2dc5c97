//! `klpfarm module`.

use std::path::PathBuf;

use klpfarm_engine::image::{find, module};

use crate::failure::{Failure, print};

/// Build kernel modules.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Build a kernel module from C source for the kernel of an image, with that image's own compiler.
    Build {
        /// Source: a folder with a Makefile or Kbuild, or a single C file.
        source: PathBuf,
        /// Image: a name, an id or a recipe file.
        #[arg(long, default_value = klpfarm_image::DEFAULT)]
        image: String,
        /// Folder to put the module in.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
}

pub(crate) async fn run(command: Command) -> Result<u8, Failure> {
    let Command::Build { source, image, out } = command;
    let module = module(&find(&image)?, &source, &out).await?;
    print(&format!("{}\n", module.display()));
    Ok(0)
}
