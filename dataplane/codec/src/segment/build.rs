//! Building a segment: chunks into frames, frames sealed as they fill, the table at the end.

use super::frame::{FRAME, frame_aad, open_frame};
use crate::compress::{Compressor, Pass};
use crate::error::CodecError;
use crate::keys::SealKeys;
use crate::object::ObjectSealer;
use crate::seal::{Domain, OpenKey};
use farshore_proto::limits::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, FRAME_TRAILER_BYTES, SEGMENT_CHUNKS_MAX, SEGMENT_EXTENTS_MAX,
    SEGMENT_FRAME_BYTES, SEGMENT_FRAME_BYTES_MAX, SEGMENT_FRAMES_MAX, SEGMENT_SPANS_MAX,
    SEGMENT_TARGETS_MAX, SLOT_MAX,
};
use farshore_proto::segment::{
    ChunkPlace, Compression, SegmentChunk, SegmentFrame, SegmentHeader, SlotKind, SlotWriter, Span,
    Table, put_own,
};
use farshore_proto::{ChunkId, LogId, Slot, Target, VaultId};
use std::collections::BTreeSet;
use std::fmt;

/// Sealed frames lie in pieces of about so many bytes: neither do they move as they become more, nor is
/// the whole copied when the table is put in front of it.
const PIECE_BYTES: usize = 4 << 20;
const _: () = assert!(PIECE_BYTES > 2 * SEGMENT_FRAME_BYTES_MAX);

/// One frame in this many is opened again with the other implementation of the cipher.
const CROSS_CHECK_FRAMES: usize = 64;

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
    writer: SlotWriter,
    object: ObjectSealer,
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
    targets: BTreeSet<Target>,
    extents: usize,
    raw_bytes: u64,
    checks_each_frame: bool,
    /// The first failure; reported by `finish`, which then gives no object.
    failure: Option<CodecError>,
}

impl fmt::Debug for SegmentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentBuilder")
            .field("place", &self.object.place)
            .field("frames", &self.table.frames.len())
            .field("chunks", &self.table.chunks.len())
            .field("spans", &self.table.spans.len())
            .field("raw_bytes", &self.raw_bytes)
            .finish_non_exhaustive()
    }
}

impl SegmentBuilder {
    /// A builder for the segment of `slot` of `log`, put by `writer`, sealed with `keys`, compressed with zstd at
    /// `level`.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn new(
        vault: VaultId,
        log: LogId,
        slot: Slot,
        writer: SlotWriter,
        keys: SealKeys<'_>,
        level: i32,
    ) -> Result<Self, CodecError> {
        let (place, kind) = (SegmentHeader::place(vault, log, slot), SlotKind::Segment);
        let object = ObjectSealer::draw(place, kind.code(), keys)?;
        Ok(Self {
            writer,
            object,
            compressor: Compressor::new(level),
            filling: Vec::new(),
            closing: None,
            pieces: Vec::new(),
            pieces_bytes: 0,
            sealed: Vec::new(),
            table: Table::default(),
            targets: BTreeSet::new(),
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

    /// Adds a chunk with its bytes and returns its number. `id` is their id; the caller computed it.
    ///
    /// A frame that is full is compressed and sealed bit by bit with [`Self::close_some`], or all of it with
    /// the next push. What fails then is told by `finish`.
    ///
    /// # Panics
    /// If `bytes` is not 1..=`CHUNK_BLOCKS_MAX` whole blocks, or the segment is full:
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
        let needed = Compressor::bound(self.filling.len()) + FRAME_TRAILER_BYTES;
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
        let ChunkPlace::There { target, .. } = place else { return None };
        let is_legal =
            (1..=CHUNK_BLOCKS_MAX).contains(&(blocks as usize)) && target.slot <= SLOT_MAX;
        let is_known = self.targets.contains(&target);
        if !is_legal || !is_known && self.targets.len() == SEGMENT_TARGETS_MAX {
            return None;
        }
        self.targets.insert(target);
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
        let (kind, writer) = (SlotKind::Segment, self.writer);
        let own = |out: &mut Vec<u8>| put_own(out, frames_bytes, &writer);
        let (object, head) = self.object.seal_body(&mut self.compressor, own, &raw)?;
        let header = SegmentHeader { object, kind, frames_bytes, writer };
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
            stored_bytes: narrow(self.sealed.len() - start + FRAME_TRAILER_BYTES),
            raw_bytes: narrow(self.filling.len()),
            compression,
        };
        let aad = frame_aad(&self.object.place, narrow(number), &frame);
        let plain = &mut self.sealed[start..];
        let tag = self.object.sealer.seal_slice(Domain::Frame, &aad, plain)?;
        self.sealed.extend_from_slice(&tag);
        self.sealed.extend_from_slice(self.object.sealer.salt());
        self.table.frames.push(frame);
        let is_sample =
            (number + usize::from(self.object.sealer.salt()[0])).is_multiple_of(CROSS_CHECK_FRAMES);
        if is_sample {
            self.check_frame(&self.object.cross, number, &self.sealed[start..])?;
        } else if self.checks_each_frame {
            self.check_frame(self.object.sealer.key(), number, &self.sealed[start..])?;
        }
        Ok(())
    }

    /// Opens the frame just sealed and compares it with what went in.
    fn check_frame(&self, key: &OpenKey, number: usize, sealed: &[u8]) -> Result<(), CodecError> {
        let frame = self.table.frames[number];
        let (place, salt) = (&self.object.place, self.object.sealer.salt());
        let mut raw = Vec::new();
        let opened = open_frame(key, place, salt, narrow(number), &frame, sealed, &mut raw);
        if opened.is_err() || raw != self.filling {
            return Err(CodecError::Unverified { what: FRAME });
        }
        Ok(())
    }
}

/// Builds an object that fills a slot without data: a seal, which ends the log, so that nothing at `slot` or beyond
/// counts; or a fill.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If `kind` is that of a segment: a bug in the caller.
pub fn slot_without_data(
    kind: SlotKind,
    (vault, log, slot): (VaultId, LogId, Slot),
    writer: SlotWriter,
    keys: SealKeys<'_>,
) -> Result<Vec<u8>, CodecError> {
    assert_ne!(kind, SlotKind::Segment, "segments have data");
    let place = SegmentHeader::place(vault, log, slot);
    let mut sealer = ObjectSealer::draw(place, kind.code(), keys)?;
    let own = |out: &mut Vec<u8>| put_own(out, 0, &writer);
    let table = Table::default().encode();
    let (_, object) = sealer.seal_body(&mut Compressor::new(1), own, &table)?;
    Ok(object)
}

/// A count or length below its limit, all of which fit.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("the limits of a segment fit 32 bits")
}

#[cfg(test)]
mod tests {
    use super::super::tests::ring;
    use super::*;

    #[test]
    fn a_frame_that_does_not_open_to_what_went_in_is_noticed_by_either_cipher() {
        let ring = ring();
        let (vault, log) = (VaultId([1; 16]), LogId([2; 16]));
        let mut builder = SegmentBuilder::new(
            vault,
            log,
            Slot(1),
            SlotWriter::of_run(1),
            ring.sealing().unwrap(),
            1,
        )
        .unwrap();
        builder.push_chunk(ChunkId([0; 32]), &vec![3; 4 * BLOCK_BYTES]);
        let filling = builder.filling.clone();
        let compression = builder.compressor.compress(&filling, &mut builder.sealed).unwrap();
        builder.seal_frame(0, compression).unwrap();
        let sealed = builder.sealed.clone();
        let mut bad = sealed.clone();
        bad[0] ^= 1;
        let unverified = Err(CodecError::Unverified { what: "segment frame" });
        for key in [&builder.object.cross, builder.object.sealer.key()] {
            assert_eq!(builder.check_frame(key, 0, &sealed), Ok(()));
            assert_eq!(builder.check_frame(key, 0, &bad), unverified);
        }
        builder.filling[0] ^= 1;
        assert_eq!(builder.check_frame(&builder.object.cross, 0, &sealed), unverified);
    }

    #[test]
    fn a_full_frame_is_closed_bit_by_bit_or_by_the_next_push() {
        let ring = ring();
        let (vault, log) = (VaultId([1; 16]), LogId([2; 16]));
        let chunk: Vec<u8> =
            (0..narrow(SEGMENT_FRAME_BYTES / 8)).flat_map(u32::to_le_bytes).collect();
        let chunk = &chunk[..CHUNK_BLOCKS_MAX * BLOCK_BYTES];
        let built = [true, false].map(|is_patient| {
            let mut builder = SegmentBuilder::new(
                vault,
                log,
                Slot(1),
                SlotWriter::of_run(1),
                ring.sealing().unwrap(),
                1,
            )
            .unwrap();
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
        let ring = ring();
        let (vault, log) = (VaultId([1; 16]), LogId([2; 16]));
        let mut builder = SegmentBuilder::new(
            vault,
            log,
            Slot(1),
            SlotWriter::of_run(1),
            ring.sealing().unwrap(),
            1,
        )
        .unwrap();
        // A key of another salt stands for a cipher that does not do what it should.
        let other = ObjectSealer::draw(builder.object.place, 1, ring.sealing().unwrap()).unwrap();
        builder.object.cross = other.cross;
        builder.push_chunk(ChunkId([0; 32]), &[3; BLOCK_BYTES]);
        let error = builder.finish().unwrap_err();
        assert!(matches!(error, CodecError::Unverified { .. }), "{error}");
        assert_eq!(error.kind(), farshore_proto::ErrorKind::Internal);
    }
}
