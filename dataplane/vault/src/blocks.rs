//! The block map of a view: which chunk holds which blocks.
//!
//! Only data is in the map: a block that is not in it is zero, written so or never written.

use farshore_proto::{BlockRange, ChunkId};
use std::collections::BTreeMap;

/// Bytes of a chunk's id that the map keeps: enough to tell another chunk from the right one.
const CHECK_BYTES: usize = 12;

/// The place of a chunk that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkAt {
    /// Number of its segment in the view's list.
    pub(crate) target: u32,
    /// Number of the chunk in the table of the segment, which holds it.
    pub(crate) chunk: u32,
}

/// Blocks of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Number of its segment in the view's list.
    pub target: u32,
    /// Number of the chunk in the table of the segment, which holds it.
    pub chunk: u32,
    /// First block inside the chunk.
    pub first: u32,
    /// The first bytes of its id, compared when it is read.
    check: [u8; CHECK_BYTES],
}

impl Source {
    /// Blocks from `first` on of the chunk `id` that is stored at `at`.
    pub(crate) fn new(at: ChunkAt, id: &ChunkId, first: u32) -> Self {
        let ChunkAt { target, chunk } = at;
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&id.0[..CHECK_BYTES]);
        Self { target, chunk, first, check }
    }

    /// Where the chunk is stored.
    pub(crate) fn at(&self) -> ChunkAt {
        ChunkAt { target: self.target, chunk: self.chunk }
    }

    /// Whether the chunk has this id.
    pub(crate) fn is_of(&self, id: &ChunkId) -> bool {
        id.0.starts_with(&self.check)
    }

    /// What is left behind its first blocks.
    pub(crate) fn skip(self, blocks: u64) -> Self {
        let blocks = u32::try_from(blocks).expect("inside the run");
        Self { first: self.first + blocks, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    count: u32,
    source: Source,
}

impl Run {
    fn skip(self, blocks: u64) -> Self {
        let source = self.source.skip(blocks);
        Self { count: self.count - (source.first - self.source.first), source }
    }
}

/// The map: first block → run. Runs do not overlap.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockMap {
    runs: BTreeMap<u64, Run>,
}

impl BlockMap {
    /// Number of runs.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Number of blocks that hold data.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.runs.values().map(|run| u64::from(run.count)).sum()
    }

    /// The blocks are zero now.
    pub(crate) fn clear(&mut self, range: BlockRange) {
        if let Some((&block, &run)) = self.runs.range(..range.block).next_back() {
            let end = block + u64::from(run.count);
            if end > range.block {
                let kept = u32::try_from(range.block - block).expect("inside the run");
                self.runs.insert(block, Run { count: kept, ..run });
                if end > range.end() {
                    self.runs.insert(range.end(), run.skip(range.end() - block));
                }
            }
        }
        while let Some((&block, &run)) = self.runs.range(range.block..range.end()).next() {
            self.runs.remove(&block);
            if block + u64::from(run.count) > range.end() {
                self.runs.insert(range.end(), run.skip(range.end() - block));
            }
        }
    }

    /// The blocks hold those of `source` and the ones after it.
    pub(crate) fn insert(&mut self, range: BlockRange, source: Source) {
        self.clear(range);
        let count = u32::try_from(range.count).expect("an extent of a chunk is short");
        self.runs.insert(range.block, Run { count, source });
    }

    /// As `insert`, behind everything that is in the map.
    pub(crate) fn append(&mut self, range: BlockRange, source: Source) {
        let count = u32::try_from(range.count).expect("an extent of a chunk is short");
        self.runs.insert(range.block, Run { count, source });
    }

    /// The runs in a range, cut to it, in block order.
    pub(crate) fn runs(
        &self,
        range: BlockRange,
    ) -> impl Iterator<Item = (BlockRange, Source)> + '_ {
        let before = self.runs.range(..range.block).next_back();
        let inside = self.runs.range(range.block..range.end());
        before.into_iter().chain(inside).filter_map(move |(&block, &run)| {
            let end = (block + u64::from(run.count)).min(range.end());
            let from = block.max(range.block);
            (from < end).then(|| {
                let cut = run.skip(from - block);
                (BlockRange { block: from, count: end - from }, cut.source)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 64;

    fn source(write: usize) -> Source {
        let write = u32::try_from(write).unwrap();
        let at = ChunkAt { target: 0, chunk: write };
        Source::new(at, &ChunkId([0; 32]), 100)
    }

    proptest! {
        #[test]
        fn holds_the_last_writer_of_every_block(
            writes in prop::collection::vec((0..BLOCKS, 1..20_u64, any::<bool>()), 0..40),
            from in 0..BLOCKS,
            count in 1..BLOCKS,
        ) {
            let mut model = vec![None; 128];
            let mut map = BlockMap::default();
            for (write, (block, count, is_zero)) in writes.into_iter().enumerate() {
                let range = BlockRange { block, count };
                if is_zero {
                    map.clear(range);
                } else {
                    map.insert(range, source(write));
                }
                for at in range.block..range.end() {
                    let held = u32::try_from(at - block).unwrap();
                    model[usize::try_from(at).unwrap()] =
                        (!is_zero).then(|| Source { first: 100 + held, ..source(write) });
                }
            }
            let mut read = vec![None; 128];
            let mut floor = 0;
            for (run, source) in map.runs(BlockRange { block: from, count }) {
                prop_assert!(run.block >= floor && run.count > 0);
                floor = run.end();
                for at in run.block..run.end() {
                    let held = u32::try_from(at - run.block).unwrap();
                    read[usize::try_from(at).unwrap()] =
                        Some(Source { first: source.first + held, ..source });
                }
            }
            for at in 0..128_usize {
                let is_asked = (from..from + count).contains(&(at as u64));
                prop_assert_eq!(read[at], if is_asked { model[at] } else { None });
            }
            let data = model.iter().filter(|block| block.is_some()).count();
            prop_assert_eq!(map.data_blocks(), data as u64);
        }
    }
}
