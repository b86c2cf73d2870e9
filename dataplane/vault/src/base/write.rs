//! Making a base: everything that it names is read first.

use super::{VolumeBase, newest, read};
use crate::epoch::{newest_branch, read_epochs};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::map::{self, Layer, open_layers};
use crate::store::Put;
use crate::vault::Vault;
use crate::view::Point;
use farshore_codec::base::seal_base;
use farshore_codec::digest::digest;
use farshore_proto::base::{BaseBody, DIGEST_BYTES, Digest, KeptPoint};
use farshore_proto::epoch::EpochBody;
use farshore_proto::limits::{BASE_POINTS_MAX, VOLUME_BLOCKS_MAX};
use farshore_proto::{BlockRange, LogId, MapAttempt, Place, Slot, VolumeId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Makes the next base of a volume: the stream at and below `at` is the map there of an attempt, and of the points there
/// `points` are kept, in order, each with the map that it names. Returns its number.
///
/// All maps are read whole, but for the frames that they name. Of each point all is compared with its map that the map says of it: not the
/// group of its mark. What a base before says of a point stays so, but for the map that it opens by.
///
/// # Errors
/// `Conflict` if the base before, or the epochs, do not allow it, or somebody else made one meanwhile: read again; `NotFound` for a volume
/// that the vault does not know; `Corrupt` if a map that is named cannot be read; `Unavailable`; `Limit`.
///
/// # Cancel safety
/// Dropped, it leaves open whether the base is there.
pub async fn write(
    vault: &Vault,
    volume: VolumeId,
    at: Place,
    map: MapAttempt,
    points: Vec<KeptPoint>,
) -> Result<u64, VaultError> {
    let before = newest(vault, volume).await?;
    if let Some(base) = before.as_ref().filter(|base| base.is_outgrown) {
        let (url, object) = (vault.url().to_owned(), base.object());
        return Err(VaultError::Outgrown { url, object });
    }
    let epochs = read_epochs(vault, volume).await?;
    if epochs.is_empty() {
        return Err(VaultError::NoVolume { url: vault.url().to_owned(), volume });
    }
    let number = before.as_ref().map_or(1, |base| base.number + 1);
    let refused = |why| refusal(vault, volume, number, why);
    let branch = newest_branch(&epochs);
    let is_on_branch = (branch.first as u64 + 1..=epochs.len() as u64).contains(&at.ordinal);
    if !is_on_branch {
        return Err(refused("its place is not on the volume's newest branch"));
    }
    if points.len() > BASE_POINTS_MAX {
        let (url, max) = (vault.url().to_owned(), BASE_POINTS_MAX as u64);
        return Err(VaultError::Limit { url, what: "points that a base keeps", max });
    }
    let (log, slot, manifest) = manifest_at(vault, volume, &epochs, (at, map)).await?;
    let before_digest = before.as_ref().map_or([0; DIGEST_BYTES], |base| base.digest);
    let body = BaseBody { before: before_digest, at, map, manifest, log, slot, points };
    // What is not laid out as a reader wants it would never open again.
    if BaseBody::decode(&body.encode(), number).as_ref() != Ok(&body) {
        return Err(refused("its points are not in order, or lie above its place"));
    }
    follows(before.as_ref().map(|base| &base.body), &body).map_err(refused)?;
    check_maps(vault, volume, &epochs, &body, number).await?;
    put(vault, volume, number, body).await
}

fn refusal(vault: &Vault, volume: VolumeId, number: u64, why: &'static str) -> VaultError {
    let (url, object) = (vault.url().to_owned(), ObjectName::base(volume, number));
    VaultError::BaseRefused { url, object, why }
}

/// Log and slot where a map ends, and the digest of its manifest.
async fn manifest_at(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    name: map::Name,
) -> Result<(LogId, Slot, Digest), VaultError> {
    let (base, digest) = map::load_with_digest(vault, volume, epochs, name).await?;
    Ok((base.manifest.log, base.manifest.slot, digest))
}

/// Whether a base may come behind another, or as the first.
///
/// # Errors
/// Why not.
pub(crate) fn follows(before: Option<&BaseBody>, next: &BaseBody) -> Result<(), &'static str> {
    let Some(before) = before else { return Ok(()) };
    if next.at < before.at {
        return Err("its place is in front of that of the base before");
    }
    let of_before = next.points.iter().take_while(|point| point.at <= before.at);
    for point in of_before {
        let Some(known) = before.kept_at(point.at) else {
            return Err("it keeps a point that the base before left out");
        };
        if (KeptPoint { map: known.map, ..*point }) != *known {
            return Err("it says something else of a point than the base before");
        }
    }
    Ok(())
}

/// Reads all maps that a base names.
async fn check_maps(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    body: &BaseBody,
    number: u64,
) -> Result<(), VaultError> {
    let mut whole = Whole { vault, volume, epochs, opened: Vec::new(), read: BTreeSet::new() };
    for point in &body.points {
        let base = whole.read((point.at, point.map)).await?;
        if base.own_point() != Some(Point::from(point)) {
            let why = "it says something else of a point than the map at its place";
            return Err(refusal(vault, volume, number, why));
        }
    }
    whole.read((body.at, body.map)).await.map(drop)
}

/// Reads maps whole. Layers that maps have in common are read once.
struct Whole<'a> {
    vault: &'a Vault,
    volume: VolumeId,
    epochs: &'a [EpochBody],
    /// Of the map before.
    opened: Vec<Arc<Layer>>,
    /// Attempts whose pages were read.
    read: BTreeSet<MapAttempt>,
}

impl Whole<'_> {
    async fn read(&mut self, name: map::Name) -> Result<map::Base, VaultError> {
        let Self { vault, volume, epochs, .. } = *self;
        let base = map::load(vault, volume, epochs, name).await?;
        let (known, user) = (&base.manifest.layers, base.object(volume));
        let layers = open_layers(vault, volume, known, &user, &self.opened).await;
        self.opened = layers.map_err(|failed| failed.error)?;
        for layer in &self.opened {
            if !self.read.insert(layer.attempt()) {
                continue;
            }
            let all = BlockRange { block: 0, count: VOLUME_BLOCKS_MAX };
            for key in layer.pages_in(all) {
                layer.read(vault, key, &user).await?;
            }
        }
        Ok(base)
    }
}

async fn put(
    vault: &Vault,
    volume: VolumeId,
    number: u64,
    body: BaseBody,
) -> Result<u64, VaultError> {
    let name = ObjectName::base(volume, number);
    let sealing = vault
        .seal_aside(&name, move |vault, keys| seal_base(vault.id(), volume, number, keys, &body));
    let object = sealing.await?;
    let ours = digest(&object);
    if vault.store().create(&name, object).await? == Put::Created {
        return Ok(number);
    }
    // Its salt was drawn for this attempt: the same bytes are ours.
    let VolumeBase { digest: found, .. } = read(vault, volume, number).await?;
    if found != ours {
        return Err(refusal(vault, volume, number, "somebody else made it meanwhile"));
    }
    vault.store().settle(&name).await?;
    Ok(number)
}
