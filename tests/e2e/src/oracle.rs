//! What a disk may hold, from the writes that were issued and acknowledged.
//!
//! Every write has a *version*, counted from 1 in the order of issue, and every block that it writes
//! follows from block number, version and seed. A block found on a disk therefore tells which write
//! it comes from. Writes come from several *lanes*, each of which waits for its answer before it
//! issues the next; two lanes may write the same block at the same time, and either may win.
//!
//! Issues and answers are counted by one clock of *moments*. A write is in the stream for certain
//! when it was answered before a moment, and for certain not when it was issued after it. So a disk
//! may hold, of each block, the last acknowledged write or any issued after it, nothing else; and a
//! recovery point must be the state at one moment, the same for all blocks.

mod verdict;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::image::{self, BLOCK_BYTES};
use crate::random::Random;

pub use verdict::Prefix;

const MAGIC: &[u8; 8] = b"FSE2EBLK";
/// Bytes of a block that say where it comes from; the rest follows from them.
const HEAD_BYTES: usize = 32;

/// What a write left in its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks as [`WriteLog::content`] makes them.
    Data,
    /// Zeros.
    Zeroes,
}

/// A moment of the log's clock, which ticks at every issue and every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Before all writes.
    pub const START: Self = Self(0);
    /// After all writes, those to come included.
    pub const END: Self = Self(u64::MAX);
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    lane: u32,
    first_block: u32,
    blocks: u32,
    issued: u64,
    /// When it was answered or its connection was known to be gone for good; from then on it does
    /// nothing that it has not done. `u64::MAX` while it is under way.
    ended: u64,
    is_acked: bool,
}

/// Every write of a test to one disk.
#[derive(Debug)]
pub struct WriteLog {
    seed: u64,
    clock: u64,
    entries: Vec<Entry>,
    /// Versions that touched each block, rising.
    blocks: Vec<Vec<u32>>,
    /// The write that each lane has under way, 0 for none.
    under_way: Vec<usize>,
    totals: Totals,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Writes issued, of data and of zeros.
    pub issued: u64,
    /// Bytes of those.
    pub issued_bytes: u64,
    /// Writes acknowledged.
    pub acked: u64,
    /// Bytes of those.
    pub acked_bytes: u64,
}

/// Where in the stream of writes an image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The image holds nothing issued after this version.
    pub version: usize,
    /// Blocks that hold something of this test.
    pub written_blocks: usize,
}

/// Makes the block that `version` writes at block `number` in a log without a seed.
#[must_use]
pub fn block(number: u64, version: usize) -> Vec<u8> {
    seeded_block(0, number, version)
}

/// A head that says where it comes from, text, random bytes.
fn seeded_block(seed: u64, number: u64, version: usize) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&(version as u64).to_le_bytes());
    bytes[24..HEAD_BYTES].copy_from_slice(&seed.to_le_bytes());
    let mut random = Random::new(number ^ ((version as u64) << 24) ^ seed.rotate_left(17));
    image::text(&mut random, &mut bytes[HEAD_BYTES..BLOCK_BYTES / 4]);
    random.fill(&mut bytes[BLOCK_BYTES / 4..]);
    bytes
}

impl WriteLog {
    /// A log for a disk of `bytes`.
    ///
    /// # Errors
    /// If the disk is larger than the log can index.
    pub fn new(bytes: u64) -> Result<Self> {
        Self::with_seed(bytes, 0)
    }

    /// A log whose blocks are told from those of logs with another seed.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_seed(bytes: u64, seed: u64) -> Result<Self> {
        let blocks = u32::try_from(bytes / BLOCK_BYTES as u64).context("a disk for a test")?;
        Ok(Self {
            seed,
            clock: 0,
            entries: Vec::new(),
            blocks: vec![Vec::new(); usize::try_from(blocks)?],
            under_way: Vec::new(),
            totals: Totals::default(),
        })
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Now.
    pub fn moment(&mut self) -> Moment {
        Moment(self.tick())
    }

    /// Notes a write of the only lane before it is sent; returns its version.
    pub fn issue(&mut self, first_block: usize, blocks: usize, kind: Kind) -> usize {
        self.issue_by(0, first_block, blocks, kind)
    }

    /// Notes a write before it is sent; returns its version. What the lane had under way is over.
    ///
    /// # Panics
    /// If the blocks are not on the disk, or there are more writes than 32 bits count.
    pub fn issue_by(&mut self, lane: u32, first_block: usize, blocks: usize, kind: Kind) -> usize {
        self.lose(lane);
        let narrow = |number: usize| u32::try_from(number).expect("a test counts in 32 bits");
        let issued = self.tick();
        self.entries.push(Entry {
            kind,
            lane,
            first_block: narrow(first_block),
            blocks: narrow(blocks),
            issued,
            ended: u64::MAX,
            is_acked: false,
        });
        let version = self.entries.len();
        for block in &mut self.blocks[first_block..first_block + blocks] {
            block.push(narrow(version));
        }
        self.under_way[lane as usize] = version;
        self.totals.issued += 1;
        self.totals.issued_bytes += (blocks * BLOCK_BYTES) as u64;
        version
    }

    /// Notes that what a lane had under way got no answer and, its server being gone, never will.
    pub fn lose(&mut self, lane: u32) {
        let lane = lane as usize;
        if self.under_way.len() <= lane {
            self.under_way.resize(lane + 1, 0);
        }
        let version = std::mem::take(&mut self.under_way[lane]);
        if version > 0 {
            self.entries[version - 1].ended = self.tick();
        }
    }

    /// Notes that a write was acknowledged.
    ///
    /// # Panics
    /// If it is not under way.
    pub fn acknowledge(&mut self, version: usize) {
        let ended = self.tick();
        let entry = &mut self.entries[version - 1];
        let under_way = &mut self.under_way[entry.lane as usize];
        assert_eq!(*under_way, version, "a write is acknowledged once, while it is under way");
        *under_way = 0;
        (entry.ended, entry.is_acked) = (ended, true);
        self.totals.acked += 1;
        self.totals.acked_bytes += u64::from(entry.blocks) * BLOCK_BYTES as u64;
    }

    /// The bytes that a write has at a block.
    #[must_use]
    pub fn content(&self, number: u64, version: usize) -> Vec<u8> {
        seeded_block(self.seed, number, version)
    }

    /// As [`Self::content`], of a log with this seed that need not be at hand.
    #[must_use]
    pub fn bytes_of(seed: u64, number: u64, version: usize) -> Vec<u8> {
        seeded_block(seed, number, version)
    }

    /// What tells its blocks from those of other logs.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The version issued last, 0 before the first.
    #[must_use]
    pub fn issued(&self) -> usize {
        self.entries.len()
    }

    /// The highest version acknowledged, 0 before the first.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.entries.iter().rposition(|entry| entry.is_acked).map_or(0, |at| at + 1)
    }

    /// How much was written.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Checks that the disk holds every acknowledged write.
    ///
    /// # Errors
    /// If a block holds something else.
    pub fn check_disk(&self, disk: &Path, base: &Path) -> Result<Standing> {
        let found = self.read_image(disk, base)?;
        for (number, found) in found.iter().enumerate() {
            ensure!(
                self.stands(number, *found, self.clock.saturating_add(1)),
                "check {}: block {number} holds {found}; its writes are {}",
                disk.display(),
                self.history(number, *found)
            );
        }
        Ok(self.standing(&found, u64::MAX))
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
        let earliest = match from.checked_sub(1).map(|at| self.entries[at]) {
            Some(entry) if entry.is_acked => entry.ended + 1,
            Some(entry) => entry.issued + 1,
            None => 0,
        };
        let latest = self.entries.get(to).map_or(u64::MAX, |entry| entry.issued);
        self.check_prefix(image, base, Moment(earliest), Moment(latest))
            .map(|prefix| prefix.standing)
    }

    /// Checks that an image is the state of the disk at one moment of `from..=to`, with every write
    /// in it whole, and says at which.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_prefix(
        &self,
        image: &Path,
        base: &Path,
        from: Moment,
        to: Moment,
    ) -> Result<Prefix> {
        let found = self.read_image(image, base)?;
        self.prefix(&found, from, to).with_context(|| format!("check {}", image.display()))
    }

    /// Checks what a read of one block answered that began at `from`, given what the block held
    /// before all writes.
    ///
    /// # Errors
    /// If a write that was acknowledged before that is missing.
    pub fn check_read(&self, number: usize, bytes: &[u8], base: &[u8], from: Moment) -> Result<()> {
        let found = self.classify(number as u64, bytes, base);
        ensure!(
            self.stands(number, found, from.0),
            "a read of block {number} answered {found}; its writes are {}",
            self.history(number, found)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
