use super::*;
use crate::frames::Frames;
use farshore_codec::segment::chunk_of;
use farshore_codec::{DataKey, KeyRing, Opener, RootKey, VaultKeys};
use farshore_engine::batch::{Batch, Change, Entry};
use farshore_proto::frame::FrameHeader;
use farshore_proto::segment::SlotWriter;
use farshore_proto::{Attempt, KeyNumber, LogId, Seq, Slot, Target, VaultId};
use farshore_vault::testing::block_bytes;
use proptest::prelude::*;
use std::collections::HashMap;

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const NUMBER: KeyNumber = KeyNumber(1);
const WRITER: SlotWriter = SlotWriter::of_run(1);
const BLOCKS: u64 = 64;

/// Content of blocks: none if never written, 0 for zeros.
type Image = Vec<Option<u32>>;

/// Chunks that a segment holds: where, and their bytes.
type Held = HashMap<ChunkId, (Location, Vec<u8>)>;

#[derive(Debug, Clone)]
enum Op {
    Write { block: u64, seeds: Vec<u32> },
    Zero { block: u64, count: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let write =
        (0..BLOCKS, prop::collection::vec(0..12_u32, 1..20)).prop_map(|(block, mut seeds)| {
            seeds.truncate(usize::try_from(BLOCKS - block).unwrap());
            Op::Write { block, seeds }
        });
    let zero = (0..BLOCKS, 1..20_u64)
        .prop_map(|(block, count)| Op::Zero { block, count: count.min(BLOCKS - block) });
    prop_oneof![4 => write, 1 => zero]
}

/// A batch of these writes, the frames it names, and the volume afterwards.
fn batch(ops: &[Op]) -> (Vec<SpanPlan>, Frames, Image) {
    let mut image: Image = vec![None; usize::try_from(BLOCKS).unwrap()];
    let (mut batch, mut frames) = (Batch::default(), Frames::default());
    for (op, seq) in ops.iter().zip(1..) {
        let (header, body) = match op {
            Op::Write { block, seeds } => {
                for (seed, at) in seeds.iter().zip(*block..) {
                    image[usize::try_from(at).unwrap()] = Some(*seed);
                }
                let body: Vec<u8> = seeds.iter().flat_map(|seed| block_bytes(*seed)).collect();
                (FrameHeader::write(Seq(seq), *block, &body), body)
            }
            Op::Zero { block, count } => {
                let range = BlockRange { block: *block, count: *count };
                for at in range.block..range.end() {
                    image[usize::try_from(at).unwrap()] = Some(0);
                }
                (FrameHeader::zero(Seq(seq), range), Vec::new())
            }
        };
        let change = Change::decode(&header, &body).unwrap().unwrap();
        let bytes = body.len();
        let handle = frames.insert(Frame { header: header.encode(), body });
        let (volume, epoch, seq) = (VolumeId([3; 16]), Epoch(1), header.seq);
        batch.add(
            &Entry {
                imprint: farshore_proto::Imprint::default(),
                volume,
                epoch,
                seq,
                stamp: farshore_proto::Stamp::default(),
                change,
                handle,
                bytes,
            },
            0,
        );
    }
    (batch.close().0, frames, image)
}

fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(NUMBER, DataKey::from_bytes([5; 32]));
    ring.insert_own(KeyNumber(3), DataKey::from_bytes([6; 32]));
    ring
}

/// Builds a segment and reads the volume back out of it, and out of `elsewhere` for chunks that
/// `known` says are there.
fn build(spans: Vec<SpanPlan>, frames: &Frames, known: &Held) -> (Image, SpanStats, Held) {
    let ring = ring();
    let keys = VaultKeys::derive(&RootKey::from_bytes([5; 32]), VAULT);
    let (chunker, hasher) = (Chunker::new(&keys.chunk_key), ChunkHasher::new(keys.id_key));
    let slot = Slot(known.len() as u64);
    let mut builder =
        SegmentBuilder::new(VAULT, LOG, slot, WRITER, ring.sealing().unwrap(), 1).unwrap();
    builder.check_each_frame();
    let mut build = Build::new(&chunker, &hasher, builder, spans);
    let lookup = |ids: &[ChunkId]| -> Vec<Option<Location>> {
        ids.iter().map(|id| known.get(id).map(|(location, _)| *location)).collect()
    };
    while build.step(|handle| frames.get(handle), lookup) {}
    let (built, stats) = build.finish().unwrap();

    let opener = Opener::open_header(&built.bytes(), VAULT, LOG, slot, &ring).unwrap();
    let mut raw = Vec::new();
    opener
        .open_all(&built.bytes(), |_, _, frame| {
            raw.push(frame.to_vec());
            Ok::<_, CodecError>(())
        })
        .unwrap();
    let mut held = HashMap::new();
    let mut image: Image = vec![None; usize::try_from(BLOCKS).unwrap()];
    for extent in &built.table.spans[0].extents {
        let bytes = match extent.source {
            ExtentSource::Zero => vec![0; usize::try_from(extent.range.bytes()).unwrap()],
            ExtentSource::Chunk { chunk, .. } => {
                let entry = built.table.chunks[chunk as usize];
                match entry.place {
                    ChunkPlace::Here { frame, .. } => {
                        let bytes = chunk_of(&built.table, chunk, &raw[frame as usize], &hasher);
                        let bytes = bytes.unwrap().to_vec();
                        let attempt = built.header.attempt();
                        let target = Target { log: LOG, slot, attempt };
                        let location = Location { target, chunk, blocks: entry.blocks };
                        held.insert(entry.id, (location, bytes.clone()));
                        bytes
                    }
                    ChunkPlace::There { .. } => known[&entry.id].1.clone(),
                }
            }
        };
        for (block, at) in bytes.chunks(BLOCK_BYTES).zip(extent.range.block..) {
            let seed =
                (0..12).find(|seed| block_bytes(*seed) == block).expect("some block's bytes");
            image[usize::try_from(at).unwrap()] = Some(seed);
        }
    }
    (image, stats[0].2, held)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What went in comes out, whatever was there already; zeros are never stored.
    #[test]
    fn a_segment_holds_what_its_batch_says(ops in prop::collection::vec(op(), 1..24)) {
        let (spans, frames, image) = batch(&ops);
        let (found, stats, held) = build(spans.clone(), &frames, &HashMap::new());
        prop_assert_eq!(&found, &image);
        let count = |wanted: fn(&Option<u32>) -> bool| {
            (image.iter().filter(|block| wanted(block)).count() * BLOCK_BYTES) as u64
        };
        prop_assert_eq!(stats.bytes_in, count(|block| block.is_some()));
        prop_assert_eq!(stats.zero_bytes, count(|block| *block == Some(0)));
        let stored = stats.unique_bytes + stats.duplicate_bytes;
        prop_assert_eq!(stored, stats.bytes_in - stats.zero_bytes);

        // A second time everything is there, and only referred to.
        let (found, stats, _) = build(spans, &frames, &held);
        prop_assert_eq!(&found, &image);
        prop_assert_eq!(stats.unique_bytes, 0);
    }
}

/// S12: what an index says, which comes from the vault, ends no process.
#[test]
fn a_duplicate_at_a_slot_that_no_log_has_is_stored_again() {
    let count = 9;
    let ops: Vec<Op> = (0..9)
        .map(|n| Op::Write { block: 2 * n, seeds: vec![100 + u32::try_from(n).unwrap()] })
        .collect();
    let (mut batch, mut frames) = (Batch::default(), Frames::default());
    for (op, seq) in ops.iter().zip(1..) {
        let Op::Write { block, seeds } = op else { continue };
        let body = block_bytes(seeds[0]);
        let header = FrameHeader::write(Seq(seq), *block, &body);
        let change = Change::decode(&header, &body).unwrap().unwrap();
        let (bytes, header) = (body.len(), header.encode());
        let handle = frames.insert(Frame { header, body });
        let entry = Entry {
            imprint: farshore_proto::Imprint::default(),
            volume: VolumeId([3; 16]),
            epoch: Epoch(1),
            seq: Seq(seq),
            stamp: farshore_proto::Stamp::default(),
            change,
            handle,
            bytes,
        };
        batch.add(&entry, 0);
    }
    let ring = ring();
    let keys = VaultKeys::derive(&RootKey::from_bytes([5; 32]), VAULT);
    let (chunker, hasher) = (Chunker::new(&keys.chunk_key), ChunkHasher::new(keys.id_key));
    let builder =
        SegmentBuilder::new(VAULT, LOG, Slot(0), WRITER, ring.sealing().unwrap(), 1).unwrap();
    let mut build = Build::new(&chunker, &hasher, builder, batch.close().0);
    // Every chunk is known, each in a log of its own; one at a slot that no log has.
    let logs = std::cell::Cell::new(0_u128);
    let lookup = |ids: &[ChunkId]| -> Vec<Option<Location>> {
        let found = ids.iter().map(|_| {
            logs.set(logs.get() + 1);
            let slot = if logs.get() == 7 { Slot(u64::MAX) } else { Slot(1) };
            let log = LogId(logs.get().to_be_bytes());
            let target = Target { log, slot, attempt: Attempt([1; 8]) };
            Some(Location { target, chunk: 0, blocks: 1 })
        });
        found.collect()
    };
    while build.step(|handle| frames.get(handle), lookup) {}
    let (built, stats) = build.finish().unwrap();
    let is_here = |chunk: &&farshore_proto::segment::SegmentChunk| {
        matches!(chunk.place, ChunkPlace::Here { .. })
    };
    let here = built.table.chunks.iter().filter(is_here).count();
    assert_eq!((built.table.chunks.len(), here), (count, 1));
    assert_eq!(stats[0].2.unique_bytes, BLOCK_BYTES as u64);
    assert_eq!(farshore_proto::segment::Table::decode(&built.table.encode()).unwrap(), built.table);
}
