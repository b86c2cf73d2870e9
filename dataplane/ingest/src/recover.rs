//! What a shard finds out about its own log before it serves: how far it got, and what it owns.
//!
//! **Late puts.** A put of a run that died may still be under way and reach the store later. Were
//! slots given out at once, it could land between the slots of the new run, whose segments count on
//! their own predecessors, not on it. So before anything is read, every slot that such a put can still
//! reach is filled, with an empty segment where nothing is: a run has at most `PUTS_IN_FLIGHT_MAX`
//! slots that are not committed, so those are the first missing slot and the few behind it. What
//! arrived in time counts or is void like any other; what arrives later finds its slot taken.
//!
//! **Two runs at once.** A copy of a node's directory writes the same logs. What either puts is void behind
//! a slot of a later run, and each finds its slots taken; but to a reader two runs under one number are
//! one run, which says things twice. So a start that finds another's slots among those that it filled,
//! under its own number, takes a greater one. Both saw the same end of the log, or the later one had seen
//! a slot of the other: so the first slot that neither an earlier run filled decides between them. And one that
//! was paused between its filling and its look at what is behind begins again if a later run has been there.

use crate::limits::{EPOCHS_AHEAD_MAX, RUNS_AT_ONCE_MAX};
use bytes::Bytes;
use farshore_codec::segment::slot_without_data;
use farshore_engine::ledger::Ledger;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::segment::{SlotKind, SlotWriter, Table};
use farshore_proto::{LogId, Seq, Slot, Target, VolumeId};
use farshore_vault::checkpoint::read_ledger;
use farshore_vault::epoch::read_epochs;
use farshore_vault::layout::ObjectName;
use farshore_vault::log::{
    Foreign, LogEnd, OpenSegment, PutOutcome, find_end, find_whole_end, put_segment, read_header,
};
use farshore_vault::{Vault, VaultError};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

pub use farshore_engine::tenure::{RecoveredLog, RecoveredVolume};

/// Recovers the shard that writes `log`, for run `incarnation` of its node; `None` if the log was sealed:
/// others own its volumes now.
///
/// `journaled` are the volumes of which the shard's journal holds frames: their first segment may not
/// be in the log yet. `learn` gets the table of each segment
/// that counts, from the log's newest checkpoint on.
///
/// # Errors
/// `Unavailable`; `Corrupt` if the log or the epochs of a volume cannot be read; `Conflict` if copies of the
/// node begin at the same time, again and again.
pub async fn recover(
    vault: &Vault,
    log: LogId,
    incarnation: u64,
    journaled: &BTreeSet<VolumeId>,
    mut learn: impl FnMut(Target, &Table) + Send,
) -> Result<Option<RecoveredLog>, VaultError> {
    let Some((end, incarnation)) = begin(vault, log, incarnation).await? else { return Ok(None) };
    let learn = |segment: &OpenSegment| learn(segment.target(), &segment.table);
    let ledger = read_ledger(vault, log, &end, learn).await?;
    let volumes = own_volumes(vault, log, &ledger, journaled).await?;
    let LogEnd { next, void, .. } = end;
    Ok(Some(RecoveredLog { next_slot: next, void, incarnation, volumes, ledger }))
}

/// Finds the end of the log and an incarnation that no other run of it has, and fills what puts of earlier
/// runs may still reach; `None` if the log was sealed.
async fn begin(
    vault: &Vault,
    log: LogId,
    counted: u64,
) -> Result<Option<(LogEnd, u64)>, VaultError> {
    for _ in 0..RUNS_AT_ONCE_MAX {
        let end = find_whole_end(vault, log, Slot(0)).await?;
        if end.is_sealed {
            return Ok(None);
        }
        let incarnation = counted.max(behind_all(vault, end.incarnation)?);
        if is_on(Bug::LatePutsNotFenced) {
            return Ok(Some((end, incarnation)));
        }
        match fill_reach(vault, log, &end, incarnation).await? {
            Reach::Sealed => return Ok(None),
            Reach::Anothers if !is_on(Bug::RunsUnderOneNumber) => {}
            Reach::Ours | Reach::Anothers => {
                match behind_fill(vault, log, end.next, incarnation).await? {
                    Begun::Overtaken => {}
                    Begun::Sealed => return Ok(None),
                    Begun::At(end) => return Ok(Some((end, incarnation))),
                }
            }
        }
    }
    Err(VaultError::TwoWriters { url: vault.url().to_owned(), log })
}

/// What a run finds behind what it has filled.
#[derive(Debug, PartialEq, Eq)]
enum Begun {
    /// Its end: nobody has begun since.
    At(LogEnd),
    /// A later run: whatever this one put would be void, and it would be told that it counts.
    Overtaken,
    /// The log was sealed.
    Sealed,
}

/// Looks for the end of the log, from what was filled on. Any time may have passed since: a run that a pause
/// kept from this look finds the slots of one that began meanwhile, and free ones behind them.
async fn behind_fill(
    vault: &Vault,
    log: LogId,
    filled: Slot,
    incarnation: u64,
) -> Result<Begun, VaultError> {
    let end = find_end(vault, log, filled).await?;
    Ok(match end.is_sealed {
        true => Begun::Sealed,
        false if end.incarnation > incarnation => Begun::Overtaken,
        // Slots that were filled, and deleted, are no fence to what was under way.
        false if end.horizon.slot() > filled && !is_on(Bug::FillBelowHorizon) => Begun::Overtaken,
        false => Begun::At(end),
    })
}

/// The incarnation behind the highest one found in a log.
fn behind_all(vault: &Vault, incarnation: u64) -> Result<u64, VaultError> {
    // Behind the last one nothing of this log would count: it has to be given up, by an operator.
    incarnation.checked_add(1).filter(|next| *next < u64::MAX).ok_or_else(|| VaultError::Limit {
        url: vault.url().to_owned(),
        what: "runs of the writer of a log",
        max: u64::MAX - 2,
    })
}

/// Whose the slots are that a start has filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The first that no earlier run had filled is ours, and no later run has begun.
    Ours,
    /// A run that has begun at the same time has that slot, or a later one another: its number is ours, or
    /// behind ours. Two are no two runs to a reader.
    Anothers,
    /// The log was sealed.
    Sealed,
}

/// Fills every slot that a put of an earlier run may still reach.
///
/// A run has puts under way in so many slots from the first on that it does not know to exist. That is no later one
/// than the first that this start wins; but a run that lives may have won those in front of it meanwhile, and gone on.
/// So the slots are counted from there.
async fn fill_reach(
    vault: &Vault,
    log: LogId,
    end: &LogEnd,
    incarnation: u64,
) -> Result<Reach, VaultError> {
    // Whoever comes next finds the checkpoint by them.
    let (checkpoint, horizon) = (end.checkpoint, end.horizon.number);
    let writer = SlotWriter { checkpoint, horizon, ..SlotWriter::of_run(incarnation) };
    let (mut first, mut is_overtaken, mut is_sealed) = (None, false, false);
    let mut next = end.next.0;
    let mut reach = next.saturating_add(PUTS_IN_FLIGHT_MAX as u64);
    while next < reach {
        let puts = futures::stream::iter(next..reach);
        let puts =
            puts.map(|slot| async move { (slot, fill(vault, log, Slot(slot), writer).await) });
        let mut puts = std::pin::pin!(puts.buffered(PUTS_IN_FLIGHT_MAX));
        next = reach;
        while let Some((slot, filled)) = puts.next().await {
            match filled? {
                Filled::Sealed => is_sealed = true,
                Filled::By(run) if run > incarnation => is_overtaken = true,
                Filled::By(run) if run == incarnation => _ = first.get_or_insert(Reach::Anothers),
                Filled::By(_) => {}
                Filled::Ours if first.is_none() => {
                    first = Some(Reach::Ours);
                    reach = slot.saturating_add(PUTS_IN_FLIGHT_MAX as u64);
                }
                Filled::Ours => {}
            }
        }
    }
    Ok(match first {
        _ if is_sealed => Reach::Sealed,
        Some(first) if !is_overtaken => first,
        _ => Reach::Anothers,
    })
}

/// Who filled a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// This start.
    Ours,
    /// A run, by its number.
    By(u64),
    /// Whoever sealed the log.
    Sealed,
}

async fn fill(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    writer: SlotWriter,
) -> Result<Filled, VaultError> {
    let keys = vault.seal_keys();
    let at = (vault.id(), log, slot);
    let object = slot_without_data(SlotKind::Fill, at, writer, keys).map_err(|cause| {
        VaultError::Seal { object: ObjectName::slot(log, slot), cause: Box::new(cause) }
    })?;
    match put_segment(vault, log, slot, Bytes::from(object)).await? {
        PutOutcome::Committed => Ok(Filled::Ours),
        PutOutcome::Foreign(Foreign::Sealed) => Ok(Filled::Sealed),
        PutOutcome::Foreign(Foreign::Segment) => {
            Ok(Filled::By(read_header(vault, log, slot).await?.incarnation()))
        }
    }
}

/// The volumes whose newest epoch is in the log: of those that the ledger or the journal knows.
async fn own_volumes(
    vault: &Vault,
    log: LogId,
    ledger: &Ledger,
    journaled: &BTreeSet<VolumeId>,
) -> Result<BTreeMap<VolumeId, RecoveredVolume>, VaultError> {
    let known: BTreeSet<VolumeId> =
        ledger.tails().map(|(volume, _)| volume).chain(journaled.iter().copied()).collect();
    let epochs = futures::stream::iter(known).map(|volume| async move {
        Ok::<_, VaultError>((volume, read_epochs(vault, volume).await?))
    });
    let mut epochs = std::pin::pin!(epochs.buffered(EPOCHS_AHEAD_MAX));
    let mut volumes = BTreeMap::new();
    while let Some(found) = epochs.next().await {
        let (volume, epochs) = found?;
        // A volume whose newest epoch is in another log is somebody else's.
        let Some(epoch) = epochs.last().filter(|epoch| epoch.log == log) else { continue };
        // Spans of an older epoch do not count from this epoch's first seq on.
        let before = Seq(epoch.first_seq.0.saturating_sub(1));
        let tail = ledger.tail(volume).filter(|tail| tail.epoch == epoch.epoch);
        if tail.is_some_and(|tail| tail.is_broken) {
            // Nobody could read what is put behind it. Its claim says so, and takes nothing.
            tracing::warn!(%log, %volume, "the stream of a volume does not join; it is not gone on with");
            continue;
        }
        let last = tail.map(|tail| (tail.last_seq, tail.stamp)).filter(|(last, _)| *last > before);
        let (committed, stamp) = last.unwrap_or((before, epoch.stamp));
        let known =
            RecoveredVolume { epoch: epoch.epoch, size_bytes: epoch.size_bytes, committed, stamp };
        volumes.insert(volume, known);
    }
    Ok(volumes)
}

#[cfg(test)]
mod tests;
