//! What a disk may hold, from the writes that were issued and acknowledged.
//!
//! Every write has a *version*, counted from 1 in the order of issue, and every block that it writes
//! follows from block number and version. A block found on a disk therefore tells which write it
//! comes from. After a crash a block may hold its last acknowledged write or any issued after it,
//! nothing else; a recovery point must hold the state after some version, for all blocks the same.

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::image::{self, BLOCK_BYTES};
use crate::random::Random;

const MAGIC: &[u8; 8] = b"FSE2EBLK";

/// What a write left in its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks as [`block`] makes them.
    Data,
    /// Zeros.
    Zeroes,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    is_acked: bool,
}

/// Every write of a test.
#[derive(Debug)]
pub struct WriteLog {
    entries: Vec<Entry>,
    /// Versions that touched each block, rising.
    blocks: Vec<Vec<usize>>,
}

/// Where in the stream of writes an image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The image holds all writes up to this version, as far as they were acknowledged.
    pub version: usize,
    /// Blocks that hold something of this test.
    pub written_blocks: usize,
}

/// Makes the block that `version` writes at block `number`: a head, text, random bytes.
#[must_use]
pub fn block(number: u64, version: usize) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&(version as u64).to_le_bytes());
    let mut random = Random::new(number ^ ((version as u64) << 24));
    image::text(&mut random, &mut bytes[24..BLOCK_BYTES / 2]);
    random.fill(&mut bytes[BLOCK_BYTES / 2..]);
    bytes
}

/// The version that a block comes from, or nothing when it is not of this test.
fn version_of(number: u64, bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let version = usize::try_from(word(16)?).ok()?;
    let is_ours = bytes.starts_with(MAGIC) && word(8)? == number;
    (is_ours && bytes == block(number, version)).then_some(version)
}

/// What one block of an image was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Version(usize),
    Zeroes,
    Base,
    /// Zeros, on a block that was zero before all writes.
    BaseZeroes,
    Other,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version}"),
            Self::Zeroes | Self::BaseZeroes => f.write_str("zeros"),
            Self::Base => f.write_str("what was there before all writes"),
            Self::Other => f.write_str("bytes that nobody wrote"),
        }
    }
}

impl WriteLog {
    /// A log for a disk of `bytes`.
    ///
    /// # Errors
    /// If the disk is larger than memory can index.
    pub fn new(bytes: u64) -> Result<Self> {
        let blocks = usize::try_from(bytes)? / BLOCK_BYTES;
        Ok(Self { entries: Vec::new(), blocks: vec![Vec::new(); blocks] })
    }

    /// Notes a write before it is sent; returns its version.
    pub fn issue(&mut self, first_block: usize, blocks: usize, kind: Kind) -> usize {
        self.entries.push(Entry { kind, is_acked: false });
        let version = self.entries.len();
        for block in &mut self.blocks[first_block..first_block + blocks] {
            block.push(version);
        }
        version
    }

    /// Notes that a write was acknowledged.
    pub fn acknowledge(&mut self, version: usize) {
        self.entries[version - 1].is_acked = true;
    }

    /// The version issued last, 0 before the first.
    #[must_use]
    pub fn issued(&self) -> usize {
        self.entries.len()
    }

    /// The version acknowledged last, 0 before the first.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.entries.iter().rposition(|entry| entry.is_acked).map_or(0, |at| at + 1)
    }

    /// Checks that the disk holds every acknowledged write.
    ///
    /// # Errors
    /// If a block holds something else.
    pub fn check_disk(&self, disk: &Path, base: &Path) -> Result<Standing> {
        let found = self.read(disk, base)?;
        self.check(&found, self.issued()).with_context(|| format!("check {}", disk.display()))
    }

    /// Checks that an image is the stream's prefix up to some version in `from..=to`, and says
    /// which.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_point(
        &self,
        image: &Path,
        base: &Path,
        from: usize,
        to: usize,
    ) -> Result<Standing> {
        let found = self.read(image, base)?;
        let newest = found.iter().filter_map(|found| match found {
            Found::Version(version) => Some(*version),
            _ => None,
        });
        let newest = newest.max().unwrap_or(0);
        ensure!(newest <= to, "the image holds version {newest}, issued after its mark ({to})");
        let lowest = newest.max(from);
        // Zeros name no version: the mark may lie behind writes of zeros that follow the newest data.
        let zeroes =
            self.entries[lowest..to].iter().take_while(|entry| entry.kind == Kind::Zeroes).count();
        let mut end = self.check(&found, lowest);
        for version in lowest + 1..=lowest + zeroes {
            end = end.or_else(|_| self.check(&found, version));
        }
        end.with_context(|| format!("check {}", image.display()))
    }

    fn check(&self, found: &[Found], version: usize) -> Result<Standing> {
        let mut written_blocks = 0;
        for (number, found) in found.iter().enumerate() {
            ensure!(
                self.allows(number, *found, version),
                "block {number} holds {found}; up to version {version} its writes are {}",
                self.history(number, version)
            );
            written_blocks += usize::from(!matches!(found, Found::Base | Found::BaseZeroes));
        }
        Ok(Standing { version, written_blocks })
    }

    /// Whether a block may hold this in the state after `version`.
    fn allows(&self, number: usize, found: Found, version: usize) -> bool {
        for touching in self.blocks[number].iter().rev().filter(|touching| **touching <= version) {
            let entry = self.entries[touching - 1];
            let is_this = match entry.kind {
                Kind::Data => found == Found::Version(*touching),
                Kind::Zeroes => matches!(found, Found::Zeroes | Found::BaseZeroes),
            };
            if is_this {
                return true;
            }
            if entry.is_acked {
                return false;
            }
        }
        matches!(found, Found::Base | Found::BaseZeroes)
    }

    fn history(&self, number: usize, version: usize) -> String {
        let newest = self.blocks[number].iter().rev().filter(|touching| **touching <= version);
        let newest = newest.take(5).map(|touching| {
            let Entry { kind, is_acked } = self.entries[touching - 1];
            let end = if is_acked { "acknowledged" } else { "issued" };
            format!("{touching} ({kind:?}, {end})")
        });
        newest.collect::<Vec<_>>().join(", ")
    }

    fn read(&self, image: &Path, base: &Path) -> Result<Vec<Found>> {
        let (mut image, mut base) = (image::blocks(image)?, image::blocks(base)?);
        let mut found = Vec::with_capacity(self.blocks.len());
        for number in 0..self.blocks.len() {
            let (bytes, before) = (image::next(&mut image)?, image::next(&mut base)?);
            found.push(classify(number as u64, &bytes, &before));
        }
        ensure!(image.read(&mut [0])? == 0, "the image is longer than the disk");
        Ok(found)
    }
}

fn classify(number: u64, bytes: &[u8], before: &[u8]) -> Found {
    if let Some(version) = version_of(number, bytes) {
        return Found::Version(version);
    }
    let is_zero = bytes.iter().all(|byte| *byte == 0);
    match (is_zero, bytes == before) {
        (true, true) => Found::BaseZeroes,
        (false, true) => Found::Base,
        (true, false) => Found::Zeroes,
        (false, false) => Found::Other,
    }
}

#[cfg(test)]
mod tests;
