//! What each write holds: a function of the seed, the source and the number of the write.
//!
//! A write is *zeros*, a *duplicate* or *fresh*; the shares of all writes that the plan states decide
//! which. Whole writes are drawn, not single blocks: a block repeated between new ones would be part
//! of a new chunk and no duplicate to any dedup that cuts above 4 KiB.
//!
//! A duplicate repeats a fresh write of any source with a lower number, all of it, so it was due
//! before (see [`crate::timetable`]). It goes to a place of its own in its volume.
//!
//! Fresh blocks are unlike any other. Each consists of 64 pieces of 64 bytes: random bytes first, then
//! phrases out of a table of 64 that all blocks share. `compressible` percent of the pieces are phrases;
//! the first piece is always random. Zstd finds a phrase for about three bytes, so a block compresses by
//! a little less than its share of phrases; a test holds this against zstd at level 1.

use crate::mix::Mix;
use crate::random::{Words, draw};
use farshore_proto::limits::BLOCK_BYTES;

const PIECE_BYTES: usize = 64;
const PIECES: usize = BLOCK_BYTES / PIECE_BYTES;
/// Phrases in the table: 6 bits of a random word choose one.
const PHRASES: usize = 64;
/// Choices that one random word makes.
const CHOICES: usize = 10;

const _: () = assert!(PIECES * PIECE_BYTES == BLOCK_BYTES && PHRASES == 1 << 6 && CHOICES * 6 < 64);

/// What the content of a run is drawn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// From which everything follows.
    pub seed: u64,
    /// Number of sources.
    pub sources: u32,
    /// Sizes of writes.
    pub mix: Mix,
    /// Percent of the writes that are zeros.
    pub zeros: u32,
    /// Percent of the writes that repeat an earlier one.
    pub duplicates: u32,
    /// Percent of each fresh block that is phrases.
    pub compressible: u32,
    /// Blocks of each volume.
    pub volume_blocks: u64,
}

/// Where a write's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Nothing but zeros.
    Zeros,
    /// The fresh write of a source with a number.
    Fresh {
        /// The source.
        source: u32,
        /// The number of its write.
        write: u64,
    },
}

/// One write, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Where the bytes come from.
    pub origin: Origin,
}

impl Write {
    /// Bytes of the write.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks as usize * BLOCK_BYTES
    }
}

/// Makes writes.
#[derive(Debug)]
pub struct Content {
    recipe: Recipe,
    phrases: Vec<[u8; PIECE_BYTES]>,
    /// Pieces of a block that are phrases.
    phrase_pieces: usize,
}

/// What the draw said of a write, before a duplicate is followed to what it repeats.
enum Kind {
    Zeros,
    Duplicate,
    Fresh,
}

impl Content {
    /// By a recipe whose shares are percentages.
    #[must_use]
    pub fn new(recipe: Recipe) -> Self {
        let mut words = Words::of(draw(recipe.seed, "phrases", 0, 0));
        let phrases = (0..PHRASES)
            .map(|_| {
                let mut phrase = [0; PIECE_BYTES];
                for bytes in phrase.chunks_exact_mut(8) {
                    bytes.copy_from_slice(&words.next_word().to_le_bytes());
                }
                phrase
            })
            .collect();
        let share = recipe.compressible.min(100) as usize;
        // Rounded; the first piece stays random, so that no two blocks are alike.
        let phrase_pieces = ((share * PIECES + 50) / 100).min(PIECES - 1);
        Self { recipe, phrases, phrase_pieces }
    }

    /// The recipe.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// A source's write with a number, from 0.
    #[must_use]
    pub fn write(&self, source: u32, write: u64) -> Write {
        let origin = self.origin(source, write);
        let blocks = match origin {
            // As long as what it repeats.
            Origin::Fresh { source, write } => self.blocks(source, write),
            Origin::Zeros => self.blocks(source, write),
        };
        // Aligned to its size, as file systems mostly do; volumes hold the largest write.
        let places = (self.recipe.volume_blocks / u64::from(blocks)).max(1);
        let place = draw(self.recipe.seed, "place", source.into(), write) % places;
        Write { block: place * u64::from(blocks), blocks, origin }
    }

    fn origin(&self, source: u32, write: u64) -> Origin {
        let (mut from, mut number) = (source, write);
        loop {
            match self.kind(from, number) {
                Kind::Fresh => return Origin::Fresh { source: from, write: number },
                Kind::Zeros if (from, number) == (source, write) => return Origin::Zeros,
                // All that this one could repeat is zeros: it is fresh.
                _ if number == 0 => return Origin::Fresh { source, write },
                Kind::Zeros | Kind::Duplicate => {
                    // Numbers only fall, so this ends.
                    let word = draw(self.recipe.seed, "repeat", from.into(), number);
                    from = u32::try_from((word >> 32) % u64::from(self.recipe.sources))
                        .unwrap_or(source);
                    number = (word & 0xffff_ffff) % number;
                }
            }
        }
    }

    fn kind(&self, source: u32, write: u64) -> Kind {
        let drawn = draw(self.recipe.seed, "kind", source.into(), write) % 100;
        if drawn < u64::from(self.recipe.zeros) {
            Kind::Zeros
        } else if write > 0 && drawn < u64::from(self.recipe.zeros + self.recipe.duplicates) {
            // The first of a source has nothing before it that it could repeat.
            Kind::Duplicate
        } else {
            Kind::Fresh
        }
    }

    fn blocks(&self, source: u32, write: u64) -> u32 {
        let drawn = draw(self.recipe.seed, "size", source.into(), write) % 100;
        self.recipe.mix.draw(u32::try_from(drawn).unwrap_or(0))
    }

    /// Appends the bytes of a write.
    pub fn append(&self, write: &Write, out: &mut Vec<u8>) {
        let begin = out.len();
        out.resize(begin + write.bytes(), 0);
        let Origin::Fresh { source, write } = write.origin else { return };
        let key = draw(self.recipe.seed, "bytes", source.into(), write);
        for (index, block) in out[begin..].chunks_exact_mut(BLOCK_BYTES).enumerate() {
            self.fill(key ^ crate::random::spread(index as u64), block);
        }
    }

    fn fill(&self, key: u64, block: &mut [u8]) {
        let mut words = Words::of(key);
        let random = (PIECES - self.phrase_pieces) * PIECE_BYTES;
        let (front, back) = block.split_at_mut(random);
        for bytes in front.chunks_exact_mut(8) {
            bytes.copy_from_slice(&words.next_word().to_le_bytes());
        }
        for pieces in back.chunks_mut(CHOICES * PIECE_BYTES) {
            let mut word = words.next_word();
            for piece in pieces.chunks_exact_mut(PIECE_BYTES) {
                piece.copy_from_slice(&self.phrases[(word & 63) as usize]);
                word >>= 6;
            }
        }
    }
}

#[cfg(test)]
mod tests;
