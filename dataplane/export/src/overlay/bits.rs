//! The bitmap of an overlay: in memory, and in the sectors of its map.

use farshore_proto::BlockRange;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A sector is what a disk writes whole or not at all, power cut or not: each has a checksum of its own.
pub(super) const SECTOR_BYTES: usize = 512;
/// Words of bits in a sector; behind them are its number and its checksum.
const SECTOR_WORDS: usize = 63;
const NUMBER_AT: usize = SECTOR_WORDS * 8;
const CRC_AT: usize = NUMBER_AT + 4;
const _: () = assert!(CRC_AT + 4 == SECTOR_BYTES);
/// Blocks that a sector is about.
const SECTOR_BLOCKS: u64 = SECTOR_WORDS as u64 * 64;
/// Sectors that are read and written together.
const SECTORS_AT_ONCE: usize = 2048;

/// Which of the two bitmaps a sector is of; part of its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Flushed = 1,
    Live = 2,
}

/// A sector that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadSector {
    pub(super) number: usize,
}

/// One bit per block, set once and never cleared.
#[derive(Debug)]
pub(super) struct Bits {
    words: Vec<AtomicU64>,
    /// Sectors with bits that are not in `flushed` yet.
    changed: Mutex<BTreeSet<usize>>,
}

/// Sectors that follow one another: byte offset in the bitmap, and content.
pub(super) type Sectors = (u64, Vec<u8>);

fn sectors(size_bytes: u64) -> usize {
    let blocks = blocks_of(size_bytes);
    usize::try_from(blocks.div_ceil(SECTOR_BLOCKS)).expect("a volume has a limit")
}

/// Bytes of the bitmap of a volume in the map, whole blocks.
pub(super) fn bitmap_bytes(size_bytes: u64) -> u64 {
    ((sectors(size_bytes) * SECTOR_BYTES) as u64).next_multiple_of(BLOCK_BYTES as u64)
}

impl Bits {
    /// No bit is set.
    pub(super) fn empty(size_bytes: u64) -> Self {
        let words = (0..sectors(size_bytes) * SECTOR_WORDS).map(|_| AtomicU64::new(0));
        Self { words: words.collect(), changed: Mutex::default() }
    }

    /// Reads the bitmap that begins at `offset` of the map.
    pub(super) fn read(
        file: &File,
        offset: u64,
        size_bytes: u64,
        kind: Kind,
    ) -> io::Result<Result<Self, BadSector>> {
        let bits = Self::empty(size_bytes);
        let count = sectors(size_bytes);
        let mut bytes = vec![0; SECTORS_AT_ONCE.min(count) * SECTOR_BYTES];
        for first in (0..count).step_by(SECTORS_AT_ONCE) {
            let part = (count - first).min(SECTORS_AT_ONCE);
            let bytes = &mut bytes[..part * SECTOR_BYTES];
            file.read_exact_at(bytes, offset + (first * SECTOR_BYTES) as u64)?;
            for (number, sector) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
                if !bits.take_sector(number, kind, sector) {
                    return Ok(Err(BadSector { number }));
                }
            }
        }
        let blocks = blocks_of(size_bytes);
        if (blocks..count as u64 * SECTOR_BLOCKS).any(|block| bits.is_set(block)) {
            return Ok(Err(BadSector { number: count - 1 }));
        }
        Ok(Ok(bits))
    }

    /// Writes all of it as the bitmap that begins at `offset` of the map.
    pub(super) fn write(&self, file: &File, offset: u64, kind: Kind) -> io::Result<()> {
        let count = self.words.len() / SECTOR_WORDS;
        for first in (0..count).step_by(SECTORS_AT_ONCE) {
            let (from, bytes) = self.sectors(first, (first + SECTORS_AT_ONCE).min(count), kind);
            file.write_all_at(&bytes, offset + from)?;
        }
        Ok(())
    }

    /// Takes the bits of a sector; false if it is not what was written. All of them were when the map was made:
    /// one of zeros has lost what it said.
    fn take_sector(&self, number: usize, kind: Kind, sector: &[u8]) -> bool {
        let is_it = sector[NUMBER_AT..CRC_AT] == low(number).to_le_bytes()
            && sector[CRC_AT..] == checksum(&sector[..CRC_AT], kind).to_le_bytes();
        if !is_it {
            return false;
        }
        let words = &self.words[number * SECTOR_WORDS..][..SECTOR_WORDS];
        for (word, bytes) in words.iter().zip(sector.chunks_exact(8)) {
            let bytes = bytes.try_into().expect("chunks of eight");
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        true
    }

    pub(super) fn is_set(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.words[word].load(Ordering::Acquire) & bit != 0
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Whether all bits of a range are set.
    pub(super) fn holds_all(&self, range: BlockRange) -> bool {
        (range.block..range.end()).all(|block| self.is_set(block))
    }

    /// Sets the bits of a range.
    pub(super) fn set(&self, range: BlockRange) {
        let mut sectors = BTreeSet::new();
        for block in range.block..range.end() {
            let (word, bit) = place(block);
            // A rewritten block must be synced again, but its bit is in the file already.
            if self.words[word].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                sectors.insert(word / SECTOR_WORDS);
            }
        }
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).append(&mut sectors);
    }

    /// Notes that all sectors with a set bit differ from `flushed`.
    pub(super) fn change_all(&self) {
        let is_used =
            |sector: &[AtomicU64]| sector.iter().any(|word| word.load(Ordering::Relaxed) != 0);
        let used = self.words.chunks(SECTOR_WORDS).enumerate().filter(|(_, words)| is_used(words));
        let mut used = used.map(|(number, _)| number).collect();
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).append(&mut used);
    }

    /// The sectors of `flushed` that changed since the last call, as they are now; neighbours together.
    pub(super) fn take_changed(&self) -> Vec<Sectors> {
        let changed =
            std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for number in changed {
            match runs.last_mut() {
                Some((first, end)) if *end == number && number - *first < SECTORS_AT_ONCE => {
                    *end += 1;
                }
                _ => runs.push((number, number + 1)),
            }
        }
        runs.into_iter().map(|(first, end)| self.sectors(first, end, Kind::Flushed)).collect()
    }

    /// The sectors of `live` that a range is in, with its bits set.
    pub(super) fn sectors_with(&self, range: BlockRange) -> Sectors {
        let number = |block: u64| place(block).0 / SECTOR_WORDS;
        let (first, last) = (number(range.block), number(range.end() - 1));
        let (from, mut bytes) = self.sectors(first, last + 1, Kind::Live);
        for block in range.block..range.end() {
            let (word, bit) = place(block);
            let (sector, word) = (word / SECTOR_WORDS - first, word % SECTOR_WORDS);
            let at = sector * SECTOR_BYTES + word * 8;
            for (byte, bit) in bytes[at..at + 8].iter_mut().zip(bit.to_le_bytes()) {
                *byte |= bit;
            }
        }
        for (number, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            seal(sector, number, Kind::Live);
        }
        (from, bytes)
    }

    fn sectors(&self, first: usize, end: usize, kind: Kind) -> Sectors {
        let mut bytes = vec![0; (end - first) * SECTOR_BYTES];
        for (number, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            let words = &self.words[number * SECTOR_WORDS..][..SECTOR_WORDS];
            for (word, bytes) in words.iter().zip(sector.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
            }
            seal(sector, number, kind);
        }
        ((first * SECTOR_BYTES) as u64, bytes)
    }
}

/// Writes the number and the checksum of a sector behind its bits.
fn seal(sector: &mut [u8], number: usize, kind: Kind) {
    sector[NUMBER_AT..CRC_AT].copy_from_slice(&low(number).to_le_bytes());
    let crc = checksum(&sector[..CRC_AT], kind);
    sector[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(bytes: &[u8], kind: Kind) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(bytes), &[kind as u8])
}

fn low(number: usize) -> u32 {
    u32::try_from(number).expect("a volume has fewer sectors")
}

fn place(block: u64) -> (usize, u64) {
    (usize::try_from(block / 64).expect("a volume has fewer blocks"), 1 << (block % 64))
}
