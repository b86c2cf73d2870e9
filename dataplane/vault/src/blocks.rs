//! The block map of what was read of a stream: which chunk holds which blocks.
//!
//! Over nothing, a block that is not in it is zero, written so or never written. Over the layers of a map, blocks that
//! were made zero are in it too, and one that is not is what the layers say.

use farshore_proto::map::CHECK_BYTES;
use farshore_proto::{BlockRange, ChunkId};
use std::collections::BTreeMap;

/// Blocks of a chunk that a table names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    /// Number of its segment in the view's list.
    pub(crate) target: u32,
    /// Number of the chunk in the table of the segment, which holds it.
    pub(crate) chunk: u32,
    /// First block inside the chunk.
    pub(crate) first: u32,
    /// The first bytes of its id, compared when it is read.
    pub(crate) check: [u8; CHECK_BYTES],
}

/// The first bytes of a chunk's id.
pub(crate) fn check_of(id: &ChunkId) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&id.0[..CHECK_BYTES]);
    check
}

impl Source {
    /// What is left behind its first blocks.
    pub(crate) fn skip(self, blocks: u64) -> Self {
        let blocks = u32::try_from(blocks).expect("inside the run");
        Self { first: self.first + blocks, ..self }
    }
}

/// What a run of blocks holds; none: zeros.
type Content = Option<Source>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    count: u64,
    content: Content,
}

impl Run {
    fn skip(self, blocks: u64) -> Self {
        Self { count: self.count - blocks, content: self.content.map(|source| source.skip(blocks)) }
    }
}

/// The map: first block → run. Runs do not overlap.
#[derive(Debug, Default)]
pub(crate) struct BlockMap {
    runs: BTreeMap<u64, Run>,
    keeps_zeros: bool,
}

impl BlockMap {
    /// What lies over the layers of a map: zeros hide what is below.
    pub(crate) fn over_layers() -> Self {
        Self { keeps_zeros: true, ..Self::default() }
    }

    /// Number of runs.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Number of blocks that hold data.
    pub(crate) fn data_blocks(&self) -> u64 {
        let data = self.runs.values().filter(|run| run.content.is_some());
        data.map(|run| run.count).sum()
    }

    /// The blocks hold this now.
    pub(crate) fn set(&mut self, range: BlockRange, content: Content) {
        self.forget(range);
        if range.count > 0 && (content.is_some() || self.keeps_zeros) {
            self.runs.insert(range.block, Run { count: range.count, content });
        }
    }

    fn forget(&mut self, range: BlockRange) {
        if let Some((&block, &run)) = self.runs.range(..range.block).next_back() {
            let end = block + run.count;
            if end > range.block {
                self.runs.insert(block, Run { count: range.block - block, ..run });
                if end > range.end() {
                    self.runs.insert(range.end(), run.skip(range.end() - block));
                }
            }
        }
        while let Some((&block, &run)) = self.runs.range(range.block..range.end()).next() {
            self.runs.remove(&block);
            if block + run.count > range.end() {
                self.runs.insert(range.end(), run.skip(range.end() - block));
            }
        }
    }

    /// The runs in a range, cut to it, in block order.
    pub(crate) fn runs(
        &self,
        range: BlockRange,
    ) -> impl Iterator<Item = (BlockRange, Content)> + '_ {
        let before = self.runs.range(..range.block).next_back();
        let inside = self.runs.range(range.block..range.end());
        before.into_iter().chain(inside).filter_map(move |(&block, &run)| {
            let end = (block + run.count).min(range.end());
            let from = block.max(range.block);
            (from < end).then(|| {
                let cut = run.skip(from - block);
                (BlockRange { block: from, count: end - from }, cut.content)
            })
        })
    }

    /// The first block at or behind `block` that is in a run.
    pub(crate) fn next_at(&self, block: u64) -> Option<u64> {
        let rest = BlockRange { block, count: u64::MAX - block };
        self.runs(rest).next().map(|(run, _)| run.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 64;

    fn source(write: usize) -> Source {
        let chunk = u32::try_from(write).unwrap();
        Source { target: 0, chunk, first: 100, check: [0; CHECK_BYTES] }
    }

    proptest! {
        #[test]
        fn holds_the_last_writer_of_every_block(
            keeps_zeros: bool,
            writes in prop::collection::vec((0..BLOCKS, 1..20_u64, any::<bool>()), 0..40),
            from in 0..BLOCKS,
            count in 1..BLOCKS,
        ) {
            // Never written, zero, or a block of a source.
            let mut model: Vec<Option<Content>> = vec![None; 128];
            let mut map = if keeps_zeros { BlockMap::over_layers() } else { BlockMap::default() };
            for (write, (block, count, is_zero)) in writes.into_iter().enumerate() {
                let range = BlockRange { block, count };
                map.set(range, (!is_zero).then(|| source(write)));
                for at in range.block..range.end() {
                    let held = u32::try_from(at - block).unwrap();
                    model[usize::try_from(at).unwrap()] =
                        Some((!is_zero).then(|| Source { first: 100 + held, ..source(write) }));
                }
            }
            if !keeps_zeros {
                model.iter_mut().for_each(|block| *block = block.filter(Option::is_some));
            }
            let mut read: Vec<Option<Content>> = vec![None; 128];
            let mut floor = 0;
            let first = map.next_at(from);
            for (run, content) in map.runs(BlockRange { block: from, count }) {
                prop_assert!(floor > 0 || first == Some(run.block));
                prop_assert!(run.block >= floor && run.count > 0);
                floor = run.end();
                for at in run.block..run.end() {
                    let held = u32::try_from(at - run.block).unwrap();
                    read[usize::try_from(at).unwrap()] =
                        Some(content.map(|source| source.skip(held.into())));
                }
            }
            for at in 0..128_usize {
                let is_asked = (from..from + count).contains(&(at as u64));
                prop_assert_eq!(read[at], if is_asked { model[at] } else { None });
            }
            let data = model.iter().filter(|block| block.flatten().is_some()).count();
            prop_assert_eq!(map.data_blocks(), data as u64);
        }
    }
}
