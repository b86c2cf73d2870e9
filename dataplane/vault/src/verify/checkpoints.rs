//! That the checkpoints of a log say what its slots say, while those are read in order.

use super::Report;
use crate::checkpoint::read;
use crate::error::VaultError;
use crate::horizon::Horizon;
use crate::layout::{Folder, ObjectName, checkpoint_of};
use crate::limits::LISTED_MAX;
use crate::log::OpenSegment;
use crate::vault::Vault;
use farshore_engine::ledger::{Ledger, SpanEnd};
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::{LogId, Slot};
use futures::TryStreamExt;
use std::collections::BTreeSet;

/// The checkpoints of one log, and what its slots have said so far.
pub(super) struct Checkpoints<'a> {
    vault: &'a Vault,
    log: LogId,
    /// Those that were listed and not compared yet.
    listed: BTreeSet<Slot>,
    ledger: Ledger,
    /// Whether every slot so far was read.
    is_sure: bool,
}

impl<'a> Checkpoints<'a> {
    /// Those that there are now. What those in front of the horizon speak of is gone.
    pub(super) async fn list(
        vault: &'a Vault,
        log: LogId,
        horizon: &Horizon,
    ) -> Result<Self, VaultError> {
        let mut listed = BTreeSet::new();
        let mut listing = vault.store().list(Folder::Checkpoints(log));
        while let Some(object) = listing.try_next().await? {
            let slot = checkpoint_of(&object.name);
            listed.extend(slot.filter(|slot| horizon.number == 0 || *slot >= horizon.slot()));
            if listed.len() > LISTED_MAX {
                let (url, max) = (vault.url().to_owned(), LISTED_MAX as u64);
                return Err(VaultError::Limit { url, what: "checkpoints of a log", max });
            }
        }
        drop(listing);
        Ok(Self { vault, log, listed, ledger: horizon.ledger(), is_sure: true })
    }

    /// A slot could not be read: what later checkpoints say cannot be compared.
    pub(super) fn miss(&mut self) {
        self.is_sure = false;
    }

    /// The next slot that counts.
    pub(super) async fn take(
        &mut self,
        slot: Slot,
        segment: &OpenSegment,
        report: &mut Report,
    ) -> Result<(), VaultError> {
        self.compare(slot, report).await?;
        let spans = segment.table.spans.iter().map(SpanEnd::from);
        self.ledger.take(slot, &segment.header().writer, spans);
        Ok(())
    }

    /// The log ends in front of `end`.
    pub(super) async fn finish(mut self, end: Slot, report: &mut Report) -> Result<(), VaultError> {
        self.compare(end, report).await?;
        for slot in self.listed.into_iter().filter(|_| self.is_sure) {
            let what = format!("speaks of slots that are not there: the log ends at slot {end}");
            report.add(ObjectName::checkpoint(self.log, slot), 0, what);
        }
        Ok(())
    }

    /// Compares those that speak of the slots so far, and of no other.
    async fn compare(&mut self, next: Slot, report: &mut Report) -> Result<(), VaultError> {
        while let Some(slot) = self.listed.first().copied().filter(|slot| *slot <= next) {
            self.listed.pop_first();
            let name = ObjectName::checkpoint(self.log, slot);
            match read(self.vault, self.log, slot).await {
                Ok(body) => {
                    report.checkpoints += 1;
                    if self.is_sure && !self.says(&body) {
                        report.add(name, 0, "says something else than the slots in front of it");
                    }
                }
                // Whoever made it may have been told to remove it.
                Err(error) if error.is_not_found() => {}
                Err(error) => report.add_error(name, error)?,
            }
        }
        Ok(())
    }

    fn says(&self, found: &CheckpointBody) -> bool {
        // The horizon is what its maker knew.
        let CheckpointBody { incarnation, horizon: _, register, tails } = found;
        self.ledger.body().is_some_and(|body| {
            (body.incarnation, body.register) == (*incarnation, *register) && body.tails == *tails
        })
    }
}
