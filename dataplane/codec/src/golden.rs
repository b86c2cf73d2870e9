//! Objects sealed once, kept in `testdata/`: what was sealed yesterday must open tomorrow.
//!
//! A change that fails here makes vaults unreadable: bump the version of the format, do not edit the
//! bytes. All are sealed under data key 1 of bytes 0x11, in vault 0x01…, log 0x02…, volume 0x03….

use crate::epoch::open_epoch;
use crate::index_run::open_index_run;
use crate::journal::JournalOpener;
use crate::keys::{DataKey, KeyRing, RootKey, VaultKey, VaultKeys};
use crate::map::{MapPlace, open_map};
use crate::segment::Opener;
use crate::{CodecError, WrappingKey};
use farshore_proto::keys::{KeyHeader, KeyKind, KeyObject};
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_ALIGN_BYTES};
use farshore_proto::segment::{ChunkPlace, SlotKind};
use farshore_proto::{
    ChunkId, Domain, Epoch, KeyNumber, LogId, PointId, RunId, Seq, Slot, VaultId, VolumeId,
};

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);

fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KeyNumber(1), DataKey::from_bytes([0x11; 32]));
    ring
}

#[test]
fn a_segment_of_version_1_opens() {
    let object = include_bytes!("../testdata/v1/segment.bin");
    let opener = Opener::open_header(object, VAULT, LOG, Slot(7), &ring()).unwrap();
    assert_eq!((opener.header().kind, opener.header().incarnation), (SlotKind::Segment, 5));
    let mut frames = Vec::new();
    let each = |_: &_, _, bytes: &[u8]| {
        frames.push(bytes.to_vec());
        Ok::<_, CodecError>(())
    };
    let table = opener.open_all(object, each).unwrap();
    let text = b"farshore golden segment ";
    let expected: Vec<u8> = text.iter().copied().cycle().take(4 * BLOCK_BYTES).collect();
    // Its chunk ids are those of a version that derived their key otherwise.
    assert_eq!(frames[0][..expected.len()], expected);
    let there = ChunkPlace::There { log: LogId([9; 16]), slot: Slot(6), chunk: 3 };
    assert_eq!(table.chunks[1].place, there);
    assert_eq!(table.spans[0].volume, VOLUME);
    assert_eq!(table.spans[0].extents.len(), 3);
}

#[test]
fn a_seal_of_version_1_opens() {
    let object = include_bytes!("../testdata/v1/seal.bin");
    let opener = Opener::open_header(object, VAULT, LOG, Slot(8), &ring()).unwrap();
    assert_eq!(opener.header().kind, SlotKind::Seal);
    opener.open_all(object, |_, _, _| Ok::<_, CodecError>(())).unwrap();
}

#[test]
fn an_epoch_object_of_version_1_opens() {
    let object = include_bytes!("../testdata/v1/epoch.bin");
    let body = open_epoch(object, VAULT, VOLUME, 2, &ring()).unwrap();
    assert_eq!((body.epoch, body.log, body.first_seq), (Epoch(4), LOG, Seq(1000)));
    assert_eq!(body.label, "golden");
}

#[test]
fn a_journal_file_of_version_1_opens() {
    let file = include_bytes!("../testdata/v1/journal.bin");
    let (block, groups) = file.split_at(JOURNAL_ALIGN_BYTES);
    let opener = JournalOpener::open(block, VAULT, LOG, &ring()).unwrap();
    assert_eq!(opener.header().number, 3);
    for (number, plain) in (0_u64..).zip([b"first group".as_slice(), b"second group"]) {
        let at = usize::try_from(number).unwrap() * JOURNAL_ALIGN_BYTES;
        let mut disk = groups[at..].to_vec();
        assert_eq!(opener.open_group(number, &mut disk).unwrap(), plain);
    }
}

/// The key `number` of the vault as it was wrapped, by a key of bytes 0x42.
fn unwrapped(object: &[u8], text: &str, number: u32) -> (KeyHeader, VaultKey) {
    let object = KeyObject::decode(object).unwrap();
    let key = WrappingKey::parse(text).unwrap();
    (object.header, key.unwrap(VAULT, KeyNumber(number), &object).unwrap())
}

#[test]
fn a_data_key_wrapped_by_the_recovery_key_opens() {
    let text = format!("FSRK2-{}-fad428ec", "42".repeat(32));
    let object = include_bytes!("../testdata/v2/key.bin");
    let (header, key) = unwrapped(object, &text, 2);
    assert_eq!((header.domain, header.kind), (Domain::FIRST, KeyKind::Data));
    assert!(key.is(&VaultKey::Data(DataKey::from_bytes([0x11; 32]))));
}

#[test]
fn a_root_key_wrapped_by_a_node_key_opens() {
    let text = format!("FSNK2-{}-2ad84239", "42".repeat(32));
    let object = include_bytes!("../testdata/v2/key-node.bin");
    let (header, key) = unwrapped(object, &text, 1);
    assert_eq!((header.domain, header.kind), (Domain::FIRST, KeyKind::Root));
    assert!(key.is(&VaultKey::Root(RootKey::from_bytes([0x12; 32]))));
}

/// The keys that chunk ids and cuts are made with are part of the format too.
#[test]
fn the_keys_of_a_domain_come_from_its_root_key() {
    let keys = VaultKeys::derive(&RootKey::from_bytes([0x12; 32]), VAULT);
    assert_eq!(
        hex::encode(keys.id_key.bytes()),
        "54b3c877b6aab40c47a2fffce3a161082baae3797faa44a1008e2631376ac76b"
    );
    assert_eq!(
        hex::encode(keys.chunk_key.bytes()),
        "478b45990e64bd466ebd31892f2afae1cd82450915f939e72217e65852c4e856"
    );
}

const MAP: MapPlace = MapPlace { vault: VAULT, volume: VOLUME, seq: Seq(1000), part: 0 };
const RUN: RunId = RunId([5; 16]);

#[test]
fn a_map_of_version_1_opens() {
    let object = include_bytes!("../testdata/v1/map.bin");
    let (header, body) = open_map(object, MAP, &ring()).unwrap();
    assert_eq!((header.point, header.parts), (PointId([4; 16]), 1));
    assert_eq!((body.head.ordinal, body.head.log, body.head.slot), (2, LOG, Slot(7)));
    assert_eq!((body.chunks.len(), body.runs.len()), (2, 3));
    assert_eq!(body.chunks[1].id, ChunkId([8; 32]));
}

#[test]
fn an_index_run_of_version_1_opens() {
    let object = include_bytes!("../testdata/v1/index-run.bin");
    let run = open_index_run(object, VAULT, RUN, &ring()).unwrap();
    assert_eq!(run.chunks.len(), 2);
    assert_eq!((run.chunks[1].id, run.chunks[1].slot), (ChunkId([8; 32]), Slot(6)));
}
