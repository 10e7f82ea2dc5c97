//! An empty qcow2 overlay, written here so that no further program is needed.
//!
//! Layout after QEMU's `docs/interop/qcow2.txt`, version 3. It names no backing file: QEMU is told on its command line.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER: u32 = 104;
const SIZE_AT: u64 = 24;
/// Clusters before the table of tables: header, table of reference counts, first block of them.
const FIRST: u64 = 3;

/// The bytes of an overlay with nothing in it, for a disk of `size` bytes.
pub(crate) fn empty(size: u64) -> Vec<u8> {
    // A table of the second level fills a cluster with entries of 8 bytes, each for one cluster of data.
    let tables = size.div_ceil(CLUSTER * (CLUSTER / 8));
    let clusters = FIRST + (tables * 8).div_ceil(CLUSTER).max(1);
    let mut bytes = vec![0; usize::try_from(clusters * CLUSTER).unwrap_or(usize::MAX)];
    let mut put = |at: u64, value: &[u8]| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    // What is not put here is zero: no backing file, no encryption, no snapshots, no optional features.
    put(0, &MAGIC);
    put(4, &3_u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(SIZE_AT, &size.to_be_bytes());
    put(36, &u32::try_from(tables).unwrap_or(u32::MAX).to_be_bytes());
    put(40, &(FIRST * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes()); // the table of reference counts...
    put(56, &1_u32.to_be_bytes()); // ...in one cluster
    put(96, &4_u32.to_be_bytes()); // counts of 1 << 4 bits
    put(100, &HEADER.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
    for used in 0..clusters {
        put(2 * CLUSTER + 2 * used, &1_u16.to_be_bytes());
    }
    bytes
}

/// How large a guest finds the disk in this file, in bytes.
pub(crate) fn virtual_size(disk: &Path, format: &str) -> std::io::Result<u64> {
    let file = File::open(disk)?;
    if format == "qcow2" {
        let (mut magic, mut size) = ([0; 4], [0; 8]);
        file.read_exact_at(&mut magic, 0)?;
        if magic != MAGIC {
            return Err(std::io::Error::other("not a qcow2 disk, though its image says so"));
        }
        file.read_exact_at(&mut size, SIZE_AT)?;
        return Ok(u64::from_be_bytes(size));
    }
    // A raw disk of odd length ends with its last whole sector filled up.
    Ok(file.metadata()?.len().next_multiple_of(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_has_the_size_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("o");
        for (size, bytes) in [(512, 4), (4 << 30, 4), (5 << 40, 5)] {
            let overlay = empty(size);
            assert_eq!(overlay.len() as u64, bytes * CLUSTER);
            std::fs::write(&file, overlay).unwrap();
            assert_eq!(virtual_size(&file, "qcow2").unwrap(), size);
        }
        std::fs::write(&file, [0; 1000]).unwrap();
        assert_eq!(virtual_size(&file, "raw").unwrap(), 1024);
        assert!(virtual_size(&file, "qcow2").unwrap_err().to_string().contains("qcow2"));
    }
}
