//! What every decoder does with bytes that are cut short, flipped, lengthened or out of range: it
//! refuses them with the right error, allocates no more than they justify, and never panics.

use crate::samples;
use farshore_proto::epoch::{EpochBody, EpochHeader};
use farshore_proto::frame::{Control, FrameHeader};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::index_run::{IndexRun, IndexRunHeader};
use farshore_proto::journal::{GroupHeader, JournalFileHeader, entries};
use farshore_proto::keys::KeyObject;
use farshore_proto::map::{MapBody, MapHeader};
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

fn checked() -> Vec<Checked> {
    let header = |name, decode: Decode, good: Vec<u8>, reserved: Vec<usize>| Checked {
        name,
        decode,
        covered: good.len(),
        good,
        reserved,
    };
    let journal = samples::journal_file_header().encode();
    let segment = samples::segment_header(SlotKind::Segment).encode().to_vec();
    let epoch = samples::epoch_object();
    vec![
        header("frame", decode_frame_header, samples::zero_frame(), Vec::new()),
        header("hrl", decode_hrl, samples::hrl_header().encode().into(), vec![6, 7, 32, 59]),
        header(
            "journal file",
            |bytes| JournalFileHeader::decode(bytes).map(drop),
            journal,
            vec![6, 7, 52, 55, 120, 4091],
        ),
        header(
            "journal group",
            decode_group,
            samples::group_header().encode().into(),
            vec![6, 7, 28, 59],
        ),
        header(
            "segment",
            |bytes| SegmentHeader::decode(bytes).map(drop),
            segment,
            vec![52, 144, 155],
        ),
        header(
            "vault",
            |bytes| VaultObject::decode(bytes).map(drop),
            samples::vault().encode(),
            vec![36, 47, 87, 92, 95, 108, 124, 127],
        ),
        header(
            "key",
            |bytes| KeyObject::decode(bytes).map(drop),
            samples::key().encode(),
            vec![46, 47],
        ),
        Checked {
            name: "epoch",
            decode: |bytes| EpochHeader::decode(bytes).map(drop),
            good: epoch,
            covered: 136,
            reserved: vec![6, 7, 120, 131],
        },
        Checked {
            name: "map",
            decode: |bytes| MapHeader::decode(bytes).map(drop),
            good: samples::map_object(),
            covered: 192,
            reserved: vec![7, 92, 95, 168, 187],
        },
        Checked {
            name: "index run",
            decode: |bytes| IndexRunHeader::decode(bytes).map(drop),
            good: samples::index_run_object(),
            covered: 144,
            reserved: vec![7, 44, 47, 120, 139],
        },
    ]
}

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
        let mut next = layout.good.clone();
        next[4] += 1;
        // The checksum is not put right: a newer version may have it elsewhere.
        let error = (layout.decode)(&next).unwrap_err();
        let found = next[4].into();
        assert!(
            matches!(error, DecodeError::Version { found: other, .. } if other == found),
            "{}",
            layout.name
        );
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn an_object_with_bytes_to_spare_is_refused() {
    for layout in checked().iter().filter(|layout| layout.name != "segment") {
        let mut long = layout.good.clone();
        long.extend([0; 8]);
        (layout.decode)(&long).expect_err(layout.name);
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
    let lengths = [
        ("journal group", 24),
        ("segment", 120),
        ("segment", 124),
        ("map", 160),
        ("map", 164),
        ("index run", 112),
        ("index run", 116),
    ];
    for (name, at) in lengths {
        let error = with(name, at, &huge).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{name}: {error}");
    }
    for value in [u64::MAX, (64 << 20) + 1, 64 << 20] {
        let error = with("segment", 128, &value.to_le_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
    assert!(matches!(with("epoch", 52, &huge), Err(DecodeError::Truncated { .. })));
}

#[test]
fn fields_out_of_range_are_refused() {
    for (name, at, value) in
        [("segment", 6, 0), ("segment", 6, 3), ("segment", 7, 2), ("hrl", 24, 0), ("epoch", 40, 0)]
            .into_iter()
            .chain([("map", 6, 2), ("map", 40, 0), ("map", 80, 3), ("map", 84, 1), ("map", 87, 1)])
            .chain([("index run", 6, 2)])
    {
        let error = with(name, at, &[value]).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{name} byte {at}: {error}");
    }
}

#[test]
fn an_epoch_body_out_of_range_is_refused() {
    let good = samples::epoch_body().encode();
    EpochBody::decode(&good).unwrap();
    let with = |at: usize, value: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + value.len()].copy_from_slice(value);
        EpochBody::decode(&bad).unwrap_err()
    };
    let range = |error: DecodeError| matches!(error, DecodeError::Range { .. });
    assert!(range(with(0, &[0; 8])), "epoch 0");
    assert!(range(with(32, &[0; 8])), "first seq 0");
    assert!(range(with(40, &[0; 8])), "size 0");
    assert!(range(with(40, &(65_u64 << 40).to_le_bytes())), "size over the largest volume");
    assert_eq!(with(48, &129_u32.to_le_bytes()).kind(), ErrorKind::Limit, "label over its limit");
    assert!(range(with(48, &12_u32.to_le_bytes())), "a byte left over");
    assert!(matches!(with(52, &[0xff]), DecodeError::Text { .. }), "label of other bytes");
    for end in 0..good.len() {
        EpochBody::decode(&good[..end]).unwrap_err();
    }
    let stamped = samples::stamped_epoch_body().encode();
    for end in 0..stamped.len() {
        EpochBody::decode(&stamped[..end]).unwrap_err();
    }
    let nobodys = [&stamped[..52], &[0; 4], &stamped[56..]].concat();
    assert!(range(EpochBody::decode(&nobodys).unwrap_err()), "a stamp of no life");
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
fn a_table_cut_short_anywhere_is_refused() {
    let good = samples::table().encode();
    for end in 0..good.len() {
        Table::decode(&good[..end]).unwrap_err();
    }
    let mut long = good;
    long.push(0);
    assert_eq!(Table::decode(&long), Err(DecodeError::Range { what: "segment table", value: 1 }));
}

#[test]
fn a_table_with_a_flipped_bit_is_refused_or_another_table() {
    let table = samples::table();
    let good = table.encode();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // Sealing tells the damage; the decoder's part is to stay in bounds and to be exact.
        if let Ok(read) = Table::decode(&bad) {
            assert_ne!(read, table, "bit {bit} means nothing");
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
        let _ = MapBody::decode(&bytes);
        let _ = IndexRun::decode(&bytes);
    }

    #[test]
    fn no_decoder_panics_behind_a_good_magic_and_checksum(
        which in 0..10_usize,
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let layout = &checked()[which];
        let mut bytes = layout.good.clone();
        for (at, byte) in noise {
            bytes[6 + at.index(layout.covered - 10)] = byte;
        }
        reseal(layout, &mut bytes);
        let _ = (layout.decode)(&bytes);
    }

    #[test]
    fn no_control_body_panics(
        which in 0..5_usize,
        body in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let (_, frame) = &samples::control_frames()[which];
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
            prop_assert_eq!(control.encode()[48..].to_vec(), bytes, "one meaning, one encoding");
        }
    }
}
