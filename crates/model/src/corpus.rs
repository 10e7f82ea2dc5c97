//! The example patches and what the farm is expected to say of them: `examples/corpus.yaml`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::yaml::{self, YamlError};
use crate::{FindingKind, Outcome, version};

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
    /// Kernels on which something else is expected: the first that fits counts instead of `caught_by` and `outcome`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Elsewhere>,
}

/// What is expected of an example on some kernels: those for which all conditions that are given hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// Kernels older than this version and patch level (`4.9`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Kernels that were built without this option (`CONFIG_DEBUG_LIST`), as far as their configuration is at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<String>,
    /// As [`Example::caught_by`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caught_by: Vec<FindingKind>,
    /// As [`Example::outcome`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Elsewhere {
    fn fits(&self, release: &str, lacks: &dyn Fn(&str) -> bool) -> bool {
        let older = |limit: &String| match (version(release), version(limit)) {
            (Some(release), Some(limit)) => release < limit,
            _ => false,
        };
        self.before.as_ref().is_none_or(older) && self.without.as_ref().is_none_or(|option| lacks(option))
    }

    /// What is wrong with it, by field.
    fn problem(&self) -> Option<(&'static str, String)> {
        if let Some(limit) = self.before.as_ref().filter(|limit| version(limit).is_none()) {
            return Some(("before", format!("`{limit}` is not a kernel version such as `4.9`")));
        }
        if let Some(option) = self.without.as_ref().filter(|option| !option.starts_with("CONFIG_")) {
            return Some(("without", format!("`{option}` is not an option such as `CONFIG_DEBUG_LIST`")));
        }
        (self.before.is_none() && self.without.is_none())
            .then(|| ("elsewhere", "it names no kernels: give `before`, `without` or both".to_owned()))
    }
}

/// What is caught is rejected.
fn contradicts(caught_by: &[FindingKind], outcome: Option<Outcome>) -> bool {
    !caught_by.is_empty() && outcome.is_some_and(|o| o != Outcome::Rejected)
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
            for elsewhere in &example.elsewhere {
                if let Some((field, message)) = elsewhere.problem() {
                    wrong(field, message);
                }
            }
            let mut all = example.elsewhere.iter().map(|e| (&e.caught_by, e.outcome));
            if contradicts(&example.caught_by, example.outcome) || all.any(|(c, o)| contradicts(c, o)) {
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

    /// The example as it is expected on the kernel of this release; `lacks` tells whether that was built without an option.
    #[must_use]
    pub fn on(mut self, release: &str, lacks: &dyn Fn(&str) -> bool) -> Self {
        if let Some(elsewhere) = self.elsewhere.iter().find(|e| e.fits(release, lacks)) {
            (self.caught_by, self.outcome) = (elsewhere.caught_by.clone(), elsewhere.outcome);
        }
        self.elsewhere.clear();
        self
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
    use crate::ObservedKind;

    #[test]
    fn what_is_expected_follows_from_what_catches_it() {
        let text = "examples:\n- {patch: faulty/a, class: hang, caught_by: [thread-stalled], kernels: [\"6.1\"]}\n- {patch: good/b, class: good}\n- {patch: faulty/c, class: coverage, outcome: inconclusive}\n";
        let all = Corpus::parse(Path::new("corpus.yaml"), text).unwrap().examples;
        let expected: Vec<Outcome> = all.iter().map(Example::expected).collect();
        assert_eq!(expected, [Outcome::Rejected, Outcome::Qualified, Outcome::Inconclusive]);
        assert_eq!((all[0].name(), &all[0].caught_by[..]), ("a", &[ObservedKind::ThreadStalled.into()][..]));
        assert!(all[0].fits("6.1.0-50-cloud-amd64") && all[0].fits("6.1") && all[1].fits("4.4.0"));
        assert!(!all[0].fits("6.12.9"));
    }

    #[test]
    fn some_kernels_show_a_fault_in_another_way() {
        let text = "examples:\n- patch: faulty/a\n  class: x\n  caught_by: [stack-overflow]\n  elsewhere:\n  - {before: \"4.9\", without: CONFIG_B, outcome: inconclusive}\n  - {before: \"4.9\", caught_by: [panic]}\n  - {without: CONFIG_A, caught_by: [oops]}\n";
        let example = &Corpus::parse(Path::new("corpus.yaml"), text).unwrap().examples[0];
        let on = |release: &str, lacks: &str| {
            let example = example.clone().on(release, &|option| option == lacks);
            let kinds: Vec<String> = example.caught_by.iter().map(ToString::to_string).collect();
            (example.expected(), kinds.concat())
        };
        let rejected = |kind: &str| (Outcome::Rejected, kind.to_owned());
        assert_eq!(on("6.1.0-50-cloud-amd64", ""), rejected("stack-overflow"));
        assert_eq!(on("4.9.0-1", ""), rejected("stack-overflow"), "4.9 is not before 4.9");
        assert_eq!(on("4.4.220-mine", ""), rejected("panic"));
        assert_eq!(on("4.4.220-mine", "CONFIG_B"), (Outcome::Inconclusive, String::new()));
        assert_eq!(on("4.10.0", "CONFIG_A"), rejected("oops"), "4.10 is not before 4.9");
        assert_eq!(on("", ""), rejected("stack-overflow"), "nothing is known of the kernel");
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
        let odd = parse(
            "examples:\n- {patch: one, class: x, elsewhere: [{before: old}, {without: DEBUG_LIST}, {caught_by: [oops]}]}\n- {patch: two, class: x, elsewhere: [{before: \"4.9\", caught_by: [oops], outcome: qualified}]}\n",
        );
        for wanted in [
            "c.yaml:2:1: examples: before: `old` is not a kernel version",
            "without: `DEBUG_LIST` is not an option",
            "elsewhere: it names no kernels",
            "c.yaml:3:1: examples: outcome: `caught_by` implies a rejection",
        ] {
            assert!(odd.contains(wanted), "{odd}\nlacks {wanted}");
        }
        assert!(
            twice.contains("c.yaml:3:1: examples: patch: there are two examples named `a`")
                && twice.contains("`../b` is not a folder"),
            "{twice}"
        );
    }
}
