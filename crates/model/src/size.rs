//! Sizes as people write and read them: `512M`, `20G`; `1.5 KiB`.

/// Read a size in bytes: a number, or a number of K, M, G or T (1024 each).
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim_end_matches("iB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("`{text}` is not a valid size: write a number and K, M, G or T, as in 20G")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("`{text}` is not a valid size: write for example 20G"))?;
    number.checked_mul(1 << factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// A size in bytes with its unit: `1.5 KiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if bytes < 1024 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, value) in [("0", 0), ("512", 512), ("3K", 3072), ("512MiB", 512 << 20), ("20G", 20 << 30)]
        {
            assert_eq!(parse(text), Ok(value));
        }
        for text in ["", "G", "-1G", "1.5G", "5X", "20000000T"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 B"), (1536, "1.5 KiB"), (20 << 30, "20.0 GiB"), (1 << 50, "1024.0 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
