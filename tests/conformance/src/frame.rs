//! Frames by hand, from the tables of `docs/formats/frame.md` and nothing else: any field may be
//! wrong. Farshore's own codec is not used, so a mistake in it is not made twice.

use anyhow::{Context, Result, bail, ensure};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 48;

/// Kinds of frames.
pub mod kind {
    /// The agent's first.
    pub const HELLO: u8 = 1;
    /// The node's answer.
    pub const WELCOME: u8 = 2;
    /// Blocks.
    pub const WRITE: u8 = 3;
    /// Zeros.
    pub const ZERO: u8 = 4;
    /// A recovery point.
    pub const MARK: u8 = 5;
    /// Watermarks.
    pub const ACK: u8 = 6;
    /// The end.
    pub const REFUSAL: u8 = 7;
    /// A sign of life.
    pub const ALIVE: u8 = 8;
}

/// Reasons of a refusal.
pub mod reason {
    /// The frame breaks the protocol.
    pub const PROTOCOL: u16 = 1;
    /// The volume is not this agent's, or not on this node.
    pub const NOT_ASSIGNED: u16 = 2;
    /// A newer epoch owns the volume.
    pub const FENCED: u16 = 3;
    /// The disk has another size.
    pub const SIZE: u16 = 4;
    /// The seqs do not join.
    pub const GAP: u16 = 5;
    /// Not now.
    pub const UNAVAILABLE: u16 = 6;
    /// Too much.
    pub const LIMIT: u16 = 7;
    /// Another session took the volume over.
    pub const OVERTAKEN: u16 = 8;
    /// Two living holders.
    pub const CONTESTED: u16 = 9;

    /// Its word in the node's counters.
    #[must_use]
    pub fn word(reason: u16) -> &'static str {
        match reason {
            PROTOCOL => "protocol",
            NOT_ASSIGNED => "not_assigned",
            FENCED => "fenced",
            SIZE => "size",
            GAP => "gap",
            UNAVAILABLE => "unavailable",
            LIMIT => "limit",
            OVERTAKEN => "overtaken",
            CONTESTED => "contested",
            _ => "unknown",
        }
    }
}

/// A frame of which every field may be wrong. What is `None` is computed and right.
#[derive(Clone, Debug)]
pub struct Frame {
    /// `FSF2`.
    pub magic: [u8; 4],
    /// What it is.
    pub kind: u8,
    /// Imprint of the frame before; zero if it is not known.
    pub previous: [u8; 3],
    /// Place in the stream.
    pub seq: u64,
    /// First block.
    pub block: u64,
    /// Blocks, of which three bytes are sent.
    pub count: u64,
    /// Bit 0 a copy; the others are of later programs.
    pub flags: u8,
    /// Number of the run.
    pub life: u32,
    /// Length of the body, of which three bytes are sent.
    pub length: Option<u32>,
    /// Of the body: 0 raw.
    pub encoding: u8,
    /// CRC32C of the body.
    pub body_sum: Option<u32>,
    /// Generation of the intents.
    pub generation: u32,
    /// CRC32C of the bytes before.
    pub sum: Option<u32>,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Frame {
    /// A frame of a kind outside the stream.
    #[must_use]
    pub fn of(kind: u8, body: Vec<u8>) -> Self {
        Self {
            magic: *b"FSF2",
            kind,
            previous: [0; 3],
            seq: 0,
            block: 0,
            count: 0,
            flags: 0,
            life: 0,
            length: None,
            encoding: 0,
            body_sum: None,
            generation: 0,
            sum: None,
            body,
        }
    }

    /// A write.
    #[must_use]
    pub fn write(seq: u64, block: u64, data: Vec<u8>) -> Self {
        let count = (data.len() / BLOCK_BYTES) as u64;
        Self { seq, block, count, ..Self::of(kind::WRITE, data) }
    }

    /// A run of zeros.
    #[must_use]
    pub fn zero(seq: u64, block: u64, count: u64) -> Self {
        Self { seq, block, count, ..Self::of(kind::ZERO, Vec::new()) }
    }

    /// A recovery point.
    #[must_use]
    pub fn mark(seq: u64, mark: &Mark) -> Self {
        Self { seq, ..Self::of(kind::MARK, mark.bytes()) }
    }

    /// The header and the body.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(HEADER_BYTES + self.body.len());
        out.extend(self.magic);
        out.push(self.kind);
        out.extend(self.previous);
        out.extend(self.seq.to_le_bytes());
        out.extend(self.block.to_le_bytes());
        out.extend(&self.count.to_le_bytes()[..3]);
        out.push(self.flags);
        out.extend(self.life.to_le_bytes());
        out.extend(&self.length.unwrap_or(length).to_le_bytes()[..3]);
        out.push(self.encoding);
        out.extend(self.body_sum.unwrap_or_else(|| crc32c::crc32c(&self.body)).to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend(self.sum.unwrap_or_else(|| crc32c::crc32c(&out)).to_le_bytes());
        out.extend(&self.body);
        out
    }
}

/// Which frame it is that begins with a header: 24 bits of its checksum, never zero.
#[must_use]
pub fn imprint(frame: &[u8]) -> [u8; 3] {
    match frame.get(44..47) {
        Some(&[a, b, c]) if [a, b, c] != [0; 3] => [a, b, c],
        _ => [1, 0, 0],
    }
}

/// The body of a hello.
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    /// Features that are needed.
    pub must: u32,
    /// Features that are offered.
    pub may: u32,
    /// The volume.
    pub volume: [u8; 16],
    /// The epoch.
    pub epoch: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Lowest seq in the log.
    pub first_seq: u64,
    /// Highest seq in the log.
    pub last_seq: u64,
    /// Milliseconds between two marks.
    pub mark_interval: u32,
    /// Number of the run.
    pub life: u32,
    /// Whether another took the last session over.
    pub overtaken: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

impl Hello {
    /// The frame.
    #[must_use]
    pub fn frame(&self) -> Frame {
        let mut body = Vec::with_capacity(72);
        body.extend(self.must.to_le_bytes());
        body.extend(self.may.to_le_bytes());
        body.extend(self.volume);
        for field in [self.epoch, self.size, self.first_seq, self.last_seq] {
            body.extend(field.to_le_bytes());
        }
        body.extend(self.mark_interval.to_le_bytes());
        body.extend(self.life.to_le_bytes());
        body.push(self.overtaken);
        body.extend(self.reserved);
        Frame::of(kind::HELLO, body)
    }
}

/// The body of a mark.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Id of the recovery point.
    pub point: [u8; 16],
    /// The agent's clock.
    pub time: u64,
    /// What it promises.
    pub kind: u8,
    /// Bit 0 if somebody waits; the others are of later programs.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Blocks that could not be read.
    pub unknown_blocks: u32,
    /// Of the group; zero for a volume alone.
    pub attempt: [u8; 16],
    /// Which of the group it is, and of how many.
    pub member: [u16; 2],
    /// Zero.
    pub later: [u8; 12],
}

impl Mark {
    /// A crash-consistent mark that somebody waits for.
    #[must_use]
    pub fn prompt() -> Self {
        let point = uuid::Uuid::now_v7();
        let seconds = point.get_timestamp().map_or(0, |time| time.to_unix().0);
        let (point, time) = (point.into_bytes(), seconds * 1000);
        Self {
            point,
            time,
            kind: 1,
            flags: 1,
            reserved: [0; 2],
            unknown_blocks: 0,
            attempt: [0; 16],
            member: [0, 1],
            later: [0; 12],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(64);
        body.extend(self.point);
        body.extend(self.time.to_le_bytes());
        body.extend([self.kind, self.flags]);
        body.extend(self.reserved);
        body.extend(self.unknown_blocks.to_le_bytes());
        body.extend(self.attempt);
        self.member.iter().for_each(|number| body.extend(number.to_le_bytes()));
        body.extend(self.later);
        body
    }
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The answer to a hello.
    Welcome {
        /// Highest seq it has.
        received: u64,
        /// In its journal.
        journaled: u64,
        /// In the vault.
        committed: u64,
        /// Of the frame at `received`; zero if it does not know.
        imprint: [u8; 3],
    },
    /// Watermarks.
    Ack {
        /// In its journal.
        journaled: u64,
        /// In the vault.
        committed: u64,
    },
    /// The end.
    Refusal {
        /// For programs.
        reason: u16,
        /// For people.
        text: String,
    },
}

/// Length of the body behind a header of a node, which must be right in every byte.
///
/// # Errors
/// If it is not: the node breaks the format.
pub fn body_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize> {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| header[at + n]));
    ensure!(header[..4] == *b"FSF2", "the node's magic is {:?}", &header[..4]);
    ensure!(word(44) == crc32c::crc32c(&header[..44]), "the node's header has a wrong checksum");
    let zeros = [&header[5..32], &header[35..36], &header[40..44]].concat();
    ensure!(zeros.iter().all(|byte| *byte == 0), "the node's header is not zero where it must be");
    let length = (word(32) & 0xff_ffff) as usize;
    let is_legal = match header[4] {
        kind::WELCOME => (48..=512).contains(&length),
        kind::ACK => length == 24,
        kind::REFUSAL => (2..=514).contains(&length),
        other => bail!("the node sent a frame of kind {other}"),
    };
    ensure!(is_legal, "the node's frame of kind {} has {length} bytes", header[4]);
    Ok(length)
}

/// What a frame of a node says.
///
/// # Errors
/// If the body is not what the format says.
pub fn said(header: &[u8; HEADER_BYTES], body: &[u8]) -> Result<Said> {
    let sum = u32::from_le_bytes([0, 1, 2, 3].map(|n| header[36 + n]));
    ensure!(sum == crc32c::crc32c(body), "the node's body has a wrong checksum");
    let word = |at: usize| -> Result<u64> {
        let bytes = body.get(at..at + 8).context("a short body")?;
        Ok(u64::from_le_bytes(bytes.try_into()?))
    };
    Ok(match header[4] {
        kind::WELCOME => {
            ensure!(body[..4] == [0; 4], "the node takes features that nobody offered");
            let (received, journaled, committed) = (word(8)?, word(16)?, word(24)?);
            ensure!(committed <= journaled && journaled <= received, "watermarks out of order");
            ensure!(body[47] == 0, "the welcome's byte 47 is {}", body[47]);
            let imprint = [body[44], body[45], body[46]];
            Said::Welcome { received, journaled, committed, imprint }
        }
        kind::ACK => {
            let (journaled, committed) = (word(0)?, word(8)?);
            ensure!(committed <= journaled, "watermarks out of order");
            ensure!(body[20..24] == [0; 4], "the ack's reserved bytes are {:?}", &body[20..24]);
            Said::Ack { journaled, committed }
        }
        _ => {
            let reason = u16::from_le_bytes([body[0], body[1]]);
            ensure!((1..=9).contains(&reason), "the node's reason is {reason}");
            Said::Refusal { reason, text: String::from_utf8(body[2..].to_vec())? }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of `docs/formats/frame.md`.
    #[test]
    fn a_good_frame_is_the_one_in_the_document() {
        let expected: [u8; HEADER_BYTES] = [
            0x46, 0x53, 0x46, 0x32, 4, 0, 0, 0, 0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
            0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xd0, 0x73, 0xc0, 0x7a,
        ];
        assert_eq!(Frame::zero(42, 8, 1024).bytes(), expected);
    }

    #[test]
    fn what_a_node_says_is_read_strictly() {
        let ack = |journaled: u64, committed: u64, last: u64| {
            Frame::of(kind::ACK, [journaled, committed, last].map(u64::to_le_bytes).concat())
        };
        let good = ack(2, 1, 7);
        let bytes = good.bytes();
        let (header, body) = bytes.split_first_chunk().unwrap();
        assert_eq!(body_bytes(header).unwrap(), 24);
        assert_eq!(said(header, body).unwrap(), Said::Ack { journaled: 2, committed: 1 });
        for bad in [
            Frame { seq: 1, ..good.clone() },
            Frame { kind: kind::WRITE, ..good.clone() },
            Frame { generation: 1, ..good.clone() },
            Frame { sum: Some(1), ..good.clone() },
            Frame { length: Some(17), ..good.clone() },
        ] {
            let bytes = bad.bytes();
            assert!(body_bytes(bytes.first_chunk().unwrap()).is_err(), "{bad:?}");
        }
        for bad in [ack(1, 2, 7), ack(2, 1, 1 << 32)] {
            let bytes = bad.bytes();
            let (header, body) = bytes.split_first_chunk().unwrap();
            assert!(said(header, body).is_err());
        }
    }
}
