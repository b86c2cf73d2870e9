//! The slots of a shard's log in the vault: what is being put, and what is committed.
//!
//! Puts run in parallel and end in any order; committed is the end of the contiguous prefix.
//!
//! Invariants:
//!   - L1: slots are handed out in order and never twice.
//!   - L2: a segment commits only after all handed out before it have.
//!   - L3: at most `PUTS_IN_FLIGHT_MAX` are neither committed nor failed.

use crate::batch::{Held, SpanPlan};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::mark::Mark;
use farshore_proto::{Epoch, Seq, Slot, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A segment on its way to the vault.
#[derive(Debug)]
struct InFlight {
    slot: Slot,
    is_put: bool,
    lasts: BTreeMap<VolumeId, Seq>,
    points: Vec<CommittedPoint>,
    held: Vec<Held>,
}

/// A mark that is now a recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedPoint {
    /// Its volume.
    pub volume: VolumeId,
    /// The epoch under which it is committed.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub seq: Seq,
    /// What it is.
    pub mark: Mark,
}

/// A segment that is now part of the committed prefix.
#[derive(Debug, PartialEq, Eq)]
pub struct CommittedSegment {
    /// Its slot.
    pub slot: Slot,
    /// Last seq of each volume in it.
    pub lasts: BTreeMap<VolumeId, Seq>,
    /// Its marks, of one volume in seq order.
    pub points: Vec<CommittedPoint>,
    /// The frames that are safe now.
    pub held: Vec<Held>,
}

/// The log's writing end.
#[derive(Debug)]
pub struct LogEnd {
    next: Slot,
    void: BTreeSet<Slot>,
    in_flight: VecDeque<InFlight>,
}

impl LogEnd {
    /// The log goes on at `next`; `void` slots beyond it are taken by a crashed run's leftovers.
    #[must_use]
    pub fn new(next: Slot, void: BTreeSet<Slot>) -> Self {
        let mut end = Self { next, void, in_flight: VecDeque::new() };
        end.skip_void();
        end
    }

    /// The slot that the next segment gets.
    #[must_use]
    pub fn next_slot(&self) -> Slot {
        self.next
    }

    /// Whether another put may start (L3).
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight.len() < PUTS_IN_FLIGHT_MAX
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether frames of the volume are on their way.
    #[must_use]
    pub fn holds(&self, volume: VolumeId) -> bool {
        self.in_flight.iter().any(|segment| segment.lasts.contains_key(&volume))
    }

    /// Takes a slot for a batch.
    ///
    /// # Panics
    /// If there is no room (L3): the shard asks first.
    pub fn begin(&mut self, spans: &[SpanPlan], held: Vec<Held>) -> Slot {
        assert!(self.has_room(), "L3: too many puts in flight");
        let slot = self.next;
        self.next = slot.next();
        self.skip_void();
        let mut lasts = BTreeMap::new();
        let mut points = Vec::new();
        for span in spans {
            lasts.insert(span.volume, span.last_seq);
            let (volume, epoch, seq) = (span.volume, span.epoch, span.last_seq);
            points.extend(span.mark.map(|mark| CommittedPoint { volume, epoch, seq, mark }));
        }
        self.in_flight.push_back(InFlight { slot, is_put: false, lasts, points, held });
        self.check();
        slot
    }

    fn skip_void(&mut self) {
        while self.void.remove(&self.next) {
            self.next = self.next.next();
        }
    }

    /// A put has succeeded; returns what the committed prefix gained, in slot order.
    ///
    /// # Panics
    /// If the slot is not in flight or was put before: a bug in the driver.
    pub fn put_done(&mut self, slot: Slot) -> Vec<CommittedSegment> {
        let segment = self
            .in_flight
            .iter_mut()
            .find(|segment| segment.slot == slot)
            .expect("a put ends once, for a slot that was begun");
        assert!(!segment.is_put, "slot {slot} was put twice");
        segment.is_put = true;
        if is_on(Bug::WatermarkPastHole) {
            let order = |segment: &InFlight| (!segment.is_put, segment.slot);
            self.in_flight.make_contiguous().sort_by_key(order);
        }
        let mut committed = Vec::new();
        while self.in_flight.front().is_some_and(|segment| segment.is_put) {
            if let Some(InFlight { slot, lasts, points, held, .. }) = self.in_flight.pop_front() {
                committed.push(CommittedSegment { slot, lasts, points, held });
            }
        }
        self.check();
        committed
    }

    fn check(&self) {
        assert!(self.in_flight.len() <= PUTS_IN_FLIGHT_MAX, "L3");
        let slots: Vec<Slot> = self.in_flight.iter().map(|segment| segment.slot).collect();
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "L1");
        assert!(slots.last().is_none_or(|last| *last < self.next), "L1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_only_the_contiguous_prefix() {
        let mut log = LogEnd::new(Slot(7), BTreeSet::new());
        let slots: Vec<Slot> = (0..3).map(|_| log.begin(&[], Vec::new())).collect();
        assert_eq!(slots, [Slot(7), Slot(8), Slot(9)]);
        assert!(log.put_done(Slot(8)).is_empty());
        assert!(log.put_done(Slot(9)).is_empty());
        let done: Vec<Slot> = log.put_done(Slot(7)).into_iter().map(|s| s.slot).collect();
        assert_eq!(done, [Slot(7), Slot(8), Slot(9)]);
        assert!(log.is_idle());
    }

    #[test]
    fn skips_slots_that_a_crashed_run_left_behind_a_hole() {
        let mut log = LogEnd::new(Slot(4), BTreeSet::from([Slot(5), Slot(6)]));
        assert_eq!(log.begin(&[], Vec::new()), Slot(4));
        assert_eq!(log.begin(&[], Vec::new()), Slot(7));
    }
}
