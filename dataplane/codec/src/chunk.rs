//! Cutting runs into chunks at block-aligned places that the content decides.
//!
//! A keyed hash of each 4 KiB block says whether a chunk may end after it: one block in
//! `CHUNK_CUT_BLOCKS` does. A chunk ends at the first such block that leaves it at least
//! `CHUNK_BLOCKS_MIN` long. If none comes within `CHUNK_BLOCKS_MAX`, it ends after the block with
//! the smallest hash in that stretch, which is a property of the content too: a cut at the plain
//! maximum would depend on where the chunk began and carry the difference on.
//!
//! Because only the blocks decide, the same run of blocks at another place of another run is cut
//! alike from the first shared cut on.

use crate::keys::ChunkKey;
use farshore_proto::limits::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, CHUNK_BLOCKS_MIN, CHUNK_CUT_BLOCKS};
use std::fmt;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64_with_secret;
use zeroize::Zeroizing;

/// Size of the secret that xxh3 uses in full for inputs of a block.
const SECRET_BYTES: usize = 192;

/// A block whose hash is below this may end a chunk.
const CUT_BELOW: u64 = u64::MAX / CHUNK_CUT_BLOCKS;

/// Cuts runs for one vault.
#[derive(Clone)]
pub struct Chunker {
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl fmt::Debug for Chunker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chunker(..)")
    }
}

impl Chunker {
    /// A chunker for the vault of `key`: the cuts of one vault say nothing about another's.
    #[must_use]
    pub fn new(key: &ChunkKey) -> Self {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        key.expand("farshore 2026 v1 chunk cut secret", &mut *secret);
        Self { secret }
    }

    /// Cuts `run`, which is whole blocks, into chunks, in order and without gaps.
    ///
    /// Each range is `CHUNK_BLOCKS_MIN..=CHUNK_BLOCKS_MAX` blocks; only the last may be shorter.
    /// Zero blocks are cut like others: take them out first (`zero::pieces`).
    ///
    /// # Panics
    /// If `run` is not whole blocks: a bug in the caller.
    pub fn cut<'a>(&'a self, run: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
        assert!(run.len().is_multiple_of(BLOCK_BYTES), "a run is whole blocks");
        Cuts { chunker: self, run, at: 0, known: 0, hashes: [0; CHUNK_BLOCKS_MAX] }
    }

    fn hash(&self, block: &[u8]) -> u64 {
        xxh3_64_with_secret(block, &*self.secret)
    }
}

struct Cuts<'a> {
    chunker: &'a Chunker,
    run: &'a [u8],
    /// Where the next chunk begins.
    at: usize,
    /// How many of `hashes` are known: those of the blocks from `at` on.
    known: usize,
    hashes: [u64; CHUNK_BLOCKS_MAX],
}

impl Cuts<'_> {
    /// Length of the next chunk in blocks, of which `left` are there.
    fn next_blocks(&mut self, left: usize) -> usize {
        let mut smallest = (u64::MAX, 0);
        for index in 0..left.min(CHUNK_BLOCKS_MAX) {
            if index == self.known {
                let from = self.at + index * BLOCK_BYTES;
                self.hashes[index] = self.chunker.hash(&self.run[from..from + BLOCK_BYTES]);
                self.known += 1;
            }
            if index + 1 < CHUNK_BLOCKS_MIN {
                continue;
            }
            let hash = self.hashes[index];
            if hash < CUT_BELOW {
                return index + 1;
            }
            // The last of equals: a stretch of one repeated block makes the longest chunks.
            if hash <= smallest.0 {
                smallest = (hash, index + 1);
            }
        }
        if left <= CHUNK_BLOCKS_MAX { left } else { smallest.1 }
    }
}

impl Iterator for Cuts<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let left = (self.run.len() - self.at) / BLOCK_BYTES;
        if left == 0 {
            return None;
        }
        let blocks = self.next_blocks(left);
        let range = self.at..self.at + blocks * BLOCK_BYTES;
        // Hashes of blocks beyond the cut were computed when the smallest was sought: keep them.
        self.hashes.copy_within(blocks.min(self.known)..self.known, 0);
        self.known = self.known.saturating_sub(blocks);
        self.at = range.end;
        Some(range)
    }
}

#[cfg(test)]
mod tests;
