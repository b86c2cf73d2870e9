//! The frames of what is appended.

use super::writer::Entry;
use farshore_proto::frame::{Control, FrameHeader};
use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, ZERO_BLOCKS_MAX,
};
use farshore_proto::{BlockRange, Seq, Stamp};

/// One frame on its way into a file.
pub(super) struct Frame<'a> {
    pub(super) head: Vec<u8>,
    pub(super) body: &'a [u8],
}

impl Frame<'_> {
    pub(super) fn bytes(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }
}

/// The frames of entries, from the seq `next` on, which is moved behind them.
pub(super) fn frames_of<'a>(entries: &[Entry<'a>], next: &mut Seq, stamp: Stamp) -> Vec<Frame<'a>> {
    let mut frames = Vec::with_capacity(entries.len());
    let mut take = || {
        let seq = *next;
        *next = seq.next();
        seq
    };
    for entry in entries {
        match *entry {
            Entry::Write { block, data } => {
                for (piece, number) in data.chunks(FRAME_BODY_BYTES_MAX).zip(0_u64..) {
                    let block = block + number * (FRAME_BODY_BYTES_MAX / BLOCK_BYTES) as u64;
                    let header = FrameHeader::write(take(), block, piece).stamped(stamp);
                    frames.push(Frame { head: header.encode().to_vec(), body: piece });
                }
            }
            Entry::Zero { range } => {
                let mut left = range;
                while left.count > 0 {
                    let count = left.count.min(ZERO_BLOCKS_MAX);
                    let piece = BlockRange { block: left.block, count };
                    let header = FrameHeader::zero(take(), piece).stamped(stamp);
                    frames.push(Frame { head: header.encode().to_vec(), body: &[] });
                    left = BlockRange { block: left.block + count, count: left.count - count };
                }
            }
            Entry::Mark { mark } => {
                let head = Control::Mark(take(), mark).encode_stamped(stamp);
                assert!(head.len() > FRAME_HEADER_BYTES, "a mark has a body");
                frames.push(Frame { head, body: &[] });
            }
        }
    }
    frames
}
