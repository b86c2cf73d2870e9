//! A page: its frames, the chunks in them, and the runs of these.

use super::{FRAME, RUN, changed, compression, out_of_range, over_limit, range, reserved};
use crate::bodies::{join, split, with_records};
use crate::roundtrip::slot;
use crate::samples;
use farshore_proto::limits::{SEGMENT_BYTES_MAX, VOLUME_BLOCKS_MAX};
use farshore_proto::map::{FrameAt, Page, PageChunk};
use farshore_proto::segment::{Extent, ExtentSource, SegmentFrame};
use farshore_proto::{Attempt, BlockRange, DecodeError, KeyNumber, LogId, Target};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Bytes of the largest segment.
const SEGMENT_ROOM: u32 = 64 << 20;
const _: () = assert!(SEGMENT_ROOM as u64 == SEGMENT_BYTES_MAX);

fn page_with(at: usize, bytes: &[u8]) -> Result<Page, DecodeError> {
    Page::decode(&changed(samples::page().encode(), at, bytes))
}

fn of_page(change: impl FnOnce(&mut Page)) -> Result<Page, DecodeError> {
    let mut page = samples::page();
    change(&mut page);
    Page::decode(&page.encode())
}

#[test]
fn a_frame_of_a_page_lies_in_its_segment_and_has_a_key() {
    let frame = |change: &dyn Fn(&mut FrameAt)| of_page(|page| change(&mut page.frames[1]));
    out_of_range(frame(&|at| at.key = KeyNumber(0)), "frame key", 0);
    let room = SEGMENT_ROOM - 20_048;
    assert_eq!(frame(&|at| at.offset = room).unwrap().frames[1].range().end, SEGMENT_BYTES_MAX);
    for offset in [room + 1, u32::MAX] {
        out_of_range(frame(&|at| at.offset = offset), "frame offset", offset.into());
    }
    over_limit(frame(&|at| at.frame.stored_bytes = (1 << 20) + 49));
    frame(&|at| at.frame.stored_bytes = (1 << 20) + 48).unwrap();
    over_limit(frame(&|at| at.frame.raw_bytes = (1 << 20) + 1));
    out_of_range(page_with(FRAME + 28, &[2]), "chunk target", 2);
    for at in 25..28 {
        reserved(page_with(FRAME + at, &[1]));
    }
}

#[test]
fn a_chunk_of_a_page_lies_in_a_frame_and_has_blocks() {
    let chunk = |change: &dyn Fn(&mut PageChunk)| of_page(|page| change(&mut page.chunks[1]));
    for frame in [3, u32::MAX] {
        out_of_range(chunk(&|chunk| chunk.frame = frame), "chunk frame", frame.into());
    }
    for blocks in [0, 33, u32::MAX] {
        out_of_range(chunk(&|chunk| chunk.blocks = blocks), "chunk blocks", blocks.into());
    }
    // Its eight blocks are all of its frame.
    for offset in [1, u32::MAX] {
        out_of_range(chunk(&|chunk| chunk.offset = offset), "chunk offset", offset.into());
    }
    out_of_range(chunk(&|chunk| chunk.blocks = 9), "chunk offset", 0);
    chunk(&|chunk| (chunk.frame, chunk.offset) = (0, 32_768)).unwrap();
    chunk(&|chunk| (chunk.frame, chunk.blocks, chunk.offset) = (0, 16, 0)).unwrap();
}

#[test]
fn a_page_has_a_check_of_each_chunk() {
    for count in [2, 4] {
        let page = with_records(&samples::page().encode(), 5, count);
        out_of_range(Page::decode(&page), "page checks", count as u64);
    }
    let sections = split(&samples::page().encode());
    let without = |at: usize| join(&[&sections[..at], &sections[at + 1..]].concat());
    out_of_range(Page::decode(&without(3)), "page checks", 0);
    out_of_range(Page::decode(&without(2)), "page checks", 3);
}

#[test]
fn a_run_of_a_page_lies_in_a_volume_and_its_chunk_and_behind_the_run_before() {
    let with = |block, count, source| {
        of_page(|page| page.runs = vec![Extent { range: BlockRange { block, count }, source }])
    };
    let of = |chunk, first| ExtentSource::Chunk { chunk, first };
    with(VOLUME_BLOCKS_MAX - 8, 8, of(0, 0)).unwrap();
    with(0, u32::MAX.into(), ExtentSource::Zero).unwrap();
    out_of_range(with(VOLUME_BLOCKS_MAX - 7, 8, of(0, 0)), "extent range", VOLUME_BLOCKS_MAX - 7);
    out_of_range(with(0, 1, of(3, 0)), "extent chunk", 3);
    out_of_range(with(0, 9, of(0, 0)), "extent blocks", 9);
    out_of_range(with(0, 8, of(0, 1)), "extent blocks", 8);
    out_of_range(with(0, 1, of(0, u32::MAX)), "extent blocks", 1);
    out_of_range(page_with(RUN + 8, &[0; 4]), "extent range", 5);
    out_of_range(page_with(RUN + 2 * 20 + 16, &[1]), "extent first block", 1);
    out_of_range(of_page(|page| page.runs.swap(0, 4)), "run order", 7);
    out_of_range(of_page(|page| page.runs[1].range.block = 6), "run order", 6);
    out_of_range(of_page(|page| page.runs[1] = page.runs[0]), "run order", 5);
}

#[test]
#[should_panic(expected = "whole page runs")]
fn a_run_longer_than_its_count_is_not_written() {
    let range = BlockRange { block: 0, count: 1 << 32 };
    let runs = vec![Extent { range, source: ExtentSource::Zero }];
    let _ = Page { runs, ..Page::default() }.encode();
}

#[test]
fn a_page_knows_its_span_and_its_data() {
    let page = samples::page();
    assert_eq!(page.span(), Some(BlockRange { block: 5, count: 1998 }));
    assert_eq!(page.data_blocks(), 2 + 1 + 8 + 3);
    let zeros = samples::zero_page();
    assert_eq!((zeros.span(), zeros.data_blocks()), (Some(zeros.runs[0].range), 0));
    assert_eq!((Page::default().span(), Page::default().data_blocks()), (None, 0));
    assert_eq!(page.frames[1].range(), 0x0304..0x0304 + 20_048);
}

prop_compose! {
    fn frame_at()(
        log in 0..3_u8, slot in slot(), attempt in 0..3_u8, number: u32, key in 1_u32..,
        offset in 0..=(SEGMENT_ROOM - (1 << 21)),
        stored_bytes in 0..=1_048_624_u32, raw_bytes in 4096..=1_048_576_u32,
        compression in compression(),
    ) -> FrameAt {
        let target = Target { log: LogId([log; 16]), slot, attempt: Attempt([attempt; 8]) };
        let frame = SegmentFrame { stored_bytes, raw_bytes, compression };
        FrameAt { target, number, offset, key: KeyNumber(key), frame }
    }
}

fn chunks(frames: Vec<FrameAt>) -> impl Strategy<Value = (Vec<FrameAt>, Vec<PageChunk>)> {
    let chunk = (any::<prop::sample::Index>(), any::<(u32, u32)>(), 1..=32_u32, any::<[u8; 8]>());
    vec(chunk, 1..20).prop_map(move |picks| {
        let chunk = |(at, (number, offset), blocks, check): (prop::sample::Index, _, u32, _)| {
            let frame = at.index(frames.len());
            let raw = frames[frame].frame.raw_bytes;
            let blocks = blocks.min(raw / 4096);
            let offset = offset % (raw - blocks * 4096 + 1);
            PageChunk { frame: u32::try_from(frame).expect("few"), number, offset, blocks, check }
        };
        (frames.clone(), picks.into_iter().map(chunk).collect())
    })
}

proptest! {
    #[test]
    fn any_page_reads_back(
        (frames, chunks) in vec(frame_at(), 1..8).prop_flat_map(chunks),
        picks in vec((option::of(any::<prop::sample::Index>()), 0..5_u64, any::<u32>()), 0..60),
    ) {
        let mut floor = 0;
        let mut runs = Vec::new();
        for (pick, gap, value) in picks {
            let (count, source) = match pick {
                None => (u64::from(value.max(1)), ExtentSource::Zero),
                Some(pick) => {
                    let chunk = pick.index(chunks.len());
                    let first = value % chunks[chunk].blocks;
                    let count = chunks[chunk].blocks - first;
                    let chunk = u32::try_from(chunk).unwrap();
                    (count.into(), ExtentSource::Chunk { chunk, first })
                }
            };
            if floor + gap + count <= VOLUME_BLOCKS_MAX {
                runs.push(Extent { range: range(gap, count, &mut floor), source });
            }
        }
        let page = Page { frames, chunks, runs };
        prop_assert_eq!(Page::decode(&page.encode()), Ok(page));
    }
}
