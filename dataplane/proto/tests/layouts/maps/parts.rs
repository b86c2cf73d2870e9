//! The directory of a part: its pages, and what a delta covers.

use super::{PAGE, RANGE, REGION, changed, compression, out_of_range, range, reserved};
use crate::bodies::{join, split, with_records};
use crate::samples;
use farshore_proto::limits::{PAGE_BYTES_MAX, PAGE_RUNS_MAX, VOLUME_BLOCKS_MAX};
use farshore_proto::map::{Directory, PageAt};
use farshore_proto::{BlockRange, DecodeError, ErrorKind};
use proptest::collection::vec;
use proptest::prelude::*;

fn delta_with(at: usize, bytes: &[u8]) -> Result<Directory, DecodeError> {
    Directory::decode(&changed(samples::delta_directory().encode(), at, bytes))
}

fn of_directory(change: impl FnOnce(&mut Directory)) -> Result<Directory, DecodeError> {
    let mut directory = samples::directory();
    change(&mut directory);
    Directory::decode(&directory.encode())
}

#[test]
fn the_pages_of_a_directory_have_legal_values() {
    let page = |change: &dyn Fn(&mut PageAt)| of_directory(|d| change(&mut d.pages[1]));
    out_of_range(page(&|page| page.end = page.first), "page blocks", 4096);
    out_of_range(page(&|page| page.end = 0), "page blocks", 4096);
    out_of_range(page(&|page| page.end = VOLUME_BLOCKS_MAX + 1), "page blocks", 4096);
    page(&|page| page.end = VOLUME_BLOCKS_MAX).unwrap();
    out_of_range(page(&|page| page.runs = 0), "page runs", 0);
    let narrow = |value: usize| u32::try_from(value).unwrap();
    for (bytes, is_legal) in [(0, true), (1, false)] {
        let raw = narrow(PAGE_BYTES_MAX) + bytes;
        let reads = [
            page(&|page| page.runs = narrow(PAGE_RUNS_MAX) + bytes),
            page(&|page| page.stored_bytes = raw + 16),
            page(&|page| page.raw_bytes = raw),
        ];
        for read in reads {
            let over = read.as_ref().err().map(DecodeError::kind);
            assert_eq!(over, (!is_legal).then_some(ErrorKind::Limit), "{read:?}");
        }
    }
    for at in 29..32 {
        reserved(delta_with(PAGE + at, &[1]));
    }
    let newer = DecodeError::Newer { what: "object", feature: "compression", bit: 2 };
    assert_eq!(delta_with(PAGE + 28, &[2]), Err(newer));
}

#[test]
fn pages_come_in_block_order() {
    let at =
        |first: u64, end: u64| of_directory(|d| (d.pages[1].first, d.pages[1].end) = (first, end));
    let end = samples::directory().pages[0].end;
    assert!(at(end, end + 1).is_ok(), "they may touch");
    out_of_range(at(end - 1, end + 1), "page order", end - 1);
    out_of_range(of_directory(|d| d.pages.swap(0, 1)), "page order", 5);
    out_of_range(of_directory(|d| d.pages[1] = d.pages[0]), "page order", 5);
}

#[test]
fn regions_ascend_and_have_the_ranges_that_there_are() {
    let region = |number: usize, region: u32, count: u32| {
        delta_with(REGION + 8 * number, &[region.to_le_bytes(), count.to_le_bytes()].concat())
    };
    region(2, (1 << 18) - 1, 1).unwrap();
    for last in [1 << 18, u32::MAX] {
        out_of_range(region(2, last, 1), "region", last.into());
    }
    for twice_or_before in [0, 1] {
        out_of_range(region(2, twice_or_before, 1), "region", twice_or_before.into());
    }
    out_of_range(region(1, 1, 0), "region", 1);
    for more in [2, u32::MAX] {
        out_of_range(region(2, 0x30000, more), "ranges", more.into());
    }
    out_of_range(region(0, 0, 6), "range of a region", 0);
    let sections = split(&samples::delta_directory().encode());
    let without = |at: usize| [&sections[..at], &sections[at + 1..]].concat();
    out_of_range(Directory::decode(&join(&without(1))), "ranges of no region", 5);
    out_of_range(Directory::decode(&join(&without(2))), "ranges", 3);
    let spare = with_records(&samples::delta_directory().encode(), 3, 6);
    let spare = changed(spare, RANGE, &samples::delta_directory().encode()[RANGE..]);
    out_of_range(Directory::decode(&spare), "ranges of no region", 1);
}

#[test]
fn ranges_of_a_region_ascend_and_do_not_touch() {
    let range = |number: usize, first: u16, last: u16| {
        delta_with(RANGE + 4 * number, &[first.to_le_bytes(), last.to_le_bytes()].concat())
    };
    // The first is of blocks 5 and 6, the next begins at 8, the third at 0xfff0.
    range(0, 0, 6).unwrap();
    for last in [7, 8, 9, u16::MAX] {
        out_of_range(range(0, 5, last), "range of a region", 8);
    }
    for first in 0..8 {
        out_of_range(range(1, first, 9), "range of a region", first.into());
    }
    out_of_range(range(1, 9, 8), "range of a region", 9);
    range(1, 8, 0xffee).unwrap();
    out_of_range(range(1, 8, 0xffef), "range of a region", 0xfff0);
    // The last of its region ends with it, and the next begins there: each region is one of its own.
    range(2, u16::MAX, u16::MAX).unwrap();
    let whole = range(3, 0, u16::MAX).unwrap();
    assert_eq!(whole.covers[3], BlockRange { block: 1 << 16, count: 1 << 16 });
}

#[test]
fn what_is_covered_is_joined_where_it_touches_and_cut_where_regions_end() {
    let range = |block, count| BlockRange { block, count };
    let covered = |ranges: &[BlockRange]| {
        let mut covers = Vec::new();
        ranges.iter().for_each(|range| Directory::cover(&mut covers, *range));
        covers
    };
    assert_eq!(covered(&[range(5, 2), range(7, 1), range(9, 1)]), [range(5, 3), range(9, 1)]);
    let (one, two, tail) = (range(0xffff, 1), range(0x1_0000, 0x1_0000), range(0x2_0000, 2));
    assert_eq!(covered(&[range(0xffff, 0x1_0003)]), [one, two, tail]);
    assert_eq!(covered(&[one, range(0x1_0000, 0x1_0001), range(0x2_0001, 1)]), [one, two, tail]);
    assert_eq!(covered(&[range(VOLUME_BLOCKS_MAX - 1, 1)]), [range(VOLUME_BLOCKS_MAX - 1, 1)]);
    assert_eq!(covered(&[range(7, 0)]), []);
}

#[test]
#[should_panic(expected = "in block order")]
fn what_is_covered_ascends() {
    let mut covers = vec![BlockRange { block: 5, count: 2 }];
    Directory::cover(&mut covers, BlockRange { block: 6, count: 1 });
}

#[test]
#[should_panic(expected = "in one region")]
fn a_range_over_the_end_of_its_region_is_not_written() {
    let covers = vec![BlockRange { block: 0xffff, count: 2 }];
    let _ = Directory { covers, ..samples::directory() }.encode();
}

proptest! {
    #[test]
    fn any_directory_reads_back(
        pages in vec((0..1_u64 << 20, 1..1_u64 << 20, 1..=4096_u32, any::<u16>(), any::<u16>(), compression()), 0..20),
        covers in vec((0..1_u64 << 17, 1..1_u64 << 17), 0..40),
    ) {
        let mut floor = 0;
        let page = |(gap, count, runs, stored, raw, compression)| {
            let range = range(gap, count, &mut floor);
            let (stored_bytes, raw_bytes) = (u32::from(stored), u32::from(raw));
            PageAt { first: range.block, end: range.end(), runs, stored_bytes, raw_bytes, compression }
        };
        let pages = pages.into_iter().map(page).collect();
        let (mut floor, mut covered) = (0, Vec::new());
        let mut blocks = 0;
        for (gap, count) in covers {
            // Some touch.
            let gap = if gap % 3 == 0 { 0 } else { gap };
            Directory::cover(&mut covered, range(gap, count, &mut floor));
            blocks += count;
        }
        prop_assert_eq!(covered.iter().map(|range| range.count).sum::<u64>(), blocks);
        let directory = Directory { pages, covers: covered };
        prop_assert_eq!(Directory::decode(&directory.encode()), Ok(directory));
    }
}
