//! Frames on a connection: what the node says, and what waits to be written.

use crate::content::{Content, Write};
use crate::limits::OUT_BYTES_KEPT;
use farshore_proto::Seq;
use farshore_proto::error::DecodeError;
use farshore_proto::frame::{Ack, Control, FrameHeader, FrameKind, Refusal, Welcome};
use farshore_proto::limits::FRAME_HEADER_BYTES;
use std::io;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The answer to the hello.
    Welcome(Welcome),
    /// Watermarks.
    Ack(Ack),
    /// The end.
    Refusal(Refusal),
}

/// A node that breaks the format.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A frame that only agents send.
    #[error("the node sent a frame of kind {kind:?}, which is the agent's")]
    Kind {
        /// Its kind.
        kind: FrameKind,
    },
}

/// Takes the first whole frame off the buffer; none if more bytes are needed.
///
/// # Errors
/// [`FormatError`] if what is there is no frame of a node.
pub fn take_said(buffer: &mut Vec<u8>) -> Result<Option<Said>, FormatError> {
    let Some(head) = buffer.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let header = FrameHeader::decode(head)?;
    // Before the body is waited for: those of agents may be a mebibyte long.
    if !matches!(header.kind, FrameKind::Welcome | FrameKind::Ack | FrameKind::Refusal) {
        return Err(FormatError::Kind { kind: header.kind });
    }
    let end = FRAME_HEADER_BYTES + header.body_bytes;
    if buffer.len() < end {
        return Ok(None);
    }
    let control = Control::decode(&header, &buffer[FRAME_HEADER_BYTES..end])?;
    buffer.drain(..end);
    Ok(Some(match control {
        Control::Welcome(welcome) => Said::Welcome(welcome),
        Control::Ack(ack) => Said::Ack(ack),
        Control::Refusal(refusal) => Said::Refusal(refusal),
        Control::Hello(_) | Control::Mark(..) | Control::Alive => {
            return Err(FormatError::Kind { kind: header.kind });
        }
    }))
}

/// Frames on their way into a connection.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    /// Whether all was given to the connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a frame with a small body.
    pub fn push_control(&mut self, control: &Control) {
        self.bytes.extend_from_slice(&control.encode());
    }

    /// Appends a write; its bytes are made where they lie.
    pub fn push_write(&mut self, seq: Seq, write: &Write, content: &Content) {
        let begin = self.bytes.len();
        self.bytes.reserve(FRAME_HEADER_BYTES + write.bytes());
        self.bytes.resize(begin + FRAME_HEADER_BYTES, 0);
        content.append(write, &mut self.bytes);
        let (head, body) = self.bytes[begin..].split_at_mut(FRAME_HEADER_BYTES);
        head.copy_from_slice(&FrameHeader::write(seq, write.block, body).encode());
    }

    /// Writes all and flushes. May be dropped at any time and called again: it goes on.
    ///
    /// # Errors
    /// What the connection says.
    pub async fn write_to(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while self.written < self.bytes.len() {
            match writer.write(&self.bytes[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.written += count,
            }
        }
        writer.flush().await?;
        self.clear();
        Ok(())
    }

    /// Forgets what it holds: its connection is gone.
    pub fn clear(&mut self) {
        self.written = 0;
        self.bytes.clear();
        self.bytes.shrink_to(OUT_BYTES_KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Recipe;
    use farshore_proto::frame::RefusalReason;

    #[test]
    fn frames_are_taken_when_they_are_whole() {
        let ack = Ack { journaled: Seq(5), committed: Seq(4), gathers_in_ms: None };
        let refusal = Refusal { reason: RefusalReason::Limit, text: "too much".to_owned() };
        let mut all = Control::Ack(ack).encode();
        all.extend(Control::Refusal(refusal.clone()).encode());
        let mut buffer = Vec::new();
        let mut said = Vec::new();
        for byte in all {
            buffer.push(byte);
            said.extend(take_said(&mut buffer).unwrap());
        }
        assert_eq!(said, [Said::Ack(ack), Said::Refusal(refusal)]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_node_that_breaks_the_format_is_found_by_the_header() {
        let mut damaged =
            Control::Ack(Ack { journaled: Seq(5), committed: Seq(4), gathers_in_ms: None })
                .encode();
        damaged[20] ^= 1;
        assert!(matches!(take_said(&mut damaged), Err(FormatError::Decode(_))));
        let mut write = FrameHeader::write(Seq(1), 0, &[0; 4096]).encode().to_vec();
        assert!(matches!(take_said(&mut write), Err(FormatError::Kind { .. })));
    }

    #[test]
    fn a_write_is_a_frame_that_the_codec_accepts() {
        let content = Content::new(Recipe {
            seed: 1,
            sources: 1,
            mix: "8KiB".parse().unwrap(),
            zeros: 0,
            duplicates: 0,
            compressible: 50,
            volume_blocks: 1 << 10,
        });
        let write = content.write(0, 3);
        let mut outbox = Outbox::default();
        outbox.push_write(Seq(9), &write, &content);
        let (head, body) = outbox.bytes.split_first_chunk().unwrap();
        let header = FrameHeader::decode(head).unwrap();
        header.check_body(body).unwrap();
        assert_eq!((header.seq, header.range.block, header.range.count), (Seq(9), write.block, 2));
    }
}
