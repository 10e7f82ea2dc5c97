//! Durations in YAML (`90s`, `1m 30s`, `PT4H`) and in JSON (the same text), so that a plan reads as its pipeline does.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&text(*d))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d).map_err(|_| {
        serde::de::Error::custom("is not a valid duration: write for example `90s` or `4h 30m`")
    })?;
    parse(&text).map_err(serde::de::Error::custom)
}

/// Read a duration as files write it.
///
/// # Errors
/// What is wrong with it and how to write one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let hint = "write for example `90s`, `1m 30s` or `4h`";
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("`{text}` is not a valid duration: {hint}"))?;
    Duration::try_from(parsed).map_err(|_| format!("`{text}` is negative: {hint}"))
}

/// The same for a duration that may be absent.
pub(crate) mod option {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    #[allow(clippy::ref_option)] // serde hands it over so.
    pub(crate) fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match d {
            Some(d) => super::serialize(d, s),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(d).map(Some)
    }
}

/// Seconds and milliseconds, short: `1.5s`, `90s`.
pub(crate) fn text(d: Duration) -> String {
    if d.subsec_millis() == 0 { format!("{}s", d.as_secs()) } else { format!("{}ms", d.as_millis()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        assert_eq!(parse("1m 30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse("4h").unwrap(), Duration::from_secs(4 * 3600));
        assert_eq!(parse("250ms").unwrap(), Duration::from_millis(250));
        assert!(parse("-3s").unwrap_err().contains("negative"));
        assert!(parse("soon").unwrap_err().contains("not a valid duration"));
        for d in [Duration::from_secs(90), Duration::from_millis(1500)] {
            assert_eq!(parse(&text(d)).unwrap(), d);
        }
    }
}
