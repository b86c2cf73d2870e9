//! The bodies of maps and index runs: round trips, and what the decoders refuse.

use crate::bodies::{Section, join, split};
use crate::roundtrip::slot;
use crate::samples;
use farshore_proto::index_run::IndexRun;
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, INDEX_RUN_CHUNKS_MAX, MAP_CHUNKS_MAX, MAP_RUNS_MAX, TARGETS_MAX,
    VOLUME_BYTES_MAX,
};
use farshore_proto::map::{MapBody, MapHead, MapHeader, MapRun};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::targets::StoredChunk;
use farshore_proto::{
    Attempt, BlockRange, ChunkId, DecodeError, ErrorKind, LogId, MarkKind, Seq, Target,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Offsets in the samples: each section has a head of 16, targets have 32, chunks 44.
const MAP_HEAD: usize = 16;
const MAP_CHUNK: usize = MAP_HEAD + 56 + 16 + 2 * 32 + 16;
const MAP_RUN: usize = MAP_CHUNK + 2 * 44 + 16;
const RUN_CHUNK: usize = 16 + 2 * 32 + 16;

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
    let header = MapHeader::decode(&object).unwrap();
    assert_eq!((header.seq(), header.part(), header.fields), (Seq(43), 1, samples::map_fields()));
    assert_eq!(object.len(), header.object.whole_bytes());
    assert_eq!(MapHeader::decode(&object[..192]), Ok(header), "no more need be there");
    let object = samples::index_run_object();
    let (header, _) = ObjectHeader::decode(ObjectKind::IndexRun, &object).unwrap();
    assert_eq!(object.len(), header.whole_bytes());
    assert_eq!(header.encode(|own| own.extend([0; 4])), object[..160]);
}

/// The body with so many records of zeros in one of its sections.
fn with_records(body: &[u8], number: u16, count: usize) -> Vec<u8> {
    let mut sections = split(body);
    let section = sections.iter_mut().find(|section| section.number == number).expect("it has one");
    let count = u32::try_from(count).expect("limits fit");
    *section = Section::of_zeros(number, 1, section.stride, count);
    join(&sections)
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    let (map, run) = (samples::map_body().encode(), samples::index_run().encode());
    for (number, max) in [(1, 1), (2, TARGETS_MAX), (3, MAP_CHUNKS_MAX), (4, MAP_RUNS_MAX)] {
        let error = MapBody::decode(&with_records(&map, number, max + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = MapBody::decode(&with_records(&map, number, max)).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    }
    for (number, max) in [(2, TARGETS_MAX), (3, INDEX_RUN_CHUNKS_MAX)] {
        let error = IndexRun::decode(&with_records(&run, number, max + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = IndexRun::decode(&with_records(&run, number, max)).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    }
}

#[test]
fn the_head_of_a_map_has_legal_values() {
    let head = |at: usize, bytes: &[u8]| map_with(MAP_HEAD + at, bytes).unwrap_err();
    let range = |error: DecodeError| assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    range(head(0, &[0; 8]));
    for size in [0, VOLUME_BYTES_MAX + BLOCK_BYTES as u64] {
        range(head(32, &size.to_le_bytes()));
    }
    range(head(48, &[0]));
    let newer = DecodeError::Newer { what: "mark", feature: "kind", bit: 6 };
    assert_eq!(head(48, &[6]), newer);
    for at in 49..52 {
        assert!(matches!(head(at, &[1]), DecodeError::Reserved { .. }));
    }
    let map = split(&samples::map_body().encode());
    range(MapBody::decode(&join(&map[1..])).unwrap_err());
}

#[test]
fn chunks_lie_in_listed_targets_and_have_blocks() {
    let target = DecodeError::Range { what: "chunk target", value: 2 };
    assert_eq!(map_with(MAP_CHUNK + 32, &[2]), Err(target.clone()));
    assert_eq!(run_with(RUN_CHUNK + 32, &[2]), Err(target));
    for blocks in [0_u32, 33, u32::MAX] {
        let error = DecodeError::Range { what: "chunk blocks", value: blocks.into() };
        assert_eq!(map_with(MAP_CHUNK + 40, &blocks.to_le_bytes()), Err(error.clone()));
        assert_eq!(run_with(RUN_CHUNK + 40, &blocks.to_le_bytes()), Err(error));
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
    fn stored()(
        id in any::<[u8; 32]>(), log in 0..3_u8, slot in slot(), attempt in 0..3_u8, chunk: u32,
        blocks in 1..=32_u32,
    ) -> StoredChunk {
        let target = Target { log: LogId([log; 16]), slot, attempt: Attempt([attempt; 8]) };
        StoredChunk { id: ChunkId(id), blocks, target, chunk }
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
