//! Maps: manifests, and parts with their pages.

use super::{LOG, OTHER, OWN, POINT, VAULT, VOLUME, id, sealed, whole};
use farshore_proto::map::{
    CHECK_BYTES, Directory, FrameAt, Layer, LayerKind, Manifest, MapFields, MapHeader, MapMark,
    Page, PageAt, PageChunk, PartFields, PartHeader, PartShape,
};
use farshore_proto::segment::{Compression, Extent, ExtentSource, SegmentFrame};
use farshore_proto::{BlockRange, KeyNumber, MapAttempt, MarkKind, Place, Seq, Slot};

const ATTEMPT: MapAttempt = MapAttempt(id(0x70));
/// Where the map is.
pub(crate) const MAP_AT: Place = Place { ordinal: 2, seq: Seq(44) };

pub(crate) fn map_fields() -> MapFields {
    MapFields { attempt: ATTEMPT, point: Some(POINT), ordinal: MAP_AT.ordinal }
}

pub(crate) fn map_object() -> Vec<u8> {
    let place = MapHeader::place(VAULT, VOLUME, MAP_AT.seq);
    whole(place, |own| map_fields().put(own), &manifest().encode())
}

/// Of three layers: a delta, one that says nothing, and below them the full one.
pub(crate) fn manifest() -> Manifest {
    let part = |front_bytes, bytes| PartShape { front_bytes, bytes };
    let layer = |ordinal, seq, attempt, kind, runs, data_blocks, parts| Layer {
        at: Place { ordinal, seq: Seq(seq) },
        attempt: MapAttempt(attempt),
        kind,
        runs,
        data_blocks,
        parts,
    };
    let (full, delta) = (LayerKind::Full, LayerKind::Delta);
    Manifest {
        log: LOG,
        slot: Slot(0x0102),
        size_bytes: 64 << 20,
        mark: Some(MapMark {
            at: Place { ordinal: 2, seq: Seq(43) },
            kind: MarkKind::Crash,
            time_unix_ms: 1_767_225_600_000,
            unknown_blocks: 0x0001_0203,
        }),
        layers: vec![
            layer(2, 44, id(0x70), delta, 3, 10, vec![part(0x0111, 0x0222)]),
            layer(2, 41, id(0x71), delta, 0, 0, vec![]),
            layer(1, 43, id(0x72), full, 5000, 16_000, vec![part(256, 256), part(300, 1 << 34)]),
        ],
    }
}

/// Of a volume without a point, at the end of what there is.
pub(crate) fn unmarked_manifest() -> Manifest {
    let mut manifest = manifest();
    manifest.mark = None;
    manifest.layers.drain(..2);
    manifest
}

pub(crate) fn part_fields() -> PartFields {
    let pages_bytes = directory().pages.iter().map(|page| u64::from(page.stored_bytes)).sum();
    PartFields { attempt: ATTEMPT, ordinal: MAP_AT.ordinal, pages_bytes }
}

pub(crate) fn map_pages_object() -> Vec<u8> {
    let place = PartHeader::place(VAULT, VOLUME, MAP_AT.seq, 1);
    let front = whole(place, |own| part_fields().put(own), &directory().encode());
    [front, sealed(&page().encode()), sealed(&zero_page().encode())].concat()
}

fn page_at(page: &Page) -> PageAt {
    let narrow = |value: usize| u32::try_from(value).expect("samples are small");
    let span = page.span().expect("it has runs");
    let raw_bytes = narrow(page.encode().len());
    PageAt {
        first: span.block,
        end: span.end(),
        runs: narrow(page.runs.len()),
        stored_bytes: raw_bytes + 16,
        raw_bytes,
        compression: Compression::Raw,
    }
}

/// Of a full layer: it does not say what is covered.
pub(crate) fn directory() -> Directory {
    Directory { pages: vec![page_at(&page()), page_at(&zero_page())], covers: vec![] }
}

/// In the region 0x30000.
const FAR: u64 = 0x0003_0000_0001;

/// Of a delta that covers the ends of two regions that touch, and one far behind.
pub(crate) fn delta_directory() -> Directory {
    let range = |block, count| BlockRange { block, count };
    let page = PageAt {
        first: 5,
        end: FAR + 6,
        runs: 7,
        stored_bytes: 0x0123,
        raw_bytes: 0x0345,
        compression: Compression::Zstd,
    };
    let covers =
        vec![range(5, 2), range(8, 1024), range(0xfff0, 16), range(0x1_0000, 3), range(FAR, 6)];
    Directory { pages: vec![page], covers }
}

/// With two frames of one segment, one of another, and a run of zeros.
pub(crate) fn page() -> Page {
    let frame = |target, number, offset, key, raw_bytes| FrameAt {
        target,
        number,
        offset,
        key: KeyNumber(key),
        frame: SegmentFrame { stored_bytes: 20_048, raw_bytes, compression: Compression::Zstd },
    };
    let chunk = |frame, number, offset, blocks, first| PageChunk {
        frame,
        number,
        offset,
        blocks,
        check: id::<CHECK_BYTES>(first),
    };
    let run = |block, count, source| Extent { range: BlockRange { block, count }, source };
    let of = |chunk: u32, first: u32| ExtentSource::Chunk { chunk, first };
    Page {
        frames: vec![
            frame(OTHER, 3, 0x0001_0203, 1, 65_536),
            frame(OWN, 0, 0x0304, 2, 32_768),
            frame(OTHER, 4, 0x0004_0506, 1, 32_768),
        ],
        chunks: vec![
            chunk(0, 6, 32_768, 8, 0x20),
            chunk(1, 0, 0, 8, 0x60),
            chunk(2, 9, 4096, 4, 0x40),
        ],
        runs: vec![
            run(5, 2, of(0, 1)),
            run(7, 1, of(1, 0)),
            run(8, 1024, ExtentSource::Zero),
            run(1032, 8, of(1, 0)),
            run(2000, 3, of(2, 1)),
        ],
    }
}

/// Of zeros only.
pub(crate) fn zero_page() -> Page {
    let range = BlockRange { block: 4096, count: 0x0123_4567 };
    Page { runs: vec![Extent { range, source: ExtentSource::Zero }], ..Page::default() }
}
