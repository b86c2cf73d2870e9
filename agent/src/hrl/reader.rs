//! Reading frames back for the session, as they lie on the wire.

use super::{Log, LogError};
use crate::files::FileIo;
use farshore_proto::frame::{Control, FrameHeader, FrameKind, imprint};
use farshore_proto::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HRL_HEADER_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{DecodeError, Imprint, Seq, Stamp};
use std::io;
use std::path::{Path, PathBuf};
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

/// A frame that the log holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Under which intents it was made.
    pub stamp: Stamp,
    /// Which it is.
    pub imprint: Imprint,
    /// A cursor behind it.
    pub behind: Cursor,
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
        let missing = LogError::Missing { seq: cursor.next };
        let Holder { file, first, end, path } = self.holder(cursor.next).ok_or(missing)?;
        let failed = |bad: Bad| bad.error(&path);
        if cursor.first != first {
            (cursor.first, cursor.offset) =
                (first, seek(&*file, first, cursor.next).map_err(failed)?);
        }
        let (seq, offset) = (cursor.next, cursor.offset);
        let length = end.saturating_sub(offset).min(bytes_max.max(FRAME_BYTES_MAX));
        buffer.clear();
        buffer.resize(usize::try_from(length).expect("a run fits memory"), 0);
        read(&*file, seq, offset, buffer).map_err(failed)?;
        let (run, bytes) = whole_frames(buffer, seq, bytes_max)
            .map_err(|(seq, at, source)| failed(Bad::Frame { seq, offset: offset + at, source }))?;
        buffer.truncate(bytes);
        cursor.offset += bytes as u64;
        cursor.next = run.last.next();
        Ok(run)
    }

    /// Whose and which the frame `seq` is, and a cursor behind it; none if the log does not hold it. Blocks.
    ///
    /// # Errors
    /// `Damaged` if it is not what was appended, `Io` if it cannot be read.
    pub fn find(&self, seq: Seq) -> Result<Option<Held>, LogError> {
        let Some(Holder { file, first, path, .. }) = self.holder(seq) else { return Ok(None) };
        let found = seek(&*file, first, seq).and_then(|at| Ok((at, header_at(&*file, seq, at)?)));
        let (at, (header, imprint)) = found.map_err(|bad| bad.error(&path))?;
        let offset = at + (FRAME_HEADER_BYTES + header.body_bytes) as u64;
        let behind = Cursor { next: seq.next(), first, offset };
        Ok(Some(Held { stamp: header.stamp, imprint, behind }))
    }

    fn holder(&self, seq: Seq) -> Option<Holder> {
        let writer = self.lock();
        let index = writer.parts.partition_point(|part| part.first <= seq);
        if index == 0 || seq >= writer.next {
            return None;
        }
        let part = &writer.parts[index - 1];
        let (file, path) = (Arc::clone(&part.file), part.path.clone());
        Some(Holder { file, first: part.first, end: part.end, path })
    }
}

/// The file that holds a frame.
struct Holder {
    file: Arc<dyn FileIo>,
    first: Seq,
    end: u64,
    path: PathBuf,
}

/// Why a file does not give what was put into it.
enum Bad {
    Io(io::Error),
    Frame { seq: Seq, offset: u64, source: DecodeError },
}

impl Bad {
    fn error(self, path: &Path) -> LogError {
        let path = path.to_owned();
        match self {
            Self::Io(source) => LogError::Io { action: "read", path, source },
            Self::Frame { seq, offset, source } => LogError::Damaged { path, offset, seq, source },
        }
    }
}

/// Fills `buffer` from `offset` on, where the frame `seq` begins. A file that ends before is damaged:
/// what is read was appended.
fn read(file: &dyn FileIo, seq: Seq, offset: u64, buffer: &mut [u8]) -> Result<(), Bad> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let source =
                DecodeError::Truncated { what: "log frame", needed: buffer.len(), have: 0 };
            Bad::Frame { seq, offset, source }
        }
        _ => Bad::Io(error),
    })
}

/// The whole frames at the front of `bytes` and their length; or the seq and place of the first that
/// is not as it was appended.
///
/// Bodies are compared with their checksums as well: the node would refuse the frame, and the agent
/// would send it again and again.
fn whole_frames(
    bytes: &[u8],
    next: Seq,
    bytes_max: u64,
) -> Result<(Run, usize), (Seq, u64, DecodeError)> {
    let mut run = Run { last: Seq(next.0 - 1), marks: Vec::new() };
    let mut at = 0;
    loop {
        let seq = run.last.next();
        let bad = |error| (seq, at as u64, error);
        let Some(head) = bytes[at..].first_chunk::<FRAME_HEADER_BYTES>() else { break };
        let header = FrameHeader::decode(head).map_err(bad)?;
        if header.seq != seq || !header.kind.is_stream() {
            return Err(bad(DecodeError::Range { what: "log frame seq", value: header.seq.0 }));
        }
        let end = at + FRAME_HEADER_BYTES + header.body_bytes;
        if end > bytes.len() || (at > 0 && end as u64 > bytes_max) {
            break;
        }
        let body = &bytes[at + FRAME_HEADER_BYTES..end];
        header.check_body(body).map_err(bad)?;
        if header.kind == FrameKind::Mark {
            match Control::decode(&header, body) {
                Ok(Control::Mark(seq, mark)) => run.marks.push((seq, mark)),
                Ok(_) => unreachable!("a mark decodes to a mark"),
                Err(error) => return Err(bad(error)),
            }
        }
        run.last = seq;
        at = end;
    }
    if at == 0 {
        let needed = FRAME_HEADER_BYTES;
        let error = DecodeError::Truncated { what: "log frame", needed, have: bytes.len() };
        return Err((next, 0, error));
    }
    Ok((run, at))
}

/// The offset of the frame `wanted` in a file that begins with `first`.
fn seek(file: &dyn FileIo, first: Seq, wanted: Seq) -> Result<u64, Bad> {
    let mut offset = HRL_HEADER_BYTES as u64;
    for seq in (first.0..wanted.0).map(Seq) {
        let (header, _) = header_at(file, seq, offset)?;
        offset += (FRAME_HEADER_BYTES + header.body_bytes) as u64;
    }
    Ok(offset)
}

/// The header of the frame `seq`, which begins at `offset`, and which frame that is.
fn header_at(file: &dyn FileIo, seq: Seq, offset: u64) -> Result<(FrameHeader, Imprint), Bad> {
    let mut head = [0; FRAME_HEADER_BYTES];
    read(file, seq, offset, &mut head)?;
    let bad = |source| Bad::Frame { seq, offset, source };
    let header = FrameHeader::decode(&head).map_err(bad)?;
    if header.seq == seq {
        return Ok((header, imprint(&head)));
    }
    Err(bad(DecodeError::Range { what: "log frame seq", value: header.seq.0 }))
}
