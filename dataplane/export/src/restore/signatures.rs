//! What lies on a disk or in a file: by its first and last bytes, or that something does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes at the begin that are searched: the farthest signature is that of a ZFS label or btrfs.
const HEAD_BYTES: usize = 1 << 20;
/// Bytes at the end that are searched: the second partition table, and older RAID members.
const TAIL_BYTES: usize = 128 << 10;
/// Places in between where something else than zeros is looked for.
const SAMPLES: u64 = 64;
/// Bytes of each of them.
const SAMPLE_BYTES: usize = 64 << 10;
/// Up to this size all of a device is read before it counts as empty: some seconds.
pub(super) const DEVICE_BYTES_MAX: u64 = 16 << 30;
/// And of a file, which is replaced only when that is told anyway.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 20;
/// Bytes that are read at once then.
const STEP_BYTES: usize = 1 << 20;

/// A signature: where it stands, its bytes, and what it means.
type Signature = (usize, &'static [u8], &'static str);

const SIGNATURES: &[Signature] = &[
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"XFSB", "an xfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (54, b"FAT", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], "an f2fs file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6], "a bcache device"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0x1_0034, b"ReIsEr", "a reiserfs file system"),
    (0x8000, b"JFS1", "a jfs file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (65526, b"SWAPSPACE2", "swap space"),
    (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
];

/// Where a ZFS label keeps its first uberblocks, and how they begin in either byte order.
const UBERBLOCKS: std::ops::Range<usize> = 128 << 10..256 << 10;
const UBERBLOCK_MAGICS: [[u8; 8]; 2] =
    [[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]];

/// What is on a disk of `size` bytes: a name for it, or none if all of it reads as zeros. Of one that is
/// larger than `whole_bytes_max` it is said that not all of it was looked at.
pub(super) fn recognise(
    disk: &File,
    size: u64,
    whole_bytes_max: u64,
) -> io::Result<Option<String>> {
    let head = read(disk, 0, size, HEAD_BYTES)?;
    let tail_at = size.saturating_sub(TAIL_BYTES as u64);
    let tail = read(disk, tail_at, size, TAIL_BYTES)?;
    if let Some(name) = by_signature(&head, &tail) {
        return Ok(Some(name.to_owned()));
    }
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let something = || Ok(Some("data of no known kind".to_owned()));
    if !is_zero(&head) || !is_zero(&tail) {
        return something();
    }
    for sample in 1..SAMPLES {
        let at = size / SAMPLES * sample;
        if !is_zero(&read(disk, at, size, SAMPLE_BYTES)?) {
            return something();
        }
    }
    if size > whole_bytes_max {
        return Ok(Some("zeros where it was looked at, which is not everywhere".to_owned()));
    }
    for at in (0..size).step_by(STEP_BYTES) {
        if !is_zero(&read(disk, at, size, STEP_BYTES)?) {
            return something();
        }
    }
    Ok(None)
}

fn by_signature(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let found = SIGNATURES.iter().find(|(at, magic, _)| has(*at, magic));
    if let Some((_, _, name)) = found {
        return Some(name);
    }
    // A physical volume of LVM says so in one of its first four sectors.
    if (0..4).any(|sector| has(sector * 512, b"LABELONE")) {
        return Some("a physical volume of LVM");
    }
    let uberblocks = head.get(UBERBLOCKS).unwrap_or_default();
    if uberblocks
        .chunks_exact(1024)
        .any(|block| UBERBLOCK_MAGICS.iter().any(|m| block.starts_with(m)))
    {
        return Some("a ZFS pool");
    }
    let ends_with = |magic: &[u8], before: usize| {
        let at = tail.len().checked_sub(before)?;
        Some(tail.get(at..at + magic.len())? == magic)
    };
    if ends_with(b"EFI PART", 512) == Some(true) || ends_with(b"EFI PART", 4096) == Some(true) {
        return Some("a GPT partition table");
    }
    if ends_with(b"conectix", 512) == Some(true) {
        return Some("a VHD image");
    }
    // RAID members with their description at the end, 64 KiB aligned or 8 KiB before it.
    let raid = [0xfc, 0x4e, 0x2b, 0xa9];
    if tail.chunks_exact(4096).any(|block| block.starts_with(&raid)) {
        return Some("a member of a RAID");
    }
    has(510, &[0x55, 0xaa]).then_some("a partition table or boot sector")
}

/// The bytes at an offset, fewer at the end.
fn read(disk: &File, at: u64, size: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes_max);
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match disk.read_at(&mut bytes[filled..], at + filled as u64) {
            // Shorter than it was just now.
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 << 20;

    fn seen(parts: &[(u64, &[u8])]) -> Option<String> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        recognise(&file, SIZE, SIZE).unwrap()
    }

    #[test]
    fn every_signature_is_found_where_it_stands() {
        for (at, magic, name) in SIGNATURES {
            assert_eq!(seen(&[(*at as u64, magic)]).as_deref(), Some(*name), "at {at}");
        }
        assert_eq!(seen(&[(512, b"LABELONE")]).unwrap(), "a physical volume of LVM");
        assert_eq!(seen(&[(132 << 10, &UBERBLOCK_MAGICS[0])]).unwrap(), "a ZFS pool");
        assert_eq!(seen(&[(SIZE - 512, b"EFI PART")]).unwrap(), "a GPT partition table");
        let raid = seen(&[(SIZE - (64 << 10), &[0xfc, 0x4e, 0x2b, 0xa9])]);
        assert_eq!(raid.unwrap(), "a member of a RAID");
        assert_eq!(seen(&[(510, &[0x55, 0xaa])]).unwrap(), "a partition table or boot sector");
    }

    #[test]
    fn zeros_are_nothing_and_anything_else_is_something() {
        assert_eq!(seen(&[]), None);
        for at in [0, 300_000, SIZE / 2 + 7, SIZE - 1] {
            assert_eq!(seen(&[(at, b"x")]).unwrap(), "data of no known kind", "at {at}");
        }
        let large = tempfile::tempfile().unwrap();
        large.set_len(256 << 20).unwrap();
        assert_eq!(recognise(&large, 256 << 20, DEVICE_BYTES_MAX).unwrap(), None);
        let partly = recognise(&large, 256 << 20, SIZE).unwrap().unwrap();
        assert!(partly.contains("not everywhere"), "{partly}");
        // Between two of the places that are looked at first.
        large.write_all_at(b"x", (128 << 20) + (2 << 20)).unwrap();
        assert_eq!(
            recognise(&large, 256 << 20, DEVICE_BYTES_MAX).unwrap().unwrap(),
            "data of no known kind"
        );
        let short = tempfile::tempfile().unwrap();
        assert_eq!(recognise(&short, 0, SIZE).unwrap(), None);
        short.write_all_at(b"x", 0).unwrap();
        assert_eq!(recognise(&short, 1, SIZE).unwrap().unwrap(), "data of no known kind");
    }
}
