//! Text from a guest is untrusted: it goes to terminals and into XML only through here.

/// Replace everything that a terminal or an XML 1.0 parser would take for more than text: control characters (but line feed and tab),
/// escape sequences, and characters that XML forbids.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => {}
            // CSI sequences: ESC [ parameters final.
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                chars.next();
            }
            c if c.is_control()
                || matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// As [`printable`], on one line and not longer than `most` characters.
pub fn one_line(text: &str, most: usize) -> String {
    let text = printable(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= most {
        return text;
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// For a CDATA section, which ends at `]]>`.
pub(crate) fn cdata(text: &str) -> String {
    printable(text).replace("]]>", "]] >")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_control_characters_go() {
        assert_eq!(printable("a\x1b[31mred\x1b[0m\r\nb\x07\0\tc"), "ared\nb\u{fffd}\u{fffd}\tc");
        assert_eq!(printable("\x1b]0;title\x07"), "\u{fffd}]0;title\u{fffd}");
        assert_eq!(one_line("a\nb  c", 80), "a b c");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(cdata("x]]>y"), "x]] >y");
    }
}
