//! The bodies of index runs: round trips, and what the decoder refuses.

use crate::bodies::with_records;
use crate::roundtrip::{entry, slot};
use crate::samples;
use farshore_proto::index_run::IndexRun;
use farshore_proto::limits::{INDEX_RUN_CHUNKS_MAX, REGISTER_MAX, TARGETS_MAX};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::register::At;
use farshore_proto::targets::StoredChunk;
use farshore_proto::{Attempt, ChunkId, DecodeError, ErrorKind, LogId, Target};
use proptest::collection::vec;
use proptest::prelude::*;

/// Offset in the sample: each section has a head of 16, the first 16, targets have 32, chunks 44.
const RUN_CHUNK: usize = RUN_APPLIED + 16 + 16 + 2 * 32 + 16;
const RUN_APPLIED: usize = 16;

fn run_with(at: usize, bytes: &[u8]) -> Result<IndexRun, DecodeError> {
    let mut body = samples::index_run().encode();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    IndexRun::decode(&body)
}

#[test]
fn the_sample_reads_back() {
    assert_eq!(IndexRun::decode(&samples::index_run().encode()), Ok(samples::index_run()));
    let object = samples::index_run_object();
    let (header, _) = ObjectHeader::decode(ObjectKind::IndexRun, &object).unwrap();
    assert_eq!(object.len(), header.whole_bytes());
    assert_eq!(header.encode(|own| own.extend([0; 4])), object[..160]);
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    let run = samples::index_run().encode();
    for (number, max) in [(2, TARGETS_MAX), (3, INDEX_RUN_CHUNKS_MAX)] {
        let error = IndexRun::decode(&with_records(&run, number, max + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = IndexRun::decode(&with_records(&run, number, max)).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    }
}

#[test]
fn chunks_lie_in_listed_targets_and_have_blocks() {
    let target = DecodeError::Range { what: "chunk target", value: 2 };
    assert_eq!(run_with(RUN_CHUNK + 32, &[2]), Err(target));
    for blocks in [0_u32, 33, u32::MAX] {
        let error = DecodeError::Range { what: "chunk blocks", value: blocks.into() };
        assert_eq!(run_with(RUN_CHUNK + 40, &blocks.to_le_bytes()), Err(error));
    }
}

#[test]
fn a_run_states_an_entry_of_the_register() {
    let run = run_with(RUN_APPLIED, &REGISTER_MAX.to_le_bytes()).unwrap();
    assert_eq!(run.applied, At { number: REGISTER_MAX, ..samples::applied() });
    assert_eq!(run_with(RUN_APPLIED, &[0; 16]).unwrap().applied, At::NONE);
    // Nothing in front of the first has a digest.
    for value in [0, REGISTER_MAX + 1] {
        let error = DecodeError::Range { what: "index run applied", value };
        assert_eq!(run_with(RUN_APPLIED, &value.to_le_bytes()), Err(error));
    }
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
    fn any_index_run_reads_back(mut chunks in vec(stored(), 0..60), applied in entry()) {
        chunks.sort_by_key(|chunk| chunk.id);
        chunks.dedup_by_key(|chunk| chunk.id);
        let run = IndexRun { applied, chunks };
        prop_assert_eq!(IndexRun::decode(&run.encode()), Ok(run));
    }
}
