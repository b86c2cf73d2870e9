//! Checkpoints of logs, and what a log says up to its end, read from the newest of them.
//!
//! A checkpoint is derived: what cannot be read of one is passed over, down to reading all slots.

use crate::error::VaultError;
use crate::horizon::{self, Horizon};
use crate::layout::ObjectName;
use crate::limits::{CHECKPOINT_TRIES_MAX, HORIZON_TRIES_MAX, SEALED_OBJECT_BYTES_MAX};
use crate::log::{LogEnd, LogScan, OpenSegment, highest_before, named_before};
use crate::store::Put;
use crate::vault::Vault;
use farshore_codec::checkpoint::{open_checkpoint, seal_checkpoint};
use farshore_engine::ledger::{Ledger, SpanEnd};
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::object::ObjectKind;
use farshore_proto::{LogId, Slot};
use std::sync::Arc;

/// Puts a checkpoint of a log. One that is there already says the same, but for the horizon: unless the store lost slots that
/// it speaks of, and others came in their place.
///
/// # Errors
/// `Unavailable` (also when full: `is_no_space`); `Corrupt` if one is there that says something else, or does not open.
///
/// # Cancel safety
/// Dropped, it leaves open whether the checkpoint is there.
pub async fn write(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    body: CheckpointBody,
) -> Result<(), VaultError> {
    let name = ObjectName::checkpoint(log, slot);
    let ours = Arc::new(body);
    let body = Arc::clone(&ours);
    let sealing = vault
        .seal_aside(&name, move |vault, keys| seal_checkpoint(vault.id(), log, slot, keys, &body));
    let object = sealing.await?;
    if vault.store().create(&name, object).await? == Put::Created {
        return Ok(());
    }
    let horizon = ours.horizon;
    let found = CheckpointBody { horizon, ..read(vault, log, slot).await? };
    if found == *ours {
        return Ok(());
    }
    Err(VaultError::CheckpointOfOthers { url: vault.url().to_owned(), object: name })
}

/// Reads the checkpoint of a log at a slot.
///
/// # Errors
/// `NotFound` if there is none; `Corrupt` if it does not open; `Unavailable`.
pub async fn read(vault: &Vault, log: LogId, slot: Slot) -> Result<CheckpointBody, VaultError> {
    let name = ObjectName::checkpoint(log, slot);
    let object = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await?;
    let open = move |vault: &Vault| open_checkpoint(&object, vault.id(), log, slot, vault.ring());
    vault.open_aside(name, ObjectKind::Checkpoint, open).await
}

/// What a log says of all its slots in front of the end that was found, from its newest checkpoint on; `learn` gets each
/// segment behind that.
///
/// # Errors
/// `Unavailable`; `Corrupt` if a slot behind the checkpoint cannot be read, or is lost; `Conflict` if the log went on and
/// its history was let go since: look for its end again.
pub async fn read_ledger(
    vault: &Vault,
    log: LogId,
    end: &LogEnd,
    mut learn: impl FnMut(&OpenSegment) + Send,
) -> Result<Ledger, VaultError> {
    let mut horizon = end.horizon.clone();
    for _ in 0..HORIZON_TRIES_MAX {
        match read_above(vault, log, end, &horizon, &mut learn).await {
            Err(VaultError::Passed { .. }) => {}
            read => return read,
        }
        horizon = horizon::newest(vault, log, horizon.number).await?;
        if horizon.slot() > end.next {
            // What it says is not of that end: the log went on since.
            break;
        }
    }
    Err(VaultError::Passed { url: vault.url().to_owned(), log, number: horizon.number })
}

/// The same from a horizon on, unless that was passed meanwhile.
async fn read_above(
    vault: &Vault,
    log: LogId,
    end: &LogEnd,
    horizon: &Horizon,
    learn: &mut (impl FnMut(&OpenSegment) + Send),
) -> Result<Ledger, VaultError> {
    let named = end.checkpoint.filter(|named| horizon.is_before(*named));
    let mut ledger = newest(vault, log, named, horizon).await?;
    let scan = LogScan::behind(vault, log, &ledger).above(horizon.clone());
    let mut scan = scan.filled_to(end.next);
    while let Some((slot, segment)) = scan.next().await? {
        // What came since belongs to whoever looks again.
        if slot >= end.next {
            break;
        }
        learn(&segment);
        let spans = segment.table.spans.iter().map(SpanEnd::from);
        ledger.take(slot, &segment.header().writer, spans);
    }
    scan.check_end(end.next)?;
    ledger.reached(end.next);
    horizon::still(vault, log, horizon.number).await?;
    Ok(ledger)
}

/// What the newest checkpoint that can be read says, of those that headers name from `named` on down, or the horizon.
///
/// # Errors
/// `Unavailable`.
pub(crate) async fn newest(
    vault: &Vault,
    log: LogId,
    named: Option<Slot>,
    horizon: &Horizon,
) -> Result<Ledger, VaultError> {
    let mut named = named;
    for _ in 0..CHECKPOINT_TRIES_MAX {
        let Some(slot) = named.filter(|slot| horizon.is_before(*slot)) else { break };
        match read(vault, log, slot).await {
            // A run of which it does not know was in front of it: it speaks of slots that were lost, and filled anew.
            Ok(body) if highest_before(vault, log, slot, horizon).await? > body.incarnation => {
                let object = ObjectName::checkpoint(log, slot);
                tracing::warn!(%object, "a checkpoint is of other slots than are there; an older one, or the slots, are read");
            }
            Ok(body) => return Ok(Ledger::of_checkpoint(slot, body)),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                let object = ObjectName::checkpoint(log, slot);
                tracing::warn!(%object, %error, "a checkpoint cannot be used; an older one, or the slots, are read");
            }
        }
        // Who built the slots in front of it knew the one before.
        named = named_before(vault, log, slot, horizon).await?.filter(|older| *older < slot);
    }
    Ok(horizon.ledger())
}

#[cfg(test)]
mod tests;
