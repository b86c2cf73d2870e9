//! Maps: what volumes hold at places of their streams, so that a view need not read a volume's whole past.
//!
//! Derived: they are written after the fact, found by listing, and never needed, but for those that a base names. One that is
//! missing, damaged or contradicts the epochs is passed over, with a warning, for an older one or for
//! the logs alone. Layout: `docs/formats/map.md` and `docs/formats/pages.md`.

mod layer;
mod pages;
mod tiers;
mod write;

pub use pages::LEVEL;
pub use tiers::merged;
pub use write::{Shape, Written, write, write_shaped};

pub(crate) use layer::{Layer, PageKey, open_layers};

use crate::base::VolumeBase;
use crate::chain::{Chain, Resumed, Start};
use crate::epoch::Branch;
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, map_of};
use crate::limits::{MAP_TRIES_MAX, MAPS_LISTED_MAX, SEALED_OBJECT_BYTES_MAX};
use crate::store::Put;
use crate::vault::Vault;
use crate::view::{Point, PointSelector};
use bytes::Bytes;
use farshore_codec::digest::digest;
use farshore_codec::map::{MapPlace, open_manifest, peek_manifest};
use farshore_proto::base::Digest;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::OBJECT_HEADER_BYTES_MAX;
use farshore_proto::map::{Manifest, MapHeader};
use farshore_proto::object::ObjectKind;
use farshore_proto::{ErrorKind, MapAttempt, Place, PointId, Seq, VolumeId};
use futures::TryStreamExt;
use std::collections::BTreeSet;

/// A map's name: where it is, and which attempt at it.
pub(crate) type Name = (Place, MapAttempt);

/// What reading a volume begins with instead of its first epoch.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) name: Name,
    pub(crate) manifest: Manifest,
    /// The newest point at or before the map's place.
    pub(crate) point: Option<Point>,
    /// Where reading goes on.
    pub(crate) start: Start,
}

/// Maps that are not to be used again: one of their layers does not open.
pub(crate) type Avoided = BTreeSet<MapAttempt>;

impl Base {
    /// The point that the map is at, if there is a mark at its place.
    pub(crate) fn own_point(&self) -> Option<Point> {
        let is_at = |point: &Point| point.seq == self.name.0.seq;
        self.point.filter(|point| is_at(point) || is_on(Bug::UnmarkedTakenForPoint))
    }

    /// The attempts that it is made of.
    pub(crate) fn is_of(&self, avoided: &Avoided) -> bool {
        let layers = self.manifest.layers.iter().map(|layer| layer.attempt);
        layers.chain([self.name.1]).any(|attempt| avoided.contains(&attempt))
    }

    /// The object that names it.
    pub(crate) fn object(&self, volume: VolumeId) -> ObjectName {
        ObjectName::map(volume, self.name.0, self.name.1)
    }
}

/// The maps that a volume has; of very many, every second one, or fourth, and the newest.
pub(crate) async fn list(vault: &Vault, volume: VolumeId) -> Result<BTreeSet<Name>, VaultError> {
    list_to(vault, volume, Seq(u64::MAX)).await
}

/// The maps that a volume has up to a seq.
async fn list_to(vault: &Vault, volume: VolumeId, to: Seq) -> Result<BTreeSet<Name>, VaultError> {
    let mut names = BTreeSet::new();
    let mut listing = vault.store().list(Folder::Maps(volume));
    while let Some(object) = listing.try_next().await? {
        names.extend(map_of(&object.name).filter(|(at, _)| at.seq <= to));
        if names.len() > MAPS_LISTED_MAX {
            thin(&mut names);
        }
    }
    Ok(names)
}

/// Leaves every second one, so that none is far from what is looked for, and the newest.
fn thin(names: &mut BTreeSet<Name>) {
    let newest = names.last().copied();
    let mut is_kept = false;
    names.retain(|name| {
        is_kept = !is_kept;
        is_kept || Some(*name) == newest
    });
}

/// The newest map that a view of `selector` can begin with, if there is one that can be used: none below the volume's base, nor that
/// one's own ([`of_base`]).
///
/// # Errors
/// `Unavailable`: a store that is away for a moment is asked again, instead of the logs from their start. One that
/// refuses to list or give maps is only a warning: whether the logs can be read is another question.
pub(crate) async fn find(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    branch: &Branch,
    selector: PointSelector,
    avoided: &Avoided,
    volume_base: Option<&VolumeBase>,
) -> Result<Option<Base>, VaultError> {
    let to = match selector {
        PointSelector::Seq(seq) => seq,
        PointSelector::Latest | PointSelector::Point(_) => Seq(u64::MAX),
    };
    let mut names: Vec<Name> = match list_to(vault, volume, to).await {
        Ok(names) => names
            .into_iter()
            .filter(|name| is_on_branch(branch, name.0) && is_above(volume_base, *name))
            .collect(),
        Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
        Err(error) => {
            tracing::warn!(%volume, %error, "maps cannot be listed; the logs are read instead");
            return Ok(None);
        }
    };
    let mut tries = MAP_TRIES_MAX;
    if let PointSelector::Point(point) = selector {
        until(vault, volume, point, &mut names, &mut tries).await?;
    }
    while let Some(name) = names.pop() {
        if tries == 0 {
            break;
        }
        match load(vault, volume, epochs, name).await {
            // Of a layer that does not open there may be hundreds.
            Ok(base) if base.is_of(avoided) => {}
            Ok(base) => return Ok(Some(base)),
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                warn_of(volume, name, &error);
                tries -= 1;
            }
        }
    }
    Ok(None)
}

/// Index of the epoch of a place.
fn index_of(at: Place) -> Option<usize> {
    usize::try_from(at.ordinal.checked_sub(1)?).ok()
}

fn is_on_branch(branch: &Branch, at: Place) -> bool {
    index_of(at).is_some_and(|epoch| branch.has(epoch))
}

/// Whether the stream can be gone on from a map: not from one that lies below the volume's base, whose slots may be gone. The base's own
/// is not looked for by listing.
pub(crate) fn is_above(base: Option<&VolumeBase>, name: Name) -> bool {
    base.is_none_or(|base| name.0 >= base.body.at && name != base.map())
}

pub(crate) fn warn_of(volume: VolumeId, (at, attempt): Name, error: &VaultError) {
    let object = ObjectName::map(volume, at, attempt);
    tracing::warn!(%object, %error, "a map cannot be used; an older one or the logs are");
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
    names: &mut Vec<Name>,
    tries: &mut usize,
) -> Result<(), VaultError> {
    let (mut low, mut high) = (0, names.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let name = names[middle];
        match peek(vault, volume, name).await {
            Ok(Some(found)) if found > point => high = middle,
            Ok(_) => low = middle + 1,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                warn_of(volume, name, &error);
                names.remove(middle);
                high -= 1;
                *tries -= 1;
                if *tries == 0 {
                    names.clear();
                    return Ok(());
                }
            }
        }
    }
    names.truncate(low);
    Ok(())
}

fn place(vault: &Vault, volume: VolumeId, (at, attempt): Name) -> MapPlace {
    MapPlace { vault: vault.id(), volume, at, attempt }
}

/// Puts an object of an attempt, which drew its name: one that is there is the same, put by a request whose answer was
/// lost.
async fn put_drawn(vault: &Vault, name: ObjectName, object: Bytes) -> Result<(), VaultError> {
    if vault.store().create(&name, object.clone()).await? == Put::Created {
        return Ok(());
    }
    if vault.store().get(&name, object.len() as u64).await? == object {
        return Ok(vault.store().settle(&name).await?);
    }
    Err(VaultError::Map { url: vault.url().to_owned(), object: name })
}

/// The point that a map says it is at.
async fn peek(vault: &Vault, volume: VolumeId, name: Name) -> Result<Option<PointId>, VaultError> {
    let object = ObjectName::map(volume, name.0, name.1);
    let front = vault.store().get_range(&object, 0..OBJECT_HEADER_BYTES_MAX as u64).await?;
    match peek_manifest(&front.bytes, &place(vault, volume, name), vault.ring()) {
        Ok(header) => Ok(header.fields.point),
        Err(cause) => Err(vault.damaged(object, 0, cause)),
    }
}

/// Opens the manifest of a map of a volume.
///
/// # Errors
/// `Corrupt` if it is damaged, or contradicts the epochs; `NotFound`; `Unavailable`.
pub(crate) async fn load(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    name: Name,
) -> Result<Base, VaultError> {
    Ok(load_with_digest(vault, volume, epochs, name).await?.0)
}

/// The same, with the digest of the manifest as it is stored.
pub(crate) async fn load_with_digest(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    name: Name,
) -> Result<(Base, Digest), VaultError> {
    let (header, manifest, digest) = open(vault, volume, name).await?;
    let Some(start) = start(epochs, &manifest, name.0) else {
        let (url, object) = (vault.url().to_owned(), ObjectName::map(volume, name.0, name.1));
        return Err(VaultError::Map { url, object });
    };
    let point = header.fields.point.zip(manifest.mark).map(|(id, mark)| {
        // In range: `start` compared the mark's place with the map's.
        let body = &epochs[usize::try_from(mark.at.ordinal).expect("an epoch") - 1];
        Point {
            id,
            seq: mark.at.seq,
            epoch: body.epoch,
            kind: mark.kind,
            unknown_blocks: mark.unknown_blocks,
            time_unix_ms: mark.time_unix_ms,
            size_bytes: body.size_bytes,
        }
    });
    Ok((Base { name, manifest, point, start }, digest))
}

/// The map of a volume's base, as that names it.
///
/// # Errors
/// `Corrupt` if it cannot be read, or is another, or contradicts the epochs; `Unavailable`.
pub(crate) async fn of_base(
    vault: &Vault,
    epochs: &[EpochBody],
    base: &VolumeBase,
) -> Result<Base, VaultError> {
    base.start(vault, epochs)?;
    let body = &base.body;
    match load_with_digest(vault, base.volume, epochs, base.map()).await {
        Ok((map, digest))
            if digest == body.manifest
                && (map.manifest.log, map.manifest.slot) == (body.log, body.slot) =>
        {
            Ok(map)
        }
        Ok(_) => Err(unreadable(vault, base, base.map(), None)),
        Err(error) => Err(unreadable(vault, base, base.map(), Some(error))),
    }
}

/// The error of a map that a base names and that cannot be read.
pub(crate) fn unreadable(
    vault: &Vault,
    base: &VolumeBase,
    (at, attempt): Name,
    cause: Option<VaultError>,
) -> VaultError {
    match cause {
        Some(error) if error.is_unavailable() => error,
        cause => VaultError::BaseMap {
            url: vault.url().to_owned(),
            object: base.object(),
            map: ObjectName::map(base.volume, at, attempt),
            cause: cause.map(Box::new),
        },
    }
}

async fn open(
    vault: &Vault,
    volume: VolumeId,
    name: Name,
) -> Result<(MapHeader, Manifest, Digest), VaultError> {
    let object = ObjectName::map(volume, name.0, name.1);
    let bytes = vault.store().get(&object, SEALED_OBJECT_BYTES_MAX).await?;
    let at = place(vault, volume, name);
    let open = move |vault: &Vault| {
        let (header, manifest) = open_manifest(&bytes, &at, vault.ring())?;
        Ok((header, manifest, digest(&bytes)))
    };
    vault.open_aside(object, ObjectKind::Map, open).await
}

/// The stream of a branch, behind a map, or from the volume's base or the branch's start.
///
/// # Errors
/// `Corrupt` if the epochs do not join there, or contradict the base; `Unavailable`.
pub(crate) async fn begin<'a>(
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    branch: &Branch,
    base: Option<&Base>,
    volume_base: Option<&VolumeBase>,
) -> Result<Chain<'a>, VaultError> {
    let epochs = epochs.to_vec();
    let from_base = volume_base.filter(|under| match base {
        Some(base) => base.name == under.map(),
        None => under.is_on(branch),
    });
    if let Some(under) = from_base {
        return Chain::behind(vault, epochs, under).await;
    }
    match base {
        Some(base) => {
            let at_end = base.point.filter(|point| point.seq == base.start.last);
            let point = at_end.map(|point| point.id);
            let map = Resumed { start: base.start, point, map: base.object(volume) };
            Ok(Chain::resume(vault, volume, epochs, map))
        }
        None => Chain::begin(vault, volume, epochs, branch.first),
    }
}

/// Where reading goes on behind a map, if the epochs of the volume allow it.
fn start(epochs: &[EpochBody], manifest: &Manifest, at: Place) -> Option<Start> {
    let epoch = index_of(at)?;
    let body = epochs.get(epoch)?;
    let is_of_epoch = (body.log, body.size_bytes) == (manifest.log, manifest.size_bytes)
        && body.first_slot <= manifest.slot
        && body.first_seq <= at.seq;
    // A writer that was fenced later may have mapped what does not count any more.
    let counts = epochs.get(epoch + 1).is_none_or(|next| at.seq < next.first_seq);
    let is_behind = manifest.mark.is_none_or(|mark| mark.at <= at);
    (is_of_epoch && counts && is_behind).then_some(Start {
        epoch,
        slot: manifest.slot,
        last: at.seq,
    })
}

#[cfg(test)]
mod tests;
