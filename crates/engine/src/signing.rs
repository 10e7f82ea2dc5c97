//! Files of signed verdicts: keys, the envelope beside a verdict, and the verdict of the tier below.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use klpfarm_attest::{Envelope, PrivateKey, PublicKey, Statement};
use klpfarm_model::plan::SCHEMA;
use klpfarm_model::{Tier, Tiers, Verdict};
use sha2::{Digest, Sha256};

use crate::{Error, Remedy, Result};

/// Longest key file, envelope and verdict that are read, in bytes: they may come from anywhere.
const KEY_LIMIT: u64 = 64 << 10;
const LIMIT: u64 = 64 << 20;

/// Where the signatures of a verdict are: `verdict.dsse.json` beside `verdict.json`.
pub fn envelope_of(verdict: &Path) -> PathBuf {
    verdict.with_extension("dsse.json")
}

/// Read a private key.
///
/// # Errors
/// If there is none, or if anybody else may read it.
pub fn private_key(file: &Path) -> Result<PrivateKey> {
    let wrong = |e: Error| e.about(format!("key {}", file.display()));
    let mut open = key_file(file).map_err(wrong)?;
    // Of the open file: what is looked at is what is read.
    let meta = open.metadata().map_err(|e| wrong(Error::input(e)))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(wrong(Error::input(format!(
            "readable or writable by others (mode {mode:03o}): run `chmod 600 {}`; if anybody may have read it, create a new key",
            file.display()
        ))));
    }
    let text = bounded(&mut open, KEY_LIMIT).map_err(wrong)?;
    PrivateKey::from_pem(&String::from_utf8_lossy(&text)).map_err(|e| wrong(Error::input(e)))
}

/// Read a public key.
///
/// # Errors
/// If there is none; the text says what is wrong with which file.
pub fn public_key(file: &Path) -> Result<PublicKey> {
    let wrong = |e: Error| e.about(format!("key {}", file.display()));
    let text = key_file(file).and_then(|mut f| bounded(&mut f, KEY_LIMIT)).map_err(wrong)?;
    PublicKey::from_pem(&String::from_utf8_lossy(&text)).map_err(|e| wrong(Error::input(e)))
}

fn key_file(file: &Path) -> Result<File> {
    open(file)?.ok_or_else(|| Error::input("does not exist").with(Remedy::NewKey))
}

/// Read all of a file; nothing if it is not there.
///
/// # Errors
/// If it is not a file, can't be read or is too long.
pub fn read(file: &Path) -> Result<Option<Vec<u8>>> {
    let wrong = |e: Error| e.about(file.display());
    let Some(mut open) = open(file).map_err(wrong)? else { return Ok(None) };
    bounded(&mut open, LIMIT).map(Some).map_err(wrong)
}

/// Open a file; nothing if it is not there. Anything but a plain file is refused first: opening a pipe would wait for ever.
fn open(file: &Path) -> Result<Option<File>> {
    match std::fs::metadata(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::input(e)),
        Ok(meta) if !meta.is_file() => Err(Error::input("not a file")),
        Ok(_) => File::open(file).map(Some).map_err(Error::input),
    }
}

fn bounded(file: &mut File, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::input)?;
    if bytes.len() as u64 > most { Err(Error::input(format!("longer than {most} bytes"))) } else { Ok(bytes) }
}

/// SHA-256, in hex, of a file of any length; nothing if it is not there.
///
/// # Errors
/// If it can't be read.
pub fn sha256_of(file: &Path) -> Result<Option<String>> {
    let wrong = |e: Error| e.about(file.display());
    let Some(mut open) = open(file).map_err(wrong)? else { return Ok(None) };
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match open.read(&mut buffer).map_err(|e| wrong(Error::input(e)))? {
            0 => return Ok(Some(klpfarm_model::hex(&hash.finalize()))),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The verdict of the tier below, and its file.
pub(crate) struct Prior {
    file: PathBuf,
    bytes: Vec<u8>,
    pub(crate) verdict: Verdict,
}

impl Prior {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let wrong = |e: String| Error::input(e).about(format!("prior verdict {}", file.display()));
        let bytes = read(file)?.ok_or_else(|| wrong("no such file".to_owned()))?;
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if value["schema"] != SCHEMA {
            return Err(wrong(format!("has schema {}; this klpfarm reads {SCHEMA}", value["schema"])));
        }
        let verdict =
            serde_json::from_value(value).map_err(|e| wrong(format!("not a valid verdict: {e}")))?;
        Ok(Self { file: file.to_owned(), bytes, verdict })
    }

    /// Whether it is signed as asked: by `each` key that is given, and by one of those that the tiers' file names.
    pub(crate) fn check_signed(&self, each: &[PathBuf], tiers: &Tiers, tier: Tier) -> Result<()> {
        let one_of = tiers.signers().find(|(of, _)| *of == tier).map(|(_, keys)| keys);
        if each.is_empty() && one_of.is_none() {
            return Ok(());
        }
        let wrong = |e: String| Error::input(format!("the prior verdict {}{e}", self.file.display()));
        let place = envelope_of(&self.file);
        let json = read(&place)?.ok_or_else(|| {
            wrong(format!(" must be signed, but {} does not exist", place.display())).with(Remedy::SignPrior)
        })?;
        let envelope = Envelope::parse(&json).map_err(|e| Error::input(e).about(place.display()))?;
        let signed = |file: &PathBuf| -> Result<bool> {
            let key = public_key(file)?;
            Ok(envelope.is_signed_by(&key).unwrap_or(false))
        };
        for file in each {
            if !signed(file)? {
                return Err(
                    wrong(format!(" has no valid signature of {}", file.display())).with(Remedy::SignPrior)
                );
            }
        }
        if let Some(keys) = one_of {
            let good: Vec<bool> = keys.iter().map(signed).collect::<Result<_, _>>()?;
            if !good.contains(&true) {
                let names: Vec<String> = keys.iter().map(|k| k.display().to_string()).collect();
                return Err(wrong(format!(
                    " has no valid signature of any key that {} names for {tier} (signed_by: {})",
                    tiers.file().display(),
                    names.join(", ")
                ))
                .with(Remedy::SignPrior));
            }
        }
        let statement = envelope.unverified().map_err(|e| e.to_string()).and_then(|payload| {
            Statement::parse(&envelope.payload_type, &payload).map_err(|e| e.to_string())
        });
        statement
            .and_then(|s| s.about(&self.bytes).map(drop).map_err(|e| e.to_string()))
            .map_err(|e| wrong(format!(" is not what was signed in {}: {e}", place.display())))
    }
}
