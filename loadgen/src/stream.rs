//! The stream of one source: which frame has which seq, and how far each watermark is.
//!
//! Nothing of a write is kept. Writes and marks lie in the stream in the order of their due times, so
//! the number of the write at a seq follows from the number of marks before it; marks are kept until
//! they are committed. What a connection lost is made again from its number.

use crate::limits::{MARKS_MAX, UNCOMMITTED_MAX};
use farshore_proto::Seq;
use farshore_proto::frame::{Ack, Hello, Welcome};
use farshore_proto::limits::FRAME_HEADER_BYTES;
use farshore_proto::mark::{MARK_BYTES, Mark};
use farshore_proto::{Epoch, VolumeId};
use std::collections::VecDeque;

/// Bytes of a mark on the wire.
pub const MARK_FRAME_BYTES: u64 = (FRAME_HEADER_BYTES + MARK_BYTES) as u64;

/// A place in the stream: all up to `seq`, of which `writes` are writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    seq: u64,
    writes: u64,
}

/// What stands at a place of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// The write of that number.
    Write(u64),
    /// A mark.
    Mark(Mark),
}

/// Why a node's words do not fit what was sent. None of them can be mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// Less is committed than was acked: writes are lost.
    #[error("the node has only up to seq {has}, but seq {acked} was acked committed: data is lost")]
    Lost {
        /// What the node has.
        has: u64,
        /// What was acked.
        acked: u64,
    },
    /// More is there than was sent.
    #[error(
        "the node says it has seq {has}, but only seq {sent} was sent: another writer has this volume"
    )]
    Foreign {
        /// What the node has.
        has: u64,
        /// What was sent.
        sent: u64,
    },
    /// Watermarks that contradict each other.
    #[error("the node's watermarks are out of order: {committed} committed, {journaled} journaled")]
    Order {
        /// Committed by its words.
        committed: u64,
        /// Journaled by its words.
        journaled: u64,
    },
}

/// Watermarks that moved, as writes: those numbered `from..to`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Writes now journaled.
    pub journaled: (u64, u64),
    /// Writes now committed.
    pub committed: (u64, u64),
}

/// The stream of one source, from the first write of the run on.
#[derive(Debug)]
pub struct Stream {
    /// Set by the first welcome.
    has_joined: bool,
    appended: Cursor,
    sent: Cursor,
    journaled: Cursor,
    committed: Cursor,
    /// Marks above committed.
    marks: VecDeque<(u64, Mark)>,
    window: u64,
    in_flight: u64,
    /// What is journaled of this connection's frames, and before.
    landed: Cursor,
    /// Stands for what an earlier connection sent: seq up to which, and bytes.
    inherited: (u64, u64),
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    /// A stream of which nothing was sent.
    #[must_use]
    pub fn new() -> Self {
        let start = Cursor::default();
        Self {
            has_joined: false,
            appended: start,
            sent: start,
            journaled: start,
            committed: start,
            marks: VecDeque::new(),
            window: 0,
            in_flight: 0,
            landed: start,
            inherited: (0, 0),
        }
    }

    /// What to say first on a connection. Before the first welcome it says "I have nothing": the
    /// stream then goes on behind whatever an earlier run left.
    #[must_use]
    pub fn hello(&self, volume: VolumeId, epoch: Epoch, size_bytes: u64, mark_ms: u32) -> Hello {
        let (first, last) = match self.has_joined {
            true => (self.committed.seq + 1, self.appended.seq),
            false => (1, 0),
        };
        let (first_seq, last_seq) = (Seq(first), Seq(last));
        // One run, one life; no intents, so no stamps.
        let (life, is_overtaken, mark_interval_ms) = (std::process::id().max(1), false, mark_ms);
        Hello {
            volume,
            epoch,
            size_bytes,
            first_seq,
            last_seq,
            mark_interval_ms,
            life,
            is_overtaken,
        }
    }

    /// Goes on from what the node has.
    ///
    /// # Errors
    /// [`Misfit`] if that is not part of this stream.
    pub fn welcomed(&mut self, welcome: &Welcome) -> Result<Moved, Misfit> {
        let (received, journaled) = (welcome.received.0, welcome.journaled.0);
        let committed = welcome.committed.0;
        if committed > journaled || journaled > received {
            return Err(Misfit::Order { committed, journaled });
        }
        if !self.has_joined {
            let start = Cursor { seq: received, writes: 0 };
            (self.appended, self.sent, self.journaled, self.committed) =
                (start, start, start, start);
            self.has_joined = true;
        } else if received > self.appended.seq {
            return Err(Misfit::Foreign { has: received, sent: self.appended.seq });
        } else if received < self.committed.seq {
            return Err(Misfit::Lost { has: received, acked: self.committed.seq });
        }
        self.sent = self.at(received);
        self.landed = self.sent;
        self.window = welcome.window_bytes.into();
        // How much of what it received still waits is not known here; half a window stands for it.
        let waiting = if journaled < received { self.window / 2 } else { 0 };
        self.inherited = (received, waiting);
        self.in_flight = waiting;
        // What was journaled on a lost node may have to be journaled again; the watermark of the
        // statistics only rises.
        Ok(self.raise(journaled, committed))
    }

    /// Takes an ack. `bytes` tells the bytes of a write by its number.
    ///
    /// # Errors
    /// [`Misfit`] if it is not about what was sent.
    pub fn acked(&mut self, ack: &Ack, bytes: impl Fn(u64) -> u64) -> Result<Moved, Misfit> {
        let (journaled, committed) = (ack.journaled.0, ack.committed.0);
        if committed > journaled {
            return Err(Misfit::Order { committed, journaled });
        }
        if journaled > self.sent.seq {
            return Err(Misfit::Foreign { has: journaled, sent: self.sent.seq });
        }
        let (until, waiting) = self.inherited;
        if journaled >= until {
            self.in_flight -= waiting;
            self.inherited.1 = 0;
        }
        if journaled > self.landed.seq {
            let to = self.at(journaled);
            self.in_flight -= wire_bytes(self.landed, to, bytes);
            self.landed = to;
        }
        Ok(self.raise(journaled, committed))
    }

    fn raise(&mut self, journaled: u64, committed: u64) -> Moved {
        let (old_journaled, old_committed) = (self.journaled, self.committed);
        if journaled > self.journaled.seq {
            self.journaled = self.at(journaled);
        }
        if committed > self.committed.seq {
            self.committed = self.at(committed);
            // A mark is of use only for places above committed.
            while self.marks.front().is_some_and(|(seq, _)| *seq <= committed) {
                self.marks.pop_front();
            }
        }
        Moved {
            journaled: (old_journaled.writes, self.journaled.writes),
            committed: (old_committed.writes, self.committed.writes),
        }
    }

    /// The place of a seq that is not below committed.
    fn at(&self, seq: u64) -> Cursor {
        let base = self.committed;
        let marks = self.marks.partition_point(|(mark, _)| *mark <= seq) as u64;
        let before = self.marks.partition_point(|(mark, _)| *mark <= base.seq) as u64;
        Cursor { seq, writes: base.writes + (seq - base.seq) - (marks - before) }
    }

    /// What a connection lost and has to be sent again, with its seq; none if nothing.
    #[must_use]
    pub fn to_resend(&self) -> Option<(Seq, Item)> {
        if self.sent.seq >= self.appended.seq {
            return None;
        }
        let seq = self.sent.seq + 1;
        let found = self.marks.binary_search_by_key(&seq, |(mark, _)| *mark).ok();
        let item = match found.and_then(|index| self.marks.get(index)) {
            Some((_, mark)) => Item::Mark(*mark),
            None => Item::Write(self.sent.writes),
        };
        Some((Seq(seq), item))
    }

    /// Whether a frame of so many bytes on the wire may be sent now.
    #[must_use]
    pub fn has_room(&self, wire_bytes: u64) -> bool {
        self.in_flight == 0 || self.in_flight + wire_bytes <= self.window
    }

    /// Whether something new may join the stream at all.
    #[must_use]
    pub fn may_append(&self) -> bool {
        self.appended.seq - self.committed.seq < UNCOMMITTED_MAX && self.marks.len() < MARKS_MAX
    }

    /// Notes that the item behind all that was sent is being sent; returns its seq.
    pub fn send(&mut self, item: &Item, wire_bytes: u64) -> Seq {
        self.sent.seq += 1;
        self.sent.writes += u64::from(matches!(item, Item::Write(_)));
        if self.sent.seq > self.appended.seq {
            self.appended = self.sent;
            if let Item::Mark(mark) = item {
                self.marks.push_back((self.sent.seq, *mark));
            }
        }
        self.in_flight += wire_bytes;
        Seq(self.sent.seq)
    }

    /// Number of the first write that never was in the stream.
    #[must_use]
    pub fn next_write(&self) -> u64 {
        self.appended.writes
    }

    /// Writes journaled once, and committed.
    #[must_use]
    pub fn acked_writes(&self) -> (u64, u64) {
        (self.journaled.writes, self.committed.writes)
    }

    /// Whether everything sent is committed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.has_joined && self.committed.seq == self.appended.seq
    }

    /// Whether the node still owes an ack.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.committed.seq < self.sent.seq
    }

    /// Whether all that was sent is journaled.
    #[must_use]
    pub fn is_journaled(&self) -> bool {
        self.landed.seq >= self.sent.seq
    }

    /// Whether a node ever said where the stream goes on.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.has_joined
    }
}

/// Bytes on the wire of what stands between two places.
fn wire_bytes(from: Cursor, to: Cursor, bytes: impl Fn(u64) -> u64) -> u64 {
    let writes = to.writes - from.writes;
    let marks = (to.seq - from.seq) - writes;
    let of_writes: u64 = (from.writes..to.writes).map(bytes).sum();
    of_writes + writes * FRAME_HEADER_BYTES as u64 + marks * MARK_FRAME_BYTES
}

#[cfg(test)]
mod tests;
