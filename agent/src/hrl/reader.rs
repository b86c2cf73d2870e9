//! Reading frames back for the session, as they lie on the wire.

use super::{Log, LogError};
use farshore_proto::frame::{Control, FrameHeader, FrameKind, Mark};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HRL_HEADER_BYTES};
use farshore_proto::{DecodeError, Seq};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const FRAME_BYTES_MAX: u64 = (FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX) as u64;

/// A place in the log from which frames are read in order.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    next: Seq,
    /// First seq of the file that `offset` belongs to; 0 if none was looked up yet.
    first: Seq,
    offset: u64,
}

impl Cursor {
    /// A cursor before the frame `next`.
    #[must_use]
    pub fn at(next: Seq) -> Self {
        Self { next, first: Seq(0), offset: 0 }
    }

    /// The seq of the next frame.
    #[must_use]
    pub fn next(&self) -> Seq {
        self.next
    }
}

/// What one read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Seq of the last frame.
    pub last: Seq,
    /// The marks among the frames.
    pub marks: Vec<(Seq, Mark)>,
}

impl Log {
    /// Reads whole frames from the cursor on into `buffer` (emptied first): at most `bytes_max`
    /// bytes but at least one frame. Moves the cursor behind them; blocks.
    ///
    /// # Errors
    /// `Missing` if the next frame is not in the log, `Damaged` if it is not what was appended,
    /// `Io` if it cannot be read.
    ///
    /// # Panics
    /// Never: a run is bounded by the largest frame or by `bytes_max`, which fits memory.
    pub fn read_run(
        &self,
        cursor: &mut Cursor,
        bytes_max: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Run, LogError> {
        let (file, first, end, path) = {
            let writer = self.lock();
            let index = writer.parts.partition_point(|part| part.first <= cursor.next);
            if index == 0 || cursor.next >= writer.next {
                return Err(LogError::Missing { seq: cursor.next });
            }
            let part = &writer.parts[index - 1];
            (Arc::clone(&part.file), part.first, part.end, part.path.clone())
        };
        let failed = |source| LogError::Io { action: "read", path, source };
        if cursor.first != first {
            (cursor.first, cursor.offset) = (first, seek(&file, first, cursor.next)?);
        }
        let length = (end - cursor.offset).min(bytes_max.max(FRAME_BYTES_MAX));
        buffer.clear();
        buffer.resize(usize::try_from(length).expect("a run fits memory"), 0);
        if let Err(source) = file.read_exact_at(buffer, cursor.offset) {
            return Err(failed(source));
        }
        let (run, bytes) = whole_frames(buffer, cursor.next, bytes_max)
            .map_err(|(seq, source)| LogError::Damaged { seq, source })?;
        buffer.truncate(bytes);
        cursor.offset += bytes as u64;
        cursor.next = run.last.next();
        Ok(run)
    }
}

/// The whole frames at the front of `bytes` and their length.
fn whole_frames(
    bytes: &[u8],
    next: Seq,
    bytes_max: u64,
) -> Result<(Run, usize), (Seq, DecodeError)> {
    let mut run = Run { last: Seq(next.0 - 1), marks: Vec::new() };
    let mut at = 0;
    loop {
        let seq = run.last.next();
        let Some(head) = bytes[at..].first_chunk::<FRAME_HEADER_BYTES>() else { break };
        let header = FrameHeader::decode(head).map_err(|error| (seq, error))?;
        if header.seq != seq || !header.kind.is_stream() {
            return Err((seq, DecodeError::Range { what: "log frame seq", value: header.seq.0 }));
        }
        let end = at + FRAME_HEADER_BYTES + header.body_bytes;
        if end > bytes.len() || (at > 0 && end as u64 > bytes_max) {
            break;
        }
        if header.kind == FrameKind::Mark {
            let body = &bytes[at + FRAME_HEADER_BYTES..end];
            match Control::decode(&header, body) {
                Ok(Control::Mark(seq, mark)) => run.marks.push((seq, mark)),
                Ok(_) => unreachable!("a mark decodes to a mark"),
                Err(error) => return Err((seq, error)),
            }
        }
        run.last = seq;
        at = end;
    }
    if at == 0 {
        let needed = FRAME_HEADER_BYTES;
        let error = DecodeError::Truncated { what: "log frame", needed, have: bytes.len() };
        return Err((next, error));
    }
    Ok((run, at))
}

/// The offset of the frame `wanted` in a file that begins with `first`.
fn seek(file: &File, first: Seq, wanted: Seq) -> Result<u64, LogError> {
    let mut offset = HRL_HEADER_BYTES as u64;
    let mut head = [0; FRAME_HEADER_BYTES];
    for seq in first.0..wanted.0 {
        let damaged = |source| LogError::Damaged { seq: Seq(seq), source };
        if let Err(error) = file.read_exact_at(&mut head, offset) {
            return Err(match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(DecodeError::Truncated {
                    what: "log frame",
                    needed: FRAME_HEADER_BYTES,
                    have: 0,
                }),
                _ => LogError::Io { action: "read", path: "the log".into(), source: error },
            });
        }
        let header = FrameHeader::decode(&head).map_err(damaged)?;
        offset += (FRAME_HEADER_BYTES + header.body_bytes) as u64;
    }
    Ok(offset)
}
