//! The logs of a vault: committing segments, sealing, and reading slots in order.
//!
//! A slot is committed when it and every slot before it exist. A seal ends the log: what is put
//! beyond it never counts. A segment whose incarnation is below that of an earlier slot is void: a run
//! of the writer that crashed left it behind a missing slot, which a later run filled.

mod read;

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{HOLE_SLOTS_MAX, SEAL_STEPS_MAX, SLOTS_AHEAD_MAX};
use crate::store::{Object, Put, StoreError};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::segment::{Opener, slot_without_data};
use farshore_engine::tenure::PutEnd;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::{OBJECT_HEADER_BYTES_MAX, PUTS_IN_FLIGHT_MAX};
use farshore_proto::segment::{SegmentHeader, SlotKind, SlotWriter};
use farshore_proto::{LogId, Slot};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

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

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// The first slot that holds nothing, or the slot of the seal.
    pub next: Slot,
    /// Whether `next` holds a seal.
    pub is_sealed: bool,
    /// Slots behind `next` that crashed runs of the writer filled: void once `next` is filled by a
    /// run with a greater incarnation.
    pub void: BTreeSet<Slot>,
    /// The highest incarnation found; 0 if no slot was found.
    pub incarnation: u64,
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

/// Finds the end of a log, knowing that all slots before `from` are filled. The log may be written
/// meanwhile.
///
/// What was found is durable when this returns, whoever put it.
///
/// # Errors
/// `Unavailable`; `Corrupt` if a slot holds something that is not of this log, or segments are lost:
/// going on would make void what was committed behind the gap; `Limit` if the writer is faster than
/// this, slot after slot.
pub async fn find_end(vault: &Vault, log: LogId, from: Slot) -> Result<LogEnd, VaultError> {
    let mut walk = Walk { incarnation: 0, last: None };
    let mut at = from;
    for _ in 0..SEAL_STEPS_MAX {
        let (next, is_sealed) = walk.on(vault, log, at).await?;
        let mut void = BTreeSet::new();
        if !is_sealed {
            match Behind::look(vault, log, next).await? {
                Behind::Moved => {
                    at = next;
                    continue;
                }
                Behind::Lost { later } => return Err(lost(vault, log, next, later)),
                Behind::End { filled } => {
                    filled.values().for_each(|incarnation| walk.saw(*incarnation));
                    void = filled.into_keys().collect();
                }
            }
        }
        match (walk.last, next.0.checked_sub(1)) {
            (Some(last), _) => vault.store().settle(&ObjectName::slot(log, last)).await?,
            (None, Some(before)) => {
                let (_, found) = header_at(vault, log, Slot(before)).await;
                if let Some(header) = found? {
                    walk.saw(header.incarnation());
                }
            }
            (None, None) => {}
        }
        return Ok(LogEnd { next, is_sealed, void, incarnation: walk.incarnation });
    }
    let url = vault.url().to_owned();
    let what = "slots filled while the end of their log was looked for";
    Err(VaultError::Limit { url, what, max: SEAL_STEPS_MAX })
}

/// What was seen on the way to the end of a log.
struct Walk {
    incarnation: u64,
    last: Option<Slot>,
}

impl Walk {
    fn saw(&mut self, incarnation: u64) {
        self.incarnation = self.incarnation.max(incarnation);
    }

    /// Goes on from a slot to the first that holds nothing, or a seal; says which.
    async fn on(
        &mut self,
        vault: &Vault,
        log: LogId,
        from: Slot,
    ) -> Result<(Slot, bool), VaultError> {
        let slots = futures::stream::iter(from.0..=u64::MAX);
        let slots = slots.map(|slot| header_at(vault, log, Slot(slot)));
        let mut slots = std::pin::pin!(slots.buffered(SLOTS_AHEAD_MAX));
        while let Some((slot, found)) = slots.next().await {
            let Some(header) = found? else { return Ok((slot, false)) };
            self.saw(header.incarnation());
            self.last = Some(slot);
            if header.kind == SlotKind::Seal {
                return Ok((slot, true));
            }
        }
        let url = vault.url().to_owned();
        Err(VaultError::Limit { url, what: "slots of a log", max: u64::MAX })
    }
}

fn lost(vault: &Vault, log: LogId, slot: Slot, later: Slot) -> VaultError {
    VaultError::LostSlot { url: vault.url().to_owned(), log, slot, later }
}

/// What lies behind a slot that was missing when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Behind {
    /// The slot is filled by now: the log was read while it was written, and does not end here.
    Moved,
    /// The log ends here, for now.
    End {
        /// Slots that crashed runs of the writer left behind, and the run that filled each.
        filled: BTreeMap<Slot, u64>,
    },
    /// No crash of a writer explains what is there: the missing slot was committed, and is lost.
    Lost {
        /// The first filled slot behind it.
        later: Slot,
    },
}

impl Behind {
    /// Looks behind the missing `slot`.
    ///
    /// The slot was read before those behind it, and the writer may have gone on in between: nothing that
    /// lies there means anything unless the slot is still missing afterwards.
    pub(crate) async fn look(vault: &Vault, log: LogId, slot: Slot) -> Result<Self, VaultError> {
        let (filled, is_lost) = Self::gather(vault, log, slot).await?;
        let Some(later) = filled.keys().next().copied() else { return Ok(Self::End { filled }) };
        if is_filled(vault, log, slot).await? {
            return Ok(Self::Moved);
        }
        Ok(if is_lost { Self::Lost { later } } else { Self::End { filled } })
    }

    /// The filled slots behind `slot`, and whether no crash of a writer explains them.
    ///
    /// A run has at most `PUTS_IN_FLIGHT_MAX` slots that are not committed, this one included. So
    /// it leaves fewer than that behind the slot, with fewer than that missing between them.
    async fn gather(
        vault: &Vault,
        log: LogId,
        slot: Slot,
    ) -> Result<(BTreeMap<Slot, u64>, bool), VaultError> {
        let from = slot.0.saturating_add(1);
        let to = from.saturating_add(HOLE_SLOTS_MAX as u64);
        let slots = futures::stream::iter(from..to).map(|slot| header_at(vault, log, Slot(slot)));
        let mut slots = std::pin::pin!(slots.buffered(PUTS_IN_FLIGHT_MAX));
        let mut filled = BTreeMap::new();
        let mut is_lost = true;
        let mut of_run: BTreeMap<u64, usize> = BTreeMap::new();
        let mut missing = 1;
        while let Some((slot, found)) = slots.next().await {
            let Some(header) = found? else {
                missing += 1;
                if missing < PUTS_IN_FLIGHT_MAX {
                    continue;
                }
                is_lost = false;
                break;
            };
            missing = 0;
            filled.insert(slot, header.incarnation());
            let count = of_run.entry(header.incarnation()).or_default();
            *count += 1;
            if header.kind == SlotKind::Seal || *count >= PUTS_IN_FLIGHT_MAX {
                return Ok((filled, true));
            }
        }
        // Many slots lost in a row.
        for step in [16, 32, 64, 256, 1024] {
            let far = Slot(slot.0.saturating_add(step));
            let (_, found) = header_at(vault, log, far).await;
            if let Some(header) = found? {
                filled.insert(far, header.incarnation());
                is_lost = true;
                break;
            }
        }
        Ok((filled, is_lost))
    }

    /// The first filled slot of a log that ends in front of it; none if nothing is there, or the slot is
    /// filled by now.
    ///
    /// # Errors
    /// `Corrupt` if slots are lost.
    pub(crate) fn later(
        self,
        vault: &Vault,
        log: LogId,
        slot: Slot,
    ) -> Result<Option<Slot>, VaultError> {
        match self {
            Self::Moved => Ok(None),
            Self::End { filled } => Ok(filled.into_keys().next()),
            Self::Lost { later } => Err(lost(vault, log, slot, later)),
        }
    }
}

/// Seals a log at its end, knowing that all slots before `from` are filled; returns the seal's slot.
///
/// Segments that win slots meanwhile stay committed; the seal goes behind them. A log that is
/// sealed already stays as it is. Call again after an error.
///
/// # Errors
/// `Unavailable`; `Corrupt` if a slot holds something that is not of this log; `Limit` if the
/// writer keeps winning.
pub async fn seal(vault: &Vault, log: LogId, from: Slot) -> Result<Slot, VaultError> {
    let end = find_end(vault, log, from).await?;
    if end.is_sealed {
        return Ok(end.next);
    }
    let (number, key) = vault.newest_key();
    let (mut slot, mut incarnation) = (end.next, end.incarnation.max(1));
    for _ in 0..SEAL_STEPS_MAX {
        let name = ObjectName::slot(log, slot);
        let (at, writer) = ((vault.id(), log, slot), SlotWriter::of_run(incarnation));
        let object = slot_without_data(SlotKind::Seal, at, writer, key, number)
            .map_err(|source| VaultError::Seal { object: name.clone(), cause: Box::new(source) })?;
        if vault.store().create(&name, Bytes::from(object)).await? == Put::Created {
            return Ok(slot);
        }
        let found = read_header(vault, log, slot).await?;
        if found.kind == SlotKind::Seal {
            vault.store().settle(&name).await?;
            return Ok(slot);
        }
        incarnation = incarnation.max(found.incarnation());
        slot = slot.next();
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
