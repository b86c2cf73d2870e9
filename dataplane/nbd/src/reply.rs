//! Replies: their bytes, as a list of buffers that is written without copying the data.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::backend::{BackendError, Extent, Holds, Piece};
use crate::counters::Refusal;
use crate::limits::{EXTENTS_PER_REPLY_MAX, ZEROES_BYTES};
use crate::negotiate::Agreed;
use crate::request::{Request, advice_on, errno_of};
use crate::wire::{Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command, context};

static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    /// The pieces of a read; `whole` asks for one chunk.
    Read {
        pieces: Vec<Piece>,
        whole: bool,
    },
    Status {
        extents: Vec<Extent>,
        one: bool,
    },
    Failed {
        errno: Errno,
        text: &'static str,
    },
}

impl Outcome {
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let errno = errno_of(refusal).unwrap_or(Errno::Invalid);
        Self::Failed { errno, text: advice_on(refusal) }
    }
}

impl From<&BackendError> for Outcome {
    fn from(error: &BackendError) -> Self {
        let (errno, text) = match error {
            BackendError::NoSpace => (Errno::NoSpace, "no space is left for the disk's data"),
            BackendError::Denied => (Errno::Perm, "the disk does not permit this"),
            BackendError::Unsupported => (Errno::NotSupported, "the disk does not support this"),
            BackendError::Io { .. } => (Errno::Io, "the disk could not be read or written"),
        };
        Self::Failed { errno, text }
    }
}

/// Buffers to be sent one after the other.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    parts: VecDeque<Bytes>,
}

impl Outgoing {
    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.parts.push_back(part);
        }
    }

    fn push_piece(&mut self, piece: Piece) {
        match piece {
            Piece::Data(data) => self.push(data),
            Piece::Zeroes(length) => {
                let mut left = length as usize;
                while left > 0 {
                    let part = left.min(ZEROES.len());
                    self.push(Bytes::from_static(&ZEROES[..part]));
                    left -= part;
                }
            }
        }
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    fn has_remaining(&self) -> bool {
        !self.parts.is_empty()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, part) in into.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let front = self.parts.front_mut().expect("no more is advanced than was there");
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.parts.pop_front();
        }
    }
}

/// Lays out the reply to a request.
pub(crate) fn encode(request: &Request, outcome: Outcome, agreed: Agreed) -> Outgoing {
    let mut out = Outgoing::default();
    let cookie = request.cookie;
    match outcome {
        Outcome::Read { pieces, whole } if agreed.structured => {
            structured_read(&mut out, request, pieces, whole);
        }
        Outcome::Read { pieces, .. } => {
            out.push(simple(cookie, 0));
            pieces.into_iter().for_each(|piece| out.push_piece(piece));
        }
        Outcome::Status { extents, one } => block_status(&mut out, request, &extents, one),
        Outcome::Failed { errno, text } if agreed.structured => {
            let mut error = structured(cookie, chunk::FLAG_DONE, chunk::ERROR, 6 + text.len());
            error.put_u32(errno.number());
            error.put_u16(u16::try_from(text.len()).expect("our texts are one line"));
            error.put_slice(text.as_bytes());
            out.push(error.freeze());
        }
        Outcome::Failed { errno, .. } => out.push(simple(cookie, errno.number())),
        // A simple reply may answer anything without data, except a read.
        Outcome::Done if agreed.structured && request.command == command::READ => {
            out.push(structured(cookie, chunk::FLAG_DONE, chunk::NONE, 0).freeze());
        }
        Outcome::Done => out.push(simple(cookie, 0)),
    }
    out
}

fn simple(cookie: u64, error: u32) -> Bytes {
    let mut header = BytesMut::with_capacity(16);
    header.put_u32(SIMPLE_REPLY_MAGIC);
    header.put_u32(error);
    header.put_u64(cookie);
    header.freeze()
}

/// Header of a chunk, with room for `length` bytes after it.
fn structured(cookie: u64, flags: u16, kind: u16, length: usize) -> BytesMut {
    let mut header = BytesMut::with_capacity(32 + length.min(64));
    header.put_u32(STRUCTURED_REPLY_MAGIC);
    header.put_u16(flags);
    header.put_u16(kind);
    header.put_u64(cookie);
    header.put_u32(u32::try_from(length).expect("payload limits leave room for a chunk's header"));
    header
}

/// A run of neighbouring pieces that become one chunk.
struct Run {
    is_hole: bool,
    length: usize,
    pieces: Vec<Piece>,
}

fn structured_read(out: &mut Outgoing, request: &Request, pieces: Vec<Piece>, whole: bool) {
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces.into_iter().filter(|piece| piece.length() > 0) {
        let is_hole = matches!(piece, Piece::Zeroes(_));
        let length = piece.length();
        match runs.last_mut() {
            Some(run) if whole || run.is_hole == is_hole => {
                // Zeroes joined to data in a reply that must be whole are spelled out.
                run.is_hole &= is_hole;
                run.length += length;
                run.pieces.push(piece);
            }
            _ => runs.push(Run { is_hole, length, pieces: vec![piece] }),
        }
    }
    if runs.is_empty() {
        out.push(structured(request.cookie, chunk::FLAG_DONE, chunk::NONE, 0).freeze());
    }
    let mut offset = request.offset;
    let count = runs.len();
    for (index, run) in runs.into_iter().enumerate() {
        let flags = if index + 1 == count { chunk::FLAG_DONE } else { 0 };
        if run.is_hole {
            let mut hole = structured(request.cookie, flags, chunk::OFFSET_HOLE, 12);
            hole.put_u64(offset);
            hole.put_u32(u32::try_from(run.length).expect("a read's length has 32 bits"));
            out.push(hole.freeze());
        } else {
            let mut data = structured(request.cookie, flags, chunk::OFFSET_DATA, 8 + run.length);
            data.put_u64(offset);
            out.push(data.freeze());
            run.pieces.into_iter().for_each(|piece| out.push_piece(piece));
        }
        offset += run.length as u64;
    }
}

fn block_status(out: &mut Outgoing, request: &Request, extents: &[Extent], one: bool) {
    let descriptors = descriptors(request.length, extents, one);
    let length = 4 + 8 * descriptors.len();
    let mut status = structured(request.cookie, chunk::FLAG_DONE, chunk::BLOCK_STATUS, length);
    status.put_u32(context::ALLOCATION_ID);
    for (length, flags) in descriptors {
        status.put_u32(length);
        status.put_u32(flags);
    }
    out.push(status.freeze());
}

/// Joins neighbours of one kind and cuts the list to the request.
fn descriptors(length: u32, extents: &[Extent], one: bool) -> Vec<(u32, u32)> {
    let mut left = length;
    let mut descriptors: Vec<(u32, u32)> = Vec::new();
    for extent in extents {
        let part = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
        if part == 0 {
            continue;
        }
        let flags = match extent.holds {
            Holds::Data => 0,
            Holds::Zeroes => context::STATE_ZERO,
            Holds::Hole => context::STATE_HOLE | context::STATE_ZERO,
        };
        let count = descriptors.len();
        match descriptors.last_mut() {
            Some((before, same)) if *same == flags => *before += part,
            Some(_) if one || count == EXTENTS_PER_REPLY_MAX => break,
            _ => descriptors.push((part, flags)),
        }
        left -= part;
    }
    descriptors
}

#[cfg(test)]
mod tests;
