//! Files with holes: a guest's memory is mostly one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

use crate::fsutil;

/// Unit of digests and of writing holes.
const BLOCK: usize = 64 * 1024;

/// Where the file has data, in order; the rest reads as zeros.
fn extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let length = file.metadata()?.len();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < length {
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).map_err(io::Error::other)?;
            match lseek(file, from, whence) {
                Ok(found) => u64::try_from(found).map(Some).map_err(io::Error::other),
                // No data behind here.
                Err(Errno::ENXIO) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let Some(data) = seek(at, Whence::SeekData)? else { break };
        let end = seek(data, Whence::SeekHole)?.unwrap_or(length).min(length);
        extents.push(data..end);
        at = end;
    }
    Ok(extents)
}

/// SHA-256 of a file that may be sparse, in hex: of its length, and then, for each block of 64 KiB that holds anything but
/// zeros, of the block's number and its bytes (numbers as 64 bits, least byte first). So holes cost nothing, and where they
/// lie, which copying changes, does not matter.
pub(crate) fn digest(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut buffer = vec![0; BLOCK];
    let mut next = 0;
    for extent in extents(file)? {
        // An extent begins and ends anywhere; a block that two of them touch is taken once.
        let blocks = extent.start / BLOCK as u64..extent.end.div_ceil(BLOCK as u64);
        for number in blocks.start.max(next)..blocks.end {
            let start = number * BLOCK as u64;
            let want = usize::try_from((length - start).min(BLOCK as u64)).map_err(io::Error::other)?;
            file.read_exact_at(&mut buffer[..want], start)?;
            if !is_zero(&buffer[..want]) {
                hash.update(number.to_le_bytes());
                hash.update(&buffer[..want]);
            }
        }
        next = blocks.end;
    }
    Ok(fsutil::hex(&hash.finalize()))
}

/// Copy what `from` holds into the empty file `to`, with its holes; file systems that can share blocks do.
pub(crate) fn copy(from: &File, to: &mut File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    for extent in extents(from)? {
        let mut from = from;
        from.seek(SeekFrom::Start(extent.start))?;
        to.seek(SeekFrom::Start(extent.start))?;
        // The standard library lets the kernel copy between two files.
        let length = extent.end - extent.start;
        if io::copy(&mut from.take(length), to)? != length {
            return Err(io::Error::other("the file became shorter meanwhile"));
        }
    }
    Ok(())
}

/// Write all of `from` to the empty file `to`, at most `limit` bytes, leaving a hole for each block of zeros. Tells the length.
pub(crate) fn write(from: &mut impl Read, to: &mut File, limit: u64) -> io::Result<u64> {
    let mut buffer = Vec::with_capacity(BLOCK);
    let mut length = 0;
    loop {
        buffer.clear();
        let got = from.by_ref().take(BLOCK as u64).read_to_end(&mut buffer)?;
        if got == 0 {
            to.set_len(length)?;
            return Ok(length);
        }
        length += got as u64;
        if length > limit {
            return Err(io::Error::other("longer than announced"));
        }
        if is_zero(&buffer) {
            to.seek_relative(got as i64)?;
        } else {
            to.write_all(&buffer)?;
        }
    }
}

/// In pieces of a fixed size, which the compiler turns into wide instructions even where optimising little.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file(length: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn holes_and_written_zeros_are_the_same_but_a_byte_or_a_length_is_not() {
        let length = 10 * BLOCK as u64 + 7;
        let sparse = file(length, &[(3 * BLOCK as u64 + 5, b"data"), (length - 1, b"x")]);
        let all: Vec<u8> = {
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            sparse.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let dense = file(length, &[(0, &all)]);
        let wanted = digest(&sparse).unwrap();
        assert_eq!(digest(&dense).unwrap(), wanted);
        for other in [
            file(length + 1, &[(0, &all)]),
            file(length, &[(3 * BLOCK as u64 + 6, b"data"), (length - 1, b"x")]),
            file(length, &[(4 * BLOCK as u64 + 5, b"data"), (length - 1, b"x")]),
            file(length, &[(3 * BLOCK as u64 + 5, b"dato"), (length - 1, b"x")]),
        ] {
            assert_ne!(digest(&other).unwrap(), wanted);
        }
    }

    #[test]
    fn copies_are_alike_and_stay_sparse() {
        let length = 64 << 20;
        let from = file(length, &[(0, b"begin"), (20 << 20, &[7; 100_000]), (length - 3, b"end")]);
        let mut copied = tempfile::tempfile().unwrap();
        copy(&from, &mut copied).unwrap();
        let mut written = tempfile::tempfile().unwrap();
        let mut reader = &from;
        reader.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(write(&mut reader, &mut written, length).unwrap(), length);
        for to in [&copied, &written] {
            assert_eq!(digest(to).unwrap(), digest(&from).unwrap());
            assert!(to.metadata().unwrap().blocks() * 512 < 2 << 20, "holes were filled");
        }
        let mut small = tempfile::tempfile().unwrap();
        reader.seek(SeekFrom::Start(0)).unwrap();
        assert!(write(&mut reader, &mut small, 1000).is_err());
    }
}
