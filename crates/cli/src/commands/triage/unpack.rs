//! Logs as they lie in archives: gzip and xz are read as the text that they hold, in a stream.

use std::io::{self, BufReader, Cursor, Read};

/// The most memory that unpacking may take, in KiB; `xz -9` needs 65 MiB, and a file may ask for 4 GiB.
const MEMORY: u32 = 128 << 10;

/// How a file of some other form begins, and how to make text of it (`F` stands for the file).
const OTHERS: [(&[u8], &str); 4] = [
    (b"LPKSHHRH", "a binary journal: run `journalctl --file F -k | klpfarm triage -`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: run `zstdcat F | klpfarm triage -`"),
    (b"BZh", "compressed with bzip2: run `bzcat F | klpfarm triage -`"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: run `lz4cat F | klpfarm triage -`"),
];
const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";

/// The text that `input` holds, unpacked if it is gzip or xz.
///
/// # Errors
///
/// If it can't be read, or is of a form that holds no text.
pub(crate) fn text<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let start = start(&mut input)?;
    let (gzip, xz) = (start.starts_with(GZIP), start.starts_with(XZ));
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(io::Error::other(*what));
    }
    let whole = BufReader::new(Cursor::new(start).chain(input));
    Ok(if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(whole))
    } else if xz {
        Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, MEMORY))
    } else {
        Box::new(whole)
    })
}

/// As many bytes as it takes to tell the form, and no more: a live log may have none to give yet.
fn start(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let magics = || OTHERS.iter().map(|(magic, _)| *magic).chain([GZIP, XZ]);
    let mut start = Vec::new();
    while magics().any(|magic| start.len() < magic.len() && magic.starts_with(&start)) {
        let mut byte = [0];
        match input.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => start.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        text(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    /// `printf 'hello\n' | xz -0`
    const HELLO_XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x0c,
        0x00, 0x00, 0x00, 0x8f, 0x98, 0x41, 0x9c, 0x01, 0x00, 0x05, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x0a, 0x00,
        0x00, 0x00, 0xa5, 0x60, 0x97, 0xf1, 0x94, 0xf6, 0xfd, 0xe0, 0x00, 0x01, 0x1e, 0x06, 0xc1, 0x2f, 0xa4,
        0x1d, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    #[test]
    fn text_is_unpacked() {
        assert_eq!(read(b"hello\n").unwrap(), b"hello\n");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(b"\x1f").unwrap(), b"\x1f");
        assert_eq!(read(&gzip(b"hello\n")).unwrap(), b"hello\n");
        // What `logrotate` and `cat a.gz b.gz` make.
        assert_eq!(read(&[gzip(b"hello\n"), gzip(b"again\n")].concat()).unwrap(), b"hello\nagain\n");
        assert_eq!(read(HELLO_XZ).unwrap(), b"hello\n");
        assert_eq!(read(&[HELLO_XZ, HELLO_XZ].concat()).unwrap(), b"hello\nhello\n");
    }

    #[test]
    fn damage_is_an_error() {
        let whole = gzip(&b"hello\n".repeat(1000));
        assert!(read(&whole[..whole.len() - 9]).is_err());
        assert!(read(&HELLO_XZ[..HELLO_XZ.len() - 9]).is_err());
        let mut damaged = HELLO_XZ.to_vec();
        damaged[26] ^= 1;
        assert!(read(&damaged).is_err());
    }

    #[test]
    fn a_file_cannot_ask_for_any_memory() {
        // The properties of the filter (byte 16) say that the dictionary has 4 GiB; its checksum is that of the new header.
        let mut greedy = HELLO_XZ.to_vec();
        greedy[16] = 40;
        let header = crc32(&greedy[12..20]);
        greedy[20..24].copy_from_slice(&header.to_le_bytes());
        assert!(read(&greedy).unwrap_err().to_string().contains("memory"));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    #[test]
    fn other_forms_are_named() {
        for (magic, what) in OTHERS {
            assert_eq!(read(magic).unwrap_err().to_string(), what);
        }
    }

    #[test]
    fn no_byte_more_than_needed_is_waited_for() {
        struct Live(Option<&'static [u8]>);
        impl Read for Live {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let text = self.0.as_mut().expect("there is nothing more yet");
                let n = text.read(buffer)?;
                if text.is_empty() {
                    self.0 = None;
                }
                Ok(n)
            }
        }
        let mut live = text(Live(Some(b"[1"))).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(live.read(&mut buffer).unwrap(), 1);
        assert_eq!(live.read(&mut buffer).unwrap(), 1);
    }
}
