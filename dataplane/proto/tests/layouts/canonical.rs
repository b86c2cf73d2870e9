//! One value, one encoding: whatever decodes, encodes to the very bytes it came from. So nothing
//! can be said in two ways, and no bit of a layout is without meaning.

use crate::samples;
use farshore_proto::epoch::{EpochBody, EpochHeader};
use farshore_proto::frame::{Control, FrameHeader, FrameKind};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::index_run::{IndexRun, IndexRunHeader};
use farshore_proto::journal::{GroupHeader, JournalFileHeader, entries, put_entry};
use farshore_proto::keys::KeyObject;
use farshore_proto::limits::SLOT_MAX;
use farshore_proto::map::{MapBody, MapHeader};
use farshore_proto::segment::{SegmentHeader, SlotKind, Table};
use farshore_proto::vault::VaultObject;
use farshore_proto::{DecodeError, LogId};
use proptest::prelude::*;

/// Decodes, and encodes what came of it.
type Again = fn(&[u8]) -> Option<Vec<u8>>;

/// A layout: good bytes, and where its CRC32C ends, if it has one.
struct Layout {
    name: &'static str,
    good: Vec<u8>,
    crc_end: Option<usize>,
    again: Again,
}

fn layouts() -> Vec<Layout> {
    let with_crc = |name, good: Vec<u8>, crc_end: usize, again: Again| Layout {
        name,
        good,
        crc_end: Some(crc_end),
        again,
    };
    let bare = |name, good: Vec<u8>, again: Again| Layout { name, good, crc_end: None, again };
    vec![
        with_crc("frame", samples::zero_frame(), 48, |bytes| {
            Some(FrameHeader::decode(bytes.try_into().ok()?).ok()?.encode().into())
        }),
        with_crc("hrl", samples::hrl_header().encode().into(), 64, |bytes| {
            Some(HrlHeader::decode(bytes.try_into().ok()?).ok()?.encode().into())
        }),
        with_crc("journal file", samples::journal_file_header().encode(), 4096, |bytes| {
            Some(JournalFileHeader::decode(bytes).ok()?.encode())
        }),
        with_crc("journal group", samples::group_header().encode().into(), 64, |bytes| {
            Some(GroupHeader::decode(bytes.try_into().ok()?).ok()?.encode().into())
        }),
        with_crc(
            "segment",
            samples::segment_header(SlotKind::Segment).encode().into(),
            160,
            |bytes| Some(SegmentHeader::decode(bytes).ok()?.encode().into()),
        ),
        with_crc("vault", samples::vault().encode(), 132, vault_again),
        with_crc("key", samples::key().encode(), 120, |bytes| {
            Some(KeyObject::decode(bytes).ok()?.encode())
        }),
        with_crc("epoch", samples::epoch_object(), 136, |bytes| {
            let (header, body) = EpochHeader::decode(bytes).ok()?;
            Some([header.encode(), body.to_vec()].concat())
        }),
        with_crc("map", samples::map_object(), 192, |bytes| {
            let (header, body) = MapHeader::decode(bytes).ok()?;
            Some([header.encode(), body.to_vec()].concat())
        }),
        with_crc("index run", samples::index_run_object(), 144, |bytes| {
            let (header, body) = IndexRunHeader::decode(bytes).ok()?;
            Some([header.encode(), body.to_vec()].concat())
        }),
        bare("epoch body", samples::epoch_body().encode(), |bytes| {
            Some(EpochBody::decode(bytes).ok()?.encode())
        }),
        bare("epoch body with a stamp", samples::stamped_epoch_body().encode(), |bytes| {
            Some(EpochBody::decode(bytes).ok()?.encode())
        }),
        bare("table", samples::table().encode(), |bytes| Some(Table::decode(bytes).ok()?.encode())),
        bare("table with stamps", samples::stamped_table().encode(), |bytes| {
            Some(Table::decode(bytes).ok()?.encode())
        }),
        bare("map body", samples::map_body().encode(), |bytes| {
            Some(MapBody::decode(bytes).ok()?.encode())
        }),
        bare("index run body", samples::index_run().encode(), |bytes| {
            Some(IndexRun::decode(bytes).ok()?.encode())
        }),
        bare("journal entries", samples::journal_entries(), entries_again),
    ]
}

/// An object that says more than this program knows is read, and would be written without that: heads of
/// sections and the front tell.
fn vault_again(bytes: &[u8]) -> Option<Vec<u8>> {
    let again = VaultObject::decode(bytes).ok()?.encode();
    let heads = |bytes: &[u8]| [&bytes[..16], &bytes[48..64], &bytes[96..104]].concat();
    Some(if heads(&again) == heads(bytes) { again } else { bytes.to_vec() })
}

fn layout(name: &str) -> Layout {
    layouts().into_iter().find(|layout| layout.name == name).expect("a known name")
}

fn entries_again(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for entry in entries(bytes) {
        let entry = entry.ok()?;
        put_entry(&mut out, entry.volume, entry.epoch, &entry.header.encode(), entry.body);
    }
    Some(out)
}

/// Puts the checksum of changed bytes right, where there is one.
fn reseal(layout: &Layout, bytes: &mut [u8]) {
    if let Some(end) = layout.crc_end.filter(|end| *end <= bytes.len()) {
        let crc = crc32c::crc32c(&bytes[..end - 4]);
        bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    }
}

fn assert_canonical(layout: &Layout, bytes: &[u8]) {
    if let Some(again) = (layout.again)(bytes) {
        assert_eq!(again, bytes, "{}: two encodings of one value", layout.name);
    }
}

#[test]
fn the_samples_encode_to_what_they_were_decoded_from() {
    for layout in layouts() {
        assert_eq!((layout.again)(&layout.good), Some(layout.good.clone()), "{}", layout.name);
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
            // Entries are a run: a run of fewer is a run, and nothing that was not in the whole.
            let is_prefix = layout.name == "journal entries" && layout.good.starts_with(&short);
            assert!(read.is_none() || is_prefix, "{} cut at {end}", layout.name);
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
fn a_list_of_logs_has_each_once_and_in_the_order_of_its_chunks() {
    // Where the count of logs is, and their list; two logs of 16 bytes, then chunks of 52.
    for (name, count, list) in [("map body", 56, 72), ("index run body", 0, 16)] {
        let layout = layout(name);
        let good = &layout.good;
        let set_log = |bytes: &mut [u8], chunk: usize, log: u8| {
            bytes[list + 32 + chunk * 52 + 32] = log;
        };
        let refused = |bytes: &[u8], why: &str| {
            assert_eq!((layout.again)(bytes), None, "{name}: {why}");
        };
        let mut unused = good.clone();
        set_log(&mut unused, 1, 0);
        refused(&unused, "the second log is of no chunk");
        let mut swapped = good.clone();
        set_log(&mut swapped, 0, 1);
        set_log(&mut swapped, 1, 0);
        refused(&swapped, "the first chunk is in the second log");
        let mut twice = good.clone();
        twice.copy_within(list..list + 16, list + 16);
        refused(&twice, "the same log twice");
        let mut spare = good.clone();
        spare.splice(list + 32..list + 32, [0x5a; 16]);
        spare[count] = 3;
        refused(&spare, "a third log that no chunk is in");
    }
}

#[test]
fn a_table_lists_a_log_once_and_in_the_order_of_its_chunks() {
    let good = samples::table().encode();
    let list = 16 + 12;
    let mut spare = good.clone();
    spare.splice(list + 16..list + 16, [0x5a; 16]);
    spare[4] = 2;
    let error = Table::decode(&spare).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "logs of no chunk", value: 1 });
    let mut swapped = spare.clone();
    let second_chunk = list + 32 + 52;
    swapped[second_chunk + 32] = 2;
    let error = Table::decode(&swapped).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "order of logs", value: 2 });
    let mut twice = spare;
    twice.copy_within(list..list + 16, list + 16);
    let error = Table::decode(&twice).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "log listed twice", value: 2 });
    let listed: [u8; 16] = good[list..list + 16].try_into().expect("16 bytes");
    assert_eq!(LogId(listed), samples::OTHER_LOG);
}

/// Whoever reads a seq counts on from it, so the last one of 64 bits is nowhere.
#[test]
fn no_layout_holds_a_seq_without_a_next() {
    let set = |name: &str, places: &[usize], seq: u64| {
        let layout = layout(name);
        let mut bytes = layout.good.clone();
        for at in places {
            bytes[*at..at + 8].copy_from_slice(&seq.to_le_bytes());
        }
        reseal(&layout, &mut bytes);
        (layout.again)(&bytes).is_some()
    };
    // Of a span, the last seq alone, and both.
    let places: [(&str, &[usize]); 6] = [
        ("frame", &[8]),
        ("hrl", &[24]),
        ("map", &[40]),
        ("epoch body", &[32]),
        ("table", &[180]),
        ("table", &[172, 180]),
    ];
    for (name, places) in places {
        assert!(!set(name, places, u64::MAX), "{name} at {places:?}");
        assert!(set(name, places, u64::MAX - 1), "{name} at {places:?}: one less is a seq");
    }
}

/// Whoever reads a slot reads on behind it, so one near the end of 64 bits is nowhere.
#[test]
fn no_layout_holds_a_slot_without_others_behind_it() {
    let set = |name: &str, at: usize, slot: u64| {
        let layout = layout(name);
        let mut bytes = layout.good.clone();
        bytes[at..at + 8].copy_from_slice(&slot.to_le_bytes());
        reseal(&layout, &mut bytes);
        (layout.again)(&bytes).is_some()
    };
    // In the table, of the chunk that is elsewhere; in the bodies, of the head and of the first chunk.
    for (name, at) in [("epoch body", 24), ("table", 16 + 12 + 16 + 52 + 36), ("map body", 24)] {
        for slot in [u64::MAX, u64::MAX - 1, SLOT_MAX.0 + 1] {
            assert!(!set(name, at, slot), "{name} at {at}: {slot}");
        }
        assert!(set(name, at, SLOT_MAX.0), "{name} at {at}");
    }
}

proptest! {
    /// N3, D2: any bytes in any place, under a good checksum: refused, or the one encoding of
    /// what they say.
    #[test]
    fn noise_is_refused_or_canonical(
        which in 0..15_usize,
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let layout = &layouts()[which];
        let mut bytes = layout.good.clone();
        for (at, byte) in noise {
            bytes[at.index(layout.good.len())] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        reseal(layout, &mut bytes);
        if let Some(again) = (layout.again)(&bytes) {
            prop_assert_eq!(again, bytes, "{}", layout.name);
        }
    }

    /// A few fields at a time set to what borders on legal: where off-by-one errors live.
    #[test]
    fn borders_are_refused_or_canonical(
        which in 0..15_usize,
        fields in proptest::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(BORDERS.to_vec()), 1..=8_usize),
            1..4,
        ),
    ) {
        let layout = &layouts()[which];
        let mut bytes = layout.good.clone();
        for (at, value, width) in fields {
            let at = at.index(bytes.len()) & !3;
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        reseal(layout, &mut bytes);
        if let Some(again) = (layout.again)(&bytes) {
            prop_assert_eq!(again, bytes, "{}", layout.name);
        }
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
