//! The frame: what agent and node exchange, what an `.hrl` file and a journal group hold.
//!
//! Layout, kinds, features and order of operations: `docs/formats/frame.md`.

mod control;

pub use control::{Ack, Control, Hello, Refusal, RefusalReason, Welcome};

use crate::bugs::{Bug, is_on};
use crate::error::DecodeError;
use crate::ids::{BlockRange, Imprint, Seq, Stamp};
use crate::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, GREETING_BYTES_MAX,
    REFUSAL_TEXT_BYTES_MAX, VOLUME_BLOCKS_MAX, ZERO_BLOCKS_MAX,
};
use crate::mark::MARK_BYTES;
use crate::wire::{Put, Reader, check_crc, put_crc};
use control::{ACK_BYTES, HELLO_BYTES, WELCOME_BYTES};

const MAGIC: [u8; 4] = *b"FSF2";

/// Flag of a write or zero: the agent read the blocks from the disk.
const COPY: u8 = 1;
/// The body as it is: the only encoding without a feature that allows more.
const RAW: u8 = 0;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameKind {
    /// First frame of an agent.
    Hello,
    /// The node's answer to a hello.
    Welcome,
    /// Blocks with their bytes.
    Write,
    /// Blocks that are zero.
    Zero,
    /// A recovery point.
    Mark,
    /// Watermarks, node to agent.
    Ack,
    /// Why the node ends the session; the last frame it sends.
    Refusal,
    /// The agent is there and has nothing to send.
    Alive,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Welcome => 2,
            Self::Write => 3,
            Self::Zero => 4,
            Self::Mark => 5,
            Self::Ack => 6,
            Self::Refusal => 7,
            Self::Alive => 8,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Write,
            4 => Self::Zero,
            5 => Self::Mark,
            6 => Self::Ack,
            7 => Self::Refusal,
            8 => Self::Alive,
            _ => return None,
        })
    }

    /// Whether the frame is part of a volume's stream and so carries a `Seq`.
    #[must_use]
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Mark)
    }

    fn has_blocks(self) -> bool {
        matches!(self, Self::Write | Self::Zero)
    }

    fn body_bytes(self, count: u64) -> Result<std::ops::RangeInclusive<usize>, DecodeError> {
        let exact = |bytes: usize| bytes..=bytes;
        Ok(match self {
            Self::Hello => HELLO_BYTES..=GREETING_BYTES_MAX,
            Self::Welcome => WELCOME_BYTES..=GREETING_BYTES_MAX,
            Self::Write => {
                let max = FRAME_BODY_BYTES_MAX / BLOCK_BYTES;
                match usize::try_from(count) {
                    Ok(count) if count <= max => exact(count * BLOCK_BYTES),
                    _ => {
                        return Err(DecodeError::Limit {
                            what: "write blocks",
                            value: count,
                            max: max as u64,
                        });
                    }
                }
            }
            Self::Zero | Self::Alive => exact(0),
            Self::Mark => exact(MARK_BYTES),
            Self::Ack => exact(ACK_BYTES),
            Self::Refusal => 2..=REFUSAL_TEXT_BYTES_MAX + 2,
        })
    }
}

/// A decoded frame header; everything in it is in range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Place in the stream; 0 for frames outside it.
    pub seq: Seq,
    /// Blocks of a write or zero; empty otherwise.
    pub range: BlockRange,
    /// Under which intents the agent made it; nothing for frames outside the stream.
    pub stamp: Stamp,
    /// Of the frame before it in the stream; nothing if the agent does not know it.
    pub previous: Imprint,
    /// Bytes of the body that follows.
    pub body_bytes: usize,
    body_crc: u32,
    /// With those that are not known here, so that a header that is laid out again is the one that came.
    flags: u8,
}

impl FrameHeader {
    fn for_body(kind: FrameKind, seq: Seq, range: BlockRange, body: &[u8]) -> Self {
        assert!(body.len() <= FRAME_BODY_BYTES_MAX, "a frame body has a limit");
        let (body_bytes, body_crc) = (body.len(), crc32c::crc32c(body));
        let (stamp, previous) = (Stamp::default(), Imprint::default());
        Self { kind, seq, range, stamp, previous, body_bytes, body_crc, flags: 0 }
    }

    /// The header with the intents under which the frame was made.
    #[must_use]
    pub fn stamped(self, stamp: Stamp) -> Self {
        Self { stamp, ..self }
    }

    /// The header of a frame that comes behind the one with this imprint.
    #[must_use]
    pub fn behind(self, previous: Imprint) -> Self {
        Self { previous, ..self }
    }

    /// The header of a frame whose blocks the agent read from the disk, if it `is_copy`, or saw being written.
    ///
    /// # Panics
    /// If a frame without blocks is to be a copy: a bug in the caller.
    #[must_use]
    pub fn of_copy(self, is_copy: bool) -> Self {
        assert!(!is_copy || self.kind.has_blocks(), "a copy is of blocks");
        let flags = self.flags & !COPY | if is_copy { COPY } else { 0 };
        Self { flags, ..self }
    }

    /// Whether the agent read the blocks from the disk, in a copy, a resync or a scan, and did not see them
    /// being written.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.flags & COPY != 0
    }

    /// The header of a write; `data` is 1..=256 whole blocks.
    ///
    /// # Panics
    /// If `data` is empty, too long, not whole blocks or past the largest volume, or `seq` is 0:
    /// bugs in the caller.
    #[must_use]
    pub fn write(seq: Seq, block: u64, data: &[u8]) -> Self {
        assert!(seq > Seq(0) && !data.is_empty() && data.len().is_multiple_of(BLOCK_BYTES));
        let range = BlockRange { block, count: (data.len() / BLOCK_BYTES) as u64 };
        assert!(range.count <= VOLUME_BLOCKS_MAX && block <= VOLUME_BLOCKS_MAX - range.count);
        Self::for_body(FrameKind::Write, seq, range, data)
    }

    /// The header of a zero frame of 1..=`ZERO_BLOCKS_MAX` blocks.
    ///
    /// # Panics
    /// If the range is empty, too long or past the largest volume, or `seq` is 0: bugs in the
    /// caller.
    #[must_use]
    pub fn zero(seq: Seq, range: BlockRange) -> Self {
        assert!(seq > Seq(0) && range.count > 0 && range.count <= ZERO_BLOCKS_MAX);
        assert!(range.block <= VOLUME_BLOCKS_MAX - range.count);
        Self::for_body(FrameKind::Zero, seq, range, &[])
    }

    /// Lays the header out.
    ///
    /// # Panics
    /// If the length of the body or the count was changed to one over its field: a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = Vec::with_capacity(FRAME_HEADER_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u8(self.kind.code());
        out.put_bytes(&self.previous.to_bytes());
        out.put_u64(self.seq.0);
        out.put_u64(self.range.block);
        out.put_u24(u32::try_from(self.range.count).expect("checked when made"));
        out.put_u8(self.flags);
        out.put_u32(self.stamp.life);
        out.put_u24(u32::try_from(self.body_bytes).expect("checked when made"));
        out.put_u8(RAW);
        out.put_u32(self.body_crc);
        out.put_u32(self.stamp.generation);
        put_crc(&mut out, 0);
        out.try_into().expect("the fields add up to the header")
    }

    /// Reads a header and checks every field against its limit.
    ///
    /// # Errors
    /// `Newer` for a kind, a flag or an encoding that is not known; by the field that is wrong. Nothing has been
    /// allocated by then.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("frame header", bytes);
        reader.magic(MAGIC)?;
        check_crc("frame header", bytes)?;
        let kind = take_kind(&mut reader)?;
        let previous = Imprint::from_bytes(reader.array()?);
        let seq = Seq(reader.u64()?);
        let range = BlockRange { block: reader.u64()?, count: reader.u24()?.into() };
        let flags = take_flags(&mut reader, kind)?;
        let life = reader.u32()?;
        let body_bytes = reader.u24()? as usize;
        let encoding = reader.u8()?;
        if encoding != RAW {
            return Err(newer("encoding", encoding));
        }
        let body_crc = reader.u32()?;
        let stamp = Stamp { life, generation: reader.u32()? };
        let header = Self { kind, seq, range, stamp, previous, body_bytes, body_crc, flags };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), DecodeError> {
        let Self { kind, seq, range, stamp, previous, body_bytes, .. } = *self;
        if stamp != Stamp::default() && (stamp.life == 0 || !kind.is_stream()) {
            return Err(DecodeError::Range { what: "frame stamp", value: stamp.to_u64() });
        }
        if previous.is_known() && !kind.is_stream() {
            let [a, b, c] = previous.to_bytes();
            let value = u32::from_le_bytes([a, b, c, 0]).into();
            return Err(DecodeError::Range { what: "frame previous", value });
        }
        if kind.is_stream() == (seq == Seq(0)) || seq.0 == u64::MAX {
            return Err(DecodeError::Range { what: "frame seq", value: seq.0 });
        }
        check_range(kind, range)?;
        let legal = kind.body_bytes(range.count)?;
        if !legal.contains(&body_bytes) {
            return Err(DecodeError::Range { what: "frame body length", value: body_bytes as u64 });
        }
        Ok(())
    }

    /// Checks the body against the header.
    ///
    /// # Errors
    /// `Truncated` if the length differs, `Checksum` if the bytes do.
    pub fn check_body(&self, body: &[u8]) -> Result<(), DecodeError> {
        if body.len() != self.body_bytes {
            return Err(DecodeError::Truncated {
                what: "frame body",
                needed: self.body_bytes,
                have: body.len(),
            });
        }
        if crc32c::crc32c(body) != self.body_crc && !is_on(Bug::FrameChecksumIgnored) {
            return Err(DecodeError::Checksum { what: "frame body" });
        }
        Ok(())
    }
}

/// How a frame of the stream is tied to the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Which frame it is behind, as its header says.
    pub previous: Imprint,
    /// Which it is.
    pub imprint: Imprint,
}

impl Link {
    /// Of a frame whose header was decoded from these bytes.
    #[must_use]
    pub fn of(header: &FrameHeader, bytes: &[u8; FRAME_HEADER_BYTES]) -> Self {
        Self { previous: header.previous, imprint: imprint(bytes) }
    }
}

/// Which frame it is that begins with this header.
#[must_use]
pub fn imprint(header: &[u8; FRAME_HEADER_BYTES]) -> Imprint {
    let [.., a, b, c, d] = *header;
    Imprint::of(u32::from_le_bytes([a, b, c, d]))
}

fn newer(feature: &'static str, bit: u8) -> DecodeError {
    DecodeError::Newer { what: "frame", feature, bit: bit.into() }
}

fn take_kind(reader: &mut Reader<'_>) -> Result<FrameKind, DecodeError> {
    let code = reader.u8()?;
    match FrameKind::from_code(code) {
        Some(kind) => Ok(kind),
        None if code == 0 => Err(DecodeError::Range { what: "frame kind", value: 0 }),
        None => Err(newer("kind", code)),
    }
}

fn take_flags(reader: &mut Reader<'_>, kind: FrameKind) -> Result<u8, DecodeError> {
    let flags = reader.flags("frame", COPY)?;
    if flags & COPY != 0 && !kind.has_blocks() {
        return Err(DecodeError::Range { what: "frame flags", value: flags.into() });
    }
    Ok(flags)
}

fn check_range(kind: FrameKind, range: BlockRange) -> Result<(), DecodeError> {
    let max = match kind {
        FrameKind::Write => (FRAME_BODY_BYTES_MAX / BLOCK_BYTES) as u64,
        FrameKind::Zero => ZERO_BLOCKS_MAX,
        _ if range.block == 0 && range.count == 0 => return Ok(()),
        _ => return Err(DecodeError::Range { what: "frame range", value: range.block }),
    };
    if range.count == 0 || range.count > max {
        return Err(DecodeError::Limit { what: "frame blocks", value: range.count, max });
    }
    if range.block > VOLUME_BLOCKS_MAX - range.count {
        return Err(DecodeError::Range { what: "frame first block", value: range.block });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
