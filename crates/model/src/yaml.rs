//! YAML files of all kinds, read by one door: every error names file, line, column and field.
//!
//! serde_yaml is archived but sound (no advisory); it is named in this module only, so that it can be exchanged.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// What is wrong with a YAML file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct YamlError {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1, where the parser could tell.
    pub at: Option<(usize, usize)>,
    /// The field, for example `arms.loaded`; empty for the whole document.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for YamlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Parse `text`, the content of `file`, into `T`. Structures should `deny_unknown_fields`.
///
/// # Errors
/// The first syntax error, unknown field or wrong type, with its place.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, YamlError> {
    let result: Result<T, _> = serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text));
    result.map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let at = inner.location().map(|l| (l.line(), l.column()));
        let field = if path == "." { String::new() } else { path };
        YamlError { file: file.to_owned(), at, message: clean(&inner.to_string(), &field), field }
    })
}

/// Wrong values found after parsing, as (field, message), each with the place of its field in `text`, the content of `file`.
pub(crate) fn place(file: &Path, text: &str, problems: Vec<(String, String)>) -> Vec<YamlError> {
    let place = |(field, message): (String, String)| {
        let keys: Vec<&str> = field.split('.').collect();
        let at = line_of(text, &keys).map(|line| (line, 1));
        YamlError { file: file.to_owned(), at, field, message }
    };
    problems.into_iter().map(place).collect()
}

/// serde_yaml repeats the path and the position in its text; both have a place of their own here.
fn clean(message: &str, field: &str) -> String {
    let message = match message.split_once(": ") {
        Some((path, rest)) if field.starts_with(path) => rest,
        _ => message,
    };
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message.to_owned(),
    }
}

/// Line (from 1) of the first place where `key:` stands in `text` below the keys in `path`, for problems found only after
/// parsing. A best effort: `None` when flow style or quoting hides it.
pub fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let mut depth = 0;
    let mut least_indent = 0;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start().trim_start_matches("- ");
        let indent = line.len() - trimmed.len();
        if depth > 0 && indent < least_indent && !trimmed.is_empty() && !trimmed.starts_with('#') {
            return None;
        }
        if trimmed.strip_prefix(path[depth]).is_some_and(|rest| rest.trim_start().starts_with(':')) {
            depth += 1;
            least_indent = indent + 1;
            if depth == path.len() {
                return Some(number + 1);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        name: String,
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        count: u32,
    }

    fn error(text: &str) -> String {
        parse::<Outer>(Path::new("p.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let wrong_type = error("name: a\ninner:\n  count: many\n");
        assert!(wrong_type.starts_with("p.yaml:3:10: inner.count: invalid type"), "{wrong_type}");
        let unknown = error("name: a\ninner:\n  count: 1\n  cuont: 2\n");
        assert!(unknown.starts_with("p.yaml:4:3: inner.cuont: unknown field `cuont`"), "{unknown}");
        let missing = error("name: a\n");
        assert!(missing.contains("missing field `inner`"), "{missing}");
        let syntax = error("name: [a\n");
        assert!(syntax.starts_with("p.yaml:"), "{syntax}");
    }

    #[test]
    fn lines_of_nested_keys() {
        let text = "name: a\narms:\n  loaded: 1\n  control: 0\nworkloads:\n  - use: x\n";
        assert_eq!(line_of(text, &["arms", "control"]), Some(4));
        assert_eq!(line_of(text, &["workloads", "use"]), Some(6));
        assert_eq!(line_of(text, &["arms", "use"]), None);
    }
}
