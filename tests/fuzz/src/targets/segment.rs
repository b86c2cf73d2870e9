//! Segments: header, opened table, and the whole object as somebody with the key sealed it.

use super::sealed::{Body, KEY, LOG, VAULT, in_each_way, must_be, ring, sealer};
use crate::{checksum, taken};
use farshore_codec::seal::{Domain, Purpose};
use farshore_codec::segment::{Opener, chunk_of};
use farshore_codec::{ChunkHasher, CodecError};
use farshore_proto::limits::{
    BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, SEGMENT_TABLE_BYTES_MAX, TAG_BYTES,
    VOLUME_BLOCKS_MAX,
};
use farshore_proto::segment::{
    ChunkPlace, Compression, ExtentSource, SegmentChunk, SegmentFrame, SegmentHeader, SlotKind,
    Table,
};
use farshore_proto::wire::Put;
use farshore_proto::{ChunkId, LogId, Slot};

const SLOT: Slot = Slot(7);
/// Frames are filled from the input; more than this is not worth the time.
const FRAMES_BYTES_MAX: u64 = 1 << 20;

const SEGMENT: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v1/segment.bin");
const SEAL: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v1/seal.bin");
const TABLE: &[u8] = include_bytes!("../../../../dataplane/proto/testdata/v1/segment-table.bin");
const STAMPED: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v1/segment-table-stamped.bin");

pub(super) fn header(bytes: &[u8]) {
    checksum::both(bytes, SEGMENT_HEADER_BYTES, |bytes| {
        if let Ok(header) = SegmentHeader::decode(bytes) {
            assert_eq!(header.encode(), bytes[..SEGMENT_HEADER_BYTES]);
            assert!(header.object_bytes() <= SEGMENT_BYTES_MAX);
            taken();
        }
    });
}

pub(super) fn header_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v1/segment-header.bin").to_vec(),
        include_bytes!("../../../../dataplane/proto/testdata/v1/seal-header.bin").to_vec(),
        SEGMENT[..SEGMENT_HEADER_BYTES].to_vec(),
    ]
}

pub(super) fn table(bytes: &[u8]) {
    let Ok(table) = Table::decode(bytes) else { return };
    assert_eq!(table.encode(), bytes);
    for chunk in &table.chunks {
        if let ChunkPlace::Here { frame, offset } = chunk.place {
            let end = u64::from(offset) + u64::from(chunk.blocks) * BLOCK_BYTES as u64;
            assert!(end <= table.frames[frame as usize].raw_bytes.into());
        }
    }
    for span in &table.spans {
        assert!(span.first_seq.0 > 0 && span.first_seq <= span.last_seq);
        let _ = span.last_seq.next();
        let mut floor = 0;
        for extent in &span.extents {
            assert!(extent.range.block >= floor && extent.range.count > 0);
            floor = extent.range.end();
            if let ExtentSource::Chunk { chunk, first } = extent.source {
                let blocks = table.chunks[chunk as usize].blocks;
                assert!(u64::from(first) + extent.range.count <= blocks.into());
            }
        }
        assert!(floor <= VOLUME_BLOCKS_MAX);
    }
    taken();
}

pub(super) fn table_samples() -> Vec<Vec<u8>> {
    // One more log, so that there is an order to get wrong.
    let mut of_two_logs = Table::decode(TABLE).expect("it is pinned");
    let place = ChunkPlace::There { log: LogId([0xee; 16]), slot: Slot(3), chunk: 1 };
    of_two_logs.chunks.push(SegmentChunk { id: ChunkId([0x77; 32]), blocks: 2, place });
    vec![TABLE.to_vec(), STAMPED.to_vec(), vec![0; 16], of_two_logs.encode()]
}

/// A whole object: as found, or with the input as its table and, again and again, its frames.
pub(super) fn sealed(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, SEGMENT_TABLE_BYTES_MAX) else {
        return found(input);
    };
    let kind = if *way & 0x10 == 0 { SlotKind::Segment } else { SlotKind::Seal };
    // What the opener has to make of it, found out in another way, to fill the frames.
    let plain = match body.compression {
        Compression::Raw => Ok(body.stored.clone()),
        Compression::Zstd => zstd::bulk::decompress(&body.stored, body.raw_bytes),
    };
    let table = plain.ok().and_then(|plain| Table::decode(&plain).ok()).unwrap_or_default();
    let frames = table.frames;
    let frames_bytes: u64 = frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
    if frames_bytes > FRAMES_BYTES_MAX {
        return;
    }
    let context: [&[u8]; 3] = [&VAULT.0, &LOG.0, &SLOT.0.to_le_bytes()];
    let mut sealer = sealer(&ring, Purpose::Segment, &context);
    let header = SegmentHeader {
        kind,
        vault: VAULT,
        log: LOG,
        slot: SLOT,
        key: KEY,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        table_bytes: body.stored.len() + TAG_BYTES,
        table_raw_bytes: body.raw_bytes,
        table_compression: body.compression,
        frames_bytes,
        incarnation: 5,
    };
    let mut object = header.encode().to_vec();
    let mut stored = body.stored.clone();
    sealer.seal(Domain::Table, &object, &mut stored).expect("inputs are small");
    object.extend_from_slice(&stored);
    for (number, frame) in (0..).zip(&frames) {
        let Some(bytes) = (frame.stored_bytes as usize).checked_sub(TAG_BYTES) else { return };
        let mut stored: Vec<u8> = input.iter().copied().cycle().take(bytes).collect();
        let aad = frame_aad(number, frame);
        sealer.seal(Domain::Frame, &aad, &mut stored).expect("inputs are small");
        object.extend_from_slice(&stored);
    }
    if let Ok(table) = open(&object) {
        body.must_hold(&table.encode());
        assert!(kind == SlotKind::Segment || table == Table::default(), "a seal holds nothing");
    }
}

/// As `docs/formats/segment.md` says, apart from the code under test.
fn frame_aad(number: u32, frame: &SegmentFrame) -> Vec<u8> {
    let mut aad = Vec::new();
    aad.put_bytes(&VAULT.0);
    aad.put_bytes(&LOG.0);
    aad.put_u64(SLOT.0);
    aad.put_u32(number);
    aad.put_u32(frame.raw_bytes);
    aad.put_u8(u8::from(frame.compression == Compression::Zstd));
    aad.put_zeros(7);
    aad
}

fn found(object: &[u8]) {
    must_be(open(object).is_ok(), object, SEGMENT);
    let seal = Opener::open_header(object, VAULT, LOG, Slot(8), &ring());
    let is_open =
        seal.is_ok_and(|seal| seal.open_all(object, |_, _, _| Ok::<_, CodecError>(())).is_ok());
    must_be(is_open, object, SEAL);
}

/// Opens everything in an object and asks for each of its chunks.
fn open(object: &[u8]) -> Result<Table, CodecError> {
    let ring = ring();
    let hasher = ChunkHasher::new(ring.vault_keys()?.id_key);
    let opener = Opener::open_header(object, VAULT, LOG, SLOT, &ring)?;
    opener.open_all(object, |table, number, raw| {
        assert_eq!(raw.len(), table.frames[number as usize].raw_bytes as usize);
        for (index, chunk) in (0..).zip(&table.chunks) {
            let is_here = matches!(chunk.place, ChunkPlace::Here { frame, .. } if frame == number);
            if let (true, Ok(bytes)) = (is_here, chunk_of(table, index, raw, &hasher)) {
                assert_eq!(hasher.id(bytes), chunk.id, "bytes of another chunk");
            }
        }
        Ok::<_, CodecError>(())
    })
}

pub(super) fn sealed_samples() -> Vec<Vec<u8>> {
    // The table of one bare frame with one chunk of one block, and of none but a span of zeros.
    let mut bare = Vec::new();
    [1, 0, 1, 0, 4096 + 16, 4096].iter().for_each(|field| bare.put_u32(*field));
    bare.put_zeros(4 + 32 + 4 + 8 + 4);
    bare.put_u32(1);
    let mut samples = in_each_way(SEGMENT, &bare);
    samples.push([&[0], SEAL].concat());
    samples.push([&[0x11], &[0; 16][..]].concat());
    samples
}
