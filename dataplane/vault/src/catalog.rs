//! What a vault holds: volumes and their points, read from the store alone.

use crate::chain::{Chain, Hole};
use crate::epoch::read_epochs;
use crate::error::VaultError;
use crate::layout::Folder;
use crate::limits::POINTS_MAX;
use crate::vault::Vault;
use crate::view::Point;
use farshore_proto::epoch::EpochBody;
use farshore_proto::{LogId, Seq, VolumeId};

/// A volume of the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The volume.
    pub volume: VolumeId,
    /// Its epochs, in order.
    pub epochs: Vec<EpochBody>,
}

/// How far the vault holds a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEnd {
    /// Its epochs, in order; never empty.
    pub epochs: Vec<EpochBody>,
    /// Last seq that is committed; 0 if none is.
    pub last_seq: Seq,
    /// A missing slot behind the end, if later ones exist.
    pub hole: Option<Hole>,
}

/// Finds the end of a volume's stream: a new epoch goes on with the seq behind it.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Corrupt` if its stream cannot be read to
/// the end; `Unavailable`.
pub async fn end_of_volume(vault: &Vault, volume: VolumeId) -> Result<VolumeEnd, VaultError> {
    let mut chain = Chain::open(vault, volume).await?;
    while chain.next().await?.is_some() {}
    let (last_seq, hole) = (chain.last(), chain.hole().await?);
    Ok(VolumeEnd { epochs: chain.epochs().to_vec(), last_seq, hole })
}

/// Lists all recovery points of a volume, in order.
///
/// # Errors
/// As `end_of_volume`; `Limit` above `POINTS_MAX`.
pub async fn list_points(vault: &Vault, volume: VolumeId) -> Result<Vec<Point>, VaultError> {
    let mut chain = Chain::open(vault, volume).await?;
    let mut points = Vec::new();
    while let Some(found) = chain.next().await? {
        let Some(mark) = found.span.mark else { continue };
        if points.len() == POINTS_MAX {
            let (url, max) = (vault.url().to_owned(), POINTS_MAX as u64);
            return Err(VaultError::Limit { url, what: "recovery points of a volume", max });
        }
        let epoch = &chain.epochs()[found.epoch];
        points.push(Point {
            id: mark.point,
            seq: found.span.last_seq,
            epoch: epoch.epoch,
            kind: mark.kind,
            time_unix_ms: mark.time_unix_ms,
            size_bytes: epoch.size_bytes,
        });
    }
    chain.hole().await?;
    Ok(points)
}

/// Lists the volumes of a vault. Names that are not ids are passed over.
///
/// # Errors
/// `Corrupt` if an epoch does not open; `Unavailable`; `Limit`.
pub async fn list_volumes(vault: &Vault) -> Result<Vec<VolumeInfo>, VaultError> {
    let mut volumes = Vec::new();
    for volume in volume_ids(vault).await? {
        let epochs = read_epochs(vault, volume).await?;
        if !epochs.is_empty() {
            volumes.push(VolumeInfo { volume, epochs });
        }
    }
    Ok(volumes)
}

pub(crate) async fn volume_ids(vault: &Vault) -> Result<Vec<VolumeId>, VaultError> {
    let names = vault.store().children(Folder::Volumes).await?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

pub(crate) async fn log_ids(vault: &Vault) -> Result<Vec<LogId>, VaultError> {
    let names = vault.store().children(Folder::Logs).await?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}
