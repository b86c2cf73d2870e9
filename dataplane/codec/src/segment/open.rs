//! Opening a segment: header, table, then the frames that are needed.

use super::frame::{FRAME, open_frame};
use crate::error::CodecError;
use crate::id::ChunkHasher;
use crate::keys::KeyRing;
use crate::object::OpenObject;
use crate::seal::Implementation;
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::segment::{ChunkPlace, SegmentFrame, SegmentHeader, SlotKind, Table};
use farshore_proto::{LogId, Slot, VaultId};
use std::ops::Range;

/// Opens the parts of one object of a log.
#[derive(Debug)]
pub struct Opener {
    header: SegmentHeader,
    object: OpenObject,
}

impl Opener {
    /// Reads the header at the front of an object that was found at `slot` of `log`; all of it is authenticated then.
    ///
    /// `object` is at least the header; the rest may be there too.
    ///
    /// # Errors
    /// `Invalid` if a newer version wrote it; `Corrupt` if the header is damaged, is that of another place, or commits
    /// to another key; `NotFound` if `keys` lacks its data key; `Limit` if it claims more than a segment may be.
    pub fn open_header(
        object: &[u8],
        vault: VaultId,
        log: LogId,
        slot: Slot,
        keys: &KeyRing,
    ) -> Result<Self, CodecError> {
        Self::open_header_with(Implementation::AwsLc, object, vault, log, slot, keys)
    }

    /// `open_header`, with the implementation of the cipher chosen: an independent check reads
    /// with the one that did not write.
    ///
    /// # Errors
    /// As `open_header`.
    pub fn open_header_with(
        implementation: Implementation,
        object: &[u8],
        vault: VaultId,
        log: LogId,
        slot: Slot,
        keys: &KeyRing,
    ) -> Result<Self, CodecError> {
        let place = SegmentHeader::place(vault, log, slot);
        let opened = OpenObject::read(implementation, &place, object, keys)?;
        let header = SegmentHeader::of(opened.header, opened.own_fields())?;
        Ok(Self { header, object: opened })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Where the sealed table is in the object.
    #[must_use]
    pub fn table_range(&self) -> Range<u64> {
        self.header.object.header_bytes as u64..self.header.frames_offset()
    }

    /// Opens the table out of the bytes at `table_range`.
    ///
    /// # Errors
    /// `Corrupt` if anything of it is not as it was sealed.
    pub fn open_table(&self, sealed: &[u8]) -> Result<Table, CodecError> {
        let table = Table::decode(&self.object.open_body(sealed)?)?;
        let frames_bytes = table.frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum();
        if frames_bytes != self.header.frames_bytes {
            return Err(CodecError::Length {
                what: "segment frames",
                expected: self.header.frames_bytes,
                found: frames_bytes,
            });
        }
        if self.header.kind != SlotKind::Segment && table != Table::default() {
            return Err(CodecError::Length {
                what: "table of a seal or fill",
                expected: 0,
                found: frames_bytes,
            });
        }
        Ok(table)
    }

    /// Where each sealed frame of `table` is in the object, in order.
    #[must_use]
    pub fn frame_ranges(&self, table: &Table) -> Vec<Range<u64>> {
        let mut at = self.header.frames_offset();
        let range = |frame: &SegmentFrame| {
            let start = at;
            at += u64::from(frame.stored_bytes);
            start..at
        };
        table.frames.iter().map(range).collect()
    }

    /// Opens frame `number` of `table` out of its bytes in the object, appending them to `out`.
    ///
    /// # Errors
    /// `Corrupt` if there is no such frame or its bytes are not what was sealed there; `out` is as
    /// before then.
    pub fn open_frame(
        &self,
        table: &Table,
        number: u32,
        sealed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let Some(frame) = table.frames.get(number as usize) else {
            return Err(CodecError::Missing { what: FRAME, number: number.into() });
        };
        let (header, key) = (&self.header.object, self.object.key()?);
        open_frame(key, &header.place, &header.salt, number, frame, sealed, out)
    }

    /// Opens the table and every frame of a whole object; `each` gets the number and bytes of each
    /// frame in order. For objects read whole: verification, restore.
    ///
    /// # Errors
    /// As `open_table` and `open_frame`; `Corrupt` if the object is shorter or longer than its
    /// header says. An error of `each` is passed on.
    pub fn open_all<E: From<CodecError>>(
        &self,
        object: &[u8],
        mut each: impl FnMut(&Table, u32, &[u8]) -> Result<(), E>,
    ) -> Result<Table, E> {
        check_length("segment", self.header.object_bytes(), object.len())?;
        let (head, frames) = object.split_at(self.header.object.whole_bytes());
        let table = self.open_table(&head[self.header.object.header_bytes..])?;
        let mut rest = frames;
        let mut raw = Vec::new();
        for (number, frame) in (0..).zip(&table.frames) {
            let (sealed, after) = rest.split_at(frame.stored_bytes as usize);
            rest = after;
            raw.clear();
            self.open_frame(&table, number, sealed, &mut raw)?;
            each(&table, number, &raw)?;
        }
        Ok(table)
    }
}

/// The bytes of chunk `number` of `table` in its opened frame, checked against its id.
///
/// # Errors
/// `Corrupt` if the segment does not hold the chunk, the frame is not that long, or the bytes do
/// not hash to the id.
pub fn chunk_of<'a>(
    table: &Table,
    number: u32,
    frame: &'a [u8],
    hasher: &ChunkHasher,
) -> Result<&'a [u8], CodecError> {
    let missing = CodecError::Missing { what: "chunk of the segment", number: number.into() };
    let Some(chunk) = table.chunks.get(number as usize) else {
        return Err(missing);
    };
    let ChunkPlace::Here { offset, .. } = chunk.place else {
        return Err(missing);
    };
    let start = offset as usize;
    let Some(bytes) = frame.get(start..start + chunk.blocks as usize * BLOCK_BYTES) else {
        return Err(missing);
    };
    if !hasher.is_of(&chunk.id, bytes) {
        return Err(CodecError::ChunkDiffers { id: chunk.id });
    }
    Ok(bytes)
}

fn check_length(what: &'static str, expected: u64, found: usize) -> Result<(), CodecError> {
    if expected != found as u64 {
        return Err(CodecError::Length { what, expected, found: found as u64 });
    }
    Ok(())
}
