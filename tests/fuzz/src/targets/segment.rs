//! Segments: header, opened table, and the whole object as somebody with the key sealed it.

use super::sealed::{
    Body, KEY, LOG, VAULT, in_each_way, must_be, part_aad, ring, seal_object, sealer,
};
use crate::{checksum, later, taken};
use farshore_codec::seal::Domain;
use farshore_codec::segment::{Opener, chunk_of, open_frame_at};
use farshore_codec::{ChunkHasher, CodecError};
use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_TRAILER_BYTES, OBJECT_BODY_BYTES_MAX, SEGMENT_BYTES_MAX, VOLUME_BLOCKS_MAX,
};
use farshore_proto::map::FrameAt;
use farshore_proto::object::ObjectKind;
use farshore_proto::segment::{
    ChunkPlace, Compression, ExtentSource, SegmentChunk, SegmentFrame, SegmentHeader, SlotKind,
    SlotWriter, Table, put_own,
};
use farshore_proto::wire::Put;
use farshore_proto::{Attempt, ChunkId, DecodeError, LogId, Slot, Target};

const SLOT: Slot = Slot(7);
/// Frames are filled from the input; more than this is not worth the time.
const FRAMES_BYTES_MAX: u64 = 1 << 20;

const SEGMENT: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/segment.bin");
const SEAL: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/seal.bin");
const FILL: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/fill.bin");
const TABLE: &[u8] = include_bytes!("../../../../dataplane/proto/testdata/v2/segment-table.bin");
const STAMPED: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v2/segment-table-stamped.bin");

fn head_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut header = SegmentHeader::decode(bytes)?;
    header.object.header_bytes = ObjectKind::Slot.header_bytes();
    Ok(header.encode())
}

pub(super) fn header(bytes: &[u8]) {
    let kind = ObjectKind::Slot;
    checksum::both(bytes, later::head_end(bytes, kind), |bytes| {
        let Ok(header) = SegmentHeader::decode(bytes) else { return };
        assert!(header.object_bytes() <= SEGMENT_BYTES_MAX);
        let again = head_again(bytes).expect("it decodes");
        later::must_be_head(bytes, &again, kind, head_again);
        taken();
    });
}

pub(super) fn header_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/segment-header.bin").to_vec(),
        include_bytes!("../../../../dataplane/proto/testdata/v2/seal-header.bin").to_vec(),
        SEGMENT[..ObjectKind::Slot.header_bytes()].to_vec(),
        include_bytes!("../../../../dataplane/proto/testdata/v2/fill-header.bin").to_vec(),
    ]
}

pub(super) fn table(bytes: &[u8]) {
    let Ok(table) = Table::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(Table::decode(bytes)?.encode());
    later::must_be_body(bytes, &table.encode(), later::TABLE, again);
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
    // One more target, so that there is an order to get wrong.
    let mut of_two_targets = Table::decode(TABLE).expect("it is pinned");
    let target = Target { log: LogId([0xee; 16]), slot: Slot(3), attempt: Attempt([0xdd; 8]) };
    let place = ChunkPlace::There { target, chunk: 1 };
    of_two_targets.chunks.push(SegmentChunk { id: ChunkId([0x77; 32]), blocks: 2, place });
    // A section of a later program, which may be ignored.
    let mut of_later = TABLE.to_vec();
    of_later.put_u16(9);
    of_later.put_u16(0);
    [3, 2, 0].iter().for_each(|field| of_later.put_u32(*field));
    of_later.put_zeros(6);
    vec![TABLE.to_vec(), STAMPED.to_vec(), of_later, of_two_targets.encode()]
}

/// A whole object: as found, or with the input as its table and, again and again, its frames.
pub(super) fn sealed(bytes: &[u8]) {
    let Some((way, input)) = bytes.split_first() else { return };
    let ring = ring();
    let Some(body) = Body::of(*way, input, OBJECT_BODY_BYTES_MAX) else {
        return found(input);
    };
    let kind = match *way & 0x30 {
        0x10 => SlotKind::Seal,
        0x20 => SlotKind::Fill,
        _ => SlotKind::Segment,
    };
    // What the opener has to make of it, found out in another way, to fill the frames.
    let plain = body.plain();
    let table = plain.and_then(|plain| Table::decode(&plain).ok()).unwrap_or_default();
    let frames = if kind == SlotKind::Segment { table.frames } else { Vec::new() };
    let frames_bytes: u64 = frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
    if frames_bytes > FRAMES_BYTES_MAX {
        return;
    }
    let place = SegmentHeader::place(VAULT, LOG, SLOT);
    let mut sealer = sealer(&ring, &place, kind.code());
    let own = |out: &mut Vec<u8>| put_own(out, frames_bytes, &SlotWriter::of_run(5));
    let object = seal_object(&mut sealer, place, kind.code(), own, &body);
    let Some(mut object) = object else { return };
    for (number, frame) in (0..).zip(&frames) {
        let stored_bytes = frame.stored_bytes as usize;
        let Some(bytes) = stored_bytes.checked_sub(FRAME_TRAILER_BYTES) else { return };
        let mut stored: Vec<u8> = input.iter().copied().cycle().take(bytes).collect();
        let aad = part_aad(&place, number, frame.raw_bytes, frame.compression);
        sealer.seal(Domain::Frame, &aad, &mut stored).expect("inputs are small");
        object.extend_from_slice(&stored);
        object.extend_from_slice(sealer.salt());
    }
    let opened = open(&object);
    frames_alone(&object, opened.is_ok());
    if let Ok(table) = opened {
        body.must_hold_but_for_later(&table.encode(), later::TABLE);
        assert!(kind == SlotKind::Segment || table == Table::default(), "it holds nothing");
    }
}

/// Opens each frame as who has a page of a map does, and as who has the segment: it comes to the same. All open if
/// the segment does.
fn frames_alone(object: &[u8], is_whole: bool) {
    let ring = ring();
    let Ok(opener) = Opener::open_header(object, VAULT, LOG, SLOT, &ring) else { return };
    let narrow = |at: u64| usize::try_from(at).expect("64-bit");
    let range = opener.table_range();
    let Ok(table) = opener.open_table(&object[narrow(range.start)..narrow(range.end)]) else {
        return;
    };
    let target = Target { log: LOG, slot: SLOT, attempt: opener.header().attempt() };
    for ((number, range), frame) in (0..).zip(opener.frame_ranges(&table)).zip(&table.frames) {
        let offset = u32::try_from(range.start).expect("inputs are small");
        let at = FrameAt { target, number, offset, key: KEY, frame: *frame };
        assert_eq!(at.range(), range);
        let sealed = &object[narrow(range.start)..narrow(range.end)];
        let (mut alone, mut within) = (Vec::new(), Vec::new());
        let one = open_frame_at(VAULT, &at, sealed, &ring, &mut alone);
        let other = opener.open_frame(&table, number, sealed, &mut within);
        assert_eq!((one, alone), (other.clone(), within), "frame {number}");
        assert!(other.is_ok() || !is_whole, "frame {number}");
    }
}

fn found(object: &[u8]) {
    let is_open = open(object).is_ok();
    must_be(is_open, object, SEGMENT);
    if is_open {
        frames_alone(object, true);
    }
    for (slot, sealed) in [(8, SEAL), (9, FILL)] {
        let opener = Opener::open_header(object, VAULT, LOG, Slot(slot), &ring());
        let is_open = opener
            .is_ok_and(|opener| opener.open_all(object, |_, _, _| Ok::<_, CodecError>(())).is_ok());
        must_be(is_open, object, sealed);
    }
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
    // The table of one bare frame with one chunk of one block.
    let frame =
        SegmentFrame { stored_bytes: 4096 + 48, raw_bytes: 4096, compression: Compression::Raw };
    let place = ChunkPlace::Here { frame: 0, offset: 0 };
    let chunk = SegmentChunk { id: ChunkId([0; 32]), blocks: 1, place };
    let bare = Table { frames: vec![frame], chunks: vec![chunk], spans: Vec::new() };
    let mut samples = in_each_way(SEGMENT, &bare.encode());
    // A seal and a fill: as found, and as one seals them oneself.
    samples.push([&[0], SEAL].concat());
    samples.push(vec![0x11]);
    samples.push([&[0], FILL].concat());
    samples.push(vec![0x21]);
    samples
}
