//! Objects sealed once, kept in `testdata/`: what was sealed yesterday must open tomorrow.
//!
//! A change that fails here makes vaults unreadable: bump the version of the format, do not edit the
//! bytes. All are sealed under data key 1 of bytes 0x11, in vault 0x01…, log 0x02…, volume 0x03….

use crate::epoch::open_epoch;
use crate::index_run::open_index_run;
use crate::journal::JournalOpener;
use crate::keys::{DataKey, KeyRing};
use crate::map::{MapPlace, open_map};
use crate::segment::{Opener, chunk_of};
use crate::{ChunkHasher, CodecError, RecoveryKey};
use farshore_proto::keys::KeyObject;
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_ALIGN_BYTES};
use farshore_proto::segment::{ChunkPlace, SlotKind};
use farshore_proto::{
    ChunkId, Epoch, KeyNumber, LogId, PointId, RunId, Seq, Slot, VaultId, VolumeId,
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
    let hasher = ChunkHasher::new(ring().vault_keys().unwrap().id_key);
    let text = b"farshore golden segment ";
    let expected: Vec<u8> = text.iter().copied().cycle().take(4 * BLOCK_BYTES).collect();
    assert_eq!(chunk_of(&table, 0, &frames[0], &hasher).unwrap(), expected);
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
fn a_journal_file_of_version_2_opens() {
    let file = include_bytes!("../testdata/v2/journal.bin");
    let (block, groups) = file.split_at(JOURNAL_ALIGN_BYTES);
    let opener = JournalOpener::open(block, VAULT, LOG, &ring()).unwrap();
    assert_eq!(opener.header().number, 3);
    for (number, plain) in (0_u64..).zip([b"first group".as_slice(), b"second group"]) {
        let at = usize::try_from(number).unwrap() * JOURNAL_ALIGN_BYTES;
        let mut disk = groups[at..].to_vec();
        assert_eq!(opener.open_group(number, &mut disk).unwrap(), plain);
    }
}

#[test]
fn a_wrapped_key_of_version_1_opens() {
    let object = KeyObject::decode(include_bytes!("../testdata/v1/key.bin")).unwrap();
    let text = format!("FSRK1-{}-13c555f9", "42".repeat(32));
    let key = RecoveryKey::parse(&text).unwrap();
    let data = key.unwrap(VAULT, KeyNumber(1), &object).unwrap();
    assert_eq!(data.bytes(), &[0x11; 32]);
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
