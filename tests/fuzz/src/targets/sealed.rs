//! What is compressed and sealed. No fuzzer guesses a tag of AES-GCM, so each target takes its input
//! in one of several ways, by its first byte: as an object found in the vault, which must be refused
//! unless it is one of ours, or as what somebody with the data key has sealed, which must be
//! refused or be exactly what it says.

use crate::taken;
use farshore_codec::compress::{Compressor, decompress as expand};
use farshore_codec::epoch::open_epoch;
use farshore_codec::index_run::open_index_run;
use farshore_codec::journal::{JournalOpener, JournalSealer};
use farshore_codec::map::{MapPlace, open_map};
use farshore_codec::seal::{Domain, Purpose, Sealer};
use farshore_codec::{DataKey, KeyRing, RootKey};
use farshore_proto::epoch::{EPOCH_HEADER_BYTES, EpochHeader};
use farshore_proto::index_run::IndexRunHeader;
use farshore_proto::journal::entries;
use farshore_proto::limits::{
    INDEX_RUN_BODY_BYTES_MAX, JOURNAL_ALIGN_BYTES, JOURNAL_GROUP_HEADER_BYTES, MAP_BODY_BYTES_MAX,
    SEGMENT_FRAME_BYTES_MAX, SMALL_OBJECT_BYTES_MAX, TAG_BYTES,
};
use farshore_proto::map::MapHeader;
use farshore_proto::segment::Compression;
use farshore_proto::{KeyNumber, LogId, PointId, RunId, Seq, VaultId, VolumeId};

pub(super) const VAULT: VaultId = VaultId([1; 16]);
pub(super) const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
pub(super) const KEY: KeyNumber = KeyNumber(1);
const ORDINAL: u64 = 2;
const MAP: MapPlace = MapPlace { vault: VAULT, volume: VOLUME, seq: Seq(1000), part: 0 };
const RUN: RunId = RunId([5; 16]);

/// The keys that the golden objects are sealed under.
pub(super) fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KEY, DataKey::from_bytes([0x11; 32]));
    ring.insert_root(KeyNumber(2), RootKey::from_bytes([0x11; 32]));
    ring
}

pub(super) fn sealer(ring: &KeyRing, purpose: Purpose, context: &[&[u8]]) -> Sealer {
    let key = ring.get(KEY).expect("the ring has it");
    Sealer::draw(key, purpose, context).expect("the system gives random bytes")
}

/// A body as somebody with the key sealed it.
pub(super) struct Body {
    pub(super) compression: Compression,
    /// What it says its length before compression is.
    pub(super) raw_bytes: usize,
    pub(super) stored: Vec<u8>,
}

impl Body {
    /// The body that an input of a way from 1 on stands for: 1 bare; 2 compressed in good order;
    /// 3 what it says of its length, then any bytes for zstd.
    pub(super) fn of(way: u8, input: &[u8], max: usize) -> Option<Self> {
        match way % 4 {
            0 => None,
            1 => Some(Self {
                compression: Compression::Raw,
                raw_bytes: input.len(),
                stored: input.to_vec(),
            }),
            2 => {
                let mut stored = Vec::new();
                let compression = Compressor::new(1).compress(input, &mut stored).ok()?;
                Some(Self { compression, raw_bytes: input.len(), stored })
            }
            _ => {
                let (says, stored) = input.split_first_chunk::<4>()?;
                let raw_bytes = (u32::from_le_bytes(*says) as usize).min(max);
                Some(Self { compression: Compression::Zstd, raw_bytes, stored: stored.to_vec() })
            }
        }
    }

    /// Checks that `opened` is what the body holds, by another decompressor than ours.
    pub(super) fn must_hold(&self, opened: &[u8]) {
        taken();
        assert_eq!(opened.len(), self.raw_bytes, "no more and no less than it said");
        match self.compression {
            Compression::Raw => assert_eq!(opened, self.stored),
            Compression::Zstd => {
                let frame = zstd::zstd_safe::find_frame_compressed_size(&self.stored);
                assert_eq!(frame, Ok(self.stored.len()), "one frame and nothing behind it");
                let again = zstd::bulk::decompress(&self.stored, self.raw_bytes + 1);
                assert_eq!(again.expect("it was decompressed before"), opened);
            }
        }
    }
}

/// The samples of an object: itself as found, and its body, opened elsewhere, in each way.
pub(super) fn in_each_way(object: &[u8], body: &[u8]) -> Vec<Vec<u8>> {
    let mut samples = vec![[&[0], object].concat(), [&[1], body].concat(), [&[2], body].concat()];
    if let Ok(compressed) = zstd::bulk::compress(body, 1) {
        let says = u32::try_from(body.len()).unwrap_or(0).to_le_bytes();
        samples.push([&[3], &says[..], &compressed].concat());
    }
    samples
}

/// What was found and opened must be the one object that was sealed.
pub(super) fn must_be(is_open: bool, found: &[u8], sealed: &[u8]) {
    if is_open {
        assert_eq!(found, sealed, "an object that nobody sealed");
        taken();
    }
}

/// `out` holds something already; an error leaves it alone.
pub(super) fn decompress(bytes: &[u8]) {
    let Some((head, stored)) = bytes.split_first_chunk::<5>() else { return };
    let raw_bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let compression = if head[4] & 1 == 0 { Compression::Zstd } else { Compression::Raw };
    let mut out = b"before".to_vec();
    let max = SEGMENT_FRAME_BYTES_MAX;
    match expand("test", compression, stored, raw_bytes, max, &mut out) {
        Err(_) => assert_eq!(out, b"before"),
        Ok(()) => {
            assert!(out.starts_with(b"before") && raw_bytes <= max);
            Body { compression, raw_bytes, stored: stored.to_vec() }.must_hold(&out[6..]);
        }
    }
}

pub(super) fn decompress_samples() -> Vec<Vec<u8>> {
    let text = b"server disk journal vault point\n".repeat(100);
    let bomb = vec![0; SEGMENT_FRAME_BYTES_MAX];
    let input = |says: usize, way: u8, stored: &[u8]| {
        let says = u32::try_from(says).unwrap_or_default().to_le_bytes();
        [&says[..], &[way], stored].concat()
    };
    let compressed = |raw: &[u8]| zstd::bulk::compress(raw, 1).unwrap_or_default();
    vec![
        input(text.len(), 0, &compressed(&text)),
        input(bomb.len(), 0, &compressed(&bomb)),
        input(5, 0, &compressed(b"short")),
        input(0, 0, &compressed(b"")),
        input(text.len(), 1, &text),
        input(0, 1, b""),
    ]
}

pub(super) fn epoch(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let open = |object: &[u8]| open_epoch(object, VAULT, VOLUME, ORDINAL, &ring);
    if way % 2 == 0 {
        return must_be(open(input).is_ok(), input, EPOCH);
    }
    let mut sealer = sealer(&ring, Purpose::Epoch, &[&VAULT.0, &VOLUME.0, &ORDINAL.to_le_bytes()]);
    let header = EpochHeader {
        vault: VAULT,
        volume: VOLUME,
        ordinal: ORDINAL,
        key: KEY,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        body_bytes: input.len() + TAG_BYTES,
    };
    let mut object = header.encode();
    let mut stored = input.to_vec();
    sealer.seal(Domain::Body, &object, &mut stored).expect("bodies are small");
    object.extend_from_slice(&stored);
    match open(&object) {
        Ok(body) => {
            assert_eq!(body.encode(), input);
            taken();
        }
        Err(error) => {
            let is_long = object.len() > SMALL_OBJECT_BYTES_MAX;
            let is_body = matches!(error, farshore_codec::CodecError::Decode(_));
            assert!(is_long || is_body, "sealed as it should be: {error}");
        }
    }
}

const EPOCH: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v1/epoch.bin");

pub(super) fn epoch_samples() -> Vec<Vec<u8>> {
    assert!(EPOCH.len() > EPOCH_HEADER_BYTES);
    let body = include_bytes!("../../../../dataplane/proto/testdata/v1/epoch-body.bin");
    in_each_way(EPOCH, body).into_iter().take(2).collect()
}

pub(super) fn map(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, MAP_BODY_BYTES_MAX) else {
        return must_be(open_map(input, MAP, &ring).is_ok(), input, MAP_OBJECT);
    };
    let context: [&[u8]; 4] =
        [&VAULT.0, &VOLUME.0, &MAP.seq.0.to_le_bytes(), &MAP.part.to_le_bytes()];
    let mut sealer = sealer(&ring, Purpose::Map, &context);
    let header = MapHeader {
        vault: VAULT,
        volume: VOLUME,
        seq: MAP.seq,
        point: PointId([4; 16]),
        attempt: [6; 16],
        part: MAP.part,
        parts: 1,
        key: KEY,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        body_bytes: body.stored.len() + TAG_BYTES,
        body_raw_bytes: body.raw_bytes,
        compression: body.compression,
    };
    let mut object = header.encode();
    let mut stored = body.stored.clone();
    sealer.seal(Domain::Map, &object, &mut stored).expect("inputs are small");
    object.extend_from_slice(&stored);
    if let Ok((found, opened)) = open_map(&object, MAP, &ring) {
        assert_eq!(found, header);
        body.must_hold(&opened.encode());
    }
}

const MAP_OBJECT: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v1/map.bin");

pub(super) fn map_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v1/map-body.bin");
    in_each_way(MAP_OBJECT, body)
}

pub(super) fn index_run(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, INDEX_RUN_BODY_BYTES_MAX) else {
        return must_be(open_index_run(input, VAULT, RUN, &ring).is_ok(), input, INDEX_RUN);
    };
    let mut sealer = sealer(&ring, Purpose::IndexRun, &[&VAULT.0, &RUN.0]);
    let header = IndexRunHeader {
        vault: VAULT,
        run: RUN,
        key: KEY,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        body_bytes: body.stored.len() + TAG_BYTES,
        body_raw_bytes: body.raw_bytes,
        compression: body.compression,
    };
    let mut object = header.encode();
    let mut stored = body.stored.clone();
    sealer.seal(Domain::IndexRun, &object, &mut stored).expect("inputs are small");
    object.extend_from_slice(&stored);
    if let Ok(run) = open_index_run(&object, VAULT, RUN, &ring) {
        body.must_hold(&run.encode());
    }
}

const INDEX_RUN: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v1/index-run.bin");

pub(super) fn index_run_samples() -> Vec<Vec<u8>> {
    let body = include_bytes!("../../../../dataplane/proto/testdata/v1/index-run-body.bin");
    in_each_way(INDEX_RUN, body)
}

/// A journal file: as found on the disk, or with the input as the entries of its second group.
pub(super) fn journal(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    if way % 2 == 0 {
        return found_journal(input, &ring);
    }
    let key = ring.get(KEY).expect("the ring has it");
    let mut sealer = JournalSealer::create(VAULT, LOG, 3, key, KEY).expect("random bytes");
    let mut groups = Vec::new();
    for plain in [&b"first"[..], input] {
        let mut disk = vec![0xee; JournalSealer::disk_bytes(plain.len())];
        disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(plain);
        sealer.seal_group(plain.len(), &mut disk).expect("inputs are small");
        groups.push(disk);
    }
    let block = sealer.header().encode();
    let opener = JournalOpener::open(&block, VAULT, LOG, &ring).expect("just made");
    let plain = opener.open_group(1, &mut groups[1]).expect("just sealed");
    assert_eq!(plain, input);
    taken();
    assert!(entries(plain).count() <= input.len() / 72 + 1, "each entry has its bytes");
    assert!(opener.open_group(1, &mut groups[0]).is_err(), "another group's place");
}

fn found_journal(file: &[u8], ring: &KeyRing) {
    let Some((block, groups)) = file.split_at_checked(JOURNAL_ALIGN_BYTES) else { return };
    let Ok(opener) = JournalOpener::open(block, VAULT, LOG, ring) else { return };
    assert_eq!(block, &JOURNAL[..JOURNAL_ALIGN_BYTES], "a file that nobody began");
    let mut rest = groups;
    for number in 0.. {
        let Ok(header) = opener.group_header(number, rest) else { break };
        let mut group = rest[..header.disk_bytes().min(rest.len())].to_vec();
        let Ok(plain) = opener.open_group(number, &mut group) else { break };
        let expected: &[u8] = if number == 0 { b"first group" } else { b"second group" };
        assert_eq!(plain, expected, "a group that nobody sealed");
        taken();
        rest = &rest[header.disk_bytes().min(rest.len())..];
    }
}

const JOURNAL: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v1/journal.bin");

pub(super) fn journal_samples() -> Vec<Vec<u8>> {
    let entries = include_bytes!("../../../../dataplane/proto/testdata/v1/journal-entries.bin");
    in_each_way(JOURNAL, entries).into_iter().take(2).collect()
}
