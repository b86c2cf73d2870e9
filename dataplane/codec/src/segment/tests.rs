use super::*;
use crate::error::CodecError;
use crate::id::ChunkHasher;
use crate::keys::{DataKey, KeyRing, RootKey};
use crate::seal::Implementation;
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, SEGMENT_CHUNKS_MAX, SEGMENT_FRAME_BYTES, SEGMENT_HEADER_BYTES,
};
use farshore_proto::segment::{
    ChunkPlace, Extent, ExtentSource, SegmentHeader, SlotKind, Span, Table,
};
use farshore_proto::{BlockRange, ChunkId, Epoch, ErrorKind, KeyNumber, Seq, Stamp, VolumeId};
use proptest::prelude::*;

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const SLOT: Slot = Slot(7);
const KEY: KeyNumber = KeyNumber(1);

fn ring_of(byte: u8) -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KEY, DataKey::from_bytes([byte; 32]));
    ring.insert_root(KeyNumber(9), RootKey::from_bytes([byte; 32]));
    ring
}

fn ring() -> KeyRing {
    ring_of(5)
}

fn hasher() -> ChunkHasher {
    ChunkHasher::new(ring().vault_keys().unwrap().id_key)
}

fn builder_at(vault: VaultId, log: LogId, slot: Slot) -> SegmentBuilder {
    SegmentBuilder::new(vault, log, slot, 3, ring().get(KEY).unwrap(), KEY, 1).unwrap()
}

fn builder() -> SegmentBuilder {
    builder_at(VAULT, LOG, SLOT)
}

/// A chunk of `blocks` blocks: half of each compresses.
fn chunk(seed: u64, blocks: usize) -> Vec<u8> {
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
        stamp: Stamp { life: 7, generation: 3 },
        volume: VolumeId([4; 16]),
        epoch: Epoch(2),
        first_seq: Seq(10),
        last_seq: Seq(12),
        mark: None,
        extents: vec![
            extent(5, ExtentSource::Chunk { chunk, first: 0 }),
            extent(100, ExtentSource::Zero),
        ],
    }
}

/// A segment as a reader finds it.
struct Whole {
    bytes: Vec<u8>,
    table: Table,
    header: SegmentHeader,
}

impl From<Built> for Whole {
    fn from(built: Built) -> Self {
        Self { bytes: built.bytes(), table: built.table, header: built.header }
    }
}

fn build(builder: SegmentBuilder, chunks: &[Vec<u8>]) -> Whole {
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

fn opener(object: &[u8]) -> Result<Opener, CodecError> {
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
    assert_eq!(built.header.incarnation, 3);
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
    let opener = opener(&built.bytes[..SEGMENT_HEADER_BYTES]).unwrap();
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
    let there = ChunkPlace::There { log: LogId([9; 16]), slot: Slot(3), chunk: 12 };
    let load = Load { chunks: 1, logs: 1, ..Load::default() };
    assert!(builder.has_room(&load) && !builder.refers_to(LogId([9; 16])));
    let number = builder.push_reference(ChunkId([8; 32]), 32, there).unwrap();
    assert!(builder.refers_to(LogId([9; 16])));
    builder.push_span(span(number, 32));
    let built = builder.finish().unwrap();
    let (table, chunks) = open(&built.bytes()).unwrap();
    assert_eq!(table, built.table);
    assert_eq!(table.chunks[0].place, there);
    assert!(chunks.is_empty() && table.frames.is_empty());
    let error = chunk_of(&table, 0, &[], &hasher()).unwrap_err();
    assert!(matches!(error, CodecError::Missing { .. }), "{error}");
}

#[test]
fn two_attempts_at_the_same_content_share_no_key_and_no_ciphertext() {
    let (one, two) = (small(), small());
    assert_ne!(one.header.salt, two.header.salt);
    assert_ne!(one.header.commitment, two.header.commitment);
    assert_ne!(one.bytes[frames_at(&one)..], two.bytes[frames_at(&two)..]);
}

#[test]
fn a_segment_put_in_another_place_does_not_open() {
    let object = small().bytes;
    let places =
        [(VaultId([9; 16]), LOG, SLOT), (VAULT, LogId([9; 16]), SLOT), (VAULT, LOG, Slot(8))];
    for (vault, log, slot) in places {
        let error = Opener::open_header(&object, vault, log, slot, &ring()).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        // Relabelled with a good checksum: the key of that place is another.
        let mut header = SegmentHeader::decode(&object).unwrap();
        (header.vault, header.log, header.slot) = (vault, log, slot);
        let forged = [&header.encode(), &object[SEGMENT_HEADER_BYTES..]].concat();
        let error = Opener::open_header(&forged, vault, log, slot, &ring()).unwrap_err();
        assert!(matches!(error, CodecError::KeyMismatch { .. }), "{error}");
    }
}

#[test]
fn every_field_of_the_header_is_bound_to_the_table() {
    let object = small().bytes;
    let header = SegmentHeader::decode(&object).unwrap();
    let forgeries = [
        SegmentHeader { kind: SlotKind::Seal, ..header },
        SegmentHeader { incarnation: 9, ..header },
        SegmentHeader { table_raw_bytes: header.table_raw_bytes + 1, ..header },
        SegmentHeader { frames_bytes: header.frames_bytes + 1, ..header },
    ];
    for forgery in forgeries {
        let forged = [&forgery.encode(), &object[SEGMENT_HEADER_BYTES..]].concat();
        let table = &forged[SEGMENT_HEADER_BYTES..][..header.table_bytes];
        let error = opener(&forged).unwrap().open_table(table).unwrap_err();
        assert_eq!(error, CodecError::Tampered { what: "segment table" }, "{forgery:?}");
    }
}

#[test]
fn frames_and_tables_do_not_move_between_segments() {
    let (one, two) = (small(), small());
    let at = frames_at(&one);
    assert_eq!(at, frames_at(&two));
    let swapped = [&one.bytes[..at], &two.bytes[at..]].concat();
    assert_eq!(open(&swapped).unwrap_err(), CodecError::Tampered { what: "segment frame" });
    let swapped = [&one.bytes[..SEGMENT_HEADER_BYTES], &two.bytes[SEGMENT_HEADER_BYTES..]].concat();
    assert_eq!(open(&swapped).unwrap_err(), CodecError::Tampered { what: "segment table" });
}

#[test]
fn the_aad_of_a_frame_is_part_of_the_format() {
    // Bump the version of the segment, do not edit these bytes.
    let at = At { vault: VaultId([0xaa; 16]), log: LogId([0xbb; 16]), slot: Slot(0x0102) };
    let compression = Compression::Zstd;
    let frame = SegmentFrame { stored_bytes: 9, raw_bytes: 0x0304, compression };
    let rest = "0201000000000000".to_owned() + "06050000" + "04030000" + "01" + "00000000000000";
    let expected = "aa".repeat(16) + &"bb".repeat(16) + &rest;
    assert_eq!(hex::encode(at.frame_aad(0x0506, &frame)), expected);
}

#[test]
fn a_wrong_or_missing_data_key_is_named() {
    let object = small().bytes;
    let error = Opener::open_header(&object, VAULT, LOG, SLOT, &ring_of(6)).unwrap_err();
    assert_eq!(error, CodecError::KeyMismatch { what: "segment header", key: KEY });
    let error = Opener::open_header(&object, VAULT, LOG, SLOT, &KeyRing::new(VAULT)).unwrap_err();
    assert_eq!(error, CodecError::NoKey { key: KEY });
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
fn a_seal_opens_to_an_empty_table_and_only_in_its_place() {
    let key = ring();
    let object = seal_object(VAULT, LOG, SLOT, 4, key.get(KEY).unwrap(), KEY).unwrap();
    let opener = opener(&object).unwrap();
    assert_eq!(opener.header().kind, SlotKind::Seal);
    assert_eq!(opener.header().incarnation, 4);
    assert_eq!(open(&object).unwrap().0, Table::default());
    assert!(Opener::open_header(&object, VAULT, LOG, Slot(8), &key).is_err());
    for at in 0..object.len() {
        let mut bad = object.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(open(&bad).is_err(), "byte {at}");
    }
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
fn room_ends_before_any_limit_does() {
    let mut builder = builder();
    assert!(builder.is_empty());
    assert!(builder.has_room(&Load { chunk_bytes: 32 << 20, chunks: 8192, ..Load::default() }));
    assert!(!builder.has_room(&Load { chunk_bytes: 64 << 20, ..Load::default() }));
    assert!(!builder.has_room(&Load { chunks: SEGMENT_CHUNKS_MAX + 1, ..Load::default() }));
    let block = chunk(1, 32);
    let load = Load { chunks: 1, chunk_bytes: block.len(), ..Load::default() };
    let mut pushed = 0;
    while builder.has_room(&load) {
        builder.push_chunk(ChunkId([1; 32]), &block);
        pushed += 1;
    }
    assert_eq!(builder.raw_bytes(), pushed * block.len() as u64);
    assert!(!builder.is_empty());
    assert_eq!(builder.chunks() as u64, pushed);
    builder.finish().unwrap();
}

#[test]
fn the_estimate_of_the_table_is_never_below_its_size() {
    let mut builder = builder();
    let hasher = hasher();
    for seed in 0..3 {
        let bytes = chunk(seed, 32);
        builder.push_chunk(hasher.id(&bytes), &bytes);
        let log = LogId([u8::try_from(seed).unwrap(); 16]);
        let place = ChunkPlace::There { log, slot: Slot(1), chunk: 0 };
        builder.push_reference(ChunkId([1; 32]), 3, place).unwrap();
        builder.push_span(span(0, 3));
    }
    let built = builder.finish().unwrap();
    let estimate = build::table_bytes(1, 3, 6, 3, 6);
    assert_eq!(built.table.encode().len(), estimate);
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
