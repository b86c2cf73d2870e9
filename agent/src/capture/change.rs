//! A change of the disk as a client asked for it, and the log entries that describe it.
//!
//! Entries are whole blocks. Changes off the 4 KiB grid are logged as the blocks that they touch, read
//! back from the disk after it took the change.

use crate::hrl::Entry;
use bytes::Bytes;
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use std::io;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A change of the disk; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Bytes.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Whether their space may be given up.
        may_trim: bool,
    },
}

impl Change {
    /// First byte and number of bytes.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Write { offset, data } => (*offset, data.len() as u64),
            Self::Zero { offset, length, .. } => (*offset, *length),
        }
    }

    /// Whether it is whole blocks.
    #[must_use]
    pub fn is_on_grid(&self) -> bool {
        let (offset, length) = self.bytes();
        offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK)
    }

    /// The blocks that it touches.
    #[must_use]
    pub fn blocks(&self) -> BlockRange {
        let (offset, length) = self.bytes();
        let block = offset / BLOCK;
        BlockRange { block, count: (offset + length).div_ceil(BLOCK) - block }
    }

    /// Puts the change into the log: `read` reads blocks of the disk, which has taken the change;
    /// `append` tells whether the log took the entries. Whether it did.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn log(
        &self,
        read: impl Fn(BlockRange) -> io::Result<Vec<u8>>,
        append: impl FnOnce(&[Entry<'_>]) -> bool,
    ) -> io::Result<bool> {
        let blocks = self.blocks();
        let (offset, length) = self.bytes();
        match self {
            Self::Write { data, .. } if self.is_on_grid() => {
                Ok(append(&[Entry::Write { block: blocks.block, data, is_copy: false }]))
            }
            Self::Write { .. } => {
                let data = read(blocks)?;
                Ok(append(&[Entry::Write { block: blocks.block, data: &data, is_copy: false }]))
            }
            Self::Zero { .. } => log_zeros(offset, length, read, append),
        }
    }
}

fn log_zeros(
    offset: u64,
    length: u64,
    read: impl Fn(BlockRange) -> io::Result<Vec<u8>>,
    append: impl FnOnce(&[Entry<'_>]) -> bool,
) -> io::Result<bool> {
    let (first, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
    let first_whole = offset.div_ceil(BLOCK);
    let end_whole = (offset + length) / BLOCK;
    if first_whole >= end_whole {
        let data = read(BlockRange { block: first, count: end - first })?;
        return Ok(append(&[Entry::Write { block: first, data: &data, is_copy: false }]));
    }
    let edge = |block: u64| read(BlockRange { block, count: 1 });
    let head = (first_whole > first).then(|| edge(first)).transpose()?;
    let tail = (end_whole < end).then(|| edge(end_whole)).transpose()?;
    let mut entries = Vec::with_capacity(3);
    if let Some(data) = &head {
        entries.push(Entry::Write { block: first, data, is_copy: false });
    }
    let range = BlockRange { block: first_whole, count: end_whole - first_whole };
    entries.push(Entry::Zero { range, is_copy: false });
    if let Some(data) = &tail {
        entries.push(Entry::Write { block: end_whole, data, is_copy: false });
    }
    Ok(append(&entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(change: &Change) -> Vec<(char, u64, u64)> {
        let mut shapes = Vec::new();
        let read = |blocks: BlockRange| {
            let length = usize::try_from(blocks.bytes()).unwrap();
            Ok(vec![7; length])
        };
        let is_logged = change.log(read, |entries| {
            shapes.extend(entries.iter().map(|entry| match entry {
                Entry::Write { block, data, is_copy: false } => {
                    ('d', *block, (data.len() / BLOCK_BYTES) as u64)
                }
                Entry::Zero { range, is_copy: false } => ('z', range.block, range.count),
                _ => unreachable!("live, and no marks"),
            }));
            true
        });
        assert!(is_logged.unwrap());
        shapes
    }

    fn zero(offset: u64, length: u64) -> Change {
        Change::Zero { offset, length, may_trim: true }
    }

    fn write(offset: u64, length: usize) -> Change {
        Change::Write { offset, data: Bytes::from(vec![1; length]) }
    }

    #[test]
    fn entries_are_whole_blocks_wherever_the_change_lies() {
        assert_eq!(shape(&write(8192, 8192)), [('d', 2, 2)]);
        assert_eq!(shape(&write(8191, 2)), [('d', 1, 2)]);
        assert_eq!(shape(&zero(4096, 8192)), [('z', 1, 2)]);
        assert_eq!(shape(&zero(5000, 100)), [('d', 1, 1)]);
        assert_eq!(shape(&zero(5000, 4096)), [('d', 1, 2)]);
        assert_eq!(shape(&zero(5000, 8192)), [('d', 1, 1), ('z', 2, 1), ('d', 3, 1)]);
        assert_eq!(shape(&zero(4096, 4097)), [('z', 1, 1), ('d', 2, 1)]);
        assert_eq!(shape(&zero(4095, 4097)), [('d', 0, 1), ('z', 1, 1)]);
    }
}
