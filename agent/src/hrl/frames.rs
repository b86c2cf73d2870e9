//! The frames of what is appended.

use super::writer::Entry;
use farshore_proto::frame::{Control, FrameHeader, imprint};
use farshore_proto::limits::{
    BLOCK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, ZERO_BLOCKS_MAX,
};
use farshore_proto::{BlockRange, Imprint, Seq, Stamp};

/// One frame on its way into a file.
pub(super) struct Frame<'a> {
    pub(super) head: Vec<u8>,
    pub(super) body: &'a [u8],
}

impl Frame<'_> {
    pub(super) fn bytes(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }

    pub(super) fn imprint(&self) -> Imprint {
        imprint(self.head.first_chunk().expect("a frame has a header"))
    }
}

/// Where the next frame goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    pub(super) next: Seq,
    /// Of the frame before it; nothing if that is not known.
    pub(super) previous: Imprint,
    /// Under which intents it is made.
    pub(super) stamp: Stamp,
}

impl Behind {
    fn take<'a>(&mut self, head: impl FnOnce(&Self) -> Vec<u8>, body: &'a [u8]) -> Frame<'a> {
        let frame = Frame { head: head(self), body };
        (self.next, self.previous) = (self.next.next(), frame.imprint());
        frame
    }
}

/// The frames of entries.
pub(super) fn frames_of<'a>(entries: &[Entry<'a>], mut at: Behind) -> Vec<Frame<'a>> {
    let mut frames = Vec::with_capacity(entries.len());
    let laid_out = |header: FrameHeader, at: &Behind| {
        header.stamped(at.stamp).behind(at.previous).encode().to_vec()
    };
    for entry in entries {
        match *entry {
            Entry::Write { block, data, is_copy } => {
                for (piece, number) in data.chunks(FRAME_BODY_BYTES_MAX).zip(0_u64..) {
                    let block = block + number * (FRAME_BODY_BYTES_MAX / BLOCK_BYTES) as u64;
                    let head = |at: &Behind| {
                        laid_out(FrameHeader::write(at.next, block, piece).of_copy(is_copy), at)
                    };
                    frames.push(at.take(head, piece));
                }
            }
            Entry::Zero { range, is_copy } => {
                let mut left = range;
                while left.count > 0 {
                    let count = left.count.min(ZERO_BLOCKS_MAX);
                    let piece = BlockRange { block: left.block, count };
                    let head = |at: &Behind| {
                        laid_out(FrameHeader::zero(at.next, piece).of_copy(is_copy), at)
                    };
                    frames.push(at.take(head, &[]));
                    left = BlockRange { block: left.block + count, count: left.count - count };
                }
            }
            Entry::Mark { mark } => {
                let whole =
                    |at: &Behind| Control::Mark(at.next, mark).encode_in(at.stamp, at.previous);
                let frame = at.take(whole, &[]);
                assert!(frame.head.len() > FRAME_HEADER_BYTES, "a mark has a body");
                frames.push(frame);
            }
        }
    }
    frames
}
