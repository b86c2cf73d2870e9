//! One value, one encoding: whatever decodes, encodes to the very bytes it came from. So nothing
//! can be said in two ways, and no bit of a layout is without meaning.
//!
//! The exception is what later programs may add to an object (`later.rs`): that is passed over, and of the
//! rest there is one encoding all the same.

use crate::bases;
use crate::bodies::{Body, bodies, is_of_later, join, split};
use crate::checkpoints::TAIL;
use crate::machines::{DISK, MEMBER};
use crate::maps::{LAYER, MAP_MARK};
use crate::registers::TARGETS as REGISTER_TARGETS;
use crate::samples;
use crate::tables::{CHUNK, SPAN, TARGET};
use farshore_proto::frame::{Control, FrameHeader, FrameKind};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::journal::{GroupHeader, JournalFileHeader, entries, put_entry};
use farshore_proto::keys::KeyObject;
use farshore_proto::limits::SLOT_MAX;
use farshore_proto::map::{MapHeader, PartHeader};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::segment::{SegmentHeader, SlotKind, Table};
use farshore_proto::vault::VaultObject;
use farshore_proto::{DecodeError, LogId};
use proptest::prelude::*;
use std::ops::Range;

/// Decodes, and encodes what came of it.
type Again = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

/// A layout: good bytes, and where its CRC32C ends, if it has one.
struct Layout {
    name: &'static str,
    good: Vec<u8>,
    crc_end: Option<usize>,
    again: Again,
    shape: Shape,
}

/// What of a layout later programs may add to.
#[derive(Clone, Copy)]
enum Shape {
    /// Nothing but these bytes.
    Fixed(&'static [Range<usize>]),
    /// It is the header of an object.
    Header,
    /// It is a body of sections, these.
    Sections(&'static [(u16, u32)]),
}

/// The headers of all kinds of objects; what is passed over is not written again.
pub(crate) fn heads() -> Vec<(ObjectKind, Vec<u8>, Again)> {
    let head = |kind: ObjectKind, object: Vec<u8>, again: Again| {
        (kind, object[..kind.header_bytes()].to_vec(), again)
    };
    let segment = samples::segment_header(SlotKind::Segment).encode();
    vec![
        head(ObjectKind::Slot, segment, |bytes| {
            let mut header = SegmentHeader::decode(bytes)?;
            header.object.header_bytes = ObjectKind::Slot.header_bytes();
            Ok(header.encode())
        }),
        head(ObjectKind::Epoch, samples::epoch_object(), |bytes| {
            head_again(ObjectKind::Epoch, bytes)
        }),
        head(ObjectKind::Map, samples::map_object(), |bytes| {
            let mut header = MapHeader::decode(bytes)?;
            header.object.header_bytes = ObjectKind::Map.header_bytes();
            Ok(header.object.encode(|own| header.fields.put(own)))
        }),
        head(ObjectKind::Pages, samples::map_pages_object(), |bytes| {
            let mut header = PartHeader::decode(bytes)?;
            header.object.header_bytes = ObjectKind::Pages.header_bytes();
            Ok(header.object.encode(|own| header.fields.put(own)))
        }),
        head(ObjectKind::IndexRun, samples::index_run_object(), |bytes| {
            head_again(ObjectKind::IndexRun, bytes)
        }),
        head(ObjectKind::Checkpoint, samples::checkpoint_object(), |bytes| {
            head_again(ObjectKind::Checkpoint, bytes)
        }),
        head(ObjectKind::Revision, samples::revision_object(), |bytes| {
            head_again(ObjectKind::Revision, bytes)
        }),
        head(ObjectKind::Horizon, samples::horizon_object(), |bytes| {
            head_again(ObjectKind::Horizon, bytes)
        }),
        head(ObjectKind::Register, samples::register_object(), |bytes| {
            head_again(ObjectKind::Register, bytes)
        }),
        head(ObjectKind::Machine, samples::machine_object(), |bytes| {
            head_again(ObjectKind::Machine, bytes)
        }),
        head(ObjectKind::Group, samples::group_object(), |bytes| {
            head_again(ObjectKind::Group, bytes)
        }),
        head(ObjectKind::Base, samples::base_object(), |bytes| head_again(ObjectKind::Base, bytes)),
    ]
}

fn head_again(kind: ObjectKind, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (mut header, mut own) = ObjectHeader::decode(kind, bytes)?;
    header.header_bytes = kind.header_bytes();
    let own = own.take(own.left())?;
    Ok(header.encode(|out| out.extend(own)))
}

fn sized<const N: usize>(bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    let truncated = DecodeError::Truncated { what: "test", needed: N, have: bytes.len() };
    bytes.try_into().map_err(|_| truncated)
}

fn layouts() -> Vec<Layout> {
    let with_crc = |name, good: Vec<u8>, crc_end: usize, again: Again| Layout {
        name,
        good,
        crc_end: Some(crc_end),
        again,
        shape: Shape::Fixed(match name {
            "hrl" => &[12..16, 44..60],
            "journal file" => &[12..16, 152..4092],
            _ => &[],
        }),
    };
    let mut layouts = vec![
        with_crc("frame", samples::zero_frame(), 48, |bytes| {
            Ok(FrameHeader::decode(&sized(bytes)?)?.encode().into())
        }),
        with_crc("hrl", samples::hrl_header().encode().into(), 64, |bytes| {
            Ok(HrlHeader::decode(&sized(bytes)?)?.encode().into())
        }),
        with_crc("journal file", samples::journal_file_header().encode(), 4096, |bytes| {
            Ok(JournalFileHeader::decode(bytes)?.encode())
        }),
        with_crc("journal group", samples::group_header().encode().into(), 64, |bytes| {
            Ok(GroupHeader::decode(&sized(bytes)?)?.encode().into())
        }),
        with_crc("vault", samples::vault().encode(), 132, vault_again),
        with_crc("key", samples::key().encode(), 120, |bytes| {
            Ok(KeyObject::decode(bytes)?.encode())
        }),
        Layout {
            name: "journal entries",
            good: samples::journal_entries(),
            crc_end: None,
            again: entries_again,
            shape: Shape::Fixed(&[]),
        },
    ];
    layouts.extend(heads().into_iter().map(|(kind, good, again)| Layout {
        name: kind.what(),
        crc_end: Some(good.len()),
        good,
        again,
        shape: Shape::Header,
    }));
    layouts.extend(bodies().into_iter().map(|Body { name, good, again, strides }| Layout {
        name,
        good,
        crc_end: None,
        again,
        shape: Shape::Sections(strides),
    }));
    layouts
}

/// An object that says more than this program knows is read, and would be written without that: heads of
/// sections and the front tell.
fn vault_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let again = VaultObject::decode(bytes)?.encode();
    let heads = |bytes: &[u8]| [&bytes[..16], &bytes[48..64], &bytes[96..104]].concat();
    Ok(if heads(&again) == heads(bytes) { again } else { bytes.to_vec() })
}

fn layout(name: &str) -> Layout {
    layouts().into_iter().find(|layout| layout.name == name).expect("a known name")
}

fn entries_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    for entry in entries(bytes) {
        let entry = entry?;
        put_entry(&mut out, entry.volume, entry.epoch, &entry.header.encode(), entry.body);
    }
    Ok(out)
}

/// Puts the checksum of changed bytes right, where there is one.
fn reseal(layout: &Layout, bytes: &mut [u8]) {
    if let Some(end) = layout.crc_end.filter(|end| *end <= bytes.len()) {
        let crc = crc32c::crc32c(&bytes[..end - 4]);
        bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Whether bytes that decode make use of what later programs may add.
fn is_later(layout: &Layout, bytes: &[u8]) -> bool {
    match layout.shape {
        Shape::Fixed(later) => later.iter().any(|at| bytes[at.clone()] != layout.good[at.clone()]),
        Shape::Header => bytes[6..8] != layout.good[6..8] || bytes[12..16] != [0; 4],
        Shape::Sections(strides) => is_of_later(bytes, strides),
    }
}

fn assert_canonical(layout: &Layout, bytes: &[u8]) {
    let Ok(again) = (layout.again)(bytes) else { return };
    if is_later(layout, bytes) {
        let once_more = (layout.again)(&again);
        assert_eq!(once_more, Ok(again), "{}: what is known of it has one encoding", layout.name);
    } else {
        assert_eq!(again, bytes, "{}: two encodings of one value", layout.name);
    }
}

#[test]
fn the_samples_encode_to_what_they_were_decoded_from() {
    for layout in layouts() {
        assert_eq!((layout.again)(&layout.good), Ok(layout.good.clone()), "{}", layout.name);
        assert!(!is_later(&layout, &layout.good), "{}", layout.name);
    }
}

/// D2: behind a checksum that somebody put right, and where there is none.
#[test]
fn every_single_bit_flip_is_refused_or_another_value() {
    for layout in layouts() {
        for bit in 0..layout.good.len() * 8 {
            let mut bad = layout.good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            reseal(&layout, &mut bad);
            assert_canonical(&layout, &bad);
        }
    }
}

#[test]
fn every_truncation_is_refused_even_with_a_good_checksum() {
    for layout in layouts() {
        for end in 0..layout.good.len() {
            let mut short = layout.good[..end].to_vec();
            if layout.crc_end.is_some() && end >= 4 {
                let crc = crc32c::crc32c(&short[..end - 4]);
                short[end - 4..].copy_from_slice(&crc.to_le_bytes());
            }
            let read = (layout.again)(&short);
            // Entries are a run, and so are sections: fewer of them are another value. Of a body it is the
            // seal that holds its end.
            let is_prefix = match layout.shape {
                Shape::Fixed(_) => {
                    layout.name == "journal entries" && layout.good.starts_with(&short)
                }
                Shape::Header => false,
                Shape::Sections(_) => join(&split(&short)) == short,
            };
            assert!(read.is_err() || is_prefix, "{} cut at {end}", layout.name);
            assert_canonical(&layout, &short);
        }
    }
}

/// D1, D2, N3: header and body together are under checksums, so no bit of a frame can change.
#[test]
fn a_whole_frame_is_refused_at_every_cut_and_every_flipped_bit() {
    let stream = [("frame-write", samples::write_frame()), ("frame-zero", samples::zero_frame())];
    for (name, good) in samples::control_frames().into_iter().chain(stream) {
        read_frame(&good).unwrap_or_else(|error| panic!("{name}: {error}"));
        for end in 0..good.len() {
            let error = read_frame(&good[..end]).expect_err(name);
            assert!(matches!(error, DecodeError::Truncated { .. }), "{name} cut at {end}: {error}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read_frame(&bad).is_err(), "{name} bit {bit}");
        }
    }
}

/// Reads one frame as a session does; returns its bytes, encoded again.
fn read_frame(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let what = "frame header";
    let Some((head, rest)) = bytes.split_first_chunk() else {
        return Err(DecodeError::Truncated { what, needed: 48, have: bytes.len() });
    };
    let header = FrameHeader::decode(head)?;
    match header.kind {
        FrameKind::Write | FrameKind::Zero => {
            let (header, body) = frame_at(bytes)?;
            Ok([&header.encode()[..], body].concat())
        }
        _ => Ok(Control::decode(&header, rest)?.encode()),
    }
}

#[test]
fn a_list_of_targets_has_each_once_and_in_the_order_of_its_chunks() {
    // The list is two targets of 32 bytes; behind the head of their section then what is in them: where the list is, how
    // long a record is, and where its target is in it.
    for (name, list, stride, at) in [("map page", 16, 28, 0), ("index run body", 48, 44, 32)] {
        let layout = layout(name);
        let good = &layout.good;
        let set_target = |bytes: &mut [u8], record: usize, target: u8| {
            bytes[list + 64 + 16 + record * stride + at] = target;
        };
        let refused = |bytes: &[u8], what: &str| {
            let error = (layout.again)(bytes).expect_err(name);
            let is_named = matches!(error, DecodeError::Range { what: found, .. } if found == what);
            assert!(is_named, "{name}: {error}");
        };
        let mut unused = good.clone();
        set_target(&mut unused, 1, 0);
        refused(&unused, "targets of no chunk");
        let mut swapped = good.clone();
        set_target(&mut swapped, 0, 1);
        set_target(&mut swapped, 1, 0);
        refused(&swapped, "order of targets");
        let mut twice = good.clone();
        twice.copy_within(list..list + 32, list + 32);
        refused(&twice, "targets listed twice");
        let mut spare = good.clone();
        spare.splice(list + 64..list + 64, [0x3a; 32]);
        spare[list - 8] = 3;
        refused(&spare, "targets of no chunk");
        // The same slot is two targets if two attempts are meant.
        let mut attempts = good.clone();
        attempts.copy_within(list..list + 24, list + 32);
        assert_eq!((layout.again)(&attempts), Ok(attempts), "{name}");
    }
}

#[test]
fn a_table_lists_a_target_once_and_in_the_order_of_its_chunks() {
    let good = samples::table().encode();
    let mut spare = good.clone();
    spare.splice(TARGET + 32..TARGET + 32, [0x3a; 32]);
    spare[TARGET - 8] = 2;
    let error = Table::decode(&spare).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "targets of no chunk", value: 1 });
    let mut swapped = spare.clone();
    swapped[CHUNK + 32 + 48 + 32] = 2;
    let error = Table::decode(&swapped).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "order of targets", value: 1 });
    let mut twice = spare;
    twice.copy_within(TARGET..TARGET + 32, TARGET + 32);
    let error = Table::decode(&twice).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "targets listed twice", value: 9 });
    let listed: [u8; 16] = good[TARGET..TARGET + 16].try_into().expect("16 bytes");
    assert_eq!(LogId(listed), samples::OTHER_LOG);
}

/// Bytes with this number at these places, with a good checksum: whether they decode.
fn decodes_with(name: &str, places: &[usize], value: u64) -> bool {
    let layout = layout(name);
    let mut bytes = layout.good.clone();
    for at in places {
        bytes[*at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    reseal(&layout, &mut bytes);
    (layout.again)(&bytes).is_ok()
}

/// Whoever reads a seq counts on from it, so the last one of 64 bits is nowhere.
#[test]
fn no_layout_holds_a_seq_without_a_next() {
    // Of a span and of a volume, the last seq alone, and with those before it.
    let places: [(&str, &[usize]); 16] = [
        ("frame", &[8]),
        ("hrl", &[32]),
        ("map", &[48]),
        ("map part", &[48]),
        ("map body", &[MAP_MARK + 8]),
        ("map body", &[LAYER + 8]),
        ("epoch body", &[48]),
        ("epoch body", &[237]),
        ("table", &[SPAN + 32]),
        ("table", &[SPAN + 24, SPAN + 32]),
        ("checkpoint body", &[TAIL + 32]),
        ("checkpoint body", &[TAIL + 24, TAIL + 32, TAIL + 48]),
        ("horizon body", &[TAIL + 24, TAIL + 32, TAIL + 48]),
        ("base body", &[bases::HEAD + 40, bases::NEWEST + 8]),
        ("machine body", &[DISK + 32]),
        ("group body", &[MEMBER + 40]),
    ];
    for (name, places) in places {
        assert!(!decodes_with(name, places, u64::MAX), "{name} at {places:?}");
        assert!(
            decodes_with(name, places, u64::MAX - 1),
            "{name} at {places:?}: one less is a seq"
        );
    }
}

/// Whoever reads a slot reads on behind it, so one near the end of 64 bits is nowhere.
#[test]
fn no_layout_holds_a_slot_without_others_behind_it() {
    // Of heads, of targets, of the header of a segment; the last number is no slot in two places.
    for (name, at, has_none) in [
        ("segment", 48, false),
        ("segment", 192, true),
        ("epoch body", 40, false),
        ("epoch body", 181, false),
        ("table", TARGET + 16, false),
        ("table", SPAN + 40, true),
        ("map body", 16 + 16, false),
        ("map page", 16 + 16, false),
        ("index run body", 16 + 16 + 16 + 16, false),
        ("base body", bases::HEAD + 112, false),
        ("register body", REGISTER_TARGETS + 32 + 16, false),
    ] {
        assert_eq!(decodes_with(name, &[at], u64::MAX), has_none, "{name} at {at}");
        for slot in [u64::MAX - 1, SLOT_MAX.0 + 1] {
            assert!(!decodes_with(name, &[at], slot), "{name} at {at}: {slot}");
        }
        assert!(decodes_with(name, &[at], SLOT_MAX.0), "{name} at {at}");
    }
}

proptest! {
    /// N3, D2: any bytes in any place, under a good checksum: refused, or the one encoding of
    /// what they say.
    #[test]
    fn noise_is_refused_or_canonical(
        which in any::<prop::sample::Index>(),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let layouts = layouts();
        let layout = &layouts[which.index(layouts.len())];
        let mut bytes = layout.good.clone();
        for (at, byte) in noise {
            bytes[at.index(layout.good.len())] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        reseal(layout, &mut bytes);
        assert_canonical(layout, &bytes);
    }

    /// A few fields at a time set to what borders on legal: where off-by-one errors live.
    #[test]
    fn borders_are_refused_or_canonical(
        which in any::<prop::sample::Index>(),
        fields in proptest::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(BORDERS.to_vec()), 1..=8_usize),
            1..4,
        ),
    ) {
        let layouts = layouts();
        let layout = &layouts[which.index(layouts.len())];
        let mut bytes = layout.good.clone();
        for (at, value, width) in fields {
            let at = at.index(bytes.len()) & !3;
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        reseal(layout, &mut bytes);
        assert_canonical(layout, &bytes);
    }
}

const BORDERS: [u64; 14] = [
    0,
    1,
    2,
    31,
    32,
    33,
    4095,
    4096,
    1 << 20,
    1 << 34,
    u32::MAX as u64,
    1 << 46,
    u64::MAX - 1,
    u64::MAX,
];
