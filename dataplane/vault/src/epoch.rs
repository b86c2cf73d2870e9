//! The epochs of a volume: who writes it, from which seq on.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{EPOCHS_AT_ONCE, EPOCHS_BEHIND, EPOCHS_MAX};
use crate::store::{Put, StoreError};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::epoch::{open_epoch, seal_epoch};
use farshore_proto::epoch::{EpochBase, EpochBody};
use farshore_proto::limits::{LABEL_BYTES_MAX, SMALL_OBJECT_BYTES_MAX};
use farshore_proto::object::ObjectKind;
use farshore_proto::{Place, Seq, VolumeId};
use std::collections::VecDeque;

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The volume is ours under the epoch of the claim.
    Claimed {
        /// Number of the epoch in the volume's list.
        ordinal: u64,
    },
    /// The same or a newer epoch was there first; this is the newest.
    Lost {
        /// The newest epoch.
        newest: EpochBody,
    },
}

/// The epochs of a volume as far as they can be read.
#[derive(Debug)]
pub(crate) struct Known {
    /// In order; the one at index `i` has ordinal `i + 1`.
    pub(crate) epochs: Vec<EpochBody>,
    /// What is wrong with the next one.
    pub(crate) broken: Option<VaultError>,
}

impl Known {
    /// How many of the epochs are known to their end. One ends where the next begins, so of those in
    /// front of one that cannot be read the last is not.
    pub(crate) fn bounded(&self) -> usize {
        self.epochs.len() - usize::from(self.broken.is_some() && !self.epochs.is_empty())
    }
}

/// Epochs of a volume that hold one stream, from its start or from a point on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Branch {
    /// Index of its first epoch.
    pub(crate) first: usize,
    /// Index of the next branch's first; none: the volume's newest.
    pub(crate) end: Option<usize>,
    /// What it goes on from.
    pub(crate) base: Option<EpochBase>,
}

impl Branch {
    /// All epochs of a volume, for who looks for frames and marks, whatever they lie over.
    pub(crate) const ALL: Self = Self { first: 0, end: None, base: None };

    /// Whether an epoch is of it.
    pub(crate) fn has(&self, epoch: usize) -> bool {
        epoch >= self.first && self.end.is_none_or(|end| epoch < end)
    }
}

/// The branches of a volume, oldest first; one without epochs has one branch all the same.
pub(crate) fn branches(epochs: &[EpochBody]) -> Vec<Branch> {
    let begins =
        |(index, body): (usize, &EpochBody)| (index == 0 || body.base.is_some()).then_some(index);
    let firsts: Vec<usize> = epochs.iter().enumerate().filter_map(begins).collect();
    let ends = firsts.iter().skip(1).map(|end| Some(*end)).chain([None]);
    let branches = firsts.iter().zip(ends);
    let branch =
        |(first, end): (&usize, _)| Branch { first: *first, end, base: epochs[*first].base };
    let mut branches: Vec<Branch> = branches.map(branch).collect();
    if branches.is_empty() {
        branches.push(Branch::ALL);
    }
    branches
}

/// The branch that a volume begins with.
pub(crate) fn first_branch(epochs: &[EpochBody]) -> Branch {
    let end = epochs.iter().skip(1).position(|body| body.base.is_some()).map(|at| at + 1);
    Branch { first: 0, end, base: epochs.first().and_then(|body| body.base) }
}

/// The newest branch of a volume.
pub(crate) fn newest_branch(epochs: &[EpochBody]) -> Branch {
    let first = epochs.iter().rposition(|body| body.base.is_some()).unwrap_or(0);
    Branch { first, end: None, base: epochs.get(first).and_then(|body| body.base) }
}

/// The place of a seq: it tells the epoch, since seqs go on from one to the next.
pub(crate) fn place_of(epochs: &[EpochBody], seq: Seq) -> Place {
    let owner = epochs.iter().rposition(|body| body.first_seq <= seq).unwrap_or(0);
    Place { ordinal: owner as u64 + 1, seq }
}

/// Reads the epochs of a volume in order; the one at index `i` has ordinal `i + 1`.
///
/// Empty for a volume that the vault does not know.
///
/// # Errors
/// `Corrupt` if an object does not open or is missing in front of a later one, or the order is
/// wrong; `Unavailable`; `Limit`.
pub async fn read_epochs(vault: &Vault, volume: VolumeId) -> Result<Vec<EpochBody>, VaultError> {
    match read_known(vault, volume).await? {
        Known { broken: Some(error), .. } => Err(error),
        Known { epochs, broken: None } => Ok(epochs),
    }
}

/// Reads the epochs of a volume up to the first one that cannot be read.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub(crate) async fn read_known(vault: &Vault, volume: VolumeId) -> Result<Known, VaultError> {
    let mut epochs: Vec<EpochBody> = Vec::new();
    let mut first = 1;
    while first <= EPOCHS_MAX {
        // At the same time: most volumes have few, and then one wait is all.
        let asked = first..first + EPOCHS_AT_ONCE;
        let reads = asked.clone().map(|ordinal| read_epoch(vault, volume, ordinal));
        let mut found = VecDeque::from(futures::future::join_all(reads).await);
        for ordinal in asked {
            let body = match found.pop_front().unwrap_or(Ok(None)) {
                Ok(None) => match missing_or_lost(vault, volume, ordinal, &found).await {
                    Ok(Some(body)) => body,
                    Ok(None) => return Ok(Known { epochs, broken: None }),
                    Err(error) if error.is_unavailable() => return Err(error),
                    Err(error) => return Ok(Known { epochs, broken: Some(error) }),
                },
                Ok(Some(body)) => body,
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => return Ok(Known { epochs, broken: Some(error) }),
            };
            let is_later = epochs
                .last()
                .is_none_or(|last| last.epoch < body.epoch && last.first_seq <= body.first_seq);
            if !is_later {
                let object = ObjectName::epoch(volume, ordinal);
                let error = VaultError::EpochOrder { url: vault.url().to_owned(), object };
                return Ok(Known { epochs, broken: Some(error) });
            }
            epochs.push(body);
        }
        first += EPOCHS_AT_ONCE;
    }
    let url = vault.url().to_owned();
    Err(VaultError::Limit { url, what: "epochs of a volume", max: EPOCHS_MAX })
}

/// An epoch of a volume that was missing when it was asked for, and is there now; none behind the last one. `later` are
/// those that were asked for with it.
async fn missing_or_lost(
    vault: &Vault,
    volume: VolumeId,
    ordinal: u64,
    later: &VecDeque<Result<Option<EpochBody>, VaultError>>,
) -> Result<Option<EpochBody>, VaultError> {
    let behind = ordinal + 1..=ordinal + EPOCHS_BEHIND;
    let mut answers = later.iter();
    let mut unasked = Vec::new();
    let mut found = None;
    for later in behind {
        match answers.next() {
            Some(Ok(None)) => {}
            // A store that was away has not said anything.
            Some(Err(error)) if error.is_unavailable() => unasked.push(later),
            // One that does not open is there.
            Some(_) => found = found.or(Some(later)),
            None => unasked.push(later),
        }
    }
    if found.is_none() {
        // They are made in order, so a later one means that this one was there.
        let unasked = unasked.into_iter().map(|later| async move {
            let name = ObjectName::epoch(volume, later);
            Ok::<_, StoreError>(vault.store().exists(&name).await?.then_some(later))
        });
        found = futures::future::try_join_all(unasked).await?.into_iter().flatten().next();
    }
    let Some(later) = found else { return Ok(None) };
    // It may have been made since.
    if let Some(body) = read_epoch(vault, volume, ordinal).await? {
        return Ok(Some(body));
    }
    let (url, object) = (vault.url().to_owned(), ObjectName::epoch(volume, ordinal));
    Err(VaultError::LostNumber { url, object, later: ObjectName::epoch(volume, later) })
}

async fn read_epoch(
    vault: &Vault,
    volume: VolumeId,
    ordinal: u64,
) -> Result<Option<EpochBody>, VaultError> {
    let name = ObjectName::epoch(volume, ordinal);
    let bytes = match vault.store().get(&name, SMALL_OBJECT_BYTES_MAX as u64).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match open_epoch(&bytes, vault.id(), volume, ordinal, vault.ring()) {
        Ok(body) => Ok(Some(body)),
        Err(source) => Err(vault.damaged_in(name, ObjectKind::Epoch.header_bytes(), source)),
    }
}

/// Makes `body` the newest epoch of a volume, if it is newer than all there are.
///
/// Calling again with the same body after an error or a crash gives the same answer.
///
/// # Errors
/// `Limit` for a label that is too long; `Corrupt` if the epochs there are do not open, or the body
/// begins at a seq below the newest's first; `Unavailable` (also when full: `is_no_space`).
pub async fn claim(vault: &Vault, volume: VolumeId, body: &EpochBody) -> Result<Claim, VaultError> {
    let epochs = read_epochs(vault, volume).await?;
    let held = epochs.len() as u64;
    if let Some(newest) = epochs.last() {
        if newest == body {
            vault.store().settle(&ObjectName::epoch(volume, held)).await?;
            return Ok(Claim::Claimed { ordinal: held });
        }
        if newest.epoch >= body.epoch {
            return Ok(Claim::Lost { newest: newest.clone() });
        }
        if newest.first_seq > body.first_seq {
            let object = ObjectName::epoch(volume, held + 1);
            return Err(VaultError::EpochOrder { url: vault.url().to_owned(), object });
        }
    }
    claim_behind(vault, volume, held, body).await
}

/// Makes `body` the epoch behind the first `held` ones, which the caller has read and found older.
///
/// It is lost if anybody has begun an epoch since, even an older one: what the caller knows of the
/// volume's end is not true any more then.
///
/// # Errors
/// As `claim`, but for the order of the epochs.
pub async fn claim_behind(
    vault: &Vault,
    volume: VolumeId,
    held: u64,
    body: &EpochBody,
) -> Result<Claim, VaultError> {
    if body.label.len() > LABEL_BYTES_MAX {
        let (url, max) = (vault.url().to_owned(), LABEL_BYTES_MAX as u64);
        return Err(VaultError::Limit { url, what: "bytes of a volume's label", max });
    }
    let ordinal = held + 1;
    let name = ObjectName::epoch(volume, ordinal);
    let keys = vault.seal_keys();
    let object = seal_epoch(vault.id(), volume, ordinal, keys, body)
        .map_err(|source| VaultError::Seal { object: name.clone(), cause: Box::new(source) })?;
    if vault.store().create(&name, Bytes::from(object)).await? == Put::Created {
        return Ok(Claim::Claimed { ordinal });
    }
    match read_epoch(vault, volume, ordinal).await? {
        Some(found) if found == *body => {
            vault.store().settle(&name).await?;
            Ok(Claim::Claimed { ordinal })
        }
        Some(newest) => Ok(Claim::Lost { newest }),
        None => {
            let url = vault.url().to_owned();
            Err(StoreError::NotFound { url, object: name.to_string() }.into())
        }
    }
}

#[cfg(test)]
mod tests;
