//! The frames with small bodies: all but writes and zeros.

use super::{FrameHeader, FrameKind};
use crate::error::DecodeError;
use crate::ids::{BlockRange, Epoch, Imprint, Seq, Stamp, VolumeId};
use crate::limits::{REFUSAL_TEXT_BYTES_MAX, SEQ_CLAIMED_MAX, VOLUME_BYTES_MAX};
use crate::mark::Mark;
use crate::wire::{Put, Reader};

pub(super) const HELLO_BYTES: usize = 72;
pub(super) const WELCOME_BYTES: usize = 48;
pub(super) const ACK_BYTES: usize = 24;
/// The time of a node that does not say when it gathers marks.
const NOT_SAID: u32 = u32::MAX;

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
    /// The node gathers the marks of the volume next in so many milliseconds, and then every mark interval; none if
    /// it does not say.
    pub gathers_in_ms: Option<u32>,
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
    pub(super) fn code(self) -> u16 {
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

    pub(super) fn from_code(code: u16) -> Option<Self> {
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
        let mut body = Vec::with_capacity(HELLO_BYTES);
        let (kind, seq) = match self {
            Self::Hello(hello) => (put_hello(&mut body, hello), Seq(0)),
            Self::Welcome(welcome) => (put_welcome(&mut body, welcome), Seq(0)),
            Self::Mark(seq, mark) => {
                mark.put(&mut body);
                (FrameKind::Mark, *seq)
            }
            Self::Ack(ack) => {
                body.put_u64(ack.journaled.0);
                body.put_u64(ack.committed.0);
                body.put_u32(ack.gathers_in_ms.unwrap_or(NOT_SAID));
                body.put_zeros(4);
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
    /// If the checksum or a field is wrong; `Newer` for what a later program asks for.
    ///
    /// # Panics
    /// If the header is that of a write or zero: those have no small body.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, DecodeError> {
        header.check_body(body)?;
        let mut reader = Reader::new("frame body", body);
        let control = match header.kind {
            FrameKind::Hello => return take_hello(body).map(Self::Hello),
            FrameKind::Welcome => return take_welcome(body).map(Self::Welcome),
            FrameKind::Mark => Self::Mark(header.seq, Mark::take(&mut reader)?),
            FrameKind::Ack => {
                let journaled = take_claim(&mut reader, "ack journaled")?;
                let committed = take_claim(&mut reader, "ack committed")?;
                let gathers_in_ms = Some(reader.u32()?).filter(|ms| *ms != NOT_SAID);
                reader.reserved(4)?;
                Self::Ack(Ack { journaled, committed, gathers_in_ms })
            }
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
    body.put_feature_bits();
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

/// Reads a hello; what lies behind the fields that are known is of later programs.
fn take_hello(body: &[u8]) -> Result<Hello, DecodeError> {
    let reader = &mut Reader::new("hello", body);
    reader.feature_bits()?;
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

fn put_welcome(body: &mut Vec<u8>, welcome: &Welcome) -> FrameKind {
    body.put_feature_bits();
    body.put_u64(welcome.received.0);
    body.put_u64(welcome.journaled.0);
    body.put_u64(welcome.committed.0);
    body.put_u32(welcome.window_bytes);
    body.put_stamp(welcome.stamp);
    body.put_bytes(&welcome.imprint.to_bytes());
    body.put_zeros(1);
    FrameKind::Welcome
}

/// Reads a welcome, as [`take_hello`] does a hello.
fn take_welcome(body: &[u8]) -> Result<Welcome, DecodeError> {
    let reader = &mut Reader::new("welcome", body);
    reader.feature_bits()?;
    let welcome = Welcome {
        received: take_claim(reader, "welcome received")?,
        journaled: take_claim(reader, "welcome journaled")?,
        committed: take_claim(reader, "welcome committed")?,
        window_bytes: reader.u32()?,
        stamp: reader.stamp("welcome stamp")?,
        imprint: Imprint::from_bytes(reader.array()?),
    };
    reader.reserved(1)?;
    Ok(welcome)
}
