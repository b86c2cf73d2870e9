//! The recovery points of a machine, and which of them have all of its disks: decided from the vault alone.
//!
//! Rules: `docs/formats/machine.md`.

use super::gather::Gathered;
use super::history::History;
use super::point::{MachinePoint, hide};
use super::revisions::Revision;
use super::{Found, find_all};
use crate::catalog::{MarkList, list_marks_to_damage};
use crate::chain::Hole;
use crate::error::VaultError;
use crate::limits::VOLUMES_AT_ONCE;
use crate::vault::Vault;
use farshore_proto::group::GroupBody;
use farshore_proto::machine::MachineBody;
use farshore_proto::{ErrorKind, MachineId, VolumeId};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;

/// The recovery points of a machine as far as the streams of its volumes can be read.
#[derive(Debug)]
pub struct MachinePoints {
    /// In order.
    pub points: Vec<MachinePoint>,
    /// Volumes whose streams end in damage, or have lost something: there may have been more points.
    pub broken: Vec<(VolumeId, VaultError)>,
    /// Where points lack members: why a group, or another machine's volume, cannot be read. What they lack may be there.
    pub unread: Vec<VaultError>,
    /// Volumes at whose ends a slot is missing though later ones exist: there may have been more points.
    pub holes: Vec<(VolumeId, Hole)>,
}

/// Lists the recovery points of a machine, in order, complete or not. `newest` is what it is made of now.
///
/// Costs the tables of all segments of its volumes; if an attempt lacks members, also those of the other volumes of its
/// groups. Who wants one point finds it with [`super::find_newest`] or [`super::find_complete`].
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn list_points(
    vault: &Vault,
    machine: MachineId,
    newest: &Revision<MachineBody>,
) -> Result<MachinePoints, VaultError> {
    let (mut gathered, mut unread) = (Gathered::default(), Vec::new());
    let (mut broken, mut holes) = (Vec::new(), Vec::new());
    let own: Vec<_> = newest.body.volumes().map(|(disk, volume)| (disk.index, volume)).collect();
    let lists = marks_of(vault, own.iter().map(|(_, volume)| *volume)).await?;
    for ((index, volume), list) in own.into_iter().zip(lists) {
        gathered.add_disk(index, volume, &list.marks);
        broken.extend(list.broken.map(|error| (volume, error)));
        holes.extend(list.hole.map(|hole| (volume, hole)));
    }
    if gathered.lacks_members() {
        let others = others(vault, machine, &newest.body, &mut unread).await?;
        for list in marks_of(vault, others).await? {
            gathered.add_other(&list.marks);
            unread.extend(list.broken);
        }
    }
    let mut history = History::new(vault, machine, newest);
    let order = gathered.in_order();
    let mut points = Vec::with_capacity(order.len());
    for key in order {
        let Some(found) = gathered.take(&key) else { continue };
        let mut point = found.judge(key, &mut history).await?;
        hide(&mut point, &broken, &unread);
        points.push(point);
    }
    Ok(MachinePoints { points, broken, unread, holes })
}

/// The marks of volumes, some read at the same time; none of one that the vault does not know.
async fn marks_of(
    vault: &Vault,
    volumes: impl IntoIterator<Item = VolumeId>,
) -> Result<Vec<MarkList>, VaultError> {
    let lists = stream::iter(volumes).map(|volume| async move {
        match list_marks_to_damage(vault, volume).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(MarkList::default()),
            list => list,
        }
    });
    lists.buffered(VOLUMES_AT_ONCE).try_collect().await
}

/// The volumes of other machines that are, or were, marked with those of this one, as far as groups can be read.
pub(super) async fn others(
    vault: &Vault,
    machine: MachineId,
    body: &MachineBody,
    unread: &mut Vec<VaultError>,
) -> Result<BTreeSet<VolumeId>, VaultError> {
    let mut volumes = BTreeSet::new();
    for (_, Found { revision, broken, .. }) in find_all::<GroupBody>(vault).await? {
        unread.extend(broken);
        let members = revision.map(|revision| revision.body.members).unwrap_or_default();
        if members.iter().any(|member| member.machine == machine) {
            volumes.extend(members.iter().map(|member| member.volume));
        }
    }
    for (_, own) in body.volumes() {
        volumes.remove(&own);
    }
    Ok(volumes)
}
