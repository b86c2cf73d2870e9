//! The table of a segment refers only to what exists, and in order.

use crate::bodies::{MUST, Section, join, split};
use crate::samples;
use farshore_proto::limits::{
    SEGMENT_CHUNKS_MAX, SEGMENT_EXTENTS_MAX, SEGMENT_FRAMES_MAX, SEGMENT_SPANS_MAX, TARGETS_MAX,
    VOLUME_BLOCKS_MAX,
};
use farshore_proto::segment::{ChunkPlace, Compression, Extent, ExtentSource, Table};
use farshore_proto::{Attempt, BlockRange, DecodeError, Epoch, ErrorKind, Seq, Slot, Target};

/// Offsets in the sample, each behind the head of its section: one frame, one target, two chunks, two spans,
/// three extents, one mark.
const HEAD: usize = 16;
const FRAME: usize = HEAD;
pub(crate) const TARGET: usize = FRAME + 12 + HEAD;
pub(crate) const CHUNK: usize = TARGET + 32 + HEAD;
pub(crate) const SPAN: usize = CHUNK + 2 * 48 + HEAD;
const EXTENT: usize = SPAN + 2 * 72 + HEAD;
const MARK: usize = EXTENT + 3 * 20 + HEAD;
const END: usize = MARK + 64;
/// In a span: how many extents, and which mark.
const EXTENTS_OF: usize = 48;
const MARK_OF: usize = 52;

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
fn the_sample_lies_where_the_tests_take_it_to_be() {
    assert_eq!(samples::table().encode().len(), END);
    let sections = split(&samples::table().encode());
    let shapes: Vec<_> = sections.iter().map(|s| (s.number, s.stride, s.count)).collect();
    assert_eq!(shapes, [(1, 12, 1), (2, 32, 1), (3, 48, 2), (4, 72, 2), (5, 20, 3), (6, 64, 1)]);
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    for (number, stride, max) in [
        (1, 12, SEGMENT_FRAMES_MAX),
        (2, 32, TARGETS_MAX),
        (3, 48, SEGMENT_CHUNKS_MAX),
        (4, 72, SEGMENT_SPANS_MAX),
        (5, 20, SEGMENT_EXTENTS_MAX),
        (6, 64, SEGMENT_SPANS_MAX),
    ] {
        let with = |count: usize| {
            let count = u32::try_from(count).unwrap();
            Table::decode(&join(&[Section::of_zeros(number, MUST, stride, count)]))
        };
        let over = DecodeError::Limit { what: "", value: max as u64 + 1, max: max as u64 };
        let error = with(max + 1).unwrap_err();
        let is_over = matches!((&error, &over), (DecodeError::Limit { value, max, .. },
            DecodeError::Limit { value: expected, max: limit, .. }) if (value, max) == (expected, limit));
        assert!(is_over, "section {number}: {error}");
        let at_limit = with(max);
        assert!(at_limit.is_err_and(|error| error.kind() != ErrorKind::Limit) || number == 1);
        // Without the records it is the missing bytes that end it, not memory.
        let mut bytes = Section::of_zeros(number, MUST, stride, 1).bytes();
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Table::decode(&bytes), Err(DecodeError::Truncated { .. })));
    }
}

#[test]
fn extents_and_marks_belong_to_spans() {
    let number =
        |span: usize, at: usize, value: u32| with(SPAN + span * 72 + at, &value.to_le_bytes());
    // Three extents are in the first span, so there is none for the second, and each is of one.
    for (span, count, left) in [(0, 4, 3), (0, u32::MAX, 3), (1, 1, 0)] {
        let error = number(span, EXTENTS_OF, count).unwrap_err();
        let expected = DecodeError::Limit { what: "span extents", value: count.into(), max: left };
        assert_eq!(error, expected);
    }
    let error = number(0, EXTENTS_OF, 1).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "parts of no span", value: 2 });
    let error = number(0, MARK_OF, 0).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "parts of no span", value: 1 });
    // Marks are numbered in the order of the spans, each once.
    for (span, mark) in [(0, 2), (0, u32::MAX), (1, 1), (1, 2)] {
        let error = number(span, MARK_OF, mark).unwrap_err();
        assert_eq!(error, DecodeError::Range { what: "span mark", value: mark.into() });
    }
    let two = changed(|table| table.spans[1].mark = Some(samples::group_mark())).unwrap();
    assert_eq!(two.spans[0].mark, Some(samples::mark()));
    let mut swapped = two.encode();
    for (span, mark) in [(0, 2), (1, 1)] {
        swapped[SPAN + span * 72 + MARK_OF] = mark;
    }
    let error = Table::decode(&swapped).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "span mark", value: 2 });
}

#[test]
fn a_frame_over_its_limit_is_refused() {
    assert_eq!(with(FRAME, &(1_048_625_u32).to_le_bytes()).unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(
        with(FRAME + 4, &(1_048_577_u32).to_le_bytes()).unwrap_err().kind(),
        ErrorKind::Limit
    );
    let newer = DecodeError::Newer { what: "object", feature: "compression", bit: 2 };
    assert_eq!(with(FRAME + 8, &[2]), Err(newer));
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
    assert!(matches!(
        with(CHUNK + 36, &u32::MAX.to_le_bytes()),
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
fn a_target_number_that_is_not_in_the_list_is_refused() {
    let error = with(CHUNK + 48 + 32, &2_u32.to_le_bytes()).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "chunk target", value: 1 });
    let error = with(CHUNK + 48 + 40, &1_u32.to_le_bytes()).unwrap_err();
    assert_eq!(error, DecodeError::Reserved { what: "chunk offset" });
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
fn what_the_writer_knew_of_a_span_is_there_or_not() {
    let read = Table::decode(&samples::stamped_table().encode()).unwrap();
    assert_eq!(read, samples::stamped_table());
    let old = Table::decode(&samples::table().encode()).unwrap();
    assert_eq!((old.spans[0].previous, old.spans[0].imprint.is_known()), (None, false));
    let error = changed(|table| table.spans[0].stamp.generation = 1).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "span stamp", value: 1 });
    let slot = (1_u64 << 62) + 1;
    let error = with(SPAN + 40, &slot.to_le_bytes()).unwrap_err();
    assert_eq!(error, DecodeError::Range { what: "previous slot", value: slot });
    for at in 67..72 {
        let error = with(SPAN + at, &[1]).unwrap_err();
        assert!(matches!(error, DecodeError::Reserved { .. }), "byte {at}: {error}");
    }
}

#[test]
fn a_mark_is_read_as_in_a_frame() {
    let mark = |at: usize, byte: u8| with(MARK + at, &[byte]);
    assert_eq!(mark(24, 0), Err(DecodeError::Range { what: "mark kind", value: 0 }));
    for kind in [6, 127] {
        let newer = DecodeError::Newer { what: "mark", feature: "kind", bit: kind.into() };
        assert_eq!(mark(24, kind), Err(newer));
    }
    let kinds = |table: Table| table.spans[0].mark.map(|mark| mark.kind.code());
    assert_eq!(mark(24, 128).map(kinds), Ok(Some(128)));
    assert_eq!(mark(24, 255).map(kinds), Ok(Some(255)));
    for bit in 1..4 {
        let newer = DecodeError::Newer { what: "mark", feature: "flag", bit };
        assert_eq!(mark(25, 1 | 1 << bit), Err(newer));
    }
    for bit in 4..8 {
        assert_eq!(mark(25, 1 | 1 << bit), Ok(samples::table()), "it may be ignored");
    }
    for at in [26, 27, 52, 63] {
        assert!(matches!(mark(at, 1), Err(DecodeError::Reserved { .. })), "byte {at}");
    }
    // Alone it has no attempt and is the only member; with others it has one, and is one of them.
    for (at, byte) in [(32, 1), (48, 1), (50, 0), (50, 2)] {
        assert!(matches!(mark(at, byte), Err(DecodeError::Range { what: "mark member", .. })));
    }
    let group = changed(|table| table.spans[0].mark = Some(samples::group_mark())).unwrap();
    assert_eq!(group.spans[0].mark, Some(samples::group_mark()));
}

#[test]
fn a_zero_extent_has_one_encoding() {
    let zero = EXTENT + 20;
    assert!(matches!(with(zero + 16, &[1]), Err(DecodeError::Range { .. })));
}

#[test]
fn the_chunk_numbers_in_front_of_that_of_zeros_are_of_later_programs() {
    for below in 1..=16 {
        let chunk = u32::MAX - below;
        let error = with(EXTENT + 12, &chunk.to_le_bytes()).unwrap_err();
        let expected = match below {
            16 => DecodeError::Range { what: "extent chunk", value: chunk.into() },
            _ => DecodeError::Newer { what: "extent", feature: "chunk", bit: chunk },
        };
        assert_eq!(error, expected);
    }
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
fn an_empty_table_is_no_bytes() {
    let empty = Table::default();
    assert_eq!(empty.encode(), Vec::<u8>::new());
    assert_eq!(Table::decode(&[]), Ok(empty));
}

#[test]
fn a_target_that_many_chunks_are_in_is_listed_once() {
    let with = |target: &dyn Fn(u8) -> Target| {
        let table = changed(|table| {
            for number in 0..100 {
                let mut chunk = table.chunks[1];
                chunk.place = ChunkPlace::There { target: target(number), chunk: number.into() };
                table.chunks.push(chunk);
            }
            table.frames[0].compression = Compression::Raw;
        })
        .unwrap();
        assert_eq!(table.chunks.len(), 102);
        table.encode().len() - END - 100 * 48
    };
    let other = samples::OTHER;
    assert_eq!(with(&|_| other), 0);
    // Another slot, or another attempt at the same one, is another target.
    assert_eq!(with(&|number| Target { slot: Slot(100 + u64::from(number)), ..other }), 100 * 32);
    assert_eq!(with(&|number| Target { attempt: Attempt([number; 8]), ..other }), 100 * 32);
}
