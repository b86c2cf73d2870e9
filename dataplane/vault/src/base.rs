//! The base of a volume: its stream at and below a place is a map, and of the recovery points there those that it lists are
//! kept. Whoever reads the volume begins there, and needs no slot below but for the chunks in it.
//!
//! Layout and rules: `docs/formats/base.md`.

mod maps;
mod renew;
mod write;

pub use renew::renew;
pub use write::write;

pub(crate) use maps::BaseMaps;
pub(crate) use write::follows;

use crate::chain::Start;
use crate::epoch::{Branch, Known, read_known};
use crate::error::VaultError;
use crate::gapless;
use crate::layout::ObjectName;
use crate::limits::{SEALED_OBJECT_BYTES_MAX, VOLUME_BASES_MAX};
use crate::map;
use crate::vault::Vault;
use crate::view::Point;
use farshore_codec::base::open_base_wholly;
use farshore_codec::digest::digest;
use farshore_proto::base::{BaseBody, Digest, KeptPoint};
use farshore_proto::checkpoint::VolumeTail;
use farshore_proto::epoch::EpochBody;
use farshore_proto::object::ObjectKind;
use farshore_proto::{Place, PointId, VolumeId};

/// A base of a volume that opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeBase {
    /// The volume.
    pub volume: VolumeId,
    /// Its number.
    pub number: u64,
    /// Of the object as it is stored.
    pub digest: Digest,
    /// What it says.
    pub body: BaseBody,
    /// Whether it has more than this program knows: that would be lost in the next.
    pub(crate) is_outgrown: bool,
}

impl VolumeBase {
    /// The object.
    #[must_use]
    pub fn object(&self) -> ObjectName {
        ObjectName::base(self.volume, self.number)
    }

    /// Whether the stream at a place is the base's map, or below it.
    pub(crate) fn covers(&self, at: Place) -> bool {
        at <= self.body.at
    }

    /// Whether all that a tail of the volume speaks of is covered.
    pub(crate) fn covers_tail(&self, epochs: &[EpochBody], tail: &VolumeTail) -> bool {
        let ordinal = epochs.iter().position(|body| body.epoch == tail.epoch);
        ordinal.is_some_and(|index| {
            let ordinal = index as u64 + 1;
            // Of an older epoch all is covered that counts.
            ordinal < self.body.at.ordinal
                || !tail.is_broken && self.covers(Place { ordinal, seq: tail.last_seq })
        })
    }

    /// The map that the stream begins with.
    pub(crate) fn map(&self) -> map::Name {
        (self.body.at, self.body.map)
    }

    /// Index of the epoch of its place.
    pub(crate) fn epoch(&self) -> usize {
        usize::try_from(self.body.at.ordinal - 1).unwrap_or(usize::MAX)
    }

    /// Whether its place is on a branch.
    pub(crate) fn is_on(&self, branch: &Branch) -> bool {
        branch.has(self.epoch())
    }

    /// The kept point with an id.
    pub(crate) fn kept(&self, id: PointId) -> Option<&KeptPoint> {
        self.body.points.iter().rfind(|point| point.mark.point == id)
    }

    /// The newest kept point of a branch.
    pub(crate) fn newest_on(&self, branch: &Branch) -> Option<&KeptPoint> {
        let is_on = |point: &&KeptPoint| {
            usize::try_from(point.at.ordinal - 1).is_ok_and(|epoch| branch.has(epoch))
        };
        self.body.points.iter().rfind(is_on)
    }

    /// Where the stream goes on behind its map.
    ///
    /// # Errors
    /// `Corrupt` if the epochs of the volume have no such place.
    pub(crate) fn start(&self, vault: &Vault, epochs: &[EpochBody]) -> Result<Start, VaultError> {
        let BaseBody { at, log, slot, .. } = self.body;
        let epoch = self.epoch();
        let is_there = epochs.get(epoch).is_some_and(|body| {
            let ends = epochs.get(epoch + 1).map(|next| next.first_seq);
            body.log == log
                && body.first_slot <= slot
                && body.first_seq <= at.seq
                && ends.is_none_or(|end| at.seq < end)
        });
        if is_there {
            return Ok(Start { epoch, slot, last: at.seq });
        }
        Err(VaultError::Base { url: vault.url().to_owned(), object: self.object() })
    }
}

/// Number of the newest base of a volume; 0 if it has none.
///
/// # Errors
/// `Corrupt` if one is missing in front of a later one; `Unavailable`; `Limit`.
pub(crate) async fn last_number(vault: &Vault, volume: VolumeId) -> Result<u64, VaultError> {
    gapless::newest(vault.store(), 0, VOLUME_BASES_MAX, |number| ObjectName::base(volume, number))
        .await
}

/// The newest base of a volume, if it has one.
///
/// # Errors
/// `Corrupt` if it does not open, or one is missing in front of a later one; `Unavailable`; `Limit`.
pub async fn newest(vault: &Vault, volume: VolumeId) -> Result<Option<VolumeBase>, VaultError> {
    let number = last_number(vault, volume).await?;
    if number == 0 {
        return Ok(None);
    }
    match read(vault, volume, number).await {
        Err(error) if error.is_not_found() => {
            let (url, object) = (vault.url().to_owned(), ObjectName::base(volume, number));
            Err(VaultError::LostEnd { url, object })
        }
        found => found.map(Some),
    }
}

/// Reads a base of a volume.
///
/// # Errors
/// `NotFound` if there is none; `Corrupt` if it does not open; `Unavailable`.
pub async fn read(vault: &Vault, volume: VolumeId, number: u64) -> Result<VolumeBase, VaultError> {
    let name = ObjectName::base(volume, number);
    let object = vault.store().get(&name, SEALED_OBJECT_BYTES_MAX).await?;
    let open = move |vault: &Vault| {
        let (body, is_all) = open_base_wholly(&object, vault.id(), volume, number, vault.ring())?;
        Ok((digest(&object), body, !is_all))
    };
    let (digest, body, is_outgrown) = vault.open_aside(name, ObjectKind::Base, open).await?;
    Ok(VolumeBase { volume, number, digest, body, is_outgrown })
}

/// What readers of a volume begin with.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) known: Known,
    /// The newest base. One that cannot be read stands in the place of the epochs.
    pub(crate) base: Option<VolumeBase>,
}

/// Reads the epochs of a volume up to the first one that cannot be read, and its newest base beside them.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub(crate) async fn read_ground(vault: &Vault, volume: VolumeId) -> Result<Ground, VaultError> {
    let (known, base) = futures::join!(read_known(vault, volume), newest(vault, volume));
    let mut known = known?;
    let base = match base {
        Ok(base) => base,
        Err(error) if error.is_unavailable() || matches!(error, VaultError::Limit { .. }) => {
            return Err(error);
        }
        Err(error) => {
            let known = Known { epochs: Vec::new(), broken: Some(error) };
            return Ok(Ground { known, base: None });
        }
    };
    if known.broken.is_none() && base.as_ref().is_some_and(|b| b.epoch() >= known.epochs.len()) {
        // Both may be newer than the epochs that were read.
        known = read_known(vault, volume).await?;
    }
    Ok(Ground { known, base })
}

/// The epochs of a volume and its newest base.
///
/// # Errors
/// As [`crate::epoch::read_epochs`], and [`newest`].
pub(crate) async fn read_whole(
    vault: &Vault,
    volume: VolumeId,
) -> Result<(Vec<EpochBody>, Option<VolumeBase>), VaultError> {
    match read_ground(vault, volume).await? {
        Ground { known: Known { broken: Some(error), .. }, .. } => Err(error),
        Ground { known: Known { epochs, broken: None }, base } => Ok((epochs, base)),
    }
}

impl From<&KeptPoint> for Point {
    fn from(kept: &KeptPoint) -> Self {
        Self {
            id: kept.mark.point,
            seq: kept.at.seq,
            epoch: kept.epoch,
            kind: kept.mark.kind,
            unknown_blocks: kept.mark.unknown_blocks,
            time_unix_ms: kept.mark.time_unix_ms,
            size_bytes: kept.size_bytes,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
