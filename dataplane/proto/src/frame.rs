//! The frame: what agent and node exchange, what an `.hrl` file and a journal group hold.
//!
//! Layout, kinds and order of operations: `docs/formats/frame.md`.

use crate::bugs::{Bug, is_on};
use crate::error::DecodeError;
use crate::ids::{BlockRange, Epoch, Imprint, Seq, Stamp, VolumeId};
use crate::mark::MARK_BYTES;
pub use crate::mark::Mark;
use crate::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, REFUSAL_TEXT_BYTES_MAX, SEQ_CLAIMED_MAX,
    VOLUME_BLOCKS_MAX, VOLUME_BYTES_MAX, ZERO_BLOCKS_MAX,
};
use crate::wire::{Put, Reader, check_crc, put_crc};

const MAGIC: [u8; 4] = *b"FSF1";
const HELLO_BYTES: usize = 64;
const WELCOME_BYTES: usize = 40;
const ACK_BYTES: usize = 16;

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

    fn body_bytes(self, count: u64) -> Result<std::ops::RangeInclusive<usize>, DecodeError> {
        let exact = |bytes: usize| bytes..=bytes;
        Ok(match self {
            Self::Hello => exact(HELLO_BYTES),
            Self::Welcome => exact(WELCOME_BYTES),
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
}

impl FrameHeader {
    fn for_body(kind: FrameKind, seq: Seq, range: BlockRange, body: &[u8]) -> Self {
        assert!(body.len() <= FRAME_BODY_BYTES_MAX, "a frame body has a limit");
        let (body_bytes, body_crc) = (body.len(), crc32c::crc32c(body));
        let (stamp, previous) = (Stamp::default(), Imprint::default());
        Self { kind, seq, range, stamp, previous, body_bytes, body_crc }
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
        out.put_u32(u32::try_from(self.range.count).expect("checked when made"));
        out.put_u32(self.stamp.life);
        out.put_u32(u32::try_from(self.body_bytes).expect("checked when made"));
        out.put_u32(self.body_crc);
        out.put_u32(self.stamp.generation);
        put_crc(&mut out, 0);
        out.try_into().expect("the fields add up to the header")
    }

    /// Reads a header and checks every field against its limit.
    ///
    /// # Errors
    /// By the field that is wrong; nothing has been allocated by then.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("frame header", bytes);
        reader.magic(MAGIC)?;
        check_crc("frame header", bytes)?;
        let code = reader.u8()?;
        let kind = FrameKind::from_code(code)
            .ok_or(DecodeError::Range { what: "frame kind", value: code.into() })?;
        let previous = Imprint::from_bytes(reader.array()?);
        let seq = Seq(reader.u64()?);
        let range = BlockRange { block: reader.u64()?, count: reader.u32()?.into() };
        let life = reader.u32()?;
        let body_bytes = reader.u32()? as usize;
        let body_crc = reader.u32()?;
        let stamp = Stamp { life, generation: reader.u32()? };
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
        Ok(Self { kind, seq, range, stamp, previous, body_bytes, body_crc })
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

/// What an agent says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The volume of this session.
    pub volume: VolumeId,
    /// Under which epoch it writes.
    pub epoch: Epoch,
    /// Size of the disk; a multiple of the block size.
    pub size_bytes: u64,
    /// Lowest seq that the agent can still send.
    pub first_seq: Seq,
    /// Highest seq in the agent's log; 0 if none.
    pub last_seq: Seq,
    /// Time between two marks.
    pub mark_interval_ms: u32,
    /// Drawn at each start of the agent: who speaks. Not 0.
    pub life: u32,
    /// Whether the agent's last session was ended because another session took its volume over. Only
    /// a second living holder does that: an agent reads nothing from a session that it gave up.
    pub is_overtaken: bool,
}

/// The node's answer to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// Highest seq the node has; the agent goes on with the next.
    pub received: Seq,
    /// Highest seq safe in the node's journal or the vault.
    pub journaled: Seq,
    /// Highest seq safe in the vault.
    pub committed: Seq,
    /// Bytes the agent may have sent beyond the journaled watermark.
    pub window_bytes: u32,
    /// Stamp of the frame at `received`; nothing if the node does not know.
    pub stamp: Stamp,
    /// Which frame that at `received` is; nothing if the node does not know.
    pub imprint: Imprint,
}

/// Watermarks: all of the stream up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Safe in the node's journal.
    pub journaled: Seq,
    /// Safe in the vault.
    pub committed: Seq,
}

/// Why a node ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for programs.
    pub reason: RefusalReason,
    /// The reason, for people.
    pub text: String,
}

/// The reasons of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalReason {
    /// The frame breaks the protocol.
    Protocol,
    /// The volume is not assigned to this node and agent; ask the control plane again.
    NotAssigned,
    /// A newer epoch owns the volume.
    Fenced,
    /// The disk does not fit what the vault holds.
    Size,
    /// The seqs do not join: the agent's log begins after what the node has.
    Gap,
    /// The node cannot go on now; try again.
    Unavailable,
    /// Over a limit.
    Limit,
    /// Another session took the volume over.
    Overtaken,
    /// Two living holders claim the volume; see the text.
    Contested,
}

impl RefusalReason {
    fn code(self) -> u16 {
        match self {
            Self::Protocol => 1,
            Self::NotAssigned => 2,
            Self::Fenced => 3,
            Self::Size => 4,
            Self::Gap => 5,
            Self::Unavailable => 6,
            Self::Limit => 7,
            Self::Overtaken => 8,
            Self::Contested => 9,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Protocol,
            2 => Self::NotAssigned,
            3 => Self::Fenced,
            4 => Self::Size,
            5 => Self::Gap,
            6 => Self::Unavailable,
            7 => Self::Limit,
            8 => Self::Overtaken,
            9 => Self::Contested,
            _ => return None,
        })
    }

    /// Its word in logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::NotAssigned => "not_assigned",
            Self::Fenced => "fenced",
            Self::Size => "size",
            Self::Gap => "gap",
            Self::Unavailable => "unavailable",
            Self::Limit => "limit",
            Self::Overtaken => "overtaken",
            Self::Contested => "contested",
        }
    }
}

/// A frame with a small body, decoded. Writes are not here: their bytes stay in their buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// First frame of an agent.
    Hello(Hello),
    /// Answer to it.
    Welcome(Welcome),
    /// A recovery point; its seq is in the header.
    Mark(Seq, Mark),
    /// Watermarks.
    Ack(Ack),
    /// The end.
    Refusal(Refusal),
    /// A sign of life.
    Alive,
}

impl Control {
    /// Lays the whole frame out: header and body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_in(Stamp::default(), Imprint::default())
    }

    /// As [`Control::encode`], for a frame of the stream that was made under these intents and comes behind
    /// the frame with this imprint.
    #[must_use]
    pub fn encode_in(&self, stamp: Stamp, previous: Imprint) -> Vec<u8> {
        let mut body = Vec::with_capacity(64);
        let (kind, seq) = match self {
            Self::Hello(hello) => (put_hello(&mut body, hello), Seq(0)),
            Self::Welcome(welcome) => {
                body.put_u64(welcome.received.0);
                body.put_u64(welcome.journaled.0);
                body.put_u64(welcome.committed.0);
                body.put_u32(welcome.window_bytes);
                body.put_stamp(welcome.stamp);
                body.put_bytes(&welcome.imprint.to_bytes());
                body.put_zeros(1);
                (FrameKind::Welcome, Seq(0))
            }
            Self::Mark(seq, mark) => (put_mark(&mut body, mark), *seq),
            Self::Ack(ack) => {
                body.put_u64(ack.journaled.0);
                body.put_u64(ack.committed.0);
                (FrameKind::Ack, Seq(0))
            }
            Self::Refusal(refusal) => {
                body.put_u16(refusal.reason.code());
                let mut end = refusal.text.len().min(REFUSAL_TEXT_BYTES_MAX);
                while !refusal.text.is_char_boundary(end) {
                    end -= 1;
                }
                body.put_bytes(&refusal.text.as_bytes()[..end]);
                (FrameKind::Refusal, Seq(0))
            }
            Self::Alive => (FrameKind::Alive, Seq(0)),
        };
        let header = FrameHeader::for_body(kind, seq, BlockRange { block: 0, count: 0 }, &body);
        let mut out = header.stamped(stamp).behind(previous).encode().to_vec();
        out.put_bytes(&body);
        out
    }

    /// Decodes the body of a frame whose kind is not write or zero.
    ///
    /// # Errors
    /// If the checksum or a field is wrong.
    ///
    /// # Panics
    /// If the header is that of a write or zero: those have no small body.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, DecodeError> {
        header.check_body(body)?;
        let mut reader = Reader::new("frame body", body);
        let control = match header.kind {
            FrameKind::Hello => Self::Hello(take_hello(&mut reader)?),
            FrameKind::Welcome => {
                let welcome = Welcome {
                    received: take_claim(&mut reader, "welcome received")?,
                    journaled: take_claim(&mut reader, "welcome journaled")?,
                    committed: take_claim(&mut reader, "welcome committed")?,
                    window_bytes: reader.u32()?,
                    stamp: reader.stamp("welcome stamp")?,
                    imprint: Imprint::from_bytes(reader.array()?),
                };
                reader.reserved(1)?;
                Self::Welcome(welcome)
            }
            FrameKind::Mark => Self::Mark(header.seq, Mark::take(&mut reader)?),
            FrameKind::Ack => Self::Ack(Ack {
                journaled: take_claim(&mut reader, "ack journaled")?,
                committed: take_claim(&mut reader, "ack committed")?,
            }),
            FrameKind::Refusal => {
                let code = reader.u16()?;
                let reason = RefusalReason::from_code(code)
                    .ok_or(DecodeError::Range { what: "refusal reason", value: code.into() })?;
                let text = std::str::from_utf8(reader.take(reader.left())?)
                    .map_err(|_| DecodeError::Text { what: "refusal text" })?;
                Self::Refusal(Refusal { reason, text: text.to_owned() })
            }
            FrameKind::Alive => Self::Alive,
            FrameKind::Write | FrameKind::Zero => unreachable!("writes are not control frames"),
        };
        reader.finish()?;
        Ok(control)
    }
}

/// A seq that a peer says it has: whoever believes it counts on from there.
fn take_claim(reader: &mut Reader<'_>, what: &'static str) -> Result<Seq, DecodeError> {
    let value = reader.u64()?;
    if value > SEQ_CLAIMED_MAX {
        return Err(DecodeError::Range { what, value });
    }
    Ok(Seq(value))
}

fn put_hello(body: &mut Vec<u8>, hello: &Hello) -> FrameKind {
    body.put_bytes(&hello.volume.0);
    body.put_u64(hello.epoch.0);
    body.put_u64(hello.size_bytes);
    body.put_u64(hello.first_seq.0);
    body.put_u64(hello.last_seq.0);
    body.put_u32(hello.mark_interval_ms);
    body.put_u32(hello.life);
    body.put_u8(u8::from(hello.is_overtaken));
    body.put_zeros(7);
    FrameKind::Hello
}

fn take_hello(reader: &mut Reader<'_>) -> Result<Hello, DecodeError> {
    let hello = Hello {
        volume: VolumeId(reader.array()?),
        epoch: Epoch(reader.u64()?),
        size_bytes: reader.u64()?,
        first_seq: take_claim(reader, "hello first seq")?,
        last_seq: take_claim(reader, "hello last seq")?,
        mark_interval_ms: reader.u32()?,
        life: reader.u32()?,
        is_overtaken: match reader.u8()? {
            0 => false,
            1 => true,
            other => {
                return Err(DecodeError::Range { what: "hello overtaken", value: other.into() });
            }
        },
    };
    reader.reserved(7)?;
    if hello.life == 0 {
        return Err(DecodeError::Range { what: "hello life", value: 0 });
    }
    if hello.size_bytes == 0 || hello.size_bytes > VOLUME_BYTES_MAX {
        return Err(DecodeError::Range { what: "hello size", value: hello.size_bytes });
    }
    if hello.epoch == Epoch(0) {
        return Err(DecodeError::Range { what: "hello epoch", value: 0 });
    }
    if hello.first_seq == Seq(0) || hello.first_seq > hello.last_seq.next() {
        return Err(DecodeError::Range { what: "hello first seq", value: hello.first_seq.0 });
    }
    Ok(hello)
}

fn put_mark(body: &mut Vec<u8>, mark: &Mark) -> FrameKind {
    mark.put(body);
    FrameKind::Mark
}

#[cfg(test)]
mod tests;
