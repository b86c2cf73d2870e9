//! Maps: what volumes hold at their points, so that a view need not read a volume's whole past.
//!
//! Derived: they are written after the fact, found by listing, and never needed. One that is
//! missing, damaged or contradicts the epochs is passed over, with a warning, for an older one or for
//! the logs alone. Layout: `docs/formats/map.md`.

mod read;
mod write;

pub use write::{Written, write};

pub(crate) use read::{Base, load};

use crate::chain::{Chain, Start};
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, map_part_of};
use crate::limits::{MAP_TRIES_MAX, MAPS_LISTED_MAX};
use crate::vault::Vault;
use crate::view::{Build, PointSelector};
use farshore_codec::map::{MapPlace, peek_map};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::OBJECT_HEADER_BYTES_MAX;
use farshore_proto::map::MapHead;
use farshore_proto::{PointId, Seq, VolumeId};
use futures::TryStreamExt;
use std::collections::BTreeSet;

/// Whether full chunk ids are kept along with the block map: to write or compare maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    Keep,
    Drop,
}

/// The seqs that a volume has maps at; of very many the newest.
pub(crate) async fn list(vault: &Vault, volume: VolumeId) -> Result<BTreeSet<Seq>, VaultError> {
    let mut seqs = BTreeSet::new();
    let mut listing = vault.store().list(Folder::Maps(volume));
    while let Some(object) = listing.try_next().await? {
        // The first part is put last: where it is, the others are.
        if let Some((seq, 0)) = map_part_of(&object.name) {
            seqs.insert(seq);
            if seqs.len() > MAPS_LISTED_MAX {
                seqs.pop_first();
            }
        }
    }
    Ok(seqs)
}

/// The newest map that a view of `selector` can begin with, if there is one that can be used.
///
/// A store that cannot be asked is only a warning: whether the logs can be read is another question.
pub(crate) async fn find(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    selector: PointSelector,
    ids: Ids,
) -> Option<Base> {
    match try_find(vault, volume, epochs, selector, ids).await {
        Ok(base) => base,
        Err(error) => {
            tracing::warn!(%volume, %error, "maps cannot be read; the logs are instead");
            None
        }
    }
}

async fn try_find(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    selector: PointSelector,
    ids: Ids,
) -> Result<Option<Base>, VaultError> {
    let mut seqs: Vec<Seq> = list(vault, volume).await?.into_iter().collect();
    let mut tries = MAP_TRIES_MAX;
    match selector {
        PointSelector::Latest => {}
        PointSelector::Seq(seq) => seqs.truncate(seqs.partition_point(|at| *at <= seq)),
        PointSelector::Point(point) => until(vault, volume, point, &mut seqs, &mut tries).await?,
    }
    while let Some(seq) = seqs.pop() {
        if tries == 0 {
            break;
        }
        tries -= 1;
        match load(vault, volume, epochs, seq, ids).await {
            Ok(base) => return Ok(Some(base)),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                let object = ObjectName::map(volume, seq, 0);
                tracing::warn!(%object, %error, "a map cannot be used; an older one or the logs are");
            }
        }
    }
    Ok(None)
}

/// Leaves those maps whose points are not newer than `point`, going by their ids, which are ordered
/// by time.
///
/// A clock that went back makes this choose badly: the view then does not find the point behind the
/// map, and reads the logs from the start.
async fn until(
    vault: &Vault,
    volume: VolumeId,
    point: PointId,
    seqs: &mut Vec<Seq>,
    tries: &mut usize,
) -> Result<(), VaultError> {
    let (mut low, mut high) = (0, seqs.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match peek(vault, volume, seqs[middle]).await {
            Ok(found) if found <= point => low = middle + 1,
            Ok(_) => high = middle,
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                let object = ObjectName::map(volume, seqs[middle], 0);
                tracing::warn!(%object, %error, "a map cannot be used; others or the logs are");
                seqs.remove(middle);
                high -= 1;
                *tries -= 1;
                if *tries == 0 {
                    seqs.clear();
                    return Ok(());
                }
            }
        }
    }
    seqs.truncate(low);
    Ok(())
}

/// The point that a map says it is at.
async fn peek(vault: &Vault, volume: VolumeId, seq: Seq) -> Result<PointId, VaultError> {
    let name = ObjectName::map(volume, seq, 0);
    let front = vault.store().get_range(&name, 0..OBJECT_HEADER_BYTES_MAX as u64).await?;
    let at = MapPlace { vault: vault.id(), volume, seq, part: 0 };
    match peek_map(&front.bytes, at, vault.ring()) {
        Ok(header) => Ok(header.fields.point),
        Err(cause) => Err(vault.damaged(name, 0, cause)),
    }
}

/// What reading a volume begins with: a map, or its first epoch.
pub(crate) fn begin<'a>(
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    base: Option<Base>,
    ids: Ids,
) -> Result<(Build, Chain<'a>), VaultError> {
    let epochs = epochs.to_vec();
    Ok(match base {
        Some(Base { build, start }) => (build, Chain::resume(vault, volume, epochs, start)),
        None => (Build::new(ids), Chain::begin(vault, volume, epochs)?),
    })
}

/// Where reading goes on behind a map, if the epochs of the volume allow it.
pub(crate) fn start(epochs: &[EpochBody], head: &MapHead, seq: Seq) -> Option<Start> {
    let epoch = usize::try_from(head.ordinal - 1).ok()?;
    let body = epochs.get(epoch)?;
    let is_of_epoch = (body.log, body.size_bytes) == (head.log, head.size_bytes)
        && body.first_slot <= head.slot
        && body.first_seq <= seq;
    // A writer that was fenced later may have mapped what does not count any more.
    let counts = epochs.get(epoch + 1).is_none_or(|next| seq < next.first_seq);
    (is_of_epoch && counts).then_some(Start { epoch, slot: head.slot, last: seq })
}

#[cfg(test)]
mod tests;
