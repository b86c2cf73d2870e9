//! Checkpoints of the log: so that whoever reads it reads little.

use super::{Output, Shard};
use farshore_proto::Slot;
use farshore_proto::bugs::{Bug, is_on};

/// When a checkpoint could not be written, another is tried when so many slots of those to it have come.
const CHECKPOINT_RETRY: u64 = 8;

impl Shard {
    /// Has a checkpoint written when many slots lie behind the last.
    pub(super) fn checkpoint(&mut self, out: &mut Vec<Output>) {
        let ledger = self.log.ledger();
        let slot = ledger.next();
        let is_due = ledger.slots_behind() >= self.settings.checkpoint_slots;
        if !is_due || slot < self.checkpoint_from {
            return;
        }
        // With too many volumes there is none.
        let Some(mut body) = ledger.body().cloned() else { return };
        self.checkpoint_from = Slot(u64::MAX);
        if is_on(Bug::CheckpointForgetsIdle) {
            let since = ledger.checkpoint();
            body.tails.retain(|_, tail| Some(tail.newest) >= since);
        }
        if is_on(Bug::CheckpointAhead) {
            self.log.checkpointed(slot);
        }
        out.push(Output::Checkpoint { slot, body });
    }

    pub(super) fn checkpointed(&mut self, slot: Slot, is_there: bool) {
        if is_there {
            self.log.checkpointed(slot);
            self.checkpoint_from = Slot(0);
        } else {
            let pause = self.settings.checkpoint_slots.div_ceil(CHECKPOINT_RETRY);
            self.checkpoint_from = Slot(slot.0.saturating_add(pause));
        }
    }
}
