//! Maps: heads of manifests and parts, and what of them is opened: manifests, directories, pages.

use crate::{checksum, later, taken};
use farshore_proto::limits::{
    MAP_PART_BYTES_MAX, MAP_PARTS_MAX, OBJECT_BODY_BYTES_MAX, PAGE_BYTES_MAX, PAGE_RUNS_MAX,
    SEGMENT_BYTES_MAX, VOLUME_BLOCKS_MAX, VOLUME_BYTES_MAX,
};
use farshore_proto::map::{Directory, LayerKind, Manifest, MapHeader, Page, PartHeader};
use farshore_proto::object::ObjectKind;
use farshore_proto::segment::ExtentSource;
use farshore_proto::wire::Put;
use farshore_proto::{DecodeError, Place};

pub(super) const MANIFEST: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v2/map-body.bin");
pub(super) const FULL: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v2/map-directory.bin");
pub(super) const DELTA: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v2/map-delta-directory.bin");
pub(super) const PAGE: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v2/map-page.bin");

/// Streams go on behind a place.
fn must_be_place(at: Place) {
    assert!(at.ordinal > 0 && at.seq.0 > 0);
    let _ = at.seq.next();
}

fn map_head_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let MapHeader { mut object, fields } = MapHeader::decode(bytes)?;
    object.header_bytes = ObjectKind::Map.header_bytes();
    Ok(object.encode(|own| fields.put(own)))
}

pub(super) fn map_object(bytes: &[u8]) {
    let kind = ObjectKind::Map;
    checksum::both(bytes, later::head_end(bytes, kind), |bytes| {
        let Ok(again) = map_head_again(bytes) else { return };
        later::must_be_head(bytes, &again, kind, map_head_again);
        if let Ok(header) = MapHeader::decode(bytes) {
            must_be_place(header.at());
            assert!(header.object.place.part == 0, "a manifest is one object");
            assert!(header.object.body_raw_bytes <= OBJECT_BODY_BYTES_MAX);
        }
        taken();
    });
}

pub(super) fn map_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/map-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/map.bin").to_vec(),
    ]
}

fn part_head_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let PartHeader { mut object, fields } = PartHeader::decode(bytes)?;
    object.header_bytes = ObjectKind::Pages.header_bytes();
    Ok(object.encode(|own| fields.put(own)))
}

pub(super) fn pages_object(bytes: &[u8]) {
    let kind = ObjectKind::Pages;
    checksum::both(bytes, later::head_end(bytes, kind), |bytes| {
        let Ok(again) = part_head_again(bytes) else { return };
        later::must_be_head(bytes, &again, kind, part_head_again);
        if let Ok(header) = PartHeader::decode(bytes) {
            must_be_place(header.at());
            assert!((header.object.place.part as usize) < MAP_PARTS_MAX);
            let front = header.object.whole_bytes() as u64;
            assert!(header.object_bytes() - front <= MAP_PART_BYTES_MAX);
        }
        taken();
    });
}

pub(super) fn pages_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/map-pages-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v2/map-pages.bin").to_vec(),
    ]
}

pub(super) fn map_body(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(Manifest::decode(bytes)?.encode());
    later::must_be_body(bytes, &manifest.encode(), later::MANIFEST, again);
    assert!((1..=VOLUME_BYTES_MAX).contains(&manifest.size_bytes));
    if let Some(mark) = &manifest.mark {
        must_be_place(mark.at);
    }
    let (full, deltas) = manifest.layers.split_last().expect("there is a full layer");
    assert!(full.kind == LayerKind::Full && deltas.iter().all(|d| d.kind == LayerKind::Delta));
    assert!(manifest.layers.is_sorted_by(|one, two| one.at > two.at), "newest first, each once");
    for layer in &manifest.layers {
        must_be_place(layer.at);
        assert!(layer.runs.max(layer.data_blocks) <= VOLUME_BLOCKS_MAX);
        assert_eq!(layer.runs == 0, layer.parts.is_empty());
        assert!(layer.parts.iter().all(|part| u64::from(part.front_bytes) <= part.bytes));
    }
    taken();
}

pub(super) fn map_body_samples() -> Vec<Vec<u8>> {
    let mut unmarked = Manifest::decode(MANIFEST).expect("it is pinned");
    unmarked.mark = None;
    // One part more, so that counts can be wrong in two ways.
    let part = unmarked.layers[0].parts[0];
    unmarked.layers[0].parts.push(part);
    vec![MANIFEST.to_vec(), unmarked.encode(), of_later(MANIFEST)]
}

/// With a section of a later program, which may be ignored.
fn of_later(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.put_u16(9);
    body.put_u16(0);
    [3, 2, 0].iter().for_each(|field| body.put_u32(*field));
    body.put_zeros(6);
    body
}

pub(super) fn directory(bytes: &[u8]) {
    let Ok(directory) = Directory::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(Directory::decode(bytes)?.encode());
    later::must_be_body(bytes, &directory.encode(), later::DIRECTORY, again);
    let mut floor = 0;
    for page in &directory.pages {
        assert!((floor..page.end).contains(&page.first) && page.runs > 0);
        assert!(page.runs as usize <= PAGE_RUNS_MAX && page.raw_bytes as usize <= PAGE_BYTES_MAX);
        floor = page.end;
    }
    assert!(floor <= VOLUME_BLOCKS_MAX);
    // What is covered, put together once more range by range, is the same.
    let mut covers = Vec::new();
    directory.covers.iter().for_each(|range| Directory::cover(&mut covers, *range));
    assert_eq!(covers, directory.covers);
    assert!(covers.last().is_none_or(|last| last.end() <= VOLUME_BLOCKS_MAX));
    taken();
}

pub(super) fn directory_samples() -> Vec<Vec<u8>> {
    vec![FULL.to_vec(), DELTA.to_vec(), of_later(DELTA)]
}

pub(super) fn page(bytes: &[u8]) {
    let Ok(page) = Page::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(Page::decode(bytes)?.encode());
    later::must_be_body(bytes, &page.encode(), later::PAGE, again);
    for frame in &page.frames {
        assert!(frame.key.0 > 0 && frame.range().end <= SEGMENT_BYTES_MAX);
        let _ = frame.target.slot.next();
    }
    for chunk in &page.chunks {
        let end = u64::from(chunk.offset) + u64::from(chunk.blocks) * 4096;
        assert!(end <= page.frames[chunk.frame as usize].frame.raw_bytes.into());
    }
    let mut floor = 0;
    for run in &page.runs {
        assert!(run.range.block >= floor && run.range.count > 0);
        floor = run.range.end();
        if let ExtentSource::Chunk { chunk, first } = run.source {
            let blocks = page.chunks[chunk as usize].blocks;
            assert!(u64::from(first) + run.range.count <= blocks.into());
        }
    }
    assert!(floor <= VOLUME_BLOCKS_MAX);
    assert_eq!(page.span().map_or(0, |span| span.end()), floor);
    assert!(page.data_blocks() <= page.span().map_or(0, |span| span.count));
    taken();
}

pub(super) fn page_samples() -> Vec<Vec<u8>> {
    let mut zeros = Page::decode(PAGE).expect("it is pinned");
    zeros.frames.clear();
    zeros.chunks.clear();
    zeros.runs.retain(|run| run.source == ExtentSource::Zero);
    vec![PAGE.to_vec(), zeros.encode(), of_later(PAGE)]
}
