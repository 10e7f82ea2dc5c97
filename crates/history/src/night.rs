//! Nights: what ran from one noon to the next, UTC, is one night, called by the day on which it began.

use jiff::civil::Date;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp, tz::TimeZone};

/// The night of a moment, given in milliseconds since 1970 (UTC).
pub fn night(at_ms: i64) -> Date {
    let at = Timestamp::from_millisecond(at_ms).unwrap_or_default();
    let evening = at.checked_sub(SignedDuration::from_hours(12)).unwrap_or(at);
    evening.to_zoned(TimeZone::UTC).date()
}

/// The moment that `--since` names: so long before `now` (`7d`, `12h`), a day (its beginning, UTC) or a time with its zone.
///
/// # Errors
/// What is wrong with it and how to write one.
pub fn parse_since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(day) = text.parse::<Date>() {
        return day.to_zoned(TimeZone::UTC).map(|z| z.timestamp()).map_err(|e| e.to_string());
    }
    let ago = |span: Span| {
        let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
        (!length.is_negative()).then(|| now.checked_sub(length).ok()).flatten()
    };
    text.parse().ok().and_then(ago).ok_or_else(|| {
        format!("`{text}` is neither a date nor a duration: write for example 2026-11-30, 7d or 12h")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_goes_from_noon_to_noon() {
        let of = |time: &str| night(time.parse::<Timestamp>().unwrap().as_millisecond()).to_string();
        assert_eq!(of("2026-11-22T11:59:59.999Z"), "2026-11-21");
        assert_eq!(of("2026-11-22T12:00:00Z"), "2026-11-22");
        assert_eq!(of("2026-11-23T03:00:00Z"), "2026-11-22");
        assert_eq!(of("2027-01-01T00:00:00+01:00"), "2026-12-31");
    }

    #[test]
    fn since_is_a_day_a_time_or_a_length() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("7d", "2026-11-15T10:00:00Z"),
            ("1w", "2026-11-15T10:00:00Z"),
            ("12h", "2026-11-21T22:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("2026-11-20T05:00:00+01:00", "2026-11-20T04:00:00Z"),
        ] {
            assert_eq!(parse_since(text, now).unwrap().to_string(), expected, "{text}");
        }
        for text in ["yesterday", "-3d", "1 month", "", "7"] {
            assert!(parse_since(text, now).unwrap_err().contains("write for example"), "{text}");
        }
    }
}
