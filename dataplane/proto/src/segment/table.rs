//! The table of a segment: what its frames hold, and what that means.

use super::Compression;
use crate::error::DecodeError;
use crate::ids::{BlockRange, ChunkId, Epoch, Imprint, Seq, Slot, Stamp, VolumeId};
use crate::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, FRAME_TRAILER_BYTES, SEGMENT_CHUNKS_MAX, SEGMENT_EXTENTS_MAX,
    SEGMENT_FRAME_BYTES_MAX, SEGMENT_FRAMES_MAX, SEGMENT_SPANS_MAX, SLOT_MAX, VOLUME_BLOCKS_MAX,
};
use crate::mark::{MARK_BYTES, Mark};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::targets::{Listed, Numbered, TARGETS, Target};
use crate::wire::{Put, Reader};

const WHAT: &str = "segment table";
const FRAMES: SectionKind =
    SectionKind { number: 1, stride: 12, max: SEGMENT_FRAMES_MAX, what: "table frames" };
const CHUNKS: SectionKind =
    SectionKind { number: 3, stride: 48, max: SEGMENT_CHUNKS_MAX, what: "table chunks" };
const SPANS: SectionKind =
    SectionKind { number: 4, stride: 72, max: SEGMENT_SPANS_MAX, what: "table spans" };
const EXTENTS: SectionKind =
    SectionKind { number: 5, stride: 20, max: SEGMENT_EXTENTS_MAX, what: "table extents" };
const MARKS: SectionKind =
    SectionKind { number: 6, stride: MARK_BYTES, max: SEGMENT_SPANS_MAX, what: "table marks" };
const KNOWN: [SectionKind; 6] = [FRAMES, TARGETS, CHUNKS, SPANS, EXTENTS, MARKS];

/// The chunk number of an extent of zeros.
const ZERO_CHUNK: u32 = u32::MAX;
/// Chunk numbers from here on mean no chunk: what later programs say by them must be understood.
const SPECIAL_CHUNKS: u32 = u32::MAX - 15;
const _: () = assert!(SEGMENT_CHUNKS_MAX < SPECIAL_CHUNKS as usize);
/// Most blocks of one extent in the table: its count has 32 bits.
const EXTENT_BLOCKS_MAX: u64 = u32::MAX as u64;
/// The previous slot of a span whose writer knew of none.
const NO_SLOT: u64 = u64::MAX;

/// A frame of a segment: a run of chunks compressed and sealed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentFrame {
    /// Bytes in the object, with tag and salt.
    pub stored_bytes: u32,
    /// Bytes of its chunks.
    pub raw_bytes: u32,
    /// How it is compressed.
    pub compression: Compression,
}

impl SegmentFrame {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.stored_bytes);
        out.put_u32(self.raw_bytes);
        out.put_u8(self.compression.code());
        out.put_zeros(3);
    }

    pub(crate) fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let max = SEGMENT_FRAME_BYTES_MAX + FRAME_TRAILER_BYTES;
        let stored = reader.count("segment frame", max)?;
        let raw = reader.count("segment frame", SEGMENT_FRAME_BYTES_MAX)?;
        let compression = Compression::from_code(reader.u8()?)?;
        reader.reserved(3)?;
        let narrow = |value: usize| u32::try_from(value).expect("under its limit");
        Ok(Self { stored_bytes: narrow(stored), raw_bytes: narrow(raw), compression })
    }
}

/// Where the bytes of a chunk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChunkPlace {
    /// In this segment.
    Here {
        /// Number of the frame.
        frame: u32,
        /// Byte offset in the opened frame.
        offset: u32,
    },
    /// In an earlier slot of this log or a committed segment of another.
    There {
        /// The segment.
        target: Target,
        /// Number of the chunk in that segment's table; it is `Here` there.
        chunk: u32,
    },
}

/// A chunk that the segment holds or refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentChunk {
    /// Keyed hash of its bytes.
    pub id: ChunkId,
    /// Its length in blocks.
    pub blocks: u32,
    /// Where it is.
    pub place: ChunkPlace,
}

/// What a run of blocks of a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentSource {
    /// Zeros.
    Zero,
    /// Blocks of a chunk of the table.
    Chunk {
        /// Number of the chunk.
        chunk: u32,
        /// First block inside the chunk.
        first: u32,
    },
}

/// A run of blocks and its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The blocks.
    pub range: BlockRange,
    /// What they hold.
    pub source: ExtentSource,
}

impl Extent {
    /// A run of zeros may be longer than its 32-bit count: it is laid out in pieces.
    fn pieces(&self) -> usize {
        usize::try_from(self.range.count.div_ceil(EXTENT_BLOCKS_MAX)).expect("volume limit")
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let (chunk, first) = match self.source {
            ExtentSource::Zero => (ZERO_CHUNK, 0),
            ExtentSource::Chunk { chunk, first } => (chunk, first),
        };
        let mut block = self.range.block;
        while block < self.range.end() {
            let count = (self.range.end() - block).min(EXTENT_BLOCKS_MAX);
            out.put_u64(block);
            out.put_u32(u32::try_from(count).expect("just cut to it"));
            out.put_u32(chunk);
            out.put_u32(first);
            block += count;
        }
    }

    /// `blocks_of` gives the length of the chunk of a number, if there is one.
    pub(crate) fn take(
        mut reader: Reader<'_>,
        blocks_of: impl Fn(u32) -> Option<u32>,
    ) -> Result<Self, DecodeError> {
        let range = BlockRange { block: reader.u64()?, count: reader.u32()?.into() };
        let chunk = reader.u32()?;
        let first = reader.u32()?;
        if range.count == 0 || range.block > VOLUME_BLOCKS_MAX - range.count {
            return Err(DecodeError::Range { what: "extent range", value: range.block });
        }
        if chunk == ZERO_CHUNK {
            if first != 0 {
                return Err(DecodeError::Range { what: "extent first block", value: first.into() });
            }
            return Ok(Self { range, source: ExtentSource::Zero });
        }
        if chunk >= SPECIAL_CHUNKS {
            return Err(DecodeError::Newer { what: "extent", feature: "chunk", bit: chunk });
        }
        let Some(blocks) = blocks_of(chunk) else {
            return Err(DecodeError::Range { what: "extent chunk", value: chunk.into() });
        };
        if u64::from(first) + range.count > blocks.into() {
            return Err(DecodeError::Range { what: "extent blocks", value: range.count });
        }
        Ok(Self { range, source: ExtentSource::Chunk { chunk, first } })
    }
}

/// A piece of a volume's stream: all seqs from `first_seq` to `last_seq`, last writer of each block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// First seq.
    pub first_seq: Seq,
    /// Last seq.
    pub last_seq: Seq,
    /// The newest slot of this log in front of this one that has a span of the volume, if the writer knew.
    pub previous: Option<Slot>,
    /// The mark at `last_seq`, if the span ends with one.
    pub mark: Option<Mark>,
    /// Of the frame at `last_seq`: whose it is. Nothing if that is not known.
    pub stamp: Stamp,
    /// Which frame that at `last_seq` is. Nothing if that is not known.
    pub imprint: Imprint,
    /// What changed, in block order, without overlap.
    pub extents: Vec<Extent>,
}

/// The meaning of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Frames in object order.
    pub frames: Vec<SegmentFrame>,
    /// Chunks held and referred to.
    pub chunks: Vec<SegmentChunk>,
    /// Pieces of the volumes' streams; of one volume in seq order.
    pub spans: Vec<Span>,
}

impl Table {
    /// Lays the table out.
    ///
    /// # Panics
    /// If a count is over its limit: the batch limits rule that out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let targets = Numbered::of(self.chunks.iter().filter_map(|chunk| match chunk.place {
            ChunkPlace::There { target, .. } => Some(target),
            ChunkPlace::Here { .. } => None,
        }));
        let mut out = SectionWriter::with_capacity(self.chunks.len() * 72 + 256);
        out.put(&FRAMES, self.frames.len(), |out| {
            for frame in &self.frames {
                frame.put(out);
            }
        });
        targets.put(&mut out);
        out.put(&CHUNKS, self.chunks.len(), |out| {
            self.chunks.iter().for_each(|chunk| put_chunk(out, chunk, &targets));
        });
        let mut marks = 0;
        out.put(&SPANS, self.spans.len(), |out| {
            self.spans.iter().for_each(|span| put_span(out, span, &mut marks));
        });
        let extents = self.spans.iter().flat_map(|span| &span.extents);
        out.put(&EXTENTS, extents.clone().map(Extent::pieces).sum(), |out| {
            extents.for_each(|extent| extent.put(out));
        });
        let marks: Vec<&Mark> = self.spans.iter().filter_map(|span| span.mark.as_ref()).collect();
        out.put(&MARKS, marks.len(), |out| marks.iter().for_each(|mark| mark.put(out)));
        out.finish()
    }

    /// Reads a table; all numbers in it refer to things that exist.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read(WHAT, bytes, &KNOWN)?;
        let frames = sections.records(&FRAMES).map(|mut record| SegmentFrame::take(&mut record));
        let frames = frames.collect::<Result<Vec<_>, _>>()?;
        let mut targets = Listed::read(&sections)?;
        let chunks = sections
            .records(&CHUNKS)
            .map(|record| take_chunk(record, &frames, &mut targets))
            .collect::<Result<Vec<_>, _>>()?;
        targets.finish()?;
        let mut parts = SpanParts {
            chunks: &chunks,
            extents: sections.records(&EXTENTS),
            marks: sections.records(&MARKS),
            marks_taken: 0,
        };
        let spans = sections
            .records(&SPANS)
            .map(|record| parts.take_span(record))
            .collect::<Result<Vec<_>, _>>()?;
        parts.finish()?;
        Ok(Self { frames, chunks, spans })
    }
}

fn put_chunk(out: &mut Vec<u8>, chunk: &SegmentChunk, targets: &Numbered) {
    out.put_bytes(&chunk.id.0);
    match chunk.place {
        ChunkPlace::Here { frame, offset } => {
            out.put_u32(0);
            out.put_u32(frame);
            out.put_u32(offset);
        }
        ChunkPlace::There { target, chunk } => {
            out.put_u32(targets.number(&target) + 1);
            out.put_u32(chunk);
            out.put_u32(0);
        }
    }
    out.put_u32(chunk.blocks);
}

fn put_span(out: &mut Vec<u8>, span: &Span, marks: &mut u32) {
    out.put_bytes(&span.volume.0);
    out.put_u64(span.epoch.0);
    out.put_u64(span.first_seq.0);
    out.put_u64(span.last_seq.0);
    out.put_u64(span.previous.map_or(NO_SLOT, |slot| slot.0));
    let pieces: usize = span.extents.iter().map(Extent::pieces).sum();
    out.put_u32(u32::try_from(pieces).expect("batch limits"));
    *marks += u32::from(span.mark.is_some());
    out.put_u32(if span.mark.is_some() { *marks } else { 0 });
    out.put_stamp(span.stamp);
    out.put_bytes(&span.imprint.to_bytes());
    out.put_zeros(1);
    out.put_zeros(4);
}

fn take_chunk(
    mut reader: Reader<'_>,
    frames: &[SegmentFrame],
    targets: &mut Listed,
) -> Result<SegmentChunk, DecodeError> {
    let id = ChunkId(reader.array()?);
    let target = reader.u32()?;
    let a = reader.u32()?;
    let b = reader.u32()?;
    let blocks = reader.u32()?;
    if blocks == 0 || blocks as usize > CHUNK_BLOCKS_MAX {
        return Err(DecodeError::Range { what: "chunk blocks", value: blocks.into() });
    }
    if let Some(number) = target.checked_sub(1) {
        if b != 0 {
            return Err(DecodeError::Reserved { what: "chunk offset" });
        }
        let place = ChunkPlace::There { target: targets.get(number)?, chunk: a };
        return Ok(SegmentChunk { id, blocks, place });
    }
    let Some(frame) = frames.get(a as usize) else {
        return Err(DecodeError::Range { what: "chunk frame", value: a.into() });
    };
    let end = u64::from(b) + u64::from(blocks) * BLOCK_BYTES as u64;
    if end > frame.raw_bytes.into() {
        return Err(DecodeError::Range { what: "chunk offset", value: b.into() });
    }
    Ok(SegmentChunk { id, blocks, place: ChunkPlace::Here { frame: a, offset: b } })
}

/// What spans are put together from, in the order of the spans.
struct SpanParts<'t, E, M> {
    chunks: &'t [SegmentChunk],
    extents: E,
    marks: M,
    marks_taken: u32,
}

impl<'b, E, M> SpanParts<'_, E, M>
where
    E: ExactSizeIterator<Item = Reader<'b>>,
    M: ExactSizeIterator<Item = Reader<'b>>,
{
    fn take_span(&mut self, mut reader: Reader<'_>) -> Result<Span, DecodeError> {
        let volume = VolumeId(reader.array()?);
        let epoch = Epoch(reader.u64()?);
        let first_seq = reader.seq("span first seq")?;
        let last_seq = reader.seq("span last seq")?;
        if first_seq == Seq(0) || first_seq > last_seq {
            return Err(DecodeError::Range { what: "span seqs", value: first_seq.0 });
        }
        if epoch == Epoch(0) {
            return Err(DecodeError::Range { what: "span epoch", value: 0 });
        }
        let previous = match reader.u64()? {
            NO_SLOT => None,
            slot if slot > SLOT_MAX.0 => {
                return Err(DecodeError::Range { what: "previous slot", value: slot });
            }
            slot => Some(Slot(slot)),
        };
        let count = reader.count("span extents", self.extents.len())?;
        let mark = reader.u32()?;
        let mark = self.take_mark(mark)?;
        let stamp = reader.stamp("span stamp")?;
        let imprint = Imprint::from_bytes(reader.array()?);
        reader.reserved(5)?;
        let mut extents = Vec::with_capacity(count);
        let mut floor = 0;
        for record in self.extents.by_ref().take(count) {
            let blocks_of = |chunk: u32| self.chunks.get(chunk as usize).map(|held| held.blocks);
            let extent = Extent::take(record, blocks_of)?;
            if extent.range.block < floor {
                return Err(DecodeError::Range { what: "extent order", value: extent.range.block });
            }
            floor = extent.range.end();
            extents.push(extent);
        }
        Ok(Span { volume, epoch, first_seq, last_seq, previous, mark, stamp, imprint, extents })
    }

    /// The mark of a number from 1, in the order of the spans; none for 0.
    fn take_mark(&mut self, number: u32) -> Result<Option<Mark>, DecodeError> {
        if number == 0 {
            return Ok(None);
        }
        self.marks_taken += 1;
        match self.marks.next() {
            Some(mut mark) if number == self.marks_taken => Mark::take(&mut mark).map(Some),
            _ => Err(DecodeError::Range { what: "span mark", value: number.into() }),
        }
    }

    fn finish(self) -> Result<(), DecodeError> {
        match self.extents.len() + self.marks.len() {
            0 => Ok(()),
            left => Err(DecodeError::Range { what: "parts of no span", value: left as u64 }),
        }
    }
}
