//! Journaled frames that wait for a segment, and which of them go into the next one.
//!
//! While the store is slow more waits than a segment holds. Were the first to come the first to go, a volume with a
//! backlog would fill segment after segment in front of what others say now. So each segment takes from every volume.
//!
//! Invariants:
//!   - W1: frames of a volume leave in the order in which they came.
//!   - W2: each volume that waits has an equal share of a batch. What one does not need the others have.
//!   - W3: whoever was in a batch comes behind all who wait, so nobody waits for ever if a share is less than a frame.

use crate::batch::{Batch, Change, Entry, FRAME_OVERHEAD_BYTES, Limits};
use farshore_proto::VolumeId;
use std::collections::{BTreeMap, VecDeque};

/// Pieces that one change adds to a batch at most: in the middle of another it makes three of one.
const PIECES_OF_CHANGE: usize = 2;
/// Spans that a batch is full before it has, and one more that is left free.
const SPANS_KEPT_FREE: usize = 3;

// What waits here is counted as memory of the cache.
const _: () = assert!(size_of::<Frame>() <= FRAME_OVERHEAD_BYTES);

#[derive(Debug)]
struct Frame {
    entry: Entry,
    /// The journal file it is in.
    file: u64,
}

/// What waits of one volume.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Its place in the line: from when it began to wait, or was served last.
    turn: u64,
    /// Of all of them.
    cost: usize,
    marks: usize,
    /// Marks that somebody waits for.
    awaited: usize,
}

impl Queue {
    /// What it makes of spans.
    fn spans(&self) -> usize {
        let is_open = self.frames.back().is_some_and(|last| mark(&last.entry).is_none());
        self.marks + usize::from(is_open)
    }
}

/// All that waits.
#[derive(Debug)]
pub struct Waiting {
    limits: Limits,
    queues: BTreeMap<VolumeId, Queue>,
    /// Places in the line that were given out.
    turns: u64,
    bytes: usize,
    changes: usize,
    spans: usize,
}

impl Waiting {
    /// Nothing yet; batches that are taken from it grow up to `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, queues: BTreeMap::new(), turns: 0, bytes: 0, changes: 0, spans: 0 }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether frames of the volume wait.
    #[must_use]
    pub fn holds(&self, volume: VolumeId) -> bool {
        self.queues.contains_key(&volume)
    }

    /// Whether there is enough for a whole batch.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limits.bytes
            || self.changes >= self.limits.pieces
            || self.spans + 2 >= self.limits.spans
    }

    /// The volumes that wait, and whether somebody waits for a mark of theirs.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, bool)> + '_ {
        self.queues.iter().map(|(volume, queue)| (*volume, queue.awaited > 0))
    }

    /// Adds the next journaled frame of its volume; `file` is the journal file it is in.
    pub fn add(&mut self, entry: &Entry, file: u64) {
        let cost = self.cost(entry);
        let queue = self.queues.entry(entry.volume).or_default();
        let before = queue.spans();
        if queue.frames.is_empty() {
            self.turns += 1;
            queue.turn = self.turns;
        }
        queue.frames.push_back(Frame { entry: *entry, file });
        queue.cost += cost;
        queue.marks += usize::from(mark(entry).is_some());
        queue.awaited += usize::from(mark(entry) == Some(true));
        self.spans = self.spans + queue.spans() - before;
        self.bytes += entry.bytes;
        self.changes += usize::from(mark(entry).is_none());
    }

    /// Takes the next batch: of each volume its share, then what fits beside that.
    #[must_use]
    pub fn take(&mut self) -> Batch {
        let mut batch = Batch::new(self.limits);
        let share = self.share();
        let mut order: Vec<_> = self.queues.iter().map(|(id, queue)| (queue.turn, *id)).collect();
        order.sort_unstable();
        for (_, id) in &order {
            let mut left = share.saturating_sub(self.span_cost());
            while !batch.is_full()
                && let Some(cost) = self.next_cost(*id)
                && let Some(rest) = left.checked_sub(cost)
            {
                left = rest;
                self.take_next(*id, &mut batch);
            }
        }
        // What shares leave over is less than a frame of each.
        while !batch.is_full() && !self.is_empty() {
            order.retain(|(_, id)| !batch.is_full() && self.take_next(*id, &mut batch));
        }
        self.check();
        batch
    }

    /// What each volume may have of a batch, so that those that have less leave the rest to the others.
    fn share(&self) -> usize {
        let span = self.span_cost();
        let mut costs: Vec<usize> = self.queues.values().map(|queue| span + queue.cost).collect();
        costs.sort_unstable();
        let mut room = self.limits.bytes.saturating_sub(SPANS_KEPT_FREE * span);
        let mut sharers = costs.len();
        for cost in costs {
            let share = room / sharers;
            if cost > share {
                return share;
            }
            room -= cost;
            sharers -= 1;
        }
        usize::MAX
    }

    /// A frame's part of a batch, whichever of its limits it uses most of, in bytes.
    fn cost(&self, entry: &Entry) -> usize {
        let piece = (PIECES_OF_CHANGE * self.limits.bytes).div_ceil(self.limits.pieces);
        entry.bytes.max(if mark(entry).is_some() { self.span_cost() } else { piece })
    }

    fn span_cost(&self) -> usize {
        self.limits.bytes.div_ceil(self.limits.spans)
    }

    fn next_cost(&self, volume: VolumeId) -> Option<usize> {
        let next = self.queues.get(&volume)?.frames.front()?;
        Some(self.cost(&next.entry))
    }

    /// Moves the next frame of the volume into the batch; whether there are more.
    fn take_next(&mut self, volume: VolumeId, batch: &mut Batch) -> bool {
        let Some(cost) = self.next_cost(volume) else { return false };
        let Some(queue) = self.queues.get_mut(&volume) else { return false };
        let before = queue.spans();
        let Some(Frame { entry, file }) = queue.frames.pop_front() else { return false };
        self.turns += 1;
        queue.turn = self.turns;
        queue.cost -= cost;
        queue.marks -= usize::from(mark(&entry).is_some());
        queue.awaited -= usize::from(mark(&entry) == Some(true));
        self.spans = self.spans + queue.spans() - before;
        self.bytes -= entry.bytes;
        self.changes -= usize::from(mark(&entry).is_none());
        batch.add(&entry, file);
        let has_more = !queue.frames.is_empty();
        if !has_more {
            self.queues.remove(&volume);
        }
        has_more
    }

    fn check(&self) {
        if self.queues.is_empty() {
            assert_eq!((self.bytes, self.changes, self.spans), (0, 0, 0), "nothing waits");
        }
    }
}

/// Whether somebody waits for it, if it is a mark.
fn mark(entry: &Entry) -> Option<bool> {
    match entry.change {
        Change::Mark(mark) => Some(mark.is_prompt),
        Change::Write(_) | Change::Zero(_) => None,
    }
}

#[cfg(test)]
mod tests;
