//! The segment: one immutable object of a log, data and meaning together.
//!
//! Layout, cryptography and order of operations: `docs/formats/segment.md`.

use crate::error::DecodeError;
use crate::ids::{
    BlockRange, ChunkId, Epoch, KeyNumber, LogId, MarkKind, PointId, Seq, Slot, Stamp,
};
use crate::ids::{VaultId, VolumeId};
use crate::index_run::Listed;
use crate::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, SEGMENT_BYTES_MAX, SEGMENT_CHUNKS_MAX, SEGMENT_EXTENTS_MAX,
    SEGMENT_FRAME_BYTES_MAX, SEGMENT_FRAMES_MAX, SEGMENT_HEADER_BYTES, SEGMENT_LOGS_MAX,
    SEGMENT_SPANS_MAX, SEGMENT_TABLE_BYTES_MAX, SLOT_MAX, TAG_BYTES, VOLUME_BLOCKS_MAX,
};
use crate::mark::Mark;
use crate::wire::{Put, Reader, check_crc, put_crc};

const MAGIC: [u8; 4] = *b"FSSG";
const VERSION: u16 = 1;
/// The chunk number of an extent of zeros.
const ZERO_CHUNK: u32 = u32::MAX;
/// Most blocks of one extent in the table: its count has 32 bits.
const EXTENT_BLOCKS_MAX: u64 = u32::MAX as u64;

/// What fills a slot of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// Data.
    Segment,
    /// The end of the log: nothing at or beyond this slot counts.
    Seal,
}

/// How a frame or table is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Raw,
    /// zstd.
    Zstd,
}

impl Compression {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    pub(crate) fn from_code(code: u8) -> Result<Self, DecodeError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => Err(DecodeError::Range { what: "compression", value: code.into() }),
        }
    }
}

/// Plain head of a segment or seal; the AAD of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Segment or seal.
    pub kind: SlotKind,
    /// The vault it belongs to.
    pub vault: VaultId,
    /// The log it is in.
    pub log: LogId,
    /// Its slot there.
    pub slot: Slot,
    /// Data key that its key is derived from.
    pub key: KeyNumber,
    /// Drawn anew at each attempt to build the segment, so that no nonce ever repeats.
    pub salt: [u8; 32],
    /// Commitment to the derived key, checked before anything is opened.
    pub commitment: [u8; 32],
    /// Bytes of the sealed table with its tag.
    pub table_bytes: usize,
    /// Bytes of the table before compression.
    pub table_raw_bytes: usize,
    /// How the table is compressed.
    pub table_compression: Compression,
    /// Bytes of all sealed frames.
    pub frames_bytes: u64,
    /// Which run of the log's writer put it, increasing from 1. A slot whose incarnation is below
    /// that of a slot before it is void: a run that crashed left it behind a hole.
    pub incarnation: u64,
}

impl SegmentHeader {
    /// Bytes of the whole object.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        (SEGMENT_HEADER_BYTES + self.table_bytes) as u64 + self.frames_bytes
    }

    /// Where the first sealed frame begins in the object.
    #[must_use]
    pub fn frames_offset(&self) -> u64 {
        (SEGMENT_HEADER_BYTES + self.table_bytes) as u64
    }

    /// Lays the head out.
    ///
    /// # Panics
    /// If a length is over its limit: bugs in the caller.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        assert!(self.table_raw_bytes <= SEGMENT_TABLE_BYTES_MAX, "a table has a limit");
        assert!(self.object_bytes() <= SEGMENT_BYTES_MAX, "a segment has a limit");
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u16(VERSION);
        out.put_u8(match self.kind {
            SlotKind::Segment => 1,
            SlotKind::Seal => 2,
        });
        out.put_u8(self.table_compression.code());
        out.put_bytes(&self.vault.0);
        out.put_bytes(&self.log.0);
        out.put_u64(self.slot.0);
        out.put_u32(self.key.0);
        out.put_zeros(4);
        out.put_bytes(&self.salt);
        out.put_bytes(&self.commitment);
        out.put_u32(u32::try_from(self.table_bytes).expect("asserted above"));
        out.put_u32(u32::try_from(self.table_raw_bytes).expect("asserted above"));
        out.put_u64(self.frames_bytes);
        out.put_u64(self.incarnation);
        out.put_zeros(SEGMENT_HEADER_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out.try_into().expect("the fields add up to the header")
    }

    /// Reads the head at the front of an object.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let Some(head) = object.first_chunk::<SEGMENT_HEADER_BYTES>() else {
            return Err(DecodeError::Truncated {
                what: "segment header",
                needed: SEGMENT_HEADER_BYTES,
                have: object.len(),
            });
        };
        let mut reader = Reader::new("segment header", head);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        check_crc("segment header", head)?;
        let kind = match reader.u8()? {
            1 => SlotKind::Segment,
            2 => SlotKind::Seal,
            other => return Err(DecodeError::Range { what: "slot kind", value: other.into() }),
        };
        let table_compression = Compression::from_code(reader.u8()?)?;
        let vault = VaultId(reader.array()?);
        let log = LogId(reader.array()?);
        let slot = reader.slot("segment slot")?;
        let key = KeyNumber(reader.u32()?);
        reader.reserved(4)?;
        let salt = reader.array()?;
        let commitment = reader.array()?;
        let table_bytes = reader.count("segment table", SEGMENT_TABLE_BYTES_MAX + TAG_BYTES)?;
        let table_raw_bytes = reader.count("segment table", SEGMENT_TABLE_BYTES_MAX)?;
        let frames_bytes = reader.u64()?;
        if frames_bytes > SEGMENT_BYTES_MAX {
            return Err(DecodeError::Limit {
                what: "segment frames",
                value: frames_bytes,
                max: SEGMENT_BYTES_MAX,
            });
        }
        let incarnation = reader.u64()?;
        reader.reserved(reader.left() - 4)?;
        let object_bytes = (SEGMENT_HEADER_BYTES + table_bytes) as u64 + frames_bytes;
        if object_bytes > SEGMENT_BYTES_MAX {
            return Err(DecodeError::Limit {
                what: "segment object",
                value: object_bytes,
                max: SEGMENT_BYTES_MAX,
            });
        }
        Ok(Self {
            kind,
            vault,
            log,
            slot,
            key,
            salt,
            commitment,
            table_bytes,
            table_raw_bytes,
            table_compression,
            frames_bytes,
            incarnation,
        })
    }
}

/// A frame of a segment: a run of chunks compressed and sealed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFrame {
    /// Bytes in the object, with the tag.
    pub stored_bytes: u32,
    /// Bytes of its chunks.
    pub raw_bytes: u32,
    /// How it is compressed.
    pub compression: Compression,
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
        /// The log.
        log: LogId,
        /// The slot.
        slot: Slot,
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
    /// The mark at `last_seq`, if the span ends with one.
    pub mark: Option<Mark>,
    /// Of the frame at `last_seq`: whose it is. Nothing if that is not known.
    pub stamp: Stamp,
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
        let mut logs: Vec<LogId> = Vec::new();
        for chunk in &self.chunks {
            if let ChunkPlace::There { log, .. } = chunk.place
                && !logs.contains(&log)
            {
                logs.push(log);
            }
        }
        assert!(self.frames.len() <= SEGMENT_FRAMES_MAX && logs.len() <= SEGMENT_LOGS_MAX);
        assert!(self.chunks.len() <= SEGMENT_CHUNKS_MAX && self.spans.len() <= SEGMENT_SPANS_MAX);
        let mut out = Vec::with_capacity(self.chunks.len() * 72 + 256);
        let count = |n: usize| u32::try_from(n).expect("asserted above");
        out.put_u32(count(self.frames.len()));
        out.put_u32(count(logs.len()));
        out.put_u32(count(self.chunks.len()));
        out.put_u32(count(self.spans.len()));
        for frame in &self.frames {
            out.put_u32(frame.stored_bytes);
            out.put_u32(frame.raw_bytes);
            out.put_u8(frame.compression.code());
            out.put_zeros(3);
        }
        logs.iter().for_each(|log| out.put_bytes(&log.0));
        for chunk in &self.chunks {
            put_chunk(&mut out, chunk, &logs);
        }
        self.spans.iter().for_each(|span| put_span(&mut out, span));
        out
    }

    /// Reads a table; all numbers in it refer to things that exist.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("segment table", bytes);
        let frames = reader.count("table frames", SEGMENT_FRAMES_MAX)?;
        let logs = reader.count("table logs", SEGMENT_LOGS_MAX)?;
        let chunks = reader.count("table chunks", SEGMENT_CHUNKS_MAX)?;
        let spans = reader.count("table spans", SEGMENT_SPANS_MAX)?;
        let frames = (0..frames).map(|_| take_frame(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let mut logs = Listed::take(&mut reader, logs)?;
        let chunks = (0..chunks)
            .map(|_| take_chunk(&mut reader, &frames, &mut logs))
            .collect::<Result<Vec<_>, _>>()?;
        logs.finish()?;
        let mut extents_left = SEGMENT_EXTENTS_MAX;
        let spans = (0..spans)
            .map(|_| take_span(&mut reader, &chunks, &mut extents_left))
            .collect::<Result<Vec<_>, _>>()?;
        reader.finish()?;
        Ok(Self { frames, chunks, spans })
    }
}

fn put_chunk(out: &mut Vec<u8>, chunk: &SegmentChunk, logs: &[LogId]) {
    out.put_bytes(&chunk.id.0);
    match chunk.place {
        ChunkPlace::Here { frame, offset } => {
            out.put_u32(0);
            out.put_u64(frame.into());
            out.put_u32(offset);
        }
        ChunkPlace::There { log, slot, chunk } => {
            let index = logs.iter().position(|known| *known == log).expect("collected above");
            out.put_u32(u32::try_from(index + 1).expect("asserted above"));
            out.put_u64(slot.0);
            out.put_u32(chunk);
        }
    }
    out.put_u32(chunk.blocks);
}

fn put_span(out: &mut Vec<u8>, span: &Span) {
    out.put_bytes(&span.volume.0);
    out.put_u64(span.epoch.0);
    out.put_u64(span.first_seq.0);
    out.put_u64(span.last_seq.0);
    match &span.mark {
        None => out.put_zeros(32),
        Some(mark) => {
            out.put_bytes(&mark.point.0);
            out.put_u64(mark.time_unix_ms);
            out.put_u8(mark.kind.code());
            out.put_u8(u8::from(mark.is_prompt));
            out.put_zeros(2);
            out.put_u32(mark.unknown_blocks);
        }
    }
    let pieces: usize = span.extents.iter().map(pieces_of).sum();
    out.put_stamped_count(u32::try_from(pieces).expect("batch limits"), span.stamp);
    for extent in &span.extents {
        put_extent(out, extent);
    }
}

/// A run of zeros may be longer than its 32-bit count: it is laid out in pieces.
fn pieces_of(extent: &Extent) -> usize {
    usize::try_from(extent.range.count.div_ceil(EXTENT_BLOCKS_MAX)).expect("volume limit")
}

fn put_extent(out: &mut Vec<u8>, extent: &Extent) {
    let (chunk, first) = match extent.source {
        ExtentSource::Zero => (ZERO_CHUNK, 0),
        ExtentSource::Chunk { chunk, first } => (chunk, first),
    };
    let mut block = extent.range.block;
    while block < extent.range.end() {
        let count = (extent.range.end() - block).min(EXTENT_BLOCKS_MAX);
        out.put_u64(block);
        out.put_u32(u32::try_from(count).expect("just cut to it"));
        out.put_u32(chunk);
        out.put_u32(first);
        block += count;
    }
}

fn take_frame(reader: &mut Reader<'_>) -> Result<SegmentFrame, DecodeError> {
    let max = SEGMENT_FRAME_BYTES_MAX + TAG_BYTES;
    let stored = reader.count("segment frame", max)?;
    let raw = reader.count("segment frame", SEGMENT_FRAME_BYTES_MAX)?;
    let compression = Compression::from_code(reader.u8()?)?;
    reader.reserved(3)?;
    let narrow = |value: usize| u32::try_from(value).expect("under its limit");
    Ok(SegmentFrame { stored_bytes: narrow(stored), raw_bytes: narrow(raw), compression })
}

fn take_chunk(
    reader: &mut Reader<'_>,
    frames: &[SegmentFrame],
    logs: &mut Listed,
) -> Result<SegmentChunk, DecodeError> {
    let id = ChunkId(reader.array()?);
    let log = reader.u32()?;
    let a = reader.u64()?;
    let b = reader.u32()?;
    let blocks = reader.u32()?;
    if blocks == 0 || blocks as usize > CHUNK_BLOCKS_MAX {
        return Err(DecodeError::Range { what: "chunk blocks", value: blocks.into() });
    }
    let place = if log == 0 {
        let frame = u32::try_from(a).ok().filter(|frame| (*frame as usize) < frames.len());
        let Some(frame) = frame else {
            return Err(DecodeError::Range { what: "chunk frame", value: a });
        };
        let end = u64::from(b) + u64::from(blocks) * BLOCK_BYTES as u64;
        if end > frames[frame as usize].raw_bytes.into() {
            return Err(DecodeError::Range { what: "chunk offset", value: b.into() });
        }
        ChunkPlace::Here { frame, offset: b }
    } else {
        let log = logs.get(log as usize - 1, log)?;
        let slot = Slot(a);
        if slot > SLOT_MAX {
            return Err(DecodeError::Range { what: "chunk slot", value: a });
        }
        ChunkPlace::There { log, slot, chunk: b }
    };
    Ok(SegmentChunk { id, blocks, place })
}

fn take_span(
    reader: &mut Reader<'_>,
    chunks: &[SegmentChunk],
    extents_left: &mut usize,
) -> Result<Span, DecodeError> {
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
    let mark = take_mark(reader)?;
    let (count, stamp) = reader.stamped_count("table extents", *extents_left)?;
    *extents_left -= count;
    let mut extents = Vec::with_capacity(count.min(reader.left() / 20 + 1));
    let mut floor = 0;
    for _ in 0..count {
        let extent = take_extent(reader, chunks)?;
        if extent.range.block < floor {
            return Err(DecodeError::Range { what: "extent order", value: extent.range.block });
        }
        floor = extent.range.end();
        extents.push(extent);
    }
    Ok(Span { volume, epoch, first_seq, last_seq, mark, stamp, extents })
}

fn take_mark(reader: &mut Reader<'_>) -> Result<Option<Mark>, DecodeError> {
    let point = PointId(reader.array()?);
    let time_unix_ms = reader.u64()?;
    let code = reader.u8()?;
    let is_prompt = match reader.u8()? {
        0 => false,
        1 => true,
        other => return Err(DecodeError::Range { what: "mark prompt", value: other.into() }),
    };
    reader.reserved(2)?;
    let unknown_blocks = reader.u32()?;
    if code == 0 {
        if point.0 != [0; 16] || time_unix_ms != 0 || is_prompt || unknown_blocks != 0 {
            return Err(DecodeError::Reserved { what: "absent mark" });
        }
        return Ok(None);
    }
    let kind = MarkKind::from_code(code)
        .ok_or(DecodeError::Range { what: "mark kind", value: code.into() })?;
    let group = crate::mark::MarkGroup::ALONE;
    Ok(Some(Mark { point, kind, unknown_blocks, is_prompt, time_unix_ms, group }))
}

fn take_extent(reader: &mut Reader<'_>, chunks: &[SegmentChunk]) -> Result<Extent, DecodeError> {
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
        return Ok(Extent { range, source: ExtentSource::Zero });
    }
    let Some(held) = chunks.get(chunk as usize) else {
        return Err(DecodeError::Range { what: "extent chunk", value: chunk.into() });
    };
    if u64::from(first) + range.count > held.blocks.into() {
        return Err(DecodeError::Range { what: "extent blocks", value: range.count });
    }
    Ok(Extent { range, source: ExtentSource::Chunk { chunk, first } })
}
