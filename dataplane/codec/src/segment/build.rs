//! Building a segment: chunks into frames, frames sealed as they fill, the table at the end.

use super::At;
use crate::compress::{Compressor, Pass, decompress};
use crate::error::CodecError;
use crate::keys::DataKey;
use crate::seal::{Domain, Implementation, OpenKey, Purpose, Sealer};
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, SEGMENT_BYTES_MAX, SEGMENT_CHUNKS_MAX, SEGMENT_EXTENTS_MAX,
    SEGMENT_FRAME_BYTES, SEGMENT_FRAME_BYTES_MAX, SEGMENT_FRAMES_MAX, SEGMENT_HEADER_BYTES,
    SEGMENT_LOGS_MAX, SEGMENT_SPANS_MAX, SEGMENT_TABLE_BYTES_MAX, SLOT_MAX, TAG_BYTES,
};
use farshore_proto::segment::{
    ChunkPlace, Compression, SegmentChunk, SegmentFrame, SegmentHeader, SlotKind, Span, Table,
};
use farshore_proto::{ChunkId, KeyNumber, LogId, Slot, VaultId};
use std::collections::BTreeSet;
use std::fmt;

/// Sealed frames lie in pieces of about so many bytes: neither do they move as they become more, nor is
/// the whole copied when the table is put in front of it.
const PIECE_BYTES: usize = 4 << 20;
const _: () = assert!(PIECE_BYTES > 2 * SEGMENT_FRAME_BYTES_MAX);

/// One frame in this many is opened again with the other implementation of the cipher.
const CROSS_CHECK_FRAMES: usize = 64;

// Sizes of the table's parts, as `Table::encode` lays them out.
const TABLE_HEAD_BYTES: usize = 16;
const TABLE_FRAME_BYTES: usize = 12;
const TABLE_LOG_BYTES: usize = 16;
const TABLE_CHUNK_BYTES: usize = 52;
const TABLE_SPAN_BYTES: usize = 84;
const TABLE_EXTENT_BYTES: usize = 20;

/// What a caller is about to add to a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Chunks, held and referred to.
    pub chunks: usize,
    /// Bytes of the chunks to be held.
    pub chunk_bytes: usize,
    /// Logs that the segment does not refer to yet.
    pub logs: usize,
    /// Spans.
    pub spans: usize,
    /// Extents of all those spans.
    pub extents: usize,
}

/// A finished segment.
#[derive(Debug, Clone)]
pub struct Built {
    /// The object, ready to be put: pieces that follow one another, header and table in the first.
    pub pieces: Vec<Vec<u8>>,
    /// Its table, so that the builder's caller need not open it.
    pub table: Table,
    /// Its header.
    pub header: SegmentHeader,
}

impl Built {
    /// Bytes of the object.
    #[must_use]
    pub fn object_bytes(&self) -> usize {
        self.pieces.iter().map(Vec::len).sum()
    }

    /// The object in one piece: a copy, for small ones.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

/// Builds one segment under a salt of its own.
///
/// A failed attempt is dropped, never resumed: the next one is a new builder with a new salt.
pub struct SegmentBuilder {
    at: At,
    incarnation: u64,
    number: KeyNumber,
    sealer: Sealer,
    /// The same key in the other implementation.
    cross: OpenKey,
    compressor: Compressor,
    /// Chunks of the frame being filled, or being closed.
    filling: Vec<u8>,
    /// How far the frame that is being closed has come.
    closing: Option<Pass>,
    /// Pieces that are full of sealed frames.
    pieces: Vec<Vec<u8>>,
    /// Their bytes.
    pieces_bytes: usize,
    /// The piece that is being filled: sealed frames, and what there is of the one being closed.
    sealed: Vec<u8>,
    table: Table,
    logs: BTreeSet<LogId>,
    extents: usize,
    raw_bytes: u64,
    checks_each_frame: bool,
    /// The first failure; reported by `finish`, which then gives no object.
    failure: Option<CodecError>,
}

impl fmt::Debug for SegmentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentBuilder")
            .field("at", &self.at)
            .field("frames", &self.table.frames.len())
            .field("chunks", &self.table.chunks.len())
            .field("spans", &self.table.spans.len())
            .field("raw_bytes", &self.raw_bytes)
            .finish_non_exhaustive()
    }
}

impl SegmentBuilder {
    /// A builder for the segment of `slot` of `log`, put by run `incarnation` of the log's writer,
    /// sealed under data key `number`, compressed with zstd at `level`.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn new(
        vault: VaultId,
        log: LogId,
        slot: Slot,
        incarnation: u64,
        key: &DataKey,
        number: KeyNumber,
        level: i32,
    ) -> Result<Self, CodecError> {
        let at = At { vault, log, slot };
        let (sealer, cross) = at.with_context(|context| {
            let sealer = Sealer::draw(key, Purpose::Segment, context)?;
            let other = Implementation::RustCrypto;
            let cross = OpenKey::derive_for(other, key, Purpose::Segment, context, sealer.salt());
            Ok::<_, CodecError>((sealer, cross))
        })?;
        Ok(Self {
            at,
            incarnation,
            number,
            sealer,
            cross,
            compressor: Compressor::new(level),
            filling: Vec::new(),
            closing: None,
            pieces: Vec::new(),
            pieces_bytes: 0,
            sealed: Vec::new(),
            table: Table::default(),
            logs: BTreeSet::new(),
            extents: 0,
            raw_bytes: 0,
            checks_each_frame: cfg!(test),
            failure: None,
        })
    }

    /// Has each frame opened again once it is sealed, not one in 64: for tests. It takes longer than an ack may.
    pub fn check_each_frame(&mut self) {
        self.checks_each_frame = true;
    }

    /// Bytes of the chunks held so far, before compression.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Bytes sealed so far, plus those waiting in the frame being filled.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        let sealed = self.closing.as_ref().map_or(self.sealed.len(), Pass::start);
        self.pieces_bytes + sealed + self.filling.len()
    }

    /// Chunks in the table so far; the number that the next one gets.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.table.chunks.len()
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.chunks.is_empty() && self.table.spans.is_empty()
    }

    /// Whether the segment refers to `log` already.
    #[must_use]
    pub fn refers_to(&self, log: LogId) -> bool {
        self.logs.contains(&log)
    }

    /// Whether `load` can be added without passing any limit of a segment, even if nothing of it
    /// compresses.
    #[must_use]
    pub fn has_room(&self, load: &Load) -> bool {
        let closed = self.table.frames.len() + usize::from(self.is_closing());
        let frames = closed + 2 + load.chunk_bytes / SEGMENT_FRAME_BYTES;
        let chunks = self.table.chunks.len() + load.chunks;
        let logs = self.logs.len() + load.logs;
        let spans = self.table.spans.len() + load.spans;
        let extents = self.extents + load.extents;
        let table = table_bytes(frames, logs, chunks, spans, extents);
        let object = SEGMENT_HEADER_BYTES
            + table
            + self.stored_bytes()
            + load.chunk_bytes
            + (frames + 1) * TAG_BYTES;
        frames <= SEGMENT_FRAMES_MAX
            && chunks <= SEGMENT_CHUNKS_MAX
            && logs <= SEGMENT_LOGS_MAX
            && spans <= SEGMENT_SPANS_MAX
            && extents <= SEGMENT_EXTENTS_MAX
            && table <= SEGMENT_TABLE_BYTES_MAX
            && object as u64 <= SEGMENT_BYTES_MAX
    }

    /// Adds a chunk with its bytes and returns its number. `id` is their id; the caller computed it.
    ///
    /// A frame that is full is compressed and sealed bit by bit with [`Self::close_some`], or all of it with
    /// the next push. What fails then is told by `finish`.
    ///
    /// # Panics
    /// If `bytes` is not 1..=`CHUNK_BLOCKS_MAX` whole blocks, or the segment is full (`has_room`):
    /// bugs in the caller.
    pub fn push_chunk(&mut self, id: ChunkId, bytes: &[u8]) -> u32 {
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES), "whole blocks");
        let blocks = bytes.len() / BLOCK_BYTES;
        assert!(blocks <= CHUNK_BLOCKS_MAX, "a chunk has a limit");
        self.close();
        let place = ChunkPlace::Here {
            frame: narrow(self.table.frames.len()),
            offset: narrow(self.filling.len()),
        };
        if self.filling.capacity() == 0 {
            self.filling.reserve_exact(SEGMENT_FRAME_BYTES + CHUNK_BLOCKS_MAX * BLOCK_BYTES);
        }
        self.filling.extend_from_slice(bytes);
        self.raw_bytes += bytes.len() as u64;
        let number = self.push(SegmentChunk { id, blocks: narrow(blocks), place });
        if self.filling.len() >= SEGMENT_FRAME_BYTES {
            self.begin_to_close();
        }
        number
    }

    /// Whether a frame that is full is not sealed yet.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Whether every chunk pushed so far is in a sealed frame.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.filling.is_empty()
    }

    /// Compresses some more of the frame that is full, and seals it after the last of it.
    pub fn close_some(&mut self) {
        let Some(mut pass) = self.closing.take() else { return };
        match self.compressor.step(&mut pass, &self.filling, &mut self.sealed) {
            Ok(None) => return self.closing = Some(pass),
            Ok(Some(compression)) => {
                if let Err(error) = self.seal_frame(pass.start(), compression) {
                    self.fail(error);
                }
            }
            Err(error) => self.fail(error),
        }
        self.filling.clear();
    }

    /// Begins to close the last frame, full or not; false if there is none to close. For [`Self::close_some`];
    /// `finish` does all of it at once.
    pub fn begin_last(&mut self) -> bool {
        if self.filling.is_empty() || self.is_closing() {
            return false;
        }
        self.begin_to_close();
        true
    }

    fn begin_to_close(&mut self) {
        if self.failure.is_none() {
            self.make_room();
            match self.compressor.begin(&self.filling, &mut self.sealed) {
                Ok(pass) => return self.closing = Some(pass),
                Err(error) => self.fail(error),
            }
        }
        self.filling.clear();
    }

    /// Begins a new piece if this one may be too small for the frame being filled.
    fn make_room(&mut self) {
        let needed = Compressor::bound(self.filling.len()) + TAG_BYTES;
        if self.sealed.capacity() - self.sealed.len() < needed {
            let piece = Vec::with_capacity(PIECE_BYTES);
            let full = std::mem::replace(&mut self.sealed, piece);
            self.pieces_bytes += full.len();
            self.pieces.push(full);
        }
    }

    fn fail(&mut self, error: CodecError) {
        self.failure.get_or_insert(error);
    }

    fn close(&mut self) {
        while self.is_closing() {
            self.close_some();
        }
    }

    /// Adds a chunk that another segment, or an earlier slot of this log, holds, and returns its number;
    /// none if a segment cannot hold such a reference: then the chunk is stored.
    ///
    /// The place comes out of an index, and that out of the vault: nothing it says may end the process.
    ///
    /// # Panics
    /// If the segment is full: a bug in the caller.
    pub fn push_reference(&mut self, id: ChunkId, blocks: u32, place: ChunkPlace) -> Option<u32> {
        let ChunkPlace::There { log, slot, .. } = place else { return None };
        let is_legal = (1..=CHUNK_BLOCKS_MAX).contains(&(blocks as usize)) && slot <= SLOT_MAX;
        let is_known = self.logs.contains(&log);
        if !is_legal || !is_known && self.logs.len() == SEGMENT_LOGS_MAX {
            return None;
        }
        self.logs.insert(log);
        Some(self.push(SegmentChunk { id, blocks, place }))
    }

    fn push(&mut self, chunk: SegmentChunk) -> u32 {
        let number = self.table.chunks.len();
        assert!(number < SEGMENT_CHUNKS_MAX, "a segment holds so many chunks");
        self.table.chunks.push(chunk);
        narrow(number)
    }

    /// Adds a span; its extents refer to chunks pushed before, or to zeros.
    ///
    /// # Panics
    /// If the segment is full: a bug in the caller.
    pub fn push_span(&mut self, span: Span) {
        self.extents += span.extents.len();
        assert!(self.extents <= SEGMENT_EXTENTS_MAX, "a segment holds so many extents");
        assert!(self.table.spans.len() < SEGMENT_SPANS_MAX, "a segment holds so many spans");
        self.table.spans.push(span);
    }

    /// Seals the last frame and the table and puts the object together.
    ///
    /// # Errors
    /// `Internal` if compressing or sealing failed here or in a push before, or if something sealed
    /// did not open again.
    pub fn finish(mut self) -> Result<Built, CodecError> {
        self.close();
        if self.begin_last() {
            self.close();
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let raw = self.table.encode();
        let frames_bytes = (self.pieces_bytes + self.sealed.len()) as u64;
        let tail = Tail {
            kind: SlotKind::Segment,
            at: self.at,
            incarnation: self.incarnation,
            number: self.number,
            frames_bytes,
        };
        let (header, head) =
            tail.seal(&mut self.sealer, &mut self.compressor, &self.cross, &raw)?;
        let mut pieces = vec![head];
        pieces.extend(self.pieces);
        pieces.push(self.sealed);
        pieces.retain(|piece| !piece.is_empty());
        Ok(Built { pieces, table: self.table, header })
    }

    /// Seals the compressed bytes from `start` on, which are those of the frame in `filling`.
    fn seal_frame(&mut self, start: usize, compression: Compression) -> Result<(), CodecError> {
        let number = self.table.frames.len();
        assert!(number < SEGMENT_FRAMES_MAX, "a segment holds so many frames");
        let frame = SegmentFrame {
            stored_bytes: narrow(self.sealed.len() - start + TAG_BYTES),
            raw_bytes: narrow(self.filling.len()),
            compression,
        };
        let aad = self.at.frame_aad(narrow(number), &frame);
        let plain = &mut self.sealed[start..];
        let tag = self.sealer.seal_slice(Domain::Frame, &aad, plain)?;
        self.sealed.extend_from_slice(&tag);
        self.table.frames.push(frame);
        let is_sample =
            (number + usize::from(self.sealer.salt()[0])).is_multiple_of(CROSS_CHECK_FRAMES);
        if is_sample {
            self.check_frame(&self.cross, number, &self.sealed[start..])?;
        } else if self.checks_each_frame {
            self.check_frame(self.sealer.key(), number, &self.sealed[start..])?;
        }
        Ok(())
    }

    /// Opens the frame just sealed and compares it with what went in.
    fn check_frame(&self, key: &OpenKey, number: usize, sealed: &[u8]) -> Result<(), CodecError> {
        const WHAT: &str = "segment frame";
        let frame = self.table.frames[number];
        let aad = self.at.frame_aad(narrow(number), &frame);
        let mut copy = sealed.to_vec();
        let mut raw = Vec::new();
        let opened =
            key.open_in_place(Domain::Frame, number as u64, &aad, &mut copy).and_then(|stored| {
                let raw_bytes = frame.raw_bytes as usize;
                let max = SEGMENT_FRAME_BYTES_MAX;
                decompress(WHAT, frame.compression, stored, raw_bytes, max, &mut raw)
            });
        if opened.is_err() || raw != self.filling {
            return Err(CodecError::Unverified { what: WHAT });
        }
        Ok(())
    }
}

/// Builds the object that ends a log: nothing at `slot` or beyond counts.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
pub fn seal_object(
    vault: VaultId,
    log: LogId,
    slot: Slot,
    incarnation: u64,
    key: &DataKey,
    number: KeyNumber,
) -> Result<Vec<u8>, CodecError> {
    let SegmentBuilder { at, mut sealer, mut compressor, cross, table, .. } =
        SegmentBuilder::new(vault, log, slot, incarnation, key, number, 1)?;
    let tail = Tail { kind: SlotKind::Seal, at, incarnation, number, frames_bytes: 0 };
    let (_, bytes) = tail.seal(&mut sealer, &mut compressor, &cross, &table.encode())?;
    Ok(bytes)
}

/// What is decided when the frames are done.
struct Tail {
    kind: SlotKind,
    at: At,
    incarnation: u64,
    number: KeyNumber,
    frames_bytes: u64,
}

impl Tail {
    /// Compresses and seals the table; returns the header, and the object up to its frames.
    fn seal(
        self,
        sealer: &mut Sealer,
        compressor: &mut Compressor,
        cross: &OpenKey,
        raw: &[u8],
    ) -> Result<(SegmentHeader, Vec<u8>), CodecError> {
        let mut stored = Vec::new();
        let table_compression = compressor.compress(raw, &mut stored)?;
        let header = SegmentHeader {
            kind: self.kind,
            vault: self.at.vault,
            log: self.at.log,
            slot: self.at.slot,
            key: self.number,
            salt: *sealer.salt(),
            commitment: *sealer.key().commitment(),
            table_bytes: stored.len() + TAG_BYTES,
            table_raw_bytes: raw.len(),
            table_compression,
            frames_bytes: self.frames_bytes,
            incarnation: self.incarnation,
        };
        let head = header.encode();
        sealer.seal(Domain::Table, &head, &mut stored)?;
        check_table(cross, &head, &stored, table_compression, raw)?;
        let mut bytes = Vec::with_capacity(head.len() + stored.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&stored);
        Ok((header, bytes))
    }
}

/// Opens the table just sealed with the other implementation: a lost table loses the segment, and it
/// is small.
fn check_table(
    cross: &OpenKey,
    head: &[u8],
    sealed: &[u8],
    compression: Compression,
    raw: &[u8],
) -> Result<(), CodecError> {
    const WHAT: &str = "segment table";
    let mut copy = sealed.to_vec();
    let mut again = Vec::new();
    let opened = cross.open_in_place(Domain::Table, 0, head, &mut copy).and_then(|stored| {
        let max = SEGMENT_TABLE_BYTES_MAX;
        decompress(WHAT, compression, stored, raw.len(), max, &mut again)
    });
    if opened.is_err() || again != raw {
        return Err(CodecError::Unverified { what: WHAT });
    }
    Ok(())
}

/// Bytes of a table before compression.
pub(super) fn table_bytes(
    frames: usize,
    logs: usize,
    chunks: usize,
    spans: usize,
    extents: usize,
) -> usize {
    TABLE_HEAD_BYTES
        + frames * TABLE_FRAME_BYTES
        + logs * TABLE_LOG_BYTES
        + chunks * TABLE_CHUNK_BYTES
        + spans * TABLE_SPAN_BYTES
        + extents * TABLE_EXTENT_BYTES
}

/// A count or length below its limit, all of which fit.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("the limits of a segment fit 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_does_not_open_to_what_went_in_is_noticed_by_either_cipher() {
        let key = DataKey::from_bytes([5; 32]);
        let (vault, log) = (VaultId([1; 16]), LogId([2; 16]));
        let mut builder =
            SegmentBuilder::new(vault, log, Slot(1), 1, &key, KeyNumber(1), 1).unwrap();
        builder.push_chunk(ChunkId([0; 32]), &vec![3; 4 * BLOCK_BYTES]);
        let filling = builder.filling.clone();
        let compression = builder.compressor.compress(&filling, &mut builder.sealed).unwrap();
        builder.seal_frame(0, compression).unwrap();
        let sealed = builder.sealed.clone();
        let mut bad = sealed.clone();
        bad[0] ^= 1;
        let unverified = Err(CodecError::Unverified { what: "segment frame" });
        for key in [&builder.cross, builder.sealer.key()] {
            assert_eq!(builder.check_frame(key, 0, &sealed), Ok(()));
            assert_eq!(builder.check_frame(key, 0, &bad), unverified);
        }
        builder.filling[0] ^= 1;
        assert_eq!(builder.check_frame(&builder.cross, 0, &sealed), unverified);
    }

    #[test]
    fn a_full_frame_is_closed_bit_by_bit_or_by_the_next_push() {
        let key = DataKey::from_bytes([5; 32]);
        let (vault, log) = (VaultId([1; 16]), LogId([2; 16]));
        let chunk: Vec<u8> =
            (0..narrow(SEGMENT_FRAME_BYTES / 8)).flat_map(u32::to_le_bytes).collect();
        let chunk = &chunk[..CHUNK_BLOCKS_MAX * BLOCK_BYTES];
        let built = [true, false].map(|is_patient| {
            let mut builder =
                SegmentBuilder::new(vault, log, Slot(1), 1, &key, KeyNumber(1), 1).unwrap();
            for number in 0..SEGMENT_FRAME_BYTES / chunk.len() + 1 {
                builder.push_chunk(ChunkId([u8::try_from(number).unwrap(); 32]), chunk);
                let stored = builder.stored_bytes();
                let mut steps = 0;
                while is_patient && builder.is_closing() {
                    assert!(builder.stored_bytes() == stored && builder.table.frames.is_empty());
                    builder.close_some();
                    steps += 1;
                }
                let is_full = (number + 1) * chunk.len() == SEGMENT_FRAME_BYTES;
                assert_eq!(steps > 1, is_patient && is_full);
            }
            builder.finish().unwrap()
        });
        let [patient, at_once] = built.map(|built| (built.object_bytes(), built.table.frames));
        assert_eq!(patient, at_once);
    }

    #[test]
    fn a_failure_in_a_push_is_told_at_the_end() {
        let key = DataKey::from_bytes([5; 32]);
        let (vault, log) = (VaultId([1; 16]), LogId([2; 16]));
        let mut builder =
            SegmentBuilder::new(vault, log, Slot(1), 1, &key, KeyNumber(1), 1).unwrap();
        // A key of another salt stands for a cipher that does not do what it should.
        builder.sealer = Sealer::draw(&key, Purpose::Segment, &[]).unwrap();
        let other = Sealer::draw(&key, Purpose::Segment, &[]).unwrap();
        builder.cross = OpenKey::derive(&key, Purpose::Segment, &[], other.salt());
        builder.push_chunk(ChunkId([0; 32]), &[3; BLOCK_BYTES]);
        let error = builder.finish().unwrap_err();
        assert!(matches!(error, CodecError::Unverified { .. }), "{error}");
        assert_eq!(error.kind(), farshore_proto::ErrorKind::Internal);
    }
}
