//! The slots of a shard's log in the vault: what is being put, and what is committed.
//!
//! Puts run in parallel and end in any order; committed is the end of the contiguous prefix.
//!
//! Invariants:
//!   - L1: slots are handed out in order and never twice.
//!   - L2: a segment commits only after all handed out before it have.
//!   - L3: those that are neither committed nor failed lie within `PUTS_IN_FLIGHT_MAX` slots, void ones that were
//!     skipped included: a later start fills so many from the first missing one on, and no put reaches beyond.
//!   - L4: the ledger has what is committed, and nothing else.
//!   - L5: how far segments say that the register is applied never falls in a log.

use crate::batch::{Held, SpanPlan};
use crate::ledger::{Ledger, SpanEnd};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::mark::Mark;
use farshore_proto::register::At;
use farshore_proto::segment::SlotWriter;
use farshore_proto::{Epoch, Seq, Slot, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A segment on its way to the vault.
#[derive(Debug)]
struct InFlight {
    slot: Slot,
    writer: SlotWriter,
    is_put: bool,
    lasts: BTreeMap<VolumeId, Seq>,
    points: Vec<CommittedPoint>,
    ends: Vec<SpanEnd>,
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
    writer: SlotWriter,
    ledger: Ledger,
}

impl LogEnd {
    /// The log goes on at `next` with run `incarnation`; `void` slots beyond it are taken by a crashed run's
    /// leftovers. The ledger has all in front of it.
    #[must_use]
    pub fn new(next: Slot, incarnation: u64, void: BTreeSet<Slot>, mut ledger: Ledger) -> Self {
        ledger.reached(next);
        // What earlier runs had applied this one has too, before it looks anything up.
        let writer = SlotWriter { register: ledger.register(), ..SlotWriter::of_run(incarnation) };
        let mut end = Self { next, void, in_flight: VecDeque::new(), writer, ledger };
        end.skip_void();
        end
    }

    /// What is committed.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A checkpoint of the log is there.
    pub fn checkpointed(&mut self, slot: Slot) {
        self.ledger.checkpointed(slot);
    }

    /// The vault's register is applied up to this entry: segments that are begun from now on say so (L5).
    pub fn applied(&mut self, at: At) {
        self.writer.register = self.writer.register.later(at);
    }

    /// How far the newest segment says that the register is applied, put or not.
    #[must_use]
    pub fn stated(&self) -> At {
        let on_way = self.in_flight.back().map(|segment| segment.writer.register);
        on_way.unwrap_or_else(|| self.ledger.register())
    }

    /// What the next segment says of its writer.
    #[must_use]
    pub fn writer(&self) -> SlotWriter {
        let (checkpoint, horizon) = (self.ledger.checkpoint(), self.ledger.horizon());
        SlotWriter { checkpoint, horizon, ..self.writer }
    }

    /// The slot that the next segment gets.
    #[must_use]
    pub fn next_slot(&self) -> Slot {
        self.next
    }

    /// Whether another put may start (L3).
    #[must_use]
    pub fn has_room(&self) -> bool {
        let first = self.in_flight.front().map_or(self.next, |segment| segment.slot);
        self.next.0 - first.0 < PUTS_IN_FLIGHT_MAX as u64
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether what is on its way has no frames.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.in_flight.iter().all(|segment| segment.held.is_empty())
    }

    /// Whether frames of the volume are on their way.
    #[must_use]
    pub fn holds(&self, volume: VolumeId) -> bool {
        self.in_flight.iter().any(|segment| segment.lasts.contains_key(&volume))
    }

    /// Takes a slot for a batch, and says in its spans where the volumes were before.
    ///
    /// # Panics
    /// If there is no room (L3): the shard asks first.
    pub fn begin(&mut self, spans: &mut [SpanPlan], held: Vec<Held>) -> Slot {
        assert!(self.has_room(), "L3: too many puts in flight");
        let (slot, writer) = (self.next, self.writer());
        self.next = slot.next();
        self.skip_void();
        let mut lasts = BTreeMap::new();
        let mut points = Vec::new();
        let mut ends = Vec::with_capacity(spans.len());
        for span in spans {
            span.previous = self.newest(span.volume);
            lasts.insert(span.volume, span.last_seq);
            let (volume, epoch, seq) = (span.volume, span.epoch, span.last_seq);
            points.extend(span.mark.map(|mark| CommittedPoint { volume, epoch, seq, mark }));
            ends.push(end_of(span));
        }
        if is_on(Bug::CheckpointAhead) {
            self.ledger.take(slot, &writer, ends.iter().copied());
        }
        self.in_flight.push_back(InFlight {
            slot,
            writer,
            is_put: false,
            lasts,
            points,
            ends,
            held,
        });
        self.check();
        slot
    }

    /// The newest slot with a span of the volume: on its way, or committed. If that never comes to be in the
    /// log, neither does what refers to it.
    fn newest(&self, volume: VolumeId) -> Option<Slot> {
        let on_way = self.in_flight.iter().rev().find(|put| put.lasts.contains_key(&volume));
        let committed = || Some(self.ledger.tail(volume)?.newest);
        on_way.map(|put| put.slot).or_else(committed)
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
            if let Some(InFlight { slot, writer, lasts, points, ends, held, .. }) =
                self.in_flight.pop_front()
            {
                if !is_on(Bug::CheckpointAhead) && !is_on(Bug::WatermarkPastHole) {
                    self.ledger.take(slot, &writer, ends);
                }
                committed.push(CommittedSegment { slot, lasts, points, held });
            }
        }
        self.check();
        committed
    }

    fn check(&self) {
        let slots: Vec<Slot> = self.in_flight.iter().map(|segment| segment.slot).collect();
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "L1");
        let last = slots.last().copied();
        assert!(last.is_none_or(|last| last < self.next), "L1");
        let first = slots.first().copied().unwrap_or(self.next);
        assert!(last.is_none_or(|last| last.0 - first.0 < PUTS_IN_FLIGHT_MAX as u64), "L3");
        assert!(self.ledger.next() <= first || is_on(Bug::CheckpointAhead), "L4");
        let stated = self.in_flight.iter().map(|segment| segment.writer.register);
        let stated = std::iter::once(self.ledger.register()).chain(stated);
        let is_in_order = stated.chain([self.writer.register]).is_sorted_by_key(|at| at.number);
        assert!(is_in_order || is_on(Bug::WatermarkPastHole), "L5");
    }
}

fn end_of(span: &SpanPlan) -> SpanEnd {
    let SpanPlan { volume, epoch, first_seq, last_seq, stamp, imprint, .. } = *span;
    let point = span.mark.map(|mark| mark.point);
    SpanEnd { volume, epoch, first_seq, last_seq, point, stamp, imprint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::{Imprint, Stamp};

    #[test]
    fn commits_only_the_contiguous_prefix() {
        let mut log = LogEnd::new(Slot(7), 1, BTreeSet::new(), Ledger::default());
        let slots: Vec<Slot> = (0..3).map(|_| log.begin(&mut [], Vec::new())).collect();
        assert_eq!(slots, [Slot(7), Slot(8), Slot(9)]);
        assert!(log.put_done(Slot(8)).is_empty());
        assert!(log.put_done(Slot(9)).is_empty());
        let done: Vec<Slot> = log.put_done(Slot(7)).into_iter().map(|s| s.slot).collect();
        assert_eq!(done, [Slot(7), Slot(8), Slot(9)]);
        assert!(log.is_idle());
    }

    #[test]
    fn skips_slots_that_a_crashed_run_left_behind_a_hole() {
        let void = BTreeSet::from([Slot(5), Slot(6)]);
        let mut log = LogEnd::new(Slot(4), 2, void, Ledger::default());
        assert_eq!(log.begin(&mut [], Vec::new()), Slot(4));
        assert_eq!(log.begin(&mut [], Vec::new()), Slot(7));
        assert!(!log.has_room(), "slot 8 is not reached by what a start fills from slot 4 on");
        log.put_done(Slot(4));
        assert_eq!(log.begin(&mut [], Vec::new()), Slot(8));
    }

    fn plan(volume: u8, first: u64, last: u64) -> SpanPlan {
        SpanPlan {
            volume: VolumeId([volume; 16]),
            epoch: Epoch(1),
            first_seq: Seq(first),
            last_seq: Seq(last),
            mark: None,
            stamp: Stamp::default(),
            imprint: Imprint::default(),
            previous: None,
            pieces: Vec::new(),
        }
    }

    #[test]
    fn spans_say_where_their_volume_was_before_and_the_ledger_only_what_is_committed() {
        let mut log = LogEnd::new(Slot(7), 3, BTreeSet::new(), Ledger::default());
        let begin = |log: &mut LogEnd, mut spans: Vec<SpanPlan>| {
            let slot = log.begin(&mut spans, Vec::new());
            (slot.0, spans.iter().map(|span| span.previous.map(|slot| slot.0)).collect::<Vec<_>>())
        };
        assert_eq!(begin(&mut log, vec![plan(1, 1, 2), plan(2, 1, 1)]), (7, vec![None, None]));
        assert_eq!(begin(&mut log, vec![plan(1, 3, 3)]), (8, vec![Some(7)]));
        log.put_done(Slot(8));
        assert_eq!((log.ledger().next(), log.ledger().tails().count()), (Slot(7), 0));
        log.put_done(Slot(7));
        let lasts: Vec<Seq> = log.ledger().tails().map(|(_, tail)| tail.last_seq).collect();
        assert_eq!((log.ledger().next(), lasts), (Slot(9), vec![Seq(3), Seq(1)]));
        let both = vec![plan(1, 4, 4), plan(1, 5, 5), plan(2, 2, 2)];
        assert_eq!(begin(&mut log, both), (9, vec![Some(8), Some(8), Some(7)]));
        assert_eq!(log.writer(), SlotWriter::of_run(3));
        log.checkpointed(Slot(9));
        assert_eq!(log.writer(), SlotWriter { checkpoint: Some(Slot(9)), ..SlotWriter::of_run(3) });
    }

    #[test]
    fn segments_say_how_far_the_register_was_applied_when_they_were_begun() {
        let at = |number| At { number, digest: [7; 8] };
        let mut before = Ledger::default();
        before.take(Slot(6), &SlotWriter { register: at(5), ..SlotWriter::of_run(2) }, []);
        let mut log = LogEnd::new(Slot(7), 3, BTreeSet::new(), before);
        assert_eq!((log.writer().register, log.stated()), (at(5), at(5)), "as the run before");
        log.begin(&mut [], Vec::new());
        log.applied(at(9));
        assert_eq!((log.writer().register, log.stated()), (at(9), at(5)));
        log.begin(&mut [], Vec::new());
        log.applied(at(8));
        assert_eq!((log.writer().register, log.stated()), (at(9), at(9)), "it never falls");
        // The ledger says what the slots say, not what the next one will.
        log.put_done(Slot(7));
        assert_eq!(log.ledger().register(), at(5));
        log.put_done(Slot(8));
        assert_eq!(log.ledger().register(), at(9));
    }
}
