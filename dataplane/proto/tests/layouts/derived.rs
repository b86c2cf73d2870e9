//! The bodies of maps and index runs: round trips, and what the decoders refuse.

use crate::roundtrip::slot;
use crate::samples;
use farshore_proto::index_run::{IndexRun, IndexRunHeader, StoredChunk};
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, INDEX_RUN_CHUNKS_MAX, INDEX_RUN_LOGS_MAX, MAP_CHUNKS_MAX,
    MAP_LOGS_MAX, MAP_RUNS_MAX, VOLUME_BYTES_MAX,
};
use farshore_proto::map::{MapBody, MapHead, MapHeader, MapRun};
use farshore_proto::{BlockRange, ChunkId, DecodeError, ErrorKind, LogId, MarkKind};
use proptest::collection::vec;
use proptest::prelude::*;

/// Offsets in the samples: 56 of head and 16 of counts, 16 per log, 52 per chunk, then the runs.
const MAP_COUNTS: usize = 56;
const MAP_CHUNK: usize = MAP_COUNTS + 16 + 2 * 16;
const MAP_RUN: usize = MAP_CHUNK + 2 * 52;
const RUN_CHUNK: usize = 16 + 2 * 16;

fn map_with(at: usize, bytes: &[u8]) -> Result<MapBody, DecodeError> {
    let mut body = samples::map_body().encode();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    MapBody::decode(&body)
}

fn changed(change: impl FnOnce(&mut MapBody)) -> Result<MapBody, DecodeError> {
    let mut body = samples::map_body();
    change(&mut body);
    MapBody::decode(&body.encode())
}

fn run_with(at: usize, bytes: &[u8]) -> Result<IndexRun, DecodeError> {
    let mut body = samples::index_run().encode();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    IndexRun::decode(&body)
}

#[test]
fn the_samples_read_back() {
    assert_eq!(MapBody::decode(&samples::map_body().encode()), Ok(samples::map_body()));
    assert_eq!(IndexRun::decode(&samples::index_run().encode()), Ok(samples::index_run()));
    let object = samples::map_object();
    let (header, body) = MapHeader::decode(&object).unwrap();
    assert_eq!((header, body.len()), (samples::map_header(), header.body_bytes));
    assert_eq!(MapHeader::decode_head(&object[..192]), Ok(header));
    let object = samples::index_run_object();
    let (header, body) = IndexRunHeader::decode(&object).unwrap();
    assert_eq!(body.len(), header.body_bytes);
    assert_eq!(header.encode(), object[..144]);
}

#[test]
fn bodies_cut_short_anywhere_are_refused() {
    let (map, run) = (samples::map_body().encode(), samples::index_run().encode());
    for end in 0..map.len() {
        MapBody::decode(&map[..end]).unwrap_err();
    }
    for end in 0..run.len() {
        IndexRun::decode(&run[..end]).unwrap_err();
    }
    assert!(MapBody::decode(&[map, vec![0]].concat()).is_err());
    assert!(IndexRun::decode(&[run, vec![0]].concat()).is_err());
}

#[test]
fn a_body_with_a_flipped_bit_is_refused_or_another_body() {
    let (map, run) = (samples::map_body(), samples::index_run());
    let flipped = |good: &[u8], bit: usize| {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        bad
    };
    let good = map.encode();
    for bit in 0..good.len() * 8 {
        if let Ok(read) = MapBody::decode(&flipped(&good, bit)) {
            assert_ne!(read, map, "bit {bit} means nothing");
        }
    }
    let good = run.encode();
    for bit in 0..good.len() * 8 {
        if let Ok(read) = IndexRun::decode(&flipped(&good, bit)) {
            assert_ne!(read, run, "bit {bit} means nothing");
        }
    }
}

#[test]
fn counts_over_their_limit_are_refused_before_anything_is_read() {
    let narrow = |count: usize| u32::try_from(count).unwrap().to_le_bytes();
    for (at, max) in [(0, MAP_LOGS_MAX), (4, MAP_CHUNKS_MAX), (8, MAP_RUNS_MAX)] {
        let error = map_with(MAP_COUNTS + at, &narrow(max + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = map_with(MAP_COUNTS + at, &narrow(max)).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::Limit, "{error}");
    }
    for (at, max) in [(0, INDEX_RUN_LOGS_MAX), (4, INDEX_RUN_CHUNKS_MAX)] {
        let error = run_with(at, &narrow(max + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = run_with(at, &narrow(max)).unwrap_err();
        assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
    }
}

#[test]
fn the_head_of_a_map_has_legal_values() {
    let range = |error: Result<MapBody, DecodeError>| {
        assert!(matches!(error, Err(DecodeError::Range { .. })), "{error:?}");
    };
    range(map_with(0, &[0; 8]));
    for size in [0, VOLUME_BYTES_MAX + BLOCK_BYTES as u64] {
        range(map_with(32, &size.to_le_bytes()));
    }
    range(map_with(48, &[6]));
    assert!(matches!(map_with(49, &[1]), Err(DecodeError::Reserved { .. })));
    assert!(matches!(map_with(MAP_COUNTS + 12, &[1]), Err(DecodeError::Reserved { .. })));
    assert!(matches!(run_with(8, &[1]), Err(DecodeError::Reserved { .. })));
}

#[test]
fn chunks_lie_in_listed_logs_and_have_blocks() {
    let log = DecodeError::Range { what: "chunk log", value: 2 };
    assert_eq!(map_with(MAP_CHUNK + 32, &[2]), Err(log.clone()));
    assert_eq!(run_with(RUN_CHUNK + 32, &[2]), Err(log));
    for blocks in [0_u32, 33, u32::MAX] {
        let error = DecodeError::Range { what: "chunk blocks", value: blocks.into() };
        assert_eq!(map_with(MAP_CHUNK + 48, &blocks.to_le_bytes()), Err(error.clone()));
        assert_eq!(run_with(RUN_CHUNK + 48, &blocks.to_le_bytes()), Err(error));
    }
}

#[test]
fn a_run_lies_in_its_volume_and_its_chunk_and_behind_the_run_before() {
    let blocks = (64_u64 << 20) / BLOCK_BYTES as u64;
    let with = |block, count, chunk, first| {
        let range = BlockRange { block, count };
        changed(|body| body.runs = vec![MapRun { range, chunk, first }])
    };
    with(blocks - 8, 8, 0, 0).unwrap();
    for (block, count, chunk, first) in [
        (blocks - 7, 8, 0, 0),
        (u64::MAX, 8, 0, 0),
        (0, 0, 0, 0),
        (0, 8, 2, 0),
        (0, 8, 0, 1),
        (0, 1, 0, u32::MAX),
    ] {
        let error = with(block, count, chunk, first).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    }
    let order = |value| Err(DecodeError::Range { what: "map order", value });
    assert_eq!(changed(|body| body.runs.swap(0, 2)), order(7));
    assert_eq!(changed(|body| body.runs[1].range.block = 6), order(6));
    assert!(map_with(MAP_RUN + 8, &[0; 4]).is_err(), "no blocks");
}

#[test]
fn the_ids_of_an_index_run_come_once_and_in_order() {
    for change in [[0x61; 32], [0xff; 32]] {
        let error = run_with(RUN_CHUNK, &change).unwrap_err();
        assert_eq!(error, DecodeError::Range { what: "index run order", value: 0 });
    }
    let twice: [u8; 32] = samples::stored_chunks()[1].id.0;
    run_with(RUN_CHUNK, &twice).unwrap_err();
}

prop_compose! {
    fn stored()(id in any::<[u8; 32]>(), log in 0..4_u8, slot in slot(), chunk: u32, blocks in 1..=32_u32)
        -> StoredChunk {
        StoredChunk { id: ChunkId(id), blocks, log: LogId([log; 16]), slot, chunk }
    }
}

proptest! {
    #[test]
    fn any_map_reads_back(
        chunks in vec(stored(), 1..20),
        picks in vec((any::<prop::sample::Index>(), 0..5_u64, 0..32_u32), 0..60),
        ordinal in 1..u64::MAX,
        slot in slot(),
        time_unix_ms: u64,
        kind in 0..MarkKind::ALL.len(),
        unknown_blocks: u32,
    ) {
        let mut at = 0;
        let mut runs = Vec::new();
        for (pick, gap, first) in picks {
            let chunk = pick.index(chunks.len());
            let first = first % chunks[chunk].blocks;
            let range = BlockRange { block: at + gap, count: (chunks[chunk].blocks - first).into() };
            at = range.end();
            runs.push(MapRun { range, chunk: u32::try_from(chunk).unwrap(), first });
        }
        let blocks = at.max(CHUNK_BLOCKS_MAX as u64);
        let kind = MarkKind::ALL[kind];
        let size_bytes = blocks * BLOCK_BYTES as u64;
        let log = LogId([9; 16]);
        let head = MapHead { ordinal, log, slot, size_bytes, time_unix_ms, kind, unknown_blocks };
        let body = MapBody { head, chunks, runs };
        prop_assert_eq!(MapBody::decode(&body.encode()), Ok(body));
    }

    #[test]
    fn any_index_run_reads_back(mut chunks in vec(stored(), 0..60)) {
        chunks.sort_by_key(|chunk| chunk.id);
        chunks.dedup_by_key(|chunk| chunk.id);
        let run = IndexRun { chunks };
        prop_assert_eq!(IndexRun::decode(&run.encode()), Ok(run));
    }
}
