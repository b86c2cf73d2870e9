//! Layers of maps whose runs are drawn: as many as years of writes leave, in minutes.
//!
//! Nearly all their frames are nowhere. The numbers in a page are drawn so that it compresses no better than one of a
//! volume that has lived: four runs lie in a frame, and in one page of sixteen each in a frame of a segment of its own.

use anyhow::{Context, Result};
use farshore_codec::segment::Built;
use farshore_proto::limits::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, PAGE_RUNS_MAX, SEGMENT_FRAME_BYTES};
use farshore_proto::map::{CHECK_BYTES, FrameAt, LayerKind, Page, PageChunk};
use farshore_proto::segment::{
    ChunkPlace, Compression, Extent, ExtentSource, SegmentChunk, SegmentFrame,
};
use farshore_proto::{Attempt, BlockRange, ChunkId, KeyNumber, Slot, Target};

use super::disk::{Disk, Draw, LOG, frames_of};

/// Runs that lie in one frame.
const FRAME_RUNS: usize = 4;
/// Segments that those frames are in, of a page.
const PAGE_TARGETS: u64 = 256;
/// One page in so many has each run in a frame and a segment of its own.
const SCATTERED_EVERY: u64 = 16;
/// Slots of the log that the segments are in.
const SLOTS: u64 = 1 << 20;
/// Blocks of the longest run of a delta: 64 KiB.
const DELTA_BLOCKS_MAX: u64 = 16;
/// Frames of a real segment.
const SEGMENT_FRAMES: usize = 64;
const FRAME_CHUNKS: usize = SEGMENT_FRAME_BYTES / (CHUNK_BLOCKS_MAX * BLOCK_BYTES);

/// A chunk that is there, alone in being read of its frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Real {
    pub(super) frame: FrameAt,
    chunk: PageChunk,
    /// Of which its first block is drawn.
    pub(super) seed: u64,
}

/// A block of a real chunk.
pub(super) fn block_of(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    Draw(seed).fill(&mut bytes);
    bytes
}

/// The first bytes of a chunk's id, as pages have them.
pub(super) fn check_of(id: &ChunkId) -> [u8; CHECK_BYTES] {
    *id.0.first_chunk().expect("an id is longer")
}

/// The chunk of a page for a chunk that a segment holds.
pub(super) fn page_chunk(number: u32, chunk: &SegmentChunk, frame: u32) -> Option<PageChunk> {
    let ChunkPlace::Here { offset, .. } = chunk.place else { return None };
    Some(PageChunk { frame, number, offset, blocks: chunk.blocks, check: check_of(&chunk.id) })
}

/// Writes segments with `count` full frames of data that does not compress; gives the first chunk of each.
///
/// # Errors
/// If they cannot be written.
pub(super) fn real_frames(disk: &mut Disk, count: usize) -> Result<Vec<Real>> {
    let mut real = Vec::new();
    while real.len() < count {
        let frames = SEGMENT_FRAMES.min(count - real.len());
        let (hasher, base) = (disk.vault.hasher().clone(), real.len());
        let built = disk.segment(|builder| {
            for number in 0..frames * FRAME_CHUNKS {
                let mut bytes = block_of(seed_of(base, number));
                bytes.resize(CHUNK_BLOCKS_MAX * BLOCK_BYTES, 0);
                Draw(number as u64).fill(&mut bytes[BLOCK_BYTES..]);
                builder.push_chunk(hasher.id(&bytes), &bytes);
            }
            Vec::new()
        })?;
        for (number, frame) in frames_of(&built).into_iter().enumerate() {
            let chunk = number * FRAME_CHUNKS;
            real.push(real_of(&built, chunk, frame, seed_of(base, chunk))?);
        }
    }
    Ok(real)
}

fn seed_of(base: usize, chunk: usize) -> u64 {
    Draw::of([3, base as u64, chunk as u64]).next()
}

fn real_of(built: &Built, chunk: usize, frame: FrameAt, seed: u64) -> Result<Real> {
    let number = u32::try_from(chunk)?;
    let chunk = page_chunk(number, &built.table.chunks[chunk], 0).context("a chunk is here")?;
    Ok(Real { frame, chunk, seed })
}

/// A layer whose runs are drawn.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) kind: LayerKind,
    /// Tells it from others.
    pub(super) number: u64,
    pub(super) runs: u64,
    /// Of the volume.
    pub(super) blocks: u64,
}

impl Drawn {
    pub(super) fn pages(&self) -> u64 {
        self.runs.div_ceil(PAGE_RUNS_MAX as u64)
    }

    /// Where run `number` is. Those of a full layer have all of the volume among them.
    pub(super) fn run(&self, number: u64) -> BlockRange {
        match self.kind {
            LayerKind::Full => {
                let start = |number| number * self.blocks / self.runs;
                let block = start(number);
                BlockRange { block, count: start(number + 1) - block }
            }
            LayerKind::Delta => {
                let stride = self.blocks / self.runs;
                let mut draw = Draw::of([2, self.number, number]);
                let block = number * stride + draw.below(stride - DELTA_BLOCKS_MAX);
                BlockRange { block, count: 1 + draw.below(DELTA_BLOCKS_MAX) }
            }
        }
    }

    /// Whether it says what a block holds.
    pub(super) fn covers(&self, block: u64) -> bool {
        match self.kind {
            LayerKind::Full => true,
            LayerKind::Delta => {
                let number = block / (self.blocks / self.runs);
                let run = self.run(number.min(self.runs - 1));
                (run.block..run.end()).contains(&block)
            }
        }
    }

    /// The first block of a page, and the number of the real frame that it is in.
    pub(super) fn first(&self, page: u64, real: usize) -> (u64, usize) {
        let block = self.run(page * PAGE_RUNS_MAX as u64).block;
        let number = Draw::of([4, self.number, page]).below(real as u64);
        (block, usize::try_from(number).expect("below a length"))
    }

    /// Makes a page; its first run lies in a frame of `real`, if there is any.
    pub(super) fn page(&self, number: u64, real: &[Real]) -> Page {
        let mut draw = Draw::of([1, self.number, number]);
        let is_scattered = number.is_multiple_of(SCATTERED_EVERY);
        let targets: Vec<Target> = (0..PAGE_TARGETS).map(|_| target(&mut draw)).collect();
        let mut page = Page::default();
        if !real.is_empty() {
            let Real { frame, chunk, .. } = real[self.first(number, real.len()).1];
            page.frames.push(frame);
            page.chunks.push(chunk);
        }
        let start = number * PAGE_RUNS_MAX as u64;
        for run in start..(start + PAGE_RUNS_MAX as u64).min(self.runs) {
            let range = self.run(run);
            let at = page.runs.len();
            if at == page.chunks.len() {
                if is_scattered || at.is_multiple_of(FRAME_RUNS) || page.frames.is_empty() {
                    let target = match is_scattered {
                        true => target(&mut draw),
                        false => targets[usize::from(draw.next().to_le_bytes()[7])],
                    };
                    page.frames.push(frame(&mut draw, target));
                }
                let frame = u32::try_from(page.frames.len() - 1).expect("a page has a limit");
                page.chunks.push(chunk(&mut draw, frame, range));
            }
            let chunk = u32::try_from(at).expect("a page has a limit");
            page.runs.push(Extent { range, source: ExtentSource::Chunk { chunk, first: 0 } });
        }
        page
    }
}

fn target(draw: &mut Draw) -> Target {
    let (slot, attempt) = (Slot(draw.below(SLOTS)), Attempt(draw.next().to_le_bytes()));
    Target { log: LOG, slot, attempt }
}

fn frame(draw: &mut Draw, target: Target) -> FrameAt {
    let raw_bytes = u32::try_from(SEGMENT_FRAME_BYTES).expect("a frame has a limit");
    FrameAt {
        target,
        number: draw.narrow(64),
        offset: draw.narrow(32 << 20),
        key: KeyNumber(1),
        frame: SegmentFrame {
            stored_bytes: raw_bytes / 2 + draw.narrow(raw_bytes / 2),
            raw_bytes,
            compression: Compression::Zstd,
        },
    }
}

fn chunk(draw: &mut Draw, frame: u32, range: BlockRange) -> PageChunk {
    let block_bytes = u32::try_from(BLOCK_BYTES).expect("a block is small");
    PageChunk {
        frame,
        number: draw.narrow(1024),
        offset: draw.narrow(96) * block_bytes,
        blocks: u32::try_from(range.count).expect("a run of a chunk is short"),
        check: draw.next().to_le_bytes(),
    }
}
