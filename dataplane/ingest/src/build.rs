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
/// Runs are gathered until there are so many bytes of them: one question to the index for all their chunks, however small.
const BATCH_BYTES: usize = 1 << 20;
/// What is hashed in one step, about, and the chunks that are added.
const STEP_BYTES: usize = 256 << 10;
const STEP_CHUNKS: usize = STEP_BYTES / CHUNK_BYTES_MAX;
const _: () = assert!(STEP_CHUNKS > 0 && BATCH_BYTES <= RUN_BYTES_MAX);

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

/// What comes next in a span.
#[derive(Debug)]
enum Cut {
    Zeros(BlockRange),
    /// A chunk, and where its bytes lie in the batch.
    Chunk(BlockRange, Range<usize>),
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There was nothing left to do.
    Done,
    /// There is more to do.
    More,
    /// Before there is more, [`Build::answer`] is to say which of these chunks need not be stored again.
    Asks(Vec<ChunkId>),
}

/// What is done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gather,
    Hash,
    Add,
}

/// The span being built.
#[derive(Debug)]
struct Open {
    plan: SpanPlan,
    phase: Phase,
    /// Pieces of the plan that were gathered.
    gathered: usize,
    /// A batch: the bytes of some runs of blocks, and how they are cut.
    bytes: Vec<u8>,
    cuts: VecDeque<Cut>,
    /// The ids of its first chunks.
    ids: Vec<ChunkId>,
    /// What is known of its next chunks.
    answers: VecDeque<(ChunkId, Option<Location>)>,
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
    /// As [`Self::advance`], for those who know at once which chunks need not be stored again.
    pub fn step(
        &mut self,
        frame: impl Fn(Handle) -> Rc<Frame>,
        lookup: impl FnOnce(&[ChunkId]) -> Vec<Option<Location>>,
    ) -> bool {
        match self.advance(frame) {
            Progress::Done => return false,
            Progress::More => {}
            Progress::Asks(ids) => self.answer(&lookup(&ids)),
        }
        true
    }

    /// Does a little. `frame` gives the frames of the plans.
    ///
    /// # Panics
    /// If it asked and got no answer: a bug in the caller.
    pub fn advance(&mut self, frame: impl Fn(Handle) -> Rc<Frame>) -> Progress {
        if self.builder.is_closing() {
            self.builder.close_some();
            return Progress::More;
        }
        let stored = self.builder.stored_bytes();
        let next = || Some(Open::new(self.waiting.pop_front()?, stored));
        let Some(mut open) = self.open.take().or_else(next) else {
            let is_more = self.builder.begin_last();
            return if is_more { Progress::More } else { Progress::Done };
        };
        let mut progress = Progress::More;
        match open.phase {
            Phase::Gather => {
                if !open.gather(frame, self.chunker) {
                    if open.cuts.is_empty() {
                        self.close(open);
                        return Progress::More;
                    }
                    open.phase = Phase::Hash;
                }
            }
            Phase::Hash => {
                if !open.hash(self.hasher) {
                    open.phase = Phase::Add;
                    if !open.ids.is_empty() {
                        progress = Progress::Asks(open.ids.clone());
                    }
                }
            }
            Phase::Add => self.add_chunks(&mut open),
        }
        self.open = Some(open);
        progress
    }

    /// Where the chunks are that were asked for ([`crate::dedup`]), in their order; none is where nobody knows.
    pub fn answer(&mut self, found: &[Option<Location>]) {
        if let Some(open) = &mut self.open {
            let found = found.iter().copied().chain(std::iter::repeat(None));
            open.answers.extend(open.ids.drain(..).zip(found));
        }
    }

    /// Adds the next chunks of the batch.
    fn add_chunks(&mut self, open: &mut Open) {
        for _ in 0..STEP_CHUNKS {
            while let Some(Cut::Zeros(range)) =
                open.cuts.pop_front_if(|cut| matches!(cut, Cut::Zeros(_)))
            {
                open.push_zeros(range);
            }
            let Some(Cut::Chunk(range, bytes)) = open.cuts.pop_front() else {
                return open.next_batch();
            };
            let (id, found) = open.answers.pop_front().expect("what was asked was answered");
            let bytes = &open.bytes[bytes];
            let (number, is_new) = self.add_chunk(id, bytes, found);
            if is_new {
                open.stats.unique_bytes += bytes.len() as u64;
            } else {
                open.stats.duplicate_bytes += bytes.len() as u64;
            }
            let source = ExtentSource::Chunk { chunk: number, first: 0 };
            open.extents.push(Extent { range, source });
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
            phase: Phase::Gather,
            gathered: 0,
            bytes: Vec::new(),
            cuts: VecDeque::new(),
            ids: Vec::new(),
            answers: VecDeque::new(),
            stats: SpanStats::default(),
            stored_before,
        }
    }

    fn next_batch(&mut self) {
        self.phase = Phase::Gather;
        self.bytes.clear();
    }

    /// Adds the next run of neighbouring blocks to the batch; false if that has enough, or there is none.
    fn gather(&mut self, frame: impl Fn(Handle) -> Rc<Frame>, chunker: &Chunker) -> bool {
        let start = self.bytes.len();
        if start >= BATCH_BYTES || self.gathered == self.plan.pieces.len() {
            return false;
        }
        let (mut first, mut next) = (0, 0);
        while let Some(piece) = self.plan.pieces.get(self.gathered).copied() {
            let is_begun = self.bytes.len() > start;
            let joins = next == piece.range.block && self.bytes.len() - start < RUN_BYTES_MAX;
            let is_zero = piece.content == Content::Zero;
            if is_begun && (is_zero || !joins) {
                break;
            }
            self.gathered += 1;
            if is_zero && !is_on(Bug::ZeroExtentLost) {
                self.stats.bytes_in += piece.range.bytes();
                self.cuts.push_back(Cut::Zeros(piece.range));
                continue;
            }
            if !is_begun {
                first = piece.range.block;
            }
            self.take(piece, &frame);
            next = first + ((self.bytes.len() - start) / BLOCK_BYTES) as u64;
        }
        self.stats.bytes_in += (self.bytes.len() - start) as u64;
        self.cut(first, start, chunker);
        true
    }

    fn take(&mut self, piece: Piece, frame: impl Fn(Handle) -> Rc<Frame>) {
        let Content::Bytes { handle, first } = piece.content else { return };
        let narrow = |blocks: u64| usize::try_from(blocks).expect("inside one frame");
        let start = narrow(first) * BLOCK_BYTES;
        let bytes = narrow(piece.range.count) * BLOCK_BYTES;
        self.bytes.extend_from_slice(&frame(handle).body[start..start + bytes]);
    }

    /// Cuts the run that begins with block `first`, at `start` in the batch.
    fn cut(&mut self, first: u64, start: usize, chunker: &Chunker) {
        let run = &self.bytes[start..];
        let blocks = |bytes: &Range<usize>| BlockRange {
            block: first + (bytes.start / BLOCK_BYTES) as u64,
            count: (bytes.len() / BLOCK_BYTES) as u64,
        };
        for piece in zero::pieces(run) {
            if piece.is_zero {
                self.cuts.push_back(Cut::Zeros(blocks(&piece.range)));
                continue;
            }
            let from = piece.range.start;
            for chunk in chunker.cut(&run[piece.range]) {
                let chunk = from + chunk.start..from + chunk.end;
                let bytes = start + chunk.start..start + chunk.end;
                self.cuts.push_back(Cut::Chunk(blocks(&chunk), bytes));
            }
        }
    }

    /// Gives the next chunks their ids; false if all have them.
    fn hash(&mut self, hasher: &ChunkHasher) -> bool {
        let chunks = self.cuts.iter().filter_map(|cut| match cut {
            Cut::Chunk(_, bytes) => Some(&self.bytes[bytes.clone()]),
            Cut::Zeros(_) => None,
        });
        let before = self.ids.len();
        let mut hashed = 0;
        let chunks = chunks.skip(before).take_while(|bytes| {
            let is_more = hashed < STEP_BYTES;
            hashed += bytes.len();
            is_more
        });
        let ids: Vec<ChunkId> = chunks.map(|bytes| hasher.id(bytes)).collect();
        self.ids.extend(ids);
        self.ids.len() > before
    }

    /// Adds zeros; neighbouring ones become one extent.
    fn push_zeros(&mut self, range: BlockRange) {
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
