//! Logs that were sealed to take their volumes over: each is sealed and read once for all of its volumes.
//!
//! A sealed log does not change any more, so what was read of it stays true.

use crate::limits::SEALED_LOGS_MAX;
use farshore_engine::ledger::Ledger;
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::{LogId, Seq, Slot, Stamp, VolumeId};
use farshore_vault::checkpoint::read_ledger;
use farshore_vault::log::{LogEnd, seal};
use farshore_vault::{Vault, VaultError};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;

/// What a node has read of the logs that it took volumes over from; whoever claims shares it.
#[derive(Debug, Default)]
pub struct SealedLogs(std::sync::Mutex<BTreeMap<LogId, Entry>>);

/// One log: the first that needs it reads it, the others wait.
type Entry = Arc<Mutex<Option<Arc<SealedLog>>>>;

/// A log up to its seal.
#[derive(Debug)]
pub(super) struct SealedLog {
    /// The slot of the seal.
    pub(super) slot: Slot,
    /// What it holds; none if a part of it cannot be read.
    ledger: Option<Ledger>,
}

impl SealedLogs {
    /// Seals the log of an epoch and reads it, unless both were done before.
    pub(super) async fn read(
        &self,
        vault: &Vault,
        epoch: &EpochBody,
    ) -> Result<Arc<SealedLog>, VaultError> {
        let entry = self.entry(epoch.log);
        let mut known = entry.lock().await;
        if let Some(known) = known.as_ref() {
            return Ok(Arc::clone(known));
        }
        // Slots in front of its first may have been on their way when the epoch began, and may be missing.
        let filled = Slot(epoch.first_slot.0.saturating_sub(PUTS_IN_FLIGHT_MAX as u64));
        let end = seal(vault, epoch.log, filled).await?;
        let ledger = whole_ledger(vault, epoch.log, &end).await?;
        let read = Arc::new(SealedLog { slot: end.next, ledger });
        *known = Some(Arc::clone(&read));
        Ok(read)
    }

    fn entry(&self, log: LogId) -> Entry {
        // What a panic left is a map of whole entries.
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logs.len() >= SEALED_LOGS_MAX && !logs.contains_key(&log) {
            logs.pop_first();
        }
        Arc::clone(logs.entry(log).or_default())
    }
}

impl SealedLog {
    /// The last seq of a volume whose newest epoch is in the log, and the stamp of the frame there; none if
    /// only reading its whole stream can tell.
    pub(super) fn end_of(&self, volume: VolumeId, epoch: &EpochBody) -> Option<(Seq, Stamp)> {
        end_in(self.ledger.as_ref()?, volume, epoch)
    }
}

/// The last seq of a volume whose newest epoch is in a log, by the ledger of that log, and the stamp of the frame
/// there; none if only reading its whole stream can tell.
pub(super) fn end_in(ledger: &Ledger, volume: VolumeId, epoch: &EpochBody) -> Option<(Seq, Stamp)> {
    match ledger.tail(volume).filter(|tail| tail.epoch >= epoch.epoch) {
        None => Some((Seq(epoch.first_seq.0 - 1), epoch.stamp)),
        Some(tail)
            if !tail.is_broken
                && tail.epoch == epoch.epoch
                && tail.first_seq == epoch.first_seq =>
        {
            Some((tail.last_seq, tail.stamp))
        }
        Some(_) => None,
    }
}

/// What a log holds up to its end; none if a part of it cannot be read.
pub(super) async fn whole_ledger(
    vault: &Vault,
    log: LogId,
    end: &LogEnd,
) -> Result<Option<Ledger>, VaultError> {
    match read_ledger(vault, log, end, |_| {}).await {
        Ok(ledger) => Ok(Some(ledger)),
        Err(error) if error.is_unavailable() => Err(error),
        // Whether a volume misses what does not open is for its own stream to say.
        Err(_) => Ok(None),
    }
}
