//! That the bases of a volume are all there, name each other and one another's points, and that the maps of the newest open.

use super::Report;
use crate::base::{self, VolumeBase, follows};
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, ordinal_of};
use crate::map::{self, open_layers};
use crate::vault::Vault;
use crate::view::Point;
use farshore_proto::epoch::EpochBody;
use farshore_proto::{Place, VolumeId};
use futures::TryStreamExt;

/// Reads all bases of a volume up to the newest, and opens the maps that the newest names, with their directories.
pub(super) async fn check(
    vault: &Vault,
    volume: VolumeId,
    newest: Option<&VolumeBase>,
    epochs: &[EpochBody],
    report: &mut Report,
) -> Result<(), VaultError> {
    let held = newest.map_or(0, |base| base.number);
    if let Some(last) = last_listed(vault, volume).await?.filter(|last| *last > held)
        // It may have been made since.
        && base::last_number(vault, volume).await.is_ok_and(|number| number < last)
    {
        let what = format!("is missing although base {last} exists");
        report.add(ObjectName::base(volume, held + 1), 0, what);
    }
    let mut before: Option<VolumeBase> = None;
    for number in 1..=held {
        let name = ObjectName::base(volume, number);
        let found = match base::read(vault, volume, number).await {
            Ok(found) => found,
            Err(error) => {
                if error.is_not_found() {
                    report.add(name, 0, format!("is missing although base {held} exists"));
                } else {
                    report.add_error(name, error)?;
                }
                before = None;
                continue;
            }
        };
        report.bases += 1;
        if let Some(before) = &before {
            if found.body.before != before.digest {
                report.add(name.clone(), 0, "does not name the base that is in front of it");
            }
            if let Err(what) = follows(Some(&before.body), &found.body) {
                report.add(name, 0, what);
            }
        }
        before = Some(found);
    }
    match newest {
        Some(newest) => check_maps(vault, newest, epochs, report).await,
        None => Ok(()),
    }
}

async fn last_listed(vault: &Vault, volume: VolumeId) -> Result<Option<u64>, VaultError> {
    let mut last = None;
    let mut listing = vault.store().list(Folder::Bases(volume));
    while let Some(object) = listing.try_next().await? {
        last = last.max(ordinal_of(&object.name));
    }
    Ok(last)
}

async fn check_maps(
    vault: &Vault,
    newest: &VolumeBase,
    epochs: &[EpochBody],
    report: &mut Report,
) -> Result<(), VaultError> {
    let (volume, object) = (newest.volume, newest.object());
    let own = map::of_base(vault, epochs, newest).await;
    let mut layers = Vec::new();
    let mut points = newest.body.points.iter();
    let mut next = Some((own, newest.body.at, None));
    while let Some((map, at, kept)) = next.take() {
        let opened = match map {
            Err(error) => Err(error),
            Ok(map) if kept.is_some_and(|kept| map.own_point() != Some(Point::from(kept))) => {
                let what = format!("says something else of the point at {at} than the map there");
                report.add(object.clone(), 0, what);
                Ok(())
            }
            Ok(map) => {
                let (known, user) = (&map.manifest.layers, map.object(volume));
                match open_layers(vault, volume, known, &user, &layers).await {
                    Ok(opened) => {
                        layers = opened;
                        Ok(())
                    }
                    Err(failed) => Err(failed.error),
                }
            }
        };
        if let Err(error) = opened {
            add(report, newest, at, error)?;
        }
        if let Some(kept) = points.next() {
            let map = map::load(vault, volume, epochs, (kept.at, kept.map)).await;
            next = Some((map, kept.at, Some(kept)));
        }
    }
    Ok(())
}

fn add(
    report: &mut Report,
    base: &VolumeBase,
    at: Place,
    error: VaultError,
) -> Result<(), VaultError> {
    if error.is_unavailable() {
        return Err(error);
    }
    let what = format!("names a map at {at} that cannot be read: {error}");
    report.add(base.object(), 0, what);
    Ok(())
}
