//! Finding blocks of zeros, which are recorded and never stored.

use farshore_proto::limits::BLOCK_BYTES;
use std::ops::Range;

/// Bytes looked at between two chances to stop: wide enough for vector registers.
const STRIDE_BYTES: usize = 256;

/// Whether every byte is zero; true of no bytes.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (strides, rest) = bytes.as_chunks::<STRIDE_BYTES>();
    strides.iter().all(is_stride_zero) && rest.iter().all(|byte| *byte == 0)
}

fn is_stride_zero(stride: &[u8; STRIDE_BYTES]) -> bool {
    let (words, _) = stride.as_chunks::<16>();
    words.iter().fold(0, |all, word| all | u128::from_ne_bytes(*word)) == 0
}

/// A piece of a run: all its blocks are zero, or none is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Whether its blocks are zero.
    pub is_zero: bool,
    /// Its bytes in the run, whole blocks, not empty.
    pub range: Range<usize>,
}

/// Splits a run of whole blocks into its longest pieces of zero and non-zero blocks, in order.
///
/// # Panics
/// If `run` is not whole blocks: a bug in the caller.
pub fn pieces(run: &[u8]) -> impl Iterator<Item = Piece> + '_ {
    assert!(run.len().is_multiple_of(BLOCK_BYTES), "a run is whole blocks");
    let mut blocks = run.chunks_exact(BLOCK_BYTES).map(is_zero).peekable();
    let mut start = 0;
    std::iter::from_fn(move || {
        let is_zero = blocks.next()?;
        let mut end = start + BLOCK_BYTES;
        while blocks.next_if_eq(&is_zero).is_some() {
            end += BLOCK_BYTES;
        }
        let range = start..end;
        start = end;
        Some(Piece { is_zero, range })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_a_single_bit_anywhere_in_a_block() {
        let mut block = vec![0_u8; BLOCK_BYTES];
        assert!(is_zero(&block));
        for at in 0..BLOCK_BYTES {
            block[at] = 1 << (at % 8);
            assert!(!is_zero(&block), "byte {at}");
            block[at] = 0;
        }
    }

    #[test]
    fn bytes_of_any_length_are_tested_whole() {
        for len in 0..600 {
            let mut bytes = vec![0_u8; len];
            assert!(is_zero(&bytes));
            if let Some(last) = bytes.last_mut() {
                *last = 1;
                assert!(!is_zero(&bytes), "length {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_alternate_and_cover_the_run(blocks in proptest::collection::vec(any::<bool>(), 0..64)) {
            let run: Vec<u8> = blocks
                .iter()
                .flat_map(|zero| {
                    let mut block = vec![0; BLOCK_BYTES];
                    block[BLOCK_BYTES - 1] = u8::from(!zero);
                    block
                })
                .collect();
            let mut at = 0;
            let mut last = None;
            for piece in pieces(&run) {
                prop_assert_eq!(piece.range.start, at);
                prop_assert_ne!(last, Some(piece.is_zero));
                for block in piece.range.clone().step_by(BLOCK_BYTES) {
                    prop_assert_eq!(blocks[block / BLOCK_BYTES], piece.is_zero);
                }
                at = piece.range.end;
                last = Some(piece.is_zero);
            }
            prop_assert_eq!(at, run.len());
        }
    }
}
