//! Maps and index runs: heads and opened bodies.

use crate::{checksum, taken};
use farshore_proto::index_run::{IndexRun, IndexRunHeader};
use farshore_proto::limits::{BLOCK_BYTES, INDEX_RUN_HEADER_BYTES, MAP_HEADER_BYTES};
use farshore_proto::map::{MapBody, MapHeader};

pub(super) fn map_object(bytes: &[u8]) {
    checksum::both(bytes, MAP_HEADER_BYTES, |bytes| {
        if let Ok((header, body)) = MapHeader::decode(bytes) {
            assert_eq!([&header.encode(), body].concat(), bytes);
            taken();
        }
        if let Ok(header) = MapHeader::decode_head(bytes) {
            assert_eq!(header.encode(), bytes[..MAP_HEADER_BYTES]);
            assert!(header.part < header.parts);
        }
    });
}

pub(super) fn map_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v1/map-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v1/map.bin").to_vec(),
    ]
}

pub(super) fn map_body(bytes: &[u8]) {
    let Ok(body) = MapBody::decode(bytes) else { return };
    assert_eq!(body.encode(), bytes);
    let mut floor = 0;
    for run in &body.runs {
        let chunk = &body.chunks[run.chunk as usize];
        assert!(u64::from(run.first) + run.range.count <= chunk.blocks.into());
        assert!(run.range.block >= floor && run.range.count > 0);
        floor = run.range.end();
    }
    assert!(floor * BLOCK_BYTES as u64 <= body.head.size_bytes, "runs lie in the volume");
    taken();
}

pub(super) fn map_body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v1/map-body.bin").to_vec()]
}

pub(super) fn index_run_object(bytes: &[u8]) {
    checksum::both(bytes, INDEX_RUN_HEADER_BYTES, |bytes| {
        if let Ok((header, body)) = IndexRunHeader::decode(bytes) {
            assert_eq!([&header.encode(), body].concat(), bytes);
            taken();
        }
    });
}

pub(super) fn index_run_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v1/index-run-object.bin").to_vec(),
        include_bytes!("../../../../dataplane/codec/testdata/v1/index-run.bin").to_vec(),
    ]
}

pub(super) fn index_run_body(bytes: &[u8]) {
    let Ok(run) = IndexRun::decode(bytes) else { return };
    assert_eq!(run.encode(), bytes);
    assert!(run.chunks.windows(2).all(|pair| pair[0].id < pair[1].id));
    taken();
}

pub(super) fn index_run_body_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v1/index-run-body.bin").to_vec()]
}
