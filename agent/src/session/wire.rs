//! Frames from the node: few kinds, all small, each checked before anything is allocated.

use farshore_proto::frame::{Ack, Control, FrameHeader, FrameKind, Refusal, Welcome};
use farshore_proto::limits::{FRAME_HEADER_BYTES, GREETING_BYTES_MAX, REFUSAL_TEXT_BYTES_MAX};
use farshore_proto::{DecodeError, ErrorKind};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

const BODY_BYTES_MAX: usize = REFUSAL_TEXT_BYTES_MAX + 2;

const _: () = assert!(GREETING_BYTES_MAX <= BODY_BYTES_MAX);

/// What a node may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The answer to the hello.
    Welcome(Welcome),
    /// Watermarks.
    Ack(Ack),
    /// The end of the session.
    Refusal(Refusal),
}

/// Why nothing more can be read from a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection ended or failed.
    #[error("the connection to the node broke")]
    Io(#[from] io::Error),
    /// A frame cannot be decoded.
    #[error("the node sent a frame that cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// A frame that a node must not send to an agent.
    #[error("the node sent a frame of kind {kind:?}, which is not for agents")]
    Kind {
        /// Its kind.
        kind: FrameKind,
    },
}

impl WireError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::Unavailable,
            Self::Decode(_) | Self::Kind { .. } => ErrorKind::Invalid,
        }
    }
}

/// The header of a frame from a node, checked before its body is read.
///
/// # Errors
/// [`WireError`] if it is none, or of a frame that is not for agents.
pub fn said_header(head: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, WireError> {
    let header = FrameHeader::decode(head)?;
    let is_ours = matches!(header.kind, FrameKind::Welcome | FrameKind::Ack | FrameKind::Refusal);
    if !is_ours || header.body_bytes > BODY_BYTES_MAX {
        return Err(WireError::Kind { kind: header.kind });
    }
    Ok(header)
}

impl Said {
    /// What a frame says.
    ///
    /// # Errors
    /// [`WireError`] if its body does not fit its header, or is not for agents.
    pub fn of(header: &FrameHeader, body: &[u8]) -> Result<Self, WireError> {
        match Control::decode(header, body)? {
            Control::Welcome(welcome) => Ok(Self::Welcome(welcome)),
            Control::Ack(ack) => Ok(Self::Ack(ack)),
            Control::Refusal(refusal) => Ok(Self::Refusal(refusal)),
            Control::Hello(_) | Control::Mark(..) | Control::Alive => {
                Err(WireError::Kind { kind: header.kind })
            }
        }
    }
}

/// Reads one frame.
pub(super) async fn read_said(from: &mut (impl AsyncRead + Unpin)) -> Result<Said, WireError> {
    let mut head = [0; FRAME_HEADER_BYTES];
    from.read_exact(&mut head).await?;
    let header = said_header(&head)?;
    let mut body = [0; BODY_BYTES_MAX];
    let body = &mut body[..header.body_bytes];
    from.read_exact(body).await?;
    Said::of(&header, body)
}
