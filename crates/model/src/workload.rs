//! Workload descriptors: `workloads/*.yaml`.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::yaml::{self, YamlError};

/// Stress inside the guest: what runs and what the image must have for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name in pipelines, events and findings.
    pub name: String,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// What runs.
    pub run: Run,
    /// What it reaches: areas of the kernel and names of modules, for people who look for a workload for their patch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub covers: Vec<String>,
    /// Packages of the guest's distribution that must be in the image (recipes list what they have).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// A stressor of the guest binary, a program of the guest, or a shell script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// A stressor of the guest binary, for example `madvise-allocator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<String>,
    /// Its parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, Scalar>,
    /// A program of the guest and its arguments, run without a shell until the trial ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// A script for the guest's `/bin/sh`, which says when it is ready and what it has done (see docs/workloads.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
}

/// A parameter's value, kept as it was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scalar {
    /// A number without a fraction.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// A number with a fraction.
    Float(f64),
    /// Anything else.
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(v) => v.fmt(f),
            Self::Bool(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Text(v) => v.fmt(f),
        }
    }
}

impl Workload {
    /// Read a descriptor from `text`, the content of `file`.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, YamlError> {
        let workload: Self = yaml::parse(file, text)?;
        let problem = |field: &str, message: String| {
            // Within braces on one line, only what holds the field has a line of its own.
            let path: Vec<&str> = field.split('.').collect();
            let line = (1..=path.len()).rev().find_map(|n| yaml::line_of(text, &path[..n]));
            YamlError {
                file: file.to_owned(),
                at: line.map(|line| (line, 1)),
                field: field.to_owned(),
                message,
            }
        };
        if !is_name(&workload.name) {
            let message =
                format!("`{}` is not a valid name: use lower-case letters, digits and dashes", workload.name);
            return Err(problem("name", message));
        }
        if workload.name == crate::AGING {
            let message = "`aging` is reserved for klpfarm's own workload; choose another name (to change it, see `aging:` of pipelines)";
            return Err(problem("name", message.into()));
        }
        if workload.name == crate::AUTO {
            let message = "`auto` is reserved: in a pipeline it stands for the workloads that the patched functions need";
            return Err(problem("name", message.into()));
        }
        let run = &workload.run;
        if [run.builtin.is_some(), run.command.is_some(), run.script.is_some()].iter().filter(|x| **x).count()
            != 1
        {
            return Err(problem(
                "run",
                "needs exactly one of `builtin: NAME`, `command: [PROGRAM, ...]` and `script: TEXT`".into(),
            ));
        }
        if run.builtin.is_none() && !run.args.is_empty() {
            return Err(problem(
                "run.args",
                "belongs to `builtin`; a command's arguments stand in `command`".into(),
            ));
        }
        if run.command.as_ref().is_some_and(|argv| argv.iter().all(String::is_empty)) {
            return Err(problem(
                "run.command",
                "is empty; give a program of the guest and its arguments".into(),
            ));
        }
        if let Some(script) = &run.script
            && let Some(missing) = script_problem(script)
        {
            return Err(problem("run.script", missing));
        }
        Ok(workload)
    }
}

/// What a script lacks to be run, if anything. One that never says that it is ready would be waited for in vain.
fn script_problem(script: &str) -> Option<String> {
    if script.len() > MAX_SCRIPT {
        return Some(format!(
            "is longer than {} KiB; put a program into the image and run it as `command`",
            MAX_SCRIPT >> 10
        ));
    }
    if !script.contains("klpfarm: ready") {
        return Some("never prints `klpfarm: ready`; print that line when the preparations are done".into());
    }
    if !script.contains("klpfarm: ops") {
        return Some(
            "never prints `klpfarm: ops N`; print such a line whenever N operations are done".into(),
        );
    }
    None
}

/// Longest script, in bytes: it travels to the guest in one line of the probe's protocol.
const MAX_SCRIPT: usize = 64 << 10;

/// Names of pipelines, workloads and images: they become file names and XML.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Workload, String> {
        Workload::parse(Path::new("w.yaml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_builtin_and_a_command() {
        let w = parse("name: a\nrun:\n  builtin: x\n  args: {processes: 3, map: 8M, thp: true}\n").unwrap();
        let args: Vec<String> = w.run.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(args, ["map=8M", "processes=3", "thp=true"]);
        assert!(parse("name: a\nrun: {command: [stress-ng, --vm, '2']}\npackages: [stress-ng]\n").is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("name: a b\nrun: {builtin: x}\n", "w.yaml:1:1: name: `a b` is not a valid name"),
            ("name: aging\nrun: {builtin: aging}\n", "w.yaml:1:1: name: `aging` is reserved"),
            ("name: a\nrun: {}\n", "w.yaml:2:1: run: needs exactly one of `builtin"),
            ("name: a\nrun: {builtin: x, command: [y]}\n", "needs exactly one"),
            ("name: a\nrun: {script: x, args: {a: 1}}\n", "w.yaml:2:1: run.args: belongs to `builtin`"),
            (
                "name: a\nrun:\n  script: 'echo klpfarm: ops 1'\n",
                "w.yaml:3:1: run.script: never prints `klpfarm: ready`",
            ),
            ("name: a\nrun:\n  script: 'echo klpfarm: ready'\n", "run.script: never prints `klpfarm: ops N`"),
            ("name: a\nrun:\n  command: []\n", "w.yaml:3:1: run.command: is empty"),
            ("name: a\nrun: {builtin: x}\npackage: []\n", "w.yaml:3:1: package: unknown field"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }
}
