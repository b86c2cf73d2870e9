//! A page: runs of blocks in block order, and the frames that hold them.

use crate::error::DecodeError;
use crate::ids::{BlockRange, KeyNumber};
use crate::limits::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, PAGE_RUNS_MAX, SEGMENT_BYTES_MAX};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::segment::{Extent, ExtentSource, SegmentFrame};
use crate::targets::{Listed, Numbered, TARGETS, Target};
use crate::wire::{Put, Reader};
use std::ops::Range;

/// Bytes of a chunk's id that a page has: enough to tell another chunk from the right one.
pub const CHECK_BYTES: usize = 8;
const WHAT: &str = "page of a map";
const FRAMES: SectionKind =
    SectionKind { number: 3, stride: 28, max: PAGE_RUNS_MAX, what: "page frames" };
const CHUNKS: SectionKind =
    SectionKind { number: 4, stride: 16, max: PAGE_RUNS_MAX, what: "page chunks" };
const CHECKS: SectionKind =
    SectionKind { number: 5, stride: CHECK_BYTES, max: PAGE_RUNS_MAX, what: "page checks" };
const RUNS: SectionKind =
    SectionKind { number: 6, stride: 20, max: PAGE_RUNS_MAX, what: "page runs" };

/// A frame of a segment and where it lies: all that opening it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameAt {
    /// The segment.
    pub target: Target,
    /// Number of the frame in it.
    pub number: u32,
    /// Where it begins in the object.
    pub offset: u32,
    /// The data key that the segment was sealed under.
    pub key: KeyNumber,
    /// Its shape.
    pub frame: SegmentFrame,
}

impl FrameAt {
    /// Its bytes in the object.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.frame.stored_bytes)
    }
}

/// A chunk that runs of a page are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageChunk {
    /// Number of its frame in the page.
    pub frame: u32,
    /// Its number in the table of the segment: with the segment its address, wherever its bytes are moved to.
    pub number: u32,
    /// Byte offset in the opened frame.
    pub offset: u32,
    /// Its length in blocks.
    pub blocks: u32,
    /// The first bytes of its id.
    pub check: [u8; CHECK_BYTES],
}

/// A page, opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Frames that the chunks are in.
    pub frames: Vec<FrameAt>,
    /// Chunks that the runs are of.
    pub chunks: Vec<PageChunk>,
    /// Runs in block order, without overlap.
    pub runs: Vec<Extent>,
}

impl Page {
    /// Lays the page out.
    ///
    /// # Panics
    /// If a count is over its limit: a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes = 128 + self.frames.len() * 60 + self.chunks.len() * 24 + self.runs.len() * 20;
        let targets = Numbered::of(self.frames.iter().map(|frame| frame.target));
        let mut out = SectionWriter::with_capacity(bytes);
        targets.put(&mut out);
        out.put(&FRAMES, self.frames.len(), |out| {
            for at in &self.frames {
                out.put_u32(targets.number(&at.target));
                out.put_u32(at.key.0);
                out.put_u32(at.number);
                out.put_u32(at.offset);
                at.frame.put(out);
            }
        });
        out.put(&CHUNKS, self.chunks.len(), |out| {
            for chunk in &self.chunks {
                out.put_u32(chunk.frame);
                out.put_u32(chunk.number);
                out.put_u32(chunk.offset);
                out.put_u32(chunk.blocks);
            }
        });
        out.put(&CHECKS, self.chunks.len(), |out| {
            self.chunks.iter().for_each(|chunk| out.put_bytes(&chunk.check));
        });
        out.put(&RUNS, self.runs.len(), |out| {
            self.runs.iter().for_each(|run| run.put(out));
        });
        out.finish()
    }

    /// Reads a page; all numbers in it refer to things that exist.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read(WHAT, bytes, &[TARGETS, FRAMES, CHUNKS, CHECKS, RUNS])?;
        let mut targets = Listed::read(&sections)?;
        let frames = sections.records(&FRAMES).map(|record| take_frame(record, &mut targets));
        let frames = frames.collect::<Result<Vec<_>, _>>()?;
        targets.finish()?;
        let (chunks, checks) = (sections.records(&CHUNKS), sections.records(&CHECKS));
        if chunks.len() != checks.len() {
            return Err(DecodeError::Range { what: CHECKS.what, value: checks.len() as u64 });
        }
        let chunks = chunks.zip(checks).map(|(chunk, check)| take_chunk(chunk, check, &frames));
        let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
        let blocks_of = |chunk: u32| chunks.get(chunk as usize).map(|chunk| chunk.blocks);
        let mut runs: Vec<Extent> = Vec::with_capacity(sections.records(&RUNS).len());
        for record in sections.records(&RUNS) {
            let run = Extent::take(record, blocks_of)?;
            if runs.last().is_some_and(|last| run.range.block < last.range.end()) {
                return Err(DecodeError::Range { what: "run order", value: run.range.block });
            }
            runs.push(run);
        }
        Ok(Self { frames, chunks, runs })
    }

    /// The blocks from its first run to its last.
    #[must_use]
    pub fn span(&self) -> Option<BlockRange> {
        let (first, last) = (self.runs.first()?, self.runs.last()?);
        let block = first.range.block;
        Some(BlockRange { block, count: last.range.end() - block })
    }

    /// Its blocks that hold data.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        let data = self.runs.iter().filter(|run| run.source != ExtentSource::Zero);
        data.map(|run| run.range.count).sum()
    }
}

fn take_frame(mut reader: Reader<'_>, targets: &mut Listed) -> Result<FrameAt, DecodeError> {
    let target = targets.get(reader.u32()?)?;
    let key = KeyNumber(reader.u32()?);
    let number = reader.u32()?;
    let offset = reader.u32()?;
    let frame = SegmentFrame::take(&mut reader)?;
    if key.0 == 0 {
        return Err(DecodeError::Range { what: "frame key", value: 0 });
    }
    if u64::from(offset) + u64::from(frame.stored_bytes) > SEGMENT_BYTES_MAX {
        return Err(DecodeError::Range { what: "frame offset", value: offset.into() });
    }
    Ok(FrameAt { target, number, offset, key, frame })
}

fn take_chunk(
    mut chunk: Reader<'_>,
    mut check: Reader<'_>,
    frames: &[FrameAt],
) -> Result<PageChunk, DecodeError> {
    let frame = chunk.u32()?;
    let number = chunk.u32()?;
    let offset = chunk.u32()?;
    let blocks = chunk.u32()?;
    let Some(held) = frames.get(frame as usize) else {
        return Err(DecodeError::Range { what: "chunk frame", value: frame.into() });
    };
    if blocks == 0 || blocks as usize > CHUNK_BLOCKS_MAX {
        return Err(DecodeError::Range { what: "chunk blocks", value: blocks.into() });
    }
    let end = u64::from(offset) + u64::from(blocks) * BLOCK_BYTES as u64;
    if end > held.frame.raw_bytes.into() {
        return Err(DecodeError::Range { what: "chunk offset", value: offset.into() });
    }
    Ok(PageChunk { frame, number, offset, blocks, check: check.array()? })
}
