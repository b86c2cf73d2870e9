//! The segment: one immutable object of a log, data and meaning together.
//!
//! Layout, cryptography and order of operations: `docs/formats/segment.md`.

mod table;

pub use crate::object::Compression;
pub use table::{ChunkPlace, Extent, ExtentSource, SegmentChunk, SegmentFrame, Span, Table};

use crate::error::DecodeError;
use crate::ids::{Attempt, LogId, Slot, VaultId};
use crate::limits::{SEGMENT_BYTES_MAX, SLOT_MAX};
use crate::object::{ObjectHeader, ObjectKind, ObjectPlace};
use crate::register::At;
use crate::wire::{Put, Reader};

/// Bytes of a segment's own fields in the header.
pub(crate) const OWN_BYTES: usize = 52;
/// The checkpoint of a slot whose writer knew of none.
const NO_SLOT: u64 = u64::MAX;

/// What fills a slot of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// Data.
    Segment,
    /// The end of the log: nothing at or beyond this slot counts.
    Seal,
    /// Nothing: a start filled it, so that no late put can.
    Fill,
}

/// Whether a slot of this variant holds nothing of any domain: `None` if its kind is not known.
pub(crate) fn is_own(variant: u8) -> Option<bool> {
    SlotKind::from_code(variant).ok().map(|kind| kind != SlotKind::Segment)
}

impl SlotKind {
    /// Its byte in the header.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Segment => 1,
            Self::Seal => 2,
            Self::Fill => 3,
        }
    }

    fn from_code(code: u8) -> Result<Self, DecodeError> {
        match code {
            1 => Ok(Self::Segment),
            2 => Ok(Self::Seal),
            3 => Ok(Self::Fill),
            0 => Err(DecodeError::Range { what: "slot kind", value: 0 }),
            _ => Err(DecodeError::Newer { what: "segment", feature: "kind", bit: code.into() }),
        }
    }
}

/// The writer of a slot: which of its runs it was, and what it knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotWriter {
    /// Which run of the log's writer put it, increasing from 1. A slot whose incarnation is below
    /// that of a slot before it is void: a run that crashed left it behind a hole.
    pub incarnation: u64,
    /// Number of the log's newest horizon that the writer knew of; 0 if it knew none.
    pub horizon: u64,
    /// How far the writer had applied the vault's register before it looked the first chunk up.
    pub register: At,
    /// Slot of the log's newest checkpoint that the writer knew of.
    pub checkpoint: Option<Slot>,
}

impl SlotWriter {
    /// A run that knows of nothing but the log's slots.
    #[must_use]
    pub const fn of_run(incarnation: u64) -> Self {
        Self { incarnation, horizon: 0, register: At::NONE, checkpoint: None }
    }

    /// The checkpoint that the writer of `slot` names. One of a slot behind it nobody can have known: that says nothing.
    #[must_use]
    pub fn known_checkpoint(&self, slot: Slot) -> Option<Slot> {
        self.checkpoint.filter(|checkpoint| *checkpoint <= slot)
    }
}

/// Plain head of a segment, fill or seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What all objects have.
    pub object: ObjectHeader,
    /// Segment, seal or fill.
    pub kind: SlotKind,
    /// Bytes of all sealed frames.
    pub frames_bytes: u64,
    /// Who put it.
    pub writer: SlotWriter,
}

impl SegmentHeader {
    /// The place of a slot.
    #[must_use]
    pub fn place(vault: VaultId, log: LogId, slot: Slot) -> ObjectPlace {
        let (kind, subject, number) = (ObjectKind::Slot, log.0, slot.0);
        ObjectPlace { kind, vault, subject, number, part: 0 }
    }

    /// The log it is in.
    #[must_use]
    pub fn log(&self) -> LogId {
        LogId(self.object.place.subject)
    }

    /// Its slot there.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot(self.object.place.number)
    }

    /// Which run of the log's writer put it.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.writer.incarnation
    }

    /// Which attempt at the slot it is.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.object.attempt()
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        self.frames_offset() + self.frames_bytes
    }

    /// Where the first sealed frame begins in the object.
    #[must_use]
    pub fn frames_offset(&self) -> u64 {
        self.object.whole_bytes() as u64
    }

    /// Lays the head out.
    ///
    /// # Panics
    /// If a length is over its limit, or the kind is not that of the object's variant: bugs in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.object_bytes() <= SEGMENT_BYTES_MAX, "a segment has a limit");
        assert_eq!(self.object.variant, self.kind.code(), "the variant is the kind");
        self.object.encode(|out| put_own(out, self.frames_bytes, &self.writer))
    }

    /// Reads the head at the front of an object.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let (object, own) = ObjectHeader::decode(ObjectKind::Slot, object)?;
        Self::of(object, own)
    }

    /// Of what all objects have, and the fields that only slots have.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn of(object: ObjectHeader, mut own: Reader<'_>) -> Result<Self, DecodeError> {
        let kind = SlotKind::from_code(object.variant)?;
        if object.place.number > SLOT_MAX.0 || object.place.part != 0 {
            let value = object.place.number;
            return Err(DecodeError::Range { what: "segment slot", value });
        }
        let incarnation = own.u64()?;
        if incarnation == 0 {
            return Err(DecodeError::Range { what: "incarnation", value: 0 });
        }
        let frames_bytes = own.u64()?;
        let horizon = own.u64()?;
        let register = At::take(&mut own, "segment register")?;
        let checkpoint = match own.u64()? {
            NO_SLOT => None,
            slot if slot > SLOT_MAX.0 => {
                return Err(DecodeError::Range { what: "checkpoint slot", value: slot });
            }
            slot => Some(Slot(slot)),
        };
        own.reserved(4)?;
        if frames_bytes.saturating_add(object.whole_bytes() as u64) > SEGMENT_BYTES_MAX {
            return Err(DecodeError::Limit {
                what: "segment object",
                value: frames_bytes,
                max: SEGMENT_BYTES_MAX,
            });
        }
        if kind != SlotKind::Segment && frames_bytes != 0 {
            return Err(DecodeError::Range { what: "frames of no segment", value: frames_bytes });
        }
        let writer = SlotWriter { incarnation, horizon, register, checkpoint };
        Ok(Self { object, kind, frames_bytes, writer })
    }
}

/// Lays out what only slots have in their header.
pub fn put_own(out: &mut Vec<u8>, frames_bytes: u64, writer: &SlotWriter) {
    out.put_u64(writer.incarnation);
    out.put_u64(frames_bytes);
    out.put_u64(writer.horizon);
    writer.register.put(out);
    out.put_u64(writer.checkpoint.map_or(NO_SLOT, |slot| slot.0));
    out.put_zeros(4);
}
