//! A volume's stream as an honest agent would send it, and the disk that it makes.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::frame::{BLOCK_BYTES, Frame, Hello, Mark, imprint};

/// What was sent of a volume, and what its disk must be.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The volume.
    pub volume: [u8; 16],
    /// The epoch under which it is sent.
    pub epoch: u64,
    /// Seq of the next frame.
    pub next: u64,
    /// Imprint of the newest frame; zero if it is not known.
    pub newest: [u8; 3],
    disk: Vec<u8>,
}

impl Stream {
    /// The stream of a disk of zeros.
    #[must_use]
    pub fn new(volume: [u8; 16], epoch: u64, blocks: usize) -> Self {
        Self { volume, epoch, next: 1, newest: [0; 3], disk: vec![0; blocks * BLOCK_BYTES] }
    }

    /// Size of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.disk.len() as u64
    }

    /// Blocks of the disk.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size() / BLOCK_BYTES as u64
    }

    /// The hello of an agent whose log holds everything.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello {
            must: 0,
            may: 0,
            volume: self.volume,
            epoch: self.epoch,
            size: self.size(),
            first_seq: 1,
            last_seq: self.next - 1,
            mark_interval: 1000,
            life: 1,
            overtaken: 0,
            reserved: [0; 7],
        }
    }

    /// The next frame: some block, with bytes that only this seq has.
    pub fn some_write(&mut self) -> Vec<u8> {
        let block = self.next.wrapping_mul(0x9e37_79b9) % self.blocks();
        self.write(block, 1)
    }

    /// The next frame: blocks with bytes that only this seq has.
    ///
    /// # Panics
    /// If they are not on the disk: a mistake in a case.
    pub fn write(&mut self, block: u64, count: u64) -> Vec<u8> {
        let (seq, data) = self.next_data(block, count);
        self.behind(Frame::write(seq, block, data))
    }

    fn next_data(&mut self, block: u64, count: u64) -> (u64, Vec<u8>) {
        let (seq, range) = (self.take(), self.range(block, count));
        let words =
            (0..range.len() as u64 / 8).map(|n| seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n);
        let data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        self.disk[range].copy_from_slice(&data);
        (seq, data)
    }

    /// The next frame: as [`Self::write`], with these flags.
    ///
    /// # Panics
    /// As [`Self::write`].
    pub fn flagged(&mut self, flags: u8, block: u64, count: u64) -> Vec<u8> {
        let (seq, data) = self.next_data(block, count);
        self.behind(Frame { flags, ..Frame::write(seq, block, data) })
    }

    /// Notes that a frame with these blocks was taken as the next.
    ///
    /// # Panics
    /// As [`Self::write`].
    pub fn taken(&mut self, block: u64, data: &[u8]) {
        self.take();
        self.newest = [0; 3];
        let range = self.range(block, (data.len() / BLOCK_BYTES) as u64);
        self.disk[range].copy_from_slice(data);
    }

    /// The next frame: a run of zeros.
    ///
    /// # Panics
    /// As [`Self::write`].
    pub fn zero(&mut self, block: u64, count: u64) -> Vec<u8> {
        let (seq, range) = (self.take(), self.range(block, count));
        self.disk[range].fill(0);
        self.behind(Frame::zero(seq, block, count))
    }

    /// The next frame: a recovery point.
    pub fn mark(&mut self, mark: &Mark) -> Vec<u8> {
        let seq = self.take();
        self.behind(Frame::mark(seq, mark))
    }

    fn behind(&mut self, frame: Frame) -> Vec<u8> {
        let bytes = Frame { previous: self.newest, ..frame }.bytes();
        self.newest = imprint(&bytes);
        bytes
    }

    fn take(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn range(&self, block: u64, count: u64) -> std::ops::Range<usize> {
        let byte = |block: u64| usize::try_from(block).map_or(usize::MAX, |n| n * BLOCK_BYTES);
        let range = byte(block)..byte(block + count);
        assert!(range.end <= self.disk.len(), "blocks {block} and {count} more are on the disk");
        range
    }

    /// Compares a restored disk.
    ///
    /// # Errors
    /// If it differs, saying where first.
    pub fn equals(&self, restored: &Path) -> Result<()> {
        let found = std::fs::read(restored).context("read the restored disk")?;
        ensure!(found.len() == self.disk.len(), "{} bytes were restored", found.len());
        let pairs = self.disk.chunks(BLOCK_BYTES).zip(found.chunks(BLOCK_BYTES));
        let differing: Vec<usize> =
            pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(block, _)| block).collect();
        ensure!(
            differing.is_empty(),
            "{} blocks differ, the first is {:?}",
            differing.len(),
            differing.first()
        );
        Ok(())
    }
}
