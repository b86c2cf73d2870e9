//! Manifests, and the directories and pages of the parts of a map: round trips, and what the decoders refuse.

mod pages;
mod parts;

use crate::bodies::{join, split, with_records};
use crate::roundtrip::{seq, slot};
use crate::samples::{self, VAULT, VOLUME};
use farshore_proto::limits::{
    BLOCK_BYTES, MAP_LAYERS_MAX, MAP_PARTS_MAX, OBJECT_BODY_BYTES_MAX, PAGE_BYTES_MAX,
    PAGE_RUNS_MAX, PART_PAGES_MAX, PART_RANGES_MAX, TARGETS_MAX, VOLUME_BLOCKS_MAX,
    VOLUME_BYTES_MAX,
};
use farshore_proto::map::{
    Directory, Layer, LayerKind, Manifest, MapHeader, MapMark, Page, PageAt, PageChunk, PartHeader,
    PartShape,
};
use farshore_proto::segment::{Compression, Extent, ExtentSource};
use farshore_proto::{
    BlockRange, DecodeError, ErrorKind, LogId, MapAttempt, MarkKind, Place, Seq, Slot,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Offsets in the samples, each behind the head of its section. Of the manifest: a head, three layers, three parts.
const HEAD: usize = 16;
const SIZE: usize = HEAD + 24;
pub(crate) const MAP_MARK: usize = HEAD + 32;
const MARK_KIND: usize = MAP_MARK + 28;
pub(crate) const LAYER: usize = HEAD + 64 + 16;
const PART: usize = LAYER + 3 * 56 + 16;
/// In a layer.
const PLACE_OF: usize = 0;
const RUNS_OF: usize = 32;
const DATA_OF: usize = 40;
const PARTS_OF: usize = 48;
const KIND_OF: usize = 52;
/// Of a directory: pages; if it is of a delta, one, three regions and five ranges.
pub(crate) const PAGE: usize = 16;
const REGION: usize = PAGE + 32 + 16;
const RANGE: usize = REGION + 3 * 8 + 16;
/// Of a page: two targets, three frames, three chunks and their checks, five runs.
pub(crate) const FRAME: usize = 16 + 2 * 32 + 16;
const CHUNK: usize = FRAME + 3 * 28 + 16;
const RUN: usize = CHUNK + 3 * 16 + 16 + 3 * 8 + 16;

fn changed(mut bytes: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

fn manifest_with(at: usize, bytes: &[u8]) -> Result<Manifest, DecodeError> {
    Manifest::decode(&changed(samples::manifest().encode(), at, bytes))
}

fn of_manifest(change: impl FnOnce(&mut Manifest)) -> Result<Manifest, DecodeError> {
    let mut manifest = samples::manifest();
    change(&mut manifest);
    Manifest::decode(&manifest.encode())
}

#[track_caller]
fn out_of_range<T: std::fmt::Debug + PartialEq>(
    read: Result<T, DecodeError>,
    what: &'static str,
    value: u64,
) {
    assert_eq!(read, Err(DecodeError::Range { what, value }));
}

#[track_caller]
fn reserved<T: std::fmt::Debug>(read: Result<T, DecodeError>) {
    let error = read.expect_err("they are reserved");
    assert!(matches!(error, DecodeError::Reserved { .. }), "{error}");
}

#[track_caller]
fn over_limit<T: std::fmt::Debug>(read: Result<T, DecodeError>) {
    let error = read.expect_err("over a limit");
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

#[test]
fn the_samples_read_back_and_lie_where_the_tests_take_them_to_be() {
    for manifest in [samples::manifest(), samples::unmarked_manifest()] {
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
    for directory in [samples::directory(), samples::delta_directory(), Directory::default()] {
        assert_eq!(Directory::decode(&directory.encode()), Ok(directory));
    }
    for page in [samples::page(), samples::zero_page(), Page::default()] {
        assert_eq!(Page::decode(&page.encode()), Ok(page));
    }
    let shapes = |body: &[u8]| -> Vec<_> {
        split(body).iter().map(|section| (section.number, section.stride, section.count)).collect()
    };
    let body = samples::manifest().encode();
    assert_eq!(shapes(&body), [(1, 64, 1), (2, 56, 3), (3, 16, 3)]);
    assert_eq!(body.len(), PART + 3 * 16);
    let body = samples::delta_directory().encode();
    assert_eq!(shapes(&body), [(1, 32, 1), (2, 8, 3), (3, 4, 5)]);
    assert_eq!(body.len(), RANGE + 5 * 4);
    let body = samples::page().encode();
    assert_eq!(shapes(&body), [(2, 32, 2), (3, 28, 3), (4, 16, 3), (5, 8, 3), (6, 20, 5)]);
    assert_eq!(body.len(), RUN + 5 * 20);
}

#[test]
fn the_headers_of_the_samples_read_back() {
    let object = samples::map_object();
    let header = MapHeader::decode(&object).unwrap();
    assert_eq!((header.at(), header.fields), (samples::MAP_AT, samples::map_fields()));
    assert_eq!(header.object.place, MapHeader::place(VAULT, VOLUME, samples::MAP_AT.seq));
    assert_eq!(object.len(), header.object.whole_bytes());
    assert_eq!(MapHeader::decode(&object[..200]), Ok(header), "no more need be there");
    assert_eq!(header.object.encode(|own| header.fields.put(own)), object[..200]);
    let object = samples::map_pages_object();
    let header = PartHeader::decode(&object).unwrap();
    assert_eq!((header.at(), header.fields), (samples::MAP_AT, samples::part_fields()));
    assert_eq!(header.object.place, PartHeader::place(VAULT, VOLUME, samples::MAP_AT.seq, 1));
    assert_eq!(object.len() as u64, header.object_bytes());
    assert_eq!(PartHeader::decode(&object[..192]), Ok(header), "no more need be there");
    assert_eq!(header.object.encode(|own| header.fields.put(own)), object[..192]);
}

#[test]
fn a_header_has_a_place_in_a_stream() {
    let with = |object: &[u8], length: usize, at: usize, bytes: &[u8]| {
        let mut head = changed(object[..length].to_vec(), at, bytes);
        let crc = crc32c::crc32c(&head[..length - 4]);
        head[length - 4..].copy_from_slice(&crc.to_le_bytes());
        head
    };
    let map = |at, bytes: &[u8]| MapHeader::decode(&with(&samples::map_object(), 200, at, bytes));
    let part =
        |at, bytes: &[u8]| PartHeader::decode(&with(&samples::map_pages_object(), 192, at, bytes));
    for seq in [0, u64::MAX] {
        out_of_range(map(48, &seq.to_le_bytes()), "map place", seq);
        out_of_range(part(48, &seq.to_le_bytes()), "map place", seq);
    }
    out_of_range(map(184, &[0; 8]), "map place", 44);
    out_of_range(part(168, &[0; 8]), "map place", 44);
    for ordinal in [1, u64::MAX] {
        assert_eq!(map(184, &ordinal.to_le_bytes()).unwrap().at().ordinal, ordinal);
        assert_eq!(part(168, &ordinal.to_le_bytes()).unwrap().at().ordinal, ordinal);
    }
    assert_eq!(map(168, &[0; 16]).unwrap().fields.point, None);
    // A manifest is one object; parts are as many as a map may have.
    out_of_range(map(56, &[1]), "map part", 1);
    let last = u32::try_from(MAP_PARTS_MAX).unwrap() - 1;
    assert_eq!(part(56, &last.to_le_bytes()).unwrap().object.place.part, last);
    out_of_range(part(56, &(last + 1).to_le_bytes()), "map part", u64::from(last) + 1);
    out_of_range(map(72, &[1]), "object variant", 1);
    out_of_range(part(72, &[1]), "object variant", 1);
}

#[test]
fn more_records_than_their_limit_are_refused_before_any_is_read() {
    type Decode = fn(&[u8]) -> Option<DecodeError>;
    let manifest: Decode = |body| Manifest::decode(body).err();
    let directory: Decode = |body| Directory::decode(body).err();
    let page: Decode = |body| Page::decode(body).err();
    let bodies = [
        samples::manifest().encode(),
        samples::delta_directory().encode(),
        samples::page().encode(),
    ];
    for (body, decode, number, max) in [
        (0, manifest, 1, 1),
        (0, manifest, 2, MAP_LAYERS_MAX),
        (0, manifest, 3, MAP_PARTS_MAX),
        (1, directory, 1, PART_PAGES_MAX),
        (1, directory, 2, 1 << 18),
        (1, directory, 3, PART_RANGES_MAX),
        (2, page, 2, TARGETS_MAX),
        (2, page, 3, PAGE_RUNS_MAX),
        (2, page, 4, PAGE_RUNS_MAX),
        (2, page, 5, PAGE_RUNS_MAX),
        (2, page, 6, PAGE_RUNS_MAX),
    ] {
        let error = decode(&with_records(&bodies[body], number, max + 1)).unwrap();
        let (value, max_said) = (max as u64 + 1, max as u64);
        let is_over = matches!(error,
            DecodeError::Limit { value: found, max, .. } if (found, max) == (value, max_said));
        assert!(is_over, "{body} section {number}: {error}");
        let error = decode(&with_records(&bodies[body], number, max)).unwrap();
        assert!(matches!(error, DecodeError::Range { .. }), "{body} section {number}: {error}");
    }
}

/// Of as many layers and parts as there may be.
fn largest_manifest() -> Manifest {
    let mut manifest = samples::unmarked_manifest();
    let mut full = manifest.layers.remove(0);
    full.parts = vec![PartShape { front_bytes: 7, bytes: 7 }; MAP_PARTS_MAX - MAP_LAYERS_MAX + 1];
    let delta = |n: usize| {
        let at = Place { ordinal: 2, seq: Seq(n as u64) };
        Layer { at, kind: LayerKind::Delta, parts: full.parts[..1].to_vec(), ..full.clone() }
    };
    manifest.layers = (1..MAP_LAYERS_MAX).rev().map(delta).collect();
    manifest.layers.push(full);
    manifest
}

/// Of as many pages and ranges as there may be, in as many regions.
fn largest_directory() -> Directory {
    let page = samples::delta_directory().pages[0];
    let pages = (0..PART_PAGES_MAX as u64).map(|n| PageAt { first: n, end: n + 1, ..page });
    let regions = 1 << 18;
    let covers = (0..PART_RANGES_MAX as u64)
        .map(|n| BlockRange { block: (n / 8) * (1 << 16) + 2 * (n % 8), count: 1 });
    assert_eq!(PART_RANGES_MAX / 8, regions);
    Directory { pages: pages.collect(), covers: covers.collect() }
}

/// Each run of a chunk, a frame and a segment of its own.
fn largest_page() -> Page {
    let sample = samples::page();
    let mut page = Page::default();
    for n in (0..PAGE_RUNS_MAX).map(|n| u32::try_from(n).expect("few")) {
        let mut frame = sample.frames[0];
        frame.target.slot = Slot(n.into());
        page.frames.push(frame);
        page.chunks.push(PageChunk { frame: n, ..sample.chunks[0] });
        let range = BlockRange { block: n.into(), count: 1 };
        let source = ExtentSource::Chunk { chunk: n, first: 0 };
        page.runs.push(Extent { range, source });
    }
    page
}

#[test]
fn those_of_as_many_records_as_there_may_be_read_back() {
    let manifest = largest_manifest();
    let bytes = manifest.encode();
    assert!(bytes.len() <= OBJECT_BODY_BYTES_MAX);
    assert!(Manifest::decode(&bytes) == Ok(manifest), "it is another");
    let directory = largest_directory();
    let bytes = directory.encode();
    assert!(bytes.len() <= OBJECT_BODY_BYTES_MAX);
    assert!(Directory::decode(&bytes) == Ok(directory), "it is another");
    let page = largest_page();
    let bytes = page.encode();
    assert!(bytes.len() <= PAGE_BYTES_MAX);
    assert!(Page::decode(&bytes) == Ok(page), "it is another");
}

#[test]
fn those_of_more_records_are_not_written() {
    let refused = |expected: &str, encode: &dyn Fn() -> Vec<u8>| {
        let encode = std::panic::AssertUnwindSafe(encode);
        let panicked = std::panic::catch_unwind(encode).expect_err(expected);
        assert_eq!(panicked.downcast_ref::<String>().map(String::as_str), Some(expected));
    };
    let manifest = |change: fn(&mut Vec<Layer>)| {
        let mut manifest = largest_manifest();
        change(&mut manifest.layers);
        move || manifest.encode()
    };
    refused("map layers have a limit", &manifest(|layers| layers.push(layers[0].clone())));
    refused("map parts have a limit", &manifest(|layers| layers[0].parts.extend_from_within(..)));
    let directory = |change: fn(&mut Directory)| {
        let mut directory = largest_directory();
        change(&mut directory);
        move || directory.encode()
    };
    refused("pages have a limit", &directory(|all| all.pages.push(all.pages[0])));
    let last = BlockRange { block: VOLUME_BLOCKS_MAX - 1, count: 1 };
    let mut covered = largest_directory();
    covered.covers.push(last);
    refused("ranges of a delta have a limit", &|| covered.encode());
    let page = |change: fn(&mut Page)| {
        let mut page = largest_page();
        change(&mut page);
        move || page.encode()
    };
    refused("page frames have a limit", &page(|page| page.frames.push(page.frames[0])));
    refused("page chunks have a limit", &page(|page| page.chunks.push(page.chunks[0])));
    refused("page runs have a limit", &page(|page| page.runs.push(page.runs[0])));
}

#[test]
fn the_head_of_a_manifest_has_legal_values() {
    for size in [0, VOLUME_BYTES_MAX + 1, u64::MAX] {
        out_of_range(manifest_with(SIZE, &size.to_le_bytes()), "map size", size);
    }
    for size in [1, BLOCK_BYTES as u64 + 1, VOLUME_BYTES_MAX] {
        manifest_with(SIZE, &size.to_le_bytes()).unwrap();
    }
    for at in 1..4 {
        reserved(manifest_with(MARK_KIND + at, &[1]));
    }
    let sections = split(&samples::manifest().encode());
    out_of_range(Manifest::decode(&join(&sections[1..])), "map body", 1);
    out_of_range(Manifest::decode(&[]), "map body", 1);
}

#[test]
fn a_mark_is_all_there_or_not_at_all() {
    for (ordinal, seq) in [(0, 43), (2, 0), (2, u64::MAX)] {
        let at = Place { ordinal, seq: Seq(seq) };
        let marked = of_manifest(|manifest| manifest.mark.as_mut().unwrap().at = at);
        out_of_range(marked, "mark of a map", seq);
    }
    let (mark, kind) = (MAP_MARK - HEAD, MARK_KIND - HEAD);
    let unmarked = samples::unmarked_manifest().encode();
    // Without a kind nothing else is said of it, down to the last bit.
    for at in mark..kind {
        let read = Manifest::decode(&changed(unmarked.clone(), HEAD + at, &[0x80]));
        let shift = match at - mark {
            24.. => at - mark - 24,
            at => at % 8,
        };
        out_of_range(read, "map without a mark", 0x80 << (8 * shift));
    }
    let error = manifest_with(MARK_KIND, &[0]).unwrap_err();
    assert!(matches!(error, DecodeError::Range { what: "map without a mark", .. }), "{error}");
    for kind in MarkKind::ALL {
        of_manifest(|manifest| manifest.mark.as_mut().unwrap().kind = kind).unwrap();
    }
    let newer = DecodeError::Newer { what: "mark", feature: "kind", bit: 6 };
    assert_eq!(manifest_with(MARK_KIND, &[6]), Err(newer));
}

#[test]
fn a_layer_has_legal_values() {
    let layer = |at: usize, bytes: &[u8]| manifest_with(LAYER + at, bytes);
    out_of_range(layer(PLACE_OF, &[0; 8]), "layer place", 44);
    for seq in [0, u64::MAX] {
        out_of_range(layer(PLACE_OF + 8, &seq.to_le_bytes()), "layer place", seq);
    }
    for at in [RUNS_OF, DATA_OF] {
        layer(at, &VOLUME_BLOCKS_MAX.to_le_bytes()).unwrap();
        for count in [VOLUME_BLOCKS_MAX + 1, u64::MAX] {
            out_of_range(layer(at, &count.to_le_bytes()), "layer runs", count);
        }
    }
    out_of_range(layer(KIND_OF, &[0]), "layer kind", 0);
    let newer = DecodeError::Newer { what: "map", feature: "layer", bit: 3 };
    assert_eq!(layer(KIND_OF, &[3]), Err(newer));
    for at in 1..4 {
        reserved(layer(KIND_OF + at, &[1]));
    }
    // What says something is in parts, and what says nothing is not.
    out_of_range(of_manifest(|m| m.layers[0].runs = 0), "layer without parts", 0);
    out_of_range(of_manifest(|m| m.layers[1].runs = 9), "layer without parts", 9);
}

#[test]
fn every_part_is_of_one_layer() {
    let parts = |layer: usize, count: u32| {
        manifest_with(LAYER + layer * 56 + PARTS_OF, &count.to_le_bytes())
    };
    // Three are there: one of the first, two of the last.
    out_of_range(parts(2, 1), "parts of no layer", 1);
    out_of_range(parts(2, 3), "map parts", 3);
    out_of_range(parts(0, 2), "map parts", 2);
    out_of_range(parts(2, 1 << 16), "map parts", 1 << 16);
    over_limit(parts(2, (1 << 16) + 1));
    over_limit(parts(0, u32::MAX));
    let sections = split(&samples::manifest().encode());
    out_of_range(Manifest::decode(&join(&sections[..2])), "map parts", 1);
}

#[test]
fn a_part_is_as_long_as_its_front_or_longer() {
    let part = |front: u32, bytes: u64| {
        manifest_with(PART, &[u64::from(front).to_le_bytes(), bytes.to_le_bytes()].concat())
    };
    let max = 512 + (16 << 20) + 16;
    for (front, bytes) in [(0, 0), (1, 1), (1, u64::MAX), (max, max.into())] {
        part(front, bytes).unwrap();
    }
    for (front, bytes) in [(1, 0), (max, u64::from(max) - 1)] {
        out_of_range(part(front, bytes), "map part bytes", bytes);
    }
    over_limit(part(max + 1, u64::MAX));
    for at in 4..8 {
        reserved(manifest_with(PART + at, &[1]));
    }
}

#[test]
fn exactly_the_last_layer_is_full_and_they_descend() {
    let kinds = |kinds: [LayerKind; 3]| {
        of_manifest(|manifest| {
            manifest.layers.iter_mut().zip(kinds).for_each(|(layer, kind)| layer.kind = kind);
        })
    };
    let (full, delta) = (LayerKind::Full, LayerKind::Delta);
    kinds([delta, delta, full]).unwrap();
    for wrong in [[delta; 3], [full; 3], [full, delta, delta], [delta, full, delta]] {
        out_of_range(kinds(wrong), "full layer", 3);
    }
    out_of_range(kinds([delta, full, full]), "full layer", 3);
    out_of_range(of_manifest(|manifest| manifest.layers.clear()), "full layer", 0);
    of_manifest(|manifest| drop(manifest.layers.drain(..2))).unwrap();
    let order = |at: [(u64, u64); 3]| {
        of_manifest(|manifest| {
            let places = at.map(|(ordinal, seq)| Place { ordinal, seq: Seq(seq) });
            manifest.layers.iter_mut().zip(places).for_each(|(layer, at)| layer.at = at);
        })
    };
    for at in [[(3, 1), (2, 1), (1, 1)], [(1, 3), (1, 2), (1, 1)], [(2, 2), (2, 1), (1, 9)]] {
        order(at).unwrap();
    }
    for at in [[(1, 3), (1, 3), (1, 1)], [(1, 3), (1, 1), (1, 2)], [(1, 9), (2, 1), (1, 1)]] {
        out_of_range(order(at), "layer order", 3);
    }
}

fn place() -> impl Strategy<Value = Place> {
    (1_u64.., seq()).prop_map(|(ordinal, seq)| Place { ordinal, seq })
}

fn compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(vec![Compression::Raw, Compression::Zstd])
}

/// The range behind `floor` and a gap, of which the end is the next floor.
fn range(gap: u64, count: u64, floor: &mut u64) -> BlockRange {
    let block = *floor + gap;
    *floor = block + count;
    BlockRange { block, count }
}

prop_compose! {
    fn layer()(
        at in place(), attempt: [u8; 16], runs in 1..=VOLUME_BLOCKS_MAX,
        data_blocks in 0..=VOLUME_BLOCKS_MAX,
        parts in vec((0..=1_u32 << 24, any::<u32>()), 0..5),
    ) -> Layer {
        let shape = |(front_bytes, more): (u32, u32)| {
            PartShape { front_bytes, bytes: u64::from(front_bytes) + u64::from(more) }
        };
        let runs = if parts.is_empty() { 0 } else { runs };
        let parts = parts.into_iter().map(shape).collect();
        Layer { at, attempt: MapAttempt(attempt), kind: LayerKind::Delta, runs, data_blocks, parts }
    }
}

prop_compose! {
    fn mark()(
        at in place(), kind in prop::sample::select(MarkKind::ALL.to_vec()), time_unix_ms: u64,
        unknown_blocks: u32,
    ) -> MapMark {
        MapMark { at, kind, time_unix_ms, unknown_blocks }
    }
}

proptest! {
    #[test]
    fn any_manifest_reads_back(
        slot in slot(), log: [u8; 16], size_bytes in 1..=VOLUME_BYTES_MAX,
        mark in option::of(mark()), mut layers in vec(layer(), 1..8),
    ) {
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.at));
        layers.dedup_by_key(|layer| layer.at);
        layers.last_mut().unwrap().kind = LayerKind::Full;
        let manifest = Manifest { log: LogId(log), slot, size_bytes, mark, layers };
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
}
