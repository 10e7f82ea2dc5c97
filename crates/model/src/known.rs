//! Known findings: what an image is known to show by itself, with a reason and a date on which that ends. `known-findings.yaml`.
//!
//! A known finding is reported apart and excuses nothing: the verdict is reached without this list. What happens only with the
//! patch stays where it is, whatever the list says.

use std::path::Path;

use jiff::civil::Date;
use serde::Deserialize;

use crate::verdict::{Attribution, Verdict};
use crate::yaml::{self, YamlError};

/// The list, in the order of the file: of several entries that fit, the first stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownFindings(pub Vec<KnownFinding>);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFinding {
    /// The finding's title; `*` stands for any text, also none.
    pub title: String,
    /// Name of the image, with `*` as in the title; all images if left out.
    pub image: String,
    /// Why it is no news.
    pub reason: String,
    /// The last day (UTC) on which the entry acts.
    pub expires: Date,
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    title: String,
    #[serde(default = "all_images")]
    image: String,
    reason: String,
    expires: String,
}

/// A finding as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighted<'a> {
    /// Its title.
    pub title: &'a str,
    /// Name of the image that it was seen on.
    pub image: &'a str,
    /// Every sighting of it was without the patch as well: see [`is_of_image`].
    pub of_image: bool,
}

/// What the list says of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Nothing.
    Unlisted,
    /// It is known, and is reported apart.
    Known(&'a KnownFinding),
    /// An entry names it, but it was seen with the patch only, or more often: it stays where it is.
    Counts(&'a KnownFinding),
    /// The entry that names it has expired: it is news again.
    Expired(&'a KnownFinding),
}

impl KnownFindings {
    /// Read the list from `text`, the content of `file`. An empty file is an empty list.
    ///
    /// # Errors
    /// The first syntax or type error, or else every wrong value, each with line and field.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<YamlError>> {
        let entries = yaml::parse::<Option<Vec<Entry>>>(file, text).map_err(|e| vec![e])?.unwrap_or_default();
        let mut problems = Vec::new();
        let mut list = Vec::new();
        for (n, entry) in entries.into_iter().enumerate() {
            let mut wrong = |field: &str, message: String| {
                let at = line_of(text, n, field).map(|line| (line, 1));
                problems.push(YamlError {
                    file: file.to_owned(),
                    at,
                    field: format!("[{n}].{field}"),
                    message,
                });
            };
            if entry.title.chars().all(|c| c == '*' || c.is_whitespace()) {
                wrong("title", "matches every finding: write the title, with `*` where it varies".to_owned());
            }
            if entry.reason.trim().is_empty() {
                wrong("reason", "is empty: say why this finding is expected".to_owned());
            }
            match date(&entry.expires) {
                Some(expires) => list.push(KnownFinding {
                    title: entry.title,
                    image: entry.image,
                    reason: entry.reason,
                    expires,
                }),
                None => {
                    let message =
                        format!("`{}` is not a valid date: write for example 2027-01-31", entry.expires);
                    wrong("expires", message);
                }
            }
        }
        if problems.is_empty() { Ok(Self(list)) } else { Err(problems) }
    }

    /// Entries that act no more on the day `today`.
    pub fn expired(&self, today: Date) -> impl Iterator<Item = &KnownFinding> {
        self.0.iter().filter(move |entry| entry.expires < today)
    }
}

impl KnownFinding {
    fn names(&self, finding: &Sighted<'_>) -> bool {
        fits(&self.title, finding.title) && fits(&self.image, finding.image)
    }
}

impl Standing<'_> {
    /// What is to be said of it; nothing of what is not listed. Not yet cleaned for a terminal.
    pub fn in_words(&self) -> Option<String> {
        Some(match self {
            Self::Unlisted => return None,
            Self::Known(entry) => format!("known: {}, until {}", entry.reason, entry.expires),
            Self::Counts(entry) => {
                format!(
                    "listed as known ({}), but counted: it occurs only with the patch, or more often with it",
                    entry.reason
                )
            }
            Self::Expired(entry) => {
                format!(
                    "known ({}), but the entry expired on {}: reported as new again",
                    entry.reason, entry.expires
                )
            }
        })
    }

    /// The word in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unlisted => "unlisted",
            Self::Known(_) => "known",
            Self::Counts(_) => "counts",
            Self::Expired(_) => "expired",
        }
    }
}

/// What the list says of each of `findings` on the day `today`. An entry that acts stands before one that has expired.
pub fn sort<'a>(findings: &[Sighted<'_>], list: &'a KnownFindings, today: Date) -> Vec<Standing<'a>> {
    let standing = |finding: &Sighted<'_>| {
        let mut named = list.0.iter().filter(|entry| entry.names(finding));
        let mut first: Option<&KnownFinding> = None;
        let active = named.find(|entry| {
            first.get_or_insert(entry);
            entry.expires >= today
        });
        match (active, first) {
            (Some(entry), _) if finding.of_image => Standing::Known(entry),
            (Some(entry), _) => Standing::Counts(entry),
            (None, Some(entry)) => Standing::Expired(entry),
            (None, None) => Standing::Unlisted,
        }
    };
    findings.iter().map(standing).collect()
}

/// The same of a verdict's evidence, item by item.
pub fn sort_verdict<'a>(verdict: &Verdict, list: &'a KnownFindings, today: Date) -> Vec<Standing<'a>> {
    let sighted: Vec<Sighted<'_>> = verdict
        .evidence
        .iter()
        .map(|item| Sighted {
            title: &item.title,
            // `IMAGE/LOAD`, where several go round.
            image: item
                .turn
                .as_deref()
                .map_or(&*verdict.image.name, |t| t.split('/').next().unwrap_or_default()),
            of_image: is_of_image(item.attribution),
        })
        .collect();
    sort(&sighted, list, today)
}

/// Whether the image shows such a finding without the patch, so that an entry may name it.
pub fn is_of_image(attribution: Attribution) -> bool {
    match attribution {
        Attribution::ControlToo | Attribution::BeforeApply | Attribution::ControlOnly => true,
        Attribution::Patch | Attribution::Unconfirmed | Attribution::NoControl => false,
    }
}

/// Whether `text` is `pattern`, with any text in the place of each `*`.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // `split` gives at least one part, the whole of a pattern without a star.
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        // The first place leaves most for the parts that follow.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn all_images() -> String {
    "*".to_owned()
}

/// A day. Times would be read as well, and then silently cut off.
fn date(text: &str) -> Option<Date> {
    text.parse().ok().filter(|_| text.len() == "2027-01-31".len())
}

/// Line (from 1) of a field of the entry `n` (from 0): of a list, one line may hold a whole entry.
fn line_of(text: &str, n: usize, field: &str) -> Option<usize> {
    let of_list = |line: &&str| line.trim_start().starts_with("- ");
    let indent = text.lines().find(of_list).map(|line| line.len() - line.trim_start().len())?;
    let begins = |line: &str| line.get(indent..).is_some_and(|rest| rest.starts_with("- "));
    let mut lines = text.lines().zip(1..).skip_while(|(line, _)| !begins(line));
    let mut entries = 0;
    let named = |line: &str| {
        line.match_indices(field).any(|(at, _)| line[at + field.len()..].trim_start().starts_with(':'))
    };
    lines
        .find(|(line, _)| {
            entries += usize::from(begins(line));
            entries == n + 1 && !line.trim_start().starts_with('#') && named(line)
        })
        .map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn parse(text: &str) -> Result<KnownFindings, String> {
        let joined =
            |errors: Vec<YamlError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        KnownFindings::parse(Path::new("known.yaml"), text).map_err(joined)
    }

    const LIST: &str = "- title: 'INFO: task hung in *'\n  image: debian-*\n  reason: slow disk\n  expires: 2026-12-31\n\
        - title: threads hang in jbd2_*\n  reason: old\n  expires: 2026-01-31\n\
        - title: threads hang in *_commit\n  reason: newer\n  expires: 2027-01-31\n";

    fn words(title: &str, image: &str, of_image: bool, today: Date) -> String {
        let list = parse(LIST).unwrap();
        let standing = sort(&[Sighted { title, image, of_image }], &list, today)[0];
        format!("{} {}", standing.as_str(), standing.in_words().unwrap_or_default())
    }

    #[test]
    fn a_known_finding_is_named_with_its_reason_until_its_last_day() {
        let hung = |image, of_image, today| words("INFO: task hung in f", image, of_image, today);
        let last = date(2026, 12, 31);
        assert_eq!(hung("debian-12", true, last), "known known: slow disk, until 2026-12-31");
        assert_eq!(hung("ubuntu-16.04", true, last), "unlisted ");
        let after = hung("debian-12", true, date(2027, 1, 1));
        assert!(
            after.starts_with("expired ") && after.contains("expired on 2026-12-31: reported as new again"),
            "{after}"
        );
    }

    #[test]
    fn what_happens_only_with_the_patch_is_excused_by_no_entry() {
        let counts = words("INFO: task hung in f", "debian-12", false, date(2026, 6, 1));
        assert!(counts.starts_with("counts ") && counts.contains("but counted"), "{counts}");
        for attribution in [Attribution::Patch, Attribution::Unconfirmed, Attribution::NoControl] {
            assert!(!is_of_image(attribution), "{attribution:?}");
        }
    }

    #[test]
    fn an_entry_that_acts_stands_before_an_expired_one() {
        let both = words("threads hang in jbd2_commit", "x", true, date(2026, 6, 1));
        assert_eq!(both, "known known: newer, until 2027-01-31");
        assert!(words("threads hang in jbd2_f", "x", true, date(2026, 6, 1)).starts_with("expired "));
        let list = parse(LIST).unwrap();
        assert_eq!(list.expired(date(2026, 2, 1)).map(|e| e.reason.as_str()).collect::<Vec<_>>(), ["old"]);
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*b", "ab", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("ab*ba", "aba", false),
            ("*a*a", "a", false),
            ("*a*b*", "xaxbx", true),
            ("*ab*b", "abab", true),
            ("a.c", "abc", false),
            ("ü*", "über", true),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_wrong_has_file_line_and_field() {
        assert_eq!(parse("# nothing yet\n").unwrap(), KnownFindings::default());
        assert_eq!(parse("[]\n").unwrap(), KnownFindings::default());
        let good = "- {title: a, reason: b, expires: 2027-01-31}\n";
        for (bad, field, text) in [
            ("- {title: '* *', reason: b, expires: 2027-01-31}\n", "title", "every finding"),
            ("- {title: a, reason: ' ', expires: 2027-01-31}\n", "reason", "is empty"),
            ("- {title: a, reason: b, expires: soon}\n", "expires", "`soon` is not a valid date"),
            ("- {title: a, reason: b, expires: 2027-01-31T10:00}\n", "expires", "is not a valid date"),
            ("- {title: a, reason: b, expires: 2027-02-30}\n", "expires", "is not a valid date"),
            ("- {title: a, reason: b, expires: 2027-01-31, until: x}\n", "until", "unknown field"),
            ("- {title: a, expires: 2027-01-31}\n", "", "missing field `reason`"),
        ] {
            let error = parse(&format!("{good}{bad}")).unwrap_err();
            assert!(error.starts_with("known.yaml:2:"), "{error}");
            assert!(
                !error.contains('\n')
                    && error.contains("[1]")
                    && error.contains(field)
                    && error.contains(text),
                "{error}"
            );
        }
        let all = parse(
            "# expires: here\n- title: a\n  reason: expires\n  expires: soon\n-   title: '*'\n    # reason:\n    reason: ''\n    expires: 2027-01-31\n",
        );
        let all = all.unwrap_err();
        let places: Vec<&str> = all.lines().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["known.yaml:4:1", "known.yaml:5:1", "known.yaml:7:1"], "{all}");
    }
}
