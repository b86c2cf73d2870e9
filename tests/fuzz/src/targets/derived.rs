//! Maps, index runs and checkpoints: heads and opened bodies.

use crate::{checksum, later, taken};
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::index_run::IndexRun;
use farshore_proto::limits::{BLOCK_BYTES, OBJECT_BODY_BYTES_MAX};
use farshore_proto::map::{MapBody, MapHeader};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::{DecodeError, Slot};

/// Where the kept checkpoints stand.
pub(super) const CHECKPOINT_SLOT: Slot = Slot(256);

fn map_head_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let MapHeader { mut object, fields } = MapHeader::decode(bytes)?;
    object.header_bytes = ObjectKind::Map.header_bytes();
    Ok(object.encode(|own| fields.put(own)))
}

pub(super) fn map_object(bytes: &[u8]) {
    let kind = ObjectKind::Map;
    checksum::both(bytes, later::head_end(bytes, kind), |bytes| {
        let Ok(again) = map_head_again(bytes) else { return };
        later::must_be_head(bytes, &again, kind, map_head_again);
        if let Ok(header) = MapHeader::decode(bytes) {
            assert!(header.part() < header.fields.parts && header.seq().0 > 0);
            assert!(header.object.body_raw_bytes <= OBJECT_BODY_BYTES_MAX);
        }
        taken();
    });
}

pub(super) fn map_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/map-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/map.bin").to_vec(),
    ]
}

pub(super) fn map_body(bytes: &[u8]) {
    let Ok(body) = MapBody::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(MapBody::decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::MAP, again);
    let mut floor = 0;
    for run in &body.runs {
        let chunk = &body.chunks[run.chunk as usize];
        assert!(u64::from(run.first) + run.range.count <= chunk.blocks.into());
        assert!(run.range.block >= floor && run.range.count > 0);
        floor = run.range.end();
    }
    let blocks = body.head.size_bytes.div_ceil(BLOCK_BYTES as u64);
    assert!(floor <= blocks, "runs lie in the volume");
    taken();
}

pub(super) fn map_body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v2/map-body.bin").to_vec()]
}

/// The header of a kind that has no fields of its own.
pub(super) fn plain_head(bytes: &[u8], kind: ObjectKind) {
    let again = |bytes: &[u8]| {
        let (mut header, mut own) = ObjectHeader::decode(kind, bytes)?;
        header.header_bytes = kind.header_bytes();
        let own = own.take(own.left())?;
        Ok(header.encode(|out| out.extend_from_slice(own)))
    };
    checksum::both(bytes, later::head_end(bytes, kind), |bytes| {
        let Ok(found) = again(bytes) else { return };
        later::must_be_head(bytes, &found, kind, again);
        taken();
    });
}

pub(super) fn index_run_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::IndexRun);
}

pub(super) fn index_run_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/index-run-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/index-run.bin").to_vec(),
    ]
}

pub(super) fn index_run_body(bytes: &[u8]) {
    let Ok(run) = IndexRun::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(IndexRun::decode(bytes)?.encode());
    later::must_be_body(bytes, &run.encode(), later::INDEX_RUN, again);
    assert!(run.chunks.windows(2).all(|pair| pair[0].id < pair[1].id));
    taken();
}

pub(super) fn index_run_body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v2/index-run-body.bin").to_vec()]
}

pub(super) fn checkpoint_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Checkpoint);
}

pub(super) fn checkpoint_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/checkpoint-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/checkpoint.bin").to_vec(),
    ]
}

pub(super) fn checkpoint_body(bytes: &[u8]) {
    let decode = |bytes: &[u8]| CheckpointBody::decode(bytes, CHECKPOINT_SLOT);
    let Ok(body) = decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::CHECKPOINT, again);
    assert!(body.incarnation > 0 || body.tails.is_empty());
    for tail in body.tails.values() {
        assert!(tail.epoch.0 > 0 && tail.first_seq.0 > 0 && tail.first_seq <= tail.last_seq);
        assert!(tail.newest < CHECKPOINT_SLOT, "it speaks of what is below it");
        let is_within = |(seq, _)| (tail.first_seq..=tail.last_seq).contains(&seq);
        assert!(tail.mark.is_none_or(is_within));
        let _ = tail.last_seq.next();
    }
    taken();
}

pub(super) fn checkpoint_body_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/checkpoint-body.bin");
    // Flags of a later program, in its first volume, which may be ignored.
    let mut of_later = body.to_vec();
    of_later[16 + 32 + 16 + 83] |= 0xf0;
    vec![body.to_vec(), of_later]
}
