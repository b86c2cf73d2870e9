//! The logs of a vault: committing segments, sealing, and reading slots in order.
//!
//! A slot is committed when it and every slot before it exist. A seal ends the log: what is put
//! beyond it never counts. A segment whose incarnation is below that of an earlier slot is void: a run
//! of the writer that crashed left it behind a missing slot, which a later run filled.

mod end;
mod read;

use crate::error::VaultError;
use crate::horizon;
use crate::layout::ObjectName;
use crate::limits::{HORIZON_TRIES_MAX, SEAL_STEPS_MAX};
use crate::store::{Object, Put, StoreError};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::segment::{Opener, slot_without_data};
use farshore_engine::tenure::PutEnd;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::OBJECT_HEADER_BYTES_MAX;
use farshore_proto::segment::{SegmentHeader, SlotKind, SlotWriter};
use farshore_proto::{LogId, Slot};
use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

pub(crate) use end::{Behind, highest_before, named_before, newest_named};
pub use end::{LogEnd, find_end, find_whole_end};
pub use read::{LogScan, OpenSegment, ScanEnd, read_segment};

/// First wait after a put that failed.
pub const PUT_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait between two attempts to put a segment.
pub const PUT_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What a slot holds that was to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// The log was sealed there: stop writing it for good.
    Sealed,
    /// A segment of another attempt: read it, and go on behind it.
    Segment,
}

impl From<Foreign> for PutEnd {
    fn from(foreign: Foreign) -> Self {
        match foreign {
            Foreign::Sealed => Self::Sealed,
            Foreign::Segment => Self::Taken,
        }
    }
}

/// How a put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The slot holds our segment, durably.
    Committed,
    /// The slot holds something else.
    Foreign(Foreign),
}

/// Puts a segment into its slot.
///
/// An error leaves open whether the segment was committed: call again with the same object.
///
/// # Errors
/// `Unavailable` (also when full: `is_no_space`); `Corrupt` if the slot holds something that
/// is not of this log.
///
/// # Panics
/// If `object` is not a segment of that slot, with its header in the first piece: a bug in the caller.
///
/// # Cancel safety
/// Dropped, it leaves open whether the segment was committed, like an error.
pub async fn put_segment(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    object: impl Into<Object>,
) -> Result<PutOutcome, VaultError> {
    let object = object.into();
    let ours = SegmentHeader::decode(object.head()).expect("the caller built a segment");
    assert!(ours.log() == log && ours.slot() == slot, "the segment was built for another slot");
    let name = ObjectName::slot(log, slot);
    match vault.store().create(&name, object).await {
        Ok(Put::Created) => return Ok(PutOutcome::Committed),
        Ok(Put::Exists) => {}
        Err(_) if is_on(Bug::AmbiguousPutAsSuccess) => return Ok(PutOutcome::Committed),
        Err(error) => return Err(error.into()),
    }
    let found = read_header(vault, log, slot).await?;
    // The salt was drawn for this attempt: the same one is the same segment.
    if found.object.salt == ours.object.salt && found.kind == ours.kind {
        vault.store().settle(&name).await?;
        return Ok(PutOutcome::Committed);
    }
    match found.kind {
        SlotKind::Seal if is_on(Bug::SealIgnored) => Ok(PutOutcome::Committed),
        SlotKind::Seal => Ok(PutOutcome::Foreign(Foreign::Sealed)),
        SlotKind::Segment | SlotKind::Fill => Ok(PutOutcome::Foreign(Foreign::Segment)),
    }
}

/// Puts a segment into its slot, however long the store is away; `Err` if the slot holds something
/// else. `pause` is told what went wrong and for how long to wait before the next attempt: from
/// [`PUT_BACKOFF_MIN`], doubling, to [`PUT_BACKOFF_MAX`].
///
/// Errors of the store are never the end of it: the frames in the segment are journaled, and the
/// limits of the shard keep more from coming.
///
/// # Errors
/// What is in the slot instead, if the writer was fenced.
///
/// # Panics
/// As `put_segment`.
pub async fn put_until_there<W: Future<Output = ()>>(
    vault: &Vault,
    log: LogId,
    slot: Slot,
    object: impl Into<Object>,
    mut pause: impl FnMut(VaultError, Duration) -> W,
) -> Result<(), Foreign> {
    let object = object.into();
    let mut backoff = PUT_BACKOFF_MIN;
    loop {
        match put_segment(vault, log, slot, object.clone()).await {
            Ok(PutOutcome::Committed) => return Ok(()),
            Ok(PutOutcome::Foreign(foreign)) => return Err(foreign),
            Err(error) => {
                pause(error, backoff).await;
                backoff = (backoff * 2).min(PUT_BACKOFF_MAX);
            }
        }
    }
}

/// Seals a log at its end, knowing that all slots before `from` are filled; returns that end, whose `next` is the
/// seal's slot.
///
/// Segments that win slots meanwhile stay committed; the seal goes behind them. A log that is
/// sealed already stays as it is. Call again after an error.
///
/// # Errors
/// `Unavailable`; `Corrupt` if a slot holds something that is not of this log; `Limit` if the
/// writer keeps winning.
pub async fn seal(vault: &Vault, log: LogId, from: Slot) -> Result<LogEnd, VaultError> {
    for _ in 0..HORIZON_TRIES_MAX {
        let end = find_whole_end(vault, log, from).await?;
        if end.is_sealed {
            return Ok(end);
        }
        let sealed = seal_behind(vault, log, end).await?;
        // Any time may have passed since the end was found. Where the log went on, and its history was let go, the
        // slot had been filled, and deleted.
        let newest = horizon::newest(vault, log, sealed.horizon.number).await?;
        if newest.slot() <= sealed.next || is_on(Bug::SealBelowHorizon) {
            return Ok(sealed);
        }
    }
    let url = vault.url().to_owned();
    Err(VaultError::Limit {
        url,
        what: "horizons that passed a seal",
        max: HORIZON_TRIES_MAX as u64,
    })
}

/// Puts a seal at the end of a log that was found, or behind what was put there since.
async fn seal_behind(vault: &Vault, log: LogId, end: LogEnd) -> Result<LogEnd, VaultError> {
    let keys = vault.seal_keys();
    let LogEnd { next: mut slot, incarnation, mut checkpoint, horizon, .. } = end;
    let mut incarnation = incarnation.max(1);
    for _ in 0..SEAL_STEPS_MAX {
        let name = ObjectName::slot(log, slot);
        let horizon_number = horizon.number;
        let writer =
            SlotWriter { checkpoint, horizon: horizon_number, ..SlotWriter::of_run(incarnation) };
        let at = (vault.id(), log, slot);
        let object = slot_without_data(SlotKind::Seal, at, writer, keys)
            .map_err(|source| VaultError::Seal { object: name.clone(), cause: Box::new(source) })?;
        let is_ours = vault.store().create(&name, Bytes::from(object)).await? == Put::Created;
        if !is_ours {
            let found = read_header(vault, log, slot).await?;
            if found.kind != SlotKind::Seal {
                incarnation = incarnation.max(found.incarnation());
                checkpoint = checkpoint.max(found.writer.known_checkpoint(slot));
                slot = slot.next();
                continue;
            }
            vault.store().settle(&name).await?;
        }
        let void = BTreeSet::new();
        return Ok(LogEnd { next: slot, is_sealed: true, void, incarnation, checkpoint, horizon });
    }
    let url = vault.url().to_owned();
    Err(VaultError::Limit { url, what: "slots won against a seal", max: SEAL_STEPS_MAX })
}

/// Reads the header of a slot, which is authenticated: it was sealed for that slot, as it is.
///
/// # Errors
/// `NotFound` if the slot is empty; `Corrupt` if it holds something else; `Unavailable`.
pub async fn read_header(
    vault: &Vault,
    log: LogId,
    slot: Slot,
) -> Result<SegmentHeader, VaultError> {
    let name = ObjectName::slot(log, slot);
    let part = vault.store().get_range(&name, 0..OBJECT_HEADER_BYTES_MAX as u64).await?;
    match Opener::open_header(&part.bytes, vault.id(), log, slot, vault.ring()) {
        Ok(opener) => Ok(*opener.header()),
        Err(source) => Err(vault.damaged(name, 0, source)),
    }
}

/// The header of a slot, if it is filled.
async fn header_at(
    vault: &Vault,
    log: LogId,
    slot: Slot,
) -> (Slot, Result<Option<SegmentHeader>, VaultError>) {
    match read_header(vault, log, slot).await {
        Ok(header) => (slot, Ok(Some(header))),
        Err(error) if error.is_not_found() => (slot, Ok(None)),
        Err(error) => (slot, Err(error)),
    }
}

/// Whether a slot holds anything.
pub(crate) async fn is_filled(vault: &Vault, log: LogId, slot: Slot) -> Result<bool, StoreError> {
    vault.store().exists(&ObjectName::slot(log, slot)).await
}

#[cfg(test)]
mod tests;
