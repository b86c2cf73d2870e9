//! The table of a segment refers only to what exists, and in order.

use crate::samples;
use farshore_proto::limits::{SEGMENT_EXTENTS_MAX, VOLUME_BLOCKS_MAX};
use farshore_proto::segment::{ChunkPlace, Compression, Extent, ExtentSource, Table};
use farshore_proto::{BlockRange, DecodeError, Epoch, ErrorKind, Seq, Slot};

/// Offsets in the sample: 16 of counts, 12 per frame, 16 per log, 52 per chunk, then the spans.
const FRAME: usize = 16;
const CHUNK: usize = FRAME + 12 + 16;
const SPAN: usize = CHUNK + 2 * 52;
const MARK: usize = SPAN + 40;
const EXTENT: usize = MARK + 32 + 4;
const ABSENT_MARK: usize = EXTENT + 3 * 20 + 40;

fn with(at: usize, bytes: &[u8]) -> Result<Table, DecodeError> {
    let mut table = samples::table().encode();
    table[at..at + bytes.len()].copy_from_slice(bytes);
    Table::decode(&table)
}

fn changed(change: impl FnOnce(&mut Table)) -> Result<Table, DecodeError> {
    let mut table = samples::table();
    change(&mut table);
    Table::decode(&table.encode())
}

#[test]
fn counts_over_their_limit_are_refused_before_anything_is_read() {
    for (at, max) in [(0, 1 << 12), (4, 1 << 10), (8, 1 << 17), (12, 1 << 14)] {
        let over: u32 = max + 1;
        let mut bytes = vec![0; 16];
        bytes[at..at + 4].copy_from_slice(&over.to_le_bytes());
        let error = Table::decode(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        // At the limit it is the missing bytes that end it, not memory.
        bytes[at..at + 4].copy_from_slice(&max.to_le_bytes());
        assert!(matches!(Table::decode(&bytes), Err(DecodeError::Truncated { .. })));
    }
}

#[test]
fn extents_are_limited_over_all_spans() {
    let error = with(EXTENT - 4, &u32::MAX.to_le_bytes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    let left = u32::try_from(SEGMENT_EXTENTS_MAX - 3 + 1).unwrap();
    // Three extents are in the first span, so this many in the second are one too many.
    let error = with(ABSENT_MARK + 32, &left.to_le_bytes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

#[test]
fn a_frame_over_its_limit_is_refused() {
    assert_eq!(with(FRAME, &(1_048_593_u32).to_le_bytes()).unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(
        with(FRAME + 4, &(1_048_577_u32).to_le_bytes()).unwrap_err().kind(),
        ErrorKind::Limit
    );
    assert!(matches!(with(FRAME + 8, &[2]), Err(DecodeError::Range { .. })));
    assert!(matches!(with(FRAME + 9, &[1]), Err(DecodeError::Reserved { .. })));
}

#[test]
fn a_chunk_outside_its_frame_is_refused() {
    let place =
        |frame, offset| changed(|table| table.chunks[0].place = ChunkPlace::Here { frame, offset });
    place(0, 0).unwrap();
    assert!(matches!(place(0, 1), Err(DecodeError::Range { what: "chunk offset", .. })));
    assert!(matches!(place(0, u32::MAX), Err(DecodeError::Range { what: "chunk offset", .. })));
    assert!(matches!(place(1, 0), Err(DecodeError::Range { what: "chunk frame", .. })));
    let wide = u64::from(u32::MAX) + 1;
    assert!(matches!(
        with(CHUNK + 36, &wide.to_le_bytes()),
        Err(DecodeError::Range { what: "chunk frame", .. })
    ));
}

#[test]
fn a_chunk_of_no_or_too_many_blocks_is_refused() {
    for blocks in [0, 33, u32::MAX] {
        let error = changed(|table| table.chunks[0].blocks = blocks).unwrap_err();
        assert_eq!(error, DecodeError::Range { what: "chunk blocks", value: blocks.into() });
    }
}

#[test]
fn a_log_number_that_is_not_in_the_list_is_refused() {
    let error = with(CHUNK + 52 + 32, &2_u32.to_le_bytes()).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "chunk log", value: 2 });
}

#[test]
fn an_extent_outside_its_chunk_or_volume_is_refused() {
    let first = |range: BlockRange, source: ExtentSource| {
        changed(|table| {
            table.spans[0].extents = vec![Extent { range, source }];
        })
    };
    let chunk = |chunk, first| ExtentSource::Chunk { chunk, first };
    let range = |block, count| BlockRange { block, count };
    first(range(0, 8), chunk(1, 0)).unwrap();
    first(range(VOLUME_BLOCKS_MAX - 1, 1), ExtentSource::Zero).unwrap();
    for (range, source) in [
        (range(0, 8), chunk(2, 0)),
        (range(0, 8), chunk(0, 1)),
        (range(0, 1), chunk(0, u32::MAX)),
        (range(VOLUME_BLOCKS_MAX, 1), ExtentSource::Zero),
        (range(VOLUME_BLOCKS_MAX - 1, 2), ExtentSource::Zero),
    ] {
        let error = first(range, source).unwrap_err();
        assert!(matches!(error, DecodeError::Range { .. }), "{range:?} {source:?}: {error}");
    }
    assert!(matches!(with(EXTENT + 8, &[0; 4]), Err(DecodeError::Range { .. })), "no blocks");
}

#[test]
fn extents_are_in_block_order_without_overlap() {
    let error = changed(|table| table.spans[0].extents.swap(0, 1)).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "extent order", value: 5 });
    let error = changed(|table| table.spans[0].extents[1].range.block = 6).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "extent order", value: 6 });
}

#[test]
fn spans_have_seqs_and_an_epoch() {
    for (first, last) in [(0, 3), (4, 3)] {
        let error = changed(|table| {
            table.spans[0].first_seq = Seq(first);
            table.spans[0].last_seq = Seq(last);
        });
        assert_eq!(error, Err(DecodeError::Range { what: "span seqs", value: first }));
    }
    let error = changed(|table| table.spans[0].epoch = Epoch(0));
    assert_eq!(error, Err(DecodeError::Range { what: "span epoch", value: 0 }));
}

#[test]
fn a_mark_is_all_there_or_all_absent() {
    assert!(matches!(with(MARK + 24, &[6]), Err(DecodeError::Range { what: "mark kind", .. })));
    assert!(matches!(with(MARK + 25, &[2]), Err(DecodeError::Range { what: "mark prompt", .. })));
    assert!(matches!(with(MARK + 26, &[1]), Err(DecodeError::Reserved { .. })));
    assert!(matches!(with(MARK + 27, &[1]), Err(DecodeError::Reserved { .. })));
    for at in [0, 15, 16, 25, 28, 31] {
        let error = with(ABSENT_MARK + at, &[1]).unwrap_err();
        assert_eq!(error, DecodeError::Reserved { what: "absent mark" }, "byte {at}");
    }
}

#[test]
fn a_zero_extent_has_one_encoding() {
    let zero = EXTENT + 20;
    assert!(matches!(with(zero + 16, &[1]), Err(DecodeError::Range { .. })));
}

#[test]
fn a_run_of_zeros_longer_than_its_field_is_laid_out_in_pieces() {
    let whole = BlockRange { block: 0, count: VOLUME_BLOCKS_MAX };
    let table = changed(|table| {
        table.spans[0].extents = vec![Extent { range: whole, source: ExtentSource::Zero }];
    })
    .unwrap();
    let extents = &table.spans[0].extents;
    assert_eq!(extents.len(), 5);
    let mut next = 0;
    for extent in extents {
        assert_eq!((extent.range.block, extent.source), (next, ExtentSource::Zero));
        next = extent.range.end();
    }
    assert_eq!(next, VOLUME_BLOCKS_MAX);
}

#[test]
fn an_empty_table_is_sixteen_bytes() {
    let empty = Table::default();
    assert_eq!(empty.encode(), [0; 16]);
    assert_eq!(Table::decode(&[0; 16]), Ok(empty));
}

#[test]
fn a_log_that_many_chunks_refer_to_is_listed_once() {
    let table = changed(|table| {
        for slot in 0..100 {
            let mut chunk = table.chunks[1];
            chunk.place = ChunkPlace::There { log: samples::OTHER_LOG, slot: Slot(slot), chunk: 0 };
            table.chunks.push(chunk);
        }
        table.frames[0].compression = Compression::Raw;
    })
    .unwrap();
    assert_eq!(table.chunks.len(), 102);
    assert_eq!(table.encode().len(), samples::table().encode().len() + 100 * 52);
}
