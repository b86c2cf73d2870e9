//! A GUID partition table, written by hand.
//!
//! Source: UEFI specification 2.10, chapter 5.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a sector. Everything here counts in it.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it lies on disk.
pub(crate) const EFI_SYSTEM: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
/// 0FC63DAF-8483-4772-8E79-3D69D8477DE4 as it lies on disk.
pub(crate) const LINUX_DATA: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
const TABLE_BYTES: usize = ENTRIES * ENTRY_BYTES;
const TABLE_SECTORS: u64 = TABLE_BYTES as u64 / SECTOR_BYTES;
const HEADER_BYTES: usize = 92;

/// One partition. Start and size are bytes and whole sectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    pub(crate) kind: [u8; 16],
    pub(crate) id: [u8; 16],
    pub(crate) name: &'static str,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

/// Writes the protective MBR and both copies of the table.
///
/// # Errors
/// If the disk cannot be written.
pub(crate) fn write(disk: &File, bytes: u64, id: [u8; 16], parts: &[Partition]) -> io::Result<()> {
    let last = bytes / SECTOR_BYTES - 1;
    let table = table(parts);
    let second_table = last - TABLE_SECTORS;
    disk.write_all_at(&protective_mbr(last), 0)?;
    disk.write_all_at(&header(1, last, 2, last, id, &table), SECTOR_BYTES)?;
    disk.write_all_at(&table, 2 * SECTOR_BYTES)?;
    disk.write_all_at(&table, second_table * SECTOR_BYTES)?;
    disk.write_all_at(&header(last, 1, second_table, last, id, &table), last * SECTOR_BYTES)
}

fn table(parts: &[Partition]) -> Vec<u8> {
    let mut table = vec![0; TABLE_BYTES];
    for (part, entry) in parts.iter().zip(table.chunks_mut(ENTRY_BYTES)) {
        entry[..16].copy_from_slice(&part.kind);
        entry[16..32].copy_from_slice(&part.id);
        let first = part.start / SECTOR_BYTES;
        let last = (part.start + part.bytes) / SECTOR_BYTES - 1;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (unit, place) in part.name.encode_utf16().zip(entry[56..].chunks_mut(2)) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }
    table
}

/// The header that lies at sector `here`, whose copy lies at `other`.
fn header(
    here: u64,
    other: u64,
    table_at: u64,
    last: u64,
    id: [u8; 16],
    table: &[u8],
) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..8].copy_from_slice(b"EFI PART");
    bytes[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&92_u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&here.to_le_bytes());
    bytes[32..40].copy_from_slice(&other.to_le_bytes());
    bytes[40..48].copy_from_slice(&(2 + TABLE_SECTORS).to_le_bytes());
    bytes[48..56].copy_from_slice(&(last - TABLE_SECTORS - 1).to_le_bytes());
    bytes[56..72].copy_from_slice(&id);
    bytes[72..80].copy_from_slice(&table_at.to_le_bytes());
    bytes[80..84].copy_from_slice(&128_u32.to_le_bytes());
    bytes[84..88].copy_from_slice(&128_u32.to_le_bytes());
    bytes[88..92].copy_from_slice(&crc32(table).to_le_bytes());
    let sum = crc32(&bytes[..HEADER_BYTES]);
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Tells tools that know no GPT that the disk is in use.
fn protective_mbr(last: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    let entry = &mut bytes[446..462];
    entry[..8].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    bytes[510..].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

/// CRC-32 as Ethernet and GPT use it.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(sum & 1))
        })
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_check_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_table_holds_first_and_last_sector() {
        let part = Partition {
            kind: LINUX_DATA,
            id: [7; 16],
            name: "root",
            start: 1 << 20,
            bytes: 1 << 20,
        };
        let table = table(&[part]);
        assert_eq!(table[32..40], 2048_u64.to_le_bytes());
        assert_eq!(table[40..48], 4095_u64.to_le_bytes());
        assert_eq!(&table[56..64], b"r\0o\0o\0t\0");
    }
}
