//! Frames from the node: few kinds, all small, each checked before anything is allocated.

use farshore_proto::frame::{Ack, Control, FrameHeader, FrameKind, Refusal, Welcome};
use farshore_proto::limits::{FRAME_HEADER_BYTES, REFUSAL_TEXT_BYTES_MAX};
use farshore_proto::{DecodeError, ErrorKind};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

const BODY_BYTES_MAX: usize = REFUSAL_TEXT_BYTES_MAX + 2;

/// What a node may say.
#[derive(Debug)]
pub(super) enum Said {
    Welcome(Welcome),
    Ack(Ack),
    Refusal(Refusal),
}

/// Why nothing more can be read from a node.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the connection to the node broke")]
    Io(#[from] io::Error),
    #[error("the node sent a malformed frame")]
    Decode(#[from] DecodeError),
    #[error("the node sent a frame of kind {kind:?}, which is not for agents")]
    Kind { kind: FrameKind },
}

impl WireError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) => ErrorKind::Unavailable,
            Self::Decode(_) | Self::Kind { .. } => ErrorKind::Invalid,
        }
    }
}

/// Reads one frame.
pub(super) async fn read_said(from: &mut (impl AsyncRead + Unpin)) -> Result<Said, WireError> {
    let mut head = [0; FRAME_HEADER_BYTES];
    from.read_exact(&mut head).await?;
    let header = FrameHeader::decode(&head)?;
    let is_ours = matches!(header.kind, FrameKind::Welcome | FrameKind::Ack | FrameKind::Refusal);
    if !is_ours || header.body_bytes > BODY_BYTES_MAX {
        return Err(WireError::Kind { kind: header.kind });
    }
    let mut body = [0; BODY_BYTES_MAX];
    let body = &mut body[..header.body_bytes];
    from.read_exact(body).await?;
    match Control::decode(&header, body)? {
        Control::Welcome(welcome) => Ok(Said::Welcome(welcome)),
        Control::Ack(ack) => Ok(Said::Ack(ack)),
        Control::Refusal(refusal) => Ok(Said::Refusal(refusal)),
        Control::Hello(_) | Control::Mark(..) => Err(WireError::Kind { kind: header.kind }),
    }
}
