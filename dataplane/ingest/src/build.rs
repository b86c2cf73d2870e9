//! Batches become segments: gather, cut, hash, find duplicates, compress, seal.
//!
//! CPU work, in steps of at most a quarter of a megabyte (and the cutting of one run): whoever drives it
//! decides what else runs in between.

use crate::frames::Frame;
use farshore_codec::{Built, ChunkHasher, Chunker, CodecError, SegmentBuilder, zero};
use farshore_engine::batch::{Content, Handle, Piece, SpanPlan};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX};
use farshore_proto::segment::{ChunkPlace, Extent, ExtentSource, Span};
use farshore_proto::{BlockRange, ChunkId, Epoch, VolumeId};
use farshore_vault::Location;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

/// A run of neighbouring blocks is cut in one go up to this size.
const RUN_BYTES_MAX: usize = 4 << 20;
/// Chunks of one step: one look into the index for all of them.
const STEP_CHUNKS: usize = (256 << 10) / CHUNK_BYTES_MAX;
const _: () = assert!(STEP_CHUNKS > 0);

/// What became of one span's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpanStats {
    /// Bytes of the volume that the span covers.
    pub bytes_in: u64,
    /// Of those, zeros.
    pub zero_bytes: u64,
    /// Of those, in chunks that were there already.
    pub duplicate_bytes: u64,
    /// Of those, in new chunks.
    pub unique_bytes: u64,
    /// What the new chunks take, compressed and sealed; about, as frames span spans.
    pub stored_bytes: u64,
}

/// Whose span, under which epoch, and what became of its bytes.
pub type Spanned = (VolumeId, Epoch, SpanStats);

/// A piece of a run of neighbouring blocks.
#[derive(Debug)]
struct Cut {
    is_zero: bool,
    range: Range<usize>,
}

/// The span being built.
#[derive(Debug)]
struct Open {
    plan: SpanPlan,
    /// Pieces of the plan that were gathered.
    gathered: usize,
    /// Neighbouring blocks, and how they are cut.
    run: Vec<u8>,
    cuts: VecDeque<Cut>,
    /// First block of the next cut.
    block: u64,
    extents: Vec<Extent>,
    stats: SpanStats,
    stored_before: usize,
}

/// One segment in the making.
#[derive(Debug)]
pub struct Build<'a> {
    chunker: &'a Chunker,
    hasher: &'a ChunkHasher,
    builder: SegmentBuilder,
    /// Chunks that this segment holds or refers to already.
    here: BTreeMap<ChunkId, u32>,
    waiting: VecDeque<SpanPlan>,
    open: Option<Open>,
    stats: Vec<Spanned>,
}

impl<'a> Build<'a> {
    /// Of these spans, into `builder`.
    #[must_use]
    pub fn new(
        chunker: &'a Chunker,
        hasher: &'a ChunkHasher,
        builder: SegmentBuilder,
        spans: Vec<SpanPlan>,
    ) -> Self {
        Self {
            chunker,
            hasher,
            builder,
            here: BTreeMap::new(),
            waiting: spans.into(),
            open: None,
            stats: Vec::new(),
        }
    }

    /// Does a little; false when there was nothing left to do.
    ///
    /// `frame` gives the frames of the plans, `lookup` says which chunks need not be stored again
    /// ([`crate::dedup`]).
    pub fn step(
        &mut self,
        frame: impl Fn(Handle) -> Rc<Frame>,
        lookup: impl FnOnce(&[ChunkId]) -> Vec<Option<Location>>,
    ) -> bool {
        if self.builder.is_closing() {
            self.builder.close_some();
            return true;
        }
        let stored = self.builder.stored_bytes();
        let next = || Some(Open::new(self.waiting.pop_front()?, stored));
        let Some(mut open) = self.open.take().or_else(next) else {
            return self.builder.begin_last();
        };
        if !open.cuts.is_empty() {
            self.add_chunks(&mut open, lookup);
        } else if open.gather(frame) {
            open.cut(self.chunker);
        } else {
            self.close(open);
            return true;
        }
        self.open = Some(open);
        true
    }

    /// Adds the next neighbouring chunks of the run, or zeros.
    fn add_chunks(
        &mut self,
        open: &mut Open,
        lookup: impl FnOnce(&[ChunkId]) -> Vec<Option<Location>>,
    ) {
        while let Some(cut) = open.cuts.pop_front_if(|cut| cut.is_zero) {
            open.push_zeros((cut.range.len() / BLOCK_BYTES) as u64);
        }
        let count = open.cuts.iter().take(STEP_CHUNKS).take_while(|cut| !cut.is_zero).count();
        let cuts: Vec<Range<usize>> = open.cuts.drain(..count).map(|cut| cut.range).collect();
        let ids: Vec<ChunkId> =
            cuts.iter().map(|range| self.hasher.id(&open.run[range.clone()])).collect();
        for ((range, id), found) in cuts.into_iter().zip(&ids).zip(lookup(&ids)) {
            let count = (range.len() / BLOCK_BYTES) as u64;
            let (number, is_new) = self.add_chunk(*id, &open.run[range.clone()], found);
            if is_new {
                open.stats.unique_bytes += range.len() as u64;
            } else {
                open.stats.duplicate_bytes += range.len() as u64;
            }
            let range = BlockRange { block: open.block, count };
            let source = ExtentSource::Chunk { chunk: number, first: 0 };
            open.extents.push(Extent { range, source });
            open.block += count;
        }
    }

    /// The number of a chunk in the segment, and whether it is stored here for the first time.
    fn add_chunk(&mut self, id: ChunkId, bytes: &[u8], found: Option<Location>) -> (u32, bool) {
        if let Some(number) = self.here.get(&id) {
            return (*number, false);
        }
        let referred = found.and_then(|Location { target, chunk, blocks }| {
            let is_it = blocks as usize * BLOCK_BYTES == bytes.len();
            let place = ChunkPlace::There { target, chunk };
            // What cannot be referred to is stored again: that costs space, nothing else.
            is_it.then(|| self.builder.push_reference(id, blocks, place)).flatten()
        });
        let number = referred.unwrap_or_else(|| self.builder.push_chunk(id, bytes));
        self.here.insert(id, number);
        (number, referred.is_none())
    }

    fn close(&mut self, open: Open) {
        let Open { plan, extents, mut stats, stored_before, .. } = open;
        stats.stored_bytes = self.builder.stored_bytes().saturating_sub(stored_before) as u64;
        self.stats.push((plan.volume, plan.epoch, stats));
        self.builder.push_span(Span {
            volume: plan.volume,
            epoch: plan.epoch,
            first_seq: plan.first_seq,
            last_seq: plan.last_seq,
            previous: plan.previous,
            mark: plan.mark,
            stamp: plan.stamp,
            imprint: plan.imprint,
            extents,
        });
    }

    /// Ends the segment; also tells what became of each span.
    ///
    /// # Errors
    /// `Internal` if compressing or sealing failed in any step.
    ///
    /// # Panics
    /// If steps are left: a bug in the caller.
    pub fn finish(self) -> Result<(Built, Vec<Spanned>), CodecError> {
        let is_closed = self.builder.is_closed();
        assert!(self.open.is_none() && self.waiting.is_empty() && is_closed, "all steps are done");
        Ok((self.builder.finish()?, self.stats))
    }
}

impl Open {
    fn new(plan: SpanPlan, stored_before: usize) -> Self {
        Self {
            extents: Vec::with_capacity(plan.pieces.len()),
            plan,
            gathered: 0,
            run: Vec::new(),
            cuts: VecDeque::new(),
            block: 0,
            stats: SpanStats::default(),
            stored_before,
        }
    }

    /// Gathers the next neighbouring blocks with bytes; false if there are none. Zeros on the way
    /// become extents at once.
    fn gather(&mut self, frame: impl Fn(Handle) -> Rc<Frame>) -> bool {
        self.run.clear();
        while let Some(piece) = self.plan.pieces.get(self.gathered).copied() {
            let next = self.block + (self.run.len() / BLOCK_BYTES) as u64;
            let joins = next == piece.range.block && self.run.len() < RUN_BYTES_MAX;
            let is_zero = piece.content == Content::Zero;
            if !self.run.is_empty() && (is_zero || !joins) {
                break;
            }
            self.gathered += 1;
            if self.run.is_empty() {
                self.block = piece.range.block;
            }
            if is_zero && !is_on(Bug::ZeroExtentLost) {
                self.stats.bytes_in += piece.range.bytes();
                self.push_zeros(piece.range.count);
            } else {
                self.take(piece, &frame);
            }
        }
        self.stats.bytes_in += self.run.len() as u64;
        !self.run.is_empty()
    }

    fn take(&mut self, piece: Piece, frame: impl Fn(Handle) -> Rc<Frame>) {
        let Content::Bytes { handle, first } = piece.content else { return };
        let narrow = |blocks: u64| usize::try_from(blocks).expect("inside one frame");
        let start = narrow(first) * BLOCK_BYTES;
        let bytes = narrow(piece.range.count) * BLOCK_BYTES;
        self.run.extend_from_slice(&frame(handle).body[start..start + bytes]);
    }

    fn cut(&mut self, chunker: &Chunker) {
        for piece in zero::pieces(&self.run) {
            if piece.is_zero {
                self.cuts.push_back(Cut { is_zero: true, range: piece.range });
                continue;
            }
            let start = piece.range.start;
            let chunks = chunker
                .cut(&self.run[piece.range])
                .map(|chunk| Cut { is_zero: false, range: start + chunk.start..start + chunk.end });
            self.cuts.extend(chunks);
        }
    }

    /// Adds zeros at the next block; neighbouring ones become one extent.
    fn push_zeros(&mut self, count: u64) {
        let range = BlockRange { block: self.block, count };
        self.block += count;
        self.stats.zero_bytes += range.bytes();
        if let Some(last) = self.extents.last_mut()
            && last.source == ExtentSource::Zero
            && last.range.end() == range.block
            && last.range.count + range.count <= u64::from(u32::MAX)
        {
            last.range.count += range.count;
            return;
        }
        self.extents.push(Extent { range, source: ExtentSource::Zero });
    }
}

#[cfg(test)]
mod tests;
