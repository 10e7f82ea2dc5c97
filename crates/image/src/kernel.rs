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

/// Whether a kernel has the module `name`, built in or as a file, given its folder `lib/modules/RELEASE`; `None` if the lists that `depmod`
/// and the kernel's build leave there can't be read.
pub(crate) fn has_module(folder: &Path, name: &str) -> Option<bool> {
    let read = |list: &str| std::fs::read_to_string(folder.join(list)).ok();
    let (loadable, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let file = |line: &str| -> Option<String> {
        let path = line.split(':').next()?;
        let stem = path.rsplit('/').next()?.split(".ko").next()?;
        Some(stem.replace('-', "_"))
    };
    let wanted = Some(name.replace('-', "_"));
    Some(loadable.lines().chain(builtin.lines()).any(|line| file(line) == wanted))
}

/// Whether a kernel's configuration has this option, built in or as a module.
pub(crate) fn has_option(config: &str, option: &str) -> bool {
    let mut values = config.lines().filter_map(|line| line.strip_prefix(option)?.strip_prefix('='));
    values.next_back().is_some_and(|value| value != "n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_a_configuration() {
        let config = "CONFIG_A=y\nCONFIG_AB=m\n# CONFIG_C is not set\nCONFIG_D=\"text\"\nCONFIG_E=n\n";
        for (option, there) in [
            ("CONFIG_A", true),
            ("CONFIG_AB", true),
            ("CONFIG_C", false),
            ("CONFIG_D", true),
            ("CONFIG_E", false),
        ] {
            assert_eq!(has_option(config, option), there, "{option}");
        }
    }

    #[test]
    fn modules_are_found_in_the_lists_of_files_and_of_what_is_built_in() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(has_module(dir.path(), "ext4"), None);
        let dep = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/net/nf-tables.ko.zst:\nupdates/extra.ko.xz:\n";
        std::fs::write(dir.path().join("modules.dep"), dep).unwrap();
        assert_eq!(has_module(dir.path(), "ext4"), None, "it may be built in");
        std::fs::write(dir.path().join("modules.builtin"), "kernel/drivers/tty/tty-core.ko\n").unwrap();
        for (name, there) in [
            ("ext4", true),
            ("nf_tables", true),
            ("nf-tables", true),
            ("extra", true),
            ("tty_core", true),
            // It depends on it, but has no line of its own.
            ("jbd2", false),
            ("ext", false),
            ("", false),
        ] {
            assert_eq!(has_module(dir.path(), name), Some(there), "{name}");
        }
    }

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
