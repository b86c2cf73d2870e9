//! Journaled frames of the shard's volumes that become a segment.
//!
//! Within one volume and between two marks only the last writer of each block is kept; a mark ends a
//! span, and nothing is coalesced across it, so that every mark restores to the exact prefix.
//!
//! Invariants:
//!   - B1: the spans of one volume join: each begins with the seq after the last of the one before.
//!   - B2: pieces of a span are in block order and do not overlap.
//!   - B3: the batch holds each frame it was given exactly once in `held`.

use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::frame::{Control, FrameHeader, FrameKind};
use farshore_proto::limits::{BATCH_BYTES, BLOCK_BYTES, SEGMENT_SPANS_MAX};
use farshore_proto::mark::Mark;
use farshore_proto::{BlockRange, DecodeError, Epoch, Imprint, Seq, Slot, Stamp, VolumeId};
use std::collections::BTreeMap;

/// Most pieces in a batch; each becomes at least one extent.
pub const PIECES_MAX: usize = 1 << 16;
/// What a frame costs in memory besides its body.
pub const FRAME_OVERHEAD_BYTES: usize = 256;

const _: () = {
    // Chunk cuts and zero blocks can add one extent per block of payload, pieces one each.
    let blocks = 2 * BATCH_BYTES / BLOCK_BYTES;
    assert!(PIECES_MAX + 3 + blocks <= farshore_proto::limits::SEGMENT_EXTENTS_MAX);
};

/// A frame that the driver holds: the engine never sees its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// What a piece holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Blocks of a write, from block `first` of its body on.
    Bytes {
        /// The write.
        handle: Handle,
        /// Block inside the body.
        first: u64,
    },
    /// Zeros.
    Zero,
}

/// A run of blocks and who wrote it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The blocks.
    pub range: BlockRange,
    /// Their content.
    pub content: Content,
}

/// What a stream frame does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Blocks with bytes.
    Write(BlockRange),
    /// Blocks of zeros.
    Zero(BlockRange),
    /// A recovery point.
    Mark(Mark),
}

impl Change {
    /// What a frame of the stream does; `None` for frames that are not part of it. `body` is looked
    /// at only if the frame is a mark.
    ///
    /// # Errors
    /// If the body of a mark is damaged or breaks the format.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(match header.kind {
            FrameKind::Write => Some(Self::Write(header.range)),
            FrameKind::Zero => Some(Self::Zero(header.range)),
            FrameKind::Mark => match Control::decode(header, body)? {
                Control::Mark(_, mark) => Some(Self::Mark(mark)),
                _ => None,
            },
            _ => None,
        })
    }
}

/// How large a batch grows before it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of bodies; at most [`BATCH_BYTES`].
    pub bytes: usize,
    /// Pieces of all spans; at most [`PIECES_MAX`].
    pub pieces: usize,
    /// Spans; 3 to [`SEGMENT_SPANS_MAX`].
    pub spans: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: BATCH_BYTES, pieces: PIECES_MAX, spans: SEGMENT_SPANS_MAX }
    }
}

impl Limits {
    /// Whether a segment can hold what a batch of these limits holds.
    #[must_use]
    pub fn are_legal(&self) -> bool {
        let Self { bytes, pieces, spans } = *self;
        (1..=BATCH_BYTES).contains(&bytes)
            && (1..=PIECES_MAX).contains(&pieces)
            && (3..=SEGMENT_SPANS_MAX).contains(&spans)
    }
}

/// A frame on its way through the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub volume: VolumeId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub seq: Seq,
    /// What its header says of the intents that it was made under.
    pub stamp: Stamp,
    /// Which frame it is.
    pub imprint: Imprint,
    /// What it does.
    pub change: Change,
    /// Where the driver keeps it.
    pub handle: Handle,
    /// Bytes of its body.
    pub bytes: usize,
}

impl Entry {
    /// Memory the frame holds until it is committed.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.bytes + FRAME_OVERHEAD_BYTES
    }
}

/// A finished piece of one volume's stream, to be built into a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanPlan {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch.
    pub epoch: Epoch,
    /// First seq.
    pub first_seq: Seq,
    /// Last seq.
    pub last_seq: Seq,
    /// The mark at the last seq, if it ends there.
    pub mark: Option<Mark>,
    /// Of the frame at the last seq.
    pub stamp: Stamp,
    /// Which frame that at the last seq is.
    pub imprint: Imprint,
    /// The newest slot of the log in front of the segment's that has a span of the volume; none before a slot
    /// was given out, or if there is none.
    pub previous: Option<Slot>,
    /// Last writers, in block order.
    pub pieces: Vec<Piece>,
}

#[derive(Debug)]
struct OpenSpan {
    epoch: Epoch,
    first_seq: Seq,
    last_seq: Seq,
    stamp: Stamp,
    imprint: Imprint,
    pieces: BTreeMap<u64, (u64, Content)>,
}

/// A frame in a batch, and which journal file it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The frame.
    pub handle: Handle,
    /// Whose.
    pub volume: VolumeId,
    /// Its journal file.
    pub file: u64,
    /// Its memory.
    pub cost_bytes: usize,
}

/// The batch being filled.
#[derive(Debug, Default)]
pub struct Batch {
    limits: Limits,
    open: BTreeMap<VolumeId, OpenSpan>,
    closed: Vec<SpanPlan>,
    held: Vec<Held>,
    bytes: usize,
    pieces: usize,
}

impl Batch {
    /// An empty batch that grows up to `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether it must be closed before it takes more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limits.bytes
            || self.pieces >= self.limits.pieces
            || self.closed.len() + self.open.len() + 2 >= self.limits.spans
    }

    /// Whether somebody waits for a mark in it.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.closed.iter().any(|span| span.mark.is_some_and(|mark| mark.is_prompt))
    }

    /// Adds the next journaled frame of its volume; `file` is the journal file it is in.
    ///
    /// # Panics
    /// If the frame does not join the volume's open span (B1): a bug in the shard.
    pub fn add(&mut self, entry: &Entry, file: u64) {
        let Entry { handle, volume, .. } = *entry;
        self.held.push(Held { handle, volume, file, cost_bytes: entry.cost_bytes() });
        self.bytes += entry.bytes;
        if self.open.get(&entry.volume).is_some_and(|span| span.epoch != entry.epoch) {
            self.close_span(entry.volume, None);
        }
        let span = self.open.entry(entry.volume).or_insert_with(|| OpenSpan {
            epoch: entry.epoch,
            first_seq: entry.seq,
            last_seq: Seq(entry.seq.0 - 1),
            stamp: entry.stamp,
            imprint: entry.imprint,
            pieces: BTreeMap::new(),
        });
        assert_eq!(entry.seq, span.last_seq.next(), "B1: gap in the stream of {}", entry.volume);
        (span.last_seq, span.stamp, span.imprint) = (entry.seq, entry.stamp, entry.imprint);
        let before = span.pieces.len();
        match entry.change {
            Change::Write(range) => {
                let content = Content::Bytes { handle: entry.handle, first: 0 };
                put_piece(&mut span.pieces, Piece { range, content });
            }
            Change::Zero(range) => {
                put_piece(&mut span.pieces, Piece { range, content: Content::Zero });
            }
            Change::Mark(_) if is_on(Bug::MarkCoalescedAway) => {}
            Change::Mark(mark) => return self.close_span(entry.volume, Some(mark)),
        }
        self.pieces = self.pieces + span.pieces.len() - before;
    }

    fn close_span(&mut self, volume: VolumeId, mark: Option<Mark>) {
        let Some(span) = self.open.remove(&volume) else { return };
        let pieces = span
            .pieces
            .into_iter()
            .map(|(block, (count, content))| Piece { range: BlockRange { block, count }, content })
            .collect();
        self.closed.push(SpanPlan {
            volume,
            epoch: span.epoch,
            first_seq: span.first_seq,
            last_seq: span.last_seq,
            mark,
            stamp: span.stamp,
            imprint: span.imprint,
            previous: None,
            pieces,
        });
    }

    /// Ends the batch: its spans, of one volume in seq order, and the frames it held.
    #[must_use]
    pub fn close(mut self) -> (Vec<SpanPlan>, Vec<Held>) {
        let volumes: Vec<VolumeId> = self.open.keys().copied().collect();
        for volume in volumes {
            self.close_span(volume, None);
        }
        self.check();
        (self.closed, self.held)
    }

    fn check(&self) {
        let mut last: BTreeMap<VolumeId, Seq> = BTreeMap::new();
        for span in &self.closed {
            assert!(span.first_seq <= span.last_seq);
            if let Some(before) = last.insert(span.volume, span.last_seq) {
                assert_eq!(before.next(), span.first_seq, "B1");
            }
            for pair in span.pieces.windows(2) {
                assert!(pair[0].range.end() <= pair[1].range.block, "B2");
            }
        }
        let frames: u64 = self.closed.iter().map(|s| s.last_seq.0 - s.first_seq.0 + 1).sum();
        assert_eq!(frames, self.held.len() as u64, "B3");
    }
}

/// Makes `piece` the last writer of its blocks.
fn put_piece(pieces: &mut BTreeMap<u64, (u64, Content)>, piece: Piece) {
    let BlockRange { block, count } = piece.range;
    if is_on(Bug::FirstWriterWins) {
        let earlier = std::mem::replace(pieces, BTreeMap::from([(block, (count, piece.content))]));
        earlier.into_iter().for_each(|(block, (count, content))| {
            over_write(pieces, Piece { range: BlockRange { block, count }, content });
        });
        return;
    }
    over_write(pieces, piece);
}

fn over_write(pieces: &mut BTreeMap<u64, (u64, Content)>, piece: Piece) {
    let BlockRange { block, count } = piece.range;
    let end = block + count;
    // The piece that begins before and reaches into the new one keeps its front, and its back
    // when it reaches beyond.
    if let Some((&start, &(length, content))) = pieces.range(..block).next_back() {
        let stop = start + length;
        if stop > block {
            pieces.insert(start, (block - start, content));
            if stop > end {
                pieces.insert(end, (stop - end, advance(content, end - start)));
            }
        }
    }
    let inside: Vec<u64> = pieces.range(block..end).map(|(start, _)| *start).collect();
    for start in inside {
        let Some((length, content)) = pieces.remove(&start) else { continue };
        if start + length > end {
            pieces.insert(end, (start + length - end, advance(content, end - start)));
        }
    }
    pieces.insert(block, (count, piece.content));
}

fn advance(content: Content, blocks: u64) -> Content {
    match content {
        Content::Bytes { handle, first } => Content::Bytes { handle, first: first + blocks },
        Content::Zero => Content::Zero,
    }
}

#[cfg(test)]
pub(crate) mod tests;
