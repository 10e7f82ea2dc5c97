//! `klpfarm key`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use klpfarm_attest::PrivateKey;

use crate::failure::{Failure, print};

/// Create keys to sign verdicts with.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create an ed25519 key pair: FILE (private, PKCS#8, readable by you only) and FILE.pub (public, SPKI), both in PEM.
    New {
        /// File for the private key; neither it nor FILE.pub may exist.
        file: PathBuf,
    },
}

pub(crate) fn run(command: &Command) -> Result<u8, Failure> {
    let Command::New { file } = command;
    let public_file = beside(file);
    for path in [file, &public_file] {
        if path.symlink_metadata().is_ok() {
            return Err(Failure::input(format!(
                "{}: exists already and is not overwritten, because a lost key cannot be recovered; choose another file",
                path.display()
            )));
        }
    }
    let key = PrivateKey::random().map_err(Failure::farm)?;
    let public = key.public();
    create(&public_file, 0o644, &public.to_pem().map_err(Failure::farm)?)?;
    if let Err(failure) = key.to_pem().map_err(Failure::farm).and_then(|pem| create(file, 0o600, &pem)) {
        // A public key without its private one is of no use and in the way of the next try.
        let _ = std::fs::remove_file(&public_file);
        return Err(failure);
    }
    print(&format!(
        "private  {}\npublic   {}\nid       {}\n",
        file.display(),
        public_file.display(),
        public.id()
    ));
    Ok(0)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".pub");
    name.into()
}

/// Write a file that must not be there, with these rights from the start.
fn create(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Failure::input(format!("{}: {e}", path.display())))
}
