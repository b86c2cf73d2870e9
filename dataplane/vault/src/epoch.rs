//! The epochs of a volume: who writes it, from which seq on.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::EPOCHS_MAX;
use crate::store::{Put, StoreError};
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::epoch::{open_epoch, seal_epoch};
use farshore_proto::VolumeId;
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::{LABEL_BYTES_MAX, SMALL_OBJECT_BYTES_MAX};

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

/// Reads the epochs of a volume in order; the one at index `i` has ordinal `i + 1`.
///
/// Empty for a volume that the vault does not know.
///
/// # Errors
/// `Corrupt` if an object does not open or the order is wrong; `Unavailable`; `Limit`.
pub async fn read_epochs(vault: &Vault, volume: VolumeId) -> Result<Vec<EpochBody>, VaultError> {
    let mut epochs: Vec<EpochBody> = Vec::new();
    for ordinal in 1..=EPOCHS_MAX {
        let Some(body) = read_epoch(vault, volume, ordinal).await? else {
            return Ok(epochs);
        };
        let is_later = epochs
            .last()
            .is_none_or(|last| last.epoch < body.epoch && last.first_seq <= body.first_seq);
        if !is_later {
            let object = ObjectName::epoch(volume, ordinal);
            return Err(VaultError::EpochOrder { url: vault.url().to_owned(), object });
        }
        epochs.push(body);
    }
    let url = vault.url().to_owned();
    Err(VaultError::Limit { url, what: "epochs of a volume", max: EPOCHS_MAX })
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
        Err(source) => Err(vault.damaged(name, 0, source)),
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
    if body.label.len() > LABEL_BYTES_MAX {
        let (url, max) = (vault.url().to_owned(), LABEL_BYTES_MAX as u64);
        return Err(VaultError::Limit { url, what: "bytes of a volume's label", max });
    }
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
    let ordinal = held + 1;
    let name = ObjectName::epoch(volume, ordinal);
    let (number, key) = vault.newest_key();
    let object = seal_epoch(vault.id(), volume, ordinal, key, number, body)
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
