//! What every decoder does with bytes that are cut short, flipped, lengthened or out of range: it
//! refuses them with the right error, allocates no more than they justify, and never panics.

use crate::bodies::{Section, bodies, is_of_later, join, split};
use crate::samples;
use farshore_proto::base::BaseBody;
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::epoch::{EpochBody, SealedLabel};
use farshore_proto::frame::{Control, FrameHeader};
use farshore_proto::horizon::HorizonBody;
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::index_run::IndexRun;
use farshore_proto::journal::{GroupHeader, JournalFileHeader, entries};
use farshore_proto::keys::KeyObject;
use farshore_proto::map::{Directory, Manifest, MapHeader, Page, PartHeader};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::register::RegisterBody;
use farshore_proto::segment::{SegmentHeader, SlotKind, Table};
use farshore_proto::vault::VaultObject;
use farshore_proto::{DecodeError, ErrorKind};
use proptest::prelude::*;

type Decode = fn(&[u8]) -> Result<(), DecodeError>;

/// A layout under CRC32C: its decoder, good bytes, how many of them the CRC covers (with itself),
/// and where the reserved bytes are.
struct Checked {
    name: &'static str,
    decode: Decode,
    good: Vec<u8>,
    covered: usize,
    reserved: Vec<usize>,
}

fn sized<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Truncated { what, needed: N, have: bytes.len() })
}

fn header(name: &'static str, decode: Decode, good: Vec<u8>, reserved: Vec<usize>) -> Checked {
    Checked { name, decode, covered: good.len(), good, reserved }
}

fn checked() -> Vec<Checked> {
    let mut layouts = vec![
        header("frame", decode_frame_header, samples::zero_frame(), Vec::new()),
        header("hrl", decode_hrl, samples::hrl_header().encode().into(), vec![6, 7]),
        header(
            "journal file",
            |bytes| JournalFileHeader::decode(bytes).map(drop),
            samples::journal_file_header().encode(),
            vec![56, 67, 72, 87],
        ),
        header(
            "journal group",
            decode_group,
            samples::group_header().encode().into(),
            vec![6, 7, 32, 59],
        ),
        header(
            "vault",
            |bytes| VaultObject::decode(bytes).map(drop),
            samples::vault().encode(),
            vec![40, 47, 87, 92, 95, 108, 124, 127],
        ),
        header(
            "key",
            |bytes| KeyObject::decode(bytes).map(drop),
            samples::key().encode(),
            vec![46, 47],
        ),
    ];
    layouts.extend(checked_objects());
    layouts
}

/// Of objects the headers.
fn checked_objects() -> Vec<Checked> {
    let object = |name, kind: ObjectKind, object: Vec<u8>, decode, own: [usize; 2]| {
        // Of every object, and behind them those of the kind.
        let reserved = [&[60, 63, 74, 75][..], &own].concat();
        header(name, decode, object[..kind.header_bytes()].to_vec(), reserved)
    };
    let without_fields = |name, kind, bytes, decode| object(name, kind, bytes, decode, [152, 155]);
    let segment = samples::segment_header(SlotKind::Segment).encode();
    let segments: Decode = |bytes| SegmentHeader::decode(bytes).map(drop);
    let maps: Decode = |bytes| MapHeader::decode(bytes).map(drop);
    let parts: Decode = |bytes| PartHeader::decode(bytes).map(drop);
    vec![
        object("segment", ObjectKind::Slot, segment, segments, [200, 203]),
        object("map", ObjectKind::Map, samples::map_object(), maps, [192, 195]),
        object("map part", ObjectKind::Pages, samples::map_pages_object(), parts, [184, 187]),
        without_fields("epoch", ObjectKind::Epoch, samples::epoch_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::Epoch, bytes).map(drop)
        }),
        without_fields("index run", ObjectKind::IndexRun, samples::index_run_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::IndexRun, bytes).map(drop)
        }),
        without_fields("machine", ObjectKind::Machine, samples::machine_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::Machine, bytes).map(drop)
        }),
        without_fields("group", ObjectKind::Group, samples::group_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::Group, bytes).map(drop)
        }),
        without_fields("revision", ObjectKind::Revision, samples::revision_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::Revision, bytes).map(drop)
        }),
        without_fields("horizon", ObjectKind::Horizon, samples::horizon_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::Horizon, bytes).map(drop)
        }),
        without_fields("base", ObjectKind::Base, samples::base_object(), |bytes| {
            ObjectHeader::decode(ObjectKind::Base, bytes).map(drop)
        }),
        without_fields(
            "checkpoint",
            ObjectKind::Checkpoint,
            samples::checkpoint_object(),
            |bytes| ObjectHeader::decode(ObjectKind::Checkpoint, bytes).map(drop),
        ),
        without_fields(
            "register entry",
            ObjectKind::Register,
            samples::register_object(),
            |bytes| ObjectHeader::decode(ObjectKind::Register, bytes).map(drop),
        ),
    ]
}

/// The layouts that are headers of objects.
const OBJECTS: [&str; 12] = [
    "revision",
    "segment",
    "epoch",
    "map",
    "map part",
    "index run",
    "checkpoint",
    "horizon",
    "register entry",
    "machine",
    "group",
    "base",
];

fn decode_frame_header(bytes: &[u8]) -> Result<(), DecodeError> {
    FrameHeader::decode(&sized("frame header", bytes)?).map(drop)
}

fn decode_hrl(bytes: &[u8]) -> Result<(), DecodeError> {
    HrlHeader::decode(&sized("hrl header", bytes)?).map(drop)
}

fn decode_group(bytes: &[u8]) -> Result<(), DecodeError> {
    GroupHeader::decode(&sized("journal group header", bytes)?).map(drop)
}

fn reseal(layout: &Checked, bytes: &mut [u8]) {
    let end = layout.covered - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..layout.covered].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn good_bytes_decode() {
    for layout in checked() {
        (layout.decode)(&layout.good).unwrap_or_else(|error| panic!("{}: {error}", layout.name));
    }
}

#[test]
fn bytes_cut_short_anywhere_are_refused() {
    for layout in checked() {
        for end in 0..layout.good.len() {
            let error = (layout.decode)(&layout.good[..end]).unwrap_err();
            assert!(
                matches!(error, DecodeError::Truncated { .. }),
                "{} cut at {end}: {error}",
                layout.name
            );
        }
    }
}

#[test]
fn every_single_bit_flip_under_a_crc_is_refused() {
    for layout in checked() {
        for bit in 0..layout.covered * 8 {
            let mut bad = layout.good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = (layout.decode)(&bad).expect_err(layout.name);
            assert_ne!(error.kind(), ErrorKind::Limit, "{} bit {bit}: {error}", layout.name);
        }
    }
}

#[test]
fn reserved_bytes_that_are_not_zero_are_refused() {
    for layout in checked() {
        for at in &layout.reserved {
            let mut bad = layout.good.clone();
            assert_eq!(bad[*at], 0, "{} byte {at} is reserved", layout.name);
            bad[*at] = 1;
            reseal(&layout, &mut bad);
            let error = (layout.decode)(&bad).unwrap_err();
            assert!(
                matches!(error, DecodeError::Reserved { .. }),
                "{} byte {at}: {error}",
                layout.name
            );
        }
    }
}

#[test]
fn another_version_is_named_before_anything_else_is_read() {
    for layout in checked().iter().filter(|layout| layout.name != "frame") {
        let own = layout.good[4];
        for version in [own - 1, own + 1] {
            let mut other = layout.good.clone();
            other[4] = version;
            // The checksum is not put right: a newer version may have it elsewhere.
            let error = (layout.decode)(&other).unwrap_err();
            let expected = u16::from(version);
            let is_named = matches!(error, DecodeError::Version { found, .. } if found == expected);
            assert!(is_named, "{}: {error}", layout.name);
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}

#[test]
fn bytes_to_spare_are_refused_but_behind_the_header_of_an_object() {
    for layout in checked() {
        let mut long = layout.good.clone();
        long.extend([0; 8]);
        let is_object = OBJECTS.contains(&layout.name);
        assert_eq!((layout.decode)(&long).is_ok(), is_object, "{}", layout.name);
    }
}

/// Puts `value` at `at` with the checksum put right, and decodes.
fn with(name: &str, at: usize, value: &[u8]) -> Result<(), DecodeError> {
    let layout = checked().into_iter().find(|layout| layout.name == name).expect("a known name");
    let mut bytes = layout.good.clone();
    bytes[at..at + value.len()].copy_from_slice(value);
    reseal(&layout, &mut bytes);
    (layout.decode)(&bytes)
}

#[test]
fn lengths_over_their_limit_are_refused_by_the_header_alone() {
    let huge = u32::MAX.to_le_bytes();
    let objects = OBJECTS.into_iter().flat_map(|name| [(name, 76), (name, 80)]);
    for (name, at) in objects.chain([("journal group", 24), ("journal group", 28)]) {
        let error = with(name, at, &huge).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{name}: {error}");
    }
    for value in [u64::MAX, (64 << 20) + 1, 64 << 20] {
        let error = with("segment", 160, &value.to_le_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
    for value in [u64::MAX, (64 << 20) + 1] {
        let error = with("map part", 176, &value.to_le_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
    with("map part", 176, &(64_u64 << 20).to_le_bytes()).unwrap();
    // The bodies of epochs are small.
    let raw = |bytes: u32| with("epoch", 80, &bytes.to_le_bytes()).unwrap_err().kind();
    assert_eq!((raw((64 << 10) + 1), raw(64 << 10)), (ErrorKind::Limit, ErrorKind::Corrupt));
}

#[test]
fn a_body_is_as_long_as_its_tag_and_no_longer_than_raw() {
    // Of the sample: 300 sealed, 700 raw, compressed.
    let with = |sealed: u32, raw: u32, compression: u8| {
        let fields = [sealed.to_le_bytes(), raw.to_le_bytes()].concat();
        let fields = [&[compression, 0, 0][..], &fields].concat();
        with("segment", 73, &fields)
    };
    for (sealed, raw, compression) in [(16, 0, 0), (16, 0, 1), (16, 9, 1), (25, 9, 1), (25, 9, 0)] {
        with(sealed, raw, compression).unwrap();
    }
    for (sealed, raw, compression) in [(0, 0, 0), (15, 9, 1), (26, 9, 1), (26, 9, 0), (24, 9, 0)] {
        let error = with(sealed, raw, compression).unwrap_err();
        let value = sealed.into();
        assert_eq!(error, DecodeError::Range { what: "body length", value }, "{sealed} of {raw}");
    }
}

#[test]
fn fields_out_of_range_are_refused() {
    // No key, none that the commitment goes by; a domain, or none, where the kind is to have the other.
    let domain = |name| {
        u8::from(!matches!(
            name,
            "segment" | "map" | "map part" | "index run" | "machine" | "group"
        ))
    };
    let of_all = OBJECTS
        .into_iter()
        .flat_map(|name| [(name, 64, domain(name)), (name, 68, 0), (name, 84, 0)]);
    // The domain's key is not the vault's own.
    let of_all = of_all.chain([("segment", 68, 3), ("map", 84, 1), ("epoch", 68, 1)]);
    let of_segments = [("segment", 72, 0), ("segment", 56, 1), ("segment", 152, 0)];
    // No seq, one that has parts, a variant, no epoch.
    let of_maps = [("map", 48, 0), ("map", 56, 1), ("map", 72, 1), ("map", 184, 0)];
    let of_parts =
        [("map part", 48, 0), ("map part", 58, 1), ("map part", 72, 1), ("map part", 168, 0)];
    let of_maps = of_maps.into_iter().chain(of_parts);
    let others = [
        ("hrl", 32, 0),
        ("epoch", 72, 1),
        ("index run", 72, 1),
        ("checkpoint", 72, 1),
        ("horizon", 72, 1),
        ("revision", 72, 1),
        ("register entry", 72, 1),
        ("machine", 72, 1),
        ("group", 72, 1),
        ("base", 72, 1),
    ];
    for (name, at, value) in of_all.chain(of_segments).chain(of_maps).chain(others) {
        let error = with(name, at, &[value]).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{name} byte {at}: {error}");
    }
    // Neither a seal nor a fill has frames.
    for kind in [2, 3] {
        let error = with("segment", 64, &[0, 0, 0, 0, 3, 0, 0, 0, kind]).unwrap_err();
        assert_eq!(error, DecodeError::Range { what: "frames of no segment", value: 20_016 });
    }
}

#[test]
fn an_epoch_body_out_of_range_is_refused() {
    let good = samples::epoch_body().encode(Some(&samples::sealed_label()));
    EpochBody::decode(&good).unwrap();
    let with = |at: usize, value: &[u8]| {
        let mut bad = good.clone();
        bad[16 + at..16 + at + value.len()].copy_from_slice(value);
        EpochBody::decode(&bad).unwrap_err()
    };
    let range = |error: DecodeError| matches!(error, DecodeError::Range { .. });
    assert!(range(with(0, &[0; 8])), "epoch 0");
    assert!(range(with(32, &[0; 8])), "first seq 0");
    assert!(range(with(40, &[0; 8])), "size 0");
    assert!(range(with(40, &(65_u64 << 40).to_le_bytes())), "size over the largest volume");
    assert!(range(with(52, &[1])), "a stamp of no life");
    assert!(range(with(56, &[0])), "a domain of none");
    let newer = DecodeError::Newer { what: "epoch", feature: "domain", bit: 2 };
    assert_eq!(with(56, &[2]), newer);
    assert!(matches!(with(60, &[1]), DecodeError::Reserved { .. }));
    assert!(range(with(64 + 16, &[0])), "a label under no key");
    assert!(matches!(with(64 + 16 + 4, &[1]), DecodeError::Reserved { .. }));
    let labelled = |bytes: usize| {
        let label = SealedLabel { sealed: vec![7; bytes + 16], ..samples::sealed_label() };
        let sealed = samples::epoch_body().encode(Some(&label));
        EpochBody::decode(&sealed).map(|(_, found)| assert_eq!(found, Some(label)))
    };
    labelled(1).unwrap();
    labelled(128).unwrap();
    assert!(range(labelled(0).unwrap_err()), "one that says nothing is left out");
    let over = SealedLabel { sealed: vec![7; 129 + 16], ..samples::sealed_label() };
    let over = [vec![1, 0, 0, 0, 0, 0, 0, 0], over.salt.to_vec(), over.sealed].concat();
    let head = split(&good).swap_remove(0);
    let labels = u32::try_from(over.len()).unwrap();
    let mut bytes = join(&[head, Section::of_zeros(2, 1, 1, labels)]);
    let at = bytes.len() - over.len();
    bytes[at..].copy_from_slice(&over);
    assert_eq!(EpochBody::decode(&bytes).unwrap_err().kind(), ErrorKind::Limit, "over its limit");
    let mut twice = split(&good);
    twice[0] = Section::of_zeros(1, 1, 64, 2);
    assert_eq!(EpochBody::decode(&join(&twice)).unwrap_err().kind(), ErrorKind::Limit, "two heads");
    assert!(range(EpochBody::decode(&join(&twice[1..])).unwrap_err()), "no head");
}

#[test]
fn how_an_epoch_begins_is_one_of_the_ways_that_are_known() {
    let good = samples::stamped_epoch_body().encode(Some(&samples::sealed_label()));
    let with = |at: usize, value: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + value.len()].copy_from_slice(value);
        EpochBody::decode(&bad)
    };
    let is_refused = |at, value: &[u8]| {
        matches!(
            with(at, value).unwrap_err(),
            DecodeError::Range { .. } | DecodeError::Reserved { .. }
        )
    };
    let (slot, kind, ordinal, seq) = (181, 189, 229, 237);
    for code in [0, 5, 255] {
        let error = with(kind, &[code]).unwrap_err();
        assert!(matches!(error, DecodeError::Newer { feature: "end", .. }), "way {code}: {error}");
    }
    assert!(is_refused(kind + 1, &[1]), "reserved");
    assert!(is_refused(kind, &[4]), "slots of a log that nobody writes");
    for (kind_of, is_legal) in [(1, true), (2, false), (3, true), (4, true)] {
        let mut of_none = good.clone();
        of_none[slot..slot + 8].fill(0);
        of_none[kind] = kind_of;
        assert_eq!(EpochBody::decode(&of_none).is_ok(), is_legal, "way {kind_of} in slot 0");
    }
    assert!(is_refused(ordinal, &[0; 8]) && is_refused(seq, &[0; 8]), "no place");
}

/// Reads a log file to its first bad frame: how many frames are good, and what ended it.
fn read_log(file: &[u8]) -> (usize, Option<DecodeError>) {
    let mut rest = &file[64..];
    let mut frames = 0;
    while !rest.is_empty() {
        match frame_at(rest) {
            Ok((_, body)) => rest = &rest[48 + body.len()..],
            Err(error) => return (frames, Some(error)),
        }
        frames += 1;
    }
    (frames, None)
}

#[test]
fn a_log_cut_short_anywhere_ends_at_its_last_whole_frame() {
    let file = samples::hrl_file();
    let ends = [64, 64 + 48 + 4096, 64 + 48 + 4096 + 48, file.len()];
    for end in 64..=file.len() {
        let (frames, error) = read_log(&file[..end]);
        let whole = ends.iter().filter(|frame_end| **frame_end <= end).count() - 1;
        assert_eq!(frames, whole, "cut at {end}");
        assert_eq!(error.is_none(), ends.contains(&end), "cut at {end}");
        if let Some(error) = error {
            assert!(matches!(error, DecodeError::Truncated { .. }), "cut at {end}: {error}");
        }
    }
}

#[test]
fn a_bit_flip_in_a_log_never_yields_other_frames() {
    let file = samples::hrl_file();
    for bit in (64 * 8..file.len() * 8).step_by(7) {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let (frames, error) = read_log(&bad);
        assert!(frames < 3 && error.is_some(), "bit {bit}: {frames} frames");
    }
}

#[test]
fn a_log_holds_stream_frames_only() {
    for (name, frame) in samples::control_frames() {
        let is_stream = name.starts_with("frame-mark");
        assert_eq!(frame_at(&frame).is_ok(), is_stream, "{name}");
    }
}

#[test]
fn entries_of_a_group_end_at_the_first_bad_one() {
    let good = samples::journal_entries();
    assert_eq!(entries(&good).filter(Result::is_ok).count(), 2);
    for end in 1..good.len() {
        let read: Vec<_> = entries(&good[..end]).collect();
        let whole = usize::from(end >= 72);
        assert_eq!(read.iter().filter(|entry| entry.is_ok()).count(), whole, "cut at {end}");
        assert_eq!(read.last().is_some_and(Result::is_err), end != 72, "cut at {end}");
    }
    let mut of_no_epoch = good.clone();
    of_no_epoch[16..24].fill(0);
    assert!(entries(&of_no_epoch).next().expect("there is one").is_err());
}

#[test]
fn a_body_cut_short_or_lengthened_anywhere_is_refused_or_has_fewer_sections() {
    for body in bodies() {
        for end in 0..body.good.len() {
            let short = &body.good[..end];
            match (body.again)(short) {
                Ok(again) => {
                    assert!(again == short && join(&split(short)) == short, "{}", body.name)
                }
                Err(error) => {
                    let is_cut = matches!(error, DecodeError::Truncated { .. });
                    assert!(is_cut || join(&split(short)) == short, "{} {end}: {error}", body.name);
                }
            }
        }
        let long = [&body.good[..], &[0]].concat();
        let error = (body.again)(&long).unwrap_err();
        assert!(matches!(error, DecodeError::Truncated { .. }), "{}: {error}", body.name);
    }
}

#[test]
fn a_body_with_a_flipped_bit_is_refused_or_another_body() {
    for body in bodies() {
        for bit in 0..body.good.len() * 8 {
            let mut bad = body.good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Sealing tells the damage; the decoder's part is to stay in bounds and to be exact.
            if let Ok(again) = (body.again)(&bad) {
                let is_other = again != body.good || is_of_later(&bad, body.strides);
                assert!(is_other, "{} bit {bit} means nothing", body.name);
            }
        }
    }
}

proptest! {
    #[test]
    fn no_decoder_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        for layout in checked() {
            let _ = (layout.decode)(&bytes);
        }
        let _ = frame_at(&bytes);
        let _ = entries(&bytes).count();
        let _ = Table::decode(&bytes);
        let _ = EpochBody::decode(&bytes);
        let _ = Manifest::decode(&bytes);
        let _ = Directory::decode(&bytes);
        let _ = Page::decode(&bytes);
        let _ = IndexRun::decode(&bytes);
        let _ = CheckpointBody::decode(&bytes, samples::CHECKPOINT_SLOT);
        let _ = HorizonBody::decode(&bytes, samples::HORIZON);
        let _ = BaseBody::decode(&bytes, samples::BASE_NUMBER);
        let _ = RegisterBody::decode(&bytes, samples::ENTRY);
    }

    #[test]
    fn no_decoder_panics_behind_a_good_magic_and_checksum(
        which in any::<prop::sample::Index>(),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let layouts = checked();
        let layout = &layouts[which.index(layouts.len())];
        let mut bytes = layout.good.clone();
        for (at, byte) in noise {
            bytes[6 + at.index(layout.covered - 10)] = byte;
        }
        reseal(layout, &mut bytes);
        let _ = (layout.decode)(&bytes);
    }

    #[test]
    fn no_control_body_panics(
        which in any::<prop::sample::Index>(),
        body in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let frames = samples::control_frames();
        let (_, frame) = &frames[which.index(frames.len())];
        let (header, good) = frame.split_first_chunk().expect("a frame has a header");
        let mut header = *header;
        let mut bytes = good.to_vec();
        for (to, from) in bytes.iter_mut().zip(body) {
            *to = from;
        }
        header[36..40].copy_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let crc = crc32c::crc32c(&header[..44]);
        header[44..].copy_from_slice(&crc.to_le_bytes());
        let header = FrameHeader::decode(&header).expect("only the body is arbitrary");
        if let Ok(control) = Control::decode(&header, &bytes) {
            // What later programs may say besides is passed over.
            match control {
                Control::Hello(_) | Control::Welcome(_) => bytes[4..8].fill(0),
                Control::Mark(..) => bytes[25] &= 0x0f,
                _ => {}
            }
            prop_assert_eq!(control.encode()[48..].to_vec(), bytes, "one meaning, one encoding");
        }
    }
}
