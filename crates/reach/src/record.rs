//! What is kept of a map: a file for the kernel's functions and one for each workload. A line of JSON with what it is of, then one line for
//! each function, sorted and compressed: small, and quickly searched for a few names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::attribute::Calls;
use crate::symbols::{Entry, Function, Symbols};

/// Version of the files; those of another version are made anew.
pub const SCHEMA: u32 = 1;

/// Stands for the workload of the machine that runs none.
pub const BACKGROUND: &str = "background";

/// Largest file once it is unpacked, in bytes: some ten times what a distribution's kernel makes.
const MOST: u64 = 256 << 20;

/// Why a file can't be used; its maker makes it again.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is no file of this kind, or was cut short.
    #[error("not a file of a reach map: {0}")]
    Damaged(String),
    /// Another klpfarm wrote it.
    #[error("written in format {found}, this klpfarm reads {SCHEMA}")]
    Version {
        /// Its version.
        found: u32,
    },
}

/// What became of a workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It ran and was measured.
    Measured {
        /// Length of the window in which calls were counted, in milliseconds of the guest.
        window_ms: u64,
        /// From the order to start until the first progress, in milliseconds of the guest.
        setup_ms: u64,
        /// CPUs it kept busy on average (all that ran in the guest): 0 to the machine's number.
        cpus: f64,
        /// What it took of the memory that was available before, at most, in MiB.
        memory_mib: u64,
    },
    /// The guest can't run it, and why.
    Unavailable(String),
}

/// What one workload calls on one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its name, or [`BACKGROUND`].
    pub workload: String,
    /// `plugin` or `tracer`.
    pub method: String,
    /// Virtual CPUs of the machine.
    pub machine_cpus: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// Functions that were called, and all functions of modules that only it loads.
    pub functions: BTreeMap<Function, (Entry, Calls)>,
    /// Modules that only it loads.
    pub modules: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct RecordHead {
    schema: u32,
    workload: String,
    method: String,
    machine_cpus: u32,
    outcome: Outcome,
    modules: BTreeSet<String>,
    functions: usize,
}

/// All functions of an idle kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Whether each can be traced.
    pub functions: BTreeMap<Function, Entry>,
    /// Modules that are loaded.
    pub modules: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct KernelHead {
    schema: u32,
    release: String,
    modules: BTreeSet<String>,
    functions: usize,
}

impl Record {
    /// Calls a second of a function; `None` if the workload was not measured.
    pub fn rate(&self, function: &Function) -> Option<f64> {
        let Outcome::Measured { window_ms, .. } = self.outcome else { return None };
        let calls = self.functions.get(function).map_or(0, |(_, calls)| calls.window);
        Some(calls as f64 * 1000.0 / window_ms.max(1) as f64)
    }

    /// As a file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = RecordHead {
            schema: SCHEMA,
            workload: self.workload.clone(),
            method: self.method.clone(),
            machine_cpus: self.machine_cpus,
            outcome: self.outcome.clone(),
            modules: self.modules.clone(),
            functions: self.functions.len(),
        };
        let line = |(f, (entry, calls)): (&Function, &(Entry, Calls))| {
            let Function { name, object, position } = f;
            format!("{name}\t{object}\t{position}\t{}\t{}\t{}\n", entry.letter(), calls.setup, calls.window)
        };
        pack(&head, self.functions.iter().map(line))
    }

    /// Read a file. With `wanted`, only the functions of these names are kept, and those that the compiler made of them
    /// (`NAME.isra.0`).
    ///
    /// # Errors
    /// If it was not written by [`Record::to_bytes`] of this version.
    pub fn of_bytes(bytes: &[u8], wanted: Option<&[&str]>) -> Result<Self, RecordError> {
        let (head, text): (RecordHead, String) = unpack(bytes)?;
        let mut functions = BTreeMap::new();
        for line in lines(&text, head.functions)? {
            let [name, object, position, entry, setup, window] = fields(line)?;
            if !is_wanted(name, wanted) {
                continue;
            }
            let calls = Calls { setup: number(setup)?, window: number(window)? };
            functions.insert(function(name, object, position)?, (Entry::of_letter(entry), calls));
        }
        let RecordHead { workload, method, machine_cpus, outcome, modules, .. } = head;
        Ok(Self { workload, method, machine_cpus, outcome, functions, modules })
    }
}

impl Kernel {
    /// Those of an idle machine.
    pub fn of(release: &str, symbols: &Symbols) -> Self {
        let functions = symbols.functions().into_iter().map(|(f, e)| (f.clone(), e)).collect();
        let modules = symbols.modules().into_iter().map(str::to_owned).collect();
        Self { release: release.to_owned(), functions, modules }
    }

    /// As a file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = KernelHead {
            schema: SCHEMA,
            release: self.release.clone(),
            modules: self.modules.clone(),
            functions: self.functions.len(),
        };
        let line = |(f, entry): (&Function, &Entry)| {
            format!("{}\t{}\t{}\t{}\n", f.name, f.object, f.position, entry.letter())
        };
        pack(&head, self.functions.iter().map(line))
    }

    /// Read a file. With `wanted`, only the functions of these names are kept, and those that the compiler made of them
    /// (`NAME.isra.0`).
    ///
    /// # Errors
    /// If it was not written by [`Kernel::to_bytes`] of this version.
    pub fn of_bytes(bytes: &[u8], wanted: Option<&[&str]>) -> Result<Self, RecordError> {
        let (head, text): (KernelHead, String) = unpack(bytes)?;
        let mut functions = BTreeMap::new();
        for line in lines(&text, head.functions)? {
            let [name, object, position, entry] = fields(line)?;
            if is_wanted(name, wanted) {
                functions.insert(function(name, object, position)?, Entry::of_letter(entry));
            }
        }
        Ok(Self { release: head.release, functions, modules: head.modules })
    }
}

fn is_wanted(name: &str, wanted: Option<&[&str]>) -> bool {
    wanted.is_none_or(|names| names.contains(&name) || names.contains(&crate::ask::stem(name)))
}

fn pack(head: &impl Serialize, lines: impl Iterator<Item = String>) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    let head = serde_json::to_string(head).unwrap_or_default();
    // Writing to memory does not fail.
    let _ = gz.write_all(format!("{head}\n").as_bytes());
    for line in lines {
        let _ = gz.write_all(line.as_bytes());
    }
    gz.finish().unwrap_or_default()
}

fn unpack<H: DeserializeOwned>(bytes: &[u8]) -> Result<(H, String), RecordError> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let damaged = |e: &dyn std::fmt::Display| RecordError::Damaged(e.to_string());
    let mut text = String::new();
    GzDecoder::new(bytes).take(MOST).read_to_string(&mut text).map_err(|e| damaged(&e))?;
    let (head, rest) = text.split_once('\n').ok_or_else(|| damaged(&"it is empty"))?;
    let Version { schema } = serde_json::from_str(head).map_err(|e| damaged(&e))?;
    if schema != SCHEMA {
        return Err(RecordError::Version { found: schema });
    }
    let head = serde_json::from_str(head).map_err(|e| damaged(&e))?;
    Ok((head, rest.to_owned()))
}

fn lines(text: &str, number: usize) -> Result<impl Iterator<Item = &str>, RecordError> {
    let found = text.lines().count();
    if found == number {
        Ok(text.lines())
    } else {
        Err(RecordError::Damaged(format!("{found} lines of {number}")))
    }
}

fn fields<const N: usize>(line: &str) -> Result<[&str; N], RecordError> {
    let all: Vec<&str> = line.split('\t').collect();
    all.try_into().map_err(|_| RecordError::Damaged(format!("line `{line}`")))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, RecordError> {
    text.parse().map_err(|_| RecordError::Damaged(format!("number `{text}`")))
}

fn function(name: &str, object: &str, position: &str) -> Result<Function, RecordError> {
    Ok(Function { name: name.to_owned(), object: object.to_owned(), position: number(position)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let f = |name: &str, object: &str| Function { name: name.into(), object: object.into(), position: 1 };
        Record {
            workload: "w".into(),
            method: "plugin".into(),
            machine_cpus: 2,
            outcome: Outcome::Measured { window_ms: 2000, setup_ms: 100, cpus: 1.5, memory_mib: 20 },
            functions: [
                (f("a", "vmlinux"), (Entry::Traceable, Calls { setup: 1, window: 30 })),
                (f("b", "m"), (Entry::None, Calls::default())),
            ]
            .into(),
            modules: ["m".to_owned()].into(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record();
        let bytes = record.to_bytes();
        assert_eq!(Record::of_bytes(&bytes, None).unwrap(), record);
        let only = Record::of_bytes(&bytes, Some(&["a"])).unwrap();
        let (a, calls) = only.functions.first_key_value().unwrap();
        assert_eq!((only.functions.len(), calls.1.window), (1, 30));
        assert_eq!(only.rate(a), Some(15.0));
        let other = Function { name: "z".into(), ..a.clone() };
        assert_eq!(only.rate(&other), Some(0.0));
        let none = Record { outcome: Outcome::Unavailable("no".into()), ..record };
        assert_eq!(none.rate(&other), None);
    }

    #[test]
    fn what_is_cut_short_or_foreign_is_refused() {
        let bytes = record().to_bytes();
        assert!(Record::of_bytes(&bytes[..bytes.len() / 2], None).is_err());
        assert!(Record::of_bytes(b"x", None).is_err());
        assert!(Kernel::of_bytes(&bytes, None).is_err());
        let old = pack(&serde_json::json!({"schema": 0}), std::iter::empty());
        assert!(matches!(Record::of_bytes(&old, None), Err(RecordError::Version { found: 0 })));
        let fewer = pack(
            &serde_json::json!({"schema": SCHEMA, "release": "x", "modules": [], "functions": 2}),
            std::iter::empty(),
        );
        assert!(matches!(Kernel::of_bytes(&fewer, None), Err(RecordError::Damaged(_))));
    }

    #[test]
    fn a_kernel_is_read_as_it_was_written() {
        let symbols = Symbols::parse("ffffffff81000000 t a\nffffffff81000010 t a\n", Some("a\n"));
        let kernel = Kernel::of("6.1.0", &symbols);
        assert_eq!(Kernel::of_bytes(&kernel.to_bytes(), None).unwrap(), kernel);
        assert_eq!(kernel.functions.len(), 2);
    }
}
