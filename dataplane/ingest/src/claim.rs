//! Taking a volume over: who owned it, when the old log is sealed, where the new epoch begins.
//!
//! The last word is the vault's, not the control plane's: whoever was given an epoch still finds out
//! here that a newer one is there, or that the epoch is in another log.

mod sealed;

use farshore_engine::claims::{Cause, NotOurs};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::{EndKind, Ended, EpochBody};
use farshore_proto::frame::RefusalReason;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::{Epoch, ErrorKind, LogId, Seq, Slot, Stamp, VolumeId};
use farshore_vault::catalog::{end_behind, end_of_volume};
use farshore_vault::epoch::{Claim, claim_behind, read_epochs};
use farshore_vault::limits::HOLE_SLOTS_MAX;
use farshore_vault::log::find_end;
use farshore_vault::{Vault, VaultError};

pub use farshore_engine::claims::Wanted;
use sealed::{end_in, whole_ledger};

pub use sealed::SealedLogs;

/// Slots in front of the next one of a log that may be missing: puts under way, and void slots between them.
const UNSURE_SLOTS: u64 = (PUTS_IN_FLIGHT_MAX + HOLE_SLOTS_MAX) as u64;

/// A volume that is now the shard's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// What the vault holds of it: the stream goes on behind this.
    pub committed: Seq,
    /// Of the frame there: whose it is. Nothing if that is not known.
    pub stamp: Stamp,
    /// The log of the epoch before and the slot of its seal, if there was another writer.
    pub sealed: Option<(LogId, Slot)>,
    /// Number of the epoch in the volume's list, if it was made now.
    pub ordinal: Option<u64>,
}

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// A newer epoch owns it.
    #[error("epoch {newest} owns volume {volume}")]
    Fenced {
        /// The volume.
        volume: VolumeId,
        /// The newest epoch.
        newest: Epoch,
    },
    /// The disk does not fit what the vault holds.
    #[error(
        "the disk has {size_bytes} bytes, the vault recorded {recorded_bytes} for volume {volume}; \
         protect the right disk, or make this one large enough"
    )]
    Size {
        /// The volume.
        volume: VolumeId,
        /// Size of the disk.
        size_bytes: u64,
        /// Size in the newest epoch.
        recorded_bytes: u64,
    },
    /// The disk grew under an epoch that has begun.
    #[error(
        "the disk has {size_bytes} bytes, the vault recorded {recorded_bytes} for this epoch of \
         volume {volume}; a disk that grew needs a new epoch"
    )]
    Grown {
        /// The volume.
        volume: VolumeId,
        /// Size of the disk.
        size_bytes: u64,
        /// Size in the epoch.
        recorded_bytes: u64,
    },
    /// The epoch is in another log: only a newer one can be written here.
    #[error("volume {volume} needs a new epoch: log {log} holds this one")]
    NeedsEpoch {
        /// The volume.
        volume: VolumeId,
        /// The log that has the epoch.
        log: LogId,
    },
    /// An older epoch, or this one by an attempt before, was begun meanwhile: look at all of it again.
    #[error("epoch {newest} of volume {volume} was begun at the same time; try again")]
    Raced {
        /// The volume.
        volume: VolumeId,
        /// The epoch that was first.
        newest: Epoch,
    },
    /// The vault cannot be asked, or what it holds of the volume is damaged.
    #[error("the vault cannot be asked about volume {volume}")]
    Vault {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        #[source]
        source: Box<VaultError>,
    },
}

impl ClaimError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Fenced { .. } => ErrorKind::Fenced,
            Self::Size { .. } | Self::Grown { .. } => ErrorKind::Invalid,
            Self::NeedsEpoch { .. } | Self::Raced { .. } => ErrorKind::Conflict,
            Self::Vault { source, .. } => source.kind(),
        }
    }

    /// What the agent is told.
    #[must_use]
    pub fn reason(&self) -> RefusalReason {
        match self {
            Self::Fenced { .. } => RefusalReason::Fenced,
            Self::Size { .. } | Self::Grown { .. } => RefusalReason::Size,
            Self::Vault { .. } if self.kind() == ErrorKind::Corrupt => RefusalReason::Protocol,
            Self::NeedsEpoch { .. } | Self::Raced { .. } | Self::Vault { .. } => {
                RefusalReason::Unavailable
            }
        }
    }
}

impl From<&ClaimError> for NotOurs {
    fn from(error: &ClaimError) -> Self {
        let cause = match error {
            ClaimError::NeedsEpoch { .. } => Cause::NeedsEpoch,
            ClaimError::Fenced { newest, .. } => Cause::Fenced(*newest),
            _ => Cause::Other,
        };
        let text = match error {
            ClaimError::Vault { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        Self { cause, reason: error.reason(), text }
    }
}

/// Makes the volume the shard's under the wanted epoch: [`claim_with`] for a single one.
///
/// # Errors
/// See [`ClaimError`].
///
/// # Cancel safety
/// As [`claim_with`].
pub async fn claim_volume(vault: &Vault, wanted: &Wanted) -> Result<Claimed, ClaimError> {
    claim_with(vault, wanted, &SealedLogs::default()).await
}

/// Makes the volume the shard's under the wanted epoch. `sealed` is what the node has read of the logs that
/// it takes volumes over from.
///
/// Calling again after an error, a lost answer or a crash gives the same answer, as long as no newer
/// epoch was begun.
///
/// # Errors
/// See [`ClaimError`].
///
/// # Cancel safety
/// Dropped, it leaves open whether the volume was claimed, like an error.
pub async fn claim_with(
    vault: &Vault,
    wanted: &Wanted,
    sealed_logs: &SealedLogs,
) -> Result<Claimed, ClaimError> {
    let volume = wanted.volume;
    let failed = |source: VaultError| ClaimError::Vault { volume, source: Box::new(source) };
    let epochs = read_epochs(vault, volume).await.map_err(failed)?;
    let Some(last) = epochs.last() else {
        return begin(vault, wanted, 0, ((Seq(0), Stamp::default()), None)).await;
    };
    if last.epoch > wanted.epoch && !is_on(Bug::EpochCheckDropped) {
        return Err(ClaimError::Fenced { volume, newest: last.epoch });
    }
    let is_held = last.log == wanted.log && last.epoch == wanted.epoch;
    let (size_bytes, recorded_bytes) = (wanted.size_bytes, last.size_bytes);
    if size_bytes < recorded_bytes {
        return Err(ClaimError::Size { volume, size_bytes, recorded_bytes });
    }
    // A new epoch may begin with a larger disk; one that has begun has its size.
    if is_held && size_bytes != recorded_bytes {
        return Err(ClaimError::Grown { volume, size_bytes, recorded_bytes });
    }
    if is_held {
        let ((committed, stamp), _) = end_in_own(vault, wanted, last).await.map_err(failed)?;
        return Ok(Claimed { committed, stamp, sealed: None, ordinal: None });
    }
    if last.epoch == wanted.epoch {
        return Err(ClaimError::NeedsEpoch { volume, log: last.log });
    }
    let (committed, ended) = if last.log == wanted.log {
        end_in_own(vault, wanted, last).await.map_err(failed)?
    } else if is_on(Bug::ClaimWithoutSeal) {
        let end = end_of_volume(vault, volume).await.map_err(failed)?;
        (end.last(), Ended { kind: EndKind::Word, slot: Slot(0) })
    } else {
        // Whoever wrote it may still run: after the seal nothing of it counts any more.
        let log = sealed_logs.read(vault, last).await.map_err(failed)?;
        let committed = match log.end_of(volume, last) {
            Some(committed) => committed,
            // The stream goes on to the seal: a store that says less was asked too early, or has lost something.
            None => {
                let end = end_behind(vault, volume, last.log, log.slot.next()).await;
                end.map_err(failed)?.last()
            }
        };
        (committed, Ended { kind: EndKind::Seal, slot: log.slot })
    };
    begin(vault, wanted, epochs.len() as u64, (committed, Some((last.log, ended)))).await
}

/// How far the vault holds a volume whose newest epoch is in the log that is to have it, and how that ends.
async fn end_in_own(
    vault: &Vault,
    wanted: &Wanted,
    last: &EpochBody,
) -> Result<((Seq, Stamp), Ended), VaultError> {
    let (volume, log) = (wanted.volume, wanted.log);
    let filled = Slot(wanted.first_slot.0.saturating_sub(UNSURE_SLOTS));
    let end = find_end(vault, log, filled).await?;
    let ledger = whole_ledger(vault, log, &end).await?;
    let ended = Ended { kind: EndKind::Word, slot: end.next };
    if let Some(end) = ledger.and_then(|ledger| end_in(&ledger, volume, last)) {
        return Ok((end, ended));
    }
    // All of it up to the end that was found: a store that says less was asked too early.
    Ok((end_behind(vault, volume, log, end.next).await?.last(), ended))
}

/// How far the vault holds a volume, and the log of the epoch before and how that ended.
type Held = ((Seq, Stamp), Option<(LogId, Ended)>);

/// Begins the wanted epoch behind what the vault holds: the `held` epochs that were read.
async fn begin(
    vault: &Vault,
    wanted: &Wanted,
    held: u64,
    ((committed, stamp), ended): Held,
) -> Result<Claimed, ClaimError> {
    let volume = wanted.volume;
    let is_seal = |(_, ended): &(LogId, Ended)| ended.kind == EndKind::Seal;
    let sealed = ended.filter(is_seal).map(|(log, ended)| (log, ended.slot));
    let body = EpochBody {
        epoch: wanted.epoch,
        log: wanted.log,
        first_slot: wanted.first_slot,
        first_seq: committed.next(),
        size_bytes: wanted.size_bytes,
        stamp,
        label: wanted.label.clone(),
        ended: ended.map(|(_, ended)| ended),
        base: None,
    };
    match claim_behind(vault, volume, held, &body).await {
        Ok(Claim::Claimed { ordinal }) => {
            Ok(Claimed { committed, stamp, sealed, ordinal: Some(ordinal) })
        }
        Ok(Claim::Lost { .. }) if is_on(Bug::EpochCheckDropped) => {
            Ok(Claimed { committed, stamp, sealed, ordinal: None })
        }
        Ok(Claim::Lost { newest }) if newest.epoch > wanted.epoch => {
            Err(ClaimError::Fenced { volume, newest: newest.epoch })
        }
        Ok(Claim::Lost { newest }) if newest.epoch == wanted.epoch && newest.log != wanted.log => {
            Err(ClaimError::NeedsEpoch { volume, log: newest.log })
        }
        // An earlier attempt of ours was carried out late, or an older epoch was.
        Ok(Claim::Lost { newest }) => Err(ClaimError::Raced { volume, newest: newest.epoch }),
        Err(source) => Err(ClaimError::Vault { volume, source: Box::new(source) }),
    }
}

#[cfg(test)]
mod tests;
