//! Taking a volume from every writer, without being one: what a failover does before its export.
//!
//! The fence is an epoch of the volume like any other, in a log that nobody writes. Spans at or above
//! its first seq, under any epoch before it, do not count (see `chain`), whatever their writer
//! still puts and acknowledges. The log of the old owner is not sealed: it is other volumes' too, and
//! its node may well live. A node that hears of the new epoch lets the volume go; one that does not
//! goes on in vain, and its agent sends the whole disk again, by hashes, once a later epoch begins.

use crate::epoch::{Claim, claim_behind, read_epochs};
use crate::error::VaultError;
use crate::map::{self, Ids};
use crate::vault::Vault;
use crate::view::{Point, PointSelector};
use farshore_proto::epoch::EpochBody;
use farshore_proto::{Epoch, ErrorKind, LogId, Seq, Slot, VolumeId};

/// How often somebody else may begin an epoch meanwhile.
const TRIES_MAX: usize = 4;

/// Where a volume ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEnd {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The last seq that is committed.
    pub last_seq: Seq,
    /// The newest point, if there is one.
    pub point: Option<Point>,
}

/// Why a volume is not fenced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// The same or a newer epoch owns it: fence under a greater one.
    #[error("epoch {newest} owns volume {volume}; it must be fenced under a greater one")]
    Epoch {
        /// The volume.
        volume: VolumeId,
        /// The newest epoch.
        newest: Epoch,
    },
    /// The vault cannot be asked or written, or what it holds of the volume is damaged.
    #[error("the vault cannot be asked about volume {volume}")]
    Vault {
        /// The volume.
        volume: VolumeId,
        /// Why not.
        #[source]
        source: Box<VaultError>,
    },
}

impl FenceError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Epoch { .. } => ErrorKind::Conflict,
            Self::Vault { source, .. } => source.kind(),
        }
    }
}

/// Finds where a volume ends and which is its newest point, by the newest map and what lies behind it.
///
/// # Errors
/// `NotFound` for a volume that the vault does not know; `Corrupt` if its stream cannot be read to
/// the end; `Unavailable`; `Limit`.
pub async fn end_of_stream(vault: &Vault, volume: VolumeId) -> Result<StreamEnd, VaultError> {
    let epochs = read_epochs(vault, volume).await?;
    end_in(vault, volume, &epochs).await
}

async fn end_in(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
) -> Result<StreamEnd, VaultError> {
    let Some(newest) = epochs.last() else {
        return Err(VaultError::NoVolume { url: vault.url().to_owned(), volume });
    };
    let base = map::find(vault, volume, epochs, PointSelector::Latest, Ids::Drop).await;
    let (last_seq, point) = match base {
        None => read_end(vault, volume, epochs, None).await?,
        Some(base) => match read_end(vault, volume, epochs, Some(base)).await {
            Err(error) if !error.is_unavailable() => {
                tracing::warn!(
                    %volume, %error,
                    "cannot go on from a map; reading the logs from the start"
                );
                read_end(vault, volume, epochs, None).await?
            }
            read => read?,
        },
    };
    Ok(StreamEnd { epoch: newest.epoch, last_seq, point })
}

async fn read_end(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    base: Option<map::Base>,
) -> Result<(Seq, Option<Point>), VaultError> {
    let (mut build, mut chain) = map::begin(vault, volume, epochs, base, Ids::Drop)?;
    while let Some(found) = chain.next().await? {
        build.take(&chain, &found)?;
    }
    chain.hole().await?;
    Ok((chain.last(), build.point().copied()))
}

/// Takes the volume from every writer, under an epoch greater than all that the vault has.
///
/// Calling again with the same epoch, after an error, a lost answer or a crash, gives the same answer
/// as long as no newer epoch was begun.
///
/// # Errors
/// See [`FenceError`]; `NotFound` for a volume that the vault does not know.
///
/// # Cancel safety
/// Dropped, it leaves open whether the volume is fenced, like an error.
pub async fn fence_volume(
    vault: &Vault,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<StreamEnd, FenceError> {
    let failed = |source: VaultError| FenceError::Vault { volume, source: Box::new(source) };
    let log = log_of(volume, epoch);
    let mut newest = Epoch(0);
    for _ in 0..TRIES_MAX {
        let epochs = read_epochs(vault, volume).await.map_err(failed)?;
        let end = end_in(vault, volume, &epochs).await.map_err(failed)?;
        let Some(last) = epochs.last() else { continue };
        newest = last.epoch;
        if last.epoch == epoch && last.log == log {
            return Ok(end);
        }
        if last.epoch >= epoch {
            break;
        }
        let body = EpochBody {
            epoch,
            log,
            first_slot: Slot(0),
            first_seq: end.last_seq.next(),
            size_bytes: last.size_bytes,
            label: last.label.clone(),
        };
        let claim = claim_behind(vault, volume, epochs.len() as u64, &body).await;
        if let Claim::Claimed { .. } = claim.map_err(failed)? {
            return Ok(StreamEnd { epoch, ..end });
        }
    }
    Err(FenceError::Epoch { volume, newest })
}

/// The log of a fence: the same for the same fence, and no other's, since logs of nodes have random
/// ids.
fn log_of(volume: VolumeId, epoch: Epoch) -> LogId {
    let mut bytes = volume.0;
    bytes[0] ^= 0xfe;
    for (byte, part) in bytes[8..].iter_mut().zip(epoch.0.to_le_bytes()) {
        *byte ^= part;
    }
    LogId(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::end_of_volume;
    use crate::claim::{Claimed, Wanted, claim_volume};
    use crate::testing::World;
    use crate::view::VolumeView;

    /// Volume 0 with two points in log 0 under epoch 1.
    async fn written() -> World {
        let mut world = World::new(1, 2).await;
        for seed in [100, 200] {
            world.write(0, 0, 4, seed);
            world.end_span(0, true);
            world.commit(0).await;
        }
        world
    }

    #[tokio::test]
    async fn nothing_counts_that_is_put_behind_a_fence_and_no_log_is_sealed() {
        let mut world = written().await;
        let volume = world.volumes[0].id;
        let fenced = fence_volume(&world.vault, volume, Epoch(5)).await.unwrap();
        let newest = world.points[1].clone();
        assert_eq!((fenced.epoch, fenced.last_seq), (Epoch(5), Seq(4)));
        assert_eq!(fenced.point.map(|point| point.id), Some(newest.id));
        // A node that does not hear of it goes on.
        world.write(0, 9, 1, 300);
        world.end_span(0, true);
        world.commit(0).await;
        let again = fence_volume(&world.vault, volume, Epoch(5)).await.unwrap();
        assert_eq!(again, fenced, "as after a lost answer");
        assert_eq!(end_of_stream(&world.vault, volume).await.unwrap(), fenced);
        let view = VolumeView::open(&world.vault, volume, PointSelector::Latest).await.unwrap();
        assert_eq!(view.point().id, newest.id);
        // The volume goes back to its node, whose log goes on.
        let wanted = Wanted {
            volume,
            epoch: Epoch(6),
            log: world.logs[0].id,
            first_slot: world.logs[0].next,
            size_bytes: view.size_bytes(),
            label: "web1".to_owned(),
        };
        let Claimed { committed, sealed, .. } = claim_volume(&world.vault, &wanted).await.unwrap();
        assert_eq!(committed, Seq(4), "what came behind the fence is sent again");
        assert_eq!(sealed, Some((log_of(volume, Epoch(5)), Slot(0))), "nobody's log");
        assert_eq!(end_of_volume(&world.vault, volume).await.unwrap().last_seq, Seq(4));
        let report = crate::verify::verify(&world.vault, true, |_| {}).await.unwrap();
        assert!(report.is_whole(), "{report:?}");
    }

    #[tokio::test]
    async fn an_epoch_that_is_not_the_newest_fences_nothing() {
        let mut world = written().await;
        world.claim(0, 0).await;
        let volume = world.volumes[0].id;
        for epoch in [1, 2] {
            let error = fence_volume(&world.vault, volume, Epoch(epoch)).await.unwrap_err();
            assert!(matches!(error, FenceError::Epoch { newest: Epoch(2), .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
        let error = fence_volume(&world.vault, VolumeId([9; 16]), Epoch(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}
