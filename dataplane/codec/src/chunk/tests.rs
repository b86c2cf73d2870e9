use super::*;
use crate::keys::{RootKey, VaultKeys};
use farshore_proto::VaultId;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn chunker(vault: u8) -> Chunker {
    Chunker::new(&VaultKeys::derive(&RootKey::from_bytes([7; 32]), VaultId([vault; 16])).chunk_key)
}

/// Blocks that look random, the same for the same seed.
fn blocks(seed: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count * BLOCK_BYTES];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn lengths(chunker: &Chunker, run: &[u8]) -> Vec<usize> {
    chunker.cut(run).map(|range| range.len() / BLOCK_BYTES).collect()
}

/// Bytes of `run` in chunks that `known` holds.
fn shared(chunker: &Chunker, run: &[u8], known: &BTreeSet<[u8; 32]>) -> usize {
    chunker
        .cut(run)
        .filter(|range| known.contains(blake3::hash(&run[range.clone()]).as_bytes()))
        .map(|range| range.len())
        .sum()
}

fn known(chunker: &Chunker, run: &[u8]) -> BTreeSet<[u8; 32]> {
    chunker.cut(run).map(|range| *blake3::hash(&run[range]).as_bytes()).collect()
}

/// What `cut` should do, written without its bookkeeping.
fn naive(chunker: &Chunker, run: &[u8]) -> Vec<usize> {
    let hashes: Vec<u64> = run.chunks(BLOCK_BYTES).map(|block| chunker.hash(block)).collect();
    let mut out = Vec::new();
    let mut rest = hashes.as_slice();
    while !rest.is_empty() {
        let reach = &rest[..rest.len().min(CHUNK_BLOCKS_MAX)];
        let legal = CHUNK_BLOCKS_MIN..=reach.len();
        let first = legal.clone().find(|end| reach[end - 1] < CUT_BELOW);
        let blocks = first.unwrap_or_else(|| {
            if rest.len() <= CHUNK_BLOCKS_MAX {
                rest.len()
            } else {
                legal.rev().min_by_key(|end| reach[end - 1]).unwrap()
            }
        });
        out.push(blocks);
        rest = &rest[blocks..];
    }
    out
}

#[test]
fn nothing_is_cut_out_of_nothing() {
    assert_eq!(chunker(1).cut(&[]).count(), 0);
}

#[test]
fn the_average_is_what_the_limits_say() {
    let lengths = lengths(&chunker(1), &blocks(1, 8192));
    let average = 8192 / lengths.len();
    assert!((9..=12).contains(&average), "{average} blocks");
}

#[test]
fn the_same_blocks_elsewhere_give_mostly_the_same_chunks() {
    let chunker = chunker(1);
    let moved = blocks(1, 256);
    let known = known(&chunker, &moved);
    let (mut total, mut found) = (0, 0);
    for seed in 0..40 {
        let before = usize::try_from(seed).unwrap() + 1;
        let run = [blocks(100 + seed, before), moved.clone(), blocks(200 + seed, 9)].concat();
        total += moved.len();
        found += shared(&chunker, &run, &known);
    }
    let percent = found * 100 / total;
    assert!(percent >= 85, "{percent} % shared");
}

#[test]
fn a_changed_block_changes_few_chunks() {
    let chunker = chunker(1);
    let run = blocks(1, 1024);
    let known = known(&chunker, &run);
    for at in (0..1024).step_by(61) {
        let mut changed = run.clone();
        changed[at * BLOCK_BYTES] ^= 1;
        let lost = run.len() - shared(&chunker, &changed, &known);
        assert!(lost <= 4 * CHUNK_BLOCKS_MAX * BLOCK_BYTES, "block {at}: {lost} bytes");
    }
}

#[test]
fn a_repeated_block_gives_chunks_of_one_length() {
    let chunker = chunker(1);
    for fill in 0..20 {
        let run = blocks(fill, 1).repeat(CHUNK_BLOCKS_MAX * 4);
        let lengths = lengths(&chunker, &run);
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
        assert!(lengths[0] == CHUNK_BLOCKS_MIN || lengths[0] == CHUNK_BLOCKS_MAX);
    }
}

#[test]
fn another_vault_cuts_elsewhere() {
    let run = blocks(1, 512);
    assert_ne!(lengths(&chunker(1), &run), lengths(&chunker(2), &run));
}

#[test]
fn cuts_are_part_of_the_vault() {
    // Other cuts find nothing of what was stored before: new context strings are a new format.
    let lengths = lengths(&chunker(1), &blocks(1, 128));
    assert_eq!(lengths, [7, 15, 4, 8, 5, 15, 10, 7, 10, 5, 8, 13, 14, 4, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_are_those_of_the_plain_rule(seed in any::<u64>(), count in 0_usize..200, copies in 1_usize..4) {
        let chunker = chunker(3);
        let run = blocks(seed, count).repeat(copies);
        let lengths = lengths(&chunker, &run);
        prop_assert_eq!(&lengths, &naive(&chunker, &run));
        prop_assert_eq!(lengths.iter().sum::<usize>(), count * copies);
        let Some((_, all_but_last)) = lengths.split_last() else { return Ok(()) };
        let legal = CHUNK_BLOCKS_MIN..=CHUNK_BLOCKS_MAX;
        prop_assert!(all_but_last.iter().all(|length| legal.contains(length)));
        prop_assert!(lengths.iter().all(|length| (1..=CHUNK_BLOCKS_MAX).contains(length)));
        let mut at = 0;
        for range in chunker.cut(&run) {
            prop_assert_eq!(range.start, at);
            at = range.end;
        }
    }
}
