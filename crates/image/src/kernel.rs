//! Reading a kernel file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The release (`6.1.0-50-cloud-amd64`) that an x86 kernel image names in its setup header; `None` for other files.
///
/// The boot protocol (Linux, Documentation/arch/x86/boot.rst) has the magic `HdrS` at 0x202 and at 0x20e the offset of
/// a version string, counted from 0x200.
pub fn release_of_bzimage(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut header = [0; 0x210];
    file.read_exact(&mut header).ok()?;
    if &header[0x202..0x206] != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes([header[0x20e], header[0x20f]]);
    if offset == 0 {
        return None;
    }
    file.seek(SeekFrom::Start(u64::from(offset) + 0x200)).ok()?;
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text).ok()?;
    let end = text.iter().position(|b| *b == 0)?;
    let text = std::str::from_utf8(&text[..end]).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_first_word_of_the_version_string() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinuz");
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        let text = b"4.4.0-210-generic (buildd@lgw01) #242-Ubuntu SMP\0";
        image[0x500..0x500 + text.len()].copy_from_slice(text);
        std::fs::write(&file, &image).unwrap();
        assert_eq!(release_of_bzimage(&file).as_deref(), Some("4.4.0-210-generic"));
        std::fs::write(&file, &image[..0x300]).unwrap();
        assert_eq!(release_of_bzimage(&file), None, "cut off before the string");
        image[0x202] = 0;
        std::fs::write(&file, &image).unwrap();
        assert_eq!(release_of_bzimage(&file), None, "no kernel");
    }
}
