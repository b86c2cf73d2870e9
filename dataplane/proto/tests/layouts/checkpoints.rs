//! The bodies of checkpoints: round trips, and what the decoder refuses.

use crate::bodies::{MUST, Section, join, split};
use crate::roundtrip::{entry, imprint, seq, slot, stamp};
use crate::samples::{self, CHECKPOINT_SLOT, OTHER_VOLUME, VOLUME};
use farshore_proto::checkpoint::{CheckpointBody, VolumeTail};
use farshore_proto::limits::{
    CHECKPOINT_VOLUMES_MAX, OBJECT_BODY_BYTES_MAX, REGISTER_MAX, SLOT_MAX,
};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::register::At;
use farshore_proto::{DecodeError, Epoch, ErrorKind, Imprint, PointId, Seq, Slot, VolumeId};
use proptest::collection::btree_map;
use proptest::prelude::*;

/// Offsets in the sample, each behind the head of its section: one head, two volumes.
const HEAD: usize = 16;
pub(crate) const TAIL: usize = HEAD + 32 + 16;
const OTHER_TAIL: usize = TAIL + 88;
/// In a volume.
const MARK_OF: usize = 48;
const POINT_OF: usize = 56;
const STAMP_OF: usize = 72;
const FLAGS_OF: usize = 83;

type Read = Result<CheckpointBody, DecodeError>;

fn decode(body: &[u8]) -> Read {
    CheckpointBody::decode(body, CHECKPOINT_SLOT)
}

fn with(at: usize, bytes: &[u8]) -> Read {
    let mut body = samples::checkpoint().encode();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    decode(&body)
}

/// The sample with another tail of its first volume.
fn changed(change: impl FnOnce(&mut VolumeTail)) -> Read {
    let mut body = samples::checkpoint();
    change(body.tails.get_mut(&VOLUME).expect("the sample has it"));
    decode(&body.encode())
}

#[track_caller]
fn out_of_range(read: Read, what: &'static str, value: u64) {
    assert_eq!(read, Err(DecodeError::Range { what, value }));
}

#[test]
fn the_sample_reads_back_and_lies_where_the_tests_take_it_to_be() {
    let body = samples::checkpoint().encode();
    assert_eq!((decode(&body), body.len()), (Ok(samples::checkpoint()), OTHER_TAIL + 88));
    let shapes: Vec<_> = split(&body).iter().map(|s| (s.number, s.stride, s.count)).collect();
    assert_eq!(shapes, [(1, 32, 1), (2, 88, 2)]);
    let object = samples::checkpoint_object();
    let (header, _) = ObjectHeader::decode(ObjectKind::Checkpoint, &object).unwrap();
    assert_eq!((header.place.subject, header.place.number), (samples::LOG.0, CHECKPOINT_SLOT.0));
    assert_eq!(object.len(), header.whole_bytes());
    assert_eq!(header.encode(|own| own.extend([0; 4])), object[..160]);
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    for (at, max) in [(0, 1), (1, CHECKPOINT_VOLUMES_MAX)] {
        let with_records = |count: usize| {
            let mut sections = split(&samples::checkpoint().encode());
            let Section { number, stride, .. } = sections[at];
            sections[at] = Section::of_zeros(number, MUST, stride, u32::try_from(count).unwrap());
            decode(&join(&sections)).unwrap_err()
        };
        let error = with_records(max + 1);
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        let error = with_records(max);
        assert!(matches!(error, DecodeError::Range { .. }), "{error}");
    }
}

#[test]
fn one_of_as_many_volumes_as_there_may_be_reads_back() {
    let mut body = samples::checkpoint();
    let tail = body.tails[&VOLUME];
    let volume = |n: usize| VolumeId((n as u128).to_be_bytes());
    body.tails = (0..CHECKPOINT_VOLUMES_MAX).map(|n| (volume(n), tail)).collect();
    let bytes = body.encode();
    assert!(bytes.len() <= OBJECT_BODY_BYTES_MAX);
    assert!(decode(&bytes) == Ok(body), "it is another");
}

#[test]
#[should_panic(expected = "checkpoint volumes have a limit")]
fn one_of_more_volumes_is_not_written() {
    let tail = samples::checkpoint().tails[&VOLUME];
    let volume = |n: usize| VolumeId((n as u128).to_be_bytes());
    let tails = (0..=CHECKPOINT_VOLUMES_MAX).map(|n| (volume(n), tail)).collect();
    let _ = CheckpointBody { tails, ..samples::checkpoint() }.encode();
}

#[test]
fn the_head_has_legal_values() {
    // What counts has an incarnation; where nothing counts, no volume has a span.
    out_of_range(with(HEAD, &[0; 8]), "checkpoint incarnation", 0);
    let empty = CheckpointBody::default();
    let counted = CheckpointBody {
        incarnation: u64::MAX,
        register: At { number: 7, digest: [8; 8] },
        ..empty.clone()
    };
    for (body, slots) in [(&empty, [Slot(0), CHECKPOINT_SLOT]), (&counted, [Slot(1), SLOT_MAX])] {
        for slot in slots {
            assert_eq!(CheckpointBody::decode(&body.encode(), slot).as_ref(), Ok(body));
        }
    }
    out_of_range(
        CheckpointBody::decode(&counted.encode(), Slot(0)),
        "checkpoint incarnation",
        u64::MAX,
    );
    let unheard = CheckpointBody { register: At { number: 7, digest: [8; 8] }, ..empty.clone() };
    out_of_range(decode(&unheard.encode()), "checkpoint incarnation", 0);
    for (at, bytes) in [(HEAD + 8, [0; 8]), (HEAD, [0xff; 8])] {
        with(at, &bytes).unwrap();
    }
    with(HEAD + 16, &[0; 16]).unwrap();
    // Nothing in front of the first entry has a digest.
    out_of_range(with(HEAD + 16, &[0; 8]), "checkpoint register", 0);
    let over = REGISTER_MAX + 1;
    out_of_range(with(HEAD + 16, &over.to_le_bytes()), "checkpoint register", over);
    let sections = split(&samples::checkpoint().encode());
    out_of_range(decode(&join(&sections[1..])), "checkpoint body", 1);
    out_of_range(decode(&[]), "checkpoint body", 1);
    assert_eq!(decode(&join(&sections[..1])).unwrap().tails.len(), 0, "none is named");
}

#[test]
fn it_stands_at_a_slot_with_others_behind_it() {
    let (body, empty) = (samples::checkpoint().encode(), CheckpointBody::default().encode());
    let mut late = samples::checkpoint();
    late.tails.get_mut(&VOLUME).unwrap().newest = Slot(SLOT_MAX.0 - 1);
    let read = CheckpointBody::decode(&late.encode(), SLOT_MAX);
    assert_eq!(read, Ok(late), "the last slot that there may be, and the one below");
    for slot in [SLOT_MAX.0 + 1, u64::MAX] {
        for body in [&body, &empty] {
            out_of_range(CheckpointBody::decode(body, Slot(slot)), "checkpoint slot", slot);
        }
    }
}

#[test]
fn a_volume_has_legal_values() {
    let refused = |change: &dyn Fn(&mut VolumeTail), last: u64| {
        out_of_range(changed(change), "checkpoint volume", last);
    };
    refused(&|tail| tail.epoch = Epoch(0), 44);
    refused(&|tail| tail.first_seq = Seq(0), 44);
    refused(&|tail| tail.last_seq = Seq(40), 40);
    refused(&|tail| (tail.first_seq, tail.last_seq, tail.mark) = (Seq(0), Seq(0), None), 0);
    changed(|tail| (tail.first_seq, tail.last_seq) = (Seq(43), Seq(43))).unwrap();
    changed(|tail| tail.epoch = Epoch(u64::MAX)).unwrap();
    // Of no life, or of one without a generation.
    let error = with(TAIL + STAMP_OF, &[0; 4]).unwrap_err();
    assert!(matches!(error, DecodeError::Range { what: "checkpoint stamp", .. }), "{error}");
    with(TAIL + STAMP_OF + 4, &[0; 4]).unwrap();
    changed(|tail| tail.imprint = Imprint::default()).unwrap();
    for at in 84..88 {
        for tail in [TAIL, OTHER_TAIL] {
            let error = with(tail + at, &[1]).unwrap_err();
            assert_eq!(error, DecodeError::Reserved { what: "checkpoint volumes" }, "{at}");
        }
    }
}

#[test]
fn the_newest_slot_of_a_volume_is_below_the_checkpoint() {
    let newest = |slot: u64| changed(|tail| tail.newest = Slot(slot));
    for slot in [0, CHECKPOINT_SLOT.0 - 1] {
        newest(slot).unwrap();
    }
    for slot in [CHECKPOINT_SLOT.0, CHECKPOINT_SLOT.0 + 1, SLOT_MAX.0] {
        out_of_range(newest(slot), "checkpoint volume", 44);
    }
    for slot in [SLOT_MAX.0 + 1, u64::MAX] {
        out_of_range(newest(slot), "checkpoint newest slot", slot);
    }
    // The same bytes at another slot.
    let body = samples::checkpoint().encode();
    CheckpointBody::decode(&body, Slot(0x00ff)).unwrap();
    for slot in [0x00fe, 0x000a, 0] {
        out_of_range(CheckpointBody::decode(&body, Slot(slot)), "checkpoint volume", 44);
    }
}

#[test]
fn a_mark_lies_in_what_the_log_has_and_has_a_point() {
    let marked = |seq: u64| changed(|tail| tail.mark = Some((Seq(seq), samples::POINT)));
    for seq in [41, 42, 44] {
        marked(seq).unwrap();
    }
    for seq in [1, 40, 45, u64::MAX - 1] {
        out_of_range(marked(seq), "checkpoint mark", seq);
    }
    // A point of no mark, down to its last bit; ids of points are any, so zeros are one of a mark.
    out_of_range(with(TAIL + MARK_OF, &[0; 8]), "checkpoint mark", 0);
    out_of_range(with(OTHER_TAIL + POINT_OF + 15, &[0x80]), "checkpoint mark", 0);
    let point = PointId([0; 16]);
    changed(|tail| tail.mark = Some((Seq(44), point))).unwrap();
}

#[test]
fn flags_must_be_understood_or_may_be_ignored() {
    for tail in [TAIL, OTHER_TAIL] {
        let own = samples::checkpoint().encode()[tail + FLAGS_OF];
        for bit in 2..4_u32 {
            let error = with(tail + FLAGS_OF, &[own | 1 << bit]).unwrap_err();
            let newer = DecodeError::Newer { what: "checkpoint volume", feature: "flag", bit };
            assert_eq!((error.kind(), error), (ErrorKind::Invalid, newer));
        }
        for bit in 4..8_u32 {
            assert_eq!(with(tail + FLAGS_OF, &[own | 1 << bit]), Ok(samples::checkpoint()));
        }
    }
    for (flags, expected) in [(0, (false, false)), (1, (true, false)), (0xf2, (false, true))] {
        let tail = with(TAIL + FLAGS_OF, &[flags]).unwrap().tails[&VOLUME];
        assert_eq!((tail.is_released, tail.is_broken), expected, "{flags:#x}");
    }
}

#[test]
fn volumes_come_once_and_in_order() {
    for first in [OTHER_VOLUME.0, [0xff; 16]] {
        out_of_range(with(TAIL, &first), "checkpoint order", 0);
    }
    out_of_range(with(OTHER_TAIL, &VOLUME.0), "checkpoint order", 0);
    with(TAIL, &[0; 16]).unwrap();
}

prop_compose! {
    /// The newest slot of it is any: it is for the checkpoint to say below which.
    fn tail()(
        epoch in 1_u64.., first_seq in seq(), more in 0..1000_u64, newest: u64,
        mark in proptest::option::of((any::<prop::sample::Index>(), any::<[u8; 16]>())),
        stamp in stamp(), imprint in imprint(), is_released: bool, is_broken: bool,
    ) -> VolumeTail {
        let last_seq = Seq(first_seq.0.saturating_add(more).min(u64::MAX - 1));
        let mark = mark.map(|(at, point)| {
            let seqs = usize::try_from(last_seq.0 - first_seq.0 + 1).expect("there are few");
            (Seq(first_seq.0 + at.index(seqs) as u64), PointId(point))
        });
        VolumeTail {
            epoch: Epoch(epoch), first_seq, last_seq, newest: Slot(newest), mark, stamp, imprint,
            is_released, is_broken,
        }
    }
}

proptest! {
    #[test]
    fn any_checkpoint_reads_back(
        slot in slot(), incarnation: u64, horizon: u64, register in entry(),
        tails in btree_map(any::<[u8; 16]>(), tail(), 0..40),
    ) {
        let slot = Slot(slot.0.max(1));
        let below = |tail: VolumeTail| VolumeTail { newest: Slot(tail.newest.0 % slot.0), ..tail };
        let tails = tails.into_iter().map(|(id, tail)| (VolumeId(id), below(tail)));
        let incarnation = incarnation.max(1);
        let body = CheckpointBody { incarnation, horizon, register, tails: tails.collect() };
        prop_assert_eq!(CheckpointBody::decode(&body.encode(), slot), Ok(body));
    }
}
