//! Batches become segments: gather, cut, hash, find duplicates, compress, seal.
//!
//! CPU work on the shard's own thread, in slices: after each megabyte other tasks get their turn.

use super::core::{Core, Plan};
use crate::dedup::Found;
use crate::fatal::Cause;
use crate::rt::Rt;
use crate::services::Request;
use farshore_api::machine::VolumeStats;
use farshore_codec::{ChunkHasher, Chunker, CodecError, SegmentBuilder, zero};
use farshore_engine::batch::{Content, Piece, SpanPlan};
use farshore_proto::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX};
use farshore_proto::segment::{Extent, ExtentSource, Span};
use farshore_proto::{BlockRange, ChunkId};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A run of neighbouring blocks is cut in one go up to this size.
const RUN_BYTES_MAX: usize = 4 << 20;
/// Work between two chances for other tasks.
const SLICE_BYTES: usize = 1 << 20;

/// Builds segments as the engine asks, for as long as the shard lives.
pub(crate) async fn run<R: Rt>(core: Rc<Core<R>>) {
    loop {
        let plan = core.next_plan().await;
        match build(&core, plan).await {
            Ok(request) => {
                if !core.parts.services.put(request).await {
                    return core.parts.fatal.raise(Cause::ShardGone(core.id()));
                }
            }
            Err(error) => return core.parts.fatal.raise(Cause::Build(error.to_string())),
        }
    }
}

/// The tools of one build.
struct Bench<'a> {
    chunker: &'a Chunker,
    hasher: &'a ChunkHasher,
    builder: SegmentBuilder,
    /// Chunks that this segment holds or refers to already.
    here: BTreeMap<ChunkId, u32>,
    since_pause: usize,
}

async fn build<R: Rt>(core: &Core<R>, plan: Plan) -> Result<Request, CodecError> {
    let dedup = &core.parts.dedup;
    let journal = &core.parts.journal;
    let mut bench = Bench {
        chunker: dedup.chunker(),
        hasher: dedup.hasher(),
        builder: SegmentBuilder::new(
            journal.vault,
            journal.log,
            plan.slot,
            core.parts.incarnation,
            &journal.key,
            journal.number,
            dedup.level(),
        )?,
        here: BTreeMap::new(),
        since_pause: 0,
    };
    for span in plan.spans {
        let stored_before = bench.builder.stored_bytes();
        let (volume, epoch) = (span.volume, span.epoch);
        let mut stats = VolumeStats::default();
        let span = build_span(core, &mut bench, span, &mut stats).await;
        bench.builder.push_span(span);
        stats.stored_bytes = bench.builder.stored_bytes().saturating_sub(stored_before) as u64;
        core.parts.metrics.built(volume, epoch, &stats);
    }
    let built = bench.builder.finish()?;
    dedup.built(journal.log, plan.slot, &built.table);
    core.parts.metrics.put(built.bytes.len());
    let spans = built.table.spans.iter().map(|span| (span.volume, span.extents.len())).collect();
    Ok(Request::Put {
        shard: core.id(),
        log: journal.log,
        slot: plan.slot,
        bytes: built.bytes.into(),
        spans,
    })
}

async fn build_span<R: Rt>(
    core: &Core<R>,
    bench: &mut Bench<'_>,
    plan: SpanPlan,
    stats: &mut VolumeStats,
) -> Span {
    let mut extents = Vec::with_capacity(plan.pieces.len());
    let mut run: Vec<u8> = Vec::new();
    let mut run_start = 0;
    for piece in &plan.pieces {
        let joins = run_start + (run.len() / BLOCK_BYTES) as u64 == piece.range.block
            && run.len() < RUN_BYTES_MAX
            && piece.content != Content::Zero;
        if !joins {
            finish_run::<R>(core, bench, run_start, &mut run, &mut extents, stats).await;
            run_start = piece.range.block;
        }
        match piece.content {
            Content::Zero => {
                stats.zero_bytes += piece.range.bytes();
                stats.bytes_in += piece.range.bytes();
                push_extent(&mut extents, piece.range, ExtentSource::Zero);
            }
            Content::Bytes { .. } => gather(core, piece, &mut run),
        }
    }
    finish_run::<R>(core, bench, run_start, &mut run, &mut extents, stats).await;
    Span {
        volume: plan.volume,
        epoch: plan.epoch,
        first_seq: plan.first_seq,
        last_seq: plan.last_seq,
        mark: plan.mark,
        extents,
    }
}

fn gather<R: Rt>(core: &Core<R>, piece: &Piece, run: &mut Vec<u8>) {
    if let Content::Bytes { handle, first } = piece.content {
        let frame = core.frame(handle);
        let narrow = |blocks: u64| usize::try_from(blocks).expect("inside one frame");
        let start = narrow(first) * BLOCK_BYTES;
        let bytes = narrow(piece.range.count) * BLOCK_BYTES;
        run.extend_from_slice(&frame.body[start..start + bytes]);
    }
}

/// Cuts a run into chunks and zeros, and adds them to the segment.
async fn finish_run<R: Rt>(
    core: &Core<R>,
    bench: &mut Bench<'_>,
    first_block: u64,
    run: &mut Vec<u8>,
    extents: &mut Vec<Extent>,
    stats: &mut VolumeStats,
) {
    stats.bytes_in += run.len() as u64;
    for piece in zero::pieces(run) {
        let block = first_block + (piece.range.start / BLOCK_BYTES) as u64;
        let bytes = &run[piece.range];
        if piece.is_zero {
            let range = BlockRange { block, count: (bytes.len() / BLOCK_BYTES) as u64 };
            stats.zero_bytes += bytes.len() as u64;
            push_extent(extents, range, ExtentSource::Zero);
            continue;
        }
        let chunks: Vec<&[u8]> = bench.chunker.cut(bytes).map(|range| &bytes[range]).collect();
        let mut block = block;
        for group in chunks.chunks(SLICE_BYTES / CHUNK_BYTES_MAX) {
            add_chunks(core, bench, group, &mut block, extents, stats);
            if bench.since_pause >= SLICE_BYTES {
                bench.since_pause = 0;
                R::yield_now().await;
            }
        }
    }
    run.clear();
}

/// Adds a group of neighbouring chunks: one look into the index for all of them.
fn add_chunks<R: Rt>(
    core: &Core<R>,
    bench: &mut Bench<'_>,
    chunks: &[&[u8]],
    block: &mut u64,
    extents: &mut Vec<Extent>,
    stats: &mut VolumeStats,
) {
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| bench.hasher.id(chunk)).collect();
    let found = core.parts.dedup.lookup(core.parts.log, &ids);
    for ((bytes, id), found) in chunks.iter().zip(ids).zip(found) {
        let count = (bytes.len() / BLOCK_BYTES) as u64;
        let number = match (bench.here.get(&id), found) {
            (Some(number), _) => {
                stats.duplicate_bytes += bytes.len() as u64;
                *number
            }
            (None, Some(Found { blocks, place })) if u64::from(blocks) == count => {
                stats.duplicate_bytes += bytes.len() as u64;
                bench.builder.push_reference(id, blocks, place)
            }
            (None, _) => {
                stats.unique_bytes += bytes.len() as u64;
                bench.since_pause += bytes.len();
                bench.builder.push_chunk(id, bytes)
            }
        };
        bench.here.insert(id, number);
        bench.since_pause += bytes.len() / 4;
        let range = BlockRange { block: *block, count };
        push_extent(extents, range, ExtentSource::Chunk { chunk: number, first: 0 });
        *block += count;
    }
}

fn push_extent(extents: &mut Vec<Extent>, range: BlockRange, source: ExtentSource) {
    let narrow_max = u64::from(u32::MAX);
    if let (Some(last), ExtentSource::Zero) = (extents.last_mut(), source)
        && last.source == ExtentSource::Zero
        && last.range.end() == range.block
        && last.range.count + range.count <= narrow_max
    {
        last.range.count += range.count;
        return;
    }
    extents.push(Extent { range, source });
}
