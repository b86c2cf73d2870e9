//! The next base of a volume, for what is to be kept of it.

use super::{VolumeBase, read_whole, write};
use crate::catalog::{Marked, end_of_volume, list_marks_to_damage};
use crate::epoch::{newest_branch, place_of};
use crate::error::VaultError;
use crate::map;
use crate::vault::Vault;
use crate::view::Point;
use farshore_proto::base::KeptPoint;
use farshore_proto::epoch::EpochBody;
use farshore_proto::mark::Mark;
use farshore_proto::{MapAttempt, Place, VolumeId};
use std::collections::BTreeMap;

/// Makes the next base of a volume at the newest of its maps that allows it: every point up to there that is to be kept has a map of its own.
/// The newest point there is kept whatever `keeps` says. Gives its number; none if no map allows more than the base before.
///
/// # Errors
/// As [`write`]; `Corrupt` also if the volume's points cannot be listed.
///
/// # Cancel safety
/// Dropped, it leaves open whether the base is there.
pub async fn renew(
    vault: &Vault,
    volume: VolumeId,
    keeps: impl Fn(&Point) -> bool,
) -> Result<Option<u64>, VaultError> {
    let (epochs, before) = read_whole(vault, volume).await?;
    if epochs.is_empty() {
        return Ok(None);
    }
    // Maps first: of one that is written meanwhile the list would lack the points.
    let mut maps = maps_of(vault, volume, &epochs, before.as_ref()).await?;
    let list = list_marks_to_damage(vault, volume).await?;
    if let Some(error) = list.broken {
        return Err(error);
    }
    if list.hole.is_some() {
        // What lies behind it may hold points that are not listed.
        return Ok(None);
    }
    // A map that was made of slots that were lost since reaches further than the list.
    let end = end_of_volume(vault, volume).await?.last_seq;
    maps.retain(|at, _| at.seq <= end);
    for (at, attempt) in maps.iter().rev() {
        let covered: Vec<&Marked> =
            list.marks.iter().filter(|marked| place(&epochs, marked) <= *at).collect();
        let newest = covered.last().map(|marked| marked.point.id);
        let kept =
            covered.iter().filter(|marked| keeps(&marked.point) || Some(marked.point.id) == newest);
        let points: Option<Vec<KeptPoint>> =
            kept.map(|marked| kept_point(&epochs, before.as_ref(), &maps, marked)).collect();
        let Some(points) = points else { continue };
        return write(vault, volume, *at, *attempt, points).await.map(Some);
    }
    Ok(None)
}

fn place(epochs: &[EpochBody], marked: &Marked) -> Place {
    place_of(epochs, marked.point.seq)
}

/// A map at each place of the volume's newest branch, from the base's place on, that opens and ends where its name says.
async fn maps_of(
    vault: &Vault,
    volume: VolumeId,
    epochs: &[EpochBody],
    before: Option<&VolumeBase>,
) -> Result<BTreeMap<Place, MapAttempt>, VaultError> {
    let branch = newest_branch(epochs);
    let mut maps = BTreeMap::new();
    for name in map::list(vault, volume).await? {
        let index = usize::try_from(name.0.ordinal).unwrap_or(usize::MAX).wrapping_sub(1);
        if !branch.has(index) || before.is_some_and(|base| name.0 <= base.body.at) {
            continue;
        }
        match map::load(vault, volume, epochs, name).await {
            Ok(_) => _ = maps.insert(name.0, name.1),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => map::warn_of(volume, name, &error),
        }
    }
    Ok(maps)
}

/// What a base says of a point that has a map of its own, or that the base before lists.
fn kept_point(
    epochs: &[EpochBody],
    before: Option<&VolumeBase>,
    maps: &BTreeMap<Place, MapAttempt>,
    marked: &Marked,
) -> Option<KeptPoint> {
    let at = place(epochs, marked);
    if let Some(known) = before.and_then(|base| base.body.kept_at(at)) {
        return Some(*known);
    }
    let Marked { point, group } = *marked;
    let Point { id, kind, unknown_blocks, time_unix_ms, epoch, size_bytes, .. } = point;
    let mark = Mark { point: id, kind, unknown_blocks, is_prompt: false, time_unix_ms, group };
    Some(KeptPoint { at, map: *maps.get(&at)?, epoch, size_bytes, mark })
}
