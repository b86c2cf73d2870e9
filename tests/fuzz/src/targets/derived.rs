//! Index runs, checkpoints, horizons, bases and revisions: heads and opened bodies.

use crate::{checksum, later, taken};
use farshore_proto::Slot;
use farshore_proto::base::BaseBody;
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::horizon::HorizonBody;
use farshore_proto::index_run::IndexRun;
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::revision::RevisionBody;

/// Where the kept checkpoints stand.
pub(super) const CHECKPOINT_SLOT: Slot = Slot(256);

/// Number of the kept bases.
pub(super) const BASE_NUMBER: u64 = 2;
/// Number of the kept horizon.
const HORIZON: u64 = 4;

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

pub(super) fn revision_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Revision);
}

pub(super) fn revision_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/revision-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/revision.bin").to_vec(),
    ]
}

pub(super) fn revision_body(bytes: &[u8]) {
    let Ok(body) = RevisionBody::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(RevisionBody::decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::REVISION, again);
    assert!(!body.is_erased(body.own_key) && body.own_key <= body.last_key);
    assert!(body.domains.iter().all(|keys| keys.root.max(keys.data) <= body.last_key));
    taken();
}

pub(super) fn revision_body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v2/revision-body.bin").to_vec()]
}

pub(super) fn horizon_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Horizon);
}

pub(super) fn horizon_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/horizon-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/horizon.bin").to_vec(),
    ]
}

pub(super) fn horizon_body(bytes: &[u8]) {
    let decode = |bytes: &[u8]| HorizonBody::decode(bytes, HORIZON);
    let Ok(body) = decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::HORIZON, again);
    assert!(body.slot.0 > 0 && body.below.incarnation > 0 && body.below.horizon < HORIZON);
    assert!(body.below.tails.values().all(|tail| tail.newest < body.slot));
    taken();
}

pub(super) fn horizon_body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v2/horizon-body.bin").to_vec()]
}

pub(super) fn base_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Base);
}

pub(super) fn base_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/base-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/base.bin").to_vec(),
    ]
}

pub(super) fn base_body(bytes: &[u8]) {
    let decode = |bytes: &[u8]| BaseBody::decode(bytes, BASE_NUMBER);
    let Ok(body) = decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::BASE, again);
    assert!(body.points.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert!(body.points.iter().all(|point| point.at <= body.at && point.at.ordinal > 0));
    for point in &body.points {
        assert_eq!(body.kept_at(point.at), Some(point));
        let _ = point.at.seq.next();
    }
    taken();
}

pub(super) fn base_body_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v2/base-body.bin");
    // Flags of a later program, in the mark of its first point, which may be ignored.
    let mut of_later = body.to_vec();
    of_later[16 + 128 + 16 + 73] |= 0xf0;
    vec![body.to_vec(), of_later]
}
