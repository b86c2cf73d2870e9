//! When what waits for a segment is on its way, H6.
//!
//! A mark ships what waits, and agents set theirs together ([`crate::gathering`]). Over a stream that does not change an
//! agent keeps its mark, and puts it in front of the next write: a mark behind a mark, at any time. It is of before that
//! write, and the mark that is gathered behind the write ships both.

use super::{Output, Shard};
use crate::batch::{Batch, Change, Entry};
use farshore_proto::{Timestamp, VolumeId};

impl Shard {
    /// Has a journaled frame wait for the next batch, and moves that one's deadline.
    pub(super) fn take_journaled(
        &mut self,
        now: Timestamp,
        entry: &Entry,
        file: u64,
        out: &mut Vec<Output>,
    ) {
        *self.files.entry(file).or_default() += 1;
        self.waiting.add(entry, file);
        let is_kept = self.is_kept(entry);
        let due = self.due(now, entry);
        // Whatever comes behind a mark has a time of its own.
        self.kept.remove(&entry.volume);
        if is_kept {
            self.kept.insert(entry.volume, due);
        } else {
            self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
        }
        if self.waiting.is_full() {
            // At once: nothing of a group is left over for a segment that is not full.
            self.close_batches(now, out);
        }
    }

    /// Whether it is a mark that nobody waits for, and the frame before it was one too.
    fn is_kept(&self, entry: &Entry) -> bool {
        let is_patient = matches!(entry.change, Change::Mark(mark) if !mark.is_prompt);
        let volume = self.volumes.get(&entry.volume);
        is_patient
            && !self.is_shipping
            && volume.is_some_and(|known| known.is_still && !known.is_revoked)
    }

    /// When a frame wants to be on its way.
    fn due(&mut self, now: Timestamp, entry: &Entry) -> Timestamp {
        let volume = self.volumes.get_mut(&entry.volume).map(|volume| {
            volume.is_still = matches!(entry.change, Change::Mark(_));
            if volume.is_still {
                volume.marked_at = Some(now);
            }
            &*volume
        });
        if self.is_shipping || volume.is_some_and(|volume| volume.is_revoked) {
            // Somebody waits until the last is in the vault: of a volume that was taken away, or at the end.
            return now;
        }
        let (linger_ms, spacing_ms) =
            volume.map_or((0, 0), |volume| (volume.linger_ms, volume.spacing_ms));
        let marked_ms = volume.map_or(0, |volume| volume.until_marked_ms(now));
        let (wait_ms, before) = match entry.change {
            // Somebody waits for it, but not as often as they please.
            Change::Mark(mark) if mark.is_prompt => (0, self.awaited_at),
            Change::Mark(_) => (linger_ms, self.closed_at),
            // While marks come, the next one ships it.
            Change::Write(_) | Change::Zero(_) => {
                let wait_ms = marked_ms.min(self.settings.spacing_ms);
                (self.settings.batch_age_ms.max(wait_ms), self.closed_at)
            }
        };
        let due = now.plus_ms(wait_ms);
        before.map_or(due, |before| due.max(before.plus_ms(spacing_ms)))
    }

    /// When the batch is closed if nothing more comes; none if nothing waits in it.
    pub(super) fn batch_due(&self) -> Option<Timestamp> {
        self.deadline.into_iter().chain(self.kept.values().copied()).min()
    }

    /// Whether a batch is closed now if it can be put.
    pub(super) fn is_batch_due(&self, now: Timestamp) -> bool {
        let is_due = || self.batch_due().is_some_and(|due| due <= now);
        !self.waiting.is_empty() && (self.waiting.is_full() || is_due())
    }

    pub(super) fn close_batch(&mut self, now: Timestamp) -> Batch {
        let batch = self.waiting.take();
        self.closed_at = Some(now);
        if batch.is_awaited() {
            self.awaited_at = Some(now);
        }
        self.kept.retain(|volume, _| self.waiting.holds(*volume));
        let rest = self.waiting.volumes();
        self.deadline = rest.map(|(volume, is_awaited)| self.rest_due(volume, is_awaited)).min();
        batch
    }

    /// When the rest of a volume goes that the batch had no room for, unless a whole one waits.
    fn rest_due(&self, volume: VolumeId, is_awaited: bool) -> Timestamp {
        let before = if is_awaited { self.awaited_at } else { self.closed_at };
        let known = self.volumes.get(&volume).filter(|known| !known.is_revoked);
        match (before, known) {
            (Some(before), Some(known)) if !self.is_shipping => before.plus_ms(known.spacing_ms),
            _ => Timestamp(0),
        }
    }
}
