//! The ledger of a log: how far each of its volumes got, kept while slots are committed.
//!
//! What it says of the slots below [`Ledger::next`] is what reading all of them would say. So it is what a checkpoint
//! holds, what a start begins with, and what a takeover looks for.
//!
//! Invariants:
//!   - G1: slots are taken in order, only those that count, and only once nothing below can change any more.
//!   - G2: of a volume it says the newest epoch that the log has spans of, and how far those join.

use farshore_proto::checkpoint::{CheckpointBody, VolumeTail};
use farshore_proto::limits::CHECKPOINT_VOLUMES_MAX;
use farshore_proto::register::At;
use farshore_proto::segment::{SlotWriter, Span};
use farshore_proto::{Epoch, Imprint, PointId, Seq, Slot, Stamp, VolumeId};

/// What a ledger keeps of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanEnd {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch.
    pub epoch: Epoch,
    /// First seq.
    pub first_seq: Seq,
    /// Last seq.
    pub last_seq: Seq,
    /// The mark at the last seq.
    pub point: Option<PointId>,
    /// Of the frame at the last seq.
    pub stamp: Stamp,
    /// Which frame that is.
    pub imprint: Imprint,
}

impl From<&Span> for SpanEnd {
    fn from(span: &Span) -> Self {
        let Span { volume, epoch, first_seq, last_seq, stamp, imprint, .. } = *span;
        let point = span.mark.map(|mark| mark.point);
        Self { volume, epoch, first_seq, last_seq, point, stamp, imprint }
    }
}

/// How far the volumes of a log got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// All slots below are in it.
    next: Slot,
    /// The newest checkpoint that is known to be there.
    checkpoint: Option<Slot>,
    /// Nobody reads slots below.
    horizon: Slot,
    body: CheckpointBody,
}

impl Ledger {
    /// What the checkpoint at `slot` says.
    #[must_use]
    pub fn of_checkpoint(slot: Slot, body: CheckpointBody) -> Self {
        Self { next: slot, checkpoint: Some(slot), body, horizon: Slot(0) }
    }

    /// What horizon `number` of the log, at `slot`, says of what is below.
    #[must_use]
    pub fn of_horizon(number: u64, slot: Slot, below: CheckpointBody) -> Self {
        let body = CheckpointBody { horizon: number, ..below };
        Self { next: slot, checkpoint: None, horizon: slot, body }
    }

    /// Number of the newest horizon of the log that is known; 0: none.
    #[must_use]
    pub fn horizon(&self) -> u64 {
        self.body.horizon
    }

    /// All slots below this one are in it.
    #[must_use]
    pub fn next(&self) -> Slot {
        self.next
    }

    /// The highest incarnation among them; 0 if there are none.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.body.incarnation
    }

    /// How far they say that the vault's register was applied.
    #[must_use]
    pub fn register(&self) -> At {
        self.body.register
    }

    /// The newest checkpoint that is known to be there.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Slot> {
        self.checkpoint
    }

    /// A checkpoint is there.
    pub fn checkpointed(&mut self, slot: Slot) {
        self.checkpoint = self.checkpoint.max(Some(slot));
    }

    /// Slots that whoever reads the log reads behind the newest checkpoint or horizon.
    #[must_use]
    pub fn slots_behind(&self) -> u64 {
        let newest = self.checkpoint.map_or(self.horizon, |slot| slot.max(self.horizon));
        self.next.0 - newest.0.min(self.next.0)
    }

    /// The checkpoint at [`Ledger::next`]; none if there are more volumes than it can hold.
    #[must_use]
    pub fn body(&self) -> Option<&CheckpointBody> {
        (self.body.tails.len() <= CHECKPOINT_VOLUMES_MAX).then_some(&self.body)
    }

    /// The volumes.
    pub fn tails(&self) -> impl Iterator<Item = (VolumeId, &VolumeTail)> {
        self.body.tails.iter().map(|(volume, tail)| (*volume, tail))
    }

    /// How far a volume got, if the log has spans of it.
    #[must_use]
    pub fn tail(&self, volume: VolumeId) -> Option<&VolumeTail> {
        self.body.tails.get(&volume)
    }

    /// Takes the next slot that counts, put by `writer`.
    ///
    /// # Panics
    /// If it is not behind those that were taken (G1): a bug in the caller.
    pub fn take(
        &mut self,
        slot: Slot,
        writer: &SlotWriter,
        spans: impl IntoIterator<Item = SpanEnd>,
    ) {
        assert!(slot >= self.next, "G1: slots are taken in order");
        self.next = slot.next();
        self.body.incarnation = self.body.incarnation.max(writer.incarnation);
        self.body.register = self.body.register.later(writer.register);
        self.body.horizon = self.body.horizon.max(writer.horizon);
        for span in spans {
            self.take_span(slot, &span);
        }
    }

    /// All slots below `next` that count were taken: those between are void, or nothing to a volume.
    pub fn reached(&mut self, next: Slot) {
        self.next = self.next.max(next);
    }

    fn take_span(&mut self, slot: Slot, span: &SpanEnd) {
        let SpanEnd { epoch, first_seq, last_seq, stamp, imprint, .. } = *span;
        let mark = span.point.map(|point| (last_seq, point));
        let fresh = VolumeTail {
            epoch,
            first_seq,
            last_seq,
            newest: slot,
            mark,
            stamp,
            imprint,
            is_released: false,
            is_broken: false,
        };
        let tail = self.body.tails.entry(span.volume).or_insert(fresh);
        tail.newest = slot;
        if epoch > tail.epoch {
            *tail = fresh;
        } else if epoch == tail.epoch && last_seq > tail.last_seq {
            // A repetition says nothing new; what leaves something out is for who reads the stream.
            if first_seq != tail.last_seq.next() {
                tail.is_broken = true;
                return;
            }
            *tail = VolumeTail {
                first_seq: tail.first_seq,
                mark: mark.or(tail.mark),
                is_broken: tail.is_broken,
                ..fresh
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn span(epoch: u64, first: u64, last: u64) -> SpanEnd {
        SpanEnd {
            volume: VOLUME,
            epoch: Epoch(epoch),
            first_seq: Seq(first),
            last_seq: Seq(last),
            point: last.is_multiple_of(2).then_some(PointId([9; 16])),
            stamp: Stamp::default(),
            imprint: Imprint::default(),
        }
    }

    fn ledger(spans: &[(u64, SpanEnd)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (slot, span) in spans {
            ledger.take(Slot(*slot), &SlotWriter::of_run(slot + 1), [*span]);
        }
        ledger
    }

    #[test]
    fn a_volume_is_where_its_spans_join_to() {
        let ledger = ledger(&[(0, span(1, 1, 4)), (3, span(1, 3, 4)), (4, span(1, 5, 7))]);
        let tail = ledger.tail(VOLUME).unwrap();
        assert_eq!((tail.first_seq, tail.last_seq, tail.newest), (Seq(1), Seq(7), Slot(4)));
        assert_eq!(tail.mark, Some((Seq(4), PointId([9; 16]))));
        assert!(!tail.is_broken);
        assert_eq!((ledger.next(), ledger.incarnation()), (Slot(5), 5));
    }

    #[test]
    fn a_gap_leaves_the_volume_in_doubt_for_ever() {
        let ledger = ledger(&[(0, span(1, 1, 4)), (1, span(1, 6, 7)), (2, span(1, 5, 9))]);
        let tail = ledger.tail(VOLUME).unwrap();
        assert!(tail.is_broken);
        assert_eq!(tail.newest, Slot(2));
    }

    #[test]
    fn a_newer_epoch_takes_the_place_of_the_one_before_and_an_older_one_counts_no_more() {
        let ledger = ledger(&[(0, span(1, 1, 4)), (1, span(3, 4, 5)), (2, span(1, 5, 9))]);
        let tail = ledger.tail(VOLUME).unwrap();
        assert_eq!((tail.epoch, tail.first_seq, tail.last_seq), (Epoch(3), Seq(4), Seq(5)));
        assert_eq!((tail.newest, tail.mark), (Slot(2), None));
    }

    #[test]
    fn slots_behind_the_newest_checkpoint_are_counted() {
        let mut ledger = ledger(&[(0, span(1, 1, 4)), (9, span(1, 5, 6))]);
        assert_eq!(ledger.slots_behind(), 10);
        ledger.checkpointed(Slot(7));
        ledger.checkpointed(Slot(3));
        assert_eq!((ledger.checkpoint(), ledger.slots_behind()), (Some(Slot(7)), 3));
        ledger.reached(Slot(12));
        assert_eq!((ledger.next(), ledger.slots_behind()), (Slot(12), 5));
    }

    #[test]
    #[should_panic(expected = "G1")]
    fn a_slot_is_not_taken_twice() {
        let mut ledger = ledger(&[(4, span(1, 1, 4))]);
        ledger.take(Slot(4), &SlotWriter::of_run(5), []);
    }
}
