//! Turning what was read of a disk into log entries, copies all of them: zeros as runs, the rest as it is.

use crate::hrl::Entry;
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;

/// Whether all of it is zero.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(BLOCK_BYTES).all(|block| *block == ZERO_BLOCK[..block.len()])
}

static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Runs of zeros shorter than this stay inside the write around them: a frame of their own would
/// save nothing (4 blocks are the shortest chunk).
const ZERO_RUN_MIN: usize = 4;

/// The entries that describe `data`, the content of the blocks from `block` on.
///
/// # Panics
/// If `data` is empty or not whole blocks.
#[must_use]
pub fn entries_of(block: u64, data: &[u8]) -> Vec<Entry<'_>> {
    assert!(!data.is_empty() && data.len().is_multiple_of(BLOCK_BYTES));
    let zero: Vec<bool> = data.chunks(BLOCK_BYTES).map(|block| block == ZERO_BLOCK).collect();
    let mut entries = Vec::new();
    let mut data_from = 0;
    let mut at = 0;
    while at < zero.len() {
        let run = zero[at..].iter().take_while(|zero| **zero).count();
        let is_all = at == 0 && run == zero.len();
        if run >= ZERO_RUN_MIN || is_all {
            push_data(&mut entries, block, data, data_from, at);
            let range = BlockRange { block: block + at as u64, count: run as u64 };
            entries.push(Entry::Zero { range, is_copy: true });
            data_from = at + run;
        }
        at += run.max(1);
    }
    push_data(&mut entries, block, data, data_from, zero.len());
    entries
}

fn push_data<'a>(entries: &mut Vec<Entry<'a>>, block: u64, data: &'a [u8], from: usize, to: usize) {
    if from < to {
        let data = &data[from * BLOCK_BYTES..to * BLOCK_BYTES];
        entries.push(Entry::Write { block: block + from as u64, data, is_copy: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(pattern: &str) -> Vec<(char, u64, u64)> {
        let data: Vec<u8> =
            pattern.bytes().flat_map(|byte| [u8::from(byte != b'0'); BLOCK_BYTES]).collect();
        let entries = entries_of(100, &data);
        let shapes = entries.iter().map(|entry| match entry {
            Entry::Write { block, data, is_copy: true } => {
                ('d', *block, (data.len() / BLOCK_BYTES) as u64)
            }
            Entry::Zero { range, is_copy: true } => ('z', range.block, range.count),
            _ => unreachable!("copies, and no marks"),
        });
        shapes.collect()
    }

    #[test]
    fn long_zero_runs_are_frames_of_their_own() {
        assert_eq!(shape("1111"), [('d', 100, 4)]);
        assert_eq!(shape("0"), [('z', 100, 1)]);
        assert_eq!(shape("1000100001"), [('d', 100, 5), ('z', 105, 4), ('d', 109, 1)]);
        assert_eq!(shape("00001"), [('z', 100, 4), ('d', 104, 1)]);
        assert_eq!(shape("10000"), [('d', 100, 1), ('z', 101, 4)]);
        assert_eq!(shape("100"), [('d', 100, 3)]);
    }
}
