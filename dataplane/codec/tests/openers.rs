//! What every opener does with objects that nobody sealed: pinned objects cut, flipped, swapped and
//! made up. D1, D2 and D3 of `docs/fault-model.md`.
#![allow(clippy::unwrap_used, reason = "test code")]

use farshore_codec::base::open_base;
use farshore_codec::checkpoint::open_checkpoint;
use farshore_codec::compress::{Compressor, decompress};
use farshore_codec::epoch::open_epoch;
use farshore_codec::group::open_group;
use farshore_codec::horizon::open_horizon;
use farshore_codec::index_run::open_index_run;
use farshore_codec::journal::JournalOpener;
use farshore_codec::machine::open_machine;
use farshore_codec::map::{MapPlace, PartOpener, open_manifest};
use farshore_codec::register::open_register;
use farshore_codec::revision::open_revision_wholly;
use farshore_codec::segment::{Opener, open_frame_at};
use farshore_codec::{CodecError, DataKey, KekError, KeyRing, WrappingKey};
use farshore_proto::keys::{KeyObject, WrapperKind};
use farshore_proto::map::{FrameAt, PartHeader};
use farshore_proto::segment::Compression;
use farshore_proto::{
    GroupId, KeyNumber, LogId, MachineId, MapAttempt, Place, RunId, Seq, Slot, Target, VaultId,
    VolumeId,
};
use proptest::prelude::*;
use std::ops::Range;

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
const MAP: MapPlace = MapPlace {
    vault: VAULT,
    volume: VOLUME,
    at: Place { ordinal: 2, seq: Seq(1000) },
    attempt: MapAttempt([6; 16]),
};
/// The part of it that is pinned.
const PART: u32 = 1;

/// A pinned object, and whether bytes found in its place open.
struct Sealed {
    name: &'static str,
    object: &'static [u8],
    opens: fn(&[u8]) -> bool,
}

const SEALED: [Sealed; 17] = [
    Sealed {
        name: "segment",
        object: include_bytes!("../testdata/v2/segment.bin"),
        opens: |object| opens_in_slot(object, 7),
    },
    Sealed {
        name: "seal",
        object: include_bytes!("../testdata/v2/seal.bin"),
        opens: |object| opens_in_slot(object, 8),
    },
    Sealed {
        name: "fill",
        object: include_bytes!("../testdata/v2/fill.bin"),
        opens: |object| opens_in_slot(object, 9),
    },
    Sealed {
        name: "epoch",
        object: include_bytes!("../testdata/v2/epoch.bin"),
        opens: |object| open_epoch(object, VAULT, VOLUME, 2, &ring()).is_ok(),
    },
    Sealed {
        name: "map",
        object: include_bytes!("../testdata/v2/map.bin"),
        opens: |object| open_manifest(object, &MAP, &ring()).is_ok(),
    },
    Sealed {
        name: "map part",
        object: include_bytes!("../testdata/v2/map-pages.bin"),
        opens: opens_as_part,
    },
    Sealed {
        name: "index run",
        object: include_bytes!("../testdata/v2/index-run.bin"),
        opens: |object| open_index_run(object, VAULT, RunId([5; 16]), &ring()).is_ok(),
    },
    Sealed {
        name: "checkpoint",
        object: include_bytes!("../testdata/v2/checkpoint.bin"),
        opens: |object| open_checkpoint(object, VAULT, LOG, Slot(256), &ring()).is_ok(),
    },
    Sealed {
        name: "revision",
        object: include_bytes!("../testdata/v2/revision.bin"),
        opens: |object| open_revision_wholly(object, VAULT, 3, &ring()).is_ok(),
    },
    Sealed {
        name: "horizon",
        object: include_bytes!("../testdata/v2/horizon.bin"),
        opens: |object| open_horizon(object, VAULT, LOG, 4, &ring()).is_ok(),
    },
    Sealed {
        name: "register entry",
        object: include_bytes!("../testdata/v2/register.bin"),
        opens: |object| open_register(object, VAULT, 6, &ring()).is_ok(),
    },
    Sealed {
        name: "machine",
        object: include_bytes!("../testdata/v2/machine.bin"),
        opens: |object| open_machine(object, VAULT, MachineId([6; 16]), 2, &ring()).is_ok(),
    },
    Sealed {
        name: "group",
        object: include_bytes!("../testdata/v2/group.bin"),
        opens: |object| open_group(object, VAULT, GroupId([7; 16]), 1, &ring()).is_ok(),
    },
    Sealed {
        name: "base",
        object: include_bytes!("../testdata/v2/base.bin"),
        opens: |object| open_base(object, VAULT, VOLUME, 2, &ring()).is_ok(),
    },
    Sealed {
        name: "journal",
        object: include_bytes!("../testdata/v2/journal.bin"),
        opens: opens_as_journal,
    },
    Sealed {
        name: "wrapped key",
        object: include_bytes!("../testdata/v2/key.bin"),
        opens: |object| unwraps(object, &recovery_key(), 2),
    },
    Sealed {
        name: "wrapped key of a node",
        object: include_bytes!("../testdata/v2/key-node.bin"),
        opens: |object| unwraps(object, &node_key(), 1),
    },
];

fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KeyNumber(1), DataKey::from_bytes([0x11; 32]));
    ring.insert_own(KeyNumber(3), DataKey::from_bytes([0x13; 32]));
    ring
}

fn recovery_key() -> WrappingKey {
    WrappingKey::parse(&format!("FSRK2-{}-fad428ec", "42".repeat(32))).unwrap()
}

fn node_key() -> WrappingKey {
    WrappingKey::parse(&format!("FSNK2-{}-2ad84239", "42".repeat(32))).unwrap()
}

fn unwraps(object: &[u8], key: &WrappingKey, number: u32) -> bool {
    KeyObject::decode(object)
        .is_ok_and(|object| key.unwrap(VAULT, KeyNumber(number), &object).is_ok())
}

fn opens_in_slot(object: &[u8], slot: u64) -> bool {
    Opener::open_header(object, VAULT, LOG, Slot(slot), &ring())
        .is_ok_and(|opener| opener.open_all(object, |_, _, _| Ok::<_, CodecError>(())).is_ok())
}

/// All that there is of the part: header, directory and pages.
fn opens_as_part(object: &[u8]) -> bool {
    // What comes first is as long as its header says; the manifest says so too.
    let Some(Ok(header)) = object.get(..192).map(PartHeader::decode) else { return false };
    let Some(front) = object.get(..header.object.whole_bytes()) else { return false };
    let Ok(opener) = PartOpener::open(front, &MAP, PART, &ring()) else { return false };
    let pages = 0..opener.pages().len();
    let end = pages.clone().last().map_or(0, |last| opener.page_range(last).end);
    let opens = |number: usize| {
        let Range { start, end } = opener.page_range(number);
        let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
        object.get(range).is_some_and(|sealed| opener.open_page(number, sealed).is_ok())
    };
    end == object.len() as u64 && pages.clone().all(opens)
}

/// Both groups of the file; what lies behind a group's tag, up to the next block, is padding.
fn opens_as_journal(file: &[u8]) -> bool {
    let Some((block, groups)) = file.split_at_checked(4096) else { return false };
    let Ok(opener) = JournalOpener::open(block, VAULT, LOG, &ring()) else { return false };
    [&b"first group"[..], b"second group"].into_iter().zip(0..).all(|(plain, number)| {
        let at = usize::try_from(number).unwrap() * 4096;
        let Some(group) = groups.get(at..) else { return false };
        let opened =
            opener.open_group(number, &mut group.to_vec()).is_ok_and(|found| found == plain);
        opened && opener.open_group(number + 1, &mut group.to_vec()).is_err()
    })
}

/// End of what is written in the journal: first block, first group, second group.
const WRITTEN: usize = 4096 + 4096 + 64 + 12 + 16;

/// Bytes of an object that mean nothing: the padding of the journal's groups.
fn is_padding(sealed: &Sealed, at: usize) -> bool {
    let used = |start: usize, plain: usize| at >= start + 64 + plain + 16 && at < start + 4096;
    sealed.name == "journal" && (used(4096, 11) || used(8192, 12))
}

#[test]
fn pinned_objects_open() {
    for sealed in &SEALED {
        assert!((sealed.opens)(sealed.object), "{}", sealed.name);
    }
}

/// D2: every bit of every object.
#[test]
fn no_object_opens_with_a_flipped_bit() {
    for sealed in &SEALED {
        for at in (0..sealed.object.len()).filter(|at| !is_padding(sealed, *at)) {
            for bit in 0..8 {
                let mut bad = sealed.object.to_vec();
                bad[at] ^= 1 << bit;
                assert!(!(sealed.opens)(&bad), "{} byte {at} bit {bit}", sealed.name);
            }
        }
    }
}

/// D1: every length, and one byte more.
#[test]
fn no_object_opens_cut_short_or_grown() {
    for sealed in &SEALED {
        for end in (0..sealed.object.len()).filter(|end| !is_padding(sealed, *end)) {
            let is_whole = sealed.name == "journal" && end >= WRITTEN;
            assert!(is_whole || !(sealed.opens)(&sealed.object[..end]), "{} {end}", sealed.name);
        }
        let grown = [sealed.object, &[0]].concat();
        // A journal file is longer than what is written in it.
        assert_eq!((sealed.opens)(&grown), sealed.name == "journal", "{}", sealed.name);
    }
}

/// D3: an object of one kind is none of another, and two halves are no whole.
#[test]
fn no_object_opens_in_the_place_of_another() {
    for sealed in &SEALED {
        for other in SEALED.iter().filter(|other| other.name != sealed.name) {
            assert!(!(sealed.opens)(other.object), "{} as {}", other.name, sealed.name);
            for at in
                [64, 120, 152, 160, 192, 200].into_iter().filter(|at| *at < sealed.object.len())
            {
                let tail = &other.object[at.min(other.object.len())..];
                let joined = [&sealed.object[..at], tail].concat();
                assert!(!(sealed.opens)(&joined), "{} with a tail of {}", sealed.name, other.name);
            }
        }
    }
}

/// The frame of the pinned segment, as a page of a map knows it, and where it is.
fn pinned_frame() -> (FrameAt, &'static [u8]) {
    let object = SEALED[0].object;
    let opener = Opener::open_header(object, VAULT, LOG, Slot(7), &ring()).unwrap();
    let table = opener.table_range();
    let range = usize::try_from(table.start).unwrap()..usize::try_from(table.end).unwrap();
    let table = opener.open_table(&object[range.clone()]).unwrap();
    let target = Target { log: LOG, slot: Slot(7), attempt: opener.header().attempt() };
    let offset = u32::try_from(range.end).unwrap();
    let key = KeyNumber(1);
    (FrameAt { target, number: 0, offset, key, frame: table.frames[0] }, &object[range.end..])
}

/// D1, D2: of a frame that is read without its segment, every bit and every length.
#[test]
fn no_frame_opens_alone_with_a_flipped_bit_or_cut_short() {
    let (at, sealed) = pinned_frame();
    let opens = |bytes: &[u8]| open_frame_at(VAULT, &at, bytes, &ring(), &mut Vec::new()).is_ok();
    assert!(opens(sealed));
    for byte in 0..sealed.len() {
        for bit in 0..8 {
            let mut bad = sealed.to_vec();
            bad[byte] ^= 1 << bit;
            assert!(!opens(&bad), "byte {byte} bit {bit}");
        }
        assert!(!opens(&sealed[..byte]), "length {byte}");
    }
    assert!(!opens(&[sealed, &[0]].concat()));
}

#[test]
fn every_mistyped_bit_of_a_wrapping_key_is_noticed() {
    for text in [recovery_key().to_text(), node_key().to_text()] {
        for at in 0..text.len() {
            assert_eq!(WrappingKey::parse(&text[..at]).unwrap_err(), KekError::NotAKey);
            for bit in 0..7 {
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                let typed = String::from_utf8(bytes).unwrap();
                // The case of its digits does not matter.
                let is_same = typed.to_lowercase() == text.to_lowercase() && at >= 6;
                assert_eq!(WrappingKey::parse(&typed).is_ok(), is_same, "{typed}");
            }
        }
    }
}

#[test]
fn flipped_bits_of_compressed_bytes_never_lengthen_what_comes_out() {
    let raw: Vec<u8> = (0..3000_u32).map(|n| u8::try_from(n / 7 % 251).unwrap()).collect();
    let mut stored = Vec::new();
    assert_eq!(Compressor::new(1).compress(&raw, &mut stored).unwrap(), Compression::Zstd);
    for bit in 0..stored.len() * 8 {
        let mut bad = stored.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut out = Vec::new();
        // Without a seal a bit may mean other bytes; never more or fewer, and never much memory.
        let opened = decompress("test", Compression::Zstd, &bad, raw.len(), 1 << 20, &mut out);
        assert_eq!(out.len(), if opened.is_ok() { raw.len() } else { 0 }, "bit {bit}");
        assert!(out.capacity() <= 2 * raw.len(), "bit {bit}: {}", out.capacity());
    }
}

proptest! {
    /// N3: any bytes, behind any front of a good object.
    #[test]
    fn nothing_made_up_opens(
        which in 0..SEALED.len(),
        keep in any::<prop::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let sealed = &SEALED[which];
        let keep = keep.index(sealed.object.len());
        let made_up = [&sealed.object[..keep], &tail].concat();
        let has_all = sealed.name == "journal" && keep >= WRITTEN;
        prop_assert!(!(sealed.opens)(&made_up) || has_all, "{}", sealed.name);
        prop_assert!(!(sealed.opens)(&tail));
    }

    #[test]
    fn no_text_is_a_wrapping_key_by_chance(text in "(FS[RN]K2-)?[0-9a-fA-F\\-é]{0,80}") {
        prop_assert!(WrappingKey::parse(&text).is_err());
    }

    #[test]
    fn a_wrapping_key_survives_its_text(
        space in "[ \t\r\n]{0,4}",
        is_upper: bool,
        kind in prop::sample::select(WrapperKind::ALL.to_vec()),
    ) {
        let key = WrappingKey::draw(kind).unwrap();
        let text = key.to_text();
        let (front, digits) = text.split_at(6);
        let digits = if is_upper { digits.to_uppercase() } else { digits.to_owned() };
        let typed = format!("{space}{front}{digits}{space}");
        prop_assert_eq!(WrappingKey::parse(&typed).unwrap().to_text(), text);
    }
}
