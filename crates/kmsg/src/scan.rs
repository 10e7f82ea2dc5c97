//! A cursor over one message, for formats that the kernel prints exactly.

/// The rest of a message that is being read from left to right.
#[derive(Clone, Copy)]
pub(crate) struct Scan<'a>(pub(crate) &'a str);

impl<'a> Scan<'a> {
    /// Takes `literal` if it stands here.
    pub(crate) fn eat(&mut self, literal: &str) -> bool {
        match self.0.strip_prefix(literal) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// As `eat`, for chains of `?`.
    pub(crate) fn lit(&mut self, literal: &str) -> Option<()> {
        self.eat(literal).then_some(())
    }

    /// Takes a decimal number.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let value = self.0[..end].parse().ok()?;
        self.0 = &self.0[end..];
        Some(value)
    }

    /// Takes everything up to `literal`, and `literal`.
    pub(crate) fn until(&mut self, literal: &str) -> Option<&'a str> {
        let (head, rest) = self.0.split_once(literal)?;
        self.0 = rest;
        Some(head)
    }

    /// Takes the longest run of characters that `f` accepts; `None` if it is empty.
    pub(crate) fn run(&mut self, f: impl Fn(char) -> bool) -> Option<&'a str> {
        let end = self.0.find(|c: char| !f(c)).unwrap_or(self.0.len());
        let (head, rest) = self.0.split_at(end);
        self.0 = rest;
        (!head.is_empty()).then_some(head)
    }

    /// Skips spaces and tabs.
    pub(crate) fn spaces(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }
}

/// No symbol of the kernel is longer (`KSYM_NAME_LEN` since 6.1; 128 before).
const SYMBOL_LIMIT: usize = 512;

/// A symbol as the kernel prints it in `F+0x1/0x2`, at the start of `text`: its name without compiler suffixes.
pub(crate) fn symbol(text: &str) -> Option<(&str, &str)> {
    let mut scan = Scan(text);
    let name = scan.run(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$' | ':'))?;
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.len() > SYMBOL_LIMIT {
        return None;
    }
    scan.lit("+0x")?;
    scan.run(|c| c.is_ascii_hexdigit())?;
    if scan.eat("/0x") {
        scan.run(|c| c.is_ascii_hexdigit())?;
    }
    // Kernels before 2.6.28 have the module before the name: `:module:F`.
    let name = name.strip_prefix(':').and_then(|n| n.split_once(':')).map_or(name, |(_, function)| function);
    // 64-bit POWER of old has a dot before the name of a function's code.
    Some((plain(name.strip_prefix('.').unwrap_or(name)), scan.0))
}

/// A symbol whose offset `decode_stacktrace.sh` has replaced by source lines, `F (fs/file.c:12 fs/other.h:3 (discriminator 1)) module`, at
/// the start of `text`: its name without compiler suffixes, and whether a module brings it.
pub(crate) fn decoded(text: &str) -> Option<(&str, bool)> {
    let (name, rest) = text.split_once(" (")?;
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'$');
    if name.is_empty()
        || name.len() > SYMBOL_LIMIT
        || name.as_bytes()[0].is_ascii_digit()
        || !name.bytes().all(fits)
    {
        return None;
    }
    let (place, _) = rest.split_once([' ', ')'])?;
    let (file, line) = place.rsplit_once(':')?;
    // A program's trace has plain file names.
    let source = file.contains('/') && [".c", ".h", ".S", ".rs"].iter().any(|end| file.ends_with(end));
    let numbered = !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit());
    if !(source && numbered || place == "??:?" || place == "??:0") {
        return None;
    }
    let mut depth = 1;
    let end = rest.bytes().position(|b| {
        depth += i32::from(b == b'(') - i32::from(b == b')');
        depth == 0
    })?;
    let module = rest[end + 1..].trim();
    module
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        .then(|| (plain(name), !module.is_empty()))
}

/// Drops what the compiler adds to a symbol: `.constprop.0`, `.isra.1`, `.part.3`, `.cold`, `.llvm.123`.
pub(crate) fn plain(name: &str) -> &str {
    let from = name.len().min(1);
    match name[from..].find('.') {
        Some(dot) => &name[..from + dot],
        None => name,
    }
}

/// How many digits `bytes` begin with.
pub(crate) fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_lose_suffixes() {
        assert_eq!(symbol("do_madvise.part.0+0x1a/0x2b0 [klp]"), Some(("do_madvise", " [klp]")));
        assert_eq!(symbol("F+0x5 more"), Some(("F", " more")));
        assert_eq!(symbol("0xffffffff+0x1"), None);
        assert_eq!(symbol(".F+0x5 more"), Some(("F", " more")));
        assert_eq!(symbol(":demo:F+0x5 more"), Some(("F", " more")));
        assert_eq!(symbol("word more"), None);
        assert_eq!(plain(".text"), ".text");
    }

    #[test]
    fn source_lines_instead_of_an_offset() {
        assert_eq!(decoded("kthread (kernel/kthread.c:388)"), Some(("kthread", false)));
        assert_eq!(decoded("walk.isra.0 (fs/a.c:1 (discriminator 3) fs/b.h:2) demo"), Some(("walk", true)));
        assert_eq!(decoded("walk (??:?)"), Some(("walk", false)));
        for text in [
            "abort (abort.c:79)",
            "walk (fs/a.c:1) is slow",
            "see walk (fs/a.c:1)",
            "walk (fs/a.js:1)",
            "walk (fs/a.c:1",
        ] {
            assert_eq!(decoded(text), None, "{text}");
        }
    }
}
