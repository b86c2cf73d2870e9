use super::frame::frame_aad;
use super::*;
use crate::compress::Compressor;
use crate::error::CodecError;
use crate::id::ChunkHasher;
use crate::keys::{DataKey, KeyRing, RootKey};
use crate::object::ObjectSealer;
use crate::seal::Implementation;
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, SEGMENT_FRAME_BYTES, SEGMENT_TARGETS_MAX, SLOT_MAX,
};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::register::At;
use farshore_proto::segment::{
    ChunkPlace, Compression, Extent, ExtentSource, SegmentFrame, SegmentHeader, SlotKind,
    SlotWriter, Span, Table, put_own,
};
use farshore_proto::{
    Attempt, BlockRange, ChunkId, Epoch, ErrorKind, Imprint, KeyNumber, LogId, MarkKind, PointId,
    Seq, Slot, Stamp, Target, VaultId, VolumeId,
};
use proptest::prelude::*;

pub(super) const VAULT: VaultId = VaultId([1; 16]);
pub(super) const LOG: LogId = LogId([2; 16]);
pub(super) const SLOT: Slot = Slot(7);
pub(super) const KEY: KeyNumber = KeyNumber(1);
const OWN: KeyNumber = KeyNumber(3);
const WRITER: SlotWriter = SlotWriter {
    incarnation: 3,
    horizon: 2,
    register: At { number: 17, digest: [3; 8] },
    checkpoint: Some(Slot(5)),
};
/// A segment of another log.
const THERE: Target = Target { log: LogId([9; 16]), slot: Slot(3), attempt: Attempt([7; 8]) };

pub(super) fn ring_of(byte: u8) -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KEY, DataKey::from_bytes([byte; 32]));
    ring.insert_own(OWN, DataKey::from_bytes([byte; 32]));
    ring.insert_root(KeyNumber(9), RootKey::from_bytes([byte; 32]));
    ring
}

pub(super) fn ring() -> KeyRing {
    ring_of(5)
}

fn hasher() -> ChunkHasher {
    ChunkHasher::new(ring().vault_keys().unwrap().id_key)
}

pub(super) fn builder_at(vault: VaultId, log: LogId, slot: Slot) -> SegmentBuilder {
    SegmentBuilder::new(vault, log, slot, WRITER, ring().sealing().unwrap(), 1).unwrap()
}

pub(super) fn builder() -> SegmentBuilder {
    builder_at(VAULT, LOG, SLOT)
}

/// A chunk of `blocks` blocks: half of each compresses.
pub(super) fn chunk(seed: u64, blocks: usize) -> Vec<u8> {
    let mut out = vec![0; blocks * BLOCK_BYTES];
    for (number, block) in (0_u64..).zip(out.chunks_mut(BLOCK_BYTES)) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes());
        hasher.finalize_xof().fill(&mut block[..BLOCK_BYTES / 2]);
    }
    out
}

fn span(chunk: u32, blocks: u64) -> Span {
    let extent = |block, source| Extent { range: BlockRange { block, count: blocks }, source };
    Span {
        volume: VolumeId([4; 16]),
        epoch: Epoch(2),
        first_seq: Seq(10),
        last_seq: Seq(12),
        previous: Some(Slot(6)),
        mark: None,
        stamp: Stamp { life: 7, generation: 3 },
        imprint: Imprint::of(0x0102_0304),
        extents: vec![
            extent(5, ExtentSource::Chunk { chunk, first: 0 }),
            extent(100, ExtentSource::Zero),
        ],
    }
}

/// A segment as a reader finds it.
pub(super) struct Whole {
    pub(super) bytes: Vec<u8>,
    pub(super) table: Table,
    pub(super) header: SegmentHeader,
}

impl From<Built> for Whole {
    fn from(built: Built) -> Self {
        Self { bytes: built.bytes(), table: built.table, header: built.header }
    }
}

pub(super) fn build(builder: SegmentBuilder, chunks: &[Vec<u8>]) -> Whole {
    finish(builder, chunks).into()
}

fn finish(mut builder: SegmentBuilder, chunks: &[Vec<u8>]) -> Built {
    let hasher = hasher();
    for (number, bytes) in chunks.iter().enumerate() {
        let pushed = builder.push_chunk(hasher.id(bytes), bytes);
        assert_eq!(pushed as usize, number);
    }
    builder.push_span(span(0, chunks[0].len() as u64 / BLOCK_BYTES as u64));
    builder.finish().unwrap()
}

fn frames_at(built: &Whole) -> usize {
    usize::try_from(built.header.frames_offset()).unwrap()
}

fn small() -> Whole {
    build(builder(), &[chunk(1, 1)])
}

pub(super) fn opener(object: &[u8]) -> Result<Opener, CodecError> {
    Opener::open_header(object, VAULT, LOG, SLOT, &ring())
}

/// Everything in the object, as a reader gets it: the table and every chunk's bytes.
fn open(object: &[u8]) -> Result<(Table, Vec<Vec<u8>>), CodecError> {
    let hasher = hasher();
    let mut frames = Vec::new();
    let table = opener(object)?.open_all(object, |_, _, bytes| {
        frames.push(bytes.to_vec());
        Ok::<_, CodecError>(())
    })?;
    let mut chunks = Vec::new();
    for (number, chunk) in (0..).zip(&table.chunks) {
        if let ChunkPlace::Here { frame, .. } = chunk.place {
            chunks.push(chunk_of(&table, number, &frames[frame as usize], &hasher)?.to_vec());
        }
    }
    Ok((table, chunks))
}

#[test]
fn sealed_frames_stay_where_they_are_written() {
    // Nothing of these compresses: more than two pieces of 4 MiB.
    let chunks: Vec<Vec<u8>> = (0..150_u64)
        .map(|seed| {
            let mut bytes = vec![0; CHUNK_BYTES_MAX];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
            bytes
        })
        .collect();
    let built = finish(builder(), &chunks);
    let sizes: Vec<usize> = built.pieces.iter().map(Vec::capacity).collect();
    assert!(sizes[1..].iter().all(|bytes| *bytes == 4 << 20), "pieces grew: {sizes:?}");
    assert!(built.pieces.len() > 3 && built.pieces.iter().all(|piece| !piece.is_empty()));
    assert_eq!(built.object_bytes() as u64, built.header.object_bytes());
    assert_eq!(SegmentHeader::decode(&built.pieces[0]).unwrap(), built.header);
    assert_eq!(open(&built.bytes()).unwrap(), (built.table, chunks));
}

#[test]
fn a_segment_opens_to_what_was_pushed() {
    let chunks: Vec<_> =
        (0..40).zip(0_usize..).map(|(seed, n)| chunk(seed, 1 + n * 7 % 32)).collect();
    let built = build(builder(), &chunks);
    assert_eq!(built.bytes.len() as u64, built.header.object_bytes());
    assert_eq!(SegmentHeader::decode(&built.bytes).unwrap(), built.header);
    assert_eq!(built.header.writer, WRITER);
    assert_eq!(built.header.attempt(), Attempt::of(&built.header.object.salt));
    let (table, opened) = open(&built.bytes).unwrap();
    assert_eq!(table, built.table);
    assert_eq!(opened, chunks);
    assert!(table.frames.len() > 1);
    for frame in &table.frames[..table.frames.len() - 1] {
        let raw = frame.raw_bytes as usize;
        assert!((SEGMENT_FRAME_BYTES..SEGMENT_FRAME_BYTES + CHUNK_BYTES_MAX).contains(&raw));
        assert!(frame.stored_bytes < frame.raw_bytes * 3 / 4, "frames are compressed");
    }
}

#[test]
fn a_frame_is_read_alone_out_of_its_range() {
    let chunks: Vec<_> = (0..40).map(|seed| chunk(seed, 32)).collect();
    let built = build(builder(), &chunks);
    let opener = opener(&built.bytes[..built.header.object.header_bytes]).unwrap();
    let slice = |range: std::ops::Range<u64>| {
        &built.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let table = opener.open_table(slice(opener.table_range())).unwrap();
    let ranges = opener.frame_ranges(&table);
    assert_eq!(ranges.last().unwrap().end, built.bytes.len() as u64);
    let ChunkPlace::Here { frame, .. } = table.chunks[25].place else { unreachable!() };
    let mut bytes = Vec::new();
    let sealed = slice(ranges[frame as usize].clone());
    opener.open_frame(&table, frame, sealed, &mut bytes).unwrap();
    assert_eq!(chunk_of(&table, 25, &bytes, &hasher()).unwrap(), chunks[25]);
    // The same bytes in another frame's place do not open.
    for other in (0..u32::try_from(ranges.len()).unwrap()).filter(|other| *other != frame) {
        assert!(opener.open_frame(&table, other, sealed, &mut Vec::new()).is_err());
    }
    let past = u32::try_from(ranges.len()).unwrap();
    let error = opener.open_frame(&table, past, sealed, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, CodecError::Missing { .. }), "{error}");
}

#[test]
fn references_and_marks_survive() {
    let mut builder = builder();
    let there = ChunkPlace::There { target: THERE, chunk: 12 };
    let number = builder.push_reference(ChunkId([8; 32]), 32, there).unwrap();
    let mark = Mark {
        point: PointId([6; 16]),
        kind: MarkKind::Final,
        unknown_blocks: 3,
        is_prompt: true,
        time_unix_ms: 5,
        group: MarkGroup::ALONE,
    };
    builder.push_span(Span { mark: Some(mark), ..span(number, 32) });
    let built = builder.finish().unwrap();
    let (table, chunks) = open(&built.bytes()).unwrap();
    assert_eq!(table, built.table);
    assert_eq!((table.chunks[0].place, table.spans[0].mark), (there, Some(mark)));
    assert!(chunks.is_empty() && table.frames.is_empty());
    let error = chunk_of(&table, 0, &[], &hasher()).unwrap_err();
    assert!(matches!(error, CodecError::Missing { .. }), "{error}");
}

#[test]
fn references_end_at_their_limit_and_must_be_legal() {
    let mut builder = builder();
    let id = ChunkId([8; 32]);
    let there =
        |slot: u64| ChunkPlace::There { target: Target { slot: Slot(slot), ..THERE }, chunk: 0 };
    for number in 0..SEGMENT_TARGETS_MAX as u64 {
        assert!(builder.push_reference(id, 1, there(number)).is_some());
    }
    // One more segment is too many; one that is referred to already is not, and others refuse nothing else.
    assert_eq!(builder.push_reference(id, 1, there(SEGMENT_TARGETS_MAX as u64)), None);
    let other = Target { attempt: Attempt([8; 8]), slot: Slot(0), ..THERE };
    let other = ChunkPlace::There { target: other, chunk: 0 };
    assert_eq!(builder.push_reference(id, 1, other), None, "another attempt is another segment");
    assert!(builder.push_reference(id, 32, there(0)).is_some());
    for (blocks, place) in [
        (0, there(0)),
        (33, there(0)),
        (1, there(SLOT_MAX.0 + 1)),
        (1, ChunkPlace::Here { frame: 0, offset: 0 }),
    ] {
        assert_eq!(builder.push_reference(id, blocks, place), None, "{blocks} blocks at {place:?}");
    }
    let bytes = chunk(1, 1);
    builder.push_chunk(hasher().id(&bytes), &bytes);
    let built = builder.finish().unwrap();
    let (table, _) = open(&built.bytes()).unwrap();
    assert_eq!((table.chunks.len(), table), (SEGMENT_TARGETS_MAX + 2, built.table));
}

#[test]
fn two_attempts_at_the_same_content_share_no_key_and_no_ciphertext() {
    let (one, two) = (small(), small());
    let (first, second) = (one.header.object, two.header.object);
    assert!(first.salt != second.salt && first.commitment != second.commitment);
    assert_ne!(one.header.attempt(), two.header.attempt());
    assert_ne!(one.bytes[frames_at(&one)..], two.bytes[frames_at(&two)..]);
}

#[test]
fn a_segment_put_in_another_place_does_not_open() {
    let whole = small();
    let places =
        [(VaultId([9; 16]), LOG, SLOT), (VAULT, LogId([9; 16]), SLOT), (VAULT, LOG, Slot(8))];
    for (vault, log, slot) in places {
        let error = Opener::open_header(&whole.bytes, vault, log, slot, &ring()).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        // Relabelled with a good checksum: the key of that place is another.
        let mut header = whole.header;
        header.object.place = SegmentHeader::place(vault, log, slot);
        let error = Opener::open_header(&forged(&header, &whole), vault, log, slot, &ring());
        let error = error.unwrap_err();
        assert!(matches!(error, CodecError::KeyMismatch { .. }), "{error}");
    }
}

/// The object behind another header.
fn forged(header: &SegmentHeader, whole: &Whole) -> Vec<u8> {
    [&header.encode(), &whole.bytes[whole.header.object.header_bytes..]].concat()
}

#[test]
fn no_field_of_the_header_is_believed_that_was_not_sealed() {
    let whole = small();
    let header = whole.header;
    let raw = |header: SegmentHeader, more: usize| {
        let mut object = header.object;
        object.body_raw_bytes += more;
        SegmentHeader { object, ..header }
    };
    let of_kind = |kind: SlotKind| {
        let mut object = header.object;
        object.variant = kind.code();
        SegmentHeader { object, kind, frames_bytes: 0, ..header }
    };
    let by = |writer: SlotWriter| SegmentHeader { writer, ..header };
    let forgeries = [
        of_kind(SlotKind::Seal),
        of_kind(SlotKind::Fill),
        by(SlotWriter { incarnation: 9, ..WRITER }),
        by(SlotWriter { horizon: 9, ..WRITER }),
        by(SlotWriter { register: At::NONE, ..WRITER }),
        by(SlotWriter { register: At { number: 17, digest: [4; 8] }, ..WRITER }),
        by(SlotWriter { checkpoint: None, ..WRITER }),
        SegmentHeader { frames_bytes: header.frames_bytes + 1, ..header },
        raw(header, 1),
    ];
    for forgery in forgeries {
        let error = opener(&forged(&forgery, &whole)).unwrap_err();
        let mismatch = CodecError::KeyMismatch { what: "segment", key: OWN };
        assert_eq!(error, mismatch, "{forgery:?}");
    }
    opener(&forged(&header, &whole)).unwrap();
}

#[test]
fn frames_and_tables_do_not_move_between_segments() {
    let (one, two) = (small(), small());
    let at = frames_at(&one);
    assert_eq!(at, frames_at(&two));
    let swapped = [&one.bytes[..at], &two.bytes[at..]].concat();
    assert_eq!(open(&swapped).unwrap_err(), CodecError::Tampered { what: "segment frame" });
    let swapped = forged(&one.header, &two);
    assert_eq!(open(&swapped).unwrap_err(), CodecError::Tampered { what: "body of an object" });
}

#[test]
fn the_aad_of_a_frame_is_part_of_the_format() {
    // Bump the version of the segment, do not edit these bytes.
    let place = SegmentHeader::place(VaultId([0xaa; 16]), LogId([0xbb; 16]), Slot(0x0102));
    let compression = Compression::Zstd;
    let frame = SegmentFrame { stored_bytes: 9, raw_bytes: 0x0304, compression };
    let rest = "0201000000000000".to_owned() + "06050000" + "04030000" + "01" + "00000000000000";
    let expected = "aa".repeat(16) + &"bb".repeat(16) + &rest;
    assert_eq!(hex::encode(frame_aad(&place, 0x0506, &frame)), expected);
}

#[test]
fn a_wrong_or_missing_data_key_is_named() {
    let object = small().bytes;
    let error = Opener::open_header(&object, VAULT, LOG, SLOT, &ring_of(6)).unwrap_err();
    assert_eq!(error, CodecError::KeyMismatch { what: "segment", key: OWN });
    let error = Opener::open_header(&object, VAULT, LOG, SLOT, &KeyRing::new(VAULT)).unwrap_err();
    assert_eq!(error, CodecError::NoOwnKey { key: OWN });
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let object = small().bytes;
    for at in 0..object.len() {
        let mut bad = object.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(open(&bad).is_err(), "byte {at}");
        assert!(open(&object[..at]).is_err(), "length {at}");
    }
    assert!(open(&[object.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn the_other_implementation_opens_it_all() {
    let chunks: Vec<_> = (0..20).map(|seed| chunk(seed, 32)).collect();
    let built = build(builder(), &chunks);
    let other = Implementation::RustCrypto;
    let opener = Opener::open_header_with(other, &built.bytes, VAULT, LOG, SLOT, &ring()).unwrap();
    let mut frames = Vec::new();
    let each = |_: &Table, _, bytes: &[u8]| {
        frames.extend_from_slice(bytes);
        Ok::<_, CodecError>(())
    };
    assert_eq!(opener.open_all(&built.bytes, each).unwrap(), built.table);
    assert_eq!(frames, chunks.concat());
}

#[test]
fn a_seal_or_fill_opens_to_an_empty_table_and_only_in_its_place() {
    let ring = ring();
    for kind in [SlotKind::Seal, SlotKind::Fill] {
        let keys = ring.sealing().unwrap();
        let object = slot_without_data(kind, (VAULT, LOG, SLOT), WRITER, keys).unwrap();
        let opener = opener(&object).unwrap();
        assert_eq!((opener.header().kind, opener.header().writer), (kind, WRITER));
        assert_eq!(opener.header().object_bytes(), object.len() as u64);
        assert_eq!(open(&object).unwrap().0, Table::default());
        assert!(Opener::open_header(&object, VAULT, LOG, Slot(8), &ring).is_err());
        for at in 0..object.len() {
            let mut bad = object.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(open(&bad).is_err(), "byte {at}");
            assert!(open(&object[..at]).is_err(), "length {at}");
        }
    }
}

/// Somebody with the data key seals what is no seal.
#[test]
fn a_seal_or_fill_with_something_in_its_table_is_refused() {
    let table = Table { spans: vec![Span { extents: vec![], ..span(0, 1) }], ..Table::default() };
    for kind in [SlotKind::Seal, SlotKind::Fill] {
        let place = SegmentHeader::place(VAULT, LOG, SLOT);
        let own = |out: &mut Vec<u8>| put_own(out, 0, &WRITER);
        let ring = ring();
        let mut sealer = ObjectSealer::draw(place, kind.code(), ring.sealing().unwrap()).unwrap();
        let mut compressor = Compressor::new(1);
        let sealed = sealer.seal_body(&mut compressor, own, &table.encode());
        let error = open(&sealed.unwrap().1).unwrap_err();
        assert!(
            matches!(error, CodecError::Length { what: "table of a seal or fill", .. }),
            "{error}"
        );
    }
}

#[test]
#[should_panic(expected = "segments have data")]
fn a_slot_without_data_is_no_segment() {
    let at = (VAULT, LOG, SLOT);
    let _ = slot_without_data(SlotKind::Segment, at, WRITER, ring().sealing().unwrap());
}

#[test]
fn a_chunk_that_does_not_hash_to_its_id_is_never_returned() {
    let mut builder = builder();
    let number = builder.push_chunk(ChunkId([0xaa; 32]), &chunk(1, 4));
    let built = builder.finish().unwrap();
    let bytes = chunk(1, 4);
    let error = chunk_of(&built.table, number, &bytes, &hasher()).unwrap_err();
    assert_eq!(error, CodecError::ChunkDiffers { id: ChunkId([0xaa; 32]) });
    assert_eq!(open(&built.bytes()).unwrap_err(), error);
}

#[test]
fn a_builder_tells_what_it_holds() {
    let mut builder = builder();
    assert!(builder.is_empty());
    let bytes = chunk(1, 32);
    for number in 0..10 {
        assert_eq!(builder.push_chunk(hasher().id(&bytes), &bytes), number);
    }
    assert_eq!((builder.raw_bytes(), builder.chunks()), (10 * bytes.len() as u64, 10));
    assert!(!builder.is_empty());
    builder.finish().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_chunks_come_back(shapes in proptest::collection::vec((any::<u64>(), 1_usize..=32), 1..60)) {
        let chunks: Vec<_> = shapes.iter().map(|(seed, blocks)| chunk(*seed, *blocks)).collect();
        let built = build(builder(), &chunks);
        let (table, opened) = open(&built.bytes).unwrap();
        prop_assert_eq!(table, built.table);
        prop_assert_eq!(opened, chunks);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let chunks: Vec<_> = (0..8).map(|seed| chunk(seed, 32)).collect();
        let mut object = build(builder(), &chunks).bytes;
        let at = at.index(object.len());
        object[at] ^= 1 << bit;
        prop_assert!(open(&object).is_err());
    }
}
