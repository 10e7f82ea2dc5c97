//! The example patches and what the farm is expected to say of them: `examples/corpus.yaml`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::yaml::{self, YamlError};
use crate::{FindingKind, Outcome};

/// All example patches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    /// In the order in which they are tried.
    pub examples: Vec<Example>,
}

/// One example patch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Its folder, below that of the corpus file.
    pub patch: String,
    /// The way in which it is faulty, or `good`.
    pub class: String,
    /// The finding kinds that may name what is wrong; none for a good patch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caught_by: Vec<FindingKind>,
    /// What the verdict must be, where `caught_by` does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Kernels that it can be built for, as the start of a release (`6.1`); empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
}

impl Corpus {
    /// Read the corpus from `text`, the content of `file`.
    ///
    /// # Errors
    /// The first syntax or type error, or else every wrong value, each with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<YamlError>> {
        let corpus: Self = yaml::parse(file, text).map_err(|e| vec![e])?;
        let problems: Vec<YamlError> = corpus
            .problems()
            .into_iter()
            .map(|(example, field, message)| {
                // The name stands on a line of its own example: the last one, where two have the same.
                let line = text.lines().enumerate().filter(|(_, l)| l.contains(&example.patch)).last();
                let at = line.map(|(n, _)| (n + 1, 1));
                YamlError { file: file.to_owned(), at, field: format!("examples: {field}"), message }
            })
            .collect();
        if problems.is_empty() { Ok(corpus) } else { Err(problems) }
    }

    fn problems(&self) -> Vec<(&Example, &'static str, String)> {
        let mut found = Vec::new();
        for (n, example) in self.examples.iter().enumerate() {
            let mut wrong = |field, message| found.push((example, field, message));
            let plain = example.patch.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if !plain {
                wrong("patch", format!("`{}` is not a folder next to this file", example.patch));
            }
            if self.examples[..n].iter().any(|e| e.name() == example.name()) {
                wrong("patch", format!("there are two examples named `{}`", example.name()));
            }
            if !example.caught_by.is_empty() && example.outcome.is_some_and(|o| o != Outcome::Rejected) {
                wrong("outcome", "`caught_by` implies a rejection: remove `outcome` or `caught_by`".into());
            }
        }
        found
    }
}

impl Example {
    /// The last part of its folder's name.
    pub fn name(&self) -> &str {
        self.patch.rsplit('/').next().unwrap_or_default()
    }

    /// What the verdict must be.
    pub fn expected(&self) -> Outcome {
        match self.outcome {
            Some(outcome) => outcome,
            None if self.caught_by.is_empty() => Outcome::Qualified,
            None => Outcome::Rejected,
        }
    }

    /// Whether it can be built for the kernel of this release.
    pub fn fits(&self, release: &str) -> bool {
        let same = |kernel: &String| {
            release
                .strip_prefix(kernel.as_str())
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        self.kernels.is_empty() || self.kernels.iter().any(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FarmKind;

    #[test]
    fn what_is_expected_follows_from_what_catches_it() {
        let text = "examples:\n- {patch: faulty/a, class: hang, caught_by: [thread-stalled], kernels: [\"6.1\"]}\n- {patch: good/b, class: good}\n- {patch: faulty/c, class: coverage, outcome: inconclusive}\n";
        let all = Corpus::parse(Path::new("corpus.yaml"), text).unwrap().examples;
        let expected: Vec<Outcome> = all.iter().map(Example::expected).collect();
        assert_eq!(expected, [Outcome::Rejected, Outcome::Qualified, Outcome::Inconclusive]);
        assert_eq!((all[0].name(), &all[0].caught_by[..]), ("a", &[FarmKind::ThreadStalled.into()][..]));
        assert!(all[0].fits("6.1.0-50-cloud-amd64") && all[0].fits("6.1") && all[1].fits("4.4.0"));
        assert!(!all[0].fits("6.12.9"));
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        let parse = |text: &str| {
            let errors = Corpus::parse(Path::new("c.yaml"), text).unwrap_err();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let unknown = parse("examples:\n- patch: a\n  class: x\n  caught_by: [bad-mood]\n");
        assert!(unknown.starts_with("c.yaml:4:"), "{unknown}");
        let twice = parse(
            "examples:\n- {patch: a, class: x}\n- {patch: good/a, class: x}\n- {patch: ../b, class: x}\n",
        );
        assert!(
            twice.contains("c.yaml:3:1: examples: patch: there are two examples named `a`")
                && twice.contains("`../b` is not a folder"),
            "{twice}"
        );
    }
}
