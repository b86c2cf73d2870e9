//! The bodies of bases: round trips, and what the decoder refuses.

use crate::bodies::{MUST, Section, join, split};
use crate::roundtrip::{seq, slot};
use crate::samples::{self, BASE_NUMBER};
use farshore_proto::base::{BaseBody, KeptPoint};
use farshore_proto::limits::{BASE_POINTS_MAX, OBJECT_BODY_BYTES_MAX, VOLUME_BYTES_MAX};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::{DecodeError, Epoch, ErrorKind, LogId, MapAttempt, Place, PointId, Seq};
use proptest::collection::btree_map;
use proptest::prelude::*;

/// Offsets in the sample, each behind the head of its section: one head, two points.
pub(crate) const HEAD: usize = 16;
const OLDER: usize = HEAD + 128 + 16;
pub(crate) const NEWEST: usize = OLDER + 112;
/// In a point.
const MARK_OF: usize = 48;

type Read = Result<BaseBody, DecodeError>;

fn decode(body: &[u8]) -> Read {
    BaseBody::decode(body, BASE_NUMBER)
}

fn with(at: usize, bytes: &[u8]) -> Read {
    let mut body = samples::base().encode();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    decode(&body)
}

/// The sample, changed.
fn changed(change: impl FnOnce(&mut BaseBody)) -> Read {
    let mut body = samples::base();
    change(&mut body);
    decode(&body.encode())
}

#[track_caller]
fn out_of_range(read: Read, what: &'static str, value: u64) {
    assert_eq!(read, Err(DecodeError::Range { what, value }));
}

#[test]
fn the_sample_reads_back_and_lies_where_the_tests_take_it_to_be() {
    let body = samples::base().encode();
    assert_eq!((decode(&body), body.len()), (Ok(samples::base()), NEWEST + 112));
    let shapes: Vec<_> = split(&body).iter().map(|s| (s.number, s.stride, s.count)).collect();
    assert_eq!(shapes, [(1, 128, 1), (2, 112, 2)]);
    let object = samples::base_object();
    let (header, _) = ObjectHeader::decode(ObjectKind::Base, &object).unwrap();
    assert_eq!((header.place.subject, header.place.number), (samples::VOLUME.0, BASE_NUMBER));
    assert_eq!(object.len(), header.whole_bytes());
    assert_eq!(header.encode(|own| own.extend([0; 4])), object[..160]);
}

#[test]
fn a_kept_point_is_found_by_its_place() {
    let base = samples::base();
    for point in &base.points {
        assert_eq!(base.kept_at(point.at), Some(point));
    }
    for (ordinal, seq) in [(1, 39), (1, 41), (2, 40), (1, 44), (3, 44)] {
        assert_eq!(base.kept_at(Place { ordinal, seq: Seq(seq) }), None);
    }
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    for (at, max) in [(0, 1), (1, BASE_POINTS_MAX)] {
        let with_records = |count: usize| {
            let mut sections = split(&samples::base().encode());
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
fn one_of_as_many_points_as_there_may_be_reads_back() {
    let mut body = samples::base();
    let point = body.points[0];
    let at = |seq| Place { ordinal: 1, seq: Seq(seq) };
    let seqs = 1..=BASE_POINTS_MAX as u64;
    body.points = seqs.map(|seq| KeptPoint { at: at(seq), ..point }).collect();
    let bytes = body.encode();
    assert!(bytes.len() <= OBJECT_BODY_BYTES_MAX);
    assert!(decode(&bytes) == Ok(body), "it is another");
}

#[test]
#[should_panic(expected = "base points have a limit")]
fn one_of_more_points_is_not_written() {
    let point = samples::base().points[0];
    let points = vec![point; BASE_POINTS_MAX + 1];
    let _ = BaseBody { points, ..samples::base() }.encode();
}

#[test]
fn only_the_first_has_none_before_it() {
    let (second, mut first) = (samples::base(), samples::base());
    first.before = [0; 32];
    let read = |body: &BaseBody, number| BaseBody::decode(&body.encode(), number);
    assert_eq!(read(&first, 1).as_ref(), Ok(&first));
    for number in [2, 3, u64::MAX] {
        assert_eq!(read(&second, number).as_ref(), Ok(&second));
        out_of_range(read(&first, number), "base before", number);
    }
    out_of_range(read(&second, 1), "base before", 1);
    for body in [&first, &second] {
        out_of_range(read(body, 0), "base before", 0);
    }
}

#[test]
fn the_head_has_legal_values() {
    out_of_range(with(HEAD + 32, &[0; 8]), "base place", 44);
    out_of_range(with(HEAD + 40, &[0; 8]), "base place", 0);
    for at in 120..128 {
        let error = with(HEAD + at, &[1]).unwrap_err();
        assert_eq!(error, DecodeError::Reserved { what: "base head" }, "{at}");
    }
    let sections = split(&samples::base().encode());
    out_of_range(decode(&join(&sections[1..])), "base body", 1);
    out_of_range(decode(&[]), "base body", 1);
    assert_eq!(decode(&join(&sections[..1])).unwrap().points, [], "none is kept");
}

#[test]
fn a_point_has_legal_values() {
    out_of_range(with(OLDER, &[0; 8]), "base point place", 40);
    out_of_range(with(OLDER + 8, &[0; 8]), "base point place", 0);
    out_of_range(with(OLDER + 8, &[0xff; 8]), "base point place", u64::MAX);
    out_of_range(changed(|base| base.points[0].epoch = Epoch(0)), "base point", 40);
    for size in [0, VOLUME_BYTES_MAX + 1, u64::MAX] {
        out_of_range(changed(|base| base.points[0].size_bytes = size), "base point", 40);
    }
    for size in [1, VOLUME_BYTES_MAX] {
        changed(|base| base.points[0].size_bytes = size).unwrap();
    }
    let error = with(OLDER + MARK_OF + 24, &[0]).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "mark kind", value: 0 });
}

#[test]
fn points_lie_at_or_below_the_base() {
    changed(|base| base.at.seq = Seq(45)).unwrap();
    changed(|base| (base.at.ordinal, base.at.seq) = (3, Seq(1))).unwrap();
    out_of_range(changed(|base| base.at.seq = Seq(43)), "base point", 44);
    out_of_range(changed(|base| base.at.ordinal = 1), "base point", 44);
    // The two have one map where they are at one place.
    out_of_range(changed(|base| base.points[1].map = MapAttempt([9; 16])), "base point", 44);
    out_of_range(changed(|base| base.map = MapAttempt([9; 16])), "base point", 44);
    changed(|base| (base.map, base.at.seq) = (MapAttempt([9; 16]), Seq(45))).unwrap();
}

#[test]
fn points_come_once_and_in_order() {
    let wrong = |change: &dyn Fn(&mut KeptPoint)| {
        let read = changed(|base| change(&mut base.points[1]));
        assert!(matches!(read, Err(DecodeError::Range { what: "base order", .. })), "{read:?}");
    };
    wrong(&|point| point.at = Place { ordinal: 1, seq: Seq(40) });
    wrong(&|point| point.at.seq = Seq(40));
    wrong(&|point| point.at.seq = Seq(39));
    // Ordinals and epochs ascend together, and an epoch has one size.
    wrong(&|point| point.at.ordinal = 1);
    wrong(&|point| (point.at.ordinal, point.epoch) = (1, Epoch(1)));
    wrong(&|point| point.epoch = Epoch(1));
    wrong(&|point| (point.at.ordinal, point.size_bytes) = (1, 32 << 20));
    let same = |base: &mut BaseBody| {
        base.points[0].at.ordinal = 2;
        (base.points[0].epoch, base.points[0].size_bytes) = (Epoch(3), 64 << 20);
    };
    changed(same).unwrap();
    let read = changed(|base| base.points.swap(0, 1));
    assert!(matches!(read, Err(DecodeError::Range { what: "base order", .. })), "{read:?}");
}

prop_compose! {
    fn any_base()(
        before in any::<[u8; 32]>(), manifest in any::<[u8; 32]>(), log in any::<[u8; 16]>(),
        slot in slot(), map in any::<[u8; 16]>(), last in seq(), ordinal in 40_u64..,
        kept in btree_map(1_u64..1 << 40, (any::<[u8; 32]>(), 0_u64..3), 0..40),
        is_at_last: bool,
    ) -> BaseBody {
        let (mut points, mut epoch) = (Vec::new(), 1);
        for (seq, (ids, more)) in kept {
            epoch += more;
            let (mut map, mut point) = ([0; 16], [0; 16]);
            map.copy_from_slice(&ids[..16]);
            point.copy_from_slice(&ids[16..]);
            let mark = farshore_proto::mark::Mark { point: PointId(point), ..samples::mark() };
            let at = Place { ordinal: epoch.min(39), seq: Seq(seq) };
            let (epoch, size_bytes) = (Epoch(at.ordinal * 2), 1 << 30);
            points.push(KeptPoint { at, map: MapAttempt(map), epoch, size_bytes, mark });
        }
        let newest = points.last().copied().filter(|_| is_at_last);
        let above = Place { ordinal, seq: Seq(last.0.max(1)) };
        let (at, map) = newest.map_or((above, MapAttempt(map)), |point| (point.at, point.map));
        let before = if before == [0; 32] { [1; 32] } else { before };
        BaseBody { before, at, map, manifest, log: LogId(log), slot, points }
    }
}

proptest! {
    #[test]
    fn any_base_reads_back(base in any_base(), number in 2_u64..) {
        prop_assert_eq!(BaseBody::decode(&base.encode(), number), Ok(base));
    }
}
