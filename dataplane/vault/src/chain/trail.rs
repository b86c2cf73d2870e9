//! The slots of a log that hold spans of a volume, found without reading those between.
//!
//! A log holds many volumes, and a quiet one has a span in few of its slots. The newest checkpoint says where the
//! volume stood and in which slot its newest span lies; each span names the slot of the one before. So a reader walks from
//! there back to the span that joins what it has, and reads these slots and all behind the checkpoint.
//!
//! What a checkpoint says is true for ever, of slots that were committed: none of them is missing unless it was lost,
//! and no slot that is passed over has anything of the volume. Whatever does not fit is not judged here: slots are then read
//! one by one.

use crate::checkpoint;
use crate::error::VaultError;
use crate::horizon::Horizon;
use crate::limits::{TRAIL_SLOTS_MAX, WALK_TRIED};
use crate::log::{newest_named, read_segment};
use crate::vault::Vault;
use farshore_engine::ledger::Ledger;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::segment::Span;
use farshore_proto::{Epoch, LogId, Seq, Slot, VolumeId};

/// The slots to read up to a checkpoint, and what is known there.
#[derive(Debug)]
pub(crate) struct Trail {
    /// In order.
    pub(crate) slots: Vec<Slot>,
    /// Behind them, all slots are read from here on.
    pub(crate) checkpoint: Slot,
    /// The highest incarnation in front of the checkpoint.
    pub(crate) incarnation: u64,
}

/// How much of what a chain reads is of its volume, since it looked for a trail last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    slots: u64,
    with_spans: u64,
    /// Slots after which it is worth looking.
    look_at: u64,
    /// The volume is quiet that has something in at most one of so many slots.
    sparse: u64,
}

/// A volume that has something in at most one of so many slots is quiet.
fn sparse(vault: &Vault) -> u64 {
    (vault.quiet_slots() / 4).max(1)
}

impl Quiet {
    pub(super) fn new(vault: &Vault) -> Self {
        Self { slots: 0, with_spans: 0, look_at: vault.quiet_slots(), sparse: sparse(vault) }
    }

    /// A slot was read.
    pub(super) fn read(&mut self, has_spans: bool) {
        self.slots += 1;
        self.with_spans += u64::from(has_spans);
    }

    /// Whether to look for a trail now; the next time after twice as many slots.
    pub(super) fn look(&mut self) -> bool {
        if self.slots < self.look_at {
            return false;
        }
        let is_quiet = self.with_spans * self.sparse <= self.slots;
        let look_at = self.look_at.saturating_mul(2);
        *self = Self { slots: 0, with_spans: 0, look_at, ..*self };
        is_quiet
    }
}

/// Whose spans are looked for, and what is known of them.
pub(super) struct Wanted<'a> {
    pub(super) vault: &'a Vault,
    pub(super) volume: VolumeId,
    pub(super) log: LogId,
    pub(super) epoch: Epoch,
    /// Whether the epoch is the volume's last.
    pub(super) is_last: bool,
    /// Last seq that was read.
    pub(super) last: Seq,
    /// Slots that were read on the way back, one after the other.
    pub(super) steps: usize,
}

impl Wanted<'_> {
    /// The way from `from`, the next slot of the log to be read, to the log's newest checkpoint; none if slots are to
    /// be read one by one.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(super) async fn trail(
        &mut self,
        from: Slot,
        horizon: &Horizon,
    ) -> Result<Option<Trail>, VaultError> {
        match self.find(from, horizon).await {
            Err(error) if error.is_unavailable() => Err(error),
            Err(_) => Ok(None),
            found => found,
        }
    }

    async fn find(&mut self, from: Slot, horizon: &Horizon) -> Result<Option<Trail>, VaultError> {
        let Self { vault, log, .. } = *self;
        let named = newest_named(vault, log, from, horizon).await?;
        // Below, reading slot by slot costs no more than having asked.
        if named.is_none_or(|slot| slot.0 < from.0.saturating_add(vault.quiet_slots())) {
            return Ok(None);
        }
        let ledger = checkpoint::newest(vault, log, named, horizon).await?;
        let checkpoint = ledger.next();
        if checkpoint <= from {
            return Ok(None);
        }
        let incarnation = ledger.incarnation();
        let trail = |slots| Some(Trail { slots, checkpoint, incarnation });
        let newest = match self.newest_of(&ledger) {
            Newest::Nothing => return Ok(trail(Vec::new())),
            Newest::Unsaid => return Ok(None),
            Newest::At(slot) => slot,
        };
        let steps = ((checkpoint.0 - from.0) / sparse(vault)).min(TRAIL_SLOTS_MAX);
        Ok(self.walk_back(from, newest, steps).await?.and_then(trail))
    }

    /// What a ledger says of the volume behind what was read.
    fn newest_of(&self, ledger: &Ledger) -> Newest {
        let Self { epoch, is_last, .. } = *self;
        match ledger.tail(self.volume) {
            // Under an epoch that can still be the newest it has nothing.
            None if is_last => Newest::Nothing,
            None => Newest::Unsaid,
            Some(tail) if tail.is_broken || tail.newest >= ledger.next() => Newest::Unsaid,
            Some(tail) if tail.epoch < epoch => Newest::Nothing,
            Some(tail) if tail.epoch == epoch && tail.last_seq == self.last => Newest::Nothing,
            Some(tail) if tail.epoch == epoch && tail.last_seq < self.last => Newest::Unsaid,
            Some(_) if is_on(Bug::QuietSpansPassedOver) => Newest::Nothing,
            Some(tail) => Newest::At(tail.newest),
        }
    }

    /// The slots with spans of the volume from `from` to `newest`, if there are at most `steps` of them and the first
    /// one joins what was read.
    async fn walk_back(
        &mut self,
        from: Slot,
        newest: Slot,
        steps: u64,
    ) -> Result<Option<Vec<Slot>>, VaultError> {
        let Self { vault, log, epoch, .. } = *self;
        let (mut slots, mut at) = (Vec::new(), newest);
        for _ in 0..steps {
            if at < from {
                return Ok(None);
            }
            slots.push(at);
            self.steps += 1;
            let table = read_segment(vault, log, at).await?.table;
            let own = || table.spans.iter().filter(|span| span.volume == self.volume);
            let joins =
                |span: &Span| span.first_seq <= self.last.next() && span.last_seq > self.last;
            if own().any(|span| span.epoch == epoch && joins(span)) {
                slots.reverse();
                return Ok(Some(slots));
            }
            let is_dense = newest.0 - at.0 < slots.len() as u64 * sparse(vault);
            if slots.len() >= WALK_TRIED && is_dense {
                // It is not as quiet as it was: slots that are read some ahead are there as soon.
                return Ok(None);
            }
            match own().filter_map(|span| span.previous).min() {
                Some(before) if before < at => at = before,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// Where the newest span of a volume lies, by a checkpoint.
enum Newest {
    /// There is none behind what was read.
    Nothing,
    /// In this slot, or in front of it.
    At(Slot),
    /// It does not say.
    Unsaid,
}
