//! The mark: a recovery point in the stream of a volume, the same bytes in a frame, a journal and a segment.
//!
//! Layout: `docs/formats/frame.md`.

use crate::error::DecodeError;
use crate::ids::{MarkAttempt, MarkKind, PointId};
use crate::wire::{Put, Reader};

/// Bytes of a mark.
pub const MARK_BYTES: usize = 64;

const PROMPT: u8 = 1;

/// A recovery point in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its id, the same on all volumes of the machine.
    pub point: PointId,
    /// What it promises.
    pub kind: MarkKind,
    /// Blocks of the disk that nobody could read and that the point does not hold as they are; at
    /// most this many can be said, more say the same.
    pub unknown_blocks: u32,
    /// Whether somebody waits for it: the node closes the batch at once.
    pub is_prompt: bool,
    /// The agent's wall clock; shown to people, never used for order.
    pub time_unix_ms: u64,
    /// Which other volumes have it.
    pub group: MarkGroup,
}

/// The volumes that an attempt to mark reached at one instant: all disks of a machine, or of several.
///
/// A point of several volumes is complete if each of its members is there once, with the same attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkGroup {
    /// Drawn for the attempt; nothing but zeros for a volume alone.
    pub attempt: MarkAttempt,
    /// Which member this volume is, from 0.
    pub member: u16,
    /// How many there are.
    pub members: u16,
}

impl MarkGroup {
    /// Of a mark that no other volume has.
    pub const ALONE: Self = Self { attempt: MarkAttempt([0; 16]), member: 0, members: 1 };

    fn is_legal(self) -> bool {
        self.member < self.members && (self.members > 1) == (self.attempt.0 != [0; 16])
    }
}

impl Default for MarkGroup {
    fn default() -> Self {
        Self::ALONE
    }
}

impl Mark {
    /// Appends the mark.
    ///
    /// # Panics
    /// If the group is not legal: a bug in the caller.
    pub fn put(&self, out: &mut Vec<u8>) {
        assert!(self.group.is_legal(), "a member of a group, or alone");
        let end = out.len() + MARK_BYTES;
        out.put_bytes(&self.point.0);
        out.put_u64(self.time_unix_ms);
        out.put_u8(self.kind.code());
        out.put_u8(if self.is_prompt { PROMPT } else { 0 });
        out.put_zeros(2);
        out.put_u32(self.unknown_blocks);
        out.put_bytes(&self.group.attempt.0);
        out.put_u16(self.group.member);
        out.put_u16(self.group.members);
        out.put_zeros(end - out.len());
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// `Newer` for a kind or a flag that is not known; by the field that is wrong.
    pub fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let point = PointId(reader.array()?);
        let time_unix_ms = reader.u64()?;
        let code = reader.u8()?;
        let flags = reader.flags("mark", PROMPT)?;
        reader.reserved(2)?;
        let kind = kind_of(code)?;
        let unknown_blocks = reader.u32()?;
        let attempt = MarkAttempt(reader.array()?);
        let group = MarkGroup { attempt, member: reader.u16()?, members: reader.u16()? };
        if !group.is_legal() {
            return Err(DecodeError::Range { what: "mark member", value: group.member.into() });
        }
        reader.reserved(12)?;
        let is_prompt = flags & PROMPT != 0;
        Ok(Self { point, kind, unknown_blocks, is_prompt, time_unix_ms, group })
    }
}

/// The kind of a mark, by its code in every format.
pub(crate) fn kind_of(code: u8) -> Result<MarkKind, DecodeError> {
    match MarkKind::from_code(code) {
        Some(kind) => Ok(kind),
        None if code == 0 => Err(DecodeError::Range { what: "mark kind", value: 0 }),
        None => Err(DecodeError::Newer { what: "mark", feature: "kind", bit: code.into() }),
    }
}
